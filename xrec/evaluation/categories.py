"""From which categories to which: what is shown, wanted and hit, by the user's main category and the item's.

A user's main category is the one with his largest weight, ties by name: the first of his home categories.
"""

from __future__ import annotations

from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.evaluation.report import FoldRows
from xrec.evaluation.slices import scope_slice, wanted_of
from xrec.lists import ranked_rows


def category_flow(rows: FoldRows, *, k: int, run_id: str) -> DataFrame:
    """A fold to rows of ``category_flow``: its lists up to rank k."""
    items, user_categories = rows.items, rows.user_categories
    slices = [scope_slice(scope) for scope in rows.scopes]
    keys = [C.FOLD, C.SOURCE, C.SCOPE, C.USER_IDX, C.ITEM_IDX]
    shown = ranked_rows(rows.candidates, k=k).select(*keys, F.lit(True).alias("is_shown"))
    of_scopes = rows.sources()
    parts = [
        wanted_of(rows.targets, of_scopes[one.scope], [one]).select(*keys, F.lit(True).alias("is_target"))
        for one in slices
        if one.scope in of_scopes
    ]
    wanted = reduce(DataFrame.unionByName, parts)
    return (
        shown.join(wanted, keys, how="full")
        .join(items.select(C.ITEM_IDX, C.CATEGORY), C.ITEM_IDX, how="inner")
        .join(main_categories(user_categories), C.USER_IDX, how="inner")
        .groupBy(C.FOLD, F.col(C.SOURCE).alias(C.MODEL), F.col(C.SCOPE).alias(C.SLICE), C.MAIN_CATEGORY, C.CATEGORY)
        .agg(
            F.lit(run_id).alias(C.RUN_ID),
            F.lit(k).alias(C.K),
            F.count("is_shown").alias(C.NUM_SHOWN),
            F.count("is_target").alias(C.NUM_TARGETS),
            F.count_if(F.col("is_shown") & F.col("is_target")).alias(C.NUM_HITS),
        )
    )


def main_categories(user_categories: DataFrame) -> DataFrame:
    """A fold's user categories to one row a user: ``user_idx``, ``main_category``."""
    heaviest = F.min(F.struct(-F.col(C.WEIGHT), F.col(C.CATEGORY).alias(C.MAIN_CATEGORY)))
    return user_categories.groupBy(C.USER_IDX).agg(heaviest[C.MAIN_CATEGORY].alias(C.MAIN_CATEGORY))
