"""Accuracy of ranked lists per user, and catalogue coverage: the only source of reported numbers.

Judged are the users who have a target in the slice, each with the same weight; a judged user whose list is empty, or
shorter than k, misses what is not there (precision still divides by k). A user without targets is in no mean, and counts
for coverage alone. The rank decides, from 1; equal scores were given their ranks where the list was made (by item index).

With T the user's targets in the slice, and hit(r) = 1 where the item at rank r is one of them, else 0:

- hr: 1 if hit(r) for any r <= k, else 0 (Deshpande, Karypis 2004)
- recall: sum of hit(r), r <= k, over the number of T (Herlocker et al. 2004)
- precision: sum of hit(r), r <= k, over k (Herlocker et al. 2004)
- ndcg: sum of hit(r) / log2(r + 1), r <= k, over the same sum of a perfect list, which is the sum of 1 / log2(r + 1) for
  r <= min(k, number of T) (Järvelin, Kekäläinen 2002, binary gains)
- coverage: distinct items in the lists of all users up to rank k, over recommendable items (Ge et al. 2010)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from xrec import columns as C

SLICES = {"touched": C.CROSS_TOUCHED, "home": C.CROSS_HOME}
"""Slice and the flag of its targets: lists of a scope are judged on the targets outside the same categories."""

ACCURACY = ("hr", "recall", "precision", "ndcg")
COVERAGE = "coverage"
VALUES = "values"
NUM_TARGETS = "num_targets"


def metric_names(ks: Sequence[int]) -> list[tuple[str, int]]:
    """(metric, k) of each position of the column ``values``."""
    return [(metric, k) for k in ks for metric in ACCURACY]


def sources_of(candidates: DataFrame) -> list[str]:
    """The sources that have candidates, sorted: a handful of names."""
    return sorted(row[0] for row in candidates.select(C.SOURCE).distinct().collect())


def judge_lists(candidates: DataFrame, targets: DataFrame, *, sources: Sequence[str], ks: Sequence[int]) -> DataFrame:
    """Rows of ``candidates`` and of ``targets`` to one row a (fold, model, slice, user with targets).

    The result has the columns fold, model (the source), slice (the scope), user_idx, num_targets and values: a double
    for each of :func:`metric_names`. ``sources`` are given, not found, because a user is judged by every source, also by
    one that has no list for him.
    """
    # A target is judged once for each slice that it belongs to, and for each source.
    flags = F.array(*[F.when(F.col(flag), F.lit(scope)) for scope, flag in SLICES.items()])
    expected = targets.select(C.FOLD, C.USER_IDX, C.ITEM_IDX, F.explode(F.array_compact(flags)).alias(C.SCOPE))
    expected = expected.withColumn(C.SOURCE, F.explode(F.array(*[F.lit(source) for source in sources])))
    on = [C.FOLD, C.SOURCE, C.SCOPE, C.USER_IDX, C.ITEM_IDX]
    lists = candidates.where(F.col(C.RANK) <= max(ks)).select(*on, C.RANK)
    found = expected.join(lists, on=on, how="left").groupBy(C.FOLD, C.SOURCE, C.SCOPE, C.USER_IDX)
    sums = [F.count("*").alias(NUM_TARGETS)]
    for k in ks:
        is_hit = F.col(C.RANK) <= k
        sums.append(F.count_if(is_hit).alias(f"hits_{k}"))
        sums.append(F.sum(F.when(is_hit, _discount(F.col(C.RANK))).otherwise(0.0)).alias(f"dcg_{k}"))
    return found.agg(*sums).select(
        C.FOLD,
        F.col(C.SOURCE).alias(C.MODEL),
        F.col(C.SCOPE).alias(C.SLICE),
        C.USER_IDX,
        NUM_TARGETS,
        F.array(*[_metric(metric, k) for metric, k in metric_names(ks)]).alias(VALUES),
    )


def coverage_of(candidates: DataFrame, *, num_items: int, ks: Sequence[int]) -> DataFrame:
    """Rows of ``candidates`` to rows of ``metrics`` (without run_id): catalogue coverage of a model and slice at a k.

    ``num_users`` is the number of users with a list; a coverage has no interval over users, so those columns are null.

    Parameters
    ----------
    candidates
        Lists of all users, also of those without targets.
    num_items
        Recommendable items.
    ks
        Cut-offs.
    """
    best = candidates.groupBy(C.FOLD, C.SOURCE, C.SCOPE, C.ITEM_IDX).agg(
        F.min(C.RANK).alias(C.RANK), F.count_if(F.col(C.RANK) == 1).alias(C.NUM_USERS)
    )
    share = {k: F.count_if(F.col(C.RANK) <= k) / F.lit(max(num_items, 1)) for k in ks}
    shares = F.array(*[F.struct(F.lit(k).alias(C.K), share[k].alias(C.VALUE)) for k in ks])
    covered = best.groupBy(C.FOLD, F.col(C.SOURCE).alias(C.MODEL), F.col(C.SCOPE).alias(C.SLICE)).agg(
        shares.alias(VALUES), F.sum(C.NUM_USERS).alias(C.NUM_USERS)
    )
    no_interval = [
        F.lit(None).cast("double").alias(name)
        for name in (C.LOW, C.HIGH, C.DIFFERENCE, C.DIFFERENCE_LOW, C.DIFFERENCE_HIGH)
    ]
    return covered.select(C.FOLD, C.MODEL, C.SLICE, C.NUM_USERS, F.inline(VALUES)).select(
        C.FOLD, C.MODEL, C.SLICE, F.lit(COVERAGE).alias(C.METRIC), C.K, C.VALUE, *no_interval, C.NUM_USERS
    )


def _discount(rank: Column) -> Column:
    return F.lit(1.0) / F.log2(rank + 1)


def _metric(metric: str, k: int) -> Column:
    """A metric at k from the user's sums, as a double."""
    num_hits, num_targets = F.col(f"hits_{k}").cast("double"), F.col(NUM_TARGETS)
    if metric == "hr":
        return (num_hits > 0).cast("double")
    if metric == "recall":
        return num_hits / num_targets
    if metric == "precision":
        return num_hits / F.lit(float(k))
    # The ideal of n targets, n from 1 to k, as literals.
    ideals = [sum(1 / math.log2(rank + 1) for rank in range(1, n + 1)) for n in range(1, k + 1)]
    ideal = F.element_at(F.array(*[F.lit(value) for value in ideals]), F.least(num_targets, F.lit(k)).cast("int"))
    return F.col(f"dcg_{k}") / ideal
