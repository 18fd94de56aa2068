"""Settings of what was shown to whom: the exposures, an experiment's arms, and what flows back into training."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, field_validator

from xrec.config.base import Count, Frozen, Name, Positive
from xrec.config.inputs import File, TimeFormat


class ExposureColumns(Frozen):
    """The columns of the exposures: our word on the left, the file's name on the right."""

    user_id: str
    """Column of the user's key."""
    shown_ts: str
    """Column of when the item was shown."""
    item_id: str | None = None
    """Column of the item; a row without one says only that the user was in his arm then."""
    experiment: str | None = None
    """Column of the experiment's name; without it every row is of `experiment.name`."""
    arm: str | None = None
    """Column of the arm; without it a user's arm is the one that the hash assigns."""
    rank: str | None = None
    """Column of the item's place in the list, from 1."""
    platform: str | None = None
    """Column of the platform whose key `user_id` is; without it the key is the one that the lists have."""


class Exposures(Frozen):
    """What downstream systems showed: one row is an item shown to a user at a time."""

    file: File
    columns: ExposureColumns
    time: TimeFormat = TimeFormat()
    """How `shown_ts` is written; `order` is no time here."""
    pseudonymised: bool = False
    """Whether `user_id` is the pseudonym already, as a system logs it that reads the lists; see privacy.pseudonymise."""
    delivery_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "full"
    """Name of this delivery of exposures; loading it again replaces its rows only."""

    @field_validator("time")
    @classmethod
    def _has_clock(cls, time: TimeFormat) -> TimeFormat:
        if time.unit == "order":
            raise ValueError("exposures.time.unit: found order, expected text, s, ms, us or ns: a window needs a clock")
        return time


class Experiment(Frozen):
    """An experiment on users: who is in which arm, and for how long an exposure may lead to a purchase."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "main"
    """Name of the experiment; it is part of the hash, so that two experiments divide the users anew."""
    salt: str = "xrec"
    """Start of the hashed text; no secret. Another salt divides the users anew."""
    arms: dict[Name, Positive] = {"control": 0.5, "lists": 0.5}
    """Each arm's share of the users, which add up to 1; the first is the control, and the order belongs to the hash."""
    window_days: Positive = 14.0
    """Days after an exposure within which a purchase counts."""

    @field_validator("arms")
    @classmethod
    def _divide_all(cls, arms: dict[str, float]) -> dict[str, float]:
        total = math.fsum(arms.values())
        if len(arms) < 2 or abs(total - 1) > 1e-9:
            raise ValueError(f"experiment.arms: found {arms}, expected two arms or more whose shares add up to 1")
        return arms


class Feedback(Frozen):
    """What the exposures teach: all off by default."""

    ignored_weight: Annotated[float, Field(ge=0)] = 0.0
    """How much an item that was shown in vain counts against it for that user, in ALS alone; 0: off."""
    bought_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight, in ALS, of a purchase that followed a showing, beside the purchase's own; 0: off."""
    rest_days: Annotated[float, Field(ge=0)] = 0.0
    """Days after the last showing in vain within which no source proposes the item to that user; 0: off."""
    window_days: Positive = 7.0
    """Days after a showing within which a purchase counts as its success; before they have passed nothing was in vain."""
    min_shown: Count = 3
    """Showings without any action on the item that it takes to be in vain."""

    @property
    def is_on(self) -> bool:
        """Whether anything flows back."""
        return bool(self.ignored_weight or self.bought_weight or self.rest_days)
