"""The lists that go out: rows of the recommendations table, checked against what may never be recommended."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Ranking
from xrec.evaluation.folds import Fold
from xrec.lists import ranked_rows
from xrec.ranking.blend import Choice, with_contributions
from xrec.ranking.eligibility import check_eligible
from xrec.storage.tables import Tables


class ListsError(ValueError):
    """Lists that an earlier stage should have made are not there."""


def in_scope(candidates: DataFrame, folds: Sequence[Fold], scope: str) -> DataFrame:
    """The rows of ``candidates`` in the scope that serves.

    Raises
    ------
    ListsError
        One of the folds has candidates, but none in this scope.
    """
    theirs = candidates.where(F.col(C.FOLD).isin([fold.name for fold in folds]))
    lacking = theirs.groupBy(C.FOLD).agg(F.max(F.col(C.SCOPE) == scope).alias(C.SCOPE)).where(~F.col(C.SCOPE)).first()
    if lacking is not None:
        raise ListsError(
            f"table 'candidates': found fold '{lacking[C.FOLD]}' in other scopes alone, expected scope '{scope}' (ranking.scope), "
            "because each scope that serves has lists of its own: run the stages from candidates on with the same settings"
        )
    return candidates.where(F.col(C.SCOPE) == scope)


def lists_of(candidates: DataFrame, weights: Choice, ranking: Ranking, fold: Fold) -> DataFrame:
    """A fold's served lists, one row an item: ``user_idx``, ``item_idx``, ``score``, ``rank``, and its main ``source``.

    ``weights`` are those by which the sources contribute to the lists; the one that contributes most is a row's source.

    Raises
    ------
    ListsError
        The fold has no served lists in the configured scope.
    """
    proposed = candidates.where((F.col(C.FOLD) == fold.name) & (F.col(C.SCOPE) == ranking.scope))
    served = proposed.where(F.col(C.SOURCE) == C.SERVED).select(C.USER_IDX, C.ITEMS, C.SCORES)
    if served.isEmpty():
        raise ListsError(
            f"table 'candidates': found no rows of source '{C.SERVED}' in fold '{fold.name}', scope '{ranking.scope}'; they are "
            "made by the stage choose: run the stages from candidates on"
        )
    main_source = with_contributions(proposed, [weights], ranking).select(C.USER_IDX, C.ITEM_IDX, C.SOURCE)
    return ranked_rows(served, k=ranking.top_k).join(main_source, [C.USER_IDX, C.ITEM_IDX], how="left")


def check_lists(
    lists: DataFrame, items: DataFrame, interactions: DataFrame, user_categories: DataFrame, *, scope: str
) -> None:
    """Raise where a list holds what its user must not get, or what no source of the served model proposed.

    Raises
    ------
    EligibilityError
        A seen item, an item of an excluded category, or one that is not recommendable.
    ListsError
        The lists were made from other candidates or weights than the tables hold now.
    """
    check_eligible(lists, items, interactions, user_categories, scope=scope)
    orphan = lists.where(F.col(C.SOURCE).isNull()).first()
    if orphan is not None:
        raise ListsError(
            f"table 'candidates': user_idx {orphan[C.USER_IDX]} is served item_idx {orphan[C.ITEM_IDX]}, which no source of "
            "the model proposes; expected lists of the candidates and weights at hand: run the stages from blend on again"
        )


def recommendation_rows(
    lists: DataFrame, users: DataFrame, *, fold: Fold, data_version: int, model_version: str
) -> DataFrame:
    """Lists with ``item_id``, ``category`` and ``reason`` to rows of ``recommendations``, of the run date of the fold."""
    return lists.join(users.select(C.USER_ID, C.USER_IDX), C.USER_IDX, how="inner").select(
        F.lit(fold.as_of.date()).alias(C.RUN_DATE),
        C.USER_ID,
        C.RANK,
        C.ITEM_ID,
        C.CATEGORY,
        F.col(C.SCORE).cast("double").alias(C.SCORE),
        C.REASON,
        C.SOURCE,
        F.lit(data_version).cast("bigint").alias(C.DATA_VERSION),
        F.lit(fold.name).alias(C.FOLD),
        F.lit(model_version).alias(C.MODEL_VERSION),
    )


def model_version_of(tables: Tables, candidates: DataFrame, model: str) -> str:
    """The model that serves, and the versions of its choice and of the vectors behind it, such as trees@3,vectors@7."""
    stamps = [row[0] for row in candidates.select(C.VERSIONS).distinct().collect()]
    vectors = {int(found) for stamp in stamps for found in re.findall(r"\bvectors@(\d+)", stamp or "")}
    parts = [
        f"{model}@{tables.read_versions['serving_models']}",
        *[f"vectors@{version}" for version in sorted(vectors)],
    ]
    return ",".join(parts)


def check_made_for(staged: DataFrame, fold: Fold, model: str) -> None:
    """Raise :class:`ListsError` where a staged list is another fold's, or of another model than the one that was chosen."""
    is_other = (F.col(C.FOLD) != fold.name) | ~F.col(C.MODEL_VERSION).startswith(f"{model}@")
    found = staged.where(is_other).first()
    if found is not None:
        raise ListsError(
            f"table 'staged_recommendations': found a list of fold '{found[C.FOLD]}', model '{found[C.MODEL_VERSION]}', expected "
            f"'{fold.name}' and '{model}', which was chosen to serve: run the stage recommend again with the same settings"
        )


def lists_and_earlier(tables: Tables, fold: Fold) -> tuple[DataFrame, DataFrame | None]:
    """The fold's rows of ``staged_recommendations``, and the lists published before, both with ``user_idx``.

    Those of the newest run date before the fold's own; None where nothing was published.
    """
    users = tables.read("users").select(C.USER_ID, C.USER_IDX)
    run_date = F.lit(fold.as_of.date())
    staged = tables.read("staged_recommendations").where(F.col(C.RUN_DATE) == run_date)
    lists = staged.join(users, C.USER_ID, how="inner")
    if not tables.exists("recommendations"):
        return lists, None
    published = tables.read("recommendations").where(F.col(C.RUN_DATE) < run_date)
    newest = published.agg(F.max(C.RUN_DATE)).first()
    if newest is None or newest[0] is None:
        return lists, None
    return lists, published.where(F.col(C.RUN_DATE) == F.lit(newest[0])).join(users, C.USER_ID, how="inner")


def describe_lists(recommendations: DataFrame, ranking: Ranking) -> dict[str, str]:
    """Counts of the lists, for the summary."""
    found = recommendations.agg(
        F.count("*").alias("rows"),
        F.countDistinct(C.USER_ID).alias("users"),
        F.countDistinct(C.ITEM_ID).alias("items"),
        F.countDistinct(C.CATEGORY).alias("categories"),
        F.count_if(F.col(C.RANK) == ranking.top_k).alias("full_lists"),
    ).first()
    assert found is not None
    return {"scope": ranking.scope, **{name: f"{value:,}" for name, value in found.asDict().items()}}
