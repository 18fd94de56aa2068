"""Events that came in several deliveries: a file sent again under another name, or days that overlap."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C


def merge_deliveries(events: DataFrame) -> DataFrame:
    """Clean events of all deliveries to each event once, without ``delivery_id``.

    An event is the same wherever its ``event_id`` is, so the order of the deliveries does not matter; when one of them is
    replaced or loses the event, the others still have it. Deliveries may differ in the rate (``price_rate``) of an event's price
    alone; the highest price stays.
    """
    if events.select(C.DELIVERY_ID).distinct().limit(2).count() < 2:
        return events.drop(C.DELIVERY_ID)
    # By user first: the rules after this one look at a user's events together, and then find them so.
    by_user = events.repartition(C.USER_ID)
    same = [name for name in events.columns if name not in {C.DELIVERY_ID, C.PRICE}]
    return by_user.groupBy(*same).agg(F.max(C.PRICE).alias(C.PRICE)).select(*events.drop(C.DELIVERY_ID).columns)
