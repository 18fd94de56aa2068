"""Figures of the models: how good their lists are, and what they are like otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator, PercentFormatter
from pyspark.sql import Row

from xrec import columns as C
from xrec.evaluation.report import HEADLINE
from xrec.reporting.drawing import (
    DASHES,
    HALF,
    INK,
    LINE,
    MARKERS,
    PAPER,
    SERIES,
    Figure,
    canvas,
    name_places,
    to_svg,
)
from xrec.reporting.facts import Facts
from xrec.reporting.words import BASELINE, UNSURE, difference, find, models_in, name_slice, slices_in, value_of, verdict

_BEYOND = {
    "coverage": ("Coverage", "distinct items shown, of all recommendable items", True),
    "category_coverage": ("Category coverage", "distinct categories shown, of all recommendable categories", True),
    "long_tail": ("Long tail", "share of shown items outside the short head, which has 80 % of all purchases", True),
    "gini": ("Gini index of exposure", "0: all items are shown equally often; near 1: a few are", False),
    "novelty": ("Novelty", "bits; the rarer the shown items are bought, the more", False),
    "diversity": ("Diversity", "0: a list has one category; 1: its items share none", False),
}
"""By metric: title, what it says, and whether it is a share."""


def draw_models(facts: Facts) -> list[Figure]:
    """A figure a slice: every model's NDCG with its interval, and what the difference to popularity is.

    None of a slice that no model hits anything of: see :func:`say_missed`.
    """
    of_slices = _slices(facts).items()
    return [_draw_slice(rows, name, facts.k) for name, rows in of_slices if any(row[C.VALUE] for row in rows)]


def say_missed(facts: Facts) -> str:
    """The slices that no model hits anything of, in a sentence; empty where there are none."""
    missed = [
        f"{name_slice(name)} ({max(row[C.NUM_USERS] for row in rows):,} users with targets)"
        for name, rows in _slices(facts).items()
        if not any(row[C.VALUE] for row in rows)
    ]
    return f"No model's first {facts.k} hold a target of: {'; '.join(missed)}." if missed else ""


def _slices(facts: Facts) -> dict[str, list[Row]]:
    """The models' rows of NDCG by slice."""
    names = slices_in([row for row in facts.metrics if row[C.METRIC] == HEADLINE], facts.scope)
    return {name: find(facts.metrics, HEADLINE, name) for name in names}


