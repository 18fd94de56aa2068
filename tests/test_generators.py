"""Every source of candidates: never what is forbidden, the same as a naive version, better than popularity where there is taste."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from world import NON_MERCHANDISE, World, make_world
from xrec.config import Als, Categories, ItemKnn, Ranking, Weights
from xrec.evaluation.folds import Fold, histories_of, horizons_of
from xrec.features.interactions import interactions_of, targets_of, user_categories_of, weigh
from xrec.generators import factors
from xrec.generators.als import AlsError, ratings_of, train_als
from xrec.generators.factors import check_vectors, factor_candidates
from xrec.generators.item_knn import ItemKnnError, knn_candidates, neighbours_of
from xrec.generators.neighbours import heaviest_of
from xrec.generators.popularity import popular_candidates, recent_candidates
from xrec.lists import ranked_rows
from xrec.ranking.eligibility import eligible_items, users_of
from xrec.ranking.topk import VectorError
from xrec.storage.shared import SharedFolder

pytestmark = pytest.mark.spark

K = 20
RANKING = Ranking(candidates_per_source=K, tile_users=64, tile_items=50, recent_days=40.0)
ITEM_KNN = ItemKnn(num_neighbours=15, max_items_per_user=12, shrinkage=5.0)
CATEGORIES = Categories()
STYLES = ("alpine", "city", "beach", "classic")
"""What an item's label says of its taste."""
SOURCES = ("popularity", "recent", "item_knn", "als")


@dataclass
class Staged:
    """A world's tables of one fold, as small local DataFrames."""

    fold: Fold
    items: DataFrame
    interactions: DataFrame
    user_categories: DataFrame
    targets: DataFrame
    training_events: DataFrame
    checkpoints: str

    @property
    def folder(self) -> SharedFolder:
        return SharedFolder(f"{self.checkpoints}/shared")

    @property
    def eligible(self) -> DataFrame:
        return eligible_items(self.items)

    @property
    def users(self) -> DataFrame:
        return users_of(self.interactions, self.user_categories, self.eligible, ("touched", "home"))

    def train_als(self, als: Als) -> DataFrame:
        return train_als(self.training_events, self.fold, als, seed=0, checkpoints=self.checkpoints)

    def candidates(self, source: str, ranking: Ranking = RANKING) -> list[Row]:
        if source == "popularity":
            rows = popular_candidates(self.users, self.eligible, self.interactions, ranking, self.folder)
        elif source == "recent":
            rows = recent_candidates(self.users, self.eligible, self.interactions, self.fold, ranking, self.folder)
        elif source == "item_knn":
            rows = knn_candidates(self.users, self.eligible, self.interactions, ITEM_KNN, ranking, self.folder)
        else:
            vectors = local(self.train_als(Als(rank=8, alpha=2.0, num_blocks=2, max_iter=8)))
            model = {"model": "als", "fold": self.fold.name}
            rows = factor_candidates(self.users, self.eligible, vectors, ranking, self.folder, **model)
        return sorted(ranked_rows(rows).collect(), key=lambda row: (row["scope"], row["user_idx"], row["rank"]))


def local(rows: DataFrame) -> DataFrame:
    """The same rows, computed once."""
    return rows.sparkSession.createDataFrame(rows.collect(), rows.schema)


