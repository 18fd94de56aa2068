"""The lists that go out: rows of the recommendations table, checked against what may never be recommended."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Ranking
from xrec.evaluation.folds import Fold
from xrec.ranking.blend import SOURCE as BLEND
from xrec.ranking.blend import Choice, with_contributions
from xrec.ranking.eligibility import check_eligible
from xrec.storage.tables import Tables


class ListsError(ValueError):
    """Lists that an earlier stage should have made are not there."""


def lists_of(candidates: DataFrame, choices: Sequence[Choice], ranking: Ranking, fold: Fold) -> DataFrame:
    """A fold's candidates to its lists: ``user_idx``, ``item_idx``, ``score``, ``rank``, and the main ``source`` of each row.

    Raises
    ------
    ListsError
        The fold has no blended candidates in the configured scope.
    """
    in_scope = candidates.where((F.col(C.FOLD) == fold.name) & (F.col(C.SCOPE) == ranking.scope))
    blended = in_scope.where((F.col(C.SOURCE) == BLEND) & (F.col(C.RANK) <= ranking.top_k))
    blended = blended.select(C.USER_IDX, C.ITEM_IDX, C.SCORE, C.RANK)
    if blended.isEmpty():
        raise ListsError(
            f"table 'candidates': found no rows of source '{BLEND}' in fold '{fold.name}', scope '{ranking.scope}'; they are "
            "made by the stage blend: run the stages from candidates on"
        )
    main_source = with_contributions(in_scope, choices, ranking).select(C.USER_IDX, C.ITEM_IDX, C.SOURCE)
    return blended.join(main_source, [C.USER_IDX, C.ITEM_IDX], how="left")


def check_lists(
    lists: DataFrame, items: DataFrame, interactions: DataFrame, user_categories: DataFrame, *, scope: str
) -> None:
    """Raise where a list holds what its user must not get, or what no source of the blend proposed.

    Raises
    ------
    EligibilityError
        A seen item, an item of an excluded category, or one that is not recommendable.
    ListsError
        The blend was made from other candidates or weights than the tables hold now.
    """
    check_eligible(lists, items, interactions, user_categories, scope=scope)
    orphan = lists.where(F.col(C.SOURCE).isNull()).first()
    if orphan is not None:
        raise ListsError(
            f"table 'candidates': user_idx {orphan[C.USER_IDX]} has the blended item_idx {orphan[C.ITEM_IDX]}, which no source "
            "with a weight proposes; expected a blend of the candidates and weights at hand: run the stage blend again"
        )


def users_served(users: DataFrame, opt_outs: DataFrame | None) -> DataFrame:
    """Rows of ``users`` without those who opted out, also since the candidates were made."""
    return users if opt_outs is None else users.join(opt_outs.select(C.USER_ID), C.USER_ID, how="left_anti")


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


def model_version_of(tables: Tables, candidates: DataFrame) -> str:
    """The versions of the weights and of the vectors that made the candidates, such as blend@3,vectors@7."""
    stamps = [row[0] for row in candidates.select(C.VERSIONS).distinct().collect()]
    vectors = {int(found) for stamp in stamps for found in re.findall(r"\bvectors@(\d+)", stamp or "")}
    parts = [f"blend@{tables.read_versions['blend_weights']}", *[f"vectors@{version}" for version in sorted(vectors)]]
    return ",".join(parts)


def lists_and_earlier(tables: Tables, fold: Fold) -> tuple[DataFrame, DataFrame] | None:
    """The fold's rows of ``recommendations``, and those before: of the newest earlier run date, else of its own before this run.

    Both with ``user_idx``; None where either is not there.
    """
    if not tables.exists("recommendations"):
        return None
    run_date = F.lit(fold.as_of.date())
    rows = tables.read("recommendations")
    version = tables.read_versions["recommendations"]
    lists, older = rows.where(F.col(C.RUN_DATE) == run_date), rows.where(F.col(C.RUN_DATE) < run_date)
    if older.isEmpty():
        if not version:
            return None
        older = tables.read("recommendations", version=version - 1).where(F.col(C.RUN_DATE) == run_date)
        tables.read_versions["recommendations"] = version
    newest = older.agg(F.max(C.RUN_DATE)).first()
    if lists.isEmpty() or newest is None or newest[0] is None:
        return None
    users = tables.read("users").select(C.USER_ID, C.USER_IDX)
    earlier = older.where(F.col(C.RUN_DATE) == F.lit(newest[0]))
    return lists.join(users, C.USER_ID, how="inner"), earlier.join(users, C.USER_ID, how="inner")


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
