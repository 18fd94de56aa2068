"""What a run would do (the plan), and what it did (the summary), for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F
from rich.console import Console
from rich.table import Table as Grid

from xrec import columns as C
from xrec.config import Settings
from xrec.evaluation.report import is_significant, of_one_fold
from xrec.evaluation.slices import SCOPES
from xrec.runs.ledger import StageRun, newest_runs
from xrec.runs.stage import StageContext
from xrec.runs.stages import STAGE_NAMES, STAGES, StageInfo, reads_of, writes_of
from xrec.schemas import TABLES
from xrec.storage.tables import Tables, read_table_version

_NUM_CUSTOMERS = 5
_ITEMS_A_CUSTOMER = 5
_HEADLINE = "ndcg"
_OTHERS = ("hr", "recall", "precision", "coverage")
_ROW_FIGURES = ("rows_read", "rows_clean", "rows_quarantined", "rows_duplicate")
_AMONG = {"new": "among all that a user never had", "all": "among all items"}
"""Scopes that leave out no category."""


def print_plan(console: Console, tables: Tables, chosen: Sequence[StageInfo], settings: Settings) -> None:
    """The stages that run and those that do not, with the versions that they would start from."""
    where = settings.storage.catalog or settings.storage.root
    console.print(f"xrec: {len(chosen)} of {len(STAGES)} stages, settings {settings.digest()}, tables in {where}")
    versions = {name: read_table_version(tables, name) for name in TABLES}
    made = {name for stage in chosen for name in writes_of(stage, settings)}
    grid = Grid("stage", "runs", "reads", "writes", title="plan")
    for stage in STAGES:
        reads = ", ".join(f"{name}@{_shown(versions[name], name in made)}" for name in reads_of(stage, settings))
        writes = ", ".join(writes_of(stage, settings))
        grid.add_row(stage.name, "yes" if stage in chosen else "no (not chosen)", reads, writes)
    console.print(grid)


def print_summary(console: Console, context: StageContext, chosen: Sequence[StageInfo]) -> None:
    """Rows, times, models beside popularity, five customers, and where the tables lie."""
    runs = newest_runs(context.tables)
    names = [stage.name for stage in chosen]
    console.rule("summary")
    if "ingest" in runs:
        _print_rows(console, runs["ingest"])
    _print_times(console, context, runs)
    if "evaluate" in names:
        print_models(console, context, runs["evaluate"].run_id)
    if "publish" in names:  # what was only staged, nobody has yet
        _print_customers(console, context)
    _print_places(console, context)


def _print_rows(console: Console, ingest: StageRun) -> None:
    figures = ingest.shown
    line = ", ".join(f"{figures[name]} {name.removeprefix('rows_')}" for name in _ROW_FIGURES if name in figures)
    console.print(f"rows: {line}")
    for name, value in figures.items():
        if name not in _ROW_FIGURES:
            console.print(f"    {name}: {value}")


def _print_times(console: Console, context: StageContext, runs: dict[str, StageRun]) -> None:
    grid = Grid("stage", "seconds", "figures", title="stages")
    for name in STAGE_NAMES:
        if name not in runs:
            grid.add_row(name, "-", "never ran")
            continue
        run = runs[name]
        earlier = "" if run.run_id == context.run_id else f"(not in this run; newest: {run.run_id}) "
        shown = (
            "" if name in {"ingest", "evaluate"} else ", ".join(f"{key} {value}" for key, value in run.shown.items())
        )
        grid.add_row(name, f"{run.seconds:.1f}", earlier + shown)
    total = sum(run.seconds for run in runs.values() if run.run_id == context.run_id)
    grid.add_row("this run", f"{total:.1f}", "")
    console.print(grid)


def print_models(console: Console, context: StageContext, run_id: str) -> None:
    """A table a scope: each model's figures beside popularity."""
    metrics = of_one_fold(context.tables.read("metrics", run_id=run_id).collect(), context.main_fold.name)
    k = context.settings.evaluation.ks[0]
    for scope in sorted({row[C.SLICE] for row in metrics} & set(SCOPES), reverse=True):
        rows = [row for row in metrics if row[C.SLICE] == scope]
        users = max((row[C.NUM_USERS] for row in rows if row[C.METRIC] == _HEADLINE), default=0)
        grid = Grid(
            title=f"{_AMONG.get(scope, f'outside {scope} categories')}, fold {rows[0][C.FOLD]}: {users:,} users with targets"
        )
        for title in (
            "model",
            f"{_HEADLINE}@{k} [interval]",
            "against popularity",
            *[f"{name}@{k}" for name in _OTHERS],
        ):
            grid.add_column(title, no_wrap=True)
        # The reach has a model of its own, the union of the sources, which has no list.
        for model in sorted({row[C.MODEL] for row in rows if row[C.METRIC] in {_HEADLINE, *_OTHERS}}):
            found = {row[C.METRIC]: row for row in rows if row[C.MODEL] == model and row[C.K] == k}
            others = [f"{found[name][C.VALUE]:.4f}" if name in found else "-" for name in _OTHERS]
            grid.add_row(model, *_headline(found.get(_HEADLINE)), *others)
        console.print(grid)
    others = sorted({row[C.SLICE] for row in metrics} - set(SCOPES))
    console.print(f"the table metrics has every cut-off and interval, and the slices {', '.join(others) or '(none)'}")
    runs = newest_runs(context.tables)
    if "choose" in runs and runs["choose"].run_id == run_id:
        for scope, serving in _prefixed(runs["choose"].figures, "serves_"):
            console.print(f"what serves outside {scope} categories: {serving}")
    if looks := runs["evaluate"].figures.get("looks"):
        console.print(f"looks at the test data: {looks}")


