"""The early-stopping metric, on users that are never trained on. **Never to be reported**: see xrec/evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import horovod.torch as hvd
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xrec.config import Sequence
from xrec.sequence.loader import Shard, Windows
from xrec.sequence.models import SequenceModel
from xrec.sequence.objective import Asked, asked_of
from xrec.sequence.states import states_of
from xrec.sequence.vocabulary import Vocabulary

_CUT = 10
_AT_ONCE = 64
"""Targets that are compared with the whole vocabulary together."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Means over validation windows."""

    ndcg: float
    hit_rate: float


def validate(
    model: SequenceModel,
    shards: list[Shard],
    vocabulary: Vocabulary,
    sequence: Sequence,
    batch_rows: int,
    device: torch.device,
) -> Scores | None:
    """NDCG@10 and HR@10 of what one state of each window is asked, among the items that compete.

    The state is the newest that has a target where the objective is next_event, and the middle one, before and after which the
    window has as much, where it is new_categories. All ranks share the windows and get the same answer; None where there is no
    target. It is for choosing an epoch and is not to be reported.
    """
    model.eval()
    with torch.inference_mode():
        table_VE = model.items.table(len(vocabulary.item_idx_V))
    sums = torch.zeros(3, dtype=torch.float64)
    with torch.inference_mode():
        for shard in shards:
            for batch in shard.batches(batch_rows):
                asked = asked_of(batch, vocabulary, sequence)
                if len(asked.rows_N):
                    sums += _sums(model, table_VE, batch, asked, vocabulary, sequence, device)
    ndcg, hits, count = hvd.allreduce(sums, op=hvd.Sum, name="validation").tolist()
    return Scores(ndcg=ndcg / count, hit_rate=hits / count) if count else None


def _sums(
    model: SequenceModel,
    table_VE: Tensor,
    batch: Windows,
    asked: Asked,
    vocabulary: Vocabulary,
    sequence: Sequence,
    device: torch.device,
) -> Tensor:
    """Sums over a batch's windows: NDCG, whether a target is among the first, and 1."""
    rows_B, first_B, count_B = np.unique(asked.rows_N, return_index=True, return_counts=True)
    chosen_B = first_B + (count_B - 1 if sequence.objective == "next_event" else count_B // 2)
    inputs = batch.inputs()
    hidden_BD = states_of(model, inputs.tokens, rows_B, asked.places_N[chosen_B], inputs.context)
    logits_BV = model.items.logits(hidden_BD, table_VE)
    is_out_BV = _is_out(asked, chosen_B, vocabulary)
    if is_out_BV is not None:
        logits_BV = logits_BV.masked_fill(torch.from_numpy(is_out_BV).to(device), float("-inf"))
    order_N = np.full(len(asked.rows_N), -1)
    order_N[chosen_B] = np.arange(len(chosen_B))
    is_chosen_P = order_N[asked.states_P] >= 0
    of_state_T = torch.from_numpy(order_N[asked.states_P][is_chosen_P]).to(device)
    targets_T = torch.from_numpy(asked.tokens_P[is_chosen_P]).to(device)
    wanted_T = logits_BV[of_state_T, targets_T][:, None]
    # A row of the vocabulary's length a target: a few at a time, whatever their number.
    pairs = zip(torch.split(of_state_T, _AT_ONCE), torch.split(wanted_T, _AT_ONCE), strict=True)
    ranks_T = torch.cat([(logits_BV[some] > wanted).sum(dim=1) for some, wanted in pairs]).double() + 1
    is_hit_T = ranks_T <= _CUT
    gains_T = is_hit_T / torch.log2(ranks_T + 1)
    num_targets_B = torch.bincount(of_state_T, minlength=len(rows_B))
    ideal = (1 / torch.log2(torch.arange(2, _CUT + 2, device=device, dtype=torch.float64))).cumsum(dim=0)
    gains_B = torch.zeros(len(rows_B), dtype=torch.float64, device=device).index_add(0, of_state_T, gains_T)
    hits_B = torch.bincount(of_state_T[is_hit_T], minlength=len(rows_B)) > 0
    ndcg_B = gains_B / ideal[num_targets_B.clamp(max=_CUT) - 1]
    return torch.stack([ndcg_B.sum(), hits_B.sum().double(), torch.ones_like(ndcg_B).sum()]).cpu()


def _is_out(asked: Asked, chosen_B: NDArray[np.int64], vocabulary: Vocabulary) -> NDArray[np.bool_] | None:
    """Which tokens do not compete after the chosen states, shape (B, V); None: all do."""
    if asked.touched_at_RC is None:
        return None
    out_BC = asked.touched_at_RC[asked.rows_N[chosen_B]] <= asked.places_N[chosen_B][:, None]
    category_V = vocabulary.category_V
    is_out_BV: NDArray[np.bool_] = out_BC[:, np.maximum(category_V, 0)] | (category_V < 0)
    return is_out_BV
