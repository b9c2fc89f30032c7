"""Distillation: the loss against NumPy, and a teacher that stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from bnnedge.config import RunConfig
from bnnedge.data.dataset import load_dataset
from bnnedge.errors import CheckpointError, ConfigError
from bnnedge.tasks.classification import Classification
from bnnedge.train import loop
from bnnedge.train.assemble import make_state
from bnnedge.train.distillation import Distillation
from bnnedge.train.load import load_run
from bnnedge.train.resolve import resolve
from bnnedge.train.run_folder import RunFolder
from bnnedge.train.start import resume_run, start_run

Config = Callable[..., RunConfig]
TASK = Classification(7)


def softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_cross_entropy_and_its_gradient(temperature: float) -> None:
    student = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    loss = TASK.soft_loss(student, teacher, temperature)
    loss.backward()
    p, q = softmax(teacher.detach().numpy() / temperature), softmax(student.detach().numpy() / temperature)
    assert float(loss.detach()) == pytest.approx(-(temperature**2) * (p * np.log(q)).sum() / 5, rel=1e-12)
    assert student.grad is not None and teacher.grad is None
    np.testing.assert_allclose(student.grad.numpy(), temperature * (q - p) / 5, rtol=0, atol=1e-14)


def test_weight_mixes_labels_and_teacher() -> None:
    logits, targets, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    soft, hard = TASK.soft_loss(logits, targets, 2.0), nn.functional.cross_entropy(logits, labels)
    for weight in (0.0, 0.25, 1.0):
        distillation = Distillation(nn.Identity(), nn.Module.__call__, TASK, weight, 2.0)
        expected = weight * soft + (1 - weight) * hard
        torch.testing.assert_close(distillation.loss(logits, labels, targets), expected)


def test_a_teacher_in_training_mode_is_put_into_eval_mode() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    images = torch.randn(8, 3) + 2
    targets = Distillation(network, nn.Module.__call__, TASK, 1.0, 1.0).outputs(images)
    torch.testing.assert_close(targets, images, rtol=1e-5, atol=0)  # BatchNorm1d's eps; statistics as at the start
    assert not any(p.requires_grad for p in network.parameters())


@pytest.fixture
def teacher(tiny_config: Config, tmp_path: Path) -> Path:
    start_run(tiny_config(method="float", epochs=5, batch_size=32, lr=0.02), tmp_path / "teacher")
    return tmp_path / "teacher"


def test_the_teacher_stays_in_eval_mode_and_unchanged(teacher: Path, tiny_config: Config, tmp_path: Path) -> None:
    state = make_state(resolve(tiny_config(teacher=str(teacher), epochs=1)), load_dataset("digits", 8))
    assert state.distillation is not None
    network = state.distillation.teacher
    saved = load_run(teacher).model.state_dict()
    images = torch.randn(3, 1, 8, 8)
    before = state.distillation.outputs(images)
    (tmp_path / "run").mkdir()
    loop.fit(state, RunFolder(tmp_path / "run"))
    assert not any(module.training for module in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    assert all(torch.equal(v, saved[k]) for k, v in network.state_dict().items())
    assert torch.equal(state.distillation.outputs(images), before)


def test_the_student_learns_the_teacher_and_not_the_labels(teacher: Path, tiny_config: Config, tmp_path: Path) -> None:
    """A teacher that calls every digit by the next one's name teaches just that."""
    dataset = load_dataset("digits", 8)
    state = make_state(resolve(tiny_config(teacher=str(teacher), epochs=8, batch_size=32, lr=0.01)), dataset)
    assert state.distillation is not None
    state.distillation.predict = lambda model, images: model(images).roll(1, dims=1)
    (tmp_path / "run").mkdir()
    loop.fit(state, RunFolder(tmp_path / "run"))
    images, labels = next(dataset.batches("train", 1259))
    with torch.no_grad():
        found = state.model.eval()(images).argmax(1)
    assert float((found == (labels + 1) % 10).float().mean()) > 0.3 > float((found == labels).float().mean())


def test_a_distilled_run_is_resumed_exactly(
    teacher: Path, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(teacher=str(teacher), distill_weight=0.5, distill_temperature=2.0, epochs=2)
    whole = start_run(config, tmp_path / "whole")

    def crash(folder: RunFolder, row: dict[str, object]) -> None:
        append(folder, row)
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    append = RunFolder.append_metrics
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "append_metrics", crash)
        start_run(config, tmp_path / "cut")
    assert resume_run(tmp_path / "cut") == whole


def test_teachers_that_do_not_fit(teacher: Path, tiny_config: Config, tmp_path: Path) -> None:
    for values, kind, words in (
        ({"teacher": str(tmp_path / "none")}, CheckpointError, "there is no run in"),
        (
            {"teacher": str(teacher), "image_size": 12},
            ConfigError,
            "preprocessing differs; .*height=8",
        ),
    ):
        with pytest.raises(kind, match=words):
            start_run(tiny_config(**values), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="need a teacher"):
        tiny_config(distill_weight=0.5)
    with pytest.raises(ConfigError, match="distill_weight must be from 0 to 1"):
        tiny_config(teacher="x", distill_weight=1.5)
