"""Coverage and Gini of all lists together: against a naive version, and how often their intervals hold the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from scipy import stats

from ranked import as_lists
from test_metrics import CANDIDATES, FOLD, KS, NUM_ITEMS, items_of, random_case
from xrec import columns as C
from xrec.config import Evaluation
from xrec.evaluation.exposure import EXPOSURE, NUM_GROUPS, exposure_of

pytestmark = pytest.mark.spark


def naive(shown: Iterable[int]) -> dict[str, float]:
    """The figures of all lists together, as their definitions read."""
    times = Counter(shown)
    counts = sorted(times[item] for item in range(NUM_ITEMS))
    ordered = sum((2 * n - NUM_ITEMS - 1) * count for n, count in enumerate(counts, start=1))
    return {
        "coverage": len(times) / NUM_ITEMS,
        "category_coverage": len({item % 7 for item in times}) / 7,
        "gini": ordered / (NUM_ITEMS * sum(counts)),
    }


def naive_half_width(values: list[float], at: float) -> float:
    without = np.array(values[1:])
    variance = (NUM_GROUPS - 1) / NUM_GROUPS * ((without - without.mean()) ** 2).sum()
    return float(stats.t.ppf(at, NUM_GROUPS - 1) * np.sqrt(variance))


def test_figures_and_intervals_equal_a_naive_version(spark: SparkSession) -> None:
    candidates, _ = random_case(3)
    lists = as_lists(spark.createDataFrame(candidates, CANDIDATES))
    users = lists.select(C.USER_IDX, F.pmod(F.xxhash64(C.USER_IDX), F.lit(NUM_GROUPS)).alias("g")).distinct()
    group = {row[C.USER_IDX]: row["g"] for row in users.collect()}
    rows = exposure_of(lists, items_of(spark), Evaluation(ks=KS), num_compared=3).collect()
    assert len(rows) == 3 * 2 * len(KS) * len(EXPOSURE)

    def values(model: str, scope: str, k: int, metric: str) -> list[float]:
        mine = [c for c in candidates if c[1:3] == (model, scope) and c[5] <= k]
        parts = [[c[4] for c in mine if group[c[3]] != left_out] for left_out in (None, *range(NUM_GROUPS))]
        return [naive(part)[metric] for part in parts]

    for row in rows:
        found = values(row[C.MODEL], row[C.SLICE], row[C.K], row[C.METRIC])
        other = values("popularity", row[C.SLICE], row[C.K], row[C.METRIC])
        differences = [a - b for a, b in zip(found, other, strict=True)]
        expected = {
            C.VALUE: found[0],
            C.LOW: found[0] - naive_half_width(found, 0.975),
            C.HIGH: found[0] + naive_half_width(found, 0.975),
            C.DIFFERENCE: differences[0],
            C.DIFFERENCE_LOW: differences[0] - naive_half_width(differences, 0.975),
            C.ADJUSTED_HIGH: differences[0] + naive_half_width(differences, 1 - 0.025 / 3),
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-12)
        assert row[C.NUM_USERS] == len({c[3] for c in candidates if c[1:3] == (row[C.MODEL], row[C.SLICE])})


def test_users_of_one_group_have_no_interval_and_a_model_without_baseline_no_difference(
    spark: SparkSession,
) -> None:
    rows: list[Any] = [(FOLD, "als", "touched", 1, item, item + 1, 1.0) for item in range(5)]
    lists = as_lists(spark.createDataFrame(rows, CANDIDATES))
    for row in exposure_of(lists, items_of(spark), Evaluation(ks=(3,)), num_compared=1).collect():
        assert row[C.VALUE] == pytest.approx(naive(range(3))[row[C.METRIC]])
        assert (row[C.LOW], row[C.HIGH], row[C.DIFFERENCE]) == (None, None, None)


def test_intervals_hold_the_truth_as_often_as_they_say(spark: SparkSession) -> None:
    """Worlds of 100 users with 5 of 40 items each, the first items shown more; a fold is a world."""
    num_worlds, num_users, length = 300, 100, 5
    drawn = np.random.default_rng(0)
    scores = np.log(1 / np.arange(1, NUM_ITEMS + 1) ** 1.5) + drawn.gumbel(size=(num_worlds * num_users, NUM_ITEMS))
    items = np.argsort(-scores, axis=1)[:, :length]
    rows = [
        (f"w{n // num_users}", "als", "touched", n % num_users, [int(item) for item in found])
        for n, found in enumerate(items)
    ]
    lists = spark.createDataFrame(rows, "fold string, source string, scope string, user_idx int, items array<int>")
    found = exposure_of(lists, items_of(spark), Evaluation(ks=(length,)), num_compared=1).toPandas()
    assert len(found) == num_worlds * len(EXPOSURE)
    gini, coverage = (found[found["metric"] == metric] for metric in ("gini", "coverage"))
    held = {
        name: ((one["low"] <= one["value"].mean()) & (one["value"].mean() <= one["high"])).mean()
        for name, one in (("gini", gini), ("coverage", coverage))
    }
    assert 0.91 <= held["gini"] <= 0.98
    assert held["coverage"] >= 0.95, "never too narrow"
    width = (gini["high"] - gini["low"]).mean() / (2 * stats.t.ppf(0.975, NUM_GROUPS - 1) * gini["value"].std())
    assert width == pytest.approx(1, abs=0.15)
