"""Accuracy of ranked lists per user, and catalogue coverage: the only source of reported numbers.

Judged are the users who have a target in the slice, each with the same weight; a judged user whose list is empty, or
shorter than k, misses what is not there (precision still divides by k). A user without targets is in no mean, and counts
for coverage alone. The rank decides, from 1; equal scores were given their ranks where the list was made (by item index).

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

Of all lists together, up to rank k, with n recommendable items, of which the i-th least shown is in x_i lists:

- coverage: distinct items over n (Ge et al. 2010)
- category_coverage: distinct categories over recommendable categories
- gini: sum of (2 i - n - 1) x_i over n times the sum of x_i: 0 where all items are shown equally often, near 1 where few are
  (Gini 1912; Castells et al. 2015)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.evaluation.hits import POPULAR_RANK, SLICE, SOURCE, asked_in_slices, asked_of, hits_of, with_names
from xrec.evaluation.slices import Slice
from xrec.lists import ranked_rows

ACCURACY = ("hr", "recall", "precision", "f1", "ndcg", "map", "mrr", "serendipity", "recall_debiased")
COVERAGE = "coverage"
EXPOSURE = (COVERAGE, "category_coverage", "gini")
VALUES = "values"
_EXPOSURE, _NTH, _FIRST = "num_lists", "nth", "first_rank"
_DEBIASING = -1.5
_LISTS = [C.FOLD, C.SOURCE, C.SCOPE]


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


def exposure_of(candidates: DataFrame, items: DataFrame, *, ks: Sequence[int]) -> DataFrame:
    """Rows of ``candidates`` to rows of ``metrics`` (without run_id): which items a model and slice shows at all, at every k.

    ``num_users`` is the number of users with a list. These figures are of all lists together and have no interval over users.

    Parameters
    ----------
    candidates
        Lists, of all users, also of those without targets.
    items
        Rows of ``items``; the recommendable ones are counted.
    ks
        Cut-offs.
    """
    recommendable = items.where(C.RECOMMENDABLE)
    sizes = recommendable.agg(F.count("*"), F.countDistinct(C.CATEGORY)).first()
    assert sizes is not None
    num_items, num_categories = max(sizes[0], 1), max(sizes[1], 1)
    lists = ranked_rows(candidates.drop(C.SCORES), k=max(ks))
    counts = [F.count_if(F.col(C.RANK) <= k) for k in ks]
    of_item = lists.groupBy(*_LISTS, C.ITEM_IDX).agg(
        F.arrays_zip(F.array(*map(F.lit, ks)).alias(C.K), F.array(*counts).alias(_EXPOSURE)).alias("shown"),
        F.count_if(F.col(C.RANK) == 1).alias(C.NUM_USERS),
    )
    exposures = of_item.select(*_LISTS, C.ITEM_IDX, C.NUM_USERS, F.inline("shown")).where(F.col(_EXPOSURE) > 0)
    known = exposures.join(recommendable.select(C.ITEM_IDX, C.CATEGORY), C.ITEM_IDX, how="inner")
    # The x of the Gini index in groups of items that are equally often shown; the never shown stand before all others.
    grouped = known.groupBy(*_LISTS, C.K, _EXPOSURE).agg(
        F.count("*").alias("m"),
        F.sum(C.NUM_USERS).alias(C.NUM_USERS),
        F.collect_set(C.CATEGORY).alias("categories"),
    )
    of_list = Window.partitionBy(*_LISTS, C.K)
    num_shown = F.sum("m").over(of_list)
    upward = of_list.orderBy(_EXPOSURE).rowsBetween(Window.unboundedPreceding, -1)
    before = F.lit(num_items) - num_shown + F.coalesce(F.sum("m").over(upward), F.lit(0))
    ranked = grouped.withColumn("ranks", F.col("m") * (2 * before + F.col("m") - F.lit(num_items)))
    found = ranked.groupBy(*_LISTS, C.K).agg(
        (F.sum("m") / num_items).alias("coverage"),
        (F.size(F.array_distinct(F.flatten(F.collect_list("categories")))) / num_categories).alias("category_coverage"),
        (F.sum(F.col(_EXPOSURE) * F.col("ranks")) / (num_items * F.sum(F.col(_EXPOSURE) * F.col("m")))).alias("gini"),
        F.sum(C.NUM_USERS).alias(C.NUM_USERS),
    )
    values = F.array(*[F.struct(F.lit(name).alias(C.METRIC), F.col(name).alias(C.VALUE)) for name in EXPOSURE])
    flat = found.select(*_LISTS, C.K, C.NUM_USERS, F.inline(values))
    named = flat.withColumnsRenamed({C.SOURCE: C.MODEL, C.SCOPE: C.SLICE})
    return named.select(C.FOLD, C.MODEL, C.SLICE, C.METRIC, C.K, C.VALUE, *no_interval(), C.NUM_USERS)


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
