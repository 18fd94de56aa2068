"""Vectors that the sequence models are given for the items: of Word2Vec, of the catalogue's words, of the shop."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from xrec import columns as C
from xrec.config import Content, File, ItemVectors, SettingsError, load_settings
from xrec.generators.text_svd import text_svd_vectors
from xrec.generators.word2vec import Word2VecError, word2vec_vectors
from xrec.ingest.item_vectors import load_item_vectors, of_known_items
from xrec.ingest.reader import InputError
from xrec.storage.shared import shared_folder

pytestmark = pytest.mark.spark
START = datetime(2020, 1, 1, tzinfo=timezone.utc)
SEED = 5


def two_tastes(spark: SparkSession) -> DataFrame:
    """Sixty users: half of them have items 0 to 4 in turn, the others 5 to 9; item 10 came twice."""
    generator = np.random.default_rng(0)
    rows = []
    for user in range(60):
        for n in range(12):
            item = int(generator.integers(5)) + 5 * (user % 2)
            rows.append((f"e{user}-{n}", user, item, START + timedelta(days=n)))
    rows += [("x", 0, 10, START), ("y", 1, 10, START)]
    return spark.createDataFrame(rows, "event_id string, user_idx int, item_idx int, event_ts timestamp")


def by_item(vectors: DataFrame) -> dict[int, np.ndarray]:
    return {row[C.IDX]: np.array(row[C.VECTOR]) for row in vectors.collect()}


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def test_items_of_the_same_histories_get_vectors_alike(spark: SparkSession) -> None:
    events, wanted = two_tastes(spark), ItemVectors(dim=8, min_events=5)
    found = by_item(word2vec_vectors(events, wanted, fold="f", seed=SEED))
    assert found.keys() == set(range(10)), "item 10 has two events"
    assert {len(vector) for vector in found.values()} == {8}
    within = [cosine(found[a], found[b]) for a in range(5) for b in range(5) if a != b]
    across = [cosine(found[a], found[b]) for a in range(5) for b in range(5, 10)]
    assert min(within) > max(across)
    again = by_item(word2vec_vectors(events.repartition(7), wanted, fold="f", seed=SEED))
    assert all(np.array_equal(found[item], again[item]) for item in found), "whatever the order of the rows"


def test_too_few_events_for_any_vector_are_named(spark: SparkSession) -> None:
    with pytest.raises(Word2VecError, match=r"fold 'f': no item has item_vectors.min_events \(1000\) events.*lower"):
        word2vec_vectors(two_tastes(spark), ItemVectors(min_events=1000), fold="f", seed=SEED)


TEXTS = [
    (0, "green tea", ["food", "tea"]),
    (1, "black tea", ["food", "tea"]),
    (2, "white tea bags", ["food", "tea"]),
    (3, "garden hose", ["garden"]),
    (4, "garden shears", ["garden"]),
    (5, "green garden chair", ["garden"]),
    (6, None, None),
]


def test_items_described_alike_get_vectors_alike(spark: SparkSession, tmp_path: Path) -> None:
    items = spark.createDataFrame(TEXTS, "item_idx int, label string, category_path array<string>")
    with shared_folder(str(tmp_path / "shared")) as folder:
        found = by_item(text_svd_vectors(items, Content(), dim=3, seed=SEED, folder=folder))
        again = by_item(text_svd_vectors(items.repartition(5), Content(), dim=3, seed=SEED, folder=folder))
        assert found.keys() == set(range(6)), "of item 6 nothing is said"
        assert all(np.allclose(found[item], again[item], atol=1e-6) for item in found)
        assert cosine(found[0], found[1]) > cosine(found[0], found[5]) > cosine(found[0], found[3])
        too_long = text_svd_vectors(items, Content(), dim=6, seed=SEED, folder=folder)
        with pytest.raises(
            Exception, match=r"item_vectors.dim: found 6, expected less than the items with words \(6\)"
        ):
            too_long.collect()


def written(tmp_path: Path, rows: list[tuple[str, str]], name: str = "vectors.csv") -> ItemVectors:
    lines = ["sku;embedding", *[f"{item};{vector}" for item, vector in rows]]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    file = File(path=str(tmp_path / name), format="csv", options={"sep": ";"})
    return ItemVectors(file=file, item_id="sku", vector="embedding")


def test_the_shops_vectors_are_read_from_text_and_from_parquet(spark: SparkSession, tmp_path: Path) -> None:
    wanted = {"007": [1.0, -2.5], "b": [0.0, 1e-3]}
    text = written(tmp_path, [(item, json.dumps(vector)) for item, vector in wanted.items()])
    spark.createDataFrame(list(wanted.items()), "item string, v array<double>").write.parquet(str(tmp_path / "p"))
    columnar = ItemVectors(file=File(path=str(tmp_path / "p"), format="parquet"), item_id="item", vector="v")
    for given in (text, columnar):
        found = {row[C.ITEM_ID]: row[C.VECTOR] for row in load_item_vectors(spark, given).collect()}
        assert found == {item: pytest.approx(vector) for item, vector in wanted.items()}, "zeros in a key are kept"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("a", "[1, 2]"), ("b", "1, 2")],
            r"found 1, 2 of item b .*1 such rows of 2.*a list of numbers in column 'embedding'",
        ),
        ([("a", "[1, 2]"), ("b", "[1, null]")], r"found \[1, null\] of item b"),
        ([("a", "[1, 2]"), ("b", "")], r"found nothing of item b"),
        ([("a", "[1, 2]"), ("b", "[1]")], r"length 1 \(item b\) and one of length 2 \(item a\)"),
        ([("a", "[1, 2]"), ("a", "[2, 1]")], r"found 2 different vectors of item a"),
        ([("", "[1, 2]")], r"found nothing .*expected an item in column 'sku'"),
    ],
)
def test_a_wrong_row_is_named(spark: SparkSession, tmp_path: Path, rows: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_item_vectors(spark, written(tmp_path, rows))


def test_a_wrong_column_is_named(spark: SparkSession, tmp_path: Path) -> None:
    given = written(tmp_path, [("a", "[1]")]).model_copy(update={"vector": "emb"})
    with pytest.raises(InputError, match=r"item_vectors.vector.*emb"):
        load_item_vectors(spark, given)


def test_items_that_the_log_does_not_know_are_left_out_and_there_must_be_others(
    spark: SparkSession, tmp_path: Path
) -> None:
    given = written(tmp_path, [("a", "[1, 2]"), ("b", "[3, 4]")])
    vectors = load_item_vectors(spark, given)
    items = spark.createDataFrame([("b", 7), ("c", 8)], "item_id string, item_idx int")
    assert by_item(of_known_items(vectors, items, given))[7].tolist() == [3, 4]
    assert of_known_items(vectors, items, given).count() == 1
    with pytest.raises(InputError, match=r"found none of the log's items in column 'sku' \(there a, in the log c"):
        of_known_items(vectors, items.where("item_id = 'c'"), given)


def test_the_settings_want_a_file_where_the_shop_gives_the_vectors() -> None:
    with pytest.raises(SettingsError, match=r"item_vectors.file: found nothing"):
        load_settings([], ["sequence.item_vectors=file"])
