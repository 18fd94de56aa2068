"""The sequence models in one process: what a score depends on, the loss, the loader, training, checkpoints, vectors."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sequence_world import COLD_SHARE, FOLD, NUM_COLD, NUM_TASTES, VOCABULARY, settings_at, spec_of, write_world
from stores import Renaming
from xrec import columns as C
from xrec.config import Sequence
from xrec.features.sequence_files import ContractMismatchError
from xrec.features.vector_files import read_staged
from xrec.sequence import loader, validation
from xrec.sequence.dropout import Dropout, seed_dropout
from xrec.sequence.item_encoder import ItemEncoder, user_vectors
from xrec.sequence.loader import Shard, Windows
from xrec.sequence.losses import FULL_SOFTMAX_UP_TO, Loss, full_softmax, gbce, gbce_beta, sampled_softmax
from xrec.sequence.models import SequenceModel, build_model, load_model, model_settings
from xrec.sequence.objective import asked_of
from xrec.sequence.optimization import TrainingError, schedule
from xrec.sequence.progress import Epoch, Progress, load_progress, note_epoch
from xrec.sequence.ranks import train_all
from xrec.sequence.transformer import turned, turns_of
from xrec.sequence.vocabulary import Vocabulary

pytestmark = pytest.mark.torch

MODELS = ("gru", "transformer")
KINDS: dict[str, dict[str, Any]] = {
    "gru": {"model": "gru"},
    "lstm": {"model": "gru", "cell": "lstm"},
    "transformer": {"model": "transformer", "num_heads": 2, "length": 12},
    "rotary": {"model": "transformer", "num_heads": 2, "length": 12, "positions": "rotary"},
    "pooled gru": {"model": "gru", "pooled": True},
    "pooled transformer": {"model": "transformer", "num_heads": 2, "length": 12, "pooled": True},
}


def model_of(name: str, num_layers: int = 2) -> SequenceModel:
    torch.manual_seed(1)
    settings: dict[str, Any] = {
        **KINDS[name],
        "vocabulary_size": 20,
        "dim": 8,
        "num_layers": num_layers,
        "dropout": 0.5,
    }
    model = build_model(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.items.embedding.weight[0] = 0
    return model


@pytest.mark.parametrize("name", KINDS)
def test_padding_on_the_left_does_not_change_a_score(name: str) -> None:
    model = model_of(name)
    tokens = torch.randint(1, 21, (3, 5))
    padded = torch.cat([torch.zeros(3, 7, dtype=torch.long), tokens], dim=1)
    assert torch.isfinite(model(padded)).all()
    torch.testing.assert_close(model(padded)[:, 7:], model(tokens))


@pytest.mark.parametrize("name", KINDS)
def test_a_future_item_does_not_change_an_earlier_state(name: str) -> None:
    model = model_of(name)
    tokens = torch.randint(1, 21, (3, 12))
    changed = tokens.clone()
    changed[:, 8:] = torch.randint(1, 21, (3, 4))
    torch.testing.assert_close(model(changed)[:, :8], model(tokens)[:, :8])
    assert not torch.allclose(model(changed)[:, 8:], model(tokens)[:, 8:])


@pytest.mark.parametrize("name", KINDS)
def test_an_older_item_does_change_the_state(name: str) -> None:
    model = model_of(name)
    tokens = torch.randint(1, 20, (3, 6))
    changed = tokens.clone()
    changed[:, 2] += 1
    assert not torch.allclose(model(changed)[:, -1], model(tokens)[:, -1])


@pytest.mark.parametrize("model", MODELS)
def test_the_mean_of_the_events_is_a_path_of_its_own_that_starts_at_nothing(model: str) -> None:
    """In any order; the part of a state after three events is a quarter of their sum, times the matrix."""
    settings = {"model": model, "vocabulary_size": 20, "dim": 8, "num_layers": 1, "dropout": 0.0}
    settings |= {"num_heads": 2, "length": 12} if model == "transformer" else {}
    torch.manual_seed(1)
    alone = build_model(settings).eval()
    torch.manual_seed(1)
    both = build_model({**settings, "pooled": True}).eval()
    assert both.pooled is not None
    both.load_state_dict(alone.state_dict(), strict=False)
    tokens = torch.tensor([[0, 0, 3, 7, 5], [0, 0, 7, 5, 3]])
    with torch.no_grad():
        torch.testing.assert_close(both(tokens), alone(tokens))
        torch.nn.init.normal_(both.pooled.matrix.weight)
        parts = (both(tokens) - alone(tokens))[:, -1]
        expected = both.items(torch.tensor([3, 7, 5])).sum(dim=0) / 4 @ both.pooled.matrix.weight.T
    torch.testing.assert_close(parts, expected.expand(2, 8))


def test_rotary_positions_turn_as_complex_numbers_and_know_distances_alone() -> None:
    vectors = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    places = torch.arange(4, -1, -1)
    found = turned(vectors, turns_of(places, 8))
    for pair in range(4):
        number = torch.complex(vectors[..., pair], vectors[..., pair + 4])
        expected = number * torch.exp(1j * places.double() * 10_000 ** (-2 * pair / 8))
        torch.testing.assert_close(
            torch.complex(found[..., pair], found[..., pair + 4]), expected, rtol=1e-6, atol=1e-6
        )
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def product(of_query: int, of_key: int) -> float:
        places_of = (torch.tensor([of_query]), torch.tensor([of_key]))
        return float((turned(query, turns_of(places_of[0], 8)) * turned(key, turns_of(places_of[1], 8))).sum())

    assert product(3, 1) == pytest.approx(product(40, 38), abs=1e-4)
    assert product(3, 1) != pytest.approx(product(3, 2), abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Sequence(cell="lstm"), {"model": "gru", "cell": "lstm", "dim": 64}),
        (Sequence(positions="rotary", dim=4), {"model": "transformer", "positions": "rotary", "dim": 12}),
        (Sequence(dim=4), {"model": "transformer", "positions": "learned", "dim": 10}),
    ],
)
def test_a_model_is_built_from_what_its_checkpoint_says(settings: Sequence, expected: dict[str, Any]) -> None:
    """The given vectors have 10 numbers; two heads of rotary positions share a multiple of 4."""
    told = model_settings(expected["model"], settings, 20, given_dim=10)
    assert told | expected == told
    assert build_model(told).items.embedding.embedding_dim == expected["dim"]


def test_an_odd_head_cannot_turn() -> None:
    with pytest.raises(ValueError, match=r"sequence.dim: found 6, expected an even multiple of num_heads \(2\)"):
        Sequence(dim=6, num_heads=2, positions="rotary")


def test_the_dot_product_of_the_vectors_is_the_logit() -> None:
    model = model_of("gru")
    hidden = model(torch.randint(1, 21, (3, 5)))[:, -1]
    logits = model.items.logits(hidden)
    torch.testing.assert_close(user_vectors(hidden) @ model.items.table(21)[1:].T, logits[:, 1:])
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
    sampled = sampled_softmax(hidden, torch.arange(15), targets, torch.arange(1, 21), uniform, items)
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
    found = sampled_softmax(hidden, torch.arange(15), targets, negatives, q.log(), items)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_many_targets_of_a_state_and_negatives_that_are_out_are_a_naive_versions() -> None:
    """Some negatives do not compete, some hit a target once or twice, and one state has no negative left."""
    items, hidden = an_encoder(), torch.randn(4, 8)
    states = torch.tensor([0, 0, 0, 1, 2, 2, 3])
    targets = torch.tensor([3, 5, 9, 5, 7, 3, 11])
    negatives = torch.tensor([5, 2, 3, 5, 14, 9])
    out = torch.zeros(4, 6, dtype=torch.bool)
    out[1, [1, 4]] = out[2, [0, 1, 3]] = out[3] = True
    q = torch.rand(21) + 0.1
    q[0] = 0
    q /= q.sum()
    expected = []
    for state, target in zip(states, targets, strict=True):
        scores = []
        for place, token in enumerate([target, *negatives]):
            if place == 0 or (token != target and not out[state, place - 1]):
                logit = float((items.embedding.weight[token] @ hidden[state] + items.bias[token]).detach())
                scores.append(logit - np.log(6 * float(q[token])))
        expected.append(np.log(np.exp(scores).sum()) - scores[0])
    hidden.requires_grad_()
    found = sampled_softmax(hidden, states, targets, negatives, q.log(), items, out)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(hidden.grad).all()  # type: ignore[arg-type]


def test_sampling_reaches_the_full_softmax_in_the_limit() -> None:
    """Many negatives of a skewed distribution: with the correction the loss is the full one's, without it is not."""
    items, hidden, targets = an_encoder(), torch.randn(15, 8), torch.randint(1, 21, (15,))
    q = torch.arange(21.0) ** 2
    q /= q.sum()
    # The draws stand for all other items, the target for itself once in its expected number of draws: count it so.
    negatives = torch.multinomial(q, 400_000, replacement=True)
    others = sampled_softmax(hidden, torch.arange(15), targets, negatives, q.log(), items)
    logits = items.logits(hidden)[:, 1:]
    target_logit = logits.gather(1, targets[:, None] - 1)[:, 0]
    rest = logits.scatter(1, targets[:, None] - 1, float("-inf")).logsumexp(dim=1)
    corrected_target = target_logit - torch.log(400_000 * q[targets])
    torch.testing.assert_close(others, torch.nn.functional.softplus(rest - corrected_target), rtol=0.02, atol=0.02)


CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["full_softmax", "sampled_softmax", "gbce"])
def test_auto_is_the_full_softmax_of_few_items_and_samples_of_many(name: str) -> None:
    few, many = 50, FULL_SOFTMAX_UP_TO + 10
    for num_items, expected in ((few, "full_softmax"), (many, "sampled_softmax")):
        targets, competes = torch.zeros(num_items + 1, dtype=torch.float64), torch.ones(num_items + 1, dtype=torch.bool)
        targets[3], competes[:3] = 1.0, False
        assert Loss.choose(Sequence(), targets, competes, CPU).name == expected
        loss = Loss.choose(Sequence(loss=name, num_negatives=40), targets, competes, CPU)
        assert loss.name == name
        drawn = loss.draw(7)
        assert torch.equal(drawn, loss.draw(7))
        if name == "full_softmax":
            assert drawn.tolist() == list(range(3, num_items + 1))
        elif name == "sampled_softmax":
            assert drawn.tolist() == [3] * 40
        else:
            assert len(drawn) == 40
            assert drawn.min() >= 3
            assert not torch.equal(drawn, loss.draw(8))


def test_the_full_softmax_is_torchs_over_the_items_that_compete() -> None:
    """Of two states that the same items are out for, as the softmax whose other logits are minus infinity."""
    items, hidden = an_encoder(), torch.randn(4, 8)
    states, targets = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([3, 5, 9, 5, 7])
    out = torch.zeros(4, 21, dtype=torch.bool)
    out[1, [2, 5, 20]] = out[2, [1, 9]] = True
    loss = Loss.choose(Sequence(), torch.zeros(21).double(), torch.arange(21) > 0, CPU)
    negatives = loss.draw(0)
    found = loss.function(hidden, states, targets, negatives, items=items, is_out_NS=out[:, negatives])
    logits = items.logits(hidden).masked_fill(out, float("-inf"))
    torch.testing.assert_close(
        found, torch.nn.functional.cross_entropy(logits[states], targets, reduction="none"), rtol=1e-4, atol=1e-5
    )


