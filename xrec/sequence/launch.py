"""Starts the ranks: by Spark (``horovod.spark.run``) or as one that horovodrun started. The one file that sees both engines.

One launch trains all folds of a run, because starting takes as long as an epoch. Without Spark (GPU hosts) the folds and
table versions come from the files beside the export. Torch, which takes seconds to import, is for the ranks alone: the
driver never loads it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from xrec.config import Settings
from xrec.features.sequence_files import read_exported_folds
from xrec.features.vector_files import Staged
from xrec.sequence.journal import Following
from xrec.sequence.progress import Progress
from xrec.sequence.spec import LaunchError, LostRankError, RankError, TrainingSpec, Trial
from xrec.storage.files import absolute, exists, read_json, remove, write_json

Figures = dict[str, str]
SELECT = "select-"
"""What the names of select folds begin with."""


def train_under_spark(context: Any, model: str) -> Figures:
    """Train a model on all folds of the context's run, or encode who changed, in Spark tasks; gives the main fold's figures."""
    settings: Settings = context.settings
    specs = TrainingSpec.plan(model, [fold.name for fold in context.folds], settings)
    if settings.sequence.changed_since is not None:
        return describe_encoding(specs, _run_in_tasks(context.spark, specs[0], _encode, specs, context.say))
    progresses = _run_in_tasks(context.spark, specs[0], _train, specs, context.say)
    return describe_training(specs, progresses)


def tune_under_spark(context: Any) -> Figures:
    """Search the settings of a model on the newest select fold of the last export, in Spark tasks; gives what was found."""
    settings: Settings = context.settings
    spec = select_spec(settings)
    context.say(f"tuning {spec.model} on the validation users of {spec.export.fold}")
    return describe_trials(_run_in_tasks(context.spark, spec, _tune, spec, context.say))


def tune_as_rank(settings: Settings) -> None:
    """The same as one of the ranks that horovodrun started; no JVM is needed."""
    trials = _tune(select_spec(settings))
    if os.environ.get("HOROVOD_RANK", "0") == "0":
        _print_figures(describe_trials(trials))


def select_spec(settings: Settings) -> TrainingSpec:
    """The training that settings are searched by; raises where the last export has no select fold."""
    if settings.sequence.changed_since is not None:
        raise LaunchError(
            f"sequence.changed_since: found {settings.sequence.changed_since}, expected null: a search trains, leave it out"
        )
    artifacts = absolute(settings.storage.artifacts_root)
    folds = [fold for fold in read_exported_folds(artifacts) if fold.startswith(SELECT)]
    if not folds:
        raise LaunchError(
            f"{artifacts}/exports.json: found no select fold, expected one, because a test fold never picks a setting; set "
            "folds.num_select=1 (or more) and run the pipeline until export_sequences"
        )
    return TrainingSpec.plan(settings.tuning.model, folds[-1:], settings)[0]


def describe_trials(trials: Sequence[Trial]) -> Figures:
    """The best trial and all, by number."""
    best = max(trials, key=lambda trial: round(trial.ndcg, 9))
    return {
        "best": " ".join(f"--set {override}" for override in best.overrides),
        "validation_ndcg": f"{best.ndcg:.4f} (the settings as they were: {trials[0].ndcg:.4f})",
        **{f"trial {number}": str(trial) for number, trial in enumerate(trials, start=1)},
    }


def _run_in_tasks(spark: Any, spec: TrainingSpec, work: Callable[..., Any], of: Any, say: Callable[[str], None]) -> Any:
    """The ranks in as many Spark tasks at the same time as there are processes; gives rank 0's answer.

    Each calls ``work(of, journal)``; ``say`` gets rank 0's lines as they come.

    Raises
    ------
    LaunchError
        Local Spark has fewer task slots, or the processes do not all start in time.
    RankError
        A rank found something wrong.
    """
    # They import pyspark, which a rank on a GPU host does not have.
    import horovod.spark  # noqa: PLC0415
    from horovod.runner.common.util.timeout import TimeoutException  # noqa: PLC0415

    sequence = spec.settings.sequence
    need = f"sequence.num_processes={sequence.num_processes} need as many free task slots at the same moment"
    # On a cluster executors may still be on their way: sequence.start_timeout waits for them.
    is_local = re.match(r"local(\[|$)", spark.sparkContext.master)
    if is_local and (slots := spark.sparkContext.defaultParallelism) < sequence.num_processes:
        raise LaunchError(
            f"Spark has {slots} task slots: {need}; submit with --master 'local[{sequence.num_processes}]', or set "
            f"sequence.num_processes={slots}"
        )
    journal = spec.journal
    for complaint in _complaints(journal):
        remove(complaint)
    try:
        with Following(journal, say):
            answers = horovod.spark.run(
                _as_rank,
                args=(work, of, journal),
                num_proc=sequence.num_processes,
                start_timeout=sequence.start_timeout,
                use_gloo=True,
                env={**spec.settings.privacy.without_key(os.environ), "PYTHONWARNINGS": "ignore"},
                stdout=sys.stdout,
                stderr=sys.stderr,
                verbose=0,
            )
    except TimeoutException:
        raise LaunchError(
            f"not all training processes started within sequence.start_timeout={sequence.start_timeout} s: {need}. "
            "Give the application more executor cores, set fewer processes, or wait longer; other applications may hold the slots, "
            "on a standalone cluster the very pipeline that waits for its training: without spark.cores.max it takes all there are"
        ) from None
    except RuntimeError:
        for complaint in _complaints(journal):
            if exists(complaint):
                raise RankError(read_json(complaint)["message"]) from None
        raise
    return answers[0]


def run_as_rank(model: str, settings: Settings) -> None:
    """The same on all folds of the last export, as one of the ranks that horovodrun started; no JVM is needed."""
    trains = settings.sequence.changed_since is None
    specs = TrainingSpec.plan(
        model, read_exported_folds(absolute(settings.storage.artifacts_root), trains=trains), settings
    )
    figures = describe_training(specs, _train(specs)) if trains else describe_encoding(specs, _encode(specs))
    if os.environ.get("HOROVOD_RANK", "0") == "0":
        _print_figures(figures)


def describe_training(specs: Sequence[TrainingSpec], progresses: Sequence[Progress]) -> Figures:
    """Figures of the main fold's training; its validation metric is left out, because it is not to be reported."""
    spec, progress = specs[-1], progresses[-1]
    of_folds = [(one.export.fold, progress) for one, progress in zip(specs, progresses, strict=True)]
    left_out = [fold for fold, progress in of_folds if not progress.epochs]
    oldest, first = next((fold, progress) for fold, progress in of_folds if progress.epochs)
    goes_on_from = progress.goes_on_from
    if spec.earlier and first is not progress and specs[0].start_from is not None:
        goes_on_from += f"; {oldest} from {first.goes_on_from}"
    return {
        **({"nothing to learn from": ", ".join(left_out)} if left_out else {}),
        "epochs": f"{progress.last} of {spec.epochs} (best {progress.best})",
        "goes_on_from": goes_on_from,
        "loss": " ".join(f"{epoch.loss:.3f}" for epoch in progress.epochs),
        "vocabulary": f"{spec.export.vocabulary_size:,} items",
        "seconds an epoch": f"{sum(epoch.seconds for epoch in progress.epochs) / progress.last:.1f}",
        "processes": _num_processes(spec),
        "digest": spec.digest,
    }


