"""A small model learns from a large one of the same export (``sequence.teacher``).

That is knowledge distillation (Hinton, Vinyals, Dean 2015, "Distilling the knowledge in a neural network"): beside its targets the
student learns how likely the teacher holds every item that competes in a step. With scores s of the student and t of the teacher,
temperature T and share a, a target costs::

    (1 - a) x its own loss + a T^2 KL(softmax(t / T) || softmax(s / T))

The softmax runs over the step's negatives and the target, which is all items where the loss is full. Negatives are draws from a
distribution q, so their softened scores are corrected by log q_j, as those of the sampled softmax are (xrec/sequence/losses.py):
then the sums are estimates of those over all items. T^2 keeps the gradients of both terms at one scale (section 2 of the paper).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xrec.features.sequence_files import export_location, model_location
from xrec.sequence.item_encoder import ItemEncoder
from xrec.sequence.losses import OUT
from xrec.sequence.models import SequenceModel, load_model
from xrec.sequence.progress import load_progress
from xrec.sequence.spec import TrainingSpec
from xrec.sequence.states import states_of
from xrec.storage.files import exists, read_json

if TYPE_CHECKING:
    from xrec.sequence.objective import Asked

_OF_ONE_EXPORT = ("table", "version", "vocabulary_table", "vocabulary_version")


class TeacherError(ValueError):
    """A teacher that does not fit; the message names what was found, what was expected and what to do."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained model, and how it teaches."""

    model: SequenceModel
    log_q_V: Tensor
    """Logarithm of the probability of each token as a negative, shape (V,)."""
    share: float
    temperature: float

    @classmethod
    def load(cls, spec: TrainingSpec, q_V: Tensor, device: torch.device) -> Teacher:
        """The fold's teacher; raises :class:`TeacherError` where there is none, or one of another export."""
        assert spec.teacher is not None
        check_teacher(spec, spec.teacher)
        model = load_model(checkpoint_of(spec, spec.teacher)).requires_grad_(False).to(device)
        sequence = spec.settings.sequence
        return cls(
            model=model,
            log_q_V=q_V.log().float().to(device),
            share=sequence.teacher_share,
            temperature=sequence.teacher_temperature,
        )

    def mixed(
        self,
        losses_P: Tensor,
        hidden_ND: Tensor,
        items: ItemEncoder,
        tokens_BL: NDArray[np.int32],
        asked: Asked,
        negatives_S: Tensor,
        is_out_NS: Tensor | None = None,
        context_BLF: NDArray[np.int32] | None = None,
    ) -> Tensor:
        """The loss ``loss_P`` of each target with the teacher's part in it; the arguments are those of ``windows_loss``."""
        states_P, targets_P, _ = asked.on(negatives_S.device)
        with torch.no_grad():
            taught_ND = states_of(self.model, tokens_BL, asked.rows_N, asked.places_N, context_BLF)
            taught = self._softened(taught_ND, self.model.items, states_P, targets_P, negatives_S, is_out_NS)
        learned = self._softened(hidden_ND, items, states_P, targets_P, negatives_S, is_out_NS)
        # Where a draw has hit the target it is among the negatives already.
        is_hit_P = torch.isin(targets_P, negatives_S)
        divergence_P = divergence(taught, learned, states_P, is_hit_P)
        return (1 - self.share) * losses_P + self.share * self.temperature**2 * divergence_P

    def _softened(
        self,
        hidden_ND: Tensor,
        items: ItemEncoder,
        states_P: Tensor,
        targets_P: Tensor,
        negatives_S: Tensor,
        is_out_NS: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Scores over the temperature, corrected: ``(N, S)`` of the negatives after each state, and ``(P,)`` of the targets."""
        (vectors_SD, bias_S), (vectors_PD, bias_P) = items.outputs(negatives_S, targets_P)
        scores_NS = (hidden_ND @ vectors_SD.T).float() + bias_S
        scores_P = (hidden_ND[states_P] * vectors_PD).sum(dim=1).float() + bias_P
        softened_NS = scores_NS / self.temperature - self.log_q_V[negatives_S]
        if is_out_NS is not None:
            softened_NS = softened_NS.masked_fill(is_out_NS, OUT)
        return softened_NS, scores_P / self.temperature - self.log_q_V[targets_P]


def divergence(
    taught: tuple[Tensor, Tensor], learned: tuple[Tensor, Tensor], states_P: Tensor, is_hit_P: Tensor
) -> Tensor:
    """``KL_P`` (nats) between two softmaxes over a target and the negatives after its state.

    The negatives are summed once a state, whatever the number of its targets.

    Parameters
    ----------
    taught, learned
        Logits of the negatives after each state, ``(N, S)``, and of the targets, ``(P,)``.
    states_P
        The state of a target.
    is_hit_P
        Whether the target is among the negatives already.
    """
    (taught_NS, taught_P), (learned_NS, learned_P) = taught, learned
    sum_N, learned_sum_N = taught_NS.logsumexp(dim=1), learned_NS.logsumexp(dim=1)
    excess_N = ((taught_NS - sum_N[:, None]).exp() * (taught_NS - learned_NS)).sum(dim=1)
    of_negatives_N = excess_N - sum_N + learned_sum_N
    total_P = torch.logaddexp(sum_N[states_P], taught_P)
    with_target_P = (
        (sum_N[states_P] - total_P).exp() * excess_N[states_P]
        + (taught_P - total_P).exp() * (taught_P - learned_P)
        - total_P
        + torch.logaddexp(learned_sum_N[states_P], learned_P)
    )
    return torch.where(is_hit_P, of_negatives_N[states_P], with_target_P)


def checkpoint_of(spec: TrainingSpec, teacher: str) -> str:
    """The folder of the fold's teacher."""
    return f"{model_location(teacher, spec.export.fold, spec.model)}/checkpoint"


def check_teacher(spec: TrainingSpec, teacher: str) -> None:
    """Raise :class:`TeacherError` unless the fold's teacher is a finished training of this very export, elsewhere."""
    checkpoint, contract = checkpoint_of(spec, teacher), export_location(teacher, spec.export.fold)
    copy_it = f"train the larger model first and copy the folder {spec.artifacts}, export and all, to where sequence.teacher says"
    if checkpoint == spec.checkpoint:
        raise TeacherError(
            f"sequence.teacher: found {teacher}, where this training keeps its own checkpoint, expected a copy elsewhere; {copy_it}"
        )
    progress = load_progress(checkpoint)
    if progress is None or not progress.done:
        found = "no training" if progress is None else f"one that stopped after epoch {progress.last}"
        raise TeacherError(f"sequence.teacher: found {found} in {checkpoint}, expected a finished one; {copy_it}")
    values = read_json(contract) if exists(contract) else {}
    for key in _OF_ONE_EXPORT:
        expected = getattr(spec.export, key)
        if values.get(key) != expected:
            raise TeacherError(
                f"sequence.teacher: {contract}: {key}: found {values.get(key)}, expected {expected}: teacher and student must have "
                f"the same windows and tokens; {copy_it}"
            )
    if progress.version != spec.export.version:
        raise TeacherError(
            f"sequence.teacher: {checkpoint}: found a training of version {progress.version} of the sequences, expected "
            f"{spec.export.version}; {copy_it}"
        )
