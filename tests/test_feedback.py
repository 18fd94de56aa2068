"""What was shown flows back: bought adds, in vain counts against, both known before as-of, and ALS alone sees it."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipeline_runs import ROOT
from xrec.config import Als, Categories, Feedback, Outliers, Settings, Weights
from xrec.evaluation.folds import Fold, histories_of
from xrec.features.feedback import feedback_of, resting_pairs
from xrec.features.outliers import value_limits_of
from xrec.generators.als import ratings_of, train_als
from xrec.generators.sources import users_of_folds
from xrec.ranking.eligibility import eligible_items
from xrec.runs.stage import StageContext
from xrec.schemas import TABLES
from xrec.storage.tables import MissingTableError, Tables

pytestmark = pytest.mark.spark

AS_OF = datetime(2024, 7, 1, tzinfo=timezone.utc)
FOLD = Fold(name="test-2024-07-01", purpose="test", as_of=AS_OF, horizon=timedelta(days=30))
FEEDBACK = Feedback(ignored_weight=2.0, bought_weight=3.0, window_days=5, min_shown=2)
WEIGHTS = Weights(event_types={"purchase": 1.0, "view": 0.1}, half_life_days=10)
SHOWN = "user_idx int, item_idx int, shown_ts timestamp, flagged_ts timestamp"
EVENTS = "event_id string, user_idx int, item_idx int, event_type string, event_ts timestamp, void_ts timestamp"
ROWS = "user_idx int, item_idx int, weight double"


def day(number: float) -> datetime:
    """Days before as-of (negative: after it)."""
    return AS_OF - timedelta(days=number)


def shown_rows(*rows: tuple[int, int, float], flagged: float | None = None) -> list[tuple[Any, ...]]:
    since = None if flagged is None else day(flagged)
    return [(user, item, day(number), since) for user, item, number in rows]


SHOWINGS = [
    *shown_rows((1, 10, 20), (1, 10, 12)),  # in vain
    *shown_rows((1, 11, 20)),  # once is too seldom
    *shown_rows((1, 12, 20), (1, 12, 4)),  # the second one is still open
    *shown_rows((1, 13, 9), (1, 13, 8), (1, 13, 1)),  # bought on day 7, after two
    *shown_rows((2, 10, 20), (2, 10, 19)),  # viewed, so not in vain
    *shown_rows((2, 11, 20), (2, 11, 19)),  # bought and given back, so neither
    *shown_rows((2, 12, 20), (2, 12, 19)),  # bought too late, so neither
    *shown_rows((2, 13, 20), (2, 13, 19)),  # bought after as-of: in vain by what was known
    *shown_rows((2, 14, 6)),  # bought at the moment of showing
    *shown_rows((2, 15, 6)),  # bought at the last moment of the window
    *shown_rows((3, 10, 20), (3, 10, 19), flagged=9),  # no person, as was known
    *shown_rows((4, 10, 20), (4, 10, 19), flagged=-3),  # no person, as came out later
]
DONE = [
    ("a", 1, 13, "purchase", day(7), None),
    ("b", 2, 10, "view", day(30), None),
    ("c", 2, 11, "purchase", day(18), day(10)),
    ("d", 2, 12, "purchase", day(13.9), None),
    ("e", 2, 13, "purchase", day(-1), None),
    ("f", 2, 14, "purchase", day(6), None),
    ("g", 2, 15, "purchase", day(1), None),
]


def fed_back(spark: SparkSession, shown: Sequence[tuple[Any, ...]], done: Sequence[tuple[Any, ...]]) -> DataFrame:
    return feedback_of(
        spark.createDataFrame(shown, SHOWN), spark.createDataFrame(done, EVENTS), FOLD, FEEDBACK, WEIGHTS, Categories()
    )


def test_what_was_bought_and_what_was_shown_in_vain(spark: SparkSession) -> None:
    found = fed_back(spark, SHOWINGS, DONE).collect()
    assert {(row["user_idx"], row["item_idx"]): (row["event_type"], row["num_shown"]) for row in found} == {
        (1, 10): ("shown_ignored", 2),
        (1, 13): ("shown_bought", 2),
        (2, 13): ("shown_ignored", 2),
        (2, 15): ("shown_bought", 1),
        (4, 10): ("shown_ignored", 2),
    }
    weights = {(row["user_idx"], row["item_idx"]): row["weight"] for row in found}
    assert weights[1, 10] == pytest.approx(-2.0 * 0.5**1.2), "the last showing was 12 days before as-of"
    assert weights[1, 13] == pytest.approx(3.0 * 0.5**0.7)
    assert set(found[0].asDict()) == set(TABLES["feedback"].schema.names) - {"versions"}


def test_nothing_after_as_of_changes_anything(spark: SparkSession) -> None:
    later = [
        *SHOWINGS,
        *shown_rows((1, 11, -1), (1, 12, -1), (2, 12, -2), (5, 10, -1), (5, 10, -2)),
        *shown_rows((5, 11, 4.9), (5, 11, 4.8)),  # before as-of, but nobody knows yet what will come of them
    ]
    done = [*DONE, ("x", 1, 10, "purchase", day(-0.1), None), ("y", 1, 12, "purchase", day(0), None)]
    assert sorted(fed_back(spark, later, done).collect()) == sorted(fed_back(spark, SHOWINGS, DONE).collect())


def test_als_is_told_of_pairs_that_it_knows_and_what_is_in_vain_is_no_buyer(spark: SparkSession) -> None:
    events = spark.createDataFrame(
        [(1, 5, 0.5, 2.0), (1, 6, 1.0, 1.0), (2, 5, 1.0, 1.0)],
        "user_idx int, item_idx int, weight double, balance_weight double",
    )
    taught = spark.createDataFrame([(1, 5, 0.25), (2, 6, -3.0), (2, 7, -3.0), (9, 5, -3.0)], ROWS)

    def ratings(min_buyers: int, feedback: DataFrame | None) -> list[tuple[Any, ...]]:
        return sorted(map(tuple, ratings_of(events, min_buyers, feedback).select(*ROWS.split()[::2]).collect()))

    assert ratings(1, taught) == [(1, 5, 1.25), (1, 6, 1.0), (2, 5, 1.0), (2, 6, -3.0)]
    assert ratings(2, taught) == [(1, 5, 1.25), (2, 5, 1.0)], "item 6 has one buyer, whoever ignored it"
    assert ratings(1, None) == ratings(1, taught.limit(0)) == [(1, 5, 1.0), (1, 6, 1.0), (2, 5, 1.0)]


def test_als_moves_what_was_ignored_down_and_the_neighbours_of_what_was_bought_up(
    spark: SparkSession, tmp_path: Path
) -> None:
    """Two tastes with ten items each; user 0 has half of the first, user 1 one item of each."""
    rng = np.random.default_rng(0)
    taste = {user: 10 * (user % 2) for user in range(2, 42)}
    pairs = [(user, int(start + item)) for user, start in taste.items() for item in rng.choice(10, 7, replace=False)]
    pairs += [(0, item) for item in range(5)] + [(1, 0), (1, 10)]
    rows = [(FOLD.name, user, item, 1.0, 1.0) for user, item in pairs]
    events = spark.createDataFrame(
        rows, "fold string, user_idx int, item_idx int, weight double, balance_weight double"
    )

    def scores(*feedback: tuple[int, int, float]) -> np.ndarray:
        schema = "fold string, user_idx int, item_idx int, weight double"
        taught = spark.createDataFrame([(FOLD.name, *row) for row in feedback], schema) if feedback else None
        als = Als(rank=2, alpha=2.0, num_blocks=1, max_iter=6)
        vectors = train_als(events, FOLD, als, seed=0, checkpoints=str(tmp_path), feedback=taught).collect()
        users, items = (
            {row["idx"]: row["vector"] for row in vectors if row["kind"] == kind} for kind in ("user", "item")
        )
        return np.array([[np.dot(users[user], items[item]) for item in range(20)] for user in (0, 1)])

    before, after = scores(), scores((0, 7, -5.0), (1, 10, 8.0))
    first, second = ((found[0, 5:] > found[0, 7]).sum() for found in (before, after))
    assert first < 5, "of his taste, and new to him"
    assert second > first, "it falls in his ranking"
    assert after[0, 7] < before[0, 7] - 0.1
    rises = (after - before)[1]
    assert rises[11:].mean() > rises[1:10].mean() + 0.1, "the other items of the taste of what he bought"


def test_what_was_shown_in_vain_rests(spark: SparkSession, tmp_path: Path) -> None:
    tables = Tables(spark, Settings.model_validate(raw_settings(tmp_path)).storage)
    # Item 12 was shown in vain too long ago, item 13 was bought, user 9 has no history.
    kinds = [
        (1, 11, "shown_ignored", 5),
        (1, 12, "shown_ignored", 15),
        (1, 13, "shown_bought", 5),
        (9, 11, "shown_ignored", 5),
    ]
    write(tables, "interactions", [(FOLD.name, user, 10, 1.0, 1, AS_OF, True, None, None, 0) for user in (1, 2)])
    write(tables, "user_categories", [(FOLD.name, 1, "tea", 1.0, True, True, False)])
    write(tables, "items", [(f"i{n}", n, f"c{n}", [], "", True, True) for n in range(10, 14)])
    eligible = eligible_items(tables.read("items"))

    def seen(feedback: Feedback) -> set[tuple[int, tuple[int, ...]]]:
        with users_of_folds(tables, {FOLD: eligible}, {FOLD: ["touched"]}, feedback) as users:
            return {(row["user_idx"], tuple(row["seen"])) for row in users[FOLD].collect()}

    assert seen(Feedback()) == {(1, (10,)), (2, (10,))}, "off: the table is not even asked for"
    with pytest.raises(MissingTableError, match="made by the stage balance"):
        seen(Feedback(rest_days=10))
    write(tables, "feedback", [(FOLD.name, user, item, kind, day(age), 3, 1.0) for user, item, kind, age in kinds])
    assert seen(Feedback(rest_days=10)) == {(1, (10, 11)), (2, (10,))}
    assert resting_pairs(tables.read("feedback"), FOLD, Feedback(rest_days=5)).isEmpty(), "five days are over"


def raw_settings(folder: Path, **sections: Any) -> dict[str, Any]:
    return {
        "log": {
            "file": {"path": "x.csv", "format": "csv"},
            "columns": {"user_id": "u", "item_id": "i", "event_ts": "t"},
        },
        "catalogue": {"category": ["c"]},
        "storage": {"root": str(folder / "warehouse")},
        "folds": {"as_of": "2024-07-01", "horizon": "P30D", "num_select": 0},
        **sections,
    }


def write(tables: Tables, name: str, rows: Sequence[tuple[Any, ...]]) -> None:
    schema = TABLES[name].schema
    owners = {owner: sorted({row[schema.names.index(owner)] for row in rows}) for owner in TABLES[name].owned_by}
    tables.write(name, tables.spark.createDataFrame(rows, type(schema)(schema.fields[:-1])), note=None, **owners)


def test_the_stage_balance_writes_feedback_only_where_it_is_on_and_nothing_else_changes(
    spark: SparkSession, tmp_path: Path
) -> None:
    settings = Settings.model_validate(raw_settings(tmp_path))
    tables = Tables(spark, settings.storage)
    users, items = ["a", "b", "gone"], ["i0", "i1", "i2"]
    write(tables, "users", [(user, n) for n, user in enumerate(users)])
    write(tables, "items", [(item, n, f"c{n}", [], "", True, True) for n, item in enumerate(items)])
    events = [
        (f"e{n}", "main", user, item, "purchase", day(number), 1.0, 2.0, "used", None, None)
        for n, (user, item, number) in enumerate(
            [("a", "i0", 30), ("b", "i1", 20), ("gone", "i1", 20), ("a", "i1", 8), ("a", "i2", -2)]
        )
    ]
    write(tables, "judged_events", events)
    write(tables, "opt_outs", [("", "gone")])
    shown = [("a", "i1", 9), *[(user, "i2", number) for user in users for number in (15, 16, 17)], ("a", None, 9)]
    rows = [
        (f"x{n}", "main", None, "", user, item, day(number), 1, "d") for n, (user, item, number) in enumerate(shown)
    ]
    write(tables, "exposures", rows)
    # The same again in another delivery counts once.
    write(tables, "exposures", [(*row[:-1], "again") for row in rows])
    found = StageContext(spark=spark, settings=settings, run_id="r")
    histories = histories_of(found.indexed_events(), [found.main_fold])
    tables.write("value_limits", value_limits_of(histories, Outliers()), fold=[found.main_fold.name])
    balance = runpy.run_path(str(ROOT / "jobs" / "balance.py"))["run"]

    def run(**feedback: float) -> tuple[dict[str, str], list[Any]]:
        changed = Settings.model_validate(raw_settings(tmp_path, feedback=feedback))
        figures = balance(StageContext(spark=spark, settings=changed, run_id="r"))
        return figures, sorted(Tables(spark, settings.storage).read("training_events").drop("versions").collect())

    figures_off, off = run()
    assert not Tables(spark, settings.storage).exists("feedback")
    figures_on, on = run(ignored_weight=1.0, bought_weight=1.0)
    assert on == off
    assert figures_on == figures_off | {"shown_bought": "1 pairs", "shown_ignored": "2 pairs"}
    written = Tables(spark, settings.storage).read("feedback").select("user_idx", "item_idx", F.signum("weight"))
    assert sorted(map(tuple, written.collect())) == [(0, 1, 1.0), (0, 2, -1.0), (1, 2, -1.0)]
    changed = Settings.model_validate(
        raw_settings(tmp_path, feedback={"ignored_weight": 1.0}, als={"rank": 2, "max_iter": 1, "num_blocks": 1})
    )
    runpy.run_path(str(ROOT / "jobs" / "train_als.py"))["run"](StageContext(spark=spark, settings=changed, run_id="r"))
    vectors = Tables(spark, settings.storage).read("vectors").select("versions").distinct().collect()
    assert ["feedback@0" in row["versions"] for row in vectors] == [True], "the next run learns from it"


def test_feedback_needs_folds_in_time(tmp_path: Path) -> None:
    folds = {"kind": "last_out"}
    Settings.model_validate(raw_settings(tmp_path, folds=folds))
    with pytest.raises(ValidationError, match=r"exposures, feedback: found them beside folds.kind: last_out"):
        Settings.model_validate(raw_settings(tmp_path, folds=folds, feedback={"rest_days": 3}))
