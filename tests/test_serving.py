"""Rankers and the choice of what serves: features against a naive version, what is learned from what, and what decides."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from rich.console import Console

from ranked import RANKED, as_lists
from xrec import columns as C
from xrec.config import Evaluation, Ranking, Settings, load_settings
from xrec.evaluation.folds import Fold
from xrec.generators.sources import serving_sources, sources_of
from xrec.ranking.blend import Choice, blend
from xrec.ranking.evidence import JudgedFold, as_served, choose_model, folds_of_evidence
from xrec.ranking.features import FoldFacts, feature_names, feature_rows
from xrec.ranking.rankers import RankerError, check_slots, num_workers, of_some_users, rank_folds, weight_of
from xrec.ranking.serving import ServingError, contributing, evidence_of, read_model, serving_rows
from xrec.runs.running import Run
from xrec.runs.stages import STAGES
from xrec.schemas import TABLES
from xrec.storage.shared import SharedFolder
from xrec.storage.tables import rows_from

pytestmark = pytest.mark.spark

SOURCES = ("popularity", "als")
CANDIDATES = RANKED
TARGETS = TABLES["targets"].columns
NUM_USERS, NUM_ITEMS = 60, 30


def fold(number: int, purpose: Any = "select") -> Fold:
    as_of = datetime(2024, 1, 1, tzinfo=timezone.utc) + timedelta(days=30 * number)
    return Fold(name=f"{purpose}-{number}", purpose=purpose, as_of=as_of, horizon=timedelta(days=30))


def target(one: Fold, user: int, item: int) -> tuple[Any, ...]:
    return (one.name, user, item, "c", True, True, True, False, False, False)


# --- features


def test_features_equal_a_naive_version(spark: SparkSession) -> None:
    one, drawn = fold(3), random.Random(5)
    price = {item: drawn.choice([None, 1.0, 2.5]) for item in range(NUM_ITEMS)}
    had = {(user, item) for user in range(9) for item in drawn.sample(range(NUM_ITEMS), 3 + user % 3)}
    age = {pair: drawn.randrange(1, 60) for pair in had}
    interactions = [
        (one.name, u, i, 1.0, 2, one.as_of - timedelta(days=age[u, i]), i % 7 > 0, 2.0, price[i] and 2 * price[i], 0)
        for u, i in sorted(had)
    ]
    mixes = [(one.name, u, f"c{c}", 1.0 + c, c > u % 2, True, False) for u in range(9) for c in range(3)]
    items = [(f"i{i}", i, f"c{i % 4}") for i in range(NUM_ITEMS)]
    lists = {(s, u): drawn.sample(range(NUM_ITEMS), 6) for s in SOURCES for u in range(9) if (s, u) != ("als", 8)}
    score = {(s, u, i): 10.0 - n * (u + 1) for (s, u), found in lists.items() for n, i in enumerate(found)}
    candidates = [
        (one.name, s, "touched", u, i, score[s, u, i], n)
        for (s, u), found in lists.items()
        for n, i in enumerate(found, 1)
    ]
    facts = FoldFacts(
        fold=one,
        interactions=spark.createDataFrame(interactions, TABLES["interactions"].columns),
        user_categories=spark.createDataFrame(mixes, TABLES["user_categories"].columns),
        items=spark.createDataFrame(items, "item_id string, item_idx int, category string"),
    )
    ranking = Ranking(recent_days=28)
    found = feature_rows(as_lists(spark.createDataFrame(candidates, CANDIDATES)), facts, SOURCES, ranking).toPandas()
    assert list(found.columns[4:]) == feature_names(SOURCES)
    assert {(row.user_idx, row.item_idx) for row in found.itertuples()} == {(u, i) for _, u, i in score}
    votes = {
        (u, i): sum(1 / (20 + lists[s, u].index(i) + 1) for s in SOURCES if i in lists.get((s, u), []))
        for _, u, i in score
    }
    counting = [(u, i) for u, i in had if i % 7 > 0]
    num_recent = sum(age[pair] <= 28 for pair in counting)
    for row in found.itertuples():
        user, item = row.user_idx, row.item_idx
        buyers = [u for u, i in had if i == item and item % 7 > 0]
        recent = [u for u in buyers if age[u, item] <= 28]
        for source in SOURCES:
            listed = lists.get((source, user), [])
            rank = listed.index(item) + 1 if item in listed else np.nan
            share = 1 - (rank - 1) / 5
            np.testing.assert_allclose(getattr(row, f"rank_{source}"), rank)
            np.testing.assert_allclose(getattr(row, f"score_{source}"), share, rtol=1e-5, atol=1e-6)
        own = [price[i] for u, i in had if u == user]
        paid, units = sum(2 * p for p in own if p), 2.0 * len(own)
        expected = {
            "num_sources": sum(item in lists.get((s, user), []) for s in SOURCES),
            "votes": votes[user, item],
            "category_votes": sum(v for (u, i), v in votes.items() if u == user and i % 4 == item % 4),
            "category_share": (1 + item % 4) / 6 if item % 4 < 3 else np.nan,
            "category_popularity": np.log({1: 5, 2: 9}.get(item % 4, 0.5) / 14),
            "item_popularity": np.log((len(buyers) or 0.5) / len(counting)),
            "item_recent": np.log((len(recent) + 1) / num_recent),
            "item_trend": len(recent) / (len(buyers) or 1) / (num_recent / len(counting)),
            "item_share": np.log((len(buyers) or 0.5) / len({u for u, i in counting if i % 4 == item % 4})),
            "item_price": np.log(price[item]) if buyers and price[item] else np.nan,
            "user_items": np.log(len(own) / (len(had) / 9)),
            "user_categories": (2 - user % 2) / (14 / 9),
            "user_price": np.log(paid / units) if paid else np.nan,
            "user_days_away": min(age[u, i] for u, i in had if u == user),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(row, name), value, rtol=1e-5, atol=1e-6, err_msg=name)


# --- what is learned


def settings_of(tmp_path: Path, *overrides: str) -> Settings:
    (tmp_path / "x.yaml").write_text(
        f"storage: {{root: {tmp_path}}}\n"
        "log: {file: {path: x, format: csv}, columns: {user_id: u, item_id: i, event_ts: t}}\n"
        "catalogue: {category: c}\nranker: {num_trees: 30, learning_rate: 0.3, min_child_weight: 1.0, feature_share: 1.0}\n"
    )
    return load_settings([tmp_path / "x.yaml"], list(overrides))


def learning_world(spark: SparkSession, folds: Sequence[Fold], seed: int) -> tuple[dict[Fold, DataFrame], list[Any]]:
    """Features, of which the score of als says what is bought and the others nothing, and targets."""
    drawn = np.random.default_rng(seed)
    features, targets = {}, []
    for one in folds:
        names = feature_names(SOURCES)
        frame = pd.DataFrame(drawn.normal(size=(NUM_USERS * 10, len(names))).astype(np.float32), columns=names)
        frame["rank_popularity"] = np.where(drawn.random(len(frame)) < 0.5, np.nan, drawn.integers(1, 9, len(frame)))
        keys = [(one.name, "touched", n // 10, n % 10) for n in range(len(frame))]
        rows = [
            (*key, *(None if np.isnan(x) else float(x) for x in values))
            for key, values in zip(keys, frame.itertuples(index=False), strict=True)
        ]
        schema = "fold string, scope string, user_idx int, item_idx int, " + ", ".join(f"{n} float" for n in names)
        features[one] = spark.createDataFrame(rows, schema)
        chance = 1 / (1 + np.exp(-(3 * frame["score_als"] - 3)))
        bought = drawn.random(len(frame)) < chance
        targets += [target(one, n // 10, n % 10) for n in np.flatnonzero(bought).tolist()]
    return features, targets


def lists_of(rows: DataFrame) -> dict[tuple[Any, ...], list[int]]:
    found: dict[tuple[Any, ...], list[int]] = {}
    for row in rows.collect():
        found[row[C.FOLD], row[C.SOURCE], row[C.USER_IDX]] = row[C.ITEMS]
    return found


def test_rankers_learn_what_is_bought_from_older_folds_alone(spark: SparkSession, tmp_path: Path) -> None:
    folds = [fold(1), fold(2), fold(3, "test")]
    features, targets = learning_world(spark, folds, 0)
    learned_from = {folds[2]: folds[:2]}
    learned = ("logistic", "trees", "listwise", "ensemble")
    settings = settings_of(tmp_path, f"ranker.models=[{','.join(learned)}]")

    def ranked(rows: list[Any]) -> DataFrame:
        known = spark.createDataFrame(rows, TARGETS)
        of_folds = rank_folds(
            features,
            known,
            learned_from,
            SOURCES,
            settings,
            SharedFolder(str(tmp_path / "shared")),
            k=5,
            calibrated=list(features),
        )
        return of_folds[folds[2]]

    found = ranked(targets)
    assert found.columns == [C.FOLD, C.SOURCE, C.SCOPE, C.USER_IDX, C.ITEMS, C.SCORES]
    lists = lists_of(found)
    assert {key[:2] for key in lists} == {(folds[2].name, model) for model in learned}
    scores = [score for row in found.collect() for score in row[C.SCORES]]
    assert 0 < min(scores) < max(scores) < 1, "a score is a probability"
    wanted = {(name, user, item) for name, user, item, *_ in targets}
    chance = len([one for one in wanted if one[0] == folds[2].name]) / (NUM_USERS * 10)
    for model in learned:
        first = [(folds[2].name, user, lists[folds[2].name, model, user][0]) in wanted for user in range(NUM_USERS)]
        assert np.mean(first) > 2 * chance, model
    # What is known of the judged folds alone, turned round, changes no list of theirs.
    turned = [one for one in targets if one[0] != folds[2].name] + [
        target(folds[2], user, item) for user in range(NUM_USERS) for item in (0, 1)
    ]
    assert lists_of(ranked(turned)) == lists
    settings = settings_of(tmp_path, "ranker.models=[logistic]")
    alone = lists_of(ranked(targets))
    assert {key[1] for key in alone} == {"logistic"}
    assert all(lists[key] == items for key, items in alone.items())


@pytest.mark.parametrize("model", ["logistic", "trees"])
def test_an_older_fold_counts_less_by_fold_decay(spark: SparkSession, tmp_path: Path, model: str) -> None:
    """Two of three folds, the older ones, teach the contrary of what holds later: who counts all alike learns that."""
    folds = [fold(1), fold(2), fold(3), fold(4, "test")]
    rows = spark.createDataFrame([(one.name,) for one in folds[:3]], "fold string")
    found = {row[0]: row[1] for row in rows.select(C.FOLD, weight_of(folds[:3], 0.5)).collect()}
    assert found == {folds[0].name: 0.25, folds[1].name: 0.5, folds[2].name: 1.0}
    features, targets = learning_world(spark, folds, 0)
    for one in folds[:2]:
        turned = (-F.col("score_als")).cast("float")
        features[one] = features[one].withColumn("score_als", turned)
    bought = {(user, item) for name, user, item, *_ in targets if name == folds[3].name}

    def hits(decay: float) -> float:
        ranked = rank_folds(
            features,
            spark.createDataFrame(targets, TARGETS),
            {folds[3]: folds[:3]},
            SOURCES,
            settings_of(tmp_path, f"ranker.models=[{model}]", f"ranker.fold_decay={decay}"),
            SharedFolder(str(tmp_path / "shared")),
            k=5,
            calibrated=[],
        )
        return float(np.mean([(key[2], items[0]) in bought for key, items in lists_of(ranked[folds[3]]).items()]))

    chance = len(bought) / (NUM_USERS * 10)
    assert hits(0.05) > 2 * chance
    assert hits(1.0) < chance


def test_rows_are_bounded_by_leaving_out_users(spark: SparkSession, tmp_path: Path) -> None:
    """The same ones on every run and however the rows lie, each with all of his rows."""
    rows = spark.range(6000).selectExpr("cast(id % 600 as int) user_idx", "cast(id as int) item_idx")

    def drawn(of: DataFrame, seed: int) -> dict[int, int]:
        found = of_some_users(of, max_rows=100, num_rows=6000, seed=seed).groupBy(C.USER_IDX).count().collect()
        return {row[C.USER_IDX]: row["count"] for row in found}

    users = drawn(rows, 1)
    assert set(users.values()) == {10}
    assert 2 <= len(users) <= 20
    assert drawn(rows.repartition(3, C.ITEM_IDX), 1) == users != drawn(rows, 2)
    assert of_some_users(rows, max_rows=6000, num_rows=6000, seed=1) is rows
    folds, said = [fold(1), fold(2, "test")], []
    features, targets = learning_world(spark, folds, 1)
    ranked = rank_folds(
        features,
        spark.createDataFrame(targets, TARGETS),
        {folds[1]: folds[:1]},
        SOURCES,
        settings_of(tmp_path, "ranker.models=[logistic]", "ranker.max_rows=100"),
        SharedFolder(str(tmp_path / "shared")),
        k=5,
        calibrated=[],
        say=said.append,
    )
    assert lists_of(ranked[folds[1]])
    assert len(said) == 1
    assert said[0].startswith("test-2: of users with about 100 of ")


def test_trees_of_few_rows_tell_them_apart(spark: SparkSession, tmp_path: Path) -> None:
    """The weight that a leaf needs by default is more than all rows of this world have."""
    folds = [fold(1), fold(2, "test")]
    features, targets = learning_world(spark, folds, 1)
    settings = settings_of(tmp_path, "ranker.models=[trees]", "ranker.min_child_weight=1000")
    ranked = rank_folds(
        features,
        spark.createDataFrame(targets, TARGETS),
        {folds[1]: folds[:1]},
        SOURCES,
        settings,
        SharedFolder(str(tmp_path / "shared")),
        k=5,
        calibrated=list(features),
    )
    scores = {score for row in ranked[folds[1]].collect() for score in row[C.SCORES]}
    assert len(scores) > 1, "trees of one leaf score all alike"


def test_a_fold_whose_older_folds_teach_nothing_is_not_ranked(spark: SparkSession, tmp_path: Path) -> None:
    """Nobody bought what was proposed in the oldest fold, or nobody had a target at all; the newer one is ranked by its own."""
    folds = [fold(1), fold(2), fold(3, "test")]
    features, targets = learning_world(spark, folds, 0)
    learned_from = {folds[1]: folds[:1], folds[2]: folds[:2]}
    elsewhere = [target(folds[0], user, 99) for user in range(NUM_USERS)]
    for of_the_oldest in (elsewhere, []):
        rows = [*of_the_oldest, *[one for one in targets if one[0] != folds[0].name]]
        ranked = rank_folds(
            features,
            spark.createDataFrame(rows, TARGETS),
            learned_from,
            SOURCES,
            settings_of(tmp_path, "ranker.models=[logistic]"),
            SharedFolder(str(tmp_path / "shared")),
            k=5,
            calibrated=list(features),
        )
        assert list(ranked) == [folds[2]]
        assert {key[0] for key in lists_of(ranked[folds[2]])} == {folds[2].name}


# --- what serves


def judged_world(spark: SparkSession, wins: Sequence[float], seed: int = 0) -> list[JudgedFold]:
    """Folds in which a single source has the target first in 30 of 100 lists, popularity in 25, and a ranker as given."""
    drawn, judged = random.Random(seed), []
    for number, share in enumerate(wins):
        one, candidates, targets = fold(number), [], []
        for user in range(200):
            item = drawn.randrange(10)
            targets.append(target(one, user, item))
            for source, chance in (("popularity", 0.25), ("als", 0.3), ("trees", share)):
                first = item if drawn.random() < chance else 10 + drawn.randrange(10)
                candidates.append((one.name, source, "touched", user, first, 1.0, 1))
        judged.append(
            JudgedFold(
                fold=one,
                candidates=as_lists(spark.createDataFrame(candidates, CANDIDATES)),
                targets=spark.createDataFrame(targets, TARGETS),
                buyers=spark.createDataFrame([], "item_idx int, num_buyers bigint"),
            )
        )
    return judged


SETTINGS = Evaluation(num_bootstrap=200)


def choose(judged: Sequence[JudgedFold], learning: Sequence[str] = ("trees",)) -> Any:
    """The choice, where what learns has lists in the folds in which it hits anybody."""
    found = {
        row[0] for one in judged for row in one.candidates.where(F.col(C.SOURCE) == "trees").select(C.FOLD).collect()
    }
    learned = [one.fold for one in judged if one.fold.name in found]
    return choose_model(judged, SETTINGS, singles=SOURCES, learning=learning, learned=learned, scope="touched", seed=1)


def test_a_ranker_serves_only_where_it_wins_over_all_folds(spark: SparkSession) -> None:
    good = choose(judged_world(spark, [0.5, 0.5, 0.5]))
    assert (good.model, good.compared_with) == ("trees", "als")
    assert good.selected_on == "select-0 select-1 select-2"
    assert [one.model for one in good.evidence] == ["trees", "als", "popularity"]
    assert good.evidence[0].num_users == 600
    assert 0 < good.evidence[0].adjusted_low < good.evidence[0].difference < good.evidence[0].adjusted_high
    # The last window alone says that the ranker wins; those before it say that it does not.
    misleading = judged_world(spark, [0.1, 0.2, 0.5])
    assert choose(misleading[-1:]).model == "trees"
    refused = choose(misleading)
    assert refused.model == "als"
    (ranker,) = [one for one in refused.evidence if one.learns]
    assert ranker.adjusted_low <= 0


def hitting(spark: SparkSession, hits: Sequence[dict[str, int]], num_users: int) -> list[JudgedFold]:
    """A fold for each of ``hits``: the sources that have lists there, and how many users' only item is what they bought."""
    judged = []
    for number, of_source in enumerate(hits):
        one = fold(number)
        lists = [
            (one.name, source, "touched", user, 5 if user < num_hits else 99, 1.0, 1)
            for source, num_hits in of_source.items()
            for user in range(num_users)
        ]
        judged.append(
            JudgedFold(
                fold=one,
                candidates=as_served(as_lists(spark.createDataFrame(lists, CANDIDATES)), SOURCES),
                targets=spark.createDataFrame([target(one, user, 5) for user in range(num_users)], TARGETS),
                buyers=spark.createDataFrame([], "item_idx int, num_buyers bigint"),
            )
        )
    return judged


