"""Novelty, long tail, diversity and calibration against naive versions, and what they mean at their ends."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession

from ranked import as_lists
from xrec import columns as C
from xrec.evaluation.beyond import beyond_names, describe_lists, facts_of
from xrec.storage.shared import SharedFolder

pytestmark = pytest.mark.spark

FOLD = "test-2024-07-01"
KS = (1, 5, 20)
NUM_USERS = 50
PATHS = {item: [f"d{item % 3}", f"c{item % 9}", *([f"s{item % 18}"] if item % 2 else [])] for item in range(60)}
CANDIDATES = "fold string, source string, scope string, user_idx int, item_idx int, rank int"


class Case:
    """Random lists, mixes and buyers."""

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.buyers = {item: int(draw.zipf(1.6)) for item in PATHS if draw.random() < 0.8}
        self.mixes = {
            user: {
                f"c{code}": float(draw.random() + 0.01) for code in draw.choice(12, draw.integers(1, 8), replace=False)
            }
            for user in range(NUM_USERS)
        }
        self.lists = {
            (source, scope, user): [int(item) for item in draw.choice(60, draw.choice([0, 1, 2, 7, 25]), replace=False)]
            for source in ("als", "popularity")
            for scope in ("touched", "home")
            for user in range(NUM_USERS)
        }

    def is_tail(self, item: int) -> bool:
        """Whether the items bought more often, or as often, already have 80 % of the pairs without it."""
        number, total = self.buyers.get(item, 0), sum(self.buyers.values())
        return sum(other for other in self.buyers.values() if other > number) >= 0.8 * total

    def value(self, metric: str, user: int, items: list[int]) -> float:
        """One list's figure, written down as the definition reads."""
        if metric == "novelty":
            return float(np.mean([-math.log2(max(self.buyers.get(item, 0), 1) / NUM_USERS) for item in items]))
        if metric == "long_tail":
            return float(np.mean([self.is_tail(item) for item in items]))
        if metric == "diversity":
            distances = []
            for one, other in combinations(items, 2):
                a, b = PATHS[one], PATHS[other]
                common = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
                distances.append(1 - common / max(len(a), len(b)))
            return float(np.mean(distances)) if distances else 0.0
        total, counts = sum(self.mixes[user].values()), Counter(PATHS[item][1] for item in items)
        divergence = 0.0
        for category, weight in self.mixes[user].items():
            p = weight / total
            divergence += p * math.log(p / (0.99 * counts[category] / len(items) + 0.01 * p))
        return divergence

    def expected(self) -> dict[tuple[str, str, int, str, int], float]:
        return {
            (*key, metric, k): self.value(metric, key[2], items[:k])
            for key, items in self.lists.items()
            if items
            for metric, k in beyond_names(KS)
        }

    def found(self, spark: SparkSession, folder: Path) -> dict[tuple[str, str, int, str, int], float]:
        items = spark.createDataFrame(
            [(item, path[1], path, True) for item, path in PATHS.items()] + [(60, "fuel", ["fuel"], False)],
            "item_idx int, category string, category_path array<string>, recommendable boolean",
        )
        buyers = spark.createDataFrame(list(self.buyers.items()), "item_idx int, num_buyers int")
        candidates = [
            (FOLD, *key, item, rank) for key, items in self.lists.items() for rank, item in enumerate(items, start=1)
        ]
        mixes = [(user, name, weight) for user, mix in self.mixes.items() for name, weight in mix.items()]
        rows = describe_lists(
            as_lists(spark.createDataFrame(candidates, CANDIDATES)).repartition(3),
            spark.createDataFrame(mixes, "user_idx int, category string, weight double"),
            SharedFolder(str(folder)).share(facts_of(items, buyers, num_users=NUM_USERS)),
            ks=KS,
        )
        return {
            (row[C.MODEL], row[C.SLICE], row[C.USER_IDX], *name): value
            for row in rows.collect()
            for name, value in zip(beyond_names(KS), row["values"], strict=True)
        }


@pytest.mark.parametrize("seed", [0, 1])
def test_every_metric_equals_its_naive_version(spark: SparkSession, tmp_path: Path, seed: int) -> None:
    case = Case(seed)
    assert any(case.is_tail(item) for item in PATHS)
    assert not all(case.is_tail(item) for item in PATHS)
    assert case.found(spark, tmp_path) == pytest.approx(case.expected(), abs=1e-12)


def test_the_ends_mean_what_they_say(spark: SparkSession, tmp_path: Path) -> None:
    case = Case(2)
    case.mixes = {0: {"c0": 1.0, "c1": 1.0}, 1: {"c3": 1.0}}
    case.buyers = {0: NUM_USERS, 1: NUM_USERS // 2, **dict.fromkeys(range(2, 60), 0)}
    lists = {0: [0, 1, 9, 10], 1: [0, 18, 36]}
    case.lists = {("als", "home", user): items for user, items in lists.items()}
    found = case.found(spark, tmp_path)

    def value(user: int, metric: str, k: int = 20) -> float:
        return found["als", "home", user, metric, k]

    assert value(0, "calibration") == pytest.approx(0), "the list has his mix"
    assert value(1, "calibration") == pytest.approx(math.log(100)), "the list has none of it"
    assert value(1, "diversity") == 0, "one category, though three items"
    assert value(0, "novelty", 1) == 0, "everybody bought it"
    assert value(0, "long_tail") == 0.5, "two items have all buyers"
