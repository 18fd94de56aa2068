"""The sequence models in one process: what a score depends on, the loss, the loader, training, checkpoints, vectors."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sequence_world import FOLD, VOCABULARY, settings_at, spec_of, write_world
from xrec import columns as C
from xrec.features.sequence_files import ContractMismatchError, read_staged
from xrec.sequence import loader
from xrec.sequence.dropout import Dropout, seed_dropout
from xrec.sequence.gru import GRU
from xrec.sequence.item_encoder import ItemEncoder, user_vectors
from xrec.sequence.loader import Shard
from xrec.sequence.losses import full_softmax, sampled_softmax
from xrec.sequence.models import SequenceModel, build_model, load_model
from xrec.sequence.progress import Epoch, Progress, load_progress
from xrec.sequence.ranks import train_all
from xrec.sequence.spec import TrainingSpec
from xrec.sequence.trainer import TrainingError, note_epoch, schedule
from xrec.sequence.warm_start import Learned

pytestmark = pytest.mark.torch

MODELS = ("gru", "transformer")


def model_of(name: str, num_layers: int = 2) -> SequenceModel:
    torch.manual_seed(1)
    settings: dict[str, Any] = {
        "model": name,
        "vocabulary_size": 20,
        "dim": 8,
        "num_layers": num_layers,
        "dropout": 0.5,
    }
    model = build_model(settings | ({"num_heads": 2, "length": 12} if name == "transformer" else {})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.items.embedding.weight[0] = 0
    return model


@pytest.mark.parametrize("name", MODELS)
def test_padding_on_the_left_does_not_change_a_score(name: str) -> None:
    model = model_of(name)
    tokens = torch.randint(1, 21, (3, 5))
    padded = torch.cat([torch.zeros(3, 7, dtype=torch.long), tokens], dim=1)
    assert torch.isfinite(model(padded)).all()
    torch.testing.assert_close(model(padded)[:, 7:], model(tokens))


@pytest.mark.parametrize("name", MODELS)
def test_a_future_item_does_not_change_an_earlier_state(name: str) -> None:
    model = model_of(name)
    tokens = torch.randint(1, 21, (3, 12))
    changed = tokens.clone()
    changed[:, 8:] = torch.randint(1, 21, (3, 4))
    torch.testing.assert_close(model(changed)[:, :8], model(tokens)[:, :8])
    assert not torch.allclose(model(changed)[:, 8:], model(tokens)[:, 8:])


@pytest.mark.parametrize("name", MODELS)
def test_an_older_item_does_change_the_state(name: str) -> None:
    model = model_of(name)
    tokens = torch.randint(1, 20, (3, 6))
    changed = tokens.clone()
    changed[:, 2] += 1
    assert not torch.allclose(model(changed)[:, -1], model(tokens)[:, -1])


def test_the_dot_product_of_the_vectors_is_the_logit() -> None:
    model = model_of("gru")
    hidden = model(torch.randint(1, 21, (3, 5)))[:, -1]
    logits = model.items.logits(hidden)
    torch.testing.assert_close(user_vectors(hidden) @ model.items.item_vectors().T, logits[:, 1:])
    assert torch.isneginf(logits[:, 0]).all()


def an_encoder() -> ItemEncoder:
    torch.manual_seed(2)
    items = ItemEncoder(vocabulary_size=20, dim=8)
    torch.nn.init.normal_(items.embedding.weight)
    torch.nn.init.normal_(items.bias)
    return items


def test_all_items_as_negatives_give_the_full_softmax() -> None:
    items, hidden, targets = an_encoder(), torch.randn(15, 8), torch.randint(1, 21, (15,))
    uniform = torch.full((21,), -np.log(20.0))
    sampled = sampled_softmax(hidden, targets, torch.arange(1, 21), uniform, items)
    torch.testing.assert_close(sampled, full_softmax(hidden, targets, items))


def test_the_correction_is_a_naive_versions() -> None:
    items, hidden, targets = an_encoder(), torch.randn(15, 8), torch.randint(1, 21, (15,))
    q = torch.rand(21) + 0.1
    q[0] = 0
    q /= q.sum()
    negatives = torch.multinomial(q, 12, replacement=True)
    expected = []
    for state, target in zip(hidden, targets, strict=True):
        scores = []
        for token in [target, *negatives]:
            if not scores or token != target:
                logit = float((items.embedding.weight[token] @ state + items.bias[token]).detach())
                scores.append(logit - np.log(12 * float(q[token])))
        expected.append(np.log(np.exp(scores).sum()) - scores[0])
    found = sampled_softmax(hidden, targets, negatives, q.log(), items)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_sampling_reaches_the_full_softmax_in_the_limit() -> None:
    """Many negatives of a skewed distribution: with the correction the loss is the full one's, without it is not."""
    items, hidden, targets = an_encoder(), torch.randn(15, 8), torch.randint(1, 21, (15,))
    q = torch.arange(21.0) ** 2
    q /= q.sum()
    # The draws stand for all other items, the target for itself once in its expected number of draws: count it so.
    negatives = torch.multinomial(q, 400_000, replacement=True)
    others = sampled_softmax(hidden, targets, negatives, q.log(), items)
    logits = items.logits(hidden)[:, 1:]
    target_logit = logits.gather(1, targets[:, None] - 1)[:, 0]
    rest = logits.scatter(1, targets[:, None] - 1, float("-inf")).logsumexp(dim=1)
    corrected_target = target_logit - torch.log(400_000 * q[targets])
    torch.testing.assert_close(others, torch.nn.functional.softplus(rest - corrected_target), rtol=0.02, atol=0.02)


