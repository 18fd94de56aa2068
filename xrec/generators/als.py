"""Implicit ALS by MLlib (Hu, Koren, Volinsky 2008): weights are confidence, not repeated rows."""

from __future__ import annotations

from functools import reduce

from pyspark.ml.recommendation import ALS
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Als
from xrec.evaluation.folds import Fold

MODEL = "als"


class AlsError(ValueError):
    """A fold that ALS cannot learn from; the message names it."""


def ratings_of(training_events: DataFrame, min_buyers: int) -> DataFrame:
    """A fold's training events to one row a (``user_idx``, ``item_idx``), with ``weight``: balanced weights, summed.

    Items with fewer than ``min_buyers`` distinct users are left out.
    """
    ratings = training_events.groupBy(C.USER_IDX, C.ITEM_IDX).agg(
        F.sum(F.col(C.WEIGHT) * F.col(C.BALANCE_WEIGHT)).alias(C.WEIGHT)
    )
    if min_buyers <= 1:
        return ratings
    enough = ratings.groupBy(C.ITEM_IDX).agg(F.count("*").alias(C.NUM_BUYERS)).where(F.col(C.NUM_BUYERS) >= min_buyers)
    return ratings.join(enough.select(C.ITEM_IDX), C.ITEM_IDX, how="left_semi")


def train_als(training_events: DataFrame, fold: Fold, als: Als, seed: int, *, checkpoints: str) -> DataFrame:
    """A fold's training events to rows of ``vectors``: one a user and one an item.

    ``training_events`` must be read from storage: ALS breaks where a re-run task gives other rows (SPARK-28927).
    ``checkpoints`` is a folder or URL that all executors see; without one MLlib ignores ``als.checkpoint_interval``.

    Raises
    ------
    AlsError
        No item has ``als.min_buyers`` users.
    """
    ratings = ratings_of(training_events.where(F.col(C.FOLD) == fold.name), als.min_buyers)
    if ratings.isEmpty():
        raise AlsError(
            f"fold '{fold.name}': no item has als.min_buyers ({als.min_buyers}) users, expected at least one; lower als.min_buyers"
        )
    training_events.sparkSession.sparkContext.setCheckpointDir(checkpoints)
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
