"""Blend, reasons and lists: the blend against a naive version, and the contract of the recommendations."""

from __future__ import annotations

import itertools
import random
import runpy
from collections import defaultdict
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from ranked import RANKED, as_lists
from xrec import columns as C
from xrec.config import Ranking, Settings, load_settings
from xrec.evaluation.folds import Fold
from xrec.lists import ranked_rows
from xrec.ranking.blend import (
    CUT_OFF,
    LEAST_POPULARITY,
    MOST_PARTS,
    MOST_POINTS,
    Choice,
    blend,
    choice_rows,
    choose_weights,
    describe_choices,
    equal_weights,
    parts_for,
    read_choices,
    weight_grid,
)
from xrec.ranking.eligibility import EligibilityError
from xrec.ranking.evidence import Serving
from xrec.ranking.lists import ListsError, check_lists, in_scope
from xrec.ranking.publishing import GateError
from xrec.ranking.reasons import with_reasons
from xrec.ranking.serving import serving_rows
from xrec.runs.stage import StageContext, new_run_id
from xrec.schemas import TABLES
from xrec.storage.tables import MissingTableError, Tables, rows_from

pytestmark = pytest.mark.spark

JOBS = Path(__file__).resolve().parent.parent / "jobs"
SOURCES = ("als", "popularity", "gru")
RANKING = Ranking(sources=SOURCES, weight_parts=4, fusion_constant=20.0)
CANDIDATES = RANKED
TARGETS = TABLES["targets"].columns
SCOPES = ("touched", "home")
NUM_USERS, NUM_ITEMS = 23, 61

Proposals = dict[tuple[str, str, int], dict[str, dict[int, int]]]
"""Of a (fold, scope, user): each source's items with their ranks."""


def random_proposals(seed: int) -> Proposals:
    drawn = random.Random(seed)
    proposals: Proposals = {}
    for fold, scope, user in itertools.product(
        ("select-1", "select-2", "test-3"), ("touched", "home"), range(NUM_USERS)
    ):
        sources = SOURCES if user % 7 else ("popularity",)
        proposals[fold, scope, user] = {
            source: {item: n for n, item in enumerate(drawn.sample(range(NUM_ITEMS), drawn.randint(3, 25)), start=1)}
            for source in sources
        }
    return proposals


def random_targets(seed: int) -> list[tuple[str, int, int, str, bool, ...]]:
    drawn = random.Random(seed)
    rows = []
    for fold, user in itertools.product(("select-1", "select-2", "test-3"), range(NUM_USERS)):
        if user % 5 == 0:
            continue
        for item in drawn.sample(range(NUM_ITEMS), drawn.randint(1, 14)):
            is_touched = drawn.random() < 0.6
            is_home = not is_touched or drawn.random() < 0.5
            rows.append((fold, user, item, "c", is_touched, is_home, True, False, False, False))
    return rows


def candidate_frame(spark: SparkSession, proposals: Proposals) -> DataFrame:
    rows = [
        (fold, source, scope, user, item, 1.0 / rank, rank)
        for (fold, scope, user), of_source in proposals.items()
        for source, ranks in of_source.items()
        for item, rank in ranks.items()
    ]
    return as_lists(spark.createDataFrame(rows, CANDIDATES))


def naive_list(of_source: dict[str, dict[int, int]], weights: dict[str, float]) -> list[tuple[int, float]]:
    scores: dict[int, float] = defaultdict(float)
    for source in ("popularity", "als", "gru"):
        weight = max(weights[source], LEAST_POPULARITY if source == "popularity" else 0.0)
        for item, rank in of_source.get(source, {}).items():
            scores[item] += weight / (20.0 + rank)
    kept = {item: float(np.float32(score)) for item, score in scores.items() if score > 0}
    return sorted(kept.items(), key=lambda pair: (-pair[1], pair[0]))


