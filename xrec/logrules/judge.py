"""Every clean event judged: does it count, and from when on not, and why. Nothing is dropped.

``void_ts`` is the moment from which it was known that an event does not count. A fold uses what was known before its
as-of: a purchase that went back later was still a purchase then.
"""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Settings
from xrec.logrules.persons import judge_persons
from xrec.logrules.repeats import mark_repeats
from xrec.logrules.returns import match_returns
from xrec.logrules.sessions import mark_sessions

USED, OPTED_OUT, NO_PERSON, REPEAT, RETURNED, RETURN, STRAY_RETURN = (
    "used",
    "opted_out",
    "no_person",
    "repeat",
    "returned",
    "return",
    "stray_return",
)
USES = (USED, OPTED_OUT, NO_PERSON, REPEAT, RETURNED, RETURN, STRAY_RETURN)
"""What becomes of an event; where several hold, the first of: opted_out, no_person, repeat, stray_return, return, returned."""

_ALWAYS = "1900-01-01"
"""Before every event: who opted out is not learned from in any fold."""


class AccountingError(ValueError):
    """Events were lost or made: clean is not the sum of the uses."""


def persons_of(events: DataFrame, settings: Settings) -> DataFrame:
    """Clean events to rows of ``persons``; nobody is flagged in a log that has no clock."""
    if _has_clock(settings):
        return judge_persons(mark_sessions(events, settings.log_rules.session_gap_minutes), settings.persons)
    unclocked = judge_persons(events.withColumn(C.GAP_SECONDS, F.lit(None).cast("double")), settings.persons)
    return unclocked.withColumns(
        {C.FLAGGED_TS: F.lit(None).cast("timestamp"), C.EVIDENCE: F.array().cast("array<string>")}
    )


def judge(events: DataFrame, persons: DataFrame, settings: Settings, opt_outs: DataFrame | None = None) -> DataFrame:
    """Clean events with ``use``, ``void_ts`` (null: counts) and ``session_ts`` (null where the log has no clock).

    A repeat is set aside before returns are matched, so that a double click is returned once. ``opt_outs`` has the users
    (``user_id``) who are not to be learned from.
    """
    rules, clocked = settings.log_rules, _has_clock(settings)
    seconds = rules.repeat_seconds if clocked else 0.0
    marked = mark_repeats(events, seconds)
    returns = events.where(F.col(C.EVENT_TYPE) == C.RETURN)
    if returns.isEmpty():
        matched = marked.withColumns(
            {C.RETURNED_TS: F.lit(None).cast("timestamp"), C.IS_UNMATCHED: F.lit(None).cast("boolean")}
        )
    else:
        pairs = returns.select(C.USER_ID, C.ITEM_ID).distinct()
        concerned = mark_repeats(events.join(pairs, [C.USER_ID, C.ITEM_ID], how="left_semi"), seconds)
        found = match_returns(concerned.where(~F.col(C.IS_REPEAT)), rules.return_days)
        matched = marked.join(found, C.EVENT_ID, how="left")
    flagged = persons.where(F.col(C.FLAGGED_TS).isNotNull()).select(C.USER_ID, C.FLAGGED_TS)
    rows = matched.join(flagged, C.USER_ID, how="left")
    has_left = F.lit(False)
    if opt_outs is not None:
        rows = rows.join(opt_outs.select(C.USER_ID, F.lit(True).alias(C.OPTED_OUT)), C.USER_ID, how="left")
        has_left = F.coalesce(F.col(C.OPTED_OUT), F.lit(False))
    if clocked:
        rows = mark_sessions(rows, rules.session_gap_minutes)
    else:
        rows = rows.withColumn(C.SESSION_TS, F.lit(None).cast("timestamp"))
    is_return = F.col(C.EVENT_TYPE) == C.RETURN
    cases = {
        OPTED_OUT: (has_left, F.to_timestamp(F.lit(_ALWAYS))),
        NO_PERSON: (F.col(C.FLAGGED_TS).isNotNull(), F.col(C.FLAGGED_TS)),
        REPEAT: (F.col(C.IS_REPEAT), F.col(C.EVENT_TS)),
        STRAY_RETURN: (F.coalesce(F.col(C.IS_UNMATCHED), F.lit(False)), F.col(C.EVENT_TS)),
        RETURN: (is_return, F.col(C.EVENT_TS)),
        RETURNED: (F.col(C.RETURNED_TS).isNotNull(), F.col(C.RETURNED_TS)),
    }
    use, void_ts = F.lit(USED), F.lit(None).cast("timestamp")
    for name, (holds, since) in reversed(cases.items()):
        use = F.when(holds, F.lit(name)).otherwise(use)
        # Void from the earliest moment: a repeat never counted, also of a user who was flagged later.
        void_ts = F.when(holds, F.least(since, void_ts)).otherwise(void_ts)
    return rows.select(*events.columns, use.alias(C.USE), void_ts.alias(C.VOID_TS), C.SESSION_TS)


def check_uses(judged: DataFrame, events: DataFrame) -> None:
    """Raise AccountingError unless every event was judged once: the counts are those of a pass of their own."""
    found, expected = judged.count(), events.count()
    if found != expected:
        raise AccountingError(
            f"events judged: found {found:,}, expected the {expected:,} clean ones; run the stage judge again"
        )


def describe_judged(judged: DataFrame, persons: DataFrame, *, num_delivered: int | None = None) -> dict[str, str]:
    """Events of each use, and the users flagged, for the summary.

    ``num_delivered`` counts the events as often as they were delivered; default: once each.

    Raises
    ------
    ValueError
        Nothing is left to learn from.
    """
    counts = {row[C.USE]: int(row["count"]) for row in judged.groupBy(C.USE).count().collect()}
    num_clean = sum(counts.values())
    if not counts.get(USED):
        raise ValueError(
            f"log_rules, persons: found none of the {num_clean:,} clean events left to learn from ({counts}), expected some; "
            "raise the thresholds of persons, or lower log_rules.repeat_seconds"
        )
    shown = {f"events_{use}": counts[use] for use in USES if use in counts}
    if num_delivered is not None and num_delivered > num_clean:
        shown["events_delivered_again"] = num_delivered - num_clean
    flagged = persons.where(F.col(C.FLAGGED_TS).isNotNull()).count()
    return {name: f"{value:,}" for name, value in {**shown, "users_flagged": flagged}.items()}


def _has_clock(settings: Settings) -> bool:
    return settings.log.time.unit != "order"
