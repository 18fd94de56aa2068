"""Facts to one HTML page that needs nothing else: no script, no font, no request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from xrec import columns as C
from xrec.evaluation.report import HEADLINE
from xrec.reporting.drawing import SERIES, Figure
from xrec.reporting.facts import Facts
from xrec.reporting.figures import draw_cleaning, draw_flows, draw_shares, draw_trainings
from xrec.reporting.model_figures import draw_beyond, draw_models, draw_reliability, say_missed
from xrec.reporting.words import against_single, difference, find, headline, models_in, name_slice, slices_in, value_of

_PIXELS_AN_INCH = 88
"""The drawings' text is then as large as the page's small text."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page; ``missing`` says, where something is not there, which stage makes it."""

    name: str
    title: str
    intro: str = ""
    missing: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


def render(facts: Facts, *, made_at: datetime | None = None) -> str:
    """The page of these facts."""
    environment = Environment(
        loader=PackageLoader("xrec.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        facts=facts,
        headline=headline(facts),
        sections=_sections(facts),
        made_at=f"{made_at or datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        drawing=lambda figure: Markup(figure.svg),  # noqa: S704 - drawn here; its text is escaped where it is written
        pixels=lambda figure: round(_PIXELS_AN_INCH * figure.inches),
        num_series=len(SERIES),
    )


def _sections(facts: Facts) -> list[Section]:
    missing = facts.missing

    def lines(*names: str) -> list[str]:
        return [missing[name] for name in names if name in missing]

    return [
        Section(
            name="models",
            title="Models",
            intro=(
                "Every model is judged on the same customers as popularity, which ranks by the number of buyers. "
                + say_missed(facts)
            ).strip(),
            missing=lines("metrics", "accuracy"),
            figures=[*draw_models(facts), *draw_reliability(facts)],
            tables=_metric_tables(facts),
        ),
        Section(
            name="beyond",
            title="Long tail and coverage",
            intro=f"What the lists are like whether or not they hit: {name_slice(facts.scope)}.",
            missing=lines("metrics"),
            figures=draw_beyond(facts),
        ),
        Section(
            name="flows",
            title="From where to where",
            intro="Which categories are recommended to the customers of which main category.",
            missing=lines("flows"),
            figures=draw_flows(facts.flows) if facts.flows else [],
        ),
        Section(
            name="customers",
            title="Customers",
            intro="A few customers, drawn by a hash of their key: what they bought before, and the list that they get."
            if facts.customers
            else "",
            missing=lines("customers"),
        ),
        Section(
            name="cleaning",
            title="Cleaning",
            missing=lines("cleaning"),
            figures=draw_cleaning(facts.cleaning) if facts.cleaning else [],
        ),
        Section(
            name="balance",
            title="Categories before and after balancing",
            missing=lines("shares"),
            figures=[draw_shares(facts.shares)] if facts.shares else [],
        ),
        Section(
            name="training",
            title="Training",
            intro="ALS has no curve: it alternates between exact solutions for a fixed number of rounds (als in the settings).",
            missing=lines("trainings"),
            figures=draw_trainings(facts.trainings),
        ),
        Section(
            name="choices", title="Choices and looks", missing=lines("trials", "looks"), tables=_choice_tables(facts)
        ),
        Section(name="run", title="The run", tables=_run_tables(facts)),
    ]


def _metric_tables(facts: Facts) -> list[Table]:
    """A table a slice with every other metric, and one with the differences to popularity."""
    tables = []
    for name in slices_in(facts.metrics, facts.scope):
        rows = [row for row in facts.metrics if row[C.SLICE] == name]
        models = models_in(rows)
        metrics = sorted({row[C.METRIC] for row in rows}, key=lambda metric: (metric != HEADLINE, metric))
        for what, cell in (("figures", value_of), ("differences to popularity", difference)):
            body = []
            for metric in metrics:
                found = {row[C.MODEL]: cell(row) for row in find(rows, metric, name)}
                if what == "figures" or set(found.values()) - {"-"}:
                    body.append((f"{metric}@{facts.k}", *[found.get(model, "-") for model in models]))
            if body:
                tables.append(Table(title=f"All {what}, {name_slice(name)}", head=("metric", *models), rows=body))
    return tables


def _choice_tables(facts: Facts) -> list[Table]:
    tables: list[Table] = []
    rows: list[Sequence[str]]
    if facts.serving:
        rows = [
            (
                row[C.MODEL] + (" (serves)" if row[C.CHOSEN] else ""),
                "-" if row[C.NDCG] is None else f"{row[C.NDCG]:.4f} [{row[C.LOW]:.4f}, {row[C.HIGH]:.4f}]",
                against_single(row),
                row[C.COMPARED_WITH],
                row[C.SELECTED_ON],
            )
            for row in facts.serving
        ]
        head = ("model", "NDCG@10 on older folds", "beside a single source", "which", "folds")
        tables.append(Table(title="What could serve", head=head, rows=rows))
    if facts.blend:
        rows = [(row[C.SCOPE], row[C.SOURCE], f"{row[C.WEIGHT]:.2g}", row[C.SELECTED_ON] or "-") for row in facts.blend]
        tables.append(Table(title="Weights of the blend", head=("scope", "source", "weight", "chosen on"), rows=rows))
    if facts.trials:
        k = facts.trials[0][C.K]
        rows = [
            (str(row[C.TRIAL]), row[C.SETTINGS], f"{row[C.NDCG]:.5f}", "chosen" if row[C.CHOSEN] else "")
            for row in facts.trials
        ]
        title = f"Settings that the newest search tried, on {facts.trials[0][C.SELECTED_ON]}; trial 0 is the control"
        tables.append(Table(title=title, head=("trial", "settings", f"NDCG@{k}", ""), rows=rows))
    if facts.looks:
        rows = [
            (
                f"{row[C.LOOKED_TS]:%Y-%m-%d %H:%M}",
                row[C.FOLD],
                row[C.RUN_ID],
                row[C.CODE_VERSION],
                row[C.SETTINGS_HASH],
            )
            for row in facts.looks
        ]
        title = "Looks at a test fold, newest first: who looks often enough finds something"
        tables.append(Table(title=title, head=("when (UTC)", "fold", "run", "commit", "settings"), rows=rows))
    return tables


def _run_tables(facts: Facts) -> list[Table]:
    stages = [
        (
            run.stage,
            f"{run.started_ts:%Y-%m-%d %H:%M}",
            f"{run.seconds:.1f}",
            run.run_id,
            run.settings_hash,
            ", ".join(f"{key} {value}" for key, value in sorted(run.shown.items())),
        )
        for run in facts.stages
    ]
    return [
        Table(
            title="Stages, the newest run of each",
            head=("stage", "started (UTC)", "seconds", "run", "settings", "figures"),
            rows=stages,
        ),
        Table(
            title="Versions of the tables",
            head=("table", "version"),
            rows=[(name, str(number)) for name, number in (facts.versions or {}).items()],
        ),
        Table(title="Packages", head=("package", "version"), rows=list((facts.packages or {}).items())),
        Table(title="Settings", head=("key", "value"), rows=facts.settings),
    ]
