"""Several processes train what one trains with the same batches: every promise of bnnedge/train/distributed.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bnnedge.config import RunConfig
from bnnedge.errors import ConfigError
from bnnedge.files import write_atomically
from bnnedge.methods import METHODS
from bnnedge.train import loop
from bnnedge.train.checkpoint import Checkpoint, read_checkpoint
from bnnedge.train.distributed import Group
from bnnedge.train.start import resume_run, start_run

JOBS = Path(__file__).with_name("distributed_jobs.py")

NET = """
from torch import nn
from bnnedge.layers.binary_layers import BinaryConv2d


class Net(nn.Sequential):
    def __init__(self, num_classes, in_channels):
        super().__init__(
            nn.Conv2d(in_channels, 5, 3, 2, 1, bias=False), nn.BatchNorm2d(5),
            BinaryConv2d(5, 33, 3, 1, 1), nn.BatchNorm2d(33),
            BinaryConv2d(33, 6, 3, 2, 1), nn.BatchNorm2d(6),
            nn.Flatten(), nn.Linear(24, num_classes),
        )
"""

# Both processes' slices differ in size, in the 12 batches of 101 images and in the last one of 47.
SETTINGS = {"image_size": 8, "epochs": 2, "batch_size": 101, "device": "cpu", "threads": 1}

METHOD_OPTIONS: dict[str, dict[str, Any]] = {
    "bayesbinn": {"mc_steps": 2, "beta": 0.9},
    "bop": {"gamma": 1e-2, "threshold": 1e-6},
}
QUICK = ("ste", "rbnn", "bop", "bayesbinn")

TOLERANCE = 1e-9
"""The tolerance of weights, relative to the largest one of a tensor. A sum over a batch has up to 101 x 64 terms, so
another order of adding changes it by at most 101 x 64 x 2^-53 = 7e-13 of the sum of magnitudes; 26 steps and Adam's
division by the root of such sums leave a factor 50. A slice that is weighed wrongly moves weights by the learning rate,
1e-2."""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("net") / "net.py"
    path.write_text(NET)
    return f"{path}:Net"


def settings(net: str, method: str, **more: Any) -> dict[str, Any]:
    return {**SETTINGS, "model": net, "method": method, "method_options": METHOD_OPTIONS.get(method, {}), **more}


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def alone(out: Path, values: dict[str, Any]) -> None:
    start_run(RunConfig.from_dict(values), out)


def together(*jobs: tuple[str, Path, dict[str, Any]], processes: int = 2) -> None:
    """Run the jobs in ``processes`` processes, as torchrun starts them; fail with what a failing one said."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    text = json.dumps([(job, str(out), values) for job, out, values in jobs])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(loop.__file__).parents[2])}
    started = [
        subprocess.Popen(
            [sys.executable, str(JOBS), text],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        said = [process.communicate(timeout=1200)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(said)
    assert all(words == "" for words in said[1:])  # the main process alone prints


def assert_close(found: Path, expected: Path) -> None:
    """Both runs' last weights and best epochs; binary weights and integers exactly."""
    for name in ("last.ckpt", "best.ckpt"):
        a, b = (read_checkpoint(run / name) for run in (found, expected))
        assert (a.epoch, a.best_epoch, a.best_score) == (b.epoch, b.best_epoch, b.best_score)
        assert list(a.model) == list(b.model)
        for key, weight in b.model.items():
            if not weight.is_floating_point() or bool((weight.abs() == 1).all()):
                assert torch.equal(a.model[key], weight), key
            else:
                assert weight.dtype == torch.float64
                torch.testing.assert_close(
                    a.model[key], weight, rtol=0, atol=TOLERANCE * float(weight.abs().max()), msg=key
                )
                if key.endswith("weight") and weight.dim() == 4:
                    assert torch.equal(a.model[key] < 0, weight < 0), key
    for row, other in zip(*(metrics(run) for run in (found, expected)), strict=True):
        assert {k: row[k] for k in ("train_top1", "val_top1", "flip_rate")} == {
            k: other[k] for k in ("train_top1", "val_top1", "flip_rate")
        }
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=TOLERANCE)


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    assert all(torch.equal(a.model[key], b.model[key]) for key in b.model)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Crash(BaseException):
    """A power cut."""


def cut_after_an_epoch(out: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(path: Path, data: bytes) -> None:
        write_atomically(path, data)
        if path.name == "last.ckpt":
            raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(loop, "write_atomically", crash)
        alone(out, values)


@pytest.mark.usefixtures("float64")
def test_two_processes_give_the_weights_of_one(net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {method: settings(net, method) for method in QUICK}
    runs["local"] = settings(net, "ste", sync_batch_norm=False)
    ste = runs["ste"]
    cut_after_an_epoch(tmp_path / "cut", ste, monkeypatch)
    together(
        ("errors", tmp_path, {}),
        ("exchange", tmp_path, {}),
        ("batch_norm", tmp_path, {}),
        *(("start", tmp_path / f"{name}.2", values) for name, values in runs.items()),
        ("interrupt", tmp_path / "interrupted", ste),
        ("resume", tmp_path / "interrupted", {}),
        ("resume", tmp_path / "cut", {"epochs": 2}),
    )
    for name, values in runs.items():
        alone(tmp_path / f"{name}.1", values)
        if name != "local":
            assert_close(tmp_path / f"{name}.2", tmp_path / f"{name}.1")
    # An interrupt of one process stops both after the same step. Resumed by two it is bit-exact; one may go on, too.
    for name in ("last.ckpt", "best.ckpt"):
        assert_same(*(read_checkpoint(tmp_path / run / name) for run in ("interrupted", "ste.2")))
    assert read_checkpoint(tmp_path / "interrupted.copy" / "last.ckpt").epoch == 1
    resume_run(tmp_path / "interrupted.copy")
    for run in ("interrupted.copy", "cut"):
        assert_close(tmp_path / run, tmp_path / "ste.1")
    # Over its own images alone, batch normalisation does something else, and well enough.
    a, b = (read_checkpoint(tmp_path / run / "last.ckpt").model for run in ("local.2", "local.1"))
    assert not torch.allclose(a["0.weight"], b["0.weight"], rtol=0, atol=1e-6)
    assert metrics(tmp_path / "local.2")[-1]["train_loss"] < metrics(tmp_path / "local.2")[0]["train_loss"]


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_three_processes_and_micro_batches_give_the_weights_of_one(net: str, tmp_path: Path) -> None:
    """The same holds for every method that the quick test leaves out, with an EMA, a teacher and micro-batches."""
    alone(tmp_path / "teacher", settings(net, "float", epochs=1))
    runs = {method: settings(net, method, epochs=3) for method in METHODS if method not in QUICK}
    runs["all"] = settings(net, "bayesbinn", ema=0.9, accumulate=2, teacher=str(tmp_path / "teacher"))
    compiled = [("start", tmp_path / "compiled.3", settings(net, "ste", epochs=3, compile=True))]
    runs["compiled"] = settings(net, "ste", epochs=3)
    started = [("start", tmp_path / f"{name}.3", values) for name, values in runs.items() if name != "compiled"]
    together(*started, *compiled, processes=3)
    for name, values in runs.items():
        alone(tmp_path / f"{name}.1", values)
        assert_close(tmp_path / f"{name}.3", tmp_path / f"{name}.1")


def test_slices_are_the_batch_in_order() -> None:
    images, labels = torch.arange(23.0), torch.arange(23)
    for size, pieces in ((1, 1), (2, 1), (3, 4), (5, 2)):
        parts = [Group(rank, size).parts(images, labels, pieces) for rank in range(size)]
        assert torch.equal(torch.cat([parts[r][k][0] for k in range(pieces) for r in range(size)]), images)
        assert torch.equal(torch.cat([parts[r][k][1] for k in range(pieces) for r in range(size)]), labels)
        for piece in range(pieces):
            sizes = [len(parts[rank][piece][1]) for rank in range(size)]
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("size", "pieces", "sync", "fits"),
    [(1, 4, True, True), (1, 5, True, False), (8, 1, True, True), (9, 1, True, False), (4, 1, False, True)]
    + [(5, 1, False, False), (2, 4, True, True), (2, 4, False, False)],
)
def test_batches_too_small_to_share_are_refused(size: int, pieces: int, sync: bool, fits: bool) -> None:
    if fits:
        Group(0, size).check_sizes([100, 8], pieces, sync)
    else:
        with pytest.raises(ConfigError, match=rf"a batch of 8 samples .* {size} processes"):
            Group(0, size).check_sizes([100, 8], pieces, sync)


def test_an_epochs_last_batch_counts(net: str, tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> None:
    # 1259 images: the last batch of 629 is one single image, which is left out; that of 628 has 3.
    start_run(tiny_config(batch_size=629, accumulate=2, epochs=1), tmp_path / "fits")
    with pytest.raises(ConfigError, match=r"a batch of 3 samples .* of 1 with accumulate 2, but needs 2 samples"):
        start_run(tiny_config(batch_size=628, accumulate=2, epochs=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
