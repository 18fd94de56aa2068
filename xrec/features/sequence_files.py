"""What the export and torch agree on: a small JSON contract of the windows of each fold, and where all files lie.

Below ``storage.artifacts``::

    exports.json                                  the folds of the last export, in order, and the as-of of all that are there
    <fold>/export.json                            the contract of a fold's windows
    <fold>/<model>/checkpoint/...                 see xrec/sequence/checkpoint.py
    <fold>/<model>/vectors-v<version>-<digest>/   part-<rank>.parquet, and manifest.json, written last: see
                                                  xrec/features/vector_files.py

and the same of folds that are encoded and not trained (xrec/features/changed_users.py), which may be folds of the same name::

    changed.json
    <fold>/changed.json
    <fold>/<model>/changed-v<version>-<digest>/

Neither Spark nor torch is imported here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from xrec import columns as C
from xrec.config import Settings
from xrec.storage.files import FilesError, exists, read_json, write_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

TRAIN, VALIDATION = "train", "validation"
CHANGED, UNCHANGED = "changed", "unchanged"
"""The splits of a fold that is not trained: the users that are encoded, and those whose vectors are taken over."""
MODELS = ("gru", "transformer")
NUM_HASHES = 1 << 14
"""The words of items are known by hashes that run from 1 to this; 0 is no word."""


class ExportError(ValueError):
    """Events that no windows can be made of, or shards that are not equal."""


class ContractMismatchError(ValueError):
    """Files that are not what their contract says; the message names the file or column, what was found and expected."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One column: name, numpy type, and the shape of one row's value."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Export:
    """The contract of one fold's windows."""

    fold: str
    as_of: str
    """All events of the windows lie before it (ISO 8601, UTC)."""
    skip_last: int | None
    """In a last_out fold: how many of each user's newest events are not in the windows; None in time folds."""
    table: str
    """Folder or URL of the table ``sequences``."""
    version: int
    """Its Delta version."""
    vocabulary_table: str
    vocabulary_version: int
    vocabulary_size: int
    """Tokens run from 1 to this."""
    cold_share: float
    """Share of the newest events that went to items without a token (:func:`xrec.features.item_content.cold_shares`)."""
    num_categories: int
    """Categories that items may be recommended of; their codes run from 0."""
    context: dict[str, int]
    """How many codes each field of the context has (:func:`xrec.features.context.context_sizes`)."""
    length: int
    """Inputs a window; it holds one token more."""
    num_shards: int
    rows: dict[str, int]
    """Rows of every shard, by split, padding included."""
    fields: tuple[Field, ...]
    settings: dict[str, Any]
    """The settings that made it; see :func:`export_settings`."""
    trained_on: str | None = None
    """The fold whose models encode it, so that its tokens are theirs; None: its own, once they are trained."""
    trained_version: int | None = None
    """The version of the sequences of that fold."""

    @property
    def can_train(self) -> bool:
        """Whether there are items to know and windows to learn from; an older fold may have too few."""
        return self.vocabulary_size > 0 and self.rows[TRAIN] > 0

    def check_arrays(self, arrays: Mapping[str, NDArray[Any]], source: str) -> None:
        """Raise :class:`ContractMismatchError` where arrays read from ``source`` are not what was written."""
        for field in self.fields:
            if field.name not in arrays:
                raise ContractMismatchError(explain_mismatch(source, f"column '{field.name}'", "nothing", field.dtype))
            found, shape = arrays[field.name], tuple(field.shape)
            if str(found.dtype) != field.dtype or found.shape[1:] != shape:
                raise ContractMismatchError(
                    explain_mismatch(
                        source,
                        f"column '{field.name}'",
                        f"{found.dtype} of shape {found.shape[1:]}",
                        f"{field.dtype} of shape {shape}",
                    )
                )
        tokens = arrays[C.TOKENS]
        if tokens.size and (tokens.min() < 0 or tokens.max() > self.vocabulary_size):
            raise ContractMismatchError(
                explain_mismatch(source, C.TOKENS, f"{tokens.min()}..{tokens.max()}", f"0..{self.vocabulary_size}")
            )
        for place, (name, size) in enumerate(sorted(self.context.items())):
            codes = arrays[C.CONTEXT][:, place :: len(self.context)]
            if codes.size and (codes.min() < 0 or codes.max() > size):
                raise ContractMismatchError(
                    explain_mismatch(source, f"{C.CONTEXT} {name}", f"{codes.min()}..{codes.max()}", f"0..{size}")
                )


