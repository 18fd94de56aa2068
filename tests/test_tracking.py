"""Each run is one run of MLflow, with its settings, versions and figures; a store that is away costs no run."""

from __future__ import annotations

import io
import json
import time
import warnings
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from rich.console import Console

from xrec import columns as C
from xrec.config import Settings, SettingsError, load_settings
from xrec.evaluation.report import POOLED
from xrec.runs.ledger import StageRun, record
from xrec.runs.tracking import FAILED, flatten, track, tracking_uri
from xrec.schemas import TABLES
from xrec.storage.files import write_json
from xrec.storage.tables import Tables, rows_from

pytestmark = [pytest.mark.spark, pytest.mark.delta]

RUN_ID = "20240701T000000-abc-01"
BEGAN = datetime(2024, 7, 1, tzinfo=timezone.utc)
FOLD = "test-2024-07-01"


@dataclass(frozen=True)
class Tracked:
    """A folder with the tables of one run, and what was printed as it was logged."""

    folder: Path
    tables: Tables

    def settings(self, *overrides: str) -> Settings:
        return load_settings([], [f"storage.root={self.folder}", *overrides])

    def track(self, *overrides: str, **arguments: Any) -> str:
        output = io.StringIO()
        track(self.tables, self.settings(*overrides), RUN_ID, Console(file=output, width=1000), **arguments)
        return output.getvalue()

    def runs(self, uri: str | None = None) -> list[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            from mlflow.tracking import MlflowClient  # noqa: PLC0415

            client = MlflowClient(tracking_uri=uri or f"sqlite:///{self.folder}/_artifacts/mlflow.db")
            experiment = client.get_experiment_by_name("xrec")
            return list(client.search_runs([experiment.experiment_id]))

    def points(self, name: str) -> list[tuple[int, float]]:
        from mlflow.tracking import MlflowClient  # noqa: PLC0415

        client = MlflowClient(tracking_uri=f"sqlite:///{self.folder}/_artifacts/mlflow.db")
        history = client.get_metric_history(self.runs()[0].info.run_id, name)
        return sorted((point.step, point.value) for point in history)


def stage_run(stage: str, number: int, page: str = "", **outputs: int) -> StageRun:
    return StageRun(
        run_id=RUN_ID,
        stage=stage,
        started_ts=BEGAN + timedelta(minutes=number),
        seconds=10.0 + number,
        settings_hash="abc",
        outputs=outputs,
        figures={"page": page} if page else {"rows": "7", "_for": "a later run"},
    )


def figure(fold: str, model: str, metric: str, value: float) -> dict[str, Any]:
    row = dict.fromkeys(field.name for field in TABLES["metrics"].schema)
    row |= {C.RUN_ID: RUN_ID, C.SLICE: "touched", C.K: 10, C.NUM_USERS: 5}
    bounds = {C.LOW: value - 0.125, C.HIGH: value + 0.125} if metric == "ndcg" else {}
    return {**row, C.FOLD: fold, C.MODEL: model, C.METRIC: metric, C.VALUE: value, **bounds}


@pytest.fixture(scope="module")
def done(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    folder = tmp_path_factory.mktemp("tracked")
    tables = Tables(spark, load_settings([], [f"storage.root={folder}"]).storage)
    for run in (stage_run("ingest", 0, events=3, accounts=1), stage_run("train_gru", 1), stage_run("evaluate", 2)):
        record(tables, run)
    rows = [
        figure(FOLD, "blend", "ndcg", 0.5),
        figure(POOLED, "blend", "ndcg", 0.25),
        figure(POOLED, "popularity", "ndcg", 0.125),
        figure(POOLED, "blend", "long tail", 0.75),
    ]
    tables.write("metrics", rows_from(spark, "metrics", rows), run_id=RUN_ID)
    artifacts = f"{folder}/_artifacts"
    write_json(f"{artifacts}/exports.json", {"folds": [FOLD]})
    epoch = {"ndcg": None, "seconds": 1.0, "windows_per_second": 9.0}
    epochs = [{**epoch, "epoch": n, "loss": 6.0 - n, "hit_rate": 0.25 * n} for n in (1, 2)]
    progress = {"digest": "d", "version": 1, "epochs": epochs, "best": 2, "done": True, "closed": True}
    write_json(f"{artifacts}/{FOLD}/gru/checkpoint/progress.json", progress)
    return Tracked(folder, tables)


@pytest.fixture(scope="module")
def said(done: Tracked) -> str:
    return done.track()


def test_a_run_is_there_with_settings_versions_and_figures(done: Tracked, said: str) -> None:
    assert said == f"tracking: MLflow run {RUN_ID} of experiment xrec in sqlite:///{done.folder}/_artifacts/mlflow.db\n"
    (run,) = done.runs()
    assert run.info.status == "FINISHED"
    assert run.info.start_time == BEGAN.timestamp() * 1000
    assert run.data.params["als.rank"] == str(done.settings().als.rank)
    assert run.data.params["evaluation.ks"] == "[10, 20]"
    assert run.data.tags["xrec.run_id"] == RUN_ID
    assert run.data.tags["xrec.settings_hash"] == done.settings().digest()
    assert run.data.tags["version.pyspark"].startswith("4.")
    assert run.data.tags["table.ingest.events"] == "3"
    assert run.data.metrics["seconds/train_gru"] == 11.0
    assert run.data.metrics["ndcg_at_10/touched/blend"] == 0.25, "of all folds together"
    assert run.data.metrics["ndcg_at_10_low/touched/blend"] == 0.125
    assert run.data.metrics["long tail_at_10/touched/blend"] == 0.75
    assert done.points(f"loss/gru/{FOLD}") == [(1, 5.0), (2, 4.0)]
    assert done.points(f"validation_hit_rate/gru/{FOLD}") == [(1, 0.25), (2, 0.5)]
    assert not any(name.startswith("validation_ndcg") for name in run.data.metrics), "what is unknown is left out"


def test_the_settings_and_figures_lie_beside_the_tables(done: Tracked, said: str) -> None:
    (run,) = done.runs()
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert folder.is_relative_to(done.folder / "_artifacts" / "mlflow")
    assert load_settings([folder / "settings.yaml"]) == done.settings()
    assert json.loads((folder / "figures.json").read_text())["ingest"] == {"rows": "7"}


def test_the_same_run_again_is_the_same_run(done: Tracked, said: str, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("<html>")
    record(done.tables, stage_run("report", 3, page=str(report)))
    done.track("als.rank=7", status=FAILED)
    (run,) = done.runs()
    assert run.info.status == "FAILED"
    assert run.data.params["als.rank"] == "32", "MLflow keeps what a parameter was first"
    assert run.data.tags["changed.als.rank"] == "32 -> 7"
    assert done.points("seconds/ingest") == [(0, 10.0)], "nothing is logged twice"
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (folder / "report.html").read_text() == "<html>"


def test_a_server_that_is_away_costs_seconds_and_a_line(done: Tracked) -> None:
    began = time.monotonic()
    output = done.track("tracking.uri=http://127.0.0.1:9")
    assert time.monotonic() - began < 25
    assert output.startswith("tracking: this run is not logged (tracking.uri http://127.0.0.1:9: ")
    assert "set tracking.enabled=false" in output
    assert output.count("\n") == 1


def test_off_means_that_nothing_is_written(done: Tracked, tmp_path: Path) -> None:
    assert done.track("tracking.enabled=false", f"storage.artifacts={tmp_path}") == ""
    assert list(tmp_path.iterdir()) == []


def test_tables_in_a_store_need_a_server(done: Tracked) -> None:
    output = done.track("storage.artifacts=s3a://bucket/xrec")
    assert "tracking: off" in output
    assert "set tracking.uri" in output
    there = done.settings("storage.artifacts=s3a://bucket/xrec", "tracking.uri=https://mlflow.example.com")
    assert tracking_uri(there) == "https://mlflow.example.com"


def test_a_run_of_which_nothing_ended_leaves_nothing(spark: SparkSession, tmp_path: Path) -> None:
    empty = Tracked(tmp_path, Tables(spark, load_settings([], [f"storage.root={tmp_path}"]).storage))
    assert empty.track(status=FAILED) == ""
    assert not (tmp_path / "_artifacts").exists()


def test_a_long_value_is_cut_and_a_name_is_made_fit() -> None:
    found = flatten({"log": {"options": {"a=b": "x" * 1000}}, "none": {}})
    assert found == {"log.options.a_b": "x" * 499 + "…", "none": "{}"}


def test_a_password_is_refused_without_being_shown() -> None:
    with pytest.raises(SettingsError, match=r"tracking\.uri: found a password in it") as caught:
        load_settings([], ["storage.root=x", "tracking.uri=https://me:geheim@mlflow.example.com"])
    assert "geheim" not in str(caught.value)
