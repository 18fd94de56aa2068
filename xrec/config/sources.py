"""Settings of the sources of candidates that learn in Spark."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from xrec.config.base import Count, Frozen, Positive, Share


class Als(Frozen):
    """MLlib's implicit ALS (Hu, Koren, Volinsky 2008); confidence = 1 + alpha * weight."""

    rank: Count = 32
    """Length of the vectors."""
    max_iter: Count = 6
    """Alternating sweeps."""
    reg_param: Annotated[float, Field(ge=0)] = 0.1
    """Regularisation, scaled by MLlib with each row's number of ratings."""
    alpha: Positive = 0.3
    """Growth of the confidence with the weight."""
    nonnegative: bool = False
    """Non-negative vectors."""
    num_blocks: Count = 4
    """User and item blocks: the parallelism; on a cluster, about the number of cores."""
    checkpoint_interval: Count = 5
    """Sweeps between checkpoints of the factors, which cut their lineage: its length would overflow a stack."""
    min_buyers: Count = 1
    """Items with fewer distinct users are left out; on a log with a long tail 5 makes better vectors."""
    intermediate_storage_level: str = "MEMORY_AND_DISK"
    """Spark storage level of the intermediate factors."""
    final_storage_level: str = "MEMORY_AND_DISK"
    """Spark storage level of the final factors."""
    block_size: Count = 4096
    """Rows a block in MLlib's matrix kernels."""


class ItemKnn(Frozen):
    """Cosine neighbours of items (Sarwar et al. 2001)."""

    num_neighbours: Count = 100
    """Neighbours kept an item."""
    max_items_per_user: Count = 500
    """A user's heaviest interactions that count."""
    shrinkage: Annotated[float, Field(ge=0)] = 10.0
    """Added to the denominator: fewer common users, less similarity."""
    max_nonzeros: Count = 50_000_000
    """Interactions that one task may hold; more is an error (16 bytes each)."""


class UserKnn(Frozen):
    """Cosine neighbours of users (Resnick et al. 1994)."""

    num_neighbours: Count = 100
    """Neighbours kept a user."""
    max_items_per_user: Count = 500
    """A user's heaviest interactions that count."""
    shrinkage: Annotated[float, Field(ge=0)] = 10.0
    """Added to the denominator: fewer common items, less similarity."""
    max_nonzeros: Count = 50_000_000
    """Interactions that one task may hold; more is an error (16 bytes each)."""


class Ease(Frozen):
    """EASE, a linear item-to-item model in closed form (Steck 2019), of items and of categories."""

    reg_param: Positive | None = None
    """Added to the diagonal of the counts of common users: more of it, weaker weights; default: 6 times the mean number of items \
(or categories) that a user had."""
    max_size: Count = 15_000
    """Users or items, the fewer, that one task may solve for; more is an error (8 bytes each pair of them, 1.8 GB)."""
    max_nonzeros: Count = 50_000_000
    """Interactions that one task may hold; more is an error (16 bytes each)."""


class Trend(Frozen):
    """How much what is bought now counts for more, in the sources whose names end with `_trend`.

    The scores of als, item_knn, user_knn and ease are multiplied by an item's trend; gru and transformer give logits, whose
    exponentials are.
    """

    half_life_days: Positive = 28.0
    """Days after which a purchase counts half."""
    power: Share = 0.5
    """Power of the share of an item's buyers that still counts; 0: off."""


class Transitions(Frozen):
    """Decayed transitions from what a user had to what he had next, of items and of categories."""

    window: Count = 5
    """Baskets after an item's (or category's) within which another counts as following it."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Weight of a pair by each basket that lies between: decay ^ distance, 1 within a basket."""
    history: Count = 10
    """A user's newest baskets that are looked at when he is recommended to."""
    history_decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of a basket by each newer one."""
    shrinkage: Annotated[float, Field(ge=0)] = 10.0
    """Added to the weight of all that follows an item: fewer observations, weaker transitions."""
    num_neighbours: Count = 200
    """Transitions kept an item or category."""
    max_events_per_user: Count = 500
    """A user's newest events that count."""
    max_nonzeros: Count = 50_000_000
    """Events that one task may hold; more is an error (24 bytes each)."""


class Content(Frozen):
    """Items by the words that the catalogue has for them (label and category path)."""

    max_items_per_user: Count = 500
    """A user's heaviest interactions that count."""
    max_words_per_user: Count = 200
    """The heaviest words of a user that count."""
    popularity_power: Share = 0.5
    """Power of an item's buyers + 1 by which its score is multiplied; 0: off."""
    max_nonzeros: Count = 50_000_000
    """Words of items, each word of an item once, that one task may hold; more is an error (24 bytes each)."""
