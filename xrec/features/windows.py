"""Training events to what torch reads: windows of fixed length in equal logical shards.

A user's newest ``length * max_windows + 1`` events, in the order of (time, hash of the event), are cut into windows of
``length + 1`` tokens that overlap by one, so every event but the oldest is a target exactly once::

    oldest ...  e1 e2 e3 e4 e5 e6 e7   newest         length = 3
    window 0             e4 e5 e6 e7                  inputs e4 e5 e6, targets e5 e6 e7
    window 1    e1 e2 e3 e4                           inputs e1 e2 e3, targets e2 e3 e4

Beside them lies what the models must know of categories (``sequence.objective``): which basket a token is of, and from which
place in the window on the user has each category, whether he got it within the window, before it, or by an item without a token.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Sequence, Settings
from xrec.features.context import with_context
from xrec.features.sequence_files import TRAIN, VALIDATION
from xrec.features.vocabulary import NEVER_RECOMMENDED

_POSITION = "position"
_EVENTS = "events"
_SINCE = "since"
_TOUCHES = "touches"
_RECENCY = "recency"
_COLUMNS = (
    *(C.FOLD, C.SPLIT, C.SHARD, C.USER_IDX, C.WINDOW),
    *(C.TOKENS, C.TOKEN_WEIGHTS, C.BASKETS, C.TOUCHED_AT, C.CONTEXT, C.ROW_WEIGHT),
)


def build_windows(
    training_events: DataFrame,
    vocabulary: DataFrame,
    eligible: DataFrame,
    settings: Settings,
    *,
    num_categories: int,
) -> DataFrame:
    """Events of any number of folds to rows of ``sequences``; every shard of a fold and split has equally many rows.

    A token's weight as a target is its number of copies times its recency, or 0 where it is no target: padding, the oldest
    event (nothing comes before it), the first token of a window (the next window's target), with ``objective: new_categories``
    what does not count or is never recommended, and with ``targets: first`` an item that the user had before among what is left.
    The recency of an event of age a, counted from the fold's newest, is 0.5 ^ (a / (``half_life_share`` x the age of the oldest)).
    """
    sequence = settings.sequence
    rows = cut_windows(training_events, vocabulary, eligible, settings, num_categories=num_categories)
    events = training_events.join(_known(vocabulary), [C.FOLD, C.ITEM_IDX], how="inner")
    users = _place(events.groupBy(C.FOLD, C.USER_IDX).count(), sequence, settings.seed)
    num_windows = F.sum(_num_windows(F.col("count"), sequence))
    counts = users.groupBy(C.FOLD, C.SPLIT, C.SHARD).agg(num_windows.cast("int").alias(C.NUM_ROWS))
    return rows.unionByName(padding_rows(counts, sequence, num_categories))


def cut_windows(
    training_events: DataFrame,
    vocabulary: DataFrame,
    eligible: DataFrame,
    settings: Settings,
    *,
    num_categories: int,
) -> DataFrame:
    """The rows of :func:`build_windows` without those that pad shards."""
    sequence, known = settings.sequence, _known(vocabulary)
    events = with_context(training_events.join(known, [C.FOLD, C.ITEM_IDX], how="inner"), settings)
    events = _with_recency(events, settings)
    newest = _collect_newest(events, sequence).join(
        _first_touches(training_events, known, eligible, num_categories), [C.FOLD, C.USER_IDX], how="left"
    )
    windows = _place(_cut(newest, sequence, num_categories), sequence, settings.seed)
    return windows.withColumn(C.ROW_WEIGHT, F.lit(1.0).cast("float")).select(*_COLUMNS)


def _known(vocabulary: DataFrame) -> DataFrame:
    return vocabulary.where(F.col(C.TOKEN) > 0).select(C.FOLD, C.ITEM_IDX, C.TOKEN, C.CATEGORY_CODE)


def _with_recency(events: DataFrame, settings: Settings) -> DataFrame:
    """Events with their ``recency``: 1 where the log has no clock, but an order of rows alone."""
    share = settings.sequence.half_life_share
    if not share or any(source.log.time.unit == "order" for source in settings.sources):
        return events.withColumn(_RECENCY, F.lit(1.0))
    seconds = F.col(C.EVENT_TS).cast("double")
    bounds = events.groupBy(C.FOLD).agg(F.min(seconds).alias("oldest"), F.max(seconds).alias("newest"))
    age = (F.col("newest") - seconds) / F.nullif(F.col("newest") - F.col("oldest"), F.lit(0.0))
    recency = F.coalesce(F.pow(F.lit(0.5), age / share), F.lit(1.0))
    return events.join(F.broadcast(bounds), C.FOLD, how="inner").withColumn(_RECENCY, recency).drop("oldest", "newest")


def _first_touches(training_events: DataFrame, known: DataFrame, eligible: DataFrame, num_categories: int) -> DataFrame:
    """One row a (fold, user): ``touches`` has for each category how many of his known events came since he has it, or null.

    They are counted from the basket in which an event first touched the category, the basket included; all counting events touch,
    also those of items that have no token, and for good: ``categories.look_back_days`` is not asked.
    """
    user = [C.FOLD, C.USER_IDX]
    tokens = known.select(C.FOLD, C.ITEM_IDX, C.TOKEN)
    events = training_events.join(tokens, [C.FOLD, C.ITEM_IDX], how="left").join(
        eligible.select(C.ITEM_IDX, C.CATEGORY_CODE), C.ITEM_IDX, how="left"
    )
    up_to_now = Window.partitionBy(*user).orderBy(F.desc(C.EVENT_TS))
    since = F.count(C.TOKEN).over(up_to_now.rangeBetween(Window.unboundedPreceding, Window.currentRow))
    touching = events.withColumn(_SINCE, since).where(F.col(C.COUNTING) & F.col(C.CATEGORY_CODE).isNotNull())
    firsts = touching.groupBy(*user, C.CATEGORY_CODE).agg(F.max(_SINCE).cast("int").alias(_SINCE))
    by_code = firsts.groupBy(*user).agg(
        F.map_from_entries(F.collect_list(F.struct(C.CATEGORY_CODE, _SINCE))).alias(_TOUCHES)
    )
    codes = F.sequence(F.lit(0), F.lit(num_categories - 1))
    return by_code.withColumn(_TOUCHES, F.transform(codes, lambda code: F.try_element_at(_TOUCHES, code)))


def _place(rows: DataFrame, sequence: Sequence, seed: int) -> DataFrame:
    """Rows of users with their ``split`` and ``shard``: hashes of (seed, user), so all of a user's windows stay together."""
    user_hash = F.xxhash64(F.lit(seed), F.col(C.USER_IDX))
    validates = F.pmod(F.xxhash64(F.lit("validation"), user_hash), F.lit(10_000)) < int(
        sequence.validation_share * 10_000
    )
    return rows.withColumn(C.SPLIT, F.when(validates, F.lit(VALIDATION)).otherwise(F.lit(TRAIN))).withColumn(
        C.SHARD, F.pmod(user_hash, F.lit(sequence.num_shards)).cast("int")
    )


def _num_windows(num_events: Column, sequence: Sequence) -> Column:
    """Windows of a user with this many events; one event gives one window, which has no target."""
    wanted = F.ceil((num_events - 1) / sequence.length).cast("int")
    return F.least(F.greatest(wanted, F.lit(1)), F.lit(sequence.max_windows))


def _collect_newest(events: DataFrame, sequence: Sequence) -> DataFrame:
    """Events to one row a (fold, user): ``events`` is his newest tokens with their weights and baskets, newest first."""
    user = [C.FOLD, C.USER_IDX]
    tie = F.xxhash64(F.col(C.EVENT_ID))
    newest_first = Window.partitionBy(*user).orderBy(F.desc(C.EVENT_TS), F.desc(tie), F.desc(C.EVENT_ID))
    nothing = F.lit(0.0).cast("float")
    may_be_target = F.lit(True)
    if sequence.objective == "new_categories":
        may_be_target = F.col(C.COUNTING) & (F.col(C.CATEGORY_CODE) != NEVER_RECOMMENDED)
    weight = F.when(may_be_target, (F.col(C.NUM_COPIES) * F.col(_RECENCY)).cast("float")).otherwise(nothing)
    basket = F.dense_rank().over(Window.partitionBy(*user).orderBy(F.desc(C.EVENT_TS)))
    numbered = events.withColumn(_POSITION, F.row_number().over(newest_first)).withColumn(C.BASKETS, basket)
    if sequence.targets == "first":
        of_item = Window.partitionBy(*user, C.ITEM_IDX)
        # A purchase is the first one also after the item was looked at.
        is_first = F.col(_POSITION) == F.max(F.when(may_be_target, F.col(_POSITION))).over(of_item)
        weight = F.when(is_first, weight).otherwise(nothing)
    newest = numbered.withColumn(C.WEIGHT, weight).where(F.col(_POSITION) <= sequence.length * sequence.max_windows + 1)
    collected = F.sort_array(F.collect_list(F.struct(_POSITION, C.TOKEN, C.WEIGHT, C.BASKETS, C.CONTEXT)))
    return newest.groupBy(*user).agg(collected.alias(_EVENTS))


def _cut(users: DataFrame, sequence: Sequence, num_categories: int) -> DataFrame:
    """Users with ``events`` and ``touches`` to one row a window (0 is the newest), without shard and row weight.

    ``touched_at`` is 0 for what the user had before the window, and length + 1 for what he got after it or never.
    """
    length = sequence.length
    num_events = F.size(_EVENTS)
    windows = users.withColumn("num_events", num_events).withColumn(
        C.WINDOW, F.explode(F.sequence(F.lit(0), _num_windows(num_events, sequence) - 1))
    )
    cut = windows.withColumn("cut", F.slice(_EVENTS, F.col(C.WINDOW) * length + 1, length + 1))
    missing = F.lit(length + 1) - F.size("cut")

    def weight_of(event: Column, place: Column) -> Column:
        is_input_only = (event[_POSITION] == F.col("num_events")) | (place == length)
        return F.when(is_input_only, F.lit(0.0).cast("float")).otherwise(event[C.WEIGHT])

    never = F.array_repeat(F.lit(None).cast("int"), num_categories)

    def place_of(since: Column) -> Column:
        place = F.lit(length) * (F.col(C.WINDOW) + 1) + 1 - since
        return F.least(F.greatest(F.coalesce(place, F.lit(length + 1)), F.lit(0)), F.lit(length + 1)).cast("int")

    tokens = F.reverse(F.transform("cut", lambda event: event[C.TOKEN]))
    baskets = F.reverse(F.transform("cut", lambda event: event[C.BASKETS]))
    weights = F.reverse(F.transform("cut", weight_of))
    contexts = F.flatten(F.reverse(F.transform("cut", lambda event: event[C.CONTEXT])))
    return cut.select(
        C.FOLD,
        C.USER_IDX,
        C.WINDOW,
        F.concat(F.array_repeat(F.lit(0), missing), tokens).alias(C.TOKENS),
        F.concat(F.array_repeat(F.lit(0.0).cast("float"), missing), weights).alias(C.TOKEN_WEIGHTS),
        F.concat(F.array_repeat(F.lit(0), missing), baskets).alias(C.BASKETS),
        F.transform(F.coalesce(_TOUCHES, never), place_of).alias(C.TOUCHED_AT),
        F.concat(F.array_repeat(F.lit(0), missing * len(sequence.context)), contexts).alias(C.CONTEXT),
    )


def padding_rows(counts: DataFrame, sequence: Sequence, num_categories: int) -> DataFrame:
    """The ``num_rows`` of each (fold, split, shard) to the rows of weight 0 that make all shards of a split equally long.

    The longest shard gets none. Their ``user_idx`` is negative and differs for every row of a fold.
    """
    splits = counts.groupBy(C.FOLD, C.SPLIT).agg(
        F.max(C.NUM_ROWS).alias("most"),
        F.map_from_entries(F.collect_list(F.struct(C.SHARD, C.NUM_ROWS))).alias("rows_of"),
    )
    shards = splits.withColumn(C.SHARD, F.explode(F.sequence(F.lit(0), F.lit(sequence.num_shards - 1))))
    lacking = F.col("most") - F.coalesce(F.try_element_at("rows_of", C.SHARD), F.lit(0))
    numbered = shards.withColumn("lacking", lacking).where("lacking > 0")
    numbered = numbered.withColumn("n", F.explode(F.sequence(F.lit(0), F.col("lacking") - 1)))
    place = F.when(F.col(C.SPLIT) == TRAIN, F.col(C.SHARD)).otherwise(F.col(C.SHARD) + sequence.num_shards)
    return numbered.select(
        C.FOLD,
        C.SPLIT,
        C.SHARD,
        (F.lit(-1) - place - F.col("n") * (2 * sequence.num_shards)).cast("int").alias(C.USER_IDX),
        F.lit(0).alias(C.WINDOW),
        F.array_repeat(F.lit(0), sequence.length + 1).alias(C.TOKENS),
        F.array_repeat(F.lit(0.0).cast("float"), sequence.length + 1).alias(C.TOKEN_WEIGHTS),
        F.array_repeat(F.lit(0), sequence.length + 1).alias(C.BASKETS),
        F.array_repeat(F.lit(0), num_categories).alias(C.TOUCHED_AT),
        F.array_repeat(F.lit(0), (sequence.length + 1) * len(sequence.context)).alias(C.CONTEXT),
        F.lit(0.0).cast("float").alias(C.ROW_WEIGHT),
    ).select(*_COLUMNS)
