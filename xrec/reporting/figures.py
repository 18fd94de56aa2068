"""Facts to figures: each a drawing, a caption in words, and a table of the same values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from xrec.reporting.drawing import (
    DASHES,
    GRID,
    HALF,
    LINE,
    MARKERS,
    PAPER,
    SERIES,
    WHOLE,
    Figure,
    canvas,
    name_places,
    shorten,
    to_svg,
)
from xrec.reporting.facts import Cleaning, Count, Flows, Share, Training

_MOST_REASONS = 12


def draw_cleaning(cleaning: Cleaning) -> list[Figure]:
    """The steps from rows read to events that count, and why rows are not in the last one."""
    total = max(cleaning.steps[0].num_rows, 1)
    figures = [
        _bars(
            "funnel",
            "From rows read to events that count",
            f"Of {total:,} rows read, {cleaning.steps[-1].num_rows:,} count as events; each bar is a part of the one above.",
            cleaning.steps,
            total=total,
        )
    ]
    if cleaning.set_aside:
        top = cleaning.set_aside[:_MOST_REASONS]
        caption = "A row may have several reasons. Nothing is dropped: quarantined rows are kept in events_quarantine."
        figures.append(_bars("set-aside", "Why rows do not count", caption, top, total=total))
    return figures


def draw_shares(shares: Sequence[Share]) -> Figure:
    """A category's share of the training rows, before and after balancing."""
    is_same = all(abs(share.before - share.after) < 1e-9 for share in shares)
    title = "Shares of categories in the training rows"
    names = [share.category for share in shares]
    with canvas(WHOLE, 0.9 + 0.34 * len(names)) as (figure, (axes,)):
        places = range(len(names))
        for values, shift, color, hatch, label in (
            ([share.before for share in shares], -0.2, SERIES[0], "", "before balancing"),
            ([share.after for share in shares], 0.2, SERIES[1], "////", "after balancing"),
        ):
            at = [place + shift for place in places]
            axes.barh(at, values, height=0.38, color=color, hatch=hatch, edgecolor=PAPER, label=label)
        for place, share in zip(places, shares, strict=True):
            text = f"{share.before:.1%}" if is_same else f"{share.before:.1%} to {share.after:.1%}"
            axes.annotate(
                text, (max(share.before, share.after), place), (4, 0), textcoords="offset points", va="center"
            )
        name_places(axes, names)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.margins(x=0.12, y=0.02)
        figure.legend(loc="outside upper left", ncols=2)
        svg = to_svg(figure, name="shares", title=title)
    caption = (
        "Balancing is off: each category keeps its share." if is_same else "Shares of all training rows of the fold."
    )
    return Figure(
        name="shares",
        title=title,
        caption=caption,
        svg=svg,
        inches=WHOLE,
        head=("category", "events", "share before", "share after"),
        rows=[(s.category, f"{s.num_events:,}", f"{s.before:.2%}", f"{s.after:.2%}") for s in shares],
    )


def draw_trainings(trainings: Sequence[Training]) -> list[Figure]:
    """A figure a model: its loss and its validation figure by epoch, a line a fold."""
    return [
        _draw_model(model, [t for t in trainings if t.model == model]) for model in sorted({t.model for t in trainings})
    ]


