"""The compiled part of the top-K kernel: tiles of proposed values to each user's best items; see :mod:`xrec.ranking.topk`.

Array names carry their shape: U users of a block, A of them still active, I items, T items of a tile, D dimensions,
C categories, S seen entries, B = K + ``SPARE`` places of a user, P pairs.

A candidate is one integer, its key: the value in the upper half, the item index in the lower, so that the greater key is the
better candidate. A user's first K places hold the best keys so far, the least first; places from K on what is not among
them, or no longer, and yet within the error of the least.

Only tasks that score import this module: numba takes a second to load. Signatures are explicit, so that nothing compiles
at a call, and say ``readonly`` for what is only read: such a parameter takes arrays of Arrow, which are read-only, and others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit, types

Array = npt.NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])

SPARE = 16
"""Places of a user beside his K."""
EMPTY = -2139095041 << 32
"""The key of a place that holds nothing: the value -inf."""
_LOW = 0x7FFFFFFF
_CHUNK = 128
"""Values that are compared at once; a constant, as only such a loop becomes vector instructions."""
UNDERFLOW = 2.0**-97
"""What is added to |u| |v| in a bound of the error: products too small for a float32."""


def compiled(signature: Any) -> Callable[[Function], Function]:
    """Compile now, or take from numba's cache what was compiled for this kind of CPU.

    The cache lies in ``__pycache__`` beside this file; where that cannot be written, as in a package that belongs to root, in
    the user's cache folder, or where ``NUMBA_CACHE_DIR`` says. Without any of them each Python process compiles for itself:
    seconds, but the same results.
    """

    def decorate(function: Function) -> Function:
        try:
            compiled: Function = njit(signature, cache=True, nogil=True)(function)
        except RuntimeError:  # no place for the cache
            compiled = njit(signature, nogil=True)(function)
        return compiled

    return decorate


def read(dtype: Any, dims: int) -> Any:
    """The type of an array that is only read."""
    return types.Array(dtype, dims, "C", readonly=True)


def write(dtype: Any, dims: int) -> Any:
    """The type of an array that is written."""
    return types.Array(dtype, dims, "C")


_F4, _F8, _I4, _I8 = types.float32, types.float64, types.int32, types.int64
_VECTORS, _KEYS = read(_F4, 2), write(_I8, 2)
_LEAST_SCORE = np.float32(2.0**-149)
"""The smallest float32 above 0."""


@compiled(_I8(_F4, _I8))
def key_of(value: np.float32, item_idx: int) -> np.int64:
    """The greater value first, then the smaller item index."""
    bits = np.float32(value).view(np.int32)  # ordered as the value is, but negative ones backwards
    return (np.int64(bits ^ ((bits >> 31) & _LOW)) << 32) | (_LOW - item_idx)


@compiled(_F4(_I8))
def _value(key: np.int64) -> np.float32:
    bits = np.int32(key >> 32)
    value: np.float32 = np.int32(bits ^ ((bits >> 31) & _LOW)).view(np.float32)
    return value


def unpack(key_P: Array) -> tuple[Array, Array]:
    """Keys to their item indexes (int32) and values (float32)."""
    bits = (key_P >> 32).astype(np.int32)
    return (_LOW - (key_P & _LOW)).astype(np.int32), (bits ^ ((bits >> 31) & np.int32(_LOW))).view(np.float32)


@compiled(_F4(read(_F4, 1), read(_F4, 1), write(_F8, 1)))
def score(user_D: Array, item_D: Array, sums_D: Array) -> np.float32:
    """The score by its definition; ``sums_D`` is working space."""
    width = len(user_D)
    for d in range(width):
        sums_D[d] = np.float64(user_D[d]) * np.float64(item_D[d])  # exact: 24 + 24 bits
    while width > 1:
        half = (width + 1) // 2
        upper = sums_D[half:width]
        for d in range(len(upper)):
            sums_D[d] += upper[d]
        width = half
    return np.float32(sums_D[0] + 0.0)  # + 0.0: a product of -0.0 scores 0.0


@compiled(types.void(_VECTORS, _VECTORS, read(_I8, 1), read(_I8, 1), write(_F4, 1)))
def score_pairs(vectors_UD: Array, vectors_ID: Array, row_P: Array, column_P: Array, scores_P: Array) -> None:
    """The scores of the pairs (row of users, row of items)."""
    sums_D = np.empty(vectors_UD.shape[1], np.float64)
    for p in range(len(row_P)):
        scores_P[p] = score(vectors_UD[row_P[p]], vectors_ID[column_P[p]], sums_D)


@compiled(types.void(_KEYS, _I8, _I8, _I8))
def replace_least(key_UB: Array, u: int, k: int, key: np.int64) -> None:
    """Put a key among a user's best, the least of which leaves."""
    at = 0
    while at + 1 < k and key_UB[u, at + 1] < key:
        key_UB[u, at] = key_UB[u, at + 1]
        at += 1
    key_UB[u, at] = key


