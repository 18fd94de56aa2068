"""Folds never learn from what judges them: bounds, the cut of the last event, and what cannot be planned."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Folds, SettingsError
from xrec.evaluation.folds import Fold, histories_of, history_of, horizons_of, plan_folds
from xrec.runs.stage import StageContext

UTC = timezone.utc
START, END = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 12, 31, 23, 59, 59, tzinfo=UTC)


@given(
    day=st.integers(2, 365),
    horizon_hours=st.integers(1, 5000),
    num_select=st.integers(0, 12),
    purpose=st.sampled_from(["test", "serve"]),
    latest=st.booleans(),
)
def test_select_folds_are_older_and_the_main_fold_is_last(
    day: int, horizon_hours: int, num_select: int, purpose: str, latest: bool
) -> None:
    as_of = "latest" if latest else f"{START + timedelta(days=day):%Y-%m-%d}"
    folds = Folds(purpose=purpose, as_of=as_of, horizon=timedelta(hours=horizon_hours), num_select=num_select)
    planned = plan_folds(folds, START, END)
    *selects, main = planned
    assert main.purpose == purpose
    assert main.has_targets == (purpose == "test")
    assert {fold.purpose for fold in selects} <= {"select"}
    assert len(selects) <= num_select
    assert len({fold.name for fold in planned}) == len(planned)
    assert all(one.as_of > START for one in planned)
    assert len({one.horizon for one in selects}) <= 1
    assert main.horizon == folds.horizon
    unit = timedelta(0)
    if is_shortened := bool(selects) and selects[0].horizon != folds.horizon:
        assert folds.horizon / 40 < selects[0].horizon < folds.horizon
        assert main.as_of - 1.5 * folds.horizon <= START or main.as_of - 2.5 * folds.horizon <= START < main.as_of
        unit = timedelta(days=1) if selects[0].horizon >= timedelta(days=1) else timedelta(seconds=1)
    for older, newer in pairwise(planned):
        gap = newer.as_of - older.as_of - older.horizon
        assert timedelta(0) <= gap <= (unit if newer is main else timedelta(0)), (
            "a select fold sees what judges a newer one"
        )
    # A select fold is left out where it has a history of less than half its horizon, and only there.
    assert all(fold.as_of - fold.horizon / 2 >= START for fold in selects)
    if not is_shortened and 0 < len(selects) < num_select:
        assert planned[0].as_of - 1.5 * folds.horizon <= START
    if latest:
        assert main.as_of + (main.horizon if purpose == "test" else timedelta(0)) == END + timedelta(microseconds=1)


@pytest.mark.parametrize("purpose", ["test", "serve"])
def test_a_short_log_has_shorter_select_folds(purpose: str) -> None:
    """By default, of logs that begin and end at odd times: four of them, as long as the log allows; the judged one never moves."""
    start, month = START + timedelta(hours=7), timedelta(days=30.5)
    for num_days in range(50, 401):
        end = start + timedelta(days=num_days, hours=5)
        history = num_days - (61 if purpose == "test" else 0)
        if history < 0:
            with pytest.raises(SettingsError, match=f"set folds.horizon=P{num_days * 2 // 11}D"):
                plan_folds(Folds(purpose=purpose), start, end)
            continue
        *selects, main = plan_folds(Folds(purpose=purpose), start, end)
        assert main.horizon == timedelta(days=61)
        if history > 2.5 * 61:
            assert [main.as_of - one.as_of for one in selects[::-1]] == [
                n * 2 * month for n in range(1, len(selects) + 1)
            ]
            assert len(selects) == (4 if history >= 4.5 * 61 else 3 if history >= 3.5 * 61 else 2)
        else:
            assert len(selects) == (
                4 if history > 13 else 3 if history > 10 else 2 if history > 7 else 1 if history > 4 else 0
            )
            assert all(len(one.name) == len("select-2024-01-01") for one in selects), "they begin at midnight"
        for older, newer in pairwise([*selects, main]):
            assert older.as_of + older.horizon <= newer.as_of
        assert all(one.as_of - start >= one.horizon / 2 >= timedelta(days=1.5) for one in selects)
    hour = Folds(purpose=purpose, horizon=timedelta(minutes=30), num_select=2)
    expected = ["000600", "001800"] if purpose == "test" else ["001200", "003600"]
    assert [one.name[-6:] for one in plan_folds(hour, START, START + timedelta(hours=1))[:2]] == expected


def test_rolling_origin_has_several_test_folds_after_all_select_folds() -> None:
    folds = Folds(as_of="2024-10-01", horizon=timedelta(days=30), num_select=2, num_test=3)
    planned = plan_folds(folds, START, END)
    assert [fold.purpose for fold in planned] == ["select", "select", "test", "test", "test"]
    for older, newer in pairwise(planned):
        assert older.as_of + older.horizon == newer.as_of
    assert planned[-1].as_of == datetime(2024, 10, 1, tzinfo=UTC)


def test_select_folds_alone_are_those_of_the_backtest() -> None:
    folds = Folds(as_of="2024-10-01", horizon=timedelta(days=30), num_select=2, num_test=2)
    alone = folds.model_copy(update={"purpose": "select"})
    assert plan_folds(alone, START, END) == plan_folds(folds, START, END)[:2]
    last_out = Folds(kind="last_out", num_select=1)
    assert (
        plan_folds(last_out.model_copy(update={"purpose": "select"}), START, END)
        == plan_folds(last_out, START, END)[:1]
    )
    with pytest.raises(
        SettingsError, match=r"folds.num_select: found 2 folds before folds.as_of \(2024-01-03\), and no room"
    ):
        plan_folds(alone.model_copy(update={"as_of": "2024-01-03"}), START, END)


def test_a_time_zone_of_as_of_is_converted() -> None:
    main = plan_folds(Folds(as_of="2024-07-01T01:00:00+02:00", num_select=0), START, END)[-1]
    assert main.as_of == datetime(2024, 6, 30, 23, tzinfo=UTC)
    assert main.name == "test-2024-06-30T230000", "named by local time"
    assert main.as_of.date().isoformat() == "2024-06-30"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"as_of": "yesterday"},
            "folds.as_of: found 'yesterday', expected latest, or a date or time such as 2017-11-01",
        ),
        (
            {"as_of": "2024-01-01"},
            f"folds.as_of: found 2024-01-01 with horizon 61 days, 0:00:00, which leaves no history: the clean log runs from "
            f"{START} to {END}; choose a later as_of, or where the log has no clock (log.time.unit: order) folds.kind=last_out",
        ),
        (
            {"horizon": timedelta(days=900)},
            f"folds.as_of: found latest with horizon 900 days, 0:00:00, which leaves no history: the clean log runs from "
            f"{START} to {END}; set folds.horizon=P66D, or where the log has no clock (log.time.unit: order) folds.kind=last_out",
        ),
        (
            {"as_of": "2025-02-01"},
            f"folds.as_of: found 2025-02-01, expected a time before the log's end ({END}) for a backtest; "
            "choose an earlier one, or folds.purpose=serve",
        ),
    ],
)
def test_what_cannot_be_planned_says_why(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        plan_folds(Folds(**changes), START, END)
    assert str(error.value) == message


def test_serving_may_lie_after_the_logs_end() -> None:
    main = plan_folds(Folds(purpose="serve", as_of="2025-02-01", num_select=1), START, END)[-1]
    assert (main.name, main.has_targets) == ("serve-2025-02-01", False)


@pytest.mark.parametrize(
    ("purpose", "num_select", "expected"),
    [
        ("test", 2, [("select-last3", 3), ("select-last2", 2), ("test-last1", 1)]),
        ("test", 0, [("test-last1", 1)]),
        ("serve", 1, [("select-last1", 1), ("serve-last0", 0)]),
    ],
)
def test_last_out_folds_hide_newer_events(purpose: str, num_select: int, expected: list[tuple[str, int]]) -> None:
    planned = plan_folds(Folds(kind="last_out", purpose=purpose, num_select=num_select), START, END)
    assert [(fold.name, fold.skip_last) for fold in planned] == expected
    assert planned[-1].purpose == purpose
    assert all(fold.as_of > END for fold in planned)


def test_last_out_folds_without_any_history_are_left_out() -> None:
    folds = Folds(kind="last_out")
    for longest, names in ((3, ["select-last2", "test-last1"]), (2, ["test-last1"]), (1, ["test-last1"])):
        assert [fold.name for fold in plan_folds(folds, START, END, longest=longest)] == names
    serving = plan_folds(folds.model_copy(update={"purpose": "serve"}), START, END, longest=3)
    assert [fold.name for fold in serving] == ["select-last2", "select-last1", "serve-last0"]
    with pytest.raises(SettingsError, match=r"found 4 folds .* nobody has an event before those that they hide"):
        plan_folds(folds.model_copy(update={"purpose": "select"}), START, END, longest=2)


@pytest.fixture(scope="module")
def log() -> pd.DataFrame:
    """Events of 40 users, with many equal times, users of one event, and events just at and around 2024-07-01."""
    rng = np.random.default_rng(0)
    users = np.concatenate([rng.integers(0, 36, 900), np.arange(36, 40)])
    when = pd.Timestamp("2024-05-01") + pd.to_timedelta(rng.integers(0, 120, len(users)), unit="D")
    edges = [
        pd.Timestamp(f"2024-{edge}") for edge in ("06-30 23:59:59.999999", "07-01", "07-30 23:59:59.999999", "07-31")
    ]
    frame = pd.DataFrame({"user_idx": [*users, 1, 2, 3, 4], "event_ts": [*when, *edges]}).astype({"user_idx": "int32"})
    frame["event_id"] = [f"e{n:04d}" for n in rng.permutation(len(frame))]
    return frame


@pytest.fixture(scope="module")
def events(spark: SparkSession, log: pd.DataFrame) -> DataFrame:
    return spark.createDataFrame(log).select(
        "event_id", "user_idx", "event_ts", F.lit(None).cast("timestamp").alias("void_ts")
    )


def horizon_of(events: DataFrame, fold: Fold) -> DataFrame:
    return horizons_of(events, [fold]).drop(C.FOLD, C.AS_OF_TS)


def ids(rows: DataFrame) -> set[str]:
    listed = [row[C.EVENT_ID] for row in rows.collect()]
    assert len(listed) == len(set(listed))
    return set(listed)


@pytest.mark.spark
def test_a_run_plans_no_last_out_fold_without_history(spark: SparkSession, log: pd.DataFrame) -> None:
    """Users of three events that count, one of whom has a fourth that was taken back."""
    three = log.groupby("user_idx").head(3).assign(user_id=log["user_idx"].astype(str), void_ts=pd.NaT)
    back = three.head(1).assign(event_id="back", void_ts=pd.Timestamp("2024-12-01"))
    events = spark.createDataFrame(pd.concat([three, back.astype({"void_ts": "datetime64[ns]"})], ignore_index=True))
    settings = SimpleNamespace(folds=Folds(kind="last_out"))
    context = StageContext(spark=spark, settings=settings, run_id="run")  # type: ignore[arg-type]
    context.__dict__["tables"] = SimpleNamespace(read=lambda name: {"judged_events": events}[name])
    assert [fold.name for fold in context.folds] == ["select-last2", "test-last1"]
    assert {row[C.FOLD] for row in histories_of(events, context.folds).collect()} == {"select-last2", "test-last1"}


@pytest.mark.spark
def test_history_ends_where_the_horizon_begins(events: DataFrame, log: pd.DataFrame) -> None:
    as_of, horizon = datetime(2024, 7, 1, tzinfo=UTC), timedelta(days=30)
    fold = Fold(name="f", purpose="test", as_of=as_of, horizon=horizon)
    start, end = pd.Timestamp("2024-07-01"), pd.Timestamp("2024-07-31")
    assert history_of(events, fold).columns == horizon_of(events, fold).columns == events.columns
    assert ids(history_of(events, fold)) == set(log.loc[log["event_ts"] < start, "event_id"])
    within = (log["event_ts"] >= start) & (log["event_ts"] < end)
    assert ids(horizon_of(events, fold)) == set(log.loc[within, "event_id"])
    serving = Fold(name="f", purpose="serve", as_of=as_of, horizon=horizon)
    assert ids(horizon_of(events, serving)) == set()
    assert ids(history_of(events, serving)) == ids(history_of(events, fold))


@pytest.mark.spark
def test_a_fold_knows_only_what_was_known_then(spark: SparkSession) -> None:
    # (event, day, day from which it does not count): bought and returned, around an as-of of day 10 and a horizon of 5 days
    days = [("kept", 1, None), ("returned before", 2, 9), ("returned at", 3, 10), ("returned after", 4, 12)]
    days += [("target", 11, None), ("target returned within", 12, 14), ("target returned after", 12, 20)]
    stamp = {day: datetime(2024, 7, day, tzinfo=UTC) for day in range(1, 31)} | {None: None}
    rows = [(name, 0, stamp[day], stamp[void]) for name, day, void in days]
    judged = spark.createDataFrame(rows, "event_id string, user_idx int, event_ts timestamp, void_ts timestamp")
    fold = Fold(name="f", purpose="test", as_of=stamp[10], horizon=timedelta(days=5))
    assert ids(history_of(judged, fold)) == {"kept", "returned at", "returned after"}
    assert ids(horizon_of(judged, fold)) == {"target"}, "a test is by all that is known today"
    # What chooses for newer folds knows no more than they do.
    assert ids(horizon_of(judged, replace(fold, purpose="select"))) == {"target", "target returned after"}


@pytest.mark.spark
@pytest.mark.parametrize("skip_last", [1, 2])
def test_last_out_equals_a_naive_cut(events: DataFrame, log: pd.DataFrame, skip_last: int) -> None:
    fold = Fold(name="f", purpose="test", as_of=END, horizon=timedelta(days=1), skip_last=skip_last)
    history, target = set(), set()
    for _, mine in log.groupby("user_idx"):
        ordered = list(mine.sort_values(["event_ts", "event_id"])["event_id"])
        history |= set(ordered[: max(0, len(ordered) - skip_last)])
        target |= set(ordered[-skip_last : len(ordered) - skip_last + 1]) if len(ordered) >= skip_last else set()
    shuffled = events.orderBy("event_id").repartition(3)
    for rows in (events, shuffled):
        assert ids(history_of(rows, fold)) == history
        assert ids(horizon_of(rows, fold)) == target
    assert history_of(events, fold).columns == horizon_of(events, fold).columns == events.columns


@pytest.mark.spark
@pytest.mark.parametrize("kind", ["time", "last_out"])
def test_many_folds_at_once_are_each_alone(events: DataFrame, kind: str) -> None:
    ends = [datetime(2024, 7, day, tzinfo=UTC) for day in (1, 11, 21)]
    month = timedelta(days=30)
    folds = [
        Fold(
            name=f"f{n}",
            purpose="serve" if n == 2 and kind == "time" else "test",
            as_of=END if kind == "last_out" else end,
            horizon=month,
            skip_last=3 - n if kind == "last_out" else None,
        )
        for n, end in enumerate(ends)
    ]
    histories, horizons = histories_of(events, folds).collect(), horizons_of(events, folds).collect()
    assert len({row[C.EVENT_ID] for row in histories}) < len(histories), "an event belongs to several folds"
    for fold in folds:
        for found, alone in ((histories, history_of(events, fold)), (horizons, horizon_of(events, fold))):
            of_fold = [row for row in found if row[C.FOLD] == fold.name]
            assert sorted(row[C.EVENT_ID] for row in of_fold) == sorted(ids(alone))
            assert {row[C.AS_OF_TS].replace(tzinfo=UTC) for row in of_fold} <= {fold.as_of}
    assert horizons
