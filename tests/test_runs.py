"""What a person reads when a run fails."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from unittest.mock import MagicMock

import psutil
import pytest
from py4j.protocol import Py4JError
from pyspark.sql import SparkSession
from rich.console import Console

from test_deliveries import job
from xrec.config import DEFAULT_CONFIG, Settings, SettingsError, as_arguments, load_settings
from xrec.runs import applications, comparison
from xrec.runs.applications import properties_of
from xrec.runs.comparison import compare
from xrec.runs.running import Run
from xrec.runs.stage import StageContext, command_from, describe_error
from xrec.runs.stages import STAGE_NAMES, STAGES, StageInfo, needed_sources, reads_of, select_stages, writes_of
from xrec.session import build_session

_TASK = "An error occurred while calling o1.save.\n: org.apache.spark.SparkException: [TASK_WRITE_FAILED] Task failed while "


def test_the_command_that_goes_on_has_the_settings_of_the_run() -> None:
    given = as_arguments(["conf/my shop.yaml"], ["als.rank=32", "ranking.sources=[als]"])
    context = StageContext(spark=MagicMock(), settings=MagicMock(), run_id="r", given=given)
    settings = "--config 'conf/my shop.yaml' --set als.rank=32 --set 'ranking.sources=[als]'"
    assert command_from("fold", context) == f"./spark-submit.sh jobs/pipeline.py --from fold {settings}"
    assert command_from("read_filters", context) == f"./spark-submit.sh jobs/read_filters.py {settings}"


def test_a_training_runs_where_and_as_the_run_does() -> None:
    settings = {
        "spark.app.id": "local-1",
        "spark.driver.memory": "8g",
        "spark.executor.id": "driver",
        "spark.executor.instances": "8",
        "spark.hadoop.fs.s3a.secret.key": r"a\b=c",
        "spark.master": "yarn",
        "spark.submit.pyFiles": "",
        "spark.yarn.app.id": "application_1",
        "spark.yarn.queue": "nightly",
    }
    assert properties_of(settings.items()).splitlines() == [
        "spark.driver.memory=8g",
        "spark.executor.instances=8",
        r"spark.hadoop.fs.s3a.secret.key=a\\b=c",
        "spark.yarn.queue=nightly",
    ]


def test_a_comparison_goes_on_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the pipeline in its place the lists of a select fold would go out."""
    commands: list[str] = []

    def run_stages(run: Run, stages: Sequence[StageInfo]) -> None:
        commands.append(command_from(stages[0].name, run.context()))

    monkeypatch.setattr(Run, "run", run_stages)
    monkeypatch.setattr(comparison, "_search", lambda run, _: run.with_overrides("als.rank=7"))
    monkeypatch.setattr(comparison, "print_models", MagicMock())
    run = Run(
        spark=MagicMock(),
        console=MagicMock(),
        run_id="",
        settings=load_settings([], []),
        config=[],
        overrides=[],
    )
    compare(run, sources="als", num_folds=2, num_trials=3, is_final=False, first="balance")
    compare(run, sources="als", num_folds=2, num_trials=0, is_final=True, first="candidates")
    select = "--set folds.purpose=select --set folds.num_select=2 --set 'ranking.sources=[als]'"
    assert commands == [
        f"./spark-submit.sh jobs/compare.py --folds 2 --trials 3 --from balance {select}",
        f"./spark-submit.sh jobs/compare.py --folds 2 --from train_als {select} --set als.rank=7",
        f"./spark-submit.sh jobs/compare.py --folds 2 --final --from candidates {select.replace('=select', '=test')}",
    ]


@pytest.mark.parametrize("stage", ["recommend", "publish"])
def test_lists_of_a_select_fold_do_not_go_out(stage: str) -> None:
    context = StageContext(spark=MagicMock(), settings=load_settings([], ["folds.purpose=select"]), run_id="r")
    with pytest.raises(SettingsError, match=r"folds.purpose: found select, expected test or serve"):
        job(stage).run(context)


