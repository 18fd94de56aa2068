"""Typed, frozen settings from YAML files and ``--set key=value``.

Every key is a field of one of the sections, with its type, default, unit and bounds; an unknown key or a bad value is a
:class:`SettingsError` that names the key. OmegaConf reads and merges, pydantic checks.
"""

from xrec.config.base import SettingsError
from xrec.config.experiment import Experiment, ExposureColumns, Exposures, Feedback
from xrec.config.filters import (
    AS_OF,
    ITEM,
    USER,
    BlockedPairs,
    FilterAttribute,
    Filters,
    ItemFeed,
    UserFeed,
    attributes_in,
)
from xrec.config.inputs import (
    Attribute,
    Catalogue,
    File,
    Identity,
    Log,
    LogColumns,
    OptOuts,
    Privacy,
    Storage,
    TimeFormat,
    Users,
)
from xrec.config.learning import Balance, Categories, Evaluation, Folds, LogRules, Outliers, Persons, Weights
from xrec.config.loading import (
    DEFAULT_CONFIG,
    add_arguments,
    as_arguments,
    as_yaml,
    change_settings,
    describe,
    load_settings,
)
from xrec.config.publish import Publish
from xrec.config.ranking import TREND, Ranker, Ranking
from xrec.config.sequences import ItemVectors, Sequence
from xrec.config.settings import Settings
from xrec.config.sources import Als, Content, Ease, ItemKnn, Transitions, Trend, UserKnn
from xrec.config.tracking import Tracking
from xrec.config.tuning import Tuning

__all__ = [
    "AS_OF",
    "DEFAULT_CONFIG",
    "ITEM",
    "TREND",
    "USER",
    "Als",
    "Attribute",
    "Balance",
    "BlockedPairs",
    "Catalogue",
    "Categories",
    "Content",
    "Ease",
    "Evaluation",
    "Experiment",
    "ExposureColumns",
    "Exposures",
    "Feedback",
    "File",
    "FilterAttribute",
    "Filters",
    "Folds",
    "Identity",
    "ItemFeed",
    "ItemKnn",
    "ItemVectors",
    "Log",
    "LogColumns",
    "LogRules",
    "OptOuts",
    "Outliers",
    "Persons",
    "Privacy",
    "Publish",
    "Ranker",
    "Ranking",
    "Sequence",
    "Settings",
    "SettingsError",
    "Storage",
    "TimeFormat",
    "Tracking",
    "Transitions",
    "Trend",
    "Tuning",
    "UserFeed",
    "UserKnn",
    "Users",
    "Weights",
    "add_arguments",
    "as_arguments",
    "as_yaml",
    "attributes_in",
    "change_settings",
    "describe",
    "load_settings",
]
