"""The reach of the candidates: against a naive version, and what it is for each source alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from ranked import as_lists
from test_metrics import CANDIDATES, FOLD, TARGETS, fold_of, fold_rows, random_case, target
from xrec import columns as C
from xrec.config import Evaluation
from xrec.evaluation.reach import REACH, UNION, judge_reach
from xrec.evaluation.report import POOLED, describe_metrics, judge
from xrec.storage.shared import SharedFolder

pytestmark = pytest.mark.spark

SOURCES = ("als", "popularity")
"""Not served: it proposes nothing of its own."""


def naive_reach(candidates: list[Any], targets: list[Any], k: int) -> dict[tuple[str, int], tuple[float, float]]:
    """(model, user) to reach and reach_alone, in the scope touched."""
    wanted, lists = defaultdict(set), defaultdict(set)
    for _, user, item, touched, *_ in targets:
        if touched:
            wanted[user].add(item)
    for _, source, scope, user, item, rank, _ in candidates:
        if scope == "touched" and source in SOURCES and rank <= k:
            lists[source, user].add(item)
    expected = {}
    for user, items in wanted.items():
        by_item = {item: [source for source in SOURCES if item in lists[source, user]] for item in items}
        for model in (*SOURCES, UNION):
            reached = [item for item, by in by_item.items() if by and model in (*by, UNION)]
            alone = [item for item in reached if len(by_item[item]) == 1]
            expected[model, user] = (len(reached) / len(items), len(alone) / len(items))
    return expected


@pytest.mark.parametrize("k", [25, 5])
def test_the_reach_equals_a_naive_version(spark: SparkSession, k: int) -> None:
    candidates, targets = random_case(3)
    found = judge_reach(
        as_lists(spark.createDataFrame(candidates, CANDIDATES)),
        spark.createDataFrame(targets, TARGETS),
        sources=SOURCES,
        scope="touched",
        k=k,
    ).collect()
    expected = naive_reach(candidates, targets, k)
    assert {(row[C.FOLD], row[C.SLICE]) for row in found} == {(FOLD, "touched")}
    assert {(row[C.MODEL], row[C.USER_IDX]) for row in found} == set(expected)
    assert len(found) == len(expected)
    for row in found:
        assert row["values"] == pytest.approx(list(expected[row[C.MODEL], row[C.USER_IDX]]))
    assert 0 < np.mean([reach for reach, _ in expected.values()]) < 1


def test_the_union_loses_what_a_source_alone_proposes(spark: SparkSession) -> None:
    candidates, targets = random_case(5)

    def mean_reach(sources: tuple[str, ...]) -> dict[str, np.ndarray]:
        rows = judge_reach(
            as_lists(spark.createDataFrame(candidates, CANDIDATES)),
            spark.createDataFrame(targets, TARGETS),
            sources=sources,
            scope="touched",
            k=25,
        ).collect()
        return {
            model: np.mean([row["values"] for row in rows if row[C.MODEL] == model], axis=0)
            for model in (*sources, UNION)
        }

    both = mean_reach(SOURCES)
    for n, source in enumerate(SOURCES):
        without = mean_reach(SOURCES[:n] + SOURCES[n + 1 :])
        assert both[UNION][0] - without[UNION][0] == pytest.approx(both[source][1])
    assert both[UNION][1] == pytest.approx(sum(both[source][1] for source in SOURCES))


def test_the_figures_of_a_run_tell_the_reach_of_the_scope_that_serves(spark: SparkSession, tmp_path: Path) -> None:
    candidates, targets = random_case(4)
    rows = replace(fold_rows(spark, "test", candidates, targets), proposing=SOURCES, num_candidates=25)
    settings = Evaluation(ks=(10,), num_bootstrap=50)
    metrics = judge([rows], settings, SharedFolder(str(tmp_path)), seed=0)
    found = {row[C.MODEL]: row for row in metrics.where("metric = 'reach'").collect()}
    expected = naive_reach(candidates, targets, 25)
    assert set(found) == {*SOURCES, UNION}
    for model, row in found.items():
        mean = np.mean([reach for (name, _), (reach, _) in expected.items() if name == model])
        assert (row[C.SLICE], row[C.K], row[C.VALUE]) == ("touched", 25, pytest.approx(mean))
        assert row[C.LOW] < row[C.VALUE] < row[C.HIGH]
    assert found[UNION][C.DIFFERENCE] == pytest.approx(found[UNION][C.VALUE] - found["popularity"][C.VALUE])
    best = max(SOURCES, key=lambda source: found[source][C.VALUE])
    text = describe_metrics(metrics, fold_of("test"), settings)[f"{REACH}@25 touched {UNION}"]
    assert text.startswith(f"{found[UNION][C.VALUE]:.4f} [")
    assert f"best single source {best} {found[best][C.VALUE]:.4f}" in text


def test_several_folds_are_pooled_and_a_serving_fold_has_none(spark: SparkSession, tmp_path: Path) -> None:
    targets = [target(1, 5, touched=True, home=True), target(1, 6, touched=True, home=True)]
    lists = [(FOLD, source, "touched", 1, item, 1, 1.0) for source, item in (("als", 5), ("popularity", 7))]
    rows = replace(fold_rows(spark, "test", lists, targets), proposing=SOURCES, num_candidates=25)
    other = replace(
        rows, fold=replace(rows.fold, name="test-2"), targets=rows.targets.selectExpr("'test-2' fold", *TAIL)
    )
    settings = Evaluation(ks=(10,), num_bootstrap=5)
    metrics = judge([rows, other], settings, SharedFolder(str(tmp_path)), seed=0).where("metric like 'reach%'")
    found = {(row[C.FOLD], row[C.MODEL], row[C.METRIC]): row[C.VALUE] for row in metrics.collect()}
    assert {fold for fold, *_ in found} == {FOLD, "test-2", POOLED}
    assert found[POOLED, UNION, REACH] == found[FOLD, "als", REACH] == found[FOLD, "als", "reach_alone"] == 0.5
    assert found[FOLD, "popularity", REACH] == 0.0
    serving = replace(rows, fold=fold_of("serve"))
    assert judge([serving], settings, SharedFolder(str(tmp_path)), seed=0).where("metric like 'reach%'").isEmpty()


TAIL = [column.split()[0] for column in TARGETS.split(", ")[1:]]
