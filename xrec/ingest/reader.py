"""Any log or catalogue file, as rows of text.

Everything is read as text, so that what a value means is decided by the row rules and a bad value can be shown as it
stands in the source.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from py4j.protocol import Py4JJavaError
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    DataType,
    DoubleType,
    FloatType,
    MapType,
    StringType,
    StructField,
    StructType,
    VariantType,
)

from xrec import columns as C
from xrec.config import File, Settings

SOURCE_TYPE = "source_type"
"""Key in a column's metadata of the type that it has in the source."""

_PACKAGE = "package:"

_CAUSES = (
    (r"PATH_NOT_FOUND|DELTA_PATH_DOES_NOT_EXIST", "no such file or folder (relative to {cwd}); correct the path"),
    (
        r"[Uu]nexpected end of (input )?stream|not a gzip file|not in GZIP format|incorrect (header|data) check"
        r"|BZip2|bzip2|invalid (code|block|distance|stored|literal|bit length)|CRC failure|stored gzip size",
        "its compressed content is cut off or damaged, or it is not compressed as its name says; fetch it again or correct "
        "its name",
    ),
    (r"CSV header does not conform", "its files have different headers; give them the same columns in the same order"),
    (r"is not a Parquet file", "it is cut off or no Parquet file; fetch it again or correct {key}.format"),
    (
        r"DELTA_TABLE_NOT_FOUND|DELTA_MISSING_DELTA_TABLE|is not a Delta table",
        "no Delta table there; correct {key}.format",
    ),
    (r"UNABLE_TO_INFER_SCHEMA|DELTA_SCHEMA_NOT_SET|Unable to infer schema", "found no data file in it"),
)


_FILE_READ = r"while reading file (.+?)\.\s+(SQLSTATE|Could not)"
"""Where Spark names the one of several files that it could not read."""


class InputError(ValueError):
    """Input that xrec cannot read or map; the message names the key, what was found, what was expected and what to do."""


def resolve_path(path: str, *, key: str = "log.file") -> str:
    """The path itself, or the local file that ``package:NAME/FILE`` stands for.

    Raises
    ------
    InputError
        The package is not installed or has no such file.

    Examples
    --------
    >>> resolve_path("logs/2019-10.csv.gz")
    'logs/2019-10.csv.gz'
    """
    if not path.startswith(_PACKAGE):
        return path
    name, _, inner = path.removeprefix(_PACKAGE).partition("/")
    if not name.isidentifier() or importlib.util.find_spec(name) is None:
        raise InputError(
            f"{key}.path: found {path}, but no Python package '{name}' is installed; expected package:NAME/FILE of an "
            "installed package (underscores, as in its import)"
        )
    found = Path(str(importlib.resources.files(name))) / inner
    if not inner or not found.exists():
        there = sorted(entry.name for entry in found.parent.iterdir()) if found.parent.is_dir() else []
        raise InputError(f"{key}.path: found {path}, but package '{name}' has no '{inner}'; there: {listed(there)}")
    return f"file://{found}"


def read_raw(spark: SparkSession, file: File, *, key: str = "log.file") -> DataFrame:
    """Lines or records of a file, as one row each: ``source_row`` (every column as text), ``file``, ``malformed``.

    ``file`` is the path below the folders that ``file.path`` names before its first wildcard, of a single file the base name:
    the same on every machine. ``malformed`` is the line itself where it has too few or too
    many columns or is no JSON object, else null. Nested fields come as ``outer.inner``, lists as JSON. Whole numbers
    that a Parquet file holds as doubles lose their ``.0``, so that a key stays a key. The options are Spark's; by
    default a header is expected, and a quote inside quotes is doubled (RFC 4180).

    ``key`` is the settings key that error messages name.

    Raises
    ------
    InputError
        Nothing is there, it is empty, or it is not what ``format`` says. What only a whole read shows is raised by
        :func:`count_rows`.
    """
    path = list(file.files) or resolve_path(file.path, key=key)
    with reading(file, key=key):
        if file.format in {"csv", "tsv"}:
            records = _read_delimited(spark, file, path, key)
        elif file.format == "jsonl":
            records = _read_json_lines(spark, file, path, key)
        else:
            records = spark.read.format(file.format).options(**file.options).load(path)
        records = records.select("*", _below_fixed_folders(resolve_path(file.path, key=key)).alias(C.FILE + _OURS))
    fields = [field for field in records.schema.fields if field.name not in {C.FILE + _OURS, C.MALFORMED + _OURS}]
    texts = {name: (text, kind) for name, text, kind in _texts(fields)}
    _check_names(list(texts), file, key)
    malformed = F.col(C.MALFORMED + _OURS) if C.MALFORMED + _OURS in records.columns else F.lit(None).cast("string")
    return records.select(
        F.struct(*[named(name, text, kind.simpleString()) for name, (text, kind) in texts.items()]).alias(C.SOURCE_ROW),
        F.col(C.FILE + _OURS).alias(C.FILE),
        malformed.alias(C.MALFORMED),
    )


