"""Popularity within each category: every category's best seller first, then every category's second, and so on.

An item's rank is its place among the items of its category, by number of buyers, ties by item index; items of equal rank are
ordered by number of buyers, then item index. So a list spans categories, where plain popularity stays in the largest.
"""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Ranking
from xrec.features.buyers import num_buyers_of
from xrec.generators.popularity import score_alike
from xrec.storage.shared import SharedFolder

SOURCE = "popular_in_category"
_HIGHEST = 1 << 24
"""Integers up to it are exact in float32."""


def popular_in_category_candidates(
    users: DataFrame, eligible: DataFrame, interactions: DataFrame, ranking: Ranking, folder: SharedFolder
) -> DataFrame:
    """Lists (``scope``, ``user_idx``, ``items``, ``scores``) of a fold; the score is that of :func:`scores_of`."""
    return score_alike(users, eligible, scores_of(num_buyers_of(interactions), eligible), ranking, folder)


def scores_of(buyers: DataFrame, eligible: DataFrame) -> DataFrame:
    """Each item's ``num_buyers`` to its ``score``: 2^24 - ((rank - 1) x number of categories + place among its rank, from 0).

    The score is exact, and no two items have the same. Items for which it would not be positive are left out: with a thousand
    categories those that 16,000 others of their category precede.
    """
    items = buyers.join(eligible.select(C.ITEM_IDX, C.CATEGORY_CODE), C.ITEM_IDX, how="inner")
    best_first = (F.desc(C.NUM_BUYERS), F.col(C.ITEM_IDX))
    ranked = items.withColumn(C.RANK, F.row_number().over(Window.partitionBy(C.CATEGORY_CODE).orderBy(*best_first)))
    place = F.row_number().over(Window.partitionBy(C.RANK).orderBy(*best_first)) - 1
    highest_code = eligible.agg(F.max(C.CATEGORY_CODE)).first()
    num_categories = 1 + (highest_code[0] if highest_code and highest_code[0] is not None else 0)
    score = F.lit(_HIGHEST) - ((F.col(C.RANK) - 1).cast("long") * F.lit(num_categories) + place)
    return ranked.select(C.ITEM_IDX, score.alias(C.SCORE)).where(F.col(C.SCORE) > 0)
