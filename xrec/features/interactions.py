"""Interactions, user categories and targets of folds.

All come from **all** clean events of a fold, before any filter on item or user counts: otherwise a category counts as
new because the bought item was filtered away.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Categories, Weights
from xrec.evaluation.folds import Fold

_SECONDS_A_DAY = 86_400.0
_LEAST_DECAY = 1e-100
"""An event however old has a weight: shares of nothing but zeros are no shares."""


def weigh(histories: DataFrame, weights: Weights) -> DataFrame:
    """History events with ``weight``: the event type's weight x quantity ^ ``quantity_power``, halved every ``half_life_days``.

    The half-life is measured back from ``as_of_ts``.
    """
    by_type = F.create_map(*[F.lit(value) for pair in weights.event_types.items() for value in pair])
    weight = by_type[F.col(C.EVENT_TYPE)].cast("double")
    if weights.quantity_power:
        weight = weight * F.pow(F.coalesce(C.QUANTITY, F.lit(1.0)), F.lit(weights.quantity_power))
    if weights.half_life_days is not None:
        decay = F.pow(F.lit(0.5), _age_days() / F.lit(weights.half_life_days))
        weight = weight * F.greatest(decay, F.lit(_LEAST_DECAY))
    return histories.withColumn(C.WEIGHT, weight)


def _age_days() -> Column:
    return (F.col(C.AS_OF_TS).cast("double") - F.col(C.EVENT_TS).cast("double")) / _SECONDS_A_DAY


def interactions_of(weighted: DataFrame, categories: Categories) -> DataFrame:
    """Weighted history events to rows of ``interactions``: one a (fold, user, item), ``counting`` where an event counts."""
    is_counting = counts(categories)
    return weighted.groupBy(C.FOLD, C.USER_IDX, C.ITEM_IDX).agg(
        F.sum(C.WEIGHT).alias(C.WEIGHT),
        F.count("*").cast("int").alias(C.NUM_EVENTS),
        # Who looks at what he has bought has not bought it again.
        F.coalesce(F.max(F.when(is_counting, F.col(C.EVENT_TS))), F.max(C.EVENT_TS)).alias(C.LAST_TS),
        F.max(is_counting).alias(C.COUNTING),
        F.sum(F.when(is_counting, F.coalesce(C.QUANTITY, F.lit(1.0)))).alias(C.UNITS),
        F.sum(F.when(is_counting, F.col(C.PRICE))).alias(C.SPEND),
        F.count_if(C.IS_OUTLIER).cast("int").alias(C.NUM_OUTLIERS),
    )


def user_categories_of(weighted: DataFrame, categories: Categories) -> DataFrame:
    """Weighted history events to rows of ``user_categories``: one a (fold, user, category), touched or home or neither.

    Touched: a counting event within the look-back. Home: the smallest set of categories, by falling weight, ties by name,
    that covers ``home_coverage`` of the user's weight, at least one.
    """
    is_counting = touches = counts(categories)
    if categories.look_back_days is not None:
        touches = touches & (_age_days() <= F.lit(categories.look_back_days))
    mix = weighted.groupBy(C.FOLD, C.USER_IDX, C.CATEGORY).agg(
        F.sum(C.WEIGHT).alias(C.WEIGHT),
        F.max(touches).alias(C.TOUCHED),
        (F.max(is_counting) & ~F.max(touches)).alias(C.LAPSED),
    )
    a_user = Window.partitionBy(C.FOLD, C.USER_IDX)
    heaviest_first = a_user.orderBy(F.desc(C.WEIGHT), C.CATEGORY)
    before = heaviest_first.rowsBetween(Window.unboundedPreceding, -1)
    covered_before = F.coalesce(F.sum(C.WEIGHT).over(before), F.lit(0.0))
    # The first category is home whatever its share; a further one while those before it do not cover enough.
    is_home = (F.row_number().over(heaviest_first) == 1) | (
        covered_before < F.lit(categories.home_coverage - 1e-9) * F.sum(C.WEIGHT).over(a_user)
    )
    return mix.withColumn(C.HOME, is_home)


def targets_of(
    horizons: DataFrame, user_categories: DataFrame, interactions: DataFrame, categories: Categories
) -> DataFrame:
    """Horizon events to rows of ``targets``: one a (fold, user, item) of a counting event on a recommendable item.

    A cross-category target is new to its user. A cold user has no category that he does not buy yet: nothing of his is one.
    """
    had = interactions.select(C.FOLD, C.USER_IDX, C.ITEM_IDX, F.lit(True).alias("is_known"))
    users = had.select(C.FOLD, C.USER_IDX, F.lit(True).alias("is_warm_user")).distinct()
    items = had.select(C.FOLD, C.ITEM_IDX, F.lit(True).alias("is_warm_item")).distinct()
    mixes = user_categories.select(C.FOLD, C.USER_IDX, C.CATEGORY, C.TOUCHED, C.HOME, C.LAPSED)
    bought = (
        horizons.where(counts(categories) & F.col(C.RECOMMENDABLE))
        .select(C.FOLD, C.USER_IDX, C.ITEM_IDX, C.CATEGORY)
        .distinct()
        .join(had, [C.FOLD, C.USER_IDX, C.ITEM_IDX], how="left")
        .join(users, [C.FOLD, C.USER_IDX], how="left")
        .join(items, [C.FOLD, C.ITEM_IDX], how="left")
        .join(mixes, [C.FOLD, C.USER_IDX, C.CATEGORY], how="left")
    )
    is_new, is_cold = _missing("is_known"), _missing("is_warm_user")
    return bought.select(
        C.FOLD,
        C.USER_IDX,
        C.ITEM_IDX,
        C.CATEGORY,
        (is_new & ~is_cold & _missing(C.TOUCHED)).alias(C.CROSS_TOUCHED),
        (is_new & ~is_cold & _missing(C.HOME)).alias(C.CROSS_HOME),
        is_new.alias(C.IS_NEW),
        (~_missing(C.LAPSED)).alias(C.LAPSED),
        _missing("is_warm_item").alias(C.COLD_ITEM),
        is_cold.alias(C.COLD_USER),
    )


def _missing(flag: str) -> Column:
    """Whether a flag is not true, null included."""
    return ~F.coalesce(F.col(flag), F.lit(False))


def counts(categories: Categories) -> Column:
    """Whether an event touches a category and makes a target."""
    return F.col(C.EVENT_TYPE).isin(*categories.counting_events)


def describe_fold(
    fold: Fold, interactions: DataFrame, user_categories: DataFrame, targets: DataFrame
) -> dict[str, str]:
    """Counts of a fold, for the summary.

    Raises
    ------
    ValueError
        The fold has no history, or a backtest's horizon holds no cross-category target, so that nothing could be judged.
    """
    had = interactions.agg(
        F.count("*"), F.countDistinct(C.USER_IDX), F.sum(C.NUM_OUTLIERS), F.sum(C.NUM_EVENTS)
    ).first()
    mix = user_categories.agg(F.count_if(C.TOUCHED), F.count_if(C.HOME)).first()
    hit = targets.agg(
        F.count_if(C.CROSS_TOUCHED),
        F.count_if(C.CROSS_HOME),
        F.countDistinct(F.when(F.col(C.CROSS_TOUCHED), F.col(C.USER_IDX))),
        F.countDistinct(F.when(F.col(C.COLD_USER), F.col(C.USER_IDX))),
    ).first()
    assert had is not None
    assert mix is not None
    assert hit is not None
    if had[0] == 0:
        raise ValueError(f"fold '{fold.name}': found no event before {fold.as_of}; choose a later folds.as_of")
    if fold.has_targets and hit[0] + hit[1] == 0:
        raise ValueError(
            f"fold '{fold.name}': found no cross-category target in the {fold.horizon} from {fold.as_of}; expected at least one "
            "to judge the lists by: choose a longer folds.horizon or another folds.as_of, or folds.purpose=serve"
        )
    return {
        "fold": fold.name,
        "users_with_history": f"{had[1]:,}",
        "interactions": f"{had[0]:,}",
        "events_with_outliers": f"{had[2]:,} ({had[2] / had[3]:.2%})",
        "touched_categories_a_user": f"{mix[0] / had[1]:.1f}",
        "home_categories_a_user": f"{mix[1] / had[1]:.1f}",
        "targets_touched": f"{hit[0]:,}",
        "targets_home": f"{hit[1]:,}",
        "users_with_targets_touched": f"{hit[2]:,}",
        "cold_users_with_targets": f"{hit[3]:,}",
    }
