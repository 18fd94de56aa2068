"""Delta tables: a write replaces exactly what it owns or nothing at all; a read sees one version."""

from __future__ import annotations

import dataclasses
import datetime
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from deltalake import DeltaTable
from pyspark.errors import PySparkAttributeError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Storage
from xrec.schemas import TABLES, ContractError
from xrec.sequence.loader import BLOCK_ROWS
from xrec.storage.tables import MissingTableError, Tables, read_table_version, rows_from

pytestmark = [pytest.mark.spark, pytest.mark.delta]


@pytest.fixture(params=["path", "catalog"])
def storage(request: pytest.FixtureRequest, spark: SparkSession, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "path":
        yield Storage(root=str(tmp_path / "warehouse"))
        return
    spark.sql("create schema if not exists xrec_tests")
    yield Storage(root=None, catalog="spark_catalog.xrec_tests", artifacts=str(tmp_path))
    spark.sql("drop schema xrec_tests cascade")


@pytest.fixture
def tables(spark: SparkSession, tmp_path: Path) -> Tables:
    return Tables(spark, Storage(root=str(tmp_path / "warehouse")))


def mixes(spark: SparkSession, fold: str, weights: list[float]) -> DataFrame:
    """Rows of ``user_categories``: one a weight, of users 0, 1, 2 ..."""
    rows = [(fold, user, "tents", weight, True, False, False) for user, weight in enumerate(weights)]
    return spark.createDataFrame(rows, TABLES["user_categories"].columns)


def blend(spark: SparkSession, source: str) -> DataFrame:
    row = {"fold": "f", "scope": "touched", "source": source, "weight": 1.0}
    row |= {"selected_on": "s", "ndcg": 0.1, "ndcg_popularity": 0.1}
    return rows_from(spark, "blend_weights", [row])


def contents(rows: DataFrame) -> list[tuple[object, ...]]:
    return sorted((row[C.FOLD], row[C.USER_IDX], row[C.WEIGHT]) for row in rows.collect())


def test_no_rows_in_the_place_of_none_are_the_version_that_is_there(spark: SparkSession, storage: Storage) -> None:
    """Delta makes no commit of them; what it tells of is another table's, or none at all in a session that wrote nothing yet."""
    tables = Tables(spark, storage)
    tables.write("user_categories", mixes(spark, "test-1", [1.0]), fold="test-1")
    for weight in (1.0, 2.0, 3.0):
        tables.write("blend_weights", blend(spark, f"source-{weight}"))
    assert tables.write("user_categories", mixes(spark, "test-2", []), fold="test-2") == 0
    assert tables.written_versions["user_categories"] == 0
    fresh = Tables(spark.newSession(), storage)
    assert fresh.write("user_categories", mixes(fresh.spark, "test-2", []), fold="test-2") == 0


def test_a_write_replaces_exactly_its_folds_and_twice_is_once(spark: SparkSession, storage: Storage) -> None:
    tables = Tables(spark, storage)
    assert read_table_version(tables, "user_categories") is None
    both = mixes(spark, "test-1", [1.0, 2.0]).unionByName(mixes(spark, "select-1", [5.0]))
    tables.write("user_categories", both, fold=["test-1", "select-1"])
    once = contents(tables.read("user_categories"))
    tables.write("user_categories", both, fold=["test-1", "select-1"])
    assert contents(tables.read("user_categories")) == once

    version = tables.write("user_categories", mixes(spark, "test-1", [9.0]), fold="test-1")
    assert tables.written_versions == {"user_categories": version}
    assert read_table_version(tables, "user_categories") == version
    assert contents(tables.read("user_categories")) == [("select-1", 0, 5.0), ("test-1", 0, 9.0)]
    assert contents(tables.read("user_categories", fold="select-1")) == [("select-1", 0, 5.0)]
    # The old version stays readable, also without Spark.
    assert contents(tables.read("user_categories", version=version - 1)) == once
    without_spark = DeltaTable(tables.path("user_categories").removeprefix("file:"))
    assert without_spark.version() == version
    assert without_spark.metadata().partition_columns == ["fold"]
    assert without_spark.metadata().configuration["delta.enableDeletionVectors"] == "false"
    assert without_spark.metadata().description == f"one row is {TABLES['user_categories'].row}"


def test_what_a_killed_first_write_left_is_no_table(spark: SparkSession, storage: Storage) -> None:
    tables = Tables(spark, storage)
    rows = mixes(spark, "f", [1.0, 2.0])
    root = str(spark.conf.get("spark.sql.warehouse.dir")).removeprefix("file:")
    location = f"{root}/xrec_tests.db/user_categories" if storage.catalog else tables.location("user_categories")
    rows.write.parquet(f"{location}/fold=f")
    Path(location, "_delta_log").mkdir()
    assert read_table_version(tables, "user_categories") is None
    tables.write("user_categories", rows, fold="f")
    assert contents(tables.read("user_categories")) == [("f", 0, 1.0), ("f", 1, 2.0)]


def test_a_table_without_owners_is_replaced_whole(spark: SparkSession, storage: Storage) -> None:
    tables = Tables(spark, storage)
    tables.write("blend_weights", blend(spark, "als"))
    tables.write("blend_weights", blend(spark, "gru"))
    assert [row[C.SOURCE] for row in tables.read("blend_weights").collect()] == ["gru"]


def test_a_table_that_another_run_wrote_meanwhile_is_not_replaced(spark: SparkSession, tables: Tables) -> None:
    def users(*ids: str) -> DataFrame:
        return spark.createDataFrame([(user, place) for place, user in enumerate(ids)], "user_id string, user_idx int")

    tables.write("users", users("a"))
    one, other = Tables(spark, tables.storage), Tables(spark, tables.storage)
    assert one.read("users").count() == other.read("users").count() == 1
    spark.sql(
        f"alter table delta.`{tables.location('users')}` set tblproperties ('delta.logRetentionDuration' = 'interval 9 days')"
    )
    one.write("users", users("a", "b"))
    with pytest.raises(ContractError, match=r"'users' at .* found version 2, expected 0, .* run the stage again"):
        other.write("users", users("a", "c"))
    assert [row["user_id"] for row in tables.read("users").orderBy("user_idx").collect()] == ["a", "b"]


def test_a_table_of_an_earlier_version_takes_the_new_columns(spark: SparkSession, storage: Storage) -> None:
    tables = Tables(spark, storage)
    earlier = blend(spark, "als").drop("ndcg_popularity").withColumn("versions", F.lit(""))
    if storage.catalog:
        earlier.writeTo(tables.location("blend_weights")).using("delta").create()
    else:
        earlier.write.format("delta").save(tables.location("blend_weights"))
    tables.write("blend_weights", blend(spark, "gru"))
    rows = tables.read("blend_weights")
    assert [(row["source"], row["ndcg_popularity"]) for row in rows.collect()] == [("gru", 0.1)]


def test_a_table_whose_rows_were_others_is_refused_until_it_is_removed(spark: SparkSession, tables: Tables) -> None:
    before = spark.createDataFrame(
        [("f", "als", 1, 4, "")], "fold string, source string, user_idx int, item_idx int, versions string"
    )
    before.write.format("delta").mode("overwrite").partitionBy("fold", "source").save(tables.location("candidates"))
    lists = spark.createDataFrame([("f", "als", "touched", 1, [4], [1.0])], TABLES["candidates"].columns)
    for use in (lambda: tables.read("candidates"), lambda: tables.write("candidates", lists, fold="f", source="als")):
        with pytest.raises(ContractError, match=r"earlier version of xrec: found column 'item_idx'.*remove the table"):
            use()
    shutil.rmtree(tables.location("candidates"))
    tables.write("candidates", lists, fold="f", source="als")
    assert tables.read("candidates").count() == 1


def test_a_run_date_is_replaced_alone(spark: SparkSession, tables: Tables) -> None:
    def lists(day: int, item: str) -> DataFrame:
        values = {name.name: None for name in TABLES["recommendations"].schema} | {
            "run_date": datetime.date(2024, 7, day), "user_id": "007", "rank": 1, "item_id": item
        }  # fmt: skip
        return rows_from(spark, "recommendations", [values])

    for day, item in ((1, "a"), (2, "b"), (1, "c")):
        tables.write("recommendations", lists(day, item), run_date=f"2024-07-0{day}")
    found = {row["run_date"].day: row["item_id"] for row in tables.read("recommendations").collect()}
    assert found == {1: "c", 2: "b"}


def test_reads_pin_a_version_and_rows_carry_it(spark: SparkSession, tables: Tables) -> None:
    tables.write("user_categories", mixes(spark, "f", [1.0]), fold="f")
    reader = Tables(spark, tables.storage)
    before = reader.read("user_categories")
    version = reader.read_versions["user_categories"]
    tables.write("user_categories", mixes(spark, "f", [2.0]), fold="f")
    assert contents(before) == contents(reader.read("user_categories")) == [("f", 0, 1.0)]
    assert contents(Tables(spark, tables.storage).read("user_categories")) == [("f", 0, 2.0)]
    reader.write("blend_weights", blend(spark, "als"))
    stamped = reader.read("blend_weights").first()
    assert stamped is not None
    assert stamped[C.VERSIONS] == f"user_categories@{version}"


def test_a_stage_may_extend_the_table_that_it_reads(spark: SparkSession, tables: Tables) -> None:
    users = "user_id string, user_idx int"
    tables.write("users", spark.createDataFrame([("a", 0)], users))
    older = tables.read("users").drop(C.VERSIONS)
    tables.write("users", older.unionByName(spark.createDataFrame([("b", 1)], users)))
    assert {row[C.USER_ID] for row in tables.read("users").collect()} == {"a", "b"}


def test_broken_contracts_raise_and_write_nothing(spark: SparkSession, tables: Tables) -> None:
    good = mixes(spark, "f", [1.0])
    version = tables.write("user_categories", good, fold="f")
    one_row = f"table 'user_categories' (one row is {TABLES['user_categories'].row})"
    broken = {
        f"{one_row}: column 'home' is missing": good.drop("home"),
        f"{one_row}: column 'extra' is not in the contract": good.withColumn("extra", F.lit(1)),
        f"{one_row}: column 'weight' is float, expected double": good.withColumn("weight", F.lit(1.0).cast("float")),
        f"{one_row}: key {{'fold': 'f', 'user_idx': 0, 'category': 'tents'}} occurs 2 times, expected exactly one row": (
            good.unionByName(good)
        ),
        f"{one_row}: key {{'fold': 'f', 'user_idx': 0, 'category': None}} has a null, expected exactly one row": (
            good.withColumn("category", F.lit(None).cast("string"))
        ),
        "table 'user_categories': column 'fold' is 'g', this write owns ['f']": mixes(spark, "g", [1.0]),
    }
    for message, rows in broken.items():
        with pytest.raises(ContractError) as error:
            tables.write("user_categories", rows, fold="f")
        assert str(error.value) == message
    with pytest.raises(ContractError, match=r"found owners \[\], expected \['fold'\]"):
        tables.write("user_categories", good)
    with pytest.raises(ContractError, match="column 'fold': found nothing, expected at least one value"):
        tables.write("user_categories", good.limit(0), fold=[])
    assert tables.version("user_categories") == version


@pytest.mark.parametrize("value", ["x' or '1'='1", "a b", "", "fold;", "ü", "a\n"])
def test_values_that_could_be_sql_are_refused(spark: SparkSession, tables: Tables, value: str) -> None:
    with pytest.raises(
        ContractError, match=r"column 'fold': found .*, expected letters, digits, '\.', '_', ':' or '-'"
    ):
        tables.write("user_categories", mixes(spark, value, [1.0]), fold=value)
    assert read_table_version(tables, "user_categories") is None, "refused, but the empty table was made"


def test_a_missing_table_names_the_stage_that_makes_it(tables: Tables) -> None:
    with pytest.raises(MissingTableError) as error:
        tables.read("vectors")
    assert str(error.value) == (
        f"table 'vectors' not found at {tables.storage.root}/vectors: it is made by the stage "
        "train_als (als), make_item_vectors (word2vec, text_svd, file), load_vectors (gru, transformer); "
        "run ./spark-submit.sh jobs/pipeline.py --only train_als with the same settings first"
    )


def test_a_missing_column_of_a_driver_row_is_an_error(spark: SparkSession) -> None:
    with pytest.raises(KeyError):
        rows_from(spark, "blend_weights", [{"scope": "touched"}])


def test_old_files_go_also_where_the_platform_hides_the_spark_context(monkeypatch: pytest.MonkeyPatch) -> None:
    class Connected:
        conf = MagicMock()

        @property
        def sparkContext(self) -> None:  # noqa: N802
            raise PySparkAttributeError("sparkContext is not supported")

    spark: Any = Connected()
    tables, table = Tables(spark, MagicMock()), MagicMock()
    monkeypatch.setattr(tables, "_delta_table", {"events": table}.__getitem__)
    tables.vacuum("events")
    table.vacuum.assert_called_once_with()


def test_files_of_windows_have_so_many_rows_and_the_same_ones_in_every_write(
    spark: SparkSession, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write makes the table, the second replaces its fold; a training holds a file's rows at once."""
    assert TABLES["sequences"].rows_a_file == BLOCK_ROWS
    monkeypatch.setitem(TABLES, "sequences", dataclasses.replace(TABLES["sequences"], rows_a_file=5))
    tables = Tables(spark, storage)
    row = ("f", "train", 0, 1, [1], [1.0], [1], [0], [0], 1.0)
    rows = [(*row[:3], user, *row[3:]) for user in range(12)]
    written = []
    for seed in (1, 2):
        windows = spark.createDataFrame(rows, TABLES["sequences"].columns).repartition(4).orderBy(F.rand(seed))
        tables.write("sequences", windows, fold="f")
        found = tables.read("sequences").select("user_idx", F.input_file_name()).collect()
        files: dict[str, set[int]] = {}
        for user, file in found:
            files.setdefault(file, set()).add(user)
        written.append(sorted(map(sorted, files.values())))
    assert written[0] == written[1] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert spark.conf.get("spark.sql.files.maxRecordsPerFile") == "0"
