"""Windows, vocabulary and shards of the export, and the contracts beside them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import defaultdict
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from stores import Renaming
from xrec import columns as C
from xrec.config import Sequence, Settings, Storage
from xrec.evaluation.folds import Fold
from xrec.features.sequence_export import describe_exports
from xrec.features.sequence_files import (
    ContractMismatchError,
    Export,
    ExportError,
    export_settings,
    read_export,
    window_fields,
    write_exports,
)
from xrec.features.staged_vectors import find_staged
from xrec.features.vector_files import Staged, read_staged, training_digest, write_staged
from xrec.features.vocabulary import build_vocabulary, check_vocabulary, num_categories_of
from xrec.features.windows import build_windows
from xrec.storage.files import FilesError, absolute, count_rows, data_files, for_spark, read_json, write_bytes
from xrec.storage.tables import Tables

START = datetime(2020, 1, 1, tzinfo=timezone.utc)
SEED = 3


def sequence_of(**changes: Any) -> Sequence:
    values = {"length": 3, "max_windows": 2, "min_buyers": 2, "num_shards": 2, "batch_rows": 4, "validation_share": 0.2}
    values |= {"half_life_share": 0.0}
    return Sequence(**{**values, **changes})


def settings_of(tmp_path: Path, **changes: Any) -> Settings:
    return Settings.model_validate(
        {
            "storage": {"root": str(tmp_path)},
            "log": {
                "file": {"path": "x", "format": "csv"},
                "columns": {"user_id": "u", "item_id": "i", "event_ts": "t"},
            },
            "catalogue": {"category": "c"},
            "seed": SEED,
            "sequence": sequence_of(**changes).model_dump(),
        }
    )


def random_events(num_users: int = 40, num_items: int = 12, seed: int = 0) -> list[tuple[Any, ...]]:
    """Events with ties in time, users of 0 to 14 events, weights of 0 to 2 copies, and items that one user has."""
    generator = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        for n in range(int(generator.integers(0, 15))):
            item = int(generator.integers(num_items)) if generator.random() > 0.05 else 1000 + user
            day = int(generator.integers(6))
            counting = bool(generator.random() < 0.8)
            copies = int(generator.integers(0, 3))
            rows.append(("f", f"e{user}-{n}", user, item, START + timedelta(days=day), counting, 1.0, 1.0, copies))
    return rows


NUM_CATEGORIES = 4


def category_of(item: int) -> int:
    """The code of an item's category; items 0 and 1 are never recommended."""
    return -1 if item in (0, 1) else item % NUM_CATEGORIES


ITEMS = [*range(12), *range(1000, 1040)]
FOLD = Fold(name="f", purpose="test", as_of=START + timedelta(days=6), horizon=timedelta(days=7))


