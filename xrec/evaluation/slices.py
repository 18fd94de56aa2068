"""Scopes, which say what a list may hold, and slices, which say by which targets it is judged.

A scope leaves out what a user must not get: ``touched`` and ``home`` the items of these categories and the items that he had,
``new`` the items that he had, ``all`` nothing. Every scope is a slice of the same name, judged by what he bought then of what
its lists may hold. Further slices are parts of it:

- ``<scope>_cold_items``: targets that nobody had before as-of
- ``<scope>_lapsed``: targets in a category that he bought before the look-back and not within it
- ``cold_users``: the targets of users without history, who are in no other slice
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from xrec import columns as C

COLD_USERS = "cold_users"
_TARGETS_OF = {"touched": (C.CROSS_TOUCHED,), "home": (C.CROSS_HOME,), "new": (C.IS_NEW,), "all": ()}
SCOPES = tuple(_TARGETS_OF)
_PARTS = {"cold_items": C.COLD_ITEM, "lapsed": C.LAPSED}


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Targets that lists of a scope are judged by."""

    name: str
    scope: str
    flags: tuple[str, ...]
    """Columns of ``targets`` that are all true for its targets."""

    @property
    def holds(self) -> Column:
        """Whether a row of ``targets`` belongs to it."""
        is_cold = F.col(C.COLD_USER)
        return reduce(and_, map(F.col, self.flags), is_cold if self.name == COLD_USERS else ~is_cold)


def scope_slice(scope: str) -> Slice:
    """The slice of all targets that a scope's lists may hold."""
    return Slice(name=scope, scope=scope, flags=_TARGETS_OF[scope])


def slices_of(scopes: Sequence[str]) -> list[Slice]:
    """Each scope's slice and its parts, and the cold users, judged by lists of the first scope: they have no categories."""
    found = [scope_slice(scope) for scope in scopes]
    for scope in scopes:
        flags = _TARGETS_OF[scope]
        found += [Slice(name=f"{scope}_{part}", scope=scope, flags=(*flags, flag)) for part, flag in _PARTS.items()]
    return [*found, Slice(name=COLD_USERS, scope=scopes[0], flags=())]


def slices_column(slices: Sequence[Slice]) -> Column:
    """The slices that judge a row of ``targets``, as an array of (slice, scope)."""
    kinds = [
        F.when(one.holds, F.struct(F.lit(one.name).alias(C.SLICE), F.lit(one.scope).alias(C.SCOPE))) for one in slices
    ]
    return F.array_compact(F.array(*kinds))


def wanted_of(targets: DataFrame, sources: Sequence[str], slices: Sequence[Slice]) -> DataFrame:
    """Rows of ``targets`` to (fold, source, slice, scope, user_idx, item_idx, category).

    Each is there once for every source and slice that judges it.
    """
    of_slices = targets.select(C.FOLD, C.USER_IDX, C.ITEM_IDX, C.CATEGORY, F.inline(slices_column(slices)))
    return of_slices.withColumn(C.SOURCE, F.explode(F.array(*[F.lit(source) for source in sources])))
