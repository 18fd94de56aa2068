"""What the catalogue says of items: hashes of words, items without history, and vectors by content."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
import torch
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Catalogue, Sequence
from xrec.config.inputs import File
from xrec.features.item_content import (
    MAX_DEPTH,
    MAX_WORDS,
    PRICE_LEVELS,
    cold_shares,
    content_of,
    offered_then,
    price_levels,
)
from xrec.features.sequence_files import NUM_HASHES
from xrec.features.vocabulary import build_vocabulary, check_vocabulary
from xrec.sequence.content import Content
from xrec.sequence.encode import cold_shift
from xrec.sequence.item_encoder import ItemEncoder

ITEMS = [
    (0, "Green Tea", ["food", "tea"]),
    (1, "tea, green!", ["food", "tea"]),
    (2, "Ölsardinen 2 x a", ["food"]),
    (3, None, None),
    (4, " ".join(f"word{n}" for n in range(30)), [f"level{n}" for n in range(10)]),
    (5, "Black Tea", ["food", "tea"]),
]
START = datetime(2020, 1, 1, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def items(spark: SparkSession) -> DataFrame:
    rows = spark.createDataFrame(ITEMS, "item_idx int, label string, category_path array<string>")
    ids = rows.withColumn(C.ITEM_ID, F.concat(F.lit("i"), C.ITEM_IDX))
    return ids.withColumn(C.CATEGORY, F.element_at(C.CATEGORY_PATH, -1))


@pytest.fixture(scope="module")
def bought(spark: SparkSession) -> DataFrame:
    """Teas 0, 1 and 5 at 1, 3 and 2 apiece, in that order; 4 alone in its category; nobody bought 2, and 3 cost nothing."""
    rows = [(0, 2.0, 2.0), (1, 1.0, 4.0), (1, 1.0, 2.0), (5, 1.0, 2.0), (4, 1.0, 9.0), (3, 1.0, 0.0)]
    return spark.createDataFrame(rows, "item_idx int, units double, spend double")


def contents(items: DataFrame, bought: DataFrame, *parts: str) -> dict[int, tuple[list[int], list[int]]]:
    content = content_of(items, Sequence(item_content=parts), bought)
    assert content is not None
    rows = content.collect()
    return {row[C.ITEM_IDX]: (row[C.WORDS], row[C.PATHS]) for row in rows}


@pytest.mark.spark
def test_words_and_beginnings_of_paths_are_hashed(items: DataFrame, bought: DataFrame) -> None:
    found = contents(items, bought, "text", "path")
    (green_tea, paths), (tea_green, same_paths) = found[0], found[1]
    assert green_tea == tea_green[::-1], "the case and the marks are no part of a word, the order is kept"
    assert len(set(green_tea)) == 2
    assert paths == same_paths
    assert found[2][1] == paths[:1], "food is the beginning of food/tea"
    assert len(found[2][0]) == 1, "one letter is no word, and an umlaut is one of a word"
    assert found[3] == ([], [])
    assert (len(found[4][0]), len(found[4][1])) == (MAX_WORDS, MAX_DEPTH)
    assert all(0 < number <= NUM_HASHES for words, path in found.values() for number in (*words, *path))


@pytest.mark.spark
def test_a_part_can_be_left_out(items: DataFrame, bought: DataFrame) -> None:
    both, text, path = (contents(items, bought, *parts) for parts in (("text", "path"), ("text",), ("path",)))
    assert text == {item: (words, []) for item, (words, _) in both.items()}
    assert path == {item: ([], paths) for item, (_, paths) in both.items()}


@pytest.mark.spark
def test_the_price_counts_among_the_items_of_the_category(items: DataFrame, bought: DataFrame) -> None:
    levels = {row[C.ITEM_IDX]: row["level"] for row in price_levels(items, bought).collect()}
    assert levels == {0: 1, 5: 3, 1: 5, 4: 3}, "of three a low, a middle and a high one; the only one is in the middle"
    assert max(levels.values()) <= PRICE_LEVELS
    path, priced = contents(items, bought, "path"), contents(items, bought, "path", "price")
    alone = contents(items, bought, "price")
    assert all(priced[item] == ([], [*path[item][1], *alone[item][1]]) for item in priced)
    assert alone[5] == alone[4], "a level is the same word in every category"
    assert len({tuple(alone[item][1]) for item in (0, 5, 1)}) == 3
    assert alone[2] == alone[3] == ([], [])


@pytest.mark.spark
def test_without_content_nothing_is_computed(spark: SparkSession, items: DataFrame, bought: DataFrame) -> None:
    assert content_of(items, Sequence(), bought) is None
    assert cold_shares(events_of(spark, [(0, 0, 0)]), Sequence()) == {}


def events_of(spark: SparkSession, rows: list[tuple[int, int, int]]) -> DataFrame:
    """Rows of (user, item, day)."""
    return spark.createDataFrame(
        [("f", str(n), user, item, START + timedelta(days=day)) for n, (user, item, day) in enumerate(rows)],
        "fold string, event_id string, user_idx int, item_idx int, event_ts timestamp",
    )


@pytest.mark.spark
def test_items_without_history_follow_with_tokens_below_zero(
    spark: SparkSession, items: DataFrame, bought: DataFrame
) -> None:
    """Items 0 and 1 have two buyers, 2 has one, 3 nothing at all, 4 and 5 no buyer; 5 may not be recommended."""
    sequence = Sequence(item_content=("text", "path"), min_buyers=2)
    events = events_of(spark, [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1), (0, 2, 2), (0, 2, 3)])
    eligible = spark.createDataFrame([(n, 0) for n in range(5)], "item_idx int, category_code int")
    content = content_of(items, sequence, bought)
    rows = build_vocabulary(events, items, eligible, sequence, fold="f", num_buckets=3, content=content).collect()
    tokens = {row[C.ITEM_IDX]: row[C.TOKEN] for row in rows}
    assert sorted(tokens[item] for item in (0, 1)) == [1, 2]
    assert sorted(tokens[item] for item in (2, 4)) == [-2, -1]
    assert tokens.keys() == {0, 1, 2, 4}, "of item 3 nothing is known, item 5 is never recommended"
    by_item = {row[C.ITEM_IDX]: row for row in rows}
    assert (by_item[2][C.NUM_BUYERS], by_item[2][C.NUM_EVENTS]) == (1, 2)
    assert (by_item[4][C.NUM_BUYERS], by_item[4][C.NUM_EVENTS]) == (0, 0)
    assert all(row[C.WORDS] and row[C.FOLD] == "f" for row in rows)
    assert {row[C.ITEM_ID] for row in rows} == {"i0", "i1", "i2", "i4"}
    vocabulary = spark.createDataFrame(
        rows,
        "fold string, item_id string, token int, item_idx int, num_buyers int, num_events int, "
        "category_code int, vector array<float>, words array<int>, paths array<int>",
    )
    assert check_vocabulary(vocabulary, ["f"], sequence) == {"f": 2}, "cold items are none of the vocabulary"


@pytest.mark.spark
def test_a_fold_knows_no_item_that_the_log_named_later(
    spark: SparkSession, items: DataFrame, bought: DataFrame
) -> None:
    """``items`` is of the whole log: nobody had item 2 before as-of. A catalogue's file may have had it."""
    sequence = Sequence(item_content=("text", "path"), min_buyers=2)
    events = events_of(spark, [(0, 0, 0), (1, 0, 0), (0, 1, 1)])
    eligible = items.select(C.ITEM_IDX, F.lit(0).alias(C.CATEGORY_CODE))
    content = content_of(items, sequence, bought)

    def cold(catalogue: Catalogue) -> set[int]:
        offered = offered_then(catalogue, bought)
        rows = build_vocabulary(
            events, items, eligible, sequence, fold="f", num_buckets=3, content=content, offered=offered
        )
        return {row[C.ITEM_IDX] for row in rows.where(F.col(C.TOKEN) < 0).collect()}

    assert cold(Catalogue(category=("c",))) == {1, 4, 5}
    assert cold(Catalogue(category=("c",), file=File(path="x", format="csv"))) == {1, 2, 4, 5}


