"""States of windows of all lengths, computed in groups."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from xrec.config import Sequence
from xrec.sequence.dropout import seed_dropout
from xrec.sequence.models import SequenceModel, build_model, model_settings
from xrec.sequence.states import states_of

LENGTH = 40
HISTORIES = [1, 40, 8, 9, 16, 17, 32, 33, 3, 40]
"""Tokens of each row."""


def a_model(name: str, dropout: float = 0.0) -> SequenceModel:
    torch.manual_seed(3)
    sequence = Sequence(length=LENGTH, dim=16, dropout=dropout)
    model = build_model(model_settings(name, sequence, 30))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.items.embedding.weight[0] = 0
    return model


def windows() -> NDArray[np.int32]:
    tokens = np.random.default_rng(4).integers(1, 31, (len(HISTORIES), LENGTH)).astype(np.int32)
    for row, length in zip(tokens, HISTORIES, strict=True):
        row[: LENGTH - length] = 0
    return tokens


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_groups_give_the_states_of_the_whole_batch(name: str) -> None:
    model, tokens = a_model(name).eval(), windows()
    rows, places = np.nonzero(tokens)
    shuffled = np.random.default_rng(5).permutation(len(rows))
    whole = model(torch.from_numpy(tokens).long())[rows[shuffled], places[shuffled]]
    torch.testing.assert_close(states_of(model, tokens, rows[shuffled], places[shuffled]), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_groups_give_the_gradients_of_the_whole_batch(name: str) -> None:
    tokens = windows()
    rows, places = np.nonzero(tokens)

    def gradients(grouped: bool) -> torch.Tensor:
        model = a_model(name).train()
        states = (
            states_of(model, tokens, rows, places) if grouped else model(torch.from_numpy(tokens).long())[rows, places]
        )
        states.square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    torch.testing.assert_close(gradients(grouped=True), gradients(grouped=False), rtol=1e-3, atol=1e-3)


def test_a_row_is_computed_at_its_own_length_and_only_when_it_is_asked() -> None:
    model, tokens = a_model("gru").eval(), windows()
    asked = np.array([0, 1, 2, 3, 5])
    with mock.patch.object(model, "forward", wraps=model.forward) as forward:
        states_of(model, tokens, asked, np.full(len(asked), LENGTH - 1))
    shapes = [tuple(call.args[0].shape) for call in forward.call_args_list]
    assert shapes == [(3, 16), (1, 32), (1, 40)], "1, 8 and 9 tokens; 17; 40"


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_a_batch_of_which_nothing_is_asked_has_gradients_of_zero(name: str) -> None:
    """A rank whose rows have no target takes the step that the others take."""
    model, nothing = a_model(name).train(), np.zeros(0, np.int64)
    for tokens in (windows(), np.zeros((3, LENGTH), np.int32)):
        states = states_of(model, tokens, nothing, nothing)
        assert states.shape == (0, 16)
        model.zero_grad()
        (states @ model.items.outputs(torch.tensor([1, 2]), torch.tensor([3]))[0][0].T).sum().backward()
        for weight, parameter in model.named_parameters():
            assert weight == "items.bias" or (parameter.grad is not None and not parameter.grad.any()), weight


def test_masks_of_a_group_belong_to_the_shards_of_its_rows() -> None:
    """Rows of two shards in one batch get what each shard's rows get alone, though every group has other numbers of them."""
    model, tokens = a_model("transformer", dropout=0.5).train(), windows()
    half = len(tokens) // 2

    def newest(rows: NDArray[np.int32], seeds: list[int]) -> torch.Tensor:
        seed_dropout(model, seeds, torch.device("cpu"))
        return states_of(model, rows, np.arange(len(rows)), np.full(len(rows), LENGTH - 1)).detach()

    together = newest(tokens, [1, 2])
    torch.testing.assert_close(newest(tokens[:half], [1]), together[:half], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(newest(tokens[half:], [2]), together[half:], rtol=1e-4, atol=1e-5)
