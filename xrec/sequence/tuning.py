"""Searches a model's settings by its validation users of a select fold (Optuna; Akiba et al. 2019).

Points are drawn by the tree-structured Parzen estimator (Bergstra et al. 2011), beginning with the settings as they are, and a
training whose best epoch so far is below the median of the others' at the same epoch ends early. All trainings run within one
launch: rank 0 asks Optuna, the other ranks follow. Every finished trial is kept as JSON, so that a search that was killed goes on.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import horovod.torch as hvd
import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from xrec.config import Sequence, Tuning
from xrec.sequence.optimization import TrainingError
from xrec.sequence.progress import Progress
from xrec.sequence.spec import LaunchError, TrainingSpec, Trial
from xrec.sequence.trainer import Trainer
from xrec.storage.files import exists, read_json, remove, write_json

_STARTUP_TRIALS = 5
"""Trials that are drawn at random, and are compared with nothing."""
_ROWS_A_SHARD = (4, 16, 64)


def tune(spec: TrainingSpec, tuning: Tuning, device: torch.device, say: Callable[[str], None]) -> list[Trial]:
    """Search within the budget; every rank calls this, and rank 0's trials are the answer."""
    study = Study.open(spec, tuning) if hvd.rank() == 0 else None
    workplace = f"{spec.artifacts}/tuning"

    def goes_on(progress: Progress) -> bool:
        if progress.epochs[-1].ndcg is None:
            raise LaunchError(
                f"fold {spec.export.fold}: found no validation user with a target, expected some to search settings by; raise "
                "sequence.validation_share and run the stage export_sequences again"
            )
        is_hopeless = study.is_hopeless(progress) if study else False
        return not hvd.broadcast_object(is_hopeless, root_rank=0, name="is_hopeless")

    while (settings := hvd.broadcast_object(study.propose() if study else None, root_rank=0, name="trial")) is not None:
        tried = replace(spec, settings=with_settings(spec, settings), artifacts=f"{workplace}/trial")
        try:
            progress = Trainer(tried, device, _say_nothing).run(goes_on)
        except TrainingError as error:
            progress = Progress(digest=tried.lineage, version=spec.export.version)
            say(f"a training failed: {error}")
        if study:
            say(study.note(progress))
    if study:
        remove(f"{workplace}/trial")
    return study.trials if study else []


def with_settings(spec: TrainingSpec, settings: dict[str, Any]) -> Any:
    """The settings of a training with some keys of ``sequence`` changed."""
    sequence = Sequence.model_validate({**spec.settings.sequence.model_dump(), **settings})
    return spec.settings.model_copy(update={"sequence": sequence})


def space_of(sequence: Sequence) -> dict[str, BaseDistribution]:
    """What is tried of each setting, the present value included; what an export holds is not among them."""
    rows = {sequence.num_shards * number for number in _ROWS_A_SHARD} | {sequence.batch_rows}
    rate, layers = sequence.learning_rate, sequence.num_layers
    space: dict[str, BaseDistribution] = {
        "learning_rate": FloatDistribution(min(3e-4, rate), max(1e-2, rate), log=True),
        "dropout": FloatDistribution(0.0, max(0.7, sequence.dropout)),
        "weight_decay": CategoricalDistribution(sorted({0.0, 1e-3, 1e-2, 1e-1, sequence.weight_decay})),
        "num_layers": IntDistribution(1, max(3, layers)),
        "batch_rows": CategoricalDistribution(sorted(rows)),
    }
    if sequence.loss != "full_softmax":
        negatives = sequence.num_negatives
        space["num_negatives"] = IntDistribution(min(128, negatives), max(4096, negatives), log=True)
    if sequence.start_from is not None:
        del space["num_layers"]  # sizes are those of the model that it starts from
    elif sequence.item_vectors is None:
        dims = {32, 64, 128, sequence.dim}
        unit = sequence.num_heads * (2 if sequence.positions == "rotary" else 1)
        space["dim"] = CategoricalDistribution(sorted(dim for dim in dims if dim % unit == 0))
    return space


@dataclass(kw_only=True)
class Study:
    """Rank 0's side of a search."""

    study: optuna.Study
    space: dict[str, BaseDistribution]
    tuning: Tuning
    kept_at: str
    of: str
    """What all trials have in common: data and settings."""
    started: float
    """When it would have begun if it had never been cut off, by :func:`time.monotonic`."""
    trials: list[Trial]
    asked: optuna.Trial | None = None

    @classmethod
    def open(cls, spec: TrainingSpec, tuning: Tuning) -> Study:
        """A study that knows the trials of an unfinished search of the same data and settings."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space, kept_at = space_of(spec.settings.sequence), f"{spec.artifacts}/tuning/{spec.model}.json"
        of = f"{spec.export.fold} {spec.export.version} {spec.digest}"
        kept = read_json(kept_at) if exists(kept_at) else {}
        if kept.get("of") != of:
            kept = {}
        trials = [Trial(**trial) for trial in kept.get("trials", ())]
        # What was drawn before is not drawn again.
        seed = (spec.settings.seed + len(trials)) % 2**32
        study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP_TRIALS),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS, n_warmup_steps=2),
        )
        study.add_trials([_as_optuna(trial, space) for trial in trials])
        if not trials:
            study.enqueue_trial({name: getattr(spec.settings.sequence, name) for name in space})
        started = time.monotonic() - kept.get("seconds", 0.0)
        return cls(study=study, space=space, tuning=tuning, kept_at=kept_at, of=of, started=started, trials=trials)

    def propose(self) -> dict[str, Any] | None:
        """The settings of the next trial; None: the budget is spent."""
        is_late = time.monotonic() - self.started > 60 * self.tuning.minutes
        if len(self.trials) >= self.tuning.trials or (is_late and self.trials):
            return None
        self.asked = self.study.ask(self.space)
        return self.asked.params

    def is_hopeless(self, progress: Progress) -> bool:
        """Whether the training is to end after its newest epoch."""
        assert self.asked is not None
        epoch = progress.epochs[-1]
        self.asked.report(epoch.ndcg or 0.0, epoch.epoch)
        return self.asked.should_prune()

    def note(self, progress: Progress) -> str:
        """Keep a trial that has ended; gives the line that tells of it."""
        assert self.asked is not None
        scores = [epoch.ndcg or 0.0 for epoch in progress.epochs]
        state = "failed" if not scores else "complete" if progress.done else "pruned"
        trial = Trial(settings=self.asked.params, ndcg=max(scores, default=0.0), epochs=scores, state=state)
        self.trials.append(trial)
        if state == "complete":
            self.study.tell(self.asked, trial.ndcg)
        else:
            self.study.tell(self.asked, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)
        spent, trials = time.monotonic() - self.started, [dataclasses.asdict(one) for one in self.trials]
        write_json(self.kept_at, {"of": self.of, "seconds": spent, "trials": trials})
        return f"trial {len(self.trials)} of {self.tuning.trials}: {trial}"


def _as_optuna(trial: Trial, space: dict[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    return optuna.trial.create_trial(
        state=states[trial.state],
        params=trial.settings,
        distributions=space,
        value=trial.ndcg if trial.state != "failed" else None,
        intermediate_values={epoch: value for epoch, value in enumerate(trial.epochs, start=1) if math.isfinite(value)},
    )


def _say_nothing(line: str) -> None:
    """A trial is told of when it has ended."""
