"""What came of an experiment's exposures: who counts, and what each user did in the window after them.

The unit is the user, because users were assigned. A user counts who has a row of the experiment, whatever was shown to him: where
every assigned user is logged (rows without an item) this is the intention to treat, else those whom the experiment reached.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Experiment, Settings
from xrec.experiments.assignment import assigned_arm
from xrec.logrules.identity import with_persons_now

USED, WINDOW_OPEN = "used", "window_open"
USES = (USED, "other_experiment", C.OPTED_OUT, "no_person", "arm_unknown", "wrong_arm", WINDOW_OPEN)
"""What becomes of an exposure in an experiment; where several hold, the first after ``used``."""
CONVERSION, CROSS_CONVERSION, PURCHASES, SPEND = METRICS = ("conversion", "cross_conversion", "purchases", "spend")
"""A user's figures. Within the window after a showing: whether he bought the item shown (conversion). Within the window after
his first row: whether he bought from a category for the first time (cross_conversion), how often he bought, and for how much."""
ALL, IN_CATEGORY, SEGMENT = "all", "category", "segment"
"""Kinds of slices. Of a category the purchases in it count, and still all users; a segment has an attribute value's users."""

_SQUARES, _TOTAL = "squares", "total"


def judge_exposures(signed: DataFrame, experiment: Experiment, log_end: datetime) -> DataFrame:
    """Exposures (:func:`xrec.experiments.exposures.read_exposures`) with their ``use``, and ``arm`` as assigned.

    An exposure whose window reaches beyond the log's end is not used: its purchases are not all known yet.
    """
    assigned = assigned_arm(F.col(C.USER_ID), experiment)
    logged = F.col(C.ARM)
    cases = {
        "other_experiment": ~F.col(C.EXPERIMENT).eqNullSafe(experiment.name),
        C.OPTED_OUT: F.col(C.OPTED_OUT),
        "no_person": F.col(C.FLAGGED_TS).isNotNull(),
        "arm_unknown": ~logged.isin(*experiment.arms),
        "wrong_arm": logged != assigned,
        WINDOW_OPEN: F.col(C.SHOWN_TS) + _window(experiment) > F.lit(log_end),
    }
    use = F.coalesce(*[F.when(holds, F.lit(name)) for name, holds in cases.items()], F.lit(USED))
    return signed.withColumns({C.USE: use, C.ARM: assigned})


def users_of_experiment(used: DataFrame) -> DataFrame:
    """Exposures that are used to one row a user, with his arm and ``first_shown_ts``."""
    return used.groupBy(C.USER_ID, C.ARM).agg(F.min(C.SHOWN_TS).alias(C.FIRST_SHOWN_TS))


def bought_events(events: DataFrame, counting_events: tuple[str, ...]) -> DataFrame:
    """Indexed events to those that count as purchases by all that is known today: not returned, no repeat, of a person."""
    bought = events.where(F.col(C.VOID_TS).isNull() & F.col(C.EVENT_TYPE).isin(*counting_events))
    return bought.select(C.EVENT_ID, C.USER_ID, C.ITEM_ID, C.CATEGORY, C.RECOMMENDABLE, C.EVENT_TS, C.PRICE)


