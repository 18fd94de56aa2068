"""The top-K kernel: each user's K best allowed items, exact, in blocked tiles, inside Spark's Arrow batches.

Array names carry their shape: U users of a block, I items, T items of a tile, D dimensions, C categories, P pairs.

**Score.** The score of (u, v) is *defined* as their dot product in float64, its D products added by halves (a fixed order),
rounded to float32. Equal scores are ordered by ``item_idx``. Nothing else decides, so the result is the same to the bit
whatever the tiles, batches, partitions, threads or BLAS.

**The tile proposes.** A float32 matrix product is much faster, and wrong in the last bits. With unit roundoff r = 2^-24, for
any order of summation and with or without fused multiply-add, it differs from the real dot product by at most
g_D sum_d |u_d v_d| <= g_D |u| |v|, g_D = D r / (1 - D r) (Higham 2002, eq. 3.5, and Cauchy-Schwarz); the score itself differs
from the real dot product by at most (r + 2 D 2^-53) |u| |v|. Underflow adds less than 2^-126 an operation. So, for D < 2^20,

    |tile - score| <= e_u = (D + 2) 2^-23 (|u| max|v| + 2^-97)

which is twice what is needed: room for the rounding of norms and of thresholds to float32. Each user has a list of the K largest
values of allowed items so far, the least of them a_u. These values lie within e_u of their scores, so K items score at
least a_u - e_u, and an item whose value is below a_u - 2 e_u scores less than each of them: it is dropped. What lies between
a_u - 2 e_u and a_u is kept beside the list. Where that becomes too much (many equal scores), all that is kept is scored exactly
and cut to the best K; their scores are their values from then on, and with t_u, the K-th of them, an item whose value is below
t_u - e_u is dropped (e_u of the tile at hand: later items are shorter). At the end all that is kept is scored exactly, and the
best K of it, ties by item index, are the answer: what was dropped scores less than K others, or is after K others in order.

**A guess spares most of the work.** Nearly all that passes a threshold does so before it has risen. So a few users of a block,
the pilots, are searched first; the lowest of their a_u / |u|, and a little less, times |u| is where the others' thresholds start.
What is below such a guess s_u is dropped, which is right where a_u - 2 e_u >= s_u in the end; users for whom it is not are
searched again without a guess. Rows come by a hash, so each of the others is below all P pilots with a chance of 1 / (P + 1).

**Excluded categories, forbidden classes** (items that a filter treats alike) **and seen items** are looked at where a value passes
the threshold, before it is taken: few do.

**Items come by falling norm.** A user for whom |u| |v| + e_u is below his threshold at the next tile's first item needs none of
the later items, and leaves the product; where all have left, the block is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.lists import LIST_COLUMNS
from xrec.storage.shared import SharedRows

if TYPE_CHECKING:  # a task imports this module, and need not import the settings
    from xrec.config import Ranking

Array = npt.NDArray[Any]

_NORMS_AT_ONCE = 65_536
TOP_SCHEMA = f"{C.SCOPE} string, {C.USER_IDX} int, {LIST_COLUMNS}"


class VectorError(ValueError):
    """Vectors that have no dot product as a float32; the message names the offender."""


class TopItems(NamedTuple):
    """The best items of a block's users, ordered by user, best first; one entry is a (user, item).

    A user has fewer than K where fewer items are allowed.
    """

    row: Array
    """Row of the user within the block."""
    item_idx: Array
    score: Array


@dataclass(frozen=True, kw_only=True)
class ItemBlock:
    """All items that may be recommended, by falling norm: item index, category code, vector, norm, class code."""

    item_idx_I: Array
    category_I: Array
    vectors_ID: Array
    norms_I: Array
    position_of: Array
    """Of each item index its place in the block, -1 where it has none."""
    class_I: Array | None = None
    """Codes of what the filters tell apart, beyond those of the categories; None where no filter compares items with users."""
    trend_I: Array | None = None
    """What the scores are multiplied by, where they are."""

    @classmethod
    def build(
        cls,
        item_idx_I: Array,
        category_I: Array,
        vectors_ID: Array,
        class_I: Array | None = None,
        trend_I: Array | None = None,
    ) -> ItemBlock:
        """Items in any order to items by falling norm; raises :class:`VectorError` on a vector that is not finite."""
        norms_I = _norms(vectors_ID, item_idx_I, "item_idx")
        order = np.lexsort((item_idx_I, -norms_I))
        position_of = np.full(item_idx_I.max(initial=-1) + 1, -1, dtype=np.int32)
        position_of[item_idx_I[order]] = np.arange(len(order))
        return cls(
            item_idx_I=item_idx_I[order].astype(np.int32),
            category_I=category_I[order].astype(np.int32),
            vectors_ID=np.ascontiguousarray(vectors_ID[order], dtype=np.float32),
            norms_I=norms_I[order],
            position_of=position_of,
            class_I=None if class_I is None else class_I[order].astype(np.int32),
            trend_I=None if trend_I is None else trend_I[order],
        )


def item_rows(items: DataFrame, vectors: DataFrame, *, logits: bool = False) -> DataFrame:
    """Rows of :func:`masked_by` and (``idx``, ``vector``) to the items that have both, as :func:`top_k` wants them.

    A vector is multiplied by the item's trend where the items have one: the kernel then finds the exact top K of score x trend.
    Where the scores are ``logits``, the trend belongs to their exponentials: its logarithm is added to the vector's last number,
    the bias.
    """
    masks = masked_by(items)
    rows = vectors.join(masks, F.col(C.IDX) == F.col(C.ITEM_IDX), how="inner")
    if C.TREND in masks.columns:
        scaled = F.transform(C.VECTOR, lambda x: (x * F.col(C.TREND)).cast("float"))
        bias = (F.element_at(C.VECTOR, -1) + F.ln(C.TREND)).cast("float")
        shifted = F.concat(F.slice(C.VECTOR, F.lit(1), F.size(C.VECTOR) - 1), F.array(bias))
        rows = rows.withColumn(C.VECTOR, shifted if logits else scaled)
    return rows.select(*[name for name in masks.columns if name != C.TREND], C.VECTOR)


def masked_by(items: DataFrame) -> DataFrame:
    """Eligible items to what tasks want: ``item_idx``, ``category_code``, and where they have one ``class_code``, ``trend``."""
    wanted = (C.ITEM_IDX, C.CATEGORY_CODE, C.CLASS_CODE, C.TREND)
    return items.select(*[name for name in wanted if name in items.columns])


def values_of(table: pa.Table, column: str) -> Array | None:
    """A column of shared rows of :func:`masked_by`, None where they have none."""
    values: Array | None = table[column].to_numpy() if column in table.column_names else None
    return values


@lru_cache(maxsize=1)
def read_block(items: SharedRows) -> ItemBlock:
    """Shared rows of :func:`item_rows`; a Python process that serves several tasks reads them once."""
    table = items.read()
    item_idx = table[C.ITEM_IDX].to_numpy()
    vectors_ID = _matrix(table[C.VECTOR], item_idx, "item_idx")
    return ItemBlock.build(item_idx, table[C.CATEGORY_CODE].to_numpy(), vectors_ID, values_of(table, C.CLASS_CODE))


class Masks:
    """What a block of users must not get: excluded categories and classes, and seen items."""

    def __init__(self, items: ItemBlock, excluded_UC: Array, seen_row: Array, seen_item: Array) -> None:
        """Take the (user row, category or class code) matrix, and the pairs (user row, item index) of seen items."""
        self.excluded_UC = excluded_UC
        self._num_items = len(items.category_I)
        known = np.flatnonzero(seen_item < len(items.position_of))
        position = items.position_of[seen_item[known]]
        self._row, self._position = seen_row[known][position >= 0], position[position >= 0]

    def seen(self) -> tuple[Array, Array]:
        """Positions of seen items, ascending within a user, each user's closed by one beyond all; where each user's begin."""
        num_users, beyond = len(self.excluded_UC), self._num_items
        rows = np.arange(num_users)
        keys = np.concatenate([self._row * (beyond + 1) + self._position, rows * (beyond + 1) + beyond])
        keys.sort()
        return (keys % (beyond + 1)).astype(np.int32), np.searchsorted(keys, rows * (beyond + 1))


def top_k(users: DataFrame, items: SharedRows, ranking: Ranking, *, k: int) -> DataFrame:
    """Each row's K best allowed items: one row a (``scope``, ``user_idx``) that has any, with ``items``, ``scores``.

    Each Python process reads the items: I x D x 4 bytes; a task's scores take ``tile_users`` x ``tile_items`` x 4 bytes.

    Parameters
    ----------
    users
        One row a (``scope``, ``user_idx``), with ``vector`` (array<float>), ``excluded`` (codes of categories and classes) and
        ``seen`` (item indexes), none of them null.
    items
        The items that may be recommended: shared rows of :func:`item_rows`.
    """
    tile_items = ranking.tile_items  # the settings themselves stay on the driver

    def select(batch: pa.RecordBatch) -> TopItems:
        block, user_idx = read_block(items), batch.column(C.USER_IDX).to_numpy()
        dim = block.vectors_ID.shape[1] if len(block.item_idx_I) else None
        vectors_UD = _matrix(batch.column(C.VECTOR), user_idx, "user_idx", dim=dim)
        return top_k_block(
            vectors_UD, block, build_masks(batch, block), k=k, tile_items=tile_items, user_idx_U=user_idx
        )

    return map_user_blocks(users, select, tile_users=ranking.tile_users)


def map_user_blocks(users: DataFrame, select: Callable[[pa.RecordBatch], TopItems], *, tile_users: int) -> DataFrame:
    """Rows of users (``scope``, ``user_idx``, ...) to lists: what ``select`` gives for each block of ``tile_users``.

    A task works on a partition of the users: rows as wide as a user's history are not moved once more.
    """

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for start in range(0, batch.num_rows, tile_users):
                block = batch.slice(start, tile_users)
                yield _lists(block, select(block))

    return users.mapInArrow(run, TOP_SCHEMA)


def _lists(users: pa.RecordBatch, top: TopItems) -> pa.RecordBatch:
    """A block's users who have any items, with them as two lists."""
    row, first = np.unique(top.row, return_index=True)
    bounds = pa.array(np.append(first, len(top.row)), type=pa.int32())
    values = {C.ITEMS: pa.array(top.item_idx, pa.int32()), C.SCORES: pa.array(top.score, pa.float32())}
    lists = {name: pa.ListArray.from_arrays(bounds, flat) for name, flat in values.items()}
    keys = {name: users.column(name).take(pa.array(row)) for name in (C.SCOPE, C.USER_IDX)}
    return pa.RecordBatch.from_pydict(keys | lists)


