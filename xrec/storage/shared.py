"""Rows that every task needs whole, such as the items and their vectors: written by tasks, read by tasks.

A broadcast or a closure would bring them through the driver, whose memory would then grow with the catalogue.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame

from xrec.storage.files import for_spark


class SharedRowsError(ValueError):
    """Rows that a task cannot read; the message names the folder and what to do."""


@dataclass(frozen=True)
class SharedRows:
    """Rows in a folder of Parquet files. Equal values are equal rows: no two writes share a folder."""

    folder: str

    def read(self) -> pa.Table:
        """All rows, in no particular order; for tasks.

        Raises
        ------
        SharedRowsError
            The task cannot read the folder.
        """
        parts = []
        try:
            filesystem, path = fsspec.core.url_to_fs(self.folder)
            for file in sorted(filesystem.glob(f"{path}/*.parquet")):
                with filesystem.open(file, "rb") as opened:
                    parts.append(pq.read_table(opened))
            return pa.concat_tables(parts).combine_chunks()
        except (OSError, ImportError, ValueError) as error:
            raise SharedRowsError(
                f"{self.folder}: a task cannot read it ({type(error).__name__}: {error}); executors read what lies below "
                "storage.artifacts through fsspec: give them access to it, and fsspec's package for its kind of storage (s3fs, "
                "adlfs, gcsfs, ...)"
            ) from error


class SharedFolder:
    """Where rows are shared; see :func:`shared_folder`."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def share(self, rows: DataFrame) -> SharedRows:
        """Write rows, for as long as the folder lives."""
        target = f"{self._folder}/{secrets.token_hex(8)}"
        rows.write.parquet(for_spark(target))
        return SharedRows(target)

    def keep(self, rows: DataFrame) -> DataFrame:
        """The same rows, written and read back: what is asked of them again begins with a scan, not with all that made them."""
        return rows.sparkSession.read.schema(rows.schema).parquet(for_spark(self.share(rows).folder))


@contextmanager
def shared_folder(folder: str) -> Iterator[SharedFolder]:
    """A folder for shared rows within the context; what a killed run left in it is removed first.

    Everything that is derived from shared rows must be written within the context.
    """
    filesystem, path = fsspec.core.url_to_fs(folder)
    _remove(filesystem, path)
    try:
        yield SharedFolder(folder)
    finally:
        _remove(filesystem, path)


def _remove(filesystem: fsspec.AbstractFileSystem, path: str) -> None:
    filesystem.invalidate_cache()  # an object store's listing may be older than what Spark wrote
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)
