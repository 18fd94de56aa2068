"""ingest: reads a delivery of the log, the catalogue and the opt-outs, cleans, and writes what it found and its accounts.

./spark-submit.sh jobs/ingest.py --config conf/complete_journey.yaml --set log.delivery_id=2017
./spark-submit.sh jobs/ingest.py --config conf/my_shop.yaml --set log.landing=true --set log.file.path=/data/landing
"""

import json

from xrec import columns as C
from xrec.ingest.attributes import describe_attributes, load_attributes
from xrec.ingest.catalogue import OWNER_OF_FILE, catalogue_of, describe_catalogue, load_entries
from xrec.ingest.feeds import describe_feeds, load_feeds
from xrec.ingest.identities import load_identities
from xrec.ingest.landing import take_arrivals
from xrec.ingest.loading import Loaded, load
from xrec.ingest.privacy import KEY_FIGURE, check_same_key, fingerprint, load_opt_outs, read_key
from xrec.runs.deliveries import LAYOUTS, figure_of_other_deliveries, newest_layouts
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Ingest the delivery that the settings name, of every platform, or what has landed since the last run."""
    settings, tables, spark = context.settings, context.tables, context.spark
    key = read_key(settings.privacy)
    check_same_key(key, figure_of_other_deliveries(tables, settings.log.delivery_id, KEY_FIGURE))
    entries = load_entries(spark, settings)
    identities = load_identities(spark, settings, key)
    opt_outs = load_opt_outs(spark, settings, key)
    attributes = load_attributes(spark, settings, key)
    feeds = load_feeds(spark, settings, key)
    loaded = Loaded(layouts=newest_layouts(tables))
    take_arrivals(tables, settings, lambda sources: load(tables, sources, key, loaded))
    loaded.require_some(tables, settings)
    if entries is not None:
        tables.write("catalogue_entries", entries[0], **OWNER_OF_FILE)
    events = tables.read("events") if entries is None else None
    said = tables.read("catalogue_entries").drop(C.VERSIONS)
    tables.write("catalogue", catalogue_of(said, settings, events))
    if identities is not None:
        tables.write("identities", identities)
    if opt_outs is not None:
        tables.write("opt_outs", opt_outs)
    if attributes is not None:
        tables.write("user_attributes", attributes[0])
    for name, rows in feeds.items():
        tables.write(name, rows)
    ours = {KEY_FIGURE: fingerprint(key), LAYOUTS: json.dumps(loaded.layouts)}
    known = {} if attributes is None else describe_attributes(tables.read("user_attributes"), attributes[1])
    known |= describe_feeds({name: tables.read(name) for name in feeds})
    items = describe_catalogue(tables.read("catalogue"), 0 if entries is None else entries[1])
    return {**loaded.figures(), **items, **known, **ours}


if __name__ == "__main__":
    main("ingest", run)
