"""What a target costs, and what it is held against (``sequence.loss``).

full_softmax: ``log sum_j exp(s_j) - s_i`` for a target i after a state h, with ``s_j = h . e_j + b_j``, over all items j that
compete.

sampled_softmax: where they are too many, the sum runs over the target and S negatives, drawn with replacement from the targets'
distribution q and shared by all targets of a step. A popular item is drawn more often than its place in the sum calls for, so each
logit is corrected by the logarithm of its expected count among the draws: ``s_j - log(S q_j)``, for the target as well (Bengio and
Senecal 2008; Jean et al. 2015, section 3.1; "Candidate sampling algorithms reference", TensorFlow). Without the correction the
model learns to push popular items down. A negative that is the target itself counts once, as the target. With S = all items once
and q uniform, every correction is the same number and the loss is the full softmax's, which is how that is computed.

gbce: every target and every one of S negatives, drawn uniformly and shared, is a yes or no of its own, with the target's
probability raised to beta, which undoes the overconfidence that sampling teaches (generalised binary cross-entropy; Petrov and
Macdonald 2023, "gSASRec"): ``-(beta log sigma(s_i) + sum_j log(1 - sigma(s_j))) / (S + 1)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from xrec.config import Sequence
from xrec.sequence.item_encoder import ItemEncoder
from xrec.sequence.states import states_of

if TYPE_CHECKING:
    from xrec.sequence.distillation import Teacher
    from xrec.sequence.models import SequenceModel
    from xrec.sequence.objective import Asked

FULL_SOFTMAX_UP_TO = 2_000
"""Items up to which ``auto`` is the full softmax: few times what 512 negatives cost, and nothing is left to chance."""

OUT = -1e9
"""The logit of a negative that does not compete; finite, so that a state without any has a gradient."""

LossFunction = Callable[..., Tensor]
"""``(hidden_ND, states_P, targets_P, negatives_S, items=, is_out_NS=)`` to ``loss_P``."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss of one training."""

    name: str
    """full_softmax, sampled_softmax or gbce."""
    function: LossFunction
    q_V: Tensor
    """The distribution that negatives are drawn from, shape (V,), float64, on the CPU."""
    num_negatives: int
    """Draws a step; 0: all tokens of q, each once."""
    device: torch.device
    start: float = 0.0
    """What the items' biases start from beside their popularity."""

    @classmethod
    def choose(cls, sequence: Sequence, probabilities_V: Tensor, competes_V: Tensor, device: torch.device) -> Loss:
        """What ``sequence.loss`` says; auto: full_softmax where few items compete, else sampled_softmax.

        Parameters
        ----------
        probabilities_V
            The distribution of the training targets.
        competes_V
            Which tokens a target is held against, of which the targets are some.
        """
        competes_V = competes_V | (probabilities_V > 0)
        num_items, name = int(competes_V.sum()), sequence.loss
        if name == "auto":
            name = "full_softmax" if num_items <= FULL_SOFTMAX_UP_TO else "sampled_softmax"
        q_V = probabilities_V if name == "sampled_softmax" else competes_V.double() / num_items
        num_negatives, start = (0 if name == "full_softmax" else sequence.num_negatives), 0.0
        if name == "gbce":
            beta = gbce_beta(num_negatives, num_items, sequence.gbce_calibration)
            function: LossFunction = partial(gbce, beta=beta)
            # The odds of a yes: without it all logits would fall together at first, and take the states with them.
            start = math.log(beta / num_negatives)
        else:
            function = partial(sampled_softmax, log_q_V=q_V.log().float().to(device))
        return cls(name=name, function=function, q_V=q_V, num_negatives=num_negatives, device=device, start=start)

    def draw(self, seed: int) -> Tensor:
        """Tokens ``negatives_S``, drawn independently from q; the same on every rank."""
        q_V = self.q_V.numpy()
        if not self.num_negatives:
            return torch.from_numpy(np.flatnonzero(q_V)).to(self.device)
        uniform_S = np.random.default_rng(seed).random(self.num_negatives)
        cumulative_V = q_V.cumsum()
        drawn_S = np.searchsorted(cumulative_V / max(cumulative_V[-1], 1e-9), uniform_S, side="right")
        return torch.from_numpy(drawn_S.clip(max=len(cumulative_V) - 1)).to(self.device)


