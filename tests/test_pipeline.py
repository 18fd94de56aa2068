"""The whole pipeline as a user runs it, on the known-answer world: real Delta, Petastorm and Horovod processes.

The tables are then judged by an independent program: pandas on what ``deltalake`` reads, without Spark and without xrec.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import deltalake
import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from notebook_runs import run_notebooks
from pipeline_runs import ROOT, PipelineRun, read_table
from plans import faults_of, plans_of
from world import NON_MERCHANDISE, World, Written, make_world, write_world
from xrec.runs.stages import STAGE_NAMES

pytestmark = [pytest.mark.spark, pytest.mark.delta, pytest.mark.horovod]
MODELS = (
    "als",
    "als_trend",
    "gru",
    "transformer",
    "item_knn",
    "fusion",
    "blend",
    "logistic",
    "trees",
    "ensemble",
    "served",
)


@dataclass(frozen=True)
class Done:
    world: World
    written: Written
    root: Path
    output: str


def run_world(folder: Path, *, shuffled: bool) -> Done:
    world = make_world(seed=1, shuffled=shuffled)
    written = write_world(world, folder)
    run = PipelineRun(written.config, event_logs=folder / "event-logs")
    assert run.finish() == 0, run.output
    return Done(world, written, folder / "warehouse", run.output)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return run_world(tmp_path_factory.mktemp("world"), shuffled=False)


@pytest.fixture(scope="module")
def lists(done: Done) -> pd.DataFrame:
    return read_table(done.root, "recommendations").sort_values(["user_id", "rank"], ignore_index=True)


def ndcg_of(lists: pd.DataFrame, targets: pd.DataFrame, k: int) -> float:
    """Mean NDCG@k over the users with targets: 20 lines that know nothing of xrec."""
    wanted = targets.groupby("user_id")["item_id"].agg(set)
    ranked = lists[lists["rank"] <= k].groupby("user_id")["item_id"].agg(list)
    total = 0.0
    for user, items in wanted.items():
        gains = [1 / np.log2(place + 2) for place, item in enumerate(ranked.get(user, [])) if item in items]
        total += sum(gains) / sum(1 / np.log2(place + 2) for place in range(min(k, len(items))))
    return total / len(wanted)


def test_rows_add_up(done: Done) -> None:
    written = done.written
    assert len(read_table(done.root, "events")) == written.num_clean
    assert len(read_table(done.root, "events_quarantine")) == written.num_quarantined
    assert written.num_read == written.num_clean + written.num_quarantined + written.num_duplicates
    assert f"{written.num_read:,} read" in done.output
    judged = read_table(done.root, "judged_events")
    uses = judged["use"].value_counts().to_dict()
    assert uses.pop("used") == written.num_clean - sum(uses.values())
    assert uses == {
        "returned": written.injected["returned"],
        "return": written.injected["returned"],
        "repeat": written.injected["repeated"],
    }


def test_no_list_holds_what_the_user_knows(done: Done, lists: pd.DataFrame) -> None:
    history = done.world.history()
    known = history.merge(lists, on=["user_id", "item_id"])
    assert known.empty
    touched = history[["user_id", "category"]].drop_duplicates()
    assert lists.merge(touched, on=["user_id", "category"]).empty
    assert not lists["category"].isin([NON_MERCHANDISE, "unknown"]).any()
    true_category = done.world.catalogue.set_index("item_id")["category"]
    true_category["9999"] = "camp"  # of an item whose path ends early, the last level
    assert (lists["item_id"].map(true_category) == lists["category"]).all()


def test_ranks_have_no_gaps_and_scores_fall(lists: pd.DataFrame) -> None:
    for _, one in lists.groupby("user_id"):
        assert one["rank"].tolist() == list(range(1, len(one) + 1))
        assert one["score"].is_monotonic_decreasing
        assert one["item_id"].is_unique
    assert lists.groupby("user_id").size().max() == 10


def test_every_user_with_a_history_has_a_list(done: Done, lists: pd.DataFrame) -> None:
    events = done.world.log[done.world.log["event_ts"] < done.world.as_of.replace(tzinfo=None)]
    missing = set(events["user_id"]) - set(lists["user_id"])
    assert not missing


def test_in_older_folds_users_with_targets_have_lists(done: Done) -> None:
    """But in the newest of them, on whose lists probabilities are fitted, all users do."""
    lists, targets = (read_table(done.root, name) for name in ("candidates", "targets"))
    judged = targets[targets["cross_touched"] & ~targets["cold_user"]].groupby("fold")["user_idx"].agg(set)
    histories = read_table(done.root, "interactions").groupby("fold")["user_idx"].agg(set)
    proposed = lists[lists["source"] == "popularity"].groupby("fold")["user_idx"].agg(set)
    *older, newest = sorted(fold for fold in histories.index if fold.startswith("select"))
    assert older
    for fold in older:
        assert proposed[fold] == judged[fold], fold
        assert judged[fold] < histories[fold], "the world has users without targets"
    for fold in (newest, "test-2024-07-01"):
        assert proposed[fold] == histories[fold], fold


def test_every_row_says_why_and_from_what(lists: pd.DataFrame) -> None:
    for column in ("reason", "source", "fold", "model_version", "versions"):
        assert lists[column].str.len().gt(0).all()
    assert lists["data_version"].notna().all()
    assert set(lists["source"]) <= {"popularity", "item_knn", "als", "als_trend", "gru", "transformer"}
    assert (lists["run_date"].astype(str) == "2024-07-01").all()


def test_the_reported_figure_is_what_another_program_finds(done: Done, lists: pd.DataFrame) -> None:
    metrics = read_table(done.root, "metrics").query("metric == 'ndcg' and k == 10 and slice == 'touched'")
    reported = metrics.set_index("model")["value"]["served"]
    assert reported == pytest.approx(ndcg_of(lists, done.world.targets(), 10), rel=1e-6)


def test_every_model_beats_popularity(done: Done) -> None:
    metrics = read_table(done.root, "metrics").query("metric == 'ndcg' and k == 10 and slice == 'touched'")
    by_model = metrics.set_index("model")
    for model in MODELS:
        assert by_model.loc[model, "difference_low"] > 0, by_model[["value", "difference", "difference_low"]]


def test_what_serves_was_chosen_by_lists_that_knew_nothing_later(done: Done) -> None:
    serving = read_table(done.root, "serving_models").set_index("model")
    (chosen,) = serving.index[serving["chosen"]]
    assert f"serves_touched: {chosen} " in done.output
    assert set(serving.index[serving["learns"]]) == {"blend", "logistic", "trees", "ensemble"}
    selected_on = serving.groupby("learns")["selected_on"].unique().map(list).to_dict()
    assert selected_on[True] == ["select-2024-06-01"], "what learns has no lists in the oldest fold"
    assert selected_on[False] == ["select-2024-05-02 select-2024-06-01"]
    single = serving[~serving["learns"]]["ndcg"]
    assert set(serving[~serving["learns"]]["compared_with"]) == {single.idxmax()}
    wins = serving[serving["learns"] & (serving["adjusted_low"] > 0)]["ndcg"]
    assert chosen == (wins.idxmax() if len(wins) else single.idxmax())
    metrics = read_table(done.root, "metrics").query("slice == 'touched'").set_index("model")
    assert metrics.query("metric == 'evidence_ndcg'")["value"].to_dict() == serving["ndcg"].to_dict()
    gains = metrics.query("metric == 'evidence_gain'")
    assert gains.loc[chosen, "low"] == serving.loc[chosen, "adjusted_low"]
    candidates = read_table(done.root, "candidates").query("scope == 'touched' and fold.str.startswith('test')")
    candidates = candidates.explode("items")
    candidates["place"] = candidates.groupby(["source", "user_idx"]).cumcount()
    keys = ["user_idx", "items", "place"]
    served, model = (candidates[candidates["source"] == name][keys] for name in ("served", chosen))
    in_both = served.merge(model, on=keys)
    assert len(in_both) >= 0.9 * len(served) > 0, (
        "popularity completes the lists of users whom a single source knows too little"
    )


def test_training_saw_nothing_at_or_after_the_cut(done: Done) -> None:
    training = read_table(done.root, "training_events")
    cut = pd.to_datetime(training["fold"].str[-len("2024-07-01") :])
    assert (training["event_ts"] < cut).all()
    assert training["fold"].nunique() == 3


def test_the_summary_is_for_people(done: Done) -> None:
    for expected in ("quarantined", "duplicate", "against popularity", "customer ", "recommendations", "this run"):
        assert expected in done.output
    assert "Traceback" not in done.output


def test_the_gate_let_the_lists_out(done: Done, lists: pd.DataFrame) -> None:
    assert "published" in done.output
    staged = read_table(done.root, "staged_recommendations").sort_values(["user_id", "rank"], ignore_index=True)
    columns = ["user_id", "rank", "item_id", "score", "reason", "model_version"]
    pd.testing.assert_frame_equal(staged[columns], lists[columns])


def test_readers_can_be_returned_to_an_earlier_version(done: Done) -> None:
    run = PipelineRun(done.written.config, job=ROOT / "jobs" / "rollback.py")
    assert run.finish() == 0, run.output
    assert "newest first" in run.output


def test_the_look_at_the_test_fold_is_on_record(done: Done) -> None:
    (look,) = read_table(done.root, "looks").to_dict("records")
    metrics = read_table(done.root, "metrics").query("metric == 'ndcg' and k == 5 and slice == 'touched'")
    assert (look["run_id"], look["fold"]) == (metrics["run_id"].iloc[0], metrics["fold"].iloc[0])
    assert json.loads(look["settings"])["als"]["rank"] == 8
    assert len(look["code_version"]) >= 5
    assert f"looks at the test data: 1 at {look['fold']} (" in done.output
    value = metrics.set_index("model")["value"]["served"]
    assert dict(look["figures"])["ndcg@5 touched served"].startswith(f"{value:.4f} [")


def test_mlflow_knows_the_run(done: Done) -> None:
    metrics = read_table(done.root, "metrics").query("metric == 'ndcg' and k == 10 and slice == 'touched'")
    (run_id,) = metrics["run_id"].unique()
    with contextlib.closing(sqlite3.connect(done.root / "_artifacts" / "mlflow.db")) as store:
        assert store.execute("SELECT name, status FROM runs").fetchall() == [(run_id, "FINISHED")]
        found = dict(store.execute("SELECT key, value FROM latest_metrics").fetchall())
    for model, value in metrics.set_index("model")["value"].items():
        assert found[f"ndcg_at_10/touched/{model}"] == value
    ran = {stage for stage in STAGE_NAMES if stage != "make_item_vectors"}  # the models are given those of ALS
    assert {f"seconds/{stage}" for stage in ran} <= set(found), "also of stages that are applications"
    assert any(name.startswith("loss/transformer/") for name in found)


@pytest.mark.slow  # test_ranking asks the same of the stage itself
def test_a_rerun_replaces_its_date_only_and_yesterday_stays_readable(done: Done, lists: pd.DataFrame) -> None:
    table = str(done.root / "recommendations")
    before = deltalake.DeltaTable(table)
    config = done.written.config
    again = PipelineRun(config, "--set", "ranking.top_k=3", "--only", "recommend", "--only", "publish")
    assert again.finish() == 0, again.output
    assert deltalake.DeltaTable(table).version() > before.version()
    assert read_table(done.root, "recommendations")["rank"].max() == 3
    old = read_table(done.root, "recommendations", before.version())
    old = old.sort_values(["user_id", "rank"], ignore_index=True)
    pd.testing.assert_frame_equal(old, lists)
    top = read_table(done.root, "recommendations").sort_values(["user_id", "rank"], ignore_index=True)
    columns = ["user_id", "rank", "item_id", "category", "score", "reason"]
    expected = lists[lists["rank"] <= 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(top[columns], expected[columns])


def test_dry_run_writes_nothing_and_says_what_would_run(done: Done) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.root.rglob("*.json")}
    run = PipelineRun(done.written.config, "--dry-run", "--from", "blend")
    assert run.finish() == 0, run.output
    assert "no (not chosen)" in run.output
    assert "candidates@" in run.output
    assert before == {path: path.stat().st_mtime_ns for path in done.root.rglob("*.json")}


def test_no_query_of_the_run_grows_worse_than_its_data(done: Done) -> None:
    plans = list(plans_of(done.root.parent / "event-logs"))
    assert len(plans) > 200, "every query of every stage is there"
    assert any("MapInArrow" in plan for plan in plans)
    faults = {plan: faults_of(plan) for plan in plans}
    bad = [f"{sorted(found)}:\n{plan}" for plan, found in faults.items() if found]
    assert not bad, bad[0]


def test_a_plan_that_does_not_scale_is_found(spark: SparkSession) -> None:
    rows = spark.range(10).withColumn("x", F.rand())

    def faults(query: DataFrame) -> set[str]:
        return faults_of(spark._jvm.PythonSQLUtils.explainString(query._jdf.queryExecution(), "formatted"))

    everything, a_group = Window.orderBy("x"), Window.partitionBy("id").orderBy("x")
    assert faults(rows.withColumn("n", F.row_number().over(everything))) == {"a window over all rows in one task"}
    assert faults(rows.withColumn("n", F.row_number().over(a_group))) == set()
    assert faults(rows.groupBy().agg(F.max("x")).crossJoin(rows)) == {"a join without a key"}
    assert faults(rows.hint("shuffle_replicate_nl").crossJoin(rows)) == {"a cross join"}
    assert faults(rows.orderBy("x")) == {"a global sort"}
    assert faults(rows.orderBy("x").limit(3)) == set()
    row_by_row = F.udf(lambda value: value, "double")
    assert faults(rows.select(row_by_row("x"))) == {"a Python function that is called for each row"}


def test_the_notebooks_show_the_run(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run_notebooks(done.written.config, monkeypatch)
    log, models, lists = (shown[name] for name in ("explore_log", "compare_models", "recommendations"))
    assert f"{done.written.num_clean}" in log
    assert f"{done.written.injected['repeated']}" in log
    assert set(done.world.catalogue["category"]) <= set(re.findall(r"[\w-]+", shown["balancing"]))
    for model in (*MODELS, "popularity"):
        assert model in models
    metrics = read_table(done.root, "metrics").query("metric == 'ndcg' and k == 5 and slice == 'touched'")
    row = metrics.set_index("model").loc["served"]
    assert "ndcg@5" in models, "the first cut-off of the settings"
    assert f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]" in models
    # alpha, rows, copies, largest repeat, effective rows: of the notebook's last table.
    costs = {
        alpha: (rows, copies)
        for alpha, rows, copies in re.findall(r"^(\d\.\d\d) +(\d+) +(\d+) ", shown["balancing"], re.M)
    }
    num_rows = int(read_table(done.root, "balance_report").query("fold == fold.max()")["num_events"].sum())
    assert costs["1.00"] == (str(num_rows), str(num_rows))
    assert costs["0.25"][1] != costs["0.25"][0] == str(num_rows)
    first = read_table(done.root, "recommendations").set_index("user_id")["reason"]
    assert any(reason[:20] in lists for reason in first)


@pytest.mark.slow
def test_nothing_beats_popularity_on_shuffled_labels(tmp_path: Path) -> None:
    done = run_world(tmp_path, shuffled=True)
    metrics = read_table(done.root, "metrics").query("metric == 'ndcg' and k == 10 and slice == 'touched'")
    by_model = metrics.set_index("model")
    for model in MODELS:
        assert by_model.loc[model, "difference_low"] <= 0, by_model[["value", "difference", "difference_low"]]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["als.rnk=4"], "als.rnk: unknown key; did you mean als.rank?"),
        (["log.file.path=/nowhere/log.csv"], "/nowhere/log.csv"),
    ],
)
def test_bad_input_is_one_message(done: Done, tmp_path: Path, overrides: list[str], expected: str) -> None:
    arguments = [part for override in overrides for part in ("--set", override)]
    arguments += ["--set", f"storage.root={tmp_path}"]
    run = PipelineRun(done.written.config, *arguments)
    assert run.finish() == 2, run.output
    assert expected in run.output
    assert "Traceback" not in run.output
