"""How much of a user's list stays from one run to the next.

- stability: items that both lists have up to rank k, over the length of the longer one, at most k: 1 where the same items are
  shown, 0 where all are others. The mean over the users who have both lists (overlap at k; Fagin, Kumar, Sivakumar 2003).
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Evaluation
from xrec.evaluation.intervals import summarise
from xrec.evaluation.metrics import VALUES

STABILITY = "stability"


def stability_names(ks: Sequence[int]) -> list[tuple[str, int]]:
    """(metric, k) of each position of the column ``values``."""
    return [(STABILITY, k) for k in ks]


def judge_stability(lists: DataFrame, earlier: DataFrame, *, ks: Sequence[int]) -> DataFrame:
    """Two runs' lists (``user_idx``, ``item_id``, ``rank``) to one row a user with both: ``user_idx``, ``values``."""
    both = lists.select(C.USER_IDX, C.ITEM_ID, F.col(C.RANK).alias("now")).join(
        earlier.select(C.USER_IDX, C.ITEM_ID, F.col(C.RANK).alias("before")), [C.USER_IDX, C.ITEM_ID], how="full"
    )
    common = [F.count_if((F.col("now") <= k) & (F.col("before") <= k)) for k in ks]
    longest = F.greatest(F.max("now"), F.max("before"))
    shares = [count / F.least(longest, F.lit(k)) for count, k in zip(common, ks, strict=True)]
    return (
        both.groupBy(C.USER_IDX)
        .agg(F.array(*shares).alias(VALUES), F.count("now").alias("num_now"), F.count("before").alias("num_before"))
        .where("num_now > 0 and num_before > 0")
        .select(C.USER_IDX, VALUES)
    )


def stability_of(
    lists: DataFrame, earlier: DataFrame, settings: Evaluation, *, fold: str, model: str, scope: str, seed: int
) -> DataFrame:
    """Two runs' lists to rows of ``metrics`` (without run_id): the share that stays, with its interval."""
    users = judge_stability(lists, earlier, ks=settings.ks).select(
        F.lit(fold).alias(C.FOLD), F.lit(model).alias(C.MODEL), F.lit(scope).alias(C.SLICE), C.USER_IDX, VALUES
    )
    return summarise(users, stability_names(settings.ks), settings, seed, num_compared=1)
