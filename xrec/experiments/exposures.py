"""What downstream systems showed, from their file to the table ``exposures``, and from there to persons."""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Exposures, Settings
from xrec.ingest.mapping import (
    check_time_format,
    expected_time,
    plausible,
    require_columns,
    text_of,
    time_in,
    timestamp_of,
)
from xrec.ingest.privacy import hidden, pseudonyms_of
from xrec.ingest.reader import InputError, count_rows, listed, read_raw, reading
from xrec.ingest.rules import number_of
from xrec.logrules.identity import persons_opted_out, with_persons
from xrec.storage.tables import Tables

_KEY = "exposures.file"
_REASON, _DISTINCT, _OWN_ID = "reason", "num_distinct", "own_id"
_FIELDS = (C.EXPERIMENT, C.ARM, C.PLATFORM, C.USER_ID, C.ITEM_ID, C.SHOWN_TS, C.RANK)


class AccountingError(ValueError):
    """Exposures were lost or made: read is not kept + rejected + duplicates."""


def require_either(settings: Settings) -> None:
    """Raise InputError where neither exposures nor an experiment is named, so that there is nothing to do."""
    if settings.exposures is None and settings.experiment is None:
        raise InputError(
            "exposures, experiment: found neither, expected one of them at least: what was shown, or what it is to be judged by "
            "(see conf/example_experiment.yaml)"
        )


def load_exposures(spark: SparkSession, settings: Settings, exposures: Exposures, key: bytes | None) -> DataFrame:
    """The file's rows as rows of ``exposures`` (without ``delivery_id``), and ``reason``: why one is rejected, else null.

    A row that is the same in all mapped columns as another has the same ``exposure_id``. Users are pseudonyms where a ``key`` is
    given, unless the file has pseudonyms already.

    Raises
    ------
    InputError
        The file cannot be read, or lacks a column.
    """
    columns = exposures.columns
    raw = read_raw(spark, exposures.file, key=_KEY)
    mapped = {
        f"exposures.columns.{name}": column for name, column in columns.model_dump().items() if column is not None
    }
    require_columns(raw, mapped, exposures.file, hide_names=key is not None)
    check_time_format(spark, exposures.time, key="exposures.time")

    named = None if settings.experiment is None else settings.experiment.name

    def text(name: str | None, otherwise: str | None = None) -> Column:
        return F.lit(otherwise).cast("string") if name is None else text_of(name)

    shown, rank = text(columns.shown_ts), text(columns.rank)
    rows = raw.withColumns(
        {
            C.EXPERIMENT: text(columns.experiment, named),
            C.ARM: text(columns.arm),
            C.PLATFORM: text(columns.platform, ""),
            C.USER_ID: hidden(text(columns.user_id), None if exposures.pseudonymised else key),
            C.ITEM_ID: text(columns.item_id),
            C.SHOWN_TS: plausible(timestamp_of(shown, time_in(raw, columns.shown_ts, exposures.time))),
            C.RANK: number_of(rank).try_cast("int"),
        }
    )
    platforms = [source.log.platform for source in settings.sources]
    is_platform = F.lit(columns.platform is None) | F.col(C.PLATFORM).isin(*platforms)
    faults = {
        "row_malformed": F.col(C.MALFORMED).isNotNull(),
        "user_id_missing": F.col(C.USER_ID).isNull(),
        "shown_ts_missing": shown.isNull(),
        "shown_ts_unparsable": F.col(C.SHOWN_TS).isNull(),
        # A day of grace, as for events.
        "shown_ts_too_late": F.col(C.SHOWN_TS) > F.now() + F.expr("interval 1 day"),
        "experiment_missing": F.lit(columns.experiment is not None) & F.col(C.EXPERIMENT).isNull(),
        "platform_unknown": ~F.coalesce(is_platform, F.lit(False)),
        "rank_unparsable": rank.isNotNull() & (F.coalesce(F.col(C.RANK), F.lit(0)) < 1),
    }
    reason = F.coalesce(*[F.when(fault, F.lit(name)) for name, fault in faults.items()])
    texts = [F.coalesce(F.col(field).cast("string"), F.lit("\0")) for field in _FIELDS]
    digest = F.left(F.sha2(F.concat_ws("\x1f", *texts), 256), F.lit(32))
    # With a key the hash is keyed, else who guesses a row could find it again.
    identity = digest if key is None else F.left(pseudonyms_of(digest, key), F.lit(32))
    return rows.select(identity.alias(C.EXPOSURE_ID), *_FIELDS, reason.alias(_REASON))


