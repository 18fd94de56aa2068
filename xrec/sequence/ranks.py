"""What every rank does: train and encode one fold after the other, or only encode, the same under both launchers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError
from horovod.torch import functions, mpi_ops

from xrec.config import Tuning
from xrec.features.vector_files import Staged
from xrec.sequence.encode import encode_all, encoder_of, has_model, load_trained, stage_nothing
from xrec.sequence.exchange import choose_device
from xrec.sequence.int8 import check_int8
from xrec.sequence.journal import Journal
from xrec.sequence.progress import Progress
from xrec.sequence.spec import LaunchError, LostRankError, TrainingSpec, Trial
from xrec.sequence.trainer import NothingToLearnError, Say, Trainer, close
from xrec.sequence.tuning import tune
from xrec.sequence.validation import Scores
from xrec.sequence.warm_start import Learned
from xrec.storage.files import remove

_SAID = 300
"""Characters of Horovod's own message that are passed on: after its first sentences it guesses."""


def train_all(specs: Sequence[TrainingSpec], journal: str | None = None) -> list[Progress]:
    """Train and encode one fold after the other; every rank calls this, and rank 0 reports.

    A run that is killed leaves its trainings open: the same run again resumes each where it was. An older fold that holds nothing
    to learn from is left out: it has no epochs and no vectors, and later folds go on from those before it.

    Parameters
    ----------
    journal
        Where rank 0's lines go, for a driver that follows them; None: to standard output.

    Raises
    ------
    LostRankError
        Another rank ended, or gave no answer in time.
    NothingToLearnError
        The last fold holds no target.
    """
    with _joined(specs[0], journal) as (device, say):
        learned: Learned | None = None
        left_out: list[str] = []
        progresses: list[Progress] = []
        for planned in specs:
            spec = planned.without(left_out, specs[0])
            try:
                progress, learned = _train_one(spec, device, say, learned if spec.earlier else None)
            except NothingToLearnError as error:
                if planned is specs[-1]:
                    raise
                progress = _leave_out(spec, say, f"{error}")
                left_out.append(spec.export.fold)
            progresses.append(progress)
        # The newest first: where a kill comes in between, the oldest, which takes longest, is not trained again.
        for spec, progress in reversed([*zip(specs, progresses, strict=True)]):
            if progress.epochs:
                close(spec, progress)
        return progresses


def _train_one(spec: TrainingSpec, device: torch.device, say: Say, learned: Learned | None) -> tuple[Progress, Learned]:
    """Train and encode one fold; what else the training held is let go of: memory is that of one fold, however many there are."""
    trainer = Trainer(spec, device, say, learned)
    progress = trainer.run()
    encoder = encoder_of(spec, trainer.model)
    if encoder is not trainer.model:
        say(_describe_encoder(spec, trainer.score(encoder), trainer.score(trainer.model)))
    staged = encode_all(spec, trainer.model, encoder, trainer.vocabulary)
    say(f"{spec.model} {spec.export.fold}: {staged.users:,} users and {staged.items:,} items encoded")
    return progress, trainer.learned()


def encode_changed(specs: Sequence[TrainingSpec], journal: str | None = None) -> list[Staged]:
    """Encode the users of one fold after the other who changed since its model was trained; as :func:`train_all` is called."""
    with _joined(specs[0], journal) as (device, say):
        encoded = []
        for spec in specs:
            started = time.perf_counter()
            assert spec.trained_on is not None
            if spec is not specs[-1] and not has_model(spec.trained_on):
                encoded.append(stage_nothing(spec))
                say(f"{spec.model} {spec.export.fold}: left out, as {spec.export.trained_on} had nothing to learn from")
                continue
            model = load_trained(spec).to(device)
            staged = encode_all(spec, model, encoder_of(spec.trained_on, model))
            encoded.append(staged)
            seconds = time.perf_counter() - started
            who = f"{staged.users:,} users who changed since {spec.export.trained_on}"
            say(f"{spec.model} {spec.export.fold}: {who} encoded, {seconds:.1f} s")
        return encoded


