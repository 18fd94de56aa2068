"""Typed, frozen settings from YAML files and ``--set key=value``.

Every key is a field below, with its type, default, unit and bounds; an unknown key or a bad value is a
:class:`SettingsError` that names the key. OmegaConf reads and merges, pydantic checks.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
from collections import abc
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from yaml import YAMLError

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "conf" / "complete_journey.yaml"

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class SettingsError(ValueError):
    """Settings that xrec cannot run with; the message names the key, the value and what was expected."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        lists = [name for name, field in cls.model_fields.items() if get_origin(field.annotation) is tuple]
        ones = {name: [values[name]] for name in lists if isinstance(values.get(name), str | int | float)}
        return {**values, **ones}


class Storage(_Frozen):
    """Where the tables live: a path, or a schema of a catalog."""

    root: str | None = None
    """Folder or URL of the tables (local, hdfs://, s3a://, abfss://); default: warehouse/<name of the first --config file>. \
Ignored for tables where `catalog` is set."""
    catalog: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?$")] | None = None
    """Schema that holds the tables instead of `root`, such as main.xrec."""
    artifacts: str | None = None
    """Folder or URL of checkpoints and model files; default: <root>/_artifacts. Needed where `catalog` is set."""
    retention_days: Count = 30
    """Days that old versions of a table stay readable."""

    @model_validator(mode="after")
    def _complete(self) -> Storage:
        if self.catalog is None and not self.root:
            raise ValueError("storage.root: found nothing, expected a folder or URL (or set storage.catalog)")
        if self.catalog is not None and not self.artifacts:
            raise ValueError("storage.artifacts: found nothing, expected a folder or URL beside storage.catalog")
        return self

    @property
    def tables_root(self) -> str:
        """The folder or URL of the tables; a relative folder counts from the working directory, on the local disk."""
        return _absolute(self.root or "")

    @property
    def artifacts_root(self) -> str:
        """The folder or URL of checkpoints and model files."""
        return _absolute(self.artifacts) if self.artifacts else f"{self.tables_root}/_artifacts"


class TimeFormat(_Frozen):
    """How the log writes its times."""

    unit: Literal["text", "s", "ms", "us", "ns", "order"] = "text"
    """text: a date and time (see `format`); s, ms, us, ns: since 1970-01-01 UTC; order: a row order, oldest smallest, where \
the log has no time: position n becomes n seconds after 1970-01-01."""
    format: str | None = None
    """Spark date-time pattern of a text, such as yyyy-MM-dd HH:mm:ss; default: ISO 8601."""
    zone: str = "UTC"
    """Time zone of texts that carry none, as Region/City."""
    earliest: date = date(1970, 1, 1)
    """Day (UTC) before which no event can be: a row of an earlier one is rejected, like one of the day after tomorrow."""


class File(_Frozen):
    """A file or table and how to read it."""

    path: str
    """File, folder, glob or URL; `package:NAME/FILE` is a file inside an installed Python package."""
    format: Literal["csv", "tsv", "jsonl", "parquet", "delta"]
    """csv, tsv (plain, .gz or .bz2), jsonl (one object a line), parquet, delta."""
    options: dict[str, str] = {}
    """Options of Spark's reader, such as sep, header, quote, encoding, nullValue."""
    files: tuple[str, ...] = ()
    """Of a folder, these files alone (full paths or URLs); default: all."""


class LogColumns(_Frozen):
    """The log's columns: our word on the left, the log's name on the right."""

    user_id: str
    """Column of the user's key."""
    item_id: str
    """Column of the item's key."""
    event_ts: str
    """Column of the time (or of the order, see time.unit)."""
    event_type: str | None = None
    """Column of the action; without it every row is a `log.event_type`."""
    quantity: str | None = None
    """Column of the quantity, in units."""
    price: str | None = None
    """Column of the price or line value, in the log's currency."""


