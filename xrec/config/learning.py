"""Settings of what is learned from and how it is judged: categories, folds, weights, rules, balance, evaluation."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from xrec.config.base import Count, Duration, Frozen, Positive, Share


class Categories(Frozen):
    """What a category is and when a user has it."""

    level: Count = 1
    """Level of the category path that counts as the category, 1 at the root; a shorter path counts with its last node."""
    non_merchandise: tuple[str, ...] = ()
    """Categories that count as touched and are never recommended."""
    counting_events: tuple[str, ...] = ("purchase",)
    """Actions that touch a category and make a target."""
    look_back_days: Positive | None = None
    """Days before as-of within which an event touches; default: all time."""
    home_coverage: Share = 0.8
    """Share of a user's weight that the home categories cover."""


class Folds(Frozen):
    """What is learned from and what is judged by."""

    kind: Literal["time", "last_out"] = "time"
    """time: events before as_of are history; last_out: each user's last event is the target (for benchmark parity)."""
    purpose: Literal["test", "serve", "select"] = "test"
    """test: a backtest, judged by its horizon; serve: the lists that go out, judged later; select: the older folds alone, which \
may choose settings."""
    as_of: str = "latest"
    """Date or time (ISO 8601, UTC) before which events are history; latest: just after the last event, and where the lists are \
judged (test, select) one horizon before that."""
    horizon: Duration = timedelta(days=61)
    """Time after as_of that judges the lists, as ISO 8601 duration (P61D, PT45M)."""
    num_select: Annotated[int, Field(ge=0, le=12)] = 4
    """Older folds, one horizon apart, that teach the rankers, choose the blend's weights and what serves; what learns is \
judged from the second of them on. Those that have a history of less than half a horizon are left out; where not even two \
are left (one, where one is asked for), all are of equal, shorter horizons, of a twentieth of `horizon` at least."""
    num_test: Annotated[int, Field(ge=1, le=12)] = 1
    """Folds of a backtest, one horizon apart, the last of them at `as_of` (rolling origin); 1 where kind is last_out."""

    @model_validator(mode="after")
    def _one_last(self) -> Folds:
        if self.kind == "last_out" and self.num_test > 1:
            raise ValueError(f"folds.num_test: found {self.num_test} beside kind last_out, expected 1")
        if self.purpose == "select" and not self.num_select:
            raise ValueError("folds.num_select: found 0 beside purpose select, expected at least 1")
        return self


class Weights(Frozen):
    """How much an event says."""

    event_types: dict[str, Positive] = {"purchase": 1.0}
    """Weight of each action; an action that is not listed is rejected as unknown."""
    half_life_days: Positive | None = None
    """Days after which an event weighs half, measured back from as-of; default: no decay."""
    quantity_power: Share = 0.0
    """The weight is multiplied by the quantity, outliers drawn in, to this power; 0: off, and so is an unknown quantity."""


class Outliers(Frozen):
    """Quantities and prices far from the others of their item: features take the nearest limit, the events stay as they are."""

    fence: Positive = 3.0
    """How far beyond the quartiles of the logarithms a limit lies, in their distance (Tukey 1977: 3)."""
    least_ratio: Annotated[float, Field(gt=1)] = 2.0
    """Ratio of the quartiles that is assumed at least: where most buy one, two are no outlier."""
    min_events: Count = 20
    """Values that an item needs for limits of its own; below, its category's hold, and where that has fewer, none."""


class LogRules(Frozen):
    """What only the whole log can decide; rules that need a clock are off where log.time.unit is order."""

    repeat_seconds: Annotated[float, Field(ge=0)] = 2.0
    """The same action again within so many seconds is a repeat (double click, retry); 0: off."""
    return_days: Annotated[float, Field(ge=0)] = 90.0
    """Days within which a return takes back a purchase of the same user and item."""
    session_gap_minutes: Positive = 30.0
    """Minutes without an event that end a session."""


class Persons(Frozen):
    """Signs, each of one day (UTC), of a user who is no shopper; his events are kept and nothing is learned from them."""

    max_events_a_day: Count = 1000
    """Events."""
    max_items_a_day: Count = 500
    """Distinct items."""
    max_hours_a_day: Count = 20
    """Distinct hours with an event."""
    min_gaps: Count = 100
    """Pauses within visits that a day needs before their rhythm is judged."""
    min_gap_variation: Annotated[float, Field(ge=0)] = 0.1
    """Standard deviation over mean of these pauses below which they are a machine's; 0: off."""


class Balance(Frozen):
    """Balancing of the training rows."""

    alpha: Share = 1.0
    """A category's share is proportional to its count to this power; 1 is off."""
    user_alpha: Share = 1.0
    """A user's share is proportional to his number of rows to this power; 1 is off, 0 gives all users the same."""
    min_rows: Annotated[int, Field(ge=0)] = 0
    """Rows that a category of the long tail counts as at least, within max_repeat; 0 is off."""
    max_repeat: Annotated[float, Field(ge=1)] = 5.0
    """Largest factor by which a row may be repeated or up-weighted."""


class Evaluation(Frozen):
    """Figures and intervals."""

    scopes: tuple[Literal["touched", "home", "new", "all"], ...] = ("touched", "home")
    """Lists that are made and judged, beside those of ranking.scope: of items outside the touched or the home categories, of all \
that the user never had (new), of all."""
    ks: tuple[Count, ...] = Field((10, 20), min_length=1)
    """Cut-offs of the metrics; the first is the one that the summary shows."""
    num_bootstrap: Count = 1000
    """Poisson bootstrap replicates."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Level of the intervals."""

    @field_validator("ks")
    @classmethod
    def _once_each(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(ks))
