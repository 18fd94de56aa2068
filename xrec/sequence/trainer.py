"""Training on all ranks, the same steps whatever their number.

A global step takes the next rows of every logical shard; rank r of n computes the shards s with s mod n = r, as one batch.
Whatever is random is keyed by (seed, epoch, step) and, for dropout, the shard. The gradient is the sum over the ranks, divided
by the all-reduced weight of the targets. So 1 and 2 processes differ only by the order of floating-point sums.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import horovod.torch as hvd
import torch
from torch import Tensor

from xrec.features.sequence_files import TRAIN, VALIDATION
from xrec.sequence.checkpoint import (
    clear,
    epoch_file,
    find_progress,
    load_tensors,
    newest_undamaged,
    save_epoch,
    save_newest,
)
from xrec.sequence.distillation import Teacher
from xrec.sequence.dropout import seed_dropout
from xrec.sequence.exchange import share_first
from xrec.sequence.item_encoder import ItemEncoder
from xrec.sequence.loader import Shard, Windows, key_of
from xrec.sequence.losses import Loss, windows_loss
from xrec.sequence.models import MODEL_PREFIX, SequenceModel, build_model, model_settings
from xrec.sequence.objective import asked_of
from xrec.sequence.optimization import Optimization, TrainingError
from xrec.sequence.progress import Begun, Epoch, Progress, note_epoch, save_progress
from xrec.sequence.spec import TrainingSpec
from xrec.sequence.targets import TargetDistribution
from xrec.sequence.trained_on import TrainedOn
from xrec.sequence.validation import Scores, validate
from xrec.sequence.vocabulary import Vocabulary
from xrec.sequence.warm_start import Learned
from xrec.storage.files import write_json

Say = Callable[[str], None]

_LEFT_OUT = -1
"""Stands for a shard in the key of what all ranks draw alike."""


class NothingToLearnError(TrainingError):
    """A fold without events to learn from."""


class Trainer:
    """One training on this rank; all ranks make the same calls in the same order."""

    def __init__(self, spec: TrainingSpec, device: torch.device, say: Say, learned: Learned | None = None) -> None:
        """Prepare a training that goes on from what an earlier fold ``learned``, or starts as its spec says.

        Raises
        ------
        NothingToLearnError
            The fold holds no target; all ranks find so.
        """
        if not spec.export.can_train:
            raise NothingToLearnError(nothing_to_learn_from(spec))
        self.spec = spec
        self.sequence = spec.settings.sequence
        self.seed = spec.settings.seed
        self.device = device
        self.say = say
        mine = range(hvd.rank(), self.sequence.num_shards, hvd.size())
        self.train_shards = [Shard.find(spec.export, TRAIN, index) for index in mine]
        self.validation_shards = [Shard.find(spec.export, VALIDATION, index) for index in mine]
        self.batch_rows = self.sequence.batch_rows // self.sequence.num_shards
        self.vocabulary = Vocabulary.read(spec)
        self.targets = TargetDistribution.count(self.train_shards, self.vocabulary, self.sequence)
        if not self.targets.probabilities.any():
            raise NothingToLearnError(nothing_to_learn_from(spec))
        competes_V = torch.from_numpy(self.vocabulary.category_V >= 0)
        self.loss = Loss.choose(self.sequence, self.targets.probabilities, competes_V, device)
        self.teacher = Teacher.load(spec, self.loss.q_V, device) if spec.teacher else None
        torch.manual_seed(key_of(self.seed))
        content = self.vocabulary.content
        self.model_settings = model_settings(
            spec.model,
            self.sequence,
            spec.export.vocabulary_size,
            self.vocabulary.given_dim,
            None if content is None else content.sizes,
            spec.export.context,
        )
        self.model = build_model(self.model_settings).to(device)
        self.model.items.start_from(self.targets.popularity, self.loss.start)
        if content is not None:
            self.model.items.describe(torch.from_numpy(content.words_IW), torch.from_numpy(content.paths_IP))
        self.trained_on = TrainedOn.of(spec, self.vocabulary.given_dim)
        if learned is None and spec.start_from is not None:
            learned = Learned.read(
                spec.start_from, self.model_settings, self.vocabulary, self.trained_on, device, self.say
            )
        self.goes_on_from = "nothing" if learned is None else learned.describe(self.vocabulary)
        if learned is not None:
            self.vocabulary = learned.turned(self.vocabulary)
        if self.vocabulary.vectors_VG is not None:
            self.model.items.give(torch.from_numpy(self.vocabulary.vectors_VG).to(device))
        if learned is not None:
            learned.pass_on(self.model, self.vocabulary.item_ids)
        self.optimization = Optimization(self.model, self.sequence, where=f"{spec.model} {spec.export.fold}")

    def learned(self) -> Learned:
        """What the next fold goes on from."""
        name, popularity_V = self.spec.export.fold, self.targets.popularity
        return Learned.of(self.model, self.vocabulary, popularity_V, name=name, shift=self.loss.start)

    def run(self, goes_on: Callable[[Progress], bool] | None = None) -> Progress:
        """Train to the end, resuming where a killed run left off; the model then holds the best epoch's weights.

        ``goes_on`` is asked after every epoch but the last, on every rank, and must say the same on all.
        """
        progress = self._start()
        num_steps = self._agree_on_steps()
        while not progress.done:
            begun, progress.begun = progress.begun, None
            started = time.perf_counter() - (begun.seconds if begun else 0)
            number = progress.last + 1
            loss = self.train_epoch(number, num_steps, begun, self._saver(progress, started))
            scores = self.score(self.model)
            seconds = time.perf_counter() - started
            windows = self.spec.export.rows[TRAIN] * self.sequence.num_shards
            epoch = Epoch(
                epoch=number,
                loss=loss,
                ndcg=scores.ndcg if scores else None,
                hit_rate=scores.hit_rate if scores else None,
                seconds=seconds,
                windows_per_second=windows / seconds,
            )
            note_epoch(progress, epoch, epochs=self.spec.epochs, patience=self.sequence.patience)
            self.say(describe_epoch(self.spec, epoch, progress))
            if hvd.rank() == 0:
                save_epoch(self.spec.checkpoint, self._tensors(), progress, num_kept=self.sequence.num_checkpoints)
            if goes_on is not None and not progress.done and not goes_on(progress):
                return progress
        if progress.best != progress.last:
            best = epoch_file(self.spec.checkpoint, progress.best)
            self._restore(load_tensors(best) if hvd.rank() == 0 else {})
        return progress

    def score(self, model: SequenceModel) -> Scores | None:
        """What a model is worth on the validation users, the same on every rank; None without such users."""
        return validate(model, self.validation_shards, self.vocabulary, self.sequence, self.batch_rows, self.device)

    def _start(self) -> Progress:
        """Progress to go on from: rank 0 decides, and all ranks get its weights."""
        progress = Progress(digest=self.spec.lineage, version=self.spec.export.version, goes_on_from=self.goes_on_from)
        saved: Mapping[str, Tensor] = {}
        if hvd.rank() == 0:
            progress, saved = self._resume_or_clear(progress)
        progress = Progress(**vars(hvd.broadcast_object(progress, root_rank=0, name="progress")))
        self._restore(saved)
        return progress

    def _resume_or_clear(self, fresh: Progress) -> tuple[Progress, Mapping[str, Tensor]]:
        """The progress to go on from and its tensors, or a fresh one and none, with its folder made ready."""
        folder = self.spec.checkpoint
        found = find_progress(folder, self.say)
        where = f"{self.spec.model} {self.spec.export.fold}"
        is_ours = found and not found.closed and (found.digest, found.version) == (fresh.digest, fresh.version)
        if found and is_ours and (found.last or found.begun):
            undamaged = newest_undamaged(folder, found, self.say)
            if undamaged is None:
                self.say(f"{where}: no epoch of the unfinished training in {folder} can be read: starting afresh")
            elif undamaged[1].keys() == self._tensors().keys():
                readable = undamaged[0]
                steps = f" and {readable.begun.steps:,} steps of the next" if readable.begun else ""
                self.say(f"{where}: resuming after epoch {readable.last}{steps} from {folder}")
                if readable.last:  # what is saved within the next epoch is held against this
                    save_progress(folder, replace(readable, begun=None))
                return undamaged
            else:
                self.say(
                    f"{where}: found an unfinished training by another version of xrec in {folder}: starting afresh"
                )
        elif found and not found.closed:
            self.say(
                f"{where}: found an unfinished training of data version {found.version}, settings {found.digest}; now they "
                f"are {fresh.version}, {fresh.digest}: starting afresh"
            )
        clear(folder)
        write_json(f"{folder}/settings.json", self.model_settings)
        start_bias_V = ItemEncoder.start_bias(self.targets.popularity, self.loss.start)
        self.trained_on.save(folder, self.vocabulary.item_ids, start_bias_V.numpy())
        if self.spec.start_from is not None:
            self.say(f"{where}: goes on from {fresh.goes_on_from}; the others start as in a fresh training")
        return fresh, {}

    def _saver(self, progress: Progress, started: float) -> Callable[[int, list[list[float]]], None]:
        """Saves the epoch after ``progress`` as far as it is: the steps taken, and each rank's sums of them."""

        def save(steps: int, sums: list[list[float]]) -> None:
            begun = Begun(steps=steps, sums=sums, seconds=time.perf_counter() - started)
            save_newest(self.spec.checkpoint, self._tensors(), replace(progress, begun=begun))

        return save

    def _restore(self, saved: Mapping[str, Tensor]) -> None:
        """Rank 0's tensors, those ``saved`` in their place, on all ranks."""
        tensors = self._tensors()
        for name, tensor in saved.items():
            tensors[name].copy_(tensor)
        share_first(tensors)

    def _tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer state by name; writing into them changes the training."""
        weights = {f"{MODEL_PREFIX}{name}": tensor.data for name, tensor in self.model.named_parameters()}
        return {**weights, **self.optimization.tensors()}

    def _agree_on_steps(self) -> int:
        """Steps an epoch, the same on every rank; without this a rank with more batches would wait for ever."""
        mine = self.train_shards[0].num_batches(self.batch_rows)
        lowest, highest = hvd.allreduce(torch.tensor([mine, -mine]), op=hvd.Min, name="num_steps").tolist()
        if lowest != -highest:
            raise TrainingError(
                f"fold {self.spec.export.fold}: found {lowest} to {-highest} batches an epoch on different ranks, expected "
                "equal shards; run the stage export_sequences again"
            )
        return int(lowest)

    def train_epoch(
        self,
        epoch: int,
        num_steps: int,
        begun: Begun | None = None,
        save: Callable[[int, list[list[float]]], None] | None = None,
    ) -> float:
        """All training windows once; gives the mean loss of a target (nats).

        Parameters
        ----------
        begun
            What an earlier run did of the epoch: its rows are read again and not computed.
        save
            Is called on rank 0 with the steps taken and each rank's sums, when ``checkpoint_seconds`` have passed.
        """
        self.model.train()
        streams = [shard.shuffled_batches(self.batch_rows, seed=self.seed, epoch=epoch) for shard in self.train_shards]
        at_once = -(-len(streams) // self.sequence.accumulate)
        begun = begun or Begun(steps=0, sums=[], seconds=0)
        # A rank's own sums where there are as many ranks as then.
        totals = torch.tensor(begun.sums[hvd.rank() :: hvd.size()], dtype=torch.float64).reshape(-1, 2).sum(dim=0)
        for stream in streams:
            for _ in range(begun.steps):
                next(stream)
        saved = time.monotonic()
        for step in range(begun.steps, num_steps):
            negatives_S = self.loss.draw(key_of(self.seed, epoch, step))
            self.model.items.leave_out(key_of(self.seed, epoch, step, _LEFT_OUT), self.sequence.left_out)
            self.optimization.zero()
            sums = torch.zeros(2, dtype=torch.float64)
            # As few backwards as memory allows: each writes gradients of the whole vocabulary, whatever the rows.
            for part in range(0, len(streams), at_once):
                seeds = [
                    key_of(self.seed, epoch, step, shard.index) for shard in self.train_shards[part : part + at_once]
                ]
                seed_dropout(self.model, seeds, self.device)
                batch = Windows.concatenate([next(stream) for stream in streams[part : part + at_once]])
                loss, weight = self._loss(batch, negatives_S)
                loss.backward()  # type: ignore[no-untyped-call]
                sums += torch.tensor([loss.item(), weight], dtype=torch.float64)
            is_late = hvd.rank() == 0 and time.monotonic() - saved >= self.sequence.checkpoint_seconds
            is_due = self.optimization.step((epoch - 1) * num_steps + step, num_steps * self.spec.epochs, sums, is_late)
            totals += sums
            if is_due and save is not None:
                sums_R2 = hvd.allgather(totals[None], name="sums").tolist()
                if hvd.rank() == 0:
                    save(step + 1, sums_R2)
                saved = time.monotonic()
        for stream in streams:
            assert next(stream, None) is None, "a shard has rows left after the epoch"
        loss_sum, weight_sum = hvd.allreduce(totals, op=hvd.Sum, name="epoch_loss").tolist()
        self.optimization.check_finite(loss_sum, "loss")
        return float(loss_sum / weight_sum)

    def _loss(self, batch: Windows, negatives_S: Tensor) -> tuple[Tensor, float]:
        """The summed weighted loss of a batch's targets, and the sum of their weights."""
        asked = asked_of(batch, self.vocabulary, self.sequence)
        out_NS = asked.is_out(self.vocabulary.category_V[negatives_S.cpu().numpy()])
        loss = windows_loss(
            self.model,
            batch.inputs().tokens,
            asked,
            negatives_S,
            self.loss.function,
            None if out_NS is None else torch.from_numpy(out_NS).to(self.device),
            precision=self.sequence.precision,
            context_BLF=batch.inputs().context,
            teacher=self.teacher,
        )
        return loss, float(asked.weights_P.sum())


