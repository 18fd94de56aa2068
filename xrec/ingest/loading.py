"""Deliveries into the tables: events, quarantine, accounts and what a log says of its items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Settings
from xrec.ingest.cleaning import CleanLog, cleaned, describe_counts
from xrec.ingest.layout import read_sources
from xrec.ingest.reader import InputError, naming_platform
from xrec.storage.tables import Tables, rows_from


@dataclass(kw_only=True)
class Loaded:
    """What came of the deliveries of a run."""

    layouts: dict[str, Mapping[str, str]]
    """Each platform's columns and types in its newest delivery."""
    changes: dict[str, str] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """By platform: see :meth:`xrec.ingest.cleaning.CleanLog.counts`."""
    deliveries: list[str] = field(default_factory=list)

    def require_some(self, tables: Tables, settings: Settings) -> None:
        """Raise InputError where nothing was loaded, neither now nor before."""
        if not self.deliveries and not tables.exists("events"):
            folders = ", ".join(source.log.file.path for source in settings.sources)
            raise InputError(f"log.file.path: found no file in {folders}, expected at least one (log.landing: true)")

    def figures(self) -> dict[str, str]:
        """For the summary."""
        figures = describe_counts(self.counts) | self.changes
        return figures | {"deliveries": ", ".join(dict.fromkeys(self.deliveries)) or "nothing new has landed"}


def load(tables: Tables, sources: Sequence[Settings], key: bytes | None, loaded: Loaded) -> None:
    """Load a delivery of each of these platforms, all cleaned before one is written, and add what came of it to ``loaded``.

    Raises
    ------
    InputError
        See :func:`xrec.ingest.layout.read_sources` and :func:`xrec.ingest.cleaning.cleaned`.
    """
    raws, layouts, changes = read_sources(tables.spark, sources, loaded.layouts)
    with ExitStack() as stack:
        logs = []
        for source, raw in raws:
            with naming_platform(source):
                logs.append((source, stack.enter_context(cleaned(raw, source, key))))
        for source, log in logs:
            with naming_platform(source):
                write_log(tables, log, source)
            loaded.counts.setdefault(source.log.platform, Counter()).update(log.counts())
            loaded.deliveries.append(source.log.delivery_id)
    loaded.layouts |= layouts
    loaded.changes |= changes


def write_log(tables: Tables, log: CleanLog, settings: Settings) -> None:
    """Write the events of a platform's delivery, its quarantine, its accounts and what it says of items."""
    owner: dict[str, Any] = {C.DELIVERY_ID: settings.log.delivery_id, C.PLATFORM: settings.log.platform}
    owners = [F.lit(value).alias(name) for name, value in owner.items()]
    tables.write("events", log.events.select("*", *owners), kept=True, **owner)
    tables.write("events_quarantine", log.quarantine.select("*", *owners), kept=True, **owner)
    accounts = [{**owner, **account} for account in log.account_rows()]
    tables.write("accounts", rows_from(tables.spark, "accounts", accounts), **owner)
    if log.entries is not None:
        tables.write("catalogue_entries", log.entries.select("*", *owners), **owner)


def remove_delivery(tables: Tables, delivery_id: str) -> None:
    """Remove what :func:`write_log` wrote of a delivery that was killed and whose files are gone."""
    for name in ("events", "events_quarantine", "accounts", "catalogue_entries"):
        if tables.exists(name):
            tables.remove_rows(name, C.DELIVERY_ID, [delivery_id])
