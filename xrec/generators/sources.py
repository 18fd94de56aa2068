"""The sources of candidates by name: what each needs, and one shape for all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import TREND, Feedback, Settings
from xrec.evaluation.folds import Fold
from xrec.evaluation.slices import scope_slice
from xrec.features.feedback import resting_pairs
from xrec.features.item_content import offered_then
from xrec.features.sequence_files import MODELS
from xrec.features.trend import with_trend
from xrec.generators import (
    content,
    ease,
    ease_categories,
    item_knn,
    newcomers,
    popular_in_category,
    popular_in_segment,
    popularity,
    transition_categories,
    transitions,
    user_knn,
)
from xrec.generators.factors import MADE_BY, factor_candidates
from xrec.lists import first
from xrec.ranking.eligibility import eligible_items, users_of
from xrec.ranking.filters import ListFilters, forbidden_classes
from xrec.storage.shared import SharedFolder
from xrec.storage.tables import Tables

SOURCES_ALWAYS = (popularity.SOURCE, item_knn.SOURCE)
"""Sources that are made whatever ``ranking.sources`` says: the baselines of the evaluation."""


def sources_of(settings: Settings) -> tuple[str, ...]:
    """The sources that have candidates: the baselines and those that are blended."""
    return tuple(dict.fromkeys((*SOURCES_ALWAYS, *settings.ranking.sources)))


def serving_sources(settings: Settings) -> tuple[str, ...]:
    """The sources that may serve, alone or through what is made of them: those of ``ranking.sources``, and popularity."""
    wanted = {popularity.SOURCE, *settings.ranking.sources}
    return tuple(source for source in sources_of(settings) if source in wanted)


def models_of(settings: Settings) -> tuple[str, ...]:
    """What is judged: the sources; where not only they are compared also their fusion, what learns, and what serves."""
    if settings.folds.purpose == "select":
        return sources_of(settings)
    return (*sources_of(settings), C.FUSION, C.BLEND, *settings.ranker.models, C.SERVED)


@contextmanager
def users_of_folds(
    tables: Tables,
    eligible: Mapping[Fold, DataFrame],
    scopes: Mapping[Fold, Sequence[str]],
    feedback: Feedback,
    filters: ListFilters | None = None,
    *,
    with_targets: Collection[Fold] = (),
) -> Iterator[dict[Fold, DataFrame]]:
    """Each fold's users with what they must not get (:func:`users_of`), kept on disk within the context: every source asks.

    They lie by user, in as many partitions as the session shuffles to: a source brings its vectors or profiles to them.
    ``eligible`` has each fold's items that may be recommended, ``scopes`` the scopes that it has lists in. In the folds
    ``with_targets`` those are left out who have no target that lists of these scopes may hold.
    """
    users = {}
    for fold, items in eligible.items():
        asked = filters if filters is not None and filters.apply_to(fold) else None
        not_proposed = _not_proposed(tables, fold, feedback)
        if fold in with_targets:
            judges = reduce(or_, [scope_slice(scope).holds for scope in scopes[fold]])
            judged = tables.read("targets", fold=fold.name).where(judges).select(C.USER_IDX).distinct()
            not_proposed = not_proposed.join(judged, C.USER_IDX, how="left_semi")
        users[fold] = users_of(
            not_proposed,
            tables.read("user_categories", fold=fold.name),
            items,
            scopes[fold],
            forbidden=None if asked is None else forbidden_classes(items, asked, fold),
            blocked=None if asked is None else asked.blocked,
        ).persist(StorageLevel.DISK_ONLY)
    try:
        yield users
    finally:
        for kept in users.values():
            kept.unpersist()


def _not_proposed(tables: Tables, fold: Fold, feedback: Feedback) -> DataFrame:
    """The (user, item) pairs of a fold that no source proposes: what was had, and what rests after it was shown in vain."""
    had = tables.read("interactions", fold=fold.name).select(C.USER_IDX, C.ITEM_IDX)
    if not feedback.rest_days:
        return had
    resting = resting_pairs(tables.read("feedback", fold=fold.name), fold, feedback)
    # A user without any history has no list, whatever he was shown.
    return had.unionByName(resting.join(had.select(C.USER_IDX).distinct(), C.USER_IDX, how="left_semi"))


def candidates_of(
    source: str,
    tables: Tables,
    users: Mapping[Fold, DataFrame],
    eligible: Mapping[Fold, DataFrame],
    settings: Settings,
    folder: SharedFolder,
) -> DataFrame:
    """The lists of one source for the users of each fold: rows of ``candidates``, ``versions`` left out.

    ``users`` and ``eligible`` have the same folds, the main one last. The rows must be written while the ``folder`` lives: the
    items lie in it. In scopes that are only judged, the lists are no longer than what is judged. An older fold on which a sequence
    model could not be trained has no lists of it.
    """
    generate, main = GENERATORS.get(source, _factors), list(users)[-1]
    serves, longest = F.col(C.SCOPE) == settings.ranking.scope, max(settings.evaluation.ks)
    kept = {name: F.when(serves, F.col(name)).otherwise(first(name, longest)) for name in (C.ITEMS, C.SCORES)}
    lists = [
        generate(Given(source, tables, users[fold], eligible[fold], fold, settings, folder))
        .select(F.lit(fold.name).alias(C.FOLD), F.lit(source).alias(C.SOURCE), "*")
        .withColumns(kept)
        for fold in users
        if fold is main or not _has_no_model(source, tables, fold)
    ]
    return reduce(DataFrame.unionByName, lists)


def _has_no_model(source: str, tables: Tables, fold: Fold) -> bool:
    """Whether the training of a sequence model left the fold out; that of the main fold never is."""
    model = source.removesuffix(TREND)
    if model not in MODELS:
        return False
    return tables.read("vectors").where((F.col(C.FOLD) == fold.name) & (F.col(C.MODEL) == model)).isEmpty()


@dataclass(frozen=True)
class Given:
    """What a generator may look at: a fold's tables, its users, the items, the settings."""

    source: str
    tables: Tables
    users: DataFrame
    eligible: DataFrame
    fold: Fold
    settings: Settings
    folder: SharedFolder

    def read(self, table: str) -> DataFrame:
        """The fold's rows of a table."""
        return self.tables.read(table, fold=self.fold.name)

    @property
    def recommendable(self) -> DataFrame:
        """The items that could be recommended if no filter held, with the codes of ``eligible``: categories learn from them."""
        return eligible_items(self.tables.read("items"))


