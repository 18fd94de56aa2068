"""Decayed transitions: what users had soon after an item, from their ordered histories.

A Markov chain that may skip (He, McAuley 2016, Fusing Similarity Models with Markov Chains, learn such a one; here it is counted).
A basket is a user's events of one time; b_u(i) counts his baskets from the newest (0). Every pair of events of one user with
items i and j, j not in an earlier basket and at most ``window`` baskets later, adds decay ^ distance to n(i, j), distance in
baskets: within a basket, where the order is arbitrary, pairs count in both directions at distance 0. Pairs of one item with
itself do not count. With n(i) = sum over j of n(i, j),

    T(i, j) = n(i, j) / (n(i) + shrinkage),     score(u, j) = sum over the user's items i of history_decay ^ b_u(i) T(i, j),

over the items of his newest ``history`` baskets, each by its newest basket. Events of all types count alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from scipy import sparse

from xrec import columns as C
from xrec.generators.neighbours import EDGES_ARROW, EDGES_SCHEMA, largest, score_profiles
from xrec.ranking.topk import Array, spread
from xrec.storage.shared import SharedFolder, SharedRows

if TYPE_CHECKING:  # a task imports this module, and need not import the settings
    from xrec.config import Ranking, Transitions

SOURCE = "transitions"
AGE = "age"
_ITEMS_A_BLOCK = 128
_PAIRS_A_CHUNK = 1 << 22
_UNIT = 1 << 20
"""Weights of pairs are rounded to multiples of 1 / _UNIT and summed as integers, so that no order of events matters."""


class TransitionsError(ValueError):
    """More events than one task may hold; the message says how many and which settings bound it."""


def transition_candidates(
    users: DataFrame,
    eligible: DataFrame,
    training_events: DataFrame,
    transitions: Transitions,
    ranking: Ranking,
    folder: SharedFolder,
) -> DataFrame:
    """Lists (``scope``, ``user_idx``, ``items``, ``scores``) of a fold; only items of positive score.

    ``training_events`` are those of one fold.
    """
    histories = histories_of(training_events, transitions)
    neighbours = transitions_of(histories, transitions, folder)
    return score_profiles(users, profiles_of(histories, transitions), neighbours, eligible, ranking, folder)


def histories_of(training_events: DataFrame, transitions: Transitions) -> DataFrame:
    """A fold's training events to one row a (``user_idx``, ``item_idx``, ``age``): the basket's number from the newest, 0.

    A user's newest events, ties by the event's hash, at most ``max_events_per_user``.
    """
    newest_first = Window.partitionBy(C.USER_IDX).orderBy(F.desc(C.EVENT_TS), F.desc(C.EVENT_ID))
    newest_basket_first = Window.partitionBy(C.USER_IDX).orderBy(F.desc(C.EVENT_TS))
    return (
        training_events.select(
            C.USER_IDX,
            C.ITEM_IDX,
            F.row_number().over(newest_first).alias(C.RANK),
            (F.dense_rank().over(newest_basket_first) - 1).alias(AGE),
        )
        .where(F.col(C.RANK) <= transitions.max_events_per_user)
        .select(C.USER_IDX, C.ITEM_IDX, AGE)
        .distinct()
    )


def profiles_of(histories: DataFrame, transitions: Transitions) -> DataFrame:
    """Histories to what :func:`score_profiles` wants: ``user_idx``, ``profile_idx``, ``weight``."""
    newest = histories.groupBy(C.USER_IDX, F.col(C.ITEM_IDX).alias(C.PROFILE_IDX)).agg(F.min(AGE).alias(AGE))
    return newest.where(F.col(AGE) < transitions.history).select(
        C.USER_IDX, C.PROFILE_IDX, F.pow(F.lit(transitions.history_decay), F.col(AGE)).alias(C.WEIGHT)
    )


def transitions_of(histories: DataFrame, transitions: Transitions, folder: SharedFolder) -> DataFrame:
    """Histories to each item's strongest transitions: ``profile_idx``, ``neighbour_idx``, ``similarity``; ties by item index.

    Each Python process holds all histories, 24 bytes an event, and a block of items its pairs: 200 MB, or one event's.

    Raises
    ------
    TransitionsError
        There are more events than ``max_nonzeros``.
    """
    num_events = histories.count()
    if num_events > transitions.max_nonzeros:
        raise TransitionsError(
            f"transitions.max_nonzeros: found {num_events} events, expected at most {transitions.max_nonzeros}; raise it if an "
            "executor has 24 bytes for each, or lower transitions.max_events_per_user"
        )
    shared, window, num_neighbours = folder.share(histories), transitions.window, transitions.num_neighbours
    shrinkage = transitions.shrinkage
    weights_W = np.rint(_UNIT * transitions.decay ** np.arange(window + 1)).astype(np.int64)

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            items, ordered = batch.column(C.ITEM_IDX).to_numpy(), _read_ordered(shared, window)
            for start in range(0, len(items), _ITEMS_A_BLOCK):
                block = items[start : start + _ITEMS_A_BLOCK]
                yield _strongest(block, _follow(block, ordered, weights_W), num_neighbours, shrinkage)

    return spread(histories.select(C.ITEM_IDX).distinct(), C.ITEM_IDX).mapInArrow(run, EDGES_SCHEMA)


class _Ordered(NamedTuple):
    """All histories from user to user, oldest basket first."""

    item_E: Array
    basket_E: Array
    """A number that rises by one from a user's basket to his next, and by more than the window from user to user."""
    by_item_E: Array
    """Places of the events, item by item."""
    sorted_item_E: Array


