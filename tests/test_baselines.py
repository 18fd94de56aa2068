"""The baselines that are hard to beat: each the same as a naive version, whatever the partitions, and masked before selection."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from test_generators import RANKING, K, Staged, allowed, facts_of, local, ndcg, stage
from world import make_world
from xrec.config import Ease, Ranking, Transitions
from xrec.generators.ease import EaseError, ease_candidates
from xrec.generators.ease_categories import ease_category_candidates
from xrec.generators.popular_in_category import popular_in_category_candidates, scores_of
from xrec.generators.popular_in_segment import popular_in_segment_candidates
from xrec.generators.popularity import popular_candidates
from xrec.generators.transitions import TransitionsError, histories_of, transition_candidates, transitions_of
from xrec.ranking.eligibility import users_of

pytestmark = pytest.mark.spark

EASE = Ease(reg_param=20.0)
TRANSITIONS = Transitions(window=3, decay=0.6, history=4, history_decay=0.8, shrinkage=2.0, num_neighbours=25)
OTHER_TILES = Ranking(candidates_per_source=K, tile_users=17, tile_items=7)


def ease(staged: Staged, users: DataFrame, rows: DataFrame, ranking: Ranking = RANKING) -> DataFrame:
    return ease_candidates(users, staged.eligible, rows, EASE, ranking, staged.folder)


def transitions(staged: Staged, users: DataFrame, rows: DataFrame, ranking: Ranking = RANKING) -> DataFrame:
    return transition_candidates(users, staged.eligible, rows, TRANSITIONS, ranking, staged.folder)


def ease_categories(staged: Staged, users: DataFrame, rows: DataFrame, ranking: Ranking = RANKING) -> DataFrame:
    mixes = staged.user_categories
    return ease_category_candidates(users, staged.eligible, rows, mixes, EASE, ranking, staged.folder)


def in_category(staged: Staged, users: DataFrame, rows: DataFrame, ranking: Ranking = RANKING) -> DataFrame:
    return popular_in_category_candidates(users, staged.eligible, rows, ranking, staged.folder)


def in_segment(staged: Staged, users: DataFrame, rows: DataFrame, ranking: Ranking = RANKING) -> DataFrame:
    mixes = staged.user_categories
    return popular_in_segment_candidates(users, staged.eligible, rows, mixes, ranking, staged.folder)


GENERATORS: dict[str, tuple[Callable[..., DataFrame], str]] = {
    "ease": (ease, "interactions"),
    "ease_categories": (ease_categories, "interactions"),
    "transitions": (transitions, "training_events"),
    "popular_in_category": (in_category, "interactions"),
    "popular_in_segment": (in_segment, "interactions"),
}
"""What makes the candidates, and the staged table that it learns from."""
COMPUTED = ("ease", "ease_categories", "transitions")
"""Those that sum floating-point numbers in Arrow batches of their own."""
LEARNED = ("ease", "transitions")
"""Those that can learn what follows from a taste."""
SCOPES = ("touched", "home", "all")


@pytest.fixture(scope="module")
def staged(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Staged:
    return stage(spark, make_world(seed=0), tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def users(staged: Staged) -> DataFrame:
    return local(users_of(staged.interactions, staged.user_categories, staged.eligible, SCOPES))


@pytest.fixture(scope="module")
def facts(staged: Staged) -> dict[str, dict]:
    return facts_of(staged)


@pytest.fixture(scope="module")
def candidates(staged: Staged, users: DataFrame) -> dict[str, list[Row]]:
    return {
        source: collect(generate(staged, users, getattr(staged, table)))
        for source, (generate, table) in GENERATORS.items()
    }


def collect(rows: DataFrame) -> list[Row]:
    return sorted(rows.collect(), key=lambda row: (row["scope"], row["user_idx"], row["rank"]))


def may_get(facts: dict[str, dict], scope: str, user: int) -> list[int]:
    if scope == "all":
        return [idx for idx, item in facts["items"].items() if item["recommendable"]]
    return allowed(facts, scope, user)


def check_lists(rows: list[Row], scores: Callable[[int], np.ndarray], facts: dict[str, dict], num_users: int) -> None:
    """Each list holds the K best allowed items of positive score (in float64, by item), to five digits; ties by index."""
    lists = defaultdict(list)
    for row in rows:
        lists[row["scope"], row["user_idx"]].append(row)
    for user in facts["had"].keys() & set(range(num_users)):
        score_I = scores(user)
        for scope in SCOPES:
            found, items = lists[scope, user], may_get(facts, scope, user)
            best = sorted((score for item in items if (score := score_I[item]) > 1e-9), reverse=True)[:K]
            assert {row["item_idx"] for row in found} <= set(items)
            assert [row["rank"] for row in found] == list(range(1, len(best) + 1))
            assert [row["score"] for row in found] == pytest.approx(best, rel=1e-5, abs=1e-7)
            assert [score_I[row["item_idx"]] for row in found] == pytest.approx(best, rel=1e-5, abs=1e-7)
            assert found == sorted(found, key=lambda row: (-row["score"], row["item_idx"]))
    assert sum(map(len, lists.values())) == len(rows) > num_users


def naive_ease(had_UI: np.ndarray, reg: float) -> np.ndarray:
    """EASE's weights as Steck (2019) writes them; an item that nobody had has none."""
    inverse_II = np.linalg.inv(had_UI.T @ had_UI + reg * np.eye(had_UI.shape[1]))
    weights_II = -inverse_II / np.diag(inverse_II)
    np.fill_diagonal(weights_II, 0)
    return weights_II