def count_rows(raw: DataFrame, file: File, *, key: str = "log.file", least: int = 1) -> int:
    """Count the rows of :func:`read_raw`, by a pass over the file of its own; too few, or a damaged file, is an InputError."""
    return sum(count_rows_by_file(raw, file, key=key, least=least).values())


def count_rows_by_file(raw: DataFrame, file: File, *, key: str = "log.file", least: int = 1) -> dict[str, int]:
    """As :func:`count_rows`, of each file that has a row."""
    with reading(file, key=key):
        counts = {row[C.FILE]: int(row["count"]) for row in raw.groupBy(C.FILE).count().collect()}
    if sum(counts.values()) < least:
        raise InputError(f"{key}.path: {file.path} holds no row (format {file.format}); expected at least one")
    return counts


def column_names(raw: DataFrame) -> list[str]:
    """The source's column names."""
    source_row = raw.schema[C.SOURCE_ROW].dataType
    assert isinstance(source_row, StructType)
    return list(source_row.names)


def source_type(raw: DataFrame, name: str) -> str:
    """The type that a column has in the source, as Spark writes it; text files know only text."""
    source_row = raw.schema[C.SOURCE_ROW].dataType
    assert isinstance(source_row, StructType)
    return str(source_row[name].metadata.get(SOURCE_TYPE, "string"))


@contextmanager
def reading(file: File, *, key: str = "log.file") -> Iterator[None]:
    """Turn what Spark says about an unreadable file into an InputError; leave other failures as they are."""
    try:
        yield
    except (PySparkException, Py4JJavaError) as error:
        sentence = _explain(error, key)
        if sentence is None:
            raise
        raise InputError(f"{key}.path: cannot read {_culprit(error, file)} as {file.format}: {sentence}") from None


@contextmanager
def naming_platform(settings: Settings) -> Iterator[None]:
    """Say in every error which of several platforms it is about."""
    try:
        yield
    except Exception as error:
        if len(settings.platforms) > 1:
            name = settings.log.platform
            error.add_note(f"this is about the platform {name}: what the message calls log.* is platforms.{name}.*")
        raise


_OURS = " (xrec)"
"""Ends the names of our own columns beside the source's, so that they never meet."""


def _read_delimited(spark: SparkSession, file: File, path: str | list[str], key: str) -> DataFrame:
    """CSV records; a line with another number of columns than the header keeps its text in ``malformed``."""
    options = {"header": "true", "escape": '"', "sep": "\t" if file.format == "tsv" else ",", **file.options}
    options |= {"inferSchema": "false", "mode": "PERMISSIVE"}
    names = spark.read.options(**options).csv(path).columns
    _check_names(names, file, key)
    header = spark.read.options(**{**options, "header": "false"}).csv(path).first()
    # Several files: each header is checked, where Spark takes the names as they are (it renames empty and equal ones).
    checkable = header is not None and list(header) == names
    options |= {"enforceSchema": str(not checkable).lower(), "columnNameOfCorruptRecord": C.MALFORMED + _OURS}
    options |= {"columnPruning": "false"}  # else a line is only judged by the columns that a query wants
    schema = StructType([StructField(name, StringType()) for name in [*names, C.MALFORMED + _OURS]])
    return spark.read.options(**options).schema(schema).csv(path)


def _read_json_lines(spark: SparkSession, file: File, path: str | list[str], key: str) -> DataFrame:
    """JSON objects, primitives as they are written; a line that is none keeps its text in ``malformed``."""
    malformed = C.MALFORMED + _OURS
    options = {
        **file.options,
        "primitivesAsString": "true",
        "mode": "PERMISSIVE",
        "columnNameOfCorruptRecord": malformed,
    }
    inferred = spark.read.options(**options).json(path).schema
    fields = [field for field in inferred.fields if field.name != malformed]
    if not fields and malformed in inferred.names:
        raise InputError(f"{key}.path: {file.path} holds no JSON object; expected one a line (format jsonl)")
    schema = StructType([*fields, StructField(malformed, StringType())])
    return spark.read.options(**options).schema(schema).json(path)


