"""Which items all lists of a model together show: coverage of items and categories, the Gini index, each with an interval.

Of the lists of a scope, up to rank k, with n recommendable items, of which the i-th least shown is in x_i lists:

- coverage: distinct items over n (Ge et al. 2010)
- category_coverage: distinct categories over recommendable categories
- gini: sum of (2 i - n - 1) x_i over n times the sum of x_i: 0 where all items are shown equally often, near 1 where few are
  (Gini 1912; Castells et al. 2015)

These are no means over users, so the bootstrap of means does not apply, and a resample of users shows fewer items than the
users do. The intervals are the delete-a-group jackknife's (Kott 2001): users are in G groups by a hash, t is the figure of all
lists and t_g that of those without group g; the variance is (G - 1) / G times the sum of (t_g - mean of t_g)^2, the interval t
+- Student's quantile of G - 1 degrees of freedom. A difference to popularity is one of such figures, with the same groups. For
the Gini index that is what it should be; of the coverages, which count what is shown at all, the jackknife's variance is
never too small on average (Efron, Stein 1981), and up to three times too large where most items are in a single list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from scipy import stats

from xrec import columns as C
from xrec.config import Evaluation
from xrec.evaluation.intervals import BASELINE
from xrec.lists import ranked_rows

Array = npt.NDArray[Any]

COVERAGE = "coverage"
EXPOSURE = (COVERAGE, "category_coverage", "gini")
NUM_GROUPS = 20
_LIST, _GROUP, _VALUES, _BASELINE = "list", "group", "values", "baseline"
_LISTS = [C.FOLD, C.SOURCE, C.SCOPE]
_SCHEMA = f"{_LIST} bigint, {C.METRIC} string, {C.K} int, {_VALUES} array<double>"
_ARROW = pa.schema({C.METRIC: pa.string(), C.K: pa.int32(), _VALUES: pa.list_(pa.float64())})


def exposure_of(candidates: DataFrame, items: DataFrame, settings: Evaluation, *, num_compared: int) -> DataFrame:
    """Lists to rows of ``metrics`` (without run_id): which items a model and slice shows, at each of ``evaluation.ks``.

    ``num_users`` is the number of users with a list. Where all users are in one group there is no interval. A task holds what a
    model shows in a scope: for each of its items some 40 G bytes.

    Parameters
    ----------
    candidates
        Lists, of all users, also of those without targets.
    items
        Rows of ``items``; the recommendable ones are counted.
    num_compared
        As :func:`xrec.evaluation.intervals.summarise`.
    """
    recommendable = items.where(C.RECOMMENDABLE).select(C.ITEM_IDX, F.xxhash64(C.CATEGORY).alias(C.CATEGORY_CODE))
    sizes = recommendable.agg(F.count("*"), F.countDistinct(C.CATEGORY_CODE)).first()
    assert sizes is not None
    num_items, num_categories, ks = max(sizes[0], 1), max(sizes[1], 1), settings.ks
    # A number for the list's three names: the keys of what follows are short.
    number, group = F.xxhash64(*_LISTS).alias(_LIST), F.pmod(F.xxhash64(C.USER_IDX), F.lit(NUM_GROUPS)).cast("int")
    rows = ranked_rows(candidates.select(number, C.ITEMS, group.alias(_GROUP)), k=max(ks))
    counts = [F.count_if(F.col(C.RANK) <= k).cast("int").alias(_at(k)) for k in ks]
    shown = rows.groupBy(_LIST, C.ITEM_IDX, _GROUP).agg(*counts).join(recommendable, C.ITEM_IDX, how="inner")

    def run(table: pa.Table) -> pa.Table:
        return _figures_of_list(table, ks, num_items, num_categories)

    figures = shown.groupBy(_LIST).applyInArrow(run, _SCHEMA)
    users = candidates.where(F.size(C.ITEMS) > 0).groupBy(*_LISTS, number).agg(F.count("*").alias(C.NUM_USERS))
    return _with_intervals(figures.join(users, _LIST, how="inner"), settings, num_compared)


def _figures_of_list(table: pa.Table, ks: Sequence[int], num_items: int, num_categories: int) -> pa.Table:
    """In how many of a model's lists of a scope each item is, by group, to one row a metric and k."""
    item, category, group = (table[name].to_numpy() for name in (C.ITEM_IDX, C.CATEGORY_CODE, _GROUP))
    found: list[dict[str, Any]] = []
    for k in ks:
        figures = _figures(item, category, group, table[_at(k)].to_numpy(), num_items, num_categories)
        # What is not there without a group (NaN) is null.
        values = (pa.array(figure, from_pandas=True).to_pylist() for figure in figures)
        found += [{C.METRIC: metric, C.K: k, _VALUES: row} for metric, row in zip(EXPOSURE, values, strict=True)]
    rows = pa.Table.from_pylist(found, schema=_ARROW)
    return rows.add_column(0, _LIST, pa.repeat(table[_LIST][0], len(found)))


