"""From the categories that a user is likely to want next to the items that most of their customers have.

A source says how users come to categories: weights a(u, b) of the user's categories b, and weights T(b, c) from category to
category. A category's score is their product summed, an item's share that a customer of the category has the item:

    score(u, j) = (sum over the user's categories b of a(u, b) T(b, c)) x buyers of j / buyers of c,     c the category of j.

Array names carry their shape: U users of a block, C categories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from scipy import sparse

from xrec import columns as C
from xrec.features.buyers import num_buyers_of
from xrec.generators.neighbours import (
    PROFILE,
    PROFILE_WEIGHTS,
    PROFILES_ARROW,
    PROFILES_SCHEMA,
    as_lists,
    score_profiles,
)
from xrec.ranking.topk import Array, flatten
from xrec.storage.shared import SharedFolder

if TYPE_CHECKING:  # a task imports this module, and need not import the settings
    from xrec.config import Ranking

_USERS_A_BLOCK = 1024


class CategoryWeights(NamedTuple):
    """T: from category to category."""

    code_C: Array
    """The categories' codes, sorted."""
    weights_CC: Array | sparse.csr_matrix


def best_seller_candidates(
    users: DataFrame,
    profiles: DataFrame,
    read: Callable[[], CategoryWeights],
    interactions: DataFrame,
    eligible: DataFrame,
    ranking: Ranking,
    folder: SharedFolder,
    *,
    recommendable: DataFrame | None = None,
) -> DataFrame:
    """Lists (``scope``, ``user_idx``, ``items``, ``scores``) of a fold; only items of positive score.

    ``recommendable`` has the items that could be recommended if no filter held (default: ``eligible``): what a category's customers
    do does not change because an item of it is sold out tonight.

    Parameters
    ----------
    profiles
        One row a (``user_idx``, ``profile_idx``), with ``weight``: the codes of a user's categories.
    read
        Gives a task the weights, which should be read once by each Python process.
    """
    affinities = affinities_of(profiles, read)
    shares = shares_of(interactions, eligible if recommendable is None else recommendable)
    return score_profiles(users, affinities, shares, eligible, ranking, folder)


def affinities_of(profiles: DataFrame, read: Callable[[], CategoryWeights]) -> DataFrame:
    """Weights of users' categories to (``user_idx``, ``profile_idx``, ``weight``): the categories of positive score."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for start in range(0, batch.num_rows, _USERS_A_BLOCK):
                yield _affinities(batch.slice(start, _USERS_A_BLOCK), read())

    return as_lists(profiles).mapInArrow(run, PROFILES_SCHEMA)


def _affinities(users: pa.RecordBatch, weights: CategoryWeights) -> pa.RecordBatch:
    (row, code), (_, weight) = flatten(users.column(PROFILE)), flatten(users.column(PROFILE_WEIGHTS))
    place, num_categories = np.searchsorted(weights.code_C, code), len(weights.code_C)
    known = place < num_categories
    known[known] = weights.code_C[place[known]] == code[known]
    profile_UC = sparse.csr_matrix((weight[known], (row[known], place[known])), shape=(users.num_rows, num_categories))
    scores_UC = profile_UC @ weights.weights_CC
    scores_UC = scores_UC.toarray() if sparse.issparse(scores_UC) else scores_UC
    user, place = np.nonzero(scores_UC > 0)
    values = [users.column(C.USER_IDX).to_numpy()[user], weights.code_C[place], scores_UC[user, place]]
    arrays = [pa.array(value, type=field.type) for value, field in zip(values, PROFILES_ARROW, strict=True)]
    return pa.record_batch(arrays, schema=PROFILES_ARROW)


def shares_of(interactions: DataFrame, recommendable: DataFrame) -> DataFrame:
    """Each category's items with the share of its buyers who have them: ``profile_idx``, ``neighbour_idx``, ``similarity``."""
    codes = recommendable.select(C.ITEM_IDX, C.CATEGORY_CODE)
    bought = interactions.where(F.col(C.COUNTING)).join(codes, C.ITEM_IDX, how="inner")
    of_categories = bought.groupBy(C.CATEGORY_CODE).agg(F.countDistinct(C.USER_IDX).alias(C.NUM_USERS))
    return (
        num_buyers_of(interactions)
        .join(codes, C.ITEM_IDX, how="inner")
        .join(F.broadcast(of_categories), C.CATEGORY_CODE, how="inner")
        .select(
            F.col(C.CATEGORY_CODE).alias(C.PROFILE_IDX),
            F.col(C.ITEM_IDX).alias(C.NEIGHBOUR_IDX),
            (F.col(C.NUM_BUYERS) / F.col(C.NUM_USERS)).cast("float").alias(C.SIMILARITY),
        )
    )