def _below_fixed_folders(path: str) -> Column:
    """A file's path below the folders that a path of the settings names without a wildcard; the base name of a single file."""
    place = os.path.abspath(re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*:(//(?=/))?", "", path))
    folders = re.split(r"/[^/]*[*?\[{]", place, maxsplit=1)[0]
    # Java writes blanks and the like as %20, and letters beyond ASCII as they are.
    written = re.sub(r"[\x00-\x7f]+", lambda part: quote(part[0], safe="/-_.!~*'();:@&=+$,"), folders) + "/"
    whole, name = F.col("_metadata.file_path"), F.col("_metadata.file_name")
    start = F.instr(whole, written)
    return F.when(start > 0, whole.substr(start + F.lit(len(written)), F.length(whole))).otherwise(name)


def _texts(
    fields: Sequence[StructField], parent: Column | None = None, prefix: str = ""
) -> Iterator[tuple[str, Column, DataType]]:
    """Each leaf of a schema, as its dotted name, its text and its type."""
    for field in fields:
        quoted = field.name.replace("`", "``")
        column = F.col(f"`{quoted}`") if parent is None else parent.getField(field.name)
        if isinstance(field.dataType, StructType):
            yield from _texts(field.dataType.fields, column, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, _text(column, field.dataType), field.dataType


def named(name: str, text: Column, kind: str) -> Column:
    """A field of ``source_row``, with the type that it has in the source."""
    return text.alias(name, metadata={SOURCE_TYPE: kind})


def _text(column: Column, kind: DataType) -> Column:
    if isinstance(kind, StringType):
        return column
    if isinstance(kind, ArrayType | MapType | VariantType):
        return F.to_json(column)
    if isinstance(kind, DoubleType | FloatType):
        is_whole = (column % 1 == 0) & (F.abs(column) < 2**53)
        return F.when(is_whole, column.try_cast("bigint").cast("string")).otherwise(column.cast("string"))
    return column.cast("string")


def _check_names(names: Sequence[str], file: File, key: str) -> None:
    if not names:
        raise InputError(
            f"{key}.path: {file.path} is empty, or not compressed as its name says; expected a {file.format} file with at "
            "least one row"
        )
    if any(_is_binary(character) for name in names for character in name):
        raise InputError(
            f"{key}.path: {file.path} is not text (format {file.format}): its first line is binary; correct {key}.format, "
            f"end the file's name in .gz or .bz2 if it is compressed, or name the encoding of a text in {key}.options: "
            "{encoding: ISO-8859-1}, or {encoding: UTF-16, multiLine: 'true'}"
        )


def _is_binary(character: str) -> bool:
    return character == "\ufffd" or (unicodedata.category(character) == "Cc" and character != "\t")


def _explain(error: PySparkException | Py4JJavaError, key: str) -> str | None:
    """Say in one sentence why a file could not be read; None where that is not what failed."""
    messages = _messages(error)
    text = "\n".join(messages)
    for pattern, sentence in _CAUSES:
        if re.search(pattern, text):
            return sentence.format(cwd=Path.cwd(), key=key)
    if "FAILED_READ_FILE" in text or isinstance(error, AnalysisException):
        return messages[-1].strip().split("\n")[0]
    return None


def _culprit(error: PySparkException | Py4JJavaError, file: File) -> str:
    """The path of the settings, and of a folder or glob the file in it that Spark names."""
    found = re.search(_FILE_READ, "\n".join(_messages(error)))
    return file.path if found is None or found[1].endswith(file.path) else f"{file.path} ({found[1]})"


def _messages(error: PySparkException | Py4JJavaError) -> list[str]:
    """Spark's messages, from the outermost to the first cause."""
    if isinstance(error, PySparkException):
        return [str(error)]
    messages, cause = [], error.java_exception
    while cause is not None:
        messages.append(str(cause.getMessage()))
        cause = cause.getCause()
    return messages


def listed(names: Sequence[str], limit: int = 40) -> str:
    """The first names, for messages."""
    shown = ", ".join(names[:limit]) or "nothing"
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
