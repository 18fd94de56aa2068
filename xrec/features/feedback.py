"""What the exposures teach a fold: what was bought after it was shown, and what was shown in vain.

Both are events with weights of their own. A purchase that followed a showing adds to what ALS is told of the pair. A pair shown
in vain is told with a negative weight, which MLlib's implicit ALS takes for no preference with confidence 1 + alpha |weight|:
without it the pair is one of all those that nobody looked at. Nothing else sees it: what was shown in vain was not had, is no part
of a history, and may be proposed again, but for ``rest_days``.

A showing belongs to a fold from when its outcome was known: in vain, when its window passed before as-of; bought, when the purchase
lies before as-of.
"""

from __future__ import annotations

from datetime import timedelta

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Categories, Feedback, Weights
from xrec.evaluation.folds import Fold, history_of
from xrec.features.interactions import weigh

BOUGHT, IGNORED = "shown_bought", "shown_ignored"
_PAIR = [C.USER_IDX, C.ITEM_IDX]


def feedback_of(
    shown: DataFrame, events: DataFrame, fold: Fold, feedback: Feedback, weights: Weights, categories: Categories
) -> DataFrame:
    """Indexed exposures and events to rows of ``feedback``: one a (user, item) that was bought after it was shown, or in vain.

    In vain: shown at least ``min_shown`` times, with no event of the pair before as-of, whether or not it counts. The weight halves
    as that of events does, from the last showing or purchase.
    """
    as_of, window = F.lit(fold.as_of), F.lit(timedelta(days=feedback.window_days))
    is_person = F.col(C.FLAGGED_TS).isNull() | (F.col(C.FLAGGED_TS) >= as_of)
    before = shown.where(is_person & (F.col(C.SHOWN_TS) < as_of)).select(*_PAIR, C.SHOWN_TS)
    counted = history_of(events, fold).where(F.col(C.EVENT_TYPE).isin(*categories.counting_events))
    follows = (F.col(C.EVENT_TS) > F.col(C.SHOWN_TS)) & (F.col(C.EVENT_TS) <= F.col(C.SHOWN_TS) + window)
    bought = (
        before.join(counted.select(*_PAIR, C.EVENT_TS), _PAIR, how="inner")
        .where(follows)
        .groupBy(*_PAIR)
        .agg(F.max(C.EVENT_TS).alias(C.EVENT_TS), F.countDistinct(C.SHOWN_TS).alias(C.NUM_SHOWN))
        .withColumn(C.EVENT_TYPE, F.lit(BOUGHT))
    )
    acted_on = events.where(F.col(C.EVENT_TS) < as_of).select(*_PAIR)
    ignored = (
        before.where(F.col(C.SHOWN_TS) + window <= as_of)
        .groupBy(*_PAIR)
        .agg(F.max(C.SHOWN_TS).alias(C.EVENT_TS), F.countDistinct(C.SHOWN_TS).alias(C.NUM_SHOWN))
        .where(F.col(C.NUM_SHOWN) >= feedback.min_shown)
        .join(acted_on, _PAIR, how="left_anti")
        .withColumn(C.EVENT_TYPE, F.lit(IGNORED))
    )
    by_type = {BOUGHT: feedback.bought_weight, IGNORED: feedback.ignored_weight}
    rows = bought.unionByName(ignored).withColumn(C.QUANTITY, F.lit(None).cast("double"))
    weighted = weigh(rows.withColumn(C.AS_OF_TS, as_of), weights.model_copy(update={"event_types": by_type}))
    sign = F.when(F.col(C.EVENT_TYPE) == IGNORED, -1.0).otherwise(1.0)
    return weighted.select(
        F.lit(fold.name).alias(C.FOLD),
        *_PAIR,
        C.EVENT_TYPE,
        C.EVENT_TS,
        C.NUM_SHOWN,
        (sign * F.col(C.WEIGHT)).alias(C.WEIGHT),
    )


def resting_pairs(of_fold: DataFrame, fold: Fold, feedback: Feedback) -> DataFrame:
    """A fold's rows of ``feedback`` to the pairs (``user_idx``, ``item_idx``) shown in vain within ``rest_days`` before as-of."""
    since = fold.as_of - timedelta(days=feedback.rest_days)
    return of_fold.where((F.col(C.EVENT_TYPE) == IGNORED) & (F.col(C.EVENT_TS) > F.lit(since))).select(*_PAIR)


def describe_feedback(of_fold: DataFrame) -> dict[str, str]:
    """A fold's pairs bought after a showing and shown in vain, for the summary."""
    is_bought = F.col(C.EVENT_TYPE) == BOUGHT
    found = of_fold.agg(F.count_if(is_bought), F.count_if(~is_bought)).first()
    assert found is not None
    return {BOUGHT: f"{found[0]:,} pairs", IGNORED: f"{found[1]:,} pairs"}
