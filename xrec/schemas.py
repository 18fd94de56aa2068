"""The table contracts: what one row is, its columns, its key, its partitions, and the job that makes it.

Nothing is written that breaks its contract: :func:`check` raises, it never warns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, StructType

from xrec import columns as C
from xrec.lists import LIST_COLUMNS


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table's contract."""

    name: str
    row: str
    """"one row is ...", for people and for error messages."""
    columns: str
    """The columns as Spark DDL, in order, without ``versions``, which every table carries."""
    key: tuple[str, ...]
    made_by: str
    """The job that writes it, named in the error when it is missing."""
    partitions: tuple[str, ...] = ()
    owned_by: tuple[str, ...] = ()
    """A write replaces exactly the rows that share its values of these columns; empty: the whole table."""
    lists: tuple[str, ...] = ()
    """Columns that hold a list: arrays of one length, the first without a value that comes twice, none of them null."""
    change_feed: bool = False
    """Whether Delta tells which rows came and went between two versions."""

    @property
    def schema(self) -> StructType:
        """The Spark schema, ``versions`` included: the versions of the tables that a row was made from."""
        schema = StructType.fromDDL(f"{self.columns}, {C.VERSIONS} string")
        assert isinstance(schema, StructType)
        return schema


class ContractError(ValueError):
    """Rows that a table must not hold; the message names the table, the column and an offending value."""


