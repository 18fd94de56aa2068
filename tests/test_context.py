"""What is known of events beside their items: its codes, where they lie in windows, and what a model makes of them."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch
from pyspark.sql import DataFrame, SparkSession

from sequence_world import settings_at, spec_of, write_world
from test_export import an_export, arrays_of, category_of, settings_of
from xrec import columns as C
from xrec.config import Settings
from xrec.features.context import context_sizes, with_context
from xrec.features.sequence_files import ContractMismatchError, window_fields
from xrec.features.vocabulary import build_vocabulary
from xrec.features.windows import build_windows
from xrec.sequence.context import Context
from xrec.sequence.models import build_model, load_model, model_settings
from xrec.sequence.ranks import train_all
from xrec.sequence.states import states_of

FIELDS = ("event_type", "gap", "hour", "month", "platform", "weekday")
START = datetime(2020, 2, 28, tzinfo=timezone.utc)
ZONE = "America/New_York"
TYPES, PLATFORMS = ("purchase", "view"), ("app", "shop", "web")


def settings_with(*fields: str, **sequence: Any) -> Settings:
    settings = settings_of(Path("/nowhere"), context=fields, **sequence)
    values = settings.model_dump()
    values["log"]["time"]["zone"] = ZONE
    values["weights"]["event_types"] = {"view": 0.1, "purchase": 1.0}
    values["platforms"] = {name: values["log"] | {"platform": name} for name in reversed(PLATFORMS)}
    return Settings.model_validate(values)


def rows_of(num_users: int = 20, seed: int = 0) -> list[tuple[Any, ...]]:
    """Events from minutes to months apart, many of one moment; of a type and a platform that nobody has named, too."""
    drawn, rows = np.random.default_rng(seed), []
    for user in range(num_users):
        now = START
        for n in range(int(drawn.integers(1, 12))):
            now += timedelta(minutes=int(drawn.choice([0, 0, 1, 50, 60, 61, 1440, 100_000])))
            kind, platform = drawn.choice([*TYPES, "gift"]), drawn.choice([*PLATFORMS, "kiosk"])
            item = int(drawn.integers(12))
            rows.append(("f", f"e{user}-{n}", user, item, str(kind), str(platform), now, True, 1.0, 1.0, 1))
    return rows


@pytest.fixture(scope="module")
def events(spark: SparkSession) -> DataFrame:
    schema = (
        "fold string, event_id string, user_idx int, item_idx int, event_type string, platform string, "
        "event_ts timestamp, counting boolean, weight double, balance_weight double, num_copies int"
    )
    return spark.createDataFrame(rows_of(), schema).localCheckpoint()


def naive_codes(rows: list[tuple[Any, ...]]) -> dict[str, tuple[int, ...]]:
    """Of each event, by its id."""
    codes = {}
    for _, event_id, user, _, kind, platform, now, *_ in rows:
        earlier = [row[6] for row in rows if row[2] == user and row[6] < now]
        gap = 0
        if earlier:
            hours = (now - max(earlier)).total_seconds() / 3600
            gap = min(math.ceil(math.log2(1 + hours)), 16)
        local = now.astimezone(ZoneInfo(ZONE))
        codes[event_id] = (
            1 + TYPES.index(kind) if kind in TYPES else 0,
            gap,
            local.hour + 1,
            local.month,
            1 + PLATFORMS.index(platform) if platform in PLATFORMS else 0,
            local.weekday() + 1,
        )
    return codes


@pytest.mark.spark
def test_codes_are_counted_by_hand(events: DataFrame) -> None:
    settings = settings_with(*reversed(FIELDS))
    expected = naive_codes(rows_of())
    found = {row[C.EVENT_ID]: tuple(row[C.CONTEXT]) for row in with_context(events, settings).collect()}
    assert found == expected
    sizes = context_sizes(settings)
    assert list(sizes) == list(FIELDS)
    for place, size in enumerate(sizes.values()):
        assert {codes[place] for codes in expected.values()} <= set(range(size + 1))
    assert {codes[1] for codes in expected.values()} >= {0, 1, 2, 5, 11}
    few = {row[C.EVENT_ID]: tuple(row[C.CONTEXT]) for row in with_context(events, settings_with("platform")).collect()}
    assert few == {event: codes[4:5] for event, codes in expected.items()}


@pytest.mark.spark
def test_windows_have_the_context_of_their_tokens(spark: SparkSession, events: DataFrame) -> None:
    """An item has one platform here, so a token says which code must stand beside it."""
    platform_of = {item: PLATFORMS[item % 3] for item in range(12)}
    rows = [(*row[:5], platform_of[row[3]], *row[6:]) for row in rows_of()]
    settings = settings_with("platform", "hour", length=3, max_windows=2, min_buyers=1)
    eligible = spark.createDataFrame([(i, category_of(i)) for i in range(2, 12)], "item_idx int, category_code int")
    known = spark.createDataFrame(rows, events.schema)
    items = spark.createDataFrame([(i, f"i{i}") for i in range(12)], "item_idx int, item_id string")
    vocabulary = build_vocabulary(known, items, eligible, settings.sequence, fold="f", num_buckets=4).localCheckpoint()
    token_of = {row[C.TOKEN]: row[C.ITEM_IDX] for row in vocabulary.collect()}
    windows = build_windows(known, vocabulary, eligible, settings, num_categories=4).collect()
    assert any(0 in row[C.TOKENS] and any(row[C.TOKENS]) for row in windows)
    assert any(row[C.ROW_WEIGHT] == 0 for row in windows)
    for row in windows:
        codes = np.array(row[C.CONTEXT]).reshape(4, 2)
        for token, (hour, platform) in zip(row[C.TOKENS], codes, strict=True):
            if token == 0:
                assert (platform, hour) == (0, 0)
            else:
                assert platform == 1 + token_of[token] % 3
                assert 1 <= hour <= 24


def test_a_clock_is_needed(tmp_path: Path) -> None:
    values = settings_of(tmp_path, context=("event_type", "hour")).model_dump()
    values["log"]["time"]["unit"] = "order"
    with pytest.raises(ValueError, match=r"sequence.context: found hour beside log.time.unit: order"):
        Settings.model_validate(values)
    with pytest.raises(ValueError, match=r"sequence.context: found \['gap', 'gap'\], expected each field once"):
        settings_of(tmp_path, context=("gap", "gap"))


@pytest.mark.parametrize(("place", "code", "name"), [(0, 3, "event_type"), (1, 25, "hour"), (1, -1, "hour")])
def test_a_code_that_the_contract_does_not_know_is_named(place: int, code: int, name: str) -> None:
    export = an_export(context={"hour": 24, "event_type": 2}, fields=window_fields(3, 2, 2))
    codes = np.tile([2, 24], (2, 4)).astype(np.int32)
    arrays = {**arrays_of(), C.CONTEXT: codes}
    export.check_arrays(arrays, "shard 0")
    codes[1, 4 + place] = code
    with pytest.raises(ContractMismatchError, match=rf"shard 0: context {name}: found .*{code}.*, expected 0\.\."):
        export.check_arrays(arrays, "shard 0")


@pytest.mark.torch
def test_an_untrained_context_says_nothing_and_padding_never_does() -> None:
    context = Context(sizes={"hour": 24, "platform": 3}, dim=8)
    codes = torch.tensor([[[0, 0], [24, 3], [1, 0]]])
    assert not context(codes).any()
    with torch.no_grad():
        for field in context.fields.values():
            field.weight[1:] = torch.randn(len(field.weight) - 1, 8)
    found, (hour, platform) = context(codes).detach(), context.fields.values()
    assert not found[0, 0].any()
    torch.testing.assert_close(found[0, 1], (hour.weight[24] + platform.weight[3]).detach())
    torch.testing.assert_close(found[0, 2], hour.weight[1].detach())


@pytest.mark.torch
@pytest.mark.parametrize("model", ["gru", "transformer"])
def test_an_event_s_context_changes_its_state_and_later_ones_alone(model: str) -> None:
    torch.manual_seed(3)
    sequence = settings_of(Path("/nowhere"), length=8, dim=8).sequence
    built = build_model(model_settings(model, sequence, 20, context={"hour": 24})).eval()
    assert built.context is not None
    with torch.no_grad():
        for field in built.context.fields.values():
            field.weight[1:] = torch.randn(24, 8)
    drawn = np.random.default_rng(0)
    tokens = drawn.integers(1, 21, (4, 8)).astype(np.int32)
    codes = drawn.integers(1, 25, (4, 8, 1)).astype(np.int32)
    changed = codes.copy()
    changed[:, 5] = codes[:, 5] % 24 + 1
    every = np.repeat(np.arange(4), 8), np.tile(np.arange(8), 4)
    with torch.no_grad():
        before, after = (states_of(built, tokens, *every, some).view(4, 8, -1) for some in (codes, changed))
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all(dim=-1).any()


@pytest.mark.torch
@pytest.mark.parametrize("model", ["gru", "transformer"])
def test_a_model_learns_what_only_the_context_says(model: str, tmp_path: Path) -> None:
    """The first half of every pair is one token; which pair it is of, and so what follows, the context alone says."""

    def best_ndcg(name: str, **sequence: Any) -> float:
        settings = settings_at(tmp_path / name, **sequence)
        write_world(tmp_path / name, settings, hidden=True)
        spec = spec_of(model, settings)
        (progress,) = train_all([spec])
        assert (load_model(spec.checkpoint).context is not None) == bool(settings.sequence.context)
        return max(epoch.ndcg or 0.0 for epoch in progress.epochs)

    without, told = best_ndcg("without"), best_ndcg("told", context=["platform", "event_type"])
    assert told > 0.9
    assert without < 0.6
