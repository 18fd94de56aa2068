"""Files outside of Spark: the data files of a pinned Delta version, and small files written whole or not at all.

Nothing here needs a JVM or torch, so both engines can use it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

_OBJECT_STORES = ("s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "memory")
"""Schemes of stores without a rename, where it would be a copy."""

_DBFS = "/dbfs"
"""Where Databricks mounts its file system on every machine."""


class FilesError(ValueError):
    """A file that is missing or is not what was written; the message names it and what to do."""


def absolute(location: str) -> str:
    """A path that means the same in every process: a local one becomes absolute, a URL of another store stays.

    What Databricks calls ``dbfs:/`` is a folder to all that is not Spark, for which :func:`for_spark` names it again.

    >>> absolute("s3a://bucket/xrec")
    's3a://bucket/xrec'
    >>> absolute("file:/data/x"), absolute("dbfs:/data/x")
    ('/data/x', '/dbfs/data/x')
    """
    parts = urlsplit(location)
    if parts.scheme == "file":
        return unquote(parts.path)
    if parts.scheme == "dbfs":
        return f"{_DBFS}{parts.path.rstrip('/')}"
    return location.rstrip("/") if parts.scheme else os.path.abspath(location)


def for_spark(location: str) -> str:
    """An :func:`absolute` location as Spark takes it.

    >>> for_spark("/dbfs/data/x"), for_spark("/data/x")
    ('dbfs:/data/x', '/data/x')
    """
    return f"dbfs:{location.removeprefix(_DBFS)}" if location.startswith(f"{_DBFS}/") else location


def to_url(location: str) -> str:
    """A location with its scheme, as Petastorm wants it."""
    return location if "://" in location else f"file://{location}"


def data_files(table: str, version: int, **partition: str | int) -> list[str]:
    """The Parquet files of one version of a Delta table, sorted, where the partition columns have these values.

    A listing of the table's folder would also find the files of other versions: 130 rows instead of 30 in a trial.

    Raises
    ------
    FilesError
        There is no such table or version, or it uses deletion vectors, which a reader of plain Parquet would not see.
    """
    try:
        delta = DeltaTable(_for_delta_rs(table), version=version, storage_options=_storage_options())
    except DeltaError as error:
        raise FilesError(
            f"Delta table {table}, version {version}: cannot be read ({error}); expected a version that is still kept "
            "(storage.retention_days); run export_sequences again"
        ) from None
    features = delta.protocol().reader_features or []
    if "deletionVectors" in features or "columnMapping" in features:
        raise FilesError(
            f"Delta table {table}: found reader features {sorted(features)}, expected neither deletion vectors nor "
            "column mapping, because its files are read as plain Parquet; write the table anew without them"
        )
    filters = [(column, "=", str(value)) for column, value in partition.items()]
    return sorted(unquote(file) for file in delta.file_uris(file_pruning_predicate=filters or None))


def count_rows(files: Sequence[str]) -> int:
    """Rows of Parquet files, from their footers."""
    total = 0
    for file in files:
        with fsspec.open(file, "rb") as opened:
            total += pq.read_metadata(opened).num_rows
    return total


def exists(location: str) -> bool:
    """Whether there is a file or folder."""
    filesystem, path = fsspec.core.url_to_fs(location)
    return bool(filesystem.exists(path))


def names_in(folder: str) -> list[str]:
    """Names of the files and folders in a folder, sorted; none where it does not exist."""
    filesystem, path = fsspec.core.url_to_fs(folder)
    if not filesystem.exists(path):
        return []
    return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in filesystem.ls(path, detail=False))


def remove(location: str) -> None:
    """Remove a file or a folder with all it holds, if it is there."""
    filesystem, path = fsspec.core.url_to_fs(location)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def read_bytes(location: str, start: int | None = None, end: int | None = None) -> bytes:
    """A file's content, or its bytes from ``start`` until before ``end``; raises :class:`FilesError` where it is missing."""
    filesystem, path = fsspec.core.url_to_fs(location)
    try:
        return bytes(filesystem.cat_file(path, start=start, end=end))
    except FileNotFoundError:
        raise FilesError(f"{location}: no such file") from None


def write_bytes(location: str, content: bytes) -> None:
    """Write a file so that a reader finds the old content or the new one, never a part.

    By a temporary name and a rename; an object store shows an object only when it is complete. HDFS renames nothing onto a file
    that is there: of it a reader may find neither for a moment.
    """
    filesystem, path = fsspec.core.url_to_fs(location)
    if urlsplit(location).scheme in _OBJECT_STORES:
        filesystem.pipe_file(path, content)
        return
    if "file" not in filesystem.protocol:
        _replace_file(filesystem, path, content)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(target)
    except OSError:  # a full disk is not filled further
        temporary.unlink(missing_ok=True)
        raise


def _replace_file(filesystem: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    folder, name = path.rsplit("/", 1)
    temporary = f"{folder}/.{name}.{secrets.token_hex(4)}"
    filesystem.makedirs(folder, exist_ok=True)
    filesystem.pipe_file(temporary, content)
    if filesystem.exists(path):
        filesystem.rm(path)
    filesystem.mv(temporary, path)


def read_json(location: str) -> Any:
    """A JSON file's value; raises :class:`FilesError` where it is missing or not JSON."""
    try:
        return json.loads(read_bytes(location))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FilesError(f"{location}: not JSON ({error}); remove it and run the stage that writes it again") from None


def write_json(location: str, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_bytes(location, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def _for_delta_rs(table: str) -> str:
    """Hadoop's names of object stores, as delta-rs knows them."""
    for hadoop, plain in (("s3a://", "s3://"), ("s3n://", "s3://")):
        if table.startswith(hadoop):
            return plain + table[len(hadoop) :]
    return absolute(table)


def _storage_options() -> dict[str, str]:
    """Credentials from the environment: names that object-store clients know, as they are."""
    prefixes = ("AWS_", "AZURE_", "GOOGLE_")
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}
