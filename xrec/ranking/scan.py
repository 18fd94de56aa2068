"""The compiled part of the top-K kernel: tiles of proposed values to each user's best items; see :mod:`xrec.ranking.topk`.

Array names carry their shape: U users of a block, A of them still active, I items, T items of a tile, D dimensions,
C categories, S seen entries, B = K + spare places of a user.

A user's first K places are a heap of the largest values so far, the least at its root; places from K on hold what was pushed
out of the heap, or never came in, and lies within the error of the root: as good as always nothing. An empty place holds
-inf and position -1.

Only tasks that score import this module: numba takes half a second to load. Signatures are explicit, so that nothing compiles
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

SPARE = 64
"""Places of a user beside his K."""
_CHUNK = 128
"""Values that are compared at once: a constant, as only such a loop becomes vector instructions."""
_PART = 16
"""Values of such a chunk that are compared at once where one of them reaches the threshold."""
_UNDERFLOW = 2.0**-97
"""What is added to |u| |v| in a bound of the error: products too small for a float32."""


def _compiled(signature: Any) -> Callable[[Function], Function]:
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


def _read(dtype: Any, dims: int) -> Any:
    return types.Array(dtype, dims, "C", readonly=True)


def _write(dtype: Any, dims: int) -> Any:
    return types.Array(dtype, dims, "C")


_F4, _F8, _I4, _I8 = types.float32, types.float64, types.int32, types.int64
_TAKEN: Any = types.Tuple([_I8, _F4])  # type: ignore[no-untyped-call]
_VECTORS, _PLACES = _read(_F4, 2), (_write(_F4, 1), _write(_I4, 1))


@_compiled(_F4(_read(_F4, 1), _read(_F4, 1), _write(_F8, 1)))
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


@_compiled(types.void(_VECTORS, _VECTORS, _read(_I8, 1), _read(_I8, 1), _write(_F4, 1)))
def score_pairs(vectors_UD: Array, vectors_ID: Array, row_P: Array, column_P: Array, scores_P: Array) -> None:
    """The scores of the pairs (row of users, row of items)."""
    sums_D = np.empty(vectors_UD.shape[1], np.float64)
    for p in range(len(row_P)):
        scores_P[p] = score(vectors_UD[row_P[p]], vectors_ID[column_P[p]], sums_D)


@_compiled(types.void(*_PLACES, _I8, _F4, _I4))
def _replace_root(value_B: Array, position_B: Array, k: int, value: np.float32, position: np.int32) -> None:
    """Put an entry into the heap in place of the least one."""
    at, child = 0, 1
    while child < k:
        if child + 1 < k and value_B[child + 1] < value_B[child]:
            child += 1
        if value_B[child] >= value:
            break
        value_B[at], position_B[at] = value_B[child], position_B[child]
        at, child = child, 2 * child + 1
    value_B[at], position_B[at] = value, position


@_compiled(types.void(*_PLACES, _I8, _I8, _read(_F4, 1), _VECTORS, _read(_I4, 1)))
def _keep_best(
    value_B: Array, position_B: Array, k: int, count: int, user_D: Array, vectors_ID: Array, item_idx_I: Array
) -> None:
    """Of the first ``count`` places keep the best K by exact score, ties by item index: from the worst (a heap) to the best."""
    sums_D = np.empty(len(user_D), np.float64)
    best, best_position, num_best = np.empty(k, np.float32), np.empty(k, np.int32), 0  # the best first
    for n in range(count):
        position = position_B[n]
        if position < 0:
            continue
        exact, item_idx = score(user_D, vectors_ID[position], sums_D), item_idx_I[position]
        at = num_best
        while at > 0 and (
            best[at - 1] < exact or (best[at - 1] == exact and item_idx_I[best_position[at - 1]] > item_idx)
        ):
            at -= 1
        if at == k:
            continue
        num_best = min(num_best + 1, k)
        for place in range(num_best - 1, at, -1):
            best[place], best_position[place] = best[place - 1], best_position[place - 1]
        best[at], best_position[at] = exact, position
    for n in range(k):
        there = k - 1 - n < num_best
        value_B[n] = best[k - 1 - n] if there else -np.inf
        position_B[n] = best_position[k - 1 - n] if there else -1


@_compiled(types.boolean(_read(_F4, 1), _F4))
def _reaches(chunk_T: Array, floor: np.float32) -> bool:
    """Whether one of ``_CHUNK`` values is at least the floor."""
    found = False
    for n in range(_CHUNK):
        found |= chunk_T[n] >= floor
    return found


@_compiled(types.boolean(_read(_F4, 1), _F4))
def _part_reaches(part_T: Array, floor: np.float32) -> bool:
    """Whether one of ``_PART`` values is at least the floor."""
    found = False
    for n in range(_PART):
        found |= part_T[n] >= floor
    return found


@_compiled(_TAKEN(_F4, _I4, _I8, *_PLACES, _I8, _F4, _F8))
def _take(
    value: np.float32,
    position: np.int32,
    k: int,
    value_B: Array,
    position_B: Array,
    count: int,
    floor: np.float32,
    margin: float,
) -> tuple[int, np.float32]:
    """Put an allowed value that reaches the floor into the heap or beside it; the places in use then, and the floor."""
    if value > value_B[0]:  # what it pushes out of the heap is looked at in its place
        pushed_value, pushed_position = value_B[0], position_B[0]
        _replace_root(value_B, position_B, k, value, position)
        floor = max(floor, np.float32(value_B[0] - margin))
        value, position = pushed_value, pushed_position
    if position < 0 or value < floor:
        return count, floor
    value_B[count], position_B[count] = value, position
    count += 1
    if count == len(value_B):  # what has fallen below the floor since makes room
        count = k
        for place in range(k, len(value_B)):
            if value_B[place] >= floor:
                value_B[count], position_B[count] = value_B[place], position_B[place]
                count += 1
    return count, floor


_SCAN = _I8(
    *(_read(_F4, 2), _I8, _write(_I8, 1), _F8),  # the tile
    *(_VECTORS, _read(_F8, 1), _read(types.boolean, 2), _read(_I4, 1), _write(_I8, 1)),  # users
    *(_VECTORS, _read(_F8, 1), _read(_I4, 1), _read(_I4, 1), _read(_I4, 1)),  # items
    *(_I8, _write(_F4, 2), _write(_I4, 2), _write(_I8, 1), _write(_F4, 1)),  # the best so far
)


@_compiled(_SCAN)
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
    k: int,
    value_UB: Array,
    position_UB: Array,
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
        The bound of |tile - score| is this x (|u| |v| + ``_UNDERFLOW``).
    excluded_UC, category_I, class_I
        Which codes a user must not get, and the two codes of each item (the same one twice where filters give no class).
    seen_S, next_seen_U
        Positions of seen items, ascending within a user, each user's closed by one beyond all; and where each user stands.
    count_U, floor_U
        Places in use, from K on; the least value that may still be among the best K.
    """
    (num_active, width), capacity = tile_AT.shape, value_UB.shape[1]
    stop = start + width
    next_norm = norms_I[stop] if stop < len(norms_I) else -1.0
    remaining = 0
    for a in range(num_active):
        u = active_A[a]
        floor, seen, count = floor_U[u], next_seen_U[u], count_U[u]
        # Of all values so far: the first item is the longest.
        error_all = error * (norms_U[u] * norms_I[0] + _UNDERFLOW)
        error_tile = error * (norms_U[u] * norms_I[start] + _UNDERFLOW)
        for first in range(0, width, _CHUNK):
            if first + _CHUNK <= width and not _reaches(tile_AT[a, first : first + _CHUNK], floor):
                continue
            for part in range(first, min(first + _CHUNK, width), _PART):
                if part + _PART <= width and not _part_reaches(tile_AT[a, part : part + _PART], floor):
                    continue
                for n in range(part, min(part + _PART, width)):
                    value, position = tile_AT[a, n], np.int32(start + n)
                    if value < floor or excluded_UC[u, category_I[position]] or excluded_UC[u, class_I[position]]:
                        continue
                    while seen_S[seen] < position:
                        seen += 1
                    if seen_S[seen] == position:
                        continue
                    count, floor = _take(value, position, k, value_UB[u], position_UB[u], count, floor, 2 * error_all)
                    if count == capacity:  # so many near ties that only exact scores tell them apart
                        _keep_best(value_UB[u], position_UB[u], k, count, vectors_UD[u], vectors_ID, item_idx_I)
                        count = k
                        floor = max(floor, np.float32(value_UB[u, 0] - error_tile))
        floor_U[u], next_seen_U[u], count_U[u] = floor, seen, count
        longest = norms_U[u] * next_norm
        if next_norm >= 0 and longest + error * (longest + _UNDERFLOW) >= floor:
            active_A[remaining] = u
            remaining += 1
    return remaining


@_compiled(
    types.void(*(_VECTORS, _VECTORS, _read(_I4, 1), _I8, _write(_F4, 2), _write(_I4, 2), _write(_I8, 1), _read(_F4, 1)))
)
def finish(
    vectors_UD: Array,
    vectors_ID: Array,
    item_idx_I: Array,
    k: int,
    value_UB: Array,
    position_UB: Array,
    count_U: Array,
    floor_U: Array,
) -> None:
    """Leave each user's best K in his first K places, with exact scores, from the worst to the best."""
    for u in range(len(count_U)):
        count, value_B, position_B = k, value_UB[u], position_UB[u]
        for place in range(k, count_U[u]):
            if value_B[place] >= floor_U[u]:
                value_B[count], position_B[count] = value_B[place], position_B[place]
                count += 1
        _keep_best(value_B, position_B, k, count, vectors_UD[u], vectors_ID, item_idx_I)
