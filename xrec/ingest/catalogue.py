"""The item catalogue: from a file of its own, or from columns of the log."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from xrec import columns as C
from xrec.config import Catalogue, File, Settings
from xrec.ingest.mapping import plausible, require_columns, text_of, timestamp_of
from xrec.ingest.reader import SOURCE_TYPE, InputError, count_rows, naming_platform, read_raw

FROM_FILE = "catalogue:file"
"""Owns the entries of a catalogue file; no delivery can have this name."""
_NO_PLATFORM = "all"
_LIST, _PATHS = "array<", "array<array<"
"""How the types of lists, and of lists of paths, begin."""

_KEY = "catalogue.file"
_OLDEST = 2**62
"""An age in microseconds beyond every other: a row without a time is older than any with one."""


def load_entries(raw_log: DataFrame, settings: Settings) -> tuple[DataFrame, int]:
    """The catalogue's rows, or the raw log's, to what they say of items: rows of ``catalogue_entries``, and the rows left out.

    The path runs from the root down and stops at the first missing level; an item without a category has an empty one.
    Malformed rows of a catalogue file and its rows without an item are left out and counted; a log's rows are counted
    elsewhere. The entries belong to the delivery, or, of a catalogue file, to :data:`FROM_FILE`.

    Raises
    ------
    InputError
        The file cannot be read, is empty, lacks a column, or no row names an item.
    """
    catalogue = settings.catalogue
    raw = raw_log
    if catalogue.file is not None:
        raw = read_raw(raw_log.sparkSession, catalogue.file, key=_KEY)
    file = catalogue.file or settings.log.file
    item_id = catalogue.item_id or settings.log.columns.item_id
    wanted = {"catalogue.item_id" if catalogue.item_id else "log.columns.item_id": item_id}
    wanted |= {
        _numbered("catalogue.category", n, catalogue.category): name for n, name in enumerate(catalogue.category)
    }
    wanted |= {_numbered("catalogue.label", n, catalogue.label): name for n, name in enumerate(catalogue.label)}
    wanted |= {"catalogue.updated_ts": catalogue.updated_ts} if catalogue.updated_ts else {}
    require_columns(raw, wanted, file)
    kind = _kind_of_category(raw, catalogue, file)
    names_an_item = F.col(C.MALFORMED).isNull() & text_of(item_id).isNotNull()
    num_left_out = 0
    if catalogue.file is not None:
        num_left_out = count_rows(raw, file, key=_KEY) - count_rows(raw.where(names_an_item), file, key=_KEY, least=0)
    rows = raw.where(names_an_item).select(
        text_of(item_id).alias(C.ITEM_ID),
        F.explode(category_paths_of(catalogue, kind)).alias(C.CATEGORY_PATH),
        F.coalesce(label_of(catalogue), F.lit("")).alias(C.LABEL),
        _updated_ts(settings).alias(C.UPDATED_TS),
    )
    if catalogue.file is not None and rows.isEmpty():
        raise InputError(
            f"{next(iter(wanted))}: column '{item_id}' of {file.path} has no value in any well-formed row; "
            "expected the items' keys"
        )
    entries = rows.groupBy(C.ITEM_ID, C.CATEGORY_PATH, C.LABEL).agg(
        F.max(C.UPDATED_TS).alias(C.UPDATED_TS), F.count("*").alias(C.NUM_ROWS)
    )
    return entries.withColumns({name: F.lit(value) for name, value in owner_of_entries(settings).items()}), num_left_out


def load_entries_of_all(
    raws: Sequence[tuple[Settings, DataFrame]],
) -> tuple[list[tuple[dict[str, Any], DataFrame]], int]:
    """Owner and entries of each platform's log, or once of the catalogue file that all share, and the rows left out."""
    said, num_left_out = [], 0
    for source, raw in raws:
        with naming_platform(source):
            entries, num_left_out = load_entries(raw, source)
        said.append((owner_of_entries(source), entries))
        if source.catalogue.file is not None:
            break
    return said, num_left_out