def spread(rows: DataFrame, column: str) -> DataFrame:
    """Rows in as many partitions as the session shuffles to: adaptive execution would put a small table into one task."""
    configured = str(rows.sparkSession.conf.get("spark.sql.shuffle.partitions"))
    # By a hash: rows that lie by the column itself already would stay where they are, one task for all of a small table.
    key = F.xxhash64(column)
    return rows.repartition(int(configured), key) if configured.isdigit() else rows.repartition(key)


def build_masks(batch: pa.RecordBatch, items: ItemBlock) -> Masks:
    """The masks of a batch's users, from its columns ``excluded`` and ``seen``."""
    excluded_row, excluded_code = flatten(batch.column(C.EXCLUDED))
    classes = items.category_I if items.class_I is None else items.class_I
    num_codes = 1 + max(excluded_code.max(initial=0), items.category_I.max(initial=0), classes.max(initial=0))
    excluded_UC = np.zeros((batch.num_rows, num_codes), dtype=bool)
    excluded_UC[excluded_row, excluded_code] = True
    return Masks(items, excluded_UC, *flatten(batch.column(C.SEEN)))


def flatten(lists: pa.ListArray) -> tuple[Array, Array]:
    """A column of lists to two arrays: each value's row, and the value."""
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(len(lists)), lengths), lists.flatten().to_numpy(zero_copy_only=False)


