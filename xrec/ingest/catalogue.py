"""The item catalogue: from a file of its own, or from columns of the log."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Catalogue, Settings
from xrec.ingest.mapping import require_columns, text_of
from xrec.ingest.reader import InputError, count_rows, read_raw

_KEY = "catalogue.file"


def load_catalogue(raw_log: DataFrame, settings: Settings) -> DataFrame:
    """The catalogue's rows, or the raw log's, to an item a row: ``item_id``, ``category_path``, ``label``.

    The path runs from the root down and stops at the first missing level; an item without a category has an empty one.
    An item with several paths gets the most frequent one that is not empty, ties by name, and the most frequent label
    of that path, ties by name. Malformed rows and rows without an item are left out.

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
    require_columns(raw, wanted, file)
    if catalogue.file is not None:
        count_rows(raw, file, key=_KEY)
    rows = raw.where(F.col(C.MALFORMED).isNull()).select(
        text_of(item_id).alias(C.ITEM_ID),
        category_path_of(catalogue).alias(C.CATEGORY_PATH),
        label_of(catalogue).alias(C.LABEL),
    )
    rows = rows.where(F.col(C.ITEM_ID).isNotNull())
    if catalogue.file is not None and rows.first() is None:
        raise InputError(
            f"{next(iter(wanted))}: column '{item_id}' of {file.path} has no value in any well-formed row; "
            "expected the items' keys"
        )
    return one_row_per_item(rows)


def one_row_per_item(rows: DataFrame) -> DataFrame:
    """Rows of (item, path, label) to one row an item; see :func:`load_catalogue` for which one."""
    labels = rows.groupBy(C.ITEM_ID, C.CATEGORY_PATH, C.LABEL).agg(F.count("*").alias("num_rows"))
    best_label = F.min(F.struct(F.col(C.LABEL).isNull(), -F.col("num_rows"), F.col(C.LABEL).alias(C.LABEL)))
    paths = labels.groupBy(C.ITEM_ID, C.CATEGORY_PATH).agg(
        F.sum("num_rows").alias("num_rows"), best_label[C.LABEL].alias(C.LABEL)
    )
    best = F.min(
        F.struct(
            F.size(C.CATEGORY_PATH) == 0, -F.col("num_rows"), F.col(C.CATEGORY_PATH).alias(C.CATEGORY_PATH), C.LABEL
        )
    )
    chosen = paths.groupBy(C.ITEM_ID).agg(best.alias("best"))
    return chosen.select(
        C.ITEM_ID, F.col("best")[C.CATEGORY_PATH].alias(C.CATEGORY_PATH), F.col("best")[C.LABEL].alias(C.LABEL)
    )


def category_path_of(catalogue: Catalogue) -> Column:
    """The category path of a raw row, from the root down to the last level before a missing one."""
    text = text_of(catalogue.category[0])
    if catalogue.prefix_lengths:
        prefixes = [F.left(text, F.lit(length)) for length in sorted(catalogue.prefix_lengths)]
        # A code that is shorter than a prefix ends the path with itself, once.
        levels = F.array_distinct(F.array(*prefixes))
    elif catalogue.separator:
        pieces = F.split(text, rf"\Q{catalogue.separator}\E")
        levels = F.transform(pieces, lambda piece: F.nullif(F.trim(piece), F.lit("")))
    else:
        levels = F.array(*[text_of(name) for name in catalogue.category])
    first_missing = F.array_position(F.transform(levels, lambda level: level.isNull()), F.lit(True))
    complete = F.when(first_missing == 0, levels).otherwise(F.slice(levels, 1, (first_missing - 1).cast("int")))
    return F.coalesce(complete, F.array().cast("array<string>"))


def label_of(catalogue: Catalogue) -> Column:
    """The label columns' texts, joined by blanks; null where all are empty or none is named."""
    return F.nullif(F.concat_ws(" ", *[text_of(name) for name in catalogue.label]), F.lit(""))


def _numbered(key: str, n: int, names: tuple[str, ...]) -> str:
    return key if len(names) == 1 else f"{key}[{n}]"
