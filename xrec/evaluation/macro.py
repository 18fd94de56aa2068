"""Recall over categories, each with the same weight: what the many buyers of a few categories hide.

With C the categories of a slice's targets, U_c the users with targets in c, and r(u, c) the share of the user's targets in c
that his list holds up to rank k:

- macro_recall: mean over c of R(c), the mean over U_c of r(u, c) (macro averaging: Manning et al. 2008, section 13.6)

A mean over categories of means over users is no mean over users, which is what the bootstrap resamples. So a user's value is
R + N / |C| sum over his c of (r(u, c) - R(c)) / |U_c|, with R the macro recall and N the users of the slice: the mean of the
values is R, and their resampled mean is R to the first order (infinitesimal jackknife; Efron, Tibshirani 1993, section 21).
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.evaluation.metrics import VALUES
from xrec.evaluation.slices import Slice, wanted_of

MACRO = ("macro_recall",)
_LISTS = [C.FOLD, C.SOURCE, C.SLICE]
_RECALLS, _MEANS, _NUM_USERS_OF_CATEGORY, _NUM_CATEGORIES = (
    "recalls",
    "means",
    "num_users_of_category",
    "num_categories",
)


def macro_names(ks: Sequence[int]) -> list[tuple[str, int]]:
    """(metric, k) of each position of the column ``values``."""
    return [(metric, k) for k in ks for metric in MACRO]


def judge_categories(
    candidates: DataFrame, targets: DataFrame, *, sources: Sequence[str], slices: Sequence[Slice], ks: Sequence[int]
) -> DataFrame:
    """Rows of a fold's ``candidates`` and ``targets`` to one row a (fold, model, slice, user with targets), with ``values``.

    As :func:`xrec.evaluation.metrics.judge_lists`; the mean over a slice's users is the metric.
    """
    on = [C.FOLD, C.SOURCE, C.SCOPE, C.USER_IDX, C.ITEM_IDX]
    lists = candidates.where(F.col(C.RANK) <= max(ks)).select(*on, C.RANK)
    found = wanted_of(targets, sources, slices).join(lists, on, how="left")
    recalls = [F.avg(F.coalesce(F.col(C.RANK) <= k, F.lit(False)).cast("double")) for k in ks]
    of_user = found.groupBy(*_LISTS, C.USER_IDX, C.CATEGORY).agg(F.array(*recalls).alias(_RECALLS))
    of_category = of_user.groupBy(*_LISTS, C.CATEGORY).agg(
        F.count("*").alias(_NUM_USERS_OF_CATEGORY), _mean(_RECALLS, len(ks)).alias(_MEANS)
    )
    users = of_user.groupBy(*_LISTS).agg(F.countDistinct(C.USER_IDX).alias(C.NUM_USERS))
    of_slice = of_category.groupBy(*_LISTS).agg(
        F.count("*").alias(_NUM_CATEGORIES), _mean(_MEANS, len(ks)).alias(VALUES)
    )
    influence = F.transform(
        F.arrays_zip(_RECALLS, _MEANS), lambda pair: (pair[_RECALLS] - pair[_MEANS]) / F.col(_NUM_USERS_OF_CATEGORY)
    )
    sums = (
        of_user.join(of_category, [*_LISTS, C.CATEGORY], how="inner")
        .select(*_LISTS, C.USER_IDX, influence.alias("influence"))
        .groupBy(*_LISTS, C.USER_IDX)
        .agg(F.array(*[F.sum(F.get("influence", F.lit(n))) for n in range(len(ks))]).alias("influence"))
    )
    scale = F.col(C.NUM_USERS) / F.col(_NUM_CATEGORIES)
    values = F.zip_with(VALUES, "influence", lambda mean, part: mean + scale * part)
    return sums.join(F.broadcast(users.join(of_slice, _LISTS, how="inner")), _LISTS, how="inner").select(
        C.FOLD, F.col(C.SOURCE).alias(C.MODEL), C.SLICE, C.USER_IDX, values.alias(VALUES)
    )


def _mean(arrays: str, length: int) -> Column:
    return F.array(*[F.avg(F.get(arrays, F.lit(n))) for n in range(length)])