def top_k_block(
    vectors_UD: Array, items: ItemBlock, masks: Masks, *, k: int, tile_items: int, user_idx_U: Array | None = None
) -> TopItems:
    """Each user's K best allowed items, by falling score, ties by item index; the algorithm is the module's text."""
    from xrec.ranking import scan, search  # noqa: PLC0415 - numba takes a second, and most tasks need none

    norms_U = _norms(vectors_UD, np.arange(len(vectors_UD)) if user_idx_U is None else user_idx_U, "user_idx")
    longest = norms_U.max(initial=0) * items.norms_I.max(initial=0)
    if longest >= 2.0**127:
        raise VectorError(f"vectors: found norms whose product is {longest:.3g}, expected less than 2^127 (float32)")
    if not (len(norms_U) and len(items.norms_I)):
        return no_items()
    block = search.Search(vectors_UD, norms_U, items, masks, k=min(k, len(items.norms_I)))
    key_UK = block.best(tile_items=tile_items)
    is_item_UK = key_UK != scan.EMPTY
    row = np.nonzero(is_item_UK)[0]
    item_idx, score = scan.unpack(key_UK[is_item_UK])
    zero = np.flatnonzero(score == 0)  # a key does not tell 0.0 from -0.0, which a score below the least float32 is
    score[zero] = score_pairs(vectors_UD, items.vectors_ID, row[zero], items.position_of[item_idx[zero]])
    return TopItems(row, item_idx, score)


