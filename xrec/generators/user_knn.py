"""User-kNN: what the users had whose items are most like a user's own (Resnick et al. 1994; on sets, Breese et al. 1998).

Each user keeps his nearest neighbours v by cosine (:mod:`xrec.generators.cosine`), and score(u, j) = sum over those who had j of
similarity(u, v). Unlike item-kNN it weighs a whole history at once, so a common item says little beside many others.
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
    from xrec.config import Ranking, UserKnn

SOURCE = "user_knn"


class UserKnnError(ValueError):
    """More interactions than one task may hold; the message says how many and which settings bound it."""


def user_knn_candidates(
    users: DataFrame,
    eligible: DataFrame,
    interactions: DataFrame,
    user_knn: UserKnn,
    ranking: Ranking,
    folder: SharedFolder,
) -> DataFrame:
    """Lists (``scope``, ``user_idx``, ``items``, ``scores``) of a fold; only items of positive score.

    Raises
    ------
    UserKnnError
        There are more interactions than ``max_nonzeros``.
    """
    had = folder.keep(heaviest_of(interactions, user_knn.max_items_per_user))
    num_nonzeros = had.count()
    if num_nonzeros > user_knn.max_nonzeros:
        raise UserKnnError(
            f"user_knn.max_nonzeros: found {num_nonzeros} interactions, expected at most {user_knn.max_nonzeros}; raise it if "
            "an executor has 16 bytes for each, or lower user_knn.max_items_per_user"
        )
    similar = cosine_neighbours(
        had,
        of=C.USER_IDX,
        by=C.ITEM_IDX,
        num_neighbours=user_knn.num_neighbours,
        shrinkage=user_knn.shrinkage,
        folder=folder,
    )
    # A user's profile is his neighbours, and a neighbour leads to all that he had.
    profiles = similar.select(
        F.col(C.PROFILE_IDX).alias(C.USER_IDX),
        F.col(C.NEIGHBOUR_IDX).alias(C.PROFILE_IDX),
        F.col(C.SIMILARITY).cast("double").alias(C.WEIGHT),
    )
    leads_to = had.select(
        F.col(C.USER_IDX).alias(C.PROFILE_IDX),
        F.col(C.ITEM_IDX).alias(C.NEIGHBOUR_IDX),
        F.lit(1.0).cast("float").alias(C.SIMILARITY),
    )
    return score_profiles(users, profiles, leads_to, eligible, ranking, folder)
