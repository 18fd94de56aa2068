"""Index, categories, interactions, targets and balancing, against naive versions and by their properties."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from datetime import datetime, timedelta, timezone

import pytest
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec.config import Balance, Categories, Weights
from xrec.evaluation.folds import Fold, histories_of, horizons_of
from xrec.features.balance import balance_events, balance_report, describe_balance, factors_of, preview_alphas
from xrec.features.index import assign_dense_index, describe_index, describe_same_names, index_items
from xrec.features.interactions import interactions_of, targets_of, user_categories_of, weigh

pytestmark = pytest.mark.spark

AS_OF = datetime(2024, 3, 1, tzinfo=timezone.utc)
FOLD = Fold(name="test-2024-03-01", purpose="test", as_of=AS_OF, horizon=timedelta(days=30))
WEIGHTS = Weights(event_types={"purchase": 1.0, "view": 0.1})
CATEGORIES = {item: f"c{item % 5}" for item in range(40)}
EVENTS_DDL = (
    "event_id string, user_idx int, item_idx int, event_type string, event_ts timestamp, "
    "category string, recommendable boolean"
)

NO_VALUES = (
    "cast(null as timestamp) as void_ts",
    "cast(null as double) as quantity",
    "cast(null as double) as price",
    "false as is_outlier",
)


def random_events(seed: int, num_events: int = 600) -> list[tuple[str, int, int, str, datetime, str, bool]]:
    drawn = random.Random(seed)
    rows = []
    for number in range(num_events):
        item = min(int(drawn.expovariate(0.1)), 39)
        kind = "purchase" if drawn.random() < 0.6 else "view"
        moment = AS_OF + timedelta(hours=drawn.randint(-24 * 60, 24 * 40))
        rows.append((f"e{number}", drawn.randint(0, 24), item, kind, moment, CATEGORIES[item], item % 5 != 4))
    return rows


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, int, int, str, datetime, str, bool]]:
    day_after = AS_OF + timedelta(days=1)
    cold = [
        ("cold-user", 30, 1, "purchase", day_after, "c1", True),
        ("cold-item", 0, 41, "purchase", day_after, "c1", True),
    ]
    return random_events(7) + cold


@pytest.fixture(scope="module")
def events(spark: SparkSession, rows: list[tuple[str, int, int, str, datetime, str, bool]]) -> DataFrame:
    return spark.createDataFrame(rows, EVENTS_DDL).selectExpr("*", *NO_VALUES)


def test_index_is_dense_stable_and_inverts(spark: SparkSession) -> None:
    ids = [f"{number:04d}" for number in range(57)]
    first = assign_dense_index(
        spark.createDataFrame([(i,) for i in ids[:40] + ids[:5]], "user_id string"), key="user_id", index="user_idx"
    )
    before = {row["user_id"]: row["user_idx"] for row in first.collect()}
    assert sorted(before.values()) == list(range(40))
    grown = assign_dense_index(
        spark.createDataFrame([(i,) for i in reversed(ids)], "user_id string").repartition(3),
        key="user_id",
        index="user_idx",
        existing=spark.createDataFrame(list(before.items()), "user_id string, user_idx int"),
    )
    after = {row["user_id"]: row["user_idx"] for row in grown.collect()}
    assert {user: after[user] for user in before} == before
    assert sorted(after.values()) == list(range(57))


def test_index_depends_on_neither_order_nor_partitions(spark: SparkSession) -> None:
    ids = spark.createDataFrame([(f"u{number}",) for number in range(200)], "user_id string")
    one = assign_dense_index(ids.repartition(1), key="user_id", index="user_idx").collect()
    other = assign_dense_index(ids.orderBy(F.desc("user_id")).repartition(7), key="user_id", index="user_idx").collect()
    assert {tuple(row) for row in one} == {tuple(row) for row in other}


def test_items_get_their_category_at_the_level(spark: SparkSession) -> None:
    catalogue = spark.createDataFrame(
        [("1", ["a", "b", "c"], "one"), ("2", ["a"], None), ("3", [], None), ("4", ["fuel"], None)],
        "item_id string, category_path array<string>, label string",
    )
    events = spark.createDataFrame([("1",), ("9",)], "item_id string")
    items = index_items(catalogue, events, existing=None, level=2, non_merchandise=("fuel",), num_buckets=4).collect()
    found = {row["item_id"]: (row["category"], row["recommendable"], row["in_catalogue"]) for row in items}
    assert found == {
        "1": ("b", True, True),
        "2": ("a", True, True),
        "3": ("unknown", False, True),
        "4": ("fuel", False, True),
        "9": ("unknown", False, False),
    }


def test_nodes_of_one_name_are_one_category_and_it_is_said(spark: SparkSession) -> None:
    paths = [["appliances", "kitchen", "washer"], ["furniture", "kitchen"], ["furniture", "beds"], ["pets", "beds"], []]
    rows = [(str(number), path, None) for number, path in enumerate(paths)]
    catalogue = spark.createDataFrame(rows, "item_id string, category_path array<string>, label string")
    events = catalogue.select("item_id")
    options = {"existing": None, "non_merchandise": (), "num_buckets": 4}
    found = {
        level: describe_same_names(index_items(catalogue, events, level=level, **options), level) for level in (1, 2)
    }
    said = "2, such as beds: one category of furniture > beds and pets > beds"
    assert found == {1: {}, 2: {"categories_of_several_nodes": said}}


def test_an_item_that_left_the_catalogue_keeps_its_category_and_is_not_recommended(spark: SparkSession) -> None:
    rows = [("1", ["a"], "one"), ("2", ["b"], "two")]
    catalogue = spark.createDataFrame(rows, "item_id string, category_path array<string>, label string")
    options = {"level": 1, "non_merchandise": (), "num_buckets": 4}
    events = spark.createDataFrame([("1",), ("2",)], "item_id string")
    before = index_items(catalogue, events, existing=None, **options)
    before = spark.createDataFrame(before.collect(), before.schema)
    after = {
        row["item_id"]: row for row in index_items(catalogue.limit(1), events, existing=before, **options).collect()
    }
    gone = next(name for name, row in after.items() if not row["in_catalogue"])
    there = {row["item_id"]: row for row in before.collect()}
    assert len(after) == 2
    assert (after[gone]["category"], after[gone]["label"]) == (there[gone]["category"], there[gone]["label"])
    assert (there[gone]["recommendable"], after[gone]["recommendable"]) == (True, False)
    assert {name: row["item_idx"] for name, row in after.items()} == {n: row["item_idx"] for n, row in there.items()}


def test_one_user_or_one_category_is_an_error(spark: SparkSession) -> None:
    items = spark.createDataFrame(
        [("a", "x", True, True), ("b", "y", True, True)],
        "item_id string, category string, in_catalogue boolean, recommendable boolean",
    )
    users = spark.createDataFrame([("u", 0), ("v", 1)], "user_id string, user_idx int")
    assert describe_index(items, users)["users"] == "2"
    with pytest.raises(ValueError, match="found 1 user, expected at least 2"):
        describe_index(items, users.limit(1))
    with pytest.raises(ValueError, match="found 1 category that may be recommended"):
        describe_index(items.where("category = 'x'"), users)


def naive_categories(
    rows: list, look_back_days: float | None = None
) -> dict[tuple[int, str], tuple[float, bool, bool]]:
    weight: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    touched = set()
    for _, user, _, kind, moment, category, _ in rows:
        if moment >= AS_OF:
            continue
        weight[user][category] += WEIGHTS.event_types[kind]
        recent = look_back_days is None or AS_OF - moment <= timedelta(days=look_back_days)
        if kind == "purchase" and recent:
            touched.add((user, category))
    expected = {}
    for user, mix in weight.items():
        covered, total = 0.0, sum(mix.values())
        for position, (category, part) in enumerate(
            sorted(mix.items(), key=lambda pair: (-round(pair[1], 9), pair[0]))
        ):
            home = position == 0 or covered < 0.8 * total - 1e-9
            covered += part
            expected[user, category] = (part, (user, category) in touched, home)
    return expected


@pytest.mark.parametrize("look_back_days", [None, 20.0])
def test_touched_and_home_categories_match_the_words(
    events: DataFrame, rows: list, look_back_days: float | None
) -> None:
    weighted = weigh(histories_of(events, [FOLD]), WEIGHTS)
    categories = Categories(look_back_days=look_back_days)
    found = user_categories_of(weighted, categories).collect()
    expected = naive_categories(rows, look_back_days)
    assert {(row["user_idx"], row["category"]): (row["touched"], row["home"]) for row in found} == {
        key: value[1:] for key, value in expected.items()
    }
    for row in found:
        assert row["weight"] == pytest.approx(expected[row["user_idx"], row["category"]][0])


def test_home_is_the_smallest_covering_set(events: DataFrame) -> None:
    weighted = weigh(histories_of(events, [FOLD]), WEIGHTS)
    mixes: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for row in user_categories_of(weighted, Categories()).collect():
        mixes[row["user_idx"]].append((row["weight"], row["home"]))
    for mix in mixes.values():
        total, home = sum(part for part, _ in mix), sorted(part for part, is_home in mix if is_home)
        assert sum(home) >= 0.8 * total - 1e-6
        assert len(home) == 1 or sum(home) - home[0] < 0.8 * total


@pytest.mark.parametrize("look_back_days", [None, 20.0])
def test_targets_know_what_was_known_before(events: DataFrame, rows: list, look_back_days: float | None) -> None:
    weighted = weigh(histories_of(events, [FOLD]), WEIGHTS)
    categories = Categories(look_back_days=look_back_days)
    mix, had = user_categories_of(weighted, categories), interactions_of(weighted, categories)
    found = targets_of(horizons_of(events, [FOLD]), mix, had, categories).collect()
    known = naive_categories(rows, look_back_days)
    seen = {(user, item) for _, user, item, _, moment, _, _ in rows if moment < AS_OF}
    users, items = {user for user, _ in seen}, {item for _, item in seen}
    bought = {(row[1], row[5]) for row in rows if row[4] < AS_OF and row[3] == "purchase"}
    expected, is_lapsed = {}, False
    for _, user, item, kind, moment, category, recommendable in rows:
        if not AS_OF <= moment < AS_OF + timedelta(days=30) or kind != "purchase" or not recommendable:
            continue
        _, touched, home = known.get((user, category), (0.0, False, False))
        is_new, is_cold = (user, item) not in seen, user not in users
        crosses = is_new and not is_cold
        lapsed = (user, category) in bought and not touched
        flags = (crosses and not touched, crosses and not home, is_new, lapsed, item not in items, is_cold)
        expected[user, item], is_lapsed = flags, is_lapsed or lapsed
    names = ("cross_touched", "cross_home", "is_new", "lapsed", "cold_item", "cold_user")
    assert {(row["user_idx"], row["item_idx"]): tuple(row[name] for name in names) for row in found} == expected
    assert is_lapsed == (look_back_days is not None)
    for place in (0, 1, 2, 4, 5):
        assert len({flags[place] for flags in expected.values()}) == 2


def of_fold() -> dict[str, Column]:
    return {"fold": F.lit(FOLD.name), "as_of_ts": F.lit(AS_OF)}


def test_half_life_halves_the_weight(spark: SparkSession) -> None:
    rows = [("e", 0, 0, "purchase", AS_OF - timedelta(days=days), "c", True) for days in (0, 10, 20)]
    weighted = weigh(
        spark.createDataFrame(rows, EVENTS_DDL).withColumns(of_fold()), Weights(half_life_days=10.0)
    ).collect()
    assert [row["weight"] for row in weighted] == pytest.approx([1.0, 0.5, 0.25])


def test_who_was_away_for_long_has_the_home_categories_that_he_had(spark: SparkSession) -> None:
    """Weights of 2^-43 and less, and of ages at which a double is 0: shares are what counts."""
    of_category = {"a": 3, "b": 3, "c": 2, "d": 2}
    homes = {}
    for days in (0, 43, 5000):
        rows = [
            (f"{category}{number}", 0, number, "purchase", AS_OF - timedelta(days=days), category, True)
            for category, count in of_category.items()
            for number in range(count)
        ]
        events = spark.createDataFrame(rows, EVENTS_DDL).withColumns(of_fold())
        found = user_categories_of(weigh(events, Weights(half_life_days=1.0)), Categories()).collect()
        assert all(row["weight"] > 0 for row in found)
        homes[days] = {row["category"] for row in found if row["home"]}
    assert homes == {days: {"a", "b", "c"} for days in homes}


def test_what_an_item_is_bought_for_is_known_by_its_purchases(spark: SparkSession) -> None:
    """Looking at it later is no purchase, and a purchase without a quantity is one unit."""
    events = [(100, "purchase", None, 10.0), (90, "purchase", 3.0, 30.0), (1, "view", 5.0, 99.0)]
    rows = [
        (f"{user}-{age}", user, 0, kind, AS_OF - timedelta(days=age), "c", True, quantity, price)
        for user in (0, 1)
        for age, kind, quantity, price in events
        if user == 0 or kind == "view"
    ]
    ddl = f"{EVENTS_DDL}, quantity double, price double"
    events = spark.createDataFrame(rows, ddl).withColumns({**of_fold(), "is_outlier": F.lit(False)})
    found = {row["user_idx"]: row for row in interactions_of(weigh(events, WEIGHTS), Categories()).collect()}
    newest = {user: row["last_ts"].replace(tzinfo=timezone.utc) for user, row in found.items()}
    assert newest == {0: AS_OF - timedelta(days=90), 1: AS_OF - timedelta(days=1)}
    assert [(row["units"], row["spend"]) for row in (found[0], found[1])] == [(4.0, 40.0), (None, None)]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.75, 1.0])
def test_balancing_gives_each_category_its_share(events: DataFrame, rows: list, alpha: float) -> None:
    counts = Counter(row[5] for row in rows)
    total_power = sum(count**alpha for count in counts.values())
    balance = Balance(alpha=alpha, max_repeat=1e9)
    found = {row["category"]: row["factor"] for row in factors_of(events.withColumns(of_fold()), balance).collect()}
    for category, count in counts.items():
        assert found[category] == pytest.approx(count**alpha / total_power * len(rows) / count)
    if alpha == 1.0:
        assert set(found.values()) == {1.0}


def weighed() -> dict[str, Column]:
    """What balancing asks of events beside their keys and categories."""
    return {**of_fold(), "weight": F.lit(1.0), "counting": F.lit(True), "platform": F.lit("main")}


def test_users_are_evened_and_the_tail_has_a_floor(events: DataFrame, rows: list) -> None:
    """Of the report too: before and after, per category."""
    weighted = events.withColumns(weighed())
    evened = balance_events(weighted, Balance(user_alpha=0.0, max_repeat=1e9), seed=0)
    sums = Counter()
    for row in evened.collect():
        sums[row["user_idx"]] += row["balance_weight"]
    assert len(sums) > 3
    assert list(sums.values()) == pytest.approx([len(rows) / len(sums)] * len(sums))

    counts = Counter(row[5] for row in rows)
    floor = sorted(counts.values())[1] + 1
    balance = Balance(min_rows=floor, max_repeat=1e9)
    lifted = balance_events(weighted, balance, seed=0)
    items = events.select("item_idx", "category").distinct()
    report = {row["category"]: row for row in balance_report(lifted, items).collect()}
    assert set(report) == set(counts)
    total = sum(max(count, floor) for count in counts.values())
    for category, count in counts.items():
        row = report[category]
        assert row["num_events"] == count
        assert row["share"] == pytest.approx(count / len(rows))
        assert row["balanced_events"] == pytest.approx(max(count, floor))
        assert row["balanced_share"] == pytest.approx(max(count, floor) / total)
        assert row["effective_events"] == pytest.approx(count)
        assert row["largest_repeat"] >= row["num_copies"] / count
    figures = describe_balance(balance_report(lifted, items), balance)
    assert figures["alpha"] == "1 (on)"
    assert figures["largest_category"].startswith(f"{max(counts.values()) / len(rows):.1%} of the rows, ")


def test_a_preview_is_the_report_of_each_alpha(spark: SparkSession, events: DataFrame) -> None:
    items = events.select("item_idx", "category").distinct()
    training = balance_events(events.withColumns(weighed()), Balance(alpha=0.3), seed=0)
    preview = preview_alphas(training, items, Balance(alpha=0.3, max_repeat=2.0), [1.0, 0.5], seed=0).collect()
    found = {(row["alpha"], row["category"]): row["num_copies"] for row in preview}
    for alpha in (1.0, 0.5):
        balance = Balance(alpha=alpha, max_repeat=2.0)
        report = balance_report(balance_events(events.withColumns(weighed()), balance, seed=0), items)
        expected = {row["category"]: row["num_copies"] for row in report.collect()}
        assert {category: copies for (one, category), copies in found.items() if one == alpha} == expected
        assert sum(row["balanced_share"] for row in preview if row["alpha"] == alpha) == pytest.approx(1)


def test_copies_are_deterministic_capped_and_right_on_average(spark: SparkSession) -> None:
    rows = random_events(3, 4000)
    events = spark.createDataFrame(rows, EVENTS_DDL).withColumns(weighed())
    balance = Balance(alpha=0.5, max_repeat=3.0)
    once = balance_events(events, balance, seed=0).collect()
    again = balance_events(events.orderBy("event_id").repartition(5), balance, seed=0).collect()
    copies = {row["event_id"]: row["num_copies"] for row in once}
    assert copies == {row["event_id"]: row["num_copies"] for row in again}
    assert copies != {row["event_id"]: row["num_copies"] for row in balance_events(events, balance, seed=1).collect()}
    assert max(copies.values()) <= 3
    assert sum(copies.values()) == pytest.approx(sum(row["balance_weight"] for row in once), rel=0.03)
