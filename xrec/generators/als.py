"""Implicit ALS by MLlib (Hu, Koren, Volinsky 2008): weights are confidence, not repeated rows."""

from __future__ import annotations

from functools import reduce

from pyspark.ml.recommendation import ALS
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Als
from xrec.evaluation.folds import Fold
from xrec.storage.files import for_spark

MODEL = "als"


class AlsError(ValueError):
    """A fold that ALS cannot learn from; the message names it."""


def ratings_of(training_events: DataFrame, min_buyers: int, feedback: DataFrame | None = None) -> DataFrame:
    """A fold's training events to one row a (``user_idx``, ``item_idx``), with ``weight``: balanced weights, summed.

    Items with fewer than ``min_buyers`` distinct users are left out. The fold's ``feedback`` adds to the pairs that are there, and
    those shown in vain come with weights below 0, of users and items that are there; they are no buyers.
    """
    weights = training_events.select(
        C.USER_IDX, C.ITEM_IDX, (F.col(C.WEIGHT) * F.col(C.BALANCE_WEIGHT)).alias(C.WEIGHT)
    )
    if feedback is not None:
        weights = weights.unionByName(feedback.where(F.col(C.WEIGHT) > 0).select(C.USER_IDX, C.ITEM_IDX, C.WEIGHT))
    ratings = weights.groupBy(C.USER_IDX, C.ITEM_IDX).agg(F.sum(C.WEIGHT).alias(C.WEIGHT))
    if min_buyers > 1:
        buyers = ratings.groupBy(C.ITEM_IDX).agg(F.count("*").alias(C.NUM_BUYERS))
        enough = buyers.where(F.col(C.NUM_BUYERS) >= min_buyers).select(C.ITEM_IDX)
        ratings = ratings.join(enough, C.ITEM_IDX, how="left_semi")
    if feedback is None:
        return ratings
    against = feedback.where(F.col(C.WEIGHT) < 0).select(C.USER_IDX, C.ITEM_IDX, C.WEIGHT)
    for index in (C.USER_IDX, C.ITEM_IDX):
        against = against.join(ratings.select(index).distinct(), index, how="left_semi")
    return ratings.unionByName(against)


def train_als(
    training_events: DataFrame,
    fold: Fold,
    als: Als,
    seed: int,
    *,
    checkpoints: str,
    feedback: DataFrame | None = None,
) -> DataFrame:
    """A fold's training events, and what the exposures teach, to rows of ``vectors``: one a user and one an item.

    ``training_events`` and ``feedback`` must be read from storage: ALS breaks where a re-run task gives other rows (SPARK-28927).
    ``checkpoints`` is a folder or URL that all executors see; without one MLlib ignores ``als.checkpoint_interval``.

    Raises
    ------
    AlsError
        No item has ``als.min_buyers`` users.
    """
    of_fold = F.col(C.FOLD) == fold.name
    taught = None if feedback is None else feedback.where(of_fold)
    ratings = ratings_of(training_events.where(of_fold), als.min_buyers, taught)
    if ratings.isEmpty():
        raise AlsError(
            f"fold '{fold.name}': no item has als.min_buyers ({als.min_buyers}) users, expected at least one; lower als.min_buyers"
        )
    training_events.sparkSession.sparkContext.setCheckpointDir(for_spark(checkpoints))
    model = ALS(
        userCol=C.USER_IDX,
        itemCol=C.ITEM_IDX,
        ratingCol=C.WEIGHT,
        implicitPrefs=True,
        rank=als.rank,
        maxIter=als.max_iter,
        regParam=als.reg_param,
        alpha=als.alpha,
        nonnegative=als.nonnegative,
        numUserBlocks=als.num_blocks,
        numItemBlocks=als.num_blocks,
        checkpointInterval=als.checkpoint_interval,
        intermediateStorageLevel=als.intermediate_storage_level,
        finalStorageLevel=als.final_storage_level,
        blockSize=als.block_size,
        seed=seed,
    ).fit(ratings)
    kinds = [
        factors.select(
            F.lit(fold.name).alias(C.FOLD),
            F.lit(MODEL).alias(C.MODEL),
            F.lit(kind).alias(C.KIND),
            F.col("id").alias(C.IDX),
            F.col("features").alias(C.VECTOR),
        )
        for kind, factors in (("user", model.userFactors), ("item", model.itemFactors))
    ]
    return reduce(DataFrame.unionByName, kinds)


def describe_vectors(vectors: DataFrame, als: Als) -> dict[str, str]:
    """Counts of a fold's vectors, for the summary."""
    counts = {row[C.KIND]: row["count"] for row in vectors.groupBy(C.KIND).count().collect()}
    sizes = {f"{kind}s": f"{counts.get(kind, 0):,}" for kind in ("user", "item")}
    return {**sizes, "rank": str(als.rank)}
