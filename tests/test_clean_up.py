"""Folds that no run needs any more go, and nothing else does."""

from __future__ import annotations

import runpy
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from rich.console import Console

from xrec.config import load_settings
from xrec.features.sequence_files import read_as_ofs
from xrec.runs.ledger import StageRun, record
from xrec.runs.old_folds import FOLDS_FIGURE
from xrec.runs.stage import Stage, StageContext, run_stage
from xrec.schemas import TABLES
from xrec.storage.files import FilesError, write_json
from xrec.storage.tables import Tables

pytestmark = [pytest.mark.spark, pytest.mark.delta]

ROOT = Path(__file__).resolve().parent.parent
START = datetime(2024, 5, 1, tzinfo=timezone.utc)
CONFIG = """
log: {file: {path: x, format: csv}, columns: {user_id: u, item_id: i, event_ts: t}}
catalogue: {category: [c]}
"""


def folds_of(night: int) -> list[str]:
    """A night's own, and one that it shares with the nights beside it."""
    return [f"select-{night}", f"select-shared-{night // 2}", f"serve-{night}"]


class Shop:
    """Six nights; the models were trained on the second, and encode on the others."""

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        self.config = folder / "shop.yaml"
        self.config.write_text(CONFIG + f"storage: {{root: {folder / 'warehouse'}}}\n")
        settings = load_settings([self.config])
        self.spark, self.storage, self.artifacts = spark, settings.storage, Path(settings.storage.artifacts_root)
        tables = Tables(spark, self.storage)
        every = sorted({fold for night in range(6) for fold in folds_of(night)} | {"serve-now"})
        rows = [(fold, user, user, 1.0, 1, START, True, None, None, 0) for fold in every for user in (0, 1)]
        tables.write("interactions", spark.createDataFrame(rows, TABLES["interactions"].columns), fold=every)
        self.note(-1, {})  # an earlier version's run says nothing
        for night in range(6):
            self.note(night, {FOLDS_FIGURE: " ".join(folds_of(night))})
        users = spark.createDataFrame([("u0", 0), ("u1", 1)], "user_id string, user_idx int")
        tables.write("users", users)
        version = {fold: night for night in range(3) for fold in folds_of(night)}
        self.as_of = {fold: (START + timedelta(days=night)).isoformat() for fold, night in version.items()}
        self.export(folds_of(1))
        for fold, night in version.items():
            write_json(f"{self.artifacts}/{fold}/export.json", {"version": night})

    def export(self, newest: list[str]) -> None:
        write_json(f"{self.artifacts}/exports.json", {"folds": newest, "as_of": self.as_of})

    def note(self, night: int, figures: dict[str, str], since: datetime = START, stage: str = "fold") -> None:
        run = StageRun(
            run_id=f"r{night}",
            stage=stage,
            started_ts=since + timedelta(days=night),
            seconds=1.0,
            settings_hash="s",
            outputs={},
            figures=figures,
        )
        record(Tables(self.spark, self.storage), run)

    def clean_up(self, number: int) -> dict[str, str]:
        """As ``jobs/clean_up.py`` does it, with its row of the ledger."""
        settings = load_settings([self.config], ["storage.keep_runs=2"])
        context = StageContext(spark=self.spark, settings=settings, run_id=f"clean-{number}")
        console = Console(quiet=True)
        run: Stage = runpy.run_path(str(ROOT / "jobs" / "clean_up.py"))["run"]
        return dict(run_stage(context, "clean_up", run, "clean_up", console).figures)

    def runs(self) -> set[str]:
        rows = Tables(self.spark, self.storage).read("stage_runs").select("run_id").distinct().collect()
        return {row["run_id"] for row in rows}

    def folds(self) -> set[str]:
        rows = Tables(self.spark, self.storage).read("interactions").select("fold").distinct().collect()
        return {row["fold"] for row in rows}


def test_the_folds_of_earlier_runs_go(spark: SparkSession, tmp_path: Path) -> None:
    shop = Shop(spark, tmp_path)
    before, every = Tables(spark, shop.storage).version("interactions"), shop.folds()
    gone = {"select-0", "serve-0", "select-2", "select-shared-1", "serve-2", "select-3", "serve-3"}

    (shop.artifacts / "changed.json").write_text("{")
    with pytest.raises(FilesError, match=r"changed.json: not JSON"):
        shop.clean_up(0)
    assert shop.folds() == every, "where nobody can tell what is in use, nothing goes"
    (shop.artifacts / "changed.json").unlink()

    for night in (-3, -2):
        shop.note(night, {}, stage="ingest")
    done = shop.clean_up(1)
    assert set(done["folds_removed"].split(", ")) == gone
    assert done["runs_forgotten"] == "2", "the first ingest, and a run of which no fold is left"
    of_folds = {f"r{night}" for night in range(6)}
    assert shop.runs() == {"r-2", *of_folds, "clean-1"}, (
        "of the first night a fold is in use; the newest ingest is asked for"
    )
    trained_on, newest = set(folds_of(1)), {*folds_of(4), *folds_of(5)}
    assert shop.folds() == every - gone == trained_on | newest | {"serve-now"}
    assert {path.name for path in shop.artifacts.iterdir() if path.is_dir()} == trained_on
    assert set(read_as_ofs(str(shop.artifacts))) == trained_on
    tables = Tables(spark, shop.storage)
    assert tables.read("users").count() == 2
    old = tables.read("interactions", version=before).select("fold").distinct().count()
    assert old == len(every), "for storage.retention_days"

    assert shop.clean_up(2)["folds_removed"] == "none", "they are gone already"
    for days, fold in enumerate(
        ["serve-0", "serve-7", "serve-8"], start=1
    ):  # that night once more, and then two others
        shop.note(days + 10, {FOLDS_FIGURE: fold}, since=datetime.now(timezone.utc))
    assert set(shop.clean_up(3)["folds_removed"].split(", ")) == {"serve-0", *newest}


def test_models_that_encode_stay_where_the_newest_training_died(spark: SparkSession, tmp_path: Path) -> None:
    shop = Shop(spark, tmp_path)
    for fold, night in (("serve-1", 1), ("select-2", 2)):  # of the third night's folds not the main one
        for model in ("gru", "transformer"):
            write_json(f"{shop.artifacts}/{fold}/{model}/vectors-v{night}-digest/manifest.json", {})
    shop.export(folds_of(2))
    write_json(f"{shop.artifacts}/changed.json", {"folds": ["serve-3"]})
    write_json(f"{shop.artifacts}/serve-3/changed.json", {"trained_on": "serve-0"})
    assert shop.clean_up(1)["folds_removed"] == "select-0, select-3"
