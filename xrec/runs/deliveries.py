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
    """A figure of the newest ingest where ``events`` holds other deliveries than this one; None where there are none."""
    if not tables.exists("events"):
        return None
    others = tables.read("events").where(F.col(C.DELIVERY_ID) != delivery_id)
    found = None if others.isEmpty() else newest_runs(tables).get("ingest")
    # The events themselves are not what this stage is made from.
    tables.read_versions.pop("events", None)
    return found.figures.get(figure, "none") if found else None


def newest_layouts(tables: Tables) -> dict[str, Mapping[str, str]]:
    """Each platform's columns and types (see :mod:`xrec.ingest.layout`) in the newest ingest; empty where there was none."""
    found = newest_runs(tables).get("ingest")
    return json.loads(found.figures.get(LAYOUTS, "{}")) if found else {}
