"""The baselines that are hard to beat: each the same as a naive version, whatever the partitions, and masked before selection."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from sklearn.feature_extraction.text import TfidfVectorizer

from test_generators import RANKING, K, Staged, allowed, facts_of, local, ndcg, stage
from world import make_world
from xrec.config import Content, Ease, Ranking, Transitions, Trend, UserKnn
from xrec.evaluation.folds import Fold
from xrec.features.trend import with_trend
from xrec.generators.content import ContentError, content_candidates
from xrec.generators.ease import EaseError, Size, ease_candidates, reg_of
from xrec.generators.ease_categories import ease_category_candidates
from xrec.generators.factors import factor_candidates
from xrec.generators.newcomers import newcomer_candidates
from xrec.generators.popular_in_category import popular_in_category_candidates, scores_of
from xrec.generators.popular_in_segment import popular_in_segment_candidates
from xrec.generators.popularity import popular_candidates
from xrec.generators.transition_categories import transition_category_candidates
from xrec.generators.transitions import TransitionsError, histories_of, transition_candidates, transitions_of
from xrec.generators.user_knn import UserKnnError, user_knn_candidates
from xrec.lists import ranked_rows
from xrec.ranking.eligibility import users_of

pytestmark = pytest.mark.spark

EASE = Ease(reg_param=20.0)
TREND = Trend(half_life_days=20.0)
TRANSITIONS = Transitions(window=3, decay=0.6, history=4, history_decay=0.8, shrinkage=2.0, num_neighbours=25)
USER_KNN = UserKnn(num_neighbours=30, max_items_per_user=12, shrinkage=2.0)
CONTENT = Content(max_items_per_user=12, max_words_per_user=14, popularity_power=0.5)
OTHER_TILES = Ranking(candidates_per_source=K, tile_users=17, tile_items=7)


def ease(staged: Staged, users: DataFrame, rows: DataFrame, ranking: Ranking = RANKING) -> DataFrame:
    return ease_candidates(users, staged.eligible, rows, EASE, ranking, staged.folder)


def transitions(staged: Staged, users: DataFrame, rows: DataFrame, ranking: Ranking = RANKING) -> DataFrame:
    return transition_candidates(users, staged.eligible, rows, TRANSITIONS, ranking, staged.folder)


def user_knn(staged: Staged, users: DataFrame, rows: DataFrame, ranking: Ranking = RANKING) -> DataFrame:
    return user_knn_candidates(users, staged.eligible, rows, USER_KNN, ranking, staged.folder)


def user_knn_trend(staged: Staged, users: DataFrame, rows: DataFrame, ranking: Ranking = RANKING) -> DataFrame:
    return user_knn_candidates(users, trending(staged, rows), rows, USER_KNN, ranking, staged.folder)


def ease_trend(staged: Staged, users: DataFrame, rows: DataFrame, ranking: Ranking = RANKING) -> DataFrame:
    return ease_candidates(users, trending(staged, rows), rows, EASE, ranking, staged.folder)


def trending(staged: Staged, rows: DataFrame) -> DataFrame:
    return with_trend(staged.eligible, rows, staged.fold, TREND)


def content(staged: Staged, users: DataFrame, rows: DataFrame, ranking: Ranking = RANKING) -> DataFrame:
    return content_candidates(users, staged.eligible, staged.items, rows, CONTENT, ranking, staged.folder)


def ease_categories(staged: Staged, users: DataFrame, rows: DataFrame, ranking: Ranking = RANKING) -> DataFrame:
    mixes = staged.user_categories
    return ease_category_candidates(users, staged.eligible, rows, mixes, EASE, ranking, staged.folder)


def transition_categories(staged: Staged, users: DataFrame, rows: DataFrame, ranking: Ranking = RANKING) -> DataFrame:
    return transition_category_candidates(
        users, staged.eligible, rows, staged.interactions, TRANSITIONS, ranking, staged.folder
    )


def in_category(staged: Staged, users: DataFrame, rows: DataFrame, ranking: Ranking = RANKING) -> DataFrame:
    return popular_in_category_candidates(users, staged.eligible, rows, ranking, staged.folder)


def in_segment(staged: Staged, users: DataFrame, rows: DataFrame, ranking: Ranking = RANKING) -> DataFrame:
    mixes = staged.user_categories
    return popular_in_segment_candidates(users, staged.eligible, rows, mixes, ranking, staged.folder)


def newcomers(staged: Staged, users: DataFrame, rows: DataFrame, ranking: Ranking = RANKING) -> DataFrame:
    return newcomer_candidates(users, staged.eligible, rows, staged.items, staged.fold, ranking, staged.folder)


GENERATORS: dict[str, tuple[Callable[..., DataFrame], str]] = {
    "ease": (ease, "interactions"),
    "ease_categories": (ease_categories, "interactions"),
    "transitions": (transitions, "training_events"),
    "transition_categories": (transition_categories, "training_events"),
    "user_knn": (user_knn, "interactions"),
    "user_knn_trend": (user_knn_trend, "interactions"),
    "ease_trend": (ease_trend, "interactions"),
    "content": (content, "interactions"),
    "popular_in_category": (in_category, "interactions"),
    "popular_in_segment": (in_segment, "interactions"),
    "newcomers": (newcomers, "training_events"),
}
"""What makes the candidates, and the staged table that it learns from."""
COMPUTED = ("ease", "ease_categories", "transitions", "transition_categories", "user_knn_trend", "content")
"""Those that sum floating-point numbers in Arrow batches of their own."""
LEARNED = ("ease", "transitions", "user_knn", "user_knn_trend", "content")
"""Those that can tell what follows from a taste: content, because the labels name it."""
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
    return sorted(ranked_rows(rows).collect(), key=lambda row: (row["scope"], row["user_idx"], row["rank"]))


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


def test_ease_equals_its_formula(staged: Staged, candidates: dict[str, list[Row]], facts: dict[str, dict]) -> None:
    had_UI = had_of(facts, 1 + max(facts["had"]))
    scores_UI = had_UI @ naive_ease(had_UI, EASE.reg_param)
    assert len(had_UI) > had_UI.shape[1]  # by items
    check_lists(candidates["ease"], lambda user: scores_UI[user], facts, len(had_UI))
    trend_I = naive_trend(staged, had_UI.shape[1])
    check_lists(candidates["ease_trend"], lambda user: scores_UI[user] * trend_I, facts, len(had_UI))


def test_ease_by_users_equals_ease_by_items(staged: Staged, users: DataFrame, facts: dict[str, dict]) -> None:
    first = 6  # cold users come first
    few = staged.interactions.where(f"user_idx < {first + 50}")
    had_UI = had_of(facts, first + 50)
    assert np.count_nonzero(had_UI.any(axis=1)) < np.count_nonzero(had_UI.any(axis=0))  # by users
    scores_UI = had_UI @ naive_ease(had_UI, EASE.reg_param)
    rows = collect(ease(staged, users.where(f"user_idx < {first + 50}"), few))
    check_lists(rows, lambda user: scores_UI[user], facts, first + 50)


def test_ease_regularises_more_where_users_have_more() -> None:
    assert reg_of(Size(users=10, items=90, pairs=400), Ease()) == pytest.approx(6 * 40)
    assert reg_of(Size(users=10, items=90, pairs=0), Ease()) == pytest.approx(6)
    assert reg_of(Size(users=10, items=90, pairs=400), Ease(reg_param=7)) == pytest.approx(7)


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
    num_users, names = 1 + max(facts["had"]), merchandise(facts)
    mixes = [row for row in staged.user_categories.collect() if row["category"] in names]
    had_UC = np.zeros((num_users, len(names)))
    had_UC[[row["user_idx"] for row in mixes], [names.index(row["category"]) for row in mixes]] = 1
    affinity_UC = had_UC @ naive_ease(had_UC, EASE.reg_param)
    shares_I = shares_of_customers(staged, facts)

    def scores(user: int) -> np.ndarray:
        return shares_I * spread_over_items(affinity_UC[user], facts)

    check_lists(candidates["ease_categories"], scores, facts, num_users)


def merchandise(facts: dict[str, dict]) -> list[str]:
    """Names of the recommendable categories; a place is a code."""
    return sorted({item["category"] for item in facts["items"].values() if item["recommendable"]})


def shares_of_customers(staged: Staged, facts: dict[str, dict]) -> np.ndarray:
    """Each item's buyers over those of its category; 0 where it is not recommended."""
    items, customers = facts["items"], defaultdict(set)
    for row in staged.interactions.where("counting").collect():
        customers[items[row["item_idx"]]["category"]].add(row["user_idx"])
    return np.array(
        [
            facts["popularity"][idx] / len(customers[item["category"]]) if item["recommendable"] else 0
            for idx, item in sorted(items.items())
        ]
    )