def test_few_hits_are_no_evidence(spark: SparkSession) -> None:
    """Nine lists that hold what was bought are better than none in every replicate, and yet say little; of a source as well."""
    for num_hits, serves in ((9, "popularity"), (12, "trees")):
        found = choose(hitting(spark, [{"popularity": 0, "als": 0, "trees": num_hits}], 12))
        assert next(one for one in found.evidence if one.learns).adjusted_low > 0
        assert found.model == serves, found
    for num_popular, num_als, serves in ((2, 3, "popularity"), (12, 30, "als")):
        assert choose(hitting(spark, [{"popularity": num_popular, "als": num_als}], 30), ()).model == serves
    often = [{"popularity": 2, "als": 6}, {"popularity": 2, "als": 6}]
    assert choose(hitting(spark, often, 30), ()).model == "popularity", "six users, however often"


def test_single_sources_are_compared_in_all_older_folds(spark: SparkSession) -> None:
    """The oldest fold, in which nothing that learns has lists, speaks strongly for als; the newer ones slightly against it."""
    newer = {"popularity": 42, "als": 40, "trees": 10}
    found = choose(hitting(spark, [{"popularity": 10, "als": 80}, newer, newer], 90))
    assert (found.model, found.compared_with, found.selected_on) == ("als", "als", "select-0 select-1 select-2")
    of = {one.model: one for one in found.evidence}
    assert (of["popularity"].num_users, of["trees"].num_users) == (270, 180)
    assert (of["trees"].selected_on, of["trees"].compared_with) == ("select-1 select-2", "popularity")
    # What learns must be better for sure than both, als of all folds and popularity of its own.
    for num_hits, serves in ((44, "als"), (70, "trees")):
        wins = newer | {"trees": num_hits}
        assert choose(hitting(spark, [{"popularity": 10, "als": 80}, wins, wins], 90)).model == serves


