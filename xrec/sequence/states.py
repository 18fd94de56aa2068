"""The states that are asked for, without most of the padding.

Windows have one length, but most users of most logs have fewer events. Rows are computed in groups by the length that they need,
rounded up to a doubling of 16, so that a group has more tokens than padding; what is not asked anything is not computed at all. A
state is the same in any group (the models are padding-safe), and a row's group depends on its own length alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xrec.sequence.dropout import split_dropout
from xrec.sequence.item_encoder import PADDING

if TYPE_CHECKING:
    from xrec.sequence.models import SequenceModel

_SHORTEST = 16
"""Below it a group costs the same, however short its rows."""


def states_of(
    model: SequenceModel,
    tokens_BL: NDArray[np.int32],
    rows_N: NDArray[np.int64],
    places_N: NDArray[np.int64],
    context_BLF: NDArray[np.int32] | None = None,
) -> Tensor:
    """The states ``hidden_ND`` after the tokens at some places of some rows.

    Parameters
    ----------
    tokens_BL
        Left-padded with 0.
    rows_N, places_N
        Where in ``tokens_BL``; a place holds a token.
    context_BLF
        Codes of what is known of each token's event, where the model has a context.
    """
    (num_rows, length), device = tokens_BL.shape, model.items.bias.device
    width_B = _widths(tokens_BL)
    is_asked_B = np.zeros(num_rows, np.bool_)
    # Where nothing is asked, a row is computed for nothing, so that every weight has a gradient, as it has on the other ranks.
    is_asked_B[rows_N if len(rows_N) else 0] = True
    groups = [(int(width), np.flatnonzero(is_asked_B & (width_B == width))) for width in np.unique(width_B[is_asked_B])]
    tokens = [torch.from_numpy(tokens_BL[rows, length - width :]).to(device, torch.int64) for width, rows in groups]
    # All groups' vectors at once: each lookup has a gradient of the whole table's size.
    vectors = model.items(torch.cat([of_group.flatten() for of_group in tokens])).split([t.numel() for t in tokens])
    parts, num_done = [], 0
    # The place of a row in its group, and that of a state among all groups' states.
    place_B, order_N = np.zeros(num_rows, np.int64), np.zeros(len(rows_N), np.int64)
    for (width, rows), tokens_GW, vectors_of in zip(groups, tokens, vectors, strict=True):
        mine = np.flatnonzero(width_B[rows_N] == width)
        split_dropout(model, rows, num_rows)
        inputs_GWD = vectors_of.view(*tokens_GW.shape, -1)
        if model.context is not None:
            assert context_BLF is not None, "the model was built for events with a context"
            codes_GWF = torch.from_numpy(context_BLF[rows, length - width :]).to(device, torch.int64)
            inputs_GWD = inputs_GWD + model.context(codes_GWF)
        hidden_GWD = model(tokens_GW, inputs_GWD)
        place_B[rows] = np.arange(len(rows))
        at = place_B[rows_N[mine]] * width + places_N[mine] - (length - width)
        parts.append(hidden_GWD.flatten(0, 1)[torch.from_numpy(at).to(device)])
        order_N[mine] = num_done + np.arange(len(mine))
        num_done += len(mine)
    hidden_ND: Tensor = parts[0] if len(parts) == 1 else torch.cat(parts)[torch.from_numpy(order_N).to(device)]
    return hidden_ND


def _widths(tokens_BL: NDArray[np.int32]) -> NDArray[np.int64]:
    """The length of each row's group: shape (B,)."""
    length = tokens_BL.shape[1]
    needed_B = length - (tokens_BL != PADDING).argmax(axis=1)
    doublings_B = np.ceil(np.log2(np.maximum(needed_B, _SHORTEST) / _SHORTEST)).astype(np.int64)
    widths_B: NDArray[np.int64] = np.minimum(_SHORTEST << doublings_B, length)
    return widths_B
