"""Accuracy of ranked lists per user: the only source of reported numbers.

Judged are the users who have a target in the slice, each with the same weight; a judged user whose list is empty, or
shorter than k, misses what is not there (precision still divides by k). A user without targets is in no mean.
The rank decides, from 1; equal scores were given their ranks where the list was made (by item index).

With T the user's targets in the slice, and hit(r) = 1 where the item at rank r is one of them, else 0:

- hr: 1 if hit(r) for any r <= k, else 0 (Deshpande, Karypis 2004)
- recall: sum of hit(r), r <= k, over the number of T (Herlocker et al. 2004)
- precision: sum of hit(r), r <= k, over k (Herlocker et al. 2004)
- f1: the harmonic mean of precision and recall, 2 sum of hit(r) / (k + number of T); 0 without a hit (van Rijsbergen 1979)
- map: sum of hit(r) P(r), r <= k, over min(k, number of T), P(r) the precision at r (Manning et al. 2008, section 8.4, cut at k)
- mrr: 1 / r of the first hit, 0 where it is beyond k (Voorhees 1999)
- serendipity: the hits up to k that popularity's list for the same user does not have up to k, over k (Ge et al. 2010)
- recall_debiased: recall in which an item of n buyers before as-of weighs n^-1.5 (nobody counts as one buyer), because what is
  popular is bought for being shown (Yang et al. 2018, self-normalised, gamma = 2)
- ndcg: sum of hit(r) / log2(r + 1), r <= k, over the same sum of a perfect list, which is the sum of 1 / log2(r + 1) for
  r <= min(k, number of T) (Järvelin, Kekäläinen 2002, binary gains)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.evaluation.hits import POPULAR_RANK, SLICE, SOURCE, asked_in_slices, asked_of, hits_of, with_names
from xrec.evaluation.slices import Slice

ACCURACY = ("hr", "recall", "precision", "f1", "ndcg", "map", "mrr", "serendipity", "recall_debiased")
VALUES = "values"
_NTH, _FIRST = "nth", "first_rank"
_DEBIASING = -1.5


def metric_names(ks: Sequence[int]) -> list[tuple[str, int]]:
    """(metric, k) of each position of the column ``values``."""
    return [(metric, k) for k in ks for metric in ACCURACY]


def sources_of(candidates: DataFrame) -> dict[str, list[str]]:
    """The sources that have candidates in each scope, sorted: a handful of names."""
    found: dict[str, list[str]] = {}
    for row in sorted(candidates.select(C.SCOPE, C.SOURCE).distinct().collect()):
        found.setdefault(row[C.SCOPE], []).append(row[C.SOURCE])
    return found


def judge_lists(
    candidates: DataFrame,
    targets: DataFrame,
    buyers: DataFrame,
    *,
    fold: str,
    sources: Sequence[str],
    slices: Sequence[Slice],
    ks: Sequence[int],
) -> DataFrame:
    """The lists of the ``candidates`` and the ``targets`` of one ``fold`` to one row a (fold, model, slice, user with targets).

    The result has the columns fold, model (the source), slice, user_idx, num_targets and values: a double
    for each of :func:`metric_names`. ``sources`` are given, not found, because a user is judged by every source, also by
    one that has no list for him. ``buyers`` has the fold's rows (``item_idx``, ``num_buyers``).
    """
    weight = F.pow(F.greatest(F.coalesce(C.NUM_BUYERS, F.lit(1)), F.lit(1)), F.lit(_DEBIASING))
    weighed = targets.join(buyers, C.ITEM_IDX, how="left").withColumn(C.WEIGHT, weight)
    asked = asked_of(weighed, slices)
    judged = asked_in_slices(asked, [C.USER_IDX], [C.WEIGHT], sources=sources, slices=slices)
    hits = hits_of(candidates, asked, sources=sources, slices=slices, longest=max(ks))
    a_list = [C.USER_IDX, SOURCE, SLICE]
    nth = F.row_number().over(Window.partitionBy(*a_list).orderBy(C.RANK))
    sums = [part for k in ks for part in _sums(k)]
    found = hits.withColumn(_NTH, nth).groupBy(*a_list).agg(F.min(C.RANK).alias(_FIRST), *sums)
    metrics_at = {k: _metrics(k) for k in ks}
    values = F.array(*[metrics_at[k][metric] for metric, k in metric_names(ks)])
    users = judged.join(found.hint("shuffle_hash"), a_list, how="left").withColumn(VALUES, values)
    named = with_names(users, fold=fold, sources=sources, slices=slices)
    return named.select(C.FOLD, C.MODEL, C.SLICE, C.USER_IDX, C.NUM_TARGETS, VALUES)


def no_interval() -> list[Column]:
    """The columns of ``metrics`` that a figure without an interval leaves empty."""
    bounds = (C.LOW, C.HIGH, C.DIFFERENCE, C.DIFFERENCE_LOW, C.DIFFERENCE_HIGH, C.ADJUSTED_LOW, C.ADJUSTED_HIGH)
    return [F.lit(None).cast("double").alias(name) for name in bounds]


def _sums(k: int) -> list[Column]:
    """What the metrics at k need of a user's hits, as columns named by :func:`_part`."""
    within = F.col(C.RANK) <= k
    parts = {
        "hits": F.count_if(within).cast("double"),
        "unexpected": F.count_if(within & (F.col(POPULAR_RANK).isNull() | (F.col(POPULAR_RANK) > k))).cast("double"),
        "gain": F.sum(F.when(within, 1 / F.log2(F.col(C.RANK) + 1))),
        # The n-th hit has n hits up to its rank.
        "precisions": F.sum(F.when(within, F.col(_NTH) / F.col(C.RANK))),
        "weights": F.sum(F.when(within, F.col(C.WEIGHT))),
    }
    return [part.alias(_part(name, k)) for name, part in parts.items()]


def _part(name: str, k: int) -> str:
    return f"{name}_{k}"


def _metrics(k: int) -> dict[str, Column]:
    """The metrics at k from the sums over the user's hits, the number of his targets and the sum of their weights."""
    hits, unexpected, gain, precisions, weights = (
        F.coalesce(_part(name, k), F.lit(0.0)) for name in ("hits", "unexpected", "gain", "precisions", "weights")
    )
    num_targets, length = F.col(C.NUM_TARGETS), F.lit(float(k))
    # The ideal of n targets, n from 1 to k, as literals.
    ideals = [sum(1 / math.log2(rank + 1) for rank in range(1, n + 1)) for n in range(1, k + 1)]
    best = F.least(num_targets, F.lit(k)).cast("int")
    return {
        "hr": (hits > 0).cast("double"),
        "recall": hits / num_targets,
        "precision": hits / length,
        "f1": 2 * hits / (length + num_targets),
        "mrr": F.when(F.col(_FIRST) <= k, 1 / F.col(_FIRST)).otherwise(0.0),
        "map": precisions / best,
        "serendipity": unexpected / length,
        "recall_debiased": weights / F.col(C.WEIGHT),
        "ndcg": gain / F.element_at(F.array(*[F.lit(value) for value in ideals]), best),
    }
