"""Windows from Parquet through Petastorm, shard by shard, in an order that is ours.

A shard is read from an explicit list of files of one pinned Delta version, always in the same order. Shuffling is a
permutation of blocks of rows, keyed by (seed, epoch, shard): it does not depend on the number of processes, and a resumed
training replays it. A shard of at most ``BLOCK_ROWS`` windows is one block, so it is shuffled as a whole.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import fsspec
import numpy as np
from numpy.typing import NDArray
from petastorm import make_batch_reader
from pyarrow.filesystem import DaskFileSystem

from xrec import columns as C
from xrec.features.sequence_files import ContractMismatchError, Export
from xrec.storage.files import data_files, to_url

BLOCK_ROWS = 65_536
"""Windows that are shuffled together and held in memory: 80 MB at length 100, and 4 bytes a window and category."""


class Events(NamedTuple):
    """Rows of events, as a model sees them."""

    tokens: NDArray[np.int32]
    """Shape (R, L), left-padded with 0."""
    context: NDArray[np.int32] | None
    """Shape (R, L, fields)."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """R rows of ``sequences``, as arrays."""

    user_idx: NDArray[np.int32]
    window: NDArray[np.int32]
    tokens: NDArray[np.int32]
    """Shape (R, length + 1), left-padded with 0."""
    token_weights: NDArray[np.float32]
    """Shape (R, length + 1): how much a token counts as a target, 0 where it is none."""
    baskets: NDArray[np.int32]
    """Shape (R, length + 1): equal for the tokens of one basket; 0 for padding."""
    touched_at: NDArray[np.int32]
    """Shape (R, categories): the place in ``tokens`` from which the user has the category; length + 1: not within."""
    row_weight: NDArray[np.float32]
    context: NDArray[np.int32] | None = None
    """Shape (R, length + 1, fields): codes of what is known of each token's event, 0 for padding; None: nothing is asked."""

    def __len__(self) -> int:
        return len(self.user_idx)

    def take(self, rows: NDArray[np.int64] | slice) -> Windows:
        """Some of the rows."""
        return Windows(**{name: array[rows] for name, array in self._arrays().items()})

    def padded_to(self, num_rows: int) -> Windows:
        """The rows, followed by rows of weight 0 up to ``num_rows``."""
        missing = num_rows - len(self)
        if missing == 0:
            return self
        return Windows(
            **{
                name: np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
                for name, array in self._arrays().items()
            }
        )

    @staticmethod
    def concatenate(parts: list[Windows]) -> Windows:
        """The rows of all parts, in order."""
        arrays = [part._arrays() for part in parts]
        return Windows(**{name: np.concatenate([one[name] for one in arrays]) for name in arrays[0]})

    def inputs(self) -> Events:
        """All events but the newest, which is a target alone."""
        return Events(self.tokens[:, :-1], None if self.context is None else self.context[:, :-1])

    def newest(self) -> Events:
        """The newest events, as many as :meth:`inputs` has."""
        return Events(self.tokens[:, 1:], None if self.context is None else self.context[:, 1:])

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """What is there, by name."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in arrays.items() if array is not None}


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One logical shard of one split: its files and number of rows, padding included."""

    export: Export
    split: str
    index: int
    files: list[str]

    @classmethod
    def find(cls, export: Export, split: str, index: int) -> Shard:
        """Look its files up in the pinned version of the table."""
        files = data_files(export.table, export.version, fold=export.fold, split=split, shard=index)
        return cls(export=export, split=split, index=index, files=files)

    @property
    def num_rows(self) -> int:
        """Rows that the contract promises."""
        return self.export.rows[self.split]

    def read(self) -> Iterator[Windows]:
        """Blocks of at most ``BLOCK_ROWS`` rows, in a fixed order.

        Raises
        ------
        ContractMismatchError
            A column is missing or has another type or shape than the contract says, or the number of rows is another.
        """
        num_rows = 0
        names = [field.name for field in self.export.fields]
        for group in _row_groups(self.files, names):
            self.export.check_arrays(group, f"fold {self.export.fold}, {self.split}, shard {self.index}")
            arrays = {name: group[name] for name in names}
            if self.export.context:
                shape = (len(arrays[C.CONTEXT]), self.export.length + 1, len(self.export.context))
                arrays[C.CONTEXT] = arrays[C.CONTEXT].reshape(shape)
            rows = Windows(**arrays)
            # Spark leaves the order within a file open; after this it is the same in every export of the same events.
            rows = rows.take(np.lexsort((rows.window, rows.user_idx)))
            num_rows += len(rows)
            for start in range(0, len(rows), BLOCK_ROWS):
                yield rows.take(slice(start, start + BLOCK_ROWS))
        if num_rows != self.num_rows:
            raise ContractMismatchError(
                f"{self.export.table}, version {self.export.version}, fold {self.export.fold}, {self.split}, shard "
                f"{self.index}: found {num_rows} rows, expected {self.num_rows}; run the stage export_sequences again"
            )

    def batches(self, batch_rows: int) -> Iterator[Windows]:
        """All rows once, in the fixed order, in batches of exactly ``batch_rows``, the last one padded with weight 0."""
        return _batches(self.read(), batch_rows)

    def shuffled_batches(self, batch_rows: int, *, seed: int, epoch: int) -> Iterator[Windows]:
        """The same in an order that depends on (seed, epoch, shard) alone."""
        generator = np.random.default_rng(key_of(seed, epoch, self.index))
        return _batches((block.take(generator.permutation(len(block))) for block in self.read()), batch_rows)

    def num_batches(self, batch_rows: int) -> int:
        """How many batches there are."""
        return -(-self.num_rows // batch_rows)


def key_of(*parts: int) -> int:
    """A seed of 63 bits from a few integers, 0 and negative ones included."""
    return int(np.random.SeedSequence([part % 2**64 for part in parts]).generate_state(1, np.uint64)[0]) >> 1


def _batches(blocks: Iterator[Windows], batch_rows: int) -> Iterator[Windows]:
    waiting: list[Windows] = []
    for block in blocks:
        rows = Windows.concatenate([*waiting, block])
        full = len(rows) - len(rows) % batch_rows
        for start in range(0, full, batch_rows):
            yield rows.take(slice(start, start + batch_rows))
        waiting = [rows.take(slice(full, None))] if full < len(rows) else []
    for rest in waiting:
        yield rest.padded_to(batch_rows)


def _row_groups(files: list[str], columns: list[str]) -> Iterator[dict[str, NDArray[Any]]]:
    """Some columns of the row groups of the files, in order, as arrays by column."""
    if not files:
        return
    with _quiet():
        reader = make_batch_reader(
            [to_url(file) for file in files],
            schema_fields=columns,
            reader_pool_type="dummy",
            shuffle_row_groups=False,
            num_epochs=1,
            filesystem=_store_of(files[0]),
        )
    try:
        while True:
            with _quiet():
                group = next(reader, None)
            if group is None:
                return
            yield group._asdict()
    finally:
        with _quiet():
            reader.stop()
            reader.join()


class _Store(DaskFileSystem):  # type: ignore[misc]
    """A store that fsspec knows, as pyarrow took one before: Petastorm asks for what pyarrow's newer interface no longer has."""

    def isfile(self, path: str) -> bool:
        """Whether there is a file."""
        return bool(self.fs.isfile(path))

    def isdir(self, path: str) -> bool:
        """Whether there is a folder."""
        return bool(self.fs.isdir(path))


def _store_of(file: str) -> _Store | None:
    """What Petastorm reads a file from; None: the local disk or HDFS, which it knows itself."""
    if urlsplit(to_url(file)).scheme in ("file", "hdfs"):
        return None
    return _Store(fsspec.core.url_to_fs(file)[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Petastorm warns of what pyarrow 14 will drop, leaves files to the collector, and prints when it is done."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", ResourceWarning)
        yield
