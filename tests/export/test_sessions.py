"""What goes wrong in a session of a runtime is an error of that session: the process and the session go on."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnnedge import export
from bnnedge.errors import DataError, ExportError
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.layers.binary_layers import BinaryConv2d
from bnnedge.methods import METHODS

TARGETS = {
    "onnxruntime": "onnx",
    "onnxruntime+bnnedge": "onnx",
    "litert": "lce",
    "litert+bnnedge": "lce",
    "lce": "lce",
}
"""Runtimes and the targets whose files they run."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A binary network of two convolutions in each format."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 33, 3, padding=1),
        BinaryConv2d(33, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        BinaryConv2d(32, 5, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    METHODS.load("ste")(METHODS.load("ste").Options()).attach(network)
    paths = {"onnx": folder / "network.onnx", "lce": folder / "network.tflite"}
    for target, path in paths.items():
        export(network.eval(), torch.randn(1, 1, 8, 8), path, target=target)
    return paths


@pytest.fixture(params=TARGETS)
def opened(request: pytest.FixtureRequest, files: dict[str, Path]) -> Any:
    runtime = RUNTIMES.load(request.param)
    if why := runtime.unavailable():
        pytest.skip(why)
    return runtime.open(files[TARGETS[request.param]].read_bytes(), 2)


def images(count: int) -> Any:
    return np.random.default_rng(0).standard_normal((count, 1, 8, 8), dtype=np.float32)


def test_an_empty_batch_is_refused_and_the_session_lives_on(opened: Any) -> None:
    expected = opened.run(images(3))
    with pytest.raises(DataError, match="expected a batch of at least one image, found an empty one"):
        opened.run(images(0))
    assert np.array_equal(opened.run(images(3)), expected)


def test_a_litert_session_after_a_batch_that_failed(files: dict[str, Path]) -> None:
    session = RUNTIMES.load("litert+bnnedge").open(files["lce"].read_bytes(), 1)
    expected = session.run(images(2))
    with pytest.raises(ExportError, match="LiteRT cannot run a batch of 0: "):
        session.stored_outputs([np.zeros((0, 8, 8, 1), np.float32)])
    assert np.array_equal(session.run(images(2)), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
@pytest.mark.parametrize("runtime", ["onnxruntime+bnnedge", "litert+bnnedge"])
@pytest.mark.parametrize("allowed", [30, 300, 1500])
def test_a_batch_beyond_memory(runtime: str, allowed: int, files: dict[str, Path]) -> None:
    """``allowed`` MiB let different allocations fail: those of the first tensors, and later ones."""
    path = files[TARGETS[runtime]]
    script = f"""
        import resource, numpy as np
        from pathlib import Path
        from bnnedge.errors import ExportError
        from bnnedge.export.runtimes import RUNTIMES
        session = RUNTIMES.load({runtime!r}).open(Path({str(path)!r}).read_bytes(), 2)
        few, many = np.ones((3, 1, 8, 8), np.float32), np.ones((200_000, 1, 8, 8), np.float32)
        expected = session.run(few)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + {allowed << 20}, used + {allowed << 20}))
        try:
            session.run(many)
            print("it ran")
        except ExportError as error:
            print(error)
        assert np.array_equal(session.run(few), expected)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "cannot run a batch of 200000: " in ended.stdout


FORKING = """
import gc, os, sys, time, numpy as np
from pathlib import Path
from bnnedge.export.runtimes import RUNTIMES
runtime, path, threads, does = sys.argv[1:]
session = RUNTIMES.load(runtime).open(Path(path).read_bytes(), int(threads))
images = np.random.default_rng(0).standard_normal((32, 1, 8, 8), dtype=np.float32)
expected = session.run(images)
time.sleep(0.01)  # now the threads of the delegate sleep
child = os.fork()
if child == 0:
    if does == "exits":
        sys.exit(0)
    right = does == "drops" or np.array_equal(session.run(images), expected)
    session = None
    gc.collect()
    os._exit(0 if right else 1)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), np.array_equal(session.run(images), expected))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("does", ["runs", "drops", "exits"])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("runtime", TARGETS)
def test_a_forked_process_may_use_and_drop_a_session(
    runtime: str, threads: int, does: str, files: dict[str, Path]
) -> None:
    """A forked process has none of its parent's threads, of a plug-in or of a stock runtime."""
    if does == "exits" and TARGETS[runtime] == "onnx":
        pytest.skip("a process that is forked after ``import onnxruntime`` (1.32) never ends by itself")
    if why := RUNTIMES.load(runtime).unavailable():
        pytest.skip(why)
    command = [sys.executable, "-c", FORKING, runtime, str(files[TARGETS[runtime]]), str(threads), does]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.stdout == "0 True\n", ended.stderr
