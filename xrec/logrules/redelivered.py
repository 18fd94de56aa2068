"""Events that came in several deliveries: a file sent again under another name, or days that overlap."""

from __future__ import annotations

from pyspark.sql import DataFrame

from xrec import columns as C


def merge_deliveries(events: DataFrame) -> DataFrame:
    """Clean events of all deliveries to each event once, without ``delivery_id``.

    An event is the same wherever its ``event_id`` is, so the order of the deliveries does not matter; when one of them is
    replaced or loses the event, the others still have it.
    """
    if events.select(C.DELIVERY_ID).distinct().limit(2).count() < 2:
        return events.drop(C.DELIVERY_ID)
    # By user first: the rules after this one look at a user's events together, and then find them so.
    by_user = events.repartition(C.USER_ID)
    return by_user.dropDuplicates([C.USER_ID, C.EVENT_ID]).drop(C.DELIVERY_ID)
