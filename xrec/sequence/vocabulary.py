"""What a token stands for, read without a JVM."""

from __future__ import annotations

from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xrec import columns as C
from xrec.features.sequence_files import ContractMismatchError
from xrec.sequence.spec import TrainingSpec
from xrec.storage.files import data_files


@dataclass(frozen=True, kw_only=True)
class ItemContent:
    """Hashes of words, 0 where there are no more, for the V tokens, padding included, and C cold items: I = V + C."""

    words_IW: NDArray[np.int32]
    paths_IP: NDArray[np.int32]
    cold_item_idx_C: NDArray[np.int32]

    @property
    def sizes(self) -> dict[str, int]:
        """Those of :class:`xrec.sequence.content.Content`."""
        num_items, num_words = self.words_IW.shape
        return {"num_items": num_items, "num_words": num_words, "num_paths": self.paths_IP.shape[1]}


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A fold's items, by token; row 0 is padding, so there are V = vocabulary size + 1."""

    item_idx_V: NDArray[np.int32]
    """-1 for padding."""
    item_ids: pa.StringArray
    """The catalogue's keys, by which items of other vocabularies are known, shape (V,); null for padding."""
    category_V: NDArray[np.int32]
    """Codes; -1 for padding and for what is never recommended."""
    vectors_VG: NDArray[np.float32] | None
    """What the items are given (``sequence.item_vectors``), zeros for padding and where an item has none; None: nothing."""
    content: ItemContent | None = None
    """What the catalogue says (``sequence.item_content``); None: it is not asked."""

    @property
    def given_dim(self) -> int:
        """The length of the given vectors, 0 where there are none."""
        return 0 if self.vectors_VG is None else self.vectors_VG.shape[1]

    @classmethod
    def read(cls, spec: TrainingSpec) -> Vocabulary:
        """The fold's vocabulary at its pinned version."""
        export = spec.export
        columns = [C.TOKEN, C.ITEM_IDX, C.ITEM_ID, C.CATEGORY_CODE]
        if spec.settings.sequence.item_vectors is not None:
            columns.append(C.VECTOR)
        if spec.settings.sequence.item_content:
            columns += [C.WORDS, C.PATHS]
        tables = []
        for file in data_files(export.vocabulary_table, export.vocabulary_version, fold=export.fold):
            with fsspec.open(file, "rb") as opened:
                tables.append(pq.ParquetFile(opened).read(columns=columns))
        every = pa.concat_tables(tables).sort_by(C.TOKEN)
        num_cold = int(np.searchsorted(every[C.TOKEN].to_numpy(), 0))
        rows, cold = every.slice(num_cold), every.slice(0, num_cold)
        tokens = rows[C.TOKEN].to_numpy()
        assert np.array_equal(tokens, np.arange(1, export.vocabulary_size + 1)), "the vocabulary has a gap"
        return cls(
            item_idx_V=_after_padding(rows[C.ITEM_IDX]),
            item_ids=pa.concat_arrays([pa.nulls(1, pa.string()), rows[C.ITEM_ID].combine_chunks()]),
            category_V=_after_padding(rows[C.CATEGORY_CODE]),
            vectors_VG=_given(rows[C.VECTOR], spec) if C.VECTOR in columns else None,
            content=_content(rows, cold) if C.WORDS in columns else None,
        )


def _after_padding(codes: pa.ChunkedArray) -> NDArray[np.int32]:
    values: NDArray[np.int32] = np.concatenate([[-1], codes.to_numpy()]).astype(np.int32)
    return values


def _content(rows: pa.Table, cold: pa.Table) -> ItemContent:
    both = pa.concat_tables([rows, cold])
    return ItemContent(
        words_IW=_padded(both[C.WORDS]),
        paths_IP=_padded(both[C.PATHS]),
        cold_item_idx_C=cold[C.ITEM_IDX].to_numpy().astype(np.int32),
    )


def _padded(lists: pa.ChunkedArray) -> NDArray[np.int32]:
    """Lists of hashes to an array, filled up with 0, after a row of padding; null is an empty list."""
    found = lists.combine_chunks().fill_null([])
    lengths = found.value_lengths().to_numpy()
    padded = np.zeros((len(found) + 1, int(lengths.max(initial=0))), np.int32)
    padded[1:][np.arange(padded.shape[1]) < lengths[:, None]] = found.flatten().to_numpy()
    return padded


def _given(vectors: pa.ChunkedArray, spec: TrainingSpec) -> NDArray[np.float32]:
    """Vectors as an array, zeros where there is none.

    Raises
    ------
    ContractMismatchError
        No item has a vector.
    """
    found = vectors.combine_chunks()
    has_one = found.is_valid().to_numpy(zero_copy_only=False)
    model, export = spec.settings.sequence.item_vectors, spec.export
    stage = "train_als" if model == "als" else "make_item_vectors"
    if not has_one.any():
        raise ContractMismatchError(
            f"{export.vocabulary_table}, fold {export.fold}: found no item with a vector of '{model}', expected them because "
            f"sequence.item_vectors is {model}; run the stages {stage} and export_sequences again"
        )
    flat = found.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    vectors_VG = np.zeros((len(found) + 1, len(flat) // int(has_one.sum())), np.float32)
    vectors_VG[1:][has_one] = flat.reshape(-1, vectors_VG.shape[1])
    return vectors_VG
