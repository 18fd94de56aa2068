"""Dropout (Srivastava et al. 2014) whose masks do not depend on how many processes share a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

_STEPS = 1 << 16
"""A processor draws 16 bits a number, so the share is rounded to a multiple of 1 / 65,536."""

_Generator = np.random.SFC64 | torch.Generator


class Dropout(nn.Module):
    """Zeroes a share of the numbers and scales the others up, in training alone.

    A batch is made of equal parts, the rows of the logical shards; each part has a generator of its own (see
    :func:`seed_dropout`). Without generators it is torch's own dropout.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.generators: Sequence[_Generator] = ()
        self.sizes: list[int] = []
        """Rows of each part in what comes next; empty: equal parts."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape; the first axis are the rows."""
        if not self.training or self.share == 0:
            return x
        if not self.generators:
            return F.dropout(x, self.share)
        sizes = self.sizes or [len(x) // len(self.generators)] * len(self.generators)
        masks = [
            self._mask((size, *x.shape[1:]), generator, x)
            for size, generator in zip(sizes, self.generators, strict=True)
        ]
        return x * torch.cat(masks).to(x.dtype).div_(1 - self.share)

    def _mask(self, shape: tuple[int, ...], generator: _Generator, x: Tensor) -> Tensor:
        """Which numbers stay, True or 1."""
        if isinstance(generator, torch.Generator):
            return torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1 - self.share, generator=generator)
        # Torch draws one number after the other on a processor, which takes many times as long.
        number = int(np.prod(shape))
        bits = generator.random_raw(-(-number // 4)).view(np.uint16)[:number]
        return torch.from_numpy((bits >= round(self.share * _STEPS)).reshape(shape))


def seed_dropout(model: nn.Module, seeds: Sequence[int], device: torch.device) -> None:
    """Key the masks of the next batch: one seed for each of its parts."""
    generators: list[_Generator] = [
        np.random.SFC64(seed) if device.type == "cpu" else torch.Generator(device).manual_seed(seed) for seed in seeds
    ]
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generators = generators
            module.sizes = []


def split_dropout(model: nn.Module, rows: NDArray[np.int64], num_rows: int) -> None:
    """Say which ``rows`` of the batch, rising, come next; the batch has ``num_rows``."""
    for module in model.modules():
        if isinstance(module, Dropout) and module.generators:
            num_parts = len(module.generators)
            module.sizes = np.bincount(rows * num_parts // num_rows, minlength=num_parts).tolist()