def spread_over_items(score_C: np.ndarray, facts: dict[str, dict]) -> np.ndarray:
    """Each item's category's score."""
    names = merchandise(facts)
    return np.array(
        [
            score_C[names.index(item["category"])] if item["recommendable"] else 0
            for _, item in sorted(facts["items"].items())
        ]
    )


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


def naive_newcomers(staged: Staged, facts: dict[str, dict], window: timedelta) -> np.ndarray:
    """Each item's score, as the module's text says; 0 where nobody bought it."""
    items, since = facts["items"], staged.fold.as_of - window
    bought: dict[tuple[int, int], datetime] = {}
    for row in staged.training_events.where("counting").orderBy("event_ts").collect():
        bought.setdefault((row["user_idx"], row["item_idx"]), row["event_ts"].replace(tzinfo=timezone.utc))
    came, there = {}, {}
    for (user, item), when in sorted(bought.items(), key=lambda pair: pair[1]):
        came.setdefault((user, items[item]["category"]), when)
        there.setdefault(user, when)
    counted = {user for user, when in there.items() if when < since}
    had_before, buyers, new = defaultdict(int), np.zeros(len(items)), np.zeros(len(items))
    for (user, category), when in came.items():
        had_before[category] += user in counted and when < since
    for (user, item), when in bought.items():
        first = came[user, items[item]["category"]]
        buyers[item] += 1
        new[item] += user in counted and first >= since and when <= first + timedelta(days=14)
    assert (len(counted) < len(there)) == (window > timedelta(days=30))  # most begin soon after the log does
    assert 0 < new.sum() < buyers.sum()
    prior = RANKING.newcomer_prior_users
    smoothed = new + prior * new.sum() / buyers.sum() * buyers / len(counted)
    could_come = np.array([len(counted) - had_before[item["category"]] for _, item in sorted(items.items())])
    return smoothed / (could_come + prior)


