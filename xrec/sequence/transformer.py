"""SASRec: causal self-attention over a user's events (Kang and McAuley 2018, "Self-attentive sequential recommendation").

Blocks are pre-norm (Xiong et al. 2020), which trains without a long warm-up. Places are learned vectors, or rotations of queries
and keys (``sequence.positions``; Su et al. 2021, "RoFormer", section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xrec.sequence.context import Context
from xrec.sequence.dropout import Dropout
from xrec.sequence.item_encoder import PADDING, ItemEncoder
from xrec.sequence.pooled import Pooled


class Transformer(nn.Module):
    """Tokens to states: ``tokens_BL``, left-padded with 0, to ``hidden_BLD``; state t has seen the tokens up to t.

    Positions are counted from the right end (0 is the newest event), so the same events in a longer, further padded
    row get the same positions.
    """

    def __init__(
        self,
        *,
        items: ItemEncoder,
        dim: int,
        num_layers: int,
        num_heads: int,
        length: int,
        dropout: float,
        positions: str = "learned",
        pooled: bool = False,
        context: Context | None = None,
    ) -> None:
        super().__init__()
        self.items, self.context = items, context
        self.positions = nn.Embedding(length, dim) if positions == "learned" else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.1 * dim**-0.5)
        self.dim_of_head = dim // num_heads
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim=dim, num_heads=num_heads, dropout=dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.pooled = Pooled(dim) if pooled else None

    def forward(self, tokens_BL: Tensor, inputs_BLD: Tensor | None = None) -> Tensor:
        """The state after each token; ``inputs_BLD`` are the tokens' vectors, with their context, where they are there already."""
        length = tokens_BL.shape[1]
        from_the_right_L = torch.arange(length - 1, -1, -1, device=tokens_BL.device)
        inputs_BLD, turns_Lh = self.items(tokens_BL) if inputs_BLD is None else inputs_BLD, None
        hidden_BLD = inputs_BLD
        if self.positions is not None:
            hidden_BLD = hidden_BLD + self.positions(from_the_right_L)
        else:
            turns_Lh = turns_of(from_the_right_L, self.dim_of_head)
        hidden_BLD = self.dropout(hidden_BLD)
        visible_B1LL = visible(tokens_BL)
        for block in self.blocks:
            hidden_BLD = block(hidden_BLD, visible_B1LL, turns_Lh)
        normed_BLD: Tensor = self.norm(hidden_BLD)
        return normed_BLD if self.pooled is None else normed_BLD + self.pooled(tokens_BL, inputs_BLD)


class Block(nn.Module):
    """Self-attention, then a feed-forward net, each added to what came in: ``hidden_BLD`` to ``hidden_BLD``."""

    def __init__(self, *, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.mix = nn.Linear(dim, dim, bias=False)
        self.feed_norm = nn.LayerNorm(dim)
        self.feed = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.dropout = Dropout(dropout)

    def forward(self, hidden_BLD: Tensor, visible_B1LL: Tensor, turns_Lh: Tensor | None = None) -> Tensor:
        """One block; ``visible_B1LL`` says which key (last axis) each query may look at, ``turns_Lh`` how places turn them."""
        attended_BLD = self._attend(self.attention_norm(hidden_BLD), visible_B1LL, turns_Lh)
        hidden_BLD = hidden_BLD + self.dropout(attended_BLD)
        fed_BLD: Tensor = self.dropout(self.feed(self.feed_norm(hidden_BLD)))
        return hidden_BLD + fed_BLD

    def _attend(self, normed_BLD: Tensor, visible_B1LL: Tensor, turns_Lh: Tensor | None) -> Tensor:
        batch, length, dim = normed_BLD.shape
        heads = (batch, length, self.num_heads, dim // self.num_heads)
        query_BHLd, key_BHLd, value_BHLd = (
            part.view(heads).transpose(1, 2) for part in self.query_key_value(normed_BLD).chunk(3, dim=-1)
        )
        if turns_Lh is not None:
            query_BHLd, key_BHLd = turned(query_BHLd, turns_Lh), turned(key_BHLd, turns_Lh)
        mixed_BHLd = F.scaled_dot_product_attention(query_BHLd, key_BHLd, value_BHLd, attn_mask=visible_B1LL)
        attended: Tensor = self.mix(mixed_BHLd.transpose(1, 2).reshape(batch, length, dim))
        return attended


def turns_of(places_L: Tensor, dim_of_head: int) -> Tensor:
    """The angles by which places turn the pairs of a head's numbers, shape (L, d / 2): from 1 radian a place down to 1 / 10,000."""
    pairs_h = torch.arange(0, dim_of_head, 2, device=places_L.device)
    return places_L[:, None] * 10_000.0 ** (-pairs_h / dim_of_head)


def turned(vectors_BHLd: Tensor, turns_Lh: Tensor) -> Tensor:
    """Vectors with each pair (n, n + d / 2) of their numbers turned: the product of two depends on how far apart they are alone."""
    cosines_Lh, sines_Lh = turns_Lh.cos().to(vectors_BHLd.dtype), turns_Lh.sin().to(vectors_BHLd.dtype)
    first_BHLh, second_BHLh = vectors_BHLd.chunk(2, dim=-1)
    return torch.cat(
        [first_BHLh * cosines_Lh - second_BHLh * sines_Lh, first_BHLh * sines_Lh + second_BHLh * cosines_Lh], dim=-1
    )


def visible(tokens_BL: Tensor) -> Tensor:
    """Which keys a query may see, True where it may, of shape (B, 1, L, L): events up to itself, no padding.

    A padding query sees itself: a query that sees nothing would be NaN, and its state is used by nobody.
    """
    length = tokens_BL.shape[1]
    ones_LL = torch.ones(length, length, dtype=torch.bool, device=tokens_BL.device)
    not_padding_B11L = (tokens_BL != PADDING)[:, None, None, :]
    return (ones_LL.tril() & not_padding_B11L) | torch.eye(length, dtype=torch.bool, device=tokens_BL.device)
