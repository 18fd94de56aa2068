"""The same training step on a processor and on a GPU, in float32 and bfloat16; what needs a GPU is skipped where there is none."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from xrec.config import Sequence
from xrec.sequence.dropout import seed_dropout
from xrec.sequence.losses import LossFunction, sampled_softmax, windows_loss
from xrec.sequence.models import SequenceModel, build_model, model_settings
from xrec.sequence.objective import Asked
from xrec.sequence.states import states_of

CPU = torch.device("cpu")
GPU = pytest.param(
    torch.device("cuda"), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"), id="cuda"
)
DEVICES = [pytest.param(CPU, id="cpu"), GPU]
MODELS = ["gru", "transformer"]
VOCABULARY, ROWS, LENGTH = 200, 16, 12


def a_model(name: str, device: torch.device, dropout: float = 0.0) -> SequenceModel:
    torch.manual_seed(1)
    settings = model_settings(
        name, Sequence(length=LENGTH, dim=32, num_layers=2, dropout=dropout, num_negatives=64), VOCABULARY
    )
    return build_model(settings).to(device)


Batch = tuple[NDArray[np.int32], Asked, Tensor, LossFunction, Tensor]


def a_batch(device: torch.device, seed: int = 2) -> Batch:
    """Tokens with padding on the left, one or two targets a state, negatives, the loss, and which negatives are out."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCABULARY + 1, (ROWS, LENGTH + 1), generator=generator)
    for row in range(ROWS):
        tokens[row, : row % 6] = 0
    rows, places = np.nonzero(tokens[:, 1:].numpy() > 0)
    states = np.sort(np.concatenate([np.arange(len(rows)), np.arange(0, len(rows), 3)]))
    asked = Asked(
        rows_N=rows,
        places_N=places,
        states_P=states,
        tokens_P=tokens[rows[states], places[states] + 1].numpy(),
        weights_P=torch.rand(len(states), generator=generator).numpy(),
        touched_at_RC=None,
    )
    negatives = torch.randint(1, VOCABULARY + 1, (64,), generator=generator)
    log_q = torch.full((VOCABULARY + 1,), 1 / VOCABULARY).log()
    is_out = torch.rand(len(rows), 64, generator=generator) < 0.3
    function = partial(sampled_softmax, log_q_V=log_q.to(device))
    return tokens[:, :-1].numpy().astype(np.int32), asked, negatives.to(device), function, is_out.to(device)


def loss_and_gradients(name: str, device: torch.device, precision: str) -> tuple[float, Tensor]:
    model = a_model(name, device)
    loss = windows_loss(model, *a_batch(device), precision=precision)
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)
    return loss.item(), torch.cat([gradient.flatten().cpu() for gradient in gradients])


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("name", MODELS)
def test_a_gpu_gives_the_processors_loss_and_gradients(name: str, device: torch.device) -> None:
    (loss, gradients), (expected, expected_gradients) = (
        loss_and_gradients(name, where, "fp32") for where in (device, CPU)
    )
    assert loss == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_gives_nearly_the_loss_and_the_direction_of_float32(name: str, device: torch.device) -> None:
    (loss, gradients), (expected, expected_gradients) = (
        loss_and_gradients(name, device, precision) for precision in ("bf16", "fp32")
    )
    assert loss != expected, "nothing was computed in bfloat16"
    assert loss == pytest.approx(expected, rel=2e-3)
    assert torch.cosine_similarity(gradients, expected_gradients, dim=0) > 0.999


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_a_few_steps_learn_a_batch(name: str, device: torch.device, precision: str) -> None:
    model, batch = a_model(name, device), a_batch(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = windows_loss(model, *batch, precision=precision)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_dropout_is_keyed_by_the_seeds_of_its_parts(name: str, device: torch.device) -> None:
    """A part's states depend on its own seed and rows alone, whatever else is in the batch."""
    model, tokens = a_model(name, device, dropout=0.5).train(), a_batch(device)[0]

    def newest_states(rows: slice, seeds: list[int]) -> Tensor:
        seed_dropout(model, seeds, device)
        number = len(tokens[rows])
        return states_of(model, tokens[rows], np.arange(number), np.full(number, LENGTH - 1)).detach()

    whole = newest_states(slice(None), [7, 8])
    half = ROWS // 2
    torch.testing.assert_close(newest_states(slice(half), [7]), whole[:half])
    torch.testing.assert_close(newest_states(slice(half, None), [8]), whole[half:])
    assert not torch.allclose(newest_states(slice(half), [9]), whole[:half])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_no_state(name: str, device: torch.device) -> None:
    model = a_model(name, device).eval()
    tokens = torch.from_numpy(a_batch(device)[0][:1, 6:]).to(device, torch.int64)
    padded = torch.cat([torch.zeros_like(tokens[:, :2]), tokens], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model(padded)[:, 2:], model(tokens), rtol=1e-4, atol=1e-5)
