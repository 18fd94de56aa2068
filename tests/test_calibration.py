"""Probabilities: fitted on lists that knew nothing later, and judged in bins against a naive version."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ranked import RANKED, as_lists
from xrec import columns as C
from xrec.config import Evaluation
from xrec.evaluation.folds import Fold
from xrec.evaluation.reliability import NUM_BINS, ece_of, reliability_of
from xrec.evaluation.report import FoldRows
from xrec.lists import ranked_rows
from xrec.ranking.calibration import Calibration, fit_calibrations, with_probabilities
from xrec.schemas import TABLES

pytestmark = pytest.mark.spark

FOLD = Fold(
    name="test-1",
    purpose="test",
    as_of=datetime(2024, 1, 1, tzinfo=timezone.utc),
    horizon=timedelta(days=30),
)
NUM_USERS, LENGTH = 400, 10


def world(spark: SparkSession, slope: float, intercept: float, seed: int = 3) -> tuple[DataFrame, DataFrame]:
    """Lists of trees with normal scores z, and targets bought with probability 1 / (1 + exp(-(slope z + intercept)))."""
    drawn = np.random.default_rng(seed)
    z = drawn.normal(size=(NUM_USERS, LENGTH))
    bought = drawn.random(z.shape) < 1 / (1 + np.exp(-(slope * z + intercept)))
    lists = [
        (FOLD.name, "trees", "touched", user, item, float(z[user, item]), item + 1)
        for user in range(NUM_USERS)
        for item in range(LENGTH)
    ]
    # What was bought outside the scope says nothing of its lists.
    targets = [(FOLD.name, int(u), int(i), "c", True, True, True, False, False, False) for u, i in np.argwhere(bought)]
    targets += [
        (FOLD.name, int(u), int(i), "c", False, True, True, False, False, False) for u, i in np.argwhere(~bought)
    ]
    return (
        as_lists(spark.createDataFrame(lists, RANKED)),
        spark.createDataFrame(targets, TABLES["targets"].columns),
    )


def rows_of(spark: SparkSession, candidates: DataFrame, targets: DataFrame) -> FoldRows:
    none: Any = spark.createDataFrame([], "item_idx int")
    return FoldRows(
        fold=FOLD,
        models=("popularity", "trees"),
        scopes=("touched",),
        candidates=candidates,
        targets=targets,
        items=none,
        user_categories=none,
        buyers=none,
    )


def test_a_calibration_finds_what_made_the_purchases(spark: SparkSession) -> None:
    lists, targets = world(spark, 0.5, -1.5)
    found = fit_calibrations(lists, targets, ["trees", "logistic"], scope="touched")
    assert set(found) == {"trees"}, "a model without lists has none"
    assert found["trees"].slope == pytest.approx(0.5, abs=0.15)
    assert found["trees"].intercept == pytest.approx(-1.5, abs=0.15)
    scored = with_probabilities(lists, found)
    assert scored.dtypes == lists.dtypes
    one = ranked_rows(scored).where("user_idx = 0 and item_idx = 0").first()
    z = ranked_rows(lists).where("user_idx = 0 and item_idx = 0").first()
    assert one is not None
    assert z is not None
    expected = 1 / (1 + math.exp(-(found["trees"].slope * z[C.SCORE] + found["trees"].intercept)))
    assert one[C.SCORE] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("slope", [0.0, -2.0])
def test_lists_that_foretell_nothing_keep_their_order_and_get_the_mean(spark: SparkSession, slope: float) -> None:
    lists, targets = world(spark, slope, -1.0)
    found = fit_calibrations(lists, targets, ["trees"], scope="touched")["trees"]
    assert found.slope >= 0.05
    mean = ranked_rows(with_probabilities(lists, {"trees": found})).agg(F.avg(C.SCORE)).first()
    assert mean is not None
    assert mean[0] == pytest.approx(targets.where("cross_touched").count() / (NUM_USERS * LENGTH), abs=0.02)


def test_nothing_is_fitted_where_nothing_was_hit_and_sampling_is_undone(spark: SparkSession) -> None:
    lists, targets = world(spark, 1.0, -1.0)
    assert fit_calibrations(lists, targets.where("not cross_touched"), ["trees"], scope="touched") == {}
    undone = Calibration.of_sampling(0.25)
    # Of 1 bought and 9 not bought, of which a quarter was learned from: odds 1 / 2.25 become 1 / 9.
    probability = spark.range(1).select(undone.of(F.lit(math.log(1 / 2.25)))).first()
    assert probability is not None
    assert probability[0] == pytest.approx(0.1)


def test_bins_equal_a_naive_version(spark: SparkSession) -> None:
    lists, targets = world(spark, 1.0, -1.0)
    candidates = with_probabilities(lists, {"trees": Calibration(slope=1.0, intercept=-1.0)})
    others = F.transform(C.ITEMS, lambda item: item + 50)
    longer = candidates.withColumns({C.ITEMS: F.concat(C.ITEMS, others), C.SCORES: F.concat(C.SCORES, C.SCORES)})
    settings = Evaluation(ks=(10,))
    judged = rows_of(spark, longer, targets)
    bins = reliability_of(judged, ["trees", "ensemble"], "touched", settings)
    found = sorted(bins.collect(), key=lambda row: row[C.BIN])
    assert [row[C.BIN] for row in found] == list(range(1, NUM_BINS + 1))
    assert sum(row[C.NUM_ROWS] for row in found) == NUM_USERS * LENGTH, "what is further down a list is not judged"

    wanted = {(row[C.USER_IDX], row[C.ITEM_IDX]) for row in targets.where("cross_touched").collect()}
    rows = [(row[C.SCORE], row[C.USER_IDX], row[C.ITEM_IDX]) for row in ranked_rows(candidates).collect()]
    rows.sort()
    start, ece = 0, 0.0
    for row in found:
        part = rows[start : start + row[C.NUM_ROWS]]
        start += row[C.NUM_ROWS]
        assert len(part) == pytest.approx(len(rows) / NUM_BINS, rel=0.05)
        hits = [(user, item) in wanted for _, user, item in part]
        assert row[C.PREDICTED] == pytest.approx(np.mean([score for score, *_ in part]))
        assert row[C.OBSERVED] == pytest.approx(np.mean(hits))
        assert row[C.NUM_USERS] == len({user for _, user, _ in part})
        assert 0 <= row[C.LOW] < row[C.OBSERVED] < row[C.HIGH] <= 1
        assert row[C.LOW] - 0.03 < row[C.PREDICTED] < row[C.HIGH] + 0.03, "the scores are the truth here"
        ece += abs(row[C.OBSERVED] - row[C.PREDICTED]) * len(part) / len(rows)
    (figure,) = ece_of(bins, settings).collect()
    assert (figure[C.MODEL], figure[C.SLICE], figure[C.METRIC], figure[C.K]) == ("trees", "touched", "ece", 10)
    assert figure[C.VALUE] == pytest.approx(ece)
    assert figure[C.VALUE] < 0.05


def test_scores_that_are_all_alike_are_one_bin_whose_interval_is_wider_for_few_users(spark: SparkSession) -> None:
    lists, targets = world(spark, 0.0, -1.0)
    crowd = lists.withColumn(C.SCORES, F.transform(C.SCORES, lambda _: F.lit(0.3).cast("float")))
    alike = rows_of(spark, crowd, targets)
    (one,) = reliability_of(alike, ["trees"], "touched", Evaluation(ks=(10,))).collect()
    assert one[C.NUM_ROWS] == NUM_USERS * LENGTH
    # The same rows as those of a tenth of the users, each of whom buys all or nothing, say less.
    all_or_nothing = (
        targets.where("not cross_touched")
        .limit(0)
        .unionByName(
            ranked_rows(lists.where(F.col(C.USER_IDX) % 4 == 0)).select(
                C.FOLD,
                C.USER_IDX,
                C.ITEM_IDX,
                F.lit("c").alias(C.CATEGORY),
                *[F.lit(name in {C.IS_NEW, C.CROSS_TOUCHED, C.CROSS_HOME}).alias(name) for name in targets.columns[4:]],
            )
        )
    )
    (clustered,) = reliability_of(
        rows_of(spark, crowd, all_or_nothing), ["trees"], "touched", Evaluation(ks=(10,))
    ).collect()
    assert clustered[C.OBSERVED] == pytest.approx(0.25)
    assert clustered[C.HIGH] - clustered[C.LOW] > 2.5 * (one[C.HIGH] - one[C.LOW])
