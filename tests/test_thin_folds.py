"""An older fold with too little for the sequence models: it has no lists of theirs, and every later stage does without."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from pipeline_runs import read_table
from test_deliveries import job
from world import make_world, write_world
from xrec.config import load_settings
from xrec.runs.stage import Figures, StageContext
from xrec.sequence.launch import run_as_rank

pytestmark = [pytest.mark.spark, pytest.mark.delta, pytest.mark.torch, pytest.mark.horovod, pytest.mark.slow]

SMALL = {
    "folds": {"num_select": 3},
    "ranking": {"sources": ["popularity", "gru", "gru_trend"]},
    "ranker": {"num_trees": 5, "models": ["logistic", "trees"]},
    "sequence": {"length": 8, "objective": "next_event", "item_vectors": None, "epochs": 1, "epochs_more": 1},
}


def test_a_thin_older_fold_has_no_lists_of_the_sequence_models(spark: SparkSession, tmp_path: Path) -> None:
    written = write_world(make_world(seed=2, num_users=90), tmp_path, dirty=False, overrides=SMALL)

    def run(*stages: str, **sequence: object) -> Figures:
        settings = load_settings([written.config], [f"sequence.{key}={value}" for key, value in sequence.items()])
        for stage in stages:
            figures: Figures = job(stage).run(StageContext(spark=spark, settings=settings, run_id="run"))
        return figures

    run("ingest", "judge", "index", "fold", "balance")
    events = read_table(tmp_path / "warehouse", "training_events")
    buyers = events.groupby(["fold", "item_idx"])["user_idx"].nunique().groupby("fold").max()
    folds = [*sorted(fold for fold in buyers.index if fold.startswith("select")), "test-2024-07-01"]
    assert len(folds) == 4
    enough = int(buyers[folds[0]]) + 1
    assert buyers[folds[1]] >= enough

    assert run("export_sequences", min_buyers=enough)["too thin to train on"] == folds[0]
    settings = load_settings([written.config], [f"sequence.min_buyers={enough}"])
    run_as_rank("gru", settings)
    run("load_vectors", "candidates", "blend", "train_rankers", "choose", "recommend", "evaluate", min_buyers=enough)
    candidates = read_table(tmp_path / "warehouse", "candidates")
    has_lists = {source: set(rows["fold"]) for source, rows in candidates.groupby("source")}
    assert has_lists["popularity"] == set(folds)
    assert has_lists["gru"] == has_lists["gru_trend"] == set(folds[1:])
    assert has_lists["blend"] == has_lists["trees"] == set(folds[1:])
    assert not read_table(tmp_path / "warehouse", "staged_recommendations").empty
    judged = read_table(tmp_path / "warehouse", "metrics")
    assert {"popularity", "gru", "served"} <= set(judged["model"])

    run("export_sequences", min_buyers=enough, changed_since="latest")
    run_as_rank(
        "gru", load_settings([written.config], [f"sequence.min_buyers={enough}", "sequence.changed_since=latest"])
    )
    figures = run("load_vectors", min_buyers=enough, changed_since="latest")
    assert "taken over from test-2024-07-01" in figures["gru test-2024-07-01"]
    assert set(read_table(tmp_path / "warehouse", "vectors")["fold"]) == set(folds[1:])