def test_a_source_without_lists_in_an_older_fold_does_not_serve_alone(spark: SparkSession) -> None:
    """It would be judged there as popularity, which completes its lists."""
    hits = [{"popularity": 20, "als": 20}, {"popularity": 80}, {"popularity": 11, "als": 12}]
    found = choose(hitting(spark, hits, 90), ())
    assert (found.model, [one.model for one in found.evidence]) == ("popularity", ["popularity"])
    assert choose(hitting(spark, hits[::2], 90), ()).model == "als"
    # A fold in which nobody has a target has no lists at all, and is against no source.
    nobody = replace(
        hitting(spark, hits[:1], 1)[0], fold=fold(9), candidates=as_lists(spark.createDataFrame([], CANDIDATES))
    )
    found = choose([*hitting(spark, hits[::2], 90), replace(nobody, targets=spark.createDataFrame([], TARGETS))], ())
    assert found.model == "als"


def test_a_source_is_judged_by_what_it_would_serve(spark: SparkSession) -> None:
    """Its own items, then popularity's: also for a user whom it knows nothing of, as the blend of that source alone."""
    drawn, lists = random.Random(3), []
    for user in range(20):
        lists += [
            (fold(0).name, "popularity", "touched", user, i, 1.0, n)
            for n, i in enumerate(drawn.sample(range(40), 25), 1)
        ]
        own = drawn.sample(range(40), drawn.choice([0, 3, 12]))
        lists += [(fold(0).name, "als", "touched", user, i, 1.0, n) for n, i in enumerate(own, 1)]
        lists.append((fold(0).name, "trees", "touched", user, 7, 1.0, 1))
    candidates = as_lists(spark.createDataFrame(lists, CANDIDATES))
    found = {(row[C.SOURCE], row[C.USER_IDX]): row[C.ITEMS] for row in as_served(candidates, SOURCES).collect()}
    assert {user: found["trees", user] for user in range(20)} == {user: [7] for user in range(20)}, (
        "what learns is as it is"
    )
    for source in SOURCES:
        alone = Choice(scope="touched", weights={s: float(s == source) for s in SOURCES}, selected_on="")
        served = blend(candidates, [alone], Ranking(), k=10)
        assert {row[C.USER_IDX]: row[C.ITEMS] for row in served.collect()} == {u: found[source, u] for u in range(20)}


