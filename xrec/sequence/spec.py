"""One training: a model of one fold, with everything that a rank needs to know."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xrec.config import Settings
from xrec.features.sequence_files import Export, as_trained, model_location, read_export, read_trained_export
from xrec.features.vector_files import staging_location, training_digest
from xrec.storage.files import absolute


class LaunchError(ValueError):
    """Processes that cannot all start; the message says what is missing."""


class LostRankError(ValueError):
    """A rank that ended, or answers no more, as another one sees it."""


class RankError(ValueError):
    """What a rank in a Spark task could not go on with, in its own words."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Settings that a search tried, and what came of them."""

    settings: dict[str, Any]
    """Keys of ``sequence``."""
    ndcg: float
    """The best epoch's, of the validation users; for choosing, not to be reported."""
    epochs: list[float]
    """NDCG of each epoch."""
    state: str
    """complete, pruned (ended early) or failed."""

    @property
    def overrides(self) -> list[str]:
        """The settings as ``--set`` takes them."""
        return [f"sequence.{name}={_short(value)}" for name, value in self.settings.items()]

    def __str__(self) -> str:
        return f"validation NDCG@10 {self.ndcg:.4f}, {self.state} after {len(self.epochs)} epochs: {' '.join(self.overrides)}"


def _short(value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(value, float) else value


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """A model of one fold: the same on every rank."""

    model: str
    export: Export
    settings: Settings
    artifacts: str
    """Folder or URL that all ranks see."""
    start_from: str | None = None
    """Folder or URL of the checkpoint of another training that it starts from; None: it starts afresh, or from the fold before."""
    earlier: tuple[str, ...] = ()
    """The folds that are trained before it, oldest first, each of which goes on from the one before; empty: it starts afresh."""
    trained_on: TrainingSpec | None = None
    """The training whose model encodes the fold's users; None: its own."""
    teacher: str | None = None
    """Folder or URL of the artifacts that hold a teacher of every fold; None: the model learns from the windows alone."""

    @classmethod
    def plan(cls, model: str, folds: Sequence[str], settings: Settings) -> list[TrainingSpec]:
        """The trainings of a run's folds, oldest first; raises where a fold has no export or one of other settings."""
        artifacts, goes_on = absolute(settings.storage.artifacts_root), settings.sequence.epochs_more > 0
        if settings.sequence.changed_since is not None:
            return [
                cls._of_changed(model, read_export(artifacts, fold, settings), settings, artifacts) for fold in folds
            ]
        start = settings.sequence.start_from and absolute(settings.sequence.start_from)
        if start in {f"{artifacts}/{fold}" for fold in folds}:
            raise LaunchError(
                f"sequence.start_from: found {start}, which this run trains anew, expected a fold of another run; copy the folder, "
                "or choose another storage.root or storage.artifacts for this run"
            )
        teacher = absolute(settings.sequence.teacher) if settings.sequence.teacher else None
        return [
            cls(
                model=model,
                export=read_export(artifacts, fold, settings),
                settings=settings,
                artifacts=artifacts,
                start_from=f"{start}/{model}/checkpoint" if start and not (goes_on and number) else None,
                earlier=tuple(folds[:number]) if goes_on else (),
                teacher=teacher,
            )
            for number, fold in enumerate(folds)
        ]

    @classmethod
    def _of_changed(cls, model: str, export: Export, settings: Settings, artifacts: str) -> TrainingSpec:
        trained = cls(
            model=model,
            export=read_trained_export(artifacts, export, settings),
            settings=as_trained(settings),
            artifacts=artifacts,
        )
        return cls(model=model, export=export, settings=settings, artifacts=artifacts, trained_on=trained)

    def without(self, left_out: Collection[str], oldest: TrainingSpec) -> TrainingSpec:
        """The same where some earlier folds have no model; after none that has one it starts as the ``oldest`` would."""
        earlier = tuple(fold for fold in self.earlier if fold not in left_out)
        return replace(self, earlier=earlier, start_from=self.start_from if earlier else oldest.start_from)

    @property
    def epochs(self) -> int:
        """Passes over the fold's training windows."""
        return self.settings.sequence.epochs_more if self.earlier else self.settings.sequence.epochs

    @property
    def digest(self) -> str:
        """Changes when a setting changes what is learned."""
        return training_digest(self.settings, self.model)

    @property
    def lineage(self) -> str:
        """Digest and earlier folds: what an unfinished training must have in common with one that resumes it."""
        return " ".join((self.digest, *self.earlier))

    @property
    def checkpoint(self) -> str:
        """The folder of the checkpoint."""
        return f"{model_location(self.artifacts, self.export.fold, self.model)}/checkpoint"

    @property
    def journal(self) -> str:
        """The file of what the model's newest training says; one for all folds."""
        return f"{self.artifacts}/journals/train_{self.model}.json"

    @property
    def staging(self) -> str:
        """The folder of the vectors."""
        return staging_location(self.artifacts, self.export, self.model, self.digest)
