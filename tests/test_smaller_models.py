"""Smaller and faster models for serving: a teacher's part in the loss, encoding in int8, pruned feed-forward units."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sequence_world import FOLD, VOCABULARY, settings_at, spec_of, write_world
from xrec.config import Sequence
from xrec.features.sequence_files import TRAIN, export_location
from xrec.sequence.distillation import Teacher, TeacherError, check_teacher, checkpoint_of, divergence
from xrec.sequence.encode import encoder_of
from xrec.sequence.int8 import Int8Error, Int8Linear, Int8Recurrent, check_int8, quantise
from xrec.sequence.loader import Events, Shard, Windows
from xrec.sequence.losses import Loss, windows_loss
from xrec.sequence.models import SequenceModel, build_model, load_model, model_settings
from xrec.sequence.objective import asked_of
from xrec.sequence.progress import load_progress, save_progress
from xrec.sequence.pruning import prune
from xrec.sequence.ranks import train_all
from xrec.sequence.spec import TrainingSpec
from xrec.sequence.states import states_of
from xrec.sequence.transformer import Block, Transformer
from xrec.sequence.vocabulary import Vocabulary
from xrec.storage.files import read_json, write_json

pytestmark = pytest.mark.torch

KINDS: dict[str, dict[str, Any]] = {"gru": {}, "lstm": {"cell": "lstm"}, "transformer": {"num_layers": 2}}


def model_name(kind: str) -> str:
    return "transformer" if kind == "transformer" else "gru"


def test_the_divergence_is_a_naive_versions() -> None:
    """Two targets of a state, one of them among the negatives already, and a state whose negatives are all out."""
    torch.manual_seed(3)
    negatives, states = [4, 7, 7, 2], [0, 0, 1, 2]
    targets = [7, 9, 5, 3]
    scores = torch.randn(2, 3, 10)
    out = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    expected = []
    for state, target in zip(states, targets, strict=True):
        items = [token for place, token in enumerate(negatives) if not out[state, place]]
        items += [] if target in negatives else [target]
        taught, learned = scores[:, state, items].log_softmax(dim=1)
        expected.append(float(F.kl_div(learned, taught, reduction="sum", log_target=True)))
    sides = [
        (one[:, negatives].masked_fill(out, -1e9), one[torch.tensor(states), torch.tensor(targets)]) for one in scores
    ]
    is_hit = torch.tensor([target in negatives for target in targets])
    found = divergence(sides[0], sides[1], torch.tensor(states), is_hit)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert divergence(sides[0], sides[0], torch.tensor(states), is_hit).abs().max() < 1e-6


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world, and one training of each kind of model at ``<kind>``, copied to ``teacher``."""
    root: Path = tmp_path_factory.mktemp("world")
    for kind, sequence in KINDS.items():
        settings = settings_at(root / kind, epochs=5, **sequence)
        write_world(root / kind, settings)
        train_all([spec_of(model_name(kind), settings)])
    return root


def at(world: Path, kind: str, **sequence: Any) -> TrainingSpec:
    return spec_of(model_name(kind), settings_at(world / kind, epochs=5, **KINDS[kind], **sequence))


def batch_of(spec: TrainingSpec) -> Windows:
    return next(Shard.find(spec.export, TRAIN, 0).batches(20))


def loss_of(
    spec: TrainingSpec, model: SequenceModel, teacher: Teacher | None, batch: Windows, loss: Loss
) -> tuple[Tensor, Tensor]:
    """A batch's summed loss and its gradients."""
    vocabulary = Vocabulary.read(spec)
    model.zero_grad()
    asked = asked_of(batch, vocabulary, spec.settings.sequence)
    summed = windows_loss(
        model, batch.inputs().tokens, asked, loss.draw(5), loss.function, precision="fp32", teacher=teacher
    )
    summed.backward()  # type: ignore[no-untyped-call]
    return summed.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def a_loss(sequence: Sequence) -> Loss:
    q = torch.arange(VOCABULARY + 1).double()
    return Loss.choose(sequence, q / q.sum(), q > 0, torch.device("cpu"))


@pytest.mark.parametrize("name", ["full_softmax", "sampled_softmax", "gbce"])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it(world: Path, name: str) -> None:
    spec = at(world, "gru", loss=name, teacher_share=1.0)
    loss = a_loss(spec.settings.sequence)
    student = load_model(spec.checkpoint)
    teacher = Teacher.load(teacher_spec(world, spec), loss.q_V, torch.device("cpu"))
    summed, gradient = loss_of(spec, student, teacher, batch_of(spec), loss)
    assert abs(float(summed)) < 1e-3
    assert float(gradient.norm()) < 1e-2 * float(loss_of(spec, student, None, batch_of(spec), loss)[1].norm())


def teacher_spec(world: Path, spec: TrainingSpec) -> TrainingSpec:
    """The same training with what was trained as its teacher, in a copy."""
    folder = f"{world}/{spec.model}_teacher"
    if not Path(folder).exists():
        shutil.copytree(spec.artifacts, folder)
    return dataclasses.replace(spec, teacher=folder)


