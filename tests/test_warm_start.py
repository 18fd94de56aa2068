"""Going on from another training: from the fold before, from a checkpoint of another log; what must fit, and what must not leak."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from sequence_world import FOLD, settings_at, spec_of, write_world
from xrec.config import Settings
from xrec.features.sequence_files import TRAIN
from xrec.features.vector_files import read_staged, training_digest
from xrec.sequence import ranks
from xrec.sequence.checkpoint import epoch_file
from xrec.sequence.gru import GRU
from xrec.sequence.item_encoder import ItemEncoder
from xrec.sequence.launch import describe_training
from xrec.sequence.models import load_model
from xrec.sequence.progress import Epoch, Progress, load_progress
from xrec.sequence.ranks import train_all
from xrec.sequence.spec import LaunchError, TrainingSpec
from xrec.sequence.trained_on import StartError, TrainedOn
from xrec.sequence.trainer import NothingToLearnError, Trainer
from xrec.sequence.tuning import space_of
from xrec.sequence.vocabulary import Vocabulary
from xrec.sequence.warm_start import Learned, check_sizes
from xrec.storage.files import read_json, remove, write_json

pytestmark = pytest.mark.torch

OLDER = "test-2019-12-01"
START = {"epochs": 4}


def vocabulary_of(item_ids: list[str], vectors_VG: NDArray[Any] | None = None) -> Vocabulary:
    """Items and what they are given, without padding."""
    num = len(item_ids) + 1
    return Vocabulary(
        item_idx_V=np.arange(-1, num - 1, dtype=np.int32),
        item_ids=pa.array([None, *item_ids]),
        category_V=np.zeros(num, np.int32),
        vectors_VG=None if vectors_VG is None else np.pad(vectors_VG, ((1, 0), (0, 0))).astype(np.float32),
    )


def a_model(vocabulary_size: int) -> GRU:
    return GRU(items=ItemEncoder(vocabulary_size=vocabulary_size, dim=4), dim=4, num_layers=1, dropout=0.0)


def a_start(tmp_path: Path, model: str = "gru", **sequence: Any) -> tuple[Settings, str]:
    """A finished training of an older fold of another log, and settings of a small log that start from its fold's folder."""
    before = settings_at(tmp_path / "before", **START, **sequence)
    world = {"vectors": before.sequence.item_vectors is not None, "tastes": before.sequence.item_vectors is not None}
    write_world(tmp_path / "before", before, fold=OLDER, as_of="2019-12-01", **world)
    train_all(TrainingSpec.plan(model, [OLDER], before))
    folder = f"{before.storage.artifacts_root}/{OLDER}"
    now = settings_at(tmp_path / "now", **START, **sequence, start_from=folder)
    write_world(tmp_path / "now", now, num_users=60, seed=1, renumbered=True, **world)
    return now, folder


def test_a_later_fold_goes_on_from_the_one_before(tmp_path: Path) -> None:
    settings = settings_at(tmp_path, epochs=4, epochs_more=1, pooled=False)
    write_world(tmp_path, settings)
    specs = TrainingSpec.plan("gru", [FOLD, FOLD], settings)
    assert [(spec.earlier, spec.epochs) for spec in specs] == [((), 4), ((FOLD,), 1)]
    assert specs[0].lineage != specs[1].lineage, "an unfinished training is resumed with the same history alone"
    first, second = train_all(specs)
    assert second.last == 1
    assert second.epochs[0].loss < first.epochs[2].loss < first.epochs[0].loss
    assert describe_training(specs[:1], [first])["goes_on_from"] == "nothing"
    assert describe_training(specs, [first, second])["goes_on_from"] == f"{FOLD}, which knows 60 of 60 items"
    fresh = TrainingSpec.plan("gru", [FOLD, FOLD], settings_at(tmp_path, epochs=4, epochs_more=0, pooled=False))
    assert [(spec.earlier, spec.epochs) for spec in fresh] == [((), 4), ((), 4)]


