"""What a user had, whatever the order: a path from the events to the state beside the network.

Baskets have no inner order, and what a shopper had long ago says as much of a new category as what he had last. A recurrent
network forgets it, attention would have to learn to look everywhere; a mean of the item vectors, through one matrix, is what matrix
factorisation makes of a new user (its fold-in). The network learns what order adds to it.
"""

from __future__ import annotations

from torch import Tensor, nn

from xrec.sequence.item_encoder import PADDING


class Pooled(nn.Module):
    """Vectors of events, ``inputs_BLD``, to parts of the states, ``(B, L, D)``: state t is made of the mean up to t.

    The mean is shrunk towards zero by one event more. The matrix starts at zero: the untrained model is the network alone.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.matrix = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.matrix.weight)

    def forward(self, tokens_BL: Tensor, inputs_BLD: Tensor) -> Tensor:
        """The parts; padding, whose vectors are zero, counts for nothing."""
        count_BL1 = (tokens_BL != PADDING).cumsum(dim=1)[..., None]
        parts_BLD: Tensor = self.matrix(inputs_BLD.cumsum(dim=1) / (1 + count_BL1))
        return parts_BLD
