"""Attributes of users enter as coarse as the settings say, and no finer; what they do not name never enters."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pyspark.sql import SparkSession

from xrec.config import Attribute, Settings
from xrec.ingest.attributes import describe_attributes, load_attributes
from xrec.ingest.privacy import pseudonym
from xrec.ingest.reader import InputError

pytestmark = pytest.mark.spark

KEY = b"0123456789abcdef0123456789abcdef"
HEADER = "customer,born,post,tier"
PEOPLE = [
    "u01,17,01069,gold",
    "u02,25,01097,gold",
    "u03,44.5,01099,gold",
    "u04,45,20095,silver",
    "u05,46,20097,silver",
    "u06,90,20099,silver",
    "u07,unknown,,gold",
    "u08,30,99999,platinum",
    "u09,31,01067,secret one",
]


def settings_of(folder: Path, lines: list[str], **users: Any) -> Settings:
    (folder / "users.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    return Settings.model_validate(
        {
            "log": {
                "file": {"path": "x.csv", "format": "csv"},
                "columns": {"user_id": "u", "item_id": "i", "event_ts": "t"},
            },
            "catalogue": {"category": ["c"]},
            "storage": {"root": str(folder)},
            "users": {
                "file": {"path": str(folder / "users.csv"), "format": "csv"},
                "user_id": "customer",
                "min_users": 2,
                "attributes": {
                    "age": {"column": "born", "bands": [25, 45]},
                    "region": {"column": "post", "first_characters": 2},
                    "tier": {"column": "tier"},
                },
                **users,
            },
        }
    )


def load(spark: SparkSession, settings: Settings, key: bytes | None = None) -> dict[str, dict[str, str]]:
    loaded = load_attributes(spark, settings, key)
    assert loaded is not None
    attributes, _ = loaded
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for row in attributes.collect():
        found[row["attribute"]][row["user_id"]] = row["value"]
    return dict(found)


def test_numbers_become_bands_and_codes_lose_their_ends(spark: SparkSession, tmp_path: Path) -> None:
    found = load(spark, settings_of(tmp_path, PEOPLE))
    middle, old = "25 to below 45", "45 and above"
    assert found["age"] == {
        **dict.fromkeys(("u02", "u03", "u08", "u09"), middle),
        **dict.fromkeys(("u04", "u05", "u06"), old),
    }, "the only one below 25 is one alone: nothing of him enters"
    assert found["region"] == {
        **dict.fromkeys(("u01", "u02", "u03", "u09"), "01"),
        **dict.fromkeys(("u04", "u05", "u06"), "20"),
    }, "leading zeros stay; the only one of 99 is one alone"


def test_values_of_few_users_are_other(spark: SparkSession, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, PEOPLE)
    tiers = load(spark, settings)["tier"]
    assert (tiers["u08"], tiers["u09"]) == ("other", "other")
    assert sorted(set(tiers.values())) == ["gold", "other", "silver"]
    loaded = load_attributes(spark, settings, None)
    assert loaded is not None
    shown = describe_attributes(*loaded)
    assert "users_rows_left_out" not in shown
    assert shown["users_tier"] == "9 users, 3 values, other for 2"


def test_users_whose_lines_differ_have_no_value(spark: SparkSession, tmp_path: Path) -> None:
    lines = ["u1,30,01,gold", "u1,31,02,gold", "u2,30,02,gold", "u3,30,02,gold", ",30,02,gold", "u4,30"]
    settings = settings_of(tmp_path, lines)
    found = load(spark, settings)
    loaded = load_attributes(spark, settings, None)
    assert loaded is not None
    assert describe_attributes(*loaded)["users_rows_left_out"] == "2 (malformed, or without a user)"
    assert found["age"] == dict.fromkeys(("u1", "u2", "u3"), "25 to below 45"), "two ages of one band are no difference"
    assert found["region"] == dict.fromkeys(("u2", "u3"), "02")
    assert found["tier"] == dict.fromkeys(("u1", "u2", "u3"), "gold")


def test_users_are_pseudonyms_where_the_events_have_them(spark: SparkSession, tmp_path: Path) -> None:
    found = load(spark, settings_of(tmp_path, PEOPLE), KEY)
    assert set(found["tier"]) == {pseudonym(line[:3], KEY) for line in PEOPLE}


def test_users_of_platforms_are_told_apart(spark: SparkSession, tmp_path: Path) -> None:
    loaded = load_attributes(spark, settings_of(tmp_path, PEOPLE, platform="tier", min_users=1), None)
    assert loaded is not None
    assert {row["platform"] for row in loaded[0].collect()} == {"gold", "silver", "platinum", "secret one"}


def test_a_missing_column_names_its_key(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"users.attributes.age.column: found 'birth'.*did you mean 'born'"):
        load(spark, settings_of(tmp_path, PEOPLE, attributes={"age": {"column": "birth"}}))


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ({"column": "a", "bands": [3, 2]}, "expected ascending"),
        ({"column": "a", "bands": [3], "first_characters": 1}, "expected one of them"),
    ],
)
def test_settings_that_contradict_each_other_are_named(attribute: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Attribute.model_validate(attribute)