def test_the_untrained_model_ranks_by_popularity() -> None:
    items = ItemEncoder(vocabulary_size=20, dim=8)
    q = torch.rand(21, dtype=torch.float64)
    q[0] = 0
    items.start_from(q / q.sum())
    assert torch.equal(items.item_vectors()[:, -1].argsort(), q[1:].argsort())


# --- the loader


@pytest.fixture
def world(tmp_path: Path) -> Any:
    settings = settings_at(tmp_path)
    return settings, write_world(tmp_path, settings, num_users=101)


def rows_of(batches: Any) -> list[tuple[int, int]]:
    return [
        (int(u), int(w))
        for b in batches
        for u, w, weight in zip(b.user_idx, b.window, b.row_weight, strict=True)
        if weight
    ]


def test_every_row_comes_once_an_epoch_in_full_batches(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "BLOCK_ROWS", 10)
    _, export = world
    seen = []
    for index in range(export.num_shards):
        shard = Shard.find(export, "train", index)
        batches = list(shard.shuffled_batches(16, seed=0, epoch=1))
        assert len(batches) == shard.num_batches(16)
        assert all(len(batch) == 16 for batch in batches)
        assert sorted(rows_of(batches)) == sorted(rows_of(shard.read()))
        seen += rows_of(batches)
    users = [user for user in range(101) if user % 5 != 4]
    assert sorted(seen) == [(user, window) for user in users for window in range(2)]


def test_the_order_depends_on_seed_epoch_and_shard_only(world: Any) -> None:
    _, export = world
    shard = Shard.find(export, "train", 0)

    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        return rows_of(shard.shuffled_batches(16, seed=seed, epoch=epoch))

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_a_reader_names_what_breaks_the_contract(world: Any) -> None:
    _, export = world
    fewer = dataclasses.replace(export, rows={"train": 1, "validation": 1})
    with pytest.raises(ContractMismatchError, match=r"shard 0: found \d+ rows, expected 1"):
        list(Shard.find(fewer, "train", 0).read())
    smaller = dataclasses.replace(export, vocabulary_size=5)
    with pytest.raises(ContractMismatchError, match=r"tokens: found 0..\d+, expected 0..5"):
        list(Shard.find(smaller, "train", 0).read())


# --- training


