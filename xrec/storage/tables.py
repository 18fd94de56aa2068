"""Reads that pin a version, and writes that replace exactly what they own.

A write is one Delta commit: killed midway, the old version stays readable; run twice, the table is the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from delta.tables import DeltaTable
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Storage
from xrec.schemas import TABLES, ContractError, Table, check_rows, check_types

_LAST_COMMIT = "spark.databricks.delta.lastCommitVersionInSession"
_SAFE_VALUE = re.compile(r"[A-Za-z0-9._:-]+")


class MissingTableError(ValueError):
    """A table that an earlier stage makes is not there."""


class Tables:
    """xrec's tables in one storage.

    Every read pins the version that it found first, so that a stage sees one state of each table; every write carries
    those versions in the column ``versions``.
    """

    def __init__(self, spark: SparkSession, storage: Storage) -> None:
        self.spark = spark
        self.storage = storage
        self.read_versions: dict[str, int] = {}
        self.written_versions: dict[str, int] = {}

    def location(self, name: str) -> str:
        """Where a table lies: a path below the root, or catalog.schema.table."""
        if self.storage.catalog:
            return f"{self.storage.catalog}.{TABLES[name].name}"
        return f"{self.storage.tables_root}/{TABLES[name].name}"

    def path(self, name: str) -> str:
        """The folder or URL that holds a table's files, for readers without Spark."""
        if not self.storage.catalog:
            return self.location(name)
        return str(self._delta_table(name).detail().select("location").first()[0])  # type: ignore[index]

    def exists(self, name: str) -> bool:
        """Whether the table has been written at least once."""
        if self.storage.catalog:
            return self.spark.catalog.tableExists(self.location(name))
        return DeltaTable.isDeltaTable(self.spark, self.location(name))

    def version(self, name: str) -> int:
        """The newest version of a table."""
        if not self.exists(name):
            table = TABLES[name]
            raise MissingTableError(
                f"table '{name}' not found at {self.location(name)}: it is made by the stage {table.made_by}; "
                f"run ./spark-submit.sh jobs/pipeline.py --only {table.made_by.split(' ')[0]} with the same settings first"
            )
        row = self._delta_table(name).history(1).select("version").first()
        assert row is not None
        return int(row[0])

    def read(self, name: str, *, version: int | None = None, **owned: str) -> DataFrame:
        """Rows of a table at one version (default: the newest at the first read), of these owners."""
        if version is None:
            version = self.read_versions.get(name, -1)
        if version < 0:
            version = self.version(name)
        self.read_versions[name] = version
        reader = self.spark.read.format("delta").option("versionAsOf", version)
        rows = reader.table(self.location(name)) if self.storage.catalog else reader.load(self.location(name))
        for column, value in owned.items():
            rows = rows.where(F.col(column) == value)
        return rows

    def write(self, name: str, rows: DataFrame, *, kept: bool = False, **owned: str | Sequence[str]) -> int:
        """Replace the rows of these owners (the whole table where it has none); return the version written.

        The rows are kept on disk between the check and the commit, unless the caller has ``kept`` them.

        Raises
        ------
        ContractError
            The rows break the table's contract; nothing is written.
        """
        table = TABLES[name]
        if set(owned) != set(table.owned_by):
            raise ContractError(f"table '{name}': found owners {sorted(owned)}, expected {sorted(table.owned_by)}")
        stamped = check_types(rows.withColumn(C.VERSIONS, F.lit(self._provenance())), table)
        values = {column: [value] if isinstance(value, str) else list(value) for column, value in owned.items()}
        predicate = " and ".join(_predicate(*item) for item in values.items())
        checked = stamped if kept else stamped.persist(StorageLevel.DISK_ONLY)
        try:
            check_rows(checked, table, values)
            self._commit(checked, table, predicate)
        finally:
            if not kept:
                checked.unpersist()
        self.read_versions.pop(name, None)
        # The version of this session's own commit, whoever wrote in the meantime.
        self.written_versions[name] = int(str(self.spark.conf.get(_LAST_COMMIT)))
        return self.written_versions[name]

    def _commit(self, rows: DataFrame, table: Table, predicate: str) -> None:
        if C.SHARD in table.partitions:
            rows = rows.repartition(*table.partitions)
        if not self.exists(table.name):
            self._create(rows, table)
            return
        # A table of an earlier version of xrec takes the columns that it lacks; their old rows have nulls there.
        if self.storage.catalog:
            to_table = rows.writeTo(self.location(table.name)).option("mergeSchema", "true")
            to_table.overwrite(F.expr(predicate or "true"))
            return
        writer = (
            rows.write.format("delta").mode("overwrite").partitionBy(*table.partitions).option("mergeSchema", "true")
        )
        writer = writer.option("replaceWhere", predicate) if predicate else writer
        writer.save(self.location(table.name))

    def _create(self, rows: DataFrame, table: Table) -> None:
        """Create the table with its properties and its first rows in one commit: no reader ever finds it empty."""
        kept = f"interval {self.storage.retention_days} days"
        properties = {
            "delta.logRetentionDuration": kept,
            "delta.deletedFileRetentionDuration": kept,
            "delta.enableDeletionVectors": "false",
            "comment": f"one row is {table.row}",
        }
        location = self.location(table.name)
        name = location if self.storage.catalog else f"delta.`{location.replace('`', '``')}`"
        writer = rows.writeTo(name).using("delta")
        writer = writer.partitionedBy(*map(F.col, table.partitions)) if table.partitions else writer
        for key, value in properties.items():
            writer = writer.tableProperty(key, value)
        # Not create(): files that a killed run left in the folder would count as a table.
        writer.createOrReplace()

    def _delta_table(self, name: str) -> DeltaTable:
        if self.storage.catalog:
            return DeltaTable.forName(self.spark, self.location(name))
        return DeltaTable.forPath(self.spark, self.location(name))

    def _provenance(self) -> str:
        return ",".join(f"{name}@{version}" for name, version in sorted(self.read_versions.items()))


def read_table_version(tables: Tables, name: str) -> int | None:
    """The newest version of a table, or None where it was never written."""
    return tables.version(name) if tables.exists(name) else None


def _predicate(column: str, values: Sequence[str]) -> str:
    """``column in ('a', 'b')``, with values of safe characters only: Delta takes the predicate as SQL text."""
    if not values:
        raise ContractError(f"column '{column}': found nothing, expected at least one value")
    for value in values:
        if not _SAFE_VALUE.fullmatch(value):
            raise ContractError(f"column '{column}': found {value!r}, expected letters, digits, '.', '_', ':' or '-'")
    listed = ", ".join(f"'{value}'" for value in values)
    return f"{column} in ({listed})"


def rows_from(spark: SparkSession, name: str, values: Sequence[Mapping[str, Any]]) -> DataFrame:
    """A few rows made on the driver (weights, metrics, ledger) as a DataFrame of the table's types, without ``versions``."""
    table = TABLES[name]
    schema = table.schema
    fields = [field for field in schema.fields if field.name != C.VERSIONS]
    rows = [tuple(value[field.name] for field in fields) for value in values]
    return spark.createDataFrame(rows, type(schema)(fields))
