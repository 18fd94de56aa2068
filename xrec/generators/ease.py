"""EASE: a linear item-to-item model with a closed form (Steck 2019, Embarrassingly Shallow Autoencoders, eq. 8).

X is the user-item matrix, 1 where the user had the item, and reg = ``ease.reg_param`` (see :func:`reg_of`). With
P = (X'X + reg I)^-1 the weights are B_ij = -P_ij / P_jj, B_jj = 0, and score(u, j) = sum over the user's items i of B_ij. B is
dense, and none of it is pruned.

Where there are fewer users than items, the same scores come from the users' side. With R = reg (XX' + reg I)^-1, Woodbury's
identity gives P = (I - X'RX / reg) / reg, so reg P_jj = 1 - q_j with q_j = x_j'R x_j / reg, x_j the column of j; and because
XX'R = reg (I - R), the row of u in XP is R_u X / reg. As XB = X - XP diag(1 / P_jj),

    score(u, j) = x_uj - (R x_j)_u / (1 - q_j),        1 - q_j in (0, 1].

Array names carry their shape: N users or items, the fewer of them; U users, I items, J items that may be recommended, T of a
tile, B users of a block, H what these had among the targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from scipy import sparse
from scipy.linalg import lapack

from xrec import columns as C
from xrec.generators.neighbours import PROFILE, USERS_A_TILE, targets_without_vectors, top_of_tiles
from xrec.ranking.topk import Array, ItemBlock, TopItems, flatten, map_user_blocks, masked_by, spread
from xrec.storage.shared import SharedFolder, SharedRows

if TYPE_CHECKING:  # a task imports this module, and need not import the settings
    from xrec.config import Ease, Ranking

SOURCE = "ease"
_ROWS_SCHEMA = f"{C.IDX} int, {C.WEIGHTS} binary"
_ROWS_ARROW = pa.schema({C.IDX: pa.int32(), C.WEIGHTS: pa.binary()})
_SCALES_SCHEMA = f"{C.ITEM_IDX} int, scale double"
_SCALES_ARROW = pa.schema({C.ITEM_IDX: pa.int32(), "scale": pa.float64()})
_REG_AN_ITEM = 6.0
"""Regularisation for each item that a user has in the mean; see :func:`reg_of`."""
_ROWS_A_BATCH = 128
_TILE_ITEMS = 1024
"""A tile of dense weights is N x _TILE_ITEMS x 8 bytes."""


class EaseError(ValueError):
    """A matrix that is too large to be solved by one task; the message says which setting bounds it."""


class Pairs(NamedTuple):
    """Who had what: the sorted indexes of users and items, and the matrix of their places, 1 or nothing."""

    user_idx_U: Array
    item_idx_I: Array
    had_UI: sparse.csr_matrix


def ease_candidates(
    users: DataFrame, eligible: DataFrame, interactions: DataFrame, ease: Ease, ranking: Ranking, folder: SharedFolder
) -> DataFrame:
    """Lists (``scope``, ``user_idx``, ``items``, ``scores``) of a fold; only items of positive score.

    One task inverts the matrix of N users or items, the fewer: N x N x 8 bytes, on as many threads as OMP_NUM_THREADS gives
    Spark's Python processes (one, unless spark.executorEnv.OMP_NUM_THREADS says more). Each Python process that scores holds
    N x N x 4 bytes, twice that while it reads them, and 16 bytes for each interaction where the users are fewer.

    Raises
    ------
    EaseError
        There are more than ``ease.max_size`` users and more than ``ease.max_size`` items, or more interactions than
        ``ease.max_nonzeros``.
    """
    pairs = interactions.select(C.USER_IDX, C.ITEM_IDX)
    size = size_of(pairs)
    by_users, reg = check_size(size, ease), reg_of(size, ease)
    shared, items = folder.share(pairs), folder.share(masked_by(eligible))
    weights = folder.share(solve(shared, reg, items, pairs, by_users=by_users))
    if not by_users:
        return _score_items(users, pairs, weights, items, ranking)
    scales = folder.share(_scales_of(pairs, shared, weights, reg))
    return _score_users(users, shared, weights, scales, items, ranking)


class Size(NamedTuple):
    """Numbers of distinct users, items and pairs."""

    users: int
    items: int
    pairs: int


def size_of(pairs: DataFrame) -> Size:
    """Count distinct pairs (``user_idx``, ``item_idx``)."""
    found = pairs.agg(F.countDistinct(C.USER_IDX), F.countDistinct(C.ITEM_IDX), F.count("*")).first()
    assert found is not None
    return Size(*found)


def reg_of(size: Size, ease: Ease) -> float:
    """The regularisation that the settings name, or one that grows with the users' histories.

    A log whose users have 9 items wants about 100 (Amazon Beauty), one whose users have 250 wants 1,000 to 2,000 (Complete
    Journey).
    """
    return ease.reg_param or _REG_AN_ITEM * max(1.0, size.pairs / max(size.users, 1))


def check_size(size: Size, ease: Ease) -> bool:
    """Whether the users are fewer than the items; raises :class:`EaseError` where even the fewer are too many."""
    num_users, num_items, num_pairs = size
    if min(num_users, num_items) > ease.max_size:
        raise EaseError(
            f"ease.max_size: found {num_users} users and {num_items} items, expected at most {ease.max_size} of one of them; "
            f"raise it if an executor has {8 * min(num_users, num_items) ** 2 / 1e9:.1f} GB for the matrix, or leave 'ease' out of "
            "ranking.sources"
        )
    if num_pairs > ease.max_nonzeros:
        raise EaseError(
            f"ease.max_nonzeros: found {num_pairs} interactions, expected at most {ease.max_nonzeros}; raise it if an executor "
            "has 16 bytes for each, or leave 'ease' out of ranking.sources"
        )
    return bool(num_users < num_items)


def invert(gram_NN: Array, reg: float) -> Array:
    """(gram + reg I)^-1 of a symmetric matrix, which is overwritten (Cholesky, float64)."""
    gram_NN[np.diag_indices_from(gram_NN)] += reg
    factor_NN, failed = lapack.dpotrf(gram_NN.T, lower=1, overwrite_a=1)
    assert not failed, "a Gram matrix plus a positive diagonal is positive definite"
    inverse_NN, failed = lapack.dpotri(factor_NN, lower=1, overwrite_c=1)
    assert not failed
    for start in range(0, len(inverse_NN), _ROWS_A_BATCH):  # LAPACK gives the lower triangle alone
        rows = slice(start, start + _ROWS_A_BATCH)
        corner = np.tril(inverse_NN[rows, rows])
        inverse_NN[rows, rows] = corner + np.tril(corner, -1).T
        inverse_NN[rows, rows.stop :] = inverse_NN[rows.stop :, rows].T
    inverse: Array = inverse_NN
    return inverse


def solve(shared: SharedRows, reg: float, items: SharedRows, pairs: DataFrame, *, by_users: bool) -> DataFrame:
    """One task's rows: of each item its weights to the targets (B), or of each user R, as bytes of float32."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            had = read_pairs(shared)
            had_NM = had.had_UI if by_users else had.had_UI.T.tocsr()
            idx_N = had.user_idx_U if by_users else had.item_idx_I
            inverse_NN = invert(_gram(had_NM), reg)
            if by_users:
                columns_J, scale_J = np.arange(len(idx_N)), np.full(len(idx_N), reg)
            else:
                columns_J = np.flatnonzero(np.isin(idx_N, items.read()[C.ITEM_IDX].to_numpy()))
                scale_J = -1.0 / inverse_NN.diagonal()[columns_J]
            for start in range(0, len(idx_N), _ROWS_A_BATCH):
                rows = slice(start, start + _ROWS_A_BATCH)
                weights_BJ = (inverse_NN[rows][:, columns_J] * scale_J).astype(np.float32)
                if not by_users:
                    weights_BJ[idx_N[rows, None] == idx_N[columns_J]] = 0.0
                yield pa.record_batch(
                    [pa.array(idx_N[rows], pa.int32()), pa.array([row.tobytes() for row in weights_BJ], pa.binary())],
                    schema=_ROWS_ARROW,
                )

    return pairs.sparkSession.range(0, 1, numPartitions=1).mapInArrow(run, _ROWS_SCHEMA)


