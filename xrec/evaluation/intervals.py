"""Paired Poisson bootstrap over users: the interval of every mean and of every difference to popularity.

In replicate b user u counts n(u, b) times, n ~ Poisson(1), independently: on many users that is the bootstrap without
knowing their number (Hanley, MacGibbon 2006; Chamandy et al. 2012). n is a function of (seed, user, replicate) alone, so
that all models see the same users in a replicate, which pairs them, and the result does not depend on partitions, order
or retries (sums of doubles: to about 1e-12 relative). Users never leave the executors: a batch gives a sum a replicate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Evaluation
from xrec.evaluation.metrics import VALUES

BASELINE = C.POPULARITY

# SplitMix64 (Steele, Lea, Flood 2014): the golden-ratio increment and the two multipliers of its finaliser.
_GOLDEN, _FIRST, _SECOND = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
# P(n <= j) of Poisson(1) for j = 0..18; beyond lies less than 2^-53.
_POISSON_CDF = np.cumsum(np.exp(-1.0) / np.cumprod([1.0, *range(1, 19)]))
_USERS_A_BLOCK = 1024
"""Bounds a task's weights: 1,024 users x 1,000 replicates x 8 bytes = 8 MB."""

_REPLICATE, _SUM_WEIGHTS = "replicate", "sum_weights"
_LISTS = [C.FOLD, C.MODEL, C.SLICE]


def poisson_weights(user_idx: npt.NDArray[Any], num_replicates: int, seed: int) -> npt.NDArray[np.float64]:
    """User indexes [U] to their weights [U, B + 1]: column 0 is the sample itself (1 each), the others are replicates.

    >>> poisson_weights(np.array([7, 8]), 3, seed=0).shape
    (2, 4)
    """
    with np.errstate(over="ignore"):
        users_U = _mix(_mix(np.uint64(seed % 2**64) + _GOLDEN) ^ (user_idx.astype(np.int64).view(np.uint64) * _GOLDEN))
        replicates_B = _mix(np.arange(1, num_replicates + 1, dtype=np.uint64) * _FIRST)
        bits_UB = _mix(users_U[:, None] + replicates_B[None, :])
    uniform_UB = (bits_UB >> np.uint64(11)).astype(np.float64) * 2.0**-53
    weights_UB = np.searchsorted(_POISSON_CDF, uniform_UB, side="right").astype(np.float64)
    return np.concatenate([np.ones((len(user_idx), 1)), weights_UB], axis=1)


def summarise(
    judged: DataFrame,
    names: Sequence[tuple[str, int]],
    settings: Evaluation,
    seed: int,
    *,
    num_compared: int,
    baseline: str = BASELINE,
) -> DataFrame:
    """One row a (fold, model, slice, user) to rows of ``metrics`` (without run_id): means, and differences to the baseline.

    ``values`` holds a figure for each of ``names`` (metric, k), as from :func:`xrec.evaluation.metrics.judge_lists`.

    Intervals are percentiles of the replicates. On one user they are as wide as the point: there is nothing to resample. Without
    lists of the baseline the differences are null; a mean over no user is not there.

    Each interval holds for itself. The adjusted one of a difference holds for all ``num_compared`` models of a slice at once
    (Bonferroni: the error that is allowed, divided by their number).
    """
    means = _replicate_means(judged, len(names), settings.num_bootstrap, seed)
    a_replicate = Window.partitionBy(C.FOLD, C.SLICE, _REPLICATE)
    of_baseline = F.max(F.when(F.col(C.MODEL) == baseline, F.col(VALUES))).over(a_replicate)
    named = F.array(*[F.struct(F.lit(m).alias(C.METRIC), F.lit(k).alias(C.K)) for m, k in names])
    figures = (
        means.withColumn("baseline", of_baseline)
        .select(*_LISTS, _REPLICATE, _SUM_WEIGHTS, F.posexplode(VALUES).alias("position", C.VALUE), "baseline")
        .withColumn(C.DIFFERENCE, F.col(C.VALUE) - F.get(F.col("baseline"), F.col("position")))
    )
    is_sample = F.col(_REPLICATE) == 0
    tail = (1 - settings.confidence) / 2
    columns = [F.max(F.when(is_sample, F.col(_SUM_WEIGHTS))).cast("bigint").alias(C.NUM_USERS)]
    for name, low, high, at in (
        (C.VALUE, C.LOW, C.HIGH, tail),
        (C.DIFFERENCE, C.DIFFERENCE_LOW, C.DIFFERENCE_HIGH, tail),
        (C.DIFFERENCE, C.ADJUSTED_LOW, C.ADJUSTED_HIGH, tail / max(num_compared, 1)),
    ):
        replicates = F.when(~is_sample, F.col(name))
        columns.append(F.percentile(replicates, F.lit(at)).alias(low))
        columns.append(F.percentile(replicates, F.lit(1 - at)).alias(high))
    columns += [F.max(F.when(is_sample, F.col(name))).alias(name) for name in (C.VALUE, C.DIFFERENCE)]
    return (
        figures.groupBy(*_LISTS, "position")
        .agg(*columns)
        .select(
            *_LISTS,
            F.get(named, F.col("position"))[C.METRIC].alias(C.METRIC),
            F.get(named, F.col("position"))[C.K].alias(C.K),
            C.VALUE,
            C.LOW,
            C.HIGH,
            C.DIFFERENCE,
            C.DIFFERENCE_LOW,
            C.DIFFERENCE_HIGH,
            C.ADJUSTED_LOW,
            C.ADJUSTED_HIGH,
            C.NUM_USERS,
        )
    )


