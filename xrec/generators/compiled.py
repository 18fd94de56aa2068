"""The compiled parts of the sources that work with neighbours: sums over profiles, and who is nearest.

As :mod:`xrec.ranking.scan`, only tasks that score import this module. Sparse matrices come as where each row begins (one more than
there are rows), the columns and the values. Array names carry their shape: U users of a block, P entries of their profiles, S
similarities, T targets of a tile; R rows that are compared, M their members, P pairs of both, B rows of a block, K places.
"""

from __future__ import annotations

import numpy as np
from numba import types

from xrec.ranking.scan import EMPTY, Array, compiled, key_of, read, replace_least, write

_F8, _I4, _I8 = types.float64, types.int32, types.int64
_FIRST, _COLUMNS = read(_I8, 1), read(_I4, 1)


@compiled(types.void(_FIRST, read(_F8, 1), write(_I8, 1), _FIRST, _COLUMNS, read(_F8, 1), _I8, write(_F8, 2)))
def sum_tile(
    first_U: Array,
    weight_P: Array,
    next_P: Array,
    last_P: Array,
    target_S: Array,
    similarity_S: Array,
    start: int,
    sum_UT: Array,
) -> None:
    """The product of two sparse matrices, profiles (U, E) and similarities (E, targets), to a dense tile from target ``start`` on.

    Tiles come in order: ``next_P`` is where each entry of a profile stands among its similarities, which end before ``last_P`` and
    are sorted by target. Sums are in the order of a profile's entries.
    """
    sum_UT[:] = 0.0
    stop = start + sum_UT.shape[1]
    for u in range(len(sum_UT)):
        sum_T = sum_UT[u]
        for p in range(first_U[u], first_U[u + 1]):
            weight, s, last = weight_P[p], next_P[p], last_P[p]
            while s < last and target_S[s] < stop:
                sum_T[target_S[s] - start] += weight * similarity_S[s]
                s += 1
            next_P[p] = s


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
