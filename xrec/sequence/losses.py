"""Sampled softmax with logQ correction.

The full softmax loss of a target i after a state h is ``log sum_j exp(s_j) - s_i`` with ``s_j = h . e_j + b_j``, over all
items j that compete: too many. Instead the sum runs over the target and S negatives, drawn with replacement from a distribution
q and shared by all targets of a step. A popular item is drawn more often than its place in the sum calls for, so each logit is
corrected by the logarithm of its expected count among the draws: ``s_j - log(S q_j)``, for the target as well (Bengio and
Senecal 2008; Jean et al. 2015, section 3.1; "Candidate sampling algorithms reference", TensorFlow). Without the
correction the model learns to push popular items down. A negative that is the target itself counts once, as the target.

With S = all items once and q uniform, every correction is the same number and the loss is the full softmax's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from xrec.sequence.item_encoder import ItemEncoder

if TYPE_CHECKING:
    from xrec.sequence.models import SequenceModel
    from xrec.sequence.objective import Asked

_OUT = -1e9
"""The logit of a negative that does not compete; finite, so that a state without any has a gradient."""


def windows_loss(
    model: SequenceModel,
    tokens_BL: Tensor,
    asked: Asked,
    negatives_S: Tensor,
    log_q_V: Tensor,
    is_out_NS: Tensor | None = None,
    *,
    precision: str,
) -> Tensor:
    """The summed weighted loss (nats) of what is asked of a batch's states.

    With ``precision`` bf16 the products of matrices are taken in bfloat16 (autocast); weights, sums and gradients stay in float32.
    """
    rows_N, places_N, states_P, targets_P, weights_P = asked.on(tokens_BL.device)
    with torch.autocast(tokens_BL.device.type, torch.bfloat16, enabled=precision == "bf16"):
        hidden_ND = model(tokens_BL)[rows_N, places_N]
        losses_P = sampled_softmax(hidden_ND, states_P, targets_P, negatives_S, log_q_V, model.items, is_out_NS)
    return (losses_P * weights_P).sum()


def sampled_softmax(
    hidden_ND: Tensor,
    states_P: Tensor,
    targets_P: Tensor,
    negatives_S: Tensor,
    log_q_V: Tensor,
    items: ItemEncoder,
    is_out_NS: Tensor | None = None,
) -> Tensor:
    """Loss ``loss_P`` of each target (nats) after its state.

    The negatives are scored once a state, whatever the number of its targets: a target's sum is that of all negatives, less the
    draws that hit it.

    Parameters
    ----------
    hidden_ND
        The states.
    states_P
        Which of them a target belongs to.
    targets_P, negatives_S
        Tokens; negatives may repeat and may hit a target.
    log_q_V
        Natural logarithm of the probability that one draw gives the token; finite for every token given here.
    items
        The output side: embedding and bias.
    is_out_NS
        Where a negative does not compete; no state's target is out. None: all compete.
    """
    # The corrections are added in float32, also where the product is in bfloat16, whose 8 bits would lose them.
    correction_V = items.bias - log_q_V - math.log(len(negatives_S))
    vectors_SD, vectors_PD = (F.embedding(tokens, items.embedding.weight) for tokens in (negatives_S, targets_P))
    logits_NS = (hidden_ND @ vectors_SD.T).float() + correction_V[negatives_S]
    if is_out_NS is not None:
        logits_NS = logits_NS.masked_fill(is_out_NS, _OUT)
    logits_P = (hidden_ND[states_P] * vectors_PD).sum(dim=1).float() + correction_V[targets_P]
    hits_P = torch.bincount(negatives_S, minlength=len(log_q_V))[targets_P]
    return _surprise(torch.logsumexp(logits_NS, dim=1)[states_P] - logits_P, hits_P)


def _surprise(excess_P: Tensor, hits_P: Tensor) -> Tensor:
    """``log(exp(d) - c + 1)`` for d, the logarithm of the negatives' sum over the target's term, which was drawn c times.

    Without a hit that is softplus(d). With hits the sum holds c times the target's term, so that d >= log c, but for rounding.
    """
    is_hit_P = hits_P > 0
    missed_P = F.softplus(excess_P)
    lowest_P = torch.log(hits_P.clamp(min=1).float())
    above_P = torch.maximum(excess_P, lowest_P)
    hit_P = above_P + torch.log1p((1 - hits_P.clamp(min=1)) * torch.exp(-above_P))
    return torch.where(is_hit_P, hit_P, missed_P)


def full_softmax(hidden_ND: Tensor, targets_N: Tensor, items: ItemEncoder) -> Tensor:
    """Loss ``loss_N`` of each target (nats) over the whole vocabulary; the reference of the sampled one."""
    return F.cross_entropy(items.logits(hidden_ND), targets_N, reduction="none")
