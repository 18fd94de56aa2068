"""Every source obeys the filters in every scope: its lists are those of all items less what is forbidden, as long as can be."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from test_generators import Staged, facts_of, local, stage
from world import make_world
from xrec import columns as C
from xrec.config import Feedback, Filters, Settings
from xrec.config.ranking import Source
from xrec.evaluation.folds import Fold
from xrec.generators.sources import GENERATORS, candidates_of, users_of_folds
from xrec.ranking.filters import ListFilters, eligible_of_folds
from xrec.ranking.rules import rules_of

pytestmark = [pytest.mark.spark, pytest.mark.slow]  # every source in every scope: minutes

SOURCES = sorted({*get_args(Source), *GENERATORS})
SCOPES = ("touched", "home", "all")
K, ALL = 12, 1000
RULES = {"stock": "item.in_stock", "age": "item.min_age is null or item.min_age <= user.age"}
RERANKED = ("popular_in_category",)
"""Its scores are ranks among what may be recommended tonight."""


class Held:
    """Tables of one fold that lie in memory."""

    def __init__(self, rows: dict[str, DataFrame]) -> None:
        self.rows = rows

    def read(self, name: str, **owners: str) -> DataFrame:
        return self.rows[name]


class Shop:
    """The known-answer world on the night of its fold, with a feed: stock, ages, blocked pairs."""

    def __init__(self, spark: SparkSession, staged: Staged, num_users: int) -> None:
        drawn = random.Random(4)
        facts = facts_of(staged)
        self.items, self.had, self.excluded = facts["items"], facts["had"], facts["excluded"]
        users = sorted(self.had)[:num_users]
        first_of = {item["category"]: idx for idx, item in sorted(self.items.items(), reverse=True)}
        # One item of each category is for all, so that no category is gone.
        self.of_item = {
            idx: (True, None)
            if idx in first_of.values()
            else (drawn.random() < 0.7, drawn.choice([None, None, 16.0, 18.0]))
            for idx in self.items
        }
        self.age = {user: drawn.choice([12.0, 17.0, 40.0, None]) for user in users}
        self.blocked = {(user, item) for user in users for item in drawn.sample(sorted(self.items), 15)}
        filters = Filters(rules=RULES)
        self.filters = ListFilters(
            filters=filters,
            rules=rules_of(filters),
            items=frame(
                spark,
                [(idx, row) for idx, row in self.of_item.items()],
                "item struct<in_stock: boolean, min_age: double>",
            ),
            users=frame(
                spark, [(user, (age,)) for user, age in self.age.items()], "user struct<age: double>", C.USER_IDX
            ),
            blocked=frame(spark, sorted(self.blocked), "item_idx int", C.USER_IDX),
        )
        self.fold = Fold(name=staged.fold.name, purpose="serve", as_of=staged.fold.as_of, horizon=staged.fold.horizon)
        of_users = F.col(C.USER_IDX).isin(users)
        labelled = staged.items.withColumns(
            {"label": F.concat_ws(" ", "category", "item_id"), "category_path": F.array("category")}
        )
        self.tables: Any = Held(
            {
                "items": local(labelled),
                "interactions": local(staged.interactions.where(of_users)),
                "user_categories": local(staged.user_categories.where(of_users)),
                "training_events": local(staged.training_events.where(of_users)),
                "vectors": vectors_of(spark, staged.fold.name, users, sorted(self.items)),
            }
        )

        self.proposing = {filtered: self._propose(filtered=filtered) for filtered in (False, True)}

    def _propose(self, *, filtered: bool) -> tuple[DataFrame, DataFrame]:
        """Users and items, computed once for all sources."""
        filters = self.filters if filtered else None
        eligible = eligible_of_folds(self.tables.read("items"), [self.fold], filters)
        with users_of_folds(self.tables, eligible, dict.fromkeys(eligible, SCOPES), Feedback(), filters) as users:
            return local(users[self.fold]), local(eligible[self.fold])

    def allowed(self, scope: str, user: int) -> set[int]:
        """By the rules, by hand."""
        had, excluded = (set(), set()) if scope == "all" else (self.had[user], self.excluded[scope][user])
        return {
            idx
            for idx, (in_stock, min_age) in self.of_item.items()
            if self.items[idx]["recommendable"]
            and idx not in had
            and self.items[idx]["category"] not in excluded
            and (user, idx) not in self.blocked
            and in_stock
            and (min_age is None or (self.age[user] is not None and min_age <= self.age[user]))
        }


def frame(spark: SparkSession, rows: list[tuple[Any, ...]], column: str, key: str = C.ITEM_IDX) -> DataFrame:
    return spark.createDataFrame(rows, f"{key} int, {column}")


def vectors_of(spark: SparkSession, fold: str, users: list[int], items: list[int]) -> DataFrame:
    drawn = np.random.default_rng(0)
    rows = [
        (fold, model, kind, idx, drawn.normal(size=4).tolist())
        for model in ("als", "gru", "transformer")
        for kind, found in (("user", users), ("item", items))
        for idx in found
    ]
    return spark.createDataFrame(rows, "fold string, model string, kind string, idx int, vector array<float>")


def settings_of(folder: Path, k: int, **catalogue: Any) -> Settings:
    return Settings.model_validate(
        {
            "storage": {"root": str(folder)},
            "log": {
                "file": {"path": "x", "format": "csv"},
                "columns": {"user_id": "u", "item_id": "i", "event_ts": "t"},
            },
            "catalogue": {"category": ["c"], **catalogue},
            "ranking": {"candidates_per_source": k, "top_k": 5, "tile_items": 50},
            "evaluation": {"ks": [k]},
        }
    )


def lists_of(shop: Shop, staged: Staged, source: str, *, filtered: bool) -> dict[tuple[str, int], list[int]]:
    """Each (scope, user)'s items: his best K, or without filters all of them."""
    settings = settings_of(Path(staged.checkpoints), K if filtered else ALL)
    users, eligible = shop.proposing[filtered]
    given = {shop.fold: users}, {shop.fold: eligible}
    rows = candidates_of(source, shop.tables, *given, settings, staged.folder).collect()
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    for row in rows:
        found[row[C.SCOPE], row[C.USER_IDX]] = row[C.ITEMS]
    return found


