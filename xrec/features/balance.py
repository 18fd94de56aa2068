"""Balancing of the training rows, for training alone: categories, users, and a floor for the tail.

A category with n_c of the n rows gets a share p_c proportional to n_c^alpha, so each of its rows gets the factor
f_c = p_c n / n_c, and at least ``min_rows`` / n_c; a user with n_u rows likewise f_u = p_u n / n_u, p_u proportional to
n_u^user_alpha. A row's factor is f_c f_u, capped at ``max_repeat``; both powers at 1 and no floor give 1 everywhere.

The factor is given in two forms: as a weight (ALS's confidence), and as a whole number of copies, floor(f) or one more by a
hash of (seed, event), whose mean is f (the sequence models' targets, whose sampled softmax is corrected by the distribution
of the copies). Both are functions of the event alone, so a task that runs again gives the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Balance

_HASH_RANGE = 1 << 53


def factors_of(events: DataFrame, balance: Balance) -> DataFrame:
    """Training events to one row a (fold, category): ``num_events`` n_c and ``factor`` f_c, capped."""
    counts = events.groupBy(C.FOLD, C.CATEGORY).agg(F.count("*").alias(C.NUM_EVENTS))
    floor = F.lit(float(balance.min_rows)) / F.col(C.NUM_EVENTS)
    factor = F.least(F.greatest(C.FACTOR, floor), F.lit(balance.max_repeat))
    return _evened(counts, balance.alpha).withColumn(C.FACTOR, factor)


def _evened(counts: DataFrame, power: float) -> DataFrame:
    """Rows of a (fold, group) with its ``num_events`` n_g to n_g^(power - 1) n / sum of n_g^power over its g, as ``factor``."""
    if power == 1.0:
        return counts.withColumn(C.FACTOR, F.lit(1.0))
    raised = F.pow(C.NUM_EVENTS, F.lit(power))
    totals = counts.groupBy(C.FOLD).agg(F.sum(C.NUM_EVENTS).alias("total"), F.sum(raised).alias("total_raised"))
    factor = raised / F.col("total_raised") * F.col("total") / F.col(C.NUM_EVENTS)
    return (
        counts.join(F.broadcast(totals), C.FOLD, how="inner").withColumn(C.FACTOR, factor).drop("total", "total_raised")
    )


def balance_events(weighted: DataFrame, balance: Balance, seed: int) -> DataFrame:
    """Weighted history events of folds to rows of ``training_events``, with balance weight and number of copies.

    ``weighted`` says by ``counting`` which events make targets (:func:`xrec.features.interactions.counts`).
    """
    rows = weighted.join(
        F.broadcast(factors_of(weighted, balance).drop(C.NUM_EVENTS)), [C.FOLD, C.CATEGORY], how="inner"
    )
    if balance.user_alpha != 1.0:
        users = weighted.groupBy(C.FOLD, C.USER_IDX).agg(F.count("*").alias(C.NUM_EVENTS))
        of_user = _evened(users, balance.user_alpha).select(C.FOLD, C.USER_IDX, F.col(C.FACTOR).alias("user_factor"))
        rows = rows.join(of_user, [C.FOLD, C.USER_IDX], how="inner").withColumn(
            C.FACTOR, F.least(F.col(C.FACTOR) * F.col("user_factor"), F.lit(balance.max_repeat))
        )
    uniform = F.pmod(F.xxhash64(F.lit(seed), F.col(C.EVENT_ID)), F.lit(_HASH_RANGE)) / F.lit(float(_HASH_RANGE))
    whole = F.floor(C.FACTOR)
    copies = whole + (uniform < F.col(C.FACTOR) - whole).cast("int")
    return rows.select(
        C.FOLD,
        C.EVENT_ID,
        C.USER_IDX,
        C.ITEM_IDX,
        C.EVENT_TYPE,
        C.PLATFORM,
        C.EVENT_TS,
        C.COUNTING,
        C.WEIGHT,
        F.col(C.FACTOR).alias(C.BALANCE_WEIGHT),
        copies.cast("int").alias(C.NUM_COPIES),
    )


def balance_report(training_events: DataFrame, items: DataFrame, by: Sequence[str] = (C.FOLD,)) -> DataFrame:
    """Rows of ``training_events`` to rows of ``balance_report``: each category of a fold (or of ``by``) before and after.

    The effective rows are Kish's (1965): (sum w)^2 / sum w^2.
    """
    weight = F.col(C.BALANCE_WEIGHT)
    categories = (
        training_events.join(items.select(C.ITEM_IDX, C.CATEGORY), C.ITEM_IDX, how="inner")
        .groupBy(*by, C.CATEGORY)
        .agg(
            F.count("*").alias(C.NUM_EVENTS),
            F.sum(weight).alias(C.BALANCED_EVENTS),
            (F.pow(F.sum(weight), F.lit(2)) / F.sum(weight * weight)).alias(C.EFFECTIVE_EVENTS),
            F.sum(C.NUM_COPIES).alias(C.NUM_COPIES),
            F.max(C.NUM_COPIES).alias(C.LARGEST_REPEAT),
        )
    )
    a_fold = Window.partitionBy(*by)
    return categories.withColumns(
        {
            C.SHARE: F.col(C.NUM_EVENTS) / F.sum(C.NUM_EVENTS).over(a_fold),
            C.BALANCED_SHARE: F.col(C.BALANCED_EVENTS) / F.sum(C.BALANCED_EVENTS).over(a_fold),
        }
    )


def preview_alphas(
    training_events: DataFrame, items: DataFrame, balance: Balance, alphas: Sequence[float], seed: int
) -> DataFrame:
    """Rows of ``training_events`` to rows of ``balance_report`` (with ``alpha``) as each of the alphas would give."""
    weighted = training_events.join(items.select(C.ITEM_IDX, C.CATEGORY), C.ITEM_IDX, how="inner")
    balanced = [
        balance_events(weighted, balance.model_copy(update={"alpha": alpha}), seed).withColumn(C.ALPHA, F.lit(alpha))
        for alpha in alphas
    ]
    return balance_report(reduce(DataFrame.unionByName, balanced), items, by=(C.FOLD, C.ALPHA))


def describe_balance(report: DataFrame, balance: Balance) -> dict[str, str]:
    """One fold's rows before and after, for the summary."""
    found = report.agg(
        F.sum(C.NUM_EVENTS).alias("rows"),
        F.sum(C.NUM_COPIES).alias("rows_resampled"),
        F.max(C.LARGEST_REPEAT).alias(C.LARGEST_REPEAT),
        F.max(C.SHARE).alias("largest"),
        F.max(C.BALANCED_SHARE).alias("largest_balanced"),
    ).first()
    assert found is not None
    is_off = balance.alpha == balance.user_alpha == 1.0 and balance.min_rows == 0
    counts = {
        name: f"{found[name]:,.0f}" for name in ("rows", "rows_resampled", C.LARGEST_REPEAT) if found[name] is not None
    }
    figures = {"alpha": f"{balance.alpha:g} ({'off' if is_off else 'on'})", **counts}
    if found["largest"] is not None:
        figures["largest_category"] = f"{found['largest']:.1%} of the rows, {found['largest_balanced']:.1%} balanced"
    return figures
