"""Sessions: a user's events without a longer pause between them."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C


def mark_sessions(events: DataFrame, gap_minutes: float) -> DataFrame:
    """Clean events with ``session_ts``, when the user's session began, and ``gap_seconds`` since his event before.

    A session ends where nothing happens for longer than ``gap_minutes``. (user, ``session_ts``) names a session: an event that
    arrives late can only begin a session earlier or join two, and all others keep their name. Events of one instant have
    a gap of 0 but for the first.
    """
    in_order = Window.partitionBy(C.USER_ID).orderBy(C.EVENT_TS, C.EVENT_ID)
    gap = (F.unix_micros(C.EVENT_TS) - F.unix_micros(F.lag(C.EVENT_TS).over(in_order))) / F.lit(1e6)
    begins = F.col(C.GAP_SECONDS).isNull() | (F.col(C.GAP_SECONDS) > F.lit(gap_minutes * 60))
    newest_begin = F.last(F.when(begins, F.col(C.EVENT_TS)), ignorenulls=True).over(in_order)
    return events.withColumn(C.GAP_SECONDS, gap).withColumn(C.SESSION_TS, newest_begin)