def test_a_report_that_fails_names_its_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    report = job("report")
    monkeypatch.setattr(report, "build_session", MagicMock())
    monkeypatch.setattr(report, "gather", MagicMock(side_effect=ValueError("no figures")))
    monkeypatch.setattr(sys, "argv", ["report.py", "--config", "conf/example_csv.yaml"])
    with pytest.raises(SystemExit):
        report.main()
    assert (
        "go on with ./spark-submit.sh jobs/pipeline.py --from report --config conf/example_csv.yaml"
        in capsys.readouterr().err
    )


def test_a_training_is_not_given_the_key_of_pseudonyms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", "k" * 32)
    run = MagicMock(return_value=0)
    monkeypatch.setattr(applications, "run_beside_parent", run)
    spark = MagicMock()
    spark.sparkContext.getConf().getAll.return_value = []
    settings = load_settings([], ["privacy.key=env:SHOP_KEY"])
    context = StageContext(spark=spark, settings=settings, run_id="r")
    stage = next(stage for stage in STAGES if stage.own_application)
    applications.run_as_application(stage, context, "train", MagicMock())
    _, environment = run.call_args.args
    assert environment.keys() - {applications.WHOLE_RUN} == os.environ.keys() - {"SHOP_KEY"}


START = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); input()"
WAIT = """
from xrec.runs.applications import run_beside_parent
run_beside_parent(["sh", "-c", "sleep 987 & wait"], {"PATH": "/usr/bin:/bin"})
"""


