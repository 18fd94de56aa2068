"""The rules of ``filters`` as expressions: which attributes each names, and what Spark says of it before anything runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec.config import AS_OF, ITEM, USER, FilterAttribute, Filters, Settings, SettingsError, attributes_in

_TYPES = {"string": "string", "number": "double", "bool": "boolean", "date": "date"}
_REASON = "AGGREGATE_FUNCTION_WITH_NONDETERMINISTIC_EXPRESSION"
# PySpark logs each refusal with a page of Java, beside the sentence that we say.
_REFUSALS = logging.getLogger("SQLQueryContextLogger")

Kinds = Mapping[str, str]
"""Spark type of each attribute."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule, with the attributes that it names."""

    name: str
    text: str
    of_item: tuple[str, ...]
    of_user: tuple[str, ...]


def rules_of(filters: Filters) -> tuple[Rule, ...]:
    """The rules of the settings."""
    return tuple(Rule(name=name, text=text, **attributes_in(text)._asdict()) for name, text in filters.rules.items())


def items_alone(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules that do not look at the user."""
    return tuple(rule for rule in rules if not rule.of_user)


def both_sides(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules that look at the user."""
    return tuple(rule for rule in rules if rule.of_user)


def kinds_of(settings: Settings, filters: Filters) -> dict[str, Kinds]:
    """The attributes that rules may name, of ``item`` and of ``user``; those of ``users`` are strings."""
    of_users: dict[str, str] = {} if settings.users is None else dict.fromkeys(settings.users.attributes, "string")
    feeds = {ITEM: filters.items, USER: filters.users}
    own = {
        side: {} if feed is None else {name: kind_of(attribute) for name, attribute in feed.attributes.items()}
        for side, feed in feeds.items()
    }
    return {ITEM: own[ITEM], USER: own[USER] | of_users}


def kind_of(attribute: FilterAttribute) -> str:
    """An attribute's Spark type."""
    return _TYPES[attribute.type]


def holds(rule: Rule) -> Column:
    """A rule, over rows of ``item``, ``user`` and ``as_of``; null where what it asks is unknown."""
    return F.expr(f"({rule.text}\n)")  # the line's end also ends a comment


def check_rules(spark: SparkSession, settings: Settings, filters: Filters) -> None:
    """Raise SettingsError where a rule is no expression, has no yes or no as its result, or another one on each run.

    Spark is asked with an empty table of the attributes that the rule names, so that it sees no others.
    """
    kinds = kinds_of(settings, filters)
    level = _REFUSALS.level
    _REFUSALS.setLevel(logging.CRITICAL)
    try:
        for rule in rules_of(filters):
            named = {ITEM: rule.of_item, USER: rule.of_user}
            structs = [
                f"{side} struct<{', '.join(f'{name}: {kinds[side][name]}' for name in names)}>"
                for side, names in named.items()
                if names
            ]
            nothing = spark.createDataFrame([], ", ".join([*structs, f"{AS_OF} timestamp"]))
            _check_rule(rule, nothing, kinds)
    finally:
        _REFUSALS.setLevel(level)


def _check_rule(rule: Rule, nothing: DataFrame, kinds: Mapping[str, Kinds]) -> None:
    there = "; ".join(f"{side}: {', '.join(sorted(names)) or 'none'}" for side, names in kinds.items())
    found = f"filters.rules.{rule.name}: found '{rule.text}', expected a Spark SQL expression over known attributes ({there})"
    try:
        kind = nothing.select(holds(rule)).schema[0].dataType.simpleString()
        if kind != "boolean":
            raise SettingsError(f"{found} with a boolean result, not {kind}")
        # Spark refuses what differs from run to run, and what needs other rows, as the argument of a sum.
        nothing.agg(F.count(holds(rule))).schema  # noqa: B018 - asks for the analysis
    except (AnalysisException, ParseException) as error:
        if error.getCondition() == _REASON:
            raise SettingsError(f"{found} with the same result on every run") from None
        reason = str(error).strip().split("\n")[0].split(" SQLSTATE")[0].split("] ", 1)[-1]
        raise SettingsError(f"{found} and {AS_OF}: {reason}") from None
