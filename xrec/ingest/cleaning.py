"""Raw rows to clean events and a quarantine, with every row accounted for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Settings
from xrec.ingest.mapping import check_time_format, map_columns
from xrec.ingest.privacy import pseudonyms_of
from xrec.ingest.reader import InputError, column_names, count_rows, reading
from xrec.ingest.rules import FIELD_OF_REASON, MALFORMED_LINE, apply_rules, expected, is_clean

_HASH, _FIELDS_HASH, _PLACE, _OCCURRENCE = "row_hash", "fields_hash", "place", "occurrence"


class AccountingError(ValueError):
    """Rows were lost or made: read is not clean + quarantined + duplicates."""


@dataclass(frozen=True, kw_only=True)
class CleanLog:
    """A log after the row rules."""

    events: DataFrame
    """A clean event a row: the columns of the table ``events`` without ``delivery_id``."""
    quarantine: DataFrame
    """A rejected row with every reason: the columns of ``events_quarantine`` without ``delivery_id``."""
    num_read: int
    num_clean: int
    num_quarantined: int
    num_duplicates: int
    num_by_reason: dict[str, int]
    """Rejected rows of each reason, the most frequent first; a row with two reasons counts in both."""

    def figures(self) -> dict[str, str]:
        """The counts, for the summary."""
        counts = {
            "rows_read": self.num_read,
            "rows_clean": self.num_clean,
            "rows_quarantined": self.num_quarantined,
            "rows_duplicate": self.num_duplicates,
        }
        counts |= {f"quarantined_{reason}": count for reason, count in self.num_by_reason.items()}
        return {name: f"{count:,}" for name, count in counts.items()}


@contextmanager
def cleaned(raw: DataFrame, settings: Settings, key: bytes | None = None) -> Iterator[CleanLog]:
    """Rows of :func:`xrec.ingest.reader.read_raw` to clean events and rejected rows, kept on disk within the context.

    Of rows that are equal in every source column one stays (that of the first file by name); the others are counted as
    duplicates. ``event_id`` is a hash of the cleaned fields; rows that differ only in columns that are not mapped are
    events of their own, and their occurrence goes into the hash. So the same rows give the same events, in whatever
    order, file or partition they come.

    Raises
    ------
    InputError
        The file cannot be read or is empty, a column is missing, or no row is clean or more than ``log.max_rejected_share``
        are rejected (with the reasons and examples).
    AccountingError
        The rows read, counted by a pass of their own, are not clean + quarantined + duplicates.
    """
    log = settings.log
    mapped = map_columns(raw, log.columns, log.file)
    check_time_format(raw.sparkSession, log.time)
    ruled = apply_rules(mapped, settings, key)
    num_read = count_rows(raw, log.file)
    tagged = tag(ruled).persist(StorageLevel.DISK_ONLY)  # read three times: counted, and written to two tables
    try:
        with reading(log.file):
            groups = tagged.groupBy(C.IS_DUPLICATE, C.REASONS).count().collect()  # as many as sets of reasons
        counts = {(row[C.IS_DUPLICATE], tuple(row[C.REASONS])): int(row["count"]) for row in groups}
        result = _account(tagged, num_read, counts, key)
        kept_share = 1 - result.num_quarantined / result.num_read
        if result.num_clean == 0 or kept_share < 1 - log.max_rejected_share:
            raise InputError(_rejection_report(result, settings))
        yield result
    finally:
        tagged.unpersist()


def tag(ruled: DataFrame) -> DataFrame:
    """Rows of :func:`apply_rules` to ``event_id``, ``row_id``, ``is_duplicate`` and what the two tables keep of them.

    One shuffle serves both windows. Equal source rows have equal fields, so they meet where rows with equal fields meet;
    a rejected row is placed by its own hash: a million rows without any key must not meet in one task.
    """
    source_columns = [F.col(C.SOURCE_ROW).getField(name) for name in column_names(ruled)]
    fields: list[Column | str] = [C.USER_ID, C.ITEM_ID, C.EVENT_TYPE, F.unix_micros(C.EVENT_TS), C.QUANTITY, C.PRICE]
    kept = [C.USER_ID, C.ITEM_ID, C.EVENT_TYPE, C.EVENT_TS, C.QUANTITY, C.PRICE, C.FILE, C.RAW, C.REASONS]
    hashed = ruled.select(
        *kept,
        _hash(*source_columns, C.MALFORMED).alias(_HASH),
        F.when(is_clean(), _hash(*fields)).alias(_FIELDS_HASH),
    ).withColumn(_PLACE, F.coalesce(_FIELDS_HASH, _HASH))
    ordered = Window.partitionBy(_PLACE).orderBy(_HASH, C.FILE)
    is_duplicate = F.coalesce(F.lag(_HASH).over(ordered) == F.col(_HASH), F.lit(False))
    so_far = ordered.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    counted = hashed.withColumn(C.IS_DUPLICATE, is_duplicate).withColumn(
        _OCCURRENCE, F.sum((~F.col(C.IS_DUPLICATE)).cast("int")).over(so_far)
    )
    again = _hash(_FIELDS_HASH, _OCCURRENCE)
    return counted.select(
        F.when(F.col(_OCCURRENCE) == 1, F.col(_FIELDS_HASH)).when(is_clean(), again).alias(C.EVENT_ID),
        # Its occurrence in the file is always 1: equal rows are duplicates.
        F.when(~is_clean(), _hash(_HASH, C.FILE)).alias(C.ROW_ID),
        *kept,
        C.IS_DUPLICATE,
    )


def check_accounting(*, read: int, clean: int, quarantined: int, duplicates: int) -> None:
    """Raise AccountingError unless every row read is clean, quarantined or a duplicate."""
    if read != clean + quarantined + duplicates:
        raise AccountingError(
            f"rows read: found {read:,}, expected {clean:,} clean + {quarantined:,} quarantined + {duplicates:,} duplicates "
            f"= {clean + quarantined + duplicates:,}; did the file change during the run? Run ingest again"
        )


def _account(
    tagged: DataFrame, num_read: int, counts: dict[tuple[bool, tuple[str, ...]], int], key: bytes | None
) -> CleanLog:
    by_reason: Counter[str] = Counter()
    for (is_duplicate, reasons), count in counts.items():
        if not is_duplicate:
            by_reason.update(dict.fromkeys(reasons, count))
    first = ~F.col(C.IS_DUPLICATE)
    num_duplicates = sum(count for (is_duplicate, _), count in counts.items() if is_duplicate)
    num_clean = counts.get((False, ()), 0)
    num_quarantined = sum(count for (is_duplicate, reasons), count in counts.items() if reasons and not is_duplicate)
    check_accounting(read=num_read, clean=num_clean, quarantined=num_quarantined, duplicates=num_duplicates)
    # A plain hash of the whole source row could be found again by whoever guesses the row.
    row_id = F.col(C.ROW_ID) if key is None else F.left(pseudonyms_of(F.col(C.ROW_ID), key), F.lit(32))
    return CleanLog(
        events=tagged.where(first & is_clean()).drop(C.ROW_ID, C.FILE, C.RAW, C.REASONS, C.IS_DUPLICATE),
        quarantine=tagged.where(first & ~is_clean()).select(row_id.alias(C.ROW_ID), C.FILE, C.RAW, C.REASONS),
        num_read=num_read,
        num_clean=num_clean,
        num_quarantined=num_quarantined,
        num_duplicates=num_duplicates,
        num_by_reason=dict(by_reason.most_common()),
    )


def _rejection_report(log: CleanLog, settings: Settings) -> str:
    """The message where too many rows are rejected: the reasons, each with an example and what was expected."""
    share = f"{log.num_quarantined / log.num_read:.1%} of the {log.num_read:,} rows of {settings.log.file.path} are rejected"
    lines = [f"log.file.path: {share}, expected at most log.max_rejected_share ({settings.log.max_rejected_share:g}):"]
    if log.num_clean == 0:
        lines = [f"log.file.path: none of the {log.num_read:,} rows of {settings.log.file.path} is clean:"]
    for reason, count in list(log.num_by_reason.items())[:4]:
        example = log.quarantine.where(F.array_contains(C.REASONS, reason)).select(C.RAW).first()
        assert example is not None
        values = json.loads(example[0])
        field = FIELD_OF_REASON[reason]
        column = MALFORMED_LINE if field is None else settings.log.columns.model_dump()[field]
        found = values.get(column)
        where = "a line" if field is None else f"column '{column}' (log.columns.{field})"
        shown = "nothing" if found is None else f"'{found[:80]}'"
        hint = _unit_hint(found, settings) if reason == "event_ts_unparsable" else ""
        lines.append(f"  {reason} in {count:,} rows: {where} is {shown}, expected {expected(reason, settings)}{hint}")
    return "\n".join(lines)


def _unit_hint(found: str | None, settings: Settings) -> str:
    """The unit that a run of digits looks like: 10 digits of seconds are now, 13 of milliseconds, and so on."""
    digits = (found or "").strip().partition(".")[0]
    unit = {10: "s", 13: "ms", 16: "us", 19: "ns"}.get(len(digits)) if digits.isdigit() else None
    return f" (it looks like log.time.unit: {unit})" if unit and unit != settings.log.time.unit else ""


def _hash(*values: Column | str) -> Column:
    """128 bits of the values' SHA-256, as hexadecimal digits; null is a value of its own."""
    texts = [
        F.coalesce((F.col(value) if isinstance(value, str) else value).cast("string"), F.lit("\0")) for value in values
    ]
    return F.left(F.sha2(F.concat_ws("\x1f", *texts), 256), F.lit(32))