def test_the_teachers_part_pulls_an_untrained_student_to_it(world: Path) -> None:
    spec = at(world, "gru", teacher_share=1.0)
    loss = a_loss(spec.settings.sequence)
    teacher = Teacher.load(teacher_spec(world, spec), loss.q_V, torch.device("cpu"))
    torch.manual_seed(0)
    student = build_model(model_settings("gru", spec.settings.sequence, VOCABULARY)).eval()
    batch, tokens = batch_of(spec), torch.from_numpy(batch_of(spec).inputs().tokens).long()
    wanted = teacher.model.items.logits(teacher.model(tokens)[:, -1])[:, 1:].softmax(dim=1)
    optimizer, distances = torch.optim.Adam(student.parameters(), lr=0.02), []
    for _ in range(60):
        found = student.items.logits(student(tokens)[:, -1])[:, 1:].softmax(dim=1)
        distances.append(float((found - wanted).abs().sum(dim=1).mean().detach()))
        loss_of(spec, student, teacher, batch, loss)
        optimizer.step()
    assert distances[-1] < 0.4 * distances[0]
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_the_loss_with_a_teacher_is_a_sum_over_targets(world: Path) -> None:
    """So that it does not matter how many processes share a batch."""
    spec = at(world, "transformer", loss="sampled_softmax")
    loss = a_loss(spec.settings.sequence)
    teacher = Teacher.load(teacher_spec(world, spec), loss.q_V, torch.device("cpu"))
    torch.manual_seed(0)
    student = build_model(model_settings("transformer", Sequence(dim=8, length=9), VOCABULARY)).eval()
    batch = batch_of(spec)
    whole, gradient = loss_of(spec, student, teacher, batch, loss)
    parts = [loss_of(spec, student, teacher, batch.take(rows), loss) for rows in (slice(7), slice(7, None))]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole)
    torch.testing.assert_close(parts[0][1] + parts[1][1], gradient, rtol=1e-3, atol=1e-4)
    assert whole != loss_of(spec, student, None, batch, loss)[0], "the teacher says nothing"


def test_a_student_learns_from_its_teacher_alone(world: Path, tmp_path: Path) -> None:
    """A smaller one, to whose loss its targets add nothing."""
    shutil.copytree(world / "gru", tmp_path / "student")
    teacher = teacher_spec(world, at(world, "gru"))
    settings = settings_at(tmp_path / "student", dim=12, epochs=8, teacher=teacher.teacher, teacher_share=1.0)
    progress = train_all([spec_of("gru", settings)])[0]
    taught_by = load_progress(teacher.checkpoint)
    assert taught_by is not None
    ndcg, of_teacher = (max(epoch.ndcg or 0 for epoch in one.epochs) for one in (progress, taught_by))
    assert ndcg > 0.9 * of_teacher, (ndcg, of_teacher)


def test_a_teacher_that_does_not_fit_is_refused(world: Path) -> None:
    spec = at(world, "gru")
    with pytest.raises(TeacherError, match=r"where this training keeps its own checkpoint, expected a copy elsewhere"):
        check_teacher(spec, spec.artifacts)
    with pytest.raises(TeacherError, match=r"found no training in .*nowhere/test-2020-01-01/gru/checkpoint"):
        check_teacher(spec, f"{world}/nowhere")
    folder = f"{world}/refused"
    shutil.copytree(spec.artifacts, folder)
    check_teacher(spec, folder)
    contract = export_location(folder, FOLD)
    values = read_json(contract)
    write_json(contract, values | {"vocabulary_version": 3})
    with pytest.raises(TeacherError, match=r"export.json: vocabulary_version: found 3, expected 0"):
        check_teacher(spec, folder)
    write_json(contract, values)
    checkpoint = checkpoint_of(spec, folder)
    progress = load_progress(checkpoint)
    assert progress is not None
    for changed, match in (({"version": 4}, r"version 4 of the sequences, expected 0"), ({"done": False}, r"stopped")):
        save_progress(checkpoint, dataclasses.replace(progress, **changed))
        with pytest.raises(TeacherError, match=match):
            check_teacher(spec, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_int8_changes_states_a_little_and_rankings_hardly(world: Path, kind: str) -> None:
    spec = at(world, kind, encoder="int8")
    model = load_model(spec.checkpoint)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    encoder = encoder_of(spec, model)
    assert encoder.items is model.items
    layers = [type(layer) for layer in encoder.modules()]
    expected = {"transformer": [Int8Linear] * 9}.get(kind, [Int8Recurrent, Int8Linear, Int8Linear])
    assert [layer for layer in layers if layer in (Int8Linear, Int8Recurrent)] == expected
    tokens = next(Shard.find(spec.export, TRAIN, 1).read()).newest().tokens
    rows, places = np.arange(len(tokens)), np.full(len(tokens), tokens.shape[1] - 1)
    with torch.inference_mode():
        exact, found = (states_of(one, tokens, rows, places) for one in (model, encoder))
        best = [model.items.logits(states).topk(5).indices for states in (exact, found)]
    assert 0 < float((found - exact).std()) < 0.03 * float(exact.std())
    shared = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(best[0].tolist(), best[1].tolist(), strict=True)])
    assert shared > 0.95
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_int8_keeps_padding_out(world: Path, kind: str) -> None:
    """Zeros are zeros in int8 as well, so that a shorter history in a longer row has the same state."""
    encoder = copy.deepcopy(load_model(at(world, kind).checkpoint))
    quantise(encoder)
    tokens = torch.randint(1, VOCABULARY + 1, (6, 5))
    padded = torch.cat([torch.zeros(6, 4, dtype=torch.long), tokens], dim=1)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(padded)[:, 4:], encoder(tokens), rtol=0.1, atol=0.1)
        if kind != "transformer":
            torch.testing.assert_close(encoder(padded)[:, 4:], encoder(tokens), rtol=1e-4, atol=1e-5)


