"""Filters of the lists: what the shop forbids goes before anything is selected, and every row of a list is checked against it.

A rule that looks at the item alone takes items out of those that may be recommended. A rule that looks at the user too splits
items and users into classes, by the values of the attributes that such rules name: whether it holds is decided once a pair of
classes, and the classes of items that a user must not get join his excluded categories. So the kernel masks them, and the top K
is exact. Pairs that are blocked one by one join the items that he had.

A rule without a result (null) forbids, unless ``filters.unknown_passes``. A feed is today's: backtests and the older folds that
choose what serves are filtered only where ``filters.backtests`` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import AS_OF, ITEM, USER, Filters
from xrec.evaluation.folds import Fold
from xrec.ranking.eligibility import EligibilityError, eligible_items
from xrec.ranking.rules import Rule, both_sides, holds, items_alone

_CLASS = "class"
_WHY = "why"
_PAIR = "filters.blocked"


class FilterError(ValueError):
    """Filters that leave nothing, or tell too much apart; the message names the rule or the attribute."""


@dataclass(frozen=True, kw_only=True)
class ListFilters:
    """The rules of a run, and what the feeds say."""

    filters: Filters
    rules: tuple[Rule, ...]
    items: DataFrame
    """Every item (``item_idx``) with the struct ``item`` of what rules name; what the feed lacks is null."""
    users: DataFrame
    """Every user (``user_idx``) with the struct ``user``."""
    blocked: DataFrame | None = None
    """Pairs (``user_idx``, ``item_idx``) that must not be."""

    def apply_to(self, fold: Fold) -> bool:
        """Whether a fold's lists are filtered."""
        return fold.purpose == "serve" or self.filters.backtests

    def passes(self, rule: Rule) -> Column:
        """Whether rows of ``item``, ``user`` and ``as_of`` pass a rule; never null."""
        return F.coalesce(holds(rule), F.lit(self.filters.unknown_passes))


def eligible_of_folds(items: DataFrame, folds: Sequence[Fold], filters: ListFilters | None) -> dict[Fold, DataFrame]:
    """Each fold's rows of :func:`eligible_items` that pass the rules on items alone.

    Where rules compare items with users, each has a ``class_code``, beyond the codes of the categories.

    Raises
    ------
    FilterError
        No item passes, or items have more than ``filters.max_classes`` combinations of values that such rules name.
    """
    eligible = eligible_items(items)
    return {
        fold: _passing(eligible, filters, fold) if filters is not None and filters.apply_to(fold) else eligible
        for fold in folds
    }


def _passing(eligible: DataFrame, filters: ListFilters, fold: Fold) -> DataFrame:
    alone, both = items_alone(filters.rules), both_sides(filters.rules)
    rows = eligible.join(filters.items, C.ITEM_IDX, how="inner").withColumn(AS_OF, F.lit(fold.as_of))
    passing = rows.where(reduce(Column.__and__, map(filters.passes, alone), F.lit(True)))
    if passing.isEmpty():
        counts = rows.agg(F.count("*"), *[F.count_if(filters.passes(rule)) for rule in alone]).first()
        assert counts is not None
        each = ", ".join(f"{rule.name} {passed:,}" for rule, passed in zip(alone, counts[1:], strict=True))
        raise FilterError(
            f"filters.rules: found none of {counts[0]:,} items that passes ({each}), expected some; is the key of filters.items "
            "the log's, and does filters.unknown_passes say what you mean?"
        )
    if not both:
        return passing.select(*eligible.columns)
    names = _attributes(both, ITEM)
    classed = passing.withColumn(_CLASS, _key(ITEM, names))
    kept = sorted(_classes(classed, ITEM, names, filters.filters.max_classes))
    last = eligible.agg(F.max(C.CATEGORY_CODE)).first()
    first = 1 + (last[0] if last and last[0] is not None else -1)
    codes = eligible.sparkSession.createDataFrame(
        [(key, code) for code, key in enumerate(kept, start=first)], f"{_CLASS} string, {C.CLASS_CODE} int"
    )
    return classed.join(F.broadcast(codes), _CLASS, how="inner").select(*eligible.columns, C.CLASS_CODE)