def window_fields(length: int, num_categories: int, num_context: int) -> tuple[Field, ...]:
    """The columns of a window that a model reads; ``num_context`` codes of each token."""
    context = (Field(name=C.CONTEXT, dtype="int32", shape=((length + 1) * num_context,)),) if num_context else ()
    return (
        Field(name=C.USER_IDX, dtype="int32", shape=()),
        Field(name=C.WINDOW, dtype="int32", shape=()),
        Field(name=C.TOKENS, dtype="int32", shape=(length + 1,)),
        Field(name=C.TOKEN_WEIGHTS, dtype="float32", shape=(length + 1,)),
        Field(name=C.BASKETS, dtype="int32", shape=(length + 1,)),
        Field(name=C.TOUCHED_AT, dtype="int32", shape=(num_categories,)),
        *context,
        Field(name=C.ROW_WEIGHT, dtype="float32", shape=()),
    )


def export_settings(settings: Settings) -> dict[str, Any]:
    """The settings that decide what an export holds, by key."""
    names = (
        *("length", "max_windows", "min_buyers", "num_shards", "validation_share"),
        *("targets", "objective", "half_life_share", "item_vectors", "item_content", "context"),
    )
    values = settings.sequence.model_dump(mode="json", include=set(names))
    codes = {
        f"codes of {field}": found for field, found in context_names(settings).items() if field in values["context"]
    }
    return {"seed": settings.seed, **{f"sequence.{name}": values[name] for name in names}, **codes}


def context_names(settings: Settings) -> dict[str, list[str]]:
    """The names that event types and platforms can have, sorted: a name's place is its code."""
    return {
        "event_type": sorted(settings.weights.event_types),
        "platform": sorted(source.log.platform for source in settings.sources),
    }


def models_used(settings: Settings) -> list[str]:
    """The sequence models among ``ranking.sources``."""
    return [model for model in MODELS if settings.ranking.uses(model)]


def as_trained(settings: Settings) -> Settings:
    """The settings of the training whose models encode a run that trains none."""
    return settings.model_copy(update={"sequence": settings.sequence.model_copy(update={"changed_since": None})})


def export_location(artifacts: str, fold: str, *, trains: bool = True) -> str:
    """Where the contract of a fold lies that is trained, or only encoded."""
    return f"{artifacts}/{fold}/{'export' if trains else 'changed'}.json"


def model_location(artifacts: str, fold: str, model: str) -> str:
    """The folder of a fold's model."""
    return f"{artifacts}/{fold}/{model}"


def write_exports(artifacts: str, exports: list[Export]) -> None:
    """Write the contract of each fold of a run, then the list of the folds."""
    trains = exports[0].trained_on is None
    for export in exports:
        write_json(export_location(artifacts, export.fold, trains=trains), dataclasses.asdict(export))
    folds = [export.fold for export in exports]
    if not trains:
        write_json(_list_location(artifacts, trains=False), {"folds": folds})
        return
    location = _list_location(artifacts, trains=True)
    before = read_json(location).get("as_of", {}) if exists(location) else {}
    as_of = {**before, **{export.fold: export.as_of for export in exports}}
    write_json(location, {"folds": folds, "as_of": as_of})


