"""A few customers with their history and their list, for a person to judge by eye."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.evaluation.folds import Fold
from xrec.reporting.facts import Customer
from xrec.storage.tables import Tables

_NUM_CUSTOMERS, _NUM_EACH, _NUM_ITEMS = 5, 5, 10


def draw_customers(tables: Tables, fold: Fold, *, seed: int) -> list[Customer]:
    """Five customers with a list of the fold, drawn by a hash of the seed and the key."""
    lists = tables.read("recommendations").where(F.col(C.RUN_DATE) == F.lit(fold.as_of.date()))
    drawn = lists.select(C.USER_ID).distinct().orderBy(F.xxhash64(F.lit(seed), C.USER_ID)).limit(_NUM_CUSTOMERS)
    keys = [row[0] for row in drawn.collect()]
    catalogue = tables.read("items").select(C.ITEM_ID, C.ITEM_IDX, C.LABEL, C.CATEGORY)
    top = lists.where(F.col(C.USER_ID).isin(keys) & (F.col(C.RANK) <= _NUM_ITEMS)).drop(C.VERSIONS, C.CATEGORY)
    items = top.join(catalogue, C.ITEM_ID, how="left").collect()
    users = F.broadcast(tables.read("users").where(F.col(C.USER_ID).isin(keys)).select(C.USER_ID, C.USER_IDX))
    mixes = _mixes(tables.read("user_categories", fold=fold.name).join(users, C.USER_IDX, how="inner"))
    newest = _newest(tables.read("interactions", fold=fold.name).join(users, C.USER_IDX, how="inner"), catalogue)
    histories = {row[C.USER_ID]: row for row in mixes.join(newest, C.USER_ID, how="left").collect()}
    return [
        Customer(
            user_id=key,
            num_touched=histories[key]["num_touched"],
            heaviest=[(part[C.CATEGORY], part[C.SHARE]) for part in histories[key]["heaviest"]],
            purchases=[
                (part[C.LAST_TS].date(), _name(part[C.ITEM_ID], part[C.LABEL]), part[C.CATEGORY])
                for part in histories[key]["newest"] or ()
            ],
            items=[
                (row[C.RANK], _name(row[C.ITEM_ID], row[C.LABEL]), row[C.CATEGORY], row[C.REASON])
                for row in sorted(items, key=lambda row: row[C.RANK])
                if row[C.USER_ID] == key
            ],
        )
        for key in keys
        if key in histories
    ]


def _mixes(user_categories: DataFrame) -> DataFrame:
    """Rows of ``user_categories`` to users, with their touched categories counted and their heaviest ones' shares of weight."""
    ranked = F.reverse(F.array_sort(F.collect_list(F.struct(C.WEIGHT, C.CATEGORY))))
    sums = user_categories.groupBy(C.USER_ID).agg(
        F.count_if(C.TOUCHED).alias("num_touched"),
        F.slice(ranked, 1, _NUM_EACH).alias("top"),
        F.sum(C.WEIGHT).alias("total"),
    )
    shares = F.transform(
        "top", lambda one: F.struct(one[C.CATEGORY].alias(C.CATEGORY), (one[C.WEIGHT] / F.col("total")).alias(C.SHARE))
    )
    return sums.select(C.USER_ID, "num_touched", shares.alias("heaviest"))


def _newest(interactions: DataFrame, catalogue: DataFrame) -> DataFrame:
    """Rows of ``interactions`` to users with the items that they had last."""
    had = interactions.where(C.COUNTING).join(catalogue, C.ITEM_IDX, how="inner")
    ranked = F.array_sort(
        # The smallest comes first: of a negative time the newest, then by the item.
        F.collect_list(F.struct((-F.unix_micros(C.LAST_TS)).alias("age"), C.ITEM_ID, C.LAST_TS, C.LABEL, C.CATEGORY))
    )
    return had.groupBy(C.USER_ID).agg(F.slice(ranked, 1, _NUM_EACH).alias("newest"))


def _name(item_id: str, label: str | None) -> str:
    return f"{label} (item {item_id})" if label else f"item {item_id}"