@pytest.mark.parametrize(("days", "horizon"), [(None, 30), (None, 400), (175.0, 30)])
def test_newcomers_are_counted_among_those_who_could_come(
    staged: Staged, users: DataFrame, facts: dict[str, dict], days: float | None, horizon: int
) -> None:
    """By default within the horizon, but at most half of the history."""
    judged = replace(staged, fold=replace(staged.fold, horizon=timedelta(days=horizon)))
    ranking = RANKING.model_copy(update={"newcomer_days": days})
    start = staged.training_events.agg({"event_ts": "min"}).first()[0].replace(tzinfo=timezone.utc)
    window = timedelta(days=days) if days else min(judged.fold.horizon, (staged.fold.as_of - start) / 2)
    score_I = naive_newcomers(judged, facts, window)
    found = collect(newcomers(judged, users, staged.training_events, ranking))
    check_lists(found, lambda _: score_I, facts, 1 + max(facts["had"]))


def test_where_nobody_is_there_before_newcomers_are_popularity(staged: Staged, users: DataFrame) -> None:
    whole = RANKING.model_copy(update={"newcomer_days": 10_000.0})
    found = collect(newcomers(staged, users, staged.training_events, whole))
    popular = collect(popular_candidates(users, staged.eligible, staged.interactions, RANKING, staged.folder))
    assert [(row["user_idx"], row["item_idx"]) for row in found] == [
        (row["user_idx"], row["item_idx"]) for row in popular
    ]


def naive_transitions(events: list[tuple[int, datetime, int]], size: int) -> Callable[[int], np.ndarray]:
    """Events (user, time, what) to each user's scores, as the module's text says; the scores of all ``size`` things."""
    baskets = defaultdict(lambda: defaultdict(set))
    for user, when, what in events:
        baskets[user][when].add(what)
    ordered = {user: [had for _, had in sorted(of_user.items())] for user, of_user in baskets.items()}
    follow_II = np.zeros((size, size))
    for history in ordered.values():
        for n, had in enumerate(history):
            for distance, later in enumerate(history[n : n + TRANSITIONS.window + 1]):
                for what in had:
                    for other in later - {what}:
                        follow_II[what, other] += TRANSITIONS.decay**distance
    assert max(len(had) for history in ordered.values() for had in history) > 1
    strong_II = follow_II / (follow_II.sum(axis=1, keepdims=True) + TRANSITIONS.shrinkage)
    for row_I in strong_II:
        weaker = sorted(range(size), key=lambda other: (-np.float32(row_I[other]), other))
        row_I[weaker[TRANSITIONS.num_neighbours :]] = 0

    def scores(user: int) -> np.ndarray:
        age = {what: n for n, had in reversed([*enumerate(reversed(ordered.get(user, [])))]) for what in had}
        weights = {what: TRANSITIONS.history_decay**n for what, n in age.items() if n < TRANSITIONS.history}
        return sum((weight * strong_II[what] for what, weight in weights.items()), np.zeros(size))

    return scores