def naive_ndcg(proposals: Proposals, targets: list[tuple], scope: str, weights: dict[str, float]) -> float:
    wanted = defaultdict(set)
    for fold, user, item, _, is_touched, is_home, *_ in targets:
        if fold != "test-3" and (is_touched if scope == "touched" else is_home):
            wanted[fold, user].add(item)
    values = []
    for (fold, user), items in wanted.items():
        top = [item for item, _ in naive_list(proposals[fold, scope, user], weights)[:10]]
        found = sum(1 / np.log2(place + 2) for place, item in enumerate(top) if item in items)
        values.append(found / sum(1 / np.log2(place + 2) for place in range(min(10, len(items)))))
    return float(np.mean(values))


@pytest.mark.parametrize(("num_sources", "parts", "points"), [(1, 2, 1), (2, 10, 11), (3, 4, 15), (4, 10, 286)])
def test_the_grid_holds_every_weight_once(num_sources: int, parts: int, points: int) -> None:
    grid = weight_grid(num_sources, parts)
    assert grid.shape == (points, num_sources)
    assert len({tuple(point) for point in grid}) == points
    np.testing.assert_allclose(grid.sum(axis=1), 1.0)
    np.testing.assert_allclose(np.round(grid * parts), grid * parts)
    assert grid[0].tolist() == [1.0] + [0.0] * (num_sources - 1)


def test_the_grid_has_no_more_points_than_can_be_judged_at_once() -> None:
    for num_sources in range(1, 15):
        parts = parts_for(num_sources)
        assert 1 <= parts <= MOST_PARTS
        assert len(weight_grid(num_sources, parts)) <= MOST_POINTS


def test_the_weights_are_the_best_of_the_grid_on_the_select_folds(spark: SparkSession) -> None:
    proposals, targets = random_proposals(1), random_targets(2)
    choices = choose_weights(
        candidate_frame(spark, proposals),
        spark.createDataFrame(targets, TARGETS),
        RANKING,
        scopes=SCOPES,
        folds={"test-3": ["select-1", "select-2"]},
    )["test-3"]
    grid = [dict(zip(("popularity", "als", "gru"), point, strict=True)) for point in weight_grid(3, 4)]
    assert [choice.scope for choice in choices] == ["touched", "home"]
    for choice in choices:
        values = [naive_ndcg(proposals, targets, choice.scope, weights) for weights in grid]
        assert len({round(value, 6) for value in values}) > 5  # the weights matter in this world
        assert choice.ndcg == pytest.approx(max(values))
        assert choice.ndcg_popularity == pytest.approx(values[0])
        assert choice.weights == grid[int(np.argmax(values))]
        assert choice.selected_on == "select-1 select-2"


@pytest.mark.parametrize(("folds", "why"), [([], "no select fold"), (["select-0"], "no target in select-0")])
def test_without_evidence_popularity_serves_alone_and_it_is_said(
    spark: SparkSession, folds: list[str], why: str
) -> None:
    choices = choose_weights(
        candidate_frame(spark, random_proposals(1)),
        spark.createDataFrame(random_targets(2), TARGETS),
        RANKING,
        scopes=SCOPES,
        folds={"test-3": folds},
    )["test-3"]
    for choice in choices:
        assert choice.weights == {"popularity": 1.0, "als": 0.0, "gru": 0.0}
        assert (choice.ndcg, choice.selected_on) == (None, f"none ({why})")
    assert describe_choices(choices)["blend_home"] == f"popularity 1 (chosen on: none ({why}))"


CHOICES = [
    Choice(scope="touched", weights={"popularity": 0.25, "als": 0.75, "gru": 0.0}, selected_on="select-1", ndcg=0.2),
    Choice(scope="home", weights={"popularity": 0.0, "als": 0.5, "gru": 0.5}, selected_on="select-1", ndcg=0.1),
]


@pytest.mark.parametrize(
    ("source", "choices"), [("blend", CHOICES), ("fusion", [equal_weights(scope, SOURCES) for scope in SCOPES])]
)
def test_blended_lists_equal_a_naive_version(spark: SparkSession, source: str, choices: list[Choice]) -> None:
    proposals = random_proposals(3)
    rows = ranked_rows(blend(candidate_frame(spark, proposals), choices, RANKING, k=15, source=source)).collect()
    found = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["rank"]):
        found[row["fold"], row["scope"], row["user_idx"]].append((row["item_idx"], row["score"]))
        assert row["rank"] == len(found[row["fold"], row["scope"], row["user_idx"]])
        assert row["source"] == source
    weights = {choice.scope: dict(choice.weights) for choice in choices}
    expected = {key: naive_list(of_source, weights[key[1]])[:15] for key, of_source in proposals.items()}
    assert found == expected
    assert all(expected.values())  # a user whom only popularity knows has a list where its weight is 0


