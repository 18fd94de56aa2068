"""What a user's list is like whether or not it hits: novelty, long tail, diversity, calibration.

Judged is every user with a list in the slice, each with the same weight. With the items of his list up to rank k:

- novelty: mean of -log2(buyers of the item before as-of / users with history), in bits; an item that nobody bought counts
  as bought by one (Zhou et al. 2010; Castells et al. 2015)
- long_tail: share of items outside the short head, which is the most bought items that together have 80 % of the pairs (user,
  item bought); items bought equally often are all in it or all outside (Abdollahpouri et al. 2019)
- diversity: mean over the pairs of items of 1 - (levels that their category paths share from the root) / (levels of the longer
  one): 0 for one category, 1 for different roots (Ziegler et al. 2005, with the similarity of a tree); 0 for one item alone
- calibration: sum over categories c of p(c) ln(p(c) / (0.99 q(c) + 0.01 p(c))), in nats, p the user's shares of weight in his
  categories, q those of the list's items: 0 where the list has his mix, ln 100 where it has none of it, as outside the touched
  categories by construction (Steck 2018)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.evaluation.metrics import VALUES
from xrec.lists import first
from xrec.storage.shared import SharedRows

Array = npt.NDArray[Any]

BEYOND_ACCURACY = ("novelty", "long_tail", "diversity", "calibration")
_HEAD = 0.8
_SMOOTHING = 0.01
_USERS_A_BLOCK = 256
"""Bounds a task's comparisons of lists with mixes: 256 users x 20 items x 500 categories = 2.5 MB."""
_MIX_CODES, _MIX_SHARES = "mix_codes", "mix_shares"
_NOVELTY, _IS_TAIL, _NODES = "novelty", "is_tail", "nodes"
_SCHEMA = f"{C.FOLD} string, {C.MODEL} string, {C.SLICE} string, {C.USER_IDX} int, {VALUES} array<double>"


def beyond_names(ks: Sequence[int]) -> list[tuple[str, int]]:
    """(metric, k) of each position of the column ``values``."""
    return [(metric, k) for k in ks for metric in BEYOND_ACCURACY]


def facts_of(items: DataFrame, buyers: DataFrame, *, num_users: int) -> DataFrame:
    """Rows of ``items`` to what the metrics need of every recommendable item.

    Categories and the nodes of their paths (from the root down) are 64-bit hashes.

    Parameters
    ----------
    buyers
        A fold's rows (``item_idx``, ``num_buyers``); an item without buyers may be missing.
    num_users
        The fold's users with history.
    """
    # A row a number of buyers: of N pairs at most sqrt(2 N).
    sizes = {row[0]: row["count"] for row in buyers.groupBy(C.NUM_BUYERS).count().collect()}
    share = F.greatest(F.coalesce(C.NUM_BUYERS, F.lit(0)), F.lit(1)) / F.lit(max(num_users, 1))
    levels = F.sequence(F.lit(1), F.size(C.CATEGORY_PATH))
    return (
        items.where(C.RECOMMENDABLE)
        .join(buyers, C.ITEM_IDX, how="left")
        .select(
            C.ITEM_IDX,
            (-F.log2(share)).alias(_NOVELTY),
            (F.coalesce(C.NUM_BUYERS, F.lit(0)) < F.lit(_least_of_head(sizes))).alias(_IS_TAIL),
            F.xxhash64(C.CATEGORY).alias(C.CATEGORY_CODE),
            F.transform(levels, lambda level: F.xxhash64(F.slice(C.CATEGORY_PATH, F.lit(1), level))).alias(_NODES),
        )
    )


def _least_of_head(sizes: dict[int, int]) -> int:
    """The number of buyers of the least bought item of the short head; ``sizes`` counts the items of each number."""
    wanted, head = _HEAD * sum(number * count for number, count in sizes.items()), 0
    for number in sorted(sizes, reverse=True):
        head += number * sizes[number]
        if head >= wanted:
            return number
    return 1


def describe_lists(
    candidates: DataFrame, user_categories: DataFrame, facts: SharedRows, *, ks: Sequence[int]
) -> DataFrame:
    """A fold's ``candidates`` to one row a (fold, model, slice, user with a list), with ``values`` (:func:`beyond_names`).

    Parameters
    ----------
    user_categories
        The fold's rows of ``user_categories``.
    facts
        Shared rows of :func:`facts_of`.
    """
    share = F.col(C.WEIGHT) / F.sum(C.WEIGHT).over(Window.partitionBy(C.USER_IDX))
    mixes = (
        user_categories.select(C.USER_IDX, F.xxhash64(C.CATEGORY).alias("code"), share.alias("share"))
        .groupBy(C.USER_IDX)
        .agg(F.collect_list(F.struct("code", "share")).alias("mix"))
        .select(C.USER_IDX, F.col("mix")["code"].alias(_MIX_CODES), F.col("mix")["share"].alias(_MIX_SHARES))
    )
    named = candidates.withColumnsRenamed({C.SOURCE: C.MODEL, C.SCOPE: C.SLICE})
    lists = named.where(F.size(C.ITEMS) > 0).select(
        C.FOLD, C.MODEL, C.SLICE, C.USER_IDX, first(C.ITEMS, max(ks)).alias(C.ITEMS)
    )
    wanted = tuple(ks)

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for start in range(0, batch.num_rows, _USERS_A_BLOCK):
                yield _describe_block(batch.slice(start, _USERS_A_BLOCK), _read_facts(facts), wanted)

    return lists.join(mixes, C.USER_IDX, how="inner").mapInArrow(run, _SCHEMA)


