"""Neighbours of what a user had, to his top K: score(u, j) = sum over his profile's i of weight(u, i) similarity(i, j).

A profile's i is an item (item-kNN, transitions), a category, another user (user-kNN) or a word (content); j is an item that may
be recommended. Only positive scores count. Array names carry their shape: U users of a block, P entries of their profiles, E all
entries that may be (the i), S similarities, I items that may be recommended, T of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from scipy import sparse

from xrec import columns as C
from xrec.ranking.topk import (
    Array,
    ItemBlock,
    TopItems,
    build_masks,
    flatten,
    map_user_blocks,
    masked_by,
    values_of,
)
from xrec.storage.shared import SharedFolder, SharedRows

if TYPE_CHECKING:  # a task imports this module, and need not import the settings
    from xrec.config import Ranking

PROFILE, PROFILE_WEIGHTS = "profile", "profile_weights"
PROFILES_SCHEMA = f"{C.USER_IDX} int, {C.PROFILE_IDX} int, {C.WEIGHT} double"
PROFILES_ARROW = pa.schema({C.USER_IDX: pa.int32(), C.PROFILE_IDX: pa.int32(), C.WEIGHT: pa.float64()})
EDGES_SCHEMA = f"{C.PROFILE_IDX} int, {C.NEIGHBOUR_IDX} int, {C.SIMILARITY} float"
EDGES_ARROW = pa.schema({C.PROFILE_IDX: pa.int32(), C.NEIGHBOUR_IDX: pa.int32(), C.SIMILARITY: pa.float32()})
USERS_A_TILE = 128


def heaviest_of(interactions: DataFrame, max_items_per_user: int) -> DataFrame:
    """A fold's interactions to (``user_idx``, ``item_idx``): each user's heaviest, ties by item, at most so many."""
    heaviest_first = Window.partitionBy(C.USER_IDX).orderBy(F.desc(C.WEIGHT), C.ITEM_IDX)
    return (
        interactions.select(C.USER_IDX, C.ITEM_IDX, F.row_number().over(heaviest_first).alias(C.RANK))
        .where(F.col(C.RANK) <= max_items_per_user)
        .select(C.USER_IDX, C.ITEM_IDX)
    )


def score_profiles(
    users: DataFrame,
    profiles: DataFrame,
    neighbours: DataFrame,
    eligible: DataFrame,
    ranking: Ranking,
    folder: SharedFolder,
) -> DataFrame:
    """Each (``scope``, ``user_idx``)'s best allowed items by the summed similarity to his profile, masked before selection.

    Lists (``scope``, ``user_idx``, ``items``, ``scores``). Each Python process holds the neighbours of the eligible
    items: 12 bytes each.

    Parameters
    ----------
    users
        One row a (``scope``, ``user_idx``), as :func:`xrec.ranking.eligibility.users_of` gives them.
    profiles
        One row a (``user_idx``, ``profile_idx``), with ``weight`` (double).
    neighbours
        One row a (``profile_idx``, ``neighbour_idx``), with ``similarity`` (float).
    """
    # Not joined by Spark: it cannot know how many neighbours come out of Python, takes them for few and broadcasts them.
    edges, items = folder.share(neighbours), folder.share(masked_by(eligible))
    tile_items, k = ranking.tile_items, ranking.candidates_per_source

    def select(batch: pa.RecordBatch) -> TopItems:
        from xrec.generators.compiled import sum_tile  # noqa: PLC0415 - numba takes a second, and most tasks need none

        similar = _read_similar(edges, items)
        (row, entry), (_, weight) = flatten(batch.column(PROFILE)), flatten(batch.column(PROFILE_WEIGHTS))
        known = entry < len(similar.first_E) - 1
        row_P, entry_P, weight_P = row[known], entry[known], weight[known]
        first_U = np.searchsorted(row_P, np.arange(batch.num_rows + 1))
        next_P, last_P = similar.first_E[entry_P], similar.first_E[entry_P + 1]

        def score(start: int, stop: int) -> Array:
            sum_UT = np.empty((batch.num_rows, stop - start))
            sum_tile(first_U, weight_P, next_P, last_P, similar.target_S, similar.similarity_S, start, sum_UT)
            return sum_UT

        return top_of_tiles(batch, similar.targets, score, tile_items=tile_items, k=k)

    return map_user_blocks(
        users.join(as_lists(profiles).hint("merge"), C.USER_IDX, how="inner"),
        select,
        tile_users=min(ranking.tile_users, USERS_A_TILE),
    )


def as_lists(profiles: DataFrame) -> DataFrame:
    """(``user_idx``, ``profile_idx``, ``weight``) to one row a user: lists of the indexes, rising, and of their weights."""
    by_index = F.sort_array(F.collect_list(F.struct(C.PROFILE_IDX, C.WEIGHT)))
    sorted_profiles = profiles.groupBy(C.USER_IDX).agg(by_index.alias(PROFILE))
    return sorted_profiles.select(
        C.USER_IDX,
        F.col(PROFILE)[C.PROFILE_IDX].alias(PROFILE),
        F.col(PROFILE)[C.WEIGHT].alias(PROFILE_WEIGHTS),
    )


def top_of_tiles(
    batch: pa.RecordBatch, targets: ItemBlock, score: Callable[[int, int], Array], *, tile_items: int, k: int
) -> TopItems:
    """The best K of a batch's users by positive score, ties by item index; what they must not get is masked first.

    ``score(start, stop)`` gives the matrix (users, targets from start to stop) in float64; a score is its float32, times the
    target's trend where the targets have one.
    """
    from xrec.ranking import scan  # noqa: PLC0415 - as above

    masks = build_masks(batch, targets)
    seen_S, next_seen_U = masks.seen()
    class_I = targets.category_I if targets.class_I is None else targets.class_I
    key_UK = np.full((batch.num_rows, k), scan.EMPTY)
    for start in range(0, len(targets.item_idx_I), tile_items):
        stop = min(start + tile_items, len(targets.item_idx_I))
        score_UT = score(start, stop)
        if targets.trend_I is not None:
            score_UT = score_UT * targets.trend_I[start:stop]
        scan.take(
            np.ascontiguousarray(score_UT, dtype=np.float32),
            start,
            masks.excluded_UC,
            seen_S,
            next_seen_U,
            targets.category_I,
            class_I,
            targets.item_idx_I,
            key_UK,
        )
    best_UK = key_UK[:, ::-1]
    is_item_UK = best_UK != scan.EMPTY
    return TopItems(np.nonzero(is_item_UK)[0], *scan.unpack(best_UK[is_item_UK]))


def targets_without_vectors(items: pa.Table, wanted_idx: Array) -> ItemBlock:
    """Those of the shared eligible items that are wanted, as the masks want them: by item index, with vectors of length zero."""
    item_idx, class_code, trend = (
        items[C.ITEM_IDX].to_numpy(),
        values_of(items, C.CLASS_CODE),
        values_of(items, C.TREND),
    )
    kept = np.isin(item_idx, wanted_idx)
    return ItemBlock.build(
        item_idx[kept],
        items[C.CATEGORY_CODE].to_numpy()[kept],
        np.zeros((kept.sum(), 1), np.float32),
        None if class_code is None else class_code[kept],
        None if trend is None else trend[kept],
    )


def largest(values: Array, ties_by: Array, k: int) -> Array:
    """Positions of the k largest values; among equal ones those with the smallest ``ties_by``."""
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    kth = np.partition(values, len(values) - k)[len(values) - k]
    above, equal = np.flatnonzero(values > kth), np.flatnonzero(values == kth)
    return np.concatenate([above, equal[np.argsort(ties_by[equal])][: k - len(above)]])


class _Similar(NamedTuple):
    """The similarities of all entries of profiles to the targets: by entry, then by target."""

    targets: ItemBlock
    """The items that may be recommended, with vectors of length zero: their indexes and categories are for the masks."""
    first_E: Array
    """Where the similarities of each entry begin; one more than there are entries."""
    target_S: Array
    similarity_S: Array


@lru_cache(maxsize=1)
def _read_similar(edges: SharedRows, items: SharedRows) -> _Similar:
    eligible, table = items.read(), edges.read()
    entry, target, similarity = (table[name].to_numpy() for name in (C.PROFILE_IDX, C.NEIGHBOUR_IDX, C.SIMILARITY))
    eligible_idx = eligible[C.ITEM_IDX].to_numpy()
    is_eligible = np.zeros(int(max(target.max(initial=-1), eligible_idx.max(initial=-1))) + 1, dtype=bool)
    is_eligible[eligible_idx] = True
    kept = is_eligible[target]
    entry, target, similarity = entry[kept], target[kept], similarity[kept]
    is_target = np.zeros(len(is_eligible), dtype=bool)
    is_target[target] = True
    targets, place = np.flatnonzero(is_target), np.cumsum(is_target, dtype=np.int32) - 1
    shape = (int(entry.max(initial=0)) + 1, max(len(targets), 1))
    similar_PT = sparse.csr_matrix((similarity.astype(np.float64), (entry, place[target])), shape=shape)
    similar_PT.sort_indices()
    return _Similar(
        targets=targets_without_vectors(eligible, targets),
        first_E=similar_PT.indptr.astype(np.int64),
        target_S=similar_PT.indices.astype(np.int32, copy=False),
        similarity_S=similar_PT.data,
    )
