"""Rows that every task needs whole, such as the items and their vectors: written by tasks, read by tasks.

A broadcast or a closure would bring them through the driver, whose memory would then grow with the catalogue.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame

from xrec.storage.files import for_spark, names_in

_STARTED = "%Y%m%dT%H%M%S"
"""How the name of a folder begins: with when it was made (UTC)."""
_LONGEST = timedelta(days=1)
"""What is older was left by a run that was killed."""


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

    def __init__(self, path: str) -> None:
        self.path = path

    def share(self, rows: DataFrame) -> SharedRows:
        """Write rows, for as long as the folder lives."""
        target = f"{self.path}/{secrets.token_hex(8)}"
        rows.write.parquet(for_spark(target))
        return SharedRows(target)

    def keep(self, rows: DataFrame) -> DataFrame:
        """The same rows, written and read back: what is asked of them again begins with a scan, not with all that made them."""
        return rows.sparkSession.read.schema(rows.schema).parquet(for_spark(self.share(rows).folder))


@contextmanager
def shared_folder(place: str) -> Iterator[SharedFolder]:
    """A new folder in this place for shared rows within the context; what killed runs left there, a day ago or more, goes first.

    Everything that is derived from shared rows must be written within the context.
    """
    filesystem, path = fsspec.core.url_to_fs(place)
    filesystem.invalidate_cache()
    now = datetime.now(timezone.utc)
    for name in names_in(place):
        if not _is_young(name, now):
            with suppress(FileNotFoundError):  # another run removes it as well
                filesystem.rm(f"{path}/{name}", recursive=True)
    own = f"{now:{_STARTED}}-{secrets.token_hex(4)}"
    try:
        yield SharedFolder(f"{place}/{own}")
    finally:
        filesystem.invalidate_cache()  # an object store's listing may be older than what Spark wrote
        if filesystem.exists(f"{path}/{own}"):
            filesystem.rm(f"{path}/{own}", recursive=True)


def _is_young(name: str, now: datetime) -> bool:
    try:
        started = datetime.strptime(name[:15], _STARTED).replace(tzinfo=timezone.utc)
    except ValueError:  # a folder of an earlier version of xrec
        return False
    return now - started < _LONGEST
