"""Latent semantic analysis (Deerwester et al. 1990): items that the catalogue describes alike get vectors alike.

The matrix (items, words), weighted by TF-IDF as in :mod:`xrec.generators.content`, is cut to its largest singular values; an item's
vector is its row times the right singular vectors. One task computes it, by a randomised method (Halko et al. 2011).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from scipy import sparse
from sklearn.decomposition import TruncatedSVD

from xrec import columns as C
from xrec.config import Content
from xrec.generators.content import checked_words
from xrec.storage.shared import SharedFolder

MODEL = "text_svd"
_SCHEMA = f"{C.IDX} int, {C.VECTOR} array<float>"
_ARROW = pa.schema({C.IDX: pa.int32(), C.VECTOR: pa.list_(pa.float32())})


class TextSvdError(ValueError):
    """Fewer words than a vector has numbers; the message says which setting to lower."""


def text_svd_vectors(items: DataFrame, content: Content, *, dim: int, seed: int, folder: SharedFolder) -> DataFrame:
    """Rows of ``items`` to one row an item that has words: ``idx``, ``vector`` of length ``dim``.

    The rows must be written while the ``folder`` lives. The task holds the words of all items, and ``dim`` numbers an item.
    """
    words = folder.share(checked_words(items, content, folder))

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            table = words.read().sort_by([(C.NEIGHBOUR_IDX, "ascending"), (C.PROFILE_IDX, "ascending")])
            columns = (table[name].to_numpy() for name in (C.NEIGHBOUR_IDX, C.PROFILE_IDX))
            (item_idx, row), (known_words, column) = (np.unique(values, return_inverse=True) for values in columns)
            weights_IW = sparse.csr_matrix((table[C.SIMILARITY].to_numpy().astype(np.float64), (row, column)))
            if len(known_words) <= dim or len(item_idx) <= dim:
                raise TextSvdError(
                    f"item_vectors.dim: found {dim}, expected less than the items with words ({len(item_idx)}) and than their "
                    f"different words ({len(known_words)}); lower it, or set sequence.item_vectors to another"
                )
            vectors_ID = TruncatedSVD(dim, random_state=seed % (1 << 32)).fit_transform(weights_IW)
            flat = pa.array(np.ascontiguousarray(vectors_ID, dtype=np.float32).ravel())
            bounds = pa.array(np.arange(len(item_idx) + 1, dtype=np.int32) * dim)
            arrays = [pa.array(item_idx, pa.int32()), pa.ListArray.from_arrays(bounds, flat)]
            yield pa.RecordBatch.from_arrays(arrays, schema=_ARROW)

    return items.sparkSession.range(0, 1, numPartitions=1).mapInArrow(run, _SCHEMA)