@pytest.fixture(scope="module")
def items(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(
        [(item, f"i{item}") for item in ITEMS], "item_idx int, item_id string"
    ).localCheckpoint()


@pytest.fixture(scope="module")
def eligible(spark: SparkSession) -> DataFrame:
    known = [item for item in ITEMS if category_of(item) >= 0]
    rows = [(item, f"c{category_of(item)}", category_of(item)) for item in known]
    return spark.createDataFrame(rows, "item_idx int, category string, category_code int").localCheckpoint()


@pytest.fixture(scope="module")
def events(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(
        random_events(),
        "fold string, event_id string, user_idx int, item_idx int, event_ts timestamp, counting boolean, "
        "weight double, balance_weight double, num_copies int",
    ).localCheckpoint()


def naive_windows(events: DataFrame, token_of: dict[int, int], sequence: Sequence) -> dict[tuple[int, int], Any]:
    """(user, window) to its four arrays, event by event in plain Python; only the order within a tie is Spark's."""
    ordered = events.selectExpr("*", "xxhash64(event_id) as tie").collect()
    histories = defaultdict(list)
    first_touch: dict[tuple[int, int], Any] = {}
    for event in sorted(ordered, key=lambda row: (row.event_ts, row.tie, row.event_id)):
        if event.item_idx in token_of:
            histories[event.user_idx].append(event)
        if event.counting:
            first_touch.setdefault((event.user_idx, category_of(event.item_idx)), event.event_ts)
    windows = {}
    for user, history in histories.items():
        had: set[int] = set()
        pairs = []
        for event in history:
            counts = event.counting and category_of(event.item_idx) >= 0
            is_asked = counts or sequence.objective == "next_event"
            is_out = not is_asked or (event.item_idx in had and sequence.targets == "first")
            if is_asked:
                had.add(event.item_idx)
            pairs.append((token_of[event.item_idx], 0.0 if is_out else event.num_copies, event.event_ts))
        days = sorted({event.event_ts for event in history}, reverse=True)
        pairs = pairs[-(sequence.length * sequence.max_windows + 1) :]
        pairs[0] = (pairs[0][0], 0.0, pairs[0][2])
        number, end = 0, len(pairs)
        while end > 1 or number == 0:
            part = pairs[max(0, end - sequence.length - 1) : end]
            if len(part) == sequence.length + 1:
                part[0] = (part[0][0], 0.0, part[0][2])
            missing = [(0, 0.0, None)] * (sequence.length + 1 - len(part))
            tokens, weights, times = zip(*missing, *part, strict=True)
            baskets = [0 if time is None else 1 + days.index(time) for time in times]
            touched_at = []
            for category in range(NUM_CATEGORIES):
                since = first_touch.get((user, category))
                had = [n for n, event in enumerate(history) if since is not None and event.event_ts >= since]
                oldest = had[0] if had else len(history)
                place = len(missing) + oldest - (len(history) - len(pairs) + max(0, end - sequence.length - 1))
                is_never = since is None
                touched_at.append(sequence.length + 1 if is_never else min(max(place, 0), sequence.length + 1))
            windows[user, number] = (list(tokens), list(weights), baskets, touched_at)
            number, end = number + 1, end - sequence.length
    return windows


@pytest.mark.spark
@pytest.mark.parametrize("targets", ["all", "first"])
@pytest.mark.parametrize("objective", ["new_categories", "next_event"])
def test_windows_are_what_a_naive_version_cuts(
    events: DataFrame, items: DataFrame, eligible: DataFrame, targets: str, objective: str
) -> None:
    settings = settings_of(Path("/nowhere"), targets=targets, objective=objective)
    sequence = settings.sequence
    vocabulary = build_vocabulary(events, items, eligible, sequence, fold="f", num_buckets=4).localCheckpoint()
    rows = build_windows(events, vocabulary, eligible, settings, num_categories=NUM_CATEGORIES).collect()
    token_of = {row.item_idx: row.token for row in vocabulary.collect()}
    found = {
        (row.user_idx, row.window): (row.tokens, row.token_weights, row.baskets, row.touched_at)
        for row in rows
        if row.row_weight > 0
    }
    assert found == naive_windows(events, token_of, sequence)
    places = {place for *_, touched_at in found.values() for place in touched_at}
    assert places == set(range(sequence.length + 2)), (
        "categories that were had before, got at each place, and not within"
    )
    assert max(window for _, window in found) == 1
    shards = defaultdict(set)
    for row in rows:
        shards[row.user_idx].add((row.split, row.shard))
    assert all(len(places) == 1 for places in shards.values()), "a user's windows lie in one shard and split"


@pytest.mark.spark
def test_a_target_counts_half_as_much_for_each_share_of_the_history(
    events: DataFrame, items: DataFrame, eligible: DataFrame
) -> None:
    def weights_of(settings: Settings) -> dict[tuple[int, int, int], float]:
        vocabulary = build_vocabulary(events, items, eligible, settings.sequence, fold="f", num_buckets=4)
        rows = build_windows(events, vocabulary, eligible, settings, num_categories=NUM_CATEGORIES).collect()
        return {
            (row.user_idx, row.window, place): weight
            for row in rows
            for place, weight in enumerate(row.token_weights)
            if weight
        }

    alike = settings_of(Path("/nowhere"), length=20, targets="all", objective="next_event")
    fading = settings_of(Path("/nowhere"), length=20, targets="all", objective="next_event", half_life_share=0.4)
    copies, found = weights_of(alike), weights_of(fading)
    assert copies.keys() == found.keys()
    # The events of item_idx 1000 and above have no token; the others are of the days 0 to 5, so that the half-life is 2 days.
    days_ago = {round(2 * np.log2(copies[key] / found[key]), 3) for key in copies}
    assert days_ago == {0, 1, 2, 3, 4, 5}
    order = fading.model_dump()
    order["log"]["time"]["unit"] = "order"
    assert weights_of(Settings.model_validate(order)) == copies, "an order of rows has no ages"


@pytest.mark.spark
def test_vocabulary_holds_items_with_enough_distinct_users(
    events: DataFrame, items: DataFrame, eligible: DataFrame
) -> None:
    vocabulary = build_vocabulary(events, items, eligible, sequence_of(), fold="f", num_buckets=4).collect()
    buyers = defaultdict(set)
    for event in events.collect():
        buyers[event.item_idx].add(event.user_idx)
    assert {row.item_idx: row.num_buyers for row in vocabulary} == {
        item: len(users) for item, users in buyers.items() if len(users) >= 2
    }
    assert sorted(row.token for row in vocabulary) == list(range(1, len(vocabulary) + 1))
    assert {row.item_idx: row.category_code for row in vocabulary} == {
        row.item_idx: category_of(row.item_idx) for row in vocabulary
    }
    assert {row.item_idx: row.item_id for row in vocabulary} == {row.item_idx: f"i{row.item_idx}" for row in vocabulary}
    assert num_categories_of(eligible) == NUM_CATEGORIES
    assert num_categories_of(eligible.limit(0)) == 1


@pytest.mark.spark
def test_vocabulary_has_the_vectors_that_its_items_are_given(
    events: DataFrame, items: DataFrame, eligible: DataFrame, spark: SparkSession
) -> None:
    vectors = spark.createDataFrame(
        [(3, [0.5, 2.0]), (5, [1.0, 0.0]), (7777, [9.0, 9.0])], "idx int, vector array<float>"
    )
    vocabulary = build_vocabulary(
        events, items, eligible, sequence_of(), fold="f", num_buckets=4, vectors=vectors
    ).collect()
    assert {row.item_idx: row.vector for row in vocabulary if row.vector} == {3: [0.5, 2.0], 5: [1.0, 0.0]}
    assert len(vocabulary) > 2


@pytest.mark.spark
def test_folds_stay_in_their_order(spark: SparkSession) -> None:
    """Ranks that know no calendar train them in the order of the export, each going on from the one before."""
    folds = [f"select-2017-{month:02}-01" for month in range(1, 13)] + ["a-test-of-2018"]
    rows = [(fold, token) for fold in reversed(folds) for token in (-1, 1, 2)]
    vocabulary = spark.createDataFrame(rows, "fold string, token int").repartition(5)
    assert list(check_vocabulary(vocabulary, folds, sequence_of()).items()) == [(fold, 2) for fold in folds]


@pytest.mark.spark
def test_an_empty_vocabulary_is_named(events: DataFrame, items: DataFrame, eligible: DataFrame) -> None:
    sequence = sequence_of(min_buyers=1000)
    vocabulary = build_vocabulary(events, items, eligible, sequence, fold="f", num_buckets=4)
    with pytest.raises(ExportError, match=r"fold f: found no item with 1000 distinct users.*min_buyers"):
        check_vocabulary(vocabulary, ["f"], sequence)
    enough = build_vocabulary(events, items, eligible, sequence_of(), fold="f", num_buckets=4)
    sizes = check_vocabulary(enough, ["older", "f"], sequence)
    assert (sizes["older"], sizes["f"]) == (0, enough.count()), "what is too thin is the last fold's error alone"


@pytest.mark.spark
def test_shards_are_equal_and_padding_weighs_nothing(events: DataFrame, items: DataFrame, eligible: DataFrame) -> None:
    settings = settings_of(Path("/nowhere"), num_shards=8, batch_rows=8)
    vocabulary = build_vocabulary(events, items, eligible, settings.sequence, fold="f", num_buckets=4)
    rows = build_windows(events, vocabulary, eligible, settings, num_categories=NUM_CATEGORIES).collect()
    counts: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        counts[row.split][row.shard] += 1
    for shards in counts.values():
        assert set(shards) == set(range(8))
        assert len(set(shards.values())) == 1
    padding = [row for row in rows if row.row_weight == 0]
    assert padding
    arrays = (C.TOKENS, C.TOKEN_WEIGHTS, C.BASKETS, C.TOUCHED_AT)
    assert all(row.user_idx < 0 and not any(any(row[name]) for name in arrays) for row in padding)
    assert {len(row[C.TOUCHED_AT]) for row in rows} == {NUM_CATEGORIES}
    assert len({(row.user_idx, row.window) for row in rows}) == len(rows)


@pytest.fixture(scope="module")
def exported(
    events: DataFrame,
    items: DataFrame,
    eligible: DataFrame,
    spark: SparkSession,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Tables, Export]:
    """A table written twice, so that its folder holds files of an old version too."""
    root = tmp_path_factory.mktemp("export")
    tables = Tables(spark, Storage(root=str(root)))
    sequence = sequence_of()
    for share in (0.5, sequence.validation_share):
        current = settings_of(root, validation_share=share)
        known = build_vocabulary(events, items, eligible, current.sequence, fold="f", num_buckets=4)
        tables.write("vocabulary", known, fold="f")
        vocabulary = tables.read("vocabulary")
        windows = build_windows(events, vocabulary, eligible, current, num_categories=NUM_CATEGORIES)
        tables.write("sequences", windows, fold="f")
    sizes = check_vocabulary(tables.read("vocabulary"), ["f"], sequence)
    exports = describe_exports(tables, [FOLD], sizes, settings_of(root), num_categories=NUM_CATEGORIES, cold={})
    write_exports(f"{root}/_artifacts", exports)
    return tables, exports[0]


@pytest.mark.delta
@pytest.mark.spark
def test_files_of_the_pinned_version_hold_the_table(exported: tuple[Tables, Export]) -> None:
    tables, export = exported
    total = 0
    for split, rows in export.rows.items():
        for shard in range(export.num_shards):
            files = data_files(export.table, export.version, fold="f", split=split, shard=shard)
            assert len(files) == 1, "one file a shard"
            assert count_rows(files) == rows
            total += rows
    assert total == tables.read("sequences").count()
    assert len(list(Path(export.table).rglob("*.parquet"))) > len(data_files(export.table, export.version))
    with pytest.raises(FilesError, match=r"version 99: cannot be read"):
        data_files(export.table, 99)


@pytest.mark.delta
@pytest.mark.spark
def test_a_reader_refuses_an_export_of_other_settings(exported: tuple[Tables, Export]) -> None:
    tables, export = exported
    root = Path(str(tables.storage.root))
    artifacts = tables.storage.artifacts_root
    assert read_export(artifacts, "f", settings_of(root)) == export
    assert (export.as_of, export.skip_last) == ("2020-01-07T00:00:00+00:00", None)
    with pytest.raises(
        ContractMismatchError, match=r"export.json: sequence.length: found 3, expected 5; .* run export_seq"
    ):
        read_export(artifacts, "f", settings_of(root, length=5))
    with pytest.raises(ContractMismatchError, match=r"sequence.targets: found first, expected all"):
        read_export(artifacts, "f", settings_of(root, targets="all"))
    with pytest.raises(FilesError, match=r"no such file; run the stage export_sequences"):
        read_export(artifacts, "g", settings_of(root))


def an_export(**changes: Any) -> Export:
    values: dict[str, Any] = {
        "fold": "f",
        "as_of": "2020-01-07T00:00:00+00:00",
        "skip_last": None,
        "table": "/nowhere",
        "version": 1,
        "vocabulary_table": "/nowhere",
        "vocabulary_version": 1,
        "vocabulary_size": 9,
        "cold_share": 0.0,
        "num_categories": 2,
        "length": 3,
        "num_shards": 2,
        "rows": {"train": 4, "validation": 0},
        "context": {},
        "fields": window_fields(3, 2, 0),
        "settings": export_settings(settings_of(Path("/nowhere"))),
    }
    return Export(**{**values, **changes})


def arrays_of(num_rows: int = 2) -> dict[str, Any]:
    return {
        C.USER_IDX: np.zeros(num_rows, np.int32),
        C.WINDOW: np.zeros(num_rows, np.int32),
        C.TOKENS: np.ones((num_rows, 4), np.int32),
        C.TOKEN_WEIGHTS: np.ones((num_rows, 4), np.float32),
        C.BASKETS: np.ones((num_rows, 4), np.int32),
        C.TOUCHED_AT: np.zeros((num_rows, 2), np.int32),
        C.ROW_WEIGHT: np.ones(num_rows, np.float32),
    }


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            C.TOKENS,
            np.ones((2, 5), np.int32),
            r"column 'tokens': found int32 of shape \(5,\), expected int32 of shape \(4,\)",
        ),
        (C.TOKENS, np.ones((2, 4), np.int64), r"column 'tokens': found int64 of shape"),
        (C.TOKENS, np.full((2, 4), 10, np.int32), r"tokens: found 10..10, expected 0..9"),
        (C.ROW_WEIGHT, np.ones(2), r"column 'row_weight': found float64"),
        (C.TOUCHED_AT, np.ones((2, 3), np.int32), r"column 'touched_at': found int32 of shape \(3,\), expected"),
    ],
)
def test_arrays_that_break_the_contract_are_named(column: str, value: Any, message: str) -> None:
    an_export().check_arrays(arrays_of(), "here")
    with pytest.raises(ContractMismatchError, match=f"here: {message}"):
        an_export().check_arrays({**arrays_of(), column: value}, "here")
    broken = arrays_of()
    del broken[column]
    with pytest.raises(ContractMismatchError, match=rf"here: column '{column}': found nothing"):
        an_export().check_arrays(broken, "here")


