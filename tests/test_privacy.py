"""Persons: nothing that xrec writes, shows or sends knows who a user is, and who opted out is left out."""

from __future__ import annotations

import hashlib
import hmac
import runpy
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from xrec.config import Settings, load_settings
from xrec.evaluation.folds import Fold, history_of
from xrec.experiments.exposures import load_exposures
from xrec.ingest.attributes import load_attributes
from xrec.ingest.cleaning import cleaned
from xrec.ingest.feeds import load_feeds
from xrec.ingest.identities import load_identities
from xrec.ingest.privacy import check_same_key, fingerprint, load_opt_outs, read_key
from xrec.ingest.reader import InputError, read_raw
from xrec.runs.ledger import StageRun, record
from xrec.runs.stage import StageContext
from xrec.storage.tables import Tables

ROOT = Path(__file__).resolve().parent.parent
SECRET = "5f0c6a1be94d4c2fb8a3e0d97c215e64"
PEOPLE = ("anna.alpha", "berta.beta", "carla.gamma", "dora.delta")
LOG = """person;mail;sku;when;units
anna.alpha;anna@example.org;a1;2024-03-01 10:00:00;1
anna.alpha;anna@example.org;a2;2024-03-05 10:00:00;1
berta.beta;berta@example.org;a1;2024-03-02 10:00:00;1
berta.beta;berta@example.org;a3;2024-03-06 10:00:00;1
carla.gamma;carla@example.org;a2;2024-03-03 10:00:00;1
carla.gamma;carla@example.org;a2;2024-03-03 10:00:00;0
dora.delta;dora@example.org;a3;never;1
dora.delta;dora@example.org;broken
"""


def settings_at(folder: Path, *overrides: str, pseudonymise: bool = True, opted_out: tuple[str, ...] = ()) -> Settings:
    (folder / "log.csv").write_text(LOG)
    (folder / "opt-outs.csv").write_text("\n".join(["person", *opted_out]) + "\n")
    (folder / "c.yaml").write_text(
        f"log:\n  file: {{path: {folder}/log.csv, format: csv, options: {{sep: ';'}}}}\n"
        "  columns: {user_id: person, item_id: sku, event_ts: when, quantity: units}\n"
        "catalogue: {category: sku}\n"
        f"privacy:\n  pseudonymise: {str(pseudonymise).lower()}\n  key: env:XREC_TEST_KEY\n"
        f"  opt_outs: {{file: {{path: {folder}/opt-outs.csv, format: csv}}, user_id: person}}\n"
        f"storage: {{root: {folder}/warehouse}}\n"
        "folds: {purpose: serve, num_select: 0}\n"
    )
    return load_settings([folder / "c.yaml"], overrides)


def run_job(name: str, spark: SparkSession, settings: Settings) -> dict[str, str]:
    context = StageContext(spark=spark, settings=settings, run_id=name)
    figures: dict[str, str] = runpy.run_path(str(ROOT / "jobs" / f"{name}.py"))["run"](context)
    outputs = context.tables.written_versions
    run = StageRun(
        run_id=name,
        stage=name,
        started_ts=datetime.now(timezone.utc),
        seconds=1.0,
        settings_hash="x",
        outputs=outputs,
        figures=figures,
    )
    record(Tables(spark, settings.storage), run)
    return figures


def pseudonym(name: str) -> str:
    return hmac.new(SECRET.encode(), name.encode(), hashlib.sha256).hexdigest()


def everything_written(folder: Path) -> str:
    """All that lies below a folder, Parquet as its values."""
    texts = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            texts.append(str(pq.read_table(path).to_pydict()) + str(pq.read_metadata(path).to_dict()))
        elif path.is_file():
            texts.append(path.read_bytes().decode("latin-1"))
    return "\n".join(texts)


