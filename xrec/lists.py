"""A list: what a source proposes to a user in a scope, best first, in one row.

The columns ``items`` (array<int>, item indexes) and ``scores`` (array<float>) are of one length; an item's place in them is its
rank. Lists are moved, checked and written whole, hundreds of items in a row. What asks of few items looks them up
(:func:`rank_of`), what needs every item takes the lists apart where they lie (:func:`ranked_rows`).
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from xrec import columns as C

LIST_COLUMNS = f"{C.ITEMS} array<int>, {C.SCORES} array<float>"
_PLACE, _BEST, _FALLING = "place", "best", "falling"


def ranked_rows(lists: DataFrame, *, k: int | None = None) -> DataFrame:
    """Lists to one row an item: their other columns, ``item_idx``, ``score`` (where they have any), ``rank`` from 1.

    Of each list the first ``k`` items (default: all). The rows lie as the lists did: no shuffle.
    """
    others = [name for name in lists.columns if name not in (C.ITEMS, C.SCORES)]
    scores = [name for name in lists.columns if name == C.SCORES]
    placed = shortened(lists, k).select(*others, *scores, F.posexplode(C.ITEMS).alias(_PLACE, C.ITEM_IDX))
    score = [F.get(name, F.col(_PLACE)).alias(C.SCORE) for name in scores]
    return placed.select(*others, C.ITEM_IDX, *score, (F.col(_PLACE) + 1).alias(C.RANK))


def best_lists(rows: DataFrame, keys: Sequence[str], *, k: int) -> DataFrame:
    """Rows of ``item_idx`` and ``score`` to one list a key: the K highest scores, ties by item index."""
    falling = F.struct((-F.col(C.SCORE)).alias(_FALLING), C.ITEM_IDX)
    best = F.slice(F.sort_array(F.collect_list(falling)), 1, k)
    return (
        rows.groupBy(*keys)
        .agg(best.alias(_BEST))
        .select(
            *keys,
            F.col(_BEST)[C.ITEM_IDX].alias(C.ITEMS),
            F.transform(F.col(_BEST)[_FALLING], lambda score: -score).alias(C.SCORES),
        )
    )


def rank_of(item: str) -> Column:
    """The rank of an item in the list of its row; null where it is not in it."""
    return F.nullif(F.array_position(C.ITEMS, F.col(item)).cast("int"), F.lit(0))


def shortened(lists: DataFrame, k: int | None) -> DataFrame:
    """Lists with their first ``k`` items alone (None: all)."""
    if k is None:
        return lists
    return lists.withColumns({name: first(name, k) for name in (C.ITEMS, C.SCORES) if name in lists.columns})


def first(column: str, k: int) -> Column:
    """The first ``k`` values of an array."""
    return F.slice(column, 1, k)
