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
from xrec.ingest.catalogue import catalogue_of, describe_catalogue, load_entries, owner_of_entries
from xrec.ingest.cleaning import cleaned, describe_counts, naming_platform
from xrec.ingest.identities import load_identities
from xrec.ingest.layout import check_layout, layout_of
from xrec.ingest.privacy import KEY_FIGURE, check_same_key, fingerprint, load_opt_outs, read_key
from xrec.ingest.reader import read_raw
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
    num_left_out, counts, changes = 0, dict[str, Counter[str]](), dict[str, str]()
    layouts = newest_layouts(tables)
    for source in settings.sources:
        with naming_platform(source):
            raw = read_raw(spark, source.log.file)
            layout = layout_of(raw)
            changes |= check_layout(layout, layouts.get(source.log.platform, {}), source)
            layouts[source.log.platform] = layout
            says_of_items = source.catalogue.file is None or not counts  # a catalogue file is the same for all
            entries, num_left_out = load_entries(raw, source) if says_of_items else (None, num_left_out)
            counts[source.log.platform] = write_log(tables, raw, source, key)
            if entries is not None:
                tables.write("catalogue_entries", entries, **owner_of_entries(source))
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
    with cleaned(raw, settings, key) as log:
        tables.write("events", log.events.select("*", *owners), kept=True, **owner)
        tables.write("events_quarantine", log.quarantine.select("*", *owners), kept=True, **owner)
        accounts = [
            {**owner, C.FILE: file, C.OUTCOME: outcome, C.NUM_ROWS: count}
            for (file, outcome), count in sorted(log.accounts.items())
        ]
        tables.write("accounts", rows_from(tables.spark, "accounts", accounts), **owner)
        return log.counts()


if __name__ == "__main__":
    main("ingest", run)
