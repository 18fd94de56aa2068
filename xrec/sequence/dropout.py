"""Dropout (Srivastava et al. 2014) whose masks do not depend on how many processes share a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """Zeroes a share of the numbers and scales the others up, in training alone.

    A batch is made of equal parts, the rows of the logical shards; each part has a generator of its own (see
    :func:`seed_dropout`). Without generators it is torch's own dropout.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.generators: Sequence[torch.Generator] = ()

    def forward(self, x: Tensor) -> Tensor:
        """The same shape; the first axis are the rows."""
        if not self.training or self.share == 0:
            return x
        if not self.generators:
            return F.dropout(x, self.share)
        kept = torch.empty_like(x)
        for part, generator in zip(kept.chunk(len(self.generators)), self.generators, strict=True):
            part.bernoulli_(1 - self.share, generator=generator)
        return x * kept.div_(1 - self.share)


def seed_dropout(model: nn.Module, seeds: Sequence[int], device: torch.device) -> None:
    """Key the masks of the next batch: one seed for each of its parts."""
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generators = generators
