"""ingest: reads the log, the catalogue and the opt-outs, cleans, and writes events, events_quarantine, catalogue, opt_outs.

Example: ``./spark-submit.sh jobs/ingest.py --config conf/complete_journey.yaml --set log.delivery_id=2017``
"""

from __future__ import annotations

from pyspark.sql import functions as F

from xrec import columns as C
from xrec.ingest.catalogue import describe_catalogue, load_catalogue
from xrec.ingest.cleaning import cleaned
from xrec.ingest.privacy import KEY_FIGURE, check_same_key, fingerprint, load_opt_outs, read_key
from xrec.ingest.reader import read_raw
from xrec.runs.deliveries import figure_of_other_deliveries
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Ingest the delivery that the settings name; it replaces the rows of that delivery only."""
    settings, tables = context.settings, context.tables
    delivery_id = settings.log.delivery_id
    key = read_key(settings.privacy)
    check_same_key(key, figure_of_other_deliveries(tables, delivery_id, KEY_FIGURE))
    raw = read_raw(context.spark, settings.log.file)
    catalogue, num_left_out = load_catalogue(raw, settings)
    opt_outs = load_opt_outs(context.spark, settings.privacy, key)
    with cleaned(raw, settings, key) as log:
        delivery = F.lit(delivery_id).alias(C.DELIVERY_ID)
        tables.write("events", log.events.select("*", delivery), kept=True, delivery_id=delivery_id)
        tables.write("events_quarantine", log.quarantine.select("*", delivery), kept=True, delivery_id=delivery_id)
        tables.write("catalogue", catalogue)
        if opt_outs is not None:
            tables.write("opt_outs", opt_outs)
        described = describe_catalogue(tables.read("catalogue"), num_left_out)
        return {**log.figures(), **described, KEY_FIGURE: fingerprint(key)}


if __name__ == "__main__":
    main("ingest", run)
