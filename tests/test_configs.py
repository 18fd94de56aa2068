"""The files in conf/: each one reads its real or sample log by configuration alone, with the figures that it states."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from test_ingest import catalogue_and_left_out
from xrec import columns as C
from xrec.config import Settings, load_settings
from xrec.ingest.cleaning import cleaned
from xrec.ingest.reader import read_raw, resolve_path

pytestmark = pytest.mark.spark
ROOT = Path(__file__).resolve().parent.parent

FIGURES = {
    # rows read, clean, quarantined, duplicates; reasons; items, of these without a category
    "amazon_beauty": ((198_502, 198_502, 0, 0), {}, (12_101, 0)),
    "rees46_sample": ((17_435, 17_410, 20, 5), {"price_not_positive": 19, "row_malformed": 1}, (6_479, 2_890)),
    "example_csv": (
        (11, 5, 5, 1),
        {
            "event_ts_unparsable": 1,
            "event_type_unknown": 1,
            "price_not_positive": 1,
            "quantity_not_positive": 1,
            "row_malformed": 1,
            "user_id_missing": 1,
        },
        (5, 0),
    ),
    "example_experiment": (
        (11, 5, 5, 1),
        {
            "event_ts_unparsable": 1,
            "event_type_unknown": 1,
            "price_not_positive": 1,
            "quantity_not_positive": 1,
            "row_malformed": 1,
            "user_id_missing": 1,
        },
        (5, 0),
    ),
    "example_filters": (
        (11, 5, 5, 1),
        {
            "event_ts_unparsable": 1,
            "event_type_unknown": 1,
            "price_not_positive": 1,
            "quantity_not_positive": 1,
            "row_malformed": 1,
            "user_id_missing": 1,
        },
        (5, 0),
    ),
    "example_platforms": (
        (16, 8, 6, 2),
        {
            "event_ts_unparsable": 1,
            "event_type_unknown": 1,
            "price_not_positive": 1,
            "quantity_not_positive": 1,
            "row_malformed": 1,
            "user_id_missing": 2,
        },
        (5, 0),
    ),
    "example_tsv_epoch": ((5, 4, 1, 0), {"event_ts_unparsable": 1}, (3, 0)),
    "example_jsonl": ((7, 5, 2, 0), {"row_malformed": 1, "user_id_missing": 1}, (3, 1)),
}


def settings_of(name: str) -> Settings:
    """The settings of a file in conf/, or a skip where its log is not on this machine."""
    settings = load_settings([ROOT / "conf" / f"{name}.yaml"])
    path = Path(settings.log.file.path)
    if path.parts[0] == ".." and not path.exists():
        pytest.skip(f"the log of conf/{name}.yaml is not here: {path}")
    return settings


@pytest.mark.parametrize("name", FIGURES)
def test_figures(spark: SparkSession, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = settings_of(name)
    counts, reasons, (num_items, num_without) = FIGURES[name]
    total, num_ids = Counter[str](), 0
    for source in settings.sources:
        raw = read_raw(spark, source.log.file)
        with cleaned(raw, source) as log:
            total += log.counts()
            num_ids += log.events.select(C.EVENT_ID).distinct().count()
    assert tuple(total[f"rows_{what}"] for what in ("read", "clean", "quarantined", "duplicate")) == counts
    assert {name: total[f"quarantined_{name}"] for name in reasons} == reasons
    assert sum(name.startswith("quarantined_") for name in total) == len(reasons)
    assert num_ids == counts[1]
    items, _ = catalogue_and_left_out(raw, source)
    without = F.count_if(F.size(C.CATEGORY_PATH) == 0)
    assert tuple(items.agg(F.count("*"), without).first() or ()) == (num_items, num_without)


@pytest.mark.parametrize("name", sorted({*FIGURES, "complete_journey", "example_delta"}))
def test_the_opening_comment_states_the_command_and_the_result(name: str) -> None:
    head = "\n".join(
        line for line in (ROOT / "conf" / f"{name}.yaml").read_text().split("\n\n")[0].splitlines() if line[0] == "#"
    )
    assert re.search(rf"spark-submit.sh jobs/\w+.py --config conf/{name}.yaml|spark-submit.sh jobs/pipeline.py\n", head)
    if name in FIGURES:
        read, clean, quarantined, duplicates = FIGURES[name][0]
        for count in filter(None, (read, clean, quarantined, duplicates)):
            assert re.search(rf"(?<![\d,]){count:,}(?![\d,])", head) or count == read == clean, (
                f"{count:,} is not in it"
            )


def test_every_file_in_conf_is_tested() -> None:
    found = {file.stem for file in (ROOT / "conf").glob("*.yaml")}
    assert found == {*FIGURES, "complete_journey", "example_delta"}


def test_the_non_merchandise_of_complete_journey_exists(spark: SparkSession) -> None:
    settings = load_settings([ROOT / "conf" / "complete_journey.yaml"])
    assert settings.catalogue.file is not None
    products = spark.read.parquet(resolve_path(settings.catalogue.file.path))
    there = {row[0] for row in products.select(settings.catalogue.category[0]).distinct().collect()}
    assert set(settings.categories.non_merchandise) <= there


@pytest.mark.slow
def test_figures_of_complete_journey(spark: SparkSession) -> None:
    settings = load_settings([ROOT / "conf" / "complete_journey.yaml"])
    with cleaned(read_raw(spark, settings.log.file), settings) as log:
        assert (log.num_read, log.num("clean"), log.num("quarantined"), log.num("duplicate")) == (
            1_469_307,
            1_458_032,
            11_275,
            0,
        )
        assert log.num_by_reason == {"price_not_positive": 11_226, "quantity_not_positive": 8_869}
        bounds = log.events.agg(F.min(C.EVENT_TS).cast("string"), F.max(C.EVENT_TS).cast("string")).first()
    assert tuple(bounds or ()) == ("2017-01-01 11:53:26", "2018-01-01 04:01:20")