def owner_of_entries(settings: Settings) -> dict[str, Any]:
    """Who owns these entries: a catalogue file is always the newest whole one, a log's columns are a platform's delivery."""
    if settings.catalogue.file is not None:
        return {C.DELIVERY_ID: FROM_FILE, C.PLATFORM: _NO_PLATFORM}
    return {C.DELIVERY_ID: settings.log.delivery_id, C.PLATFORM: settings.log.platform}


def catalogue_of(entries: DataFrame, settings: Settings) -> DataFrame:
    """The entries of the catalogue file, or of all deliveries, to one row an item: the columns of the table ``catalogue``.

    An item with several paths gets, of those that are not empty, the latest one (by ``catalogue.updated_ts``, or by the log's
    times), then the most frequent, then the first by name; ``other_paths`` keeps the others. Its label is the most frequent
    of that path, ties by name.
    """
    is_from_file = F.col(C.DELIVERY_ID) == FROM_FILE
    entries = entries.where(is_from_file if settings.catalogue.file is not None else ~is_from_file)
    newest = F.max(C.UPDATED_TS).alias(C.UPDATED_TS)
    labels = entries.groupBy(C.ITEM_ID, C.CATEGORY_PATH, C.LABEL).agg(F.sum(C.NUM_ROWS).alias(C.NUM_ROWS), newest)
    label = F.nullif(C.LABEL, F.lit(""))
    best_label = F.min(F.struct(label.isNull(), -F.col(C.NUM_ROWS), label.alias(C.LABEL)))
    paths = labels.groupBy(C.ITEM_ID, C.CATEGORY_PATH).agg(
        F.sum(C.NUM_ROWS).alias(C.NUM_ROWS), newest, best_label[C.LABEL].alias(C.LABEL)
    )
    is_empty = F.size(C.CATEGORY_PATH) == 0
    age = F.coalesce(-F.unix_micros(C.UPDATED_TS), F.lit(_OLDEST))
    best = F.min(F.struct(is_empty, age, -F.col(C.NUM_ROWS), F.col(C.CATEGORY_PATH).alias(C.CATEGORY_PATH), C.LABEL))
    found = paths.groupBy(C.ITEM_ID).agg(
        best.alias("best"), F.collect_list(F.when(~is_empty, F.col(C.CATEGORY_PATH))).alias("all_paths")
    )
    chosen = F.col("best")[C.CATEGORY_PATH]
    others = F.sort_array(F.array_except("all_paths", F.array(chosen)))
    return found.select(
        C.ITEM_ID, chosen.alias(C.CATEGORY_PATH), F.col("best")[C.LABEL].alias(C.LABEL), others.alias(C.OTHER_PATHS)
    )


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


def _updated_ts(settings: Settings) -> Column:
    """When a raw row was written; null where nobody knows."""
    catalogue, log = settings.catalogue, settings.log
    if catalogue.updated_ts is not None:
        return plausible(timestamp_of(text_of(catalogue.updated_ts), catalogue.time))
    if catalogue.file is not None:
        return F.lit(None).cast("timestamp")
    return plausible(timestamp_of(text_of(log.columns.event_ts), log.time))


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


def _kind_of_category(raw: DataFrame, catalogue: Catalogue, file: File) -> str:
    """The type of the category column in the source; raises InputError where it is a list and nobody says of what."""
    source_row = raw.schema[C.SOURCE_ROW].dataType
    assert isinstance(source_row, StructType)
    kinds = {name: str(source_row[name].metadata.get(SOURCE_TYPE, "string")) for name in catalogue.category}
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
    return kinds[catalogue.category[0]]


def label_of(catalogue: Catalogue) -> Column:
    """The label columns' texts, joined by blanks; null where all are empty or none is named."""
    return F.nullif(F.concat_ws(" ", *[text_of(name) for name in catalogue.label]), F.lit(""))


def _numbered(key: str, n: int, names: tuple[str, ...]) -> str:
    return key if len(names) == 1 else f"{key}[{n}]"
