"""Every metric against a naive version, and the intervals against a naive bootstrap, theory and known truths."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from scipy import stats

from ranked import as_lists
from xrec import columns as C
from xrec.config import Evaluation
from xrec.evaluation.beyond import BEYOND_ACCURACY
from xrec.evaluation.categories import category_flow
from xrec.evaluation.exposure import EXPOSURE, exposure_of
from xrec.evaluation.folds import Fold
from xrec.evaluation.intervals import poisson_weights, summarise
from xrec.evaluation.macro import MACRO, judge_categories, macro_names
from xrec.evaluation.metrics import ACCURACY, judge_lists, metric_names, sources_of
from xrec.evaluation.report import FoldRows, describe_figure, describe_metrics, judge
from xrec.evaluation.slices import scope_slice
from xrec.evaluation.stability import judge_stability, stability_of
from xrec.storage.shared import SharedFolder

pytestmark = pytest.mark.spark

FOLD = "test-2024-07-01"
KS = (1, 3, 10, 20)
CANDIDATES = "fold string, source string, scope string, user_idx int, item_idx int, rank int, score double"
TARGETS = (
    "fold string, user_idx int, item_idx int, cross_touched boolean, cross_home boolean, category string, is_new boolean, "
    "lapsed boolean, cold_item boolean, cold_user boolean"
)
SLICES = [scope_slice("touched"), scope_slice("home")]
NUM_ITEMS = 40


def target(user: int, item: int, *, touched: bool, home: bool, cold_item: bool = False, cold_user: bool = False) -> Any:
    """A row of targets: with a cold user, neither touched nor home."""
    return (FOLD, user, item, touched, home, f"c{item % 7}", True, False, cold_item, cold_user)


BUYERS = {item: item**2 % 11 for item in range(0, NUM_ITEMS, 2)}


def naive_metric(metric: str, ranked: Sequence[int], targets: set[int], k: int, popular: Sequence[int]) -> float:
    """One user's metric, written down as the definition reads."""
    hits = [item in targets for item in ranked[:k]]
    if metric == "hr":
        return float(any(hits))
    if metric == "recall":
        return sum(hits) / len(targets)
    if metric == "precision":
        return sum(hits) / k
    if metric == "f1":
        precision, recall = sum(hits) / k, sum(hits) / len(targets)
        return 2 * precision * recall / (precision + recall) if any(hits) else 0.0
    if metric == "mrr":
        return next((1 / rank for rank, hit in enumerate(hits, start=1) if hit), 0.0)
    if metric == "map":
        precisions = [sum(hits[:rank]) / rank for rank, hit in enumerate(hits, start=1) if hit]
        return sum(precisions) / min(k, len(targets))
    if metric == "serendipity":
        return len(set(ranked[:k]) & targets - set(popular[:k])) / k
    if metric == "recall_debiased":
        weights = {item: max(BUYERS.get(item, 1), 1) ** -1.5 for item in targets}
        return sum(weights[item] for item in ranked[:k] if item in targets) / sum(weights.values())
    gains = sum(1 / math.log2(rank + 1) for rank, hit in enumerate(hits, start=1) if hit)
    return gains / sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(targets)) + 1))