def hit_rate_of_popularity(root: Path, settings: Any) -> float:
    """HR@10 of the validation windows' last tokens by the training targets' counts."""
    spec = spec_of("gru", settings)
    counts, targets = np.zeros(VOCABULARY + 1), []
    for split in ("train", "validation"):
        for index in range(spec.export.num_shards):
            for rows in Shard.find(spec.export, split, index).read():
                if split == "train":
                    np.add.at(counts, rows.tokens[:, 1:], rows.token_weights[:, 1:])
                else:
                    targets += list(rows.tokens[rows.row_weight > 0][:, -1])
    return float(np.isin(targets, np.argsort(-counts)[:10]).mean())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Train in this process, once for each set of arguments; gives settings, progress and what was printed."""
    done: dict[Any, Any] = {}

    def train(model: str, *, shuffled: bool = False) -> Any:
        key = (model, shuffled)
        if key not in done:
            root = tmp_path_factory.mktemp(f"{model}-{shuffled}")
            settings = settings_at(root)
            write_world(root, settings, shuffled=shuffled)
            done[key] = (root, settings, train_all([spec_of(model, settings)])[0])
        return done[key]

    return train


@pytest.mark.parametrize("model", MODELS)
def test_a_model_learns_the_known_answer(model: str, trained: Callable[..., Any]) -> None:
    root, settings, progress = trained(model)
    popularity = hit_rate_of_popularity(root, settings)
    best = progress.epochs[progress.best - 1]
    assert best.hit_rate > 0.95 > popularity + 0.2
    assert best.ndcg > 0.8


@pytest.mark.parametrize("model", MODELS)
def test_a_model_learns_nothing_from_shuffled_labels(model: str, trained: Callable[..., Any]) -> None:
    root, settings, progress = trained(model, shuffled=True)
    popularity = hit_rate_of_popularity(root, settings)
    assert max(epoch.hit_rate for epoch in progress.epochs) < popularity + 0.1


@pytest.mark.parametrize("model", MODELS)
def test_staged_vectors_are_the_loaded_checkpoints(model: str, trained: Callable[..., Any]) -> None:
    """The object that was loaded gives the vectors that left for Spark: of every user, and of items under their item_idx."""
    _, settings, _ = trained(model)
    spec = spec_of(model, settings)
    staged = read_staged(spec.staging, model)
    rows = pq.read_table(f"{spec.staging}/part-0.parquet").to_pylist()
    assert (staged.users, staged.items, staged.dim) == (400, VOCABULARY, 17)
    assert {(row[C.FOLD], row[C.MODEL]) for row in rows} == {(FOLD, model)}
    vectors = {(row[C.KIND], row[C.IDX]): row[C.VECTOR] for row in rows}
    loaded = load_model(spec.checkpoint)
    with torch.no_grad():
        items = loaded.items.item_vectors().numpy()
        for split in ("train", "validation"):
            for block in Shard.find(spec.export, split, 1).read():
                for user, tokens in zip(
                    block.user_idx[block.window == 0], block.tokens[block.window == 0], strict=True
                ):
                    if user >= 0:
                        state = loaded(torch.from_numpy(tokens[None, 1:]).long())[:, -1]
                        np.testing.assert_allclose(vectors["user", user], user_vectors(state)[0], rtol=1e-4, atol=1e-5)
    for token in range(1, VOCABULARY + 1):
        np.testing.assert_allclose(vectors["item", 999 + token], items[token - 1], rtol=1e-6)


def test_the_checkpoint_keeps_the_newest_and_the_best_epoch(trained: Callable[..., Any]) -> None:
    _, settings, progress = trained("gru")
    spec = spec_of("gru", settings)
    names = {path.name for path in Path(spec.checkpoint).iterdir()}
    assert names == {"settings.json", "progress.json"} | {
        f"epoch-{n}.safetensors" for n in {progress.last, progress.best}
    }
    assert load_progress(spec.checkpoint) == progress
    assert progress.closed


def test_a_finished_training_trains_again_and_gives_the_same(
    trained: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    _, settings, progress = trained("gru")
    again = train_all([spec_of("gru", settings)])[0]
    assert [epoch.loss for epoch in again.epochs] == [epoch.loss for epoch in progress.epochs]
    printed = capfd.readouterr().out
    assert f"gru {FOLD}: epoch 1/8, loss " in printed
    assert "Cache cleanup" not in printed


def test_a_later_fold_goes_on_from_the_one_before(tmp_path: Path) -> None:
    settings = settings_at(tmp_path, epochs=4, epochs_more=1)
    write_world(tmp_path, settings)
    specs = TrainingSpec.plan("gru", [FOLD, FOLD], settings)
    assert [(spec.earlier, spec.epochs) for spec in specs] == [((), 4), ((FOLD,), 1)]
    assert specs[0].lineage != specs[1].lineage, "an unfinished training is resumed with the same history alone"
    first, second = train_all(specs)
    assert second.last == 1
    assert second.epochs[0].loss < first.epochs[2].loss < first.epochs[0].loss
    fresh = TrainingSpec.plan("gru", [FOLD, FOLD], settings_at(tmp_path, epochs=4, epochs_more=0))
    assert [(spec.earlier, spec.epochs) for spec in fresh] == [((), 4), ((), 4)]


def test_what_was_learned_moves_with_the_item() -> None:
    """Items 7, 8, 9 were tokens 1, 2, 3; now 9 is token 1, 10 is new, and 7 is token 3."""
    old, new = (GRU(vocabulary_size=3, dim=4, num_layers=1, dropout=0.0) for _ in range(2))
    before, now = (torch.tensor(shares, dtype=torch.float64) for shares in ([0, 0.5, 0.3, 0.2], [0, 0.1, 0.6, 0.3]))
    with torch.no_grad():
        old.items.bias.copy_(ItemEncoder.start_bias(before) + 0.25)
    new.items.start_from(now)
    start, embedding = new.items.bias.detach().clone(), new.items.embedding.weight.detach().clone()
    learned = Learned.of(old, np.array([7, 8, 9], np.int32), before)
    learned.pass_on(new, np.array([9, 10, 7], np.int32))
    for name in ("output.weight", "output.bias", "layers.0.weight_ih_l0"):
        assert torch.equal(new.state_dict()[name], old.state_dict()[name])
    weights = new.items.embedding.weight
    assert torch.equal(weights[1], old.items.embedding.weight[3])
    assert torch.equal(weights[3], old.items.embedding.weight[1])
    assert torch.equal(weights[[0, 2]], embedding[[0, 2]]), "padding and the new item start as in a fresh training"
    moved = new.items.bias - start
    np.testing.assert_allclose(moved.detach(), [0, 0.25, 0, 0.25], atol=1e-6)


def test_nothing_to_learn_from_is_named(tmp_path: Path) -> None:
    settings = settings_at(tmp_path)
    write_world(tmp_path, settings, num_users=20, target_weight=0.0)
    with pytest.raises(TrainingError, match=r"found no event to learn from .* expected users with at least two events"):
        train_all([spec_of("gru", settings)])


def test_patience_and_the_best_epoch() -> None:
    progress = Progress(digest="d", version=1)
    for number, ndcg in enumerate([0.2, 0.5, 0.4, 0.5, 0.3], start=1):
        assert not progress.done
        note_epoch(
            progress,
            Epoch(epoch=number, loss=1.0, ndcg=ndcg, hit_rate=0.0, seconds=1.0, windows_per_second=1.0),
            epochs=9,
            patience=3,
        )
    assert (progress.best, progress.last, progress.done) == (2, 5, True)


def test_without_validation_users_the_last_epoch_counts() -> None:
    progress = Progress(digest="d", version=1)
    for number in (1, 2, 3):
        note_epoch(
            progress,
            Epoch(epoch=number, loss=1.0, ndcg=None, hit_rate=None, seconds=1.0, windows_per_second=1.0),
            epochs=3,
            patience=1,
        )
    assert (progress.best, progress.done) == (3, True)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(0 < later <= earlier for earlier, later in itertools.pairwise(rates[5:]))
    assert schedule(0, 1) == 1.0


def test_dropout_masks_belong_to_shards_and_not_to_processes() -> None:
    dropout, device = Dropout(0.25), torch.device("cpu")
    x = torch.ones(8, 50, 40)
    seed_dropout(dropout, [1, 2], device)
    together = dropout(x)
    assert abs(float(together.mean()) - 1) < 0.02
    assert together.unique().tolist() == pytest.approx([0, 1 / 0.75])
    for seed, part in ((1, together[:4]), (2, together[4:])):
        seed_dropout(dropout, [seed], device)
        assert torch.equal(dropout(x[:4]), part)
    assert torch.equal(dropout.eval()(x), x)