def test_evidence_is_where_all_that_learn_have_lists(spark: SparkSession) -> None:
    folds = [fold(n) for n in range(3)]
    rows = [(folds[n].name, model, "touched", 0, 1, 1.0, 1) for n, model in ((1, "blend"), (2, "blend"), (2, "trees"))]
    candidates = as_lists(spark.createDataFrame(rows, CANDIDATES))
    learning = ("blend", "trees")
    assert folds_of_evidence(folds, candidates, learning) == (folds[2:], learning)
    assert folds_of_evidence(folds[:2], candidates, learning) == (folds[:2], ()), "single sources, in all folds"
    assert folds_of_evidence(folds, candidates, ("blend",)) == (folds[1:], ("blend",))
    assert folds_of_evidence(folds[:1], candidates, learning) == (folds[:1], ())
    assert folds_of_evidence([], candidates, learning) == ([], ())


def test_what_no_setting_names_does_not_serve(tmp_path: Path) -> None:
    """Item-kNN is judged in every report, and no more than that."""
    settings = settings_of(tmp_path, "ranking.sources=[recent,als]")
    assert sources_of(settings) == ("popularity", "item_knn", "recent", "als")
    assert serving_sources(settings) == ("popularity", "recent", "als")


def test_too_few_slots_for_the_trees_are_said_at_once(spark: SparkSession, tmp_path: Path) -> None:
    check_slots(spark, settings_of(tmp_path).ranker)
    check_slots(spark, settings_of(tmp_path, "ranker.num_workers=99", "ranker.models=[logistic]").ranker)
    with pytest.raises(RankerError, match=r"ranker.num_workers: found 99, but Spark has \d+ task slots"):
        check_slots(spark, settings_of(tmp_path, "ranker.num_workers=99").ranker)
    settings, console = settings_of(tmp_path, "ranker.num_workers=99"), Console(quiet=True)
    run = Run(spark=spark, console=console, run_id="r", settings=settings, config=[], overrides=[])
    with pytest.raises(RankerError, match=r"found 99"):
        run.run(STAGES)
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"], "nothing ran yet"