def describe_encoding(specs: Sequence[TrainingSpec], encoded: Sequence[Staged]) -> Figures:
    """Figures of the main fold where nothing was trained."""
    return {
        "trained": f"nothing: the model of {specs[-1].export.trained_on} encodes",
        "users encoded": f"{encoded[-1].users:,}",
        "processes": _num_processes(specs[-1]),
        "digest": specs[-1].digest,
    }


def _num_processes(spec: TrainingSpec) -> str:
    """Those that horovodrun started, or that Spark was asked for."""
    return os.environ.get("HOROVOD_SIZE", f"{spec.settings.sequence.num_processes}")


def _print_figures(figures: Figures) -> None:
    for figure, value in figures.items():
        print(f"    {figure}: {value}", flush=True)


def _train(specs: Sequence[TrainingSpec], journal: str | None = None) -> list[Progress]:
    from xrec.sequence.ranks import train_all  # noqa: PLC0415 - it imports torch

    return train_all(specs, journal)


def _encode(specs: Sequence[TrainingSpec], journal: str | None = None) -> list[Staged]:
    from xrec.sequence.ranks import encode_changed  # noqa: PLC0415 - it imports torch

    return encode_changed(specs, journal)


def _tune(spec: TrainingSpec, journal: str | None = None) -> list[Trial]:
    from xrec.sequence.ranks import tune_one  # noqa: PLC0415 - it imports torch

    return tune_one(spec, spec.settings.tuning, journal)


def _as_rank(work: Callable[..., Any], of: Any, journal: str) -> Any:
    try:
        return work(of, journal)
    except Exception as error:
        # Horovod tells the driver no more than that a process has ended.
        own, of_another = _complaints(journal)
        message = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):  # the disk that is full may be this one
            write_json(of_another if isinstance(error, LostRankError) else own, {"message": message})
        raise


def _complaints(journal: str) -> tuple[str, str]:
    """Where a rank leaves what it could not go on with: first what was wrong with itself, then with another."""
    return f"{journal}.error", f"{journal}.lost"