def _draw_slice(rows: Sequence[Row], slice_name: str, k: int) -> Figure:
    name, title = f"models-{slice_name.replace('_', '-')}", f"NDCG@{k}, {name_slice(slice_name)}"
    with canvas(HALF, 0.5 + LINE * len(rows)) as (figure, (axes,)):
        base = next((row[C.VALUE] for row in rows if row[C.MODEL] == BASELINE), None)
        if base is not None:
            axes.axvline(base, color=INK, linestyle="--", linewidth=0.9)
        for place, row in enumerate(rows):
            said, value = verdict(row), row[C.VALUE]
            is_sure = said in {"higher", "lower"}
            low, high = (value if row[bound] is None else row[bound] for bound in (C.LOW, C.HIGH))
            axes.errorbar(
                value,
                place,
                xerr=[[max(value - low, 0.0)], [max(high - value, 0.0)]],
                color=SERIES[0],
                marker="D" if row[C.MODEL] == BASELINE else "o",
                markerfacecolor=SERIES[0] if is_sure else PAPER,
                capsize=3,
            )
            text = "baseline" if row[C.MODEL] == BASELINE else said
            axes.annotate(f"{value:.4f}  {text}", (1.02, place), xycoords=("axes fraction", "data"), va="center")
        name_places(axes, [row[C.MODEL] for row in rows])
        axes.margins(x=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        svg = to_svg(figure, name=name, title=title)
    users = max((row[C.NUM_USERS] for row in rows), default=0)
    return Figure(
        name=name,
        title=title,
        caption=(
            f"{users:,} users with targets; lines are intervals, the dashed one is popularity. A filled dot differs from "
            f"popularity for sure, an open one does not ({UNSURE}), all models being compared at once."
        ),
        svg=svg,
        inches=HALF,
        head=("model", "value [interval]", "against popularity [interval for all models at once]"),
        rows=[(row[C.MODEL], value_of(row), difference(row)) for row in rows],
    )


def draw_reliability(facts: Facts) -> list[Figure]:
    """What the models' probabilities foretold beside what came; none where no model gives probabilities."""
    if not facts.reliability:
        return []
    name, title = "reliability", f"What was foretold and what came, top {facts.k}"
    with canvas(HALF, 4.0) as (figure, (axes,)):
        longest = max(max(row[C.PREDICTED], row[C.HIGH]) for row in facts.reliability)
        axes.plot([0, longest], [0, longest], color=INK, linestyle="--", linewidth=0.9)
        for number, model in enumerate(models_in(facts.reliability)):
            rows = [row for row in facts.reliability if row[C.MODEL] == model]
            observed = [row[C.OBSERVED] for row in rows]
            axes.errorbar(
                [row[C.PREDICTED] for row in rows],
                observed,
                yerr=[
                    [max(value - row[C.LOW], 0.0) for value, row in zip(observed, rows, strict=True)],
                    [max(row[C.HIGH] - value, 0.0) for value, row in zip(observed, rows, strict=True)],
                ],
                color=SERIES[number % len(SERIES)],
                marker=MARKERS[number % len(MARKERS)],
                linestyle=DASHES[number % len(DASHES)],
                markersize=5,
                capsize=2,
                label=model,
            )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("mean score: the probability foretold")
        axes.set_ylabel("share that was bought")
        figure.legend(loc="outside upper left", ncols=3)
        svg = to_svg(figure, name=name, title=title)
    return [
        Figure(
            name=name,
            title=title,
            caption=(
                "Listed items in bins of equal size by their score. On the dashed line a score is what comes; above it more is "
                "bought than was foretold. Lines are intervals."
            ),
            svg=svg,
            inches=HALF,
            head=("model", "bin", "rows", "foretold", "bought [interval]"),
            rows=[
                (
                    row[C.MODEL],
                    str(row[C.BIN]),
                    f"{row[C.NUM_ROWS]:,}",
                    f"{row[C.PREDICTED]:.2%}",
                    f"{row[C.OBSERVED]:.2%} [{row[C.LOW]:.2%}, {row[C.HIGH]:.2%}]",
                )
                for row in facts.reliability
            ],
        )
    ]


def draw_beyond(facts: Facts) -> list[Figure]:
    """A figure a metric that says what lists are like: a bar a model."""
    drawn = []
    for metric, (title, meaning, is_share) in _BEYOND.items():
        if rows := find(facts.metrics, metric, facts.scope):
            shown = [f"{row[C.VALUE]:.2%}" if is_share else f"{row[C.VALUE]:.3f}" for row in rows]
            drawn.append(_draw_metric(rows, f"{title}@{facts.k}", meaning, shown, is_share=is_share))
    return drawn


def _draw_metric(rows: Sequence[Row], title: str, meaning: str, shown: Sequence[str], *, is_share: bool) -> Figure:
    name = f"beyond-{rows[0][C.METRIC].replace('_', '-')}"
    with canvas(HALF, 0.55 + LINE * len(rows)) as (figure, (axes,)):
        hatches = ["////" if row[C.MODEL] == BASELINE else "" for row in rows]
        bars = axes.barh(
            range(len(rows)),
            [row[C.VALUE] for row in rows],
            color=SERIES[0],
            hatch=hatches,
            edgecolor=PAPER,
            height=0.7,
        )
        axes.bar_label(bars, shown, padding=3)
        name_places(axes, [row[C.MODEL] for row in rows])
        axes.margins(x=0.18)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        if is_share:
            axes.xaxis.set_major_formatter(PercentFormatter(1))
        svg = to_svg(figure, name=name, title=title)
    return Figure(
        name=name,
        title=title,
        caption=f"{meaning[0].upper()}{meaning[1:]}. Popularity is hatched.",
        svg=svg,
        inches=HALF,
        head=("model", "value [interval]", "against popularity [interval for all models at once]"),
        rows=[(row[C.MODEL], value_of(row), difference(row)) for row in rows],
    )
