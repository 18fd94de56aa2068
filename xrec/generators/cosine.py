"""Cosine neighbours with shrinkage: of items by the users who had them, of users by the items that they had.

similarity(a, b) = common(a, b) / (sqrt(n(a) n(b)) + shrinkage), n(a) the number of what a has, common(a, b) of what both have
(cosine of sets: Sarwar et al. 2001; shrinkage as in Koren 2008). Common counts are small integers, so their sums are exact and
the result is the same whatever the order and the blocks.

Array names carry their shape: R rows that are compared, M their members, B rows of a block, K neighbours of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from scipy import sparse

from xrec.generators.neighbours import EDGES_ARROW, EDGES_SCHEMA
from xrec.ranking.topk import Array, spread
from xrec.storage.shared import SharedFolder, SharedRows

_ROWS_A_BATCH = 1024


def cosine_neighbours(
    pairs: DataFrame, *, of: str, by: str, num_neighbours: int, shrinkage: float, folder: SharedFolder
) -> DataFrame:
    """Distinct (``of``, ``by``) to each ``of``'s nearest: ``profile_idx``, ``neighbour_idx``, ``similarity``; ties by index.

    Each Python process holds all pairs, 16 bytes each. Time grows with the sum of the squares of the pairs of each ``by``.
    """
    shared = folder.share(pairs.select(of, by))

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            row_R, members = batch.column(of).to_numpy(), _read_members(shared, of, by)
            for start in range(0, len(row_R), _ROWS_A_BATCH):
                yield _nearest(row_R[start : start + _ROWS_A_BATCH], members, num_neighbours, shrinkage)

    return spread(pairs.select(of).distinct(), of).mapInArrow(run, EDGES_SCHEMA)


class _Members(NamedTuple):
    """Who has what, from both sides: where each one's begin, and what they are; and the square root of each row's number."""

    first_R: Array
    member_P: Array
    first_M: Array
    row_P: Array
    norm_R: Array


@lru_cache(maxsize=1)
def _read_members(shared: SharedRows, of: str, by: str) -> _Members:
    pairs = shared.read()
    row, member = (pairs[name].to_numpy() for name in (of, by))
    shape = (int(row.max(initial=-1)) + 1, int(member.max(initial=-1)) + 1)
    members_RM = sparse.csr_matrix((np.ones(len(row), dtype=bool), (row, member)), shape=shape)
    rows_MR = members_RM.T.tocsr()
    return _Members(
        first_R=members_RM.indptr.astype(np.int64),
        member_P=members_RM.indices.astype(np.int32, copy=False),
        first_M=rows_MR.indptr.astype(np.int64),
        row_P=rows_MR.indices.astype(np.int32, copy=False),
        norm_R=np.sqrt(np.diff(members_RM.indptr)),
    )


def _nearest(row_B: Array, members: _Members, num_neighbours: int, shrinkage: float) -> pa.RecordBatch:
    """The neighbours of a block of rows."""
    from xrec.generators import compiled  # noqa: PLC0415 - numba takes a second, and most tasks need none
    from xrec.ranking import scan  # noqa: PLC0415 - as above

    key_BK = np.empty((len(row_B), num_neighbours), dtype=np.int64)
    compiled.nearest(row_B, *members, shrinkage, key_BK)
    row, place = np.nonzero(key_BK != scan.EMPTY)
    other, similarity = scan.unpack(key_BK[row, place])
    arrays = [
        pa.array(values, type=field.type)
        for values, field in zip((row_B[row], other, similarity), EDGES_ARROW, strict=True)
    ]
    return pa.record_batch(arrays, schema=EDGES_ARROW)