def test_choices_survive_their_table(spark: SparkSession) -> None:
    rows = rows_from(spark, "blend_weights", choice_rows(FOLD, CHOICES))
    assert read_choices(rows.orderBy(F.desc("source")), RANKING) == CHOICES


# --- the lists that go out --------------------------------------------------------------------------------------------

FOLD = "test-2024-03-01"
CATEGORY_OF = {0: "tents", 1: "tents", 2: "stoves", 3: "stoves", 4: "lamps", 5: "fuel", 6: "maps"}


def settings_at(folder: Path, *overrides: str) -> Settings:
    config = folder / "c.yaml"
    config.write_text(
        "log: {file: {path: x, format: csv}, columns: {user_id: u, item_id: i, event_ts: t}}\n"
        "catalogue: {category: [c]}\n"
        f"storage: {{root: {folder / 'warehouse'}}}\n"
        "folds: {as_of: '2024-03-01', horizon: P20D, num_select: 0}\n"
        "ranking: {sources: [popularity, als], top_k: 3}\n"
    )
    return load_settings([config], overrides)


def write_facts(spark: SparkSession, tables: Tables) -> None:
    """Users 0 and 1: the first had tents (home) and stoves (touched), the second had fuel (home) and tents (touched)."""

    def frame(name: str, rows: list[tuple]) -> DataFrame:
        return spark.createDataFrame(rows, TABLES[name].columns)

    times = [datetime(2024, 1, 1, tzinfo=timezone.utc), datetime(2024, 3, 15, tzinfo=timezone.utc)]
    events = [
        (f"e{n}", "main", "u0", "i0", "purchase", time, 1.0, 1.0, "used", None, time) for n, time in enumerate(times)
    ]
    tables.write("judged_events", frame("judged_events", events))
    items = [(f"i{n}", n, name, [name], None, True, name != "fuel") for n, name in CATEGORY_OF.items()]
    tables.write("items", frame("items", items))
    tables.write("users", frame("users", [("u0", 0), ("u1", 1), ("u2", 2)]))
    mixes = [
        (FOLD, 0, "tents", 5.0, True, True, False),
        (FOLD, 0, "stoves", 1.0, True, False, False),
        (FOLD, 1, "fuel", 5.0, True, True, False),
        (FOLD, 1, "tents", 1.0, True, False, False),
    ]
    tables.write("user_categories", frame("user_categories", mixes), fold=FOLD)
    had = [(FOLD, 0, 0, 5.0, 5, times[0], True), (FOLD, 0, 2, 1.0, 1, times[0], True)]
    had += [(FOLD, 1, 5, 5.0, 5, times[0], True), (FOLD, 1, 1, 1.0, 1, times[0], True)]
    had += [(FOLD, user, 4, 1.0, 1, times[0], True) for user in range(2, 1236)]
    had = [(*row, None, None, 0) for row in had]  # neither quantities nor prices are known
    tables.write("interactions", frame("interactions", had), fold=FOLD)
    targets = frame("targets", [(FOLD, 0, 4, "lamps", True, True, True, False, False, False)])
    tables.write("targets", targets, fold=FOLD)


PROPOSED = {
    "popularity": {("touched", 0): [4, 6], ("home", 0): [3, 4, 6], ("touched", 1): [2, 4], ("home", 1): [0, 2]},
    "als": {("touched", 0): [6, 4], ("home", 0): [6, 3], ("touched", 1): [3, 6], ("home", 1): [0, 3]},
}


def write_candidates(spark: SparkSession, tables: Tables, source: str, lists: dict[tuple[str, int], list[int]]) -> None:
    rows = [
        (FOLD, source, scope, user, item, 1.0 / rank, rank)
        for (scope, user), items in lists.items()
        for rank, item in enumerate(items, start=1)
    ]
    tables.write("candidates", as_lists(spark.createDataFrame(rows, CANDIDATES)), fold=FOLD, source=source)