def tune_one(spec: TrainingSpec, tuning: Tuning, journal: str | None = None) -> list[Trial]:
    """Search the settings of a training; as :func:`train_all` is called."""
    with _joined(spec, journal) as (device, say):
        return tune(spec, tuning, device, say)


def _leave_out(spec: TrainingSpec, say: Say, why: str) -> Progress:
    """Nothing trained, nothing staged, and nothing that an earlier run left."""
    say(f"{spec.model} {spec.export.fold}: left out, because nothing can be trained there; {why}")
    if hvd.rank() == 0:
        remove(spec.checkpoint)
    stage_nothing(spec)
    return Progress(digest=spec.lineage, version=spec.export.version)


def _describe_encoder(spec: TrainingSpec, encoder: Scores | None, model: Scores | None) -> str:
    """What a smaller encoder costs."""
    sequence = spec.settings.sequence
    is_pruned = spec.model == "transformer" and sequence.pruned > 0
    pruned = f", {sequence.pruned:.0%} of the feed-forward units left out" if is_pruned else ""
    costs = f", validation NDCG@10 {encoder.ndcg:.4f} (the model: {model.ndcg:.4f})" if encoder and model else ""
    return f"{spec.model} {spec.export.fold}: users are encoded in {sequence.encoder}{pruned}{costs}"


@contextmanager
def _joined(spec: TrainingSpec, journal: str | None) -> Iterator[tuple[torch.device, Say]]:
    """One process as a rank among the others: its device, and where it says something."""
    sequence = spec.settings.sequence
    os.environ["HOROVOD_GLOO_TIMEOUT_SECONDS"] = str(sequence.answer_timeout)
    hvd.init()
    rank = hvd.rank()
    try:
        if sequence.num_shards % hvd.size():
            raise LaunchError(
                f"sequence.num_shards: found {sequence.num_shards}, expected a multiple of the {hvd.size()} processes"
            )
        threads = sequence.threads or max(1, _num_cores() // hvd.local_size())
        torch.set_num_threads(threads)
        device = choose_device(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if sequence.encoder == "int8":
            check_int8(device)
        with _answers_within(sequence.answer_timeout):
            yield device, _say_nothing if rank else Journal(journal).say if journal else _print
    except HorovodInternalError as error:
        raise LostRankError(
            f"{spec.model}, process {rank}: another process of the training ended, or gave no answer within "
            f"sequence.answer_timeout={sequence.answer_timeout} s (killed, out of memory, a lost machine?); the same command goes "
            f"on from the last checkpoint. Horovod says: {str(error)[:_SAID]}"
        ) from None
    finally:
        hvd.shutdown()


@contextmanager
def _answers_within(seconds: int) -> Iterator[None]:
    """Within the context a wait for other ranks is an error after so many seconds, also where these live but are held up.

    Horovod's thread answers for a rank that sleeps or waits for a disk, so that its own time-out never comes, and its stall check
    misses nobody under Gloo, whose list of ranks has length 0 (0.28.1: ``global_ranks_`` is reserved and never sized).
    """
    wait = mpi_ops.synchronize

    def wait_so_long(handle: Any) -> Any:
        try:
            return waiting.submit(wait, handle).result(seconds)
        except TimeoutError:
            raise HorovodInternalError(f"what was sent got no answer for {seconds} s") from None

    waiting = ThreadPoolExecutor(1)
    mpi_ops.synchronize = functions.synchronize = wait_so_long
    try:
        yield
    finally:
        mpi_ops.synchronize = functions.synchronize = wait
        waiting.shutdown(wait=False)


def _num_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: those that it may run on, and no more than its container has CPU time for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [[cgroup / "cpu.max"], [cgroup / "cpu" / f"cpu.cfs_{part}_us" for part in ("quota", "period")]]
    for files in limits:  # of cgroups 2, then 1: microseconds of a period; "max" or -1 where there is no limit
        with suppress(OSError, ValueError):
            quota, period = (int(part) for file in files for part in file.read_text().split())
            if quota > 0:
                return max(1, min(cores, quota // period))
    return cores


def _print(line: str) -> None:
    print(line, flush=True)


def _say_nothing(line: str) -> None:
    """The other ranks have nothing to add."""
