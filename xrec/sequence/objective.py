"""What the states of a batch of windows are asked to foretell (``sequence.objective``).

next_event: a state foretells the next token, among all items. It is what the literature trains for and its benchmarks ask for.
Where shoppers return to what they know it teaches exactly that, and what it has learned is lost on lists of new categories.

new_categories: the state after each basket foretells what the user buys later in the window of categories that he does not have by
then, and only items of such categories compete, as they do when his list is made::

    place          0    1    2    3    4    5         categories of the tokens: A A B C A D
    tokens         a1   a2 | b1   c1 | a3   d1        baskets end at places 1, 3 and 5
    touched_at     A 0, B 2, C 2, D 4                 (4: where the basket begins that D is first bought in)
    asked at 1     b1, c1, d1 among all items but those of A
    asked at 3     d1 among all items but those of A, B and C

Each target counts alike (but for its balance), so that the places early in a history, which have more of them, teach more: what is
left late in a history are rare items, and the given vectors have seen who bought those, the user among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xrec.config import Sequence

if TYPE_CHECKING:
    from xrec.sequence.loader import Windows
    from xrec.sequence.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Asked:
    """N states of a batch and their P targets; a state's targets follow each other."""

    rows_N: NDArray[np.int64]
    places_N: NDArray[np.int64]
    states_P: NDArray[np.int64]
    """The state that a target belongs to: 0 to N - 1, rising."""
    tokens_P: NDArray[np.int64]
    weights_P: NDArray[np.float32]
    touched_at_RC: NDArray[np.int32] | None
    """Of the batch's rows the places from which the user has each category; None: all items compete."""

    def is_out(self, categories_S: NDArray[np.int32]) -> NDArray[np.bool_] | None:
        """Whether an item of a category (code, not negative) is out of each state's competition: shape (N, S); None: all are in."""
        if self.touched_at_RC is None:
            return None
        is_out_NS: NDArray[np.bool_] = self.touched_at_RC[:, categories_S][self.rows_N] <= self.places_N[:, None]
        return is_out_NS

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The targets' states, tokens and weights as tensors."""
        states, tokens, weights = (
            torch.from_numpy(array).to(device) for array in (self.states_P, self.tokens_P, self.weights_P)
        )
        return states, tokens, weights


def asked_of(windows: Windows, vocabulary: Vocabulary, sequence: Sequence) -> Asked:
    """What the objective asks of some windows; states without a target are left out."""
    if sequence.objective == "next_event":
        return _next_events(windows)
    return _new_categories(windows, vocabulary.category_V)


def _next_events(windows: Windows) -> Asked:
    weights_RL = windows.token_weights[:, 1:] * windows.row_weight[:, None]
    rows_N, places_N = np.nonzero(weights_RL > 0)
    return Asked(
        rows_N=rows_N,
        places_N=places_N,
        states_P=np.arange(len(rows_N)),
        tokens_P=windows.tokens[:, 1:][rows_N, places_N].astype(np.int64),
        weights_P=weights_RL[rows_N, places_N],
        touched_at_RC=None,
    )


def _new_categories(windows: Windows, category_V: NDArray[np.int32]) -> Asked:
    tokens_RM, baskets_RM = windows.tokens, windows.baskets
    weights_RM = windows.token_weights * windows.row_weight[:, None]
    # Items without a code have no weight, so which place they look up is all the same.
    touched_RM = np.take_along_axis(windows.touched_at, np.maximum(category_V[tokens_RM], 0), axis=1)
    ends_RL = (baskets_RM[:, :-1] > 0) & (baskets_RM[:, :-1] != baskets_RM[:, 1:])
    rows_E, places_E = np.nonzero(ends_RL)
    is_target_EM = (weights_RM[rows_E] > 0) & (touched_RM[rows_E] > places_E[:, None])
    has_one_E = is_target_EM.any(axis=1)
    rows_N, places_N = rows_E[has_one_E], places_E[has_one_E]
    states_P, targets_P = np.nonzero(is_target_EM[has_one_E])
    return Asked(
        rows_N=rows_N,
        places_N=places_N,
        states_P=states_P,
        tokens_P=tokens_RM[rows_N[states_P], targets_P].astype(np.int64),
        weights_P=weights_RM[rows_N[states_P], targets_P],
        touched_at_RC=windows.touched_at,
    )
