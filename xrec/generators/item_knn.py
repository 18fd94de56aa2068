"""Item-kNN: items with the same users as what a user had (Sarwar et al. 2001).

Each item keeps its nearest neighbours (:mod:`xrec.generators.cosine`), and score(u, j) = sum over the user's items i of
similarity(i, j). What counts is whether the user had the item; logarithms of the counts ranked no better than within noise on
Complete Journey.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.generators.cosine import cosine_neighbours
from xrec.generators.neighbours import heaviest_of, score_profiles
from xrec.storage.shared import SharedFolder

if TYPE_CHECKING:  # a task imports this module, and need not import the settings
    from xrec.config import ItemKnn, Ranking

SOURCE = "item_knn"


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
    """Lists (``scope``, ``user_idx``, ``items``, ``scores``) of a fold; only items of positive score."""
    profiles = heaviest_of(interactions, item_knn.max_items_per_user)
    neighbours = neighbours_of(profiles, item_knn, folder)
    ones = profiles.select(C.USER_IDX, F.col(C.ITEM_IDX).alias(C.PROFILE_IDX), F.lit(1.0).alias(C.WEIGHT))
    return score_profiles(users, ones, neighbours, eligible, ranking, folder)


def neighbours_of(profiles: DataFrame, item_knn: ItemKnn, folder: SharedFolder) -> DataFrame:
    """(``user_idx``, ``item_idx``) to each item's nearest neighbours: ``profile_idx``, ``neighbour_idx``, ``similarity``.

    Raises
    ------
    ItemKnnError
        There are more interactions than ``max_nonzeros``.
    """
    num_nonzeros = profiles.count()
    if num_nonzeros > item_knn.max_nonzeros:
        raise ItemKnnError(
            f"item_knn.max_nonzeros: found {num_nonzeros} interactions, expected at most {item_knn.max_nonzeros}; raise it if "
            "an executor has 16 bytes for each, or lower item_knn.max_items_per_user"
        )
    return cosine_neighbours(
        profiles,
        of=C.ITEM_IDX,
        by=C.USER_IDX,
        num_neighbours=item_knn.num_neighbours,
        shrinkage=item_knn.shrinkage,
        folder=folder,
    )
