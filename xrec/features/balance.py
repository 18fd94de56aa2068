"""Category balancing of the training rows, for training alone (design, decision 4).

A category with n_c of the n rows gets a share p_c proportional to n_c^alpha, so each of its rows gets the factor
f_c = p_c * n / n_c, capped at ``max_repeat``; alpha = 1 gives 1 everywhere. The factor is given in two forms: as a weight
(ALS's confidence), and as a whole number of copies, floor(f_c) or one more by a hash of (seed, event), whose mean is f_c
(the sequence models' targets). Both are functions of the event alone, so a task that runs again gives the same rows.
"""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Balance
from xrec.evaluation.folds import Fold

_HASH_RANGE = 1 << 53


def factors_of(events: DataFrame, balance: Balance) -> DataFrame:
    """Training events to one row a category: ``category``, ``num_events`` n_c and ``factor`` f_c."""
    counts = events.groupBy(C.CATEGORY).agg(F.count("*").alias(C.NUM_EVENTS))
    if balance.alpha == 1.0:
        return counts.withColumn("factor", F.lit(1.0))
    totals = counts.agg(F.sum(C.NUM_EVENTS), F.sum(F.pow(C.NUM_EVENTS, F.lit(balance.alpha)))).first()
    assert totals is not None
    total, total_power = totals
    share = F.pow(C.NUM_EVENTS, F.lit(balance.alpha)) / F.lit(total_power)
    return counts.withColumn("factor", F.least(share * F.lit(total) / F.col(C.NUM_EVENTS), F.lit(balance.max_repeat)))


def balance_events(weighted: DataFrame, balance: Balance, fold: Fold, seed: int) -> DataFrame:
    """Weighted history events to rows of ``training_events``, with balance weight and number of copies."""
    factors = factors_of(weighted, balance)
    uniform = F.pmod(F.xxhash64(F.lit(seed), F.col(C.EVENT_ID)), F.lit(_HASH_RANGE)) / F.lit(float(_HASH_RANGE))
    whole = F.floor("factor")
    copies = whole + (uniform < F.col("factor") - whole).cast("int")
    return weighted.join(F.broadcast(factors), C.CATEGORY, how="inner").select(
        F.lit(fold.name).alias(C.FOLD),
        C.EVENT_ID,
        C.USER_IDX,
        C.ITEM_IDX,
        C.EVENT_TS,
        C.WEIGHT,
        F.col("factor").alias(C.BALANCE_WEIGHT),
        copies.cast("int").alias(C.NUM_COPIES),
    )


def describe_balance(training_events: DataFrame, balance: Balance) -> dict[str, str]:
    """Rows before and after, and the effective sample size (Kish 1965: (sum w)^2 / sum w^2), for the summary."""
    found = training_events.agg(
        F.count("*").alias("rows"),
        F.sum(C.NUM_COPIES).alias("rows_resampled"),
        F.max(C.NUM_COPIES).alias("largest_repeat"),
        (F.pow(F.sum(C.BALANCE_WEIGHT), F.lit(2)) / F.sum(F.pow(C.BALANCE_WEIGHT, F.lit(2)))).alias("effective_rows"),
    ).first()
    assert found is not None
    state = "off" if balance.alpha == 1.0 else "on"
    return {
        "alpha": f"{balance.alpha:g} ({state})",
        **{name: f"{value:,.0f}" for name, value in found.asDict().items() if value is not None},
    }