def test_gbce_is_a_naive_versions() -> None:
    items, hidden = an_encoder(), torch.randn(3, 8)
    states, targets = torch.tensor([0, 0, 1, 2]), torch.tensor([3, 5, 9, 5])
    negatives = torch.tensor([5, 2, 3, 5, 14])
    out = torch.zeros(3, 5, dtype=torch.bool)
    out[1, [1, 4]] = True
    beta = gbce_beta(5, 20, 0.75)
    expected = []
    for state, target in zip(states, targets, strict=True):
        probabilities = torch.sigmoid(items.logits(hidden[state][None])[0]).detach().double()
        loss = -beta * np.log(probabilities[target])
        for place, token in enumerate(negatives):
            if token != target and not out[state, place]:
                loss -= np.log(1 - probabilities[token])
        expected.append(float(loss) / 6)
    found = gbce(hidden, states, targets, negatives, beta=beta, items=items, is_out_NS=out)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4)


def test_gbces_beta_is_the_papers() -> None:
    assert gbce_beta(256, 10_001, 0.0) == pytest.approx(1.0)
    assert gbce_beta(256, 10_001, 1.0) == pytest.approx(0.0256)
    assert gbce_beta(256, 10_001, 0.75) == pytest.approx(0.0256 * (0.75 * (1 - 1 / 0.0256) + 1 / 0.0256))
    assert gbce_beta(100, 20, 0.5) == 1.0, "all items are drawn: nothing to undo"


