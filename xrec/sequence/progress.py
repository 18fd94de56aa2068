"""How far a training is: what ``progress.json`` in its checkpoint says. Free of torch, so that the driver can read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from xrec.storage.files import FilesError, exists, read_json, write_json

_SAID = 100
"""Characters that are shown of what is no progress."""


@dataclass(kw_only=True)
class Epoch:
    """What one epoch came to; one line of progress."""

    epoch: int
    """From 1."""
    loss: float
    """Mean weighted sampled-softmax loss of a training target, in nats."""
    ndcg: float | None
    """NDCG@10 of held-back validation users: for early stopping, never to be reported. None without such users."""
    hit_rate: float | None
    seconds: float
    """Training and validation."""
    windows_per_second: float


@dataclass(kw_only=True)
class Begun:
    """What is done of an epoch that has not ended."""

    steps: int
    """Steps that were taken."""
    sums: list[list[float]]
    """Of each rank, what they came to on it: the sum of the weighted losses, and of the weights."""
    seconds: float


@dataclass(kw_only=True)
class Progress:
    """How far a training is."""

    digest: str
    """Settings and seed; see xrec/features/vector_files.py."""
    version: int
    """Delta version of the sequences."""
    goes_on_from: str = "nothing"
    """What it started from, and how many of its items that knew."""
    epochs: list[Epoch] = field(default_factory=list)
    begun: Begun | None = None
    """How far the epoch after the last is; None where nothing of it was saved."""
    best: int = 0
    """The epoch whose weights count; 0: none yet."""
    done: bool = False
    """The last epoch or the end of patience is reached."""
    closed: bool = False
    """The run that this belongs to has ended; a later one trains again."""

    @property
    def last(self) -> int:
        """The newest epoch."""
        return len(self.epochs)


def note_epoch(progress: Progress, epoch: Epoch, *, epochs: int, patience: int) -> None:
    """Add an epoch to the progress, which then knows its best epoch and whether it is done.

    Without validation users the newest epoch is the best one.
    """
    progress.epochs.append(epoch)
    progress.best = best_of(progress.epochs)
    progress.done = progress.last >= epochs or progress.last - progress.best >= patience


def best_of(epochs: Sequence[Epoch]) -> int:
    """The epoch whose weights count, 0 of none: the first of the highest validation metric, without validation users the newest."""
    best: Epoch | None = None
    for epoch in epochs:
        if best is None or best.ndcg is None or epoch.ndcg is None or epoch.ndcg > best.ndcg:
            best = epoch
    return best.epoch if best else 0


def save_progress(folder: str, progress: Progress) -> None:
    """Write ``progress.json``."""
    write_json(f"{folder}/progress.json", asdict(progress))


def load_progress(folder: str) -> Progress | None:
    """What ``progress.json`` says, or None where there is none; raises :class:`FilesError` where it is damaged."""
    location = f"{folder}/progress.json"
    return progress_of(read_json(location), location) if exists(location) else None


def progress_of(values: Any, location: str) -> Progress:
    """The progress that a file's JSON value stands for; raises :class:`FilesError` where it stands for none."""
    try:
        epochs, begun = [Epoch(**epoch) for epoch in values["epochs"]], values.get("begun")
        return Progress(**{**values, "epochs": epochs, "begun": begun and Begun(**begun)})
    except (AttributeError, KeyError, TypeError):
        expected = ", ".join(field.name for field in fields(Progress))
        raise FilesError(
            f"{location}: found {str(values)[:_SAID]}, expected a training's {expected}; remove it and train again, which goes on "
            "after the newest epoch whose file is there"
        ) from None
