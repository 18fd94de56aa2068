"""From the tables, the ledger and the checkpoints to the facts of a page: a few rows of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

import xrec
from xrec import columns as C
from xrec.config import Settings
from xrec.evaluation.folds import Fold, history_of
from xrec.evaluation.report import POOLED, of_one_fold
from xrec.features.sequence_files import MODELS, model_location
from xrec.ingest.cleaning import CLEAN, DUPLICATE, OUTCOMES
from xrec.logrules.judge import USED
from xrec.reporting.facts import Cleaning, Count, Customer, Facts, Flow, Flows, Share, Training
from xrec.runs.ledger import newest_runs
from xrec.runs.looks import code_version
from xrec.runs.stage import StageContext
from xrec.runs.stages import STAGE_NAMES
from xrec.schemas import TABLES
from xrec.sequence.progress import load_progress
from xrec.storage.files import absolute
from xrec.storage.tables import Tables, read_table_version

NUM_CATEGORIES, NUM_CELLS, NUM_FLOWS = 20, 15, 15
"""Categories of the balance, categories a side of the heat map, and the flows that are shown one by one."""
_NUM_CUSTOMERS, _NUM_EACH, _NUM_ITEMS = 5, 5, 10
_NUM_LOOKS = 20
_PACKAGES = ("pyspark", "delta-spark", "pyarrow", "numpy", "torch", "horovod", "petastorm", "matplotlib", "jinja2")


def gather(context: StageContext) -> Facts:
    """The facts of the newest run of each stage, on the main fold of the settings."""
    tables, settings, fold = context.tables, context.settings, context.main_fold
    versions = {name: newest for name in TABLES if (newest := read_table_version(tables, name)) is not None}
    runs, there = newest_runs(tables), set(versions)
    run_id = runs["evaluate"].run_id if "evaluate" in runs else ""
    k = settings.evaluation.ks[0]
    metrics = _metrics(tables, fold, k, run_id) if "metrics" in there else []
    blend = _blend(tables) if "blend_weights" in there else []
    served = C.BLEND if blend and fold.purpose != "select" else ""
    found = {
        "cleaning": _cleaning(tables) if {"accounts", "judged_events"} <= there else None,
        "shares": _shares(tables, fold) if "balance_report" in there else [],
        "trainings": _trainings(settings, context.folds),
        "flows": _flows(tables, settings, fold, run_id, served) if metrics and "category_flow" in there else None,
        "customers": _customers(context, fold) if "recommendations" in there else [],
        "looks": _looks(tables) if "looks" in there else [],
        "trials": _trials(tables) if "trials" in there else [],
    }
    return Facts(
        title=settings.storage.catalog or settings.storage.tables_root.rstrip("/").rsplit("/", 1)[-1],
        fold=fold.name,
        fold_text=_in_words(fold),
        is_select=fold.purpose == "select",
        run_id=run_id,
        served=served,
        scope=settings.ranking.scope,
        k=k,
        missing=_missing(settings, fold, metrics, found),
        metrics=metrics,
        blend=blend,
        stages=[runs[name] for name in STAGE_NAMES if name in runs],
        versions=versions,
        packages=_packages(),
        settings=list(_flat(json.loads(settings.model_dump_json()))),
        **found,  # type: ignore[arg-type] # each is of its field's type
    )


def _in_words(fold: Fold) -> str:
    days = f"{fold.horizon.total_seconds() / 86400:g} days"
    if fold.purpose == "serve":
        return f"lists as of {fold.as_of:%Y-%m-%d}; the {days} after it will judge them"
    if fold.skip_last is not None:
        return "a backtest whose targets are each user's last event"
    return f"a backtest as of {fold.as_of:%Y-%m-%d}, judged by the {days} after it"


def _missing(settings: Settings, fold: Fold, metrics: list[Row], found: Mapping[str, object]) -> dict[str, str]:
    """A line for each part that is not there."""
    sequence = [name for name in settings.ranking.sources if name in MODELS]
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
    rows = tables.read("balance_report", fold=fold.name)
    kinds = [C.NUM_EVENTS, C.SHARE, C.BALANCED_SHARE]
    largest = rows.orderBy(F.desc(C.NUM_EVENTS), C.CATEGORY).limit(NUM_CATEGORIES).select(C.CATEGORY, *kinds).collect()
    total = rows.agg(F.count("*"), *[F.sum(name) for name in kinds]).collect()[0]
    shares = [Share(category=row[0], num_events=row[1], before=row[2], after=row[3]) for row in largest]
    if total[0] > len(shares):
        rest = Share(
            category=f"{total[0] - len(shares)} others",
            num_events=total[1] - sum(share.num_events for share in shares),
            before=total[2] - sum(share.before for share in shares),
            after=total[3] - sum(share.after for share in shares),
        )
        shares.append(rest)
    return shares


def _trainings(settings: Settings, folds: list[Fold]) -> list[Training]:
    artifacts, trainings = absolute(settings.storage.artifacts_root), []
    for model in (name for name in MODELS if name in settings.ranking.sources):
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


def _blend(tables: Tables) -> list[Row]:
    return sorted(tables.read("blend_weights").collect(), key=lambda row: (row[C.SCOPE] != "touched", -row[C.WEIGHT]))


def _flows(tables: Tables, settings: Settings, fold: Fold, run_id: str, served: str) -> Flows | None:
    rows = tables.read("category_flow", run_id=run_id).where(
        (F.col(C.FOLD) == fold.name) & (F.col(C.SLICE) == settings.ranking.scope)
    )
    models = [row[0] for row in rows.select(C.MODEL).distinct().collect()]
    if not models:
        return None
    model = next((name for name in (served, "als", *sorted(models)) if name in models), models[0])
    rows = rows.where(F.col(C.MODEL) == model)
    mains, categories = _most_shown(rows, C.MAIN_CATEGORY), _most_shown(rows, C.CATEGORY)
    cells = rows.where(F.col(C.MAIN_CATEGORY).isin(list(mains)) & F.col(C.CATEGORY).isin(list(categories)))
    biggest = rows.orderBy(F.desc(C.NUM_SHOWN), C.MAIN_CATEGORY, C.CATEGORY).limit(NUM_FLOWS)
    return Flows(
        model=model,
        slice_name=settings.ranking.scope,
        k=settings.evaluation.ks[0],
        cells=_flows_of(cells),
        main_categories=list(mains),
        categories=list(categories),
        num_shown=mains,
        biggest=_flows_of(biggest),
    )


def _most_shown(rows: DataFrame, column: str) -> dict[str, int]:
    """The values of a column that were shown most, with how often."""
    shown = rows.groupBy(column).agg(F.sum(C.NUM_SHOWN).alias(C.NUM_SHOWN))
    return {row[0]: row[1] for row in shown.orderBy(F.desc(C.NUM_SHOWN), column).limit(NUM_CELLS).collect()}


def _flows_of(rows: DataFrame) -> list[Flow]:
    names = list(Flow.__dataclass_fields__)
    found = [Flow(**row.asDict()) for row in rows.select(*names).collect()]
    return sorted(found, key=lambda flow: (-flow.num_shown, flow.main_category, flow.category))


def _customers(context: StageContext, fold: Fold) -> list[Customer]:
    """Five customers, chosen by a hash of the seed and the key."""
    tables = context.tables
    lists = tables.read("recommendations").where(F.col(C.RUN_DATE) == F.lit(fold.as_of.date()))
    drawn = lists.select(C.USER_ID).distinct().orderBy(F.xxhash64(F.lit(context.settings.seed), C.USER_ID))
    users = [row[0] for row in drawn.limit(_NUM_CUSTOMERS).collect()]
    labels = tables.read("items").select(C.ITEM_ID, C.LABEL)
    top = lists.where(F.col(C.USER_ID).isin(users) & (F.col(C.RANK) <= _NUM_ITEMS)).drop(C.VERSIONS)
    items = top.join(labels, C.ITEM_ID, how="left").orderBy(C.RANK).collect()
    of_users = tables.read("users").where(F.col(C.USER_ID).isin(users)).select(C.USER_ID, C.USER_IDX)
    mixes = {row[C.USER_ID]: row for row in _mixes(tables.read("user_categories", fold=fold.name), of_users).collect()}
    bought = {row[C.USER_ID]: row["newest"] for row in _newest(context, fold, of_users, labels).collect()}
    return [
        Customer(
            user_id=user,
            num_touched=mixes[user]["num_touched"],
            heaviest=[(part[C.CATEGORY], part[C.SHARE]) for part in mixes[user]["heaviest"]],
            purchases=[
                (part[C.EVENT_TS].date(), part[C.LABEL] or part[C.ITEM_ID], part[C.CATEGORY])
                for part in bought.get(user, [])
            ],
            items=[
                (row[C.RANK], row[C.LABEL] or row[C.ITEM_ID], row[C.CATEGORY], row[C.REASON])
                for row in items
                if row[C.USER_ID] == user
            ],
        )
        for user in users
        if user in mixes
    ]


def _mixes(user_categories: DataFrame, users: DataFrame) -> DataFrame:
    """Users to their number of touched categories and their heaviest ones, with their share of the weight."""
    total = F.sum(C.WEIGHT)
    ranked = F.reverse(F.array_sort(F.collect_list(F.struct(C.WEIGHT, C.CATEGORY))))
    return (
        user_categories.join(F.broadcast(users), C.USER_IDX, how="inner")
        .groupBy(C.USER_ID)
        .agg(
            F.count_if(C.TOUCHED).alias("num_touched"), F.slice(ranked, 1, _NUM_EACH).alias("top"), total.alias("total")
        )
        .select(
            C.USER_ID,
            "num_touched",
            F.transform(
                "top",
                lambda one: F.struct(
                    one[C.CATEGORY].alias(C.CATEGORY), (one[C.WEIGHT] / F.col("total")).alias(C.SHARE)
                ),
            ).alias("heaviest"),
        )
    )


def _newest(context: StageContext, fold: Fold, users: DataFrame, labels: DataFrame) -> DataFrame:
    """Users to the newest events of their history that count."""
    counting = F.col(C.EVENT_TYPE).isin(*context.settings.categories.counting_events)
    events = (
        context.indexed_events().where(counting).join(F.broadcast(users.select(C.USER_ID)), C.USER_ID, how="left_semi")
    )
    history = history_of(events, fold).join(labels, C.ITEM_ID, how="left")
    # The smallest of an array comes first: of a negative age the newest, then by the item.
    newest = F.sort_array(
        F.collect_set(F.struct((-F.unix_micros(C.EVENT_TS)).alias("age"), C.ITEM_ID, C.EVENT_TS, C.LABEL, C.CATEGORY))
    )
    return history.groupBy(C.USER_ID).agg(F.slice(newest, 1, _NUM_EACH).alias("newest"))


def _looks(tables: Tables) -> list[Row]:
    """The newest looks, newest first."""
    return tables.read("looks").orderBy(F.desc(C.LOOKED_TS)).limit(_NUM_LOOKS).collect()


def _trials(tables: Tables) -> list[Row]:
    """The trials of the newest search, in the order in which they were made."""
    rows = tables.read("trials")
    newest = rows.agg(F.max(C.RUN_ID)).collect()[0][0]
    return rows.where(F.col(C.RUN_ID) == newest).orderBy(C.TRIAL).collect()


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