def write_exposures(tables: Tables, settings: Settings, exposures: Exposures, key: bytes | None) -> dict[str, str]:
    """Replace the delivery that the settings name by what their file holds now; return its accounts, for the summary.

    Those who opted out are left out before anything is written.

    Raises
    ------
    InputError
        See :func:`load_exposures`; or no row is kept.
    AccountingError
        The rows read are not those kept, rejected and duplicate.
    """
    rows = load_exposures(tables.spark, settings, exposures, key)
    # The table has users by their platform's key: who they are may change, and is asked when it is read.
    persons = with_signs(rows.withColumn(_OWN_ID, F.col(C.USER_ID)), tables, settings)
    has_left = F.when(F.col(C.OPTED_OUT), F.lit(C.OPTED_OUT))
    kept_as = {C.USER_ID: F.col(_OWN_ID), _REASON: F.coalesce(_REASON, has_left)}
    ruled = persons.withColumns(kept_as).select(*rows.columns)
    with reading(exposures.file, key=_KEY):
        num_read = count_rows(read_raw(tables.spark, exposures.file, key=_KEY), exposures.file, key=_KEY)
        groups = ruled.groupBy(_REASON).agg(F.count("*"), F.countDistinct(C.EXPOSURE_ID)).collect()
    num_kept, num_duplicate = next(((kept, rows - kept) for reason, rows, kept in groups if reason is None), (0, 0))
    rejected = {reason: rows for reason, rows, _ in sorted(groups, key=lambda group: -group[1]) if reason is not None}
    if num_kept == 0:
        raise InputError(_rejection_report(rejected, num_read, exposures))
    kept = ruled.where(F.col(_REASON).isNull()).drop(_REASON).dropDuplicates([C.EXPOSURE_ID])
    delivery = exposures.delivery_id
    tables.write("exposures", kept.withColumn(C.DELIVERY_ID, F.lit(delivery)), delivery_id=delivery)
    check_accounts(num_read, tables.read("exposures", delivery_id=delivery).count(), rejected, num_duplicate)
    counts = {"read": num_read, "kept": num_kept, "rejected": sum(rejected.values()), "duplicate": num_duplicate}
    figures = {"exposures": ", ".join(f"{count:,} {what}" for what, count in counts.items())}
    return figures | {f"rejected_{reason}": f"{count:,}" for reason, count in rejected.items()}


def check_accounts(num_read: int, num_kept: int, rejected: Mapping[str, int], num_duplicate: int) -> None:
    """Raise AccountingError unless every row that was read is in the table, rejected or a duplicate."""
    total = num_kept + sum(rejected.values()) + num_duplicate
    if num_read != total:
        raise AccountingError(
            f"{_KEY}: rows read: found {num_read:,}, expected {num_kept:,} kept + {sum(rejected.values()):,} rejected + "
            f"{num_duplicate:,} duplicates = {total:,}; did the file change during the run? Run the job again"
        )


def read_exposures(tables: Tables, settings: Settings) -> DataFrame:
    """The exposures of all deliveries, once each, as :func:`with_signs` gives them.

    Raises
    ------
    InputError
        No exposure was ever loaded.
    """
    if not tables.exists("exposures"):
        raise InputError(
            f"table 'exposures' not found at {tables.location('exposures')}: expected what was shown, for experiments and "
            "feedback; name the file under exposures and run ./spark-submit.sh jobs/read_experiment.py with the same settings first"
        )
    rows = tables.read("exposures").drop(C.DELIVERY_ID, C.VERSIONS).dropDuplicates([C.EXPOSURE_ID])
    return with_signs(rows, tables, settings)


def with_signs(rows: DataFrame, tables: Tables, settings: Settings) -> DataFrame:
    """Exposures with the person of their time in ``user_id``, ``opted_out``, and ``flagged_ts`` of those who are no person."""
    identities, opt_outs, persons = (
        tables.read(name).drop(C.VERSIONS) if tables.exists(name) else None
        for name in ("identities", "opt_outs", "persons")
    )
    timed = rows.withColumn(C.EVENT_TS, F.col(C.SHOWN_TS))
    # Without a platform the key is the person's already; so it is in a row without a user, which is rejected.
    has_platform = F.coalesce(F.col(C.PLATFORM), F.lit("")) != ""
    named = with_persons(timed.where(has_platform), identities, settings)
    known = timed.where(~has_platform).unionByName(named).drop(C.EVENT_TS)
    left = F.lit(False)
    if opt_outs is not None:
        out = persons_opted_out(opt_outs, identities, settings).withColumn(C.OPTED_OUT, F.lit(True))
        known, left = known.join(out, C.USER_ID, how="left"), F.coalesce(F.col(C.OPTED_OUT), F.lit(False))
    known = known.withColumn(C.OPTED_OUT, left)
    if persons is None:
        return known.withColumn(C.FLAGGED_TS, F.lit(None).cast("timestamp"))
    return known.join(persons.select(C.USER_ID, C.FLAGGED_TS), C.USER_ID, how="left")


def _rejection_report(rejected: Mapping[str, int], num_read: int, exposures: Exposures) -> str:
    reasons = listed([f"{reason} in {count:,} rows" for reason, count in rejected.items()])
    time = expected_time(exposures.time).replace("log.time", "exposures.time")
    return (
        f"{_KEY}.path: none of the {num_read:,} rows of {exposures.file.path} can be used: {reasons}; expected a user in column "
        f"'{exposures.columns.user_id}' and a time in column '{exposures.columns.shown_ts}' ({time}); mend the file, or the keys "
        "under exposures"
    )