def had_of(facts: dict[str, dict], num_users: int) -> np.ndarray:
    had_UI = np.zeros((num_users, len(facts["items"])))
    for user in range(num_users):
        had_UI[user, sorted(facts["had"].get(user, ()))] = 1
    return had_UI


def test_ease_equals_its_formula(candidates: dict[str, list[Row]], facts: dict[str, dict]) -> None:
    had_UI = had_of(facts, 1 + max(facts["had"]))
    scores_UI = had_UI @ naive_ease(had_UI, EASE.reg_param)
    assert len(had_UI) > had_UI.shape[1]  # by items
    check_lists(candidates["ease"], lambda user: scores_UI[user], facts, len(had_UI))


def test_ease_by_users_equals_ease_by_items(staged: Staged, users: DataFrame, facts: dict[str, dict]) -> None:
    first = 6  # cold users come first
    few = staged.interactions.where(f"user_idx < {first + 50}")
    had_UI = had_of(facts, first + 50)
    assert np.count_nonzero(had_UI.any(axis=1)) < np.count_nonzero(had_UI.any(axis=0))  # by users
    scores_UI = had_UI @ naive_ease(had_UI, EASE.reg_param)
    rows = collect(ease(staged, users.where(f"user_idx < {first + 50}"), few))
    check_lists(rows, lambda user: scores_UI[user], facts, first + 50)


def test_ease_refuses_what_is_too_large(staged: Staged, users: DataFrame) -> None:
    for ease, message in (
        (Ease(max_size=100), r"ease.max_size: found 2\d\d users and 1\d\d items, expected at most 100 of one of them"),
        (Ease(max_nonzeros=100), r"ease.max_nonzeros: found \d+ interactions, expected at most 100"),
    ):
        with pytest.raises(EaseError, match=message):
            ease_candidates(users, staged.eligible, staged.interactions, ease, RANKING, staged.folder)


def test_ease_categories_is_a_category_times_a_share(
    staged: Staged, candidates: dict[str, list[Row]], facts: dict[str, dict]
) -> None:
    items, num_users = facts["items"], 1 + max(facts["had"])
    names = sorted({item["category"] for item in items.values() if item["recommendable"]})
    mixes = [row for row in staged.user_categories.collect() if row["category"] in names]
    had_UC = np.zeros((num_users, len(names)))
    had_UC[[row["user_idx"] for row in mixes], [names.index(row["category"]) for row in mixes]] = 1
    affinity_UC = had_UC @ naive_ease(had_UC, EASE.reg_param)
    counting = staged.interactions.where("counting").collect()
    customers = {
        name: {row["user_idx"] for row in counting if items[row["item_idx"]]["category"] == name} for name in names
    }

    def scores(user: int) -> np.ndarray:
        return np.array(
            [
                affinity_UC[user, names.index(item["category"])]
                * facts["popularity"][idx]
                / len(customers[item["category"]])
                if item["recommendable"]
                else 0
                for idx, item in sorted(items.items())
            ]
        )

    check_lists(candidates["ease_categories"], scores, facts, num_users)


