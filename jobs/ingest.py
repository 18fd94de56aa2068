"""ingest: reads a delivery of the log, the catalogue and the opt-outs, cleans, and writes what it found and its accounts.

Example: ``./spark-submit.sh jobs/ingest.py --config conf/complete_journey.yaml --set log.delivery_id=2017``
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Settings
from xrec.ingest.catalogue import catalogue_of, describe_catalogue, load_entries_of_all
from xrec.ingest.cleaning import cleaned, describe_counts
from xrec.ingest.identities import load_identities
from xrec.ingest.layout import read_sources
from xrec.ingest.privacy import KEY_FIGURE, check_same_key, fingerprint, load_opt_outs, read_key
from xrec.ingest.reader import naming_platform
from xrec.runs.deliveries import LAYOUTS, figure_of_other_deliveries, newest_layouts
from xrec.runs.stage import Figures, StageContext, main
from xrec.storage.tables import Tables, rows_from


def run(context: StageContext) -> Figures:
    """Ingest the delivery that the settings name, of every platform; it replaces the rows of that delivery only."""
    settings, tables, spark = context.settings, context.tables, context.spark
    key = read_key(settings.privacy)
    check_same_key(key, figure_of_other_deliveries(tables, settings.log.delivery_id, KEY_FIGURE))
    identities = load_identities(spark, settings, key)
    opt_outs = load_opt_outs(spark, settings.privacy, key)
    raws, layouts, changes = read_sources(spark, settings, newest_layouts(tables))
    entries, num_left_out = load_entries_of_all(raws)
    counts = {source.log.platform: write_log(tables, raw, source, key) for source, raw in raws}
    for owner, said in entries:
        tables.write("catalogue_entries", said, **owner)
    tables.write("catalogue", catalogue_of(tables.read("catalogue_entries").drop(C.VERSIONS), settings))
    if identities is not None:
        tables.write("identities", identities)
    if opt_outs is not None:
        tables.write("opt_outs", opt_outs)
    described = describe_catalogue(tables.read("catalogue"), num_left_out)
    ours = {KEY_FIGURE: fingerprint(key), LAYOUTS: json.dumps(layouts)}
    return {**describe_counts(counts), **changes, **described, **ours}


def write_log(tables: Tables, raw: DataFrame, settings: Settings, key: bytes | None) -> Counter[str]:
    """Clean the delivery of a platform and write its events, its quarantine and its accounts."""
    owner: dict[str, Any] = {C.DELIVERY_ID: settings.log.delivery_id, C.PLATFORM: settings.log.platform}
    owners = [F.lit(value).alias(name) for name, value in owner.items()]
    with naming_platform(settings), cleaned(raw, settings, key) as log:
        tables.write("events", log.events.select("*", *owners), kept=True, **owner)
        tables.write("events_quarantine", log.quarantine.select("*", *owners), kept=True, **owner)
        accounts = [{**owner, **account} for account in log.account_rows()]
        tables.write("accounts", rows_from(tables.spark, "accounts", accounts), **owner)
        return log.counts()


if __name__ == "__main__":
    main("ingest", run)