class Log(_Frozen):
    """The event log, or that of one platform."""

    platform: Name = "main"
    """Name of the platform that the log comes from; of several, their names under `platforms`."""
    file: File
    columns: LogColumns
    time: TimeFormat = TimeFormat()
    event_type: str = "purchase"
    """The action of every row of a log without such a column."""
    event_types: dict[str, str] = {}
    """The log's words for actions, to ours (view, cart, purchase, ...); empty: they are ours already."""
    negative: Literal["return", "reject"] = "return"
    """A purchase of a negative quantity (or of a negative price, where no quantity is given): it is a return, or rejected."""
    max_key_length: Count = 256
    """Characters beyond which a user's or item's key is rejected: it is no key, but a line that went wrong."""
    max_quantity: Positive = 1e6
    """Units beyond which a row is rejected."""
    max_price: Positive = 1e8
    """Price or line value, in the log's currency, beyond which a row is rejected."""
    price_rate: Positive = 1.0
    """What one unit of the log's currency is worth in the currency of the tables."""
    max_rejected_share: Share = 0.5
    """Share of rejected rows above which ingest stops with a report and writes nothing."""
    layout_may_change: bool = False
    """Whether columns of the delivery before may be missing now (in jsonl they may) or have another type; else the run stops."""
    delivery_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "full"
    """Name of this delivery; loading it again replaces its rows only."""
    landing: bool = False
    """Whether file.path is a folder where files land: those that came since the last run are a delivery of their own, whose \
name begins with delivery_id."""
    landing_files: Count = 1000
    """Files of a landing folder that make one delivery, at most."""

    @model_validator(mode="after")
    def _lands_as_files(self) -> Log:
        if self.landing and self.file.format == "delta":
            raise ValueError("log.landing: found true beside format delta, expected files (csv, tsv, jsonl or parquet)")
        return self


class OptOuts(_Frozen):
    """A list of users who are neither learned from nor recommended to."""

    file: File
    user_id: str
    """Column of the user's key: as in the log, or the person's of `identity`."""
    platform: str | None = None
    """Column of the platform whose key it is; without it the key is the one that the lists have."""


class Identity(_Frozen):
    """Who is the same person on several platforms."""

    file: File | None = None
    """A table of (platform, user's key there, person); without it the last one stays in force."""
    platform: str | None = None
    """Column of the platform's name; without it a row holds for all platforms."""
    user_id: str = "user_id"
    """Column of the user's key on the platform."""
    person: str = "person_id"
    """Column of the person's key."""
    valid_from: str | None = None
    """Column of the time from which the row holds; without it, always."""
    time: TimeFormat = TimeFormat()
    """How `valid_from` is written."""
    shared_ids: bool = False
    """Whether a key is the same person on every platform; else a user of several platforms without a person is platform:key."""


