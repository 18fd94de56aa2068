"""The identity table: which users of several platforms are one person, and since when."""

from __future__ import annotations

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Settings
from xrec.ingest.mapping import (
    check_time_format,
    expected_time,
    plausible,
    require_columns,
    text_of,
    time_in,
    timestamp_of,
)
from xrec.ingest.privacy import hidden
from xrec.ingest.reader import InputError, listed, read_raw, reading

_KEY = "identity.file"
_ALWAYS = "1900-01-01"


def load_identities(spark: SparkSession, settings: Settings, key: bytes | None) -> DataFrame | None:
    """The table that ``identity`` names as rows of ``identities``, users and persons as pseudonyms where a ``key`` is given.

    None where no file is named.

    Raises
    ------
    InputError
        The file cannot be read or lacks a column; a row has no user, no person, no such platform or no time; or a user is two
        persons from the same time on. Nobody is guessed: a wrong person would get another one's recommendations.
    """
    identity = settings.identity
    if identity.file is None:
        return None
    raw = read_raw(spark, identity.file, key=_KEY)
    wanted = {"identity.user_id": identity.user_id, "identity.person": identity.person}
    wanted |= {"identity.platform": identity.platform} if identity.platform else {}
    wanted |= {"identity.valid_from": identity.valid_from} if identity.valid_from else {}
    require_columns(raw, wanted, identity.file, hide_names=key is not None)
    check_time_format(spark, identity.time, key="identity.time")
    names = [source.log.platform for source in settings.sources]
    platform = F.explode(F.array(*map(F.lit, names))) if identity.platform is None else text_of(identity.platform)
    since = F.to_timestamp(F.lit(_ALWAYS))
    if identity.valid_from is not None:
        text, time = text_of(identity.valid_from), time_in(raw, identity.valid_from, identity.time)
        since = F.when(text.isNull(), since).otherwise(plausible(timestamp_of(text, time)))
    rows = raw.select(
        C.MALFORMED,
        platform.alias(C.PLATFORM),
        text_of(identity.user_id).alias(C.USER_ID),
        text_of(identity.person).alias(C.PERSON_ID),
        since.alias(C.VALID_FROM_TS),
    )
    faults = {
        "the well-formed rows of a table": F.col(C.MALFORMED).isNotNull(),
        f"a user in column '{identity.user_id}'": F.col(C.USER_ID).isNull(),
        f"a person in column '{identity.person}'": F.col(C.PERSON_ID).isNull(),
        f"one of the platforms {listed(names)} in column '{identity.platform}'": ~F.coalesce(
            F.col(C.PLATFORM).isin(*names), F.lit(False)
        ),
        f"{expected_time(identity.time)} in column '{identity.valid_from}'": F.col(C.VALID_FROM_TS).isNull(),
    }
    where = f"{_KEY}.path: {identity.file.path}"
    with reading(identity.file, key=_KEY):
        counts = rows.agg(*[F.count_if(fault) for fault in faults.values()]).first()
    for expected, count in zip(faults, counts or (), strict=True):
        if count:
            raise InputError(f"{where}: {count:,} rows lack what was expected: {expected}; mend the file")
    found = rows.select(C.PLATFORM, hidden(F.col(C.USER_ID), key).alias(C.USER_ID), C.VALID_FROM_TS,
                        hidden(F.col(C.PERSON_ID), key).alias(C.PERSON_ID)).distinct()  # fmt: skip
    twice = (
        found.groupBy(C.PLATFORM, C.USER_ID, C.VALID_FROM_TS).agg(F.count("*").alias("persons")).where("persons > 1")
    )
    example = twice.first()
    if example is not None:
        raise InputError(
            f"{where}: user '{example[C.USER_ID]}' of {example[C.PLATFORM]} is {example['persons']} persons from the same time "
            "on, expected one; mend the file"
        )
    return found.select(C.PLATFORM, C.USER_ID, C.PERSON_ID, C.VALID_FROM_TS)
