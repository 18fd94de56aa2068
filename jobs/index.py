"""index: give every item and user ever seen a dense, stable index, and every item its category.

./spark-submit.sh jobs/index.py --config conf/complete_journey.yaml
"""

from xrec import columns as C
from xrec.features.index import assign_dense_index, describe_index, describe_same_names, index_items
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Extend the tables ``items`` and ``users`` by what the catalogue and the events hold."""
    tables, settings = context.tables, context.settings
    events = tables.read("judged_events")
    items = index_items(
        tables.read("catalogue"),
        events,
        existing=tables.read("items").drop(C.VERSIONS) if tables.exists("items") else None,
        level=settings.categories.level,
        non_merchandise=settings.categories.non_merchandise,
        num_buckets=settings.num_buckets,
    )
    tables.write("items", items)
    users = assign_dense_index(
        events,
        key=C.USER_ID,
        index=C.USER_IDX,
        existing=tables.read("users").select(C.USER_ID, C.USER_IDX) if tables.exists("users") else None,
        num_buckets=settings.num_buckets,
    )
    tables.write("users", users)
    items = tables.read("items")
    return {**describe_index(items, tables.read("users")), **describe_same_names(items, settings.categories.level)}


if __name__ == "__main__":
    main("index", run)