def test_vectors_without_a_manifest_or_with_other_rows_are_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    artifacts = settings.storage.artifacts_root
    write_exports(artifacts, [an_export()])
    digest = training_digest(settings, "gru")
    folder = Path(artifacts) / "f" / "gru" / f"vectors-v1-{digest}"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"x": [1, 2, 3]}), folder / "part-0.parquet")
    with pytest.raises(FilesError, match=r"manifest.json: no such file.*run the stage train_gru"):
        find_staged(settings, "f", "gru")
    staged = Staged(
        fold="f",
        model="gru",
        digest=digest,
        settings={},
        weights="",
        dim=3,
        dtype="float32",
        parts={"part-0.parquet": 3},
        users=2,
        items=1,
        versions={},
    )
    write_staged(str(folder), staged)
    assert find_staged(settings, "f", "gru") == (str(folder), staged)
    write_staged(str(folder), dataclasses.replace(staged, parts={"part-0.parquet": 4}, users=3))
    with pytest.raises(ContractMismatchError, match=r"part-0.parquet: found 3 rows, expected 4 rows"):
        find_staged(settings, "f", "gru")
    write_staged(str(folder), dataclasses.replace(staged, parts={"part-0.parquet": 3, "part-1.parquet": 1}, users=3))
    with pytest.raises(ContractMismatchError, match=r"part-1.parquet: found no file, expected 1 rows"):
        find_staged(settings, "f", "gru")
    write_staged(str(folder), dataclasses.replace(staged, users=7))
    with pytest.raises(ContractMismatchError, match=r"parts: found 3 rows of gru, expected 8 rows of gru"):
        read_staged(str(folder), "gru")


