"""Tables of what came in, and what became of it: the log, its catalogue, its persons."""

from __future__ import annotations

from xrec import columns as C
from xrec.schemas.contract import Table

LOG = (
    Table(
        name="events",
        row=(
            "a clean event, with its platform, the user's key there, the delivery that it came in and, where the log is its own "
            "catalogue, what the event and its exact duplicates say of their item: hashes of rows of catalogue_entries"
        ),
        columns=(
            "event_id string, platform string, user_id string, item_id string, event_type string, event_ts timestamp, "
            "quantity double, price double, delivery_id string, said array<bigint>"
        ),
        key=(C.DELIVERY_ID, C.EVENT_ID),
        owned_by=(C.DELIVERY_ID, C.PLATFORM),
        partitions=(C.DELIVERY_ID, C.PLATFORM),
        change_feed=True,
        made_by="ingest",
    ),
    Table(
        name="events_quarantine",
        row="a rejected input row with every reason",
        columns="row_id string, platform string, file string, raw string, reasons array<string>, delivery_id string",
        key=(C.DELIVERY_ID, C.ROW_ID),
        owned_by=(C.DELIVERY_ID, C.PLATFORM),
        partitions=(C.DELIVERY_ID, C.PLATFORM),
        made_by="ingest",
    ),
    Table(
        name="accounts",
        row="what became of the rows of a file of a delivery: an outcome (clean, quarantined, duplicate) or a reason, and how many",
        columns="delivery_id string, platform string, file string, outcome string, num_rows bigint",
        key=(C.DELIVERY_ID, C.PLATFORM, C.FILE, C.OUTCOME),
        owned_by=(C.DELIVERY_ID, C.PLATFORM),
        partitions=(C.DELIVERY_ID, C.PLATFORM),
        made_by="ingest",
    ),
    Table(
        name="opt_outs",
        row="a user who opted out, whether the log knows him or not; without a platform (empty) by the key that the lists have",
        columns="platform string, user_id string",
        key=(C.PLATFORM, C.USER_ID),
        change_feed=True,
        made_by="ingest (where privacy.opt_outs names a list)",
    ),
    Table(
        name="identities",
        row="a user of a platform and the person who he is from a time on",
        columns="platform string, user_id string, person_id string, valid_from_ts timestamp",
        key=(C.PLATFORM, C.USER_ID, C.VALID_FROM_TS),
        change_feed=True,
        made_by="ingest (where identity.file names a table)",
    ),
    Table(
        name="user_attributes",
        row=(
            "a user's value of an attribute, as coarse as users.attributes says; without a platform (empty) by the key that the "
            "lists have"
        ),
        columns="platform string, user_id string, attribute string, value string",
        key=(C.PLATFORM, C.USER_ID, C.ATTRIBUTE),
        made_by="ingest (where users names a file)",
    ),
    Table(
        name="item_filters",
        row="an item of the shop's feed, with the text of each attribute of filters.items (null: unknown)",
        columns="item_id string, attributes map<string,string>",
        key=(C.ITEM_ID,),
        made_by="ingest (where filters.items names a file)",
    ),
    Table(
        name="user_filters",
        row=(
            "a user of the shop's feed, with the text of each attribute of filters.users (null: unknown); without a platform "
            "(empty) by the key that the lists have"
        ),
        columns="platform string, user_id string, attributes map<string,string>",
        key=(C.PLATFORM, C.USER_ID),
        made_by="ingest (where filters.users names a file)",
    ),
    Table(
        name="blocked_pairs",
        row="an item that a user must not get; without a platform (empty) by the key that the lists have",
        columns="platform string, user_id string, item_id string",
        key=(C.PLATFORM, C.USER_ID, C.ITEM_ID),
        made_by="ingest (where filters.blocked names a file)",
    ),
    Table(
        name="exposures",
        row=(
            "an item shown to a user at a time in an arm of an experiment (no item: the user was in the arm; no arm: the one that "
            "the hash assigns); without a platform (empty) by the key that the lists have"
        ),
        columns=(
            "exposure_id string, experiment string, arm string, platform string, user_id string, item_id string, "
            "shown_ts timestamp, rank int, delivery_id string"
        ),
        key=(C.DELIVERY_ID, C.EXPOSURE_ID),
        owned_by=(C.DELIVERY_ID,),
        partitions=(C.DELIVERY_ID,),
        made_by="read_experiment",
    ),
    Table(
        name="persons",
        row="a user of the log, with the signs of his busiest day and, where he is flagged as no person, since when and why",
        columns=(
            "user_id string, num_events bigint, num_days bigint, events_a_day bigint, items_a_day bigint, "
            "hours_a_day bigint, gap_variation double, flagged_ts timestamp, evidence array<string>"
        ),
        key=(C.USER_ID,),
        made_by="judge",
    ),
    Table(
        name="judged_events",
        row=(
            "a clean event of a person (user_id), with its use, since when it does not count (null: it counts), and when its "
            "session began"
        ),
        columns=(
            "event_id string, platform string, user_id string, item_id string, event_type string, event_ts timestamp, "
            "quantity double, price double, use string, void_ts timestamp, session_ts timestamp"
        ),
        key=(C.EVENT_ID,),
        made_by="judge",
    ),
    Table(
        name="catalogue_entries",
        row=(
            "a (category path, label) that a delivery, or the catalogue file, gives an item, with when the newest row that says so "
            "was written, and how many rows of the file do (null: a delivery's events tell); a missing label is an empty one"
        ),
        columns=(
            "delivery_id string, platform string, item_id string, category_path array<string>, label string, "
            "updated_ts timestamp, num_rows bigint"
        ),
        key=(C.DELIVERY_ID, C.PLATFORM, C.ITEM_ID, C.CATEGORY_PATH, C.LABEL),
        owned_by=(C.DELIVERY_ID, C.PLATFORM),
        partitions=(C.DELIVERY_ID, C.PLATFORM),
        made_by="ingest",
    ),
    Table(
        name="catalogue",
        row="an item of the source's catalogue, with its category path from the root down and those that lost to it",
        columns="item_id string, category_path array<string>, label string, other_paths array<array<string>>",
        key=(C.ITEM_ID,),
        made_by="ingest",
    ),
    Table(
        name="items",
        row="an item ever seen in the catalogue or the log, with its dense index (stable, grows from 0)",
        columns=(
            "item_id string, item_idx int, category string, category_path array<string>, label string, "
            "in_catalogue boolean, recommendable boolean"
        ),
        key=(C.ITEM_ID,),
        made_by="index",
    ),
    Table(
        name="users",
        row="a user ever seen in the log, with its dense index (stable, grows from 0)",
        columns="user_id string, user_idx int",
        key=(C.USER_ID,),
        made_by="index",
    ),
)
