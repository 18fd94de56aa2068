"""What a learned ranker knows of a candidate: how the sources rank it, the item, the user, the category; all of it before as-of.

A feature that has no value (a source that does not propose the item, an item without a price) is null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Ranking
from xrec.evaluation.folds import Fold
from xrec.lists import ranked_rows

_SECONDS_A_DAY = 86_400.0
_BEST, _WORST, _SHARE = "best_score", "worst_score", "share"
_A_USER = [C.FOLD, C.SCOPE, C.USER_IDX]
OF_ITEM = ("item_popularity", "item_recent", "item_trend", "item_price")
OF_USER = ("user_items", "user_categories", "user_price", "user_days_away")
OF_PAIR = ("num_sources", "votes", "category_votes", "category_share", "category_popularity", "price_ratio")


@dataclass(frozen=True, kw_only=True)
class FoldFacts:
    """A fold's rows of the tables of these names, and all of ``items``."""

    fold: Fold
    interactions: DataFrame
    user_categories: DataFrame
    items: DataFrame


def feature_names(sources: Sequence[str]) -> list[str]:
    """The feature columns of :func:`feature_rows`, in order."""
    return [
        *[rank_of(source) for source in sources],
        *[share_of(source) for source in sources],
        *OF_PAIR,
        *OF_ITEM,
        *OF_USER,
    ]


def rank_of(source: str) -> str:
    """The column with the candidate's rank in a source's list."""
    return f"rank_{source}"


def share_of(source: str) -> str:
    """The column with the candidate's score in a source's list: 1 at its first place, 0 at its last."""
    return f"score_{source}"


def feature_rows(candidates: DataFrame, facts: FoldFacts, sources: Sequence[str], ranking: Ranking) -> DataFrame:
    """A fold's lists to one row a (``fold``, ``scope``, ``user_idx``, ``item_idx``) with :func:`feature_names` as floats."""
    wide = _wide(candidates.where(F.col(C.SOURCE).isin(*sources)), sources, ranking.fusion_constant)
    num_users = facts.interactions.select(C.USER_IDX).distinct().count()
    of_item = _item_features(facts, num_users, ranking)
    of_user = _user_features(facts)
    mix = facts.user_categories
    of_category = (
        mix.where(C.TOUCHED).groupBy(C.CATEGORY).agg(_log(F.count("*") / num_users).alias("category_popularity"))
    )
    share = (F.col(C.WEIGHT) / F.sum(C.WEIGHT).over(Window.partitionBy(C.USER_IDX))).alias("category_share")
    rows = (
        wide.join(of_item, C.ITEM_IDX, how="left")
        .join(of_user, C.USER_IDX, how="left")
        .join(mix.select(C.USER_IDX, C.CATEGORY, share), [C.USER_IDX, C.CATEGORY], how="left")
        .join(of_category, C.CATEGORY, how="left")
        .withColumn("category_votes", F.sum("votes").over(Window.partitionBy(*_A_USER, C.CATEGORY)))
        .withColumn("price_ratio", F.col("item_price") - F.col("user_price"))
    )
    return rows.select(
        *_A_USER, C.ITEM_IDX, *[F.col(name).cast("float").alias(name) for name in feature_names(sources)]
    )


def _wide(candidates: DataFrame, sources: Sequence[str], constant: float) -> DataFrame:
    """One row a (fold, scope, user, item): its rank and score in each source's list, the sources that have it, their votes."""
    ends = {_BEST: F.get(C.SCORES, F.lit(0)), _WORST: F.element_at(C.SCORES, -1)}
    best, worst = F.col(_BEST), F.col(_WORST)
    share = F.when(best > worst, (F.col(C.SCORE) - worst) / (best - worst)).otherwise(1.0)
    lists = candidates.where(F.size(C.ITEMS) > 0).repartition(C.USER_IDX)
    listed = ranked_rows(lists.withColumns(ends)).withColumn(_SHARE, share)
    of_source = []
    for source in sources:
        is_source = F.col(C.SOURCE) == source
        of_source.append(F.max(F.when(is_source, F.col(C.RANK))).alias(rank_of(source)))
        of_source.append(F.max(F.when(is_source, F.col(_SHARE))).alias(share_of(source)))
    return listed.groupBy(*_A_USER, C.ITEM_IDX).agg(
        *of_source, F.count("*").alias("num_sources"), F.sum(1 / (F.col(C.RANK) + constant)).alias("votes")
    )


def _item_features(facts: FoldFacts, num_users: int, ranking: Ranking) -> DataFrame:
    since = facts.fold.as_of - timedelta(days=ranking.recent_days)
    recent = F.count_if(F.col(C.LAST_TS) >= F.lit(since))
    had = facts.interactions.where(C.COUNTING).groupBy(C.ITEM_IDX)
    found = had.agg(
        _log(F.count("*") / num_users).alias("item_popularity"),
        _log((recent + 1) / num_users).alias("item_recent"),
        (recent / F.count("*")).alias("item_trend"),
        _log(F.sum(C.SPEND) / F.sum(C.UNITS)).alias("item_price"),
    )
    return facts.items.select(C.ITEM_IDX, C.CATEGORY).join(found, C.ITEM_IDX, how="left")


def _user_features(facts: FoldFacts) -> DataFrame:
    last = (F.lit(facts.fold.as_of).cast("double") - F.max(C.LAST_TS).cast("double")) / _SECONDS_A_DAY
    had = facts.interactions.groupBy(C.USER_IDX).agg(
        _log(F.count("*")).alias("user_items"),
        last.alias("user_days_away"),
        _log(F.sum(C.SPEND) / F.sum(C.UNITS)).alias("user_price"),
    )
    touched = facts.user_categories.groupBy(C.USER_IDX).agg(F.count_if(C.TOUCHED).alias("user_categories"))
    return had.join(touched, C.USER_IDX, how="left")


def _log(value: Column) -> Column:
    """The logarithm, null where it has none."""
    return F.when(value > 0, F.ln(value))
