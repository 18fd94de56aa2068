"""Who may get what: per user and scope, the categories that are excluded and the items that were seen.

What the shop's filters forbid (:mod:`xrec.ranking.filters`) joins both. Items that are not ``recommendable`` (non-merchandise,
unknown category) never enter, whatever the source.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C

EXCLUDING = (C.TOUCHED, C.HOME)
"""The scopes that exclude categories, each those that the column of its name in ``user_categories`` says."""
SEES_ALL = "all"
"""The scope that excludes nothing: what the user had may be recommended again."""


class EligibilityError(ValueError):
    """A list that holds what its user must not get; the message names the user and the item."""


def eligible_items(items: DataFrame) -> DataFrame:
    """Rows of ``items`` to those that may be recommended: ``item_idx``, ``category``, ``category_code``.

    Codes number the sorted names of the recommendable categories from 0; the names are collected (bounded by the catalogue).
    """
    recommendable = items.where(F.col(C.RECOMMENDABLE)).select(C.ITEM_IDX, C.CATEGORY)
    names = sorted(row[0] for row in recommendable.select(C.CATEGORY).distinct().collect())
    codes = items.sparkSession.createDataFrame(
        [(name, code) for code, name in enumerate(names)], f"{C.CATEGORY} string, {C.CATEGORY_CODE} int"
    )
    return recommendable.join(F.broadcast(codes), C.CATEGORY, how="inner")


def users_of(
    interactions: DataFrame,
    user_categories: DataFrame,
    eligible: DataFrame,
    scopes: Sequence[str],
    *,
    forbidden: DataFrame | None = None,
    blocked: DataFrame | None = None,
) -> DataFrame:
    """A fold's interactions and user categories to one row a (``scope``, ``user_idx``), with ``excluded`` and ``seen``.

    Every user with an interaction is there. ``excluded`` holds the codes of the categories that the scope excludes, ``seen``
    the indexes of all items that he had (none in the scope ``all``); both may be empty, neither is null.

    Parameters
    ----------
    forbidden
        Rows of ``user_idx`` and ``forbidden``, the codes of the classes of items that filters keep from a user in every scope.
    blocked
        Pairs (``user_idx``, ``item_idx``) that must not be, in any scope.
    """
    seen = interactions.groupBy(C.USER_IDX).agg(F.sort_array(F.collect_list(C.ITEM_IDX)).alias(C.SEEN))
    codes = eligible.select(C.CATEGORY, C.CATEGORY_CODE).distinct()
    coded = user_categories.join(F.broadcast(codes), C.CATEGORY, how="inner")
    excluded = coded.groupBy(C.USER_IDX).agg(
        *[
            F.sort_array(F.collect_list(F.when(F.col(scope), F.col(C.CATEGORY_CODE)))).alias(scope)
            for scope in EXCLUDING
        ]
    )
    users = seen.join(excluded, C.USER_IDX, how="left")
    nothing = F.array().cast("array<int>")
    classes, pairs = nothing, nothing
    if forbidden is not None:
        users = users.join(forbidden.select(C.USER_IDX, C.FORBIDDEN), C.USER_IDX, how="left")
        classes = F.coalesce(F.col(C.FORBIDDEN), nothing)
    if blocked is not None:
        items = F.sort_array(F.collect_set(C.ITEM_IDX)).alias(C.BLOCKED)
        users = users.join(blocked.groupBy(C.USER_IDX).agg(items), C.USER_IDX, how="left")
        pairs = F.coalesce(F.col(C.BLOCKED), nothing)
    scoped = [
        F.struct(
            F.lit(scope).alias(C.SCOPE),
            F.concat(F.coalesce(F.col(scope), nothing) if scope in EXCLUDING else nothing, classes).alias(C.EXCLUDED),
            F.concat(nothing if scope == SEES_ALL else F.col(C.SEEN), pairs).alias(C.SEEN),
        )
        for scope in scopes
    ]
    # Not a union of the scopes: its rows would lie anyhow, and be moved again for every join by user.
    return users.select(C.USER_IDX, F.inline(F.array(*scoped))).select(C.SCOPE, C.USER_IDX, C.EXCLUDED, C.SEEN)


def check_eligible(
    rows: DataFrame, items: DataFrame, interactions: DataFrame, user_categories: DataFrame, *, scope: str
) -> None:
    """Raise :class:`EligibilityError` where a (``user_idx``, ``item_idx``) is seen, excluded or not recommendable."""
    pairs = rows.select(C.USER_IDX, C.ITEM_IDX).join(
        items.select(C.ITEM_IDX, C.CATEGORY, C.RECOMMENDABLE), C.ITEM_IDX, how="left"
    )
    seen = interactions.select(C.USER_IDX, C.ITEM_IDX, F.lit(True).alias("is_seen"))
    excluded = user_categories.where(F.col(scope)).select(C.USER_IDX, C.CATEGORY, F.lit(True).alias("is_excluded"))
    is_forbidden = F.col("is_seen") | F.col("is_excluded") | ~F.coalesce(F.col(C.RECOMMENDABLE), F.lit(False))
    offender = (
        pairs.join(seen, [C.USER_IDX, C.ITEM_IDX], how="left")
        .join(excluded, [C.USER_IDX, C.CATEGORY], how="left")
        .fillna(False, ["is_seen", "is_excluded"])
        .where(is_forbidden)
        .first()
    )
    if offender is not None:
        why = (
            "already had it"
            if offender["is_seen"]
            else f"{scope} category"
            if offender["is_excluded"]
            else "never recommended"
        )
        raise EligibilityError(
            f"lists: user_idx {offender[C.USER_IDX]} got item_idx {offender[C.ITEM_IDX]} of category "
            f"'{offender[C.CATEGORY]}' ({why}); expected only unseen items outside his {scope} categories. The candidates "
            "were made from other versions of the tables: run the stages from candidates on again"
        )
