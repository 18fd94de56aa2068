"""Sampled softmax with logQ correction.

The full softmax loss of a target i after a state h is ``log sum_j exp(s_j) - s_i`` with ``s_j = h . e_j + b_j``, over all
items j: too many. Instead the sum runs over the target and S negatives, drawn with replacement from a distribution q and
shared by all targets of a step. A popular item is drawn more often than its place in the sum calls for, so each logit is
corrected by the logarithm of its expected count among the draws: ``s_j - log(S q_j)``, for the target as well (Bengio and
Senecal 2008; Jean et al. 2015, section 3.1; "Candidate sampling algorithms reference", TensorFlow). Without the
correction the model learns to push popular items down. Where a negative is the target itself it is masked.

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


def windows_loss(
    model: SequenceModel, tokens_BM: Tensor, weights_BL: Tensor, negatives_S: Tensor, log_q_V: Tensor, *, precision: str
) -> Tensor:
    """The summed weighted loss (nats) of a batch's targets; inputs are the first L of M = L + 1 tokens, targets the last L.

    With ``precision`` bf16 the products of matrices are taken in bfloat16 (autocast); weights, sums and gradients stay in float32.
    """
    is_target_BL = weights_BL > 0
    with torch.autocast(tokens_BM.device.type, torch.bfloat16, enabled=precision == "bf16"):
        hidden_BLD = model(tokens_BM[:, :-1])
        losses_N = sampled_softmax(
            hidden_BLD[is_target_BL], tokens_BM[:, 1:][is_target_BL], negatives_S, log_q_V, model.items
        )
    return (losses_N * weights_BL[is_target_BL]).sum()


def sampled_softmax(
    hidden_ND: Tensor, targets_N: Tensor, negatives_S: Tensor, log_q_V: Tensor, items: ItemEncoder
) -> Tensor:
    """Loss ``loss_N`` of each target (nats) after its state.

    Parameters
    ----------
    hidden_ND
        A state per target.
    targets_N, negatives_S
        Tokens; negatives may repeat and may hit a target.
    log_q_V
        Natural logarithm of the probability that one draw gives the token; finite for every token given here.
    items
        The output side: embedding and bias.
    """
    num_targets, num_negatives = len(targets_N), len(negatives_S)
    tokens = torch.cat([targets_N, negatives_S])
    vectors = F.embedding(tokens, items.embedding.weight)
    corrections = items.bias[tokens] - log_q_V[tokens] - math.log(num_negatives)
    target_logits_N = (hidden_ND * vectors[:num_targets]).sum(dim=1) + corrections[:num_targets]
    # The corrections are added in float32, also where the product is in bfloat16, whose 8 bits would lose them.
    negative_logits_NS = (hidden_ND @ vectors[num_targets:].T).float() + corrections[num_targets:]
    hits_NS = targets_N[:, None] == negatives_S[None, :]
    negative_logits_NS = negative_logits_NS.masked_fill(hits_NS, float("-inf"))
    # -log softmax of the target = log(1 + exp(logsumexp(negatives) - target)).
    return F.softplus(torch.logsumexp(negative_logits_NS, dim=1) - target_logits_N)


def full_softmax(hidden_ND: Tensor, targets_N: Tensor, items: ItemEncoder) -> Tensor:
    """Loss ``loss_N`` of each target (nats) over the whole vocabulary; the reference of the sampled one."""
    return F.cross_entropy(items.logits(hidden_ND), targets_N, reduction="none")