def test_every_category_s_best_seller_comes_first(candidates: dict[str, list[Row]], facts: dict[str, dict]) -> None:
    items, buyers = facts["items"], facts["popularity"]
    bought = [idx for idx, item in items.items() if item["recommendable"] and buyers[idx]]
    by_category = defaultdict(list)
    for idx in sorted(bought, key=lambda idx: (-buyers[idx], idx)):
        by_category[items[idx]["category"]].append(idx)
    rank = {idx: n for of_category in by_category.values() for n, idx in enumerate(of_category)}
    order = sorted(bought, key=lambda idx: (rank[idx], -buyers[idx], idx))
    assert len({items[idx]["category"] for idx in order[: len(by_category)]}) == len(by_category) > 3
    lists = defaultdict(list)
    for row in candidates["popular_in_category"]:
        lists[row["scope"], row["user_idx"]].append(row["item_idx"])
    for user in facts["had"]:
        for scope in SCOPES:
            mine = set(may_get(facts, scope, user))
            assert lists[scope, user] == [idx for idx in order if idx in mine][:K]


def test_the_score_within_categories_is_exact_and_never_below_1(spark: SparkSession) -> None:
    eligible = spark.range(8).selectExpr(
        "cast(id as int) item_idx", "'x' category", "cast(id % 4 as int) category_code"
    )
    buyers = spark.createDataFrame([(n, 100 - n) for n in range(8)], "item_idx int, num_buyers bigint")
    found = {row["item_idx"]: row["score"] for row in scores_of(buyers, eligible).collect()}
    assert found == {n: 2**24 - n for n in range(8)}
    many = eligible.withColumn("category_code", F.when(F.col("item_idx") == 7, 2**23).otherwise(0))
    # Of a category of seven items among 2^23 + 1 categories, two fit.
    assert {row["item_idx"] for row in scores_of(buyers, many).collect()} == {0, 1, 7}


def test_popularity_in_a_segment_is_shrunk_towards_that_of_all(
    staged: Staged, candidates: dict[str, list[Row]], facts: dict[str, dict]
) -> None:
    items, mixes = facts["items"], defaultdict(list)
    for row in staged.user_categories.collect():
        mixes[row["user_idx"]].append((-row["weight"], row["category"]))
    merchandise = {item["category"] for item in items.values() if item["recommendable"]}
    main = {user: min(of_user)[1] for user, of_user in mixes.items()}
    segment = {user: name if name in merchandise else "none" for user, name in main.items()}
    users = {name: [user for user in segment if segment[user] == name] for name in set(segment.values())}
    buyers = defaultdict(lambda: np.zeros(len(items)))
    for row in staged.interactions.where("counting").collect():
        buyers[segment[row["user_idx"]]][row["item_idx"]] += 1
        buyers["all"][row["item_idx"]] += 1
    prior = RANKING.segment_prior_users
    of_segment = {
        name: (buyers[name] + prior * buyers["all"] / len(segment)) / (len(members) + prior)
        for name, members in users.items()
    }
    check_lists(candidates["popular_in_segment"], lambda user: of_segment[segment[user]], facts, 1 + max(facts["had"]))


