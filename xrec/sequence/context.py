"""What is known of an event beside its item, added to its vector on the input side: an embedding for each field's codes.

Outputs have none: the same item can be wanted at any time. Legend of the shapes as in item_encoder.py, and F fields.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Context(nn.Module):
    """Codes ``context_BLF`` of events to vectors ``(B, L, D)``, the sum over the fields; code 0 gives zeros.

    They start at zero: the untrained model is the one without context.
    """

    def __init__(self, *, sizes: Mapping[str, int], dim: int) -> None:
        """``sizes`` are the fields and how many codes, from 1, each has; events have them in the order of their names."""
        super().__init__()
        fields = {name: nn.Embedding(size + 1, dim, padding_idx=0) for name, size in sorted(sizes.items())}
        for field in fields.values():
            nn.init.zeros_(field.weight)
        self.fields = nn.ModuleDict(fields)

    def forward(self, context_BLF: Tensor) -> Tensor:
        """The vectors."""
        parts = [field(context_BLF[..., place]) for place, field in enumerate(self.fields.values())]
        return torch.stack(parts).sum(dim=0)
