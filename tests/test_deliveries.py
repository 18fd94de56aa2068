"""Deliveries in pieces, in any order, some twice: the tables of one full load."""

from __future__ import annotations

import importlib.util
import random
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pipeline_runs import ROOT, PipelineRun, read_table
from test_ingest import Row, settings_for, write_csv
from world import make_world, write_world
from xrec.config import Settings
from xrec.ingest.catalogue import catalogue_of
from xrec.ingest.loading import Loaded, load
from xrec.runs.stage import Figures, StageContext
from xrec.storage.tables import Tables

pytestmark = [pytest.mark.spark, pytest.mark.delta]

KEYS = {
    "persons": "user_id",
    "judged_events": "event_id",
    "catalogue": "item_id",
    "items": "item_id",
    "users": "user_id",
}
NOT_COMPARED = ["versions", "item_idx", "user_idx"]


def job(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"jobs_{name}", ROOT / "jobs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contents(root: Path, name: str) -> pd.DataFrame:
    """A table without its indexes, which differ by the order of the deliveries."""
    frame = read_table(root, name).drop(columns=NOT_COMPARED, errors="ignore")
    return frame.sort_values(KEYS[name], ignore_index=True)


def assert_same_tables(left: Path, right: Path, names: tuple[str, ...] = tuple(KEYS)) -> None:
    for name in names:
        pd.testing.assert_frame_equal(contents(left, name), contents(right, name))
    for name, index in (("items", "item_idx"), ("users", "user_idx")):
        if name in names:
            numbers = read_table(left, name)[index]
            assert sorted(numbers) == list(range(len(numbers)))


class Shop:
    """A log that comes in deliveries to one storage."""

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        self.spark, self.folder, self.root = spark, folder, folder / "warehouse"
        self.catalogue: dict[str, Any] = {"category": "item"}

    def settings(self, delivery: str, **log: Any) -> Settings:
        values = settings_for(self.folder / f"{delivery}.csv", delivery_id=delivery, **log).model_dump()
        values |= {"storage": {"root": str(self.root)}, "catalogue": self.catalogue}
        return Settings.model_validate(values)

    def deliver(self, delivery: str, rows: list[Row]) -> Figures:
        write_csv(self.folder / f"{delivery}.csv", rows)
        return self.run("ingest", delivery)

    def add_events(self, delivery: str, rows: list[Row], **log: Any) -> Counter[str]:
        """What ingest does with the log alone."""
        write_csv(self.folder / f"{delivery}.csv", rows)
        settings, loaded = self.settings(delivery, **log), Loaded(layouts={})
        load(Tables(self.spark, settings.storage), [settings], None, loaded)
        return loaded.counts["main"]

    def categories(self) -> dict[str, tuple[list[str], list[list[str]]]]:
        """The path of each item, and its other ones, as ingest makes them of all deliveries."""
        settings = self.settings("any")
        tables = Tables(self.spark, settings.storage)
        items = catalogue_of(tables.read("catalogue_entries").drop("versions"), settings, tables.read("events"))
        return {row["item_id"]: (row["category_path"], row["other_paths"]) for row in items.collect()}

    def run(self, stage: str, delivery: str) -> Figures:
        context = StageContext(spark=self.spark, settings=self.settings(delivery), run_id="run")
        figures: Figures = job(stage).run(context)
        return figures


def row(line: str, user: int, item: int, when: str, *, units: str = "1", action: str = "buy") -> Row:
    return {
        "line": line,
        "user": f"{user:03d}",
        "item": f"i{item}",
        "time": when,
        "action": action,
        "units": units,
        "amount": "2.5",
    }


def make_log(draw: random.Random) -> list[Row]:
    """Purchases of 60 users with returns days later, double clicks, twins that differ in the line mark only, and dirt."""
    rows = []
    for n in range(240):
        user, item, day = n % 60, draw.randrange(9), draw.randrange(1, 20)
        when = f"2024-03-{day:02d} 10:{n % 60:02d}:0"
        rows.append(row(f"L{n}", user, item, f"{when}0"))
        if n % 8 == 0:
            rows.append(row(f"R{n}", user, item, f"2024-03-{day + 6:02d} 12:00:00", units="-1"))
        if n % 9 == 0:
            rows.append(row(f"C{n}", user, item, f"{when}1"))
        if n % 10 == 0:
            rows.append(row(f"T{n}", user, item, f"{when}0"))
        if n % 11 == 0:
            rows.append({**row(f"D{n}", user, item, when), "units": "many"})
    return rows


def test_a_delivery_that_overlaps_counts_once_and_concerns_its_users_alone(spark: SparkSession, tmp_path: Path) -> None:
    shop = Shop(spark, tmp_path)
    context = StageContext(spark=spark, settings=shop.settings("x"), run_id="run")

    def deliver(delivery: str, numbers: range) -> None:
        start = datetime(2024, 3, 1, tzinfo=timezone.utc)
        rows = [(f"e{n}", f"u{n % 12}", "i", start + timedelta(seconds=n // 12)) for n in numbers]
        events = spark.createDataFrame(rows, "event_id string, user_id string, item_id string, event_ts timestamp")
        given = {
            "event_type": F.lit("purchase"),
            "quantity": F.lit(1.0),
            "price": F.lit(1.0),
            "platform": F.lit("main"),
            "said": F.lit(None).cast("array<bigint>"),
        }
        owner = {"delivery_id": delivery, "platform": "main"}
        context.tables.write("events", events.withColumns({**given, "delivery_id": F.lit(delivery)}), **owner)

    deliver("one", range(12))
    assert shop.run("judge", "x")["users_judged"] == "all"
    deliver("two", range(10, 15))  # 10 and 11 again, and a second click of u0, u1 and u2
    figures = shop.run("judge", "x")
    assert (figures["users_judged"], figures["events_delivered_again"]) == ("5 whose events changed", "2")
    found = contents(shop.root, "judged_events").set_index("event_id")
    assert dict(found["use"]) == {f"e{n}": "used" if n < 12 else "repeat" for n in range(15)}
    assert set(found.index) == {f"e{n}" for n in range(15)}
    written = read_table(shop.root, "judged_events").set_index("event_id")["versions"]
    assert written["e0"] == written["e11"], "what stays the same is not written again"
    assert written["e12"] != written["e11"]


def test_an_event_counts_once_for_its_items_categories_however_often_it_is_listed_and_delivered(
    spark: SparkSession, tmp_path: Path
) -> None:
    draw = random.Random(8)
    days = ["2024-03-01", "2024-03-02"]
    log = [row(draw.choice("abc"), draw.randrange(5), draw.randrange(6), draw.choice(days)) for _ in range(70)]
    first, second = (
        log[:40] + [row("a", n, 9, days[0]) for n in range(3)],
        [row("b", n, 9, days[0]) for n in range(5, 7)],
    )
    log = [*first, *second, *log[40:]]
    users = {(line["item"], line["time"], line["line"]): set[str]() for line in log}
    for line in log:
        users[line["item"], line["time"], line["line"]].add(line["user"])
    expected = {}
    for item in {line["item"] for line in log}:
        last, num = Counter[str](), Counter[str]()
        for (_, day, name), names in ((key, names) for key, names in users.items() if key[0] == item):
            last[name], num[name] = max(last[name], days.index(day)), num[name] + len(names)
        ranked = sorted(num, key=lambda name: (-last[name], -num[name], name))
        expected[item] = ([ranked[0]], [[name] for name in sorted(ranked[1:])])
    assert expected["i9"] == (["a"], [["b"]])

    shop, whole = Shop(spark, tmp_path / "pieces"), Shop(spark, tmp_path / "whole")
    shop.catalogue = whole.catalogue = {"category": "line"}
    counts = whole.add_events("full", log)
    num_events = len({(line["user"], line["item"], line["time"]) for line in log})
    assert (counts["rows_clean"], counts["rows_duplicate"]) == (num_events, len(log) - num_events)
    assert whole.categories() == expected
    for name, part in (("last", log[43:]), ("again", log[43:]), ("first", first), ("second", second)):
        shop.add_events(name, part)
    assert shop.categories() == expected


def test_a_rate_that_changes_makes_no_other_events(spark: SparkSession, tmp_path: Path) -> None:
    shop = Shop(spark, tmp_path)
    rows = [row(f"L{n}", n, n, "2024-03-01 10:00:00") for n in range(4)]
    shop.add_events("one", rows[:3], price_rate=0.93)
    shop.add_events("two", rows[1:], price_rate=0.92)
    shop.run("judge", "two")
    found = contents(shop.root, "judged_events").set_index("user_id")["price"]
    assert len(found) == 4, "each row once"
    assert found.to_dict() == {f"{n:03d}": pytest.approx(2.5 * (0.93 if n < 3 else 0.92)) for n in range(4)}


def test_what_an_earlier_version_counted_still_counts(spark: SparkSession, tmp_path: Path) -> None:
    shop = Shop(spark, tmp_path)
    shop.catalogue = {"category": "line"}
    shop.add_events("old", [row("a", n, 1, "2024-03-01") for n in range(6)])
    for name in ("events", "catalogue_entries"):
        rows = spark.read.format("delta").load(str(shop.root / name))
        rows = rows.drop("said") if name == "events" else rows.withColumn("num_rows", F.lit(6).cast("bigint"))
        writer = rows.write.format("delta").mode("overwrite").partitionBy("delivery_id", "platform")
        writer.option("overwriteSchema", "true").save(str(shop.root / name))
    assert shop.categories() == {"i1": (["a"], [])}
    shop.run("judge", "old")
    shop.add_events("new", [row("b", n, 1, "2024-03-01") for n in range(6, 8)])
    assert shop.categories() == {"i1": (["a"], [["b"]])}
    assert shop.run("judge", "new")["users_judged"] == "2 whose events changed"


@pytest.mark.slow
def test_deliveries_in_any_order_equal_one_full_load(spark: SparkSession, tmp_path: Path) -> None:
    log = make_log(random.Random(4))
    whole = Shop(spark, tmp_path / "whole")
    counts = whole.add_events("full", [*log, *log[:5]])
    assert (counts["rows_read"], counts["rows_duplicate"]) == (len(log) + 5, 5)
    assert whole.run("judge", "full")["users_judged"] == "all"

    # Returns and clicks cross the pieces; the late one concerns few users, so that the others are left alone.
    late = [line for line in log if int(line["user"]) % 20 == 3]
    rest = random.Random(5).sample([line for line in log if line not in late], len(log) - len(late))
    first, second = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    shop = Shop(spark, tmp_path / "pieces")
    shop.add_events("second", [{**line, "units": "7"} for line in second] + [row("G", 99, 77, "2024-03-05 10:00:00")])
    shop.add_events("first", [*first, *second[:40], *late[:2]])
    assert shop.run("judge", "first")["users_judged"] == "all"
    assert {"060", "099"} & set(contents(shop.root, "persons")["user_id"]) == {"099"}
    shop.add_events("late", late)
    figures = shop.run("judge", "late")
    assert figures["users_judged"] == "3 whose events changed"
    assert figures["events_delivered_again"] == "2"
    shop.add_events("second", second)  # corrected: a user is gone
    shop.run("judge", "second")
    assert_same_tables(shop.root, whole.root, ("persons", "judged_events"))
    uses = contents(shop.root, "judged_events")["use"].value_counts()
    assert {"used", "repeat", "returned", "return"} <= set(uses.index)


@pytest.mark.slow
def test_ten_deliveries_equal_one_full_load(spark: SparkSession, tmp_path: Path) -> None:
    draw = random.Random(6)
    log = make_log(draw)
    whole = Shop(spark, tmp_path / "whole")
    whole.deliver("full", log)
    shop = Shop(spark, tmp_path / "pieces")
    shuffled = draw.sample(log, len(log))
    pieces = {f"day-{n}": shuffled[n::10] for n in range(10)}
    indexes = pd.Series(dtype="int32", index=pd.Index([], dtype="object"))
    for n, name in enumerate([*draw.sample(sorted(pieces), 10), "day-3", "day-5"]):
        shop.deliver(name if n % 4 else f"{name}-again", pieces[name])
        shop.deliver(name, pieces[name])
        if n % 4 == 0:
            shop.run("judge", name)
            shop.run("index", name)
            now = read_table(shop.root, "users").set_index("user_id")["user_idx"]
            assert now.loc[indexes.index].equals(indexes), "an index never changes"
            indexes = now
    for one, name in ((shop, "day-3"), (whole, "full")):
        one.run("judge", name)
        one.run("index", name)
    assert_same_tables(shop.root, whole.root)


@pytest.mark.slow
def test_loads_that_are_killed_lose_and_double_nothing(tmp_path: Path) -> None:
    world = make_world(seed=5)
    calm = write_world(world, tmp_path / "calm")
    assert PipelineRun(calm.config, "--until", "index").finish() == 0
    stormy = write_world(world, tmp_path / "stormy")
    root = stormy.config.parent / "warehouse"
    header, *lines = stormy.log_file.read_text().splitlines()
    for name, part in (("one", lines[::2]), ("two", lines[1::2] + lines[:20])):
        stormy.log_file.write_text("\n".join([header, *part]) + "\n")
        delivery = ("--set", f"log.delivery_id={name}")
        for stage in ("ingest", "judge"):
            run = PipelineRun(stormy.config, "--from", "ingest", "--until", "index", *delivery)
            run.kill_when_writing([root / "events", root / "judged_events"], stage)
        run = PipelineRun(stormy.config, "--from", "ingest", "--until", "index", *delivery)
        assert run.finish() == 0, run.output
    assert_same_tables(root, calm.config.parent / "warehouse")
