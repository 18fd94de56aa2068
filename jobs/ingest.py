"""ingest: reads the log and the catalogue, cleans, and writes events, events_quarantine and catalogue.

Example: ``./spark-submit.sh jobs/ingest.py --config conf/complete_journey.yaml --set log.delivery_id=2017``
"""

from __future__ import annotations

from pyspark.sql import functions as F

from xrec import columns as C
from xrec.ingest.catalogue import load_catalogue
from xrec.ingest.cleaning import cleaned
from xrec.ingest.reader import read_raw
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Ingest the delivery that the settings name; it replaces the rows of that delivery only."""
    settings = context.settings
    delivery_id = settings.log.delivery_id
    raw = read_raw(context.spark, settings.log.file)
    catalogue = load_catalogue(raw, settings)
    with cleaned(raw, settings) as log:
        delivery = F.lit(delivery_id).alias(C.DELIVERY_ID)
        context.tables.write("events", log.events.select("*", delivery), delivery_id=delivery_id)
        context.tables.write("events_quarantine", log.quarantine.select("*", delivery), delivery_id=delivery_id)
        context.tables.write("catalogue", catalogue)
        return log.figures()


if __name__ == "__main__":
    main("ingest", run)
