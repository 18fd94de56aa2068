"""The item catalogue: from a file of its own, or from columns of the log."""

from __future__ import annotations

from functools import partial
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Catalogue, Settings
from xrec.ingest.mapping import check_time_format, plausible, require_columns, text_of, time_in, timestamp_of
from xrec.ingest.reader import InputError, count_rows, read_raw, source_type

OF_ITEM = "of_item"
"""A column of :func:`said_of_item`."""
_ALL_PATHS, _NUM_SAID = "all_paths", "num_said"
FROM_FILE = "catalogue:file"
"""Owns the entries of a catalogue file, always those of the newest whole one; no delivery can have this name."""
OWNER_OF_FILE: dict[str, Any] = {C.DELIVERY_ID: FROM_FILE, C.PLATFORM: "all"}
_LIST, _PATHS = "array<", "array<array<"
"""How the types of lists, and of lists of paths, begin."""

_KEY = "catalogue.file"
_OLDEST = 2**62
"""An age in microseconds beyond every other: a row without a time is older than any with one."""


def load_entries(spark: SparkSession, settings: Settings) -> tuple[DataFrame, int] | None:
    """The catalogue's file to what it says of items: rows of ``catalogue_entries``, and the rows left out.

    None where the catalogue is columns of the log. Malformed rows and rows without an item are left out and counted.

    Raises
    ------
    InputError
        The file cannot be read, is empty, or no row names an item; or see :func:`check_columns`.
    """
    catalogue = settings.catalogue
    if catalogue.file is None:
        return None
    raw = read_raw(spark, catalogue.file, key=_KEY)
    check_columns(raw, settings)
    key, item_id = _item_column(settings)
    named = raw.where(F.col(C.MALFORMED).isNull() & text_of(item_id).isNotNull())
    num_named = count_rows(named, catalogue.file, key=_KEY, least=0)
    num_left_out = count_rows(raw, catalogue.file, key=_KEY) - num_named
    if not num_named:
        raise InputError(
            f"{key}: column '{item_id}' of {catalogue.file.path} has no value in any well-formed row; expected the items' keys"
        )
    entries = entries_of(named.select(said_of_item(raw, settings).alias(OF_ITEM)))
    return entries.withColumns({name: F.lit(value) for name, value in OWNER_OF_FILE.items()}), num_left_out


def mapped_columns(settings: Settings) -> set[str]:
    """The columns of the raw log that the settings name: its own, and the catalogue's where that has no file."""
    catalogue, names = settings.catalogue, {*settings.log.columns.model_dump().values()}
    if catalogue.file is None:
        names |= {*catalogue.category, *catalogue.label, catalogue.item_id, catalogue.updated_ts}
    return names - {None}


def check_columns(raw: DataFrame, settings: Settings) -> None:
    """Raise InputError where the catalogue's file, or the raw log, lacks a column, or nobody says what one holds."""
    catalogue = settings.catalogue
    file = catalogue.file or settings.log.file
    wanted = dict([_item_column(settings)])
    wanted |= {
        _numbered("catalogue.category", n, catalogue.category): name for n, name in enumerate(catalogue.category)
    }
    wanted |= {_numbered("catalogue.label", n, catalogue.label): name for n, name in enumerate(catalogue.label)}
    wanted |= {"catalogue.updated_ts": catalogue.updated_ts} if catalogue.updated_ts else {}
    is_log_of_persons = catalogue.file is None and settings.privacy.pseudonymise
    require_columns(raw, wanted, file, hide_names=is_log_of_persons)
    check_time_format(raw.sparkSession, catalogue.time, key="catalogue.time")
    kinds = {name: source_type(raw, name) for name in catalogue.category}
    lists = [name for name, kind in kinds.items() if kind.startswith(_LIST)]
    if lists and len(kinds) > 1:
        raise InputError(
            f"catalogue.category: column '{lists[0]}' of {file.path} holds lists beside other columns, expected one column"
        )
    if lists and catalogue.list_of is None and not kinds[lists[0]].startswith(_PATHS):
        raise InputError(
            f"catalogue.category: column '{lists[0]}' of {file.path} holds lists, expected to be told of what: set "
            "catalogue.list_of to levels (a list is one path, from the root down) or to categories (the item has several)"
        )


def said_of_item(rows: DataFrame, settings: Settings) -> Column:
    """What a raw row of the catalogue's file, or a row of the log after the rules, says of its item.

    The path runs from the root down and stops at the first missing level; an item without a category has an empty one.
    """
    catalogue = settings.catalogue
    return F.struct(
        text_of(_item_column(settings)[1]).alias(C.ITEM_ID),
        category_paths_of(catalogue, source_type(rows, catalogue.category[0])).alias(_ALL_PATHS),
        F.coalesce(label_of(catalogue), F.lit("")).alias(C.LABEL),
        _updated_ts(rows, catalogue).alias(C.UPDATED_TS),
    )


