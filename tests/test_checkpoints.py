"""What a training leaves: which epochs are kept, and what a damaged file costs."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sequence_world import settings_at, spec_of, write_world
from xrec.sequence import checkpoint
from xrec.sequence.checkpoint import DamagedError, epoch_file, kept_epochs, load_tensors, save_epoch
from xrec.sequence.models import load_model
from xrec.sequence.optimization import Optimization, TrainingError
from xrec.sequence.progress import Epoch, Progress, best_of, load_progress
from xrec.sequence.ranks import train_all
from xrec.sequence.spec import TrainingSpec
from xrec.storage.files import FilesError, exists, names_in, read_json, write_bytes, write_json

pytestmark = [pytest.mark.torch, pytest.mark.horovod]


def epochs_of(*ndcgs: float | None) -> list[Epoch]:
    return [
        Epoch(epoch=number, loss=1.0, ndcg=ndcg, hit_rate=None, seconds=1.0, windows_per_second=1.0)
        for number, ndcg in enumerate(ndcgs, start=1)
    ]


@pytest.mark.parametrize(
    ("ndcgs", "best", "kept"),
    [
        ([], 0, set()),
        ([0.2], 1, {1}),
        ([0.2, 0.5, 0.4, 0.3], 2, {2, 3, 4}),
        ([0.2, 0.5, 0.4, 0.5], 2, {2, 3, 4}),
        ([0.2, 0.5, 0.4, 0.6], 4, {2, 3, 4}),
        ([None, None, None], 3, {2, 3}),
    ],
)
def test_the_newest_epochs_and_their_bests_are_kept(ndcgs: list[float | None], best: int, kept: set[int]) -> None:
    progress = Progress(digest="d", version=1, epochs=epochs_of(*ndcgs))
    assert best_of(progress.epochs) == best
    assert kept_epochs(progress, 2) == kept


def interrupted(tmp_path: Path, **sequence: Any) -> Any:
    """A training of four epochs that was killed after the last was saved; gives its spec and what it would have ended with."""
    settings = settings_at(tmp_path, epochs=4, **sequence)
    write_world(tmp_path, settings, num_users=100)
    spec = spec_of("gru", settings)
    progress = train_all([spec])[0]
    location = f"{spec.checkpoint}/progress.json"
    write_json(location, {**read_json(location), "closed": False, "done": False})
    return spec, progress, load_tensors(epoch_file(spec.checkpoint, 4))


def damage(folder: str, epoch: int) -> None:
    file = Path(epoch_file(folder, epoch))
    file.write_bytes(file.read_bytes()[:1000])


def flip_a_bit(folder: str, epoch: int) -> None:
    """Of a number, which safetensors reads as any other."""
    file = Path(epoch_file(folder, epoch))
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def lose(folder: str, epoch: int) -> None:
    Path(epoch_file(folder, epoch)).unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage, r"epoch-4.safetensors: damaged \(.*\), expected a checkpoint's tensors\n"),
        (
            flip_a_bit,
            r"epoch-4.safetensors: damaged \(SHA-256: found \w+, expected \w+\), expected a checkpoint's tensors\n",
        ),
        (lose, r"epoch-4.safetensors: no such file\n"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_skipped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], harm: Callable[[str, int], None], message: str
) -> None:
    """The training ends with the same weights, to the bit."""
    spec, expected, tensors = interrupted(tmp_path)
    harm(spec.checkpoint, 4)
    capfd.readouterr()
    progress = train_all([spec])[0]
    said = capfd.readouterr().out
    assert re.search(message, said)
    assert f"resuming after epoch 3 from {spec.checkpoint}" in said
    assert [epoch.loss for epoch in progress.epochs] == [epoch.loss for epoch in expected.epochs]
    found = load_tensors(epoch_file(spec.checkpoint, 4))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{\n "best": 4,', "not JSON"),
        (b"\x80\x81\x82", "not JSON"),
        (b'{"folds": []}', "found {'folds': []}, expected a training's digest, version,"),
        (b"[1]", "found [1], expected a training's"),
    ],
)
def test_damaged_progress_is_named_and_the_epochs_tell_of_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes, found: str
) -> None:
    spec, expected, _ = interrupted(tmp_path)
    Path(spec.checkpoint, "progress.json").write_bytes(content)
    with pytest.raises(FilesError, match=r"progress.json: .*; remove it and "):
        load_model(spec.checkpoint)
    capfd.readouterr()
    assert train_all([spec])[0] == expected
    said = capfd.readouterr().out
    assert f"progress.json: {found}" in said
    assert f"resuming after epoch 4 from {spec.checkpoint}" in said


def test_without_progress_the_newest_epoch_that_can_be_read_tells_of_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec, expected, _ = interrupted(tmp_path)
    Path(spec.checkpoint, "progress.json").unlink()
    Path(epoch_file(spec.checkpoint, 4)).write_bytes(b"no tensors")
    capfd.readouterr()
    progress = train_all([spec])[0]
    assert f"resuming after epoch 3 from {spec.checkpoint}" in capfd.readouterr().out
    assert [epoch.loss for epoch in progress.epochs] == [epoch.loss for epoch in expected.epochs]


def test_where_nothing_can_be_read_the_training_starts_afresh(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec, expected, _ = interrupted(tmp_path)
    for epoch in range(1, 5):
        if f"epoch-{epoch}.safetensors" in names_in(spec.checkpoint):
            damage(spec.checkpoint, epoch)
    capfd.readouterr()
    progress = train_all([spec])[0]
    said = capfd.readouterr().out
    assert "can be read: starting afresh" in said
    assert "epoch 1/4" in said
    assert [epoch.loss for epoch in progress.epochs] == [epoch.loss for epoch in expected.epochs]


STEPS = 11
"""Steps after which a training is killed: within its second epoch."""


class KilledError(Exception):
    """Stands for a kill."""


def train_until(monkeypatch: pytest.MonkeyPatch, spec: TrainingSpec, is_killed: Callable[[int, int], bool]) -> None:
    """A training that saves after every step, until it is killed before a step (its number from 0, and how many there are)."""
    take_step = Optimization.step

    def take_late(self: Optimization, step: int, num_steps: int, sums: torch.Tensor, is_late: bool) -> bool:
        if is_killed(step, num_steps):
            raise KilledError
        return take_step(self, step, num_steps, sums, True)

    with monkeypatch.context() as patched:
        patched.setattr(Optimization, "step", take_late)
        with pytest.raises(KilledError):
            train_all([spec])


def killed_within(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[TrainingSpec, TrainingSpec, list[int]]:
    """Equal trainings, one of them to its end, the other killed within an epoch; the steps that others take from now on."""
    specs = []
    for name in ("whole", "killed"):
        settings = settings_at(tmp_path / name, epochs=3, batch_rows=16)
        write_world(tmp_path / name, settings, num_users=60)
        specs.append(spec_of("transformer", settings))
    train_all(specs[:1])
    train_until(monkeypatch, specs[1], lambda step, num_steps: step == STEPS)
    steps: list[int] = []
    take_step = Optimization.step

    def counted(self: Optimization, step: int, num_steps: int, sums: torch.Tensor, is_late: bool) -> bool:
        steps.append(step)
        return take_step(self, step, num_steps, sums, is_late)

    monkeypatch.setattr(Optimization, "step", counted)
    return specs[0], specs[1], steps


def assert_same_end(found: TrainingSpec, expected: TrainingSpec) -> None:
    """Losses, weights and optimizer, to the bit."""
    progresses = [load_progress(spec.checkpoint) for spec in (found, expected)]
    losses = [[epoch.loss for epoch in progress.epochs] for progress in progresses if progress]
    assert losses[0] == losses[1]
    ours, theirs = (load_tensors(epoch_file(spec.checkpoint, 3)) for spec in (found, expected))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_training_that_is_killed_within_an_epoch_goes_on_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, killed, steps = killed_within(monkeypatch, tmp_path)
    assert "begun.safetensors" in names_in(killed.checkpoint)
    capfd.readouterr()
    train_all([killed])
    said = re.search(r"resuming after epoch (\d) and (\d+) steps of the next from", capfd.readouterr().out)
    assert said is not None
    epochs_ended, steps_of_next = int(said[1]), int(said[2])
    steps_of_an_epoch = (STEPS - steps_of_next) // epochs_ended
    assert steps_of_next > 0
    assert steps == [*range(STEPS, 3 * steps_of_an_epoch)], "no step is taken twice, none left out"
    assert_same_end(killed, whole)
    assert "begun.safetensors" not in names_in(killed.checkpoint)


def test_where_an_epoch_was_is_found_without_progress(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, killed, steps = killed_within(monkeypatch, tmp_path)
    Path(killed.checkpoint, "progress.json").write_text("{")
    train_all([killed])
    assert " steps of the next from" in capfd.readouterr().out
    assert steps[0] == STEPS
    assert_same_end(killed, whole)


@pytest.mark.parametrize("content", [b"no tensors", None], ids=["its head", "a number"])
def test_a_damaged_place_within_an_epoch_is_named_and_costs_that_epoch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    whole, killed, steps = killed_within(monkeypatch, tmp_path)
    file = Path(killed.checkpoint, "begun.safetensors")
    damaged = bytearray(file.read_bytes())
    damaged[-100] ^= 1
    file.write_bytes(content or damaged)
    capfd.readouterr()
    train_all([killed])
    said = capfd.readouterr().out
    assert re.search(r"begun.safetensors: damaged.*, expected a checkpoint's tensors\n", said)
    assert "resuming after epoch 1 from" in said
    assert 0 < steps[0] < STEPS
    assert_same_end(killed, whole)


def test_a_place_within_an_epoch_that_has_ended_since_is_not_gone_back_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A kill between the epoch's file and the removal leaves both."""
    whole, killed, _ = killed_within(monkeypatch, tmp_path)
    place = Path(killed.checkpoint, "begun.safetensors")
    older = place.read_bytes()
    train_all([killed])
    location = f"{killed.checkpoint}/progress.json"
    write_json(location, {**read_json(location), "closed": False})
    place.write_bytes(older)
    capfd.readouterr()
    train_all([killed])
    assert "resuming after epoch 3 from" in capfd.readouterr().out
    assert_same_end(killed, whole)