def _replicate_means(judged: DataFrame, num_values: int, num_replicates: int, seed: int) -> DataFrame:
    """Rows of :func:`judge_lists` to one row a (fold, model, slice, replicate): the weighted mean of every value."""

    def sum_batches(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows:
                yield _sum_batch(batch, num_values, num_replicates, seed)

    # A user's rows meet in one batch, so that his weights are drawn once for all models and slices.
    by_user = judged.select(*_LISTS, C.USER_IDX, VALUES).repartition(C.USER_IDX).sortWithinPartitions(C.USER_IDX)
    partial = by_user.mapInArrow(
        sum_batches,
        f"{C.FOLD} string, {C.MODEL} string, {C.SLICE} string, {_REPLICATE} int, {_SUM_WEIGHTS} double, "
        f"{VALUES} array<double>",
    )
    totals = [F.sum(F.get(F.col(VALUES), F.lit(n))).alias(f"sum_{n}") for n in range(num_values)]
    return (
        partial.groupBy(*_LISTS, _REPLICATE)
        .agg(F.sum(_SUM_WEIGHTS).alias(_SUM_WEIGHTS), *totals)
        # A replicate that drew none of a few users has no mean.
        .where(F.col(_SUM_WEIGHTS) > 0)
        .select(
            *_LISTS,
            _REPLICATE,
            _SUM_WEIGHTS,
            F.array(*[F.col(f"sum_{n}") / F.col(_SUM_WEIGHTS) for n in range(num_values)]).alias(VALUES),
        )
    )


def _sum_batch(batch: pa.RecordBatch, num_values: int, num_replicates: int, seed: int) -> pa.RecordBatch:
    """Rows of :func:`judge_lists` to one row a (fold, model, slice, replicate): weighted sums over the batch's rows."""
    keys = pa.Table.from_batches([batch]).select(_LISTS)
    lists = keys.group_by(_LISTS).aggregate([]).select(_LISTS).to_pylist()
    group_N = np.empty(batch.num_rows, dtype=np.int64)
    place = {tuple(row.values()): n for n, row in enumerate(lists)}
    for n, row in enumerate(zip(*(column.to_pylist() for column in keys.columns), strict=True)):
        group_N[n] = place[row]
    users_U, user_N = np.unique(batch.column(C.USER_IDX).to_numpy(), return_inverse=True)
    values_NM = batch.column(VALUES).flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, num_values)
    values_NM = np.concatenate([np.ones((batch.num_rows, 1)), values_NM], axis=1)

    sums_GBM = np.zeros((len(lists), num_replicates + 1, num_values + 1))
    for start in range(0, len(users_U), _USERS_A_BLOCK):
        weights_UB = poisson_weights(users_U[start : start + _USERS_A_BLOCK], num_replicates, seed)
        in_block_N = (user_N >= start) & (user_N < start + _USERS_A_BLOCK)
        for group in range(len(lists)):
            rows = np.flatnonzero(in_block_N & (group_N == group))
            sums_GBM[group] += weights_UB[user_N[rows] - start].T @ values_NM[rows]

    columns = {name: np.repeat([row[name] for row in lists], num_replicates + 1) for name in _LISTS}
    return pa.RecordBatch.from_pydict(
        {
            **{name: pa.array(column, pa.string()) for name, column in columns.items()},
            _REPLICATE: pa.array(np.tile(np.arange(num_replicates + 1, dtype=np.int32), len(lists))),
            _SUM_WEIGHTS: pa.array(sums_GBM[:, :, 0].ravel()),
            VALUES: pa.FixedSizeListArray.from_arrays(sums_GBM[:, :, 1:].ravel(), num_values).cast(
                pa.list_(pa.float64())
            ),
        }
    )


def _mix(bits: Any) -> Any:
    """SplitMix64's finaliser: 64 bits to 64 bits, each of which depends on all."""
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    return bits ^ (bits >> np.uint64(31))
