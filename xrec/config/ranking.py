"""Settings of candidates, blend, lists and rankers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from xrec.config.base import Count, Frozen, Positive

TREND = "_trend"
"""How the name of a source ends whose scores say more of what is bought now (`trend`)."""
Source = Literal[
    "popularity",
    "recent",
    "newcomers",
    "popular_in_category",
    "popular_in_segment",
    "item_knn",
    "user_knn",
    "item_knn_trend",
    "user_knn_trend",
    "ease_trend",
    "ease",
    "ease_categories",
    "transitions",
    "transition_categories",
    "content",
    "als",
    "als_trend",
    "gru",
    "gru_trend",
    "transformer",
    "transformer_trend",
]


class Ranking(Frozen):
    """Candidates, blend and lists."""

    scope: Literal["touched", "home"] = "touched"
    """Categories that are excluded from a user's list: touched (strict) or home (softer)."""
    top_k: Count = 20
    """Length of a list."""
    candidates_per_source: Count = 60
    """Candidates that each source proposes a user."""
    sources: tuple[Source, ...] = (
        "popularity",
        "recent",
        "newcomers",
        "item_knn",
        "als",
        "als_trend",
        "gru",
        "transformer",
    )
    """Sources that are blended, that the rankers learn from, and one of which may serve alone."""
    recent_days: Positive = 28.0
    """Days before as-of whose buyers the source `recent` counts; on a log without a clock (time.unit order) it means nothing."""
    newcomer_days: Positive | None = None
    """Days before as-of in which who comes to a category counts, for the source `newcomers`; default: the horizon, at most half \
of the fold's history."""
    newcomer_prior_users: Positive = 300.0
    """Users whom the popularity among all users counts as, for the source `newcomers`."""
    segment_prior_users: Positive = 100.0
    """Users of a segment that the popularity among all users counts as, for the source `popular_in_segment`."""
    fusion_constant: Positive = 20.0
    """c of reciprocal-rank fusion: a source's vote is 1 / (c + rank) (Cormack et al. 2009)."""
    weight_parts: Annotated[int, Field(ge=1, le=20)] | None = None
    """The blend's weights are multiples of 1 / weight_parts (10: 0.1, 0.2, ...); default: as many, up to 10, as make at most \
1,001 combinations."""
    item_block_mib: Count = 512
    """MiB of item vectors that a Python process of the top-K kernel holds at once; a larger catalogue is gone through in blocks."""
    tile_users: Count = 1024
    """Users a tile of the top-K kernel; a few of each tile's are searched first, to guess the others' thresholds."""
    tile_items: Count = 8192
    """Items a tile, of vectors at most 512: tile_users x tile_items x 4 bytes bounds a task's scores."""

    def uses(self, model: str) -> bool:
        """Whether a source is made of a model's vectors."""
        return not {model, f"{model}{TREND}"}.isdisjoint(self.sources)


class Ranker(Frozen):
    """Rankers that learn from older folds which candidates are bought."""

    models: tuple[Literal["logistic", "trees", "listwise", "ensemble"], ...] = ("logistic", "trees", "ensemble")
    """What is learned: a logistic regression, boosted trees, both together (ensemble: the mean of their log-odds), trees that \
learn the order of a user's list (listwise); empty: nothing."""
    fold_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """What an older fold's rows count against those of the next newer one: 1 all alike, 0.5 half of them, a quarter of the one \
after. Trees that learn an order (listwise) count all alike."""
    num_trees: Count = 200
    """Boosting rounds."""
    max_depth: Count = 3
    """Levels of a tree."""
    learning_rate: Positive = 0.06
    """Shrinkage of each tree."""
    row_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the rows that each tree sees."""
    feature_share: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the features that each tree sees."""
    min_child_weight: Annotated[float, Field(ge=0)] = 100.0
    """Weight (p (1 - p), summed over rows) that a leaf needs; where little was bought a twentieth of all is enough."""
    reg_lambda: Annotated[float, Field(ge=0)] = 10.0
    """L2 regularisation of the leaves."""
    reg_param: Annotated[float, Field(ge=0)] = 1e-3
    """L2 regularisation of the logistic regression, on standardised features."""
    max_iter: Count = 40
    """Steps of the logistic regression."""
    negative_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the candidates that nobody bought that are learned from, chosen by a hash; those that were bought all are."""
    max_rows: Count = 5_000_000
    """Rows that a fold's rankers learn from, about and at most: of more a share of the users is taken, chosen by a hash."""
    num_workers: Count | None = None
    """Spark tasks that grow the trees, all at the same time; default: 2, or 1 where Spark has one task slot. Each draws its \
own rows (row_share below 1), so that another number grows other trees."""
