"""A table's contract, and the checks that nothing is written past: they raise, they never warn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, StructType

from xrec import columns as C


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table's contract."""

    name: str
    row: str
    """"one row is ...", for people and for error messages."""
    columns: str
    """The columns as Spark DDL, in order, without ``versions``, which every table carries."""
    key: tuple[str, ...]
    made_by: str
    """The job that writes it, named in the error when it is missing."""
    partitions: tuple[str, ...] = ()
    owned_by: tuple[str, ...] = ()
    """A write replaces exactly the rows that share its values of these columns; empty: the whole table."""
    lists: tuple[str, ...] = ()
    """Columns that hold a list: arrays of one length, the first without a value that comes twice, none of them null."""
    rows_a_file: int | None = None
    """Rows that a file holds at most, the same ones in every write of the same rows; None: as many as come."""
    change_feed: bool = False
    """Whether Delta tells which rows came and went between two versions."""

    @property
    def schema(self) -> StructType:
        """The Spark schema, ``versions`` included: the versions of the tables that a row was made from."""
        schema = StructType.fromDDL(f"{self.columns}, {C.VERSIONS} string")
        assert isinstance(schema, StructType)
        return schema


class ContractError(ValueError):
    """Rows that a table must not hold; the message names the table, the column and an offending value."""


_SUSPECTS = 1000
"""Keys of a write that are looked at one by one; two of a billion 64-bit hashes are equal by chance 3 times in 100 writes."""


def check_types(rows: DataFrame, table: Table) -> DataFrame:
    """Rows in the contract's column order; raises :class:`ContractError` on a missing, extra or retyped column.

    Types are compared, not cast: Spark narrows a double to a float without a word.
    """
    expected = {field.name: field.dataType for field in table.schema}
    found = {field.name: field.dataType for field in rows.schema}
    problems = [f"column '{name}' is missing" for name in expected if name not in found]
    problems += [f"column '{name}' is not in the contract" for name in found if name not in expected]
    problems += [
        f"column '{name}' is {found[name].simpleString()}, expected {kind.simpleString()}"
        for name, kind in expected.items()
        if name in found and not _same_type(found[name], kind)
    ]
    if problems:
        raise ContractError(f"table '{table.name}' (one row is {table.row}): {'; '.join(problems)}")
    return rows.select(*expected)


def check_rows(rows: DataFrame, table: Table, owned: Mapping[str, Sequence[str]]) -> None:
    """Raise :class:`ContractError` where a key is null or occurs twice, a row belongs to another owner, or a list is none.

    One aggregation over hashes of the keys, which is cheap, finds the suspects; the rows of these alone are then compared
    by the keys themselves. ``owned`` gives the values of the owning columns that this write replaces.
    """
    key_hash = F.xxhash64(*table.key)
    suspects = (
        rows.groupBy(key_hash.alias("key_hash"))
        .agg(
            F.count("*").alias("num_rows"),
            F.bool_or(_is_null(table) | _is_stray(owned) | _is_no_list(table)).alias("is_bad"),
        )
        .where("num_rows > 1 or is_bad")
        .limit(_SUSPECTS)
        .collect()
    )
    if suspects:
        _check_keys(rows.where(key_hash.isin([row["key_hash"] for row in suspects])), table, owned)


def _check_keys(rows: DataFrame, table: Table, owned: Mapping[str, Sequence[str]]) -> None:
    """Raise :class:`ContractError` with a key that is null, occurs twice or belongs to another owner, if there is one."""
    # With the row that is stray in it, so that the message can show the value.
    owners = F.struct(*[F.col(column).cast("string").alias(column) for column in owned]) if owned else F.lit(None)
    offenders = (
        rows.groupBy(*table.key)
        .agg(
            F.count("*").alias("num_rows"),
            F.bool_or(_is_null(table)).alias("has_null"),
            F.bool_or(_is_no_list(table)).alias("is_no_list"),
            F.first(F.when(_is_stray(owned), owners), ignorenulls=True).alias("stray"),
        )
        .where("num_rows > 1 or has_null or is_no_list or stray is not null")
        .limit(1)
        .collect()
    )
    if not offenders:
        return
    bad = offenders[0].asDict(recursive=True)
    num_rows, has_null, is_no_list, stray = (bad.pop(name) for name in ("num_rows", "has_null", "is_no_list", "stray"))
    if stray is not None:
        column, found = next((name, value) for name, value in stray.items() if value not in owned[name])
        raise ContractError(
            f"table '{table.name}': column '{column}' is {found!r}, this write owns {list(owned[column])}"
        )
    if is_no_list and num_rows == 1 and not has_null:
        raise ContractError(
            f"table '{table.name}' (one row is {table.row}): at key {bad} the columns {', '.join(table.lists)} are null, of "
            f"different lengths, or one of {table.lists[0]} comes twice"
        )
    fault = "has a null" if has_null else f"occurs {num_rows} times"
    raise ContractError(f"table '{table.name}' (one row is {table.row}): key {bad} {fault}, expected exactly one row")


def _is_null(table: Table) -> Column:
    return _any(F.col(name).isNull() for name in table.key)


def _is_no_list(table: Table) -> Column:
    sizes = [F.size(name) for name in table.lists]
    return _any(
        F.coalesce(one != size, F.lit(True))
        for size in sizes[:1]
        for one in (*sizes[1:], F.size(F.array_distinct(table.lists[0])))
    )


def _is_stray(owned: Mapping[str, Sequence[str]]) -> Column:
    return _any(
        ~F.coalesce(F.col(column).cast("string").isin(*allowed), F.lit(False)) for column, allowed in owned.items()
    )


def _any(conditions: Iterable[Column]) -> Column:
    return reduce(Column.__or__, conditions, F.lit(False))


def _same_type(found: DataType, expected: DataType) -> bool:
    """Types are the same apart from nullability, which Parquet does not keep."""
    return found.simpleString() == expected.simpleString()
