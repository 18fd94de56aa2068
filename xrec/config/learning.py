"""Settings of what is learned and judged: categories, folds, weights, rules, models, ranking, evaluation."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from xrec.config.base import Count, Frozen, Positive, Share


class Categories(Frozen):
    """What a category is and when a user has it."""

    level: Count = 1
    """Level of the category path that counts as the category, 1 at the root; a shorter path counts with its last node."""
    non_merchandise: tuple[str, ...] = ()
    """Categories that count as touched and are never recommended."""
    counting_events: tuple[str, ...] = ("purchase",)
    """Actions that touch a category and make a target."""
    look_back_days: Positive | None = None
    """Days before as-of within which an event touches; default: all time."""
    home_coverage: Share = 0.8
    """Share of a user's weight that the home categories cover."""


class Folds(Frozen):
    """What is learned from and what is judged by."""

    kind: Literal["time", "last_out"] = "time"
    """time: events before as_of are history; last_out: each user's last event is the target (for benchmark parity)."""
    purpose: Literal["test", "serve", "select"] = "test"
    """test: a backtest, judged by its horizon; serve: the lists that go out, judged later; select: the older folds alone, which \
may choose settings."""
    as_of: str = "latest"
    """Date or time (ISO 8601, UTC) before which events are history; latest: just after the last event."""
    horizon: Annotated[timedelta, Field(gt=timedelta(0))] = timedelta(days=61)
    """Time after as_of that judges the lists, as ISO 8601 duration (P61D, PT45M)."""
    num_select: Annotated[int, Field(ge=0, le=12)] = 3
    """Older folds, one horizon apart, that teach the rankers, choose the blend's weights and what serves; what learns is \
judged from the second of them on. Those that have a history of less than half a horizon are left out."""
    num_test: Annotated[int, Field(ge=1, le=12)] = 1
    """Folds of a backtest, one horizon apart, the last of them at `as_of` (rolling origin); 1 where kind is last_out."""

    @model_validator(mode="after")
    def _one_last(self) -> Folds:
        if self.kind == "last_out" and self.num_test > 1:
            raise ValueError(f"folds.num_test: found {self.num_test} beside kind last_out, expected 1")
        if self.purpose == "select" and not self.num_select:
            raise ValueError("folds.num_select: found 0 beside purpose select, expected at least 1")
        return self


class Weights(Frozen):
    """How much an event says."""

    event_types: dict[str, Positive] = {"purchase": 1.0}
    """Weight of each action; an action that is not listed is rejected as unknown."""
    half_life_days: Positive | None = None
    """Days after which an event weighs half, measured back from as-of; default: no decay."""
    quantity_power: Share = 0.0
    """The weight is multiplied by the quantity, outliers drawn in, to this power; 0: off, and so is an unknown quantity."""


class Outliers(Frozen):
    """Quantities and prices far from the others of their item: features take the nearest limit, the events stay as they are."""

    fence: Positive = 3.0
    """How far beyond the quartiles of the logarithms a limit lies, in their distance (Tukey 1977: 3)."""
    least_ratio: Annotated[float, Field(gt=1)] = 2.0
    """Ratio of the quartiles that is assumed at least: where most buy one, two are no outlier."""
    min_events: Count = 20
    """Values that an item needs for limits of its own; below, its category's hold, and where that has fewer, none."""


class LogRules(Frozen):
    """What only the whole log can decide; rules that need a clock are off where log.time.unit is order."""

    repeat_seconds: Annotated[float, Field(ge=0)] = 2.0
    """The same action again within so many seconds is a repeat (double click, retry); 0: off."""
    return_days: Annotated[float, Field(ge=0)] = 90.0
    """Days within which a return takes back a purchase of the same user and item."""
    session_gap_minutes: Positive = 30.0
    """Minutes without an event that end a session."""


class Persons(Frozen):
    """Signs, each of one day (UTC), of a user who is no shopper; his events are kept and nothing is learned from them."""

    max_events_a_day: Count = 1000
    """Events."""
    max_items_a_day: Count = 500
    """Distinct items."""
    max_hours_a_day: Count = 20
    """Distinct hours with an event."""
    min_gaps: Count = 100
    """Pauses within visits that a day needs before their rhythm is judged."""
    min_gap_variation: Annotated[float, Field(ge=0)] = 0.1
    """Standard deviation over mean of these pauses below which they are a machine's; 0: off."""


class Balance(Frozen):
    """Balancing of the training rows."""

    alpha: Share = 1.0
    """A category's share is proportional to its count to this power; 1 is off."""
    user_alpha: Share = 1.0
    """A user's share is proportional to his number of rows to this power; 1 is off, 0 gives all users the same."""
    min_rows: Annotated[int, Field(ge=0)] = 0
    """Rows that a category of the long tail counts as at least, within max_repeat; 0 is off."""
    max_repeat: Annotated[float, Field(ge=1)] = 5.0
    """Largest factor by which a row may be repeated or up-weighted."""


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


