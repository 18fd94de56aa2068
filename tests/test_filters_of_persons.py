"""Filters meet the users as the lists know them: by person, whatever platform a feed names; and nothing staged escapes them."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from test_filters import filters_at, write_feeds
from test_ranking import run_job, warehouse  # noqa: F401
from xrec import columns as C
from xrec.config import Settings
from xrec.ingest.feeds import load_feeds
from xrec.ingest.reader import InputError
from xrec.ranking.eligibility import EligibilityError
from xrec.runs.filters import filters_of
from xrec.runs.stage import StageContext
from xrec.schemas import TABLES
from xrec.storage.tables import Tables

pytestmark = [pytest.mark.spark, pytest.mark.delta, pytest.mark.slow]

KEY = b"0123456789abcdef0123456789abcdef"
AGES = "platform,customer,years\nweb,anna,40\nstore,17,40.0\nweb,ben,16\nweb,carl,20\nstore,18,30\n"
BLOCKED = "platform,customer,sku\nstore,17,i1\n,P-2,i2\nstore,99,i1\nweb,ben,gone\n"


def two_platforms(folder: Path) -> Settings:
    """A web shop and a store; ages by platform, tiers (coarse), blocked pairs of users and of persons."""

    def feed(name: str, **columns: Any) -> dict[str, Any]:
        file = {"path": str(folder / f"{name}.csv"), "format": "csv"}
        return {"file": file, "user_id": "customer", "platform": "platform", **columns}

    return Settings.model_validate(
        {
            "storage": {"root": str(folder / "warehouse")},
            "log": {"columns": {"user_id": "u", "item_id": "i", "event_ts": "t"}, "file": {"format": "csv"}},
            "platforms": {"web": {"file": {"path": "w.csv"}}, "store": {"file": {"path": "s.csv"}}},
            "catalogue": {"category": ["c"]},
            "users": feed("tiers", attributes={"tier": {"column": "tier"}}),
            "filters": {
                "users": feed("ages", attributes={"age": {"column": "years", "type": "number"}}),
                "blocked": feed("blocked", item_id="sku"),
                "rules": {"adult": "user.age >= 18", "member": "user.tier = 'gold'"},
            },
        }
    )


def load(tables: Tables, settings: Settings) -> None:
    for name, rows in load_feeds(tables.spark, settings, None).items():
        tables.write(name, rows)


def test_users_of_feeds_become_the_persons_of_the_lists(spark: SparkSession, tmp_path: Path) -> None:
    settings = two_platforms(tmp_path)
    tables = Tables(spark, settings.storage)
    (tmp_path / "ages.csv").write_text(AGES)
    (tmp_path / "blocked.csv").write_text(BLOCKED)
    load(tables, settings)
    start, later = (datetime(year, 1, 1, tzinfo=timezone.utc) for year in (1900, 2024))
    identities = [("web", "anna", "P-1", start), ("store", "17", "P-0", start), ("store", "17", "P-1", later)]
    identities += [("web", "carl", "P-2", start), ("store", "18", "P-2", start)]
    rows: dict[str, list[tuple[Any, ...]]] = {
        "identities": identities,
        "users": [("P-0", 0), ("P-1", 1), ("P-2", 2), ("web:ben", 3)],
        "items": [(f"i{n}", n, "c", ["c"], None, True, True) for n in (1, 2)],
        "user_attributes": [("", "P-1", "tier", "gold"), ("web", "ben", "tier", "new")],
    }
    for name, values in rows.items():
        tables.write(name, spark.createDataFrame(values, TABLES[name].columns))
    filters = filters_of(StageContext(spark=spark, settings=settings, run_id="r"))
    assert filters is not None
    found = {row[C.USER_IDX]: (row["user"]["age"], row["user"]["tier"]) for row in filters.users.collect()}
    assert found == {
        0: (None, None),  # the card is another person's by now
        1: (40.0, "gold"),
        2: (None, None),  # 20 on the web and 30 in the store: nobody knows
        3: (16.0, "new"),
    }
    assert filters.blocked is not None
    pairs = sorted((row[C.USER_IDX], row[C.ITEM_IDX]) for row in filters.blocked.collect())
    assert pairs == [(0, 1), (1, 1), (2, 2)], "for every person who the user ever was"


@pytest.mark.parametrize(
    ("ages", "message"),
    [
        ("web,anna,forty\n", r"found 'forty' in .*ages.csv .*expected a number with a decimal point in column 'years'"),
        ("web,anna,40\nweb,anna,41\n", r"found a user as .* expected one row each"),
        ("till,anna,40\n", r"found 'till' in .* expected one of the platforms web, store in column 'platform'"),
        ("web,anna,40,9\n", r"expected the well-formed rows of a table"),
    ],
    ids=["no number", "two values", "no platform", "malformed"],
)
def test_a_bad_feed_of_users_names_no_user(spark: SparkSession, tmp_path: Path, ages: str, message: str) -> None:
    (tmp_path / "ages.csv").write_text("platform,customer,years\n" + ages)
    (tmp_path / "blocked.csv").write_text(BLOCKED)
    with pytest.raises(InputError, match=message) as refused:
        load_feeds(spark, two_platforms(tmp_path), KEY)
    assert "anna" not in str(refused.value)


def test_a_backtest_that_was_not_filtered_is_staged_and_not_published(
    spark: SparkSession,
    warehouse: Path,  # noqa: F811
) -> None:
    settings = filters_at(warehouse, "filters.backtests=false")
    tables = Tables(spark, settings.storage)
    write_feeds(warehouse, stock="i3,yes\ni4,yes\ni6,no\n")
    load(tables, settings)
    run_job("recommend", spark, settings)
    with pytest.raises(EligibilityError, match=r"item.in_stock = False.*Fold 'test-2024-03-01' is a backtest"):
        run_job("publish", spark, settings)
    assert not tables.exists("recommendations")


def test_what_is_written_into_the_staged_lists_is_not_published(spark: SparkSession, warehouse: Path) -> None:  # noqa: F811
    """An item that no table knows, put where lists wait."""
    settings = filters_at(warehouse)
    tables = Tables(spark, settings.storage)
    write_feeds(warehouse)
    load(tables, settings)
    run_job("recommend", spark, settings)
    run_job("publish", spark, settings)
    before = tables.version("recommendations")
    staged = Tables(spark, settings.storage).read("staged_recommendations").drop(C.VERSIONS)
    rows = [row.asDict() | ({C.ITEM_ID: "smuggled"} if row[C.RANK] == 1 else {}) for row in staged.collect()]
    tables.write("staged_recommendations", spark.createDataFrame(rows, staged.schema), run_date="2024-03-01")
    with pytest.raises(EligibilityError, match=r"got item_idx None \(filters.rules.stock.*item.in_stock = unknown"):
        run_job("publish", spark, settings)
    assert tables.version("recommendations") == before
