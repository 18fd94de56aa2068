"""What a training leaves after each epoch, and what a killed one goes on from.

A folder holds::

    settings.json              what is needed to build the model again, for people and for load_model
    epoch-<n>.safetensors      weights and optimizer state after epoch n: the newest epoch and the best one
    progress.json              written last, whole or not at all: which files count, and how far the training is
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from xrec.storage.files import exists, names_in, read_bytes, read_json, remove, write_bytes, write_json


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
class Progress:
    """How far a training is."""

    digest: str
    """Settings and seed; see xrec/features/sequence_files.py."""
    version: int
    """Delta version of the sequences."""
    epochs: list[Epoch] = field(default_factory=list)
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


def epoch_file(folder: str, epoch: int) -> str:
    """Where an epoch's tensors lie."""
    return f"{folder}/epoch-{epoch}.safetensors"


def save_epoch(folder: str, tensors: dict[str, Tensor], progress: Progress) -> None:
    """Save the newest epoch; a kill at any moment leaves this one or the one before."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(epoch_file(folder, progress.last), save(held))
    save_progress(folder, progress)
    keep = {f"epoch-{progress.last}.safetensors", f"epoch-{progress.best}.safetensors"}
    for name in names_in(folder):
        if name.endswith(".safetensors") and name not in keep:
            remove(f"{folder}/{name}")


def save_progress(folder: str, progress: Progress) -> None:
    """Write ``progress.json``."""
    write_json(f"{folder}/progress.json", asdict(progress))


def load_progress(folder: str) -> Progress | None:
    """What ``progress.json`` says, or None where there is none."""
    location = f"{folder}/progress.json"
    if not exists(location):
        return None
    values: dict[str, Any] = read_json(location)
    values["epochs"] = [Epoch(**epoch) for epoch in values["epochs"]]
    return Progress(**values)


def load_tensors(folder: str, epoch: int) -> dict[str, Tensor]:
    """An epoch's tensors by name."""
    tensors: dict[str, Tensor] = load(read_bytes(epoch_file(folder, epoch)))
    return tensors