def test_transitions_equal_a_naive_count(
    staged: Staged, candidates: dict[str, list[Row]], facts: dict[str, dict]
) -> None:
    baskets = defaultdict(lambda: defaultdict(set))
    for event in staged.training_events.collect():
        baskets[event["user_idx"]][event["event_ts"]].add(event["item_idx"])
    ordered = {user: [items for _, items in sorted(of_user.items())] for user, of_user in baskets.items()}
    follow_II = np.zeros((len(facts["items"]), len(facts["items"])))
    for history in ordered.values():
        for n, items in enumerate(history):
            for distance, later in enumerate(history[n : n + TRANSITIONS.window + 1]):
                for item in items:
                    for other in later - {item}:
                        follow_II[item, other] += TRANSITIONS.decay**distance
    assert max(len(items) for history in ordered.values() for items in history) > 1
    strong_II = follow_II / (follow_II.sum(axis=1, keepdims=True) + TRANSITIONS.shrinkage)
    for item, row_I in enumerate(strong_II.copy()):
        weaker = sorted(range(len(row_I)), key=lambda other: (-np.float32(row_I[other]), other))
        strong_II[item, weaker[TRANSITIONS.num_neighbours :]] = 0

    def scores(user: int) -> np.ndarray:
        age = {item: n for n, items in reversed([*enumerate(reversed(ordered.get(user, [])))]) for item in items}
        weights = {item: TRANSITIONS.history_decay**n for item, n in age.items() if n < TRANSITIONS.history}
        return sum((weight * strong_II[item] for item, weight in weights.items()), np.zeros(len(strong_II)))

    check_lists(candidates["transitions"], scores, facts, 1 + max(facts["had"]))


def test_transitions_go_forward_in_time(spark: SparkSession, staged: Staged) -> None:
    rows = [(1, 5, 10), (1, 6, 20), (1, 7, 20), (1, 8, 30), (2, 8, 5), (2, 5, 6)]
    events = spark.createDataFrame(
        [("f", f"e{n}", user, item, ts) for n, (user, item, ts) in enumerate(rows)],
        "fold string, event_id string, user_idx int, item_idx int, event_ts int",
    )
    settings = Transitions(window=1, decay=0.5, shrinkage=0.0)
    found = transitions_of(histories_of(events, settings), settings, staged.folder).collect()
    assert {(row["profile_idx"], row["neighbour_idx"]): row["similarity"] for row in found} == pytest.approx(
        {(5, 6): 0.5, (5, 7): 0.5, (6, 7): 2 / 3, (7, 6): 2 / 3, (6, 8): 1 / 3, (7, 8): 1 / 3, (8, 5): 1.0}
    )
    with pytest.raises(TransitionsError, match=r"transitions.max_nonzeros: found 6 events, expected at most 5"):
        transitions_of(histories_of(events, settings), Transitions(max_nonzeros=5), staged.folder)


@pytest.mark.parametrize("source", COMPUTED)
def test_neither_partitions_nor_order_nor_tiles_matter(
    spark: SparkSession, source: str, staged: Staged, users: DataFrame, candidates: dict[str, list[Row]]
) -> None:
    generate, table = GENERATORS[source]
    rows = getattr(staged, table).orderBy(F.xxhash64("user_idx", "item_idx"))
    configured = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "3")
    try:
        found = collect(generate(staged, users.where("user_idx % 7 = 0"), rows, OTHER_TILES))
        assert found == [row for row in candidates[source] if row["user_idx"] % 7 == 0]
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", str(configured))


def popular(staged: Staged, users: DataFrame) -> np.ndarray:
    return ndcg(
        staged, collect(popular_candidates(users, staged.eligible, staged.interactions, RANKING, staged.folder))
    )


def test_a_model_beats_popularity_where_there_is_taste(
    staged: Staged, users: DataFrame, candidates: dict[str, list[Row]]
) -> None:
    popularity = popular(staged, users.where("scope = 'touched'"))
    for source in LEARNED:
        difference = ndcg(staged, candidates[source]) - popularity
        assert difference.mean() > 0.4 * popularity.mean()
        assert difference.mean() > 4 * difference.std() / np.sqrt(len(difference))


def test_no_model_beats_popularity_on_shuffled_labels(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shuffled = stage(spark, make_world(seed=0, shuffled=True), tmp_path_factory.mktemp("shuffled"))
    users = local(shuffled.users.where("scope = 'touched'"))
    popularity = popular(shuffled, users)
    for source in LEARNED:
        generate, table = GENERATORS[source]
        difference = ndcg(shuffled, collect(generate(shuffled, users, getattr(shuffled, table)))) - popularity
        assert difference.mean() < 2.5 * difference.std() / np.sqrt(len(difference))
