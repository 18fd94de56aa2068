"""Cosine neighbours with shrinkage: of items by the users who had them, of users by the items that they had.

similarity(a, b) = common(a, b) / (sqrt(n(a) n(b)) + shrinkage), n(a) the number of what a has, common(a, b) of what both have
(cosine of sets: Sarwar et al. 2001; shrinkage as in Koren 2008). Common counts are small integers, so their sums are exact and
the result is the same whatever the order and the blocks.

Array names carry their shape: R rows that are compared, M their members, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from scipy import sparse

from xrec.generators.neighbours import EDGES_ARROW, EDGES_SCHEMA, largest
from xrec.ranking.topk import Array, spread
from xrec.storage.shared import SharedFolder, SharedRows

_ROWS_A_PRODUCT = 128
_PAIRS_A_PRODUCT = 1 << 24
"""A product has at most so many entries, 8 bytes each, however many rows there are (or one row's)."""


def cosine_neighbours(
    pairs: DataFrame, *, of: str, by: str, num_neighbours: int, shrinkage: float, folder: SharedFolder
) -> DataFrame:
    """Distinct (``of``, ``by``) to each ``of``'s nearest: ``profile_idx``, ``neighbour_idx``, ``similarity``; ties by index.

    Each Python process holds all pairs, 16 bytes each, and a product of 128 MB. Time grows with the sum of the squares of the
    pairs of each ``by``.
    """
    shared = folder.share(pairs.select(of, by))

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            rows, members = batch.column(of).to_numpy(), _read_members(shared, of, by)
            block = max(1, min(_ROWS_A_PRODUCT, _PAIRS_A_PRODUCT // len(members.norms_R)))
            for start in range(0, len(rows), block):
                yield _nearest(rows[start : start + block], members, num_neighbours, shrinkage)

    return spread(pairs.select(of).distinct(), of).mapInArrow(run, EDGES_SCHEMA)


class _Members(NamedTuple):
    """Who has what, from both sides, 1 or nothing; and the square root of each row's number."""

    members_RM: sparse.csr_matrix
    members_MR: sparse.csr_matrix
    norms_R: Array


@lru_cache(maxsize=1)
def _read_members(shared: SharedRows, of: str, by: str) -> _Members:
    pairs = shared.read()
    row, member = (pairs[name].to_numpy() for name in (of, by))
    shape = (int(row.max(initial=0)) + 1, int(member.max(initial=0)) + 1)
    members_RM = sparse.csr_matrix((np.ones(len(row), dtype=np.float32), (row, member)), shape=shape)
    return _Members(members_RM, members_RM.T.tocsr(), np.sqrt(np.diff(members_RM.indptr)))


def _nearest(rows_B: Array, members: _Members, num_neighbours: int, shrinkage: float) -> pa.RecordBatch:
    """The neighbours of a block of rows."""
    common_BR, norms_R = members.members_RM[rows_B] @ members.members_MR, members.norms_R
    found = []
    for place, row in enumerate(rows_B):
        entries = slice(common_BR.indptr[place], common_BR.indptr[place + 1])
        others = common_BR.indices[entries]
        similarity = common_BR.data[entries] / (norms_R[row] * norms_R[others] + shrinkage)
        similarity = similarity.astype(np.float32)
        similarity[others == row] = -1.0
        kept = largest(similarity, others, min(num_neighbours, len(others) - 1))
        found.append((np.full(len(kept), row), others[kept], similarity[kept]))
    columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, EDGES_ARROW, strict=True)]
    return pa.record_batch(arrays, schema=EDGES_ARROW)