def test_a_training_that_falls_back_an_epoch_goes_on_within_it_after_the_next_kill(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its newest epoch is damaged; what was saved within its second try counts, though ``progress.json`` knew more."""
    whole, killed, _ = killed_within(monkeypatch, tmp_path)
    Path(killed.checkpoint, "begun.safetensors").unlink()
    train_all([killed])
    location = f"{killed.checkpoint}/progress.json"
    write_json(location, {**read_json(location), "closed": False, "done": False})
    damage(killed.checkpoint, 3)
    train_until(monkeypatch, killed, lambda step, num_steps: step % (num_steps // 3) == 4)
    capfd.readouterr()
    train_all([killed])
    assert "resuming after epoch 2 and 4 steps of the next from" in capfd.readouterr().out
    assert_same_end(killed, whole)


def test_a_training_that_is_removed_leaves_nothing_to_go_on_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed while the last run's folder is removed: of it no epoch stays that a later run would take for its own."""
    spec, expected, _ = interrupted(tmp_path)
    location = f"{spec.checkpoint}/progress.json"
    write_json(location, {**read_json(location), "closed": True, "done": True})
    removed: list[str] = []
    remove = checkpoint.remove

    def remove_or_die(location: str) -> None:
        if Path(location).is_dir():
            Path(location, "settings.json").unlink()
            raise KilledError
        removed.append(location)
        remove(location)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "remove", remove_or_die)
        with pytest.raises(KilledError):
            train_all([spec])
    assert removed
    train_all([spec])
    assert "resuming" not in capfd.readouterr().out
    assert exists(f"{spec.checkpoint}/settings.json")
    again = load_progress(spec.checkpoint)
    assert again is not None
    assert [epoch.loss for epoch in again.epochs] == [epoch.loss for epoch in expected.epochs]