def test_the_digest_follows_what_is_learned_only(tmp_path: Path) -> None:
    base = training_digest(settings_of(tmp_path), "gru")
    assert base == training_digest(settings_of(tmp_path, threads=3, launcher="horovodrun", num_processes=1), "gru")
    assert base != training_digest(settings_of(tmp_path), "transformer")
    assert base != training_digest(settings_of(tmp_path, learning_rate=0.5), "gru")


def test_a_file_is_written_whole_and_a_bad_one_is_named(tmp_path: Path) -> None:
    for content in (b"{", b"\x80\x81"):
        write_bytes(f"{tmp_path}/a/b.json", content)
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]
        with pytest.raises(FilesError, match=r"b.json: not JSON"):
            read_json(f"{tmp_path}/a/b.json")
    with pytest.raises(FilesError, match=r"c.json: no such file"):
        read_json(f"{tmp_path}/a/c.json")
    assert absolute("s3a://bucket/x/") == "s3a://bucket/x"


def test_databricks_file_system_is_a_folder_to_all_but_spark() -> None:
    assert [absolute(location) for location in ("dbfs:/a/b/", "dbfs:///a/b")] == ["/dbfs/a/b"] * 2
    assert [for_spark(location) for location in ("/dbfs/a/b", "/dbfs2/a", "s3a://dbfs/a")] == [
        "dbfs:/a/b",
        "/dbfs2/a",
        "s3a://dbfs/a",
    ]


