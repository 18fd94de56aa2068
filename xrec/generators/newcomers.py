"""Newcomers: the items that those bought who came to the item's category lately.

What a category's regulars buy is not what its newcomers begin with, and whoever is shown a category that he does not buy yet would
be a newcomer. Counted are the N users whose first purchase is older than a window: to a user who is new himself every category
is. Of them t_c had bought in category c before the window, and n_j are newcomers who bought item j: within the window they bought
in its category for the first time, and at most two weeks later j. With b_j buyers of j among all users, f = (sum of n) / (sum of b)
newcomers a buyer, and the prior m = ``ranking.newcomer_prior_users``,

    score(j) = (n_j + m f b_j / N) / (N - t_c + m),        c the category of j,

the share of those who could come to c who did and bought j, shrunk towards popularity, and the same for all users. The window is
``ranking.newcomer_days``, by default the horizon, and at most half of the fold's history.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Ranking
from xrec.evaluation.folds import Fold
from xrec.generators.popularity import score_alike
from xrec.storage.shared import SharedFolder

SOURCE = "newcomers"
_SECONDS_A_DAY = 86_400.0
_BEGINNING_DAYS = 14.0
"""Days after his first purchase in a category that a user is new to it."""
_FIRST, _FIRST_IN_CATEGORY = "first", "first_in_category"
_IS_COUNTED, _IS_NEW = "is_counted", "is_new"
_NEWCOMERS, _HAD_BEFORE = "newcomers", "had_before"


def newcomer_candidates(
    users: DataFrame,
    eligible: DataFrame,
    training_events: DataFrame,
    items: DataFrame,
    fold: Fold,
    ranking: Ranking,
    folder: SharedFolder,
) -> DataFrame:
    """Lists (``scope``, ``user_idx``, ``items``, ``scores``) of a fold: items that somebody bought.

    ``items`` are all items: who came to a category does not change because an item of it is sold out tonight.
    """
    firsts = folder.keep(first_purchases(training_events, items, fold, ranking))
    return score_alike(users, eligible, newcomer_scores(firsts, ranking.newcomer_prior_users), ranking, folder)


def first_purchases(training_events: DataFrame, items: DataFrame, fold: Fold, ranking: Ranking) -> DataFrame:
    """A fold's training events to one row a (``user_idx``, ``item_idx``) that was bought, with ``category`` and two flags.

    ``is_counted``: the user is there since before the window. ``is_new``: he came to the category within it, and bought the item
    when he was new to it; null where he came before.
    """
    a_category = Window.partitionBy(C.USER_IDX, C.CATEGORY)
    first, first_in_category = F.col(_FIRST), F.col(_FIRST_IN_CATEGORY)
    since = _start_of_window(training_events, fold, ranking)
    is_new = first <= first_in_category + F.lit(_BEGINNING_DAYS * _SECONDS_A_DAY)
    return (
        training_events.where(C.COUNTING)
        .groupBy(C.USER_IDX, C.ITEM_IDX)
        .agg(F.min(C.EVENT_TS).cast("double").alias(_FIRST))
        .join(items.select(C.ITEM_IDX, C.CATEGORY), C.ITEM_IDX, how="inner")
        .withColumn(_FIRST_IN_CATEGORY, F.min(_FIRST).over(a_category))
        .select(
            C.USER_IDX,
            C.ITEM_IDX,
            C.CATEGORY,
            (F.min(_FIRST).over(Window.partitionBy(C.USER_IDX)) < since).alias(_IS_COUNTED),
            F.when(first_in_category >= since, is_new).alias(_IS_NEW),
        )
    )


def _start_of_window(training_events: DataFrame, fold: Fold, ranking: Ranking) -> Column:
    as_of = F.lit(fold.as_of).cast("double")
    if ranking.newcomer_days is not None:
        return as_of - F.lit(ranking.newcomer_days * _SECONDS_A_DAY)
    history = as_of - training_events.select(F.min(C.EVENT_TS).cast("double")).scalar()
    return as_of - F.least(F.lit(fold.horizon.total_seconds()), history / 2)


def newcomer_scores(firsts: DataFrame, prior_users: float) -> DataFrame:
    """Rows of :func:`first_purchases` to one row an item that somebody bought: ``item_idx``, ``score``."""
    counted = firsts.where(_IS_COUNTED)
    # At least one each, so that where nobody came, or everybody is new, popularity remains.
    num_users = F.greatest(counted.select(F.countDistinct(C.USER_IDX)).scalar(), F.lit(1))
    is_newcomer = F.col(_IS_COUNTED) & F.coalesce(F.col(_IS_NEW), F.lit(False))
    newcomers_a_buyer = firsts.select(F.greatest(F.count_if(is_newcomer), F.lit(1)) / F.count("*")).scalar()
    had_before = (
        counted.where(F.col(_IS_NEW).isNull()).groupBy(C.CATEGORY).agg(F.countDistinct(C.USER_IDX).alias(_HAD_BEFORE))
    )
    prior = F.lit(prior_users) * newcomers_a_buyer * F.col(C.NUM_BUYERS) / num_users
    could_come = num_users - F.coalesce(F.col(_HAD_BEFORE), F.lit(0))
    return (
        firsts.groupBy(C.ITEM_IDX, C.CATEGORY)
        .agg(F.count("*").alias(C.NUM_BUYERS), F.count_if(is_newcomer).alias(_NEWCOMERS))
        .join(F.broadcast(had_before), C.CATEGORY, how="left")
        .select(C.ITEM_IDX, ((F.col(_NEWCOMERS) + prior) / (could_come + F.lit(prior_users))).alias(C.SCORE))
    )
