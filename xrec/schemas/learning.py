"""Tables of what a fold learns from, and what it learned."""

from __future__ import annotations

from xrec import columns as C
from xrec.schemas.contract import Table

LEARNING = (
    Table(
        name="user_categories",
        row="a (user, category) of a fold; lapsed: bought before the look-back and not within it",
        columns=(
            "fold string, user_idx int, category string, weight double, touched boolean, home boolean, lapsed boolean"
        ),
        key=(C.FOLD, C.USER_IDX, C.CATEGORY),
        partitions=(C.FOLD,),
        owned_by=(C.FOLD,),
        made_by="fold",
    ),
    Table(
        name="value_limits",
        row=(
            "an item of a fold: quantity and price (as in events) beyond which a value is an outlier; null where too few are known"
        ),
        columns=(
            "fold string, item_idx int, quantity_low double, quantity_high double, price_low double, price_high double"
        ),
        key=(C.FOLD, C.ITEM_IDX),
        partitions=(C.FOLD,),
        owned_by=(C.FOLD,),
        made_by="fold",
    ),
    Table(
        name="interactions",
        row=(
            "a (user, item) of a fold: all its events before as-of; last_ts is the newest of its counting events, or where none "
            "counts of all; units and spend are quantity (one where unknown) and price summed over the counting events, outliers "
            "drawn in (null: unknown)"
        ),
        columns=(
            "fold string, user_idx int, item_idx int, weight double, num_events int, last_ts timestamp, "
            "counting boolean, units double, spend double, num_outliers int"
        ),
        key=(C.FOLD, C.USER_IDX, C.ITEM_IDX),
        partitions=(C.FOLD,),
        owned_by=(C.FOLD,),
        made_by="fold",
    ),
    Table(
        name="targets",
        row=(
            "a (user, item) of a counting event within a fold's horizon, with what was known before it: whether the item is new "
            "to the user and outside his touched or home categories, in a category that he bought before the look-back only "
            "(lapsed), was had by nobody, or the user has no history"
        ),
        columns=(
            "fold string, user_idx int, item_idx int, category string, cross_touched boolean, cross_home boolean, "
            "is_new boolean, lapsed boolean, cold_item boolean, cold_user boolean"
        ),
        key=(C.FOLD, C.USER_IDX, C.ITEM_IDX),
        partitions=(C.FOLD,),
        owned_by=(C.FOLD,),
        made_by="fold",
    ),
    Table(
        name="training_events",
        row="an event of a fold's history, with its balance weight and its number of copies",
        columns=(
            "fold string, event_id string, user_idx int, item_idx int, event_type string, platform string, event_ts timestamp, "
            "counting boolean, weight double, balance_weight double, num_copies int"
        ),
        key=(C.FOLD, C.EVENT_ID),
        partitions=(C.FOLD,),
        owned_by=(C.FOLD,),
        made_by="balance",
    ),
    Table(
        name="balance_report",
        row="a category of a fold's training rows, before and after balancing",
        columns=(
            "fold string, category string, num_events bigint, share double, balanced_events double, balanced_share double, "
            "effective_events double, num_copies bigint, largest_repeat int"
        ),
        key=(C.FOLD, C.CATEGORY),
        partitions=(C.FOLD,),
        owned_by=(C.FOLD,),
        made_by="balance",
    ),
    Table(
        name="feedback",
        row=(
            "a (user, item) of a fold that was shown before as-of and bought after it, or shown in vain (weight below 0), with the "
            "showings that count and its last purchase or showing"
        ),
        columns=(
            "fold string, user_idx int, item_idx int, event_type string, event_ts timestamp, num_shown bigint, weight double"
        ),
        key=(C.FOLD, C.USER_IDX, C.ITEM_IDX),
        partitions=(C.FOLD,),
        owned_by=(C.FOLD,),
        made_by="balance (where feedback is on)",
    ),
    Table(
        name="vocabulary",
        row=(
            "an item that the sequence models of a fold know; token 0 is padding, so tokens run from 1 without gaps; category_code "
            "is -1 where the item is never recommended, vector null where it is given none; words and paths are hashes of what the "
            "catalogue says of it. Tokens -1, -2, ... are items without history enough that are known by that alone"
        ),
        columns=(
            "fold string, token int, item_idx int, item_id string, num_buyers int, num_events int, category_code int, "
            "vector array<float>, words array<int>, paths array<int>"
        ),
        key=(C.FOLD, C.TOKEN),
        partitions=(C.FOLD,),
        owned_by=(C.FOLD,),
        made_by="export_sequences",
    ),
    Table(
        name="sequences",
        row=(
            "a window of a user's history in a fold, oldest token first, left-padded with 0 to length + 1 tokens: "
            "inputs are tokens[:-1], targets tokens[1:]; window 0 is the newest; baskets counts from the user's newest basket, 1; "
            "touched_at is the place in the window from which he has each category; context has the codes of each token, one token "
            "after the other; rows of row_weight 0 pad a shard. Split is train or validation; in a fold that is "
            "only encoded there is the newest window alone, changed or unchanged since the fold whose model encodes it"
        ),
        columns=(
            "fold string, split string, shard int, user_idx int, window int, tokens array<int>, "
            "token_weights array<float>, baskets array<int>, touched_at array<int>, context array<int>, row_weight float"
        ),
        key=(C.FOLD, C.USER_IDX, C.WINDOW),
        partitions=(C.FOLD, C.SPLIT, C.SHARD),
        rows_a_file=65_536,  # a training reads a file whole
        owned_by=(C.FOLD,),
        made_by="export_sequences",
    ),
    Table(
        name="vectors",
        row="a user's or an item's vector of a model: their dot product is the model's score",
        columns="fold string, model string, kind string, idx int, vector array<float>",
        key=(C.FOLD, C.MODEL, C.KIND, C.IDX),
        partitions=(C.FOLD, C.MODEL),
        owned_by=(C.FOLD, C.MODEL),
        made_by="train_als (als), make_item_vectors (word2vec, text_svd, file), load_vectors (gru, transformer)",
    ),
)
