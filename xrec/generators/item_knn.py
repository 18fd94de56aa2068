"""Item-kNN: cosine neighbours of items with shrinkage (Sarwar et al. 2001; shrinkage as in Koren 2008).

similarity(i, j) = sum_u x_ui x_uj / (|x_i| |x_j| + shrinkage), x the user-item matrix; each item keeps its nearest neighbours;
score(u, j) = sum over the user's items i of x_ui similarity(i, j). x is 1 where the user had the item, so the
sums of common users are exact; logarithms of the counts ranked no better than within noise on Complete Journey.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    kth_scores,
    map_user_blocks,
    merge,
    no_items,
    propose,
    spread,
)
from xrec.storage.shared import SharedFolder, SharedRows

if TYPE_CHECKING:  # a task imports this module, and need not import the settings
    from xrec.config import ItemKnn, Ranking

SOURCE = "item_knn"
PROFILE = "profile"
_NEIGHBOURS_SCHEMA = f"{C.ITEM_IDX} int, neighbour_idx int, similarity float"
_NEIGHBOURS_ARROW = pa.schema({C.ITEM_IDX: pa.int32(), "neighbour_idx": pa.int32(), "similarity": pa.float32()})
_ITEMS_A_PRODUCT = 128
_USERS_A_TILE = 128


class ItemKnnError(ValueError):
    """More interactions than one task may hold; the message says how many and which settings bound it."""


def knn_candidates(
    users: DataFrame,
    eligible: DataFrame,
    interactions: DataFrame,
    item_knn: ItemKnn,
    ranking: Ranking,
    folder: SharedFolder,
) -> DataFrame:
    """Rows of ``scope``, ``user_idx``, ``item_idx``, ``score``, ``rank`` of a fold; only items of positive score."""
    profiles = profiles_of(interactions, item_knn)
    neighbours = neighbours_of(profiles, item_knn, folder)
    return score_profiles(users, profiles, neighbours, eligible, ranking, folder)


def profiles_of(interactions: DataFrame, item_knn: ItemKnn) -> DataFrame:
    """A fold's interactions to (``user_idx``, ``item_idx``): each user's heaviest, ties by item, at most the cap."""
    heaviest_first = Window.partitionBy(C.USER_IDX).orderBy(F.desc(C.WEIGHT), C.ITEM_IDX)
    return (
        interactions.select(C.USER_IDX, C.ITEM_IDX, F.row_number().over(heaviest_first).alias(C.RANK))
        .where(F.col(C.RANK) <= item_knn.max_items_per_user)
        .select(C.USER_IDX, C.ITEM_IDX)
    )


def neighbours_of(profiles: DataFrame, item_knn: ItemKnn, folder: SharedFolder) -> DataFrame:
    """(``user_idx``, ``item_idx``) to each item's nearest neighbours: ``item_idx``, ``neighbour_idx``, ``similarity``.

    Ties by item index. Each Python process holds the whole matrix: at most ``max_nonzeros`` x 12 bytes.

    Raises
    ------
    ItemKnnError
        There are more interactions than ``max_nonzeros``.
    """
    num_nonzeros = profiles.count()
    if num_nonzeros > item_knn.max_nonzeros:
        raise ItemKnnError(
            f"item_knn.max_nonzeros: found {num_nonzeros} interactions, expected at most {item_knn.max_nonzeros}; raise it if "
            "an executor has 12 bytes for each, or lower item_knn.max_items_per_user"
        )
    shared, num_neighbours, shrinkage = folder.share(profiles), item_knn.num_neighbours, item_knn.shrinkage

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            items, had = batch.column(C.ITEM_IDX).to_numpy(), _read_had(shared)
            for start in range(0, len(items), _ITEMS_A_PRODUCT):
                yield _nearest(items[start : start + _ITEMS_A_PRODUCT], had, num_neighbours, shrinkage)

    return spread(profiles.select(C.ITEM_IDX).distinct(), C.ITEM_IDX).mapInArrow(run, _NEIGHBOURS_SCHEMA)


class _Had(NamedTuple):
    """Who had what, by user and by item, 1 or nothing; and the square root of each item's users."""

    had_UI: sparse.csr_matrix
    had_IU: sparse.csr_matrix
    norms_I: Array


@lru_cache(maxsize=1)
def _read_had(profiles: SharedRows) -> _Had:
    pairs = profiles.read()
    user, item = (pairs[name].to_numpy() for name in (C.USER_IDX, C.ITEM_IDX))
    shape = (int(user.max(initial=0)) + 1, int(item.max(initial=0)) + 1)
    had_UI = sparse.csr_matrix((np.ones(len(user), dtype=np.float32), (user, item)), shape=shape)
    had_IU = had_UI.T.tocsr()
    return _Had(had_UI, had_IU, np.sqrt(np.diff(had_IU.indptr)))


