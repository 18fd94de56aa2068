"""Candidates as tests write and read them: one row an item, where the table has one row a list."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

RANKED = "fold string, source string, scope string, user_idx int, item_idx int, score float, rank int"
"""The columns of such rows."""


def as_lists(rows: DataFrame) -> DataFrame:
    """Rows with ``item_idx`` and ``rank``, perhaps ``score``, to one list for all that have the other columns in common."""
    ranked = [name for name in ("rank", "item_idx", "score") if name in rows.columns]
    keys = [name for name in rows.columns if name not in ranked]
    lists = rows.groupBy(*keys).agg(F.sort_array(F.collect_list(F.struct(*ranked))).alias("list"))
    scores = [F.col("list")["score"].cast("array<float>").alias("scores")] if "score" in ranked else []
    return lists.select(*keys, F.col("list")["item_idx"].alias("items"), *scores)