@pytest.mark.parametrize(("num_slots", "num_tasks"), [(1, 1), (2, 2), (8, 2)])
def test_the_trees_take_what_slots_there_are_up_to_two(tmp_path: Path, num_slots: int, num_tasks: int) -> None:
    spark = MagicMock()
    spark.sparkContext.defaultParallelism = num_slots
    ranker = settings_of(tmp_path).ranker
    check_slots(spark, ranker)
    assert num_workers(spark, ranker) == num_tasks
    assert num_workers(spark, ranker.model_copy(update={"num_workers": 3})) == 3


def test_without_evidence_popularity_serves(spark: SparkSession) -> None:
    none = choose([])
    assert (none.model, none.selected_on) == ("popularity", "none (no select fold)")
    (row,) = serving_rows("test-1", none)
    assert (row[C.MODEL], row[C.CHOSEN], row.get(C.NDCG)) == ("popularity", True, None)
    empty = [
        JudgedFold(
            fold=fold(0),
            candidates=judged_world(spark, [0.5])[0].candidates,
            targets=spark.createDataFrame([], TARGETS),
            buyers=spark.createDataFrame([], "item_idx int, num_buyers bigint"),
        )
    ]
    assert choose(empty).selected_on == "none (no target in select-0)"


def test_the_choice_is_read_back_and_a_missing_one_is_named(spark: SparkSession) -> None:
    rows = rows_from(spark, "serving_models", serving_rows("test-1", choose(judged_world(spark, [0.5]))))
    assert read_model(rows, "test-1", "touched") == "trees"
    found = {(row[C.MODEL], row[C.METRIC]): row for row in evidence_of(rows).collect()}
    for row in rows.collect():
        ndcg, gain = (found[row[C.MODEL], metric] for metric in ("evidence_ndcg", "evidence_gain"))
        assert (ndcg[C.VALUE], ndcg[C.LOW], ndcg[C.HIGH]) == (row[C.NDCG], row[C.LOW], row[C.HIGH])
        assert (gain[C.VALUE], gain[C.LOW], gain[C.HIGH]) == (
            row[C.DIFFERENCE],
            row[C.ADJUSTED_LOW],
            row[C.ADJUSTED_HIGH],
        )
        assert (ndcg[C.SLICE], ndcg[C.K], ndcg[C.NUM_USERS]) == ("touched", 10, row[C.NUM_USERS])
    nothing = rows_from(spark, "serving_models", serving_rows("test-1", choose([])))
    assert evidence_of(nothing).isEmpty()
    with pytest.raises(ServingError, match=r"no chosen model of fold 'test-1', scope 'home'.*stage choose"):
        read_model(rows, "test-1", "home")


def test_reasons_follow_what_contributed(tmp_path: Path) -> None:
    settings, blended = settings_of(tmp_path), Choice(scope="touched", weights={"als": 1.0}, selected_on="s")
    assert contributing("blend", [blended], settings, SOURCES) is blended
    assert contributing("als", [blended], settings, SOURCES).weights == {"popularity": 0.0, "als": 1.0}
    for model in ("trees", "fusion"):
        assert contributing(model, [blended], settings, SOURCES).weights == {"popularity": 0.5, "als": 0.5}
