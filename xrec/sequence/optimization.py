"""A step of a training: the gradients of all ranks, the learning rate, the weights."""

from __future__ import annotations

import math

import horovod.torch as hvd
import torch
from torch import Tensor

from xrec.config import Sequence
from xrec.sequence.exchange import sum_over_ranks
from xrec.sequence.models import SequenceModel

MAX_GRADIENT_NORM = 1.0
WARM_UP_SHARE = 0.05
"""Share of the steps in which the learning rate rises to its full size; then it falls along a cosine to 0."""


class TrainingError(ValueError):
    """A training that cannot go on; the message says why and what to do."""


class Optimization:
    """Adam with decoupled decay, the same on all ranks."""

    def __init__(self, model: SequenceModel, sequence: Sequence, *, where: str) -> None:
        """Prepare the state of every parameter that learns; ``where`` is what messages call the training."""
        self.model = model
        self.sequence = sequence
        self.where = where
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.adam = torch.optim.AdamW(
            learning, lr=sequence.learning_rate, weight_decay=sequence.weight_decay, fused=True
        )
        for parameter in learning:
            self.adam.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def tensors(self) -> dict[str, Tensor]:
        """The state by name, which a checkpoint holds beside the weights; writing into it changes the training."""
        return {
            f"optimizer.{name}.{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.adam.state.get(parameter, {}).items()
        }

    def zero(self) -> None:
        """Forget the gradients of the step before."""
        self.adam.zero_grad()

    def step(self, step: int, num_steps: int, sums: Tensor, is_late: bool) -> bool:
        """Sum the gradients over the ranks, divide by the weight of all their targets, and change the weights.

        Parameters
        ----------
        step, num_steps
            Of the whole training, from 0.
        sums
            What this rank's rows came to: the sum of the weighted losses, and of the weights.
        is_late
            Whether this rank is late to save; the answer, the same on all ranks, is whether any is.

        Raises
        ------
        TrainingError
            The training diverged; the weights are those of before.
        """
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        shared = torch.tensor([sums[1], is_late], dtype=torch.float64)
        sum_over_ranks(gradients, name="gradients")
        if hvd.size() > 1:
            shared = hvd.allreduce(shared, op=hvd.Sum, name="weight")
        weight, num_late = shared.tolist()
        torch._foreach_div_(gradients, max(weight, 1e-9))
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.check_finite(float(norm), "gradient's norm")
        for group in self.adam.param_groups:
            group["lr"] = self.sequence.learning_rate * schedule(step, num_steps)
        self.adam.step()
        return bool(num_late)

    def check_finite(self, value: float, what: str) -> None:
        """Raise where a training diverged, before it is saved; all ranks have the same value."""
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.where}: the {what} is {value}, expected a finite number; lower sequence.learning_rate "
                f"({self.sequence.learning_rate})"
            )


def schedule(step: int, num_steps: int) -> float:
    """The share of the full learning rate at a step (from 0): a linear rise, then half a cosine."""
    warm_up = max(1.0, WARM_UP_SHARE * num_steps)
    if step < warm_up:
        return (step + 1) / warm_up if step + 1 < warm_up else 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1.0, num_steps - warm_up)))
