"""The filters of a run: the rules of the settings beside what the tables have of items, users and blocked pairs."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import ITEM, USER, Settings
from xrec.logrules.identity import with_persons_ever, with_persons_now
from xrec.ranking.filters import FilterError, ListFilters, check_filters
from xrec.ranking.rules import Kinds, Rule, check_rules, kinds_of, rules_of
from xrec.runs.stage import StageContext
from xrec.storage.tables import Tables

_STALE = "The candidates were made with other filters or feeds: run the stages from candidates on again"


def filters_of(context: StageContext) -> ListFilters | None:
    """The filters of a run; None where the settings have none.

    Raises
    ------
    SettingsError
        A rule cannot be asked.
    MissingTableError
        A feed that the settings name was never loaded.
    FilterError
        It was loaded without an attribute that a rule names.
    """
    settings, tables, filters = context.settings, context.tables, context.settings.filters
    if filters is None:
        return None
    check_rules(context.spark, settings, filters)
    rules, kinds = rules_of(filters), kinds_of(settings, filters)
    identities = tables.read("identities") if tables.exists("identities") else None
    blocked = None if filters.blocked is None else _blocked(tables, identities, settings)
    return ListFilters(
        filters=filters,
        rules=rules,
        items=_of_items(tables, rules, kinds[ITEM]),
        users=_of_users(tables, rules, kinds[USER], identities, settings),
        blocked=blocked,
    )


def check_recommended(context: StageContext, lists: DataFrame) -> None:
    """Raise EligibilityError where lists of the main fold (``user_idx``, ``item_idx``) break its filters."""
    filters, fold = filters_of(context), context.main_fold
    if filters is not None and filters.apply_to(fold):
        check_filters(lists, filters, fold, remedy=_STALE)


def check_staged_lists(context: StageContext) -> None:
    """Raise EligibilityError where a staged list of the main fold's date breaks the filters as they are now, whatever the fold.

    Nothing but what passes becomes what others read, so a backtest that was not filtered does not either.
    """
    filters, fold = filters_of(context), context.main_fold
    if filters is None:
        return
    tables, run_date = context.tables, fold.as_of.date().isoformat()
    staged = tables.read("staged_recommendations", run_date=run_date)
    # A user or item that no table knows is in no feed either.
    lists = staged.join(tables.read("users").select(C.USER_ID, C.USER_IDX), C.USER_ID, how="left").join(
        tables.read("items").select(C.ITEM_ID, C.ITEM_IDX), C.ITEM_ID, how="left"
    )
    stays = (
        f"The lists of {run_date} are not published, and whoever reads recommendations still gets those from before. "
    )
    unfiltered = (
        f"Fold '{fold.name}' is a backtest, whose lists were made without filters: end the run before publish, or set "
        "filters.backtests=true, and run the stages from candidates on again"
    )
    check_filters(lists, filters, fold, remedy=stays + (_STALE if filters.apply_to(fold) else unfiltered))


def _of_items(tables: Tables, rules: tuple[Rule, ...], kinds: Kinds) -> DataFrame:
    names = sorted({name for rule in rules for name in rule.of_item})
    items = tables.read("items").select(C.ITEM_ID, C.ITEM_IDX)
    if not names:
        return items.select(C.ITEM_IDX, F.lit(None).cast("string").alias(ITEM))
    feed = tables.read("item_filters").select(C.ITEM_ID, C.ATTRIBUTES)
    _check_loaded(feed, names, ITEM)
    return items.join(feed, C.ITEM_ID, how="left").select(C.ITEM_IDX, _struct(ITEM, names, kinds))


def _of_users(
    tables: Tables, rules: tuple[Rule, ...], kinds: Kinds, identities: DataFrame | None, settings: Settings
) -> DataFrame:
    """A person of several users whose values differ has none of that attribute."""
    names = sorted({name for rule in rules for name in rule.of_user})
    users = tables.read("users").select(C.USER_ID, C.USER_IDX)
    if not names:
        return users.select(C.USER_IDX, F.lit(None).cast("string").alias(USER))
    known = _known_of_users(tables, names, settings)
    agreed = (
        with_persons_now(known, identities, settings)
        .groupBy(C.USER_ID, C.ATTRIBUTE)
        .agg(F.max(C.VALUE).alias(C.VALUE), F.min(C.VALUE).alias("least"))
        .where(F.col(C.VALUE) == F.col("least"))
    )
    entries = F.map_from_entries(F.collect_list(F.struct(C.ATTRIBUTE, C.VALUE))).alias(C.ATTRIBUTES)
    of_user = agreed.groupBy(C.USER_ID).agg(entries)
    return users.join(of_user, C.USER_ID, how="left").select(C.USER_IDX, _struct(USER, names, kinds))


def _known_of_users(tables: Tables, names: list[str], settings: Settings) -> DataFrame:
    """What the feed and the coarse attributes say of users: ``platform``, ``user_id``, ``attribute``, ``value``."""
    filters, coarse = settings.filters, settings.users
    columns, parts = [C.PLATFORM, C.USER_ID, C.ATTRIBUTE, C.VALUE], []
    if filters is not None and filters.users is not None and not set(names).isdisjoint(filters.users.attributes):
        feed = tables.read("user_filters")
        _check_loaded(feed, [name for name in names if name in filters.users.attributes], USER)
        parts.append(feed.select(C.PLATFORM, C.USER_ID, F.explode(C.ATTRIBUTES).alias(C.ATTRIBUTE, C.VALUE)))
    if coarse is not None and not set(names).isdisjoint(coarse.attributes):
        parts.append(tables.read("user_attributes").select(*columns))
    rows = parts[0] if len(parts) == 1 else parts[0].unionByName(parts[1])
    return rows.where(F.col(C.ATTRIBUTE).isin(*names) & F.col(C.VALUE).isNotNull()).select(*columns)


def _blocked(tables: Tables, identities: DataFrame | None, settings: Settings) -> DataFrame:
    """Rows of ``blocked_pairs`` to pairs of known users and items, for every person who the user is or ever was."""
    pairs = with_persons_ever(tables.read("blocked_pairs").drop(C.VERSIONS), identities, settings)
    users = tables.read("users").select(C.USER_ID, C.USER_IDX)
    items = tables.read("items").select(C.ITEM_ID, C.ITEM_IDX)
    found = pairs.join(users, C.USER_ID, how="inner").join(items, C.ITEM_ID, how="inner")
    return found.select(C.USER_IDX, C.ITEM_IDX).distinct()


def _struct(side: str, names: list[str], kinds: Kinds) -> Column:
    return F.struct(*[F.col(C.ATTRIBUTES)[name].try_cast(kinds[name]).alias(name) for name in names]).alias(side)


def _check_loaded(feed: DataFrame, names: list[str], side: str) -> None:
    row = feed.select(F.map_keys(C.ATTRIBUTES)).first()
    lacking = [name for name in names if row is not None and name not in row[0]]
    if lacking:
        raise FilterError(
            f"filters.{side}s.attributes.{lacking[0]}: found a feed that was loaded without it, expected it in table "
            f"'{side}_filters'; load the feed again: ./spark-submit.sh jobs/read_filters.py with the same settings"
        )
