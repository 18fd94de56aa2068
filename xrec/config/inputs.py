"""Settings of what comes in and where it is kept: storage, logs, identity, privacy, users, catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from xrec.config.base import Count, Frozen, Name, Place, Positive, Share


class Storage(Frozen):
    """Where the tables live: a path, or a schema of a catalog."""

    root: Place | None = None
    """Folder or URL of the tables (local, hdfs://, s3a://, abfss://); default: warehouse/<name of the --config file>, \
where there is one alone. Ignored for tables where `catalog` is set."""
    catalog: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?$")] | None = None
    """Schema that holds the tables instead of `root`, such as main.xrec."""
    artifacts: Place | None = None
    """Folder or URL of checkpoints and model files; default: <root>/_artifacts. Needed where `catalog` is set."""
    retention_days: Count = 30
    """Days that old versions of a table stay readable."""
    keep_runs: Count = 7
    """Newest runs whose folds stay when `jobs/clean_up.py` removes those of earlier ones."""

    @model_validator(mode="after")
    def _complete(self) -> Storage:
        if self.catalog is None and not self.root:
            raise ValueError(
                "storage.root: found nothing, expected a folder or URL (or set storage.catalog); only one --config file alone "
                "gives it a default, because several shops may have one of several files in common"
            )
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


class TimeFormat(Frozen):
    """How the log writes its times."""

    unit: Literal["text", "s", "ms", "us", "ns", "order"] = "text"
    """text: a date and time (see `format`); s, ms, us, ns: since 1970-01-01 UTC; order: a row order, oldest smallest, where \
the log has no time: position n becomes n seconds after 1970-01-01."""
    format: str | None = None
    """Spark date-time pattern of a text, such as yyyy-MM-dd HH:mm:ss; default: ISO 8601."""
    zone: str = "UTC"
    """Time zone of texts that carry none, as Region/City. A timestamp of Parquet or Delta is an instant already, and a date \
without a time of day is that day's 00:00 UTC in every zone."""
    earliest: date = date(1970, 1, 1)
    """Day (UTC) before which no event can be: a row of an earlier one is rejected, like one of the day after tomorrow."""


class File(Frozen):
    """A file or table and how to read it."""

    path: Place
    """File, folder, glob or URL; `package:NAME/FILE` is a file inside an installed Python package."""
    format: Literal["csv", "tsv", "jsonl", "parquet", "delta"]
    """csv, tsv (plain, .gz or .bz2), jsonl (one object a line), parquet, delta."""
    options: dict[str, str] = {}
    """Options of Spark's reader, such as sep, header, quote, encoding, nullValue."""
    files: tuple[Place, ...] = ()
    """Of a folder, these files alone (full paths or URLs); default: all."""


class LogColumns(Frozen):
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


class Log(Frozen):
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
    """Share of rejected rows, each of equal ones counted, above which ingest stops with a report and writes nothing."""
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


class OptOuts(Frozen):
    """A list of users who are neither learned from nor recommended to."""

    file: File
    user_id: str
    """Column of the user's key: as in the log, or the person's of `identity`."""
    platform: str | None = None
    """Column of the platform whose key it is (empty: the key is the person's); without it a row holds for the person of this key \
and for this key on every platform."""


class Identity(Frozen):
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


class Privacy(Frozen):
    """What the tables know of persons."""

    pseudonymise: bool = False
    """Users enter as the HMAC-SHA-256 of their key; the quarantine then keeps the mapped fields alone."""
    key: Annotated[str, Field(pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+)$")] = "env:XREC_PSEUDONYM_KEY"
    """Where the secret is: env:NAME (an environment variable of the driver) or file:/PATH (a mounted secret)."""
    opt_outs: OptOuts | None = None
    """Everybody who opted out, in each run anew; they are left out from this run on. Without it the last list stays in force."""

    def without_key(self, environment: Mapping[str, str]) -> dict[str, str]:
        """An environment for processes that are given no names of users: all of it but the variable that holds the secret."""
        return {name: value for name, value in environment.items() if f"env:{name}" != self.key}


class Attribute(Frozen):
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


class Users(Frozen):
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


class Catalogue(Frozen):
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


def _absolute(place: str) -> str:
    return place if "://" in place or place.startswith(("/", "dbfs:", "file:")) else str(Path(place).resolve())
