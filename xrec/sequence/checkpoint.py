"""What a training leaves after each epoch, and what a killed one goes on from.

A folder holds::

    settings.json              what is needed to build the model again, for people and for load_model
    epoch-<n>.safetensors      weights and optimizer state after epoch n: the newest epoch and the best one
    progress.json              written last, whole or not at all: which files count, and how far the training is
"""

from __future__ import annotations

from safetensors.torch import load, save
from torch import Tensor

from xrec.sequence.progress import Progress, save_progress
from xrec.storage.files import names_in, read_bytes, remove, write_bytes


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


def load_tensors(folder: str, epoch: int) -> dict[str, Tensor]:
    """An epoch's tensors by name."""
    tensors: dict[str, Tensor] = load(read_bytes(epoch_file(folder, epoch)))
    return tensors
