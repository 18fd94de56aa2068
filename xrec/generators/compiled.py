"""The compiled parts of the sources that work with neighbours: sums over profiles, and who is nearest.

As :mod:`xrec.ranking.scan`, only tasks that score import this module. Sparse matrices come as the three arrays of their rows:
where each row begins, its columns, its values. Array names carry their shape: U users of a block, P entries of their profiles, E
entries that have neighbours, S similarities, T targets of a tile, R rows that are compared, M their members, B rows of a block, K
places.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types
from scipy import sparse

from xrec.ranking.scan import EMPTY, Array, compiled, key_of, read, replace_least, write

_F4, _F8, _I4, _I8 = types.float32, types.float64, types.int32, types.int64
_FIRST, _COLUMNS = read(_I8, 1), read(_I4, 1)


class Rows(NamedTuple):
    """Where the rows of a sparse matrix begin (one more than there are rows), and their columns."""

    first: Array
    column: Array

    @classmethod
    def of(cls, matrix: sparse.csr_matrix) -> Rows:
        """The rows of a matrix, in the types of the compiled functions."""
        return cls(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32, copy=False))


@compiled(types.void(_FIRST, _COLUMNS, read(_F8, 1), _FIRST, _COLUMNS, read(_F8, 1), write(_F8, 2)))
def sum_rows(
    first_U: Array, entry_P: Array, weight_P: Array, first_E: Array, target_S: Array, similarity_S: Array, sum_UT: Array
) -> None:
    """The product of two sparse matrices, (U, E) and (E, T), to a dense one; sums in the order of a profile's entries."""
    sum_UT[:] = 0.0
    for u in range(len(sum_UT)):
        sum_T = sum_UT[u]
        for p in range(first_U[u], first_U[u + 1]):
            weight = weight_P[p]
            for s in range(first_E[entry_P[p]], first_E[entry_P[p] + 1]):
                sum_T[target_S[s]] += weight * similarity_S[s]


@compiled(types.void(_COLUMNS, _FIRST, _COLUMNS, _FIRST, _COLUMNS, read(_F8, 1), _F8, write(_I8, 2)))
def nearest(
    row_B: Array,
    first_R: Array,
    member_P: Array,
    first_M: Array,
    row_P: Array,
    norm_R: Array,
    shrinkage: float,
    key_BK: Array,
) -> None:
    """Keys of the rows that have most in common with each of ``row_B``: the least first, ``EMPTY`` where there are fewer.

    A row's similarity, as float32, is the number of members that both have over (the product of their norms + shrinkage).
    """
    common_R, other_R = np.zeros(len(norm_R), np.int32), np.empty(len(norm_R), np.int32)
    key_BK[:] = EMPTY
    for b in range(len(row_B)):
        row, num_others = row_B[b], 0
        for m in range(first_R[row], first_R[row + 1]):
            for p in range(first_M[member_P[m]], first_M[member_P[m] + 1]):
                other = row_P[p]
                if common_R[other] == 0:
                    other_R[num_others] = other
                    num_others += 1
                common_R[other] += 1
        for n in range(num_others):
            other = other_R[n]
            similarity = np.float32(common_R[other] / (norm_R[row] * norm_R[other] + shrinkage))
            common_R[other] = 0
            key = key_of(similarity, other)
            if other != row and key > key_BK[b, 0]:
                replace_least(key_BK, b, key_BK.shape[1], key)
