"""What the page shows: small typed rows, free of Spark, so that a page can be made of hand-made ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from pyspark.sql import Row

from xrec.runs.ledger import StageRun
from xrec.sequence.progress import Epoch


@dataclass(frozen=True, kw_only=True)
class Count:
    """How many rows there are of something."""

    name: str
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """From the rows that were read to the events that count."""

    steps: Sequence[Count]
    """Each is a part of the one before it."""
    set_aside: Sequence[Count]
    """Rows by the reason why they are not in the last step, most first; a row may have several reasons."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A category's part of a fold's training rows."""

    category: str
    num_events: int
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the training of a sequence model on a fold went."""

    model: str
    fold: str
    best: int
    """The epoch whose weights count."""
    epochs: Sequence[Epoch]


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Pairs (user, item) from the users' main category to the items' category."""

    main_category: str
    category: str
    num_shown: int
    num_targets: int
    num_hits: int


@dataclass(frozen=True, kw_only=True)
class Flows:
    """From where to where the lists of one model lead."""

    model: str
    slice_name: str
    k: int
    cells: Sequence[Flow]
    """Pairs of the categories below; a pair that is not there was neither shown nor wanted."""
    main_categories: Sequence[str]
    """The most frequent ones, most shown first, as are the ``categories``."""
    categories: Sequence[str]
    num_shown: Mapping[str, int]
    """By main category: all that its users were shown."""
    biggest: Sequence[Flow]
    """The pairs that were shown most, of all."""
    has_targets: bool = True
    """Whether it is known what was bought; of lists that serve it is not."""


@dataclass(frozen=True, kw_only=True)
class Customer:
    """A customer's history before as-of and his list."""

    user_id: str
    num_touched: int
    heaviest: Sequence[tuple[str, float]]
    """Categories and their shares of his weight."""
    purchases: Sequence[tuple[date, str, str]]
    """The items that he had last: day, item and category."""
    items: Sequence[tuple[int, str, str, str]]
    """His list: rank, item, category and reason."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a page shows. A part that is None or empty has a line in ``missing`` that says which stage makes it."""

    title: str
    fold: str
    fold_text: str
    """What the fold is, in words."""
    is_select: bool
    """Whether the judged folds choose settings, so that no figure of theirs is one to report."""
    run_id: str
    """The run that judged, empty where none did."""
    served: str
    """The source whose lists go out."""
    scope: str
    """The scope of the lists that go out."""
    k: int
    missing: Mapping[str, str]
    cleaning: Cleaning | None = None
    shares: Sequence[Share] = ()
    trainings: Sequence[Training] = ()
    metrics: Sequence[Row] = ()
    """Rows of ``metrics`` at rank k: of all folds together, or where there was one, of it."""
    reliability: Sequence[Row] = ()
    """Rows of ``reliability`` of the judging run, by model, then bin."""
    flows: Flows | None = None
    customers: Sequence[Customer] = ()
    looks: Sequence[Row] = ()
    trials: Sequence[Row] = ()
    blend: Sequence[Row] = ()
    serving: Sequence[Row] = ()
    """Rows of ``serving_models`` of the fold and scope, the best first; one is chosen."""
    stages: Sequence[StageRun] = ()
    versions: Mapping[str, int] | None = None
    packages: Mapping[str, str] | None = None
    settings: Sequence[tuple[str, str]] = ()
    """Key and value, the key with dots."""