@compiled(_I8(_KEYS, _I8, _I8, _I8, _F4))
def _compress(key_UB: Array, u: int, k: int, count: int, floor: np.float32) -> int:
    """Drop what lies below the floor beside a user's best; returns the places that remain in use."""
    kept = k
    for place in range(k, count):
        if _value(key_UB[u, place]) >= floor:
            key_UB[u, kept] = key_UB[u, place]
            kept += 1
    return kept


@compiled(types.void(_KEYS, _I8, _I8, _I8, _VECTORS, _VECTORS, read(_I4, 1)))
def _keep_best(
    key_UB: Array, u: int, k: int, count: int, vectors_UD: Array, vectors_ID: Array, position_of: Array
) -> None:
    """Of a user's first ``count`` places keep the best K by exact score, the least first."""
    user_D, sums_D, old_B = vectors_UD[u], np.empty(vectors_UD.shape[1], np.float64), key_UB[u, :count].copy()
    key_UB[u, :k] = EMPTY
    for old in old_B:
        if old != EMPTY:
            item_idx = _LOW - (old & _LOW)
            exact = score(user_D, vectors_ID[position_of[item_idx]], sums_D)
            key = key_of(exact + np.float32(0.0), item_idx)  # -0.0 and 0.0 are equal scores
            if key > key_UB[u, 0]:
                replace_least(key_UB, u, k, key)


@compiled(_I8(read(_F4, 2), _I8, _F4, write(_I4, 1)))
def _passing(tile_AT: Array, a: int, floor: np.float32, column_T: Array) -> int:
    """How many values of a row are at least the floor; their columns are written to ``column_T``."""
    values_T, found = tile_AT[a], 0
    for first in range(0, len(values_T), _CHUNK):
        chunk_T = values_T[first : first + _CHUNK]
        if len(chunk_T) == _CHUNK:
            passes = False
            for n in range(_CHUNK):
                passes |= chunk_T[n] >= floor
            if not passes:
                continue
        for n in range(len(chunk_T)):
            if chunk_T[n] >= floor:
                column_T[found] = first + n
                found += 1
    return found


_TAKE = types.void(
    *(read(_F4, 2), _I8, read(types.boolean, 2), read(_I4, 1), write(_I8, 1)),  # the tile, users
    *(*(read(_I4, 1),) * 3, _KEYS),  # items, the best so far
)


@compiled(_TAKE)
def take(
    score_UT: Array,
    start: int,
    excluded_UC: Array,
    seen_S: Array,
    next_seen_U: Array,
    category_I: Array,
    class_I: Array,
    item_idx_I: Array,
    key_UK: Array,
) -> None:
    """Take from the items ``start``, ``start`` + 1, ... what is among the users' best K, of exact scores above 0.

    As :func:`scan`, of values that are scores already: their keys alone decide, and nothing is kept beside the best.
    """
    column_T = np.empty(score_UT.shape[1], np.int32)
    for u in range(len(score_UT)):
        seen, floor = next_seen_U[u], max(_value(key_UK[u, 0]), _LEAST_SCORE)
        for found in range(_passing(score_UT, u, floor, column_T)):
            position = start + column_T[found]
            key = key_of(score_UT[u, column_T[found]], item_idx_I[position])
            if key < key_UK[u, 0] or excluded_UC[u, category_I[position]] or excluded_UC[u, class_I[position]]:
                continue
            while seen_S[seen] < position:
                seen += 1
            if seen_S[seen] != position:
                replace_least(key_UK, u, key_UK.shape[1], key)
        next_seen_U[u] = seen


