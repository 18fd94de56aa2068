"""Which item a token stands for, read without a JVM."""

from __future__ import annotations

import fsspec
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xrec import columns as C
from xrec.sequence.spec import TrainingSpec
from xrec.storage.files import data_files


def item_idx_of_tokens(spec: TrainingSpec) -> NDArray[np.int32]:
    """The ``item_idx`` of token 1, 2, ...: the fold's vocabulary at its pinned version."""
    export = spec.export
    item_idx_V = np.full(export.vocabulary_size, -1, np.int32)
    for file in data_files(export.vocabulary_table, export.vocabulary_version, fold=export.fold):
        with fsspec.open(file, "rb") as opened:
            rows = pq.ParquetFile(opened).read(columns=[C.TOKEN, C.ITEM_IDX])
        item_idx_V[rows[C.TOKEN].to_numpy() - 1] = rows[C.ITEM_IDX].to_numpy()
    assert (item_idx_V >= 0).all(), "the vocabulary has a gap"
    return item_idx_V
