"""A later fold goes on from the model of the fold before it, as a nightly training does from yesterday's.

The fold before ends earlier, so that nothing of the future enters. What an item's embedding has learned moves with the item,
whatever its token is in the new vocabulary; its bias moves by the change of the logarithm of the item's popularity.
Items that are new to the vocabulary start as in a fresh training. What was learned of words stays as it is.

Vectors that are given and not learned are another training's, whose axes are turned by chance: they are turned to where the
fold before had them, which changes none of their products.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xrec.sequence.item_encoder import ItemEncoder
from xrec.sequence.models import SequenceModel
from xrec.sequence.vocabulary import Vocabulary

_ITEMS, _CONTENT = "items.", "items.content."
_DESCRIPTIONS = ("items.content.words_IW", "items.content.paths_IP")


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a fold's training leaves to the next."""

    item_idx: NDArray[np.int32]
    """The item of each token; that of token 0, padding, is -1."""
    weights: dict[str, Tensor]
    vectors_VG: NDArray[np.float32] | None
    """What the items were given."""
    start_bias: Tensor
    """The biases that the training began with, shape (V,)."""

    @classmethod
    def of(
        cls,
        model: SequenceModel,
        item_idx: NDArray[np.int32],
        popularity_V: Tensor,
        vectors_VG: NDArray[np.float32] | None = None,
        *,
        shift: float = 0.0,
    ) -> Learned:
        """What a trained model knows; ``popularity_V`` and the ``shift`` are what its biases started from."""
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        start_bias = ItemEncoder.start_bias(popularity_V, shift)
        return cls(item_idx=item_idx, weights=weights, start_bias=start_bias, vectors_VG=vectors_VG)

    def turned(self, vocabulary: Vocabulary) -> Vocabulary:
        """The next fold's vocabulary, its given vectors turned so that those of the items of both lie as near as they can.

        The rotation solves the orthogonal Procrustes problem (Schönemann 1966).
        """
        if self.vectors_VG is None or vocabulary.vectors_VG is None:
            return vocabulary
        _, mine, theirs = np.intersect1d(vocabulary.item_idx_V, self.item_idx, return_indices=True)
        left, _, right = np.linalg.svd(vocabulary.vectors_VG[mine].T.astype(np.float64) @ self.vectors_VG[theirs])
        return replace(vocabulary, vectors_VG=(vocabulary.vectors_VG @ (left @ right)).astype(np.float32))

    def pass_on(self, model: SequenceModel, item_idx: NDArray[np.int32]) -> None:
        """Set the weights of a model that has been started for its own fold; ``item_idx`` are its tokens' items.

        What the items are given stays as it is.
        """
        _, mine, theirs = np.intersect1d(item_idx, self.item_idx, return_indices=True)
        is_item = mine > 0  # token 0 is padding
        to, by = torch.from_numpy(mine[is_item]), torch.from_numpy(theirs[is_item])
        given = 0 if self.vectors_VG is None else self.vectors_VG.shape[1]
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if not name.startswith(_ITEMS) or (name.startswith(_CONTENT) and name not in _DESCRIPTIONS):
                    tensor.copy_(self.weights[name])
            embedding, bias = (self.weights[f"{_ITEMS}{name}"] for name in ("embedding.weight", "bias"))
            model.items.embedding.weight[to, given:] = embedding[by, given:]
            model.items.bias[to] += (bias - self.start_bias.to(bias))[by]
