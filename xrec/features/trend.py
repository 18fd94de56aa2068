"""Trend: how much of an item's buyers are recent."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Trend
from xrec.evaluation.folds import Fold

_SECONDS_A_DAY = 86_400.0
_LEAST = 1e-6
"""A trend never vanishes: its logarithm is asked for, and of vanished scores none is above another."""


def trend_of(interactions: DataFrame, fold: Fold, trend: Trend) -> DataFrame:
    """A fold's interactions to one row an item that somebody had: ``item_idx``, ``trend``, at least a millionth and at most 1.

    With N the users who had an item before as-of, and a their ages in days since they last had it, an item's trend is
    (sum of 2^(-a / half_life_days) / N)^power: 1 where all had it just now.
    """
    age_days = (F.lit(fold.as_of).cast("double") - F.col(C.LAST_TS).cast("double")) / _SECONDS_A_DAY
    decayed = F.avg(F.pow(F.lit(0.5), age_days / F.lit(trend.half_life_days)))
    had = interactions.where(F.col(C.COUNTING))
    return had.groupBy(C.ITEM_IDX).agg(F.greatest(F.pow(decayed, F.lit(trend.power)), F.lit(_LEAST)).alias(C.TREND))


def with_trend(items: DataFrame, interactions: DataFrame, fold: Fold, trend: Trend) -> DataFrame:
    """Items with their ``trend``; one that nobody had has the mean of the others: it is neither preferred nor put back."""
    known = trend_of(interactions, fold, trend)
    mean = F.coalesce(known.select(F.avg(C.TREND)).scalar(), F.lit(1.0))
    return items.join(known, C.ITEM_IDX, how="left").withColumn(C.TREND, F.coalesce(C.TREND, mean))