def windows_loss(
    model: SequenceModel,
    tokens_BL: NDArray[np.int32],
    asked: Asked,
    negatives_S: Tensor,
    function: LossFunction,
    is_out_NS: Tensor | None = None,
    *,
    precision: str,
    context_BLF: NDArray[np.int32] | None = None,
    teacher: Teacher | None = None,
) -> Tensor:
    """The summed weighted loss (nats) of what is asked of a batch's states, a teacher's part included where there is one.

    With ``precision`` bf16 the products of matrices are taken in bfloat16 (autocast); weights, sums and gradients stay in float32.
    """
    states_P, targets_P, weights_P = asked.on(negatives_S.device)
    with torch.autocast(negatives_S.device.type, torch.bfloat16, enabled=precision == "bf16"):
        hidden_ND = states_of(model, tokens_BL, asked.rows_N, asked.places_N, context_BLF)
        losses_P = function(hidden_ND, states_P, targets_P, negatives_S, items=model.items, is_out_NS=is_out_NS)
        if teacher is not None:
            step = (tokens_BL, asked, negatives_S, is_out_NS, context_BLF)
            losses_P = teacher.mixed(losses_P, hidden_ND, model.items, *step)
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
    (vectors_SD, bias_S), (vectors_PD, bias_P) = items.outputs(negatives_S, targets_P)
    correction_S, correction_P = (
        bias - log_q_V[tokens] - math.log(len(negatives_S))
        for bias, tokens in ((bias_S, negatives_S), (bias_P, targets_P))
    )
    logits_NS = (hidden_ND @ vectors_SD.T).float() + correction_S
    if is_out_NS is not None:
        logits_NS = logits_NS.masked_fill(is_out_NS, OUT)
    logits_P = (hidden_ND[states_P] * vectors_PD).sum(dim=1).float() + correction_P
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


def gbce_beta(num_negatives: int, num_items: int, calibration: float) -> float:
    """The power of a target's probability (Petrov and Macdonald 2023): 1 at calibration 0, the sampling rate at 1."""
    rate = min(1.0, num_negatives / max(1, num_items - 1))
    return rate * (calibration * (1 - 1 / rate) + 1 / rate)


def gbce(
    hidden_ND: Tensor,
    states_P: Tensor,
    targets_P: Tensor,
    negatives_S: Tensor,
    *,
    beta: float,
    items: ItemEncoder,
    is_out_NS: Tensor | None = None,
) -> Tensor:
    """Loss ``loss_P`` of each target (nats): its own, and that of the negatives after its state.

    As for :func:`sampled_softmax`: the negatives are scored once a state, and draws that hit the target do not count.
    """
    (vectors_SD, bias_S), (vectors_PD, bias_P) = items.outputs(negatives_S, targets_P)
    logits_NS = (hidden_ND @ vectors_SD.T).float() + bias_S
    if is_out_NS is not None:
        logits_NS = logits_NS.masked_fill(is_out_NS, OUT)
    logits_P = (hidden_ND[states_P] * vectors_PD).sum(dim=1).float() + bias_P
    hits_P = torch.bincount(negatives_S, minlength=len(items.bias))[targets_P]
    wrong_P = F.softplus(logits_NS).sum(dim=1)[states_P] - hits_P * F.softplus(logits_P)
    return (beta * F.softplus(-logits_P) + wrong_P.clamp(min=0)) / (len(negatives_S) + 1)


def full_softmax(hidden_ND: Tensor, targets_N: Tensor, items: ItemEncoder) -> Tensor:
    """Loss ``loss_N`` of each target (nats) over the whole vocabulary; what tests hold the others against."""
    return F.cross_entropy(items.logits(hidden_ND), targets_N, reduction="none")
