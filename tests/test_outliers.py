"""Outliers: found against the item's or its category's own values, drawn in for features, and never dropped."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession

from xrec.config import Categories, Outliers, Weights
from xrec.evaluation.folds import Fold
from xrec.features.interactions import interactions_of, weigh
from xrec.features.outliers import require_limits, value_limits_of, winsorise

pytestmark = pytest.mark.spark

AS_OF = datetime(2024, 3, 1, tzinfo=timezone.utc)
FOLD = Fold(name="test-2024-03-01", purpose="test", as_of=AS_OF, horizon=timedelta(days=30))
DDL = (
    "fold string, as_of_ts timestamp, event_id string, user_idx int, item_idx int, event_type string, event_ts timestamp, "
    "category string, quantity double, price double"
)
OUTLIERS = Outliers(min_events=20)


def frame(spark: SparkSession, values: list[tuple[int, str, float | None, float | None]]) -> DataFrame:
    """Events of (item, category, quantity, price), each of a user of its own."""
    rows = [
        (FOLD.name, AS_OF, f"e{n}", n, item, "purchase", AS_OF - timedelta(days=1), category, quantity, price)
        for n, (item, category, quantity, price) in enumerate(values)
    ]
    return spark.createDataFrame(rows, DDL)


def by_item(limits: DataFrame) -> dict[int, dict[str, Any]]:
    return {row["item_idx"]: row.asDict() for row in limits.collect()}


def naive_limits(values: list[float]) -> tuple[float, float]:
    lower, upper = np.percentile(np.round(np.log(values), 2), [25, 75])
    reach = 3 * max(upper - lower, np.log(2))
    return float(np.exp(lower - reach)), float(np.exp(upper + reach))


@settings(max_examples=3, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(drawn=st.lists(st.floats(0.01, 1e6), min_size=20, max_size=60))
def test_limits_are_tukeys_fences_on_logarithms(spark: SparkSession, drawn: list[float]) -> None:
    found = by_item(value_limits_of(frame(spark, [(0, "a", value, None) for value in drawn]), OUTLIERS))[0]
    assert (found["quantity_low"], found["quantity_high"]) == pytest.approx(naive_limits(drawn), rel=1e-9)
    assert found["price_low"] is None
    assert found["price_high"] is None


def test_an_item_of_few_values_has_the_limits_of_its_category(spark: SparkSession) -> None:
    often = [(0, "a", 1.0, 2.0 + n % 3) for n in range(40)]
    rare = [(1, "a", 1.0, 900.0), (2, "b", 1.0, 900.0)]
    limits = by_item(value_limits_of(frame(spark, often + rare), OUTLIERS))
    assert limits[1]["price_high"] == pytest.approx(naive_limits([price for *_, price in [*often, rare[0]]])[1])
    assert limits[2]["price_high"] is None, "one value says nothing of what is usual"


def test_outliers_are_drawn_in_and_no_event_is_lost(spark: SparkSession) -> None:
    usual = [(0, "a", 1.0 + n % 2, 3.0) for n in range(30)]
    strange = [(0, "a", 50_000.0, 3.0), (0, "a", 1.0, 0.0001), (0, "a", None, 3.0), (0, "a", 2.0, None)]
    events = frame(spark, usual + strange)
    limits = value_limits_of(events, OUTLIERS)
    limit = by_item(limits)[0]
    found = {row["event_id"]: row for row in winsorise(events, limits).collect()}
    assert len(found) == len(usual) + len(strange)
    assert {name for name, row in found.items() if row["is_outlier"]} == {"e30", "e31"}
    assert found["e30"]["quantity"] == limit["quantity_high"] < 20
    assert found["e31"]["price"] == limit["price_low"] > 0.1
    assert (found["e32"]["quantity"], found["e33"]["price"]) == (None, None), "an unknown value stays unknown"
    for n, (_, _, quantity, price) in enumerate(usual):
        assert (found[f"e{n}"]["quantity"], found[f"e{n}"]["price"]) == (quantity, price)


def test_features_take_the_values_drawn_in(spark: SparkSession) -> None:
    events = frame(spark, [(0, "a", 4.0, 3.0)] * 30 + [(0, "a", 1e6, 3.0), (0, "a", None, 3.0)])
    limits = value_limits_of(events, OUTLIERS)
    high = by_item(limits)[0]["quantity_high"]
    within = winsorise(events, limits)
    weights = {row["event_id"]: row["weight"] for row in weigh(within, Weights(quantity_power=0.5)).collect()}
    assert weights["e0"] == 2.0
    assert weights["e30"] == pytest.approx(high**0.5)
    assert weights["e31"] == 1.0, "an unknown quantity is no reason to weigh an event otherwise"
    had = {row["user_idx"]: row for row in interactions_of(weigh(within, Weights()), Categories()).collect()}
    assert (had[0]["units"], had[0]["spend"], had[0]["num_outliers"], had[0]["weight"]) == (4.0, 3.0, 0, 1.0)
    assert (had[30]["units"], had[30]["num_outliers"]) == (high, 1)
    assert (had[31]["units"], had[31]["spend"]) == (1.0, 3.0), "a line without a quantity is one unit"


def test_a_fold_without_limits_says_what_to_run(spark: SparkSession) -> None:
    events = frame(spark, [(0, "a", 1.0, 3.0)])
    none = value_limits_of(events, OUTLIERS).limit(0)
    with pytest.raises(ValueError, match=r"found no row of fold 'test-2024-03-01'.* --only fold"):
        require_limits(none, [FOLD])
