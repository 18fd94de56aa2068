"""Models that give vectors (ALS, GRU, Transformer): a candidate's score is the dot product of the two vectors.

Every Python process holds the vectors of a block of items; where the catalogue is larger than ``ranking.item_block_mib``, it is
cut into several blocks by a hash, and a user's best K are the best of those of the blocks: the same lists, to the bit.
"""

from __future__ import annotations

from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Ranking
from xrec.lists import best_lists, ranked_rows
from xrec.ranking.topk import VectorError, item_rows, top_k
from xrec.storage.shared import SharedFolder

_BYTES_A_MIB = 1 << 20
MADE_BY = {"als": "train_als", "gru": "train_gru and load_vectors", "transformer": "train_transformer and load_vectors"}
"""The stage that makes each model's vectors."""
_LOGITS = ("gru", "transformer")
"""Models whose scores are logits, to which an item's bias, the last number of its vector, is added."""


def factor_candidates(
    users: DataFrame,
    eligible: DataFrame,
    vectors: DataFrame,
    ranking: Ranking,
    folder: SharedFolder,
    *,
    model: str,
    fold: str,
) -> DataFrame:
    """Lists (``scope``, ``user_idx``, ``items``, ``scores``) of one model and fold.

    Users and items without a vector are left out: other sources serve them.

    Raises
    ------
    VectorError
        The fold has no vectors of the model, or one of them is not finite.
    """
    of_model = vectors.where((F.col(C.FOLD) == fold) & (F.col(C.MODEL) == model)).select(C.KIND, C.IDX, C.VECTOR)
    num_bytes = check_vectors(of_model, model=model, fold=fold)
    num_blocks = max(1, -(-num_bytes // (ranking.item_block_mib * _BYTES_A_MIB)))
    items = item_rows(eligible, of_model.where(F.col(C.KIND) == "item").drop(C.KIND), logits=model in _LOGITS)
    user_vectors = of_model.where(F.col(C.KIND) == "user").select(F.col(C.IDX).alias(C.USER_IDX), C.VECTOR)
    with_vector = users.join(user_vectors.hint("merge"), C.USER_IDX, how="inner")
    k, block = ranking.candidates_per_source, F.pmod(F.xxhash64(C.ITEM_IDX), F.lit(num_blocks))
    parts = [
        top_k(with_vector, folder.share(items.where(block == number)), ranking, k=k) for number in range(num_blocks)
    ]
    if num_blocks == 1:
        return parts[0]
    return best_lists(ranked_rows(reduce(DataFrame.unionByName, parts)), [C.SCOPE, C.USER_IDX], k=k)


def check_vectors(of_model: DataFrame, *, model: str, fold: str) -> int:
    """The bytes of the items' vectors as float32; raises :class:`VectorError`.

    That is where users or items have no vectors, or one is not finite or of another length.
    """
    is_bad = F.exists(C.VECTOR, lambda x: x.isNull() | F.isnan(x) | (F.abs(x) == float("inf")))
    found = {
        row[C.KIND]: row
        for row in of_model.groupBy(C.KIND)
        .agg(
            F.max(F.struct(is_bad.alias("is_bad"), F.col(C.IDX))).alias("worst"),
            F.min(F.size(C.VECTOR)).alias("shortest"),
            F.max(F.size(C.VECTOR)).alias("longest"),
            F.count("*").alias("num"),
        )
        .collect()
    }
    for kind in ("user", "item"):
        if kind not in found:
            raise VectorError(
                f"table 'vectors': found no {kind} vectors of model '{model}' in fold '{fold}'; they are made by the stage "
                f"{MADE_BY[model]}: run it first, or leave '{model}' out of ranking.sources"
            )
        if found[kind]["worst"]["is_bad"]:
            raise VectorError(
                f"table 'vectors': the vector of {kind} {found[kind]['worst'][C.IDX]} of model '{model}' in fold '{fold}' "
                f"holds NaN or infinity, expected finite numbers: the training diverged; run {MADE_BY[model]} again with a "
                "lower learning rate (sequence.learning_rate) or confidence (als.alpha)"
            )
    lengths = {row[length] for row in found.values() for length in ("shortest", "longest")}
    if len(lengths) > 1:
        raise VectorError(
            f"table 'vectors': model '{model}' in fold '{fold}' has vectors of lengths {sorted(lengths)}, expected one length; "
            f"run {MADE_BY[model]} again"
        )
    return int(found["item"]["num"] * found["item"]["longest"] * 4)
