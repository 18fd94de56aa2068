"""Rows that tasks read whole: all of them, from files that live as long as their folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from xrec.storage.shared import SharedRows, SharedRowsError, shared_folder

pytestmark = pytest.mark.spark


def test_all_rows_are_read_while_the_folder_lives(spark: SparkSession, tmp_path: Path) -> None:
    place = tmp_path / "shared"
    (place / "killed").mkdir(parents=True)
    (place / "killed" / "part-0.parquet").write_text("left by a run that was killed")
    rows = spark.range(100).selectExpr("cast(id as int) as id", "cast(null as string) as text").repartition(3)
    with shared_folder(str(place)) as folder:
        assert not place.exists()
        many, none = folder.share(rows), folder.share(rows.where("id < 0"))
        assert sorted(many.read()["id"].to_pylist()) == list(range(100))
        assert none.read().num_rows == 0
        assert none.read().column_names == ["id", "text"]
        assert many != none
        kept = folder.keep(rows)
        assert kept.dtypes == rows.dtypes
        assert sorted(row["id"] for row in kept.collect()) == list(range(100))
    assert not place.exists()


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
    assert not place.exists()
