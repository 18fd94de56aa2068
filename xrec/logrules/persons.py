"""Who is no person: users with a rate, a breadth, hours or a rhythm on one day that no shopper has."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Persons

_LONGEST_SHORT_GAP = 1800.0
"""Seconds: longer pauses are those between visits and say nothing about a machine's rhythm."""

_DAY = "day"


def judge_persons(events: DataFrame, persons: Persons) -> DataFrame:
    """Events with ``gap_seconds`` (see :mod:`xrec.logrules.sessions`) to rows of ``persons``: one a user.

    Each sign is measured per day (UTC), so that a user is flagged by what was known on that day and not by his future:
    events, distinct items, distinct hours, and the variation of the pauses between his moments (standard deviation over
    mean, of pauses up to 30 minutes; 0 is a clock). ``flagged_ts`` is his last moment of the first day that is beyond a
    threshold, ``evidence`` names every sign of that day; the other columns are those of his busiest day.
    """
    days = _days_of(events)
    signs = F.array_compact(F.array(*_signs(persons)))
    judged = days.withColumn(C.EVIDENCE, signs)
    beyond = F.size(C.EVIDENCE) > 0
    first_day = F.min(F.when(beyond, F.struct(_DAY, F.col(C.LAST_TS), F.col(C.EVIDENCE))))
    users = judged.groupBy(C.USER_ID).agg(
        F.sum(C.NUM_EVENTS).alias(C.NUM_EVENTS),
        F.count("*").alias(C.NUM_DAYS),
        F.max(C.NUM_EVENTS).alias(C.EVENTS_A_DAY),
        F.max(C.ITEMS_A_DAY).alias(C.ITEMS_A_DAY),
        F.max(C.HOURS_A_DAY).alias(C.HOURS_A_DAY),
        F.min(F.when(F.col(C.NUM_GAPS) >= persons.min_gaps, F.col(C.GAP_VARIATION))).alias(C.GAP_VARIATION),
        first_day.alias("flagged"),
    )
    return users.select(
        *[name for name in users.columns if name != "flagged"],
        F.col("flagged")[C.LAST_TS].alias(C.FLAGGED_TS),
        F.coalesce(F.col("flagged")[C.EVIDENCE], F.array().cast("array<string>")).alias(C.EVIDENCE),
    )


def _days_of(events: DataFrame) -> DataFrame:
    """Events to one row a (user, day)."""
    gap = F.col(C.GAP_SECONDS)
    short = F.when((gap > 0) & (gap <= _LONGEST_SHORT_GAP), gap)
    return events.groupBy(C.USER_ID, F.to_date(C.EVENT_TS).alias(_DAY)).agg(
        F.max(C.EVENT_TS).alias(C.LAST_TS),
        F.count("*").alias(C.NUM_EVENTS),
        F.size(F.collect_set(C.ITEM_ID)).cast("bigint").alias(C.ITEMS_A_DAY),
        F.size(F.collect_set(F.hour(C.EVENT_TS))).cast("bigint").alias(C.HOURS_A_DAY),
        F.count(short).alias(C.NUM_GAPS),
        (F.stddev_pop(short) / F.mean(short)).alias(C.GAP_VARIATION),
    )


def _signs(persons: Persons) -> list[Column]:
    """For each sign the sentence where a day is beyond its threshold, else null."""
    regular = (F.col(C.NUM_GAPS) >= persons.min_gaps) & (F.col(C.GAP_VARIATION) < persons.min_gap_variation)
    limits = {
        C.NUM_EVENTS: (persons.max_events_a_day, "events"),
        C.ITEMS_A_DAY: (persons.max_items_a_day, "items"),
        C.HOURS_A_DAY: (persons.max_hours_a_day, "hours"),
    }
    sentences = [
        F.when(F.col(name) > most, _sentence(f"%d {words} on %s (persons.max_{words}_a_day {most})", name))
        for name, (most, words) in limits.items()
    ]
    rhythm = (
        f"%d pauses that vary by %.3f of their mean on %s (persons.min_gap_variation {persons.min_gap_variation:g})"
    )
    return [*sentences, F.when(regular, _sentence(rhythm, C.NUM_GAPS, C.GAP_VARIATION))]


def _sentence(text: str, *names: str) -> Column:
    return F.format_string(text, *names, F.col(_DAY).cast("string"))
