"""Filters: what the shop forbids is gone before anything is selected, whatever the source, and no row that breaks one gets out."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from test_ranking import PROPOSED, run_job, settings_at, warehouse, write_candidates  # noqa: F401
from xrec import columns as C
from xrec.config import Filters, ItemKnn, Ranking, Settings, SettingsError
from xrec.evaluation.folds import Fold
from xrec.generators.factors import factor_candidates
from xrec.generators.item_knn import knn_candidates
from xrec.generators.popular_in_category import popular_in_category_candidates
from xrec.generators.popularity import popular_candidates
from xrec.ingest.feeds import load_feeds
from xrec.ingest.reader import InputError
from xrec.ranking.eligibility import EligibilityError, eligible_items, users_of
from xrec.ranking.filters import FilterError, ListFilters, check_filters, eligible_of_folds, forbidden_classes
from xrec.ranking.rules import rules_of
from xrec.runs.filters import filters_of
from xrec.runs.stage import StageContext
from xrec.schemas import TABLES
from xrec.storage.shared import SharedFolder
from xrec.storage.tables import Tables

pytestmark = pytest.mark.spark

SERVE = Fold(
    name="serve-1", purpose="serve", as_of=datetime(2024, 3, 1, tzinfo=timezone.utc), horizon=timedelta(days=20)
)
NUM_USERS, NUM_ITEMS, NUM_CATEGORIES, K = 25, 80, 6, 12
RULES = {
    "stock": "item.in_stock",
    "launched": "item.launch_date <= date(as_of)",
    "age": "coalesce(item.min_age, 0) <= user.age",
    "region": "item.region is null or item.region = user.region",
}
ITEM = "struct<in_stock: boolean, launch_date: date, min_age: double, region: string>"
USER = "struct<age: double, region: string>"


class Shop:
    """A random shop: what items and users are, who had what, and pairs that are blocked; some of it is unknown."""

    def __init__(self, seed: int) -> None:
        drawn = random.Random(seed)
        day = SERVE.as_of.date()
        self.category = [f"c{drawn.randrange(NUM_CATEGORIES)}" for _ in range(NUM_ITEMS)]
        self.items = [
            (
                drawn.choice([True, True, True, False, None]),
                day + timedelta(days=drawn.choice([-9, -1, 0, 3])),
                drawn.choice([None, None, 16.0, 18.0]),
                drawn.choice([None, None, "north", "south"]),
            )
            for _ in range(NUM_ITEMS)
        ]
        self.users = [
            (drawn.choice([None, 12.0, 17.0, 40.0]), drawn.choice(["north", "south", None])) for _ in range(NUM_USERS)
        ]
        self.had = {user: set(drawn.sample(range(NUM_ITEMS), drawn.randint(2, 8))) for user in range(NUM_USERS)}
        self.touched = {user: {self.category[item] for item in list(had)[:2]} for user, had in self.had.items()}
        self.blocked = {(drawn.randrange(NUM_USERS), drawn.randrange(NUM_ITEMS)) for _ in range(150)}

    def passes(self, user: int, item: int, *, unknown: bool) -> bool:
        """The rules by hand; a null of one of them is ``unknown``."""
        in_stock, launch_date, min_age, region = self.items[item]
        age, home = self.users[user]
        results = [
            in_stock,
            launch_date <= SERVE.as_of.date(),
            None if age is None else (min_age or 0.0) <= age,
            True if region is None else (None if home is None else region == home),
        ]
        return all(unknown if result is None else result for result in results)

    def allowed(self, user: int, *, unknown: bool) -> set[int]:
        return {
            item
            for item in range(NUM_ITEMS)
            if item not in self.had[user]
            and self.category[item] not in self.touched[user]
            and (user, item) not in self.blocked
            and self.passes(user, item, unknown=unknown)
        }


class Staged:
    """The shop as tables, filtered or not."""

    def __init__(self, spark: SparkSession, shop: Shop, folder: Path, **settings: Any) -> None:
        def frame(rows: list[Any], schema: str) -> DataFrame:
            return spark.createDataFrame(rows, schema)

        self.folder = SharedFolder(str(folder))
        self.items = frame(
            [(f"i{n}", n, category, True) for n, category in enumerate(shop.category)],
            "item_id string, item_idx int, category string, recommendable boolean",
        )
        self.interactions = frame(
            [(u, i, 1.0, True) for u, had in shop.had.items() for i in sorted(had)],
            "user_idx int, item_idx int, weight double, counting boolean",
        )
        self.mixes = frame(
            [(u, category, True, False) for u, found in shop.touched.items() for category in sorted(found)],
            "user_idx int, category string, touched boolean, home boolean",
        )
        filters = Filters(rules=RULES, **settings)
        self.filters = ListFilters(
            filters=filters,
            rules=rules_of(filters),
            items=frame(list(enumerate(shop.items)), f"item_idx int, item {ITEM}"),
            users=frame(list(enumerate(shop.users)), f"user_idx int, user {USER}"),
            blocked=frame(sorted(shop.blocked), "user_idx int, item_idx int"),
        )
        self.spark = spark

    def lists(self, source: str, *, filtered: bool = True, k: int = K) -> dict[int, list[int]]:
        filters = self.filters if filtered else None
        eligible = eligible_of_folds(self.items, [SERVE], filters)[SERVE]
        users = users_of(
            self.interactions,
            self.mixes,
            eligible,
            ["touched"],
            forbidden=None if filters is None else forbidden_classes(eligible, filters, SERVE),
            blocked=None if filters is None else filters.blocked,
        )
        rows = self.candidates(source, users, eligible, Ranking(candidates_per_source=k, tile_items=30, top_k=5))
        found: dict[int, list[int]] = defaultdict(list)
        for row in rows.collect():
            found[row[C.USER_IDX]] = row[C.ITEMS]
        return found

    def candidates(self, source: str, users: DataFrame, eligible: DataFrame, ranking: Ranking) -> DataFrame:
        if source == "popularity":
            return popular_candidates(users, eligible, self.interactions, ranking, self.folder)
        if source == "popular_in_category":
            return popular_in_category_candidates(users, eligible, self.interactions, ranking, self.folder)
        if source == "item_knn":
            return knn_candidates(users, eligible, self.interactions, ItemKnn(), ranking, self.folder)
        drawn = np.random.default_rng(0)
        rows = [
            ("serve-1", "gru", kind, idx, drawn.normal(size=3).tolist())
            for kind, num in (("user", NUM_USERS), ("item", NUM_ITEMS))
            for idx in range(num)
        ]
        vectors = self.spark.createDataFrame(
            rows, "fold string, model string, kind string, idx int, vector array<float>"
        )
        return factor_candidates(users, eligible, vectors, ranking, self.folder, model="gru", fold="serve-1")


@pytest.mark.parametrize("unknown", [False, True])
def test_lists_are_those_of_all_items_less_what_is_forbidden(
    spark: SparkSession, tmp_path: Path, unknown: bool
) -> None:
    """Of vectors every allowed item has a score, so that the lists must hold exactly what is allowed."""
    shop = Shop(1)
    staged = Staged(spark, shop, tmp_path, unknown_passes=unknown)
    allowed = {user: shop.allowed(user, unknown=unknown) for user in range(NUM_USERS)}
    assert 0 < sum(map(len, allowed.values())) < sum(len(shop.allowed(u, unknown=True)) + 1 for u in range(NUM_USERS))
    every, found = staged.lists("gru", filtered=False, k=NUM_ITEMS), staged.lists("gru")
    for user in range(NUM_USERS):
        assert found[user] == [item for item in every[user] if item in allowed[user]][:K]


@pytest.mark.parametrize("source", ["popularity", "popular_in_category", "item_knn"])
def test_every_kind_of_source_obeys_and_loses_nothing_else(spark: SparkSession, tmp_path: Path, source: str) -> None:
    shop = Shop(2)
    staged = Staged(spark, shop, tmp_path)
    every, found = staged.lists(source, filtered=False, k=NUM_ITEMS), staged.lists(source)
    num_left_out = 0
    for user in range(NUM_USERS):
        allowed = shop.allowed(user, unknown=False)
        assert set(found[user]) <= allowed
        num_left_out += len(set(every[user]) - allowed)
        if source != "popular_in_category":  # its order is by the categories' best that are left
            assert found[user] == [item for item in every[user] if item in allowed][:K]
        else:
            assert len(found[user]) == min(K, len(set(every[user]) & allowed))
    assert num_left_out > NUM_USERS


def test_each_row_is_checked_by_itself(spark: SparkSession, tmp_path: Path) -> None:
    shop = Shop(3)
    staged = Staged(spark, shop, tmp_path)

    def check(pairs: list[tuple[int, int]]) -> None:
        rows = spark.createDataFrame(pairs, "user_idx int, item_idx int")
        check_filters(rows, staged.filters, SERVE, remedy="Run it again.")

    pairs = [(user, item) for user in range(NUM_USERS) for item in range(NUM_ITEMS)]
    good = [(u, i) for u, i in pairs if shop.passes(u, i, unknown=False) and (u, i) not in shop.blocked]
    check(good)
    sold_out = next((u, i) for u, i in pairs if shop.items[i][0] is False)
    with pytest.raises(
        EligibilityError,
        match=rf"user_idx {sold_out[0]} got item_idx {sold_out[1]} \(filters.rules.stock: item.in_stock, with "
        r"item.in_stock = False\).*Run it again\.",
    ):
        check([*good, sold_out])
    blocked = next((u, i) for u, i in shop.blocked if shop.passes(u, i, unknown=False))
    with pytest.raises(EligibilityError, match=rf"item_idx {blocked[1]} \(the pair is blocked\)"):
        check([*good, blocked])
    with pytest.raises(EligibilityError, match=r"item.in_stock = unknown"):
        check([(0, NUM_ITEMS + 5)])


def test_filters_that_leave_nothing_or_tell_too_much_apart_are_named(spark: SparkSession, tmp_path: Path) -> None:
    few = Staged(spark, Shop(4), tmp_path, max_classes=2)
    with pytest.raises(FilterError, match=r"more than 2 combinations of item.min_age, item.region.*expected at most 2"):
        few.lists("popularity")
    none = Staged(spark, Shop(4), tmp_path)
    sold_out = none.filters.items.withColumn("item", F.col("item").withField("in_stock", F.lit(False)))
    none.filters = ListFilters(
        filters=none.filters.filters, rules=none.filters.rules, items=sold_out, users=none.filters.users
    )
    with pytest.raises(FilterError, match=rf"found none of {NUM_ITEMS} items that passes \(stock 0, launched \d+\)"):
        none.lists("popularity")


def test_backtests_are_not_filtered_by_the_feeds_of_today(spark: SparkSession, tmp_path: Path) -> None:
    staged = Staged(spark, Shop(5), tmp_path)
    test = Fold(name="test-1", purpose="test", as_of=SERVE.as_of, horizon=SERVE.horizon)
    eligible = eligible_of_folds(staged.items, [test, SERVE], staged.filters)
    assert eligible[test].count() == NUM_ITEMS > eligible[SERVE].count()
    asked = Staged(spark, Shop(5), tmp_path, backtests=True)
    assert eligible_of_folds(staged.items, [test], asked.filters)[test].count() == eligible[SERVE].count()
    assert eligible_of_folds(staged.items, [SERVE], None)[SERVE].count() == eligible_items(staged.items).count()


# --- settings


def filters_at(folder: Path, *overrides: str) -> Settings:
    """Settings with a feed of items, a list of blocked pairs and the rule stock, and what the overrides say."""
    given = [
        f"filters.items.file.path={folder / 'stock.csv'}",
        "filters.items.file.format=csv",
        "filters.items.item_id=sku",
        "filters.items.attributes.in_stock={column: stock, type: bool}",
        f"filters.blocked.file.path={folder / 'blocked.csv'}",
        "filters.blocked.file.format=csv",
        "filters.blocked.user_id=customer",
        "filters.blocked.item_id=sku",
        "filters.rules.stock=item.in_stock",
        "filters.backtests=true",
        "publish.min_user_share=0",
        "publish.min_full_share=0",
    ]
    return settings_at(folder, *given, *overrides)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("item.sold", r"filters.rules.x: found item.sold, expected item.<attribute> with one of .* \(in_stock\)"),
        ("user.age > 3", r"filters.rules.x: found user.age, expected user.<attribute> with one of .* \(none\)"),
        ("item.in_stock and now() > as_of", r"filters.rules.x: found now, expected .* the same lists must pass"),
        ("item.in_stock and as_of > date'today'", r"filters.rules.x: found date'today', expected .* the same lists"),
    ],
)
def test_a_rule_that_names_what_is_not_there_stops_before_anything_runs(
    tmp_path: Path, rule: str, message: str
) -> None:
    with pytest.raises((SettingsError, ValidationError), match=message):
        filters_at(tmp_path, f"filters.rules.x={rule}")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("item.in_stock and", r"filters.rules.x: found 'item.in_stock and', expected a Spark SQL expression"),
        ("cast(item.in_stock as int) + 1", r"with a boolean result, not int"),
        ("item.in_stock and rand() < 0.5", r"with the same result on every run"),
        (
            "item.in_stock and price > 3",
            r"expected a Spark SQL expression over known attributes \(item: in_stock; user: none\)",
        ),
    ],
)
def test_a_rule_that_cannot_be_asked_is_an_error_that_says_why(
    spark: SparkSession, tmp_path: Path, rule: str, message: str
) -> None:
    write_feeds(tmp_path)
    with pytest.raises(SettingsError, match=message):
        load_feeds(spark, filters_at(tmp_path, f"filters.rules.x={rule}"), None)


# --- feeds


def write_feeds(
    folder: Path, stock: str = "i3,yes\ni4,true\ni6,1\n", blocked: str = "", header: str = "sku,stock\n"
) -> None:
    (folder / "stock.csv").write_text(header + stock)
    (folder / "blocked.csv").write_text("customer,sku\n" + blocked)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            {"stock": "i1,maybe\n"},
            r"found 'maybe' of item i1 in .*stock.csv \(1 such rows of 1\), expected true or false",
        ),
        ({"stock": "i1,yes\ni1,no\n"}, r"found item i1 as .* expected one row each"),
        ({"stock": ",yes\n"}, r"found nothing in .*stock.csv .* expected an item in column 'sku'"),
        ({"stock": ""}, r"holds no row .* expected at least one"),
        ({"header": "sku,available\n"}, r"stock"),
        ({"blocked": "u1,\n"}, r"filters.blocked.file.path: found nothing .* expected an item in column 'sku'"),
    ],
)
def test_a_feed_that_cannot_be_used_stops_the_run(
    spark: SparkSession, tmp_path: Path, written: dict[str, str], message: str
) -> None:
    write_feeds(tmp_path, **written)
    with pytest.raises(InputError, match=message):
        load_feeds(spark, filters_at(tmp_path), None)


def test_feeds_become_tables_and_pseudonyms_match_those_of_the_log(spark: SparkSession, tmp_path: Path) -> None:
    write_feeds(tmp_path, blocked="u1,i3\nu1,i3\n")
    feeds = load_feeds(spark, filters_at(tmp_path), None)
    assert set(feeds) == {"item_filters", "blocked_pairs"}
    assert {row[0]: row[1] for row in feeds["item_filters"].collect()} == {
        i: {"in_stock": "true"} for i in ("i3", "i4", "i6")
    }
    assert [tuple(row) for row in feeds["blocked_pairs"].collect()] == [("", "u1", "i3")]
    (hidden,) = load_feeds(spark, filters_at(tmp_path), b"0123456789abcdef0123456789abcdef")["blocked_pairs"].collect()
    assert hidden[C.USER_ID] != "u1"
    assert hidden[C.ITEM_ID] == "i3"


# --- what is injected does not get out


@pytest.mark.delta
def test_what_breaks_a_filter_leaves_neither_recommend_nor_publish(spark: SparkSession, warehouse: Path) -> None:  # noqa: F811
    def load(**written: str) -> None:
        write_feeds(warehouse, **written)
        for name, rows in load_feeds(spark, settings, None).items():
            tables.write(name, rows)

    settings = filters_at(warehouse)
    tables = Tables(spark, settings.storage)
    load()
    run_job("recommend", spark, settings)
    run_job("publish", spark, settings)
    before = Tables(spark, settings.storage).read("recommendations").count()
    assert before == 4
    # Sold out since the lists were made: publish refuses, and then recommend, whatever the candidates say.
    load(stock="i3,yes\ni4,yes\ni6,no\n")
    with pytest.raises(
        EligibilityError, match=r"item_idx 6 \(filters.rules.stock.*The lists of 2024-03-01 are not published"
    ):
        run_job("publish", spark, settings)
    with pytest.raises(EligibilityError, match=r"user_idx \d got item_idx 6 \(filters.rules.stock: item.in_stock"):
        run_job("recommend", spark, settings)
    assert Tables(spark, settings.storage).read("recommendations").count() == before
    assert Tables(spark, settings.storage).version("recommendations") == 0
    # A blocked pair, put among the candidates that are served.
    load(blocked="u1,i3\n")
    with pytest.raises(EligibilityError, match=r"user_idx 1 got item_idx 3 \(the pair is blocked\)"):
        run_job("recommend", spark, settings)
    write_candidates(spark, tables, "served", {("touched", 0): [6, 4], ("touched", 1): [6]})
    run_job("recommend", spark, settings)
    run_job("publish", spark, settings)
    write_candidates(spark, tables, "served", {key: [*items] for key, items in PROPOSED["als"].items()})


@pytest.mark.delta
def test_filters_of_a_run_need_their_feeds(spark: SparkSession, tmp_path: Path) -> None:
    settings = filters_at(tmp_path)
    tables = Tables(spark, settings.storage)
    tables.write("items", spark.createDataFrame([("i1", 1, "c", ["c"], None, True, True)], TABLES["items"].columns))
    tables.write("users", spark.createDataFrame([("u1", 1)], TABLES["users"].columns))
    write_feeds(tmp_path)
    without = settings_at(tmp_path)
    assert filters_of(StageContext(spark=spark, settings=without, run_id="r")) is None
    feeds = load_feeds(spark, settings, None)
    for name, rows in feeds.items():
        tables.write(name, rows)
    further = filters_at(
        tmp_path, "filters.items.attributes.price={column: stock, type: number}", "filters.rules.cheap=item.price < 9"
    )
    with pytest.raises(FilterError, match=r"filters.items.attributes.price: found a feed that was loaded without it"):
        filters_of(StageContext(spark=spark, settings=further, run_id="r"))