def close(spec: TrainingSpec, progress: Progress) -> None:
    """Mark a training as finished for good; a later run trains again."""
    progress.closed = True
    if hvd.rank() == 0:
        save_progress(spec.checkpoint, progress)


def nothing_to_learn_from(spec: TrainingSpec) -> str:
    """What is wrong where nothing is asked of any window, and what to do."""
    sequence = spec.settings.sequence
    asks_new = sequence.objective == "new_categories"
    buy = ", of which some buy of a second category" if asks_new else ""
    other = ", set sequence.objective=next_event" if asks_new else ""
    return (
        f"fold {spec.export.fold}: found no event to learn from (sequence.objective: {sequence.objective}, sequence.targets: "
        f"{sequence.targets}), expected users with at least two events of items in the vocabulary{buy}; lower "
        f"sequence.min_buyers{other}, or leave gru and transformer out of ranking.sources"
    )


def describe_epoch(spec: TrainingSpec, epoch: Epoch, progress: Progress) -> str:
    """One line a person follows a training by."""
    scores = "no validation users"
    if epoch.ndcg is not None and epoch.hit_rate is not None:
        scores = f"validation NDCG@10 {epoch.ndcg:.4f} HR@10 {epoch.hit_rate:.4f}"
    best = " (best)" if progress.best == epoch.epoch else ""
    return (
        f"{spec.model} {spec.export.fold}: epoch {epoch.epoch}/{spec.epochs}, loss {epoch.loss:.4f}, "
        f"{scores}{best}, {epoch.seconds:.1f} s, {epoch.windows_per_second:,.0f} windows/s"
    )