@pytest.mark.parametrize("name", ["full_softmax", "sampled_softmax", "gbce"])
def test_the_gradients_of_a_loss_are_its_slopes(name: str) -> None:
    """Along random directions of the states, the embeddings and the biases, by finite differences."""
    items, hidden = an_encoder(), torch.randn(3, 8, requires_grad=True)
    states, targets = torch.tensor([0, 0, 1, 2]), torch.tensor([3, 5, 9, 5])
    out = torch.zeros(3, 21, dtype=torch.bool)
    out[1, [2, 5, 20]] = True
    shares = (torch.arange(21) > 0).double() / 20
    loss = Loss.choose(Sequence(loss=name, num_negatives=12), shares, shares > 0, CPU)
    negatives = loss.draw(1)

    def total() -> torch.Tensor:
        return loss.function(hidden, states, targets, negatives, items=items, is_out_NS=out[:, negatives]).sum()

    inputs = [hidden, items.embedding.weight, items.bias]
    gradients = torch.autograd.grad(total(), inputs)
    for one, gradient in zip(inputs, gradients, strict=True):
        for _ in range(3):
            direction = torch.randn_like(one)
            sides = []
            for sign in (1, -1):
                with torch.no_grad():
                    one.add_(direction, alpha=sign * 1e-2)
                    sides.append(float(total()))
                    one.sub_(direction, alpha=sign * 1e-2)
            slope = (sides[0] - sides[1]) / 2e-2
            assert float((gradient * direction).sum()) == pytest.approx(slope, rel=0.02, abs=0.02)


def test_gbce_starts_where_popularity_alone_says_as_often_yes_as_it_is_true() -> None:
    """An item is a target as often as its share, beta times each, and half a negative: 30 are drawn of 60 items."""
    shares = torch.cat([torch.zeros(1), torch.arange(1.0, 61.0)]).double()
    shares /= shares.sum()
    loss = Loss.choose(Sequence(loss="gbce", num_negatives=30), shares, shares > 0, CPU)
    items = ItemEncoder(vocabulary_size=60, dim=8)
    items.start_from(shares, loss.start)
    odds = items.bias[1:].detach().exp().double()
    expected = gbce_beta(30, 60, 0.75) * shares[1:] * 60 / 30
    torch.testing.assert_close(odds, expected, rtol=0.5, atol=0.01)
    assert Loss.choose(Sequence(loss="sampled_softmax"), shares, shares > 0, CPU).start == 0


def test_the_untrained_model_ranks_by_popularity() -> None:
    items = ItemEncoder(vocabulary_size=20, dim=8)
    q = torch.rand(21, dtype=torch.float64)
    q[0] = 0
    items.start_from(q / q.sum())
    assert torch.equal(items.table(21)[1:][:, -1].argsort(), q[1:].argsort())


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


def test_a_store_that_only_fsspec_knows_is_read_like_the_disk(world: Any) -> None:
    _, export = world
    shard = Shard.find(export, "train", 0)
    elsewhere = dataclasses.replace(shard, files=[Renaming.url(file) for file in shard.files])
    found, expected = (Windows.concatenate(list(one.read())) for one in (elsewhere, shard))
    for field in dataclasses.fields(Windows):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))


def test_a_reader_names_what_breaks_the_contract(world: Any) -> None:
    _, export = world
    fewer = dataclasses.replace(export, rows={"train": 1, "validation": 1})
    with pytest.raises(ContractMismatchError, match=r"shard 0: found \d+ rows, expected 1"):
        list(Shard.find(fewer, "train", 0).read())
    smaller = dataclasses.replace(export, vocabulary_size=5)
    with pytest.raises(ContractMismatchError, match=r"tokens: found 0..\d+, expected 0..5"):
        list(Shard.find(smaller, "train", 0).read())


# --- what is asked


