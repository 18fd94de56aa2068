"""The early-stopping metric, on users that are never trained on. **Never to be reported**: see xrec/evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import horovod.torch as hvd
import torch

from xrec.sequence.loader import Shard
from xrec.sequence.models import SequenceModel

_CUT = 10


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Means over validation windows."""

    ndcg: float
    hit_rate: float


def validate(model: SequenceModel, shards: list[Shard], batch_rows: int, device: torch.device) -> Scores | None:
    """NDCG@10 and HR@10 of each window's newest target given what came before, among all items of the vocabulary.

    All ranks share the windows and get the same answer; None where there is no such target. It is for choosing an epoch
    and is not to be reported: it counts repeats, and knows nothing of categories.
    """
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    with torch.inference_mode():
        for shard in shards:
            for batch in shard.batches(batch_rows):
                weights_BL = torch.from_numpy(batch.token_weights[:, 1:] * batch.row_weight[:, None])
                has_target = (weights_BL > 0).any(dim=1)
                tokens = torch.from_numpy(batch.tokens)[has_target].to(device, torch.int64)
                if not len(tokens):
                    continue
                place_B = _last_positive(weights_BL[has_target]).to(device)
                rows_B = torch.arange(len(tokens), device=device)
                hidden_BD = model(tokens[:, :-1])[rows_B, place_B]
                logits_BV = model.items.logits(hidden_BD)
                target_B1 = logits_BV[rows_B, tokens[:, 1:][rows_B, place_B]][:, None]
                rank_B = (logits_BV > target_B1).sum(dim=1).double() + 1
                is_hit_B = (rank_B <= _CUT).double()
                gains_B = is_hit_B / torch.log2(rank_B + 1)
                sums += torch.stack([gains_B.sum(), is_hit_B.sum(), torch.ones_like(gains_B).sum()]).cpu()
    ndcg, hits, count = hvd.allreduce(sums, op=hvd.Sum, name="validation").tolist()
    return Scores(ndcg=ndcg / count, hit_rate=hits / count) if count else None


def _last_positive(weights_BL: torch.Tensor) -> torch.Tensor:
    """The place of each row's last positive weight."""
    places_L = torch.arange(weights_BL.shape[1])
    return torch.where(weights_BL > 0, places_L, -1).amax(dim=1)
