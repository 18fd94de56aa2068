"""Attributes of users (age, place, segment), no finer than the settings say.

What points at a person when it is combined is made coarse before anything is written: numbers become bands, codes keep their
first characters, and a value that few users share becomes ``other`` (k-anonymity of each attribute alone; Sweeney 2002). A
column that ``users.attributes`` does not name never enters.
"""

from __future__ import annotations

from functools import reduce
from itertools import pairwise

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Attribute, Settings
from xrec.ingest.mapping import require_columns, text_of
from xrec.ingest.privacy import hidden
from xrec.ingest.reader import count_rows, read_raw
from xrec.ingest.rules import number_of

OTHER = "other"
_KEY = "users.file"
_NUM_USERS = "num_users"


def load_attributes(spark: SparkSession, settings: Settings, key: bytes | None) -> tuple[DataFrame, int] | None:
    """The file that ``users`` names as rows of ``user_attributes``, and the rows left out: malformed, or without a user.

    None where no file is named. Users are pseudonyms where a ``key`` is given. A user has no value of an attribute where the
    file gives none, one that is no number though bands are wanted, or several that differ; values of fewer than ``min_users``
    users, taken together, are ``other``, and where even these are too few they are left out.

    Raises
    ------
    InputError
        The file cannot be read, is empty or lacks a column.
    """
    users = settings.users
    if users is None:
        return None
    raw = read_raw(spark, users.file, key=_KEY)
    wanted = {"users.user_id": users.user_id} | ({"users.platform": users.platform} if users.platform else {})
    wanted |= {f"users.attributes.{name}.column": attribute.column for name, attribute in users.attributes.items()}
    require_columns(raw, wanted, users.file, hide_names=key is not None)
    platform = F.lit("") if users.platform is None else F.coalesce(text_of(users.platform), F.lit(""))
    rows = raw.where(F.col(C.MALFORMED).isNull() & text_of(users.user_id).isNotNull())
    num_left_out = count_rows(raw, users.file, key=_KEY) - count_rows(rows, users.file, key=_KEY, least=0)
    owner = [platform.alias(C.PLATFORM), hidden(text_of(users.user_id), key).alias(C.USER_ID)]
    values = [
        rows.select(*owner, F.lit(name).alias(C.ATTRIBUTE), coarse(attribute).alias(C.VALUE))
        for name, attribute in users.attributes.items()
    ]
    known = reduce(DataFrame.unionByName, values).where(F.col(C.VALUE).isNotNull())
    agreed = known.groupBy(C.PLATFORM, C.USER_ID, C.ATTRIBUTE).agg(
        F.max(C.VALUE).alias(C.VALUE), F.min(C.VALUE).alias("least")
    )
    return _shared(agreed.where(F.col(C.VALUE) == F.col("least")).drop("least"), users.min_users), num_left_out


def coarse(attribute: Attribute) -> Column:
    """An attribute's value as the tables have it; null where there is none."""
    text = text_of(attribute.column)
    if attribute.first_characters is not None:
        return F.left(text, F.lit(attribute.first_characters))
    if not attribute.bands:
        return text
    number, starts = number_of(text), attribute.bands
    bands = F.when(number < starts[0], F.lit(f"below {starts[0]:g}"))
    for start, end in pairwise(starts):
        bands = bands.when(number < end, F.lit(f"{start:g} to below {end:g}"))
    return bands.when(number.isNotNull(), F.lit(f"{starts[-1]:g} and above"))


def _shared(rows: DataFrame, min_users: int) -> DataFrame:
    """Rows whose value at least ``min_users`` users have, the values of the others as ``other``."""
    is_rare = F.col(_NUM_USERS) < min_users
    value = F.when(is_rare, F.lit(OTHER)).otherwise(F.col(C.VALUE))
    merged = _with_num_users(rows).select(C.PLATFORM, C.USER_ID, C.ATTRIBUTE, value.alias(C.VALUE))
    return _with_num_users(merged).where(~is_rare).drop(_NUM_USERS)


def _with_num_users(rows: DataFrame) -> DataFrame:
    counts = rows.groupBy(C.ATTRIBUTE, C.VALUE).agg(F.count("*").alias(_NUM_USERS))
    return rows.join(counts, [C.ATTRIBUTE, C.VALUE], how="inner")


def describe_attributes(attributes: DataFrame, num_left_out: int) -> dict[str, str]:
    """Each attribute's values and the users who have one, and the file's rows left out, for the summary."""
    found = attributes.groupBy(C.ATTRIBUTE).agg(
        F.count("*").alias(_NUM_USERS),
        F.countDistinct(C.VALUE).alias("num_values"),
        F.count_if(F.col(C.VALUE) == OTHER).alias(OTHER),
    )
    left_out = {"users_rows_left_out": f"{num_left_out:,} (malformed, or without a user)"} if num_left_out else {}
    return left_out | {
        f"users_{row[C.ATTRIBUTE]}": f"{row[_NUM_USERS]:,} users, {row['num_values']:,} values, {OTHER} for {row[OTHER]:,}"
        for row in found.orderBy(C.ATTRIBUTE).collect()
    }