def stage(spark: SparkSession, world: World, folder: Path) -> Staged:
    fold = Fold(name="test-1", purpose="test", as_of=world.as_of, horizon=world.horizon)
    catalogue = world.catalogue
    item_idx = {item: n for n, item in enumerate(catalogue["item_id"])}
    category, department, name, taste = (
        dict(zip(rows["item_id"], rows[column], strict=True))
        for rows, column in (
            (catalogue, "category"),
            (catalogue, "department"),
            (catalogue, "name"),
            (world.item_tastes, "taste"),
        )
    )
    user_idx = {user: n for n, user in enumerate(world.tastes["user_id"])}
    items = spark.createDataFrame(
        [
            (
                item,
                idx,
                category[item],
                [department[item], category[item]],
                f"{name[item]} {STYLES[taste[item]]}",
                category[item] != NON_MERCHANDISE,
            )
            for item, idx in item_idx.items()
        ],
        "item_id string, item_idx int, category string, category_path array<string>, label string, recommendable boolean",
    )
    events = spark.createDataFrame(
        [
            (f"e{n}", user_idx[row.user_id], item_idx[row.item_id], row.event_type, row.event_ts.to_pydatetime(),
             category[row.item_id], category[row.item_id] != NON_MERCHANDISE)
            for n, row in enumerate(world.log.itertuples())
        ],
        "event_id string, user_idx int, item_idx int, event_type string, event_ts timestamp, category string, "
        "recommendable boolean",
    ).withColumns(
        {
            "void_ts": F.lit(None).cast("timestamp"),
            "quantity": F.lit(1.0),
            "price": F.lit(None).cast("double"),
            "is_outlier": F.lit(False),
        }
    )  # fmt: skip
    weighted = weigh(histories_of(events, [fold]), Weights(event_types={"purchase": 1.0, "view": 0.1}))
    interactions = local(interactions_of(weighted, CATEGORIES))
    mixes = local(user_categories_of(weighted, CATEGORIES))
    training_events = weighted.select(
        F.lit(fold.name).alias("fold"),
        *("event_id", "user_idx", "item_idx", "event_ts", "weight"),
        (F.col("event_type") == "purchase").alias("counting"),
        F.lit(1.0).alias("balance_weight"),
    )
    return Staged(
        fold=fold,
        items=items,
        interactions=interactions,
        user_categories=mixes,
        targets=local(targets_of(horizons_of(events, [fold]), mixes, interactions, CATEGORIES)),
        training_events=local(training_events),
        checkpoints=str(folder),
    )


