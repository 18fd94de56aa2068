"""A reason per recommendation: one plain sentence or two, made of what is known to be true.

It says what is new about the category, and why the item: its customers where popularity, of all time or lately, contributed
most, its description where that did, the user's own heaviest home categories where a model of behaviour did.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import TREND
from xrec.features.buyers import num_buyers_of

_NUM_NAMED = 2
_NUM_RECENT = "num_recent"
_FOLLOWING_SOURCES = (
    *("gru", f"gru{TREND}", "transformer", f"transformer{TREND}"),
    *("transitions", "transition_categories"),
)
_CONTENT_SOURCE = "content"
_POPULARITY_SOURCES = (C.POPULARITY, "popular_in_category", "newcomers")


def with_reasons(
    lists: DataFrame,
    interactions: DataFrame,
    user_categories: DataFrame,
    items: DataFrame,
    *,
    as_of: datetime | None,
    recent_days: float,
) -> DataFrame:
    """Rows of ``user_idx``, ``item_idx``, ``category``, ``source`` with a ``reason``; the fold's tables give the facts.

    ``as_of`` is the end of the ``recent_days`` that the source `recent` counts; None where the log has no clock.
    """
    buyers = num_buyers_of(interactions)
    is_recent = F.lit(False) if as_of is None else F.col(C.LAST_TS) >= F.lit(as_of - timedelta(days=recent_days))
    lately = num_buyers_of(interactions.where(is_recent)).withColumnRenamed(C.NUM_BUYERS, _NUM_RECENT)
    had = F.col(C.TOUCHED) | F.col(C.LAPSED)
    touched = user_categories.where(had).select(C.USER_IDX, C.CATEGORY, F.lit(True).alias("is_touched"))
    return (
        lists.join(buyers, C.ITEM_IDX, how="left")
        .join(lately, C.ITEM_IDX, how="left")
        .join(home_names(user_categories, items), C.USER_IDX, how="left")
        .join(touched, [C.USER_IDX, C.CATEGORY], how="left")
        .withColumn(C.REASON, F.concat(_what_is_new(), _why(recent_days)))
        .drop(C.NUM_BUYERS, _NUM_RECENT, "home_names", "is_touched")
    )


def home_names(user_categories: DataFrame, items: DataFrame) -> DataFrame:
    """User categories to one row a user: ``home_names``, his heaviest home categories of merchandise, ties by name."""
    merchandise = items.where(F.col(C.RECOMMENDABLE)).select(C.CATEGORY).distinct()
    home = user_categories.where(F.col(C.HOME)).join(F.broadcast(merchandise), C.CATEGORY, how="left_semi")
    heaviest = F.sort_array(F.collect_list(F.struct((-F.col(C.WEIGHT)).alias(C.WEIGHT), F.col(C.CATEGORY))))
    named = F.slice(heaviest, 1, _NUM_NAMED)[C.CATEGORY]
    return home.groupBy(C.USER_IDX).agg(F.array_join(named, ", ").alias("home_names"))


def _what_is_new() -> Column:
    """A category that the user had, be it long ago or not one of his home categories, is not called new."""
    is_touched = F.coalesce(F.col("is_touched"), F.lit(False))
    return F.concat(
        F.when(is_touched, F.lit("Beyond your usual categories: ")).otherwise(F.lit("New for you: ")),
        F.col(C.CATEGORY),
        F.lit(". "),
    )


def _why(recent_days: float) -> Column:
    above_all = F.coalesce(F.concat(F.lit(" (above all "), F.col("home_names"), F.lit(")")), F.lit(""))
    buyers = F.coalesce(F.col(C.NUM_BUYERS), F.lit(0))
    popular = F.concat(F.lit("Popular: "), F.format_number(buyers, 0), F.lit(" customers chose it."))
    popular = F.when(buyers > 1, popular).otherwise(F.lit("Few customers chose it so far."))
    lately = F.concat(F.format_number(_NUM_RECENT, 0), F.lit(f" customers chose it in the last {recent_days:g} days."))
    alike = F.concat(F.lit("Chosen by customers whose history resembles yours"), above_all, F.lit("."))
    follows = F.concat(F.lit("A likely next choice after a history like yours"), above_all, F.lit("."))
    by_source = F.when((F.col(C.SOURCE) == C.RECENT) & (F.col(_NUM_RECENT) > 1), lately)
    by_source = by_source.when(F.col(C.SOURCE).isin(*_POPULARITY_SOURCES, C.RECENT), popular)
    by_source = by_source.when(
        F.col(C.SOURCE) == _CONTENT_SOURCE, F.lit("Its description is like what you chose before.")
    )
    return by_source.when(F.col(C.SOURCE).isin(*_FOLLOWING_SOURCES), follows).otherwise(alike)
