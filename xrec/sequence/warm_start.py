"""A training goes on from another's model.

A later fold goes on from the fold before it, as a nightly training does from yesterday's; the oldest from a finished training of
all categories or of another log, where ``sequence.start_from`` names one.

What it goes on from ends earlier, so that nothing of the future enters. What an item's embedding has learned moves with the item,
whatever its token is in the new vocabulary; its bias moves by the change of the logarithm of the item's popularity.
Items that are new to the vocabulary start as in a fresh training. What was learned of words stays as it is.

Vectors that are given and not learned are another training's, whose axes are turned by chance: they are turned to where the
training before had them, which changes none of their products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from xrec.sequence.checkpoint import epoch_file, load_tensors
from xrec.sequence.item_encoder import ItemEncoder
from xrec.sequence.models import SequenceModel, weights_of
from xrec.sequence.progress import load_progress
from xrec.sequence.trained_on import StartError, TrainedOn, read_items
from xrec.sequence.vocabulary import Vocabulary
from xrec.storage.files import read_json

_ITEMS, _CONTENT = "items.", "items.content."
_DESCRIPTIONS = ("items.content.words_IW", "items.content.paths_IP")
_DECIDED_BY = {"given": "item_vectors", "content": "item_content"}
"""The setting of ``sequence`` by which a model's size comes about, where it has another name."""
_MAY_DIFFER = ("vocabulary_size", "dropout", "context")


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a training leaves to another."""

    name: str
    """The fold, or the folder of the checkpoint."""
    item_ids: pa.StringArray
    """The item of each token; null for token 0, padding."""
    weights: dict[str, Tensor]
    vectors_VG: NDArray[np.float32] | None
    """What the items were given, or a multiple of it."""
    start_bias: Tensor
    """The biases that the training began with, shape (V,)."""

    @classmethod
    def of(
        cls, model: SequenceModel, vocabulary: Vocabulary, popularity_V: Tensor, *, name: str, shift: float = 0.0
    ) -> Learned:
        """What a trained model knows; ``popularity_V`` and the ``shift`` are what its biases started from."""
        return cls(
            name=name,
            item_ids=vocabulary.item_ids,
            weights={name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
            start_bias=ItemEncoder.start_bias(popularity_V, shift),
            vectors_VG=vocabulary.vectors_VG,
        )

    @classmethod
    def read(
        cls,
        folder: str,
        model_settings: Mapping[str, Any],
        vocabulary: Vocabulary,
        now: TrainedOn,
        device: torch.device,
        say: Callable[[str], None],
    ) -> Learned:
        """What the best epoch of a checkpoint knows, for a model of these settings, about to be trained on ``now``.

        Raises
        ------
        StartError
            The training is not finished, may have seen what ``now`` is judged by, has a model of other sizes, or shares too few
            items.
        """
        progress = load_progress(folder)
        if progress is None or not progress.done:
            raise StartError(
                f"sequence.start_from: {folder}/progress.json: found {'no training' if progress is None else 'an unfinished one'}, "
                "expected a finished one; name the folder of a fold, <artifacts>/<fold>, whose training of this model has ended"
            )
        was, found = TrainedOn.read(folder), read_json(f"{folder}/settings.json")
        if (doubt := was.check_time(now)) is not None:
            say(doubt)
        check_sizes(found, model_settings, folder)
        was.check_codes(now)
        item_ids, start_bias_V = read_items(folder, found["vocabulary_size"] + 1)
        tensors = weights_of(load_tensors(epoch_file(folder, progress.best)))
        weights = {name: tensor.to(device) for name, tensor in tensors.items()}
        embedding_VD = tensors["items.embedding.weight"].numpy()
        learned = cls(
            name=folder,
            item_ids=item_ids,
            weights=weights,
            vectors_VG=embedding_VD[:, : was.given_dim] if was.given_dim else None,
            start_bias=torch.from_numpy(start_bias_V),
        )
        learned.check_shared(vocabulary)
        return learned

    def describe(self, vocabulary: Vocabulary) -> str:
        """Its name, and how many of a vocabulary's items it knows."""
        num = len(self.shared(vocabulary.item_ids)[0])
        return f"{self.name}, which knows {num:,} of {len(vocabulary.item_ids) - 1:,} items"

    def shared(self, item_ids: pa.StringArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens of the items that another vocabulary has as well: there, and here."""
        found = (
            pc.index_in(item_ids, value_set=self.item_ids, skip_nulls=True).fill_null(-1).to_numpy().astype(np.int64)
        )
        there = np.flatnonzero(found >= 0)
        return there, found[there]

    def check_shared(self, vocabulary: Vocabulary) -> None:
        """Raise :class:`StartError` where too few items are shared for what was learned to mean anything."""
        there, here = self.shared(vocabulary.item_ids)
        if self.vectors_VG is not None and vocabulary.vectors_VG is not None:
            has_both = self.vectors_VG[here].any(axis=1) & vocabulary.vectors_VG[there].any(axis=1)
            num, least = int(has_both.sum()), self.vectors_VG.shape[1]
            if num < least:
                raise StartError(
                    f"sequence.start_from: {self.name}: found {num} items with given vectors in both logs, expected at least "
                    f"{least}, the vectors' length, by which the ones are turned to the others; set sequence.item_vectors=null in "
                    "both trainings (learned embeddings), with sequence.item_content for what is new"
                )
        elif not len(there) and vocabulary.content is None:
            raise StartError(
                f"sequence.start_from: {self.name}: found none of the {len(vocabulary.item_ids) - 1:,} items of the vocabulary, "
                "expected some with the same item_id; map the same key in both logs, or set sequence.item_content in both, so that "
                "items are known by their words"
            )

    def turned(self, vocabulary: Vocabulary) -> Vocabulary:
        """Another vocabulary, its given vectors turned so that those of the items of both lie as near as they can.

        The rotation solves the orthogonal Procrustes problem (Schönemann 1966).
        """
        if self.vectors_VG is None or vocabulary.vectors_VG is None:
            return vocabulary
        there, here = self.shared(vocabulary.item_ids)
        left, _, right = np.linalg.svd(vocabulary.vectors_VG[there].T.astype(np.float64) @ self.vectors_VG[here])
        return replace(vocabulary, vectors_VG=(vocabulary.vectors_VG @ (left @ right)).astype(np.float32))

    def pass_on(self, model: SequenceModel, item_ids: pa.StringArray) -> None:
        """Set the weights of a model that has been started for its own fold; ``item_ids`` are its tokens' items.

        What the items are given stays as it is.
        """
        to, by = (torch.from_numpy(tokens) for tokens in self.shared(item_ids))
        given = 0 if self.vectors_VG is None else self.vectors_VG.shape[1]
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if not name.startswith(_ITEMS) or (name.startswith(_CONTENT) and name not in _DESCRIPTIONS):
                    tensor.copy_(self.weights[name])
            embedding, bias = (self.weights[f"{_ITEMS}{name}"] for name in ("embedding.weight", "bias"))
            model.items.embedding.weight[to, given:] = embedding[by, given:]
            model.items.bias[to] += (bias - self.start_bias.to(bias))[by]


def check_sizes(found: Mapping[str, Any], expected: Mapping[str, Any], folder: str) -> None:
    """Raise :class:`StartError` where the models of two ``settings.json`` do not have the same weights."""
    # Rotations have no weights, so that the windows' length is free; how many items are described is each one's own.
    free = {*_MAY_DIFFER, *(["length"] if expected.get("positions") == "rotary" else [])}
    for name in sorted({*found, *expected} - free):
        one, other = (bool(of.get(name)) if name == "content" else of.get(name) for of in (found, expected))
        if one != other:
            raise StartError(
                f"sequence.start_from: {folder}/settings.json: {name} (sequence.{_DECIDED_BY.get(name, name)}): found {one}, "
                f"expected {other}, as this training has it; use the same setting in both trainings"
            )