@pytest.mark.parametrize("killed", ["the JVM", "the run"])
def test_a_training_ends_with_the_process_that_started_its_run(killed: str) -> None:
    """A process that waits for a training with one below it, and is left alone by its own parent, or is killed itself."""
    command = [sys.executable, "-c", START, sys.executable, "-c", WAIT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env={**os.environ, "PYSPARK_GATEWAY_PORT": "1"}, **pipes) as starter:
        assert starter.stdout is not None
        waiting = psutil.Process(int(starter.stdout.readline()))
        deadline = time.monotonic() + 60
        while len(family := waiting.children(recursive=True)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        try:
            assert [one.name() for one in family] == ["sh", "sleep"]
            victim, ending = (starter, [*family, waiting]) if killed == "the JVM" else (waiting, [family[0]])
            victim.kill()
            _, alive = psutil.wait_procs(ending, timeout=15)
            assert not alive
        finally:
            for one in [*family, waiting]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()


def test_a_run_keeps_the_settings_that_it_began_with_and_gives_them_to_its_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, given, told = tmp_path / "shop.yaml", tmp_path / "given", tmp_path / "told"
    config.write_text(DEFAULT_CONFIG.read_text())
    overrides = ["als.rank=4", "tracking.enabled=false"]
    settings = load_settings([config], overrides)
    console = Console(quiet=True)
    run = Run(
        spark=MagicMock(), console=console, run_id="r", settings=settings, config=[str(config)], overrides=overrides
    )
    config.write_text("folds: {purpose: serve}\n")
    assert run.context().settings == settings
    assert run.with_overrides("als.alpha=0.5").settings.als == settings.als.model_copy(update={"alpha": 0.5})

    submit = tmp_path / "spark-submit"
    submit.write_text(
        f"""#!/bin/sh
while [ "$1" != --config ]; do shift; done
cp -p "$2" '{given}' && echo "$2" >'{told}'
"""
    )
    submit.chmod(0o755)
    monkeypatch.setattr("xrec.runs.applications._spark_submit", lambda: str(submit))
    run.run([stage for stage in STAGES if stage.name == "train_gru"])
    assert load_settings([given]).digest() == settings.digest()
    assert given.stat().st_mode & 0o777 == 0o600
    assert not Path(told.read_text().strip()).exists()


def test_a_full_disk_is_named_with_its_place_and_what_to_do() -> None:
    cause = "Caused by: java.io.IOException: No space left on device\n\tat java.io.Write"
    message = describe_error(
        Py4JError(f"{_TASK}writing rows to file:/data/wh/events. SQLSTATE: 58030\n\tat a.Run\n{cause}")
    )
    assert message.startswith("no space left on the disk while writing to file:/data/wh/events; free some, or choose ")
    assert "storage.root" in message


def test_another_failure_of_spark_keeps_its_first_lines_and_its_cause() -> None:
    message = describe_error(Py4JError(f"{_TASK}reading\n\tat org.apache.Task.run\nCaused by: java.lang.X: y\n\tat z"))
    assert message.startswith(
        "Spark failed: An error occurred while calling o1.save. | : org.apache.spark.SparkException: "
    )
    assert "Caused by: java.lang.X: y (set XREC_TRACEBACK=1" in message
    assert "org.apache.Task.run" not in message


def test_what_a_task_raised_is_said_without_its_traceback() -> None:
    trace = (
        "Traceback (most recent call last):\n  File x, line 3\nxrec.storage.shared.SharedRowsError: s3://b/x: mend it"
    )
    assert describe_error(Py4JError(f"{_TASK}writing\n\tat a\nCaused by: org.PythonException: {trace}\n\tat z")) == (
        "s3://b/x: mend it"
    )


def test_times_are_those_of_utc_whatever_the_zone_of_the_machine(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/Los_Angeles")
    time.tzset()
    row = build_session("test").sql("select timestamp'2024-07-01 12:00:00Z'").first()
    assert row is not None
    assert row[0] == datetime(2024, 7, 1, 12)


def test_a_model_that_nobody_blends_is_not_trained() -> None:
    def names(*sources: str, only: tuple[str, ...] = ()) -> list[str]:
        return [stage.name for stage in select_stages(None, None, only, sources)]

    assert names("popularity", "word2vec", "als", "gru", "transformer") == list(STAGE_NAMES)
    trains = {"train_als", "export_sequences", "train_gru", "train_transformer", "load_vectors"}
    left_out = {*trains, "make_item_vectors"}
    assert names("popularity", "recent") == [name for name in STAGE_NAMES if name not in left_out]
    assert set(names("als", "gru")) & trains == trains - {"train_transformer"}
    assert set(names("als_trend", "gru_trend")) & trains == trains - {"train_transformer"}
    assert names("popularity", only=("train_gru",)) == ["train_gru"], "who asks for it gets it"


def test_the_model_that_gives_item_vectors_is_trained_for_the_sequence_models() -> None:
    def needed(sources: str, vectors: str) -> tuple[str, ...]:
        return needed_sources(load_settings([], [f"ranking.sources=[{sources}]", f"sequence.item_vectors={vectors}"]))

    assert needed("popularity,gru", "als") == ("popularity", "gru", "als")
    assert needed("popularity,gru", "text_svd") == ("popularity", "gru", "text_svd")
    assert needed("popularity,gru_trend", "als") == ("popularity", "gru_trend", "als")
    assert needed("popularity,gru", "null") == ("popularity", "gru")
    assert needed("popularity,recent", "als") == ("popularity", "recent")
    overrides = ["ranking.sources=[popularity,gru]", "sequence.item_vectors=als", "sequence.changed_since=latest"]
    encoded = load_settings([], overrides)
    assert needed_sources(encoded) == ("popularity", "gru"), "what is not trained is given nothing"
    by_name = {stage.name: stage for stage in STAGES}
    assert reads_of(by_name["load_vectors"], encoded) == ("sequences",)
    assert set(reads_of(by_name["export_sequences"], encoded)) == {
        "training_events",
        "items",
        "interactions",
        "vocabulary",
        "sequences",
    }


def test_the_plan_names_what_filters_read_and_write() -> None:
    by_name = {stage.name: stage for stage in STAGES}

    def extra(settings: Settings, stage: str) -> tuple[set[str], set[str]]:
        info = by_name[stage]
        return set(reads_of(info, settings)) - set(info.reads), set(writes_of(info, settings)) - set(info.writes)

    conf = Path(__file__).resolve().parent.parent / "conf"
    without, filtered = (load_settings([conf / f"example_{name}.yaml"]) for name in ("csv", "filters"))
    given = {"export_sequences": {"vectors"}}
    assert all(extra(without, name) == (given.get(name, set()), set()) for name in STAGE_NAMES)
    feeds = {"item_filters", "user_filters", "blocked_pairs"}
    assert extra(filtered, "ingest") == (set(), feeds)
    assert extra(filtered, "candidates") == ({"users", *feeds}, set())
    assert feeds == extra(filtered, "publish")[0]
    assert extra(filtered, "evaluate") == (set(), set())
