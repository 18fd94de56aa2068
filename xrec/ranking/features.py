"""What a learned ranker knows of a candidate: how the sources rank it, the item, the user, the category; all of it before as-of.

A feature that has no value (a source that does not propose the item, an item without a price) is null. Counts are told by their
share of the fold's: rankers learn from older folds, whose histories are shorter.
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
_BEST, _WORST, _SHARE, _NUM_RECENT = "best_score", "worst_score", "share", "num_recent"
_A_USER = [C.FOLD, C.SCOPE, C.USER_IDX]
_LEAST_COUNT = 0.5
"""What a share is made of where nobody is counted: its logarithm is asked for."""
OF_ITEM = ("item_popularity", "item_recent", "item_trend", "item_share", "item_price")
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
    mix, of_user = facts.user_categories, _user_features(facts)
    touched = mix.where(C.TOUCHED)
    of_category = touched.groupBy(C.CATEGORY).agg(F.count("*").alias(C.NUM_USERS))
    share = (F.col(C.WEIGHT) / F.sum(C.WEIGHT).over(Window.partitionBy(C.USER_IDX))).alias("category_share")
    rows = (
        wide.join(_item_features(facts, ranking), C.ITEM_IDX, how="left")
        .join(of_user, C.USER_IDX, how="left")
        .join(mix.select(C.USER_IDX, C.CATEGORY, share), [C.USER_IDX, C.CATEGORY], how="left")
        .join(of_category, C.CATEGORY, how="left")
        # Its users among all pairs of a user and a category that he touched.
        .withColumn("category_popularity", _log_share(F.col(C.NUM_USERS), touched.count()))
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


def _item_features(facts: FoldFacts, ranking: Ranking) -> DataFrame:
    since = facts.fold.as_of - timedelta(days=ranking.recent_days)
    is_recent = F.col(C.LAST_TS) >= F.lit(since)
    items, had = facts.items.select(C.ITEM_IDX, C.CATEGORY), facts.interactions.where(C.COUNTING)
    num_pairs, num_recent = had.count(), had.where(is_recent).count()
    found = had.groupBy(C.ITEM_IDX).agg(
        F.count("*").alias(C.NUM_BUYERS),
        F.count_if(is_recent).alias(_NUM_RECENT),
        _log(F.sum(C.SPEND) / F.sum(C.UNITS)).alias("item_price"),
    )
    buyers_of_category = (
        had.join(items, C.ITEM_IDX, how="inner").groupBy(C.CATEGORY).agg(F.countDistinct(C.USER_IDX).alias(C.NUM_USERS))
    )
    counted = (
        items.join(found, C.ITEM_IDX, how="left")
        .join(buyers_of_category, C.CATEGORY, how="left")
        .fillna(0, [C.NUM_BUYERS, _NUM_RECENT])
        .fillna(1, [C.NUM_USERS])
    )
    buyers, recent = F.col(C.NUM_BUYERS), F.col(_NUM_RECENT)
    return counted.select(
        C.ITEM_IDX,
        C.CATEGORY,
        # Its buyers among all pairs of a user and an item that he had, and the same of the last days.
        _log_share(buyers, num_pairs).alias("item_popularity"),
        _log_share(recent + 1, num_recent).alias("item_recent"),
        # How much of its buyers are recent, over how much of all pairs are.
        (recent / F.greatest(buyers, F.lit(1)) * num_pairs / max(num_recent, 1)).alias("item_trend"),
        # Its buyers among those of its category.
        _log_share(buyers, F.col(C.NUM_USERS)).alias("item_share"),
        "item_price",
    )


def _user_features(facts: FoldFacts) -> DataFrame:
    last = (F.lit(facts.fold.as_of).cast("double") - F.max(C.LAST_TS).cast("double")) / _SECONDS_A_DAY
    had = facts.interactions.groupBy(C.USER_IDX).agg(
        F.count("*").alias("user_items"),
        last.alias("user_days_away"),
        _log(F.sum(C.SPEND) / F.sum(C.UNITS)).alias("user_price"),
    )
    touched = facts.user_categories.groupBy(C.USER_IDX).agg(F.count_if(C.TOUCHED).alias("user_categories"))
    # Both over what the fold's users have in the mean.
    mean_items = had.select(F.avg("user_items")).scalar()
    mean_categories = touched.select(F.avg("user_categories")).scalar()
    return had.join(touched, C.USER_IDX, how="left").withColumns(
        {
            "user_items": _log(F.col("user_items") / mean_items),
            "user_categories": F.try_divide(F.col("user_categories"), mean_categories),
        }
    )


def _log(value: Column) -> Column:
    """The logarithm, null where it has none."""
    return F.when(value > 0, F.ln(value))


def _log_share(count: Column, whole: Column | int) -> Column:
    """The logarithm of a count's share of a whole; of no count, that of half a one."""
    whole = whole if isinstance(whole, Column) else F.lit(max(whole, 1))
    return F.ln(F.greatest(count, F.lit(_LEAST_COUNT)) / whole)