class Sequence(Frozen):
    """Export and training of the sequence models."""

    length: Count = 100
    """Events a window."""
    max_windows: Count = 6
    """Newest windows a user."""
    min_buyers: Count = 5
    """Items with fewer distinct users are not in the vocabulary."""
    num_shards: Count = 4
    """Logical shards V: a multiple of the number of processes."""
    validation_share: Share = 0.05
    """Share of the users that only validate (they are never trained on)."""
    num_processes: Count = 2
    """Horovod processes."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads a process; 0: cores of the machine / processes on it."""
    launcher: Literal["spark", "horovodrun"] = "spark"
    """spark: horovod.spark.run; horovodrun: this process is a rank that horovodrun started (GPU hosts)."""
    start_timeout: Count = 300
    """Seconds to wait until all processes have started."""
    objective: Literal["new_categories", "next_event"] = "new_categories"
    """What a state learns to foretell: new_categories: what the user buys later within the window of categories that he has not \
bought from by then, among the items of such categories alone, which is what the lists ask; next_event: his next event, among all \
items (for benchmark parity)."""
    item_vectors: Literal["als"] | None = "als"
    """Model whose item vectors are the models' embeddings, given and not learned; null: embeddings are learned."""
    targets: Literal["all", "first"] = "first"
    """Events that the models learn to foretell: all, or first: the first of each (user, item), so that no repeats count."""
    dim: Count = 64
    """Length of the embeddings and vectors, or that of `item_vectors` where it is more."""
    num_layers: Count = 1
    """Blocks (Transformer) or layers (GRU)."""
    num_heads: Count = 2
    """Attention heads of the Transformer."""
    dropout: Share = 0.5
    """Dropout."""
    loss: Literal["auto", "full_softmax", "sampled_softmax", "gbce"] = "auto"
    """What a target costs: full_softmax over all items that compete; sampled_softmax over negatives drawn from the training \
targets' distribution, logQ-corrected; gbce over negatives drawn uniformly, each a yes or no; auto: the first up to 2,000 items, \
else the second."""
    num_negatives: Count = 512
    """Negatives a step, shared by its rows."""
    gbce_calibration: Share = 0.75
    """gbce: 0 leaves the targets' probabilities as sampling makes them, 1 undoes that wholly (t of Petrov and Macdonald 2023)."""
    batch_rows: Count = 64
    """Rows (windows) a global step, over all processes; a multiple of num_shards."""
    epochs: Count = 6
    """Passes over the training windows of the oldest fold of a run."""
    epochs_more: Annotated[int, Field(ge=0)] = 1
    """Passes over those of each later fold, which goes on from the model of the fold before; 0: every fold starts afresh."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: training multiplies matrices in bfloat16 (GPUs, processors with AMX); weights, sums and the optimizer keep float32."""
    learning_rate: Positive = 3e-3
    """Adam's step."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Adam's decoupled decay."""
    patience: Count = 3
    """Epochs without a better validation metric before training stops."""

    @model_validator(mode="after")
    def _divisible(self) -> Sequence:
        if self.num_shards % self.num_processes:
            raise ValueError(
                f"sequence.num_shards: found {self.num_shards}, expected a multiple of num_processes ({self.num_processes})"
            )
        if self.batch_rows % self.num_shards:
            raise ValueError(
                f"sequence.batch_rows: found {self.batch_rows}, expected a multiple of num_shards ({self.num_shards})"
            )
        if self.dim % self.num_heads:
            raise ValueError(f"sequence.dim: found {self.dim}, expected a multiple of num_heads ({self.num_heads})")
        return self


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
    """How much what is bought now counts for more, in the sources whose names end with `_trend`."""

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


Source = Literal[
    "popularity",
    "recent",
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
    "transformer",
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
        "item_knn",
        "als",
        "als_trend",
        "gru",
        "transformer",
    )
    """Sources that are blended, that the rankers learn from, and one of which may serve alone."""
    recent_days: Positive = 28.0
    """Days before as-of whose buyers the source `recent` counts; on a log without a clock (time.unit order) it means nothing."""
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


class Ranker(Frozen):
    """Rankers that learn from older folds which candidates are bought."""

    models: tuple[Literal["logistic", "trees", "listwise", "ensemble"], ...] = ("logistic", "trees", "ensemble")
    """What is learned: a logistic regression, boosted trees, both together (ensemble: the mean of their log-odds), trees that \
learn the order of a user's list (listwise); empty: nothing."""
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
    """Weight (p (1 - p), summed over rows) that a leaf needs."""
    reg_lambda: Annotated[float, Field(ge=0)] = 10.0
    """L2 regularisation of the leaves."""
    reg_param: Annotated[float, Field(ge=0)] = 1e-3
    """L2 regularisation of the logistic regression, on standardised features."""
    max_iter: Count = 40
    """Steps of the logistic regression."""
    negative_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the candidates that nobody bought that are learned from, chosen by a hash; those that were bought all are."""
    num_workers: Count = 2
    """Spark tasks that grow the trees, all at the same time."""


class Evaluation(Frozen):
    """Figures and intervals."""

    scopes: tuple[Literal["touched", "home", "new", "all"], ...] = ("touched", "home")
    """Lists that are made and judged, beside those of ranking.scope: of items outside the touched or the home categories, of all \
that the user never had (new), of all."""
    ks: tuple[Count, ...] = Field((10, 20), min_length=1)
    """Cut-offs of the metrics; the first is the one that the summary shows."""
    num_bootstrap: Count = 1000
    """Poisson bootstrap replicates."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Level of the intervals."""

    @field_validator("ks")
    @classmethod
    def _once_each(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(ks))
