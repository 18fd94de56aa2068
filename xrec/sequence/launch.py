"""Starts the ranks: by Spark (``horovod.spark.run``) or as one that horovodrun started. The one file that sees both engines.

The training function is the same under both. One launch trains all folds of a run, because starting takes as long as an
epoch. Without Spark (GPU hosts) the folds and table versions come from the files beside the export.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import horovod.torch as hvd
import torch

from xrec.config import Settings
from xrec.features.sequence_files import read_exported_folds
from xrec.sequence.checkpoint import Progress
from xrec.sequence.encode import encode_all
from xrec.sequence.journal import Following, Journal
from xrec.sequence.spec import TrainingSpec
from xrec.sequence.trainer import Trainer
from xrec.storage.files import absolute

Figures = dict[str, str]


class LaunchError(ValueError):
    """Processes that cannot all start; the message says what is missing."""


def train_all(specs: Sequence[TrainingSpec], journal: str | None = None) -> list[Progress]:
    """Train and encode one fold after the other; every rank calls this, and rank 0 reports.

    A run that is killed leaves its trainings open: the same run again resumes each where it was.

    Parameters
    ----------
    journal
        Where rank 0's lines go, for a driver that follows them; None: to standard output.
    """
    hvd.init()
    try:
        say = _say_nothing if hvd.rank() else Journal(journal).say if journal else _print
        sequence = specs[0].settings.sequence
        if sequence.num_shards % hvd.size():
            raise LaunchError(
                f"sequence.num_shards: found {sequence.num_shards}, expected a multiple of the {hvd.size()} processes"
            )
        threads = sequence.threads or max(1, _num_cores() // hvd.local_size())
        torch.set_num_threads(threads)
        device = _device()
        trained = []
        for spec in specs:
            trainer = Trainer(spec, device, say)
            progress = trainer.run()
            staged = encode_all(spec, trainer.model, device)
            say(f"{spec.model} {spec.export.fold}: {staged.users:,} users and {staged.items:,} items encoded")
            trained.append((trainer, progress))
        for trainer, progress in trained:
            trainer.close(progress)
        return [progress for _, progress in trained]
    finally:
        hvd.shutdown()


def train_under_spark(context: Any, model: str) -> Figures:
    """Train a model on all folds of the context's run, in Spark tasks; gives the main fold's figures."""
    settings: Settings = context.settings
    specs = [TrainingSpec.find(model, fold.name, settings) for fold in context.folds]
    progresses = _run_in_tasks(context.spark, specs, context.say)
    return describe_training(specs, progresses)


def _run_in_tasks(spark: Any, specs: list[TrainingSpec], say: Callable[[str], None]) -> list[Progress]:
    """``train_all`` in as many Spark tasks at the same time as there are processes; gives rank 0's answer.

    ``say`` gets rank 0's lines as they come.

    Raises
    ------
    LaunchError
        Spark has fewer task slots, or the processes do not all start in time.
    """
    import horovod.spark  # noqa: PLC0415 - it imports pyspark, which a rank on a GPU host does not have

    sequence = specs[0].settings.sequence
    slots = spark.sparkContext.defaultParallelism
    need = f"sequence.num_processes={sequence.num_processes} need as many free task slots at the same moment"
    if slots < sequence.num_processes:
        raise LaunchError(
            f"Spark has {slots} task slots: {need}; submit with --master 'local[{sequence.num_processes}]' or with enough "
            f"executor cores, or set sequence.num_processes={slots}"
        )
    journal = specs[0].journal
    try:
        with Following(journal, say):
            answers = horovod.spark.run(
                train_all,
                args=(specs, journal),
                num_proc=sequence.num_processes,
                start_timeout=sequence.start_timeout,
                use_gloo=True,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
                stdout=sys.stdout,
                stderr=sys.stderr,
                verbose=0,
            )
    except TimeoutError as error:
        raise LaunchError(
            f"not all training processes started within sequence.start_timeout={sequence.start_timeout} s: {need}; other "
            f"applications may hold them ({error})"
        ) from None
    return list(answers[0])


def run_as_rank(model: str, settings: Settings) -> None:
    """Train a model on all folds of the last export, as one of the ranks that horovodrun started; no JVM is needed."""
    folds = read_exported_folds(absolute(settings.storage.artifacts_root))
    specs = [TrainingSpec.find(model, fold, settings) for fold in folds]
    progresses = train_all(specs)
    if os.environ.get("HOROVOD_RANK", "0") == "0":
        for figure, value in describe_training(specs, progresses).items():
            print(f"    {figure}: {value}", flush=True)


def describe_training(specs: Sequence[TrainingSpec], progresses: Sequence[Progress]) -> Figures:
    """Figures of the main fold's training; its validation metric is left out, because it is not to be reported."""
    spec, progress = specs[-1], progresses[-1]
    return {
        "epochs": f"{progress.last} of {spec.settings.sequence.epochs} (best {progress.best})",
        "loss": " ".join(f"{epoch.loss:.3f}" for epoch in progress.epochs),
        "vocabulary": f"{spec.export.vocabulary_size:,} items",
        "seconds an epoch": f"{sum(epoch.seconds for epoch in progress.epochs) / progress.last:.1f}",
        "processes": f"{spec.settings.sequence.num_processes}",
        "digest": spec.digest,
    }


def _device() -> torch.device:
    """The rank's own GPU where there is one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(hvd.local_rank())
    return torch.device("cuda", hvd.local_rank())


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _print(line: str) -> None:
    print(line, flush=True)


def _say_nothing(line: str) -> None:
    """The other ranks have nothing to add."""
