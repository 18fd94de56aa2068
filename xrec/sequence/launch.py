"""Starts the ranks: by Spark (``horovod.spark.run``) or as one that horovodrun started. The one file that sees both engines.

One launch trains all folds of a run, because starting takes as long as an epoch. Without Spark (GPU hosts) the folds and
table versions come from the files beside the export. Torch, which takes seconds to import, is for the ranks alone: the
driver never loads it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from xrec.config import Settings
from xrec.features.sequence_files import read_exported_folds
from xrec.sequence.journal import Following
from xrec.sequence.progress import Progress
from xrec.sequence.spec import LaunchError, LostRankError, RankError, TrainingSpec
from xrec.storage.files import absolute, exists, read_json, remove, write_json

Figures = dict[str, str]


def train_under_spark(context: Any, model: str) -> Figures:
    """Train a model on all folds of the context's run, in Spark tasks; gives the main fold's figures."""
    settings: Settings = context.settings
    specs = TrainingSpec.plan(model, [fold.name for fold in context.folds], settings)
    progresses = _run_in_tasks(context.spark, specs, context.say)
    return describe_training(specs, progresses)


def _run_in_tasks(spark: Any, specs: list[TrainingSpec], say: Callable[[str], None]) -> list[Progress]:
    """The ranks in as many Spark tasks at the same time as there are processes; gives rank 0's answer.

    ``say`` gets rank 0's lines as they come.

    Raises
    ------
    LaunchError
        Spark has fewer task slots, or the processes do not all start in time.
    RankError
        A rank found something wrong.
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
    for complaint in _complaints(journal):
        remove(complaint)
    try:
        with Following(journal, say):
            answers = horovod.spark.run(
                _as_rank,
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
    except RuntimeError:
        for complaint in _complaints(journal):
            if exists(complaint):
                raise RankError(read_json(complaint)["message"]) from None
        raise
    return list(answers[0])


def run_as_rank(model: str, settings: Settings) -> None:
    """Train a model on all folds of the last export, as one of the ranks that horovodrun started; no JVM is needed."""
    folds = read_exported_folds(absolute(settings.storage.artifacts_root))
    specs = TrainingSpec.plan(model, folds, settings)
    progresses = _as_rank(specs)
    if os.environ.get("HOROVOD_RANK", "0") == "0":
        for figure, value in describe_training(specs, progresses).items():
            print(f"    {figure}: {value}", flush=True)


def describe_training(specs: Sequence[TrainingSpec], progresses: Sequence[Progress]) -> Figures:
    """Figures of the main fold's training; its validation metric is left out, because it is not to be reported."""
    spec, progress = specs[-1], progresses[-1]
    return {
        "epochs": f"{progress.last} of {spec.epochs} (best {progress.best})",
        "goes_on_from": spec.earlier[-1] if spec.earlier else "nothing",
        "loss": " ".join(f"{epoch.loss:.3f}" for epoch in progress.epochs),
        "vocabulary": f"{spec.export.vocabulary_size:,} items",
        "seconds an epoch": f"{sum(epoch.seconds for epoch in progress.epochs) / progress.last:.1f}",
        "processes": f"{spec.settings.sequence.num_processes}",
        "digest": spec.digest,
    }


def _as_rank(specs: Sequence[TrainingSpec], journal: str | None = None) -> list[Progress]:
    from xrec.sequence.ranks import train_all  # noqa: PLC0415 - it imports torch

    try:
        return train_all(specs, journal)
    except ValueError as error:
        # Horovod tells the driver no more than that a process has ended.
        if journal is not None:
            own, of_another = _complaints(journal)
            write_json(of_another if isinstance(error, LostRankError) else own, {"message": str(error)})
        raise


def _complaints(journal: str) -> tuple[str, str]:
    """Where a rank leaves what it could not go on with: first what was wrong with itself, then with another."""
    return f"{journal}.error", f"{journal}.lost"