def test_a_training_is_let_go_of_before_the_next_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, gradients, optimizer and item vectors of one fold at a time, not of all that came before."""
    settings = settings_at(tmp_path, epochs=1, epochs_more=1)
    write_world(tmp_path, settings, num_users=60)
    begun: list[weakref.ref[Trainer]] = []
    alive: list[int] = []

    class Watched(Trainer):
        def __init__(self, *arguments: Any) -> None:
            gc.collect()
            alive.append(sum(one() is not None for one in begun))
            super().__init__(*arguments)
            begun.append(weakref.ref(self))

    monkeypatch.setattr(ranks, "Trainer", Watched)
    specs = TrainingSpec.plan("gru", [FOLD, FOLD, FOLD], settings)
    assert [progress.closed for progress in train_all(specs)] == [True, True, True]
    assert alive == [0, 0, 0]


def test_an_older_fold_without_anything_to_learn_from_is_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The next one is trained as the oldest; the last one must have something."""
    settings = settings_at(tmp_path, epochs=4, epochs_more=1)
    write_world(tmp_path, settings)
    thin, spec, last = TrainingSpec.plan("gru", [FOLD, FOLD, FOLD], settings)
    rows = {**thin.export.rows, TRAIN: 0}
    thin = dataclasses.replace(thin, export=dataclasses.replace(thin.export, fold=OLDER, rows=rows))
    spec, last = dataclasses.replace(spec, earlier=(OLDER,)), dataclasses.replace(last, earlier=(OLDER, FOLD))
    write_json(f"{thin.checkpoint}/progress.json", {"of": "an earlier run"})
    nothing, first, second = train_all([thin, spec, last])
    assert (
        f"gru {OLDER}: left out, because nothing can be trained there; fold {OLDER}: found no" in capfd.readouterr().out
    )
    assert (nothing.last, first.last, second.last) == (0, 4, 1)
    assert (first.goes_on_from, second.goes_on_from) == ("nothing", f"{FOLD}, which knows 60 of 60 items")
    assert not Path(thin.checkpoint).exists()
    assert read_staged(thin.staging, "gru").parts == {}
    figures = describe_training([thin, spec], [nothing, first])
    assert (figures["nothing to learn from"], figures["goes_on_from"]) == (OLDER, "nothing")
    with pytest.raises(NothingToLearnError, match=rf"fold {OLDER}: found no event to learn from"):
        train_all([spec, thin])


def test_what_was_learned_moves_with_the_item() -> None:
    """Items 7, 8, 9 were tokens 1, 2, 3; now 9 is token 1, 10 is new, and 7 is token 3; an item_idx says nothing."""
    old, new = a_model(3), a_model(3)
    before, now = (torch.tensor(shares, dtype=torch.float64) for shares in ([0, 0.5, 0.3, 0.2], [0, 0.1, 0.6, 0.3]))
    with torch.no_grad():
        old.items.bias.copy_(ItemEncoder.start_bias(before) + 0.25)
    new.items.start_from(now)
    start, embedding = new.items.bias.detach().clone(), new.items.embedding.weight.detach().clone()
    learned = Learned.of(old, vocabulary_of(["7", "8", "9"]), before, name="before")
    there = vocabulary_of(["9", "10", "7"])
    learned.pass_on(new, there.item_ids)
    for name in ("output.weight", "output.bias", "layers.0.weight_ih_l0"):
        assert torch.equal(new.state_dict()[name], old.state_dict()[name])
    weights = new.items.embedding.weight
    assert torch.equal(weights[1], old.items.embedding.weight[3])
    assert torch.equal(weights[3], old.items.embedding.weight[1])
    assert torch.equal(weights[[0, 2]], embedding[[0, 2]]), "padding and the new item start as in a fresh training"
    moved = new.items.bias - start
    np.testing.assert_allclose(moved.detach(), [0, 0.25, 0, 0.25], atol=1e-6)
    assert learned.describe(there) == "before, which knows 2 of 3 items"


def test_given_vectors_are_turned_to_where_the_fold_before_had_them() -> None:
    """The next fold's are the same but turned, of other items too, and with a little noise."""
    generator = np.random.default_rng(5)
    before, turn = generator.normal(size=(29, 4)), np.linalg.qr(generator.normal(size=(4, 4)))[0]
    kept = np.arange(28, 8, -1)
    now = np.concatenate([before[kept], generator.normal(size=(1, 4))]) @ turn
    now += generator.normal(scale=0.01, size=now.shape)
    popularity = torch.full((30,), 1 / 30, dtype=torch.float64)
    learned = Learned.of(a_model(29), vocabulary_of([str(n) for n in range(29)], before), popularity, name="before")
    turned = learned.turned(vocabulary_of([*map(str, kept), "77"], now)).vectors_VG
    assert turned is not None
    np.testing.assert_allclose(turned[1:-1], before[kept], atol=0.1)
    np.testing.assert_allclose(turned[1:] @ turned[1:].T, now @ now.T, atol=1e-4)


# --- from a checkpoint