_SCAN = _I8(
    *(read(_F4, 2), _I8, write(_I8, 1), _F8),  # the tile
    *(_VECTORS, read(_F8, 1), read(types.boolean, 2), read(_I4, 1), write(_I8, 1)),  # users
    *(_VECTORS, read(_F8, 1), *(read(_I4, 1),) * 4),  # items
    *(_I8, _KEYS, write(_I8, 1), write(_F4, 1)),  # the best so far
)


@compiled(_SCAN)
def scan(
    tile_AT: Array,
    start: int,
    active_A: Array,
    error: float,
    vectors_UD: Array,
    norms_U: Array,
    excluded_UC: Array,
    seen_S: Array,
    next_seen_U: Array,
    vectors_ID: Array,
    norms_I: Array,
    category_I: Array,
    class_I: Array,
    item_idx_I: Array,
    position_of: Array,
    k: int,
    key_UB: Array,
    count_U: Array,
    floor_U: Array,
) -> int:
    """Take from the items ``start``, ``start`` + 1, ... what may be among the users' best; returns how many remain active.

    Parameters
    ----------
    tile_AT
        Float32 products of the active users (rows ``active_A`` of the block) and the tile's items.
    active_A
        Is overwritten: its first entries are the users who need the next tile.
    error
        The bound of |tile - score| is this x (|u| |v| + ``UNDERFLOW``).
    excluded_UC, category_I, class_I
        Which codes a user must not get, and the two codes of each item (the same one twice where filters give no class).
    seen_S, next_seen_U
        Positions of seen items, ascending within a user, each user's closed by one beyond all; and where each user stands.
    count_U, floor_U
        Places in use, at least K; the least value that may still be among the best K.
    """
    (num_active, width), capacity = tile_AT.shape, key_UB.shape[1]
    stop = start + width
    next_norm = norms_I[stop] if stop < len(norms_I) else -1.0
    remaining, column_T = 0, np.empty(width, np.int32)
    for a in range(num_active):
        u = active_A[a]
        floor, seen, count = floor_U[u], next_seen_U[u], count_U[u]
        error_all = error * (norms_U[u] * norms_I[0] + UNDERFLOW)  # of all values so far: the first item is the longest
        error_tile = error * (norms_U[u] * norms_I[start] + UNDERFLOW)
        for found in range(_passing(tile_AT, a, floor, column_T)):
            value, position = tile_AT[a, column_T[found]], start + column_T[found]
            if value < floor or excluded_UC[u, category_I[position]] or excluded_UC[u, class_I[position]]:
                continue
            while seen_S[seen] < position:
                seen += 1
            if seen_S[seen] == position:
                continue
            key = key_of(value, item_idx_I[position])
            least = key_UB[u, 0]
            if key > least:
                replace_least(key_UB, u, k, key)
                key = least  # it may still be among the best, by its exact score
                floor = max(floor, np.float32(_value(key_UB[u, 0]) - 2 * error_all))
            if key == EMPTY or _value(key) < floor:
                continue
            if count == capacity:
                count = _compress(key_UB, u, k, count, floor)
            if count == capacity:  # still full: so many near ties that only exact scores tell them apart
                _keep_best(key_UB, u, k, count, vectors_UD, vectors_ID, position_of)
                count = k
                floor = max(floor, np.float32(_value(key_UB[u, 0]) - error_tile))
            key_UB[u, count] = key
            count += 1
        floor_U[u], next_seen_U[u], count_U[u] = floor, seen, count
        longest = norms_U[u] * next_norm
        if next_norm >= 0 and longest + error * (longest + UNDERFLOW) >= floor:
            active_A[remaining] = u
            remaining += 1
    return remaining


@compiled(types.void(_VECTORS, _VECTORS, read(_I4, 1), _I8, _KEYS, read(_I8, 1), read(_F4, 1)))
def finish(
    vectors_UD: Array, vectors_ID: Array, position_of: Array, k: int, key_UB: Array, count_U: Array, floor_U: Array
) -> None:
    """Leave the keys of each user's best K, with exact scores, in his first K places, the least first."""
    for u in range(len(count_U)):
        count = _compress(key_UB, u, k, count_U[u], floor_U[u])
        _keep_best(key_UB, u, k, count, vectors_UD, vectors_ID, position_of)