def _gram(had_NM: sparse.csr_matrix) -> Array:
    """The dense matrix of common counts; a block of rows at a time, because a sparse one would take more."""
    had_MN = had_NM.T.tocsr()
    gram_NN = np.empty((had_NM.shape[0], had_NM.shape[0]))
    for start in range(0, len(gram_NN), _ROWS_A_BATCH):
        rows = slice(start, start + _ROWS_A_BATCH)
        gram_NN[rows] = (had_NM[rows] @ had_MN).toarray()
    return gram_NN


def read_pairs(shared: SharedRows) -> Pairs:
    """Shared rows of (``user_idx``, ``item_idx``) to a matrix, the same whatever the order of the rows."""
    table = shared.read()
    (user_idx_U, user), (item_idx_I, item) = (
        np.unique(table[name].to_numpy(), return_inverse=True) for name in (C.USER_IDX, C.ITEM_IDX)
    )
    shape = (len(user_idx_U), len(item_idx_I))
    had_UI = sparse.csr_matrix((np.ones(len(user)), (user, item)), shape=shape)
    had_UI.sort_indices()
    return Pairs(user_idx_U, item_idx_I, had_UI)


def read_weights(weights: SharedRows) -> tuple[Array, Array]:
    """Shared rows (``idx``, ``weights``) to the sorted indexes and the matrix of their weights."""
    table = weights.read()
    idx_N = table[C.IDX].to_numpy()
    # The bytes lie row after row, so that a matrix of them is no copy.
    parts = [np.frombuffer(chunk.buffers()[2], dtype=np.float32) for chunk in table[C.WEIGHTS].chunks]
    values = parts[0] if len(parts) == 1 else np.concatenate(parts)
    weights_NJ = values.reshape(len(idx_N), values.size // max(len(idx_N), 1))
    order = np.argsort(idx_N)
    return idx_N[order], weights_NJ if np.array_equal(order, np.arange(len(order))) else weights_NJ[order]


def _targets(items: SharedRows, known_idx_I: Array) -> ItemBlock:
    """The items that may be recommended and that somebody had, by index."""
    return targets_without_vectors(items.read(), known_idx_I)


def _score_items(
    users: DataFrame, pairs: DataFrame, weights: SharedRows, items: SharedRows, ranking: Ranking
) -> DataFrame:
    tile_items, k = min(ranking.tile_items, _TILE_ITEMS), ranking.candidates_per_source

    def select(batch: pa.RecordBatch) -> TopItems:
        item_idx_I, weights_IJ, targets = _read_item_weights(weights, items)
        row, item = flatten(batch.column(PROFILE))
        # Only the rows of what somebody of the block had; float64 sums by rising index, so that blocks do not matter.
        had, place = np.unique(item, return_inverse=True)
        weights_HJ = weights_IJ[np.searchsorted(item_idx_I, had)]
        had_BH = sparse.csr_matrix((np.ones(len(row)), (row, place)), shape=(batch.num_rows, len(had)))

        def score(start: int, stop: int) -> Array:
            scores_BT: Array = had_BH @ weights_HJ[:, start:stop].astype(np.float64)
            return scores_BT

        return top_of_tiles(batch, targets, score, tile_items=tile_items, k=k)

    profiles = pairs.groupBy(C.USER_IDX).agg(F.sort_array(F.collect_list(C.ITEM_IDX)).alias(PROFILE))
    return map_user_blocks(
        users.join(profiles.hint("merge"), C.USER_IDX, how="inner"),
        select,
        tile_users=min(ranking.tile_users, USERS_A_TILE),
    )


@lru_cache(maxsize=1)
def _read_item_weights(weights: SharedRows, items: SharedRows) -> tuple[Array, Array, ItemBlock]:
    item_idx_I, weights_IJ = read_weights(weights)
    return item_idx_I, weights_IJ, _targets(items, item_idx_I)


class _OfUsers(NamedTuple):
    """What the users' side needs: who had what, and R."""

    pairs: Pairs
    had_IU: sparse.csr_matrix
    residual_UU: Array


@lru_cache(maxsize=1)
def _read_users(shared: SharedRows, weights: SharedRows) -> _OfUsers:
    pairs = read_pairs(shared)
    return _OfUsers(pairs, pairs.had_UI.T.tocsr(), read_weights(weights)[1])


def _scales_of(pairs: DataFrame, shared: SharedRows, weights: SharedRows, reg: float) -> DataFrame:
    """Each item with ``scale``, -1 / (1 - q_j)."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            of_users, item_idx = _read_users(shared, weights), batch.column(C.ITEM_IDX).to_numpy()
            for start in range(0, len(item_idx), _TILE_ITEMS):
                block = item_idx[start : start + _TILE_ITEMS]
                had_TU = of_users.had_IU[np.searchsorted(of_users.pairs.item_idx_I, block)]
                q_T = np.asarray(had_TU.multiply(had_TU @ of_users.residual_UU).sum(axis=1)).ravel() / reg
                yield pa.record_batch([pa.array(block), pa.array(-1.0 / (1.0 - q_T))], schema=_SCALES_ARROW)

    return spread(pairs.select(C.ITEM_IDX).distinct(), C.ITEM_IDX).mapInArrow(run, _SCALES_SCHEMA)


def _score_users(
    users: DataFrame, shared: SharedRows, weights: SharedRows, scales: SharedRows, items: SharedRows, ranking: Ranking
) -> DataFrame:
    tile_items, k = min(ranking.tile_items, _TILE_ITEMS), ranking.candidates_per_source

    def select(batch: pa.RecordBatch) -> TopItems:
        of_users, (targets, place_J, scale_J) = _read_users(shared, weights), _read_scales(scales, items)
        place_B = np.searchsorted(of_users.pairs.user_idx_U, batch.column(C.USER_IDX).to_numpy())
        residual_UB = of_users.residual_UU[place_B].T.astype(np.float64, order="C")
        # What the block's users had among the targets, by target.
        had_BI = of_users.pairs.had_UI[place_B].tocoo()
        target, is_target = np.searchsorted(place_J, had_BI.col), np.isin(had_BI.col, place_J)
        order = np.argsort(target[is_target], kind="stable")
        target_H, row_H = target[is_target][order], had_BI.row[is_target][order]

        def score(start: int, stop: int) -> Array:
            # An item's users by rising index, so that blocks do not matter.
            scores_TB = (of_users.had_IU[place_J[start:stop]] @ residual_UB) * scale_J[start:stop, None]
            here = slice(*np.searchsorted(target_H, (start, stop)))
            scores_TB[target_H[here] - start, row_H[here]] += 1.0
            scores_BT: Array = scores_TB.T
            return scores_BT

        return top_of_tiles(batch, targets, score, tile_items=tile_items, k=k)

    return map_user_blocks(users, select, tile_users=min(ranking.tile_users, USERS_A_TILE))


@lru_cache(maxsize=1)
def _read_scales(scales: SharedRows, items: SharedRows) -> tuple[ItemBlock, Array, Array]:
    """The targets, their places among all items that somebody had, and their scales."""
    table = scales.read()
    item_idx, scale = table[C.ITEM_IDX].to_numpy(), table["scale"].to_numpy()
    order = np.argsort(item_idx)
    targets = _targets(items, item_idx)
    place_J = np.searchsorted(item_idx[order], targets.item_idx_I)
    return targets, place_J, scale[order][place_J]
