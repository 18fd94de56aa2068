"""What the deliveries that a log already holds were made with."""

from __future__ import annotations

from pyspark.sql import functions as F

from xrec import columns as C
from xrec.runs.ledger import newest_runs
from xrec.storage.tables import Tables


def figure_of_other_deliveries(tables: Tables, delivery_id: str, figure: str) -> str | None:
    """A figure of the newest ingest where ``events`` holds other deliveries than this one; None where there are none."""
    if not tables.exists("events"):
        return None
    others = tables.read("events").where(F.col(C.DELIVERY_ID) != delivery_id)
    found = None if others.isEmpty() else newest_runs(tables).get("ingest")
    # The events themselves are not what this stage is made from.
    tables.read_versions.pop("events", None)
    return found.figures.get(figure, "none") if found else None