def random_windows(num_rows: int = 40, length: int = 12, seed: int = 4) -> tuple[Windows, Vocabulary]:
    """Windows of 20 items of 6 categories, some never recommended, in baskets, with padding and rows of weight 0."""
    generator = np.random.default_rng(seed)
    category_V = np.concatenate([[-1], generator.integers(-1, 6, 20)]).astype(np.int32)
    tokens, weights, baskets, touched_at = [], [], [], []
    for _ in range(num_rows):
        missing = int(generator.integers(0, length))
        row = np.concatenate([np.zeros(missing, int), generator.integers(1, 21, length + 1 - missing)])
        starts = np.concatenate([[True], generator.random(length) < 0.4])
        basket = np.where(row > 0, 100 - np.cumsum(starts), 0)
        touched = np.full(6, length + 1)
        for place in reversed(range(missing, length + 1)):
            if category_V[row[place]] >= 0:
                touched[category_V[row[place]]] = np.flatnonzero(basket == basket[place])[0]
        touched[generator.random(6) < 0.3] = 0
        tokens.append(row)
        baskets.append(basket)
        touched_at.append(touched)
        weights.append(generator.integers(0, 3, length + 1) * (row > 0) * (category_V[row] >= 0))
    windows = Windows(
        user_idx=np.arange(num_rows, dtype=np.int32),
        window=np.zeros(num_rows, np.int32),
        tokens=np.stack(tokens).astype(np.int32),
        token_weights=np.stack(weights).astype(np.float32),
        baskets=np.stack(baskets).astype(np.int32),
        touched_at=np.stack(touched_at).astype(np.int32),
        row_weight=(generator.random(num_rows) < 0.9).astype(np.float32),
    )
    item_idx_V = np.arange(-1, 20, dtype=np.int32)
    item_ids = pa.array([None, *map(str, range(20))])
    return windows, Vocabulary(item_idx_V=item_idx_V, item_ids=item_ids, category_V=category_V, vectors_VG=None)


def test_new_categories_are_asked_as_a_naive_version_asks() -> None:
    windows, vocabulary = random_windows()
    expected = {}
    for row in range(len(windows)):
        tokens, baskets = windows.tokens[row], windows.baskets[row]
        for place in range(len(tokens) - 1):
            if tokens[place] == 0 or baskets[place] == baskets[place + 1]:
                continue
            has = {c for c in range(6) if windows.touched_at[row, c] <= place}
            later = [
                (int(tokens[q]), float(windows.token_weights[row, q] * windows.row_weight[row]))
                for q in range(place + 1, len(tokens))
                if vocabulary.category_V[tokens[q]] >= 0 and vocabulary.category_V[tokens[q]] not in has
            ]
            later = [(token, weight) for token, weight in later if weight > 0]
            if later:
                expected[row, place] = (later, has)
    asked = asked_of(windows, vocabulary, Sequence(objective="new_categories"))
    found: dict[Any, Any] = {}
    out = asked.is_out(np.arange(6))
    assert out is not None
    for state, (row, place) in enumerate(zip(asked.rows_N, asked.places_N, strict=True)):
        of_state = asked.states_P == state
        pairs = [(int(t), float(w)) for t, w in zip(asked.tokens_P[of_state], asked.weights_P[of_state], strict=True)]
        found[int(row), int(place)] = (pairs, set(np.flatnonzero(out[state])))
    assert found == expected
    assert len(expected) > 50


def test_the_next_event_is_asked_of_every_place_whose_next_token_counts() -> None:
    windows, vocabulary = random_windows()
    asked = asked_of(windows, vocabulary, Sequence(objective="next_event"))
    weights = windows.token_weights[:, 1:] * windows.row_weight[:, None]
    rows, places = np.nonzero(weights)
    assert list(zip(asked.rows_N, asked.places_N, strict=True)) == list(zip(rows, places, strict=True))
    assert np.array_equal(asked.tokens_P, windows.tokens[rows, places + 1])
    assert np.array_equal(asked.weights_P, weights[rows, places])
    assert np.array_equal(asked.states_P, np.arange(len(rows)))
    assert asked.is_out(np.arange(6)) is None


