"""Reads that pin a version, and writes that replace exactly what they own.

A write is one Delta commit: killed midway, the old version stays readable; run twice, the table is the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Any

from delta.tables import DeltaTable
from py4j.protocol import Py4JJavaError
from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Storage
from xrec.schemas import TABLES, ContractError, Table, check_rows, check_types

_LAST_COMMIT = "spark.databricks.delta.lastCommitVersionInSession"
_USER_METADATA = "spark.databricks.delta.commitInfo.userMetadata"
_ROWS_A_FILE = "spark.sql.files.maxRecordsPerFile"
_LISTING_TASKS = "spark.sql.sources.parallelPartitionDiscovery.parallelism"
_MAINTENANCE = ("OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES")
_RECENT = 50
"""Commits among which there is one that is no maintenance."""
_MOST_VERSIONS = 1000
_GONE = "is_gone"
_SAFE_VALUE = re.compile(r"[A-Za-z0-9._:-]+")


class MissingTableError(ValueError):
    """A table that an earlier stage makes is not there."""


@dataclass(frozen=True, kw_only=True)
class TableVersion:
    """A version of a table."""

    number: int
    written: datetime
    """When, in UTC."""
    operation: str


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

    def versions(self, name: str) -> list[TableVersion]:
        """The versions of a table that its log still has, newest first: at most a thousand."""
        self.version(name)
        rows = self._delta_table(name).history(_MOST_VERSIONS).select("version", "timestamp", "operation").collect()
        return [TableVersion(number=row[0], written=row[1], operation=row[2]) for row in rows]

    def restore(self, name: str, version: int) -> int:
        """Make the rows of an earlier version those that readers get, as a new version, whose number is returned.

        Raises
        ------
        MissingTableError
            The table has no such version, or its files were vacuumed.
        """
        newest = self.version(name)
        if not 0 <= version <= newest:
            raise MissingTableError(
                f"table '{name}' at {self.location(name)}: found versions 0 to {newest}, expected {version} among them"
            )
        try:
            self._delta_table(name).restoreToVersion(version)
        except (PySparkException, Py4JJavaError) as error:
            raise MissingTableError(
                f"table '{name}' at {self.location(name)}: version {version} cannot be restored, its files or its log are gone "
                f"(storage.retention_days: {self.storage.retention_days}); choose a newer version"
            ) from error
        return self.version(name)

    def read(self, name: str, *, version: int | None = None, **owned: str) -> DataFrame:
        """Rows of a table at one version (default: the newest at the first read), of these owners."""
        if version is None:
            version = self.read_versions.get(name, -1)
        if version < 0:
            version = self.version(name)
        self.read_versions[name] = version
        reader = self.spark.read.format("delta").option("versionAsOf", version)
        rows = reader.table(self.location(name)) if self.storage.catalog else reader.load(self.location(name))
        self._check_shape(TABLES[name], rows.columns)
        for column, value in owned.items():
            rows = rows.where(F.col(column) == value)
        return rows

    def note(self, name: str) -> str | None:
        """What the newest write of a table noted in its commit; None where there is no table or no note."""
        if not self.exists(name):
            return None
        commits = self._delta_table(name).history(_RECENT).where(~F.col("operation").isin(*_MAINTENANCE))
        row = commits.orderBy(F.desc("version")).select("userMetadata").first()
        return None if row is None else row[0]

    def write(
        self,
        name: str,
        rows: DataFrame,
        *,
        kept: bool = False,
        note: str | None = None,
        **owned: str | Sequence[str],
    ) -> int:
        """Replace the rows of these owners (the whole table where it has none); return the version written.

        The rows are kept on disk between the check and the commit, unless the caller has ``kept`` them; ``note`` becomes part
        of the commit (see :meth:`note`).

        Raises
        ------
        ContractError
            The rows break the table's contract, or another run wrote a table that is replaced whole after this one read it;
            nothing is written.
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
            if not owned:
                self._check_unchanged(name)
            self.spark.conf.unset(_LAST_COMMIT)
            with self._having(_USER_METADATA, note), self._having(_ROWS_A_FILE, table.rows_a_file):
                self._commit(checked, table, predicate)
        finally:
            if not kept:
                checked.unpersist()
        self.read_versions.pop(name, None)
        # The version of this session's own commit, whoever wrote in the meantime. No rows in the place of none are no commit.
        committed = str(self.spark.conf.get(_LAST_COMMIT, None))
        self.written_versions[name] = int(committed) if committed.isdigit() else self.version(name)
        return self.written_versions[name]

    def merge(self, name: str, rows: DataFrame, *, within: DataFrame, note: str | None = None) -> int:
        """Replace the rows of some keys, such as users, by others, in one commit that touches only rows that differ.

        Where none differs, nothing is written, the note included.

        Parameters
        ----------
        rows
            The new rows of these keys.
        within
            The keys, once each, under their column's name; the table's other rows stay.

        Raises
        ------
        ContractError
            The rows break the table's contract; nothing is written.
        """
        table, key = TABLES[name], within.columns
        stamped = check_types(rows.withColumn(C.VERSIONS, F.lit(self._provenance())), table)
        new = stamped.persist(StorageLevel.DISK_ONLY)
        values = [column for column in table.schema.names if column != C.VERSIONS]
        try:
            check_rows(new, table, {})
            old = self.read(name).join(within, key, how="left_semi")
            is_same = reduce(
                Column.__and__, [F.col(f"new.{value}").eqNullSafe(F.col(f"old.{value}")) for value in values]
            )
            upserts = new.alias("new").join(old.alias("old"), is_same, how="left_anti").withColumn(_GONE, F.lit(False))
            gone = old.join(new, list(table.key), how="left_anti").withColumn(_GONE, F.lit(True))
            changes = upserts.unionByName(gone).persist(StorageLevel.DISK_ONLY)
            if not changes.isEmpty():
                same_key = " and ".join(f"t.{column} = c.{column}" for column in table.key)
                merger = self._delta_table(name).alias("t").merge(changes.alias("c"), same_key)
                merger = merger.whenMatchedDelete(f"c.{_GONE}")
                columns: dict[str, str | Column] = {column: f"c.{column}" for column in table.schema.names}
                merger = merger.whenMatchedUpdate(set=columns).whenNotMatchedInsert(values=columns)
                with self._having(_USER_METADATA, note):
                    merger.execute()
            changes.unpersist()
        finally:
            new.unpersist()
        self.read_versions.pop(name, None)
        self.written_versions[name] = self.version(name)
        return self.written_versions[name]

    def remove_rows(self, name: str, column: str, values: Sequence[str]) -> bool:
        """Remove the rows of some owners, in one commit; whether there were any. Older versions keep them until vacuumed."""
        table = TABLES[name]
        if column not in table.owned_by:
            raise ContractError(f"table '{name}': found owner {column}, expected one of {', '.join(table.owned_by)}")
        before = self.version(name)
        self._delta_table(name).delete(_predicate(column, values))
        self.read_versions.pop(name, None)
        return self.version(name) > before

    def vacuum(self, name: str) -> None:
        """Remove the files that no version needs which is younger than the retention that the table was made with."""
        tasks = None
        # Else it lists each table's folders in ten thousand tasks. Platforms that hide the Spark context list in their own way.
        with suppress(PySparkException):
            tasks = self.spark.sparkContext.defaultParallelism
        with self._having(_LISTING_TASKS, tasks):
            self._delta_table(name).vacuum()

    def changed_keys(self, name: str, keys: Sequence[str], *, since: int) -> DataFrame | None:
        """The keys of rows that came or went after a version until the one that is read; None where nobody can tell any more.

        What went and came back is no change. Nobody can tell where the table keeps no change feed or its old versions are gone.
        """
        until = self.read_versions.get(name, self.version(name))
        if since == until:
            return self.read(name).select(*keys).limit(0)
        reader = self.spark.read.format("delta").option("readChangeFeed", "true")
        reader = reader.option("startingVersion", since + 1).option("endingVersion", until)
        try:
            feed = reader.table(self.location(name)) if self.storage.catalog else reader.load(self.location(name))
            step = F.when(F.col("_change_type").isin("insert", "update_postimage"), 1).otherwise(-1)
            values = [column for column in TABLES[name].schema.names if column != C.VERSIONS]
            net = feed.groupBy(*values).agg(F.sum(step).alias("net")).where("net != 0")
            found = net.select(*keys).distinct()
            found.isEmpty()
        except (PySparkException, Py4JJavaError):
            return None
        return found

    def _commit(self, rows: DataFrame, table: Table, predicate: str) -> None:
        if table.rows_a_file is not None:
            rows = rows.repartition(*table.partitions).sortWithinPartitions(*table.partitions, *table.key)
        if not self.exists(table.name):
            self._create(rows, table)
            return
        self._check_owners(table)
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

    def _check_unchanged(self, name: str) -> None:
        """Raise ContractError where another run wrote a table since this one read it: what that run added would be lost."""
        read = self.read_versions.get(name)
        if read is None or (newest := self.version(name)) == read:
            return
        since = self._delta_table(name).history(newest - read)
        if not since.where(~F.col("operation").isin(*_MAINTENANCE)).isEmpty():
            raise ContractError(
                f"table '{name}' at {self.location(name)}: found version {newest}, expected {read}, which this stage has read: "
                "another run wrote it meanwhile; run the stage again, and one run at a time on one storage.root"
            )

    def _check_owners(self, table: Table) -> None:
        """Raise ContractError where a table of an earlier version of xrec does not know whose its rows are."""
        if not table.owned_by:
            return
        there = self._delta_table(table.name).toDF().columns
        self._check_shape(table, there)
        lacking = [column for column in table.owned_by if column not in there]
        if lacking:
            raise ContractError(
                f"table '{table.name}' at {self.location(table.name)} was made by an earlier version of xrec: found no column "
                f"'{lacking[0]}', expected it to tell whose its rows are; load all deliveries into another storage.root"
            )

    def _check_shape(self, table: Table, there: Sequence[str]) -> None:
        """Raise ContractError where a table has columns that its rows have no more: an earlier version of xrec made it."""
        gone = [column for column in there if column not in table.schema.names]
        if gone:
            raise ContractError(
                f"table '{table.name}' at {self.location(table.name)} was made by an earlier version of xrec: found column "
                f"'{gone[0]}', expected {', '.join(table.schema.names)}; remove the table, which the stages make again "
                f"({table.made_by}), or choose another storage.root"
            )

    def _create(self, rows: DataFrame, table: Table) -> None:
        """Create the table with its properties and its first rows in one commit: no reader ever finds it empty."""
        kept = f"interval {self.storage.retention_days} days"
        properties = {
            "delta.logRetentionDuration": kept,
            "delta.deletedFileRetentionDuration": kept,
            "delta.enableDeletionVectors": "false",
            "delta.enableChangeDataFeed": str(table.change_feed).lower(),
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

    @contextmanager
    def _having(self, key: str, value: str | int | None) -> Iterator[None]:
        """Give the session a setting for the commits within, which have no option for it; None: leave it."""
        if value is None:
            yield
            return
        before = self.spark.conf.get(key, None)
        self.spark.conf.set(key, value)
        try:
            yield
        finally:
            if before is None:
                self.spark.conf.unset(key)
            else:
                self.spark.conf.set(key, before)

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
