"""Users and items to vectors, by the ranks that trained, or that load what was trained: what leaves torch for Spark.

Windows are read a row group at a time (:meth:`xrec.sequence.loader.Shard.read`) and their vectors written as they come, so memory
does not grow with the number of users. The table of the items' vectors is made at once: it is as large as the model.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence

import fsspec
import horovod.torch as hvd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from xrec import columns as C
from xrec.features.sequence_files import TRAIN, ContractMismatchError, model_location
from xrec.features.vector_files import Staged, learned_settings, read_staged, write_staged
from xrec.sequence.int8 import quantise
from xrec.sequence.item_encoder import user_vectors
from xrec.sequence.loader import Shard, Windows
from xrec.sequence.models import SequenceModel, load_model
from xrec.sequence.pruning import prune
from xrec.sequence.spec import TrainingSpec
from xrec.sequence.states import states_of
from xrec.sequence.transformer import Transformer
from xrec.sequence.vocabulary import Vocabulary
from xrec.storage.files import names_in, remove

_SCHEMA = pa.schema(
    [
        (C.FOLD, pa.string()),
        (C.MODEL, pa.string()),
        (C.KIND, pa.string()),
        (C.IDX, pa.int32()),
        (C.VECTOR, pa.list_(pa.float32())),
    ]
)
_BATCH_ROWS = 512
_JUDGING_USERS = 256
"""Users by whose events units are judged that may be pruned: some thousands of states."""

Vectors = tuple[str, NDArray[np.int32], NDArray[np.float32]]
"""Kind (user or item), indexes, and one vector a row."""


def has_model(trained: TrainingSpec) -> bool:
    """Whether a training left a model, or found nothing to learn from; raises where it has not finished."""
    return bool(read_staged(trained.staging, trained.model, trained.settings).parts)


def load_trained(spec: TrainingSpec) -> SequenceModel:
    """The model that encodes a fold that is not trained.

    Raises
    ------
    FilesError, ContractMismatchError
        The training of these settings has not finished, or its vectors, which are taken over, are those of other weights.
    """
    trained = spec.trained_on
    assert trained is not None
    staged = read_staged(trained.staging, spec.model, trained.settings)
    model = load_model(trained.checkpoint)
    if (found := digest_of(model)) != staged.weights:
        raise ContractMismatchError(
            f"{trained.checkpoint}: found a model of weights {found}, expected {staged.weights}, which the vectors in "
            f"{trained.staging} were made with: the training was begun anew; let it finish (train_{spec.model} without "
            "--changed-since), or choose an earlier fold by sequence.changed_since"
        )
    return model


def digest_of(model: SequenceModel) -> str:
    """Ten hex digits that change with any weight."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:10]


def encoder_of(spec: TrainingSpec, model: SequenceModel) -> SequenceModel:
    """What users are encoded by: the trained model itself, or a copy that is pruned, then quantised, and has the same items."""
    sequence = spec.settings.sequence
    prunes = isinstance(model, Transformer) and sequence.pruned > 0
    if not prunes and sequence.encoder == "fp32":
        return model
    encoder = copy.deepcopy(model, {id(model.items): model.items}).eval()
    if isinstance(encoder, Transformer) and prunes:
        # All ranks judge by the same users, so that they encode by the same model.
        shards = (Shard.find(spec.export, TRAIN, index) for index in range(spec.export.num_shards))
        users = next(users for shard in shards for rows in shard.read() if len(users := _newest(rows)))
        prune(encoder, sequence.pruned, users.take(slice(_JUDGING_USERS)).newest())
    if sequence.encoder == "int8":
        quantise(encoder)
    return encoder


def encode_all(
    spec: TrainingSpec, model: SequenceModel, encoder: SequenceModel, vocabulary: Vocabulary | None = None
) -> Staged:
    """Write the vectors of all users of the export and of the vocabulary's items, each rank a part; the manifest comes last.

    A user's vector is the state after his newest events, followed by 1; an item's is its output embedding, followed by its
    bias; so their dot product is the model's logit. Users with an event of the vocabulary have one, validation users too; their
    states are those of the ``encoder`` (:func:`encoder_of`).

    Items without a token have one by their content. Their biases are moved together, so that they get, of the average user, the
    share that such items got lately: those that the model learned from sold well enough to have a token.
    """
    if hvd.rank() == 0:
        remove(f"{spec.staging}/manifest.json")
    hvd.allreduce(torch.zeros(1), name="manifest_removed")
    name = f"part-{hvd.rank()}.parquet"
    users = items = 0
    total_E = torch.zeros(model.items.embedding.embedding_dim + 1, dtype=torch.float64)
    filesystem, path = fsspec.core.url_to_fs(spec.staging)
    filesystem.makedirs(path, exist_ok=True)
    with filesystem.open(f"{path}/{name}", "wb") as opened, pq.ParquetWriter(opened, _SCHEMA) as writer:
        for vectors in _user_vectors(spec, encoder):
            users += len(vectors[1])
            total_E += torch.from_numpy(vectors[2].sum(axis=0, dtype=np.float64))
            writer.write_table(_to_table(spec, vectors))
        if vocabulary is not None:
            total_E = hvd.allreduce(total_E, op=hvd.Sum, name="states")
            for vectors in _item_vectors(spec, model, vocabulary, total_E / total_E[-1]):
                items += len(vectors[1])
                writer.write_table(_to_table(spec, vectors))
    gathered = hvd.allgather_object((name, users, items), name="parts")
    return _finish(spec, gathered, weights=digest_of(model), dim=model.items.embedding.embedding_dim + 1)


