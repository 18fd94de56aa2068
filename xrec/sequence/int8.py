"""Dynamic int8 quantisation of a trained encoder: faster products of matrices on processors, nothing to calibrate.

Weights are int8 once and for all, with a scale for each output; what comes in is made int8 as it comes, with one scale for all
that is multiplied at once (Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only
inference"). Sums are int32, and everything between the products (norms, softmax, gates, embeddings) stays float32. Of what comes in
7 bits are used: older processors add pairs of products in 16 bits.

These are the operations below ``torch.ao.quantization.quantize_dynamic``, which itself refuses recurrent layers without biases.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from xrec.sequence.models import SequenceModel

_LARGEST = 127


class Int8Error(ValueError):
    """A machine that has no int8 products for this."""


def check_int8(device: torch.device) -> None:
    """Raise :class:`Int8Error` where a model cannot be quantised."""
    if device.type != "cpu":
        raise Int8Error(
            f"sequence.encoder: found int8 on a GPU ({device}), expected processors alone; set sequence.encoder=fp32, or hide the "
            "GPUs with CUDA_VISIBLE_DEVICES="
        )
    if torch.backends.quantized.engine == "none":
        raise Int8Error(
            "sequence.encoder: found int8 on a processor that this torch has no int8 products for, expected x86 or ARM; set "
            "sequence.encoder=fp32"
        )


def quantise(model: SequenceModel) -> None:
    """Replace the linear and recurrent layers of an encoder, from now on for scoring alone; its items stay as they are."""
    for name, layer in list(model.named_modules()):
        parent, _, own_name = name.rpartition(".")
        if parent.startswith("items"):
            continue
        if isinstance(layer, nn.Linear):
            setattr(model.get_submodule(parent), own_name, Int8Linear(layer))
        elif isinstance(layer, nn.GRU | nn.LSTM):
            setattr(model.get_submodule(parent), own_name, Int8Recurrent(layer))


class Int8Linear(nn.Module):
    """A linear layer: ``(..., D)`` to ``(..., O)``, float32 on both sides."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = _packed(layer.weight, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The product."""
        product: Tensor = torch.ops.quantized.linear_dynamic(x, self.weight, reduce_range=True)
        return product


class Int8Recurrent(nn.Module):
    """One layer of gated recurrent units or long short-term memory without biases: ``(B, L, D)`` to states ``(B, L, D)``."""

    def __init__(self, layer: nn.GRU | nn.LSTM) -> None:
        super().__init__()
        self.dim, self.is_gru = layer.hidden_size, isinstance(layer, nn.GRU)
        of_inputs_GD, of_states_GD = layer.parameters()
        zeros_G = torch.zeros(len(of_inputs_GD))
        self.cell = torch.ops.quantized.make_quantized_cell_params_dynamic(
            _packed(of_inputs_GD, None), _packed(of_states_GD, None), zeros_G, zeros_G, reduce_range=True
        )

    def forward(self, inputs_BLD: Tensor) -> tuple[Tensor]:
        """The states, first of a tuple as torch's own layers give them; a zero input leaves a zero state at zero, exactly."""
        start_1BD = inputs_BLD.new_zeros(1, len(inputs_BLD), self.dim)
        # After the weights: has_biases, num_layers, dropout, train, bidirectional, batch_first.
        how = ([self.cell], True, 1, 0.0, False, False, True)
        if self.is_gru:
            return (torch.quantized_gru(inputs_BLD, start_1BD, *how)[0],)
        start = (start_1BD, start_1BD)
        return (torch.quantized_lstm(inputs_BLD, start, *how, dtype=torch.qint8, use_dynamic=True)[0],)


def _packed(weight_OD: Tensor, bias_O: Tensor | None) -> Any:
    """A matrix as int8 numbers, each row with its own scale, as the processor's kernel wants them to lie."""
    weight_OD = weight_OD.detach()
    scales_O = weight_OD.abs().amax(dim=1).clamp(min=1e-12).double() / _LARGEST
    zeros_O = torch.zeros(len(weight_OD), dtype=torch.int64)
    with warnings.catch_warnings():
        # Torch will drop tensors of this kind for those of torchao, whose int8 products are far slower without VNNI.
        warnings.simplefilter("ignore", UserWarning)
        quantised_OD = torch.quantize_per_channel(weight_OD, scales_O, zeros_O, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(quantised_OD, None if bias_O is None else bias_O.detach())
