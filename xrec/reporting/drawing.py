"""matplotlib as SVG that a page can hold: real text, colours that follow the page's light or dark, names for readers.

Colours are drawn as markers that become names of the page's style sheet, so that one drawing serves screen and paper.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

INK, GRID, PAPER = "#010200", "#010201", "#010202"
SERIES = ("#010210", "#010211", "#010212", "#010213", "#010214", "#010215", "#010216", "#010217")
"""Told apart by colour-blind eyes (Okabe, Ito 2008); each is drawn with a marker, a hatch or a label of its own besides."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", ":", "-.")
_MEANS = {INK: "currentColor", GRID: "var(--grid)", PAPER: "var(--paper)"} | {
    marker: f"var(--series-{number})" for number, marker in enumerate(SERIES)
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a category may be called "$5"
    "font.size": 10.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "hatch.color": INK,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}
_POINTS_AN_INCH = 72
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
LONGEST_NAME = 26
HALF, WHOLE = 5.4, 9.0
"""Inches: half of a wide page, and the whole of it."""
LINE = 0.29
"""Inches a bar with its label needs."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing with what it shows in words and as a table."""

    name: str
    title: str
    caption: str
    svg: str
    inches: float
    """Its width."""
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@contextmanager
def canvas(width: float, height: float, *, rows: int = 1, columns: int = 1) -> Iterator[tuple[Canvas, list[Axes]]]:
    """An empty drawing (inches) and its axes, in the page's style while the block lasts."""
    with mpl.rc_context(_STYLE):
        figure = Canvas(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def to_svg(figure: Canvas, *, name: str, title: str) -> str:
    """A drawing as an ``svg`` element with a title; the ids in it begin with ``name``, so that pages can hold several."""
    written = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The reader's browser has the letters that the font for measuring lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", written.getvalue())
    root = ElementTree.fromstring(text)  # noqa: S314 - our own, made a line above
    width, height = (_POINTS_AN_INCH * size for size in figure.get_size_inches())
    root.attrib = {
        "viewBox": f"0 0 {width:g} {height:g}",
        "role": "img",
        "aria-labelledby": f"{name}-title",
        "preserveAspectRatio": "xMidYMid meet",
    }
    # Their style would be the whole page's.
    for child in [child for child in root if child.find(f"{{{_SVG}}}style") is not None]:
        root.remove(child)
    heading = ElementTree.Element(f"{{{_SVG}}}title", {"id": f"{name}-title"})
    heading.text = title
    for element in root.iter():
        _rename(element, name)
    root.insert(0, heading)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    text = ElementTree.tostring(root, encoding="unicode")
    for marker, meaning in _MEANS.items():
        text = text.replace(marker, meaning)
    return text


def name_places(axes: Axes, names: Sequence[str], *, longest: int = LONGEST_NAME) -> None:
    """Write names along the vertical axis, the first at the top."""
    axes.set_yticks(range(len(names)), [shorten(name, longest) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def shorten(name: str, longest: int = LONGEST_NAME) -> str:
    """A name that fits beside an axis; the table below the figure has it whole."""
    return name if len(name) <= longest else f"{name[: longest - 1].rstrip()}…"


def _rename(element: ElementTree.Element, name: str) -> None:
    """Put ``name`` before the element's id and the ids that it refers to."""
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == f"{{{_XLINK}}}href":
            element.set(key, f"#{name}-{value.removeprefix('#')}")
        elif "url(#" in value:
            element.set(key, re.sub(r"url\(#", f"url(#{name}-", value))
