"""Training events to a vocabulary: the items that the sequence models know, each with its token."""

from __future__ import annotations

from collections.abc import Sequence as Many

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Sequence
from xrec.features.index import assign_dense_index
from xrec.features.item_content import cold_items
from xrec.features.sequence_files import ExportError
from xrec.storage.tables import Tables

NEVER_RECOMMENDED = -1
"""The ``category_code`` of what is in no list."""


def num_categories_of(eligible: DataFrame) -> int:
    """How many categories have codes (rows with ``category_code``), at least 1: a window has a place for each."""
    last = eligible.agg(F.max(C.CATEGORY_CODE)).first()
    return 1 if last is None or last[0] is None else int(last[0]) + 1


def given_vectors(tables: Tables, fold: str, sequence: Sequence) -> DataFrame | None:
    """A fold's vectors that the models are given for their items (``sequence.item_vectors``), if any."""
    if sequence.item_vectors is None:
        return None
    return tables.read("vectors", fold=fold, model=sequence.item_vectors).where(F.col(C.KIND) == "item")


def build_vocabulary(
    training_events: DataFrame,
    items: DataFrame,
    eligible: DataFrame,
    sequence: Sequence,
    *,
    fold: str,
    num_buckets: int,
    vectors: DataFrame | None = None,
    content: DataFrame | None = None,
    offered: DataFrame | None = None,
) -> DataFrame:
    """One fold's events to its ``vocabulary``: items with enough distinct users, with tokens from 1 without gaps.

    With ``content`` the eligible items that have less, or no history, but words, follow with tokens -1, -2, ...

    Parameters
    ----------
    items
        Which ``item_id`` has which ``item_idx``.
    eligible
        The items that may be recommended, with ``category_code``.
    vectors
        Those of :func:`given_vectors`; None: none.
    content
        Rows of :func:`xrec.features.item_content.content_of`; None: none.
    offered
        Those of :func:`xrec.features.item_content.offered_then`, without which no item follows; None: any may.
    """
    counts = training_events.groupBy(C.ITEM_IDX).agg(
        F.countDistinct(C.USER_IDX).cast("int").alias(C.NUM_BUYERS), F.count("*").cast("int").alias(C.NUM_EVENTS)
    )
    bought = counts.where(F.col(C.NUM_BUYERS) >= sequence.min_buyers)
    indexed = assign_dense_index(bought, key=C.ITEM_IDX, index=C.TOKEN, num_buckets=num_buckets)
    tokens = indexed.select(C.ITEM_IDX, (F.col(C.TOKEN) + 1).alias(C.TOKEN))
    given = (
        tokens.select(C.ITEM_IDX, F.lit(None).cast("array<float>").alias(C.VECTOR))
        if vectors is None
        else vectors.select(F.col(C.IDX).alias(C.ITEM_IDX), C.VECTOR)
    )
    known = (
        bought.join(tokens, C.ITEM_IDX, how="inner")
        .join(eligible.select(C.ITEM_IDX, C.CATEGORY_CODE), C.ITEM_IDX, how="left")
        .join(given, C.ITEM_IDX, how="left")
        .fillna(NEVER_RECOMMENDED, [C.CATEGORY_CODE])
    )
    columns = (C.TOKEN, C.ITEM_IDX, C.NUM_BUYERS, C.NUM_EVENTS, C.CATEGORY_CODE, C.VECTOR, C.WORDS, C.PATHS)
    if content is None:
        nothing = F.lit(None).cast("array<int>")
        rows = known.withColumns({C.WORDS: nothing, C.PATHS: nothing}).select(*columns)
    else:
        cold = cold_items(bought, eligible, content, num_buckets=num_buckets, offered=offered)
        cold = cold.join(counts, C.ITEM_IDX, how="left").fillna(0, [C.NUM_BUYERS, C.NUM_EVENTS])
        cold = cold.withColumn(C.VECTOR, F.lit(None).cast("array<float>")).select(*columns)
        rows = known.join(content, C.ITEM_IDX, how="left").select(*columns).unionByName(cold)
    ids = items.select(C.ITEM_IDX, C.ITEM_ID)
    return rows.join(ids, C.ITEM_IDX, how="inner").select(F.lit(fold).alias(C.FOLD), C.ITEM_ID, *columns)


def check_vocabulary(vocabulary: DataFrame, folds: Many[str], sequence: Sequence) -> dict[str, int]:
    """Items of each fold's vocabulary, in the order of the folds; raises :class:`ExportError` where the last fold has none."""
    known = vocabulary.where(F.col(C.TOKEN) > 0)
    sizes = {row[C.FOLD]: int(row["count"]) for row in known.groupBy(C.FOLD).count().collect()}
    if not sizes.get(main := folds[-1]):
        raise ExportError(
            f"fold {main}: found no item with {sequence.min_buyers} distinct users before its as-of, so the sequence "
            "models have no vocabulary; set sequence.min_buyers lower, or leave gru and transformer out of "
            "ranking.sources"
        )
    return {fold: sizes.get(fold, 0) for fold in folds}