def read_exported_folds(artifacts: str, *, trains: bool = True) -> list[str]:
    """The folds of the last export of models to train, or of users to encode, in order; raises where there was none."""
    location = _list_location(artifacts, trains=trains)
    if not exists(location):
        raise FilesError(f"{location}: no such file; run the stage export_sequences with the same settings first")
    return list(read_json(location)["folds"])


def read_folds_in_use(artifacts: str) -> set[str]:
    """The folds of the last export of models to train, of the last of users to encode, and those whose models encode these.

    Raises where a list is damaged.
    """
    of_models, of_users = (
        read_exported_folds(artifacts, trains=trains) if exists(_list_location(artifacts, trains=trains)) else []
        for trains in (True, False)
    )
    trained_on = {read_json(export_location(artifacts, fold, trains=False))["trained_on"] for fold in of_users}
    return {*of_models, *of_users, *trained_on}


def _list_location(artifacts: str, *, trains: bool) -> str:
    return f"{artifacts}/{'exports' if trains else 'changed'}.json"


def read_as_ofs(artifacts: str) -> dict[str, datetime]:
    """The as-of of every fold that was exported to train on, by name; empty where none was."""
    location = _list_location(artifacts, trains=True)
    found = read_json(location).get("as_of", {}) if exists(location) else {}
    return {fold: datetime.fromisoformat(as_of) for fold, as_of in found.items()}


def forget_exports(artifacts: str, folds: Collection[str]) -> None:
    """Leave folds out of the list of those that were exported to train on: no later run takes their models."""
    location = _list_location(artifacts, trains=True)
    if exists(location):
        known = read_json(location)
        as_of = {fold: moment for fold, moment in known.get("as_of", {}).items() if fold not in folds}
        write_json(location, {**known, "as_of": as_of})


def read_export(artifacts: str, fold: str, settings: Settings) -> Export:
    """A fold's contract, checked against the settings.

    Raises
    ------
    FilesError, ContractMismatchError
        It is missing, from another xrec, or made with other settings.
    """
    location = export_location(artifacts, fold, trains=settings.sequence.changed_since is None)
    if not exists(location):
        raise FilesError(f"{location}: no such file; run the stage export_sequences with the same settings first")
    values = read_json(location)
    values["fields"] = tuple(
        Field(name=field["name"], dtype=field["dtype"], shape=tuple(field["shape"])) for field in values["fields"]
    )
    export = build_contract(Export, values, location)
    for key, expected in export_settings(settings).items():
        if export.settings.get(key) != expected:
            raise ContractMismatchError(explain_mismatch(location, key, export.settings.get(key), expected))
    expected_fields = window_fields(export.length, export.num_categories, len(export.context))
    if export.fields != expected_fields:
        raise ContractMismatchError(explain_mismatch(location, "fields", export.fields, expected_fields))
    return export


def read_trained_export(artifacts: str, export: Export, settings: Settings) -> Export:
    """The contract of the fold whose models encode another one; raises where it has been exported anew since."""
    assert export.trained_on is not None
    trained = read_export(artifacts, export.trained_on, as_trained(settings))
    if trained.version != export.trained_version:
        location = export_location(artifacts, trained.fold)
        raise ContractMismatchError(explain_mismatch(location, "version", trained.version, export.trained_version))
    return trained


Contract = TypeVar("Contract", bound="DataclassInstance")


def build_contract(contract: type[Contract], values: dict[str, Any], location: str) -> Contract:
    """A contract of the values in its file; raises where they are not those that it has."""
    expected = {field.name for field in dataclasses.fields(contract)}
    if set(values) != expected:
        raise ContractMismatchError(explain_mismatch(location, "keys", sorted(values), sorted(expected)))
    return contract(**values)


def explain_mismatch(source: str, what: str, found: object, expected: object) -> str:
    """What is not of one run, and what to do."""
    return (
        f"{source}: {what}: found {found}, expected {expected}; the files and the settings are not of one run: "
        "run export_sequences and the training again with the same settings"
    )
