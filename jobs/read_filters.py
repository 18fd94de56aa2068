"""read_filters: loads the shop's feeds behind the filters again, without the log, so that what comes next asks today's.

./spark-submit.sh jobs/read_filters.py --config conf/my_shop.yaml --set filters.items.file.path=stock-2024-05-17.csv
"""

from xrec.ingest.feeds import describe_feeds, load_feeds, require_feeds
from xrec.ingest.privacy import KEY_FIGURE, check_same_key, read_key
from xrec.runs.deliveries import figure_of_other_deliveries
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Write ``item_filters``, ``user_filters`` and ``blocked_pairs``: each where the settings name its file."""
    settings, tables = context.settings, context.tables
    require_feeds(settings)
    key = read_key(settings.privacy)
    # No delivery of the log is this one: all of them must have the same key.
    check_same_key(key, figure_of_other_deliveries(tables, "", KEY_FIGURE))
    feeds = load_feeds(context.spark, settings, key)
    for name, rows in feeds.items():
        tables.write(name, rows)
    return describe_feeds({name: tables.read(name) for name in feeds})


if __name__ == "__main__":
    main("read_filters", run)
