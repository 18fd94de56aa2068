"""Dense indexes: external keys to integers from 0, distributed, stable, growing.

New keys are numbered within hash buckets by a window per bucket; a bucket's offset is the sum of the counts of the
buckets before it. Only the counts, one a bucket, reach the driver. A key that has an index keeps it.
"""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C

_BUCKET = "bucket"


def assign_dense_index(
    ids: DataFrame, *, key: str, index: str, existing: DataFrame | None = None, num_buckets: int = 16
) -> DataFrame:
    """Keys with their dense integer index: every key of ``existing`` as it was, every new one after them.

    Parameters
    ----------
    ids
        Rows with a column ``key``; duplicates are ignored.
    existing
        (key, index) of earlier runs, without gaps from 0, or None.
    num_buckets
        Hash buckets, so the parallelism of the numbering.
    """
    keys = ids.select(key).where(F.col(key).isNotNull()).distinct()
    taken = 0
    if existing is not None:
        existing = existing.select(key, index)
        keys = keys.join(existing, key, how="left_anti")
        last = existing.agg(F.max(index)).first()
        taken = 0 if last is None or last[0] is None else int(last[0]) + 1
    bucketed = keys.withColumn(_BUCKET, F.pmod(F.xxhash64(F.col(key).cast("string")), F.lit(num_buckets)))
    counts = {row[_BUCKET]: row["count"] for row in bucketed.groupBy(_BUCKET).count().collect()}
    offsets, next_index = {}, taken
    for bucket in sorted(counts):
        offsets[bucket] = next_index
        next_index += counts[bucket]
    if not offsets:
        return existing if existing is not None else bucketed.select(key, F.lit(None).cast("int").alias(index))
    offset_of = F.create_map(*[F.lit(value) for pair in offsets.items() for value in pair])
    in_bucket = Window.partitionBy(_BUCKET).orderBy(key)
    numbered = bucketed.withColumn(
        index, (F.row_number().over(in_bucket) - 1 + offset_of[F.col(_BUCKET)]).cast("int")
    ).select(key, index)
    return numbered if existing is None else existing.unionByName(numbered)


def index_items(
    catalogue: DataFrame,
    events: DataFrame,
    *,
    existing: DataFrame | None,
    level: int,
    non_merchandise: tuple[str, ...],
    num_buckets: int,
) -> DataFrame:
    """Catalogue items and logged items to rows of ``items``: one an item ever seen, with index and category.

    The category is the path's node at ``level``, or its last node where the path is shorter, or ``unknown`` where there is
    none. An item that left the catalogue keeps the path that ``existing`` (rows of ``items``, or None) has, so that its buyers
    still know the category. Recommendable is what is in the catalogue, of a known category, and merchandise.
    """
    known = catalogue.drop(C.VERSIONS)
    indexed = assign_dense_index(
        known.select(C.ITEM_ID).unionByName(events.select(C.ITEM_ID)),
        key=C.ITEM_ID,
        index=C.ITEM_IDX,
        existing=existing,
        num_buckets=num_buckets,
    )
    known = known.select(C.ITEM_ID, C.CATEGORY_PATH, C.LABEL, F.lit(True).alias(C.IN_CATALOGUE))
    if existing is not None:
        gone = existing.join(known, C.ITEM_ID, how="left_anti")
        known = known.unionByName(gone.select(C.ITEM_ID, C.CATEGORY_PATH, C.LABEL, F.lit(False).alias(C.IN_CATALOGUE)))
    path = F.coalesce(F.col(C.CATEGORY_PATH), F.array().cast("array<string>"))
    node = F.try_element_at(path, F.least(F.size(path), F.lit(level)).cast("int"))
    category = F.when(F.size(path) == 0, F.lit(C.UNKNOWN)).otherwise(node)
    items = indexed.join(known, C.ITEM_ID, how="left").select(
        C.ITEM_ID,
        C.ITEM_IDX,
        category.alias(C.CATEGORY),
        path.alias(C.CATEGORY_PATH),
        F.col(C.LABEL),
        F.coalesce(F.col(C.IN_CATALOGUE), F.lit(False)).alias(C.IN_CATALOGUE),
    )
    is_named = ~F.col(C.CATEGORY).isin(C.UNKNOWN, *non_merchandise)
    return items.withColumn(C.RECOMMENDABLE, F.col(C.IN_CATALOGUE) & is_named)


def describe_index(items: DataFrame, users: DataFrame) -> dict[str, str]:
    """Counts of items, categories and users, for the summary.

    Raises
    ------
    ValueError
        Fewer than two users or two recommendable categories: there is nobody to learn from, or nothing to cross to.
    """
    found = items.agg(
        F.count("*").alias("items"),
        F.count_if(~F.col(C.IN_CATALOGUE)).alias("items_not_in_catalogue"),
        F.count_if(C.RECOMMENDABLE).alias("items_recommendable"),
        F.countDistinct(F.when(F.col(C.RECOMMENDABLE), F.col(C.CATEGORY))).alias("categories_recommendable"),
    ).first()
    assert found is not None
    figures = {**found.asDict(), "users": users.count()}
    if figures["users"] < 2:
        raise ValueError(
            f"table 'users': found {figures['users']} user, expected at least 2: recommendations are learned from what other "
            "users did; check log.columns.user_id, or load a longer log"
        )
    if figures["categories_recommendable"] < 2:
        raise ValueError(
            f"table 'items': found {figures['categories_recommendable']} category that may be recommended, expected at least "
            "2: a cross-category item is one outside the user's own categories; check catalogue.category, categories.level "
            "and categories.non_merchandise"
        )
    return {name: f"{value:,}" for name, value in figures.items()}


def describe_same_names(items: DataFrame, level: int) -> dict[str, str]:
    """The categories of ``items`` that are several nodes of the tree with one name, for the summary; nothing where none are."""
    node = F.array_join(F.slice(C.CATEGORY_PATH, 1, level), " > ")
    known = items.where(F.size(C.CATEGORY_PATH) > 0)
    nodes = known.groupBy(C.CATEGORY).agg(F.min(node).alias("first"), F.max(node).alias("last")).where("first != last")
    found = nodes.agg(F.count("*"), F.min(F.struct(C.CATEGORY, "first", "last"))).first()
    if found is None or not found[0]:
        return {}
    name, first, last = found[1]
    return {"categories_of_several_nodes": f"{found[0]:,}, such as {name}: one category of {first} and {last}"}
