"""What is known of an event beside its item (``sequence.context``), as codes from 1; 0 is padding, or what is not known.

- gap: time since the moment before it of which the user has an event: 1 up to an hour, then one more for each doubling of
  1 + hours, up to 16
- hour, weekday, month: of the log's own zone (``log.time.zone``)
- event_type, platform: by name

Fields are in the order of their names, whatever the order of the settings: JSON, which tells the models of them, keeps none.
"""

from __future__ import annotations

from collections.abc import Callable

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Settings
from xrec.features.sequence_files import context_names

_MICROSECONDS_AN_HOUR = 3600e6
_NUM_GAPS = 16
CLOCK = {"hour": 24, "weekday": 7, "month": 12}
"""How many values each field of the clock has."""


def context_sizes(settings: Settings) -> dict[str, int]:
    """How many codes each field of ``sequence.context`` has, by name."""
    names = context_names(settings)
    sizes = {"gap": _NUM_GAPS, **CLOCK, **{field: len(values) for field, values in names.items()}}
    return {field: sizes[field] for field in sorted(settings.sequence.context)}


def with_context(events: DataFrame, settings: Settings) -> DataFrame:
    """Training events with ``context`` beside them: the codes of :func:`context_sizes`, array<int>; empty without any field."""
    local = F.from_utc_timestamp(C.EVENT_TS, settings.log.time.zone)
    names = context_names(settings)
    codes: dict[str, Callable[[], Column]] = {
        "gap": _gap,
        "hour": lambda: F.hour(local) + 1,
        "weekday": lambda: F.weekday(local) + 1,
        "month": lambda: F.month(local),
        "event_type": lambda: _place(names["event_type"], F.col(C.EVENT_TYPE)),
        "platform": lambda: _place(names["platform"], F.col(C.PLATFORM)),
    }
    found = [F.coalesce(codes[field]().cast("int"), F.lit(0)) for field in sorted(settings.sequence.context)]
    return events.withColumn(C.CONTEXT, F.array(*found).cast("array<int>"))


def _gap() -> Column:
    """The same for all events of a moment; null for the user's oldest."""
    now = F.unix_micros(C.EVENT_TS)
    earlier = Window.partitionBy(C.FOLD, C.USER_IDX).orderBy(now).rangeBetween(Window.unboundedPreceding, -1)
    hours = (now - F.max(now).over(earlier)) / F.lit(_MICROSECONDS_AN_HOUR)
    return F.when(hours.isNotNull(), F.least(F.ceil(F.log2(1 + hours)), F.lit(_NUM_GAPS)))


def _place(names: list[str], name: Column) -> Column:
    return F.array_position(F.array(*map(F.lit, names)), name)
