"""What the catalogue says of an item, as numbers that torch reads; also of items that nobody had yet.

The words of an item's label in their order, each beginning of its category path, and how dear it is among those of its category
are known by a hash of theirs, so that no list of words has to be made, and items that come tomorrow are described in the same
numbers. An item that nobody bought has no price.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Catalogue, Sequence
from xrec.features.index import assign_dense_index
from xrec.features.sequence_files import NUM_HASHES

MAX_WORDS = 16
"""First words of a label that count."""
MAX_DEPTH = 6
"""First levels of a category path that count."""
PRICE_LEVELS = 5
"""Levels of price, the cheapest of a category first; as many of its items are in each."""

_LATELY = 0.1
"""The newest share of a fold's events by which it is said what items without history get."""
_BEFORE = "before"
_PRICE, _LEVEL = "price_of_item", "level"


def content_of(items: DataFrame, sequence: Sequence, interactions: DataFrame) -> DataFrame | None:
    """Rows of ``items`` to ``item_idx``, ``words``, ``paths``: hashes of the parts of ``sequence.item_content``; None: no part.

    The level of an item's price is one more of its ``paths``; the prices are those of a fold's ``interactions``.
    """
    parts = sequence.item_content
    if not parts:
        return None
    nothing = F.array().cast("array<int>")
    label = F.lower(F.coalesce(F.col(C.LABEL), F.lit("")))
    words = F.filter(F.split(label, r"(?U)\W+"), lambda word: F.length(word) > 1)
    path = F.slice(F.coalesce(F.col(C.CATEGORY_PATH), F.array().cast("array<string>")), 1, MAX_DEPTH)
    numbers = F.when(F.size(path) > 0, F.sequence(F.lit(1), F.size(path))).otherwise(nothing)
    beginnings = F.transform(numbers, lambda number: F.concat_ws("/", F.slice(path, F.lit(1), number)))
    paths = _hashes(beginnings) if "path" in parts else nothing
    if "price" in parts:
        items = items.join(price_levels(items, interactions), C.ITEM_IDX, how="left")
        level = F.array(F.concat(F.lit("price level "), _LEVEL))
        paths = F.concat(paths, F.when(F.col(_LEVEL).isNotNull(), _hashes(level)).otherwise(nothing))
    return items.select(
        C.ITEM_IDX,
        (_hashes(F.slice(words, 1, MAX_WORDS)) if "text" in parts else nothing).alias(C.WORDS),
        paths.alias(C.PATHS),
    )


def price_levels(items: DataFrame, interactions: DataFrame) -> DataFrame:
    """A fold's interactions to (``item_idx``, ``level``): 1 for the cheapest of the item's category, :data:`PRICE_LEVELS` at most.

    An item's price is what was spent on it by what was bought of it; the only one of its category is in the middle.
    """
    prices = interactions.groupBy(C.ITEM_IDX).agg((F.sum(C.SPEND) / F.nullif(F.sum(C.UNITS), F.lit(0))).alias(_PRICE))
    priced = prices.where(F.col(_PRICE) > 0).join(items.select(C.ITEM_IDX, C.CATEGORY), C.ITEM_IDX, how="inner")
    of_category = Window.partitionBy(C.CATEGORY)
    place = F.row_number().over(of_category.orderBy(_PRICE, C.ITEM_IDX)) - 0.5
    share = place / F.count("*").over(of_category)
    return priced.select(C.ITEM_IDX, (F.floor(share * PRICE_LEVELS) + 1).cast("int").alias(_LEVEL))


def _hashes(words: Column) -> Column:
    return F.transform(words, lambda word: (F.pmod(F.xxhash64(word), F.lit(NUM_HASHES)) + 1).cast("int"))


def offered_then(catalogue: Catalogue, interactions: DataFrame) -> DataFrame | None:
    """The items (``item_idx``) that a fold may know although hardly anybody had them; None: all.

    Where the catalogue is columns of the log, an item is in it from its first event on: those of the fold's ``interactions``. A
    file says of no item since when it is sold.
    """
    return None if catalogue.file is not None else interactions.select(C.ITEM_IDX).distinct()


def cold_items(
    known: DataFrame, eligible: DataFrame, content: DataFrame, *, num_buckets: int, offered: DataFrame | None = None
) -> DataFrame:
    """Items that may be recommended, are not ``known``, and have a word: ``item_idx``, ``token`` (-1, -2, ...) and the content.

    Only those ``offered``, if that is given (:func:`offered_then`).
    """
    if offered is not None:
        eligible = eligible.join(offered, C.ITEM_IDX, how="left_semi")
    described = content.where((F.size(C.WORDS) > 0) | (F.size(C.PATHS) > 0))
    cold = eligible.join(known.select(C.ITEM_IDX), C.ITEM_IDX, how="left_anti").join(described, C.ITEM_IDX, how="inner")
    indexed = assign_dense_index(cold, key=C.ITEM_IDX, index=C.TOKEN, num_buckets=num_buckets)
    tokens = indexed.select(C.ITEM_IDX, (-1 - F.col(C.TOKEN)).alias(C.TOKEN))
    return cold.join(tokens, C.ITEM_IDX, how="inner")


def cold_shares(training_events: DataFrame, sequence: Sequence) -> dict[str, float]:
    """By fold, the share of its newest tenth of events that went to items which fewer than ``min_buyers`` users had before.

    Empty where ``sequence.item_content`` is, because only items known by content are given a share.
    Half an event is added, so that no share is 0 because few events were seen. Where nothing lies before that tenth, as where all
    events have one time, nothing is known of what was cold, and no event counts as such.
    """
    if not sequence.item_content:
        return {}
    cuts = training_events.groupBy(C.FOLD).agg(
        F.percentile_approx(F.col(C.EVENT_TS).cast("double"), 1 - _LATELY).alias("cut")
    )
    events = training_events.join(F.broadcast(cuts), C.FOLD, how="inner")
    is_late = F.col(C.EVENT_TS).cast("double") >= F.col("cut")
    by_item = events.groupBy(C.FOLD, C.ITEM_IDX).agg(
        F.countDistinct(F.when(~is_late, F.col(C.USER_IDX))).alias(_BEFORE), F.count_if(is_late).alias("late")
    )
    late = F.sum("late")
    cold = F.sum(F.when(F.col(_BEFORE) < sequence.min_buyers, F.col("late")).otherwise(0))
    cold = F.when(F.max(_BEFORE) > 0, cold).otherwise(0)
    shares = by_item.groupBy(C.FOLD).agg(((cold + 0.5) / (late + 1)).alias("share"))
    return {row[C.FOLD]: float(row["share"]) for row in shares.collect()}
