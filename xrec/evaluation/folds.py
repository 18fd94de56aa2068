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


def plan_folds(folds: Folds, log_start: datetime, log_end: datetime) -> list[Fold]:
    """The folds of a run, oldest first: those that choose settings, then those that are judged or serve.

    Each begins where the horizon of the one before it ends (rolling origin), select folds as far back as half a horizon of
    history is left. With purpose select, these alone.

    ``log_start`` and ``log_end`` are the times of the first and last clean event (UTC).

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
        ]
        return _wanted(planned[::-1], folds, log_start)
    serves = folds.purpose == "serve"
    as_of = just_after if folds.as_of == "latest" else parse_time("folds.as_of", folds.as_of)
    if not serves and folds.as_of == "latest":
        as_of = just_after - folds.horizon
    if as_of <= log_start:
        raise SettingsError(
            f"folds.as_of: found {folds.as_of} with horizon {folds.horizon}, which leaves no history: "
            f"the clean log runs from {log_start} to {log_end}; choose a later as_of or a shorter folds.horizon"
        )
    if not serves and as_of > log_end:
        raise SettingsError(
            f"folds.as_of: found {folds.as_of}, expected a time before the log's end ({log_end}) for a backtest; "
            "choose an earlier one, or folds.purpose=serve"
        )
    judged: list[Purpose] = ["serve"] if serves else ["test"] * folds.num_test
    planned = []
    for n, purpose in enumerate(judged + _SELECT * folds.num_select):
        earlier = as_of - n * folds.horizon
        least = _LEAST_HISTORY * folds.horizon if purpose == "select" else timedelta(0)
        if earlier - least > log_start:
            planned.append(Fold(name=_name(purpose, earlier), purpose=purpose, as_of=earlier, horizon=folds.horizon))
    return _wanted(planned[::-1], folds, log_start)


def _wanted(planned: list[Fold], folds: Folds, log_start: datetime) -> list[Fold]:
    """All folds, or those that may choose settings where no other is wanted."""
    if folds.purpose != "select":
        return planned
    select = [fold for fold in planned if fold.purpose == "select"]
    if not select:
        raise SettingsError(
            f"folds.num_select: found {folds.num_select} folds of {folds.horizon} before folds.as_of ({folds.as_of}), none "
            f"of which has a history of at least half that: the clean log begins at {log_start}; "
            "choose a shorter folds.horizon or a later folds.as_of"
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


def _name(purpose: str, as_of: datetime) -> str:
    is_date = (as_of.hour, as_of.minute, as_of.second, as_of.microsecond) == (0, 0, 0, 0)
    return f"{purpose}-{as_of:%Y-%m-%d}" if is_date else f"{purpose}-{as_of:%Y-%m-%dT%H%M%S}"
