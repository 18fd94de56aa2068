"""Tokens to vectors, on the input and on the output side.

Legend of the shapes in all files here: B rows, L length, D dim, V tokens with padding (vocabulary size + 1), N targets,
S negatives, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PADDING = 0
"""The token that stands for "no event"; its embedding is zero and never learns."""

_START_STD = 0.02
_GIVEN_STD = 0.2
"""Standard deviation of the given vectors' numbers, whatever it was where they come from."""


class ItemEncoder(nn.Module):
    """Items as embeddings, the same table for inputs and outputs (Press and Wolf 2017), with a bias per item.

    The logit of item i after a state h is ``h . embedding[i] + bias[i]``: a dot product of vectors that carry the bias
    (and, on the user's side, 1) as one more number, which is how they leave for the top-K kernel.
    """

    def __init__(self, *, vocabulary_size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size + 1, dim, padding_idx=PADDING)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size + 1))
        # Small, so that at the start the bias decides.
        nn.init.normal_(self.embedding.weight, std=_START_STD)
        with torch.no_grad():
            self.embedding.weight[PADDING].zero_()

    def give(self, vectors_VG: Tensor) -> None:
        """Make given vectors the first G numbers of the embeddings, and learn no embedding, only biases.

        Few users teach few embeddings: what ALS has learned of all of an item's buyers holds where a softmax over their sequences
        learns by heart. Token 0 must be zeros.
        """
        with torch.no_grad():
            self.embedding.weight[:, : vectors_VG.shape[1]] = vectors_VG * (_GIVEN_STD / vectors_VG.std())
        self.embedding.weight.requires_grad_(False)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Embeddings ``inputs_BLD`` of ``tokens_BL``; padding gives zeros."""
        embedded: Tensor = self.embedding(tokens_BL)
        return embedded

    def both(self, tokens_S: Tensor, tokens_P: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of two lists of tokens by one lookup, because the gradient of each is as large as the whole table."""
        vectors_SD, vectors_PD = self(torch.cat([tokens_S, tokens_P])).split([len(tokens_S), len(tokens_P)])
        return vectors_SD, vectors_PD

    def start_from(self, popularity_V: Tensor, shift: float = 0.0) -> None:
        """Set the biases so that the untrained model ranks by popularity: logarithms of the items' shares, and a ``shift``.

        Training then learns how a user differs from the average, which takes a fraction of the epochs. Counted as a
        multiple of the uniform share, plus a little for items that are never a target.
        """
        with torch.no_grad():
            self.bias.copy_(self.start_bias(popularity_V, shift))

    @staticmethod
    def start_bias(popularity_V: Tensor, shift: float = 0.0) -> Tensor:
        """The biases of :meth:`start_from`, shape (V,)."""
        return torch.log(popularity_V * (len(popularity_V) - 1) + 0.05) + shift

    def logits(self, hidden_BD: Tensor) -> Tensor:
        """Scores ``logits_BV`` of every token after each state; the padding token scores -inf."""
        logits_BV = hidden_BD @ self.embedding.weight.T + self.bias
        logits_BV[:, PADDING] = float("-inf")
        return logits_BV

    def item_vectors(self) -> Tensor:
        """One row an item, ``vectors`` of shape (vocabulary size, D + 1): the embedding, then the bias; token t is row t - 1."""
        return torch.cat([self.embedding.weight, self.bias[:, None]], dim=1)[1:]


def user_vectors(hidden_BD: Tensor) -> Tensor:
    """States of users, ``hidden_BD``, with a 1 for the item's bias: shape (B, D + 1)."""
    return torch.cat([hidden_BD, torch.ones_like(hidden_BD[:, :1])], dim=1)
