"""Recall over categories, each with the same weight: what the many buyers of a few categories hide.

With C the categories of a slice's targets, U_c the users with targets in c, and r(u, c) the share of the user's targets in c
that his list holds up to rank k:

- macro_recall: mean over c of R(c), the mean over U_c of r(u, c) (macro averaging: Manning et al. 2008, section 13.6)

A mean over categories of means over users is no mean over users, which is what the bootstrap resamples. So a user's value is
R + N / |C| sum over his c of (r(u, c) - R(c)) / |U_c|, with R the macro recall and N the users of the slice: the mean of the
values is R, and their resampled mean is R to the first order (infinitesimal jackknife; Efron, Tibshirani 1993, section 21).

The few users of a category lie closer to their own mean than to the one they were drawn from: with n of them the differences are
sqrt(n / (n - 1)) times as large, as in an unbiased variance. One user alone is as far from the mean of all who are alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.evaluation.hits import SLICE, SOURCE, asked_in_slices, asked_of, hits_of, with_names
from xrec.evaluation.metrics import VALUES
from xrec.evaluation.slices import Slice

MACRO = ("macro_recall",)
_LISTS = [SOURCE, SLICE]
_HITS, _RECALLS, _MEANS, _MEANS_ALONE, _NUM_USERS_OF_CATEGORY, _NUM_CATEGORIES = (
    "hits",
    "recalls",
    "means",
    "means_alone",
    "num_users_of_category",
    "num_categories",
)


def macro_names(ks: Sequence[int]) -> list[tuple[str, int]]:
    """(metric, k) of each position of the column ``values``."""
    return [(metric, k) for k in ks for metric in MACRO]


def judge_categories(
    candidates: DataFrame,
    targets: DataFrame,
    *,
    fold: str,
    sources: Sequence[str],
    slices: Sequence[Slice],
    ks: Sequence[int],
) -> DataFrame:
    """The lists of the ``candidates`` and the ``targets`` of one ``fold`` to rows (fold, model, slice, user with targets, values).

    As :func:`xrec.evaluation.metrics.judge_lists`; the mean over a slice's users is the metric.
    """
    asked, key = asked_of(targets, slices), [C.USER_IDX, C.CATEGORY]
    wanted = asked_in_slices(asked, key, [], sources=sources, slices=slices)
    hits = hits_of(candidates, asked, sources=sources, slices=slices, longest=max(ks))
    found = hits.groupBy(*key, SOURCE, SLICE).agg(F.array(*[F.count_if(F.col(C.RANK) <= k) for k in ks]).alias(_HITS))
    recalls = [F.coalesce(F.get(_HITS, F.lit(n)), F.lit(0)) / F.col(C.NUM_TARGETS) for n in range(len(ks))]
    of_user = wanted.join(found.hint("shuffle_hash"), [*key, SOURCE, SLICE], how="left").withColumn(
        _RECALLS, F.array(*recalls)
    )
    of_category = of_user.groupBy(*_LISTS, C.CATEGORY).agg(
        F.count("*").alias(_NUM_USERS_OF_CATEGORY), _mean(_RECALLS, len(ks)).alias(_MEANS)
    )
    users = of_user.groupBy(*_LISTS).agg(F.countDistinct(C.USER_IDX).alias(C.NUM_USERS))
    of_slice = of_category.groupBy(*_LISTS).agg(
        F.count("*").alias(_NUM_CATEGORIES),
        _mean(_MEANS, len(ks)).alias(VALUES),
        _mean(F.when(F.col(_NUM_USERS_OF_CATEGORY) == 1, F.col(_MEANS)), len(ks)).alias(_MEANS_ALONE),
    )
    num = F.col(_NUM_USERS_OF_CATEGORY)
    center = F.when(num == 1, F.col(_MEANS_ALONE)).otherwise(F.col(_MEANS))
    # sqrt(n / (n - 1)) / n
    influence = F.zip_with(
        _RECALLS, center, lambda recall, mean: (recall - mean) / F.sqrt(num * F.greatest(num - 1, F.lit(1)))
    )
    sums = (
        of_user.join(of_category, [*_LISTS, C.CATEGORY], how="inner")
        .join(F.broadcast(of_slice.select(*_LISTS, _MEANS_ALONE)), _LISTS, how="inner")
        .select(*_LISTS, C.USER_IDX, influence.alias("influence"))
        .groupBy(*_LISTS, C.USER_IDX)
        .agg(F.array(*[F.sum(F.get("influence", F.lit(n))) for n in range(len(ks))]).alias("influence"))
    )
    scale = F.col(C.NUM_USERS) / F.col(_NUM_CATEGORIES)
    values = F.zip_with(VALUES, "influence", lambda mean, part: mean + scale * part)
    of_list = sums.join(F.broadcast(users.join(of_slice, _LISTS, how="inner")), _LISTS, how="inner")
    named = with_names(of_list.withColumn(VALUES, values), fold=fold, sources=sources, slices=slices)
    return named.select(C.FOLD, C.MODEL, C.SLICE, C.USER_IDX, VALUES)


def _mean(arrays: str | Column, length: int) -> Column:
    return F.array(*[F.avg(F.get(arrays, F.lit(n))) for n in range(length)])
