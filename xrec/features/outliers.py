"""Quantities and prices far from the others of their item: features take the nearest limit instead (winsorising).

The limits are Tukey's fences (1977, Exploratory Data Analysis) on logarithms, because quantities and prices are skewed. They
belong to a fold: they come from its history alone. The events stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Outliers
from xrec.evaluation.folds import Fold

LIMITS = {C.QUANTITY: (C.QUANTITY_LOW, C.QUANTITY_HIGH), C.PRICE: (C.PRICE_LOW, C.PRICE_HIGH)}

_DECIMALS = 2
"""Of the logarithms: steps of 1 %, so that a group has some thousand different ones however long the log is."""


def value_limits_of(histories: DataFrame, outliers: Outliers) -> DataFrame:
    """History events of folds to rows of ``value_limits``: one a (fold, item), by its own quartiles, or its category's.

    With l and u the quartiles of ln(value) and s = max(u - l, ln(least_ratio)), the limits are exp(l - fence s) and
    exp(u + fence s). They are null where neither the item nor its category has ``min_events`` values.
    """
    of_item = histories.groupBy(C.FOLD, C.ITEM_IDX, C.CATEGORY).agg(*_fences(outliers)).alias("item")
    of_category = histories.groupBy(C.FOLD, C.CATEGORY).agg(*_fences(outliers)).alias("category")
    nearest = [
        F.coalesce(F.col(f"item.{limit}"), F.col(f"category.{limit}")).alias(limit)
        for limits in LIMITS.values()
        for limit in limits
    ]
    joined = of_item.join(F.broadcast(of_category), [C.FOLD, C.CATEGORY], how="inner")
    return joined.select(C.FOLD, C.ITEM_IDX, *nearest)


def require_limits(value_limits: DataFrame, folds: Sequence[Fold]) -> DataFrame:
    """The folds' rows of ``value_limits``; raises ValueError where one has none, because the stage fold has not run for it."""
    there = {row[0] for row in value_limits.select(C.FOLD).distinct().collect()}
    lacking = [fold.name for fold in folds if fold.name not in there]
    if lacking:
        raise ValueError(
            f"table 'value_limits': found no row of fold '{lacking[0]}', expected one for each item of its history; run "
            "./spark-submit.sh jobs/pipeline.py --only fold with the same settings first"
        )
    return value_limits


def winsorise(histories: DataFrame, value_limits: DataFrame) -> DataFrame:
    """History events of folds with ``quantity`` and ``price`` within their item's limits, and ``is_outlier`` where one was not."""
    names = [limit for limits in LIMITS.values() for limit in limits]
    rows = histories.join(value_limits.select(C.FOLD, C.ITEM_IDX, *names), [C.FOLD, C.ITEM_IDX], how="inner")
    within = {
        # least and greatest pass over nulls, also over an unknown value, which would become a limit.
        name: F.when(F.col(name).isNotNull(), F.greatest(F.least(name, high), low))
        for name, (low, high) in LIMITS.items()
    }
    is_far = [F.coalesce(F.col(name) != value, F.lit(False)) for name, value in within.items()]
    return rows.withColumns({**within, C.IS_OUTLIER: is_far[0] | is_far[1]}).drop(*names)


def _fences(outliers: Outliers) -> Iterator[Column]:
    for name, (low, high) in LIMITS.items():
        quartiles = F.percentile(F.round(F.ln(name), _DECIMALS), [0.25, 0.75])
        lower, upper = quartiles[0], quartiles[1]
        reach = F.lit(outliers.fence) * F.greatest(upper - lower, F.ln(F.lit(outliers.least_ratio)))
        is_enough = F.count(name) >= outliers.min_events
        yield F.when(is_enough, F.exp(lower - reach)).alias(low)
        yield F.when(is_enough, F.exp(upper + reach)).alias(high)