@pytest.mark.parametrize("objective", ["new_categories", "next_event"])
def test_validation_is_a_naive_versions(objective: str) -> None:
    windows, vocabulary = random_windows()
    sequence = Sequence(objective=objective)
    model, asked = model_of("gru").requires_grad_(False), asked_of(windows, vocabulary, sequence)
    with torch.no_grad():
        hidden = model(torch.from_numpy(windows.tokens[:, :-1]).long())
    expected = np.zeros(3)
    for row in sorted(set(asked.rows_N)):
        states = np.flatnonzero(asked.rows_N == row)
        state = states[-1] if objective == "next_event" else states[len(states) // 2]
        logits = model.items.logits(hidden[row, asked.places_N[state]][None])[0].numpy()
        if objective == "new_categories":
            has = windows.touched_at[row] <= asked.places_N[state]
            logits[[token for token, c in enumerate(vocabulary.category_V) if c < 0 or has[c]]] = -np.inf
        targets = asked.tokens_P[asked.states_P == state]
        ranks = np.array([1 + (logits > logits[token]).sum() for token in targets])
        ideal = sum(1 / np.log2(rank + 1) for rank in range(1, min(len(targets), 10) + 1))
        expected += [(1 / np.log2(ranks[ranks <= 10] + 1)).sum() / ideal, (ranks <= 10).any(), 1]
    with torch.inference_mode():
        table = model.items.table(len(vocabulary.item_idx_V))
        found = validation._sums(model, table, windows, asked, vocabulary, sequence, torch.device("cpu"))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


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

    def train(model: str, *, shuffled: bool = False, **sequence: Any) -> Any:
        key = (model, shuffled, *sequence.items())
        if key not in done:
            root = tmp_path_factory.mktemp(f"{model}-{shuffled}")
            settings = settings_at(root, **sequence)
            write_world(root, settings, shuffled=shuffled)
            done[key] = (root, settings, train_all([spec_of(model, settings)])[0])
        return done[key]

    return train


@pytest.mark.parametrize(
    ("model", "sequence"),
    [
        ("gru", {}),
        ("gru", {"cell": "lstm"}),
        ("gru", {"loss": "sampled_softmax"}),
        ("transformer", {"loss": "gbce", "num_negatives": 30}),
        ("transformer", {}),
        ("transformer", {"positions": "rotary"}),
    ],
)
def test_a_model_learns_the_known_answer(model: str, sequence: dict[str, Any], trained: Callable[..., Any]) -> None:
    root, settings, progress = trained(model, **sequence)
    popularity = hit_rate_of_popularity(root, settings)
    best = progress.epochs[progress.best - 1]
    assert best.hit_rate > 0.95 > popularity + 0.2
    assert best.ndcg > 0.8


@pytest.mark.parametrize("vectors", [False, True], ids=["learned", "given"])
@pytest.mark.parametrize("model", MODELS)
def test_a_model_learns_what_a_user_will_like_in_new_categories(model: str, vectors: bool, tmp_path: Path) -> None:
    """A third of the items are of his taste, all as popular; whoever knows his taste has only those among the first ten."""
    given = "als" if vectors else None
    settings = settings_at(tmp_path, objective="new_categories", item_vectors=given, epochs=6)
    write_world(tmp_path, settings, tastes=True, vectors=vectors)
    progress = train_all([spec_of(model, settings)])[0]
    best = progress.epochs[progress.best - 1]
    # Five of some fifteen that are left of his taste are targets, of some fifty that compete.
    assert best.ndcg is not None
    assert best.ndcg > 0.25
    loaded = load_model(spec_of(model, settings).checkpoint)
    similar = torch.nn.functional.normalize(loaded.items.embedding.weight[1:], dim=1)
    similar = similar @ similar.T
    same = torch.arange(VOCABULARY)[:, None] % NUM_TASTES == torch.arange(VOCABULARY) % NUM_TASTES
    assert similar[same].mean() > similar[~same].mean() + 0.5


def test_given_vectors_are_not_learned_and_biases_are(tmp_path: Path) -> None:
    settings = settings_at(tmp_path, objective="new_categories", item_vectors="als", epochs=1)
    write_world(tmp_path, settings, tastes=True, vectors=True)
    spec = spec_of("gru", settings)
    vocabulary = Vocabulary.read(spec)
    assert vocabulary.vectors_VG is not None
    assert vocabulary.vectors_VG.shape == (VOCABULARY + 1, NUM_TASTES)
    assert not vocabulary.vectors_VG[0].any()
    train_all([spec])
    items = load_model(spec.checkpoint).requires_grad_(False).items
    ratios = items.embedding.weight[1:, :NUM_TASTES] / torch.from_numpy(vocabulary.vectors_VG[1:])
    assert float(ratios.std()) < 1e-5 * float(ratios.mean())
    assert float(items.embedding.weight[1:, :NUM_TASTES].square().mean()) == pytest.approx(0.2**2, rel=1e-5)
    assert not items.embedding.weight[:, NUM_TASTES:].any(), "beside what is given there is nothing"
    assert not items.embedding.weight[0].any()
    assert items.bias[1:].unique().numel() > 1


def test_items_without_a_given_vector_do_not_scale_the_others() -> None:
    few, many = (ItemEncoder(vocabulary_size=size, dim=4, given=True) for size in (3, 30))
    vectors = torch.randn(3, 2)
    few.give(torch.cat([torch.zeros(1, 2), vectors]))
    many.give(torch.cat([torch.zeros(1, 2), vectors, torch.zeros(27, 2)]))
    assert torch.equal(few.embedding.weight, many.embedding.weight[:4])
    assert not many.embedding.weight[4:].any()


def test_embeddings_are_as_long_as_the_given_vectors(tmp_path: Path) -> None:
    """And can be divided among the heads."""
    settings = settings_at(tmp_path, objective="new_categories", item_vectors="als", dim=2, num_heads=2, epochs=1)
    write_world(tmp_path, settings, tastes=True, vectors=True)
    spec = spec_of("transformer", settings)
    train_all([spec])
    assert load_model(spec.checkpoint).items.embedding.embedding_dim == 4
    assert read_staged(spec.staging, "transformer").dim == 5


@pytest.mark.parametrize("vectors", [False, True], ids=["learned", "given"])
@pytest.mark.parametrize("model", MODELS)
def test_items_that_nobody_had_are_known_by_their_words(model: str, vectors: bool, tmp_path: Path) -> None:
    """Of the 15 cold items a user gets the five of his taste first, and all together they get the share that they are given."""
    settings = settings_at(
        tmp_path,
        objective="new_categories",
        item_vectors="als" if vectors else None,
        item_content=["text", "path"],
        left_out=0.3,
        epochs=8,
    )
    write_world(tmp_path, settings, tastes=True, vectors=vectors)
    spec = spec_of(model, settings)
    train_all([spec])
    staged = read_staged(spec.staging, model)
    assert staged.items == VOCABULARY + NUM_COLD
    rows = pq.read_table(f"{spec.staging}/part-0.parquet").to_pylist()
    items = {row[C.IDX]: row[C.VECTOR] for row in rows if row[C.KIND] == "item"}
    users = {row[C.IDX]: row[C.VECTOR] for row in rows if row[C.KIND] == "user"}
    cold = np.array([items[2000 + number] for number in range(NUM_COLD)])
    states = np.array(list(users.values()))
    best = np.argsort(-states @ cold.T, axis=1)[:, :5] % NUM_TASTES
    assert (best == np.array(list(users))[:, None] % NUM_TASTES).mean() > 0.95
    odds = np.exp(np.array(list(items.values())) @ states.mean(axis=0))
    is_cold = np.array(list(items)) >= 2000
    assert odds[is_cold].sum() / odds.sum() == pytest.approx(COLD_SHARE, rel=1e-3)
    loaded = load_model(spec.checkpoint)
    with torch.no_grad():
        found = loaded.items.table(VOCABULARY + 1)[1:].numpy()
    np.testing.assert_allclose(found, [items[1000 + n] for n in range(VOCABULARY)], rtol=1e-4, atol=1e-4)


def test_given_vectors_that_are_missing_are_named(tmp_path: Path) -> None:
    settings = settings_at(tmp_path, item_vectors="als")
    write_world(tmp_path, settings)
    with pytest.raises(
        ContractMismatchError, match=r"found no item with a vector of 'als'.*run the stages train_als and export"
    ):
        train_all([spec_of("gru", settings)])


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
        items = loaded.items.table(VOCABULARY + 1)[1:].numpy()
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
    assert names == {"settings.json", "trained_on.json", "items.parquet", "progress.json"} | {
        f"epoch-{n}.safetensors" for n in {progress.last, progress.last - 1, progress.best}
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