def random_case(seed: int, *, num_users: int = 60) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Rows of candidates (empty and short lists, tied scores) and of targets (users without any) of random users."""
    rng = np.random.default_rng(seed)
    candidates, targets = [], []
    for user in range(num_users):
        for source in ("popularity", "als", "served"):
            for scope in ("touched", "home"):
                length = int(rng.choice([0, 1, 2, 7, 15, 25]))
                items = rng.choice(NUM_ITEMS, length, replace=False)
                scores = np.sort(rng.integers(0, 5, length))[::-1]
                ranked = sorted(zip(-scores, items, strict=True))
                candidates += [
                    (FOLD, source, scope, user, int(item), rank, float(-score))
                    for rank, (score, item) in enumerate(ranked, start=1)
                ]
        for item in rng.choice(NUM_ITEMS, int(rng.choice([0, 1, 2, 5, 30])), replace=False):
            touched, home = [(True, True), (True, False), (False, True)][rng.integers(3)]
            targets.append(target(user, int(item), touched=touched, home=home))
    return candidates, targets


def naive_judged(candidates: list[tuple[Any, ...]], targets: list[tuple[Any, ...]]) -> dict[tuple[Any, ...], float]:
    """(source, scope, user, metric, k) to the naive metric, of all users with targets."""
    expected = {}
    for scope, flag in (("touched", 3), ("home", 4)):
        for user in {row[1] for row in targets}:
            mine = {row[2] for row in targets if row[1] == user and row[flag]}
            for source in {row[1] for row in candidates} if mine else ():
                ranked, popular = (
                    [row[4] for row in sorted(candidates, key=lambda row: row[5]) if row[1:4] == (name, scope, user)]
                    for name in (source, "popularity")
                )
                for metric, k in metric_names(KS):
                    expected[source, scope, user, metric, k] = naive_metric(metric, ranked, mine, k, popular)
    return expected


def buyers_of(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(list(BUYERS.items()), "item_idx int, num_buyers int")


def judged_values(judged: DataFrame) -> dict[tuple[Any, ...], float]:
    return {
        (row[C.MODEL], row[C.SLICE], row[C.USER_IDX], *name): value
        for row in judged.collect()
        for name, value in zip(metric_names(KS), row["values"], strict=True)
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_every_metric_equals_its_naive_version(spark: SparkSession, seed: int) -> None:
    candidates, targets = random_case(seed)
    expected = naive_judged(candidates, targets)
    lists, answers = as_lists(spark.createDataFrame(candidates, CANDIDATES)), spark.createDataFrame(targets, TARGETS)
    judged = judge_lists(
        lists, answers, buyers_of(spark), fold=FOLD, sources=sources_of(lists)["touched"], slices=SLICES, ks=KS
    )
    assert judged_values(judged) == pytest.approx(expected, abs=1e-12)
    again = judge_lists(
        lists.repartition(7, F.xxhash64("user_idx", "source")),
        answers.orderBy(F.desc("item_idx")).repartition(3),
        buyers_of(spark),
        fold=FOLD,
        sources=["popularity", "served", "als"],
        slices=SLICES,
        ks=KS,
    )
    assert judged_values(again) == pytest.approx(expected, abs=1e-12)
    means = pd.Series(expected).groupby(level=[0, 1, 3, 4]).mean()
    found = summarise(judged, metric_names(KS), Evaluation(ks=KS, num_bootstrap=10), seed=0, num_compared=2).collect()
    assert len(found) == len(means)
    for row in found:
        key = (row[C.MODEL], row[C.SLICE], row[C.METRIC], row[C.K])
        assert row[C.VALUE] == pytest.approx(means[key], abs=1e-12)
        assert row[C.DIFFERENCE] == pytest.approx(means[key] - means["popularity", *key[1:]], abs=1e-12)
        assert row[C.NUM_USERS] == len({name[2] for name in expected if name[1] == row[C.SLICE]})


def test_the_metrics_equal_those_of_a_public_library(spark: SparkSession) -> None:
    """Lists of 60 users, some short, with the values of RecTools (tests/bench/metrics_rate.py --golden)."""
    golden = json.loads((Path(__file__).parent / "golden" / "rectools_metrics.json").read_text())
    candidates = [(FOLD, "als", "touched", user, item, rank, 0.0) for user, item, rank in golden["lists"]]
    targets = [target(user, item, touched=True, home=False) for user, item in golden["targets"]]
    lists, answers = as_lists(spark.createDataFrame(candidates, CANDIDATES)), spark.createDataFrame(targets, TARGETS)
    ks = (10, 20)
    judged = judge_lists(lists, answers, buyers_of(spark), fold=FOLD, sources=["als"], slices=SLICES, ks=ks)
    means = [F.avg(F.get("values", F.lit(n))).alias(f"{name}@{k}") for n, (name, k) in enumerate(metric_names(ks))]
    ours = judged.agg(*means).first().asDict()
    items = spark.range(golden["num_items"]).selectExpr(
        "cast(id as int) item_idx", "'c' category", "true recommendable"
    )
    shown = exposure_of(lists, items, Evaluation(ks=ks), num_compared=1).where("metric = 'coverage'").collect()
    ours |= {f"coverage@{row[C.K]}": row[C.VALUE] for row in shown}
    names = golden["values"].keys()
    assert {name.split("@")[0] for name in names} == {
        "hr",
        "precision",
        "recall",
        "f1",
        "mrr",
        "map",
        "ndcg",
        "coverage",
    }
    assert {name: ours[name] for name in names} == pytest.approx(golden["values"], abs=1e-12)
    assert golden["values"]["ndcg@10"] > 0.01


def naive_macro(candidates: list[tuple[Any, ...]], targets: list[tuple[Any, ...]], source: str, k: int) -> float:
    """Of the slice touched: mean over categories of the mean over users of the recall within the category."""
    recalls: dict[str, dict[int, list[bool]]] = {}
    shown = {row[3:5] for row in candidates if row[1:3] == (source, "touched") and row[5] <= k}
    for _, user, item, touched, _, category, *_ in targets:
        if touched:
            recalls.setdefault(category, {}).setdefault(user, []).append((user, item) in shown)
    return float(np.mean([np.mean([np.mean(hits) for hits in users.values()]) for users in recalls.values()]))


def test_macro_recall_equals_its_naive_version_and_its_interval_that_of_a_plain_bootstrap(spark: SparkSession) -> None:
    candidates, targets = random_case(7, num_users=200)
    lists, answers = as_lists(spark.createDataFrame(candidates, CANDIDATES)), spark.createDataFrame(targets, TARGETS)
    judged = judge_categories(
        lists, answers, fold=FOLD, sources=["popularity", "als", "served"], slices=SLICES[:1], ks=KS
    )
    settings = Evaluation(ks=KS, num_bootstrap=400)
    rows = summarise(judged, macro_names(KS), settings, seed=0, num_compared=2).collect()
    assert len(rows) == 3 * len(KS)
    for row in rows:
        assert row[C.VALUE] == pytest.approx(naive_macro(candidates, targets, row[C.MODEL], row[C.K]), abs=1e-12)
    row = next(row for row in rows if (row[C.MODEL], row[C.K]) == ("als", 10))
    users, rng, resampled = sorted({target[1] for target in targets}), np.random.default_rng(0), []
    for _ in range(30):
        drawn = rng.choice(users, len(users))
        renamed = [(mine, theirs) for mine, theirs in enumerate(drawn)]
        of_user = {user: [one for one in targets if one[1] == user] for user in users}
        answers_of = [(FOLD, mine, *one[2:]) for mine, theirs in renamed for one in of_user[theirs]]
        lists_of_user = {
            user: [one for one in candidates if one[1] == "als" and one[2] == "touched" and one[3] == user]
            for user in set(drawn)
        }
        lists_of = [(*one[:3], mine, *one[4:]) for mine, theirs in renamed for one in lists_of_user[theirs]]
        resampled.append(naive_macro(lists_of, answers_of, "als", 10))
    assert (row[C.HIGH] - row[C.LOW]) / (2 * 1.96 * np.std(resampled)) == pytest.approx(1, abs=0.4)


@pytest.mark.parametrize(("num_users", "least", "most"), [(1, 0.93, 1.0), (2, 0.9, 0.99)])
def test_intervals_of_macro_recall_hold_where_categories_have_few_buyers(
    spark: SparkSession, num_users: int, least: float, most: float
) -> None:
    """Each source is a trial: the users of a category hit with its own chance, and the interval holds the mean chance or not."""
    rng, num_categories, trials = np.random.default_rng(3), 40, [f"trial{n}" for n in range(150)]
    chances = rng.uniform(0.1, 0.9, num_categories)
    users = [(number, category) for number, category in enumerate(np.repeat(np.arange(num_categories), num_users))]
    targets = [(FOLD, user, 5, True, True, f"c{category}", False, False, False, False) for user, category in users]
    hits = rng.random((len(trials), len(users))) < chances[[category for _, category in users]]
    lists = [(FOLD, trials[trial], "touched", int(user), 5, 1, 1.0) for trial, user in np.argwhere(hits)]
    judged = judge_categories(
        as_lists(spark.createDataFrame(lists, CANDIDATES)),
        spark.createDataFrame(targets, TARGETS),
        fold=FOLD,
        sources=trials,
        slices=SLICES[:1],
        ks=(10,),
    )
    value = F.get("values", F.lit(0))
    found = judged.groupBy(C.MODEL).agg(F.avg(value).alias("mean"), F.stddev(value).alias("spread")).collect()
    width = 1.96 * np.array([row["spread"] for row in found]) / np.sqrt(len(users))
    assert (width > 0).all()
    error = np.array([row["mean"] for row in found]) - chances.mean()
    assert np.mean([row["mean"] for row in found]) == pytest.approx(hits.mean(), abs=1e-9)
    assert least <= np.mean(np.abs(error) <= width) <= most


def test_slices_part_the_targets_and_cold_users_have_popularity(spark: SparkSession, tmp_path: Path) -> None:
    candidates, targets = random_case(8)
    warm = [(*one[:8], one[2] % 3 == 0, False) for one in targets]
    cold = [target(100, item, touched=False, home=False, cold_user=True) for item in (2, 4, 39)]
    rows = fold_rows(spark, "test", candidates, warm + cold)
    metrics = judge([rows], Evaluation(ks=(10,), num_bootstrap=5), SharedFolder(str(tmp_path)), seed=0)
    found = {(row[C.MODEL], row[C.SLICE]): row for row in metrics.where("metric = 'recall'").collect()}
    assert {name for _, name in found} == {"touched", "home", "touched_cold_items", "home_cold_items", "cold_users"}
    for name, flag in (("touched", 3), ("home", 4)):
        assert found["als", name][C.NUM_USERS] == len({one[1] for one in warm if one[flag]})
        assert found["als", f"{name}_cold_items"][C.NUM_USERS] == len({one[1] for one in warm if one[flag] and one[8]})
    best = sorted(BUYERS, key=lambda item: (-BUYERS[item], item))[:10]
    recall = len(set(best) & {2, 4, 39}) / 3
    values = {model: found[model, "cold_users"][C.VALUE] for model in ("popularity", "served", "als")}
    assert values == {"popularity": pytest.approx(recall), "served": 0.0, "als": 0.0}


def test_folds_are_pooled_by_user(spark: SparkSession, tmp_path: Path) -> None:
    cases = [random_case(seed, num_users=30) for seed in (9, 10)]
    folds = []
    for number, (candidates, targets) in enumerate(cases):
        name = f"test-{number}"
        rows = fold_rows(spark, "test", [(name, *one[1:]) for one in candidates], [(name, *one[1:]) for one in targets])
        folds.append(replace(rows, fold=replace(rows.fold, name=name)))
    metrics = judge(folds, Evaluation(ks=(10,), num_bootstrap=5), SharedFolder(str(tmp_path)), seed=0)
    rows = metrics.where("metric = 'ndcg' and slice = 'touched' and model = 'als'").collect()
    of_fold = {row[C.FOLD]: row for row in rows}
    assert set(of_fold) == {"test-0", "test-1", "pooled"}
    users = {name: row[C.NUM_USERS] for name, row in of_fold.items()}
    assert users["pooled"] == users["test-0"] + users["test-1"]
    mean = sum(of_fold[f"test-{n}"][C.VALUE] * users[f"test-{n}"] for n in (0, 1)) / users["pooled"]
    assert of_fold["pooled"][C.VALUE] == pytest.approx(mean)


def test_stability_is_the_share_of_common_items_of_users_with_both_lists(spark: SparkSession) -> None:
    schema = "user_idx int, item_id string, rank int"
    now = {0: "abcd", 1: "abcd", 2: "ab", 3: "abcd"}
    before = {0: "abcd", 1: "wabx", 2: "xyab", 4: "abcd"}
    frames = [
        spark.createDataFrame([(u, i, r) for u, items in lists.items() for r, i in enumerate(items, 1)], schema)
        for lists in (now, before)
    ]
    found = {row[C.USER_IDX]: row["values"] for row in judge_stability(*frames, ks=(2, 10)).collect()}
    assert found == {0: [1.0, 1.0], 1: [0.5, 0.5], 2: [0.0, 0.5]}
    settings = Evaluation(ks=(2,), num_bootstrap=5)
    row = stability_of(*frames, settings, fold=FOLD, model="served", scope="touched", seed=0).first()
    assert (row[C.METRIC], row[C.VALUE], row[C.NUM_USERS], row[C.DIFFERENCE]) == ("stability", 0.5, 3, None)


def test_a_perfect_list_scores_1_and_a_wrong_one_0(spark: SparkSession) -> None:
    wanted = {0: [5, 6, 7], 1: [1], 2: list(range(10, 22))}
    targets = [target(user, item, touched=True, home=True) for user, items in wanted.items() for item in items]
    perfect = [
        (FOLD, "als", "touched", u, item, n, 1.0) for u, items in wanted.items() for n, item in enumerate(items, 1)
    ]
    wrong = [(FOLD, "popularity", "touched", user, 39, 1, 1.0) for user in wanted]
    lists, answers = (
        as_lists(spark.createDataFrame(perfect + wrong, CANDIDATES)),
        spark.createDataFrame(targets, TARGETS),
    )
    values = judged_values(
        judge_lists(lists, answers, buyers_of(spark), fold=FOLD, sources=["als", "popularity"], slices=SLICES, ks=KS)
    )
    touched = {key: value for key, value in values.items() if key[1] == "touched"}
    assert {value for key, value in touched.items() if key[0] == "als" and key[3] in {"ndcg", "hr"}} == {1.0}
    assert all(touched["als", "touched", user, "recall", 20] == 1.0 for user in wanted)
    assert touched["als", "touched", 0, "precision", 10] == pytest.approx(0.3)
    assert {value for key, value in values.items() if key[0] == "popularity" or key[1] == "home"} == {0.0}


def test_metrics_fall_when_a_hit_moves_down(spark: SparkSession) -> None:
    rows = [(FOLD, "als", "touched", user, item, item + 1, 1.0) for user in range(20) for item in range(20)]
    targets = [target(user, user, touched=True, home=False) for user in range(20)]
    lists, answers = as_lists(spark.createDataFrame(rows, CANDIDATES)), spark.createDataFrame(targets, TARGETS)
    values = judged_values(
        judge_lists(lists, answers, buyers_of(spark), fold=FOLD, sources=["als"], slices=SLICES, ks=KS)
    )
    ndcg = [values["als", "touched", user, "ndcg", 20] for user in range(20)]
    assert ndcg == sorted(ndcg, reverse=True)
    assert len(set(ndcg)) == 20


def items_of(spark: SparkSession) -> DataFrame:
    """Rows of ``items``: seven categories below three departments, one of them twice as deep, and five that are not sold."""
    path = "if(id % 7 = 6, array('d', 'e', 'c6'), array(concat('d', id % 7 div 3), concat('c', id % 7)))"
    return spark.range(NUM_ITEMS + 5).selectExpr(
        "cast(id as int) item_idx",
        "concat('c', id % 7) category",
        f"{path} category_path",
        f"id < {NUM_ITEMS} recommendable",
    )


# --- intervals ---------------------------------------------------------------------------------------------------------


def test_weights_are_poisson_and_a_function_of_seed_user_and_replicate_alone() -> None:
    users = np.arange(-3, 2000, dtype=np.int32)
    weights = poisson_weights(users, 400, seed=0)
    assert (weights[:, 0] == 1).all()
    drawn = weights[:, 1:]
    observed = np.bincount(drawn.astype(int).ravel(), minlength=8)
    expected = stats.poisson.pmf(np.arange(7), 1) * drawn.size
    assert stats.chisquare([*observed[:7], observed[7:].sum()], [*expected, drawn.size - expected.sum()]).pvalue > 1e-3
    # Neither users nor replicates are correlated: the largest of many correlations stays near its expected size.
    for matrix in (drawn[:200], drawn[:, :200].T[:, :400]):
        correlations = np.corrcoef(matrix) - np.eye(200)
        assert np.abs(correlations).max() < 6 / math.sqrt(matrix.shape[1])
    order = np.random.default_rng(0).permutation(len(users))
    np.testing.assert_array_equal(poisson_weights(users[order], 400, seed=0), weights[order])
    np.testing.assert_array_equal(poisson_weights(users[:5], 10, seed=0), weights[:5, :11])
    assert (poisson_weights(users, 400, seed=1) != weights).mean() > 0.4


def users_of(spark: SparkSession, values: dict[str, np.ndarray]) -> DataFrame:
    """Rows of ``judge_lists`` with the given value of every metric for each user of a model."""
    frames = [
        pd.DataFrame({"model": model, "user_idx": np.arange(len(column), dtype=np.int32), "value": column})
        for model, column in values.items()
    ]
    return spark.createDataFrame(pd.concat(frames)).select(
        F.lit(FOLD).alias(C.FOLD),
        C.MODEL,
        F.lit("touched").alias(C.SLICE),
        C.USER_IDX,
        F.array(*[F.col("value")] * len(ACCURACY)).alias("values"),
    )


def intervals(
    judged: DataFrame, *, seed: int = 0, num_bootstrap: int = 500, confidence: float = 0.95, num_compared: int = 1
) -> Any:
    """Model to its row of metric ndcg@10."""
    settings = Evaluation(ks=(10,), num_bootstrap=num_bootstrap, confidence=confidence)
    rows = (
        summarise(judged, metric_names((10,)), settings, seed, num_compared=num_compared)
        .where("metric = 'ndcg'")
        .collect()
    )
    return {row[C.MODEL]: row for row in rows}


def correlated_models(num_users: int = 1500) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    easy = rng.beta(0.5, 2, num_users)
    return {"popularity": easy, "als": np.clip(easy + rng.normal(0.01, 0.05, num_users), 0, 1)}


def test_the_interval_equals_a_naive_bootstrap_and_the_normal_approximation(spark: SparkSession) -> None:
    values = correlated_models()
    row = intervals(users_of(spark, values))["als"]
    weights = poisson_weights(np.arange(1500), 500, seed=0)[:, 1:]
    means = {model: (weights * column[:, None]).sum(axis=0) / weights.sum(axis=0) for model, column in values.items()}
    bounds = [2.5, 97.5]
    np.testing.assert_allclose([row[C.LOW], row[C.HIGH]], np.percentile(means["als"], bounds), rtol=1e-9)
    differences = np.percentile(means["als"] - means["popularity"], bounds)
    np.testing.assert_allclose([row[C.DIFFERENCE_LOW], row[C.DIFFERENCE_HIGH]], differences, rtol=1e-9)
    for low, high, column in (
        (row[C.LOW], row[C.HIGH], values["als"]),
        (row[C.DIFFERENCE_LOW], row[C.DIFFERENCE_HIGH], values["als"] - values["popularity"]),
    ):
        error = column.std() / math.sqrt(len(column))
        assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.12)
        assert (low + high) / 2 == pytest.approx(column.mean(), abs=0.4 * error)


def test_the_interval_does_not_depend_on_order_or_partitions_but_on_the_seed(spark: SparkSession) -> None:
    judged = users_of(spark, correlated_models())
    once = intervals(judged)["als"].asDict()
    again = intervals(judged.orderBy(F.desc("user_idx")).repartition(5))["als"].asDict()
    for name, value in once.items():
        assert again[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value)
    assert intervals(judged, seed=1)["als"][C.LOW] != once[C.LOW]


def test_pairing_narrows_the_interval_of_the_difference(spark: SparkSession) -> None:
    rows = intervals(users_of(spark, correlated_models()))
    paired = rows["als"][C.DIFFERENCE_HIGH] - rows["als"][C.DIFFERENCE_LOW]
    unpaired = math.hypot(*[rows[model][C.HIGH] - rows[model][C.LOW] for model in ("als", "popularity")])
    assert paired < 0.4 * unpaired
    assert rows["als"][C.DIFFERENCE_LOW] > 0, "a small, steady gain is seen only by pairing"
    assert rows["popularity"][C.DIFFERENCE_LOW] == rows["popularity"][C.DIFFERENCE_HIGH] == 0


def test_of_many_models_the_adjusted_interval_is_that_of_a_higher_confidence(spark: SparkSession) -> None:
    judged = users_of(spark, correlated_models())
    five, strict = intervals(judged, num_compared=5)["als"], intervals(judged, confidence=0.99)["als"]
    for adjusted, plain in ((C.ADJUSTED_LOW, C.DIFFERENCE_LOW), (C.ADJUSTED_HIGH, C.DIFFERENCE_HIGH)):
        assert five[adjusted] == pytest.approx(strict[plain], rel=1e-9)
    alone = intervals(judged)["als"]
    assert (alone[C.ADJUSTED_LOW], alone[C.ADJUSTED_HIGH]) == (alone[C.DIFFERENCE_LOW], alone[C.DIFFERENCE_HIGH])
    assert five[C.ADJUSTED_LOW] < five[C.DIFFERENCE_LOW]


def test_a_higher_confidence_gives_a_wider_interval(spark: SparkSession) -> None:
    judged = users_of(spark, correlated_models())
    widths = [row[C.HIGH] - row[C.LOW] for row in (intervals(judged, confidence=c)["als"] for c in (0.5, 0.8, 0.99))]
    assert widths == sorted(widths)


def test_the_interval_covers_the_truth_in_95_of_100_worlds(spark: SparkSession) -> None:
    # 600 worlds of 150 users whose figure is mostly zero; what the model finds is in six of ten cases what popularity finds.
    rng, folds, shape = np.random.default_rng(11), 8, (150, 75)
    truth = {"popularity": 0.4 * 0.4, "als": 0.4 * 0.4 * 0.6 + 0.5 * 0.4 * 0.4}
    frames = []
    for fold in range(folds):
        values = {
            m: (rng.random(shape) < hits) * rng.beta(2, 3, shape) for m, hits in (("popularity", 0.4), ("als", 0.5))
        }
        values["als"] = np.where(rng.random(shape) < 0.6, values["popularity"], values["als"])
        users = np.arange(shape[0], dtype=np.int32) + fold * shape[0]
        frames += [
            pd.DataFrame({C.FOLD: str(fold), C.MODEL: m, C.SLICE: "touched", C.USER_IDX: users, "values": list(matrix)})
            for m, matrix in values.items()
        ]
    judged = spark.createDataFrame(
        pd.concat(frames), "fold string, model string, slice string, user_idx int, values array<double>"
    )
    names = [("world", number) for number in range(shape[1])]
    found = summarise(judged, names, Evaluation(num_bootstrap=200), 3, num_compared=1).toPandas()
    als = found[found[C.MODEL] == "als"]
    difference = truth["als"] - truth["popularity"]
    for low, high, true in (
        (als[C.LOW], als[C.HIGH], truth["als"]),
        (als[C.DIFFERENCE_LOW], als[C.DIFFERENCE_HIGH], difference),
    ):
        num_missed = int(((low > true) | (high < true)).sum())
        assert stats.binomtest(num_missed, folds * shape[1], 0.055).pvalue > 1e-3, num_missed


def test_one_user_and_no_popularity_are_no_error(spark: SparkSession) -> None:
    row = intervals(users_of(spark, {"als": np.array([0.25])}))["als"]
    assert (row[C.LOW], row[C.VALUE], row[C.HIGH], row[C.NUM_USERS]) == (0.25, 0.25, 0.25, 1)
    assert row[C.DIFFERENCE] is None


# --- a run's figures ---------------------------------------------------------------------------------------------------


def fold_of(purpose: Any) -> Fold:
    as_of = datetime(2024, 7, 1, tzinfo=timezone.utc)
    return Fold(name=FOLD, purpose=purpose, as_of=as_of, horizon=timedelta(days=30))


def fold_rows(spark: SparkSession, purpose: str, candidates: list[Any], targets: list[Any]) -> FoldRows:
    mixes = [row for user in range(60) for row in ((user, f"c{user % 2}", 0.7), (user, "c4", 0.3))]
    return FoldRows(
        fold=fold_of(purpose),
        models=("popularity", "als", "served"),
        scopes=("touched", "home"),
        candidates=as_lists(spark.createDataFrame(candidates, CANDIDATES)),
        targets=spark.createDataFrame(targets, TARGETS),
        items=items_of(spark),
        user_categories=spark.createDataFrame(mixes, "user_idx int, category string, weight double"),
        buyers=buyers_of(spark),
    )


def test_the_flow_between_categories_counts_what_was_shown_wanted_and_hit(spark: SparkSession) -> None:
    candidates, targets = random_case(6)
    shown, wanted = Counter(), Counter()
    hits: Counter[tuple[str, ...]] = Counter()
    pairs = {(source, scope, user, item) for _, source, scope, user, item, rank, _ in candidates if rank <= 3}
    for source, scope, user, item in pairs:
        shown[source, scope, f"c{user % 2}", f"c{item % 7}"] += 1
    for source in ("popularity", "als", "served"):
        for _, user, item, touched, home, *_ in targets:
            for scope in ("touched",) * touched + ("home",) * home:
                key = (source, scope, f"c{user % 2}", f"c{item % 7}")
                wanted[key] += 1
                hits[key] += (source, scope, user, item) in pairs
    flow = category_flow(fold_rows(spark, "test", candidates, targets), k=3, run_id="run").collect()
    keys = [(row[C.MODEL], row[C.SLICE], row[C.MAIN_CATEGORY], row[C.CATEGORY]) for row in flow]
    assert len(keys) == len(set(keys))
    assert set(keys) == {*shown, *wanted}
    for key, row in zip(keys, flow, strict=True):
        assert (row["num_shown"], row["num_targets"], row["num_hits"]) == (shown[key], wanted[key], hits[key])


def judged_run(spark: SparkSession, place: Path, purpose: str) -> tuple[DataFrame, dict[str, str]]:
    candidates, targets = random_case(4)
    settings = Evaluation(ks=(10, 20), num_bootstrap=50)
    rows = fold_rows(spark, purpose, candidates, targets)
    metrics = judge([rows], settings, SharedFolder(str(place)), seed=0).cache()
    return metrics, describe_metrics(metrics, fold_of(purpose), settings)


def test_a_backtest_reports_every_source_and_metric_once(spark: SparkSession, tmp_path: Path) -> None:
    metrics, figures = judged_run(spark, tmp_path, "test")
    keys = [(row[C.MODEL], row[C.SLICE], row[C.METRIC], row[C.K]) for row in metrics.collect()]
    assert (
        len(keys) == len(set(keys)) == 3 * 2 * 2 * (len(ACCURACY) + len(MACRO) + len(BEYOND_ACCURACY) + len(EXPOSURE))
    )
    assert next(iter(figures)) == "users touched"
    assert "vs popularity" in figures["ndcg@10 touched served"]
    assert "vs popularity" not in figures["ndcg@10 touched popularity"]
    assert set(figures) >= {
        f"coverage@10 {scope} {model}" for scope in ("touched", "home") for model in ("als", "served")
    }


def test_a_model_is_judged_only_where_it_has_lists(spark: SparkSession, tmp_path: Path) -> None:
    candidates, targets = random_case(4)
    kept = [row for row in candidates if row[1:3] != ("served", "home")]
    rows = fold_rows(spark, "test", kept, targets)
    metrics = judge([rows], Evaluation(ks=(10,), num_bootstrap=5), SharedFolder(str(tmp_path)), seed=0).collect()
    judged = {(row[C.MODEL], row[C.SLICE]) for row in metrics}
    assert {slice_name for model, slice_name in judged if model == "served"} == {"touched"}
    assert {("als", "touched"), ("als", "home"), ("popularity", "home")} <= judged
    flow = category_flow(rows, k=3, run_id="run").collect()
    assert {row[C.SLICE] for row in flow if row[C.MODEL] == "served"} == {"touched"}


def test_a_serving_fold_reports_coverage_and_when_it_can_be_judged(spark: SparkSession, tmp_path: Path) -> None:
    metrics, figures = judged_run(spark, tmp_path, "serve")
    assert {row[C.METRIC] for row in metrics.collect()} == {*EXPOSURE, *BEYOND_ACCURACY}
    assert figures["accuracy"] == (
        f"fold '{FOLD}' serves: its lists can be judged when the horizon (30 days, 0:00:00) has passed; "
        "until then their coverage alone is known"
    )
    assert all(name == "accuracy" or name.startswith("coverage@10") for name in figures)


def test_a_figure_reads_as_a_person_wants_it(spark: SparkSession) -> None:
    columns = ("model", "value", "low", "high", "difference", "difference_low", "difference_high", "adjusted_low")
    columns += ("adjusted_high",)
    schema = ", ".join(f"{name} {'string' if name == 'model' else 'double'}" for name in columns)
    rows = [
        ("served", 0.0581, 0.0551, 0.0612, 0.0064, 0.0032, 0.0093, 0.0021, 0.0101),
        ("gru", 0.0581, 0.0551, 0.0612, 0.0064, 0.0032, 0.0093, -0.0001, 0.0101),
        ("popularity", 0.0517, 0.05, 0.0533, 0.0, 0.0, 0.0, 0.0, 0.0),
        ("als", 0.25, 0.2, 0.3, 0.25, 0.2, 0.3, 0.1, 0.3),
        ("als", 0.1, None, None, None, None, None, None, None),
    ]
    assert [describe_figure(row) for row in spark.createDataFrame(rows, schema).collect()] == [
        "0.0581 [0.0551, 0.0612] +12.4 % [+6.2, +18.0] vs popularity",
        "0.0581 [0.0551, 0.0612] +12.4 % [+6.2, +18.0] vs popularity (not significant)",
        "0.0517 [0.0500, 0.0533]",
        "0.2500 [0.2000, 0.3000] (popularity hits nothing)",
        "0.1000",
    ]


def test_no_candidates_is_an_error_that_says_what_to_run(spark: SparkSession, tmp_path: Path) -> None:
    rows = fold_rows(spark, "test", [], [])
    with pytest.raises(ValueError, match="found no row of fold 'test-2024-07-01'") as error:
        judge([rows], Evaluation(), SharedFolder(str(tmp_path)), seed=0)
    assert "--only candidates" in str(error.value)
