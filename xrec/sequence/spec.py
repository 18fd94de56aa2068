"""One training: a model of one fold, with everything that a rank needs to know."""

from __future__ import annotations

from dataclasses import dataclass

from xrec.config import Settings
from xrec.features.sequence_files import Export, model_location, read_export, staging_location, training_digest
from xrec.storage.files import absolute


class LaunchError(ValueError):
    """Processes that cannot all start; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """A model of one fold: the same on every rank."""

    model: str
    export: Export
    settings: Settings
    artifacts: str
    """Folder or URL that all ranks see."""

    @classmethod
    def find(cls, model: str, fold: str, settings: Settings) -> TrainingSpec:
        """The training of a fold's newest export; raises where there is none or it was made with other settings."""
        artifacts = absolute(settings.storage.artifacts_root)
        return cls(model=model, export=read_export(artifacts, fold, settings), settings=settings, artifacts=artifacts)

    @property
    def digest(self) -> str:
        """Changes when a setting changes what is learned."""
        return training_digest(self.settings, self.model)

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
