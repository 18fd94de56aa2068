"""Folds: what is learned from, and what is judged by.

A fold is (as_of, horizon, purpose). Everything derived uses events before as_of only; targets are the events in
[as_of, as_of + horizon). A ``last_out`` fold is cut per user instead: each user's last event (by time, then by a hash)
is the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Literal

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Folds, SettingsError


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One fold."""

    name: str
    """Its value in the column ``fold``, such as test-2017-11-01 or select-last2."""
    purpose: Literal["select", "test", "serve"]
    as_of: datetime
    """Events before it are history (UTC). In a last_out fold: after the log's end, ages are measured from it."""
    horizon: timedelta
    skip_last: int | None = None
    """last_out folds: the user's n-th newest event is the target and newer ones are hidden; None in time folds."""

    @property
    def has_targets(self) -> bool:
        """Whether the log reaches into the fold's horizon: a serving fold is judged later."""
        return self.purpose != "serve"


def plan_folds(folds: Folds, log_start: datetime, log_end: datetime) -> list[Fold]:
    """The folds of a run, the newest (test or serve) last, the ones that choose settings before it.

    ``log_start`` and ``log_end`` are the times of the first and last clean event (UTC).

    Raises
    ------
    SettingsError
        as_of is no date, or leaves no history, or a backtest no horizon.
    """
    just_after = log_end + timedelta(microseconds=1)
    if folds.kind == "last_out":
        lasts = range(1, folds.num_select + 2) if folds.purpose == "test" else range(folds.num_select + 1)
        planned = [
            Fold(
                name=f"{'serve' if n == 0 else folds.purpose if n == lasts[0] else 'select'}-last{n}",
                purpose="serve" if n == 0 else folds.purpose if n == lasts[0] else "select",
                as_of=just_after,
                horizon=folds.horizon,
                skip_last=n,
            )
            for n in lasts
        ]
        return planned[::-1]
    as_of = just_after if folds.as_of == "latest" else _parse(folds.as_of)
    if folds.purpose == "test" and folds.as_of == "latest":
        as_of = just_after - folds.horizon
    if as_of <= log_start:
        raise SettingsError(
            f"folds.as_of: found {folds.as_of} with horizon {folds.horizon}, which leaves no history: "
            f"the clean log runs from {log_start} to {log_end}; choose a later as_of or a shorter folds.horizon"
        )
    if folds.purpose == "test" and as_of > log_end:
        raise SettingsError(
            f"folds.as_of: found {folds.as_of}, expected a time before the log's end ({log_end}) for a backtest; "
            "choose an earlier one, or folds.purpose=serve"
        )
    planned = [Fold(name=_name(folds.purpose, as_of), purpose=folds.purpose, as_of=as_of, horizon=folds.horizon)]
    for n in range(1, folds.num_select + 1):
        earlier = as_of - n * folds.horizon
        if earlier > log_start:
            planned.append(Fold(name=_name("select", earlier), purpose="select", as_of=earlier, horizon=folds.horizon))
    return planned[::-1]


def history_of(events: DataFrame, fold: Fold) -> DataFrame:
    """Judged events that the fold may learn from, of every event type: the columns of ``events``.

    Those that count by what was known before as_of: a purchase that went back later was still a purchase then.
    """
    events = events.where(F.col(C.VOID_TS).isNull() | (F.col(C.VOID_TS) >= F.lit(fold.as_of)))
    if fold.skip_last is None:
        return events.where(F.col(C.EVENT_TS) < F.lit(fold.as_of))
    return _with_position(events).where(F.col("position") > fold.skip_last).drop("position")


def horizon_of(events: DataFrame, fold: Fold) -> DataFrame:
    """Judged events that judge the fold: those within the horizon that count by all that is known today, of every event type.

    None where ``has_targets`` is false.
    """
    if not fold.has_targets:
        return events.where(F.lit(False))
    events = events.where(F.col(C.VOID_TS).isNull())
    if fold.skip_last is None:
        end = fold.as_of + fold.horizon
        return events.where((F.col(C.EVENT_TS) >= F.lit(fold.as_of)) & (F.col(C.EVENT_TS) < F.lit(end)))
    return _with_position(events).where(F.col("position") == fold.skip_last).drop("position")


def _with_position(events: DataFrame) -> DataFrame:
    """Events with their position from the user's end (1 is the newest); ties in time are ordered by the event's hash."""
    newest_first = Window.partitionBy(C.USER_IDX).orderBy(F.desc(C.EVENT_TS), F.desc(C.EVENT_ID))
    return events.withColumn("position", F.row_number().over(newest_first))


def _parse(text: str) -> datetime:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(
            f"folds.as_of: found '{text}', expected latest, or a date or time such as 2017-11-01"
        ) from None
    return parsed.astimezone(timezone.utc) if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)


def _name(purpose: str, as_of: datetime) -> str:
    is_date = (as_of.hour, as_of.minute, as_of.second, as_of.microsecond) == (0, 0, 0, 0)
    return f"{purpose}-{as_of:%Y-%m-%d}" if is_date else f"{purpose}-{as_of:%Y-%m-%dT%H%M%S}"