@pytest.mark.spark
def test_the_share_of_cold_items_is_counted_by_hand(spark: SparkSession) -> None:
    """Days 0 to 9, ten events; the newest tenth is day 9's: two events of item 0, which two had before, one of item 1, new."""
    history = [(user, 0, day) for day in range(9) for user in (day % 3, 3)]
    late = [(7, 0, 9), (8, 0, 9), (9, 1, 9)]
    shares = cold_shares(events_of(spark, history + late), Sequence(min_buyers=2, item_content=("text",)))
    assert shares == {"f": pytest.approx(1.5 / 4)}


@pytest.mark.spark
def test_without_cold_purchases_the_share_is_not_zero(spark: SparkSession) -> None:
    events = events_of(spark, [(user, 0, day) for day in range(10) for user in range(3)])
    shares = cold_shares(events, Sequence(min_buyers=1, item_content=("text",)))
    assert shares == {"f": pytest.approx(0.5 / 7)}, "the last two days"


@pytest.mark.spark
def test_of_a_log_of_one_moment_no_share_is_known(spark: SparkSession) -> None:
    shares = cold_shares(
        events_of(spark, [(user, user % 4, 0) for user in range(20)]), Sequence(min_buyers=2, item_content=("text",))
    )
    assert shares == {"f": pytest.approx(0.5 / 21)}


