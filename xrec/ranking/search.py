"""A block of users to the keys of their best items, tile by tile; see :mod:`xrec.ranking.topk` for what it rests on.

Array names carry their shape: U users of the block, A of them at work, I items, T items of a tile, D dimensions, C categories,
S seen entries, K best, B = K and spare places.
"""

from __future__ import annotations

import numpy as np

from xrec.ranking import scan
from xrec.ranking.scan import Array
from xrec.ranking.topk import ItemBlock, Masks

_TILE_ITEMS = 512
"""Items of a tile at most: what the product wrote is soon read again, and users leave after each tile."""
_FIRST_ITEMS = 128
"""Items of the first tile; each next one is twice as wide: where nothing is known of a user yet, everything passes."""
_PILOTS = 32
"""Users of a block who are searched first, to guess the others' thresholds."""
_CAUTION = 0.04
"""Share by which the guess stays below the lowest threshold of the pilots: equal scores are common."""


class Search:
    """The search of a block's users: the best of each so far."""

    def __init__(self, vectors_UD: Array, norms_U: Array, items: ItemBlock, masks: Masks, *, k: int) -> None:
        num_users, dim = vectors_UD.shape
        self._vectors_UD, self._norms_U, self._items, self._k = vectors_UD, norms_U, items, k
        self._excluded_UC = masks.excluded_UC
        self._seen_S, self._first_seen_U = masks.seen()
        self._error = (dim + 2) * 2.0**-23
        self._key_UB = np.full((num_users, k + scan.SPARE), scan.EMPTY)
        self._next_seen_U, self._count_U = self._first_seen_U.copy(), np.full(num_users, k)
        self._floor_U = np.full(num_users, -np.inf, dtype=np.float32)

    def best(self, *, tile_items: int) -> Array:
        """Keys of each user's best K items, the best first, ``scan.EMPTY`` where there are fewer."""
        users, items, width = np.arange(len(self._norms_U)), self._items, min(tile_items, _TILE_ITEMS)
        pilots, others = users[:_PILOTS], users[_PILOTS:]
        self._scan(pilots, width)
        if len(others):
            guess_A = self._guess(pilots, self._norms_U[others])
            self._floor_U[others] = guess_A
            self._scan(others, width)
            # What was below the guess was dropped. That was right where the K-th best value is above it by twice the error.
            error_A = self._error * (self._norms_U[others] * items.norms_I[0] + scan.UNDERFLOW)
            self._restart(others[self._least(others) - 2 * error_A < guess_A], width)
        scan.finish(
            self._vectors_UD,
            items.vectors_ID,
            items.position_of,
            self._k,
            self._key_UB,
            self._count_U,
            self._floor_U,
        )
        return self._key_UB[:, self._k - 1 :: -1]

    def _least(self, rows_A: Array) -> Array:
        """Users' K-th best values, -inf where they have fewer."""
        return scan.unpack(self._key_UB[rows_A, 0])[1].astype(np.float64)

    def _guess(self, pilots: Array, norms_A: Array) -> Array:
        """Values that the K-th best of most other users reaches, -inf where half of the pilots have none."""
        least, norms = self._least(pilots), self._norms_U[pilots]
        full = np.isfinite(least) & (norms > 0)  # few pilots may have fewer than K allowed items
        if 2 * np.count_nonzero(full) < len(pilots):
            return np.full(len(norms_A), -np.inf, dtype=np.float32)
        lowest = np.min(least[full] / norms[full])
        guess_A: Array = ((lowest - _CAUTION * abs(lowest)) * norms_A).astype(np.float32)
        return guess_A

    def _restart(self, rows_A: Array, width: int) -> None:
        """Search users again, without a guess."""
        self._key_UB[rows_A], self._count_U[rows_A], self._floor_U[rows_A] = scan.EMPTY, self._k, -np.inf
        self._next_seen_U[rows_A] = self._first_seen_U[rows_A]
        self._scan(rows_A, width)

    def _scan(self, active_A: Array, width: int) -> None:
        """All items for some users, until no later item can be among their best."""
        items, vectors_AD, active_A = self._items, self._vectors_UD[active_A], active_A.copy()
        values = np.empty(len(active_A) * min(width, len(items.norms_I)), dtype=np.float32)
        start, stop = 0, min(width, _FIRST_ITEMS)
        while start < len(items.norms_I) and len(active_A):
            tile_TD = items.vectors_ID[start:stop]
            shape = len(active_A), len(tile_TD)
            tile_AT = np.matmul(vectors_AD, tile_TD.T, out=values[: shape[0] * shape[1]].reshape(shape))
            remaining = scan.scan(
                tile_AT,
                start,
                active_A,
                self._error,
                self._vectors_UD,
                self._norms_U,
                self._excluded_UC,
                self._seen_S,
                self._next_seen_U,
                items.vectors_ID,
                items.norms_I,
                items.category_I,
                items.category_I if items.class_I is None else items.class_I,
                items.item_idx_I,
                items.position_of,
                self._k,
                self._key_UB,
                self._count_U,
                self._floor_U,
            )
            if remaining < len(active_A):
                active_A = active_A[:remaining]
                vectors_AD = self._vectors_UD[active_A]
            start, stop = stop, stop + min(width, 2 * (stop - start))