def test_transitions_equal_a_naive_count(
    staged: Staged, candidates: dict[str, list[Row]], facts: dict[str, dict]
) -> None:
    events = [(row["user_idx"], row["event_ts"], row["item_idx"]) for row in staged.training_events.collect()]
    scores = naive_transitions(events, len(facts["items"]))
    check_lists(candidates["transitions"], scores, facts, 1 + max(facts["had"]))


def test_transitions_of_categories_lead_to_their_best_sellers(
    staged: Staged, candidates: dict[str, list[Row]], facts: dict[str, dict]
) -> None:
    items, names = facts["items"], merchandise(facts)
    events = [
        (row["user_idx"], row["event_ts"], names.index(items[row["item_idx"]]["category"]))
        for row in staged.training_events.collect()
        if items[row["item_idx"]]["recommendable"]
    ]
    assert len(events) < staged.training_events.count()  # fuel leads nowhere
    of_categories, shares_I = naive_transitions(events, len(names)), shares_of_customers(staged, facts)

    def scores(user: int) -> np.ndarray:
        return shares_I * spread_over_items(of_categories(user), facts)

    check_lists(candidates["transition_categories"], scores, facts, 1 + max(facts["had"]))


def test_categories_follow_their_order(spark: SparkSession, staged: Staged) -> None:
    """Who had tents bought stoves next, and never the other way round: only that way do best sellers come."""
    rows = [(user, item, day) for user in range(1, 5) for item, day in ((0, 10), (1, 20))]
    rows += [(5, 0, 10), (6, 1, 10), (6, 2, 20)]
    events = spark.createDataFrame(
        [("f", f"e{n}", user, item, day) for n, (user, item, day) in enumerate(rows)],
        "fold string, event_id string, user_idx int, item_idx int, event_ts int",
    )
    interactions = events.selectExpr("user_idx", "item_idx", "true counting")
    eligible = spark.createDataFrame(
        [(0, "tents", 2), (1, "stoves", 1), (2, "lamps", 0), (3, "stoves", 1)],
        "item_idx int, category string, category_code int",
    )
    mixes = spark.createDataFrame([(5, "tents", True, True), (6, "stoves", True, True)], "user_idx int, category string, "
                                  "touched boolean, home boolean")  # fmt: skip
    new = users_of(interactions.where("user_idx >= 5"), mixes, eligible, ("touched",))
    settings = Transitions(window=1, decay=0.5, shrinkage=0.0)
    found = transition_category_candidates(new, eligible, events, interactions, settings, RANKING, staged.folder)
    # All customers of stoves have item 1, and all who had tents had it next; who had stoves is led to lamps alone, which he had.
    assert {(row["user_idx"], row["item_idx"]): row["score"] for row in collect(found)} == {(5, 1): 1.0}


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


def test_user_knn_equals_a_dense_version(
    staged: Staged, candidates: dict[str, list[Row]], facts: dict[str, dict]
) -> None:
    had_UI = heaviest_had(staged, facts, USER_KNN.max_items_per_user)
    norm_U = np.sqrt(had_UI.sum(axis=1))
    similar_UU = had_UI @ had_UI.T / (np.outer(norm_U, norm_U) + USER_KNN.shrinkage)
    for user, row_U in enumerate(similar_UU):
        row_U[user] = 0
        weaker = sorted(range(len(row_U)), key=lambda other: (-np.float32(row_U[other]), other))
        row_U[weaker[USER_KNN.num_neighbours :]] = 0
    assert np.count_nonzero(similar_UU) > 0.9 * USER_KNN.num_neighbours * len(facts["had"])
    scores_UI = similar_UU @ had_UI
    check_lists(candidates["user_knn"], lambda user: scores_UI[user], facts, len(had_UI))
    trend_I = naive_trend(staged, had_UI.shape[1])
    check_lists(candidates["user_knn_trend"], lambda user: scores_UI[user] * trend_I, facts, len(had_UI))


