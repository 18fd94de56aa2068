"""From the tables, the ledger and the checkpoints to the facts of a page: a few rows of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from pyspark.sql import Row
from pyspark.sql import functions as F

import xrec
from xrec import columns as C
from xrec.config import Settings
from xrec.evaluation.folds import Fold, select_folds_before
from xrec.evaluation.report import POOLED, of_one_fold
from xrec.features.sequence_files import model_location, models_used
from xrec.ingest.cleaning import CLEAN, DUPLICATE, OUTCOMES
from xrec.logrules.judge import USED
from xrec.reporting.customers import draw_customers
from xrec.reporting.facts import Cleaning, Count, Facts, Flow, Flows, Share, Training
from xrec.runs.ledger import StageRun, newest_runs
from xrec.runs.stage import StageContext
from xrec.runs.stages import STAGE_NAMES
from xrec.runs.versions import code_version
from xrec.schemas import TABLES
from xrec.sequence.progress import load_progress
from xrec.storage.files import absolute
from xrec.storage.tables import Tables

NUM_CATEGORIES, NUM_CELLS, NUM_FLOWS = 20, 15, 12
"""Categories of the balance, categories a side of the heat map, and the flows that are shown one by one."""
_NUM_LOOKS = 20
_READ = (
    "accounts",
    "balance_report",
    "metrics",
    "reliability",
    "category_flow",
    "recommendations",
    "looks",
    "trials",
    "blend_weights",
    "serving_models",
)
"""Tables that a run may lack."""
_PACKAGES = ("pyspark", "delta-spark", "pyarrow", "numpy", "torch", "horovod", "petastorm", "matplotlib", "jinja2")


def gather(context: StageContext) -> Facts:
    """The facts of the newest run of each stage, on the main fold of the settings."""
    tables, settings, fold = context.tables, context.settings, context.main_fold
    there = {name for name in _READ if tables.exists(name)}
    runs = newest_runs(tables)
    run_id = runs["evaluate"].run_id if "evaluate" in runs else ""
    k = settings.evaluation.ks[0]
    metrics = _metrics(tables, fold, k, run_id) if "metrics" in there else []
    blend = _blend(tables, fold) if "blend_weights" in there else []
    serving = _serving(tables, settings, fold) if "serving_models" in there else []
    served = C.SERVED if serving else ""
    models = {row[C.MODEL] for row in metrics}
    model = next((name for name in (served, "als", *sorted(models)) if name in models), None)
    found = {
        "cleaning": _cleaning(tables) if "accounts" in there else None,
        "shares": _shares(tables, fold) if "balance_report" in there else [],
        "trainings": _trainings(settings, context.folds),
        "flows": _flows(tables, settings, fold, run_id, model) if model and "category_flow" in there else None,
        "customers": draw_customers(tables, fold, seed=settings.seed) if "recommendations" in there else [],
        "looks": _looks(tables) if "looks" in there else [],
        "trials": _trials(tables) if "trials" in there else [],
    }
    return Facts(
        title=settings.storage.catalog or settings.storage.tables_root.rstrip("/").rsplit("/", 1)[-1],
        fold=fold.name,
        fold_text=_in_words(fold, context.folds),
        is_select=fold.purpose == "select",
        run_id=run_id,
        served=served,
        scope=settings.ranking.scope,
        k=k,
        missing=_missing(settings, fold, metrics, found),
        metrics=metrics,
        reliability=_reliability(tables, fold, run_id) if "reliability" in there else [],
        blend=blend,
        serving=serving,
        stages=[runs[name] for name in STAGE_NAMES if name in runs],
        versions=_versions(tables, runs),
        packages=_packages(),
        settings=list(_flat(json.loads(settings.model_dump_json()))),
        **found,  # type: ignore[arg-type] # each is of its field's type
    )


def _in_words(fold: Fold, folds: Sequence[Fold]) -> str:
    if fold.skip_last is not None and fold.has_targets:
        return "a backtest whose targets are each user's last event"
    older = select_folds_before(fold, folds)
    is_shorter = older and older[-1].horizon != fold.horizon
    foretold = (
        f"; a ranker's probabilities are of {older[-1].days}, the horizon of the older folds" if is_shorter else ""
    )
    if fold.purpose == "serve":
        return f"lists as of {fold.as_of:%Y-%m-%d}; the {fold.days} after it will judge them{foretold}"
    return f"a backtest as of {fold.as_of:%Y-%m-%d}, judged by the {fold.days} after it{foretold}"


def _missing(settings: Settings, fold: Fold, metrics: list[Row], found: Mapping[str, object]) -> dict[str, str]:
    """A line for each part that is not there."""
    sequence = models_used(settings)
    lines = {
        "cleaning": "No events have been judged yet; the stages ingest and judge do it.",
        "shares": f"The training rows of fold {fold.name} are not there; the stage balance makes them.",
        "trainings": (
            f"No training of {' or '.join(sequence)} is on record; the stages train_gru and train_transformer make it."
            if sequence
            else "ranking.sources names no sequence model (gru, transformer), so none was trained by the epoch."
        ),
        "flows": f"Nothing says where the lists of fold {fold.name} lead; the stage evaluate counts it.",
        "customers": (
            "Select folds choose settings, and no list goes out; the stage recommend writes lists with folds.purpose test or serve."
            if fold.purpose == "select"
            else f"There are no lists as of {fold.as_of:%Y-%m-%d}; the stage recommend writes them."
        ),
        "looks": "Nobody has looked at a test fold yet; the stage evaluate writes each look down.",
        "trials": "No search for settings is on record; jobs/compare.py --trials makes one.",
    }
    missing = {name: line for name, line in lines.items() if not found[name]}
    if not metrics:
        missing["metrics"] = (
            f"No figures of fold {fold.name} are there; the stage evaluate makes them (with the same settings)."
        )
    elif not fold.has_targets:
        missing["accuracy"] = (
            f"Fold {fold.name} serves: its lists can be judged by the stage evaluate when the horizon has passed. "
            "What they are like is known already."
        )
    return missing


def _cleaning(tables: Tables) -> Cleaning:
    outcomes = tables.read("accounts").groupBy(C.OUTCOME).agg(F.sum(C.NUM_ROWS).alias(C.NUM_ROWS)).collect()
    num = {row[C.OUTCOME]: row[C.NUM_ROWS] for row in outcomes}
    uses = {row[C.USE]: row["count"] for row in tables.read("judged_events").groupBy(C.USE).count().collect()}
    read, doubled = sum(num.get(name, 0) for name in OUTCOMES), num.get(DUPLICATE, 0)
    steps = {
        "rows read": read,
        "not a duplicate": read - doubled,
        "clean": num.get(CLEAN, 0),
        "events, each once": sum(uses.values()),
        "events that count": uses.get(USED, 0),
    }
    reasons = {f"quarantined: {name}": count for name, count in num.items() if name not in OUTCOMES}
    reasons |= {"duplicate in its delivery": doubled} if doubled else {}
    reasons |= {f"does not count: {name}": count for name, count in uses.items() if name != USED}
    return Cleaning(
        steps=[Count(name=name, num_rows=count) for name, count in steps.items()],
        set_aside=[
            Count(name=name, num_rows=reasons[name]) for name in sorted(reasons, key=lambda n: (-reasons[n], n))
        ],
    )


def _shares(tables: Tables, fold: Fold) -> list[Share]:
    """The largest categories, and all others together as the last."""
    kinds = [C.CATEGORY, C.NUM_EVENTS, C.SHARE, C.BALANCED_SHARE]
    rows = tables.read("balance_report", fold=fold.name).select(*kinds).collect()
    rows.sort(key=lambda row: (-row[C.NUM_EVENTS], row[C.CATEGORY]))
    largest, rest = rows[:NUM_CATEGORIES], rows[NUM_CATEGORIES:]
    shares = [Share(category=row[0], num_events=row[1], before=row[2], after=row[3]) for row in largest]
    if rest:
        sums = [sum(row[name] for row in rest) for name in kinds[1:]]
        shares.append(Share(category=f"{len(rest)} others", num_events=sums[0], before=sums[1], after=sums[2]))
    return shares


def _trainings(settings: Settings, folds: list[Fold]) -> list[Training]:
    artifacts, trainings = absolute(settings.storage.artifacts_root), []
    for model in models_used(settings):
        for fold in folds:
            progress = load_progress(f"{model_location(artifacts, fold.name, model)}/checkpoint")
            if progress is not None and progress.epochs:
                trainings.append(Training(model=model, fold=fold.name, best=progress.best, epochs=progress.epochs))
    return trainings


def _metrics(tables: Tables, fold: Fold, k: int, run_id: str) -> list[Row]:
    """The rows of the judging run: of all folds together, and what is known of single folds only, of the main one."""
    rows = tables.read("metrics", run_id=run_id).where((F.col(C.K) == k) & F.col(C.FOLD).isin(POOLED, fold.name))
    found = rows.collect()
    if not any(row[C.FOLD] == fold.name for row in found):
        return []
    whole = of_one_fold(found, fold.name)
    known = {row[C.METRIC] for row in whole}
    return whole + [row for row in found if row[C.FOLD] == fold.name and row[C.METRIC] not in known]


def _reliability(tables: Tables, fold: Fold, run_id: str) -> list[Row]:
    rows = tables.read("reliability", run_id=run_id).where(F.col(C.FOLD) == fold.name).collect()
    return sorted(rows, key=lambda row: (row[C.MODEL], row[C.BIN]))


def _blend(tables: Tables, fold: Fold) -> list[Row]:
    rows = tables.read("blend_weights", fold=fold.name).collect()
    return sorted(rows, key=lambda row: (row[C.SCOPE] != "touched", -row[C.WEIGHT]))


def _serving(tables: Tables, settings: Settings, fold: Fold) -> list[Row]:
    """The models that could serve the fold, the best first."""
    rows = tables.read("serving_models", fold=fold.name, scope=settings.ranking.scope).collect()
    return sorted(rows, key=lambda row: (-(row[C.NDCG] or 0.0), row[C.MODEL]))


def _flows(tables: Tables, settings: Settings, fold: Fold, run_id: str, model: str) -> Flows | None:
    rows = tables.read("category_flow", run_id=run_id).where(
        (F.col(C.FOLD) == fold.name) & (F.col(C.SLICE) == settings.ranking.scope) & (F.col(C.MODEL) == model)
    )
    sides = [F.struct(F.lit(side).alias("side"), F.col(side).alias("name")) for side in (C.MAIN_CATEGORY, C.CATEGORY)]
    per_side = rows.select(F.inline(F.array(*sides)), C.NUM_SHOWN).groupBy("side", "name").sum(C.NUM_SHOWN)
    totals = sorted(per_side.collect(), key=lambda row: (-row[2], row["name"]))
    if not totals:
        return None
    mains = {row["name"]: row[2] for row in totals if row["side"] == C.MAIN_CATEGORY}
    top_mains = list(mains)[:NUM_CELLS]
    categories = [row["name"] for row in totals if row["side"] == C.CATEGORY][:NUM_CELLS]
    is_cell = F.col(C.MAIN_CATEGORY).isin(top_mains) & F.col(C.CATEGORY).isin(categories)
    names = list(Flow.__dataclass_fields__)
    cells = rows.where(is_cell).select(*names, F.lit(True).alias("is_cell"))
    biggest = rows.orderBy(F.desc(C.NUM_SHOWN), C.MAIN_CATEGORY, C.CATEGORY).limit(NUM_FLOWS)
    found = cells.unionByName(biggest.select(*names, F.lit(False).alias("is_cell"))).collect()

    def flows(*, of_cells: bool) -> list[Flow]:
        chosen = [Flow(**{name: row[name] for name in names}) for row in found if row["is_cell"] == of_cells]
        return sorted(chosen, key=lambda flow: (-flow.num_shown, flow.main_category, flow.category))

    return Flows(
        model=model,
        slice_name=settings.ranking.scope,
        k=settings.evaluation.ks[0],
        cells=flows(of_cells=True),
        main_categories=top_mains,
        categories=categories,
        num_shown=mains,
        biggest=flows(of_cells=False),
        has_targets=fold.has_targets,
    )


def _looks(tables: Tables) -> list[Row]:
    """The newest looks, newest first."""
    return tables.read("looks").orderBy(F.desc(C.LOOKED_TS)).limit(_NUM_LOOKS).collect()


def _trials(tables: Tables) -> list[Row]:
    """The trials of the newest search, in the order in which they were made."""
    rows = tables.read("trials")
    newest = rows.agg(F.max(C.RUN_ID)).collect()[0][0]
    return sorted(rows.where(F.col(C.RUN_ID) == newest).collect(), key=lambda row: row[C.TRIAL])


def _versions(tables: Tables, runs: Mapping[str, StageRun]) -> dict[str, int]:
    """The versions that the newest runs wrote and, of the tables that the page was made from, those that were read."""
    written = {
        name: number
        for run in sorted(runs.values(), key=lambda run: run.started_ts)
        for name, number in run.outputs.items()
    }
    known = written | tables.read_versions
    return {name: known[name] for name in TABLES if name in known}


def _packages() -> dict[str, str]:
    found = {"xrec": f"{xrec.__version__} ({code_version()})"}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings to keys with dots and values as JSON."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
