"""What a training leaves after each epoch, and what a killed one goes on from.

A folder holds::

    settings.json              what is needed to build the model again, for people and for load_model
    trained_on.json            what a training that starts from this one must know of it, as of the items
    items.parquet              (xrec/sequence/trained_on.py)
    epoch-<n>.safetensors      weights and optimizer state after epoch n: the newest epochs and the best ones
    progress.json              written last, whole or not at all: which files count, and how far the training is

Nothing in it is code, and nothing is run that loads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from xrec.sequence.progress import Progress, best_of, save_progress
from xrec.storage.files import FilesError, names_in, read_bytes, remove, write_bytes


class DamagedError(FilesError):
    """A checkpoint that is not what was written."""


def epoch_file(folder: str, epoch: int) -> str:
    """Where an epoch's tensors lie."""
    return f"{folder}/epoch-{epoch}.safetensors"


def save_epoch(folder: str, tensors: dict[str, Tensor], progress: Progress, *, num_kept: int) -> None:
    """Save the newest epoch, and keep ``num_kept`` of the newest; a kill at any moment leaves this one or the one before."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(epoch_file(folder, progress.last), save(held))
    save_progress(folder, progress)
    keep = {f"epoch-{epoch}.safetensors" for epoch in kept_epochs(progress, num_kept)}
    for name in names_in(folder):
        if name.endswith(".safetensors") and name not in keep:
            remove(f"{folder}/{name}")


def kept_epochs(progress: Progress, num_kept: int) -> set[int]:
    """The newest epochs, and what was best when each of them ended: what a training goes on from."""
    newest = range(max(1, progress.last - num_kept + 1), progress.last + 1)
    return {*newest, *(best_of(progress.epochs[:epoch]) for epoch in newest)}


def load_tensors(folder: str, epoch: int) -> dict[str, Tensor]:
    """An epoch's tensors by name.

    Raises
    ------
    DamagedError
        The file is not what was written.
    FilesError
        There is no such file.
    """
    file = epoch_file(folder, epoch)
    try:
        tensors: dict[str, Tensor] = load(read_bytes(file))
    except SafetensorError as error:
        raise DamagedError(f"{file}: damaged ({error}), expected the tensors of epoch {epoch}; train again") from None
    return tensors


def newest_undamaged(folder: str, progress: Progress, say: Callable[[str], None]) -> Progress | None:
    """The progress up to the newest epoch that can be gone on from, which needs it and the best until then; None: there is none.

    Each damaged file on the way is named.
    """
    for last in range(progress.last, 0, -1):
        epochs = progress.epochs[:last]
        earlier = replace(progress, epochs=epochs, best=best_of(epochs), done=progress.done and last == progress.last)
        try:
            for epoch in sorted({earlier.last, earlier.best}):
                load_tensors(folder, epoch)
        except DamagedError as error:
            say(f"{error}".replace("; train again", ""))
        except FilesError:
            return None
        else:
            return earlier
    return None
