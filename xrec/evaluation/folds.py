"""Folds: what is learned from, and what is judged by.

A fold is (as_of, horizon, purpose). Everything derived uses events before as_of only; targets are the events in
[as_of, as_of + horizon). A ``last_out`` fold is cut per user instead: each user's last event (by time, then by a hash)
is the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Literal

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Folds, SettingsError

Purpose = Literal["select", "test", "serve"]
_SELECT: list[Purpose] = ["select"]
_POSITION = "position"
_LEAST_HISTORY = 0.5
"""History, in horizons, that a fold needs to be asked what to choose: the log's first days tell little of later ones."""
_ENOUGH = 2
"""Select folds of the whole horizon that are enough: what learns is judged from the second on."""
_LEAST_SHARE = 1 / 20
"""Part of the horizon (3 days of 61) that select folds have at least where they are shortened: fewer days hold few targets."""
_DAY, _SECOND = timedelta(days=1), timedelta(seconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One fold."""

    name: str
    """Its value in the column ``fold``, such as test-2017-11-01 or select-last2."""
    purpose: Purpose
    as_of: datetime
    """Events before it are history (UTC). In a last_out fold: after the log's end, ages are measured from it."""
    horizon: timedelta
    skip_last: int | None = None
    """last_out folds: the user's n-th newest event is the target and newer ones are hidden; None in time folds."""

    @property
    def has_targets(self) -> bool:
        """Whether the log reaches into the fold's horizon: a serving fold is judged later."""
        return self.purpose != "serve"

    @property
    def days(self) -> str:
        """The horizon in words."""
        return f"{self.horizon.total_seconds() / 86400:.4g} days"


def plan_folds(folds: Folds, log_start: datetime, log_end: datetime, *, longest: int | None = None) -> list[Fold]:
    """The folds of a run, oldest first: those that choose settings, then those that are judged or serve.

    Each begins where the horizon of the one before it ends (rolling origin), select folds as far back as half a horizon of
    history is left. Where not even two of these fit they are shorter, the judged folds never. With purpose select, these alone.

    ``log_start`` and ``log_end`` are the times of the first and last clean event (UTC). ``longest`` is the number of events of the
    user who has most, where it is known: last_out folds that choose are left out where nobody has a history in them.

    Raises
    ------
    SettingsError
        as_of is no date, or leaves no history, or a backtest no horizon, or no select fold a history where these are wanted.
    """
    just_after = log_end + timedelta(microseconds=1)
    if folds.kind == "last_out":
        first = 0 if folds.purpose == "serve" else 1
        newest: list[Purpose] = ["serve" if folds.purpose == "serve" else "test"]
        planned = [
            Fold(name=f"{purpose}-last{n}", purpose=purpose, as_of=just_after, horizon=folds.horizon, skip_last=n)
            for n, purpose in enumerate(newest + _SELECT * folds.num_select, start=first)
            if purpose != "select" or longest is None or n < longest
        ]
        return _wanted(planned[::-1], folds, log_start)
    serves = folds.purpose == "serve"
    as_of = just_after if folds.as_of == "latest" else parse_time("folds.as_of", folds.as_of)
    if not serves and folds.as_of == "latest":
        as_of = just_after - folds.horizon
    if as_of <= log_start:
        shorter = (log_end - log_start) / (folds.num_test + folds.num_select + _LEAST_HISTORY)
        choose = f"set folds.horizon={_duration(shorter)}" if folds.as_of == "latest" else "choose a later as_of"
        raise SettingsError(
            f"folds.as_of: found {folds.as_of} with horizon {folds.horizon}, which leaves no history: the clean log runs from "
            f"{log_start} to {log_end}; {choose}, or where the log has no clock (log.time.unit: order) folds.kind=last_out"
        )
    if not serves and as_of > log_end:
        raise SettingsError(
            f"folds.as_of: found {folds.as_of}, expected a time before the log's end ({log_end}) for a backtest; "
            "choose an earlier one, or folds.purpose=serve"
        )
    purpose: Purpose = "serve" if serves else "test"
    as_ofs = [as_of - n * folds.horizon for n in range(1 if serves else folds.num_test)]
    judged = [_time_fold(purpose, one, folds.horizon) for one in as_ofs if one > log_start]
    return _wanted([*_select_folds(folds, judged[-1].as_of, log_start), *judged[::-1]], folds, log_start)


def _select_folds(folds: Folds, end: datetime, log_start: datetime) -> list[Fold]:
    """The select folds, oldest first, before the oldest judged fold, which begins at ``end``.

    Of the whole horizon where two of these fit; else as many as there shall be, of as many whole days (or seconds) as leave the
    oldest one its history, from a midnight on.
    """
    fitting = [
        n
        for n in range(1, folds.num_select + 1)
        if end - n * folds.horizon - _LEAST_HISTORY * folds.horizon > log_start
    ]
    if len(fitting) >= min(_ENOUGH, folds.num_select):
        return [_time_fold("select", end - n * folds.horizon, folds.horizon) for n in reversed(fitting)]
    most = (end - log_start) / max(_LEAST_SHARE * folds.horizon, _SECOND) - _LEAST_HISTORY
    num = min(folds.num_select, int(most))
    for unit in (_DAY, _SECOND):
        cut = end - (end - _EPOCH) % unit
        if num > 0 and (step := (cut - log_start) / (num + _LEAST_HISTORY) // unit * unit):
            return [_time_fold("select", cut - n * step, step) for n in range(num, 0, -1)]
    return []


def _wanted(planned: list[Fold], folds: Folds, log_start: datetime) -> list[Fold]:
    """All folds, or those that may choose settings where no other is wanted."""
    if folds.purpose != "select":
        return planned
    select = [fold for fold in planned if fold.purpose == "select"]
    if not select:
        lacking = (
            "and nobody has an event before those that they hide: choose folds.purpose=test or serve"
            if folds.kind == "last_out"
            else f"and no room for one of {_LEAST_SHARE * folds.horizon} with half as much history: the clean log begins at "
            f"{log_start}; choose a shorter folds.horizon or a later folds.as_of"
        )
        raise SettingsError(
            f"folds.num_select: found {folds.num_select} folds before folds.as_of ({folds.as_of}), {lacking}"
        )
    return select


def select_folds_before(fold: Fold, folds: Sequence[Fold]) -> list[Fold]:
    """The select folds, oldest first, whose targets were known at the fold's as-of: what may choose for it."""
    return [one for one in folds[: folds.index(fold)] if one.purpose == "select"]


def histories_of(events: DataFrame, folds: Sequence[Fold]) -> DataFrame:
    """Judged events that the folds may learn from, of every event type, once for each fold that may: with ``fold``, ``as_of_ts``.

    Those that count by what was known before as_of: a purchase that went back later was still a purchase then. The folds are of
    one kind, as those of a run are.
    """

    def counts_then(fold: Fold) -> Column:
        return F.col(C.VOID_TS).isNull() | (F.col(C.VOID_TS) >= F.lit(fold.as_of))

    if folds[0].skip_last is None:
        return _of_folds(events, {fold: counts_then(fold) & (F.col(C.EVENT_TS) < F.lit(fold.as_of)) for fold in folds})
    placed = _with_position(events.where(counts_then(folds[0])))
    return _of_folds(placed, {fold: F.col(_POSITION) > F.lit(fold.skip_last) for fold in folds}).drop(_POSITION)


def horizons_of(events: DataFrame, folds: Sequence[Fold]) -> DataFrame:
    """Judged events that judge the folds, of every event type, once for each fold that they judge: with ``fold``, ``as_of_ts``.

    Those within the horizon that count by all that is known today; in a fold that chooses, by what was known when its horizon
    ended: what the newer folds are told must not depend on what they cannot know. None of a fold whose ``has_targets`` is false.
    """
    moment, counts = F.col(C.EVENT_TS), F.col(C.VOID_TS).isNull()

    def judges(fold: Fold) -> Column:
        end = F.lit(fold.as_of + fold.horizon)
        counted = counts | (F.col(C.VOID_TS) >= end) if fold.purpose == "select" else counts
        return (moment >= F.lit(fold.as_of)) & (moment < end) & counted

    judged = [fold for fold in folds if fold.has_targets]
    if not judged or judged[0].skip_last is None:
        return _of_folds(events, {fold: judges(fold) for fold in judged})
    placed = _with_position(events.where(counts))
    return _of_folds(placed, {fold: F.col(_POSITION) == F.lit(fold.skip_last) for fold in judged}).drop(_POSITION)


def history_of(events: DataFrame, fold: Fold) -> DataFrame:
    """The rows of :func:`histories_of` of one fold, with the columns of ``events`` alone."""
    return histories_of(events, [fold]).drop(C.FOLD, C.AS_OF_TS)


def _of_folds(events: DataFrame, belongs: Mapping[Fold, Column]) -> DataFrame:
    """Each event once for each fold that it belongs to. One reading of the log serves all folds."""
    folds = [
        F.when(holds, F.struct(F.lit(fold.name).alias(C.FOLD), F.lit(fold.as_of).alias(C.AS_OF_TS)))
        for fold, holds in belongs.items()
    ]
    nothing = F.array().cast(f"array<struct<{C.FOLD}: string, {C.AS_OF_TS}: timestamp>>")
    return events.select("*", F.inline(F.array_compact(F.array(*folds)) if folds else nothing))


def _with_position(events: DataFrame) -> DataFrame:
    """Events with their position from the user's end (1 is the newest); ties in time are ordered by the event's hash."""
    newest_first = Window.partitionBy(C.USER_IDX).orderBy(F.desc(C.EVENT_TS), F.desc(C.EVENT_ID))
    return events.withColumn(_POSITION, F.row_number().over(newest_first))


def parse_time(key: str, text: str) -> datetime:
    """The time that a setting names, in UTC; raises :class:`SettingsError` where it is none."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{key}: found '{text}', expected latest, or a date or time such as 2017-11-01") from None
    return parsed.astimezone(timezone.utc) if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)


def _time_fold(purpose: Purpose, as_of: datetime, horizon: timedelta) -> Fold:
    at_midnight = (as_of.hour, as_of.minute, as_of.second, as_of.microsecond) == (0, 0, 0, 0)
    name = f"{purpose}-{as_of:%Y-%m-%d}" if at_midnight else f"{purpose}-{as_of:%Y-%m-%dT%H%M%S}"
    return Fold(name=name, purpose=purpose, as_of=as_of, horizon=horizon)


def _duration(time: timedelta) -> str:
    """A time in whole days, or where that is none in seconds, as a setting takes it."""
    return f"P{time.days}D" if time.days else f"PT{max(time.seconds, 1)}S"