def run_job(name: str, spark: SparkSession, settings: Settings) -> tuple[dict[str, str], StageContext, list[str]]:
    said: list[str] = []
    context = StageContext(spark=spark, settings=settings, run_id=new_run_id(settings), say=said.append)
    run = runpy.run_path(str(JOBS / f"{name}.py"))["run"]
    return run(context), context, said


@pytest.fixture(scope="module")
def warehouse(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Facts, candidates and blended lists of one fold, the weights half and half."""
    folder = tmp_path_factory.mktemp("ranking")
    tables = Tables(spark, settings_at(folder).storage)
    write_facts(spark, tables)
    for source, lists in PROPOSED.items():
        write_candidates(spark, tables, source, lists)
    _, _, said = run_job("blend", spark, settings_at(folder))
    assert any("popularity 1 (chosen on: none (no select fold))" in line for line in said)
    halves = [
        Choice(scope=scope, weights={"popularity": 0.5, "als": 0.5}, selected_on="x") for scope in ("touched", "home")
    ]
    tables.write("blend_weights", rows_from(spark, "blend_weights", choice_rows(FOLD, halves)))
    chosen = [
        Serving(scope=scope, model="blend", compared_with="als", selected_on="x") for scope in ("touched", "home")
    ]
    rows = [row for one in chosen for row in serving_rows(FOLD, one)]
    tables.write("serving_models", rows_from(spark, "serving_models", rows))
    write_candidates(spark, tables, "served", {key: [*items] for key, items in PROPOSED["als"].items()})
    return folder


def recommended(context: StageContext, version: int | None = None) -> dict[tuple[date, str, int], Row]:
    rows = Tables(context.spark, context.settings.storage).read("staged_recommendations", version=version).collect()
    return {(row["run_date"], row["user_id"], row["rank"]): row for row in rows}


@pytest.mark.delta
def test_recommendations_keep_their_contract(spark: SparkSession, warehouse: Path) -> None:
    figures, context, _ = run_job("recommend", spark, settings_at(warehouse))
    rows = recommended(context)
    day = date(2024, 3, 1)
    assert {key: row["item_id"] for key, row in rows.items()} == {
        (day, "u0", 1): "i6",
        (day, "u0", 2): "i4",
        (day, "u1", 1): "i3",
        (day, "u1", 2): "i6",
    }
    assert figures["run_date"] == "2024-03-01"
    assert (figures["users"], figures["rows"]) == ("2", "4")
    for row in rows.values():
        assert row["category"] == CATEGORY_OF[int(row["item_id"][1:])]
        assert row["data_version"] == context.tables.version("judged_events")
        assert row["model_version"] == f"blend@{context.tables.version('serving_models')}"
        assert row["fold"] == FOLD
        assert "candidates@" in row["versions"]
    # Rank 1 by als and 2 by popularity: als contributed most; both proposed i4 to u0, popularity first.
    assert rows[day, "u0", 1]["source"] == "als"
    assert rows[day, "u0", 2]["source"] == "popularity"
    assert rows[day, "u0", 1]["reason"] == (
        "New for you: maps. Chosen by customers whose history resembles yours (above all tents)."
    )
    assert rows[day, "u0", 2]["reason"] == "New for you: lamps. Popular: 1,234 customers chose it."
    # The heaviest category of u1 is fuel: not merchandise, so it is not named.
    assert rows[day, "u1", 1]["reason"] == "New for you: stoves. Chosen by customers whose history resembles yours."


@pytest.mark.delta
def test_the_home_scope_does_not_call_a_touched_category_new(spark: SparkSession, warehouse: Path) -> None:
    _, context, _ = run_job("recommend", spark, settings_at(warehouse, "ranking.scope=home"))
    reasons = {row["item_id"]: row["reason"] for (_, user, _), row in recommended(context).items() if user == "u0"}
    assert reasons["i3"].startswith("Beyond your usual categories: stoves. ")
    assert reasons["i6"].startswith("New for you: maps. ")


def test_a_category_that_the_user_had_long_ago_is_not_new(spark: SparkSession, warehouse: Path) -> None:
    tables = Tables(spark, settings_at(warehouse).storage)
    mixes = spark.createDataFrame([(FOLD, 0, "lamps", 9.0, False, True, True)], TABLES["user_categories"].columns)
    lists = spark.createDataFrame(
        [(0, 4, "lamps", "als"), (0, 6, "maps", "als")], "user_idx int, item_idx int, category string, source string"
    )
    facts = tables.read("interactions", fold=FOLD), mixes, tables.read("items")
    found = with_reasons(lists, *facts, as_of=None, recent_days=28.0).collect()
    reasons = {row["category"]: row["reason"] for row in found}
    assert reasons["lamps"].startswith("Beyond your usual categories: lamps. ")
    assert reasons["maps"].startswith("New for you: maps. ")


def test_a_reason_counts_who_chose_an_item_and_since_when(spark: SparkSession) -> None:
    """Item 0 was bought by three, by two of them lately; item 1 by two, by one lately; item 2 by one."""
    as_of = datetime(2024, 7, 1, tzinfo=timezone.utc)
    bought = [(0, 0, 3), (1, 0, 28), (2, 0, 29), (0, 1, 3), (1, 1, 90), (2, 2, 3)]
    interactions = spark.createDataFrame(
        [(user, item, True, as_of - timedelta(days=days)) for user, item, days in bought],
        "user_idx int, item_idx int, counting boolean, last_ts timestamp",
    )
    sources = ("recent", "popularity")
    lists = spark.createDataFrame(
        [(9, item, "c", source) for item in range(3) for source in sources],
        "user_idx int, item_idx int, category string, source string",
    )
    mixes = spark.createDataFrame([], TABLES["user_categories"].columns)
    items = spark.createDataFrame([("c", True)], "category string, recommendable boolean")

    def reasons(end: datetime | None) -> dict[tuple[int, str], str]:
        found = with_reasons(lists, interactions, mixes, items, as_of=end, recent_days=28.0).collect()
        return {(row[C.ITEM_IDX], row[C.SOURCE]): row[C.REASON].removeprefix("New for you: c. ") for row in found}

    popular = [f"Popular: {number} customers chose it." for number in (3, 2)] + ["Few customers chose it so far."]
    assert reasons(None) == {(item, source): popular[item] for item in range(3) for source in sources}
    lately = {(0, "recent"): "2 customers chose it in the last 28 days."}
    assert reasons(as_of) == reasons(None) | lately


def test_a_scope_without_lists_is_named(spark: SparkSession) -> None:
    """A fold that chooses has lists in the scope that served when they were made."""
    as_of = datetime(2024, 1, 1, tzinfo=timezone.utc)
    folds = [Fold(name=name, as_of=as_of, horizon=timedelta(days=20), purpose="select") for name in ("s-1", "s-2")]
    rows = [
        ("s-1", "als", "touched", 0, 1, 1.0, 1),
        ("s-1", "als", "home", 0, 1, 1.0, 1),
        ("s-2", "als", "touched", 0, 1, 1.0, 1),
    ]
    candidates = as_lists(spark.createDataFrame(rows, CANDIDATES))
    assert in_scope(candidates, folds, "touched").count() == 2
    assert in_scope(candidates, folds[:1], "home").count() == 1
    with pytest.raises(
        ListsError, match=r"fold 's-2' in other scopes alone, expected scope 'home'.*from candidates on"
    ):
        in_scope(candidates, folds, "home")


@pytest.mark.delta
def test_what_learns_has_lists_as_long_as_it_is_judged_by(spark: SparkSession, tmp_path: Path) -> None:
    """Also where fewer places are shown: the sources that it is compared with have so many."""
    settings = settings_at(tmp_path, "ranking.top_k=2", "evaluation.ks=[2]")
    tables = Tables(spark, settings.storage)
    write_facts(spark, tables)
    for source in ("popularity", "als"):
        write_candidates(spark, tables, source, {("touched", 0): [*range(15)]})
    run_job("blend", spark, settings)
    rows = Tables(spark, settings.storage).read("candidates").where("source in ('blend', 'fusion')").collect()
    assert [len(row["items"]) for row in rows] == [CUT_OFF, CUT_OFF]


@pytest.mark.delta
def test_a_rerun_replaces_its_date_only_and_the_old_version_stays_readable(
    spark: SparkSession, warehouse: Path
) -> None:
    _, context, _ = run_job("recommend", spark, settings_at(warehouse))
    tables = Tables(spark, context.settings.storage)
    before = tables.version("staged_recommendations")
    yesterday = tables.read("staged_recommendations").drop("versions").withColumn("run_date", F.lit(date(2024, 2, 29)))
    tables.write("staged_recommendations", yesterday, run_date="2024-02-29")
    _, context, _ = run_job("recommend", spark, settings_at(warehouse, "ranking.top_k=1"))
    rows = recommended(context)
    assert sorted((str(day), rank) for day, user, rank in rows if user == "u0") == [
        ("2024-02-29", 1),
        ("2024-02-29", 2),
        ("2024-03-01", 1),
    ]
    old = recommended(context, version=before)
    assert sorted(rank for _, user, rank in old if user == "u0") == [1, 2]


LISTS = "user_idx int, item_idx int, score float, rank int, source string"


@pytest.mark.delta
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((0, 2, 1.0, 1, "als"), "user_idx 0 got item_idx 2 of category 'stoves' .already had it"),
        ((0, 3, 1.0, 1, "als"), "user_idx 0 got item_idx 3 of category 'stoves' .touched category"),
        ((0, 5, 1.0, 1, "als"), "user_idx 0 got item_idx 5 of category 'fuel' .never recommended"),
        ((0, 99, 1.0, 1, "als"), "user_idx 0 got item_idx 99 of category 'None' .never recommended"),
        ((0, 6, 1.0, 1, None), "user_idx 0 is served item_idx 6, which no source of the model proposes"),
    ],
)
def test_what_is_forbidden_is_found(spark: SparkSession, warehouse: Path, row: tuple, message: str) -> None:
    tables = Tables(spark, settings_at(warehouse).storage)
    facts = [tables.read("items"), tables.read("interactions"), tables.read("user_categories")]
    good = [(0, 4, 1.0, 1, "als"), (1, 3, 1.0, 1, "popularity")]
    check_lists(spark.createDataFrame(good, LISTS), *facts, scope="touched")
    with pytest.raises((EligibilityError, ListsError), match=message):
        check_lists(spark.createDataFrame([*good, row], LISTS), *facts, scope="touched")


@pytest.mark.delta
def test_what_is_forbidden_never_leaves(spark: SparkSession, warehouse: Path) -> None:
    """A candidate that the contract forbids is put into the table: the job writes nothing."""
    settings = settings_at(warehouse)
    tables = Tables(spark, settings.storage)
    run_job("recommend", spark, settings)
    before = tables.version("staged_recommendations")
    write_candidates(spark, tables, "served", {("touched", 0): [6, 2]})
    with pytest.raises(EligibilityError, match="already had it"):
        run_job("recommend", spark, settings)
    write_candidates(spark, tables, "served", {("home", 0): [6]})
    with pytest.raises(ListsError, match=f"found no rows of source 'served' in fold '{FOLD}', scope 'touched'"):
        run_job("recommend", spark, settings)
    write_candidates(spark, tables, "served", PROPOSED["als"])
    assert tables.version("staged_recommendations") == before


@pytest.mark.delta
def test_lists_are_published_only_through_the_gate_and_can_be_rolled_back(spark: SparkSession, warehouse: Path) -> None:
    """A user to whom popularity proposes something has no list: the gate refuses, and lets out what a setting allows."""
    settings = settings_at(warehouse, "publish.min_full_share=0")
    tables = Tables(spark, settings.storage)
    run_job("recommend", spark, settings)
    possible = {("touched", user): [2, 4, 6] for user in range(3)}
    write_candidates(spark, tables, "popularity", possible)
    with pytest.raises(GateError, match=r"publish.min_user_share: found 2 of 3 users .* at least 95.0%") as refused:
        run_job("publish", spark, settings)
    assert "the lists of 2024-03-01 are not published" in str(refused.value)
    assert not tables.exists("recommendations")
    allowed = settings_at(warehouse, "publish.min_full_share=0", "publish.min_user_share=0")
    figures, _, _ = run_job("publish", spark, allowed)
    assert figures["published"] == "2024-03-01 as version 0"
    assert figures["not_below_popularity"].startswith("not asked: "), "what is not checked is said"
    first = lists_in(spark, settings)
    assert len(first) == 4
    write_candidates(spark, tables, "served", {("touched", 0): [4, 6], ("touched", 1): [3, 6]})
    run_job("recommend", spark, settings)
    with pytest.raises(
        GateError, match=r"publish.min_full_share: found 0 of 2 lists are 3 long.* expected at least 100.0%"
    ):
        run_job("publish", spark, settings_at(warehouse, "publish.min_full_share=1", "publish.min_user_share=0"))
    assert lists_in(spark, settings) == first
    run_job("publish", spark, allowed)
    assert lists_in(spark, settings) != first
    for source, lists in (("served", PROPOSED["als"]), ("popularity", PROPOSED["popularity"])):
        write_candidates(spark, tables, source, lists)
    assert [version.number for version in tables.versions("recommendations")] == [1, 0]
    assert tables.restore("recommendations", 0) == 2
    assert lists_in(spark, settings) == first
    with pytest.raises(MissingTableError, match="found versions 0 to 2, expected 9 among them"):
        tables.restore("recommendations", 9)


@pytest.mark.delta
def test_rankers_of_an_earlier_run_do_not_stay(spark: SparkSession, warehouse: Path) -> None:
    settings = settings_at(warehouse)
    tables = Tables(spark, settings.storage)
    write_candidates(spark, tables, "trees", {("touched", 0): [6]})
    figures, _, _ = run_job("train_rankers", spark, settings)
    assert figures == {"rankers": "none (no select fold to learn from)"}
    left = {row[0] for row in Tables(spark, settings.storage).read("candidates").select(C.SOURCE).distinct().collect()}
    assert "trees" not in left
    assert {"popularity", "als"} <= left


@pytest.mark.delta
def test_what_publish_lets_out_is_what_was_chosen_for_whom_it_is_allowed(spark: SparkSession, warehouse: Path) -> None:
    """Staged lists that are another model's, of another fold or scope, or of who opted out since, do not leave."""
    settings = settings_at(warehouse, "publish.min_full_share=0", "publish.min_user_share=0")
    tables = Tables(spark, settings.storage)
    run_job("recommend", spark, settings)
    good = tables.read("staged_recommendations", run_date="2024-03-01").drop("versions").localCheckpoint()
    before = Tables(spark, settings.storage).version("recommendations")
    wrong = {
        r"found a list of fold 'test-9', .*expected 'f' and 'blend'": good.withColumn(C.FOLD, F.lit("test-9")),
        r"model 'als@0', expected": good.withColumn(C.MODEL_VERSION, F.lit("als@0")),
        r"got item_idx 3 of category 'stoves' .touched category": good.withColumn(
            C.ITEM_ID, F.when((F.col(C.USER_ID) == "u0") & (F.col(C.RANK) == 1), "i3").otherwise(F.col(C.ITEM_ID))
        ),
    }
    for message, rows in wrong.items():
        tables.write("staged_recommendations", rows, run_date="2024-03-01")
        with pytest.raises((ListsError, EligibilityError), match=message.replace("'f'", f"'{FOLD}'")):
            run_job("publish", spark, settings)
    assert Tables(spark, settings.storage).version("recommendations") == before
    tables.write("staged_recommendations", good, run_date="2024-03-01")
    tables.write("opt_outs", spark.createDataFrame([("", "u0")], "platform string, user_id string"))
    run_job("publish", spark, settings)
    assert {user for user, _, _ in lists_in(spark, settings)} == {"u1"}
    tables.write("opt_outs", spark.createDataFrame([], "platform string, user_id string"))


def lists_in(spark: SparkSession, settings: Settings) -> set[tuple[str, int, str]]:
    rows = Tables(spark, settings.storage).read("recommendations").collect()
    return {(row[C.USER_ID], row[C.RANK], row[C.ITEM_ID]) for row in rows}