def test_int8_is_refused_on_a_gpu() -> None:
    check_int8(torch.device("cpu"))
    with pytest.raises(Int8Error, match=r"sequence.encoder: found int8 on a GPU \(cuda:0\), expected processors alone"):
        check_int8(torch.device("cuda", 0))


def a_transformer(world: Path) -> tuple[Transformer, Tensor]:
    """A trained one and tokens of its users."""
    spec = at(world, "transformer")
    model = load_model(spec.checkpoint)
    assert isinstance(model, Transformer)
    return model, torch.from_numpy(batch_of(spec).newest().tokens).long()


def pruned(model: Transformer, share: float, tokens: Tensor) -> Transformer:
    smaller = copy.deepcopy(model)
    prune(smaller, share, Events(tokens.int().numpy(), None))
    return smaller


def units_of(model: Transformer) -> list[int]:
    return [len(block.feed[0].weight) for block in model.blocks if isinstance(block, Block)]  # type: ignore[arg-type]


def test_a_share_of_zero_prunes_nothing_to_the_bit(world: Path) -> None:
    model, tokens = a_transformer(world)
    with torch.inference_mode():
        assert torch.equal(pruned(model, 0.0, tokens)(tokens), model(tokens))
    assert encoder_of(at(world, "transformer"), model) is model


@pytest.mark.parametrize("how", ["no weight out", "no weight in"])
def test_units_that_say_nothing_leave_without_a_trace(world: Path, how: str) -> None:
    """A unit whose outgoing weights are zero, and one that is the same constant for everybody."""
    model, tokens = a_transformer(world)
    with torch.no_grad():
        for block in model.blocks:
            assert isinstance(block, Block)
            weight: Tensor = block.feed[2].weight.T if how == "no weight out" else block.feed[0].weight  # type: ignore[assignment, operator]
            weight[::4] = 0
        smaller = pruned(model, 0.25, tokens)
        assert units_of(smaller) == [24, 24]
        torch.testing.assert_close(smaller(tokens), model(tokens), rtol=1e-4, atol=1e-5)


def test_what_leaves_is_what_matters_least(world: Path) -> None:
    """Half of the units change less than half of those that vary by chance, and what is encoded has them."""
    model, tokens = a_transformer(world)
    is_event = tokens > 0
    with torch.inference_mode():
        exact = model(tokens)[is_event]
        chosen = (pruned(model, 0.5, tokens)(tokens)[is_event] - exact).square().mean()
        at_random = []
        for seed in range(5):
            smaller, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
            for block in smaller.blocks:
                assert isinstance(block, Block)
                gone = torch.randperm(32, generator=generator)[:16]
                block.feed[2].weight[:, gone] = 0  # type: ignore[index, operator]
            at_random.append(float((smaller(tokens)[is_event] - exact).square().mean()))
    assert chosen < 0.5 * np.mean(at_random)
    encoder = encoder_of(at(world, "transformer", pruned=0.5, encoder="int8"), model)
    assert isinstance(encoder, Transformer)
    assert [type(layer) for layer in encoder.modules()].count(Int8Linear) == 9


def test_all_three_in_one_training(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Users' vectors come from the smaller encoder, the checkpoint is the whole model in float32."""
    spec = at(world, "transformer")
    shutil.copytree(world / "transformer", tmp_path / "t")
    teacher = teacher_spec(world, spec).teacher
    settings = settings_at(tmp_path / "t", dim=8, epochs=1, teacher=teacher, encoder="int8", pruned=0.5, threads=1)
    taught = spec_of("transformer", settings)
    train_all([taught])
    said = capsys.readouterr().out
    assert "users are encoded in int8, 50% of the feed-forward units left out, validation NDCG@10" in said
    model = load_model(taught.checkpoint)
    assert isinstance(model, Transformer)
    assert units_of(model) == [16]
    assert taught.digest != dataclasses.replace(taught, settings=settings_at(tmp_path / "u", dim=8, epochs=1)).digest
