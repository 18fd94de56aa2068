"""Buyers: how many users had an item."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C


def num_buyers_of(interactions: DataFrame) -> DataFrame:
    """A fold's interactions to one row an item: ``item_idx``, ``num_buyers``, its users with a counting interaction."""
    return interactions.where(F.col(C.COUNTING)).groupBy(C.ITEM_IDX).agg(F.count("*").alias(C.NUM_BUYERS))