def _popularity(given: Given) -> DataFrame:
    interactions, ranking = given.read("interactions"), given.settings.ranking
    return popularity.popular_candidates(given.users, given.eligible, interactions, ranking, given.folder)


def _recent(given: Given) -> DataFrame:
    interactions, ranking = given.read("interactions"), given.settings.ranking
    return popularity.recent_candidates(given.users, given.eligible, interactions, given.fold, ranking, given.folder)


def _newcomers(given: Given) -> DataFrame:
    training_events, items, ranking = given.read("training_events"), given.tables.read("items"), given.settings.ranking
    return newcomers.newcomer_candidates(
        given.users, given.eligible, training_events, items, given.fold, ranking, given.folder
    )


def _popular_in_category(given: Given) -> DataFrame:
    interactions, ranking = given.read("interactions"), given.settings.ranking
    return popular_in_category.popular_in_category_candidates(
        given.users, given.eligible, interactions, ranking, given.folder
    )


def _popular_in_segment(given: Given) -> DataFrame:
    interactions, mixes, ranking = given.read("interactions"), given.read("user_categories"), given.settings.ranking
    return popular_in_segment.popular_in_segment_candidates(
        given.users,
        given.eligible,
        interactions,
        mixes,
        ranking,
        given.folder,
        recommendable=given.recommendable,
    )


def _item_knn(given: Given) -> DataFrame:
    interactions, settings = given.read("interactions"), given.settings
    return item_knn.knn_candidates(
        given.users, given.eligible, interactions, settings.item_knn, settings.ranking, given.folder
    )


def _user_knn(given: Given) -> DataFrame:
    interactions, settings = given.read("interactions"), given.settings
    return user_knn.user_knn_candidates(
        given.users, given.eligible, interactions, settings.user_knn, settings.ranking, given.folder
    )