def score_pairs(vectors_UD: Array, tile_TD: Array, row: Array, column: Array) -> Array:
    """The scores (float32) of the pairs (row of users, column of the tile), as the module's text defines them."""
    from xrec.ranking import scan  # noqa: PLC0415 - as above

    scores_P = np.empty(len(row), dtype=np.float32)
    row_P, column_P = (np.ascontiguousarray(part, dtype=np.int64) for part in (row, column))
    scan.score_pairs(vectors_UD, tile_TD, row_P, column_P, scores_P)
    return scores_P


def no_items() -> TopItems:
    """The best items before any was looked at."""
    empty = np.empty(0, dtype=np.int64)
    return TopItems(empty, empty.astype(np.int32), empty.astype(np.float32))


def _matrix(lists: Any, idx: Array, key: str, dim: int | None = None) -> Array:
    """A column of vectors to a matrix; raises :class:`VectorError` where one has another length or is missing."""
    lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    dim = dim if dim is not None else int(lengths[0]) if len(lengths) else 1
    wrong = np.flatnonzero(lengths != dim)
    if len(wrong):
        raise VectorError(
            f"vectors: {key} {idx[wrong[0]]} has length {lengths[wrong[0]]}, expected {dim} as the others; "
            "users and items must come from one training run"
        )
    values = lists.flatten().to_numpy(zero_copy_only=False)
    matrix_ND: Array = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, dim)
    return matrix_ND


def _norms(vectors_ND: Array, idx_N: Array, key: str) -> Array:
    """Lengths of the vectors in float64; raises :class:`VectorError` where one is not finite."""
    norms_N = np.empty(len(vectors_ND))
    # A float64 copy of them all would be twice as large as they are.
    for start in range(0, len(vectors_ND), _NORMS_AT_ONCE):
        part = slice(start, start + _NORMS_AT_ONCE)
        norms_N[part] = np.sqrt(np.square(vectors_ND[part], dtype=np.float64).sum(axis=1))
    wrong = np.flatnonzero(~np.isfinite(norms_N))
    if len(wrong):
        raise VectorError(
            f"vectors: {key} {idx_N[wrong[0]]} holds NaN or infinity ({len(wrong)} such vectors), expected finite numbers; "
            "the model that made them diverged: lower its learning rate or its alpha"
        )
    return norms_N