@pytest.mark.parametrize("vectors", [False, True], ids=["learned", "given"])
@pytest.mark.parametrize("model", ["gru", "transformer"])
def test_a_training_starts_from_another_logs_checkpoint(model: str, vectors: bool, tmp_path: Path) -> None:
    """Its first epoch is better than that of one that starts afresh; the items have other tokens there, and turned vectors."""
    given = {"item_vectors": "als", "objective": "new_categories"} if vectors else {}
    now, folder = a_start(tmp_path, model, **given)
    spec = spec_of(model, now)
    assert (spec.start_from, spec.epochs) == (f"{folder}/{model}/checkpoint", 4)
    assert spec.digest != training_digest(settings_at(tmp_path / "other", **{**START, **given}), model)
    fine_tuned = train_all([spec])[0]
    assert fine_tuned.goes_on_from == f"{spec.start_from}, which knows 60 of 60 items"
    assert describe_training([spec], [fine_tuned])["goes_on_from"] == fine_tuned.goes_on_from
    before_VD, now_VD = (
        load_model(of).items.embedding.weight.detach()[1:] for of in (f"{folder}/{model}/checkpoint", spec.checkpoint)
    )
    assert torch.cosine_similarity(before_VD.flip(0), now_VD).min() > 0.8, "the last item is the first there"
    scratch = train_all([dataclasses.replace(spec, start_from=None)])[0]
    assert scratch.goes_on_from == "nothing"
    assert fine_tuned.epochs[0].loss < scratch.epochs[0].loss - 0.1
    assert (fine_tuned.epochs[0].ndcg or 0) > (scratch.epochs[0].ndcg or 1)


def test_a_killed_fine_tuning_goes_on_from_its_own_epoch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    now, _ = a_start(tmp_path)
    spec = spec_of("gru", now)
    expected = train_all([spec])[0]
    said = capfd.readouterr().out
    assert f"gru {FOLD}: goes on from {spec.start_from}, which knows 60 of 60 items; the others start as" in said
    location = f"{spec.checkpoint}/progress.json"
    killed = read_json(location)
    write_json(location, {**killed, "epochs": killed["epochs"][:3], "best": 3, "done": False, "closed": False})
    resumed = train_all([spec])[0]
    assert f"resuming after epoch 3 from {spec.checkpoint}" in capfd.readouterr().out
    assert [epoch.loss for epoch in resumed.epochs] == [epoch.loss for epoch in expected.epochs]
    assert resumed.goes_on_from == expected.goes_on_from


def test_the_oldest_fold_starts_and_the_others_go_on(tmp_path: Path) -> None:
    settings = settings_at(tmp_path, start_from="s3://bucket/all/test-1/")
    write_world(tmp_path, settings, num_users=20)
    assert [spec.start_from for spec in TrainingSpec.plan("gru", [FOLD, FOLD], settings)] == [
        "s3://bucket/all/test-1/gru/checkpoint",
        None,
    ]
    afresh = settings_at(tmp_path, start_from="s3://bucket/all/test-1", epochs_more=0)
    assert all(spec.start_from for spec in TrainingSpec.plan("gru", [FOLD, FOLD], afresh))
    own = settings_at(tmp_path, start_from=f"{settings.storage.artifacts_root}/{FOLD}")
    with pytest.raises(
        LaunchError, match=rf"sequence.start_from: found .*/{FOLD}, which this run trains anew, expected"
    ):
        spec_of("gru", own)
    first, last = (Progress(digest="", version=0, goes_on_from=name) for name in ("the start", "the first"))
    first.epochs = last.epochs = [
        Epoch(epoch=1, loss=1.0, ndcg=None, hit_rate=None, seconds=1.0, windows_per_second=1.0)
    ]
    specs = TrainingSpec.plan("gru", [FOLD, FOLD], settings)
    assert describe_training(specs, [first, last])["goes_on_from"] == f"the first; {FOLD} from the start"


def test_a_search_does_not_try_sizes_that_the_start_has_not() -> None:
    sequence = settings_at(Path("/tmp"), start_from="x").sequence
    assert not space_of(sequence).keys() & {"num_layers", "dim"}


# --- what must not be, in words


def test_a_later_model_is_refused(tmp_path: Path) -> None:
    """Its fold knows what the fold that is trained is judged by."""
    now, folder = a_start(tmp_path)
    location = f"{folder}/gru/checkpoint/trained_on.json"
    values = read_json(location)
    spec = spec_of("gru", now)
    write_json(location, {**values, "as_of": spec.export.as_of})
    train_all([spec])
    write_json(location, {**values, "as_of": "2020-01-01T00:00:00.000001+00:00"})
    with pytest.raises(
        StartError, match=rf"found fold {OLDER}, trained on events until 2020-01-01T00.*none from 2020-01-01T.*{FOLD}"
    ):
        train_all([spec])


def on(**values: Any) -> TrainedOn:
    start = {
        "fold": "before",
        "as_of": "2020-01-01T00:00:00+00:00",
        "skip_last": None,
        "table": "log",
        "has_clock": True,
        "given_dim": 0,
        "context": {},
    }
    return TrainedOn(**{**start, **values})


