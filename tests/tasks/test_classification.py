"""Classification: scores against sorting, NumPy against PyTorch, ties, NaN, and the averages of several networks."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from bnnedge.errors import ConfigError
from bnnedge.tasks import TASKS
from bnnedge.tasks.classification import Classification
from bnnedge.tasks.task import Score, Tally, scores_text


def hits(logits: NDArray[np.float32], labels: NDArray[np.int64], count: int) -> int:
    """Labels among the first ``count`` classes of a stable sort: of equal logits the smaller class comes first."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return int((order == labels[:, None]).any(1).sum())


@pytest.mark.parametrize("classes", [6, 10, 33])
def test_top_1_and_top_5_with_many_ties(classes: int) -> None:
    task = Classification(classes)
    random = np.random.default_rng(classes)
    logits = random.integers(-2, 3, (257, classes)).astype(np.float32)
    labels = random.integers(0, classes, 257)
    expected = [hits(logits, labels, 1), hits(logits, labels, 5)]
    assert expected[0] == int((logits.argmax(1) == labels).sum())
    assert task.sums(logits, labels).tolist() == expected
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert task.sums(torch.from_numpy(logits).to(dtype), torch.from_numpy(labels)).tolist() == expected


def test_no_top_5_among_five_classes() -> None:
    task = Classification(5)
    assert [score.name for score in task.scores] == ["top1"]
    assert task.sums(np.eye(5, dtype=np.float32), np.arange(5)).tolist() == [5]


def test_nan_is_never_a_hit() -> None:
    task = Classification(6)
    logits = np.zeros((3, 6), np.float32)
    logits[0] = np.nan  # every class
    logits[1, 2] = np.nan  # the label's
    logits[2, 1:] = np.nan  # all but the label's
    assert task.sums(logits, np.array([0, 2, 0])).tolist() == [0, 0]
    assert task.sums(torch.from_numpy(logits), torch.tensor([0, 2, 0])).tolist() == [0, 0]


def test_infinite_logits_have_a_place() -> None:
    logits = np.array([[-math.inf, math.inf, 0, -math.inf, 0, 0, 0]], np.float32)
    task = Classification(7)
    assert [task.sums(logits, np.array([label])).tolist() for label in (1, 2, 5, 0, 3)] == [
        [1, 1],
        [0, 1],
        [0, 1],
        [0, 0],
        [0, 0],
    ]


def test_a_tally_weights_batches_by_their_samples() -> None:
    tally = Tally(Classification(10))
    with pytest.raises(ValueError, match="no sample was counted"):
        _ = tally.scores
    tally.add(np.eye(10, dtype=np.float32)[:3], np.array([0, 1, 9]))
    tally.add_sums(1, [0, 1], loss_sum=2.0)
    assert (tally.samples, tally.scores, tally.loss) == (4, {"top1": 0.5, "top5": 0.75}, 0.5)
    assert (tally.first, scores_text(tally.task, tally.scores)) == (0.5, "top-1 50.00%, top-5 75.00%")


def test_the_loss_is_cross_entropy() -> None:
    logits, labels = torch.randn(5, 7), torch.tensor([0, 6, 3, 3, 1])
    assert torch.equal(Classification(7).loss(logits, labels), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 3, 5, 2, 6)])
def test_averages_run_over_the_class_axis(shape: tuple[int, ...]) -> None:
    """The class axis of maps [S, N, C, H, W] is not the last one."""
    outputs = torch.randn(shape, dtype=torch.float64)
    task = Classification(5)
    assert torch.equal(task.average(outputs, "logits"), outputs.mean(0))
    found = task.average(outputs, "probabilities").exp()
    torch.testing.assert_close(found, outputs.softmax(2).mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]), rtol=1e-12, atol=0)


def test_agreement_is_that_of_the_arg_max() -> None:
    found = np.array([[0.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    assert Classification(2).agreement(found, found) == 1
    assert Classification(2).agreement(found, found[:, ::-1]) == 1 / 3


def test_a_data_set_without_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="task classification needs a data set with classes"):
        Classification.outputs_for(0, 3)
    assert Classification.outputs_for(7, 3) == 7


def test_the_better_score() -> None:
    up, down = Score("a", "a", "%"), Score("b", "b", "dB", higher_is_better=False)
    assert up.is_better(0.6, 0.5) and not up.is_better(0.5, 0.5) and not up.is_better(0.4, 0.5)
    assert down.is_better(0.4, 0.5) and not down.is_better(0.5, 0.5) and not down.is_better(0.6, 0.5)
    assert up.is_better(0.1, math.nan) and not up.is_better(math.nan, 0.1) and not up.is_better(math.nan, math.nan)
    assert (up.text(0.12345), down.text(14.8765)) == ("12.35%", "14.88 dB")


def test_tasks_and_records_import_no_torch() -> None:
    """A device that only runs files has none."""
    names = [*(f"bnnedge.tasks.{name}" for name in ("task", "measured", "classification"))]
    names += ["bnnedge.data.preprocessing", "bnnedge.data.info", "bnnedge.export.description"]
    assert set(TASKS) == {"classification"}, "import the new task here too"
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
