"""Popularity: the items with the most buyers, of all time or of the last days.

That of all time is the baseline that a recommender has to beat, and the fallback of users whom no model knows. Recent
popularity follows the season, and is the harder one to beat in some months.
"""

from __future__ import annotations

from datetime import timedelta

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Ranking
from xrec.evaluation.folds import Fold
from xrec.features.buyers import num_buyers_of
from xrec.ranking.topk import item_rows, top_k
from xrec.storage.shared import SharedFolder

SOURCE, RECENT = C.POPULARITY, C.RECENT


def popular_candidates(
    users: DataFrame, eligible: DataFrame, interactions: DataFrame, ranking: Ranking, folder: SharedFolder
) -> DataFrame:
    """Lists (``scope``, ``user_idx``, ``items``, ``scores``) of a fold; a score is the item's buyers, exact below 2^24."""
    buyers = num_buyers_of(interactions).withColumnRenamed(C.NUM_BUYERS, C.SCORE)
    return score_alike(users, eligible, buyers, ranking, folder)


def score_alike(
    users: DataFrame, eligible: DataFrame, scores: DataFrame, ranking: Ranking, folder: SharedFolder
) -> DataFrame:
    """Lists (``scope``, ``user_idx``, ``items``, ``scores``): items by a ``score`` that is the same for all users.

    Through the kernel, with vectors of length one: the user's is 1, the item's its score.
    """
    vectors = scores.select(F.col(C.ITEM_IDX).alias(C.IDX), F.array(F.col(C.SCORE).cast("float")).alias(C.VECTOR))
    items = folder.share(item_rows(eligible, vectors))
    ones = users.withColumn(C.VECTOR, F.array(F.lit(1.0).cast("float")))
    return top_k(ones, items, ranking, k=ranking.candidates_per_source)


def recent_candidates(
    users: DataFrame, eligible: DataFrame, interactions: DataFrame, fold: Fold, ranking: Ranking, folder: SharedFolder
) -> DataFrame:
    """As :func:`popular_candidates`, of those who had the item within ``ranking.recent_days`` before the fold's as-of."""
    since = fold.as_of - timedelta(days=ranking.recent_days)
    return popular_candidates(users, eligible, interactions.where(F.col(C.LAST_TS) >= F.lit(since)), ranking, folder)