class _Facts(NamedTuple):
    """By item index; depth is the number of levels of the item's path, and nodes beyond it are 0."""

    novelty_I: Array
    is_tail_I: Array
    category_I: Array
    nodes_IL: Array
    depth_I: Array


@lru_cache(maxsize=1)
def _read_facts(shared: SharedRows) -> _Facts:
    table = shared.read()
    item = table[C.ITEM_IDX].to_numpy()
    nodes_IL, depth = _padded(table[_NODES], fill=0)
    size = int(item.max(initial=-1)) + 1

    def by_index(values: Array) -> Array:
        spread = np.zeros((size, *values.shape[1:]), dtype=values.dtype)
        spread[item] = values
        return spread

    return _Facts(
        novelty_I=by_index(table[_NOVELTY].to_numpy()),
        is_tail_I=by_index(table[_IS_TAIL].to_numpy().astype(np.float64)),
        category_I=by_index(table[C.CATEGORY_CODE].to_numpy()),
        nodes_IL=by_index(nodes_IL),
        depth_I=by_index(depth),
    )


def _describe_block(batch: pa.RecordBatch, facts: _Facts, ks: Sequence[int]) -> pa.RecordBatch:
    item_UK, length_U = _padded(batch.column(C.ITEMS), fill=-1)
    is_there_UK = item_UK >= 0
    sums = {
        "novelty": _running(np.where(is_there_UK, facts.novelty_I[item_UK], 0.0)),
        "long_tail": _running(np.where(is_there_UK, facts.is_tail_I[item_UK], 0.0)),
        "distance": _running(_distances(item_UK, is_there_UK, facts)),
    }
    code_UM, num_codes_U = _padded(batch.column(_MIX_CODES), fill=0)
    share_UM, _ = _padded(batch.column(_MIX_SHARES), fill=0.0)
    is_mix_UM = np.arange(code_UM.shape[1]) < num_codes_U[:, None]
    same_UKM = (facts.category_I[item_UK][:, :, None] == code_UM[:, None, :]) & is_there_UK[:, :, None]
    same_UKM &= is_mix_UM[:, None, :]
    values = []
    for k in ks:
        last, shown_U = min(k, item_UK.shape[1]) - 1, np.minimum(length_U, k)
        pairs_U = np.maximum(shown_U * (shown_U - 1) / 2, 1)
        list_share_UM = same_UKM[:, :k].sum(axis=1) / shown_U[:, None]
        mixed_UM = (1 - _SMOOTHING) * list_share_UM + _SMOOTHING * share_UM
        ratio_UM = np.divide(share_UM, mixed_UM, out=np.ones_like(share_UM), where=share_UM > 0)
        by_name = {
            "novelty": sums["novelty"][:, last] / shown_U,
            "long_tail": sums["long_tail"][:, last] / shown_U,
            "diversity": sums["distance"][:, last] / pairs_U,
            "calibration": (share_UM * np.log(ratio_UM)).sum(axis=1),
        }
        values += [by_name[metric] for metric in BEYOND_ACCURACY]
    lists = pa.FixedSizeListArray.from_arrays(np.stack(values, axis=1).ravel(), len(values))
    keys = [batch.column(name) for name in (C.FOLD, C.MODEL, C.SLICE, C.USER_IDX)]
    return pa.record_batch(
        [*keys, lists.cast(pa.list_(pa.float64()))], names=[C.FOLD, C.MODEL, C.SLICE, C.USER_IDX, VALUES]
    )


def _distances(item_UK: Array, is_there_UK: Array, facts: _Facts) -> Array:
    """The sum of each item's distances to those before it in the list."""
    nodes_UKL, depth_UK = facts.nodes_IL[item_UK], facts.depth_I[item_UK]
    found_UK = np.zeros(item_UK.shape)
    for place in range(1, item_UK.shape[1]):
        nodes_U1L, depth_U1 = nodes_UKL[:, place : place + 1], depth_UK[:, place : place + 1]
        before_UB, is_level_UBL = depth_UK[:, :place], nodes_U1L != 0
        # A node is the hash of its whole path: where it is the same, all above are.
        common_UB = ((nodes_UKL[:, :place] == nodes_U1L) & is_level_UBL).sum(axis=2)
        distance_UB = 1 - common_UB / np.maximum(np.maximum(before_UB, depth_U1), 1)
        found_UK[:, place] = np.where(is_there_UK[:, place], distance_UB.sum(axis=1), 0.0)
    return found_UK


def _running(values_UK: Array) -> Array:
    return np.cumsum(values_UK, axis=1)


def _padded(lists: Any, *, fill: float) -> tuple[Array, Array]:
    """A column of lists to a matrix, padded at the right and at least one wide, and their lengths."""
    lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    length_N = lists.value_lengths().to_numpy(zero_copy_only=False)
    values = lists.flatten().to_numpy(zero_copy_only=False)
    padded_NM = np.full((len(lists), max(int(length_N.max(initial=0)), 1)), fill, dtype=values.dtype)
    padded_NM[np.arange(padded_NM.shape[1]) < length_N[:, None]] = values
    return padded_NM, length_N
