"""Decayed transitions between categories: what users had soon after the categories that this one had last.

The transitions T of :mod:`xrec.generators.transitions`, with each event's category in the place of its item, and the user's
categories weighted by their age in the same way; then the items that most customers of a category have
(:mod:`xrec.generators.best_sellers`). Pairs of one category with itself do not count: who stays says nothing of where others go.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from scipy import sparse

from xrec import columns as C
from xrec.generators.best_sellers import CategoryWeights, best_seller_candidates
from xrec.generators.transitions import histories_of, profiles_of, transitions_of
from xrec.storage.shared import SharedFolder, SharedRows

if TYPE_CHECKING:  # a task imports this module, and need not import the settings
    from xrec.config import Ranking, Transitions

SOURCE = "transition_categories"


def transition_category_candidates(
    users: DataFrame,
    eligible: DataFrame,
    training_events: DataFrame,
    interactions: DataFrame,
    transitions: Transitions,
    ranking: Ranking,
    folder: SharedFolder,
    *,
    recommendable: DataFrame | None = None,
) -> DataFrame:
    """Lists (``scope``, ``user_idx``, ``items``, ``scores``) of a fold; only items of positive score.

    ``training_events`` and ``interactions`` are those of one fold. Categories and shares are those of ``recommendable``: see
    :func:`xrec.generators.best_sellers.best_seller_candidates`.

    Raises
    ------
    TransitionsError
        There are more events than ``transitions.max_nonzeros``.
    """
    # To the transitions they are what items are.
    recommendable = eligible if recommendable is None else recommendable
    codes = recommendable.select(C.ITEM_IDX, C.CATEGORY_CODE)
    of_categories = training_events.join(codes, C.ITEM_IDX, how="inner").withColumn(C.ITEM_IDX, F.col(C.CATEGORY_CODE))
    histories = histories_of(of_categories, transitions)
    edges = folder.share(transitions_of(histories, transitions, folder))
    profiles = profiles_of(histories, transitions)
    return best_seller_candidates(
        users, profiles, lambda: _read(edges), interactions, eligible, ranking, folder, recommendable=recommendable
    )


@lru_cache(maxsize=1)
def _read(edges: SharedRows) -> CategoryWeights:
    table = edges.read()
    code, other, weight = (table[name].to_numpy() for name in (C.PROFILE_IDX, C.NEIGHBOUR_IDX, C.SIMILARITY))
    num_categories = 1 + int(max(code.max(initial=-1), other.max(initial=-1)))
    weights_CC = sparse.csr_matrix((weight.astype(np.float64), (code, other)), shape=(num_categories, num_categories))
    return CategoryWeights(np.arange(num_categories), weights_CC)
