"""Settings of the filters: what must not be recommended, as data of the shop and as expressions over it."""

from __future__ import annotations

import re
from collections import abc
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from xrec.config.base import Count, Frozen, Name
from xrec.config.inputs import File

ITEM, USER, AS_OF = "item", "user", "as_of"
"""What a rule may name: attributes of the item, attributes of the user, and the time that the lists are made for."""

_STRINGS = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_NAMED = re.compile(rf"(?<![.\w])(?P<side>{ITEM}|{USER})\b(?:\s*\.\s*`?(?P<name>\w+))?", re.IGNORECASE)
_CLOCKS = re.compile(
    r"(?<![.\w])(current_date|current_timestamp|current_time|curdate|localtimestamp|now|unix_timestamp(?=\s*\(\s*\))|select)\b",
    re.IGNORECASE,
)
_DAYS = re.compile(
    r"""(?<![.\w])(?:date|timestamp\w*)\s*(['"])\s*(?:now|today|tomorrow|yesterday)\b[^'"]*\1""", re.IGNORECASE
)
"""Literals that Spark reads by the clock, such as date'today'."""


class FilterAttribute(Frozen):
    """An attribute that a rule may name."""

    column: str
    """Column of the file."""
    type: Literal["string", "number", "bool", "date"] = "string"
    """What its values are: a number has a decimal point, a bool is true or false (1 or 0, yes or no), a date yyyy-MM-dd."""
    format: str | None = None
    """Spark date pattern of a date that is written otherwise, such as dd.MM.yyyy."""

    @model_validator(mode="after")
    def _of_a_date(self) -> FilterAttribute:
        if self.format and self.type != "date":
            raise ValueError(
                f"filters: found format '{self.format}' beside type {self.type}, expected it beside type date"
            )
        return self


class ItemFeed(Frozen):
    """The shop's file of what the items are today."""

    file: File
    item_id: str
    """Column of the item's key, as in the log."""
    attributes: dict[Name, FilterAttribute] = Field(min_length=1)
    """Each attribute by the name that rules call it: its `column` and `type`."""


class UserFeed(Frozen):
    """The shop's file of what concerns the users, where `users.attributes` is too coarse."""

    file: File
    user_id: str
    """Column of the user's key."""
    platform: str | None = None
    """Column of the platform whose key it is; without it the key is the one that the lists have."""
    attributes: dict[Name, FilterAttribute] = Field(min_length=1)
    """Each attribute by the name that rules call it: its `column` and `type`."""


class BlockedPairs(Frozen):
    """The shop's file of what single users must not get."""

    file: File
    user_id: str
    """Column of the user's key."""
    item_id: str
    """Column of the item's key, as in the log."""
    platform: str | None = None
    """Column of the platform whose key it is; without it the key is the one that the lists have."""


class Filters(Frozen):
    """What must not be recommended: every rule holds for every row of the lists, and no row is a blocked pair."""

    items: ItemFeed | None = None
    users: UserFeed | None = None
    blocked: BlockedPairs | None = None
    rules: dict[Name, str] = {}
    """By name, Spark SQL expressions that hold for what may be recommended, over item.<attribute>, user.<attribute> (of \
`filters.users` or of `users`) and as_of (a timestamp), such as item.in_stock, or item.min_age <= user.age."""
    unknown_passes: bool = False
    """Whether a rule without a result (null: the feed lacks the item, the user or the value) lets the item through."""
    backtests: bool = False
    """Whether backtests and the older folds that choose what serves are filtered too: by today's feeds, which tell them what \
was not known then."""
    max_classes: Count = 2000
    """Combinations of values, of the items and of the users, that the rules on both may tell apart."""

    @model_validator(mode="after")
    def _says_something(self) -> Filters:
        if not self.rules and self.blocked is None:
            raise ValueError("filters: found neither rules nor blocked pairs, expected one of them at least")
        for name, text in self.rules.items():
            if found := _CLOCKS.search(_STRINGS.sub("''", text)) or _DAYS.search(text):
                raise ValueError(
                    f"filters.rules.{name}: found {found[0]}, expected item.<attribute>, user.<attribute> and {AS_OF} alone: the "
                    "same lists must pass on every run"
                )
        return self

    def check_names(self, of_users: abc.Collection[str]) -> None:
        """Raise ValueError where a rule names what neither feed nor ``users.attributes`` (``of_users``) has."""
        own = () if self.users is None else self.users.attributes
        if twice := sorted(set(own) & set(of_users)):
            raise ValueError(
                f"filters.users.attributes: found {twice[0]}, which users.attributes has too, expected another name for one of them"
            )
        known = {ITEM: () if self.items is None else self.items.attributes, USER: (*own, *of_users)}
        keys = {ITEM: "filters.items.attributes", USER: "filters.users.attributes and users.attributes"}
        for rule, text in self.rules.items():
            for side, name in _mentions(text):
                if name not in known[side]:
                    there = ", ".join(sorted(known[side])) or "none"
                    raise ValueError(
                        f"filters.rules.{rule}: found {side}{'.' + name if name else ''}, expected {side}.<attribute> with one of "
                        f"{keys[side]} ({there})"
                    )


class Mentioned(NamedTuple):
    """The attributes that a rule names, each once, by name."""

    of_item: tuple[str, ...]
    of_user: tuple[str, ...]


def attributes_in(rule: str) -> Mentioned:
    """The attributes that a rule names.

    >>> attributes_in("item.min_age <= user.age and item.kind <> 'item.x'")
    Mentioned(of_item=('kind', 'min_age'), of_user=('age',))
    """
    found = _mentions(rule)
    of_item, of_user = (tuple(sorted({name for side, name in found if side == wanted})) for wanted in (ITEM, USER))
    return Mentioned(of_item, of_user)


def _mentions(rule: str) -> list[tuple[str, str]]:
    """(item or user, attribute) as the rule names them; an empty attribute where it takes the whole."""
    text = _STRINGS.sub("''", rule)
    return [(match["side"].lower(), match["name"] or "") for match in _NAMED.finditer(text)]
