"""Generated dirt: whatever is injected into whatever rows is found with its reasons, and nothing else is rejected."""

from __future__ import annotations

import csv
import string
import tempfile
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from test_ingest import HEADER, Result, settings_for
from xrec.ingest.rules import FIELD_OF_REASON

pytestmark = pytest.mark.spark

LETTERS = st.text(string.ascii_letters + "äßçñøλЖ漢", min_size=1, max_size=12)
KEYS = st.text(string.ascii_letters + string.digits + "-_.:/#äßλ漢", min_size=1, max_size=256)
BLANKS = st.text(" \t\u00a0", max_size=3)
ISO = "%Y-%m-%d %H:%M:%S"


def times(first: int, last: int, form: str = ISO) -> st.SearchStrategy[str]:
    return st.datetimes(datetime(first, 1, 1), datetime(last, 12, 31, 23)).map(lambda time: time.strftime(form))


def numbers(least: int, most: int) -> st.SearchStrategy[str]:
    """Numbers with two decimals, given in hundredths."""
    return st.integers(least, most).map(lambda hundredths: f"{hundredths // 100}.{hundredths % 100:02d}")


CLEAN = {
    "user": KEYS,
    "item": KEYS,
    "time": times(1970, 2025),
    "action": st.sampled_from(["buy", "purchase", "view"]),
    "units": numbers(1, 10**8) | BLANKS,
    "amount": numbers(1, 10**10) | BLANKS,
}
DAMAGED = (
    st.tuples(KEYS, st.sampled_from("\ufffd\x00\x07\x1b\x7f\u0085"), KEYS).map("".join).filter(lambda s: len(s) <= 256)
)
NO_NUMBER = LETTERS | st.sampled_from(
    ["1,5", "1.2.3", "--1", "0x1F", "1e", "12d", "NaN", "inf", "-Infinity", "1 000", "٣"]
)
DIRT = {
    ("user", "user_id_missing"): BLANKS,
    ("user", "user_id_too_long"): st.text(string.ascii_letters, min_size=257, max_size=300),
    ("user", "user_id_damaged"): DAMAGED,
    ("item", "item_id_missing"): BLANKS,
    ("item", "item_id_too_long"): st.text(string.digits, min_size=257, max_size=300),
    ("item", "item_id_damaged"): DAMAGED,
    ("time", "event_ts_missing"): BLANKS,
    ("time", "event_ts_unparsable"): LETTERS
    | times(1970, 2025, "%d.%m.%Y")
    | times(1970, 2025, "%H:%M")
    | times(2200, 9998),
    ("time", "event_ts_too_early"): times(1900, 1969),
    ("time", "event_ts_too_late"): times(2100, 2199),
    ("action", "event_type_missing"): BLANKS,
    ("action", "event_type_unknown"): LETTERS.filter(lambda word: word not in {"buy", "purchase", "view", "return"}),
    ("units", "quantity_unparsable"): NO_NUMBER,
    ("units", "quantity_not_positive"): st.sampled_from(["0", "0.0", "-0", "+0", "0e5"]),
    ("units", "quantity_too_large"): numbers(10**8 + 1, 10**14),
    ("amount", "price_unparsable"): NO_NUMBER,
    ("amount", "price_not_positive"): st.sampled_from(["0", "0.00", "-0.0"]),
    ("amount", "price_too_large"): numbers(10**10 + 1, 10**16),
}


@st.composite
def rows(draw: st.DrawFn) -> tuple[dict[str, str], set[str]]:
    """A row, and the reasons for which it is to be rejected: none, or one for each of some columns."""
    row, reasons = {"line": ""}, set()
    dirty = draw(st.sets(st.sampled_from(sorted(CLEAN)), max_size=3))
    for column, clean in CLEAN.items():
        kinds = [(reason, values) for (where, reason), values in DIRT.items() if where == column]
        if column in dirty:
            reason, values = draw(st.sampled_from(kinds))
            row[column] = draw(values)
            reasons.add(reason)
        else:
            row[column] = draw(clean)
    return row, reasons


def test_there_is_dirt_of_every_kind() -> None:
    assert {reason for _, reason in DIRT} == set(FIELD_OF_REASON) - {"row_malformed"}


@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # a smaller example takes minutes to find, and the rows that differ say enough
)
@given(st.lists(rows(), min_size=40, max_size=80))
def test_what_is_injected_is_found_and_nothing_else(
    spark: SparkSession, generated: list[tuple[dict[str, str], set[str]]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            for n, (row, _) in enumerate(generated):
                writer.writerow({**row, "line": f"L{n}"}.values())
        result = Result(spark, settings_for(path))
        expected = {f"L{n}": reasons for n, (_, reasons) in enumerate(generated)}
        wrong = [
            (row, expected[f"L{n}"], result.reasons.get(f"L{n}"))
            for n, (row, _) in enumerate(generated)
            if result.reasons.get(f"L{n}", set()) != expected[f"L{n}"]
        ]
        assert not wrong
        num_dirty = sum(bool(reasons) for _, reasons in generated)
        assert result.counts == (len(generated), len(generated) - num_dirty, num_dirty, 0)