@lru_cache(maxsize=1)
def _read_ordered(histories: SharedRows, window: int) -> _Ordered:
    table = histories.read()
    user, item, age = (table[name].to_numpy() for name in (C.USER_IDX, C.ITEM_IDX, AGE))
    longest = int(age.max(initial=0))
    basket = user.astype(np.int64) * (longest + window + 1) + (longest - age)
    order = np.lexsort((item, basket))
    item_E = item[order]
    by_item_E = np.argsort(item_E, kind="stable")
    return _Ordered(item_E, basket[order], by_item_E, item_E[by_item_E])


def _follow(items_B: Array, ordered: _Ordered, weights_W: Array) -> sparse.csr_matrix:
    """n(i, j) of a block of items, in units: the matrix (the block's items, all items)."""
    first, last = (np.searchsorted(ordered.sorted_item_E, items_B, side=side) for side in ("left", "right"))
    row, place = _ranges(first, last)
    event = ordered.by_item_E[place]
    basket = ordered.basket_E[event]
    start = np.searchsorted(ordered.basket_E, basket)
    stop = np.searchsorted(ordered.basket_E, basket + len(weights_W) - 1, side="right")
    shape = (len(items_B), int(ordered.sorted_item_E[-1]) + 1)
    total_BI = sparse.csr_matrix(shape, dtype=np.int64)
    chunk_of_event = np.cumsum(stop - start) // _PAIRS_A_CHUNK
    for chunk in np.unique(chunk_of_event):
        chosen = np.flatnonzero(chunk_of_event == chunk)
        pair, follower = _ranges(start[chosen], stop[chosen])
        pair = chosen[pair]
        kept = ordered.item_E[follower] != items_B[row[pair]]
        pair, follower = pair[kept], follower[kept]
        weight = weights_W[ordered.basket_E[follower] - basket[pair]]
        total_BI = total_BI + sparse.csr_matrix((weight, (row[pair], ordered.item_E[follower])), shape=shape)
    return total_BI


def _ranges(start: Array, stop: Array) -> tuple[Array, Array]:
    """Every number from start to stop of each range: the range's place, and the number."""
    lengths = stop - start
    place = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(len(place)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return place, start[place] + within


def _strongest(items_B: Array, follow_BI: sparse.csr_matrix, num_neighbours: int, shrinkage: float) -> pa.RecordBatch:
    found = []
    for row, item in enumerate(items_B):
        entries = slice(follow_BI.indptr[row], follow_BI.indptr[row + 1])
        others, weight = follow_BI.indices[entries], follow_BI.data[entries]
        strength = (weight / (weight.sum() + shrinkage * _UNIT)).astype(np.float32)
        kept = largest(strength, others, min(num_neighbours, len(others)))
        found.append((np.full(len(kept), item), others[kept], strength[kept]))
    columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, EDGES_ARROW, strict=True)]
    return pa.record_batch(arrays, schema=EDGES_ARROW)