def stage_nothing(spec: TrainingSpec) -> Staged:
    """Stand for the vectors of a fold that no model was trained on: a manifest without parts."""
    return _finish(spec, [], weights="", dim=0)


def _finish(spec: TrainingSpec, gathered: Sequence[tuple[str, int, int]], *, weights: str, dim: int) -> Staged:
    """What was staged, of each part its name, users and items; rank 0 writes the manifest.

    It removes what that does not name: parts of more ranks, vectors of earlier exports and trainings.
    """
    staged = Staged(
        fold=spec.export.fold,
        model=spec.model,
        digest=spec.digest,
        settings=learned_settings(spec.settings, spec.model),
        weights=weights,
        dim=dim,
        dtype="float32",
        parts={part: num_users + num_items for part, num_users, num_items in gathered},
        users=sum(part[1] for part in gathered),
        items=sum(part[2] for part in gathered),
        versions={"sequences": spec.export.version, "vocabulary": spec.export.vocabulary_version},
    )
    if hvd.rank() > 0:
        return staged
    for name in names_in(spec.staging):
        if name not in staged.parts:
            remove(f"{spec.staging}/{name}")
    write_staged(spec.staging, staged)
    folder = model_location(spec.artifacts, spec.export.fold, spec.model)
    kind = spec.staging.rsplit("/", 1)[1].split("-", 1)[0]
    for name in names_in(folder):
        if name.startswith(f"{kind}-") and f"{folder}/{name}" != spec.staging:
            remove(f"{folder}/{name}")
    return staged


def _user_vectors(spec: TrainingSpec, model: SequenceModel) -> Iterator[Vectors]:
    model.eval()
    for split in spec.export.rows:
        for index in range(hvd.rank(), spec.export.num_shards, hvd.size()):
            for rows in Shard.find(spec.export, split, index).read():
                newest = _newest(rows)
                for start in range(0, len(newest), _BATCH_ROWS):
                    batch = newest.take(slice(start, start + _BATCH_ROWS))
                    every_B, last_B = np.arange(len(batch)), np.full(len(batch), spec.export.length - 1)
                    with torch.inference_mode():
                        events = batch.newest()
                        states_BD = states_of(model, events.tokens, every_B, last_B, events.context)
                        vectors = user_vectors(states_BD)
                    yield "user", batch.user_idx, vectors.cpu().numpy()


def _newest(rows: Windows) -> Windows:
    """The newest window of each user."""
    return rows.take(np.flatnonzero((rows.window == 0) & (rows.row_weight > 0)))


def _item_vectors(
    spec: TrainingSpec, model: SequenceModel, vocabulary: Vocabulary, average_E: Tensor
) -> Iterator[Vectors]:
    """Vectors of the rank's share of the items: tokens t with t mod n = r, and the cold items after them."""
    num_known, item_idx = len(vocabulary.item_idx_V), vocabulary.item_idx_V
    if vocabulary.content is not None:
        item_idx = np.concatenate([item_idx, vocabulary.content.cold_item_idx_C])
    with torch.inference_mode():
        table_IE = model.items.table(len(item_idx)).cpu()
        if len(item_idx) > num_known:
            logits_I = table_IE.double() @ average_E
            table_IE[num_known:, -1] += cold_shift(logits_I[1:num_known], logits_I[num_known:], spec.export.cold_share)
    tokens = np.arange(1, len(item_idx))
    mine = tokens[tokens % hvd.size() == hvd.rank()]
    yield "item", item_idx[mine], table_IE.numpy()[mine]


def cold_shift(known_V: Tensor, cold_C: Tensor, share: float) -> float:
    """What is added to cold items' logits so that their softmax, beside that of the known ones, sums to ``share``."""
    return float(known_V.logsumexp(dim=0) - cold_C.logsumexp(dim=0)) + math.log(share) - math.log1p(-share)


def _to_table(spec: TrainingSpec, vectors: Vectors) -> pa.Table:
    kind, idx, values = vectors
    offsets = pa.array(np.arange(len(idx) + 1, dtype=np.int32) * values.shape[1], type=pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).ravel(), type=pa.float32()))
    constant = [pa.array([value] * len(idx)) for value in (spec.export.fold, spec.model, kind)]
    return pa.Table.from_arrays([*constant, pa.array(idx, type=pa.int32()), lists], schema=_SCHEMA)
