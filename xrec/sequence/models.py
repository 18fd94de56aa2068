"""Which model a name stands for, and how to build it again from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from xrec.config import Sequence
from xrec.sequence.checkpoint import epoch_file, load_tensors
from xrec.sequence.context import Context
from xrec.sequence.gru import GRU
from xrec.sequence.item_encoder import ItemEncoder
from xrec.sequence.progress import load_progress
from xrec.sequence.transformer import Transformer
from xrec.storage.files import FilesError, read_json

SequenceModel = GRU | Transformer
_OF_ITEMS = ("vocabulary_size", "given", "content")
_KINDS: dict[str, tuple[Callable[..., SequenceModel], float]] = {"gru": (GRU, 0.1), "transformer": (Transformer, 0.02)}
"""What a name stands for, and the deviation of its untrained embeddings: gates do nothing with small numbers, norms scale them."""
MODEL_PREFIX = "model."
"""Names of a checkpoint's weights start with this."""


def model_settings(
    model: str,
    sequence: Sequence,
    vocabulary_size: int,
    given_dim: int = 0,
    content: dict[str, int] | None = None,
    context: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Everything that :func:`build_model` needs, as JSON values.

    The embeddings hold what the items are given, vectors of length ``given_dim``; ``content`` are the sizes of what the catalogue
    says of them (:class:`xrec.sequence.content.Content`), ``context`` those of what is known of events beside their items.
    """
    # Every head has as many numbers, and rotary positions turn them by pairs.
    unit = sequence.num_heads * (2 if sequence.positions == "rotary" else 1)
    settings: dict[str, Any] = {
        "model": model,
        "vocabulary_size": vocabulary_size,
        "given": given_dim > 0,
        "dim": max(sequence.dim, -(-given_dim // unit) * unit),
        "num_layers": sequence.num_layers,
        "dropout": sequence.dropout,
        "pooled": sequence.pooled,
    }
    if content is not None:
        settings |= {"content": content}
    if context:
        settings |= {"context": dict(context)}
    if model == "gru":
        settings |= {"cell": sequence.cell}
    if model == "transformer":
        settings |= {"num_heads": sequence.num_heads, "length": sequence.length, "positions": sequence.positions}
    return settings


def build_model(settings: dict[str, Any]) -> SequenceModel:
    """A model with fresh weights, drawn from torch's global generator."""
    if settings["model"] not in _KINDS:
        raise ValueError(f"model: found '{settings['model']}', expected {' or '.join(_KINDS)}")
    kind, start_std = _KINDS[settings["model"]]
    of_items = {name: settings[name] for name in _OF_ITEMS if name in settings}
    items = ItemEncoder(dim=settings["dim"], start_std=start_std, **of_items)
    sizes = settings.get("context")
    context = None if sizes is None else Context(sizes=sizes, dim=settings["dim"])
    arguments = {name: value for name, value in settings.items() if name not in ("model", "context", *_OF_ITEMS)}
    return kind(items=items, context=context, **arguments)


def load_model(folder: str) -> SequenceModel:
    """The best epoch's model from a checkpoint folder, ready to score (no dropout)."""
    progress = load_progress(folder)
    if progress is None or not progress.best:
        raise FilesError(f"{folder}/progress.json: found no finished epoch; train the model first")
    model = build_model(read_json(f"{folder}/settings.json"))
    model.load_state_dict(weights_of(load_tensors(epoch_file(folder, progress.best))))
    return model.eval()


def weights_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's weights among a checkpoint's tensors, under the model's own names."""
    return {name[len(MODEL_PREFIX) :]: tensor for name, tensor in tensors.items() if name.startswith(MODEL_PREFIX)}
