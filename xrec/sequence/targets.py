"""The distribution of the training targets, and what is popular."""

from __future__ import annotations

from dataclasses import dataclass

import horovod.torch as hvd
import numpy as np
import torch
from torch import Tensor

from xrec.config import Sequence
from xrec.sequence.loader import Shard
from xrec.sequence.objective import asked_of
from xrec.sequence.vocabulary import Vocabulary

_BLOCK_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class TargetDistribution:
    """What the training asks for, and what could be asked."""

    probabilities: Tensor
    """Of the tokens as targets, 0 for padding and what is never one: shape (V,), float64, on the CPU."""
    popularity: Tensor
    """Shares of the tokens in all that could be a target, whether asked or not: shape (V,), float64, on the CPU."""

    @classmethod
    def count(cls, shards: list[Shard], vocabulary: Vocabulary, sequence: Sequence) -> TargetDistribution:
        """Count the weighted targets of all ranks' shards, one reading of the training windows."""
        counts_V, had_V = np.zeros((2, len(vocabulary.item_idx_V)))
        for shard in shards:
            for block in shard.read():
                for start in range(0, len(block), _BLOCK_ROWS):
                    rows = block.take(slice(start, start + _BLOCK_ROWS))
                    asked = asked_of(rows, vocabulary, sequence)
                    counts_V += np.bincount(asked.tokens_P, asked.weights_P, minlength=len(counts_V))
                    weights = rows.token_weights[:, 1:] * rows.row_weight[:, None]
                    had_V += np.bincount(rows.tokens[:, 1:].ravel(), weights.ravel(), minlength=len(had_V))
        summed = hvd.allreduce(torch.from_numpy(np.stack([counts_V, had_V])), op=hvd.Sum, name="target_counts")
        probabilities_V, popularity_V = summed / summed.sum(dim=1, keepdim=True).clamp(min=1e-9)
        return cls(probabilities=probabilities_V, popularity=popularity_V)
