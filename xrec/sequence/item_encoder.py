"""Tokens to vectors, on the input and on the output side.

Legend of the shapes in all files here: B rows, L length, D dim, V tokens with padding (vocabulary size + 1), N targets,
S negatives, H heads.

An item has a part of its own, learned or given, and, where ``sequence.item_content`` says so, a part by its content::

    learned    own + content      what items of the same words share is learned once, and each item's own is the rest
    given      own                what ALS knows of an item's buyers says more than its words
    cold       content            no token, or no given vector, or left out by chance in this step

In each step of the training a few items are taken for cold ones, so that their content learns to stand for them (Volkovs et al.
2017, "DropoutNet").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xrec.sequence.content import Content

PADDING = 0
"""The token that stands for "no event"; its embedding is zero and never learns."""

_GIVEN_SIZE = 0.2
"""Root mean square of the given vectors' numbers, whatever it was where they come from."""
_AT_ONCE = 8192
"""Items whose content is computed together where all are asked for."""


class ItemEncoder(nn.Module):
    """Items as embeddings, the same table for inputs and outputs (Press and Wolf 2017), with a bias per item.

    The logit of item i after a state h is ``h . vector(i) + bias(i)``: a dot product of vectors that carry the bias
    (and, on the user's side, 1) as one more number, which is how they leave for the top-K kernel.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        dim: int,
        start_std: float = 0.02,
        given: bool = False,
        content: dict[str, Any] | None = None,
    ) -> None:
        """Tokens run from 1 to ``vocabulary_size``.

        Parameters
        ----------
        start_std
            Standard deviation of the untrained embeddings' numbers: small, so that at the start the bias decides.
        given
            Whether the embeddings are :meth:`give`-n and not learned.
        content
            The sizes of a :class:`Content`, where cold items follow the tokens; None: there is none.
        """
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size + 1, dim, padding_idx=PADDING)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size + 1))
        nn.init.normal_(self.embedding.weight, std=start_std)
        with torch.no_grad():
            self.embedding.weight[PADDING].zero_()
        self.content = None if content is None else Content(**content, dim=dim)
        self.left_out_V: Tensor | None = None
        self.given = given
        self.embedding.weight.requires_grad_(not given)

    def give(self, vectors_VG: Tensor) -> None:
        """Make given vectors the first G numbers of the embeddings, which are not learned; only biases and content are.

        Few users teach few embeddings: what ALS has learned of all of an item's buyers holds where a softmax over their sequences
        learns by heart. The numbers after them are zero, and so are all of an item that none is given, as token 0 is.
        """
        given_NG, size = vectors_VG[vectors_VG.any(dim=1)], vectors_VG.shape[1]
        with torch.no_grad():
            self.embedding.weight.zero_()
            if len(given_NG):
                self.embedding.weight[:, :size] = vectors_VG * (_GIVEN_SIZE / given_NG.square().mean().sqrt())

    def describe(self, words_IW: Tensor, paths_IP: Tensor) -> None:
        """Say what the catalogue says of the tokens and of the cold items after them."""
        assert self.content is not None
        with torch.no_grad():
            self.content.words_IW.copy_(words_IW)
            self.content.paths_IP.copy_(paths_IP)

    def leave_out(self, seed: int, share: float) -> None:
        """Choose the items that the next step of a training knows by their content alone; nothing without content."""
        if self.content is None:
            return
        is_out_V = np.random.default_rng(seed).random(len(self.bias)) < share
        self.left_out_V = torch.from_numpy(is_out_V).to(self.bias.device)

    def forward(self, tokens: Tensor) -> Tensor:
        """Vectors ``(..., D)`` of tokens of any shape; padding gives zeros."""
        if self.content is None:
            embedded: Tensor = self.embedding(tokens)
            return embedded
        return self._described(tokens)[..., :-1]

    def outputs(self, tokens_S: Tensor, tokens_P: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Vectors and biases of two lists of tokens, by one lookup, because a gradient is as large as the whole table."""
        tokens, num = torch.cat([tokens_S, tokens_P]), len(tokens_S)
        if self.content is None:
            vectors_TD, bias_T = self.embedding(tokens), self.bias[tokens]
        else:
            described_TE = self._described(tokens)
            vectors_TD, bias_T = described_TE[:, :-1], described_TE[:, -1]
        return (vectors_TD[:num], bias_T[:num]), (vectors_TD[num:], bias_T[num:])

    def _described(self, tokens: Tensor) -> Tensor:
        """Vectors and biases ``(..., D + 1)``; the content of each token is computed once."""
        unique_U, inverse = torch.unique(tokens, return_inverse=True)
        return F.embedding(inverse, self._of(unique_U))

    def _of(self, tokens_U: Tensor) -> Tensor:
        """Vectors and biases of tokens; those beyond the vocabulary are cold items."""
        assert self.content is not None
        content_UE = self.content(tokens_U)
        is_known_U = tokens_U < len(self.bias)
        known_U = tokens_U.where(is_known_U, torch.zeros_like(tokens_U))
        own_UD = self.embedding(known_U)
        if self.given:
            is_known_U = is_known_U & (own_UD != 0).any(dim=1)
        if self.training and self.left_out_V is not None:
            is_known_U = is_known_U & ~self.left_out_V[known_U]
        own_UE = torch.cat([own_UD if self.given else own_UD + content_UE[:, :-1], self.bias[known_U, None]], dim=1)
        # Padding is no item, whatever was left out.
        return torch.where(is_known_U[:, None], own_UE, content_UE) * (tokens_U != PADDING)[:, None]

    def start_from(self, popularity_V: Tensor, shift: float = 0.0) -> None:
        """Set the biases so that the untrained model ranks by popularity: logarithms of the items' shares, and a ``shift``.

        Training then learns how a user differs from the average, which takes a fraction of the epochs. Counted as a
        multiple of the uniform share, plus a little for items that are never a target.
        """
        with torch.no_grad():
            self.bias.copy_(self.start_bias(popularity_V, shift))
            if self.content is not None:
                self.content.output.bias[-1] = shift

    @staticmethod
    def start_bias(popularity_V: Tensor, shift: float = 0.0) -> Tensor:
        """The biases of :meth:`start_from`, shape (V,)."""
        return torch.log(popularity_V * (len(popularity_V) - 1) + 0.05) + shift

    def table(self, num_items: int) -> Tensor:
        """Vectors and biases of the first tokens, padding included: shape (``num_items``, D + 1)."""
        if self.content is None:
            return torch.cat([self.embedding.weight, self.bias[:, None]], dim=1)[:num_items]
        tokens = torch.arange(num_items, device=self.bias.device)
        return torch.cat([self._of(some) for some in torch.split(tokens, _AT_ONCE)])

    def logits(self, hidden_BD: Tensor, table_VE: Tensor | None = None) -> Tensor:
        """Scores ``logits_BV`` of every token after each state; the padding token scores -inf.

        ``table_VE`` is :meth:`table` of the vocabulary, where it is there already.
        """
        table_VE = self.table(len(self.bias)) if table_VE is None else table_VE
        logits_BV = hidden_BD @ table_VE[:, :-1].T + table_VE[:, -1]
        logits_BV[:, PADDING] = float("-inf")
        return logits_BV


def user_vectors(hidden_BD: Tensor) -> Tensor:
    """States of users, ``hidden_BD``, with a 1 for the item's bias: shape (B, D + 1)."""
    return torch.cat([hidden_BD, torch.ones_like(hidden_BD[:, :1])], dim=1)