def content_module() -> Content:
    torch.manual_seed(6)
    content = Content(num_items=5, num_words=4, num_paths=2, dim=8)
    with torch.no_grad():
        content.words_IW.copy_(torch.tensor([[0, 0, 0, 0], [5, 6, 0, 0], [6, 5, 0, 0], [5, 6, 7, 8], [0, 0, 0, 0]]))
        content.paths_IP.copy_(torch.tensor([[0, 0], [9, 0], [9, 0], [9, 8], [0, 0]]))
    return content


def test_content_is_the_words_and_their_order_and_nothing_is_zero() -> None:
    content = content_module()
    found = content(torch.arange(5)).detach()
    assert not found[0].any(), "padding"
    assert not found[4].any(), "an item without a word"
    assert len(found[1:4].unique(dim=0)) == 3, "the convolution sees the order of words"
    longer = Content(num_items=5, num_words=7, num_paths=3, dim=8)
    with torch.no_grad():
        for to, by in zip(longer.parameters(), content.parameters(), strict=True):
            if by.requires_grad:
                to.copy_(by)
        longer.words_IW[:, :4], longer.paths_IP[:, :2] = content.words_IW, content.paths_IP
    torch.testing.assert_close(
        longer(torch.arange(5)), content(torch.arange(5)), msg="padding of words changes nothing"
    )


@pytest.mark.parametrize("given", [False, True])
def test_an_item_is_its_own_part_or_its_content(given: bool) -> None:
    """Tokens 1 and 2 have a history (2 no given vector), token 3 is cold; 1 is left out in a step."""
    items = ItemEncoder(vocabulary_size=2, dim=8, given=given, content={"num_items": 5, "num_words": 4, "num_paths": 2})
    items.content = content_module()
    if given:
        items.give(torch.tensor([[0.0] * 8, [1.0] * 8, [0.0] * 8]))
    items.start_from(torch.tensor([0, 0.7, 0.3]))
    content, tokens = items.content(torch.arange(5)), torch.tensor([[3, 1], [0, 2]])
    own = items.embedding.weight[1] if given else items.embedding.weight[1] + content[1, :-1]
    second = content[2, :-1] if given else items.embedding.weight[2] + content[2, :-1]
    items.eval()
    items.leave_out(0, 1.0)
    expected = torch.stack([content[3, :-1], own, torch.zeros(8), second]).view(2, 2, 8)
    torch.testing.assert_close(items(tokens), expected, msg="not in training")
    (vectors_SD, bias_S), (vectors_PD, bias_P) = items.outputs(torch.tensor([3, 1, 1]), torch.tensor([2]))
    torch.testing.assert_close(vectors_SD, torch.stack([content[3, :-1], own, own]))
    torch.testing.assert_close(bias_S, torch.stack([content[3, -1], items.bias[1], items.bias[1]]))
    torch.testing.assert_close((vectors_PD[0], bias_P[0]), (second, content[2, -1] if given else items.bias[2]))
    items.train()
    torch.testing.assert_close(items(tokens)[0, 1], content[1, :-1])
    assert not items(tokens)[1, 0].any(), "padding stays zero"
    items.leave_out(0, 0.0)
    torch.testing.assert_close(items(tokens), expected)


def test_the_same_items_are_left_out_for_the_same_seed() -> None:
    items = ItemEncoder(vocabulary_size=9_999, dim=4, content={"num_items": 10_000, "num_words": 1, "num_paths": 1})

    def left_out(seed: int) -> torch.Tensor:
        items.leave_out(seed, 0.1)
        assert items.left_out_V is not None
        return items.left_out_V

    first, second, again = left_out(1), left_out(2), left_out(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert abs(float(first.double().mean()) - 0.1) < 0.01


def test_cold_items_together_get_their_share() -> None:
    known, cold = torch.randn(50, dtype=torch.float64) * 3, torch.randn(7, dtype=torch.float64) - 4
    odds = np.exp(np.concatenate([known.numpy(), cold.numpy() + cold_shift(known, cold, 0.02)]))
    assert odds[50:].sum() / odds.sum() == pytest.approx(0.02)
