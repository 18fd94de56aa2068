"""Targets that are in lists, which all accuracy is counted from.

The lists are the many items: they are shuffled once, by user, whole, and each of his targets is looked up in them. What follows has
a row a target or a hit, with numbers for the names of sources and slices; :func:`with_names` gives them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.evaluation.slices import Slice
from xrec.lists import rank_of, shortened

SOURCE, SLICE = "source_number", "slice_number"
POPULAR_RANK = "popular_rank"
_SCOPE, _SLICES = "scope_number", "slices"
_NUMBER = "smallint"
"""The numbers of source and slice: with the user they make one key of 8 bytes, which Spark joins by faster."""


def asked_of(targets: DataFrame, slices: Sequence[Slice]) -> DataFrame:
    """Rows of ``targets``, each once, to those that a slice judges, with a bit for each such slice; brought together by user.

    What joins them and what adds them up ask for the same columns of the same rows, so that one shuffle serves both.
    """
    bits = [F.when(one.holds, F.lit(1 << n)).otherwise(0).cast("bigint") for n, one in enumerate(slices)]
    is_asked = (F.col(_SLICES) > 0) & F.col(C.USER_IDX).isNotNull() & F.col(C.ITEM_IDX).isNotNull()
    return targets.withColumn(_SLICES, reduce(add, bits)).where(is_asked).repartition(C.USER_IDX)


def asked_in_slices(
    asked: DataFrame, keys: Sequence[str], summed: Sequence[str], *, sources: Sequence[str], slices: Sequence[Slice]
) -> DataFrame:
    """Rows of :func:`asked_of` to one row a (source, slice, keys), also of sources that have no list there.

    The result has the keys, the numbers of source and slice, ``num_targets``, and the columns ``summed`` over the targets.
    """
    totals, of_slices = [], []
    for n in range(len(slices)):
        sums = {C.NUM_TARGETS: F.count(F.when(_judges(n), F.col(C.ITEM_IDX)))}
        sums |= {name: F.coalesce(F.sum(F.when(_judges(n), F.col(name))), F.lit(0)) for name in summed}
        totals += [total.alias(f"{name}_{n}") for name, total in sums.items()]
        of_slices.append(
            F.struct(F.lit(n).cast(_NUMBER).alias(SLICE), *[F.col(f"{name}_{n}").alias(name) for name in sums])
        )
    found = asked.groupBy(*keys).agg(*totals).select(*keys, F.inline(F.array(*of_slices)))
    return found.where(F.col(C.NUM_TARGETS) > 0).withColumn(
        SOURCE, F.explode(F.array(*[F.lit(n).cast(_NUMBER) for n in range(len(sources))]))
    )


def hits_of(
    candidates: DataFrame, asked: DataFrame, *, sources: Sequence[str], slices: Sequence[Slice], longest: int
) -> DataFrame:
    """Rows of :func:`asked_of` that are in the lists of ``candidates`` up to the rank ``longest``: one for each source and slice.

    With the numbers of source and slice, ``rank``, and ``popular_rank``, the rank in popularity's list of the same scope.
    """
    scopes = sorted({one.scope for one in slices})
    source, scope = (_encoded(column, names) for column, names in ((C.SOURCE, sources), (C.SCOPE, scopes)))
    numbered = candidates.select(C.USER_IDX, source.cast(_NUMBER).alias(SOURCE), scope.alias(_SCOPE), C.ITEMS)
    lists = shortened(numbered.dropna(), longest).repartition(C.USER_IDX)
    beside = lists.join(asked.hint("shuffle_hash"), C.USER_IDX, how="inner").withColumn(C.RANK, rank_of(C.ITEM_IDX))
    at = beside.where(F.col(C.RANK).isNotNull()).drop(C.ITEMS)
    popular = sources.index(C.POPULARITY) if C.POPULARITY in sources else -1
    a_target = Window.partitionBy(C.USER_IDX, C.ITEM_IDX, _SCOPE)
    popular_rank = F.max(F.when(F.col(SOURCE) == popular, F.col(C.RANK))).over(a_target)
    # The numbers of the slices that judge a target in a list of this scope, null in the place of each other.
    numbers = [
        F.when(_judges(n) & (F.col(_SCOPE) == scopes.index(one.scope)), F.lit(n).cast(_NUMBER))
        for n, one in enumerate(slices)
    ]
    hits = at.withColumn(POPULAR_RANK, popular_rank).withColumn(SLICE, F.explode(F.array(*numbers)))
    return hits.where(F.col(SLICE).isNotNull()).drop(_SLICES, _SCOPE)


def with_names(rows: DataFrame, *, fold: str, sources: Sequence[str], slices: Sequence[Slice]) -> DataFrame:
    """Rows with the numbers of source and slice to rows with ``fold``, ``model`` and ``slice``."""
    named = {
        C.FOLD: F.lit(fold),
        C.MODEL: _decoded(SOURCE, sources),
        C.SLICE: _decoded(SLICE, [one.name for one in slices]),
    }
    return rows.withColumns(named).drop(SOURCE, SLICE)


def _judges(n: int) -> Column:
    """Whether the slice n is among a row's bits."""
    return F.col(_SLICES).bitwiseAND(F.lit(1 << n).cast("bigint")) != 0


def _encoded(column: str, names: Sequence[str]) -> Column:
    """A name's place among ``names``; null where it is none of them."""
    position = F.array_position(F.array(*map(F.lit, names)), F.col(column))
    return F.when(position > 0, position.cast("int") - 1)


def _decoded(column: str, names: Sequence[str]) -> Column:
    return F.get(F.array(*map(F.lit, names)), F.col(column))