def test_a_store_that_renames_keeps_the_old_file_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = Renaming.url(tmp_path / "a" / "b.json")
    for content in (b"1", b"2"):
        write_bytes(location, content)
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]
        assert read_json(location) == int(content)

    def fill_up(store: Renaming, path: str, content: bytes) -> None:
        Path(path).write_bytes(content[:1])
        raise OSError("no space left")

    monkeypatch.setattr(Renaming, "pipe_file", fill_up)
    with pytest.raises(OSError, match="no space left"):
        write_bytes(location, b"345")
    assert read_json(location) == 2


def test_spark_stages_never_import_torch() -> None:
    """Whatever a Spark executor may unpickle lies in these packages; they import without a running session too."""
    code = (
        "import importlib, pkgutil, sys, xrec\n"
        "for package in ('storage', 'ingest', 'features', 'generators', 'ranking', 'evaluation', 'runs'):\n"
        "    found = importlib.import_module(f'xrec.{package}')\n"
        "    for module in pkgutil.iter_modules(found.__path__):\n"
        "        importlib.import_module(f'xrec.{package}.{module.name}')\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('torch', 'horovod')], 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ranks_on_gpu_hosts_need_no_spark() -> None:
    code = (
        "import sys, xrec.sequence.ranks\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('pyspark', 'py4j', 'delta')]\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
