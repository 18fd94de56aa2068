"""The columns of a source from one delivery to the next: what is new is told, what is gone or of another type stops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import DataFrame, SparkSession

from xrec.config import Settings
from xrec.ingest.reader import InputError, column_names, listed, naming_platform, read_raw, source_type


def read_sources(
    spark: SparkSession, sources: Sequence[Settings], earlier: Mapping[str, Mapping[str, str]]
) -> tuple[list[tuple[Settings, DataFrame]], dict[str, Mapping[str, str]], dict[str, str]]:
    """Each platform's settings and raw rows, all layouts, and what changed: all are looked at before one is written.

    ``earlier`` has each platform's columns and types in the delivery before; see :func:`check_layout` for what is raised.
    """
    raws, layouts, changes = [], dict(earlier), dict[str, str]()
    for source in sources:
        with naming_platform(source):
            raw = read_raw(spark, source.log.file)
            layout = layout_of(raw)
            changes |= check_layout(layout, earlier.get(source.log.platform, {}), source)
        layouts[source.log.platform] = layout
        raws.append((source, raw))
    return raws, layouts, changes


def layout_of(raw: DataFrame) -> dict[str, str]:
    """The columns of :func:`xrec.ingest.reader.read_raw` with their types in the source; text files know only text."""
    return {name: source_type(raw, name) for name in column_names(raw)}


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
    # JSON lines have the keys that their rows happen to have; a mapped one that is missing stops elsewhere.
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
