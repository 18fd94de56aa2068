"""EASE on categories: which categories go with the user's, and in them the items that most of their customers have.

The weights B of EASE (:mod:`xrec.generators.ease`) are learned on the matrix of users and recommendable categories, 1 where the
user had an item of it. A category's score estimates that the user has it, an item's share that a customer of the category has
the item, and their product that he has the item:

    score(u, j) = (sum over the user's categories b of B_bc) x buyers of j / buyers of c,        c the category of j.

The matrix is small, so this works where items are too many for EASE.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from scipy import sparse

from xrec import columns as C
from xrec.features.buyers import num_buyers_of
from xrec.generators.ease import EaseError, read_weights, solve
from xrec.generators.neighbours import PROFILE, score_profiles
from xrec.ranking.topk import Array, flatten
from xrec.storage.shared import SharedFolder, SharedRows

if TYPE_CHECKING:  # a task imports this module, and need not import the settings
    from xrec.config import Ease, Ranking

SOURCE = "ease_categories"
_PROFILES_SCHEMA = f"{C.USER_IDX} int, {C.PROFILE_IDX} int, {C.WEIGHT} double"
_PROFILES_ARROW = pa.schema({C.USER_IDX: pa.int32(), C.PROFILE_IDX: pa.int32(), C.WEIGHT: pa.float64()})
_USERS_A_BLOCK = 1024


def ease_category_candidates(
    users: DataFrame,
    eligible: DataFrame,
    interactions: DataFrame,
    user_categories: DataFrame,
    ease: Ease,
    ranking: Ranking,
    folder: SharedFolder,
) -> DataFrame:
    """Rows of ``scope``, ``user_idx``, ``item_idx``, ``score``, ``rank`` of a fold; only items of positive score."""
    profiles = affinities_of(user_categories, eligible, ease, folder)
    return score_profiles(users, profiles, shares_of(interactions, eligible), eligible, ranking, folder)


def affinities_of(user_categories: DataFrame, eligible: DataFrame, ease: Ease, folder: SharedFolder) -> DataFrame:
    """A fold's user categories to (``user_idx``, ``profile_idx``, ``weight``): each recommendable category's code and score.

    Raises
    ------
    EaseError
        There are more categories than ``ease.max_size``.
    """
    codes = eligible.select(C.CATEGORY, C.CATEGORY_CODE).distinct()
    num_categories = codes.count()
    if num_categories > ease.max_size:
        raise EaseError(
            f"ease.max_size: found {num_categories} categories, expected at most {ease.max_size}; lower categories.level, or raise "
            f"it if an executor has {8 * num_categories**2 / 1e9:.1f} GB for the matrix"
        )
    # To EASE they are what items are.
    pairs = user_categories.join(F.broadcast(codes), C.CATEGORY, how="inner").select(
        C.USER_IDX, F.col(C.CATEGORY_CODE).alias(C.ITEM_IDX)
    )
    targets = folder.share(codes.select(F.col(C.CATEGORY_CODE).alias(C.ITEM_IDX)))
    weights = folder.share(solve(folder.share(pairs), ease.reg_param, targets, pairs, by_users=False))

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for start in range(0, batch.num_rows, _USERS_A_BLOCK):
                yield _affinities(batch.slice(start, _USERS_A_BLOCK), *_read(weights))

    had = pairs.groupBy(C.USER_IDX).agg(F.sort_array(F.collect_list(C.ITEM_IDX)).alias(PROFILE))
    return had.mapInArrow(run, _PROFILES_SCHEMA)


@lru_cache(maxsize=1)
def _read(weights: SharedRows) -> tuple[Array, Array]:
    return read_weights(weights)


def _affinities(users: pa.RecordBatch, code_C: Array, weights_CC: Array) -> pa.RecordBatch:
    """The positive scores of a block's users: only of categories that somebody has."""
    row, code = flatten(users.column(PROFILE))
    had_UC = sparse.csr_matrix(
        (np.ones(len(row)), (row, np.searchsorted(code_C, code))), shape=(users.num_rows, len(code_C))
    )
    scores_UC = had_UC @ weights_CC.astype(np.float64)
    user, place = np.nonzero(scores_UC > 0)
    values = [users.column(C.USER_IDX).to_numpy()[user], code_C[place], scores_UC[user, place]]
    arrays = [pa.array(value, type=field.type) for value, field in zip(values, _PROFILES_ARROW, strict=True)]
    return pa.record_batch(arrays, schema=_PROFILES_ARROW)


def shares_of(interactions: DataFrame, eligible: DataFrame) -> DataFrame:
    """Each category's items with the share of its buyers who have them: ``profile_idx``, ``neighbour_idx``, ``similarity``."""
    codes = eligible.select(C.ITEM_IDX, C.CATEGORY_CODE)
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
