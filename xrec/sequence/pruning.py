"""Structured pruning of a trained Transformer: the feed-forward units that matter least are taken out.

What is left are smaller matrices for the same kernels; single weights that are zero would save nothing.

A unit that hardly varies is a constant, which the output's bias can hold. So a unit matters by the variance of its activation times
the squared norm of its outgoing weights, and what leaves is replaced by its mean (FLAP; An et al. 2024, "Fluctuation-based adaptive
structured pruning for large language models"). Nothing is trained afterwards.

The hidden units of recurrent layers stay: their number is the length of the items' vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xrec.sequence.item_encoder import PADDING
from xrec.sequence.loader import Events
from xrec.sequence.transformer import Block, Transformer


@torch.no_grad()
def prune(model: Transformer, share: float, events: Events) -> None:
    """Take a share of each block's feed-forward units out, judged by their activations after some users' ``events``."""
    activations = _activations(model, events)
    for block, activation_NU in zip(_blocks(model), activations, strict=True):
        widen, narrow = block.feed[0], block.feed[2]
        assert isinstance(widen, nn.Linear)
        assert isinstance(narrow, nn.Linear)
        num_units = len(widen.weight)
        matters_U = activation_NU.var(dim=0, correction=0) * narrow.weight.square().sum(dim=0)
        leaving = matters_U.argsort(stable=True)[: int(share * num_units)]
        if not len(leaving):
            continue
        is_kept_U = torch.ones(num_units, dtype=torch.bool, device=leaving.device)
        is_kept_U[leaving] = False
        narrow.bias.add_(narrow.weight[:, leaving] @ activation_NU.mean(dim=0)[leaving])
        widen.weight, widen.bias = nn.Parameter(widen.weight[is_kept_U]), nn.Parameter(widen.bias[is_kept_U])
        narrow.weight = nn.Parameter(narrow.weight[:, is_kept_U])
        widen.out_features = narrow.in_features = num_units - len(leaving)


def _blocks(model: Transformer) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]


def _activations(model: Transformer, events: Events) -> list[Tensor]:
    """Of each block the activations ``(N, U)`` of its units after the N tokens that are no padding."""
    found: list[Tensor] = []
    device = model.items.bias.device
    tokens_BL = torch.from_numpy(events.tokens).to(device, torch.int64)
    is_event_BL = tokens_BL != PADDING
    hooks = [
        block.feed[1].register_forward_hook(lambda _, __, output_BLU: found.append(output_BLU[is_event_BL]))
        for block in _blocks(model)
    ]
    inputs_BLD = model.items(tokens_BL)
    if model.context is not None:
        assert events.context is not None, "the model was built for events with a context"
        inputs_BLD = inputs_BLD + model.context(torch.from_numpy(events.context).to(device, torch.int64))
    model(tokens_BL, inputs_BLD)
    for hook in hooks:
        hook.remove()
    return found
