"""The distribution of the training targets, which negatives are drawn from and corrected by."""

from __future__ import annotations

from dataclasses import dataclass

import horovod.torch as hvd
import numpy as np
import torch
from torch import Tensor

from xrec.sequence.loader import Shard


@dataclass(frozen=True, kw_only=True)
class TargetDistribution:
    """q over the tokens; 0 for padding and for tokens that are never a target."""

    probabilities: Tensor
    """Shape (V,), float64, on the CPU."""
    log_q: Tensor
    """Natural logarithm, shape (V,), float32, on the device; -inf where q is 0."""

    @classmethod
    def count(cls, shards: list[Shard], vocabulary_size: int, device: torch.device) -> TargetDistribution:
        """Count the weighted targets of all ranks' shards, one reading of the training windows."""
        counts_V = np.zeros(vocabulary_size + 1)
        for shard in shards:
            for rows in shard.read():
                weights = rows.token_weights[:, 1:] * rows.row_weight[:, None]
                counts_V += np.bincount(rows.tokens[:, 1:].ravel(), weights.ravel(), minlength=vocabulary_size + 1)
        summed_V = hvd.allreduce(torch.from_numpy(counts_V), op=hvd.Sum, name="target_counts")
        probabilities_V = summed_V / summed_V.sum().clamp(min=1e-9)
        return cls(probabilities=probabilities_V, log_q=probabilities_V.log().float().to(device))

    def draw(self, num_negatives: int, seed: int) -> Tensor:
        """Tokens ``negatives_S``, drawn independently from q; the same on every rank."""
        uniform_S = np.random.default_rng(seed).random(num_negatives)
        cumulative_V = self.probabilities.numpy().cumsum()
        drawn_S = np.searchsorted(cumulative_V / max(cumulative_V[-1], 1e-9), uniform_S, side="right")
        return torch.from_numpy(drawn_S.clip(max=len(cumulative_V) - 1)).to(self.log_q.device)
