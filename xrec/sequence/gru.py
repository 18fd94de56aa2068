"""GRU4Rec: a recurrent network over a user's events (Hidasi et al. 2016, "Session-based recommendations with RNNs").

Its cells are gated recurrent units, or long short-term memory (``sequence.cell``; Hochreiter and Schmidhuber 1997), which has a
third more weights.
"""

from __future__ import annotations

from torch import Tensor, nn

from xrec.sequence.context import Context
from xrec.sequence.dropout import Dropout
from xrec.sequence.item_encoder import ItemEncoder
from xrec.sequence.pooled import Pooled

CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}


class GRU(nn.Module):
    """Tokens to states: ``tokens_BL``, left-padded with 0, to ``hidden_BLD``; state t has seen the tokens up to t.

    The recurrent cells have no biases: with a zero input and a zero state such a cell stays at zero exactly, so
    padding on the left changes nothing, without packing.
    """

    def __init__(
        self,
        *,
        items: ItemEncoder,
        dim: int,
        num_layers: int,
        dropout: float,
        cell: str = "gru",
        pooled: bool = False,
        context: Context | None = None,
    ) -> None:
        super().__init__()
        self.items, self.context = items, context
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(CELLS[cell](dim, dim, batch_first=True, bias=False) for _ in range(num_layers))
        self.output = nn.Linear(dim, dim)
        self.pooled = Pooled(dim) if pooled else None

    def forward(self, tokens_BL: Tensor, inputs_BLD: Tensor | None = None) -> Tensor:
        """The state after each token; ``inputs_BLD`` are the tokens' vectors, with their context, where they are there already."""
        inputs_BLD = self.items(tokens_BL) if inputs_BLD is None else inputs_BLD
        states_BLD = self.dropout(inputs_BLD)
        for layer in self.layers:
            states_BLD = self.dropout(layer(states_BLD)[0])
        hidden_BLD: Tensor = self.output(states_BLD)
        return hidden_BLD if self.pooled is None else hidden_BLD + self.pooled(tokens_BL, inputs_BLD)
