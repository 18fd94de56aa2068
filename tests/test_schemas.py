"""The contracts agree with themselves and with the column names, and a type is never changed silently."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.schemas import TABLES, ContractError, Table, check_rows, check_types
from xrec.storage.tables import rows_from

pytestmark = pytest.mark.spark

SPELLED = {value for name, value in vars(C).items() if name.isupper()}


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_a_contract_is_consistent(spark: SparkSession, table: Table) -> None:
    columns = table.schema.fieldNames()
    assert len(columns) == len(set(columns))
    assert columns[-1] == C.VERSIONS
    assert table.key
    assert {*table.key, *table.partitions, *table.owned_by} <= set(columns)
    # Partitions that no owner bounds would make a write rewrite files of other owners.
    assert not table.owned_by or table.partitions[0] in table.owned_by
    assert set(columns) <= SPELLED, "a column that xrec/columns.py does not spell"


def test_names_of_columns_follow_their_types(spark: SparkSession) -> None:
    for table in TABLES.values():
        for field in table.schema:
            kind = field.dataType.simpleString()
            if field.name.endswith("_idx"):
                assert kind == "int", (table.name, field.name)
            if field.name.endswith("_ts"):
                assert kind == "timestamp", (table.name, field.name)
            if field.name.endswith("_id"):
                assert kind == "string", (table.name, field.name)
            if field.name.startswith("num_"):
                assert kind in {"int", "bigint"}, (table.name, field.name)


def test_columns_are_spelled_once() -> None:
    names = [value for name, value in vars(C).items() if name.isupper()]
    assert len(names) == len(set(names))


def test_rows_come_back_in_the_order_of_the_contract(spark: SparkSession) -> None:
    rows = spark.createDataFrame([("v", 3, "u")], "versions string, user_idx int, user_id string")
    assert check_types(rows, TABLES["users"]).columns == ["user_id", "user_idx", "versions"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("user_id string, user_idx bigint, versions string", "column 'user_idx' is bigint, expected int"),
        ("user_id string, user_idx short, versions string", "column 'user_idx' is smallint, expected int"),
        ("user_id string, versions string", "column 'user_idx' is missing"),
        ("user_id string, User_idx int, versions string", "column 'user_idx' is missing; column 'User_idx' is not"),
        ("user_id string, user_idx int, versions string, x int", "column 'x' is not in the contract"),
    ],
)
def test_types_are_compared_not_cast(spark: SparkSession, found: str, message: str) -> None:
    with pytest.raises(ContractError) as error:
        check_types(spark.createDataFrame([], found), TABLES["users"])
    assert str(error.value).startswith(f"table 'users' (one row is {TABLES['users'].row}): {message}")


def test_the_type_inside_an_array_counts(spark: SparkSession) -> None:
    rows = spark.createDataFrame([], TABLES["vectors"].schema).withColumn(C.VECTOR, F.lit(None).cast("array<double>"))
    with pytest.raises(ContractError, match="column 'vector' is array<double>, expected array<float>"):
        check_types(rows, TABLES["vectors"])


def test_keys_are_unique_and_never_null(spark: SparkSession) -> None:
    schema = TABLES["users"].schema
    check_rows(spark.createDataFrame([("a", 0, ""), ("b", 0, "")], schema), TABLES["users"], {})
    with pytest.raises(ContractError, match=r"key \{'user_id': 'a'\} occurs 2 times"):
        check_rows(spark.createDataFrame([("a", 0, ""), ("a", 1, "")], schema), TABLES["users"], {})
    with pytest.raises(ContractError, match=r"key \{'user_id': None\} has a null"):
        check_rows(spark.createDataFrame([(None, 0, "")], schema), TABLES["users"], {})


def test_driver_rows_have_the_types_of_the_contract(spark: SparkSession) -> None:
    values = {
        "fold": "f",
        "scope": "touched",
        "source": "als",
        "weight": 0.5,
        "selected_on": "s",
        "ndcg": 0.1,
        "ndcg_popularity": 0.2,
    }
    rows = rows_from(spark, "blend_weights", [values])
    assert [field.simpleString() for field in rows.schema] == [
        field.simpleString() for field in TABLES["blend_weights"].schema if field.name != C.VERSIONS
    ]


@pytest.mark.parametrize(
    ("items", "scores"), [([4, 7, 4], [3.0, 2.0, 1.0]), ([4, 7], [3.0]), (None, [3.0]), ([4], None)]
)
def test_a_list_has_a_score_for_each_item_and_none_twice(
    spark: SparkSession, items: list[int] | None, scores: list[float] | None
) -> None:
    table = TABLES["candidates"]
    good = ("f", "als", "touched", 1, [4, 7], [3.0, 2.0], "")
    check_rows(spark.createDataFrame([good, ("f", "als", "touched", 2, [], [], "")], table.schema), table, {})
    rows = spark.createDataFrame([good, ("f", "als", "touched", 2, items, scores, "")], table.schema)
    with pytest.raises(ContractError, match=r"at key .*'user_idx': 2\} the columns items, scores are null") as error:
        check_rows(rows, table, {})
    assert "or one of items comes twice" in str(error.value)