def _prefixed(figures: Mapping[str, str], prefix: str) -> Iterator[tuple[str, str]]:
    return ((name.removeprefix(prefix), value) for name, value in figures.items() if name.startswith(prefix))


def _headline(head: Row | None) -> tuple[str, str]:
    """The first metric with its interval, and its difference to popularity in per cent with its interval."""
    if head is None:
        return "-", "-"
    value = f"{head[C.VALUE]:.4f} [{head[C.LOW]:.4f}, {head[C.HIGH]:.4f}]"
    if head[C.MODEL] == C.POPULARITY or head[C.DIFFERENCE] is None:
        return value, "-"
    base = head[C.VALUE] - head[C.DIFFERENCE]
    if not base:
        return value, "popularity found none"
    low, mid, high = (100 * head[name] / base for name in (C.DIFFERENCE_LOW, C.DIFFERENCE, C.DIFFERENCE_HIGH))
    verdict = "" if is_significant(head) else " (not significant)"
    return value, f"{mid:+.1f} % [{low:+.1f}, {high:+.1f}]{verdict}"


def _print_customers(console: Console, context: StageContext) -> None:
    """Five customers, chosen by a hash of the seed and the key: their categories, and the top of their lists."""
    tables, fold = context.tables, context.main_fold
    lists = tables.read("recommendations").where(F.col(C.RUN_DATE) == F.lit(fold.as_of.date()))
    users = lists.select(C.USER_ID).distinct().orderBy(F.xxhash64(F.lit(context.settings.seed), C.USER_ID))
    chosen = [row[0] for row in users.limit(_NUM_CUSTOMERS).collect()]
    labels = tables.read("items").select(C.ITEM_ID, C.LABEL)
    top = lists.where(F.col(C.USER_ID).isin(chosen) & (F.col(C.RANK) <= _ITEMS_A_CUSTOMER)).join(
        labels, C.ITEM_ID, how="left"
    )
    rows = sorted(top.collect(), key=lambda row: (row[C.USER_ID], row[C.RANK]))
    mixes = {row[C.USER_ID]: row for row in _mixes(tables, fold.name, chosen).collect()}
    console.print(
        f"{len(chosen)} customers of {fold.as_of:%Y-%m-%d} (top {_ITEMS_A_CUSTOMER} of {context.settings.ranking.top_k}):"
    )
    for user in chosen:
        mix = mixes[user]
        console.print(f"  customer {user}: buys in {mix['num_touched']} categories, mostly {', '.join(mix['top'])}")
        for row in (row for row in rows if row[C.USER_ID] == user):
            label = f" ({row[C.LABEL]})" if row[C.LABEL] else ""
            console.print(f"    {row[C.RANK]}. {row[C.CATEGORY]}: item {row[C.ITEM_ID]}{label}  {row[C.REASON]}")


def _mixes(tables: Tables, fold: str, user_ids: Sequence[str]) -> DataFrame:
    """One row a user: its number of touched categories and its three heaviest."""
    users = tables.read("users").where(F.col(C.USER_ID).isin(*user_ids)).select(C.USER_ID, C.USER_IDX)
    heaviest = F.reverse(F.array_sort(F.collect_list(F.struct(C.WEIGHT, C.CATEGORY))))
    return (
        tables.read("user_categories", fold=fold)
        .join(users, C.USER_IDX, how="inner")
        .groupBy(C.USER_ID)
        .agg(F.count_if(C.TOUCHED).alias("num_touched"), F.slice(heaviest, 1, 3)[C.CATEGORY].alias("top"))
    )


def _print_places(console: Console, context: StageContext) -> None:
    storage = context.settings.storage
    grid = Grid("table", "version", "one row is", title=f"tables in {storage.catalog or storage.tables_root}")
    for name, table in TABLES.items():
        version = read_table_version(context.tables, name)
        if version is not None:
            grid.add_row(name, str(version), table.row)
    console.print(grid)


def _shown(version: int | None, is_made: bool) -> str:
    if is_made:
        return "new"
    return "missing" if version is None else str(version)
