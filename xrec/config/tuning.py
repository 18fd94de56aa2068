"""Settings of the search for a sequence model's settings."""

from __future__ import annotations

from typing import Literal

from xrec.config.base import Count, Frozen, Positive


class Tuning(Frozen):
    """What jobs/tune_sequence.py may spend."""

    model: Literal["gru", "transformer"] = "transformer"
    """The model whose settings are searched."""
    trials: Count = 20
    """Trainings, those of an unfinished search included."""
    minutes: Positive = 120.0
    """Minutes after which no training but the first begins, those of an unfinished search's trials included."""
