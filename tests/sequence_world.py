"""Exported windows with a known answer, written without Spark, for the tests of the sequence models. Every item is a category.

In the world of pairs items come in pairs (2n - 1, 2n): whoever takes the first takes the second next. Which pair comes is random,
with strongly unequal odds, so popularity alone knows little of a pair's second half.

In the world of tastes a user has one of three tastes, and takes items of it alone (those with the same remainder by 3), each at
most once, in any order: his next items are like those he had, all equally popular.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from deltalake import write_deltalake

from xrec import columns as C
from xrec.config import Settings, load_settings
from xrec.features.sequence_files import TRAIN, VALIDATION, Export, export_settings, window_fields, write_exports
from xrec.sequence.spec import TrainingSpec

NUM_PAIRS = 30
VOCABULARY = 2 * NUM_PAIRS
NUM_TASTES = 3
NUM_COLD = 15
"""Items without a token where ``sequence.item_content`` is set: a word says the taste of these as of all others."""
COLD_SHARE = 0.05
FOLD = "test-2020-01-01"


def settings_at(root: Path, **sequence: Any) -> Settings:
    """Small and quick settings; the file ``settings.yaml`` holds them for processes."""
    values = {
        "storage": {"root": str(root)},
        "log": {"file": {"path": "x", "format": "csv"}, "columns": {"user_id": "u", "item_id": "i", "event_ts": "t"}},
        "catalogue": {"category": "c"},
        "sequence": {
            "length": 9,
            "num_shards": 4,
            "batch_rows": 32,
            "dim": 16,
            "num_negatives": 60,
            "epochs": 8,
            "learning_rate": 0.03,
            "dropout": 0.1,
            "threads": 1,
            "patience": 20,
            "objective": "next_event",
            "item_vectors": None,
            **sequence,
        },
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "settings.yaml").write_text(yaml.safe_dump(values))
    return load_settings([root / "settings.yaml"])


def write_world(
    root: Path,
    settings: Settings,
    *,
    num_users: int = 400,
    seed: int = 0,
    shuffled: bool = False,
    target_weight: float = 1.0,
    tastes: bool = False,
    vectors: bool = False,
    hidden: bool = False,
    fold: str = FOLD,
    as_of: str = "2020-01-01",
    renumbered: bool = False,
) -> Export:
    """Write the tables ``sequences`` and ``vocabulary`` and the contract; a user has two windows, of ten and fewer events.

    ``shuffled`` permutes all tokens over all users, so that nothing is left to learn but popularity. ``tastes`` makes that world,
    whose items' ``vectors`` are their tastes and a little noise. ``hidden`` makes token 1 of the first half of every pair: only the
    first field of the context by name, where there is any, says which it was. ``renumbered`` gives the items each other's tokens
    and indexes, the last item those of the first, and turns the axes of their vectors; their item_id stays.
    """
    length, num_shards = settings.sequence.length, settings.sequence.num_shards
    generator = np.random.default_rng(seed)
    odds = 1 / np.arange(1, NUM_PAIRS + 1)
    context = {name: 1 if number else NUM_PAIRS for number, name in enumerate(sorted(settings.sequence.context))}
    fields = window_fields(length, VOCABULARY, len(context))
    columns: dict[str, list[Any]] = {field.name: [] for field in fields}
    columns |= {C.SPLIT: [], C.SHARD: []}
    for user in range(num_users):
        of_taste = generator.permutation(np.arange(1 + user % NUM_TASTES, VOCABULARY + 1, NUM_TASTES))
        for window in range(2):
            # The newest window ends with the second half of a pair, so the known answer is what validation asks for.
            num_events = length + 1 if window == 0 else 2 * int(generator.integers(1, length // 2 + 1))
            pairs = generator.choice(NUM_PAIRS, size=length, p=odds / odds.sum())
            events = np.stack([2 * pairs + 1, 2 * pairs + 2], axis=1).ravel()[:num_events]
            if tastes:
                events = of_taste[:num_events] if window == 0 else of_taste[length + 1 :][:num_events]
            tokens = np.concatenate([np.zeros(length + 1 - num_events), events]).astype(np.int32)
            weights = target_weight * (tokens > 0).astype(np.float32)
            weights[length + 1 - num_events] = 0
            had = of_taste[length + 1 :] if tastes and window == 0 else np.zeros(0, np.int32)
            codes = np.zeros((length + 1, len(context)), np.int32)
            if hidden:
                codes[:, :1] = np.where(tokens % 2 == 1, (tokens + 1) // 2, 0)[:, None]
                tokens = np.where(tokens % 2 == 1, 1, tokens).astype(np.int32)
            if renumbered:
                tokens = np.where(tokens > 0, VOCABULARY + 1 - tokens, 0).astype(np.int32)
                had = VOCABULARY + 1 - had
            _append(columns, user, window, tokens, weights, 1.0, had, codes)
            columns[C.SPLIT].append(VALIDATION if user % 5 == 4 else TRAIN)
            columns[C.SHARD].append(user % num_shards)
    if shuffled:
        _shuffle(columns[C.TOKENS], generator)
    rows = _pad(columns, length, num_shards, len(context))
    schema = pa.schema(
        [
            (C.USER_IDX, pa.int32()),
            (C.WINDOW, pa.int32()),
            (C.TOKENS, pa.list_(pa.int32())),
            (C.TOKEN_WEIGHTS, pa.list_(pa.float32())),
            (C.BASKETS, pa.list_(pa.int32())),
            (C.TOUCHED_AT, pa.list_(pa.int32())),
            *([(C.CONTEXT, pa.list_(pa.int32()))] if context else []),
            (C.ROW_WEIGHT, pa.float32()),
            (C.SPLIT, pa.string()),
            (C.SHARD, pa.int32()),
            (C.FOLD, pa.string()),
        ]
    )
    columns[C.FOLD] = [fold] * len(columns[C.SHARD])
    write_deltalake(
        str(root / "sequences"),
        pa.table(columns, schema=schema),
        mode="overwrite",
        partition_by=[C.FOLD, C.SPLIT, C.SHARD],
    )
    vocabulary = {
        C.FOLD: [fold] * VOCABULARY,
        C.TOKEN: pa.array(range(1, VOCABULARY + 1), pa.int32()),
        C.ITEM_IDX: pa.array(range(1000, 1000 + VOCABULARY), pa.int32()),
        C.ITEM_ID: [f"item-{number}" for number in range(1, VOCABULARY + 1)][:: -1 if renumbered else 1],
        C.CATEGORY_CODE: pa.array(range(VOCABULARY), pa.int32()),
    }
    given = np.eye(NUM_TASTES)[np.arange(VOCABULARY) % NUM_TASTES]
    given = (given + generator.normal(scale=0.1, size=given.shape)).astype(np.float32)
    if renumbered:
        given = given[::-1, ::-1]
    vocabulary[C.VECTOR] = pa.array(list(given) if vectors else [None] * VOCABULARY, pa.list_(pa.float32()))
    if settings.sequence.item_content:
        vocabulary = _with_cold(vocabulary)
    write_deltalake(str(root / "vocabulary"), pa.table(vocabulary), mode="overwrite", partition_by=[C.FOLD])
    export = Export(
        fold=fold,
        as_of=f"{as_of}T00:00:00+00:00",
        skip_last=None,
        table=str(root / "sequences"),
        version=0,
        vocabulary_table=str(root / "vocabulary"),
        vocabulary_version=0,
        vocabulary_size=VOCABULARY,
        cold_share=COLD_SHARE,
        length=length,
        num_shards=num_shards,
        rows=rows,
        num_categories=VOCABULARY,
        context=context,
        fields=fields,
        settings=export_settings(settings),
    )
    write_exports(settings.storage.artifacts_root, [export])
    return export


def _with_cold(vocabulary: dict[str, Any]) -> dict[str, Any]:
    """The vocabulary with cold items, and a word or two of each item."""
    numbers = [*range(VOCABULARY), *range(NUM_COLD)]
    cold = {
        C.FOLD: vocabulary[C.FOLD][:1] * NUM_COLD,
        C.TOKEN: range(-1, -NUM_COLD - 1, -1),
        C.ITEM_IDX: range(2000, 2000 + NUM_COLD),
        C.ITEM_ID: [f"cold-{number}" for number in range(NUM_COLD)],
        C.CATEGORY_CODE: range(NUM_COLD),
        C.VECTOR: [None] * NUM_COLD,
    }
    rows = {name: [*(v.to_pylist() if hasattr(v, "to_pylist") else v), *cold[name]] for name, v in vocabulary.items()}
    types = {C.FOLD: pa.string(), C.ITEM_ID: pa.string(), C.VECTOR: pa.list_(pa.float32())}
    table = {name: pa.array(values, types.get(name, pa.int32())) for name, values in rows.items()}
    words = [[1 + n % NUM_TASTES, *([1000 + n] if n % 2 else [])] for n in numbers]
    return table | {name: pa.array(words, pa.list_(pa.int32())) for name in (C.WORDS, C.PATHS)}


def spec_of(model: str, settings: Settings) -> TrainingSpec:
    """The training of the world's one fold."""
    return TrainingSpec.plan(model, [FOLD], settings)[0]


