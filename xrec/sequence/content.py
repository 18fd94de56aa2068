"""What the catalogue says of items, to vectors.

The words of the label go through a convolution over three neighbours and the largest of each channel (Kim 2014, "Convolutional
neural networks for sentence classification"); those of the category path, whose order is their depth, through a mean.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xrec.features.sequence_files import NUM_HASHES

_WORD_DIM = 32
_CHANNELS = 64
_WINDOW = 3
_START_STD = 0.1


class Content(nn.Module):
    """Items to ``content_ND1``: a vector, and a bias as one more number. I items, W words an item, P beginnings of paths."""

    def __init__(self, *, num_items: int, num_words: int, num_paths: int, dim: int) -> None:
        super().__init__()
        # Parameters and not buffers, so that a checkpoint is a whole model.
        self.words_IW = nn.Parameter(torch.zeros(num_items, num_words, dtype=torch.int32), requires_grad=False)
        self.paths_IP = nn.Parameter(torch.zeros(num_items, num_paths, dtype=torch.int32), requires_grad=False)
        self.embedding = nn.Embedding(NUM_HASHES + 1, _WORD_DIM, padding_idx=0)
        # Small, so that a word that the training never saw says little.
        nn.init.normal_(self.embedding.weight, std=_START_STD)
        with torch.no_grad():
            self.embedding.weight[0].zero_()
        self.convolution = nn.Conv1d(_WORD_DIM, _CHANNELS, _WINDOW, padding=_WINDOW // 2)
        self.output = nn.Linear(_CHANNELS + _WORD_DIM, dim + 1)

    def forward(self, items_N: Tensor) -> Tensor:
        """Vector and bias of each item; zeros where nothing is said of it."""
        words_NW, paths_NP = self.words_IW[items_N], self.paths_IP[items_N]
        features = torch.cat([self._label(words_NW), self._path(paths_NP)], dim=1)
        is_described_N = (words_NW > 0).any(dim=1) | (paths_NP > 0).any(dim=1)
        content_ND1: Tensor = self.output(features) * is_described_N[:, None]
        return content_ND1

    def _label(self, words_NW: Tensor) -> Tensor:
        if words_NW.shape[1] == 0:
            return words_NW.new_zeros(len(words_NW), _CHANNELS, dtype=torch.float32)
        channels_NKW = F.relu(self.convolution(self.embedding(words_NW).transpose(1, 2)))
        return (channels_NKW * (words_NW > 0)[:, None]).amax(dim=2)

    def _path(self, paths_NP: Tensor) -> Tensor:
        number_N1 = (paths_NP > 0).sum(dim=1, keepdim=True).clamp(min=1)
        mean: Tensor = self.embedding(paths_NP).sum(dim=1) / number_N1
        return mean
