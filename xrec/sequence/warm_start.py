"""A later fold goes on from the model of the fold before it, as a nightly training does from yesterday's.

The fold before ends earlier, so that nothing of the future enters. What an item's embedding has learned moves with the item,
whatever its token is in the new vocabulary; its bias moves by the change of the logarithm of the item's share of the targets.
Items that are new to the vocabulary start as in a fresh training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xrec.sequence.item_encoder import ItemEncoder
from xrec.sequence.models import SequenceModel

_ITEMS = "items."


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a fold's training leaves to the next."""

    item_idx: NDArray[np.int32]
    """The item of token 1, 2, ..."""
    weights: dict[str, Tensor]
    start_bias: Tensor
    """The biases that the training began with, shape (V,)."""

    @classmethod
    def of(cls, model: SequenceModel, item_idx: NDArray[np.int32], probabilities_V: Tensor) -> Learned:
        """What a trained model knows; ``probabilities_V`` is the distribution of its training targets."""
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        return cls(item_idx=item_idx, weights=weights, start_bias=ItemEncoder.start_bias(probabilities_V))

    def pass_on(self, model: SequenceModel, item_idx: NDArray[np.int32]) -> None:
        """Set the weights of a model that has been started for its own fold; ``item_idx`` are its items."""
        _, mine, theirs = np.intersect1d(item_idx, self.item_idx, return_indices=True)
        to, by = torch.from_numpy(mine + 1), torch.from_numpy(theirs + 1)  # token 0 is padding
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if not name.startswith(_ITEMS):
                    tensor.copy_(self.weights[name])
            embedding, bias = (self.weights[f"{_ITEMS}{name}"] for name in ("embedding.weight", "bias"))
            model.items.embedding.weight[to] = embedding[by]
            model.items.bias[to] += (bias - self.start_bias.to(bias))[by]