_TABLES = (
    Table(
        name="events",
        row="a clean event, with its platform, the user's key there and the delivery that it came in",
        columns=(
            "event_id string, platform string, user_id string, item_id string, event_type string, event_ts timestamp, "
            "quantity double, price double, delivery_id string"
        ),
        key=(C.DELIVERY_ID, C.EVENT_ID),
        owned_by=(C.DELIVERY_ID, C.PLATFORM),
        partitions=(C.DELIVERY_ID, C.PLATFORM),
        change_feed=True,
        made_by="ingest",
    ),
    Table(
        name="events_quarantine",
        row="a rejected input row with every reason",
        columns="row_id string, platform string, file string, raw string, reasons array<string>, delivery_id string",
        key=(C.DELIVERY_ID, C.ROW_ID),
        owned_by=(C.DELIVERY_ID, C.PLATFORM),
        partitions=(C.DELIVERY_ID, C.PLATFORM),
        made_by="ingest",
    ),
    Table(
        name="accounts",
        row="what became of the rows of a file of a delivery: an outcome (clean, quarantined, duplicate) or a reason, and how many",
        columns="delivery_id string, platform string, file string, outcome string, num_rows bigint",
        key=(C.DELIVERY_ID, C.PLATFORM, C.FILE, C.OUTCOME),
        owned_by=(C.DELIVERY_ID, C.PLATFORM),
        partitions=(C.DELIVERY_ID, C.PLATFORM),
        made_by="ingest",
    ),
    Table(
        name="opt_outs",
        row="a user who opted out, whether the log knows him or not; without a platform (empty) by the key that the lists have",
        columns="platform string, user_id string",
        key=(C.PLATFORM, C.USER_ID),
        change_feed=True,
        made_by="ingest (where privacy.opt_outs names a list)",
    ),
    Table(
        name="identities",
        row="a user of a platform and the person who he is from a time on",
        columns="platform string, user_id string, person_id string, valid_from_ts timestamp",
        key=(C.PLATFORM, C.USER_ID, C.VALID_FROM_TS),
        change_feed=True,
        made_by="ingest (where identity.file names a table)",
    ),
    Table(
        name="user_attributes",
        row=(
            "a user's value of an attribute, as coarse as users.attributes says; without a platform (empty) by the key that the "
            "lists have"
        ),
        columns="platform string, user_id string, attribute string, value string",
        key=(C.PLATFORM, C.USER_ID, C.ATTRIBUTE),
        made_by="ingest (where users names a file)",
    ),
    Table(
        name="item_filters",
        row="an item of the shop's feed, with the text of each attribute of filters.items (null: unknown)",
        columns="item_id string, attributes map<string,string>",
        key=(C.ITEM_ID,),
        made_by="ingest (where filters.items names a file)",
    ),
    Table(
        name="user_filters",
        row=(
            "a user of the shop's feed, with the text of each attribute of filters.users (null: unknown); without a platform "
            "(empty) by the key that the lists have"
        ),
        columns="platform string, user_id string, attributes map<string,string>",
        key=(C.PLATFORM, C.USER_ID),
        made_by="ingest (where filters.users names a file)",
    ),
    Table(
        name="blocked_pairs",
        row="an item that a user must not get; without a platform (empty) by the key that the lists have",
        columns="platform string, user_id string, item_id string",
        key=(C.PLATFORM, C.USER_ID, C.ITEM_ID),
        made_by="ingest (where filters.blocked names a file)",
    ),
    Table(
        name="persons",
        row="a user of the log, with the signs of his busiest day and, where he is flagged as no person, since when and why",
        columns=(
            "user_id string, num_events bigint, num_days bigint, events_a_day bigint, items_a_day bigint, "
            "hours_a_day bigint, gap_variation double, flagged_ts timestamp, evidence array<string>"
        ),
        key=(C.USER_ID,),
        made_by="judge",
    ),
    Table(
        name="judged_events",
        row=(
            "a clean event of a person (user_id), with its use, since when it does not count (null: it counts), and when its "
            "session began"
        ),
        columns=(
            "event_id string, platform string, user_id string, item_id string, event_type string, event_ts timestamp, "
            "quantity double, price double, use string, void_ts timestamp, session_ts timestamp"
        ),
        key=(C.EVENT_ID,),
        made_by="judge",
    ),
    Table(
        name="catalogue_entries",
        row=(
            "a (category path, label) that a delivery, or the catalogue file, gives an item, with the rows that say so and when "
            "the newest of them was written; a missing label is an empty one"
        ),
        columns=(
            "delivery_id string, platform string, item_id string, category_path array<string>, label string, "
            "updated_ts timestamp, num_rows bigint"
        ),
        key=(C.DELIVERY_ID, C.PLATFORM, C.ITEM_ID, C.CATEGORY_PATH, C.LABEL),
        owned_by=(C.DELIVERY_ID, C.PLATFORM),
        partitions=(C.DELIVERY_ID, C.PLATFORM),
        made_by="ingest",
    ),
    Table(
        name="catalogue",
        row="an item of the source's catalogue, with its category path from the root down and those that lost to it",
        columns="item_id string, category_path array<string>, label string, other_paths array<array<string>>",
        key=(C.ITEM_ID,),
        made_by="ingest",
    ),
    Table(
        name="items",
        row="an item ever seen in the catalogue or the log, with its dense index (stable, grows from 0)",
        columns=(
            "item_id string, item_idx int, category string, category_path array<string>, label string, "
            "in_catalogue boolean, recommendable boolean"
        ),
        key=(C.ITEM_ID,),
        made_by="index",
    ),
    Table(
        name="users",
        row="a user ever seen in the log, with its dense index (stable, grows from 0)",
        columns="user_id string, user_idx int",
        key=(C.USER_ID,),
        made_by="index",
    ),
    Table(
        name="user_categories",
        row="a (user, category) of a fold; lapsed: bought before the look-back and not within it",
        columns=(
            "fold string, user_idx int, category string, weight double, touched boolean, home boolean, lapsed boolean"
        ),
        key=(C.FOLD, C.USER_IDX, C.CATEGORY),
        partitions=(C.FOLD,),
        owned_by=(C.FOLD,),
        made_by="fold",
    ),
    Table(
        name="value_limits",
        row=(
            "an item of a fold: quantity and price (as in events) beyond which a value is an outlier; null where too few are known"
        ),
        columns=(
            "fold string, item_idx int, quantity_low double, quantity_high double, price_low double, price_high double"
        ),
        key=(C.FOLD, C.ITEM_IDX),
        partitions=(C.FOLD,),
        owned_by=(C.FOLD,),
        made_by="fold",
    ),
    Table(
        name="interactions",
        row=(
            "a (user, item) of a fold: all its events before as-of; units and spend are quantity and price summed over the "
            "counting events, outliers drawn in (null: unknown)"
        ),
        columns=(
            "fold string, user_idx int, item_idx int, weight double, num_events int, last_ts timestamp, "
            "counting boolean, units double, spend double, num_outliers int"
        ),
        key=(C.FOLD, C.USER_IDX, C.ITEM_IDX),
        partitions=(C.FOLD,),
        owned_by=(C.FOLD,),
        made_by="fold",
    ),
    Table(
        name="targets",
        row=(
            "a (user, item) of a counting event within a fold's horizon, with what was known before it: whether the item is new "
            "to the user and outside his touched or home categories, in a category that he bought before the look-back only "
            "(lapsed), was had by nobody, or the user has no history"
        ),
        columns=(
            "fold string, user_idx int, item_idx int, category string, cross_touched boolean, cross_home boolean, "
            "is_new boolean, lapsed boolean, cold_item boolean, cold_user boolean"
        ),
        key=(C.FOLD, C.USER_IDX, C.ITEM_IDX),
        partitions=(C.FOLD,),
        owned_by=(C.FOLD,),
        made_by="fold",
    ),
    Table(
        name="training_events",
        row="an event of a fold's history, with its balance weight and its number of copies",
        columns=(
            "fold string, event_id string, user_idx int, item_idx int, event_ts timestamp, counting boolean, weight double, "
            "balance_weight double, num_copies int"
        ),
        key=(C.FOLD, C.EVENT_ID),
        partitions=(C.FOLD,),
        owned_by=(C.FOLD,),
        made_by="balance",
    ),
    Table(
        name="balance_report",
        row="a category of a fold's training rows, before and after balancing",
        columns=(
            "fold string, category string, num_events bigint, share double, balanced_events double, balanced_share double, "
            "effective_events double, num_copies bigint, largest_repeat int"
        ),
        key=(C.FOLD, C.CATEGORY),
        partitions=(C.FOLD,),
        owned_by=(C.FOLD,),
        made_by="balance",
    ),
    Table(
        name="vocabulary",
        row=(
            "an item that the sequence models of a fold know; token 0 is padding, so tokens run from 1 without gaps; category_code "
            "is -1 where the item is never recommended, vector null where it is given none; words and paths are hashes of what the "
            "catalogue says of it. Tokens -1, -2, ... are items without history enough that are known by that alone"
        ),
        columns=(
            "fold string, token int, item_idx int, num_buyers int, num_events int, category_code int, vector array<float>, "
            "words array<int>, paths array<int>"
        ),
        key=(C.FOLD, C.TOKEN),
        partitions=(C.FOLD,),
        owned_by=(C.FOLD,),
        made_by="export_sequences",
    ),
    Table(
        name="sequences",
        row=(
            "a window of a user's history in a fold, oldest token first, left-padded with 0 to length + 1 tokens: "
            "inputs are tokens[:-1], targets tokens[1:]; window 0 is the newest; baskets counts from the user's newest basket, 1; "
            "touched_at is the place in the window from which he has each category; rows of row_weight 0 pad a shard"
        ),
        columns=(
            "fold string, split string, shard int, user_idx int, window int, tokens array<int>, "
            "token_weights array<float>, baskets array<int>, touched_at array<int>, row_weight float"
        ),
        key=(C.FOLD, C.USER_IDX, C.WINDOW),
        partitions=(C.FOLD, C.SPLIT, C.SHARD),
        owned_by=(C.FOLD,),
        made_by="export_sequences",
    ),
    Table(
        name="vectors",
        row="a user's or an item's vector of a model: their dot product is the model's score",
        columns="fold string, model string, kind string, idx int, vector array<float>",
        key=(C.FOLD, C.MODEL, C.KIND, C.IDX),
        partitions=(C.FOLD, C.MODEL),
        owned_by=(C.FOLD, C.MODEL),
        made_by="train_als (als), load_vectors (gru, transformer)",
    ),
    Table(
        name="candidates",
        row="a list: the items that a source proposed to a user within a scope, best first, with their scores",
        columns=f"fold string, source string, scope string, user_idx int, {LIST_COLUMNS}",
        key=(C.FOLD, C.SOURCE, C.SCOPE, C.USER_IDX),
        partitions=(C.FOLD, C.SOURCE),
        owned_by=(C.FOLD, C.SOURCE),
        lists=(C.ITEMS, C.SCORES),
        made_by="candidates (blend: blend; rankers: train_rankers; served: choose)",
    ),
    Table(
        name="blend_weights",
        row="a source's weight in the blend of a fold and scope, with the older folds that it was chosen on",
        columns="fold string, scope string, source string, weight double, selected_on string, ndcg double, ndcg_popularity double",
        key=(C.FOLD, C.SCOPE, C.SOURCE),
        made_by="blend",
    ),
    Table(
        name="serving_models",
        row=(
            "a model that could serve a fold in a scope: its NDCG@10 on older folds by lists that knew nothing later, and its "
            "difference to the best single source there, with an interval that holds for all that learn at once"
        ),
        columns=(
            "fold string, scope string, model string, learns boolean, chosen boolean, ndcg double, low double, high double, "
            "compared_with string, difference double, adjusted_low double, adjusted_high double, num_users bigint, "
            "selected_on string"
        ),
        key=(C.FOLD, C.SCOPE, C.MODEL),
        made_by="choose",
    ),
    Table(
        name="staged_recommendations",
        row="rank r of a user on a run date, not published yet",
        columns=(
            "run_date date, user_id string, rank int, item_id string, category string, score double, reason string, "
            "source string, data_version bigint, fold string, model_version string"
        ),
        key=(C.RUN_DATE, C.USER_ID, C.RANK),
        partitions=(C.RUN_DATE,),
        owned_by=(C.RUN_DATE,),
        made_by="recommend",
    ),
    Table(
        name="recommendations",
        row="rank r of a user on a run date",
        columns=(
            "run_date date, user_id string, rank int, item_id string, category string, score double, reason string, "
            "source string, data_version bigint, fold string, model_version string"
        ),
        key=(C.RUN_DATE, C.USER_ID, C.RANK),
        partitions=(C.RUN_DATE,),
        owned_by=(C.RUN_DATE,),
        made_by="publish",
    ),
    Table(
        name="metrics",
        row=(
            "one figure of one model on one slice, with its interval, its difference to popularity, and the wider (adjusted) "
            "interval of the difference that holds for all models of the slice at once"
        ),
        columns=(
            "run_id string, fold string, model string, slice string, metric string, k int, value double, low double, "
            "high double, difference double, difference_low double, difference_high double, adjusted_low double, "
            "adjusted_high double, num_users bigint"
        ),
        key=(C.RUN_ID, C.FOLD, C.MODEL, C.SLICE, C.METRIC, C.K),
        partitions=(C.RUN_ID,),
        owned_by=(C.RUN_ID,),
        made_by="evaluate",
    ),
    Table(
        name="reliability",
        row=(
            "a bin of a model's listed rows by their score, which is a probability: its mean (predicted), and the share that was "
            "bought (observed), with its interval"
        ),
        columns=(
            "run_id string, fold string, model string, slice string, bin int, num_rows bigint, num_users bigint, "
            "predicted double, observed double, low double, high double"
        ),
        key=(C.RUN_ID, C.FOLD, C.MODEL, C.SLICE, C.BIN),
        partitions=(C.RUN_ID,),
        owned_by=(C.RUN_ID,),
        made_by="evaluate",
    ),
    Table(
        name="category_flow",
        row=(
            "a category of items and the users of a main category, by model and slice: pairs (user, item) that were shown up to "
            "rank k, that were targets, and that were both"
        ),
        columns=(
            "run_id string, fold string, model string, slice string, main_category string, category string, k int, "
            "num_shown bigint, num_targets bigint, num_hits bigint"
        ),
        key=(C.RUN_ID, C.FOLD, C.MODEL, C.SLICE, C.MAIN_CATEGORY, C.CATEGORY),
        partitions=(C.RUN_ID,),
        owned_by=(C.RUN_ID,),
        made_by="evaluate",
    ),
    Table(
        name="looks",
        row="a run that judged a test fold, with the commit and the settings (JSON) that it ran with and the figures that it saw",
        columns=(
            "run_id string, fold string, looked_ts timestamp, code_version string, settings_hash string, settings string, "
            "figures map<string,string>"
        ),
        key=(C.RUN_ID, C.FOLD),
        partitions=(C.RUN_ID,),
        owned_by=(C.RUN_ID,),
        made_by="evaluate",
    ),
    Table(
        name="trials",
        row="settings that a search tried, with their NDCG at k over the users of the select folds; trial 0 is the control",
        columns=(
            "run_id string, trial int, settings string, selected_on string, scope string, k int, ndcg double, "
            "num_users bigint, chosen boolean"
        ),
        key=(C.RUN_ID, C.TRIAL),
        partitions=(C.RUN_ID,),
        owned_by=(C.RUN_ID,),
        made_by="compare (with --trials)",
    ),
    Table(
        name="exposures",
        row=(
            "an item shown to a user at a time in an arm of an experiment (no item: the user was in the arm; no arm: the one that "
            "the hash assigns); without a platform (empty) by the key that the lists have"
        ),
        columns=(
            "exposure_id string, experiment string, arm string, platform string, user_id string, item_id string, "
            "shown_ts timestamp, rank int, delivery_id string"
        ),
        key=(C.DELIVERY_ID, C.EXPOSURE_ID),
        owned_by=(C.DELIVERY_ID,),
        partitions=(C.DELIVERY_ID,),
        made_by="read_experiment",
    ),
    Table(
        name="experiment_results",
        row=(
            "a metric of an arm of an experiment on a slice (kind: all, category or segment), its mean a user with interval, its "
            "difference to the control, the wider (adjusted) interval that holds for all slices of the kind at once, and what may "
            "be said of it"
        ),
        columns=(
            "experiment string, arm string, kind string, slice string, metric string, value double, low double, high double, "
            "difference double, difference_low double, difference_high double, adjusted_low double, adjusted_high double, "
            "num_users bigint, num_active bigint, srm_p_value double, verdict string"
        ),
        key=(C.EXPERIMENT, C.ARM, C.KIND, C.SLICE, C.METRIC),
        owned_by=(C.EXPERIMENT,),
        partitions=(C.EXPERIMENT,),
        made_by="read_experiment",
    ),
    Table(
        name="feedback",
        row=(
            "a (user, item) of a fold that was shown before as-of and bought after it, or shown in vain (weight below 0), with the "
            "showings that count and its last purchase or showing"
        ),
        columns=(
            "fold string, user_idx int, item_idx int, event_type string, event_ts timestamp, num_shown bigint, weight double"
        ),
        key=(C.FOLD, C.USER_IDX, C.ITEM_IDX),
        partitions=(C.FOLD,),
        owned_by=(C.FOLD,),
        made_by="balance (where feedback is on)",
    ),
    Table(
        name="stage_runs",
        row="a stage that ended, with the table versions that it wrote and the figures that it reports",
        columns=(
            "run_id string, stage string, started_ts timestamp, seconds double, settings_hash string, "
            "outputs map<string,bigint>, figures map<string,string>"
        ),
        key=(C.RUN_ID, C.STAGE),
        partitions=(C.RUN_ID,),
        owned_by=(C.RUN_ID, C.STAGE),
        made_by="every stage",
    ),
)

