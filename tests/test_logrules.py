"""Log rules: what is injected is found, with its reason; nothing else is set aside; order does not matter."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession

from test_ingest import settings_for
from xrec.config import Settings
from xrec.logrules.judge import AccountingError, check_uses, describe_judged, judge, persons_of
from xrec.logrules.returns import match_pair

DAY, SECOND = 86_400_000_000, 1_000_000
START = datetime(2024, 3, 1, 10, tzinfo=timezone.utc)
EVENTS = "event_id string, user_id string, item_id string, event_type string, event_ts timestamp, quantity double, price double"

# Returns of one (user, item).


def matched(events: list[tuple[str, str, int, float | None]], window: int) -> tuple[dict[str, int | None], set[str]]:
    """(id, type, time in microseconds, quantity) to when each went back, and the returns of nothing."""
    names = ("event_id", "event_type", "event_ts", "quantity")
    table = pa.table(dict(zip(names, zip(*events, strict=True), strict=True)))
    table = table.set_column(2, "event_ts", table["event_ts"].cast(pa.timestamp("us", tz="UTC")))
    found = match_pair(table.set_column(3, "quantity", table["quantity"].cast(pa.float64())), window)
    returned = zip(found["event_id"].to_pylist(), found["returned_ts"].cast(pa.int64()).to_pylist(), strict=True)
    stray = zip(found["event_id"].to_pylist(), found["is_unmatched"].to_pylist(), strict=True)
    return dict(returned), {name for name, unmatched in stray if unmatched}


def naive_match(
    events: list[tuple[str, str, int, float | None]], window: int
) -> tuple[dict[str, int | None], set[str]]:
    """Unit by unit: each unit that comes back takes the newest unit still there, bought within the window."""
    returned: dict[str, int | None] = {name: None for name, *_ in events}
    stray, shelf = set(), []
    for name, kind, when, quantity in sorted(events, key=lambda event: (event[2], event[1] == "return", event[0])):
        units = int(1 if quantity is None else quantity)
        if kind == "purchase":
            shelf += [(when, name)] * units
        if kind == "return":
            taken = 0
            for _ in range(units):
                within = [unit for unit in shelf if when - unit[0] <= window]
                if not within:
                    break
                newest = max(within, key=lambda unit: (unit[0], unit[1]))
                shelf.remove(newest)
                taken += 1
                if newest not in shelf:
                    returned[newest[1]] = when
            if not taken:
                stray.add(name)
    return returned, stray


@given(
    drawn=st.lists(
        st.tuples(st.sampled_from(["purchase", "purchase", "return", "view"]), st.integers(0, 12), st.integers(1, 3)),
        min_size=1,
        max_size=14,
    ),
    window=st.integers(0, 8),
    seed=st.randoms(),
)
def test_returns_are_matched_unit_by_unit(drawn: list[tuple[str, int, int]], window: int, seed: Any) -> None:
    events: list[tuple[str, str, int, float | None]] = [
        (f"e{n:02d}", kind, when * DAY, float(units)) for n, (kind, when, units) in enumerate(drawn)
    ]
    expected = naive_match(events, window * DAY)
    assert matched(events, window * DAY) == expected
    seed.shuffle(events)
    assert matched(events, window * DAY) == expected


def test_a_missing_quantity_is_one_unit() -> None:
    events = [("a", "purchase", 0, None), ("b", "purchase", DAY, 1.0), ("c", "return", 2 * DAY, None)]
    assert matched(events, 10 * DAY) == ({"a": None, "b": 2 * DAY, "c": None}, set())


def test_a_match_does_not_depend_on_what_comes_later() -> None:
    events = [("a", "purchase", 0, 1.0), ("b", "return", DAY, 1.0)]
    later = [("c", "purchase", 2 * DAY, 1.0), ("d", "return", 3 * DAY, 2.0)]
    before, after = matched(events, 9 * DAY), matched(events + later, 9 * DAY)
    assert before[0] == {name: after[0][name] for name in before[0]}


# The whole log.


def event(name: str, user: str = "u", item: str = "i", kind: str = "purchase", **more: Any) -> tuple:
    after, quantity, price = more.pop("after", timedelta()), more.pop("quantity", 1.0), more.pop("price", 2.0)
    return name, user, item, kind, START + after, quantity, price


def settings(tmp_path: Any, **sections: Any) -> Settings:
    values = settings_for(tmp_path / "log.csv").model_dump()
    for section, changes in sections.items():
        values[section] = {**values[section], **changes}
    return Settings.model_validate(values)


def judged(spark: SparkSession, rows: list[tuple], chosen: Settings) -> tuple[DataFrame, DataFrame]:
    events = spark.createDataFrame(rows, EVENTS)
    persons = persons_of(events, chosen)
    persons = spark.createDataFrame(persons.collect(), persons.schema)
    return judge(events, persons, chosen), persons


def uses(rows: DataFrame) -> dict[str, str]:
    listed = [(row["event_id"], row["use"]) for row in rows.collect()]
    assert len(listed) == len(dict(listed))
    return dict(listed)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


@pytest.mark.spark
def test_every_kind_of_use_is_found_and_nothing_else(spark: SparkSession, tmp_path: Any) -> None:
    rows = [
        event("first"),
        event("click", after=seconds(1.5)),
        event("click again", after=seconds(3)),
        event("later", after=seconds(60)),
        event("same instant, another line", price=3.0),
        event("another user", user="v", after=seconds(1)),
        event("another item", item="j", after=seconds(1)),
        event("a view", kind="view", after=seconds(1)),
        event("bought", user="r", quantity=2.0),
        event("bought, back twice by a double click", user="r2"),
        event("part", user="r", kind="return", after=timedelta(days=3)),
        event("rest", user="r", kind="return", after=timedelta(days=4)),
        event("back", user="r2", kind="return", after=timedelta(days=1)),
        event("back clicked", user="r2", kind="return", after=timedelta(days=1, seconds=1)),
        event("too late", user="s"),
        event("of nothing", user="s", kind="return", after=timedelta(days=200)),
    ]
    expected = dict.fromkeys((row[0] for row in rows), "used") | {
        "click": "repeat",
        "click again": "repeat",
        "bought": "returned",
        "bought, back twice by a double click": "returned",
        "part": "return",
        "rest": "return",
        "back": "return",
        "back clicked": "repeat",
        "of nothing": "stray_return",
    }
    chosen = settings(tmp_path)
    found, persons = judged(spark, rows, chosen)
    assert uses(found) == expected
    shuffled, _ = judged(spark, rows[::-1], chosen)
    assert uses(shuffled) == expected
    void = {row["event_id"]: row["void_ts"] for row in found.collect()}
    moment = (START + timedelta(days=4)).replace(tzinfo=None)
    assert void["bought"] == moment, "it counts until its last unit went back"
    assert {name for name, since in void.items() if since is None} == {
        n for n, use in expected.items() if use == "used"
    }
    figures = describe_judged(found, persons)
    counts = Counter(expected.values())
    assert figures == {**{f"events_{use}": str(number) for use, number in counts.items()}, "users_flagged": "0"}
    check_uses(found, found)
    with pytest.raises(AccountingError, match=f"found {len(rows)}, expected the {len(rows) - 1} clean ones"):
        check_uses(found, found.limit(len(rows) - 1))


@pytest.mark.spark
def test_a_log_without_returns_and_with_the_rules_off_is_used_whole(spark: SparkSession, tmp_path: Any) -> None:
    rows = [event("a"), event("b", after=seconds(1)), event("c", after=seconds(2))]
    found, _ = judged(spark, rows, settings(tmp_path, log_rules={"repeat_seconds": 0.0}))
    assert set(uses(found).values()) == {"used"}


@pytest.mark.spark
def test_sessions_begin_after_a_pause_and_late_rows_only_join(spark: SparkSession, tmp_path: Any) -> None:
    minutes = (0, 10, 39, 70, 71, 200)
    rows = [event(f"e{at}", item=f"i{at}", after=timedelta(minutes=at)) for at in minutes]

    def begins(rows: list[tuple]) -> dict[str, int]:
        found, _ = judged(spark, rows, settings(tmp_path))
        origin = START.replace(tzinfo=None)
        return {row["event_id"]: (row["session_ts"] - origin) // timedelta(minutes=1) for row in found.collect()}

    before = begins(rows)
    assert before == {"e0": 0, "e10": 0, "e39": 0, "e70": 70, "e71": 70, "e200": 200}
    late = event("late", item="k", after=timedelta(minutes=60))
    assert begins([*rows, late]) == {**before, "e70": 0, "e71": 0, "late": 0}


@pytest.mark.spark
def test_machines_are_flagged_with_their_evidence_and_shoppers_are_not(spark: SparkSession, tmp_path: Any) -> None:
    limits = {"max_events_a_day": 50, "max_items_a_day": 30, "max_hours_a_day": 18, "min_gaps": 20}
    rows = [event(f"shopper {n}", "shopper", f"i{n % 7}", after=timedelta(minutes=n * n * 3)) for n in range(40)]
    rows += [event(f"rate {n}", "rate", f"i{n % 9}", after=timedelta(seconds=11 * n + n % 5)) for n in range(60)]
    rows += [event(f"breadth {n}", "breadth", f"i{n}", after=timedelta(minutes=n + n % 3)) for n in range(35)]
    rows += [event(f"awake {n}", "awake", f"i{n % 3}", after=timedelta(hours=14 + n)) for n in range(24)]
    rows += [event(f"clock {n}", "clock", f"i{n % 5}", after=timedelta(minutes=5 * n)) for n in range(30)]
    # A basket of one moment is no rhythm, whatever its size.
    rows += [event(f"basket {n}", "basket", f"i{n}") for n in range(29)]
    found, persons = judged(spark, rows, settings(tmp_path, persons=limits))
    evidence = {row["user_id"]: row["evidence"] for row in persons.collect()}
    assert evidence == {
        "shopper": [],
        "basket": [],
        "rate": ["60 events on 2024-03-01 (persons.max_events_a_day 50)"],
        "breadth": ["35 items on 2024-03-01 (persons.max_items_a_day 30)"],
        "awake": ["24 hours on 2024-03-02 (persons.max_hours_a_day 18)"],
        "clock": ["29 pauses that vary by 0.000 of their mean on 2024-03-01 (persons.min_gap_variation 0.1)"],
    }
    machines = {"rate", "breadth", "awake", "clock"}
    for name, use in uses(found).items():
        assert (use == "no_person") == (name.split(" ")[0] in machines)


@pytest.mark.spark
def test_a_user_is_flagged_from_the_day_on_that_showed_it(spark: SparkSession, tmp_path: Any) -> None:
    rows = [event("calm", "u", "i")]
    rows += [event(f"busy {n}", "u", f"i{n}", after=timedelta(days=5, minutes=n * 7 % 50)) for n in range(12)]
    found, _ = judged(spark, rows, settings(tmp_path, persons={"max_events_a_day": 10}))
    since = {row["void_ts"] for row in found.collect()}
    assert since == {(START + timedelta(days=5, minutes=49)).replace(tzinfo=None)}, (
        "the end of that day, for all events"
    )


@pytest.mark.spark
def test_without_a_clock_nobody_is_flagged_and_nothing_is_a_repeat(spark: SparkSession, tmp_path: Any) -> None:
    chosen = settings(tmp_path, persons={"max_events_a_day": 2}, log={"time": {"unit": "order"}})
    rows = [event(f"e{n}", after=seconds(n)) for n in range(5)]
    found, persons = judged(spark, rows, chosen)
    assert set(uses(found).values()) == {"used"}
    assert [row["evidence"] for row in persons.collect()] == [[]]
    assert [row["session_ts"] for row in found.collect()] == [None] * 5


@pytest.mark.spark
def test_a_log_of_machines_alone_is_an_error(spark: SparkSession, tmp_path: Any) -> None:
    rows = [event(f"e{n}", item=f"i{n}", after=seconds(3 * n)) for n in range(30)]
    found, persons = judged(spark, rows, settings(tmp_path, persons={"max_items_a_day": 10}))
    with pytest.raises(ValueError, match="none of the 30 clean events left to learn from"):
        describe_judged(found, persons)