def _draw_model(model: str, trainings: Sequence[Training]) -> Figure:
    title = f"Training of the {model}"
    with canvas(HALF, 4.2, rows=2) as (figure, (losses, ndcgs)):
        for number, training in enumerate(trainings):
            epochs = [epoch.epoch for epoch in training.epochs]
            style: dict[str, Any] = {
                "color": SERIES[number % len(SERIES)],
                "marker": MARKERS[number % len(MARKERS)],
                "linestyle": DASHES[number % len(DASHES)],
                "markersize": 5,
            }
            losses.plot(epochs, [epoch.loss for epoch in training.epochs], label=training.fold, **style)
            judged = [(epoch.epoch, epoch.ndcg) for epoch in training.epochs if epoch.ndcg is not None]
            ndcgs.plot([at for at, _ in judged], [ndcg for _, ndcg in judged], **style)
            for at, ndcg in judged:
                if at == training.best:
                    ndcgs.annotate("best", (at, ndcg), (0, 6), textcoords="offset points", ha="center")
        for axes, label in ((losses, "training loss, nats"), (ndcgs, "validation NDCG@10")):
            axes.set_ylabel(label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        ndcgs.set_xlabel("epoch")
        ndcgs.margins(y=0.2)
        figure.legend(loc="outside upper left", ncols=2)
        svg = to_svg(figure, name=f"training-{model}", title=title)
    return Figure(
        name=f"training-{model}",
        title=title,
        caption="The weights of the best epoch count. Validation users stop the training early; their figure is none to report.",
        svg=svg,
        inches=HALF,
        head=("fold", "epoch", "loss", "validation NDCG@10", "seconds"),
        rows=[
            (
                training.fold,
                f"{epoch.epoch}{' (best)' if epoch.epoch == training.best else ''}",
                f"{epoch.loss:.4f}",
                "-" if epoch.ndcg is None else f"{epoch.ndcg:.4f}",
                f"{epoch.seconds:.1f}",
            )
            for training in trainings
            for epoch in training.epochs
        ],
    )


def draw_flows(flows: Flows) -> list[Figure]:
    """Where the lists lead: the heat map of the most frequent categories, and the biggest flows."""
    return [_draw_heat(flows), _draw_biggest(flows)]


def _draw_heat(flows: Flows) -> Figure:
    title = f"From main categories to recommended ones: {flows.model}, top {flows.k}"
    mains, categories = flows.main_categories, flows.categories
    shown = {(flow.main_category, flow.category): flow.num_shown for flow in flows.cells}
    part = [[shown.get((m, c), 0) / max(flows.num_shown[m], 1) for c in categories] for m in mains]
    most = max(max(map(max, part), default=0.0), 1e-9)
    with canvas(WHOLE, 1.9 + 0.3 * len(mains)) as (figure, (axes,)):
        for y, row in enumerate(part):
            for x, value in enumerate(row):
                # Paler than the letters on it, on light and on dark paper.
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=SERIES[0], alpha=0.65 * value / most))
                if value >= 0.005:
                    axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=9)
        axes.set(xlim=(-0.5, len(categories) - 0.5), ylim=(len(mains) - 0.5, -0.5))
        axes.set_xticks(range(len(categories)), [shorten(name) for name in categories], rotation=45, ha="right")
        axes.set_yticks(range(len(mains)), [shorten(name) for name in mains])
        axes.grid(visible=False)
        axes.set_xlabel("category of the recommended items")
        axes.set_ylabel("customers' main category")
        svg = to_svg(figure, name="heat", title=title)
    return Figure(
        name="heat",
        title=title,
        caption=(
            "The numbers are per cent of what customers of a main category (a line) are shown; empty: below 0.5 %. "
            "A customer's main category is the one with his largest weight."
        ),
        svg=svg,
        inches=WHOLE,
        head=("main category", *categories),
        rows=[(m, *[f"{100 * value:.1f}" for value in row]) for m, row in zip(mains, part, strict=True)],
    )


def _draw_biggest(flows: Flows) -> Figure:
    title = f"The biggest flows: {flows.model}, top {flows.k}"
    names = [f"{shorten(flow.main_category)} > {shorten(flow.category)}" for flow in flows.biggest]
    kinds = (
        ("shown", [flow.num_shown for flow in flows.biggest], SERIES[0], ""),
        ("targets", [flow.num_targets for flow in flows.biggest], SERIES[1], "////"),
        ("hits", [flow.num_hits for flow in flows.biggest], SERIES[2], "...."),
    )[: None if flows.has_targets else 1]
    bought = ", that were bought in the horizon (targets), and both (hits)" if flows.has_targets else ""
    with canvas(WHOLE, 0.9 + 0.5 * len(names)) as (figure, (axes,)):
        for number, (label, values, color, hatch) in enumerate(kinds):
            at = [place + 0.27 * (number - 1) for place in range(len(names))]
            bars = axes.barh(at, values, height=0.25, color=color, hatch=hatch, edgecolor=PAPER, label=label)
            axes.bar_label(bars, [f"{value:,}" for value in values], padding=3, fontsize=8.5)
        name_places(axes, names, longest=60)
        axes.margins(x=0.1, y=0.02)
        figure.legend(loc="outside upper left", ncols=3)
        svg = to_svg(figure, name="flows", title=title)
    return Figure(
        name="flows",
        title=title,
        caption=f"Pairs (customer, item) that were shown{bought}.",
        svg=svg,
        inches=WHOLE,
        head=("main category", "category", *[label for label, *_ in kinds]),
        rows=[
            (flow.main_category, flow.category, *[f"{values[place]:,}" for _, values, *_ in kinds])
            for place, flow in enumerate(flows.biggest)
        ],
    )


def _bars(name: str, title: str, caption: str, counts: Sequence[Count], *, total: int) -> Figure:
    """One bar a count, with its number and its part of the total."""
    with canvas(HALF, 0.6 + 1.25 * LINE * len(counts)) as (figure, (axes,)):
        bars = axes.barh(
            range(len(counts)), [count.num_rows for count in counts], color=SERIES[0], edgecolor=GRID, height=0.7
        )
        axes.bar_label(bars, [f"{count.num_rows:,} ({count.num_rows / total:.1%})" for count in counts], padding=3)
        name_places(axes, [count.name for count in counts], longest=34)
        axes.margins(x=0.45)
        axes.set_xticks([])
        svg = to_svg(figure, name=name, title=title)
    return Figure(
        name=name,
        title=title,
        caption=caption,
        svg=svg,
        inches=HALF,
        head=("", "rows", "of all rows read"),
        rows=[(count.name, f"{count.num_rows:,}", f"{count.num_rows / total:.2%}") for count in counts],
    )
