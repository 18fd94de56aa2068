"""The columns of a source from one delivery to the next: what is new is told, what is gone or of another type stops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Settings
from xrec.ingest.catalogue import mapped_columns
from xrec.ingest.reader import InputError, column_names, listed, named, naming_platform, read_raw, reading, source_type


def read_sources(
    spark: SparkSession, sources: Sequence[Settings], earlier: Mapping[str, Mapping[str, str]]
) -> tuple[list[tuple[Settings, DataFrame]], dict[str, Mapping[str, str]], dict[str, str]]:
    """Each platform's settings and raw rows, all layouts, and what changed: all are looked at before one is written.

    ``earlier`` has each platform's columns and types in the delivery before; see :func:`check_layout` for what is raised.
    """
    raws, layouts, changes = [], dict(earlier), dict[str, str]()
    for source in sources:
        with naming_platform(source):
            raw, before = read_raw(spark, source.log.file), earlier.get(source.log.platform, {})
            names = column_names(raw)
            if source.log.file.format == "jsonl":
                raw = _completed(raw, before, source)
            layout = layout_of(raw)
            changes |= check_layout({name: layout[name] for name in names}, before, source)
        layouts[source.log.platform] = layout
        raws.append((source, raw))
    return raws, layouts, changes


def layout_of(raw: DataFrame) -> dict[str, str]:
    """The columns of :func:`xrec.ingest.reader.read_raw` with their types in the source; text files know only text."""
    return {name: source_type(raw, name) for name in column_names(raw)}


def _completed(raw: DataFrame, earlier: Mapping[str, str], settings: Settings) -> DataFrame:
    """JSON lines with the mapped columns that the delivery before had and no row has now, as nulls.

    Spark takes columns and types from the rows that are there: what is null in all of them looks like a text, but keeps the type
    that it had.
    """
    now, value = layout_of(raw), F.col(C.SOURCE_ROW).getField
    missing = [name for name in earlier if name not in now and name in mapped_columns(settings)]
    texts = [name for name in earlier if now.get(name) == "string" and earlier[name] != "string"]
    with reading(settings.log.file):
        missing += [name for name in texts if raw.where(value(name).isNotNull()).isEmpty()]
    kinds = now | {name: earlier[name] for name in missing}
    fields = [named(name, value(name) if name in now else F.lit(None).cast("string"), kinds[name]) for name in kinds]
    return raw.withColumn(C.SOURCE_ROW, F.struct(*fields))


def check_layout(now: Mapping[str, str], earlier: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """What is new beside the platform's delivery before, for the summary; nothing where nothing is.

    Parameters
    ----------
    now, earlier
        Column to type; ``earlier`` is empty where there was no delivery.

    Raises
    ------
    InputError
        A column is gone (JSON lines apart) or has another type, and ``log.layout_may_change`` is not set: a log whose export
        was changed by mistake is not mixed with the good one.
    """
    if not earlier:
        return {}
    path = settings.log.file.path
    gone = [name for name in earlier if name not in now]
    retyped = [name for name in earlier if name in now and now[name] != earlier[name]]
    # JSON lines have the keys that their rows happen to have; a mapped one that was never there stops elsewhere.
    missed = [] if settings.log.file.format == "jsonl" else gone
    if (missed or retyped) and not settings.log.layout_may_change:
        faults = [f"found no column '{name}' in {path}, expected it as in the delivery before" for name in missed]
        faults += [
            f"found column '{name}' of {path} as {now[name]}, expected {earlier[name]} as in the delivery before"
            for name in retyped
        ]
        raise InputError(
            "\n".join(f"log.file.path: {fault}" for fault in faults)
            + "\nmend the file; or, where this is how the log looks from now on, run once with --set log.layout_may_change=true"
        )
    figures = {}
    new = [name for name in now if name not in earlier]
    for what, names in (("new", new), ("gone", gone), ("retyped", retyped)):
        if names:
            figures[f"columns_{what} ({settings.log.platform})"] = listed(names)
    return figures
