"""Reach of the candidates: how much of what a user bought then any ranking of them could show at all.

With T the user's targets in the slice of the scope that serves, C_s what source s proposes him (its whole list, up to
``ranking.candidates_per_source``), and the mean over users with targets:

- reach of a source: the number of T in C_s over the number of T; of ``union``: of T in any C_s, the bound of every ranker's recall
- reach_alone of a source: the number of T in C_s and in no other source's list over the number of T: what the union loses without
  it; of ``union``: the sum of these, what hangs on a single source
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.evaluation.metrics import VALUES
from xrec.evaluation.slices import scope_slice
from xrec.lists import rank_of, shortened

REACH = "reach"
UNION = "union"
"""The model of the figures of all sources together."""
_BITS = "bits"


def reach_names(k: int) -> list[tuple[str, int]]:
    """(metric, k) of each position of the column ``values``."""
    return [(REACH, k), ("reach_alone", k)]


def judge_reach(candidates: DataFrame, targets: DataFrame, *, sources: Sequence[str], scope: str, k: int) -> DataFrame:
    """A fold's ``candidates`` and ``targets`` to one row a (fold, model, slice, user with targets), with ``values``.

    As :func:`xrec.evaluation.metrics.judge_lists`; at most 63 sources. The lists are shuffled once, by user.
    """
    slice_ = scope_slice(scope)
    bit = F.coalesce(*[F.when(F.col(C.SOURCE) == name, F.lit(1 << n).cast("bigint")) for n, name in enumerate(sources)])
    listed = candidates.where((F.col(C.SCOPE) == scope) & F.col(C.SOURCE).isin(*sources))
    proposed = shortened(listed.select(C.USER_IDX, C.ITEMS, bit.alias(_BITS)), k).repartition(C.USER_IDX)
    wanted = targets.where(slice_.holds).select(C.FOLD, C.USER_IDX, C.ITEM_IDX).repartition(C.USER_IDX)
    # The targets are the few rows. A bit of each says which sources propose it.
    found = (
        proposed.join(wanted.hint("shuffle_hash"), C.USER_IDX, how="right")
        .groupBy(C.FOLD, C.USER_IDX, C.ITEM_IDX)
        .agg(F.coalesce(F.bit_or(F.when(rank_of(C.ITEM_IDX) > 0, F.col(_BITS))), F.lit(0)).alias(_BITS))
    )
    bits = F.col(_BITS)
    is_one = (bits != 0) & (bits.bitwiseAND(bits - 1) == 0)
    shares = {UNION: (bits != 0, is_one)}
    shares |= {name: (bits.bitwiseAND(1 << n) != 0, bits == 1 << n) for n, name in enumerate(sources)}
    values = [
        F.struct(F.lit(model).alias(C.MODEL), F.array(*[F.avg(one.cast("double")) for one in both]).alias(VALUES))
        for model, both in shares.items()
    ]
    of_users = found.groupBy(C.FOLD, C.USER_IDX).agg(F.array(*values).alias(VALUES))
    return of_users.select(C.FOLD, F.lit(slice_.name).alias(C.SLICE), C.USER_IDX, F.inline(VALUES))