_SUSPECTS = 1000
"""Keys of a write that are looked at one by one; two of a billion 64-bit hashes are equal by chance 3 times in 100 writes."""

TABLES: dict[str, Table] = {table.name: table for table in _TABLES}


def check_types(rows: DataFrame, table: Table) -> DataFrame:
    """Rows in the contract's column order; raises :class:`ContractError` on a missing, extra or retyped column.

    Types are compared, not cast: Spark narrows a double to a float without a word.
    """
    expected = {field.name: field.dataType for field in table.schema}
    found = {field.name: field.dataType for field in rows.schema}
    problems = [f"column '{name}' is missing" for name in expected if name not in found]
    problems += [f"column '{name}' is not in the contract" for name in found if name not in expected]
    problems += [
        f"column '{name}' is {found[name].simpleString()}, expected {kind.simpleString()}"
        for name, kind in expected.items()
        if name in found and not _same_type(found[name], kind)
    ]
    if problems:
        raise ContractError(f"table '{table.name}' (one row is {table.row}): {'; '.join(problems)}")
    return rows.select(*expected)


def check_rows(rows: DataFrame, table: Table, owned: Mapping[str, Sequence[str]]) -> None:
    """Raise :class:`ContractError` where a key is null or occurs twice, a row belongs to another owner, or a list is none.

    One aggregation over hashes of the keys, which is cheap, finds the suspects; the rows of these alone are then compared
    by the keys themselves. ``owned`` gives the values of the owning columns that this write replaces.
    """
    key_hash = F.xxhash64(*table.key)
    suspects = (
        rows.groupBy(key_hash.alias("key_hash"))
        .agg(
            F.count("*").alias("num_rows"),
            F.bool_or(_is_null(table) | _is_stray(owned) | _is_no_list(table)).alias("is_bad"),
        )
        .where("num_rows > 1 or is_bad")
        .limit(_SUSPECTS)
        .collect()
    )
    if suspects:
        _check_keys(rows.where(key_hash.isin([row["key_hash"] for row in suspects])), table, owned)


