"""All settings of a run."""

from __future__ import annotations

import hashlib
from collections import abc
from typing import Any

from pydantic import model_validator

from xrec import columns as C
from xrec.config.base import Count, Frozen, Name
from xrec.config.experiment import Experiment, Exposures, Feedback
from xrec.config.filters import Filters
from xrec.config.inputs import Catalogue, Identity, Log, Privacy, Storage, Users
from xrec.config.learning import Balance, Categories, Evaluation, Folds, LogRules, Outliers, Persons, Weights
from xrec.config.publish import Publish
from xrec.config.ranking import Ranker, Ranking
from xrec.config.sequences import ItemVectors, Sequence
from xrec.config.sources import Als, Content, Ease, ItemKnn, Transitions, Trend, UserKnn
from xrec.config.tracking import Tracking
from xrec.config.tuning import Tuning


class Settings(Frozen):
    """All settings of a run."""

    storage: Storage
    log: Log
    platforms: dict[Name, Log] = {}
    """Several platforms, each with the keys of `log` that are its own; the others are taken from `log`."""
    identity: Identity = Identity()
    catalogue: Catalogue
    privacy: Privacy = Privacy()
    users: Users | None = None
    categories: Categories = Categories()
    folds: Folds = Folds()
    weights: Weights = Weights()
    outliers: Outliers = Outliers()
    log_rules: LogRules = LogRules()
    persons: Persons = Persons()
    balance: Balance = Balance()
    als: Als = Als()
    sequence: Sequence = Sequence()
    item_vectors: ItemVectors = ItemVectors()
    tuning: Tuning = Tuning()
    item_knn: ItemKnn = ItemKnn()
    user_knn: UserKnn = UserKnn()
    ease: Ease = Ease()
    transitions: Transitions = Transitions()
    content: Content = Content()
    trend: Trend = Trend()
    ranking: Ranking = Ranking()
    ranker: Ranker = Ranker()
    filters: Filters | None = None
    evaluation: Evaluation = Evaluation()
    publish: Publish = Publish()
    exposures: Exposures | None = None
    experiment: Experiment | None = None
    feedback: Feedback = Feedback()
    tracking: Tracking = Tracking()
    seed: int = 20171101
    """Seed of everything that is drawn; 0 is a seed."""
    num_buckets: Count = 16
    """Hash buckets of the index dictionaries."""

    @model_validator(mode="before")
    @classmethod
    def _log_of_each_platform(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("platforms"), dict) or not values["platforms"]:
            return values
        common = values.get("log") or {}
        logs = {name: {**_merged(common, own or {}), "platform": name} for name, own in values["platforms"].items()}
        return {**values, "platforms": logs, "log": next(iter(logs.values()))}

    @model_validator(mode="after")
    def _one_clock(self) -> Settings:
        units = {name: log.time.unit == "order" for name, log in self.platforms.items()}
        if len(set(units.values())) > 1:
            ordered = next(name for name, is_order in units.items() if is_order)
            raise ValueError(
                f"platforms.{ordered}.time.unit: found order beside platforms with a clock, expected all of them or none"
            )
        return self

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes that lists are made for, that of the lists that go out first."""
        return tuple(dict.fromkeys((self.ranking.scope, *self.evaluation.scopes)))

    @property
    def sources(self) -> list[Settings]:
        """The settings of each platform's log: these settings with ``log`` as that one."""
        return [self.model_copy(update={"log": log}) for log in self.platforms.values()] or [self]

    @model_validator(mode="after")
    def _known_events(self) -> Settings:
        for event_type in self.categories.counting_events:
            if event_type not in self.weights.event_types:
                raise ValueError(
                    f"categories.counting_events: found '{event_type}', expected one of weights.event_types "
                    f"({', '.join(self.weights.event_types)})"
                )
        known = (*self.weights.event_types, C.RETURN)
        for log in (self.log, *self.platforms.values()):
            if log.columns.event_type is None and log.event_type not in known:
                raise ValueError(
                    f"log.event_type: found '{log.event_type}', expected one of weights.event_types ({', '.join(known)}); "
                    f"to count it, set weights.event_types={{{log.event_type}: 1.0}} and "
                    f"categories.counting_events=[{log.event_type}]"
                )
        return self

    @model_validator(mode="after")
    def _known_attributes(self) -> Settings:
        if self.filters is not None:
            self.filters.check_names(() if self.users is None else self.users.attributes)
        return self

    @model_validator(mode="after")
    def _shown_by_the_clock(self) -> Settings:
        ordered = "log.time.unit: order" if self.log.time.unit == "order" else ""
        last_out = "folds.kind: last_out" if self.folds.kind == "last_out" and self.feedback.is_on else ""
        if (found := ordered or last_out) and (self.exposures is not None or self.feedback.is_on):
            raise ValueError(f"exposures, feedback: found them beside {found}, expected a log and folds with a clock")
        return self

    @model_validator(mode="after")
    def _changed_by_the_clock(self) -> Settings:
        if self.sequence.changed_since is not None and self.folds.kind == "last_out":
            raise ValueError(
                f"sequence.changed_since: found {self.sequence.changed_since} beside folds.kind: last_out, expected folds with a "
                "clock: a model that knows what was left out must not encode a fold that is judged by it"
            )
        return self

    @model_validator(mode="after")
    def _context_by_the_clock(self) -> Settings:
        timed = [field for field in self.sequence.context if field in ("gap", "hour", "weekday", "month")]
        if timed and self.log.time.unit == "order":
            raise ValueError(
                f"sequence.context: found {timed[0]} beside log.time.unit: order, expected a log with a clock, or event_type or "
                "platform alone"
            )
        return self

    @model_validator(mode="after")
    def _vectors_of_the_shop(self) -> Settings:
        if self.sequence.item_vectors == "file" and self.item_vectors.file is None:
            raise ValueError(
                "item_vectors.file: found nothing beside sequence.item_vectors: file, expected its path and format"
            )
        return self

    @model_validator(mode="after")
    def _enough_candidates(self) -> Settings:
        proposed = self.ranking.candidates_per_source
        for key, length in (("ranking.top_k", self.ranking.top_k), ("evaluation.ks", max(self.evaluation.ks))):
            if length > proposed:
                raise ValueError(f"{key}: found {length}, expected at most ranking.candidates_per_source ({proposed})")
        return self

    def digest(self, *sections: str) -> str:
        """Ten hex digits that change when one of the sections (all by default) changes."""
        text = self.model_dump_json(include=set(sections) or None)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


def _merged(base: abc.Mapping[str, Any], over: abc.Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the nested keys of ``over`` on top."""
    nested = {
        key: _merged(base[key], value)
        for key, value in over.items()
        if isinstance(value, abc.Mapping) and isinstance(base.get(key), abc.Mapping)
    }
    return {**base, **over, **nested}
