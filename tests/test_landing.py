"""A landing folder: what has landed since the last run is a delivery, each file once, whatever stops a run."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest
from pyspark.sql import SparkSession

from pipeline_runs import read_table
from test_deliveries import assert_same_tables, job, make_log
from test_ingest import Row, settings_for, write_csv
from xrec.config import Settings
from xrec.ingest import catalogue
from xrec.ingest.landing import take_arrivals
from xrec.ingest.loading import Loaded, load
from xrec.ingest.reader import InputError
from xrec.runs.stage import Figures, StageContext

pytestmark = [pytest.mark.spark, pytest.mark.delta]


class Landing:
    """A folder where files land, and a storage."""

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        self.spark, self.folder, self.root = spark, folder / "landing", folder / "warehouse"
        self.folder.mkdir(parents=True)
        self.catalogue: dict[str, object] = {"category": "item"}

    def settings(self, **log: object) -> Settings:
        values = settings_for(self.folder, **{"landing": True, **log}).model_dump()
        values |= {"storage": {"root": str(self.root)}, "catalogue": self.catalogue}
        return Settings.model_validate(values)

    def land(self, name: str, rows: list[Row]) -> None:
        """As a careful sender: a file is there at once or not at all."""
        hidden = write_csv(self.folder / f"_{name}.csv", rows)
        hidden.rename(self.folder / f"{name}.csv")

    def run(self, stage: str = "ingest", **log: object) -> Figures:
        context = StageContext(spark=self.spark, settings=self.settings(**log), run_id="run")
        figures: Figures = job(stage).run(context)
        return figures

    def num_rows_by_file(self) -> dict[str, int]:
        accounts = read_table(self.root, "accounts")
        counted = accounts[accounts["outcome"].isin(["clean", "quarantined", "duplicate"])]
        return counted.groupby("file")["num_rows"].sum().to_dict()


def test_each_file_is_taken_once_and_the_tables_are_those_of_one_load(spark: SparkSession, tmp_path: Path) -> None:
    rows = make_log(random.Random(1))
    landing = Landing(spark, tmp_path / "stream")
    with pytest.raises(InputError, match=r"log.file.path: found no file in .*landing, expected at least one"):
        landing.run()
    landing.land("one", rows[:90])
    landing.land("two", rows[80:200])
    figures = landing.run(landing_files=1)
    assert (figures["rows_read"], figures["deliveries"].count("full-")) == ("210", 2)
    landing.land("three", rows[200:])
    figures = landing.run()
    assert (figures["rows_read"], figures["deliveries"].count("full-")) == (f"{len(rows) - 200}", 1)
    figures = landing.run()
    assert figures["deliveries"] == "nothing new has landed"
    assert landing.num_rows_by_file() == {"one.csv": 90, "two.csv": 120, "three.csv": len(rows) - 200}
    landing.run("judge")

    whole = Landing(spark, tmp_path / "whole")
    whole.land("all", rows)
    whole.run(landing=False)
    whole.run("judge")
    assert_same_tables(landing.root, whole.root, ("judged_events", "persons", "catalogue"))

    shutil.rmtree(landing.root / "_artifacts" / "landing")  # everything comes again, and counts once
    assert landing.run()["rows_read"] == f"{len(rows) + 10}"
    landing.run("judge")
    assert_same_tables(landing.root, whole.root, ("judged_events", "persons", "catalogue"))


@pytest.mark.parametrize("removed", [False, True])
def test_a_run_that_was_stopped_takes_the_same_files_again_and_forgets_those_that_are_gone(
    spark: SparkSession, tmp_path: Path, removed: bool
) -> None:
    rows = make_log(random.Random(2))
    landing = Landing(spark, tmp_path)
    landing.land("one", rows)
    context = StageContext(spark=spark, settings=landing.settings(), run_id="run")

    def stop_after_writing(sources: Sequence[Settings]) -> None:
        load(context.tables, sources, None, Loaded(layouts={}))
        raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        take_arrivals(context.tables, context.settings, stop_after_writing)
    landing.land("two", rows)
    if removed:
        (landing.folder / "one.csv").unlink()
    landing.run()
    expected = {"two.csv": len(rows)} | ({} if removed else {"one.csv": len(rows)})
    assert landing.num_rows_by_file() == expected
    assert read_table(landing.root, "events")["delivery_id"].nunique() == len(expected)


def test_a_file_that_is_wrong_is_named_and_comes_again_until_it_is_gone(spark: SparkSession, tmp_path: Path) -> None:
    rows = make_log(random.Random(3))
    landing = Landing(spark, tmp_path)
    landing.land("good", rows)
    landing.run()
    (landing.folder / "bad.csv").write_text("who,what\nu1,i1\n")
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"log.columns.item_id: found 'item', which is no column of .*landing"
        ) as caught:
            landing.run()
        assert "bad.csv; mend or remove what is wrong" in caught.value.__notes__[-1]
    (landing.folder / "bad.csv").unlink()
    landing.land("better", rows[:5])
    landing.run()
    assert landing.num_rows_by_file() == {"good.csv": len(rows), "better.csv": 5}


def test_a_file_that_is_overwritten_is_not_read_again_but_its_delivery_can_be_loaded_anew(
    spark: SparkSession, tmp_path: Path
) -> None:
    rows = make_log(random.Random(5))[:10]
    landing = Landing(spark, tmp_path)
    landing.land("one", rows)
    delivery = landing.run()["deliveries"]
    landing.land("one", rows[:7])
    assert landing.run()["deliveries"] == "nothing new has landed"
    assert landing.num_rows_by_file() == {"one.csv": 10}
    landing.run(landing=False, delivery_id=delivery)
    assert landing.num_rows_by_file() == {"one.csv": 7}
    assert landing.run()["deliveries"] == "nothing new has landed"


def test_a_catalogue_file_is_read_once_a_run_also_when_nothing_lands(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    landing, products = Landing(spark, tmp_path), tmp_path / "products.csv"
    landing.catalogue = {"file": {"path": str(products), "format": "csv"}, "category": "group"}
    read = Mock(wraps=catalogue.read_raw)
    monkeypatch.setattr(catalogue, "read_raw", read)
    rows = make_log(random.Random(4))
    products.write_text("item,group\ni1,tents\ni2,lamps\n,nothing\n")
    for name, part in (("one", rows[:5]), ("two", rows[5:10])):
        landing.land(name, part)
    figures = landing.run(landing_files=1)
    assert figures["deliveries"].count("full-") == 2
    assert figures["catalogue_rows_left_out"] == "1 (malformed, or without an item)"
    assert read.call_count == 1
    products.write_text("item,group\ni1,stoves\n")
    assert landing.run()["deliveries"] == "nothing new has landed"
    found = read_table(landing.root, "catalogue")
    assert [(row.item_id, *row.category_path) for row in found.itertuples()] == [("i1", "stoves")]


def test_a_folder_that_is_not_there_and_a_table_are_no_landing_folder(spark: SparkSession, tmp_path: Path) -> None:
    landing = Landing(spark, tmp_path)
    landing.folder.rmdir()
    with pytest.raises(InputError, match=r"log.file.path: cannot read .*landing as csv: no such file or folder"):
        landing.run()
    with pytest.raises(ValueError, match=r"log.landing: found true beside format delta"):
        settings_for(tmp_path, "delta", landing=True)