def _nearest(items_B: Array, had: _Had, num_neighbours: int, shrinkage: float) -> pa.RecordBatch:
    """The neighbours of a block of items. Counts of common users are small integers, so float32 sums are exact."""
    common_BI, norms_I = had.had_IU[items_B] @ had.had_UI, had.norms_I
    found = []
    for row, item in enumerate(items_B):
        entries = slice(common_BI.indptr[row], common_BI.indptr[row + 1])
        others = common_BI.indices[entries]
        similarity = common_BI.data[entries] / (norms_I[item] * norms_I[others] + shrinkage)
        similarity = similarity.astype(np.float32)
        similarity[others == item] = -1.0
        kept = _largest(similarity, others, min(num_neighbours, len(others) - 1))
        found.append((np.full(len(kept), item), others[kept], similarity[kept]))
    columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, _NEIGHBOURS_ARROW, strict=True)]
    return pa.record_batch(arrays, schema=_NEIGHBOURS_ARROW)


def _largest(values: Array, ties_by: Array, k: int) -> Array:
    """Positions of the k largest values; among equal ones those with the smallest ``ties_by``."""
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    kth = np.partition(values, len(values) - k)[len(values) - k]
    above, equal = np.flatnonzero(values > kth), np.flatnonzero(values == kth)
    return np.concatenate([above, equal[np.argsort(ties_by[equal])][: k - len(above)]])


def score_profiles(
    users: DataFrame,
    profiles: DataFrame,
    neighbours: DataFrame,
    eligible: DataFrame,
    ranking: Ranking,
    folder: SharedFolder,
) -> DataFrame:
    """Each (``scope``, ``user_idx``)'s best allowed items by the summed similarity to his profile, masked before selection.

    Each Python process holds the neighbours of the eligible items: items x ``num_neighbours`` x 12 bytes.
    """
    # Not joined by Spark: it cannot know how many neighbours come out of Python, takes them for few and broadcasts them.
    edges, items = folder.share(neighbours), folder.share(eligible.select(C.ITEM_IDX, C.CATEGORY_CODE))
    tile_items, k = ranking.tile_items, ranking.candidates_per_source

    def select(batch: pa.RecordBatch) -> TopItems:
        similar = _read_similar(edges, items, tile_items)
        row, item = flatten(batch.column(PROFILE))
        known = item < similar.num_sources
        profile_UI = sparse.csr_matrix(
            (np.ones(int(known.sum())), (row[known], item[known])), shape=(batch.num_rows, similar.num_sources)
        )
        masks, best = build_masks(batch, similar.targets), no_items()
        kth_U = np.full(batch.num_rows, -np.inf)
        for start, similar_IT in zip(similar.starts, similar.tiles, strict=True):
            stop = start + similar_IT.shape[1]
            tile_UT = (profile_UI @ similar_IT).toarray().astype(np.float32)
            np.putmask(tile_UT, masks.forbidden(start, stop) | (tile_UT <= 0), -np.inf)
            row, column = propose(tile_UT, kth_U, 0.0, k)
            best = merge(best, row, similar.targets.item_idx_I[start:stop][column], tile_UT[row, column], k=k)
            kth_U = kth_scores(best, batch.num_rows, k)
        return best

    sorted_profiles = profiles.groupBy(C.USER_IDX).agg(F.sort_array(F.collect_list(C.ITEM_IDX)).alias(PROFILE))
    return map_user_blocks(
        users.join(sorted_profiles, C.USER_IDX, how="inner"), select, tile_users=min(ranking.tile_users, _USERS_A_TILE)
    )


class _Similar(NamedTuple):
    """The similarities of all items (rows) to the targets (columns of the tiles)."""

    targets: ItemBlock
    """The items that may be recommended, with vectors of length zero: their indexes and categories are for the masks."""
    starts: range
    """The first target of each tile."""
    tiles: list[sparse.csr_matrix]
    num_sources: int


@lru_cache(maxsize=1)
def _read_similar(edges: SharedRows, items: SharedRows, tile_items: int) -> _Similar:
    eligible, table = items.read(), edges.read()
    source, target, similarity = (table[name].to_numpy() for name in (C.ITEM_IDX, "neighbour_idx", "similarity"))
    eligible_idx = eligible[C.ITEM_IDX].to_numpy()
    code_of = np.full(int(max(target.max(initial=-1), eligible_idx.max(initial=-1))) + 1, -1, dtype=np.int32)
    code_of[eligible_idx] = eligible[C.CATEGORY_CODE].to_numpy()
    kept = code_of[target] >= 0
    source, target, similarity = source[kept], target[kept], similarity[kept]
    is_target = np.zeros(len(code_of), dtype=bool)
    is_target[target] = True
    targets, place = np.flatnonzero(is_target), np.cumsum(is_target) - 1
    similar_IT = sparse.csr_matrix(
        (similarity.astype(np.float64), (source, place[target])),
        shape=(int(source.max(initial=0)) + 1, max(len(targets), 1)),
    )
    starts = range(0, len(targets), tile_items)
    return _Similar(
        targets=ItemBlock.build(targets, code_of[targets], np.zeros((len(targets), 1), np.float32)),
        starts=starts,
        tiles=[similar_IT[:, start : start + tile_items] for start in starts],
        num_sources=similar_IT.shape[0],
    )