@pytest.mark.spark
@pytest.mark.delta
def test_no_table_plan_setting_or_message_knows_a_person_or_the_key(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XREC_TEST_KEY", SECRET)
    settings = settings_at(tmp_path, opted_out=("carla.gamma", "never.seen"))
    figures = [run_job(name, spark, settings) for name in ("ingest", "judge")]
    tables = Tables(spark, settings.storage)
    events = tables.read("events").collect()
    assert {row["user_id"] for row in events} == {pseudonym(name) for name in PEOPLE[:3]}
    with cleaned(read_raw(spark, settings.log.file), settings, read_key(settings.privacy)) as log:
        frames = [log.events, log.quarantine, load_opt_outs(spark, settings, read_key(settings.privacy))]
        plans = [frame._jdf.queryExecution().toString() for frame in frames if frame is not None]
        rejected = [row["raw"] for row in log.quarantine.collect()]
    assert any(pseudonym("dora.delta") in raw for raw in rejected), "a rejected row keeps its mapped fields"
    shown = capfd.readouterr()
    haystacks = {
        "tables": everything_written(tmp_path / "warehouse"),
        "plans": "\n".join(plans),
        "settings of Spark": str(spark.sparkContext.getConf().getAll()),
        "settings": settings.model_dump_json(),
        "figures": str(figures),
        "output": shown.out + shown.err,
    }
    assert pseudonym("anna.alpha") in haystacks["tables"], "the search finds what is there"
    for place, haystack in haystacks.items():
        for needle in (SECRET, *PEOPLE, "never.seen", "example.org"):
            assert needle not in haystack, (needle, place)

    # Who opted out is learned from in no fold; the others are as they were.
    judged = tables.read("judged_events")
    assert {(row["user_id"], row["use"]) for row in judged.collect()} == {
        (pseudonym("anna.alpha"), "used"),
        (pseudonym("berta.beta"), "used"),
        (pseudonym("carla.gamma"), "opted_out"),
    }
    for as_of in (datetime(2024, 3, 4, tzinfo=timezone.utc), datetime(2030, 1, 1, tzinfo=timezone.utc)):
        fold = Fold(name="f", purpose="serve", as_of=as_of, horizon=timedelta(days=1))
        had = {row["user_id"] for row in history_of(judged, fold).collect()}
        assert had == {pseudonym("anna.alpha"), pseudonym("berta.beta")}

    # One log never mixes names and pseudonyms, or two keys.
    monkeypatch.setenv("XREC_TEST_KEY", SECRET[::-1])
    with pytest.raises(InputError, match=r"found users pseudonymised \(key \w+\), expected pseudonymised \(key \w+\)"):
        run_job("ingest", spark, settings_at(tmp_path, "log.delivery_id=second"))
    with pytest.raises(InputError, match="found users with their names, expected pseudonymised"):
        run_job("ingest", spark, settings_at(tmp_path, "log.delivery_id=second", pseudonymise=False))


@pytest.mark.spark
@pytest.mark.delta
def test_another_key_is_refused_for_the_only_delivery_too_once_users_are_known(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XREC_TEST_KEY", SECRET)
    run_job("ingest", spark, settings_at(tmp_path, pseudonymise=False))
    run_job("ingest", spark, settings_at(tmp_path))  # nothing is left of the names yet
    tables = Tables(spark, settings_at(tmp_path).storage)
    users = spark.createDataFrame([(pseudonym(PEOPLE[0]), 0)], "user_id string, user_idx int")
    tables.write("users", users)
    with pytest.raises(InputError, match=r"found users with their names, expected pseudonymised .* as in the tables"):
        run_job("ingest", spark, settings_at(tmp_path, pseudonymise=False))
    run_job("ingest", spark, settings_at(tmp_path))


@pytest.mark.spark
def test_opt_outs_without_pseudonyms_and_broken_lists(spark: SparkSession, tmp_path: Path) -> None:
    settings = settings_at(tmp_path, pseudonymise=False, opted_out=(" anna.alpha ", "anna.alpha", "dora.delta"))
    found = load_opt_outs(spark, settings, None)
    assert found is not None
    people = ("anna.alpha", "dora.delta")
    assert sorted(map(tuple, found.collect())) == [(platform, name) for platform in ("", "main") for name in people]
    nobody = load_opt_outs(spark, settings_at(tmp_path, pseudonymise=False), None)
    assert nobody is not None
    assert nobody.isEmpty()
    (tmp_path / "opt-outs.csv").write_text("person,since\nanna.alpha,2024\n,2024\n")
    with pytest.raises(InputError, match=r"found 1 rows of .*opt-outs.csv without a user in column 'person'"):
        load_opt_outs(spark, settings, None)
    for damaged in ("m\ufffdller", "m\x81ller"):
        (tmp_path / "opt-outs.csv").write_text(f"person\nanna.alpha\n{damaged}\n")
        with pytest.raises(InputError, match=r"found 1 rows of .* with control or replacement characters .*encoding"):
            load_opt_outs(spark, settings, None)
    (tmp_path / "opt-outs.csv").write_text("who\nanna.alpha\n")
    with pytest.raises(InputError, match=r"privacy.opt_outs.user_id: found 'person', .* did you mean 'who'"):
        load_opt_outs(spark, settings, None)


@pytest.mark.spark
def test_no_message_shows_what_stands_in_the_place_of_a_missing_header(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("anna.alpha,a1,2024-03-01\nberta.beta,a2,2024-03-02\n")
    file = {"path": str(tmp_path / "people.csv"), "format": "csv"}
    age = {"column": "anna", "type": "number"}
    values = {
        **settings_at(tmp_path).model_dump(),
        "log": {"file": file, "columns": {"user_id": "person", "item_id": "a1", "event_ts": "when"}},
        "identity": {"file": file},
        "privacy": {"pseudonymise": True, "opt_outs": {"file": file, "user_id": "person"}},
        "users": {"file": file, "user_id": "person", "attributes": {"age": {"column": "anna"}}},
        "exposures": {"file": file, "columns": {"user_id": "person", "shown_ts": "when"}},
    }
    of_users = {
        "users": {"file": file, "user_id": "person", "attributes": {"years": age}},
        "rules": {"r": "user.years > 1"},
    }
    blocked = {"blocked": {"file": file, "user_id": "person", "item_id": "a1"}}
    settings = Settings.model_validate(values)
    exposures, key = settings.exposures, SECRET.encode()
    assert exposures is not None
    readers: dict[str, Callable[[], Any]] = {
        "log.columns.user_id": lambda: cleaned(read_raw(spark, settings.log.file), settings, key).__enter__(),
        "identity.user_id": lambda: load_identities(spark, settings, key),
        "privacy.opt_outs.user_id": lambda: load_opt_outs(spark, settings, key),
        "users.user_id": lambda: load_attributes(spark, settings, key),
        "exposures.columns.user_id": lambda: load_exposures(spark, settings, exposures, key),
        "filters.users.user_id": lambda: load_feeds(
            spark, Settings.model_validate({**values, "filters": of_users}), key
        ),
        "filters.blocked.user_id": lambda: load_feeds(
            spark, Settings.model_validate({**values, "filters": blocked}), key
        ),
    }
    for name, read in readers.items():
        with pytest.raises(InputError) as error:
            read()
        message = str(error.value)
        assert message.startswith(f"{name}: found '"), name
        assert message.endswith(
            "it has 3 columns, whose names are not shown (privacy.pseudonymise); if its header is missing, set the file's "
            "options to {header: 'false'} and map _c0 to _c2"
        ), name
        assert "anna.alpha" not in message, name


@pytest.mark.parametrize(
    ("key", "content", "message"),
    [
        ("env:XREC_NOT_SET", None, "found 0 characters in the environment variable XREC_NOT_SET, expected at least 32"),
        ("file:{folder}/none", None, r"cannot read the file .*/none \(FileNotFoundError\)"),
        ("file:{folder}/key", "short-secret", "found 12 characters in the file .*/key, expected at least 32"),
    ],
)
def test_a_missing_or_weak_key_is_one_message_that_does_not_show_it(
    tmp_path: Path, key: str, content: str | None, message: str
) -> None:
    if content:
        (tmp_path / "key").write_text(content)
    settings = settings_at(tmp_path, f"privacy.key={key.format(folder=tmp_path)}")
    with pytest.raises(InputError, match=message) as error:
        read_key(settings.privacy)
    assert content is None or content not in str(error.value)


def test_a_key_from_a_file_and_its_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{SECRET}\n")
    key = read_key(settings_at(tmp_path, f"privacy.key=file:{tmp_path}/key").privacy)
    assert key == SECRET.encode()
    assert read_key(settings_at(tmp_path, pseudonymise=False).privacy) is None
    check_same_key(key, fingerprint(key))
    check_same_key(key, None)
    with pytest.raises(InputError, match=r"found users pseudonymised .*, expected with their names"):
        check_same_key(key, fingerprint(None))
