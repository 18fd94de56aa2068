"""Real Horovod processes, by both launchers: the same loss curve as one process, resuming after a kill, clear errors."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from horovod.runner.common.util.timeout import TimeoutException
from pyspark.sql import SparkSession

from sequence_world import FOLD, NUM_COLD, VOCABULARY, settings_at, spec_of, write_world
from xrec import columns as C
from xrec.features.staged_vectors import find_staged, read_vectors
from xrec.features.vector_files import read_staged
from xrec.sequence import exchange
from xrec.sequence.checkpoint import find_progress
from xrec.sequence.launch import _run_in_tasks, _train
from xrec.sequence.progress import Progress, load_progress
from xrec.sequence.ranks import _num_cores, train_all
from xrec.sequence.spec import LaunchError, RankError, TrainingSpec
from xrec.storage.files import exists, read_json, write_json

pytestmark = [pytest.mark.torch, pytest.mark.horovod]

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 3


def job(model: str, root: Path, *overrides: str) -> list[str]:
    command = [sys.executable, str(ROOT / "jobs" / f"train_{model}.py"), "--config", str(root / "settings.yaml")]
    for override in ("sequence.launcher=horovodrun", *overrides):
        command += ["--set", override]
    return command


def run_in_two(script: str, root: Path, *, answer_timeout: int) -> subprocess.CompletedProcess[str]:
    """A script in the place of the GRU's job, as two processes of horovodrun."""
    (root / "script.py").write_text(script)
    override = ("sequence.num_processes=2", f"sequence.answer_timeout={answer_timeout}")
    command = [sys.executable, str(root / "script.py"), *job("gru", root, *override)[2:]]
    return subprocess.run(
        [str(Path(sys.executable).with_name("horovodrun")), "-np", "2", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def losses(progress: Any) -> list[float]:
    return [epoch.loss for epoch in progress.epochs]


NEW_CATEGORIES = {"objective": "new_categories", "item_vectors": "als", "item_content": ["text"], "left_out": 0.3}


def train_here(model: str, root: Path, **sequence: Any) -> Any:
    """The same world and settings in this one process."""
    settings = settings_at(root, epochs=EPOCHS, **sequence)
    write_world(root, settings, tastes=bool(sequence), vectors=bool(sequence))
    return settings, train_all([spec_of(model, settings)])[0]


def train_in_tasks(spark: SparkSession, spec: TrainingSpec, say: Callable[[str], None]) -> Progress:
    """One training by horovod.spark."""
    progresses: list[Progress] = _run_in_tasks(spark, spec, _train, [spec], say)
    return progresses[0]


def staged_vectors(settings: Any, model: str) -> dict[tuple[str, int], list[float]]:
    folder, staged = find_staged(settings, FOLD, model)
    rows = [row for name in staged.parts for row in pq.read_table(f"{folder}/{name}").to_pylist()]
    vectors = {(row[C.KIND], row[C.IDX]): row[C.VECTOR] for row in rows}
    assert len(vectors) == len(rows) == staged.users + staged.items
    return vectors


def assert_same_training(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(losses(found), losses(expected), rtol=1e-4)
    assert [epoch.ndcg for epoch in found.epochs] == pytest.approx([epoch.ndcg for epoch in expected.epochs], abs=0.01)


def test_two_processes_of_horovodrun_take_the_steps_of_one(tmp_path: Path) -> None:
    one, expected = train_here("gru", tmp_path / "one")
    two = settings_at(tmp_path / "two", epochs=EPOCHS)
    write_world(tmp_path / "two", two)
    horovodrun = [str(Path(sys.executable).with_name("horovodrun")), "-np", "2"]
    ran = subprocess.run(
        [*horovodrun, *job("gru", tmp_path / "two")],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "JAVA_HOME": "/nowhere"},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    spec = spec_of("gru", two)
    assert_same_training(load_progress(spec.checkpoint), expected)
    assert ran.stdout.count(f"gru {FOLD}: epoch 1/{EPOCHS}, loss") == 1, "one line an epoch, by rank 0"
    assert set(read_staged(spec.staging, "gru").parts) == {"part-0.parquet", "part-1.parquet"}
    from_one, from_two = staged_vectors(one, "gru"), staged_vectors(two, "gru")
    assert set(from_one) == set(from_two)
    for key, vector in from_one.items():
        np.testing.assert_allclose(from_two[key], vector, rtol=0.05, atol=0.05)


@pytest.mark.spark
def test_two_processes_of_spark_take_the_steps_of_one(spark: SparkSession, tmp_path: Path) -> None:
    _, expected = train_here("transformer", tmp_path / "one", **NEW_CATEGORIES)
    two = settings_at(tmp_path / "two", epochs=EPOCHS, **NEW_CATEGORIES)
    write_world(tmp_path / "two", two, tastes=True, vectors=True)
    lines: list[tuple[str, float]] = []
    progress = train_in_tasks(spark, spec_of("transformer", two), lambda line: lines.append((line, time.monotonic())))
    ended = time.monotonic()
    assert_same_training(progress, expected)
    said = [(line, at) for line, at in lines if "epoch" in line]
    assert [line.split(",")[0] for line, _ in said] == [
        f"transformer {FOLD}: epoch {number}/{EPOCHS}" for number in range(1, EPOCHS + 1)
    ]
    after_the_first = sum(epoch.seconds for epoch in progress.epochs[1:])
    assert ended - said[0][1] >= 0.5 * after_the_first, (
        "an epoch's line comes when the epoch ends, not when the run does"
    )
    rows = read_vectors(spark, *find_staged(two, FOLD, "transformer"))
    num_items = VOCABULARY + NUM_COLD
    assert {tuple(row) for row in rows.groupBy(C.KIND).count().collect()} == {("user", 400), ("item", num_items)}


@pytest.mark.spark
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # Horovod's, whose Spark job ends with it
def test_what_a_rank_cannot_go_on_with_is_said_in_its_words(spark: SparkSession, tmp_path: Path) -> None:
    """And no more by the next launch, which has nothing to complain of."""
    settings = settings_at(tmp_path, epochs=1)
    write_world(tmp_path, settings, num_users=20, target_weight=0.0)
    with pytest.raises(RankError, match=f"^fold {FOLD}: found no event to learn from .* lower sequence.min_buyers"):
        train_in_tasks(spark, spec_of("gru", settings), lambda line: None)
    other = settings_at(tmp_path / "other", epochs=1)
    write_world(tmp_path / "other", other, num_users=20)
    write_json(f"{spec_of('gru', other).journal}.error", {"message": "long ago"})
    assert train_in_tasks(spark, spec_of("gru", other), lambda line: None).last == 1
    assert not exists(f"{spec_of('gru', other).journal}.error")


@pytest.mark.spark
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_rank_that_is_killed_under_spark_is_an_error_in_words(spark: SparkSession, tmp_path: Path) -> None:
    """And the same call goes on from the last checkpoint."""
    settings = settings_at(tmp_path, epochs=20)
    write_world(tmp_path, settings)
    spec = spec_of("gru", settings)

    def kill_one(line: str) -> None:
        if "epoch 2/" in line:
            ranks_of(os.getpid(), "horovod.spark.task")[-1].kill()

    with pytest.raises(
        RankError, match=r"another process of the training ended, or .* goes on from the last checkpoint"
    ):
        train_in_tasks(spark, spec, kill_one)
    killed = load_progress(spec.checkpoint)
    assert killed is not None
    assert 2 <= killed.last < 20
    shorter: list[str] = []
    train_in_tasks(spark, spec, shorter.append)
    assert f"gru {FOLD}: resuming after epoch {killed.last}" in shorter[0]


def test_a_rank_that_answers_no_more_ends_the_training_in_time(tmp_path: Path) -> None:
    settings = settings_at(tmp_path, epochs=500, patience=500)
    write_world(tmp_path, settings)
    horovodrun = [str(Path(sys.executable).with_name("horovodrun")), "-np", "2"]
    override = ("sequence.num_processes=2", "sequence.answer_timeout=5")
    with (tmp_path / "said").open("w") as said:
        running = subprocess.Popen([*horovodrun, *job("gru", tmp_path, *override)], stdout=said, stderr=said)
        try:
            for _ in range(1200):
                progress = load_progress(spec_of("gru", settings).checkpoint)
                if (progress and progress.last >= 1) or running.poll() is not None:
                    break
                time.sleep(0.05)
            ranks_of(running.pid, "train_gru")[-1].suspend()
            stopped = time.monotonic()
            running.wait(timeout=60)
        finally:
            for one in ranks_of(running.pid, ""):
                one.kill()
            running.kill()
    assert running.returncode != 0
    assert time.monotonic() - stopped < 60
    text = (tmp_path / "said").read_text()
    assert "gave no answer within sequence.answer_timeout=5 s" in text
    assert "Horovod says: " in text


HELD_UP = """
import time
import horovod.torch as hvd
from xrec.runs.training import main
from xrec.sequence.trainer import Trainer

train_epoch = Trainer.train_epoch

def train_or_wait(self, epoch, *others):
    if hvd.rank() == 1 and epoch == 2:
        time.sleep(600)
    return train_epoch(self, epoch, *others)

Trainer.train_epoch = train_or_wait
main("gru")
"""


KILLED_WITHIN = """
import itertools
import os
import horovod.torch as hvd
from xrec.runs.training import main
from xrec.sequence import trainer
from xrec.sequence.optimization import Optimization

take_step = Optimization.step
steps = itertools.count(1)
hours = itertools.count()

class Clock:
    perf_counter = trainer.time.perf_counter

    @staticmethod
    def monotonic():
        return 3600.0 * next(hours) if hvd.rank() == 0 else 0.0

def take_step_or_die(self, step, num_steps, sums, is_late):
    taken = take_step(self, step, num_steps, sums, is_late)
    if hvd.rank() == 1 and next(steps) == num_steps // NUM_EPOCHS + 4:
        os._exit(1)
    return taken

trainer.time = Clock
Optimization.step = take_step_or_die
main("gru")
"""


def test_two_processes_save_within_an_epoch_and_one_goes_on_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the clock of process 0 alone; the other is killed in the fourth step of the second epoch."""
    _, expected = train_here("gru", tmp_path / "whole")
    settings = settings_at(tmp_path / "killed", epochs=EPOCHS)
    write_world(tmp_path / "killed", settings)
    ran = run_in_two(KILLED_WITHIN.replace("NUM_EPOCHS", str(EPOCHS)), tmp_path / "killed", answer_timeout=20)
    assert ran.returncode != 0, ran.stdout + ran.stderr
    spec = spec_of("gru", settings)
    found = find_progress(spec.checkpoint, print)
    assert found is not None
    assert found.begun is not None, ran.stdout + ran.stderr
    assert (found.last, found.begun.steps, len(found.begun.sums)) == (1, 3, 2)
    capfd.readouterr()
    progress = train_all([spec])[0]
    assert "resuming after epoch 1 and 3 steps of the next from" in capfd.readouterr().out
    assert_same_training(progress, expected)


def test_a_rank_that_is_held_up_ends_the_training_in_time(tmp_path: Path) -> None:
    """Its process lives, and Horovod's thread in it answers."""
    settings = settings_at(tmp_path, epochs=500, patience=500)
    write_world(tmp_path, settings)
    ran = run_in_two(HELD_UP, tmp_path, answer_timeout=4)
    assert ran.returncode != 0
    text = ran.stdout + ran.stderr
    assert "gave no answer within sequence.answer_timeout=4 s" in text
    assert "the same command goes on from the last checkpoint" in text
    progress = load_progress(spec_of("gru", settings).checkpoint)
    assert progress is not None
    assert progress.last == 1


def ranks_of(parent: int, name: str) -> list[psutil.Process]:
    """The Python processes below one that have a name in their command line, oldest first."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in psutil.Process(parent).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "python" in one.name() and name in " ".join(one.cmdline()):
                    found.append(one)
    return sorted(found, key=lambda one: one.pid)


@pytest.mark.spark
def test_missing_slots_are_named_at_once(spark: SparkSession, tmp_path: Path) -> None:
    settings = settings_at(tmp_path, num_processes=4)
    write_world(tmp_path, settings, num_users=20)
    with pytest.raises(LaunchError, match=r"Spark has 2 task slots: sequence.num_processes=4 need"):
        train_in_tasks(spark, spec_of("gru", settings), print)


def test_a_cluster_is_waited_for_and_its_ranks_get_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_at(tmp_path, num_processes=4)
    write_world(tmp_path, settings, num_users=20)
    monkeypatch.setenv("XREC_PSEUDONYM_KEY", "k" * 32)
    run = MagicMock(return_value=["trained"])
    monkeypatch.setattr("horovod.spark.run", run)
    yarn: Any = SimpleNamespace(sparkContext=SimpleNamespace(master="yarn", defaultParallelism=2))
    assert _run_in_tasks(yarn, spec_of("gru", settings), _train, [], print) == "trained"
    given = run.call_args.kwargs["env"]
    assert given.keys() - {"PYTHONWARNINGS"} == os.environ.keys() - {"XREC_PSEUDONYM_KEY", "PYTHONWARNINGS"}
    run.side_effect = TimeoutException("Timed out waiting for Spark tasks to start.")
    with pytest.raises(
        LaunchError, match=r"sequence.start_timeout=300 s: .*=4 need .* without spark.cores.max it takes all"
    ):
        _run_in_tasks(yarn, spec_of("gru", settings), _train, [], print)


def test_a_killed_training_goes_on_where_it_was(tmp_path: Path) -> None:
    settings = settings_at(tmp_path, epochs=12)
    write_world(tmp_path, settings)
    spec = spec_of("transformer", settings)
    running = subprocess.Popen(job("transformer", tmp_path), stdout=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            progress = load_progress(spec.checkpoint)
            if (progress and progress.last >= 2) or running.poll() is not None:
                break
            time.sleep(0.05)
    finally:
        running.kill()
        running.wait()
    killed = load_progress(spec.checkpoint)
    assert killed is not None
    assert 2 <= killed.last < 12, "it was killed midway"
    assert not killed.closed
    ran = subprocess.run(job("transformer", tmp_path), capture_output=True, text=True, check=True, timeout=300)
    assert f"transformer {FOLD}: resuming after epoch {killed.last}" in ran.stdout
    resumed = load_progress(spec.checkpoint)
    assert resumed is not None
    assert resumed.closed
    assert losses(resumed)[: killed.last] == losses(killed)
    undisturbed = train_all([spec])[0]
    np.testing.assert_allclose(losses(resumed), losses(undisturbed), rtol=1e-3)


class Built:
    """What Horovod says of itself on rank ``local_rank`` of two on one machine."""

    Sum = "sum"

    def __init__(self, *, nccl: bool, local_rank: int = 1) -> None:
        self.nccl_built = lambda: nccl
        self.local_rank = lambda: local_rank
        self.size = self.local_size = lambda: 2
        self.handed: list[torch.Tensor] = []

    def grouped_allreduce_(self, tensors: list[torch.Tensor], op: str, name: str) -> None:
        self.handed += tensors
        for tensor in tensors:
            tensor.mul_(2)

    def broadcast_parameters(self, tensors: dict[str, torch.Tensor], root_rank: int) -> None:
        self.handed += tensors.values()
        for name, tensor in tensors.items():
            tensor.fill_(len(name))


def test_horovod_is_handed_what_it_can_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's tensors by copies where it was built without NCCL; here their values lie in the host's memory too."""
    for nccl in (True, False):
        monkeypatch.setattr(exchange, "hvd", Built(nccl=nccl))
        assert exchange.goes_through_host(torch.device("cuda", 0)) == (not nccl)
        assert not exchange.goes_through_host(torch.device("cpu"))
    for is_out_of_reach in (False, True):
        monkeypatch.setattr(exchange, "hvd", built := Built(nccl=False))
        monkeypatch.setattr(exchange, "goes_through_host", lambda device, answer=is_out_of_reach: answer)
        tensors = [torch.ones(2, 3), torch.tensor(5.0)]
        exchange.sum_over_ranks(tensors, name="gradients")
        assert [tensor.sum().item() for tensor in tensors] == [12, 10]
        named = {"a": tensors[0], "weights": tensors[1]}
        exchange.share_first(named)
        assert [tensor.sum().item() for tensor in tensors] == [6, 7]
        given = [any(one is tensor for tensor in tensors) for one in built.handed]
        assert given == [not is_out_of_reach] * 4
    monkeypatch.setattr(Built, "grouped_allreduce_", None)
    built.size = lambda: 1
    exchange.sum_over_ranks(tensors, name="gradients")


def test_processes_share_a_gpu_where_there_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "hvd", Built(nccl=False))
    assert [str(exchange.choose_device(num)) for num in (0, 1, 2)] == ["cpu", "cuda:0", "cuda:1"]
    monkeypatch.setattr(exchange, "hvd", Built(nccl=True))
    assert [str(exchange.choose_device(num)) for num in (0, 2)] == ["cpu", "cuda:1"]
    with pytest.raises(LaunchError, match=r"found 2 processes on a machine of 1 GPUs, expected at most one a GPU"):
        exchange.choose_device(1)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_threads_are_those_that_a_container_has_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    assert _num_cores(tmp_path) == expected


def test_an_unfinished_training_of_other_settings_is_not_resumed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings, _ = train_here("gru", tmp_path)
    location = f"{spec_of('gru', settings).checkpoint}/progress.json"
    write_json(location, {**read_json(location), "closed": False, "done": False})
    capfd.readouterr()
    other = settings_at(tmp_path, epochs=EPOCHS, learning_rate=0.001)
    progress = train_all([spec_of("gru", other)])[0]
    assert "starting afresh" in capfd.readouterr().out
    assert progress.last == EPOCHS


def test_a_rank_names_what_is_missing_and_exits_with_2(tmp_path: Path) -> None:
    settings_at(tmp_path)
    ran = subprocess.run(job("gru", tmp_path), capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 2
    assert "exports.json: no such file; run the stage export_sequences" in ran.stderr
    assert "Traceback" not in ran.stderr
