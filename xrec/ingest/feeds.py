"""The shop's feeds behind the filters: what items and users are today, and which pairs must not be.

A feed decides what nobody may get, so nothing of it is left out: a row that cannot be used stops the run, and the last feed
stays in force.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import BlockedPairs, File, FilterAttribute, ItemFeed, Settings, TimeFormat, UserFeed
from xrec.ingest.mapping import TEXT, check_time_format, require_columns, text_of
from xrec.ingest.privacy import WITHHELD, hidden
from xrec.ingest.reader import InputError, listed, read_raw, reading
from xrec.ingest.rules import number_of
from xrec.ranking.rules import check_rules

_ITEMS, _USERS, _BLOCKED = "item_filters", "user_filters", "blocked_pairs"
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([ T].*)?$"

Faults = dict[str, tuple[Column, Column]]
"""What was expected, whether a row lacks it, and what it has instead."""


def require_feeds(settings: Settings) -> None:
    """Raise InputError where the settings name no feed, so that there is nothing to load."""
    filters = settings.filters
    if filters is None or (filters.items is None and filters.users is None and filters.blocked is None):
        raise InputError(
            "filters: found no file under items, users or blocked, expected one of them at least (see conf/example_filters.yaml)"
        )


def load_feeds(spark: SparkSession, settings: Settings, key: bytes | None) -> dict[str, DataFrame]:
    """The files that ``filters`` names, each as rows of its table; nothing where it names none.

    Users are pseudonyms where a ``key`` is given. The rules are checked as well: a wrong one stops the run here, not hours later.

    Raises
    ------
    SettingsError
        A rule cannot be asked.
    InputError
        A file cannot be read, is empty or lacks a column; or a row is malformed, has no key, a value of another type, or another
        value than another row of the same item or user.
    """
    filters = settings.filters
    if filters is None:
        return {}
    check_rules(spark, settings, filters)
    feeds = {}
    if filters.items is not None:
        feeds[_ITEMS] = _load_items(spark, filters.items)
    if filters.users is not None:
        feeds[_USERS] = _load_users(spark, filters.users, settings, key)
    if filters.blocked is not None:
        feeds[_BLOCKED] = _load_blocked(spark, filters.blocked, settings, key)
    return feeds


def describe_feeds(feeds: Mapping[str, DataFrame]) -> dict[str, str]:
    """Rows of each written feed, for the summary."""
    return {name: f"{rows.count():,} rows" for name, rows in feeds.items()}


def _load_items(spark: SparkSession, feed: ItemFeed) -> DataFrame:
    section = "filters.items"
    raw = read_raw(spark, feed.file, key=f"{section}.file")
    require_columns(raw, {f"{section}.item_id": feed.item_id, **_columns(feed.attributes, section)}, feed.file)
    values = _texts_and_values(spark, feed.attributes, section)
    rows = raw.select(C.MALFORMED, text_of(feed.item_id).alias(C.ITEM_ID), *values)
    faults = _faults(None, {f"an item in column '{feed.item_id}'": F.col(C.ITEM_ID)})
    faults |= _type_faults(feed.attributes, F.concat(F.lit(" of item "), F.col(C.ITEM_ID)))
    _check(rows, faults, feed.file, section, least=1)
    return _once(rows, [C.ITEM_ID], feed.attributes, feed.file, section)


def _load_users(spark: SparkSession, feed: UserFeed, settings: Settings, key: bytes | None) -> DataFrame:
    section = "filters.users"
    raw = read_raw(spark, feed.file, key=f"{section}.file")
    wanted = {f"{section}.user_id": feed.user_id} | ({f"{section}.platform": feed.platform} if feed.platform else {})
    wanted |= _columns(feed.attributes, section)
    require_columns(raw, wanted, feed.file, hide_names=key is not None)
    rows = raw.select(
        C.MALFORMED,
        _platform(feed.platform).alias(C.PLATFORM),
        text_of(feed.user_id).alias(C.USER_ID),
        *_texts_and_values(spark, feed.attributes, section),
    )
    faults = _faults(key, {f"a user in column '{feed.user_id}'": F.col(C.USER_ID)})
    faults |= _platform_faults(settings, feed.platform) | _type_faults(feed.attributes, F.lit(""))
    _check(rows, faults, feed.file, section, least=1)
    named = rows.withColumn(C.USER_ID, hidden(F.col(C.USER_ID), key))
    return _once(named, [C.PLATFORM, C.USER_ID], feed.attributes, feed.file, section)


def _load_blocked(spark: SparkSession, feed: BlockedPairs, settings: Settings, key: bytes | None) -> DataFrame:
    """An empty list is no error."""
    section = "filters.blocked"
    raw = read_raw(spark, feed.file, key=f"{section}.file")
    wanted = {f"{section}.user_id": feed.user_id, f"{section}.item_id": feed.item_id}
    wanted |= {f"{section}.platform": feed.platform} if feed.platform else {}
    require_columns(raw, wanted, feed.file, hide_names=key is not None)
    rows = raw.select(
        C.MALFORMED,
        _platform(feed.platform).alias(C.PLATFORM),
        text_of(feed.user_id).alias(C.USER_ID),
        text_of(feed.item_id).alias(C.ITEM_ID),
    )
    keys = {f"a user in column '{feed.user_id}'": C.USER_ID, f"an item in column '{feed.item_id}'": C.ITEM_ID}
    faults = _faults(key, {expected: F.col(name) for expected, name in keys.items()})
    _check(rows, faults | _platform_faults(settings, feed.platform), feed.file, section, least=0)
    pairs = rows.select(C.PLATFORM, hidden(F.col(C.USER_ID), key).alias(C.USER_ID), C.ITEM_ID)
    return pairs.distinct()


def _columns(attributes: Mapping[str, FilterAttribute], section: str) -> dict[str, str]:
    return {f"{section}.attributes.{name}.column": attribute.column for name, attribute in attributes.items()}


def _platform(name: str | None) -> Column:
    return F.lit("") if name is None else F.coalesce(text_of(name), F.lit(""))


def _texts_and_values(spark: SparkSession, attributes: Mapping[str, FilterAttribute], section: str) -> list[Column]:
    """Of each attribute the source's text, and the text that the tables have."""
    columns = []
    for name, attribute in attributes.items():
        check_time_format(spark, TimeFormat(format=attribute.format), key=f"{section}.attributes.{name}")
        columns += [text_of(attribute.column).alias(name + TEXT), value_of(attribute).alias(name)]
    return columns