def test_what_a_killed_save_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    spec, progress, tensors = interrupted(tmp_path)
    rest = Path(spec.checkpoint, ".epoch-4.safetensors.0a1b2c3d")
    rest.write_bytes(b"half")
    save_epoch(spec.checkpoint, tensors, progress, num_kept=2)
    assert not rest.exists()


def test_a_full_disk_leaves_no_half_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_bytes(f"{tmp_path}/folder/file", b"content")
    assert names_in(f"{tmp_path}/folder") == []


@pytest.mark.parametrize("model", ["gru", "transformer"])
def test_a_training_that_diverges_stops_before_it_is_saved(tmp_path: Path, model: str) -> None:
    settings = settings_at(tmp_path, epochs=4, learning_rate=1e30)
    write_world(tmp_path, settings, num_users=100)
    spec = spec_of(model, settings)
    with pytest.raises(TrainingError, match=r"is (nan|inf), expected a finite number; lower sequence.learning_rate"):
        train_all([spec])
    assert [name for name in names_in(spec.checkpoint) if name.endswith(".safetensors")] == []


def test_one_checkpoint_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    spec, progress, _ = interrupted(tmp_path, num_checkpoints=1)
    files = [name for name in names_in(spec.checkpoint) if name.endswith(".safetensors")]
    assert files == sorted({f"epoch-{progress.last}.safetensors", f"epoch-{progress.best}.safetensors"})


def test_a_model_whose_file_is_damaged_is_not_loaded(tmp_path: Path) -> None:
    spec, progress, _ = interrupted(tmp_path)
    damage(spec.checkpoint, progress.best)
    with pytest.raises(
        DamagedError, match=r"epoch-\d.safetensors: damaged .* expected a checkpoint's tensors; train again"
    ):
        load_model(spec.checkpoint)


def test_a_step_in_parts_is_the_same_step(tmp_path: Path) -> None:
    """With dropout: its masks belong to the shards."""
    losses = []
    for accumulate in (1, 2):
        root = tmp_path / str(accumulate)
        settings = settings_at(root, epochs=3, accumulate=accumulate)
        write_world(root, settings, num_users=100)
        losses.append([epoch.loss for epoch in train_all([spec_of("transformer", settings)])[0].epochs])
    assert losses[0] != losses[1], "sums in another order"
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_parts_divide_a_processs_shards(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"sequence.accumulate: found 3, expected a divisor of num_shards / num_processes"
    ):
        settings_at(tmp_path, accumulate=3)