class Privacy(_Frozen):
    """What the tables know of persons."""

    pseudonymise: bool = False
    """Users enter as the HMAC-SHA-256 of their key; the quarantine then keeps the mapped fields alone."""
    key: Annotated[str, Field(pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+)$")] = "env:XREC_PSEUDONYM_KEY"
    """Where the secret is: env:NAME (an environment variable of the driver) or file:/PATH (a mounted secret)."""
    opt_outs: OptOuts | None = None
    """Everybody who opted out, in each run anew; they are left out from this run on. Without it the last list stays in force."""


class Attribute(_Frozen):
    """An attribute of users, and how coarse it enters."""

    column: str
    """Column of the users' file."""
    bands: tuple[float, ...] = ()
    """Where the bands of a number begin, ascending: [25, 45, 65] makes below 25, 25 to below 45, ..., 65 and above."""
    first_characters: Count | None = None
    """How many first characters of a code stay, such as 2 of a postcode."""

    @model_validator(mode="after")
    def _one_form(self) -> Attribute:
        if self.bands and self.first_characters:
            raise ValueError("users.attributes: found bands and first_characters, expected one of them")
        if list(self.bands) != sorted(set(self.bands)):
            raise ValueError(f"users.attributes: found bands {list(self.bands)}, expected ascending numbers")
        return self


class Users(_Frozen):
    """A file of what is known of users: only the attributes that are named here enter."""

    file: File
    user_id: str
    """Column of the user's key."""
    platform: str | None = None
    """Column of the platform whose key it is; without it the key is the one that the lists have."""
    attributes: dict[Name, Attribute] = Field(min_length=1)
    """Each attribute by its name: its `column`, and `bands` (of a number) or `first_characters` (of a code), else as it stands."""
    min_users: Count = 10
    """A value that fewer users have becomes `other`; it would point at persons."""


class Catalogue(_Frozen):
    """The item catalogue: a file of its own, or columns of the log."""

    file: File | None = None
    """The catalogue's file; without it the columns are taken from the log."""
    item_id: str | None = None
    """Column of the item's key; default: the log's."""
    category: tuple[str, ...] = Field(min_length=1)
    """Columns that make the category path, from the root down."""
    separator: str | None = None
    """Splits one category column into a path, such as `.` in electronics.audio.headphone."""
    prefix_lengths: tuple[Count, ...] = ()
    """Cuts one category code into a path by its first characters, such as [2, 4, 6]."""
    list_separator: str | None = None
    """Splits one category column into several categories of the item, such as `|` in Comedy|Drama."""
    list_of: Literal["levels", "categories"] | None = None
    """What a list in the category column (JSON, Parquet) holds: the levels of one path, or several categories of the item."""
    label: tuple[str, ...] = ()
    """Columns that name the item for people."""
    updated_ts: str | None = None
    """Column of when a row was written: an item with several categories has the latest; default: the log's time, where the \
catalogue is columns of the log."""
    time: TimeFormat = TimeFormat()
    """How `updated_ts` is written."""

    @model_validator(mode="after")
    def _one_path(self) -> Catalogue:
        splits = (self.separator, self.prefix_lengths, self.list_separator, self.list_of)
        if any(splits) and len(self.category) > 1:
            raise ValueError(
                "catalogue.category: found several columns, expected one with separator, prefix_lengths, list_separator or "
                "list_of"
            )
        if self.separator and self.prefix_lengths:
            raise ValueError("catalogue: found separator and prefix_lengths, expected one of them")
        return self


class Categories(_Frozen):
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


class Folds(_Frozen):
    """What is learned from and what is judged by."""

    kind: Literal["time", "last_out"] = "time"
    """time: events before as_of are history; last_out: each user's last event is the target (for benchmark parity)."""
    purpose: Literal["test", "serve"] = "test"
    """test: a backtest, judged by its horizon; serve: the lists that go out, judged later."""
    as_of: str = "latest"
    """Date or time (ISO 8601, UTC) before which events are history; latest: just after the last event."""
    horizon: Annotated[timedelta, Field(gt=timedelta(0))] = timedelta(days=61)
    """Time after as_of that judges the lists, as ISO 8601 duration (P61D, PT45M)."""
    num_select: Annotated[int, Field(ge=0, le=12)] = 1
    """Older folds, one horizon apart, that choose the blend's weights."""


class Weights(_Frozen):
    """How much an event says."""

    event_types: dict[str, Positive] = {"purchase": 1.0}
    """Weight of each action; an action that is not listed is rejected as unknown."""
    half_life_days: Positive | None = None
    """Days after which an event weighs half, measured back from as-of; default: no decay."""
    quantity_power: Share = 0.0
    """The weight is multiplied by the quantity, outliers drawn in, to this power; 0: off, and so is an unknown quantity."""


class Outliers(_Frozen):
    """Quantities and prices far from the others of their item: features take the nearest limit, the events stay as they are."""

    fence: Positive = 3.0
    """How far beyond the quartiles of the logarithms a limit lies, in their distance (Tukey 1977: 3)."""
    least_ratio: Annotated[float, Field(gt=1)] = 2.0
    """Ratio of the quartiles that is assumed at least: where most buy one, two are no outlier."""
    min_events: Count = 20
    """Values that an item needs for limits of its own; below, its category's hold, and where that has fewer, none."""


class LogRules(_Frozen):
    """What only the whole log can decide; rules that need a clock are off where log.time.unit is order."""

    repeat_seconds: Annotated[float, Field(ge=0)] = 2.0
    """The same action again within so many seconds is a repeat (double click, retry); 0: off."""
    return_days: Annotated[float, Field(ge=0)] = 90.0
    """Days within which a return takes back a purchase of the same user and item."""
    session_gap_minutes: Positive = 30.0
    """Minutes without an event that end a session."""


class Persons(_Frozen):
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


class Balance(_Frozen):
    """Balancing of the training rows."""

    alpha: Share = 1.0
    """A category's share is proportional to its count to this power; 1 is off."""
    user_alpha: Share = 1.0
    """A user's share is proportional to his number of rows to this power; 1 is off, 0 gives all users the same."""
    min_rows: Annotated[int, Field(ge=0)] = 0
    """Rows that a category of the long tail counts as at least, within max_repeat; 0 is off."""
    max_repeat: Annotated[float, Field(ge=1)] = 5.0
    """Largest factor by which a row may be repeated or up-weighted."""


class Als(_Frozen):
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


class Sequence(_Frozen):
    """Export and training of the sequence models."""

    length: Count = 50
    """Events a window."""
    max_windows: Count = 12
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
    targets: Literal["all", "first"] = "first"
    """Events that the models learn to foretell: all, or first: the first of each (user, item), so that no repeats count."""
    dim: Count = 64
    """Length of the embeddings and vectors."""
    num_layers: Count = 1
    """Blocks (Transformer) or layers (GRU)."""
    num_heads: Count = 2
    """Attention heads of the Transformer."""
    dropout: Share = 0.5
    """Dropout."""
    num_negatives: Count = 512
    """Negatives a step, shared by its rows, drawn from the training targets' distribution, logQ-corrected."""
    batch_rows: Count = 128
    """Rows (windows) a global step, over all processes; a multiple of num_shards."""
    epochs: Count = 6
    """Passes over the training windows."""
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


class ItemKnn(_Frozen):
    """Cosine neighbours of items (Sarwar et al. 2001)."""

    num_neighbours: Count = 100
    """Neighbours kept an item."""
    max_items_per_user: Count = 500
    """A user's heaviest interactions that count."""
    shrinkage: Annotated[float, Field(ge=0)] = 10.0
    """Added to the denominator: fewer common users, less similarity."""
    max_nonzeros: Count = 50_000_000
    """Interactions that one task may hold; more is an error (12 bytes each)."""


class Ranking(_Frozen):
    """Candidates, blend and lists."""

    scope: Literal["touched", "home"] = "touched"
    """Categories that are excluded from a user's list: touched (strict) or home (softer)."""
    top_k: Count = 20
    """Length of a list."""
    candidates_per_source: Count = 100
    """Candidates that each source proposes a user."""
    sources: tuple[Literal["popularity", "recent", "item_knn", "als", "gru", "transformer"], ...] = (
        "popularity",
        "als",
        "gru",
        "transformer",
    )
    """Sources that are blended."""
    recent_days: Positive = 28.0
    """Days before as-of whose buyers the source `recent` counts; on a log without a clock (time.unit order) it means nothing."""
    fusion_constant: Positive = 20.0
    """c of reciprocal-rank fusion: a source's vote is 1 / (c + rank) (Cormack et al. 2009)."""
    weight_step: Literal["0.5", "0.25", "0.2", "0.1"] = "0.1"
    """Grid step of the blend's weights."""
    tile_users: Count = 512
    """Users a tile of the top-K kernel."""
    tile_items: Count = 8192
    """Items a tile of the top-K kernel: tile_users x tile_items x 4 bytes bounds a task's scores."""


class Evaluation(_Frozen):
    """Figures and intervals."""

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


class Settings(_Frozen):
    """All settings of a run."""

    storage: Storage
    log: Log
    platforms: dict[Name, Log] = {}
    """Several platforms, each with the keys of `log` that are its own; the others are taken from `log`."""
    identity: Identity = Identity()
    catalogue: Catalogue
    privacy: Privacy = Privacy()
    users: Users | None = None
    categories: Categories = Categories()
    folds: Folds = Folds()
    weights: Weights = Weights()
    outliers: Outliers = Outliers()
    log_rules: LogRules = LogRules()
    persons: Persons = Persons()
    balance: Balance = Balance()
    als: Als = Als()
    sequence: Sequence = Sequence()
    item_knn: ItemKnn = ItemKnn()
    ranking: Ranking = Ranking()
    evaluation: Evaluation = Evaluation()
    seed: int = 20171101
    """Seed of everything that is drawn; 0 is a seed."""
    num_buckets: Count = 16
    """Hash buckets of the index dictionaries."""

    @model_validator(mode="before")
    @classmethod
    def _log_of_each_platform(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("platforms"), dict) or not values["platforms"]:
            return values
        common = values.get("log") or {}
        logs = {name: {**_merged(common, own or {}), "platform": name} for name, own in values["platforms"].items()}
        return {**values, "platforms": logs, "log": next(iter(logs.values()))}

    @model_validator(mode="after")
    def _one_clock(self) -> Settings:
        units = {name: log.time.unit == "order" for name, log in self.platforms.items()}
        if len(set(units.values())) > 1:
            ordered = next(name for name, is_order in units.items() if is_order)
            raise ValueError(
                f"platforms.{ordered}.time.unit: found order beside platforms with a clock, expected all of them or none"
            )
        return self

    @property
    def sources(self) -> list[Settings]:
        """The settings of each platform's log: these settings with ``log`` as that one."""
        return [self.model_copy(update={"log": log}) for log in self.platforms.values()] or [self]

    @model_validator(mode="after")
    def _known_events(self) -> Settings:
        for event_type in self.categories.counting_events:
            if event_type not in self.weights.event_types:
                raise ValueError(
                    f"categories.counting_events: found '{event_type}', expected one of weights.event_types "
                    f"({', '.join(self.weights.event_types)})"
                )
        return self

    @model_validator(mode="after")
    def _enough_candidates(self) -> Settings:
        proposed = self.ranking.candidates_per_source
        for key, length in (("ranking.top_k", self.ranking.top_k), ("evaluation.ks", max(self.evaluation.ks))):
            if length > proposed:
                raise ValueError(f"{key}: found {length}, expected at most ranking.candidates_per_source ({proposed})")
        return self

    def digest(self, *sections: str) -> str:
        """Ten hex digits that change when one of the sections (all by default) changes."""
        text = self.model_dump_json(include=set(sections) or None)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


def load_settings(files: abc.Sequence[str | Path] = (), overrides: abc.Sequence[str] = ()) -> Settings:
    """Settings from YAML files, later ones over earlier ones, and ``key=value`` overrides over both.

    Without a file the default log's settings (Complete Journey) are used.

    Raises
    ------
    SettingsError
        A file is missing or not YAML, a key is unknown (the nearest known one is named), or a value is out of bounds.
    """
    paths = [Path(file) for file in files or [DEFAULT_CONFIG]]
    # Two logs never meet in one folder because somebody forgot to name it.
    merged: Any = OmegaConf.create({"storage": {"root": f"warehouse/{paths[0].stem}"}})
    for path in paths:
        merged = OmegaConf.merge(merged, _read_yaml(path))
    for override in overrides:
        if "=" not in override:
            raise SettingsError(f"--set {override}: found no '=', expected key=value such as als.rank=32")
    try:
        merged = OmegaConf.merge(merged, OmegaConf.from_dotlist(list(overrides)))
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise SettingsError(f"settings: {error}") from None
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem) for problem in error.errors())) from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``, ``--set`` and a ``--help`` that lists every key with type, default and unit."""
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file of settings; repeatable, later ones win",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="one setting; repeatable"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        (parser.epilog or "") + "\n\nsettings (--set KEY=VALUE, or in a YAML file):\n" + "\n".join(describe())
    )


def describe() -> abc.Iterator[str]:
    """One line a settings key: name, type, default, meaning."""
    for key, kind, default, meaning in _fields(Settings, ""):
        yield f"  {key} ({kind}, default {default})\n      {meaning}"


def _fields(model: type[BaseModel], prefix: str) -> abc.Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        nested = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        section = next((kind for kind in nested if issubclass(kind, BaseModel)), None)
        if section is not None and get_origin(field.annotation) is not dict:
            yield from _fields(section, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else str(field.get_default(call_default_factory=True))
        yield f"{prefix}{name}", _type_name(field.annotation), default, " ".join((field.description or "").split())


def _type_name(annotation: Any) -> str:
    arguments = [argument for argument in get_args(annotation) if argument is not type(None)]
    if arguments and all(isinstance(argument, str) for argument in arguments):
        return " | ".join(arguments)
    name = getattr(annotation, "__name__", str(annotation))
    if name in {"Union", "UnionType", "Optional", "Annotated"} and arguments:
        return " | ".join(
            _type_name(argument) for argument in arguments if hasattr(argument, "__name__") or get_args(argument)
        )
    return f"{name} of {_type_name(arguments[-1] if name == 'dict' else arguments[0])}" if arguments else name


def _merged(base: abc.Mapping[str, Any], over: abc.Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the nested keys of ``over`` on top."""
    nested = {
        key: _merged(base[key], value)
        for key, value in over.items()
        if isinstance(value, abc.Mapping) and isinstance(base.get(key), abc.Mapping)
    }
    return {**base, **over, **nested}


def _absolute(place: str) -> str:
    return place if "://" in place or place.startswith(("/", "dbfs:", "file:")) else str(Path(place).resolve())


def _read_yaml(file: Path) -> Any:
    if not file.is_file():
        raise SettingsError(f"--config {file}: no such file; expected a YAML file such as conf/complete_journey.yaml")
    try:
        loaded = OmegaConf.load(file)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise SettingsError(f"--config {file}: not YAML: {error}") from None
    if not OmegaConf.is_dict(loaded):
        raise SettingsError(f"--config {file}: found a list, expected keys and values")
    return loaded


def _explain(problem: Any) -> str:
    """One validation problem as one sentence: key, value found, what was expected."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = [name for name, *_ in _fields(Settings, "")]
        known += sorted({name.rsplit(".", depth)[0] for name in known for depth in (1, 2) if name.count(".") >= depth})
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0)
        return f"{key}: unknown key; did you mean {nearest[0]}?"
    if problem["type"] == "missing":
        return f"{key}: found nothing, expected a value (see conf/ for examples)"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    found = problem["input"]
    shown = str(found) if isinstance(found, timedelta) else repr(found)
    return f"{key}: found {shown}, expected: {problem['msg']}"
