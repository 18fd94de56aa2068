"""The gate: what each check finds, and what it says."""

from __future__ import annotations

import pytest
from pyspark.sql import DataFrame, SparkSession

from xrec.config import Publish
from xrec.ranking.evidence import Evidence
from xrec.ranking.publishing import Check, GateError, check_staged, require_all

pytestmark = pytest.mark.spark

LISTS = "user_idx int, item_id string, rank int"


def lists(spark: SparkSession, of_users: dict[int, str]) -> DataFrame:
    rows = [(user, item, rank) for user, items in of_users.items() for rank, item in enumerate(items, 1)]
    return spark.createDataFrame(rows, LISTS)


def evidence(low: float, high: float) -> Evidence:
    middle = (low + high) / 2
    figures = {"ndcg": 0.1, "low": 0.1, "high": 0.1, "difference": middle, "adjusted_low": low, "adjusted_high": high}
    return Evidence(
        model="trees", learns=True, compared_with="popularity", num_users=9, selected_on="select-1", **figures
    )


def checks(
    spark: SparkSession, staged: dict[int, str], before: dict[int, str] | None = None, quality: Evidence | None = None
) -> dict[str, Check]:
    users = spark.createDataFrame([(user, 9) for user in range(3)] + [(3, 1)], "user_idx int, possible int")
    published = None if before is None else lists(spark, before)
    publish = Publish(min_user_share=0.75, min_full_share=0.5, min_overlap=0.5)
    found = check_staged(lists(spark, staged), published, users, quality, publish, top_k=3)
    return {check.name: check for check in found}


def test_every_check_finds_what_it_is_for(spark: SparkSession) -> None:
    good = checks(spark, {0: "abc", 1: "abc", 2: "ab"}, {0: "abx", 1: "abc", 9: "xyz"}, evidence(-0.01, 0.02))
    assert all(check.passed for check in good.values())
    assert set(good) == {"min_user_share", "min_full_share", "min_overlap", "not_below_popularity"}
    assert (
        good["min_user_share"].said
        == "3 of 4 users for whom there is something new have a list; expected at least 75.0%"
    )
    assert good["min_overlap"].said == "83.3% of a list stays, over 2 users; expected at least 50.0%"
    few = checks(spark, {0: "abc", 1: "a"})
    assert {name: check.passed for name, check in few.items()} == {"min_user_share": False, "min_full_share": True}
    short = checks(spark, {0: "ab", 1: "a", 2: "a", 3: "abc"}, {0: "xy", 3: "abz"})
    assert not short["min_full_share"].passed
    assert not short["min_overlap"].passed
    # Of one for whom little is left a short list is a full one.
    assert checks(spark, {0: "ab", 3: "a"})["min_full_share"].passed
    assert not checks(spark, {}, quality=evidence(-0.02, -0.01))["not_below_popularity"].passed
    assert not checks(spark, {})["min_full_share"].passed, "no lists at all"


def test_each_failed_check_is_named() -> None:
    held = Check(name="min_overlap", said="fine", passed=True)
    require_all([held], "2024-03-01")
    failed = [Check(name=name, said=f"little of {name}", passed=False) for name in ("min_user_share", "min_full_share")]
    with pytest.raises(GateError) as refused:
        require_all([held, *failed], "2024-03-01")
    said = str(refused.value)
    assert "the lists of 2024-03-01 are not published" in said
    assert "publish.min_user_share: found little of min_user_share; publish.min_full_share: found little of" in said
    assert "fine" not in said
