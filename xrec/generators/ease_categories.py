"""EASE on categories: which categories go with the user's, and in them the items that most of their customers have.

The weights B of EASE (:mod:`xrec.generators.ease`) are learned on the matrix of users and recommendable categories, 1 where the
user had an item of it. A category's score estimates that the user has it, an item's share that a customer of the category has
the item (:mod:`xrec.generators.best_sellers`), and their product that he has the item:

    score(u, j) = (sum over the user's categories b of B_bc) x buyers of j / buyers of c,        c the category of j.

The matrix is small, so this works where items are too many for EASE.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.generators.best_sellers import CategoryWeights, best_seller_candidates
from xrec.generators.ease import EaseError, read_weights, reg_of, size_of, solve
from xrec.storage.shared import SharedFolder, SharedRows

if TYPE_CHECKING:  # a task imports this module, and need not import the settings
    from xrec.config import Ease, Ranking

SOURCE = "ease_categories"


def ease_category_candidates(
    users: DataFrame,
    eligible: DataFrame,
    interactions: DataFrame,
    user_categories: DataFrame,
    ease: Ease,
    ranking: Ranking,
    folder: SharedFolder,
    *,
    recommendable: DataFrame | None = None,
) -> DataFrame:
    """Lists (``scope``, ``user_idx``, ``items``, ``scores``) of a fold; only items of positive score.

    Categories and shares are those of ``recommendable``: see :func:`xrec.generators.best_sellers.best_seller_candidates`.

    Raises
    ------
    EaseError
        There are more categories than ``ease.max_size``.
    """
    recommendable = eligible if recommendable is None else recommendable
    codes = recommendable.select(C.CATEGORY, C.CATEGORY_CODE).distinct()
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
    weights = folder.share(solve(folder.share(pairs), reg_of(size_of(pairs), ease), targets, pairs, by_users=False))
    ones = pairs.select(C.USER_IDX, F.col(C.ITEM_IDX).alias(C.PROFILE_IDX), F.lit(1.0).alias(C.WEIGHT))
    return best_seller_candidates(
        users, ones, lambda: _read(weights), interactions, eligible, ranking, folder, recommendable=recommendable
    )


@lru_cache(maxsize=1)
def _read(weights: SharedRows) -> CategoryWeights:
    code_C, weights_CC = read_weights(weights)
    return CategoryWeights(code_C, weights_CC.astype(np.float64))