def _at(k: int) -> str:
    return f"num_lists_{k}"


def _figures(
    item_R: Array, category_R: Array, group_R: Array, counts_R: Array, num_items: int, num_categories: int
) -> tuple[Array, Array, Array]:
    """Each of ``EXPOSURE`` of all lists, then without each group's: shape (1 + G,), NaN where nothing is left.

    R rows say in how many lists of a group an item is; the items of I and categories of C rows have at least one.
    """
    (items, of_item_R), (categories, of_category_R) = (np.unique(x, return_inverse=True) for x in (item_R, category_R))
    shown_IG, shown_CG = (np.zeros((len(found), NUM_GROUPS), np.int64) for found in (items, categories))
    np.add.at(shown_IG, (of_item_R, group_R), counts_R)
    np.add.at(shown_CG, (of_category_R, group_R), counts_R)
    left_I = [_left(shown_IG, place) for place in range(1 + NUM_GROUPS)]
    left_C = [_left(shown_CG, place) for place in range(1 + NUM_GROUPS)]
    is_some = np.where([shown_I.any() for shown_I in left_I], 1.0, np.nan)
    return (
        is_some * [(shown_I > 0).sum() / num_items for shown_I in left_I],
        is_some * [(shown_C > 0).sum() / num_categories for shown_C in left_C],
        is_some * [_gini(shown_I, num_items) for shown_I in left_I],
    )


def _left(shown_NG: Array, place: int) -> Array:
    """Of each thing the lists that it is in: of all groups (place 0), or of all but one."""
    total_N: Array = shown_NG.sum(axis=1)
    return total_N if place == 0 else total_N - shown_NG[:, place - 1]


def _gini(shown_I: Array, num_items: int) -> float:
    """The Gini index of some items, and of as many that are never shown as there are more; those come first."""
    ranks_I = np.arange(num_items - len(shown_I) + 1, num_items + 1)
    total = shown_I.sum()
    return float(((2 * ranks_I - num_items - 1) * np.sort(shown_I)).sum() / (num_items * max(total, 1)))


def _with_intervals(found: DataFrame, settings: Evaluation, num_compared: int) -> DataFrame:
    """Rows with ``values``, that of all lists and those without each group's, to rows of ``metrics``."""
    of_baseline = F.max(F.when(F.col(C.SOURCE) == BASELINE, F.col(_VALUES)))
    beside = found.withColumn(
        _BASELINE, of_baseline.over(Window.partitionBy(C.FOLD, C.SCOPE, C.METRIC, C.K))
    ).withColumn("differences", F.zip_with(_VALUES, _BASELINE, lambda one, other: one - other))
    tail = (1 - settings.confidence) / 2
    columns = []
    for values, value, low, high, at in (
        (_VALUES, C.VALUE, C.LOW, C.HIGH, tail),
        ("differences", C.DIFFERENCE, C.DIFFERENCE_LOW, C.DIFFERENCE_HIGH, tail),
        ("differences", None, C.ADJUSTED_LOW, C.ADJUSTED_HIGH, tail / max(num_compared, 1)),
    ):
        of_all, half = F.get(values, F.lit(0)), float(stats.t.ppf(1 - at, NUM_GROUPS - 1)) * _error(values)
        columns += [of_all.alias(value)] if value else []
        columns += [(of_all - half).alias(low), (of_all + half).alias(high)]
    return beside.select(
        C.FOLD,
        F.col(C.SOURCE).alias(C.MODEL),
        F.col(C.SCOPE).alias(C.SLICE),
        C.METRIC,
        C.K,
        *columns,
        C.NUM_USERS,
    )


def _error(values: str) -> Column:
    """The jackknife's standard error; null where a figure without a group is not there."""
    without = F.slice(values, 2, NUM_GROUPS)
    zero = F.lit(0.0)
    mean = F.aggregate(without, zero, lambda total, one: total + one) / NUM_GROUPS
    squares = F.aggregate(without, zero, lambda total, one: total + (one - mean) ** 2)
    return F.sqrt(squares * ((NUM_GROUPS - 1) / NUM_GROUPS))