def said_by(of_item: Column) -> Column:
    """What a row says of its item as the array that ``events`` keeps: the hash of each row of ``catalogue_entries``."""
    return F.transform(of_item[_ALL_PATHS], lambda path: F.xxhash64(of_item[C.ITEM_ID], path, of_item[C.LABEL]))


def entries_of(rows: DataFrame) -> DataFrame:
    """Rows with what each says of its item (``of_item``) to the columns of ``catalogue_entries`` without their owner's."""
    said = rows.select(f"{OF_ITEM}.*").where(F.col(C.ITEM_ID).isNotNull())
    paths = said.select(C.ITEM_ID, F.explode(_ALL_PATHS).alias(C.CATEGORY_PATH), C.LABEL, C.UPDATED_TS)
    return paths.groupBy(C.ITEM_ID, C.CATEGORY_PATH, C.LABEL).agg(
        F.max(C.UPDATED_TS).alias(C.UPDATED_TS), F.count("*").alias(C.NUM_ROWS)
    )


def catalogue_of(entries: DataFrame, settings: Settings, events: DataFrame | None = None) -> DataFrame:
    """The entries of the catalogue file, or of all deliveries, to one row an item: the columns of the table ``catalogue``.

    An item with several paths gets, of those that are not empty, the latest one (by ``catalogue.updated_ts``, or by the log's
    times), then the most frequent, then the first by name; ``other_paths`` keeps the others. Its label is the most frequent
    of that path, ties by name. Frequent is what many rows of the file say or, without a file, many of the ``events``, each
    counted once in however many deliveries it came.
    """
    is_from_file = F.col(C.DELIVERY_ID) == FROM_FILE
    entries = entries.where(is_from_file if settings.catalogue.file is not None else ~is_from_file)
    newest = F.max(C.UPDATED_TS).alias(C.UPDATED_TS)
    labels = entries.groupBy(C.ITEM_ID, C.CATEGORY_PATH, C.LABEL).agg(F.sum(C.NUM_ROWS).alias(C.NUM_ROWS), newest)
    # Events that an earlier version of xrec wrote say nothing; the entries of their deliveries have counts of their own.
    if events is not None and C.SAID in events.columns:
        labels = _with_events(labels, events)
    label = F.nullif(C.LABEL, F.lit(""))
    best_label = F.min(F.struct(label.isNull(), -F.col(C.NUM_ROWS), label.alias(C.LABEL)))
    paths = labels.groupBy(C.ITEM_ID, C.CATEGORY_PATH).agg(
        F.sum(C.NUM_ROWS).alias(C.NUM_ROWS), newest, best_label[C.LABEL].alias(C.LABEL)
    )
    is_empty = F.size(C.CATEGORY_PATH) == 0
    age = F.coalesce(-F.unix_micros(C.UPDATED_TS), F.lit(_OLDEST))
    best = F.min(F.struct(is_empty, age, -F.col(C.NUM_ROWS), F.col(C.CATEGORY_PATH).alias(C.CATEGORY_PATH), C.LABEL))
    found = paths.groupBy(C.ITEM_ID).agg(
        best.alias("best"), F.collect_list(F.when(~is_empty, F.col(C.CATEGORY_PATH))).alias(_ALL_PATHS)
    )
    chosen = F.col("best")[C.CATEGORY_PATH]
    others = F.sort_array(F.array_except(_ALL_PATHS, F.array(chosen)))
    return found.select(
        C.ITEM_ID, chosen.alias(C.CATEGORY_PATH), F.col("best")[C.LABEL].alias(C.LABEL), others.alias(C.OTHER_PATHS)
    )


def _with_events(labels: DataFrame, events: DataFrame) -> DataFrame:
    """What is said of items, with the events that say so added to ``num_rows``, where something else is said of the item too."""
    hashed = labels.withColumn(C.SAID, F.xxhash64(C.ITEM_ID, C.CATEGORY_PATH, C.LABEL))
    num_said = F.count("*").over(Window.partitionBy(C.ITEM_ID))
    contested = hashed.withColumn(_NUM_SAID, num_said).where(F.col(_NUM_SAID) > 1).select(C.SAID)
    said = events.select(C.EVENT_ID, F.explode(C.SAID).alias(C.SAID)).join(contested, C.SAID, how="left_semi")
    counts = said.distinct().groupBy(C.SAID).agg(F.count("*").alias(C.NUM_EVENTS))
    num_rows = F.coalesce(C.NUM_ROWS, F.lit(0)) + F.coalesce(C.NUM_EVENTS, F.lit(0))
    return hashed.join(counts, C.SAID, how="left").withColumn(C.NUM_ROWS, num_rows)


