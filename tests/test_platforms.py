"""Several platforms, one person: what he bought in the store decides what he is shown on the web."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyspark.sql import SparkSession

from pipeline_runs import read_table
from test_deliveries import job
from test_ingest import COLUMNS
from xrec import columns as C
from xrec.config import Settings
from xrec.ingest.identities import load_identities
from xrec.ingest.privacy import load_opt_outs, pseudonym
from xrec.ingest.reader import InputError
from xrec.logrules.identity import persons_opted_out, with_persons
from xrec.runs.stage import StageContext
from xrec.storage.tables import Tables

pytestmark = pytest.mark.spark


def settings_of(folder: Path, **sections: Any) -> Settings:
    """A web shop with comma and UTC, and a store with semicolons, other columns, Berlin time and half the currency."""
    values: dict[str, Any] = {
        "storage": {"root": str(folder / "warehouse")},
        "log": {"file": {"format": "csv"}, "columns": COLUMNS, "event_types": {"buy": "purchase"}},
        "platforms": {
            "web": {"file": {"path": str(folder / "web.csv")}},
            "store": {
                "file": {"path": str(folder / "store.csv"), "options": {"sep": ";"}},
                "columns": {"user_id": "card", "item_id": "sku"},
                "time": {"zone": "Europe/Berlin"},
                "price_rate": 0.5,
            },
        },
        "identity": {
            "file": {"path": str(folder / "persons.csv"), "format": "csv"},
            "platform": "platform",
            "valid_from": "since",
        },
        "catalogue": {
            "file": {"path": str(folder / "items.csv"), "format": "csv"},
            "item_id": "sku",
            "category": "group",
        },
        "weights": {"event_types": {"purchase": 1.0, "view": 0.1}},
    }
    return Settings.model_validate({**values, **sections})


OTHERS = ("w1", "w2", "w3", "w4")
"""Users of the web whom nothing happens to."""


def write(folder: Path, persons: str, opted_out: str = "") -> None:
    folder.mkdir(exist_ok=True)
    web = [f"{user},tent,2024-01-0{n + 1} 10:00:00,buy,1,5" for n, user in enumerate(["7", "8", "9", *OTHERS])]
    store = [f"{card};lamp;2024-02-0{n + 1} 10:00:00;buy;1;8" for n, card in enumerate(["7", "K1", "K2"])]
    header = "time,action,units,amount"
    (folder / "web.csv").write_text("\n".join([f"user,item,{header}", *web]) + "\n")
    (folder / "store.csv").write_text("\n".join([f"card,sku,{header}".replace(",", ";"), *store]) + "\n")
    (folder / "items.csv").write_text("sku,group\ntent,tents\nlamp,lamps\n")
    (folder / "persons.csv").write_text(f"platform,user_id,person_id,since\n{persons}")
    (folder / "out.csv").write_text(f"platform,user\n{opted_out}")


def run(spark: SparkSession, settings: Settings, *stages: str) -> dict[str, str]:
    for stage in stages:
        figures: dict[str, str] = job(stage).run(StageContext(spark=spark, settings=settings, run_id="run"))
    return figures


def persons_of_items(root: Path) -> set[tuple[str, str, str]]:
    frame = read_table(root, "judged_events")
    return set(zip(frame["user_id"], frame["platform"], frame["item_id"], strict=True))


@pytest.mark.slow
@pytest.mark.delta
def test_a_person_is_one_on_all_platforms_and_merging_two_re_keys_them_alone(
    spark: SparkSession, tmp_path: Path
) -> None:
    write(tmp_path, "web,8,anna,\nstore,K1,anna,2024-01-15 00:00:00\nstore,K2,kim,\nweb,9,kim,2025-01-01\n")
    settings, root = settings_of(tmp_path), tmp_path / "warehouse"
    figures = run(spark, settings, "ingest")
    assert (figures["rows_read"], figures["rows_clean"]) == ("10", "10")
    assert figures["platform store"] == "3 read, 3 clean, 0 quarantined, 0 duplicate"
    assert run(spark, settings, "judge")["users_judged"] == "all"
    assert persons_of_items(root) == {(f"web:{user}", "web", "tent") for user in OTHERS} | {
        ("web:7", "web", "tent"),  # a card 7 is somebody else
        ("anna", "web", "tent"),
        ("web:9", "web", "tent"),
        ("store:7", "store", "lamp"),
        ("anna", "store", "lamp"),
        ("kim", "store", "lamp"),
    }
    events = read_table(root, "events").set_index(["platform", "user_id"])
    assert events.loc[("store", "K1"), "price"] == 4
    assert str(events.loc[("store", "K1"), "event_ts"])[:19] == "2024-02-02 09:00:00"

    write(tmp_path, "web,8,anna,\nstore,K1,anna,2024-01-15 00:00:00\nweb,9,kim,\n")
    load(spark, settings)
    before = read_table(root, "judged_events").set_index("event_id")["versions"]
    assert run(spark, settings, "judge")["users_judged"] == "3 whose events changed"
    assert {("kim", "web", "tent"), ("store:K2", "store", "lamp")} < persons_of_items(root)
    after = read_table(root, "judged_events").set_index("event_id")
    changed = after["versions"] != before[after.index]
    assert set(after.loc[changed, "user_id"]) == {"kim", "store:K2"}, "nobody else's rows are written again"
    persons = {"anna", "kim", "web:7", "store:7", "store:K2", *(f"web:{user}" for user in OTHERS)}
    assert set(read_table(root, "persons")["user_id"]) == persons

    write(tmp_path, "web,8,anna,\nstore,K1,anna,2024-01-15 00:00:00\nweb,9,kim,\n", opted_out="store,K1\n,kim\n")
    load(spark, settings_of(tmp_path, privacy={"opt_outs": opt_outs_of(tmp_path)}))
    run(spark, settings, "judge")
    uses = read_table(root, "judged_events").set_index(["user_id", "platform"])["use"]
    assert set(uses[uses == "opted_out"].index) == {("anna", "web"), ("anna", "store"), ("kim", "web")}


def opt_outs_of(folder: Path) -> dict[str, Any]:
    file = {"path": str(folder / "out.csv"), "format": "csv"}
    return {"file": file, "user_id": "user", "platform": "platform"}


def load(spark: SparkSession, settings: Settings) -> None:
    """What ingest does with the identities and the opt-outs."""
    tables = Tables(spark, settings.storage)
    identities = load_identities(spark, settings, None)
    assert identities is not None
    tables.write("identities", identities)
    opt_outs = load_opt_outs(spark, settings, None)
    if opt_outs is not None:
        tables.write("opt_outs", opt_outs)


@pytest.mark.delta
def test_all_platforms_are_judged_before_one_is_written(spark: SparkSession, tmp_path: Path) -> None:
    write(tmp_path, "web,8,anna,\n")
    (tmp_path / "store.csv").write_text("card;sku;time;action;units;amount\n7;lamp;soon;buy;1;8\n")
    settings = settings_of(tmp_path)
    with pytest.raises(InputError, match=r"none of the 1 rows of .*store.csv is clean") as caught:
        run(spark, settings, "ingest")
    assert "this is about the platform store" in caught.value.__notes__[-1]
    assert not (tmp_path / "warehouse" / "events").exists()


IDENTITIES = "platform string, user_id string, person_id string, valid_from_ts timestamp"
EVENTS = "event_id string, platform string, user_id string, event_ts timestamp"


def naive_person(event: tuple, identities: list[tuple]) -> str:
    _, platform, user, when = event
    known = [row for row in identities if row[:2] == (platform, user) and row[3] <= when]
    return max(known, key=lambda row: row[3])[2] if known else f"{platform}:{user}"


def test_each_event_belongs_to_the_person_of_its_time(spark: SparkSession, tmp_path: Path) -> None:
    days = pd.date_range("2024-01-01", periods=30).to_pydatetime()
    identities = [("web", "1", "a", days[3]), ("web", "1", "b", days[10]), ("store", "1", "a", days[0])]
    identities += [("web", "2", "c", days[20])]
    events = [
        (f"{p}{u}{n}", p, u, day) for p in ("web", "store") for u in ("1", "2", "3") for n, day in enumerate(days)
    ]
    table = spark.createDataFrame(identities, IDENTITIES)
    settings = settings_of(tmp_path)
    found = with_persons(spark.createDataFrame(events, EVENTS), table, settings).collect()
    assert {row[C.EVENT_ID]: row[C.USER_ID] for row in found} == {e[0]: naive_person(e, identities) for e in events}
    left = spark.createDataFrame([("", "z"), ("web", "1"), ("web", "9")], "platform string, user_id string")
    out = {row[0] for row in persons_opted_out(left, table, settings).collect()}
    assert out == {"z", "a", "b", "web:1", "web:9"}
    shared = settings_of(tmp_path, identity={"shared_ids": True})
    alone = with_persons(spark.createDataFrame(events, EVENTS), None, shared).collect()
    assert {row[C.USER_ID] for row in alone} == {"1", "2", "3"}


@pytest.mark.parametrize("key", [None, b"5f0c6a1be94d4c2fb8a3e0d97c215e64"])
def test_an_opt_out_without_a_platform_holds_on_every_platform(
    spark: SparkSession, tmp_path: Path, key: bytes | None
) -> None:
    write(tmp_path, "", opted_out="web,7\n,anna\n")
    everywhere = {**opt_outs_of(tmp_path), "platform": None}
    names = {name: name if key is None else pseudonym(name, key) for name in ("7", "anna")}
    for opt_outs, expected in (
        (everywhere, {f"{platform}{name}" for name in names.values() for platform in ("", "web:", "store:")}),
        (opt_outs_of(tmp_path), {f"web:{names['7']}", names["anna"]}),
    ):
        settings = settings_of(tmp_path, privacy={"opt_outs": opt_outs})
        left = load_opt_outs(spark, settings, key)
        assert left is not None
        assert {row[0] for row in persons_opted_out(left, None, settings).collect()} == expected


@pytest.mark.parametrize(
    ("persons", "message"),
    [
        (
            "web,1,,\n",
            r"identity.file.path: .*persons.csv: 1 rows lack what was expected: a person in column 'person_id'",
        ),
        ("app,1,a,\n", r"expected: one of the platforms web, store in column 'platform'"),
        ("web,1,a,soon\nweb,2,a,later\n", r"2 rows lack .* ISO 8601 .* in column 'since'"),
        ("web,1,a,\nweb,1,b,\n", r"user '1' of web is 2 persons from the same time on, expected one; mend the file"),
    ],
)
def test_a_faulty_identity_table_is_an_error(spark: SparkSession, tmp_path: Path, persons: str, message: str) -> None:
    write(tmp_path, persons)
    with pytest.raises(InputError, match=message):
        load_identities(spark, settings_of(tmp_path), None)


def test_each_platform_takes_from_the_log_what_it_does_not_say(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    web, store = (source.log for source in settings.sources)
    assert (web.platform, store.platform) == ("web", "store")
    assert (web.columns.user_id, store.columns.user_id, store.columns.price) == ("user", "card", "amount")
    assert (web.time.zone, store.time.zone, store.file.format) == ("UTC", "Europe/Berlin", "csv")
    with pytest.raises(ValueError, match=r"platforms.store.time.unit: found order beside platforms with a clock"):
        settings_of(
            tmp_path,
            platforms={"web": {"file": {"path": "a"}}, "store": {"file": {"path": "b"}, "time": {"unit": "order"}}},
        )
