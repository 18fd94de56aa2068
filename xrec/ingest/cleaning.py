"""Raw rows to clean events and a quarantine, with every row accounted for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Settings
from xrec.ingest.catalogue import OF_ITEM, check_columns, entries_of, mapped_columns, said_by, said_of_item
from xrec.ingest.mapping import check_time_format, map_columns
from xrec.ingest.privacy import pseudonyms_of
from xrec.ingest.reader import InputError, column_names, count_rows_by_file, reading
from xrec.ingest.rules import FIELD_OF_REASON, MALFORMED_LINE, apply_rules, expected, is_clean

CLEAN, QUARANTINED, DUPLICATE = "clean", "quarantined", "duplicate"
OUTCOMES = (CLEAN, QUARANTINED, DUPLICATE)
"""What becomes of a row that is read: exactly one of these."""

_HASH, _SUSPECT = "hash", "is_suspect"
_FEW = 1_000_000
"""Hashes that every executor can hold."""


class AccountingError(ValueError):
    """Rows were lost or made: read is not clean + quarantined + duplicates."""


@dataclass(frozen=True, kw_only=True)
class CleanLog:
    """A log after the row rules."""

    events: DataFrame
    """A clean event a row: the columns of the table ``events`` without ``delivery_id`` and ``platform``."""
    quarantine: DataFrame
    """A rejected row with every reason: the columns of ``events_quarantine`` without ``delivery_id`` and ``platform``."""
    entries: DataFrame | None
    """What clean rows, equal ones too, say of items: see :func:`xrec.ingest.catalogue.entries_of`; None where that is a file."""
    num_read: int
    accounts: Mapping[tuple[str, str], int]
    """Rows by file and outcome, and by file and reason; a row with two reasons counts in both."""
    num_rejected: int
    """Rows with a reason against them, also those that are equal to another: a broken export repeats itself."""
    num_rejected_by_reason: Mapping[str, int]
    """The same by reason, the most frequent first."""

    def num(self, outcome: str) -> int:
        """Rows of an outcome or reason, of all files."""
        return sum(count for (_, name), count in self.accounts.items() if name == outcome)

    @property
    def num_by_reason(self) -> dict[str, int]:
        """Rejected rows of each reason, the most frequent first."""
        return _most_first({name: self.num(name) for _, name in self.accounts if name not in OUTCOMES})

    def account_rows(self) -> list[dict[str, str | int]]:
        """The columns of the table ``accounts`` without ``delivery_id`` and ``platform``."""
        return [
            {C.FILE: file, C.OUTCOME: outcome, C.NUM_ROWS: count}
            for (file, outcome), count in sorted(self.accounts.items())
        ]

    def counts(self) -> Counter[str]:
        """What a summary shows, the most frequent reason first; the counts of several logs add up."""
        counts = {
            "rows_read": self.num_read,
            "rows_clean": self.num(CLEAN),
            "rows_quarantined": self.num(QUARANTINED),
            "rows_duplicate": self.num(DUPLICATE),
        }
        return Counter(counts | {f"quarantined_{reason}": count for reason, count in self.num_by_reason.items()})


@contextmanager
def cleaned(raw: DataFrame, settings: Settings, key: bytes | None = None) -> Iterator[CleanLog]:
    """Rows of :func:`xrec.ingest.reader.read_raw` to clean events and rejected rows, kept on disk within the context.

    Of clean rows that are equal in every cleaned field and every column that is not mapped one stays (that of the first file
    by name), and of rejected rows that are equal as they stand; the others are counted as duplicates. Rows that differ only
    in columns that are not mapped are events of their own; rows that differ only in what they say of their item are one event,
    which says it all. ``event_id`` is a hash of all this: the same row is the same event in whatever order, file, partition,
    delivery or format it comes.

    Raises
    ------
    InputError
        The file cannot be read or is empty, a column is missing, or no row is clean or more than ``log.max_rejected_share``
        are rejected (with the reasons and examples), those that are equal to another counted as well.
    AccountingError
        The rows read of each file, counted by a pass of their own, are not clean + quarantined + duplicates.
    """
    log = settings.log
    mapped = map_columns(raw, log.columns, log.file, hide_names=key is not None)
    check_time_format(raw.sparkSession, log.time)
    if settings.catalogue.file is None:
        check_columns(raw, settings)
    num_read = count_rows_by_file(raw, log.file)
    # Read several times: looked through for duplicates, counted, and written to two tables.
    hashed = with_hash(apply_rules(mapped, settings, key), settings, key).persist(StorageLevel.DISK_ONLY)
    suspects = _suspects_of(hashed).persist(StorageLevel.DISK_ONLY)
    try:
        with reading(log.file):
            rows = mark_duplicates(hashed, suspects)
            result = _account(rows, num_read)
        if result.num(CLEAN) == 0 or result.num_rejected / result.num_read > log.max_rejected_share:
            raise InputError(_rejection_report(result, settings))
        yield result
    finally:
        suspects.unpersist()
        hashed.unpersist()


def with_hash(ruled: DataFrame, settings: Settings, key: bytes | None) -> DataFrame:
    """Rows of :func:`apply_rules` to what the tables keep of them and ``hash``: rows with equal hashes are one row twice.

    With a ``key`` it is keyed, else who guesses a row could find it again. A clean row of a log that is its own catalogue
    has what it says of its item as well (``of_item``, ``said``); what is rejected says nothing.
    """
    names, mapped = sorted(column_names(ruled)), mapped_columns(settings)
    fields: list[Column | str] = [C.USER_ID, C.ITEM_ID, C.EVENT_TYPE, F.unix_micros(C.EVENT_TS), C.QUANTITY, C.PRICE]
    fields.append(F.lit(settings.log.platform))
    as_event = _hash(fields, (name for name in names if name not in mapped))
    as_it_stands = _hash([C.MALFORMED, F.lit(settings.log.platform)], names)
    digest = F.when(is_clean(), as_event).otherwise(as_it_stands)
    kept = [C.USER_ID, C.ITEM_ID, C.EVENT_TYPE, C.EVENT_TS, C.QUANTITY, C.PRICE, C.FILE, C.RAW, C.REASONS]
    of_item = [] if settings.catalogue.file else [F.when(is_clean(), said_of_item(ruled, settings)).alias(OF_ITEM)]
    rows = ruled.select(*kept, *of_item, digest.alias(_HASH))
    # The rules and the hash speak of the log's own currency: an event stays itself when the rate changes.
    if settings.log.price_rate != 1:
        rows = rows.withColumn(C.PRICE, F.col(C.PRICE) * F.lit(settings.log.price_rate))
    rows = rows.withColumn(C.SAID, said_by(F.col(OF_ITEM)) if of_item else F.lit(None).cast("array<bigint>"))
    return rows if key is None else rows.withColumn(_HASH, F.left(pseudonyms_of(F.col(_HASH), key), F.lit(32)))


def mark_duplicates(hashed: DataFrame, suspects: DataFrame) -> DataFrame:
    """Rows of :func:`with_hash` with ``is_duplicate``: true for all but one of equal rows, and what all of them ``said``.

    A log has few duplicates. So only rows whose short hash occurs twice (``suspects``) are brought together and compared; the
    others stay where they are.
    """
    num_suspects = suspects.count()
    if num_suspects == 0:
        return hashed.withColumn(C.IS_DUPLICATE, F.lit(False))
    found = suspects if num_suspects > _FEW else F.broadcast(suspects)
    joined = hashed.withColumn(_SUSPECT, F.xxhash64(_HASH))
    equal = Window.partitionBy(_HASH)
    alone = joined.join(found, _SUSPECT, how="left_anti").withColumn(C.IS_DUPLICATE, F.lit(False))
    doubled = joined.join(found, _SUSPECT, how="left_semi")
    said = F.sort_array(F.array_distinct(F.flatten(F.collect_set(C.SAID).over(equal))))
    is_duplicate = F.row_number().over(equal.orderBy(C.FILE)) > 1
    doubled = doubled.withColumns({C.IS_DUPLICATE: is_duplicate, C.SAID: F.when(F.col(C.SAID).isNotNull(), said)})
    return alone.unionByName(doubled).drop(_SUSPECT)


def _suspects_of(hashed: DataFrame) -> DataFrame:
    """The short hashes that several rows have: of a billion rows, few that are not equal."""
    return hashed.groupBy(F.xxhash64(_HASH).alias(_SUSPECT)).count().where("count > 1").select(_SUSPECT)


def describe_counts(by_platform: Mapping[str, Counter[str]]) -> dict[str, str]:
    """The counts of :meth:`CleanLog.counts` of each platform, for the summary: their sums, and those of each of several."""
    names = dict.fromkeys(name for counts in by_platform.values() for name in counts)
    figures = {name: f"{sum(counts[name] for counts in by_platform.values()):,}" for name in names}
    if len(by_platform) > 1:
        for platform, counts in by_platform.items():
            parts = [f"{counts[f'rows_{what}']:,} {what}" for what in ("read", CLEAN, QUARANTINED, DUPLICATE)]
            figures[f"platform {platform}"] = ", ".join(parts)
    return figures


def check_accounting(num_read: Mapping[str, int], accounts: Mapping[tuple[str, str], int]) -> None:
    """Raise AccountingError unless every row read of every file is clean, quarantined or a duplicate."""
    for file in sorted({*num_read, *(file for file, _ in accounts)}):
        read = num_read.get(file, 0)
        counts = {outcome: accounts.get((file, outcome), 0) for outcome in OUTCOMES}
        if read != sum(counts.values()):
            parts = " + ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
            raise AccountingError(
                f"{file}: rows read: found {read:,}, expected {parts} = {sum(counts.values()):,}; did the file change during "
                "the run? Run ingest again"
            )


def _account(rows: DataFrame, num_read: Mapping[str, int]) -> CleanLog:
    groups = rows.groupBy(C.FILE, C.IS_DUPLICATE, C.REASONS).count().collect()  # as many as files x sets of reasons
    accounts, rejected = Counter[tuple[str, str]](), Counter[str]()
    for file, is_duplicate, reasons, count in groups:
        rejected.update(dict.fromkeys(reasons, count))
        outcome = DUPLICATE if is_duplicate else QUARANTINED if reasons else CLEAN
        accounts[file, outcome] += count
        for reason in () if is_duplicate else reasons:
            accounts[file, reason] += count
    check_accounting(num_read, accounts)
    first = ~F.col(C.IS_DUPLICATE)
    clean = rows.where(first & is_clean())
    events = clean.select(
        F.col(_HASH).alias(C.EVENT_ID), C.USER_ID, C.ITEM_ID, C.EVENT_TYPE, C.EVENT_TS, C.QUANTITY, C.PRICE, C.SAID
    )
    quarantine = rows.where(first & ~is_clean()).select(F.col(_HASH).alias(C.ROW_ID), C.FILE, C.RAW, C.REASONS)
    entries = None
    if OF_ITEM in rows.columns:
        # Rows of several deliveries may be one event, so how many say something is counted over the events of all.
        entries = entries_of(rows.where(is_clean())).withColumn(C.NUM_ROWS, F.lit(None).cast("bigint"))
    return CleanLog(
        events=events,
        quarantine=quarantine,
        entries=entries,
        num_read=sum(num_read.values()),
        accounts=dict(accounts),
        num_rejected=sum(count for _, _, reasons, count in groups if reasons),
        num_rejected_by_reason=_most_first(rejected),
    )


def _most_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _rejection_report(log: CleanLog, settings: Settings) -> str:
    """The message where too many rows are rejected: the reasons, each with an example and what was expected."""
    share = (
        f"{log.num_rejected / log.num_read:.1%} of the {log.num_read:,} rows of {settings.log.file.path} are rejected"
    )
    lines = [f"log.file.path: {share}, expected at most log.max_rejected_share ({settings.log.max_rejected_share:g}):"]
    if log.num(CLEAN) == 0:
        lines = [f"log.file.path: none of the {log.num_read:,} rows of {settings.log.file.path} is clean:"]
    for reason, count in list(log.num_rejected_by_reason.items())[:4]:
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


def _hash(fields: Sequence[Column | str], source_names: Iterable[str]) -> Column:
    """128 bits of a SHA-256, as hexadecimal digits, of fields, whose nulls are values, and of the named source columns.

    Of the source, an empty column says no more than one that is missing, and their order nothing.
    """
    texts = [
        F.coalesce((F.col(field) if isinstance(field, str) else field).cast("string"), F.lit("\0")) for field in fields
    ]
    texts += [F.concat(F.lit(f"{name}\x1e"), F.col(C.SOURCE_ROW).getField(name)) for name in source_names]
    return F.left(F.sha2(F.concat_ws("\x1f", *texts), 256), F.lit(32))
