"""The sources of candidates by name: what each needs, and one shape for all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Settings
from xrec.evaluation.folds import Fold
from xrec.generators import item_knn, popularity
from xrec.generators.factors import factor_candidates
from xrec.ranking.eligibility import users_of
from xrec.storage.tables import Tables

SOURCES_ALWAYS = (popularity.SOURCE, item_knn.SOURCE)
"""Sources that are made whatever ``ranking.sources`` says: the baselines of the evaluation."""


def candidates_of(
    source: str, tables: Tables, eligible: DataFrame, folds: Sequence[Fold], settings: Settings
) -> DataFrame:
    """The candidates of one source in all folds: rows of ``candidates``, ``versions`` left out."""
    rows = [
        _of_fold(source, tables, eligible, fold.name, settings).select(
            F.lit(fold.name).alias(C.FOLD), F.lit(source).alias(C.SOURCE), "*"
        )
        for fold in folds
    ]
    return reduce(DataFrame.unionByName, rows)


def _of_fold(source: str, tables: Tables, eligible: DataFrame, fold: str, settings: Settings) -> DataFrame:
    interactions = tables.read("interactions", fold=fold)
    users = users_of(interactions, tables.read("user_categories", fold=fold), eligible)
    if source == popularity.SOURCE:
        return popularity.popular_candidates(users, eligible, interactions, settings.ranking)
    if source == item_knn.SOURCE:
        return item_knn.knn_candidates(users, eligible, interactions, settings.item_knn, settings.ranking)
    return factor_candidates(users, eligible, tables.read("vectors"), settings.ranking, model=source, fold=fold)


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
