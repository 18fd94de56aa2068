"""The source's columns to ours, and its times to UTC."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import File, LogColumns, TimeFormat
from xrec.ingest.reader import InputError, column_names, listed, source_type

TEXT = "_text"
"""Ends the name of a mapped field that is still the source's text, such as ``quantity_text``."""

DAMAGE = r"[\x{FFFD}\p{Cc}]"
"""What a text has where it was read in another encoding than it was written in: the replacement character, or control codes."""

_SEPARATOR = re.compile(r"[;\t|]")
_BLANKS = " \t\r\n\u00a0\ufeff"
_MICROSECONDS = {"s": Decimal(1_000_000), "ms": Decimal(1_000), "us": Decimal(1), "ns": Decimal("0.001")}
_EARLIEST, _LATEST = "1900-01-01", "2200-01-01"
_ISO_DATE = r"^[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([ T].+)?$"
_ISO_DAY = r"^[0-9-]+$"
_ISO_WITH_ZONE = r"^[0-9-]+[ T][0-9:.]+ ?[^0-9:. ]"


def map_columns(raw: DataFrame, columns: LogColumns, file: File, *, hide_names: bool = False) -> DataFrame:
    """Raw rows, with the text of each mapped field beside them: ``user_id_text`` ... ``price_text``.

    Texts are trimmed; an empty one is null; a field that the config does not map is null throughout. Leading zeros stay.

    Raises
    ------
    InputError
        The file lacks a mapped column; every such key is named, with the nearest name that the file has (see
        :func:`require_columns` for ``hide_names``).
    """
    mapped = {f"log.columns.{key}": name for key, name in columns.model_dump().items() if name is not None}
    require_columns(raw, mapped, file, hide_names=hide_names)
    texts = {
        key + TEXT: F.lit(None).cast("string") if name is None else text_of(name)
        for key, name in columns.model_dump().items()
    }
    return raw.withColumns(texts)


def require_columns(raw: DataFrame, wanted: Mapping[str, str], file: File, *, hide_names: bool = False) -> None:
    """Raise InputError where the source lacks a column; ``wanted`` gives the settings key of each name.

    With ``hide_names`` no name is shown of a file whose header may be missing: in its place stand the values of a person.
    """
    there = column_names(raw)
    missing = {key: name for key, name in wanted.items() if name not in there}
    if not missing:
        return
    is_delimited = file.format in {"csv", "tsv"}
    hidden = hide_names and is_delimited
    problems = [f"{key}: found '{name}', which is no column of {file.path}" for key, name in missing.items()]
    names = f"it has {len(there)} columns, whose names are not shown (privacy.pseudonymise)"
    if not hidden:
        nearest = [_nearest(name, there) for name in missing.values()]
        problems = [f"{problem}; did you mean '{best}'?" for problem, best in zip(problems, nearest, strict=True)]
        names = f"its columns are: {listed(there)}"
    if is_delimited:
        names += "; if its header is missing" if hidden else "; if these are values"
        names += f", set the file's options to {{header: 'false'}} and map _c0 to _c{len(there) - 1}"
    if is_delimited and len(there) == 1 and (found := _SEPARATOR.search(there[0])):
        names = f"it has one column, whose name holds another separator; set the file's options to {{sep: {json.dumps(found[0])}}}"
    raise InputError("\n".join([*problems, names]))


def _nearest(name: str, there: Sequence[str]) -> str:
    (nearest,) = difflib.get_close_matches(name.lower(), [known.lower() for known in there], n=1, cutoff=0)
    return next(known for known in there if known.lower() == nearest)


def text_of(name: str) -> Column:
    """A source column's text, trimmed; null where it is empty."""
    return F.nullif(F.btrim(F.col(C.SOURCE_ROW).getField(name), F.lit(_BLANKS)), F.lit(""))


def timestamp_of(text: Column, time: TimeFormat) -> Column:
    """Text to a UTC timestamp (microseconds, finer is cut off); null where it is none.

    Without a pattern a text needs at least a full date: Spark itself takes 12:30 as today. A date without a time of day is a
    day, not an instant: it is that day's 00:00 UTC in every zone. A time that daylight saving skips moves on by the gap; one
    that occurs twice is the first.
    """
    if time.unit == "text":
        return _from_text(text, time)
    factor = _MICROSECONDS["s" if time.unit == "order" else time.unit]
    return F.timestamp_micros(F.floor(text.try_cast("decimal(28,6)") * F.lit(factor)).try_cast("bigint"))


def time_in(raw: DataFrame, name: str, time: TimeFormat) -> TimeFormat:
    """How a column writes its times: an instant (a timestamp of Parquet or Delta) is in UTC, whatever the zone of texts."""
    is_instant = time.unit == "text" and source_type(raw, name) == "timestamp"
    return time.model_copy(update={"zone": "UTC"}) if is_instant else time


def plausible(times: Column) -> Column:
    """Timestamps between 1900 and 2200, others null: milliseconds read as seconds are in the year 50,000."""
    return F.when((times >= F.to_timestamp(F.lit(_EARLIEST))) & (times < F.to_timestamp(F.lit(_LATEST))), times)


def check_time_format(spark: SparkSession, time: TimeFormat, *, key: str = "log.time") -> None:
    """Raise InputError where the zone is no zone or the format no Spark date-time pattern; ``key`` names their settings."""
    try:
        ZoneInfo(time.zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InputError(
            f"{key}.zone: found '{time.zone}', expected UTC or a Region/City such as Europe/Berlin"
        ) from None
    if time.format is None:
        return
    if time.unit != "text":
        raise InputError(f"{key}.format: found '{time.format}' beside {key}.unit '{time.unit}', expected unit text")
    try:
        spark.range(1).select(F.try_to_timestamp(F.lit("2000"), F.lit(time.format))).first()
    except PySparkException as error:
        reason = str(error).split(". SQLSTATE")[0].split("] ")[-1]
        raise InputError(
            f"{key}.format: found '{time.format}', expected a Spark date-time pattern such as yyyy-MM-dd HH:mm:ss: "
            f"{reason}"
        ) from None


def expected_time(time: TimeFormat) -> str:
    """What a time must look like, for messages."""
    if time.unit == "order":
        return "a whole number, oldest smallest (log.time.unit: order)"
    if time.unit != "text":
        return f"a number of {time.unit} since 1970-01-01 (log.time.unit: {time.unit}), between 1900 and 2200"
    if time.format:
        return f"the pattern {time.format} (log.time.format), between 1900 and 2200"
    return "ISO 8601 such as 2017-11-01 09:30:00; else set log.time.format or log.time.unit"


def _from_text(text: Column, time: TimeFormat) -> Column:
    if time.format is None:
        parsed = F.when(text.rlike(_ISO_DATE), F.try_to_timestamp(text))
        is_utc = text.rlike(_ISO_DAY) | text.rlike(_ISO_WITH_ZONE)
    else:
        parsed = F.try_to_timestamp(text, F.lit(time.format))
        # V, z, O, X, x and Z are the pattern's letters for a zone, the others those for a time of day; what is between quotes is
        # literal.
        letters = set(re.sub(r"'[^']*'", "", time.format))
        is_utc = F.lit(bool(letters & set("VzOXxZ")) or not letters & set("HhKkmsSa"))
    if time.zone == "UTC":
        return parsed
    return F.when(is_utc, parsed).otherwise(F.to_utc_timestamp(parsed, time.zone))
