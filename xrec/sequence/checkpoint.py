"""What a training leaves after each epoch and within a long one, and what a killed one goes on from.

A folder holds::

    settings.json              what is needed to build the model again, for people and for load_model
    trained_on.json            what a training that starts from this one must know of it, as of the items
    items.parquet              (xrec/sequence/trained_on.py)
    epoch-<n>.safetensors      weights and optimizer state after epoch n: the newest epochs and the best ones; in its metadata
                               the progress until then and a checksum of both
    begun.safetensors          the same within the epoch after the newest: which steps of it are taken
    progress.json              written after it, whole or not at all: how far the training was after the newest epoch

Nothing in it is code, and nothing is run that loads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from xrec.sequence.progress import Progress, best_of, load_progress, progress_of, save_progress
from xrec.storage.files import FilesError, names_in, read_bytes, remove, write_bytes

_BEGUN = "begun.safetensors"
_LENGTH, _LONGEST_HEADER = 8, 100_000_000
"""Bytes: a safetensors file begins with the length of its header, which is no longer than this."""


class DamagedError(FilesError):
    """A checkpoint that is not what was written."""


def epoch_file(folder: str, epoch: int) -> str:
    """Where an epoch's tensors lie."""
    return f"{folder}/epoch-{epoch}.safetensors"


def newest_file(folder: str, progress: Progress) -> str:
    """Where the tensors lie of which a progress tells."""
    return f"{folder}/{_BEGUN}" if progress.begun else epoch_file(folder, progress.last)


def save_epoch(folder: str, tensors: dict[str, Tensor], progress: Progress, *, num_kept: int) -> None:
    """Save the newest epoch, and keep ``num_kept`` of the newest; a kill at any moment leaves this one or the one before."""
    save_newest(folder, tensors, progress)
    save_progress(folder, progress)
    keep = {f"epoch-{epoch}.safetensors" for epoch in kept_epochs(progress, num_kept)}
    for name in names_in(folder):
        # Hidden is what a killed run had not written to its end.
        if name.startswith(".") or (name.endswith(".safetensors") and name not in keep):
            remove(f"{folder}/{name}")


def clear(folder: str) -> None:
    """Remove a training: first what could be gone on from, so that a kill in between leaves nothing of the kind."""
    for name in names_in(folder):
        if name.endswith(".safetensors"):
            remove(f"{folder}/{name}")
    remove(folder)


def save_newest(folder: str, tensors: dict[str, Tensor], progress: Progress) -> None:
    """Write the tensors of which a progress tells, and what it tells; whole or not at all."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    until_then = json.dumps(asdict(progress))
    metadata = {"progress": until_then, "sha256": _checksum(held, until_then)}
    write_bytes(newest_file(folder, progress), save(held, metadata))


def kept_epochs(progress: Progress, num_kept: int) -> set[int]:
    """The newest epochs, and what was best when each of them ended: what a training goes on from."""
    newest = range(max(1, progress.last - num_kept + 1), progress.last + 1)
    return {*newest, *(best_of(progress.epochs[:epoch]) for epoch in newest)}


def load_tensors(file: str) -> dict[str, Tensor]:
    """A checkpoint's tensors by name.

    Raises
    ------
    DamagedError
        The file is not what was written.
    FilesError
        There is no such file.
    """
    content = read_bytes(file)
    try:
        tensors: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise DamagedError(f"{file}: damaged ({error}), expected a checkpoint's tensors; train again") from None
    metadata = _metadata_of(file)
    found = _checksum(tensors, metadata.get("progress", ""))
    # Earlier versions wrote none.
    if found != (expected := metadata.get("sha256", found)):
        raise DamagedError(
            f"{file}: damaged (SHA-256: found {found[:10]}, expected {expected[:10]}), expected a checkpoint's tensors; train again"
        )
    return tensors


def find_progress(folder: str, say: Callable[[str], None]) -> Progress | None:
    """How far the training in a folder is, within an epoch where that was saved; None: nothing tells.

    Where ``progress.json`` is damaged or missing, the newest file of tensors tells of it.
    """
    try:
        progress = load_progress(folder)
    except FilesError as error:
        say(f"{f'{error}'.rsplit('; ', 1)[0]}: going by what the epochs' files say")
        progress = None
    for epoch in sorted(_epochs_in(folder), reverse=True):
        progress = progress or _told_by(epoch_file(folder, epoch))
    if _BEGUN not in names_in(folder):
        return progress
    begun = _told_by(file := f"{folder}/{_BEGUN}")
    if begun is None:
        say(f"{file}: damaged, expected a checkpoint's tensors")
        return progress
    # One that a kill left beside the epoch's own file is older than that.
    return begun if progress in (None, replace(begun, begun=None)) else progress


def newest_undamaged(
    folder: str, progress: Progress, say: Callable[[str], None]
) -> tuple[Progress, dict[str, Tensor]] | None:
    """The newest tensors that can be gone on from, which need the best epoch until then, and the progress up to them.

    None: there are none.

    Each damaged file on the way is named, and the newest one where it is missing.
    """
    tried = {progress.last} | {epoch for epoch in _epochs_in(folder) if epoch < progress.last}
    states = [progress] if progress.begun else []
    states += [_until(epoch, progress) for epoch in sorted(tried - {0}, reverse=True)]
    for earlier in states:
        try:
            if earlier.best and (earlier.begun or earlier.best != earlier.last):
                load_tensors(epoch_file(folder, earlier.best))
            return earlier, load_tensors(newest_file(folder, earlier))
        except FilesError as error:
            say(f"{error}".replace("; train again", ""))
    return None


def _epochs_in(folder: str) -> set[int]:
    """The epochs of which there is a file."""
    numbers = {name.removeprefix("epoch-").removesuffix(".safetensors") for name in names_in(folder)}
    return {int(number) for number in numbers if number.isdecimal()}


def _until(epoch: int, progress: Progress) -> Progress:
    """What the progress was when an epoch had ended."""
    epochs = progress.epochs[:epoch]
    return replace(
        progress, epochs=epochs, begun=None, best=best_of(epochs), done=progress.done and epoch == progress.last
    )


def _told_by(file: str) -> Progress | None:
    """The progress in a file's metadata; None where it cannot be read, or tells of none."""
    with contextlib.suppress(FilesError, ValueError, AttributeError):
        return progress_of(json.loads(_metadata_of(file).get("progress", "null")), file)
    return None


def _metadata_of(file: str) -> dict[str, str]:
    """What a safetensors file says beside its tensors; its header is JSON, behind its length in 8 bytes."""
    length = int.from_bytes(read_bytes(file, end=_LENGTH), "little")
    if length > _LONGEST_HEADER:
        raise DamagedError(
            f"{file}: damaged (a header of {length:,} bytes), expected a checkpoint's tensors; train again"
        )
    header: dict[str, Any] = json.loads(read_bytes(file, start=_LENGTH, end=_LENGTH + length))
    return dict(header.get("__metadata__", {}))


def _checksum(tensors: Mapping[str, Tensor], progress: str) -> str:
    """Changes with any name, type, shape or number, and with what is said of the progress; safetensors itself has none."""
    digest = hashlib.sha256(progress.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