def test_no_trend_vanishes_and_what_nobody_had_has_the_mean_one(spark: SparkSession) -> None:
    as_of = datetime(2024, 7, 1, tzinfo=timezone.utc)
    fold = Fold(name="f", purpose="serve", as_of=as_of, horizon=timedelta(days=30))
    days = {0: 1, 1: 40, 2: 4000}
    rows = [(item, as_of - timedelta(days=ago), True) for item, ago in days.items()]
    had = spark.createDataFrame(rows, "item_idx int, last_ts timestamp, counting boolean")
    items = spark.createDataFrame([(item,) for item in range(4)], "item_idx int")
    trend = Trend(half_life_days=1.0, power=1.0)
    found = {row.item_idx: row.trend for row in with_trend(items, had, fold, trend).collect()}
    assert found[0] == pytest.approx(0.5)
    assert found[1] == found[2] == 1e-6
    assert found[3] == pytest.approx(np.mean([found[0], found[1], found[2]]))
    nobody = with_trend(items, had.limit(0), fold, trend).collect()
    assert {row.trend for row in nobody} == {1.0}


def naive_trend(staged: Staged, num_items: int) -> np.ndarray:
    ages = defaultdict(list)
    for row in staged.interactions.where("counting").collect():
        ages[row["item_idx"]].append((staged.fold.as_of.timestamp() - row["last_ts"].timestamp()) / 86_400)
    trend_I = np.full(num_items, np.nan)
    for item, days in ages.items():
        trend_I[item] = np.mean(0.5 ** (np.array(days) / TREND.half_life_days)) ** TREND.power
    assert np.nanmin(trend_I) < 0.8 * np.nanmax(trend_I)
    return np.where(np.isnan(trend_I), np.nanmean(trend_I), trend_I)


def trending_lists(
    staged: Staged, users: DataFrame, model: str, users_UD: np.ndarray, items_ID: np.ndarray
) -> DataFrame:
    """The lists of a model of these vectors with the trend."""
    rows = [
        (model, staged.fold.name, kind, idx, vector.tolist())
        for kind, vectors in (("user", users_UD), ("item", items_ID))
        for idx, vector in enumerate(vectors)
    ]
    ddl = "model string, fold string, kind string, idx int, vector array<float>"
    vectors, eligible = users.sparkSession.createDataFrame(rows, ddl), trending(staged, staged.interactions)
    return factor_candidates(users, eligible, vectors, RANKING, staged.folder, model=model, fold=staged.fold.name)


def test_a_vectors_score_is_multiplied_by_the_trend(staged: Staged, users: DataFrame, facts: dict[str, dict]) -> None:
    num_users, num_items = 1 + max(facts["had"]), len(facts["items"])
    rng = np.random.default_rng(5)
    users_UD, items_ID = (rng.random((number, 4)).astype(np.float32) for number in (num_users, num_items))
    found = collect(trending_lists(staged, users, "als", users_UD, items_ID))
    scores_UI = users_UD.astype(np.float64) @ items_ID.T * naive_trend(staged, num_items)
    check_lists(found, lambda user: scores_UI[user], facts, num_users)


@pytest.mark.parametrize("model", ["gru", "transformer"])
def test_a_logits_exponential_is_multiplied_by_the_trend(
    staged: Staged, users: DataFrame, facts: dict[str, dict], model: str
) -> None:
    num_users, num_items = 1 + max(facts["had"]), len(facts["items"])
    rng = np.random.default_rng(6)
    users_UD, items_ID = (rng.normal(size=(number, 4)).astype(np.float32) for number in (num_users, num_items))
    users_UD[:, -1], items_ID[:, -1] = 1.0, 8.0
    found = collect(trending_lists(staged, users, model, users_UD, items_ID))
    logits_UI = users_UD.astype(np.float64) @ items_ID.T
    shifted_UI = logits_UI + np.log(naive_trend(staged, num_items))
    assert (logits_UI.argmax(axis=1) != shifted_UI.argmax(axis=1)).any()
    check_lists(found, lambda user: shifted_UI[user], facts, num_users)