def test_content_knows_no_item_that_the_log_names_only_later(shop: Shop, staged: Staged) -> None:
    """Where the log is the catalogue; a file says of no item since when it is sold."""
    users, eligible = shop.proposing[False]
    file = {"path": "items.csv", "format": "csv"}
    proposed = {}
    for place, catalogue in {"log": {}, "file": {"file": file, "item_id": "i"}}.items():
        settings = settings_of(Path(staged.checkpoints), ALL, **catalogue)
        rows = candidates_of("content", shop.tables, {shop.fold: users}, {shop.fold: eligible}, settings, staged.folder)
        proposed[place] = {item for row in rows.collect() for item in row[C.ITEMS]}
    had = {row[C.ITEM_IDX] for row in shop.tables.read("interactions").collect()}
    assert proposed["log"] == proposed["file"] & had
    assert proposed["log"] < proposed["file"]


@pytest.fixture(scope="module")
def staged(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Staged:
    return stage(spark, make_world(seed=0), tmp_path_factory.mktemp("filtered"))


@pytest.fixture(scope="module")
def shop(spark: SparkSession, staged: Staged) -> Shop:
    return Shop(spark, staged, 60)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_obeys_and_loses_nothing_else(shop: Shop, staged: Staged, source: str) -> None:
    every = lists_of(shop, staged, source, filtered=False)
    found = lists_of(shop, staged, source, filtered=True)
    assert {scope for scope, _ in found} == set(SCOPES)
    num_lost = 0
    for (scope, user), items in every.items():
        allowed = shop.allowed(scope, user)
        kept = [item for item in items if item in allowed]
        assert set(found[scope, user]) <= allowed
        num_lost += len(items) - len(kept)
        if source in RERANKED:
            assert len(found[scope, user]) == min(K, len(kept))
        else:
            assert found[scope, user] == kept[:K]
    assert num_lost > len(every), "there was something to forbid"
