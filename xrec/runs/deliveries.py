"""What the deliveries that a log already holds were made with."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pyspark.sql import functions as F

from xrec import columns as C
from xrec.runs.ledger import newest_runs
from xrec.storage.tables import Tables

LAYOUTS = "_layouts"
"""The figure of ingest that has each platform's columns and types, as JSON; for the next ingest, not for people."""


def figure_of_other_deliveries(tables: Tables, delivery_id: str, figure: str) -> str | None:
    """A figure of the newest ingest where the tables hold other deliveries than this one; None where they do not.

    They do also where the table ``users`` is there: it keeps the users of every delivery, also of one that is replaced.
    """
    if not tables.exists("users") and not _holds_others(tables, delivery_id):
        return None
    found = newest_runs(tables).get("ingest")
    return found.figures.get(figure, "none") if found else None


def _holds_others(tables: Tables, delivery_id: str) -> bool:
    if not tables.exists("events"):
        return False
    others = tables.read("events").where(F.col(C.DELIVERY_ID) != delivery_id)
    found = not others.isEmpty()
    # The events themselves are not what this stage is made from.
    tables.read_versions.pop("events", None)
    return found


def newest_layouts(tables: Tables) -> dict[str, Mapping[str, str]]:
    """Each platform's columns and types (see :mod:`xrec.ingest.layout`) in the newest ingest; empty where there was none."""
    found = newest_runs(tables).get("ingest")
    return json.loads(found.figures.get(LAYOUTS, "{}")) if found else {}