def heaviest_had(staged: Staged, facts: dict[str, dict], most: int) -> np.ndarray:
    heaviest = defaultdict(list)
    for row in staged.interactions.collect():
        heaviest[row["user_idx"]].append((-row["weight"], row["item_idx"]))
    had_UI = np.zeros((1 + max(heaviest), len(facts["items"])))
    for user, rows in heaviest.items():
        had_UI[user, [item for _, item in sorted(rows)[:most]]] = 1
    return had_UI


def test_user_knn_refuses_more_interactions_than_a_task_may_hold(staged: Staged, users: DataFrame) -> None:
    with pytest.raises(UserKnnError, match=r"user_knn.max_nonzeros: found \d+ interactions, expected at most 100"):
        user_knn_candidates(
            users, staged.eligible, staged.interactions, UserKnn(max_nonzeros=100), RANKING, staged.folder
        )


def test_content_equals_tf_idf_without_hashes(
    staged: Staged, candidates: dict[str, list[Row]], facts: dict[str, dict]
) -> None:
    def words(item: Row) -> list[str]:
        department, category = item["category_path"]
        text = f"{item['label']} {department} {category}".lower().split()
        return [word for word in text if len(word) > 1] + [f"/{department}", f"/{department}/{category}"]

    items = [facts["items"][idx] for idx in range(len(facts["items"]))]
    weights_IW = TfidfVectorizer(analyzer=words).fit_transform(items).toarray()
    had_UI = heaviest_had(staged, facts, CONTENT.max_items_per_user)
    profile_UW = had_UI @ weights_IW
    # The test's words have no hash to break ties by: without ties at the cut, both keep the same words.
    cut = CONTENT.max_words_per_user
    falling_UW = -np.sort(-profile_UW, axis=1)
    is_clear_U = falling_UW[:, cut - 1] > 1.001 * falling_UW[:, cut]
    profile_UW[profile_UW < falling_UW[:, [cut - 1]]] = 0
    profile_UW /= np.maximum(np.sqrt(np.square(profile_UW).sum(axis=1, keepdims=True)), 1e-12)
    liked_I = (1 + np.array([facts["popularity"][idx] for idx in range(len(items))])) ** CONTENT.popularity_power
    scores_UI = profile_UW @ weights_IW.T * liked_I
    clear = {user for user in facts["had"] if is_clear_U[user] or falling_UW[user, cut] == 0}
    assert len(clear) > 30
    rows = [row for row in candidates["content"] if row["user_idx"] in clear]
    of_clear = {**facts, "had": {user: facts["had"][user] for user in clear}}
    check_lists(rows, lambda user: scores_UI[user], of_clear, len(had_UI))


def test_content_proposes_what_nobody_had(spark: SparkSession, staged: Staged) -> None:
    items = spark.createDataFrame(
        [(0, "tents", ["camp", "tents"], "Tent, ALPINE"), (1, "stoves", ["camp", "stoves"], "alpine stove"),
         (2, "stoves", ["camp", "stoves"], "city stove"), (3, "maps", [], None), (4, "maps", ["paper"], "")],
        "item_idx int, category string, category_path array<string>, label string",
    )  # fmt: skip
    codes = spark.createDataFrame([("maps", 0), ("stoves", 1), ("tents", 2)], "category string, category_code int")
    interactions = spark.createDataFrame(
        [(7, 0, 1.0, True), (8, 3, 1.0, True)], "user_idx int, item_idx int, weight double, counting boolean"
    )
    mixes = interactions.selectExpr("user_idx", "'tents' category", "true touched", "true home")
    eligible = items.select("item_idx", "category").join(codes, "category")
    users = users_of(interactions, mixes, eligible, ("touched",))
    found = collect(content_candidates(users, eligible, items, interactions, Content(), RANKING, staged.folder))
    # Both stoves share the department with the tent, one its style; nothing is known of item 3, and so of user 8.
    assert [(row["user_idx"], row["item_idx"]) for row in sorted(found, key=lambda row: row["rank"])] == [
        (7, 1),
        (7, 2),
    ]
    with pytest.raises(ContentError, match=r"content.max_nonzeros: found \d+ words of items, expected at most 3"):
        content_candidates(users, eligible, items, interactions, Content(max_nonzeros=3), RANKING, staged.folder)


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
