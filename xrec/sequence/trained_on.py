"""What a checkpoint says of what it was trained on, so that another training can start from it (``sequence.start_from``).

Beside its weights lie::

    trained_on.json    which fold, until when; what the codes of the context stand for
    items.parquet      a row a token, padding included: its item_id, null for padding, and the bias that it began with

A token means nothing beyond its fold, and an ``item_idx`` nothing beyond its tables; an ``item_id`` is the catalogue's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xrec import columns as C
from xrec.features.sequence_files import context_names
from xrec.sequence.spec import TrainingSpec
from xrec.storage.files import FilesError, read_bytes, read_json, write_bytes, write_json

_START_BIAS = "start_bias"


class StartError(ValueError):
    """A checkpoint that a training can't start from; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """A fold, as those that start from its model must know it."""

    fold: str
    as_of: str
    """All events that were learned from lie before it (ISO 8601, UTC)."""
    skip_last: int | None
    """In a last_out fold: how many of each user's newest events were not learned from; None in time folds."""
    table: str
    """Folder or URL of the table ``sequences``, which tells logs apart."""
    has_clock: bool
    """Whether times are times, and not places in an order."""
    given_dim: int
    """The length of the vectors that the items were given; 0: none, they were learned."""
    context: dict[str, Any]
    """By field of the context, the names that its codes stand for, or how many codes it has."""

    @classmethod
    def of(cls, spec: TrainingSpec, given_dim: int) -> TrainedOn:
        """What a training is about to be trained on."""
        export, names = spec.export, context_names(spec.settings)
        return cls(
            fold=export.fold,
            as_of=export.as_of,
            skip_last=export.skip_last,
            table=export.table,
            has_clock=spec.settings.log.time.unit != "order",
            given_dim=given_dim,
            context={field: names.get(field, size) for field, size in export.context.items()},
        )

    @classmethod
    def read(cls, folder: str) -> TrainedOn:
        """What a checkpoint was trained on; raises :class:`StartError` where it doesn't say so."""
        file = f"{folder}/trained_on.json"
        expected = sorted(field.name for field in dataclasses.fields(cls))
        try:
            values = read_json(file)
        except FilesError as error:
            raise StartError(f"sequence.start_from: {error}; train that fold with this version of xrec") from None
        if sorted(values) != expected:
            raise StartError(
                f"sequence.start_from: {file}: found keys {sorted(values)}, expected {expected}; train that fold with this "
                "version of xrec"
            )
        return cls(**values)

    def check_time(self, now: TrainedOn) -> str | None:
        """Raise where it may have learned what judges ``now``; gives a sentence where nobody can tell, None where it has not.

        A fold of positions (``last_out``) lacks each user's newest events, whenever they were. Within one log, what lacks as many
        knows no more; of another log nothing follows. Until when all of it was, is known.
        """
        is_same_log = self.table == now.table
        if now.skip_last is None and (is_same_log or (self.has_clock and now.has_clock)):
            if datetime.fromisoformat(self.as_of) > datetime.fromisoformat(now.as_of):
                raise StartError(
                    f"sequence.start_from: found fold {self.fold}, trained on events until {self.as_of}, expected none from "
                    f"{now.as_of} on, because what {now.fold} is judged by comes then; start from an older fold"
                )
            return None
        if now.skip_last is not None and is_same_log:
            if self.skip_last is None or self.skip_last < now.skip_last:
                raise StartError(
                    f"sequence.start_from: found fold {self.fold}, trained on all but the newest {self.skip_last or 0} events of "
                    f"each user, expected all but {now.skip_last} or more, because {now.fold} is judged by the last of these; "
                    "start from an older fold"
                )
            return None
        return (
            f"fold {self.fold} of another log and {now.fold} have no clock in common: nothing here can tell whether the one was "
            "trained on what the other is judged by; see to it that it was not"
        )

    def check_codes(self, now: TrainedOn) -> None:
        """Raise where a code of the context, or the numbers of a given vector, would stand for something else in ``now``."""
        for setting, one, other in (
            ("sequence.context", self.context, now.context),
            ("length of the vectors of sequence.item_vectors", self.given_dim, now.given_dim),
        ):
            if one != other:
                raise StartError(
                    f"sequence.start_from: fold {self.fold}: {setting}: found {one}, expected {other}, as in {now.fold}; use the "
                    "same in both trainings"
                )

    def save(self, folder: str, item_ids: pa.StringArray, start_bias_V: NDArray[np.float64]) -> None:
        """Write both files, each whole or not at all."""
        write_json(f"{folder}/trained_on.json", dataclasses.asdict(self))
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({C.ITEM_ID: item_ids, _START_BIAS: start_bias_V}), sink)
        write_bytes(f"{folder}/items.parquet", sink.getvalue().to_pybytes())


def read_items(folder: str, num_tokens: int) -> tuple[pa.StringArray, NDArray[np.float64]]:
    """The items of a checkpoint's tokens, and the biases that they began with.

    Raises
    ------
    StartError
        The file is missing, damaged, or of another model.
    """
    file = f"{folder}/items.parquet"
    try:
        rows = pq.read_table(pa.BufferReader(read_bytes(file)), columns=[C.ITEM_ID, _START_BIAS])
    except (FilesError, pa.ArrowException) as error:
        raise StartError(f"sequence.start_from: {file}: cannot be read ({error}); train that fold again") from None
    if len(rows) != num_tokens:
        raise StartError(
            f"sequence.start_from: {file}: found {len(rows)} rows, expected {num_tokens}, one a token of the model beside it; "
            "train that fold again"
        )
    return rows[C.ITEM_ID].combine_chunks(), np.array(rows[_START_BIAS])
