"""ALS x trend: what a user is likely to like, among what is bought now.

An item's vector is multiplied by its trend (:mod:`xrec.features.trend`), so that the kernel finds the exact top K of score x trend.
Nothing more is learned than by ALS.
"""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Ranking, Trend
from xrec.evaluation.folds import Fold
from xrec.features.trend import trend_of
from xrec.generators.als import MODEL
from xrec.generators.factors import factor_candidates
from xrec.storage.shared import SharedFolder

SOURCE = "als_trend"


def als_trend_candidates(
    users: DataFrame,
    eligible: DataFrame,
    vectors: DataFrame,
    interactions: DataFrame,
    trend: Trend,
    fold: Fold,
    ranking: Ranking,
    folder: SharedFolder,
) -> DataFrame:
    """Rows of ``scope``, ``user_idx``, ``item_idx``, ``score``, ``rank`` of a fold; an item that nobody bought keeps its vector.

    Raises
    ------
    VectorError
        The fold has no vectors of ALS.
    """
    of_item = trend_of(interactions, fold, trend).withColumnRenamed(C.ITEM_IDX, C.IDX)
    of_als = vectors.where((F.col(C.FOLD) == fold.name) & (F.col(C.MODEL) == MODEL))
    of_als = of_als.select(C.FOLD, C.MODEL, C.KIND, C.IDX, C.VECTOR)
    items = of_als.where(F.col(C.KIND) == "item").join(of_item, C.IDX, how="left").fillna(1.0, [C.TREND])
    scaled = F.transform(C.VECTOR, lambda x: (x * F.col(C.TREND)).cast("float"))
    items = items.withColumn(C.VECTOR, scaled).drop(C.TREND)
    both = items.unionByName(of_als.where(F.col(C.KIND) == "user"))
    return factor_candidates(users, eligible, both, ranking, folder, model=MODEL, fold=fold.name)
