"""The search for a sequence model's settings: real trainings in this process, and what is kept of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.distributions import CategoricalDistribution

from sequence_world import FOLD, settings_at, spec_of, write_world
from xrec.config import Sequence, Settings, Tuning
from xrec.sequence import tuning
from xrec.sequence.launch import describe_trials, select_spec
from xrec.sequence.progress import Epoch, Progress
from xrec.sequence.ranks import tune_one
from xrec.sequence.spec import LaunchError, Trial

pytestmark = [pytest.mark.torch, pytest.mark.horovod]

ROOT = Path(__file__).resolve().parent.parent


def searched(root: Path, trials: int, **budget: Any) -> tuple[Settings, list[Trial]]:
    settings = settings_at(root, epochs=3, dim=8, learning_rate=1e-3)
    if not (root / "vocabulary").exists():
        write_world(root, settings, num_users=120)
    return settings, tune_one(spec_of("gru", settings), Tuning(model="gru", trials=trials, **budget))


def test_a_search_begins_with_the_settings_as_they_are_and_finds_better_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The learning rate of the settings is far too small for three epochs."""
    settings, trials = searched(tmp_path, 8)
    assert len(trials) == 8
    first = trials[0].settings
    assert first == {name: getattr(settings.sequence, name) for name in first}
    assert len({json.dumps(trial.settings) for trial in trials}) == 8
    best = max(trials, key=lambda trial: trial.ndcg)
    assert best.ndcg > trials[0].ndcg + 0.1
    assert best.settings["learning_rate"] > first["learning_rate"]
    figures = describe_trials(trials)
    assert figures["best"].startswith("--set sequence.learning_rate=0.0")
    assert figures["validation_ndcg"] == f"{best.ndcg:.4f} (the settings as they were: {trials[0].ndcg:.4f})"
    assert capsys.readouterr().out.count("trial ") == 8, "a line a trial, and none of the trainings' own"
    assert not (tmp_path / "_artifacts" / "tuning" / "trial").exists()
    assert not (tmp_path / "_artifacts" / FOLD / "gru").exists(), "the model that serves is left alone"


def test_two_processes_search_as_one_does(tmp_path: Path) -> None:
    """By horovodrun, without a JVM: both ranks train what rank 0 draws, and the trials are those of one process."""
    _, expected = searched(tmp_path / "one", 3)
    root = tmp_path / "two"
    settings = settings_at(root, epochs=3, dim=8, learning_rate=1e-3)
    write_world(root, settings, num_users=120, fold="select-1")
    command = [str(Path(sys.executable).with_name("horovodrun")), "-np", "2", sys.executable]
    command += [str(ROOT / "jobs" / "tune_sequence.py"), "--config", str(root / "settings.yaml")]
    for override in ("sequence.launcher=horovodrun", "tuning.model=gru", "tuning.trials=3"):
        command += ["--set", override]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "JAVA_HOME": "/nowhere"}
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("best: --set sequence.learning_rate=") == 1, "rank 0 alone tells"
    kept = json.loads((root / "_artifacts" / "tuning" / "gru.json").read_text())["trials"]
    assert [trial["settings"] for trial in kept] == [trial.settings for trial in expected]
    assert [trial["ndcg"] for trial in kept] == pytest.approx([trial.ndcg for trial in expected], abs=0.02)


def test_a_search_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    _, before = searched(tmp_path, 3)
    _, after = searched(tmp_path, 5)
    assert after[:3] == before
    assert len(after) == 5
    assert len({json.dumps(trial.settings) for trial in after}) == 5, "nothing is tried again"
    kept = tmp_path / "_artifacts" / "tuning" / "gru.json"
    values = json.loads(kept.read_text())
    assert 0 < values["seconds"] < 3600
    kept.write_text(json.dumps({**values, "seconds": 3600.0}))
    _, late = searched(tmp_path, 6, minutes=60)
    assert late == after, "the time of before counts"
    kept.write_text(json.dumps({**values, "of": "other data"}))
    _, fresh = searched(tmp_path, 1)
    assert len(fresh) == 1, "trials of other data are no guide"


def test_no_training_but_the_first_begins_when_the_time_is_over(tmp_path: Path) -> None:
    _, trials = searched(tmp_path, 50, minutes=1e-6)
    assert len(trials) == 1


def test_a_hopeless_training_ends_early(tmp_path: Path) -> None:
    """Five trials of NDCG .5 at each epoch, then one of .1: it ends after its second epoch, where pruning begins."""
    settings = settings_at(tmp_path, epochs=5)
    write_world(tmp_path, settings, num_users=40)
    study = tuning.Study.open(spec_of("gru", settings), Tuning(trials=9))

    def run(ndcg: float) -> Trial:
        assert study.propose() is not None
        progress = Progress(digest="", version=0)
        for number in range(1, 6):
            progress.epochs.append(
                Epoch(epoch=number, loss=1.0, ndcg=ndcg, hit_rate=ndcg, seconds=1.0, windows_per_second=1.0)
            )
            progress.done = number == 5
            if not progress.done and study.is_hopeless(progress):
                break
        study.note(progress)
        return study.trials[-1]

    assert {run(0.5).state for _ in range(5)} == {"complete"}
    pruned = run(0.1)
    assert (pruned.state, len(pruned.epochs)) == ("pruned", 2)
    assert run(0.6).state == "complete"


def test_what_an_export_holds_is_not_searched_and_every_point_is_valid() -> None:
    sequence = Sequence(
        item_vectors=None, num_shards=6, num_processes=2, batch_rows=96, dim=60, num_heads=3, weight_decay=0.5
    )
    space = tuning.space_of(sequence)
    assert not space.keys() & {"length", "max_windows", "min_buyers", "num_shards", "objective", "item_vectors"}
    for name in ("batch_rows", "dim", "weight_decay"):
        values = space[name]
        assert isinstance(values, CategoricalDistribution)
        assert getattr(sequence, name) in values.choices
        for value in values.choices:
            Sequence.model_validate({**sequence.model_dump(), name: value})
    assert "dim" not in tuning.space_of(Sequence()), "given vectors have their own length"
    assert "num_negatives" not in tuning.space_of(Sequence(loss="full_softmax"))


def test_a_test_fold_is_refused(tmp_path: Path) -> None:
    settings = settings_at(tmp_path)
    write_world(tmp_path, settings, num_users=40)
    with pytest.raises(LaunchError, match=r"found no select fold, expected one.*folds.num_select=1"):
        select_spec(settings)
    write_world(tmp_path / "other", other := settings_at(tmp_path / "other"), num_users=40, fold="select-1")
    assert select_spec(other).export.fold == "select-1"


def test_a_training_that_fails_is_a_trial_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = tuning.Trainer.run, []

    def fail_once(self: Any, goes_on: Any) -> Progress:
        calls.append(1)
        if len(calls) == 2:
            raise tuning.TrainingError("the loss is nan")
        return run(self, goes_on)

    monkeypatch.setattr(tuning.Trainer, "run", fail_once)
    _, trials = searched(tmp_path, 3)
    assert [trial.state == "failed" for trial in trials] == [False, True, False]
    assert torch.isfinite(torch.tensor([trial.ndcg for trial in trials])).all()
