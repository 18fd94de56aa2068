"""The sources of candidates by name: what each needs, and one shape for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Feedback, Settings
from xrec.evaluation.folds import Fold
from xrec.features.feedback import resting_pairs
from xrec.generators import item_knn, popularity
from xrec.generators.factors import factor_candidates
from xrec.ranking.eligibility import users_of
from xrec.storage.shared import SharedFolder
from xrec.storage.tables import Tables

SOURCES_ALWAYS = (popularity.SOURCE, item_knn.SOURCE)
"""Sources that are made whatever ``ranking.sources`` says: the baselines of the evaluation."""


def sources_of(settings: Settings) -> tuple[str, ...]:
    """The sources that have candidates: the baselines and those that are blended."""
    return tuple(dict.fromkeys((*SOURCES_ALWAYS, *settings.ranking.sources)))


def models_of(settings: Settings) -> tuple[str, ...]:
    """What is judged: the sources, and their blend."""
    return (*sources_of(settings), C.BLEND)


@contextmanager
def users_of_folds(
    tables: Tables, eligible: DataFrame, folds: Sequence[Fold], scopes: Sequence[str], feedback: Feedback
) -> Iterator[dict[Fold, DataFrame]]:
    """Each fold's users with what they must not get (:func:`users_of`), kept on disk within the context: every source asks."""
    users = {
        fold: users_of(
            _not_proposed(tables, fold, feedback),
            tables.read("user_categories", fold=fold.name),
            eligible,
            scopes,
        ).persist(StorageLevel.DISK_ONLY)
        for fold in folds
    }
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
    eligible: DataFrame,
    settings: Settings,
    folder: SharedFolder,
) -> DataFrame:
    """The candidates of one source for the users of each fold: rows of ``candidates``, ``versions`` left out.

    They must be written while the ``folder`` lives: the items lie in it.
    """
    rows = [
        _of_fold(source, tables, users[fold], eligible, fold, settings, folder).select(
            F.lit(fold.name).alias(C.FOLD), F.lit(source).alias(C.SOURCE), "*"
        )
        for fold in users
    ]
    return reduce(DataFrame.unionByName, rows)


def _of_fold(
    source: str,
    tables: Tables,
    users: DataFrame,
    eligible: DataFrame,
    fold: Fold,
    settings: Settings,
    folder: SharedFolder,
) -> DataFrame:
    ranking = settings.ranking
    interactions = tables.read("interactions", fold=fold.name)
    if source == popularity.SOURCE:
        return popularity.popular_candidates(users, eligible, interactions, ranking, folder)
    if source == popularity.RECENT:
        return popularity.recent_candidates(users, eligible, interactions, fold, ranking, folder)
    if source == item_knn.SOURCE:
        return item_knn.knn_candidates(users, eligible, interactions, settings.item_knn, ranking, folder)
    vectors = tables.read("vectors")
    return factor_candidates(users, eligible, vectors, ranking, folder, model=source, fold=fold.name)


def describe_candidates(candidates: DataFrame, sources: Sequence[str]) -> dict[str, str]:
    """Rows and users of each source in a fold, for the summary."""
    found = candidates.groupBy(C.SOURCE).agg(F.count("*").alias("rows"), F.countDistinct(C.USER_IDX).alias(C.NUM_USERS))
    counts = {row[C.SOURCE]: row for row in found.collect()}
    return {
        source: f"{counts[source]['rows']:,} rows, {counts[source][C.NUM_USERS]:,} users"
        if source in counts
        else "0 rows"
        for source in sources
    }