def forbidden_classes(eligible: DataFrame, filters: ListFilters, fold: Fold) -> DataFrame | None:
    """A fold's eligible items to (``user_idx``, ``forbidden``): the class codes that rules keep from a user; None without any.

    Raises
    ------
    FilterError
        Users have more than ``filters.max_classes`` combinations of values that such rules name.
    """
    if C.CLASS_CODE not in eligible.columns:
        return None
    both = both_sides(filters.rules)
    names = _attributes(both, USER)
    users = filters.users.withColumn(_CLASS, _key(USER, names))
    _classes(users, USER, names, filters.filters.max_classes)
    item_classes = eligible.join(filters.items, C.ITEM_IDX, how="inner").dropDuplicates([C.CLASS_CODE])
    user_classes = users.dropDuplicates([_CLASS]).select(_CLASS, USER)
    # At most filters.max_classes of each.
    pairs = user_classes.crossJoin(F.broadcast(item_classes.select(C.CLASS_CODE, ITEM)))
    passes = reduce(Column.__and__, map(filters.passes, both))
    broken = pairs.withColumn(AS_OF, F.lit(fold.as_of)).where(~passes)
    of_class = broken.groupBy(_CLASS).agg(F.sort_array(F.collect_list(C.CLASS_CODE)).alias(C.FORBIDDEN))
    return users.join(F.broadcast(of_class), _CLASS, how="inner").select(C.USER_IDX, C.FORBIDDEN)


def check_filters(lists: DataFrame, filters: ListFilters | None, fold: Fold, *, remedy: str) -> None:
    """Raise :class:`EligibilityError` where a (``user_idx``, ``item_idx``) breaks a rule, or is blocked.

    The rules are asked of each row itself, whatever made the candidates. The ``remedy`` ends the message.
    """
    if filters is None:
        return
    rows = (
        lists.select(C.USER_IDX, C.ITEM_IDX)
        .join(filters.items, C.ITEM_IDX, how="left")
        .join(filters.users, C.USER_IDX, how="left")
        .withColumn(AS_OF, F.lit(fold.as_of))
    )
    why = [F.when(~filters.passes(rule), F.lit(rule.name)) for rule in filters.rules]
    if filters.blocked is not None:
        blocked = filters.blocked.select(C.USER_IDX, C.ITEM_IDX, F.lit(True).alias(C.BLOCKED)).distinct()
        rows = rows.join(blocked, [C.USER_IDX, C.ITEM_IDX], how="left")
        why.append(F.when(F.col(C.BLOCKED), F.lit(_PAIR)))
    offender = rows.withColumn(_WHY, F.coalesce(*why)).where(F.col(_WHY).isNotNull()).first()
    if offender is None:
        return
    rule = next((rule for rule in filters.rules if rule.name == offender[_WHY]), None)
    said = "the pair is blocked" if rule is None else _said(rule, offender[ITEM], offender[USER])
    raise EligibilityError(
        f"lists: user_idx {offender[C.USER_IDX]} got item_idx {offender[C.ITEM_IDX]} ({said}); expected only what the filters "
        f"let through. {remedy}"
    )


def _said(rule: Rule, item: Row | None, user: Row | None) -> str:
    """A broken rule and the values that break it."""
    sides = ((ITEM, item, rule.of_item), (USER, user, rule.of_user))
    values = [
        f"{side}.{name} = {'unknown' if row is None or row[name] is None else row[name]}"
        for side, row, names in sides
        for name in names
    ]
    return f"filters.rules.{rule.name}: {rule.text}, with {', '.join(values) or 'no value'}"


def describe_filters(eligible: DataFrame, items: DataFrame, filters: ListFilters | None, fold: Fold) -> dict[str, str]:
    """How many items of a fold pass, for the summary; nothing where there are no filters."""
    if filters is None:
        return {}
    if not filters.apply_to(fold):
        return {"filters": f"not asked of fold '{fold.name}', a backtest (filters.backtests)"}
    found = (
        f"{eligible.count():,} of {items.where(F.col(C.RECOMMENDABLE)).count():,} items pass the rules on items alone"
    )
    blocked = (
        {} if filters.blocked is None else {"blocked": f"{filters.blocked.count():,} pairs of known users and items"}
    )
    return {"filters": found, **blocked}


def _attributes(rules: Sequence[Rule], side: str) -> tuple[str, ...]:
    named = (rule.of_item if side == ITEM else rule.of_user for rule in rules)
    return tuple(sorted(set().union(*named)))


def _key(side: str, names: Sequence[str]) -> Column:
    """The values as JSON, which tells a missing one from every other."""
    return F.to_json(F.struct(*[F.col(f"{side}.{name}") for name in names])) if names else F.lit("{}")


def _classes(classed: DataFrame, side: str, names: Sequence[str], most: int) -> list[str]:
    """The classes; raises :class:`FilterError` where there are more than ``most``."""
    found = classed.select(_CLASS).distinct().limit(most + 1).collect()
    if len(found) <= most:
        return [row[0] for row in found]
    counts = classed.agg(*[F.countDistinct(F.col(f"{side}.{name}")).alias(name) for name in names]).first()
    assert counts is not None
    finest = max(names, key=lambda name: (counts[name], name))
    raise FilterError(
        f"filters.max_classes: found more than {most:,} combinations of {', '.join(f'{side}.{name}' for name in names)}, which "
        f"rules on items and users compare, expected at most {most:,}; {side}.{finest} has {counts[finest]:,} values: make it "
        "coarser in the feed, ask what concerns the item alone in a rule of its own, or raise the limit"
    )
