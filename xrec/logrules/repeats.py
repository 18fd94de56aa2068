"""Repeats: the same action again within seconds (a double click, a retry)."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C

_SAME_ACTION = (C.USER_ID, C.ITEM_ID, C.EVENT_TYPE, C.QUANTITY, C.PRICE)


def mark_repeats(events: DataFrame, seconds: float) -> DataFrame:
    """Clean events with ``is_repeat``: whether the same action happened at most ``seconds`` before, but not at its instant.

    The same action has the same user, item, type, quantity and price. Events of one instant are the lines of a basket,
    which the source tells apart: were they equal there, ingest would have dropped one as a duplicate. A run of clicks, each
    within ``seconds`` of the one before, leaves its first. 0 is off.
    """
    if seconds == 0:
        return events.withColumn(C.IS_REPEAT, F.lit(False))
    earlier = Window.partitionBy(*_SAME_ACTION).orderBy(_micros()).rangeBetween(Window.unboundedPreceding, -1)
    since = _micros() - F.max(_micros()).over(earlier)
    return events.withColumn(C.IS_REPEAT, F.coalesce(since <= F.lit(int(seconds * 1_000_000)), F.lit(False)))


def _micros() -> Column:
    return F.unix_micros(C.EVENT_TS)