@pytest.fixture(scope="module")
def staged(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Staged:
    return stage(spark, make_world(seed=0), tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def candidates(staged: Staged) -> dict[str, list[Row]]:
    return {source: staged.candidates(source) for source in SOURCES}


@pytest.fixture(scope="module")
def facts(staged: Staged) -> dict[str, dict]:
    return facts_of(staged)


def facts_of(staged: Staged) -> dict[str, dict]:
    """The staged tables as plain dicts."""
    had, excluded = defaultdict(set), {scope: defaultdict(set) for scope in ("touched", "home")}
    for row in staged.interactions.collect():
        had[row["user_idx"]].add(row["item_idx"])
    for row in staged.user_categories.collect():
        for scope, of_user in excluded.items():
            if row[scope]:
                of_user[row["user_idx"]].add(row["category"])
    items = {row["item_idx"]: row for row in staged.items.collect()}
    buyers, recent = defaultdict(int), defaultdict(int)
    since = (staged.fold.as_of - timedelta(days=40)).timestamp()
    for row in staged.interactions.collect():
        buyers[row["item_idx"]] += row["counting"]
        recent[row["item_idx"]] += row["counting"] and row["last_ts"].timestamp() >= since
    return {"had": had, "excluded": excluded, "items": items, "popularity": buyers, "recent": recent}


def allowed(facts: dict[str, dict], scope: str, user: int) -> list[int]:
    return [
        idx
        for idx, item in facts["items"].items()
        if item["recommendable"]
        and idx not in facts["had"][user]
        and item["category"] not in facts["excluded"][scope][user]
    ]


def naive_top(scores: dict[int, float], items: list[int]) -> list[tuple[int, float]]:
    best = sorted((-np.float32(scores[item]), item) for item in items if scores.get(item, 0) > 0)[:K]
    return [(item, float(-score)) for score, item in best]


@pytest.mark.parametrize("source", SOURCES)
def test_no_list_holds_what_is_forbidden(source: str, candidates: dict[str, list[Row]], facts: dict[str, dict]) -> None:
    lists = defaultdict(list)
    for row in candidates[source]:
        lists[row["scope"], row["user_idx"]].append(row)
    assert {user for _, user in lists} == set(facts["had"])
    assert {scope for scope, _ in lists} == {"touched", "home"}
    for (scope, user), rows in lists.items():
        assert {row["item_idx"] for row in rows} <= set(allowed(facts, scope, user))
        assert len({row["item_idx"] for row in rows}) == len(rows)
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        order = [(-row["score"], row["item_idx"]) for row in rows]
        assert order == sorted(order)


def test_a_catalogue_in_blocks_gives_the_same_lists(
    spark: SparkSession, staged: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = np.random.default_rng(2)
    kinds = {"user": staged.users.select("user_idx").distinct().count(), "item": staged.items.count()}
    rows = [
        (
            "test-1",
            "gru",
            kind,
            idx,
            drawn.integers(-2, 3, 4).astype(float).tolist(),
        )  # small whole numbers: ties abound
        for kind, num in kinds.items()
        for idx in range(num)
    ]
    vectors = spark.createDataFrame(rows, VECTORS)

    def lists() -> list[Row]:
        made = factor_candidates(
            staged.users, staged.eligible, vectors, RANKING, staged.folder, model="gru", fold="test-1"
        )
        return sorted(made.collect())

    whole = lists()
    shared = []
    monkeypatch.setattr(
        SharedFolder, "share", lambda self, rows, share=SharedFolder.share: shared.append(1) or share(self, rows)
    )
    monkeypatch.setattr(factors, "_BYTES_A_MIB", 1)  # blocks of 512 bytes: 32 items
    assert lists() == whole
    assert len(shared) == -(-kinds["item"] // 32)


@pytest.mark.parametrize("source", ["popularity", "recent"])
def test_popularity_is_the_number_of_buyers(
    source: str, candidates: dict[str, list[Row]], facts: dict[str, dict]
) -> None:
    found = defaultdict(list)
    for row in candidates[source]:
        found[row["scope"], row["user_idx"]].append((row["item_idx"], row["score"]))
    for user in facts["had"]:
        for scope in ("touched", "home"):
            assert found[scope, user] == naive_top(facts[source], allowed(facts, scope, user))


def test_item_knn_equals_a_dense_version(
    staged: Staged, candidates: dict[str, list[Row]], facts: dict[str, dict]
) -> None:
    profiles = defaultdict(list)
    for row in staged.interactions.collect():
        profiles[row["user_idx"]].append((-row["weight"], row["item_idx"]))
    profiles = {
        user: [item for _, item in sorted(rows)[: ITEM_KNN.max_items_per_user]] for user, rows in profiles.items()
    }
    had_UI = np.zeros((max(profiles) + 1, len(facts["items"])))
    for user, items in profiles.items():
        had_UI[user, items] = 1
    common_II = had_UI.T @ had_UI
    norm_I = np.sqrt(common_II.diagonal())
    similar_II = (common_II / (np.outer(norm_I, norm_I) + ITEM_KNN.shrinkage)).astype(np.float32)
    kept_II = np.zeros(similar_II.shape)
    for item in range(len(similar_II)):
        others = [(-similar_II[item, other], other) for other in range(len(similar_II)) if other != item]
        for negative, other in sorted(others)[: ITEM_KNN.num_neighbours]:
            kept_II[item, other] = -negative
    found = defaultdict(list)
    for row in candidates["item_knn"]:
        found[row["scope"], row["user_idx"]].append((row["item_idx"], row["score"]))
    for user, items in profiles.items():
        scores = dict(enumerate(sum((kept_II[item] for item in sorted(items)), np.zeros(len(norm_I)))))
        for scope in ("touched", "home"):
            assert found[scope, user] == naive_top(scores, allowed(facts, scope, user))


def ndcg(staged: Staged, rows: list[Row], scope: str = "touched") -> np.ndarray:
    """NDCG@10 of each user with targets."""
    targets, lists = defaultdict(set), defaultdict(list)
    for row in staged.targets.where(f"cross_{scope}").collect():
        targets[row["user_idx"]].add(row["item_idx"])
    for row in rows:
        if row["scope"] == scope and row["rank"] <= 10:
            lists[row["user_idx"]].append(row["item_idx"])
    gains = 1 / np.log2(np.arange(10) + 2)
    return np.array(
        [
            sum(gains[place] for place, item in enumerate(lists[user]) if item in wanted) / gains[: len(wanted)].sum()
            for user, wanted in sorted(targets.items())
        ]
    )


@pytest.mark.parametrize("source", ["als", "item_knn"])
def test_a_model_beats_popularity_where_there_is_taste(
    source: str, staged: Staged, candidates: dict[str, list[Row]]
) -> None:
    difference = ndcg(staged, candidates[source]) - ndcg(staged, candidates["popularity"])
    assert difference.mean() > 0.4 * ndcg(staged, candidates["popularity"]).mean()
    assert difference.mean() > 4 * difference.std() / np.sqrt(len(difference))


def test_no_model_beats_popularity_on_shuffled_labels(spark: SparkSession, tmp_path: Path) -> None:
    shuffled = stage(spark, make_world(seed=0, shuffled=True), tmp_path)
    popularity = ndcg(shuffled, shuffled.candidates("popularity"))
    for source in ("als", "item_knn"):
        difference = ndcg(shuffled, shuffled.candidates(source)) - popularity
        assert difference.mean() < 2.5 * difference.std() / np.sqrt(len(difference))


def test_als_is_given_summed_confidence_and_no_rare_item(spark: SparkSession) -> None:
    rows = [("f", 1, 5, 0.5, 2.0), ("f", 1, 5, 1.0, 1.0), ("f", 2, 5, 1.0, 0.5), ("f", 2, 7, 1.0, 1.0)]
    events = spark.createDataFrame(
        rows, "fold string, user_idx int, item_idx int, weight double, balance_weight double"
    )
    expected = [(1, 5, 2.0), (2, 5, 0.5), (2, 7, 1.0)]
    for min_buyers, kept in ((1, expected), (2, expected[:2])):
        ratings = ratings_of(events, min_buyers).select("user_idx", "item_idx", "weight")
        assert sorted(map(tuple, ratings.collect())) == kept


def test_als_says_so_where_no_item_has_enough_buyers(staged: Staged) -> None:
    with pytest.raises(AlsError, match=r"fold 'test-1': no item has als.min_buyers \(10000\)"):
        staged.train_als(Als(min_buyers=10_000))


def test_many_sweeps_do_not_overflow_the_stack(staged: Staged) -> None:
    # Without checkpoints the lineage of 20 sweeps is too long to be sent to a task.
    vectors = staged.train_als(Als(rank=2, num_blocks=2, max_iter=25))
    assert vectors.where("kind = 'user'").count() > 100


def test_item_knn_refuses_more_interactions_than_a_task_may_hold(staged: Staged) -> None:
    profiles = heaviest_of(staged.interactions, ITEM_KNN.max_items_per_user)
    with pytest.raises(ItemKnnError, match=r"item_knn.max_nonzeros: found \d+ interactions, expected at most 100"):
        neighbours_of(profiles, ItemKnn(max_nonzeros=100), staged.folder)


VECTORS = "fold string, model string, kind string, idx int, vector array<float>"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "found no user vectors of model 'gru' in fold 'f'; they are made by the stage train_gru"),
        ([("f", "gru", "user", 0, [1.0, 2.0])], "found no item vectors"),
        (
            [("f", "gru", "user", 3, [1.0, float("nan")]), ("f", "gru", "item", 0, [1.0, 2.0])],
            "the vector of user 3 of model 'gru' in fold 'f' holds NaN or infinity",
        ),
        (
            [("f", "gru", "user", 3, [1.0, 2.0]), ("f", "gru", "item", 9, [float("-inf"), 2.0])],
            "the vector of item 9 of model",
        ),
        ([("f", "gru", "user", 3, [1.0]), ("f", "gru", "item", 9, [1.0, 2.0])], r"lengths \[1, 2\], expected one"),
    ],
)
def test_vectors_without_a_dot_product_are_refused_at_the_door(
    spark: SparkSession, rows: list[tuple], message: str
) -> None:
    with pytest.raises(VectorError, match=message):
        check_vectors(spark.createDataFrame(rows, VECTORS), model="gru", fold="f")
