"""Settings of the sequence models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from xrec.config.base import Count, Frozen, Positive, Share
from xrec.config.inputs import File


class ItemVectors(Frozen):
    """Vectors of the items that the sequence models are given where `sequence.item_vectors` names word2vec, text_svd or file."""

    dim: Count = 64
    """Length of the vectors of word2vec and text_svd."""
    window: Count = 5
    """word2vec: events before and after one that are its context."""
    max_iter: Count = 5
    """word2vec: passes over the events."""
    num_partitions: Count = 1
    """word2vec: parts of the events that learn beside each other; more are faster, and less exact."""
    min_events: Count = 5
    """word2vec: events that an item needs for a vector."""
    file: File | None = None
    """file: the shop's vectors, of a sentence encoder for instance."""
    item_id: str = "item_id"
    """file: column of the item's key, as in the log."""
    vector: str = "vector"
    """file: column of the vector: a list of numbers, in a text file as JSON."""


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
    """CPU threads a process; 0: cores of the machine, or of its container, / processes on it."""
    launcher: Literal["spark", "horovodrun"] = "spark"
    """spark: horovod.spark.run; horovodrun: this process is a rank that horovodrun started (GPU hosts)."""
    start_timeout: Count = 300
    """Seconds to wait until all processes have started."""
    answer_timeout: Count = 300
    """Seconds that a process waits for another one, which has ended, answers no more or is held up, before the training ends with \
an error. Its own work counts too: process 0 alone writes each epoch's checkpoint and looks an unfinished training through, and a \
slower machine encodes its users for longer; set more where such takes minutes."""
    objective: Literal["new_categories", "next_event"] = "new_categories"
    """What a state learns to foretell: new_categories: what the user buys later within the window of categories that he has not \
bought from by then, among the items of such categories alone, which is what the lists ask; next_event: his next event, among all \
items (for benchmark parity)."""
    item_vectors: Literal["als", "word2vec", "text_svd", "file"] | None = "als"
    """Whose item vectors are the models' embeddings, given and not learned: als, those of ALS; word2vec, of the users' events as \
sentences; text_svd, of the catalogue's words; file, the shop's own (`item_vectors`); null: embeddings are learned."""
    item_content: tuple[Literal["text", "path", "price"], ...] = ()
    """What the models know of an item beside its buyers: text, the words of its label; path, its category path; price, how dear \
it is among those of its category. Then they also recommend items without history."""
    context: tuple[Literal["gap", "hour", "weekday", "month", "event_type", "platform"], ...] = ()
    """What the models know of an event beside its item: gap, the time since the user's events before it; hour, weekday and month \
in the log's zone; event_type; platform."""
    left_out: Share = 0.1
    """Share of the items that a training step knows by their content alone."""
    targets: Literal["all", "first"] = "first"
    """Events that the models learn to foretell: all, or first: the first of each (user, item), so that no repeats count."""
    half_life_share: Annotated[float, Field(ge=0)] = 0.25
    """Share of a fold's history after which a target counts half, back from the newest event (0.25 of a year: three months), so \
that the models learn what is bought now; 0: all count alike, as they do where a log has no clock (time.unit: order)."""
    dim: Count = 64
    """Length of the embeddings and vectors, or that of `item_vectors` where it is more."""
    num_layers: Count = 1
    """Blocks (Transformer) or layers (GRU)."""
    cell: Literal["gru", "lstm"] = "gru"
    """The GRU's recurrent cell."""
    num_heads: Count = 2
    """Attention heads of the Transformer."""
    positions: Literal["learned", "rotary"] = "learned"
    """How the Transformer knows the order: learned: a vector for each place, counted from the newest event; rotary: queries and \
keys are turned by their place, so that attention knows how far apart two events are."""
    pooled: bool = True
    """Whether a state is also made of the mean of the user's events, in whatever order, beside what the network makes of them."""
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
    accumulate: Count = 1
    """Parts in which a process computes its rows of a step, one after the other, adding up the gradients: less memory, the same \
step; divides the shards of a process."""
    epochs: Count = 6
    """Passes over the training windows of the oldest fold of a run."""
    epochs_more: Annotated[int, Field(ge=0)] = 1
    """Passes over those of each later fold, which goes on from the model of the fold before; 0: every fold starts afresh."""
    start_from: str | None = None
    """Folder or URL of a fold of another finished run, `<artifacts>/<fold>`: the trainings of the run's oldest fold start from \
that fold's models, of another log or of all categories, whose settings of the same model must fit; null: they start afresh."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: training multiplies matrices in bfloat16 (GPUs, processors with AMX); weights, sums and the optimizer keep float32."""
    learning_rate: Positive = 3e-3
    """Adam's step."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Adam's decoupled decay."""
    patience: Count = 3
    """Epochs without a better validation metric before training stops."""
    changed_since: str | None = None
    """null: the models are trained. latest, or a date or time (ISO 8601, UTC): none is; of the folds trained before whose as_of \
is not later than that, each fold takes the newest that knows nothing later than itself, encodes with its model the users \
whose newest events have changed since, and takes over the vectors of all others and of items."""
    teacher: str | None = None
    """Folder or URL of a copy of the artifacts of a larger model's finished training on the same export, from which the model \
learns too; null: from the windows alone."""
    teacher_share: Share = 0.5
    """Share of the teacher in what a target costs; the rest is `loss`."""
    teacher_temperature: Positive = 2.0
    """What the scores of both are divided by before the teacher's part: the higher, the more the unlikely items say."""
    encoder: Literal["fp32", "int8"] = "fp32"
    """How users are encoded after the training: int8: by a copy of the model whose products are of 8-bit integers (processors \
alone)."""
    pruned: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the Transformer's feed-forward units that are left out when users are encoded: those that matter least."""
    num_checkpoints: Count = 2
    """Newest epochs that are kept, beside the best: what a resumed training goes on from where the newest file is damaged."""
    checkpoint_seconds: Count = 300
    """Seconds of an epoch after which it is saved how far it is, so that a killed training takes no more steps again than these."""

    @model_validator(mode="after")
    def _context_once(self) -> Sequence:
        if len(set(self.context)) < len(self.context):
            raise ValueError(f"sequence.context: found {list(self.context)}, expected each field once")
        return self

    @model_validator(mode="after")
    def _divisible(self) -> Sequence:
        if self.num_shards % self.num_processes:
            raise ValueError(
                f"sequence.num_shards: found {self.num_shards}, expected a multiple of num_processes ({self.num_processes})"
            )
        if self.num_shards // self.num_processes % self.accumulate:
            raise ValueError(
                f"sequence.accumulate: found {self.accumulate}, expected a divisor of num_shards / num_processes "
                f"({self.num_shards // self.num_processes})"
            )
        if self.batch_rows % self.num_shards:
            raise ValueError(
                f"sequence.batch_rows: found {self.batch_rows}, expected a multiple of num_shards ({self.num_shards})"
            )
        if self.dim % self.num_heads:
            raise ValueError(f"sequence.dim: found {self.dim}, expected a multiple of num_heads ({self.num_heads})")
        if self.positions == "rotary" and self.dim // self.num_heads % 2:
            raise ValueError(
                f"sequence.dim: found {self.dim}, expected an even multiple of num_heads ({self.num_heads}) for rotary positions"
            )
        return self
