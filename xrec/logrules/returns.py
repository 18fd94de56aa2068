"""Returns: a return takes back what was bought before it, so that nothing is learned from it."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from pyspark.sql import DataFrame

from xrec import columns as C

_MICROSECONDS_A_DAY = 86_400_000_000
_LEAST_UNITS = 1e-9
_MATCHED = f"{C.EVENT_ID} string, {C.RETURNED_TS} timestamp, {C.IS_UNMATCHED} boolean"
_MATCHED_ARROW = pa.schema(
    [
        pa.field(C.EVENT_ID, pa.string()),
        pa.field(C.RETURNED_TS, pa.timestamp("us", tz="UTC")),
        pa.field(C.IS_UNMATCHED, pa.bool_()),
    ]
)


def match_returns(events: DataFrame, window_days: float) -> DataFrame:
    """Clean events to a row each: ``event_id``, ``returned_ts`` and ``is_unmatched``.

    ``returned_ts`` is when the last unit of a purchase went back, else null; ``is_unmatched`` a return that takes back nothing.
    A return takes back the newest units of the same user and item that were bought at most ``window_days`` before it, or at
    its instant, and not returned yet; it may take from several purchases, and a purchase that loses a part stays. A missing
    quantity is one unit. What cannot be taken back is no error: the purchase may lie before the log. A match depends on
    earlier events alone.

    Each (user, item) is looked at by itself: give only those that have a return.
    """
    window = int(window_days * _MICROSECONDS_A_DAY)

    def match(pair: pa.Table) -> pa.Table:
        return match_pair(pair, window)

    columns = [C.USER_ID, C.ITEM_ID, C.EVENT_ID, C.EVENT_TYPE, C.EVENT_TS, C.QUANTITY]
    return events.select(*columns).groupBy(C.USER_ID, C.ITEM_ID).applyInArrow(match, _MATCHED)


def match_pair(pair: pa.Table, window: int) -> pa.Table:
    """The events of one (user, item), in any order, to the rows of :func:`match_returns`; window in microseconds."""
    ids, kinds = pair[C.EVENT_ID].to_pylist(), pair[C.EVENT_TYPE].to_pylist()
    times = pair[C.EVENT_TS].cast(pa.int64()).to_pylist()
    units = [1.0 if quantity is None else quantity for quantity in pair[C.QUANTITY].to_pylist()]
    left: dict[int, float] = {}
    bought: list[int] = []
    returned: list[int | None] = [None] * len(ids)
    unmatched = [False] * len(ids)
    # At one instant a purchase comes before its return.
    for n in sorted(range(len(ids)), key=lambda n: (times[n], kinds[n] == C.RETURN, ids[n])):
        if kinds[n] == C.PURCHASE:
            left[n] = units[n]
            bought.append(n)
        elif kinds[n] == C.RETURN:
            open_units = units[n]
            for newest in _newest_first(bought, left):
                if open_units <= _LEAST_UNITS or times[n] - times[newest] > window:
                    break
                taken = min(open_units, left[newest])
                left[newest] -= taken
                open_units -= taken
                if left[newest] <= _LEAST_UNITS:
                    returned[newest] = times[n]
            unmatched[n] = open_units == units[n]
    arrays = [
        pa.array(ids),
        pa.array(returned, pa.int64()).cast(_MATCHED_ARROW.types[1]),
        pa.array(unmatched, pa.bool_()),
    ]
    return pa.Table.from_arrays(arrays, schema=_MATCHED_ARROW)


def _newest_first(bought: list[int], left: dict[int, float]) -> Iterator[int]:
    """Purchases of which something is left, the newest first; those used up are forgotten."""
    while bought and left[bought[-1]] <= _LEAST_UNITS:
        bought.pop()
    return (n for n in reversed(bought) if left[n] > _LEAST_UNITS)