def value_of(attribute: FilterAttribute) -> Column:
    """An attribute's text as the tables have it; null where there is none, or it is none of its type."""
    text = text_of(attribute.column)
    if attribute.type == "number":
        return number_of(text).cast("string")
    if attribute.type == "bool":
        return text.try_cast("boolean").cast("string")
    if attribute.type == "string":
        return text
    if attribute.format is not None:
        return F.try_to_timestamp(text, F.lit(attribute.format)).cast("date").cast("string")
    return F.when(text.rlike(_DATE), text.try_cast("date")).cast("string")


def _expected(attribute: FilterAttribute) -> str:
    words = {"number": "a number with a decimal point", "bool": "true or false (1 or 0, yes or no)", "string": "a text"}
    return words.get(attribute.type, f"a date such as {attribute.format or 'yyyy-MM-dd'}")


def _faults(key: bytes | None, owners: Mapping[str, Column]) -> Faults:
    line = _quoted(F.col(C.MALFORMED)) if key is None else F.lit(WITHHELD)
    faults = {"the well-formed rows of a table": (F.col(C.MALFORMED).isNotNull(), line)}
    return faults | {expected: (owner.isNull(), F.lit("nothing")) for expected, owner in owners.items()}


def _type_faults(attributes: Mapping[str, FilterAttribute], where: Column) -> Faults:
    return {
        f"{_expected(attribute)} in column '{attribute.column}'": (
            F.col(name + TEXT).isNotNull() & F.col(name).isNull(),
            F.concat(_quoted(F.col(name + TEXT)), where),
        )
        for name, attribute in attributes.items()
    }


def _platform_faults(settings: Settings, column: str | None) -> Faults:
    if column is None:
        return {}
    names = [source.log.platform for source in settings.sources]
    expected = (
        f"one of the platforms {listed(names)} in column '{column}', or nothing where the key is that of the lists"
    )
    return {expected: (~F.col(C.PLATFORM).isin("", *names), _quoted(F.col(C.PLATFORM)))}


def _quoted(text: Column) -> Column:
    return F.concat(F.lit("'"), text, F.lit("'"))


def _check(rows: DataFrame, faults: Faults, file: File, section: str, *, least: int) -> None:
    """Raise InputError with the first fault that a row has, and an example."""
    key = f"{section}.file"
    counts = [F.count_if(holds) for holds, _ in faults.values()]
    examples = [F.min(F.when(holds, found)) for holds, found in faults.values()]
    with reading(file, key=key):
        found = rows.agg(F.count("*"), *counts, *examples).first()
    assert found is not None
    num_rows, num_faults = found[0], len(faults)
    if num_rows < least:
        raise InputError(f"{key}.path: {file.path} holds no row (format {file.format}); expected at least one")
    for place, expected in enumerate(faults, start=1):
        if found[place]:
            raise InputError(
                f"{key}.path: found {found[place + num_faults]} in {file.path} ({found[place]:,} such rows of {num_rows:,}), "
                f"expected {expected}; mend the file: until then the last one stays in force"
            )


def _once(
    rows: DataFrame, keys: list[str], attributes: Mapping[str, FilterAttribute], file: File, section: str
) -> DataFrame:
    """One row a key, with the map ``attributes``; raises InputError where two rows of a key differ."""
    found = rows.select(*keys, *attributes).distinct()
    ranges = [F.to_json(side(F.struct(*attributes))) for side in (F.min, F.max)]
    twice = found.groupBy(*keys).agg(F.count("*").alias(C.NUM_ROWS), *ranges).where(F.col(C.NUM_ROWS) > 1).first()
    if twice is not None:
        whose = f"item {twice[C.ITEM_ID]}" if C.ITEM_ID in keys else "a user"
        raise InputError(
            f"{section}.file.path: found {whose} as {twice[-2]} and as {twice[-1]} in {file.path}, expected one row each; mend the "
            "file"
        )
    texts = [part for name in attributes for part in (F.lit(name), F.col(name))]
    return found.select(*keys, F.create_map(*texts).alias(C.ATTRIBUTES))
