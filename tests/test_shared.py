"""Rows that tasks read whole: all of them, from files that live as long as their folder."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from xrec.storage.shared import SharedRows, SharedRowsError, shared_folder

pytestmark = pytest.mark.spark


def test_all_rows_are_read_while_the_folder_lives(spark: SparkSession, tmp_path: Path) -> None:
    place = tmp_path / "shared"
    rows = spark.range(100).selectExpr("cast(id as int) as id", "cast(null as string) as text").repartition(3)
    with shared_folder(str(place)) as folder:
        many, none = folder.share(rows), folder.share(rows.where("id < 0"))
        assert sorted(many.read()["id"].to_pylist()) == list(range(100))
        assert none.read().num_rows == 0
        assert none.read().column_names == ["id", "text"]
        assert many != none
        kept = folder.keep(rows)
        assert kept.dtypes == rows.dtypes
        assert sorted(row["id"] for row in kept.collect()) == list(range(100))
    assert not list(place.iterdir())


def test_two_runs_at_once_leave_each_other_s_rows(spark: SparkSession, tmp_path: Path) -> None:
    place, now = tmp_path / "shared", datetime.now(timezone.utc)
    for days in (0.5, 1.5):
        (place / f"{now - timedelta(days=days):%Y%m%dT%H%M%S}-killed").mkdir(parents=True)
    (place / "candidates-test-1" / "of-an-earlier-version").mkdir(parents=True)
    with shared_folder(str(place)) as folder:
        rows = folder.share(spark.range(3))
        with shared_folder(str(place)) as other:
            assert other.path != folder.path
        assert rows.read().num_rows == 3
    (left,) = place.iterdir()
    assert left.name == f"{now - timedelta(days=0.5):%Y%m%dT%H%M%S}-killed", "it may be at work still"


def test_a_task_that_cannot_read_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(SharedRowsError, match=r"gone: a task cannot read it .* give them access to it"):
        SharedRows(str(tmp_path / "gone")).read()


def test_the_folder_goes_also_when_the_work_fails(spark: SparkSession, tmp_path: Path) -> None:
    place = tmp_path / "shared"

    def fail() -> None:
        with shared_folder(str(place)) as folder:
            raise KeyError(folder.share(spark.range(3)).folder)

    with pytest.raises(KeyError, match="shared"):
        fail()
    assert not list(place.iterdir())
