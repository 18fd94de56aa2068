"""Popularity within the user's segment: the items with the most buyers among the users whose main category is his.

The share of the segment's users who had the item, shrunk towards that of all users by additive smoothing (Zhai, Lafferty 2004,
call it Dirichlet smoothing): with n_s users in segment s, n_sj of them buyers of item j, n_j buyers among all n users, and the
prior m = ``ranking.segment_prior_users``,

    score(u, j) = (n_sj + m n_j / n) / (n_s + m),        s the segment of u.

So a small segment says little, and an item that nobody of the segment had has its share among all. The users whose main
category is never recommended make one segment.
"""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Ranking
from xrec.evaluation.categories import main_categories
from xrec.features.buyers import num_buyers_of
from xrec.generators.neighbours import score_profiles
from xrec.storage.shared import SharedFolder

SOURCE = "popular_in_segment"
_EVERYBODY, _NOT_RECOMMENDED, _FIRST_CATEGORY = 0, 1, 2
"""Numbers of the segments: all users, those whose main category is never recommended, the first category's."""


def popular_in_segment_candidates(
    users: DataFrame,
    eligible: DataFrame,
    interactions: DataFrame,
    user_categories: DataFrame,
    ranking: Ranking,
    folder: SharedFolder,
    *,
    recommendable: DataFrame | None = None,
) -> DataFrame:
    """Lists (``scope``, ``user_idx``, ``items``, ``scores``) of a fold: items that somebody bought.

    ``recommendable`` has the items that could be recommended if no filter held (default: ``eligible``): the segments
    stay those of their categories where all items of one are sold out tonight.
    """
    segments = segments_of(user_categories, eligible if recommendable is None else recommendable)
    profiles = profiles_of(segments, ranking.segment_prior_users)
    return score_profiles(users, profiles, buyers_of(interactions, segments), eligible, ranking, folder)


def segments_of(user_categories: DataFrame, recommendable: DataFrame) -> DataFrame:
    """A fold's user categories to one row a user: ``user_idx``, ``profile_idx``, the number of his segment."""
    codes = recommendable.select(F.col(C.CATEGORY).alias(C.MAIN_CATEGORY), C.CATEGORY_CODE).distinct()
    coded = main_categories(user_categories).join(F.broadcast(codes), C.MAIN_CATEGORY, how="left")
    segment = F.coalesce(F.col(C.CATEGORY_CODE) + _FIRST_CATEGORY, F.lit(_NOT_RECOMMENDED))
    return coded.select(C.USER_IDX, segment.alias(C.PROFILE_IDX))


def profiles_of(segments: DataFrame, prior_users: float) -> DataFrame:
    """Segments to what :func:`score_profiles` wants: a user is in his segment and in that of everybody, weighted."""
    sizes = segments.groupBy(C.PROFILE_IDX).agg(F.count("*").alias(C.NUM_USERS))
    sized = segments.join(F.broadcast(sizes), C.PROFILE_IDX, how="inner")
    smoothed = F.col(C.NUM_USERS) + F.lit(prior_users)
    own = sized.select(C.USER_IDX, C.PROFILE_IDX, (1 / smoothed).alias(C.WEIGHT))
    all_users = sized.select(
        C.USER_IDX, F.lit(_EVERYBODY).alias(C.PROFILE_IDX), (F.lit(prior_users) / smoothed).alias(C.WEIGHT)
    )
    return own.unionByName(all_users)


def buyers_of(interactions: DataFrame, segments: DataFrame) -> DataFrame:
    """(``profile_idx``, ``neighbour_idx``, ``similarity``): an item's buyers in a segment; of all, the share of users."""
    num_users = segments.count()
    bought = interactions.where(F.col(C.COUNTING)).select(C.USER_IDX, F.col(C.ITEM_IDX).alias(C.NEIGHBOUR_IDX))
    of_segments = (
        bought.join(segments, C.USER_IDX, how="inner")
        .groupBy(C.PROFILE_IDX, C.NEIGHBOUR_IDX)
        .agg(F.count("*").cast("float").alias(C.SIMILARITY))
    )
    of_all = num_buyers_of(interactions).select(
        F.lit(_EVERYBODY).alias(C.PROFILE_IDX),
        F.col(C.ITEM_IDX).alias(C.NEIGHBOUR_IDX),
        (F.col(C.NUM_BUYERS) / F.lit(num_users)).cast("float").alias(C.SIMILARITY),
    )
    return of_segments.unionByName(of_all)
