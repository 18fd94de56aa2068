"""The list of stages, in the order in which they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xrec.config import TREND, Settings, attributes_in
from xrec.features.sequence_files import MODELS

_OF_SEQUENCES = tuple(f"{model}{ending}" for model in MODELS for ending in ("", TREND))


@dataclass(frozen=True, kw_only=True)
class StageInfo:
    """One stage: the job ``jobs/<name>.py``."""

    name: str
    does: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    own_application: bool = False
    """Trains with Horovod, so it is a Spark application of its own whose tasks are never retried."""
    serves: tuple[str, ...] = ()
    """The sources that it is there for: it is left out where ``ranking.sources`` names none of them. Empty: for all."""
    loads_feeds: bool = False
    """Writes the feeds that ``filters`` names as well."""
    gives_vectors: bool = False
    """Hands the item vectors of ``sequence.item_vectors`` to the sequence models, and so reads them."""
    takes_over: tuple[str, ...] = ()
    """What it reads as well where ``sequence.changed_since`` is set: what an earlier training left."""
    obeys_filters: bool = False
    """Asks the rules and blocked pairs of ``filters``, where there are some, and so reads what they look at."""


STAGES: tuple[StageInfo, ...] = (
    StageInfo(
        name="ingest",
        does="clean the log",
        reads=(),
        writes=("events", "events_quarantine", "accounts", "catalogue_entries", "catalogue"),
        loads_feeds=True,
    ),
    StageInfo(
        name="judge",
        does="persons, repeats, returns, sessions",
        reads=("events",),
        writes=("persons", "judged_events"),
    ),
    StageInfo(
        name="index", does="number items and users", reads=("judged_events", "catalogue"), writes=("items", "users")
    ),
    StageInfo(
        name="fold",
        does="categories, interactions and targets per fold",
        reads=("judged_events", "items", "users"),
        writes=("value_limits", "user_categories", "interactions", "targets"),
    ),
    StageInfo(
        name="balance",
        does="weigh and resample training rows",
        reads=("judged_events", "items", "users", "value_limits"),
        writes=("training_events", "balance_report"),
    ),
    StageInfo(
        name="train_als",
        does="train ALS",
        reads=("training_events",),
        writes=("vectors",),
        serves=("als", f"als{TREND}"),
    ),
    StageInfo(
        name="make_item_vectors",
        does="make the items' vectors",
        reads=("training_events", "items"),
        writes=("vectors",),
        serves=("word2vec", "text_svd", "file"),
    ),
    StageInfo(
        name="export_sequences",
        does="export windows for torch",
        reads=("training_events", "items", "interactions"),
        writes=("vocabulary", "sequences"),
        serves=_OF_SEQUENCES,
        gives_vectors=True,
        takes_over=("vocabulary", "sequences"),
    ),
    StageInfo(
        name="train_gru",
        does="train the GRU",
        reads=("vocabulary", "sequences"),
        writes=(),
        own_application=True,
        serves=("gru", f"gru{TREND}"),
    ),
    StageInfo(
        name="train_transformer",
        does="train the Transformer",
        reads=("vocabulary", "sequences"),
        writes=(),
        own_application=True,
        serves=("transformer", f"transformer{TREND}"),
    ),
    StageInfo(
        name="load_vectors",
        does="load the models' vectors",
        reads=(),
        writes=("vectors",),
        serves=_OF_SEQUENCES,
        takes_over=("sequences",),
    ),
    StageInfo(
        name="candidates",
        does="exact top K of every source",
        reads=("vectors", "items", "user_categories", "interactions", "training_events", "targets"),
        writes=("candidates",),
        obeys_filters=True,
    ),
    StageInfo(
        name="blend",
        does="choose weights on the select folds, and blend",
        reads=("candidates", "targets"),
        writes=("blend_weights", "candidates"),
    ),
    StageInfo(
        name="train_rankers",
        does="learn which candidates are bought",
        reads=("candidates", "targets", "interactions", "user_categories", "items"),
        writes=("candidates",),
    ),
    StageInfo(
        name="choose",
        does="choose what serves",
        reads=("candidates", "targets", "interactions", "blend_weights"),
        writes=("serving_models", "candidates"),
    ),
    StageInfo(
        name="recommend",
        does="write the lists",
        reads=(
            "judged_events",
            "candidates",
            "blend_weights",
            "serving_models",
            "items",
            "users",
            "user_categories",
            "interactions",
        ),
        writes=("staged_recommendations",),
        obeys_filters=True,
    ),
    StageInfo(
        name="evaluate",
        does="judge every source",
        reads=(
            "candidates",
            "targets",
            "items",
            "interactions",
            "user_categories",
            "staged_recommendations",
            "serving_models",
        ),
        writes=("metrics", "reliability", "category_flow", "looks"),
    ),
    StageInfo(
        name="publish",
        does="check the lists, and let them out",
        reads=(
            "staged_recommendations",
            "recommendations",
            "candidates",
            "targets",
            "serving_models",
            "items",
            "users",
            "user_categories",
            "interactions",
        ),
        writes=("recommendations",),
        obeys_filters=True,
    ),
    StageInfo(
        name="report",
        does="show it on a page",
        reads=("accounts", "balance_report", "metrics", "reliability", "category_flow", "recommendations"),
        writes=(),
    ),
)

STAGE_NAMES: tuple[str, ...] = tuple(stage.name for stage in STAGES)


def needed_sources(settings: Settings) -> tuple[str, ...]:
    """The sources whose models a run trains: those that are blended, and the one that gives the sequence models item vectors.

    Sequence models that are not trained are given none.
    """
    sources, given_by = settings.ranking.sources, settings.sequence.item_vectors
    if given_by is None or settings.sequence.changed_since is not None or not any(map(settings.ranking.uses, MODELS)):
        return sources
    return (*sources, given_by)


def reads_of(stage: StageInfo, settings: Settings) -> tuple[str, ...]:
    """The tables that a stage reads with these settings.

    With filters also what their rules and blocked pairs look at, and the export the vectors that items are given; where no sequence
    model is trained, what is taken over.
    """
    filters = settings.filters
    if settings.sequence.changed_since is not None and stage.takes_over:
        return tuple(dict.fromkeys((*stage.reads, *stage.takes_over)))
    if stage.gives_vectors and settings.sequence.item_vectors is not None:
        return (*stage.reads, "vectors")
    if filters is None or not stage.obeys_filters:
        return stage.reads
    mentioned = [attributes_in(rule) for rule in filters.rules.values()]
    of_users = {name for rule in mentioned for name in rule.of_user}
    looked_at = {
        "item_filters": any(rule.of_item for rule in mentioned),
        "user_filters": filters.users is not None and not of_users.isdisjoint(filters.users.attributes),
        "user_attributes": settings.users is not None and not of_users.isdisjoint(settings.users.attributes),
        "blocked_pairs": filters.blocked is not None,
    }
    # Feeds have keys, lists and candidates have indexes.
    keys = ("items", "users")
    return tuple(dict.fromkeys((*stage.reads, *keys, *[name for name, is_read in looked_at.items() if is_read])))


def writes_of(stage: StageInfo, settings: Settings) -> tuple[str, ...]:
    """The tables that a stage writes with these settings: ingest also the feeds that ``filters`` names."""
    filters = settings.filters
    if filters is None or not stage.loads_feeds:
        return stage.writes
    feeds = {"item_filters": filters.items, "user_filters": filters.users, "blocked_pairs": filters.blocked}
    return (*stage.writes, *[name for name, feed in feeds.items() if feed is not None])


def select_stages(first: str | None, last: str | None, only: Sequence[str], sources: Sequence[str]) -> list[StageInfo]:
    """The stages from ``first`` until ``last`` (both included), or those in ``only``, in the order in which they run.

    Without ``only``, those that are there for other ``sources`` than these are left out.

    Raises
    ------
    ValueError
        The selection is empty or says two things.
    """
    if only and (first or last):
        raise ValueError("--only: found --from or --until beside it, expected one way to choose the stages")
    if only:
        return [stage for stage in STAGES if stage.name in only]
    start = STAGE_NAMES.index(first) if first else 0
    stop = STAGE_NAMES.index(last) if last else len(STAGES) - 1
    if start > stop:
        raise ValueError(
            f"--from {first} --until {last}: {first} runs after {last}; the order is {', '.join(STAGE_NAMES)}"
        )
    return [
        stage for stage in STAGES[start : stop + 1] if not stage.serves or not set(stage.serves).isdisjoint(sources)
    ]