def _append(
    columns: dict[str, list[Any]],
    user: int,
    window: int,
    tokens: Any,
    weights: Any,
    row_weight: float,
    had: Any = (),
    codes: Any = None,
) -> None:
    """Add a window of a user who ``had`` some tokens before it; each token is a basket."""
    touched_at = np.full(VOCABULARY + 1, len(tokens) if row_weight else 0, np.int32)
    for place in reversed(range(len(tokens))):
        touched_at[tokens[place]] = place
    touched_at[np.asarray(had, int)] = 0
    columns[C.TOUCHED_AT].append(touched_at[1:])
    columns[C.BASKETS].append(np.where(tokens > 0, np.arange(len(tokens), 0, -1), 0).astype(np.int32))
    columns[C.USER_IDX].append(user)
    columns[C.WINDOW].append(window)
    columns[C.TOKENS].append(tokens)
    columns[C.TOKEN_WEIGHTS].append(weights)
    columns[C.ROW_WEIGHT].append(row_weight)
    if C.CONTEXT in columns:
        columns[C.CONTEXT].append(codes.ravel())


def _shuffle(tokens: list[Any], generator: np.random.Generator) -> None:
    stacked = np.stack(tokens)
    stacked[stacked > 0] = generator.permutation(stacked[stacked > 0])
    tokens[:] = list(stacked)


def _pad(columns: dict[str, list[Any]], length: int, num_shards: int, num_context: int) -> dict[str, int]:
    """Add rows of weight 0 until all shards of a split are equal; gives the rows of a shard by split."""
    placed = list(zip(columns[C.SPLIT], columns[C.SHARD], strict=True))
    most = {split: max(placed.count((split, shard)) for shard in range(num_shards)) for split in (TRAIN, VALIDATION)}
    added = 0
    for split, num_rows in most.items():
        for shard in range(num_shards):
            for _ in range(num_rows - placed.count((split, shard))):
                added += 1
                zeros = np.zeros(length + 1)
                codes = np.zeros((length + 1, num_context), np.int32)
                _append(columns, -added, 0, zeros.astype(np.int32), zeros.astype(np.float32), 0.0, (), codes)
                columns[C.SPLIT].append(split)
                columns[C.SHARD].append(shard)
    return most