def describe_catalogue(catalogue: DataFrame, num_left_out: int) -> dict[str, str]:
    """Conflicts of a written catalogue, and the rows left out, for the summary; nothing where there are none."""
    in_conflict = catalogue.where(F.size(C.OTHER_PATHS) > 0)
    found = in_conflict.agg(F.count("*"), F.min(F.struct(C.ITEM_ID, C.CATEGORY_PATH, C.OTHER_PATHS))).first()
    assert found is not None
    figures = {"catalogue_rows_left_out": f"{num_left_out:,} (malformed, or without an item)"} if num_left_out else {}
    if found[0]:
        item, chosen, others = found[1]
        paths = "; ".join(" > ".join(path) for path in others[:3])
        figures["items_with_several_categories"] = (
            f"{found[0]:,} (see other_paths in the table catalogue), such as {item}: {' > '.join(chosen)}, not {paths}"
        )
    return figures


def _item_column(settings: Settings) -> tuple[str, str]:
    """The settings key of the item's column, and its name."""
    item_id = settings.catalogue.item_id
    return ("log.columns.item_id", settings.log.columns.item_id) if item_id is None else ("catalogue.item_id", item_id)


def _updated_ts(rows: DataFrame, catalogue: Catalogue) -> Column:
    """When a row was written; null where nobody knows."""
    if catalogue.updated_ts is not None:
        time = time_in(rows, catalogue.updated_ts, catalogue.time)
        return plausible(timestamp_of(text_of(catalogue.updated_ts), time))
    return F.lit(None).cast("timestamp") if catalogue.file is not None else F.col(C.EVENT_TS)


def category_paths_of(catalogue: Catalogue, kind: str) -> Column:
    """The category paths of a raw row, each from the root down to the last level before a missing one; at least one.

    Parameters
    ----------
    kind
        The type that the (first) category column has in the source, as Spark writes it: a list is ``array<...>``.
    """
    text = text_of(catalogue.category[0])
    if kind.startswith(_PATHS):
        paths = F.transform(F.from_json(text, "array<array<string>>"), _until_missing)
    elif kind.startswith(_LIST) and catalogue.list_of == "levels":
        paths = F.array(_until_missing(F.from_json(text, "array<string>")))
    elif kind.startswith(_LIST):
        paths = F.transform(F.from_json(text, "array<string>"), partial(_path_of, catalogue))
    elif catalogue.list_separator:
        paths = F.transform(F.split(text, rf"\Q{catalogue.list_separator}\E"), partial(_path_of, catalogue))
    elif len(catalogue.category) > 1:
        paths = F.array(_until_missing(F.array(*[text_of(name) for name in catalogue.category])))
    else:
        paths = F.array(_path_of(catalogue, text))
    known = F.array_distinct(F.filter(paths, lambda path: F.size(path) > 0))
    return F.when(F.size(known) > 0, known).otherwise(F.array(F.array().cast("array<string>")))


def _path_of(catalogue: Catalogue, text: Column) -> Column:
    """The path that one text stands for."""
    if catalogue.prefix_lengths:
        code = F.trim(text)
        prefixes = [F.left(code, F.lit(length)) for length in sorted(catalogue.prefix_lengths)]
        # A code that is shorter than a prefix ends the path with itself, once.
        return _until_missing(F.array_distinct(F.array(*prefixes)))
    if catalogue.separator:
        return _until_missing(F.split(text, rf"\Q{catalogue.separator}\E"))
    return _until_missing(F.array(text))


def _until_missing(levels: Column) -> Column:
    """The levels, trimmed, down to the last before one that is empty or null; an empty path where there are no levels."""
    levels = F.transform(levels, lambda level: F.nullif(F.trim(level), F.lit("")))
    first_missing = F.array_position(F.transform(levels, lambda level: level.isNull()), F.lit(True))
    complete = F.when(first_missing == 0, levels).otherwise(F.slice(levels, 1, (first_missing - 1).cast("int")))
    return F.coalesce(complete, F.array().cast("array<string>"))


def label_of(catalogue: Catalogue) -> Column:
    """The label columns' texts, joined by blanks; null where all are empty or none is named."""
    return F.nullif(F.concat_ws(" ", *[text_of(name) for name in catalogue.label]), F.lit(""))


def _numbered(key: str, n: int, names: tuple[str, ...]) -> str:
    return key if len(names) == 1 else f"{key}[{n}]"