def _ease(given: Given) -> DataFrame:
    interactions, settings = given.read("interactions"), given.settings
    return ease.ease_candidates(
        given.users, given.eligible, interactions, settings.ease, settings.ranking, given.folder
    )


def _ease_categories(given: Given) -> DataFrame:
    interactions, mixes, settings = given.read("interactions"), given.read("user_categories"), given.settings
    return ease_categories.ease_category_candidates(
        given.users,
        given.eligible,
        interactions,
        mixes,
        settings.ease,
        settings.ranking,
        given.folder,
        recommendable=given.recommendable,
    )


def _transitions(given: Given) -> DataFrame:
    training_events, settings = given.read("training_events"), given.settings
    return transitions.transition_candidates(
        given.users, given.eligible, training_events, settings.transitions, settings.ranking, given.folder
    )


def _transition_categories(given: Given) -> DataFrame:
    training_events, interactions, settings = given.read("training_events"), given.read("interactions"), given.settings
    return transition_categories.transition_category_candidates(
        given.users,
        given.eligible,
        training_events,
        interactions,
        settings.transitions,
        settings.ranking,
        given.folder,
        recommendable=given.recommendable,
    )


def _content(given: Given) -> DataFrame:
    items, interactions, settings = given.tables.read("items"), given.read("interactions"), given.settings
    offered, eligible = offered_then(settings.catalogue, interactions), given.eligible
    eligible = eligible if offered is None else eligible.join(offered, C.ITEM_IDX, how="left_semi")
    return content.content_candidates(
        given.users, eligible, items, interactions, settings.content, settings.ranking, given.folder
    )


def _with_trend(generate: Callable[[Given], DataFrame]) -> Callable[[Given], DataFrame]:
    """The same source, its scores times the items' trend, or for logits, plus its logarithm."""

    def trending(given: Given) -> DataFrame:
        eligible = with_trend(given.eligible, given.read("interactions"), given.fold, given.settings.trend)
        return generate(replace(given, source=given.source.removesuffix(TREND), eligible=eligible))

    return trending


def _factors(given: Given) -> DataFrame:
    vectors, ranking = given.tables.read("vectors"), given.settings.ranking
    return factor_candidates(
        given.users, given.eligible, vectors, ranking, given.folder, model=given.source, fold=given.fold.name
    )


GENERATORS: Mapping[str, Callable[[Given], DataFrame]] = {
    popularity.SOURCE: _popularity,
    popularity.RECENT: _recent,
    newcomers.SOURCE: _newcomers,
    popular_in_category.SOURCE: _popular_in_category,
    popular_in_segment.SOURCE: _popular_in_segment,
    item_knn.SOURCE: _item_knn,
    user_knn.SOURCE: _user_knn,
    ease.SOURCE: _ease,
    ease_categories.SOURCE: _ease_categories,
    transitions.SOURCE: _transitions,
    transition_categories.SOURCE: _transition_categories,
    content.SOURCE: _content,
    **{f"{model}{TREND}": _with_trend(_factors) for model in MADE_BY},
    f"{item_knn.SOURCE}{TREND}": _with_trend(_item_knn),
    f"{user_knn.SOURCE}{TREND}": _with_trend(_user_knn),
    f"{ease.SOURCE}{TREND}": _with_trend(_ease),
}
"""What makes each source's candidates; a source that is not here is a model that has vectors."""


def describe_candidates(candidates: DataFrame, sources: Sequence[str]) -> dict[str, str]:
    """What each source proposes in a fold, and to how many users, for the summary."""
    found = candidates.groupBy(C.SOURCE).agg(
        F.sum(F.size(C.ITEMS)).alias("num_items"), F.countDistinct(C.USER_IDX).alias(C.NUM_USERS)
    )
    counts = {row[C.SOURCE]: row for row in found.collect()}
    return {
        source: f"{counts[source]['num_items']:,} items of {counts[source][C.NUM_USERS]:,} users"
        if source in counts
        else "nothing"
        for source in sources
    }
