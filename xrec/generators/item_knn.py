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
from xrec.generators.neighbours import EDGES_ARROW, EDGES_SCHEMA, largest, score_profiles
from xrec.ranking.topk import Array, spread
from xrec.storage.shared import SharedFolder, SharedRows

if TYPE_CHECKING:  # a task imports this module, and need not import the settings
    from xrec.config import ItemKnn, Ranking

SOURCE = "item_knn"
_ITEMS_A_PRODUCT = 128


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
    ones = profiles.select(C.USER_IDX, F.col(C.ITEM_IDX).alias(C.PROFILE_IDX), F.lit(1.0).alias(C.WEIGHT))
    return score_profiles(users, ones, neighbours, eligible, ranking, folder)


def profiles_of(interactions: DataFrame, item_knn: ItemKnn) -> DataFrame:
    """A fold's interactions to (``user_idx``, ``item_idx``): each user's heaviest, ties by item, at most the cap."""
    heaviest_first = Window.partitionBy(C.USER_IDX).orderBy(F.desc(C.WEIGHT), C.ITEM_IDX)
    return (
        interactions.select(C.USER_IDX, C.ITEM_IDX, F.row_number().over(heaviest_first).alias(C.RANK))
        .where(F.col(C.RANK) <= item_knn.max_items_per_user)
        .select(C.USER_IDX, C.ITEM_IDX)
    )


def neighbours_of(profiles: DataFrame, item_knn: ItemKnn, folder: SharedFolder) -> DataFrame:
    """(``user_idx``, ``item_idx``) to each item's nearest neighbours: ``profile_idx``, ``neighbour_idx``, ``similarity``.

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

    return spread(profiles.select(C.ITEM_IDX).distinct(), C.ITEM_IDX).mapInArrow(run, EDGES_SCHEMA)


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
        kept = largest(similarity, others, min(num_neighbours, len(others) - 1))
        found.append((np.full(len(kept), item), others[kept], similarity[kept]))
    columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, EDGES_ARROW, strict=True)]
    return pa.record_batch(arrays, schema=EDGES_ARROW)
