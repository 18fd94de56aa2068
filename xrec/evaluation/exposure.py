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

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.window import Window
from scipy import stats

from xrec import columns as C
from xrec.config import Evaluation
from xrec.evaluation.intervals import BASELINE
from xrec.lists import ranked_rows

COVERAGE = "coverage"
EXPOSURE = (COVERAGE, "category_coverage", "gini")
NUM_GROUPS = 20
_GROUP, _COUNTS, _LEFT_OUT, _NUM_SHOWN, _NUM_THINGS = "group", "counts", "left_out", "num_shown", "num_things"
_VALUES, _BASELINE = "values", "baseline"
_LISTS = [C.FOLD, C.SOURCE, C.SCOPE]


def exposure_of(candidates: DataFrame, items: DataFrame, settings: Evaluation, *, num_compared: int) -> DataFrame:
    """Lists to rows of ``metrics`` (without run_id): which items a model and slice shows, at each of ``evaluation.ks``.

    ``num_users`` is the number of users with a list. Where all users are in one group there is no interval.

    Parameters
    ----------
    candidates
        Lists, of all users, also of those without targets.
    items
        Rows of ``items``; the recommendable ones are counted.
    num_compared
        As :func:`xrec.evaluation.intervals.summarise`.
    """
    ks = settings.ks
    recommendable = items.where(C.RECOMMENDABLE).select(C.ITEM_IDX, C.CATEGORY)
    sizes = recommendable.agg(F.count("*"), F.countDistinct(C.CATEGORY)).first()
    assert sizes is not None
    num_items, num_categories = max(sizes[0], 1), max(sizes[1], 1)
    group = F.pmod(F.xxhash64(C.USER_IDX), F.lit(NUM_GROUPS)).cast("int")
    rows = ranked_rows(candidates.select(*_LISTS, C.ITEMS, group.alias(_GROUP)), k=max(ks))
    counts = F.array(*[F.count_if(F.col(C.RANK) <= k) for k in ks])
    of_items = rows.groupBy(*_LISTS, C.ITEM_IDX, _GROUP).agg(counts.alias(_COUNTS))
    of_items = of_items.join(recommendable, C.ITEM_IDX, how="inner")
    spread = _spread(_levels(of_items, C.ITEM_IDX, ks), num_items)
    categories = _levels(of_items, C.CATEGORY, ks).groupBy(*_LISTS, C.K, _LEFT_OUT).agg(_share_shown(num_categories))
    figures = spread.join(categories.withColumnRenamed(COVERAGE, EXPOSURE[1]), [*_LISTS, C.K, _LEFT_OUT], how="inner")
    users = candidates.where(F.size(C.ITEMS) > 0).groupBy(*_LISTS).agg(F.count("*").alias(C.NUM_USERS))
    of_metric = F.array(*[F.struct(F.lit(name).alias(C.METRIC), F.col(name).alias(C.VALUE)) for name in EXPOSURE])
    flat = figures.select(*_LISTS, C.K, _LEFT_OUT, F.inline(of_metric))
    values = [F.max(F.when(F.col(_LEFT_OUT) == n, F.col(C.VALUE))) for n in range(-1, NUM_GROUPS)]
    found = flat.groupBy(*_LISTS, C.METRIC, C.K).agg(F.array(*values).alias(_VALUES)).join(users, _LISTS, how="inner")
    return _with_intervals(found, settings, num_compared)


def _levels(of_items: DataFrame, thing: str, ks: Sequence[int]) -> DataFrame:
    """How many things (items, categories) are in how many lists: (lists, k, ``left_out``, ``num_shown``, ``num_things``).

    Of all lists (``left_out`` -1), and of those of all users but a group's. What is in no list has no row.
    """
    shown_at = {k: F.get(_COUNTS, F.lit(n)) for n, k in enumerate(ks)}
    sums = [
        F.array(F.sum(shown), *[F.sum(F.when(F.col(_GROUP) == g, shown)) for g in range(NUM_GROUPS)]).alias(f"at_{k}")
        for k, shown in shown_at.items()
    ]
    of_thing = of_items.groupBy(*_LISTS, thing).agg(*sums)
    at = F.array(*[F.struct(F.lit(k).alias(C.K), F.col(f"at_{k}").alias(_COUNTS)) for k in ks])
    of_k = of_thing.select(*_LISTS, F.inline(at)).select(
        *_LISTS, C.K, F.get(_COUNTS, F.lit(0)).alias("of_all"), F.posexplode(_COUNTS).alias("place", "of_group")
    )
    without = F.when(F.col("place") == 0, F.col("of_all")).otherwise(F.col("of_all") - F.coalesce("of_group", F.lit(0)))
    exposed = of_k.select(*_LISTS, C.K, (F.col("place") - 1).alias(_LEFT_OUT), without.alias(_NUM_SHOWN))
    return (
        exposed.where(F.col(_NUM_SHOWN) > 0)
        .groupBy(*_LISTS, C.K, _LEFT_OUT, _NUM_SHOWN)
        .agg(F.count("*").alias(_NUM_THINGS))
    )


def _share_shown(num: int) -> Column:
    return (F.sum(_NUM_THINGS) / num).alias(COVERAGE)


def _spread(levels: DataFrame, num_items: int) -> DataFrame:
    """Rows of :func:`_levels` of items to one row a (lists, k, ``left_out``): coverage and Gini index.

    The x of the Gini index are in groups of items that are equally often shown; the never shown stand before all others.
    """
    of_list = Window.partitionBy(*_LISTS, C.K, _LEFT_OUT)
    upward = of_list.orderBy(_NUM_SHOWN).rowsBetween(Window.unboundedPreceding, -1)
    below = F.coalesce(F.sum(_NUM_THINGS).over(upward), F.lit(0))
    before = F.lit(num_items) - F.sum(_NUM_THINGS).over(of_list) + below
    shown, m = F.col(_NUM_SHOWN), F.col(_NUM_THINGS)
    ranked = levels.withColumn("ranks", m * (2 * before + m - F.lit(num_items)))
    gini = F.sum(shown * F.col("ranks")) / (num_items * F.sum(shown * m))
    return ranked.groupBy(*_LISTS, C.K, _LEFT_OUT).agg(_share_shown(num_items), gini.alias(EXPOSURE[2]))


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