def outcomes_of(used: DataFrame, bought: DataFrame, experiment: Experiment) -> DataFrame:
    """Exposures and purchases to one row a (``user_id``, ``arm``, ``category``, ``metric``) whose ``value`` is above 0.

    A window begins just after the showing, and its last moment belongs to it.
    """
    window, time = _window(experiment), F.col(C.EVENT_TS)
    shown = used.where(F.col(C.ITEM_ID).isNotNull()).select(C.USER_ID, C.ARM, C.ITEM_ID, C.SHOWN_TS)
    converted = (
        shown.join(bought.select(C.USER_ID, C.ITEM_ID, C.CATEGORY, C.EVENT_TS), [C.USER_ID, C.ITEM_ID], how="inner")
        .where((time > F.col(C.SHOWN_TS)) & (time <= F.col(C.SHOWN_TS) + window))
        .select(C.USER_ID, C.ARM, C.CATEGORY, F.lit(CONVERSION).alias(C.METRIC), F.lit(1.0).alias(C.VALUE))
        .distinct()
    )
    first_ever = F.min(C.EVENT_TS).over(Window.partitionBy(C.USER_ID, C.CATEGORY))
    start = F.col(C.FIRST_SHOWN_TS)
    within = (
        bought.withColumn("first_ever", first_ever)
        .join(users_of_experiment(used), C.USER_ID, how="inner")
        .where((time > start) & (time <= start + window))
    )
    is_new = F.col(C.RECOMMENDABLE) & (F.col("first_ever") > start)
    figures = {
        CROSS_CONVERSION: F.max(is_new.cast("double")),
        PURCHASES: F.count("*").cast("double"),
        SPEND: F.sum(C.PRICE),
    }
    named = F.array(
        *[F.struct(F.lit(name).alias(C.METRIC), F.col(name).alias(C.VALUE)) for name in figures],
    )
    later = (
        within.groupBy(C.USER_ID, C.ARM, C.CATEGORY)
        .agg(*[figure.alias(name) for name, figure in figures.items()])
        .select(C.USER_ID, C.ARM, C.CATEGORY, F.inline(named))
        .where(F.col(C.VALUE) > 0)
    )
    return converted.unionByName(later)


def sums_of(outcomes: DataFrame, segments: DataFrame | None) -> DataFrame:
    """Rows of :func:`outcomes_of` to one row a (``arm``, ``kind``, ``slice``, ``metric``): users' values and squares, summed.

    ``num_active`` counts the users with a value above 0; where none has, there is no row.
    """
    total = F.sum(C.VALUE)
    once = F.when(F.col(C.METRIC).isin(CONVERSION, CROSS_CONVERSION), F.least(total, F.lit(1.0))).otherwise(total)
    overall = outcomes.groupBy(C.USER_ID, C.ARM, C.METRIC).agg(once.alias(C.VALUE))
    fields = [C.ARM, C.KIND, C.SLICE, C.METRIC, C.VALUE]
    values = overall.withColumns({C.KIND: F.lit(ALL), C.SLICE: F.lit(ALL)}).select(*fields)
    of_category = outcomes.withColumns({C.KIND: F.lit(IN_CATEGORY), C.SLICE: F.col(C.CATEGORY)})
    values = values.unionByName(of_category.select(*fields))
    if segments is not None:
        of_segment = overall.join(segments, C.USER_ID, how="inner").withColumn(C.KIND, F.lit(SEGMENT))
        values = values.unionByName(of_segment.select(*fields))
    value = F.col(C.VALUE)
    return values.groupBy(C.ARM, C.KIND, C.SLICE, C.METRIC).agg(
        F.count("*").alias(C.NUM_ACTIVE), F.sum(value).alias(_TOTAL), F.sum(value * value).alias(_SQUARES)
    )


def num_users_of(users: DataFrame, segments: DataFrame | None) -> DataFrame:
    """Rows of :func:`users_of_experiment` to one row a (``arm``, ``kind``, ``slice``) with ``num_users``: all, and the segments."""
    keys = [C.ARM, C.KIND, C.SLICE]
    slices = users.withColumns({C.KIND: F.lit(ALL), C.SLICE: F.lit(ALL)}).select(*keys)
    if segments is not None:
        of_segment = users.join(segments, C.USER_ID, how="inner").withColumn(C.KIND, F.lit(SEGMENT))
        slices = slices.unionByName(of_segment.select(*keys))
    return slices.groupBy(*keys).agg(F.count("*").alias(C.NUM_USERS))


def segments_of(attributes: DataFrame, identities: DataFrame | None, settings: Settings) -> DataFrame:
    """Rows of ``user_attributes`` to one row a (person as ``user_id``, ``slice``), such as ``tier=gold``.

    A person of several users whose values differ is in no segment of that attribute.
    """
    known = with_persons_now(attributes, identities, settings)
    agreed = known.groupBy(C.USER_ID, C.ATTRIBUTE).agg(F.max(C.VALUE).alias(C.VALUE), F.min(C.VALUE).alias("least"))
    segment = F.concat_ws("=", C.ATTRIBUTE, C.VALUE).alias(C.SLICE)
    return agreed.where(F.col(C.VALUE) == F.col("least")).select(C.USER_ID, segment)


def _window(experiment: Experiment) -> Column:
    return F.lit(timedelta(days=experiment.window_days))
