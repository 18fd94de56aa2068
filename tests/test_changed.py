"""A training, and a night after it: whoever changed is encoded, and the table of vectors is that of encoding everybody."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession

from pipeline_runs import ROOT, read_table
from test_deliveries import job
from test_export import an_export, settings_of
from world import make_world, write_world
from xrec.config import Settings, SettingsError, load_settings
from xrec.evaluation.folds import Fold
from xrec.features.changed_users import trained_exports
from xrec.features.sequence_files import ContractMismatchError, read_export, write_exports
from xrec.runs.stage import Figures, StageContext
from xrec.sequence.launch import run_as_rank, select_spec
from xrec.sequence.spec import LaunchError, TrainingSpec
from xrec.storage.files import FilesError, absolute, read_json, remove, write_json

SUNDAY, TONIGHT = datetime(2024, 6, 25), datetime(2024, 6, 27)
SMALL = {
    "ranking": {"sources": ["popularity", "gru"]},
    "folds": {"purpose": "serve", "as_of": "latest", "num_select": 1},
    "sequence": {
        **{"length": 8, "objective": "next_event", "item_vectors": None, "context": ["gap"]},
        **{"epochs": 2, "epochs_more": 1, "num_processes": 2},
    },
}
LATE, RETURNS, NEW, GONE, ELSEWHERE = "late", "returns", "new", "gone", "elsewhere"


@dataclass(frozen=True)
class Shop:
    spark: SparkSession
    config: Path
    users: dict[str, str]
    """The user of each kind; ``active`` are all who did something since the training, in one text."""
    told: dict[str, str] = field(default_factory=dict)

    def settings(self, day: str, *overrides: str) -> Settings:
        log = self.config.parent / f"{day}.csv"
        return load_settings([self.config], [f"log.delivery_id={day}", f"log.file.path={log}", *overrides])

    def run(self, day: str, *stages: str, changed: bool = False) -> Figures:
        settings = self.settings(day, *(["sequence.changed_since=latest"] if changed else []))
        for stage in stages:
            context = StageContext(spark=self.spark, settings=settings, run_id="run")
            figures: Figures = job(stage).run(context)
        return figures

    @property
    def root(self) -> Path:
        return self.config.parent / "warehouse"

    def vectors(self, fold: str) -> dict[tuple[str, int], list[float]]:
        rows = read_table(self.root, "vectors").query("fold == @fold")
        return dict(zip(zip(rows["kind"], rows["idx"], strict=True), rows["vector"], strict=True))


@pytest.fixture(scope="module")
def shop(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The training of Sunday, and what was encoded two days later, of the delivery of then, without a JVM."""
    folder = tmp_path_factory.mktemp("shop")
    world = make_world(seed=2, num_users=90)
    written = write_world(world, folder, dirty=False, overrides=SMALL)
    lines = written.log_file.read_text().splitlines()
    header, rows = lines[0], sorted(lines[1:], key=lambda line: line.split(",")[2])
    earlier = [row for row in rows if row.split(",")[2] < f"{SUNDAY}"]
    later = [row for row in rows if f"{SUNDAY}" <= row.split(",")[2] < f"{TONIGHT}"]
    active = {row.split(",")[0] for row in later}
    quiet = [row.split(",") for row in earlier if row.split(",")[0] not in active and ",buy,1," in row]
    first = {row[0]: row for row in reversed(quiet)}
    late, returns, elsewhere = sorted(first)[:3]
    wanted, during = first[late][1], f"{SUNDAY + timedelta(hours=3)}"
    earlier += [f"90002,{wanted},2024-06-01 10:00:00,buy,1,2.00"]
    later += [
        f"{late},{wanted},{SUNDAY - timedelta(days=1)},buy,1,2.00",
        ",".join([*first[returns][:2], during, "buy", "-1", "2.00"]),
        f"90001,{wanted},{during},buy,1,2.00",
        f"90002,{wanted},{during},buy,-1,2.00",
        f"{elsewhere},nobody-had-it,{during},buy,1,2.00",
    ]
    for day, of_day in (("sunday", earlier), ("tonight", later)):
        (folder / f"{day}.csv").write_text("\n".join([header, *of_day]) + "\n")
    users = {
        LATE: late,
        RETURNS: returns,
        NEW: "90001",
        GONE: "90002",
        ELSEWHERE: elsewhere,
        "active": " ".join(active),
    }
    found = Shop(spark, written.config, users)
    until_balanced = ("ingest", "judge", "index", "fold", "balance")
    found.run("sunday", *until_balanced, "export_sequences")
    run_as_rank("gru", found.settings("sunday"))
    found.run("sunday", "load_vectors")
    found.run("tonight", *until_balanced)
    found.told.update(found.run("tonight", "export_sequences", changed=True))
    command = [str(Path(sys.executable).with_name("horovodrun")), "-np", "2", sys.executable]
    command += [str(ROOT / "jobs" / "train_gru.py"), "--config", str(found.config), "--changed-since", "latest"]
    ran = subprocess.run(
        [*command, "--set", "sequence.launcher=horovodrun"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "JAVA_HOME": "/nowhere"},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found.told["ranks"] = ran.stdout
    return found


@pytest.mark.spark
@pytest.mark.delta
@pytest.mark.torch
@pytest.mark.horovod
def test_encoding_who_changed_gives_the_vectors_of_encoding_everybody(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a late row, a return, a new user, one whose only purchase went back, and one who bought what the model does not know."""
    figures = shop.run("tonight", "load_vectors", changed=True)
    settings = shop.settings("tonight", "sequence.changed_since=latest")
    artifacts = absolute(settings.storage.artifacts_root)
    folds = read_json(f"{artifacts}/changed.json")["folds"]
    contracts = [read_export(artifacts, fold, settings) for fold in folds]
    assert [export.trained_on for export in contracts] == read_json(f"{artifacts}/exports.json")["folds"]
    taken = {fold: shop.vectors(fold) for fold in folds}

    index = read_table(shop.root, "users").set_index("user_id")["user_idx"]
    windows = read_table(shop.root, "sequences").query("fold == @folds[-1] and row_weight > 0")
    encoded = set(windows.query("split == 'changed'")["user_idx"])
    kinds = (LATE, RETURNS, NEW)
    assert encoded == set(index[[*shop.users["active"].split(), *(shop.users[kind] for kind in kinds)]])
    assert ("user", index[shop.users[ELSEWHERE]]) in taken[folds[-1]]
    assert ("user", index[shop.users[GONE]]) not in taken[folds[-1]]
    assert len(encoded) < len(windows) / 2
    assert shop.told["users to encode"] == f"{len(encoded)} of {len(windows)}"
    (told,) = figures.values()
    assert told.startswith(f"{len(encoded)} users encoded, {len(windows) - len(encoded)} users and ")
    assert f": {len(encoded)} users who changed since {contracts[-1].trained_on} encoded" in shop.told["ranks"]

    export_sequences = job("export_sequences")
    seen_before = export_sequences.seen_before
    monkeypatch.setattr(export_sequences, "seen_before", lambda *of: seen_before(*of).limit(0))
    export_sequences.run(StageContext(spark=shop.spark, settings=settings, run_id="run"))
    run_as_rank("gru", settings)
    (told,) = shop.run("tonight", "load_vectors", changed=True).values()
    assert told.startswith(f"{len(windows)} users encoded, 0 users and ")
    for fold in folds:
        everybody = shop.vectors(fold)
        assert set(taken[fold]) == set(everybody)
        for key, vector in everybody.items():
            np.testing.assert_allclose(taken[fold][key], vector, atol=1e-6)
    assert {user for kind, user in taken[folds[-1]] if kind == "user"} == set(windows["user_idx"])


@pytest.mark.spark
@pytest.mark.delta
@pytest.mark.torch
def test_what_does_not_belong_together_is_refused(shop: Shop) -> None:
    settings = shop.settings("tonight", "sequence.changed_since=latest")
    longer = shop.settings("tonight", "sequence.changed_since=latest", "sequence.length=9")
    with pytest.raises(ContractMismatchError, match=r"export.json: sequence.length: found 8, expected 9"):
        job("export_sequences").run(StageContext(spark=shop.spark, settings=longer, run_id="run"))
    other = shop.settings("tonight", "sequence.changed_since=latest", "sequence.learning_rate=0.5")
    with pytest.raises(ContractMismatchError, match=r"sequence.learning_rate: found 0.01, expected 0.5"):
        run_as_rank("gru", other)
    folds = read_json(f"{absolute(settings.storage.artifacts_root)}/changed.json")["folds"]
    spec = TrainingSpec.plan("gru", folds, settings)[-1]
    assert spec.trained_on is not None
    manifest = f"{spec.trained_on.staging}/manifest.json"
    kept = read_json(manifest)
    write_json(manifest, {**kept, "weights": "of another"})
    with pytest.raises(ContractMismatchError, match=r"checkpoint: found a model of weights \w+, expected of another"):
        run_as_rank("gru", settings)
    with pytest.raises(ContractMismatchError, match=r"found vectors by a model of weights \w+, expected of another"):
        shop.run("tonight", "load_vectors", changed=True)
    write_json(manifest, kept)
    remove(f"{spec.staging}/manifest.json")  # as a killed run leaves it
    with pytest.raises(FilesError, match=r"manifest.json: no such file, so there are no complete vectors"):
        shop.run("tonight", "load_vectors", changed=True)


def test_a_fold_takes_the_newest_model_that_knows_nothing_later(tmp_path: Path) -> None:
    def fold_of(day: int) -> Fold:
        as_of = datetime(2020, 1, day, tzinfo=timezone.utc)
        return Fold(name=f"serve-2020-01-{day:02d}", purpose="serve", as_of=as_of, horizon=timedelta(days=5))

    def taken(days: list[int], since: str) -> list[str]:
        settings = settings_of(tmp_path, changed_since=since)
        return [export.fold for export in trained_exports([fold_of(day) for day in days], settings).values()]

    artifacts = settings_of(tmp_path).storage.artifacts_root

    def export(*days: int, version: int = 1) -> None:
        of = [
            replace(an_export(version=version), fold=f"on-{day}", as_of=fold_of(day).as_of.isoformat()) for day in days
        ]
        write_exports(artifacts, of)

    def train(*days: int, models: tuple[str, ...] = ("gru", "transformer")) -> None:
        for day, model in product(days, models):
            write_json(f"{artifacts}/on-{day}/{model}/vectors-v1-digest/manifest.json", {})

    with pytest.raises(SettingsError, match=r"found trained folds none, expected one"):
        taken([9], "latest")
    for days in ([3, 8], [10]):
        export(*days)
        train(*days)
    assert taken([5, 9], "latest") == ["on-3", "on-8"]
    assert taken([8, 14], "latest") == ["on-8", "on-10"]
    assert taken([8, 14], "2020-01-09") == ["on-8", "on-8"]
    export(12)
    assert taken([8, 14], "latest") == ["on-8", "on-10"], "that training is still to come"
    train(12, models=("gru",))
    assert taken([8, 14], "latest") == ["on-8", "on-10"], "it died midway"
    export(10, version=2)
    assert taken([8, 14], "latest") == ["on-8", "on-8"], "what was trained were the windows of an earlier export"
    with pytest.raises(
        SettingsError, match=r"on-3 \(as of 2020-01-03.*later than that of serve-2020-01-02, 2020-01-02"
    ):
        taken([2, 9], "latest")
    with pytest.raises(
        SettingsError, match=r"found 2020-01-11, expected .* no later than the as-of of fold serve-2020-01-09"
    ):
        taken([9], "2020-01-11")
    with pytest.raises(SettingsError, match=r"sequence.changed_since: found 'never', expected latest, or a date"):
        taken([9], "never")
    with pytest.raises(LaunchError, match=r"sequence.changed_since: found latest, expected null"):
        select_spec(settings_of(tmp_path, changed_since="latest"))
    with pytest.raises(SettingsError, match=r"sequence.changed_since: found latest beside folds.kind: last_out"):
        load_settings(overrides=["sequence.changed_since=latest", "folds.kind=last_out"])