@pytest.mark.parametrize(
    ("before", "now", "outcome"),
    [
        ({}, {}, "good"),
        ({"as_of": "2020-01-02T00:00:00+00:00"}, {}, "late"),
        ({"as_of": "2020-01-02T00:00:00+00:00"}, {"table": "other"}, "late"),
        ({"skip_last": 1, "as_of": "2020-01-02T00:00:00+00:00"}, {"table": "other"}, "late"),
        ({"skip_last": 1}, {"table": "other"}, "good"),
        ({"has_clock": False}, {"table": "other"}, "unknown"),
        ({"skip_last": 2}, {"skip_last": 1}, "good"),
        ({"skip_last": 1}, {"skip_last": 2}, "late"),
        ({}, {"skip_last": 1}, "late"),
        ({"skip_last": 2}, {"skip_last": 1, "table": "other"}, "unknown"),
    ],
)
def test_what_a_start_may_know(before: dict[str, Any], now: dict[str, Any], outcome: str) -> None:
    was, is_now = on(**before), on(fold="now", **now)
    if outcome == "late":
        with pytest.raises(StartError, match=r"sequence.start_from: found fold before, trained on .* now is judged by"):
            was.check_time(is_now)
    else:
        assert (was.check_time(is_now) is None) == (outcome == "good")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"context": {"platform": ["web"]}},
            r"fold before: sequence.context: found {}, expected {'platform': \['web'\]}",
        ),
        ({"given_dim": 8}, r"length of the vectors of sequence.item_vectors: found 0, expected 8, as in now"),
    ],
)
def test_codes_that_mean_something_else_are_named(changed: dict[str, Any], message: str) -> None:
    on().check_codes(on(fold="now"))
    with pytest.raises(StartError, match=message):
        on().check_codes(on(fold="now", **changed))


SIZES = {"model": "transformer", "vocabulary_size": 9, "dim": 8, "length": 9, "positions": "learned", "dropout": 0.1}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dim": 16}, r"here/settings.json: dim \(sequence.dim\): found 8, expected 16"),
        ({"length": 5}, r"length \(sequence.length\): found 9, expected 5"),
        ({"given": True}, r"given \(sequence.item_vectors\): found None, expected True"),
        ({"content": {"num_items": 3}}, r"content \(sequence.item_content\): found False, expected True"),
        ({"model": "gru"}, r"model \(sequence.model\): found transformer, expected gru"),
    ],
)
def test_sizes_that_differ_are_named(changed: dict[str, Any], message: str) -> None:
    check_sizes(SIZES, {**SIZES, "vocabulary_size": 3, "dropout": 0.5}, "here")
    rotary = {**SIZES, "positions": "rotary"}
    check_sizes(rotary, {**rotary, "length": 5}, "here")
    with pytest.raises(StartError, match=message):
        check_sizes(SIZES, {**SIZES, **changed}, "here")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    now, folder = a_start(tmp_path)
    spec = spec_of("gru", now)
    found = load_progress(f"{folder}/gru/checkpoint")
    assert found is not None

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            train_all([spec])

    with pytest.raises(StartError, match=r"settings.json: dim \(sequence.dim\): found 16, expected 32"):
        train_all([spec_of("gru", settings_at(tmp_path / "now", **START, start_from=folder, dim=32))])
    checkpoint = f"{folder}/gru/checkpoint"
    write_json(f"{checkpoint}/progress.json", {**read_json(f"{checkpoint}/progress.json"), "done": False})
    refused(r"progress.json: found an unfinished one, expected a finished one")
    write_json(f"{checkpoint}/progress.json", {**read_json(f"{checkpoint}/progress.json"), "done": True})
    items = Path(checkpoint, "items.parquet")
    content = items.read_bytes()
    items.write_bytes(content[:100])
    refused(r"items.parquet: cannot be read \(.*train that fold again")
    items.write_bytes(content)
    Path(epoch_file(checkpoint, found.best)).write_bytes(b"no tensors")
    refused(r"safetensors: damaged")
    remove(f"{checkpoint}/trained_on.json")
    refused(r"sequence.start_from: .*trained_on.json: no such file; train that fold with this version")
    remove(folder)
    refused(r"progress.json: found no training, expected a finished one; name the folder of a fold")


def test_without_enough_items_in_common_nothing_is_learned_from(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    popularity = torch.full((7,), 1 / 7, dtype=torch.float64)
    items = [str(n) for n in range(6)]
    learned = Learned.of(a_model(6), vocabulary_of(items, vectors), popularity, name="before")
    learned.check_shared(vocabulary_of([*items[:4], "x"], vectors[:5]))
    vectors[3] = 0
    with pytest.raises(StartError, match=r"before: found 3 items with given vectors in both logs, expected at least 4"):
        learned.check_shared(vocabulary_of([*items[:4], "x"], vectors[:5]))
    without = dataclasses.replace(learned, vectors_VG=None)
    without.check_shared(vocabulary_of(["0", "x"]))
    with pytest.raises(StartError, match=r"found none of the 2 items of the vocabulary, expected some with the same"):
        without.check_shared(vocabulary_of(["x", "y"]))
