"""What the ranks and the loader of vectors agree on: the contract of staged vectors, in ``manifest.json`` beside them.

Neither Spark nor torch is imported here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xrec.config import Settings
from xrec.features.sequence_files import (
    ContractMismatchError,
    Export,
    build_contract,
    explain_mismatch,
    export_location,
    model_location,
    read_as_ofs,
)
from xrec.storage.files import FilesError, exists, names_in, read_json, write_json

_NOT_LEARNED = frozenset(
    {
        *("launcher", "threads", "start_timeout", "answer_timeout", "num_processes", "accumulate", "num_checkpoints"),
        *("checkpoint_seconds", "changed_since"),
    }
)
"""Settings that change how a training runs, not what it learns."""


@dataclass(frozen=True, kw_only=True)
class Staged:
    """The contract of one model's vectors of one fold, staged as Parquet."""

    fold: str
    model: str
    digest: str
    """See :func:`training_digest`."""
    settings: dict[str, Any]
    """See :func:`learned_settings`."""
    weights: str
    """Digest of the weights of the model that encoded."""
    dim: int
    """Length of a vector: the model's dimension and one for the item's bias."""
    dtype: str
    parts: dict[str, int]
    """Rows by file name; none: nothing was trained, because an older fold had nothing to learn from."""
    users: int
    items: int
    versions: dict[str, int]
    """Delta versions that the vectors were made from."""


def learned_settings(settings: Settings, model: str) -> dict[str, Any]:
    """The settings that decide what a model learns; how it is launched is not in them."""
    return {
        "model": model,
        "seed": settings.seed,
        **settings.sequence.model_dump(mode="json", exclude=set(_NOT_LEARNED)),
    }


def training_digest(settings: Settings, model: str) -> str:
    """Ten hex digits that change when one of the :func:`learned_settings` changes."""
    text = json.dumps(learned_settings(settings, model), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def staging_location(artifacts: str, export: Export, model: str, digest: str) -> str:
    """The folder of the vectors that a model of these settings makes from this export."""
    prefix = "vectors" if export.trained_on is None else "changed"
    return f"{model_location(artifacts, export.fold, model)}/{prefix}-v{export.version}-{digest}"


def is_trained(artifacts: str, fold: str, models: Sequence[str]) -> bool:
    """Whether each of the models was trained on the fold as it was exported last, with whatever settings."""
    if not exists(location := export_location(artifacts, fold)):
        return False
    prefix = f"vectors-v{read_json(location)['version']}-"
    folders = [model_location(artifacts, fold, model) for model in models]
    return all(
        any(name.startswith(prefix) and exists(f"{folder}/{name}/manifest.json") for name in names_in(folder))
        for folder in folders
    )


def read_newest_trained(artifacts: str, models: Sequence[str]) -> set[str]:
    """The folds of the newest export whose main fold, the one that ends last, was trained; empty where there is none."""
    as_ofs = read_as_ofs(artifacts)
    exported: dict[int, list[str]] = {}
    for fold in as_ofs:
        if exists(location := export_location(artifacts, fold)):
            exported.setdefault(read_json(location)["version"], []).append(fold)
    newest_first = (folds for _, folds in sorted(exported.items(), reverse=True))
    for folds in newest_first:
        _, main = max((as_ofs[fold], fold) for fold in folds)
        if is_trained(artifacts, main, models):
            return set(folds)
    return set()


def write_staged(folder: str, staged: Staged) -> None:
    """Write the manifest: from now on the folder is complete."""
    write_json(f"{folder}/manifest.json", dataclasses.asdict(staged))


def read_staged(folder: str, model: str, settings: Settings | None = None) -> Staged:
    """The manifest of staged vectors; a folder without one is unfinished and refused.

    With the ``settings`` of an earlier training it is said which of them are others than those of the vectors that are there.
    """
    location, which = f"{folder}/manifest.json", "with the same settings"
    if not exists(location):
        if settings is not None:
            _refuse_others(folder, learned_settings(settings, model))
            which = "of that fold, without --changed-since,"
        raise FilesError(
            f"{location}: no such file, so there are no complete vectors of model '{model}' for these settings and this "
            f"version of the sequences; run the stage train_{model} {which} first"
        )
    staged = build_contract(Staged, read_json(location), location)
    if staged.model != model or sum(staged.parts.values()) != staged.users + staged.items:
        raise ContractMismatchError(
            explain_mismatch(
                location,
                "parts",
                f"{sum(staged.parts.values())} rows of {staged.model}",
                f"{staged.users + staged.items} rows of {model}",
            )
        )
    return staged


def _refuse_others(folder: str, learned: dict[str, Any]) -> None:
    """Raise :class:`ContractMismatchError` where the same version's vectors are there, of a model that learned otherwise."""
    parent, name = folder.rsplit("/", 1)
    same = f"{name.rsplit('-', 1)[0]}-"
    for location in (f"{parent}/{other}/manifest.json" for other in names_in(parent) if other.startswith(same)):
        found = read_json(location)["settings"] if exists(location) else learned
        for key in sorted({*found, *learned}):
            if found.get(key) != learned.get(key):
                setting = key if key == "seed" else f"sequence.{key}"
                raise ContractMismatchError(explain_mismatch(location, setting, found.get(key), learned.get(key)))