def _check_keys(rows: DataFrame, table: Table, owned: Mapping[str, Sequence[str]]) -> None:
    """Raise :class:`ContractError` with a key that is null, occurs twice or belongs to another owner, if there is one."""
    # With the row that is stray in it, so that the message can show the value.
    owners = F.struct(*[F.col(column).cast("string").alias(column) for column in owned]) if owned else F.lit(None)
    offenders = (
        rows.groupBy(*table.key)
        .agg(
            F.count("*").alias("num_rows"),
            F.bool_or(_is_null(table)).alias("has_null"),
            F.bool_or(_is_no_list(table)).alias("is_no_list"),
            F.first(F.when(_is_stray(owned), owners), ignorenulls=True).alias("stray"),
        )
        .where("num_rows > 1 or has_null or is_no_list or stray is not null")
        .limit(1)
        .collect()
    )
    if not offenders:
        return
    bad = offenders[0].asDict(recursive=True)
    num_rows, has_null, is_no_list, stray = (bad.pop(name) for name in ("num_rows", "has_null", "is_no_list", "stray"))
    if stray is not None:
        column, found = next((name, value) for name, value in stray.items() if value not in owned[name])
        raise ContractError(
            f"table '{table.name}': column '{column}' is {found!r}, this write owns {list(owned[column])}"
        )
    if is_no_list and num_rows == 1 and not has_null:
        raise ContractError(
            f"table '{table.name}' (one row is {table.row}): at key {bad} the columns {', '.join(table.lists)} are null, of "
            f"different lengths, or one of {table.lists[0]} comes twice"
        )
    fault = "has a null" if has_null else f"occurs {num_rows} times"
    raise ContractError(f"table '{table.name}' (one row is {table.row}): key {bad} {fault}, expected exactly one row")


def _is_null(table: Table) -> Column:
    return _any(F.col(name).isNull() for name in table.key)


def _is_no_list(table: Table) -> Column:
    sizes = [F.size(name) for name in table.lists]
    return _any(
        F.coalesce(one != size, F.lit(True))
        for size in sizes[:1]
        for one in (*sizes[1:], F.size(F.array_distinct(table.lists[0])))
    )


def _is_stray(owned: Mapping[str, Sequence[str]]) -> Column:
    return _any(
        ~F.coalesce(F.col(column).cast("string").isin(*allowed), F.lit(False)) for column, allowed in owned.items()
    )


def _any(conditions: Iterable[Column]) -> Column:
    return reduce(Column.__or__, conditions, F.lit(False))


def _same_type(found: DataType, expected: DataType) -> bool:
    """Types are the same apart from nullability, which Parquet does not keep."""
    return found.simpleString() == expected.simpleString()
