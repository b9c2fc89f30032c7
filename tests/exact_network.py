"""A small network whose results are exact whatever the order of its arithmetic, for runs of both plug-ins.

``tests/aarch64/run_plugins.py`` runs the files of ``write_files`` in a process of its own and leaves what
``check_results`` compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.export import graph as g
from bnnedge.export.targets.onnx.target import OnnxTarget
from bnnedge.export.targets.tflite.target import LceTarget
from bnnedge.kernels import reference
from bnnedge.kernels.layout import pack


def network(rng: np.random.Generator) -> tuple[g.Graph, NDArray[np.float32]]:
    """Signs -> strided convolution to bits -> zero-padded convolution to floats; and its images [2, 33, 11, 11].

    The scales are powers of two and the biases multiples of 1/8: no arithmetic rounds, whatever its order.
    """
    images = rng.standard_normal((2, 33, 11, 11)).astype(np.float32)
    images[rng.random(images.shape) < 0.1] = -0.0
    first = g.BinaryConv2d(
        name="first",
        inputs=("signs",),
        output="bits",
        weight=rng.choice(np.array([-1, 1], np.int8), (40, 33, 3, 3)),
        multiplier=np.ones(40),
        bias=np.zeros(40),
        threshold=rng.integers(-30, 30, 40).astype(np.int32),
        stride=(2, 2),
    )
    second = g.BinaryConv2d(
        name="second",
        inputs=("bits",),
        output="sums",
        weight=rng.choice(np.array([-1, 1], np.int8), (21, 40, 3, 3)),
        multiplier=rng.choice(np.array([0.5, -0.25, 2.0]), 21),
        bias=rng.integers(-40, 40, 21) / 8,
        padding=(1, 1),
    )
    tensors = {
        "image": g.TensorSpec((1, 33, 11, 11)),
        "signs": g.TensorSpec((1, 33, 11, 11), "bits"),
        "bits": g.TensorSpec((1, 40, 5, 5), "bits"),
        "sums": g.TensorSpec((1, 21, 5, 5)),
    }
    nodes: list[g.Node] = [g.Binarize(name="sign", inputs=("image",), output="signs"), first, second]
    return g.Graph(inputs=("image",), outputs=("sums",), nodes=nodes, tensors=tensors), images


def expected(graph: g.Graph, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same by the reference kernels, NCHW."""
    _, first, second = graph.nodes
    assert isinstance(first, g.BinaryConv2d) and first.threshold is not None and isinstance(second, g.BinaryConv2d)

    def sums(words: NDArray[np.uint32], node: g.BinaryConv2d) -> NDArray[np.int32]:
        filters = pack(node.weight.transpose(0, 2, 3, 1))
        return reference.bconv2d(words, filters, node.weight.shape[1], stride=node.stride, padding=node.padding)

    hidden = reference.threshold(sums(pack(images.transpose(0, 2, 3, 1)), first), first.threshold)
    y: NDArray[Any] = sums(hidden, second) * second.multiplier + second.bias
    return y.transpose(0, 3, 1, 2).astype(np.float32)


def write_files(graph: g.Graph, images: NDArray[np.float32], folder: Path) -> None:
    """``images.npy``, ``net.tflite`` and ``net.onnx``."""
    np.save(folder / "images.npy", images)
    (folder / "net.tflite").write_bytes(LceTarget().write(graph))
    (folder / "net.onnx").write_bytes(OnnxTarget().write(graph))


def check_results(graph: g.Graph, images: NDArray[np.float32], folder: Path) -> None:
    """``litert.npy`` and ``onnxruntime.npy`` are what the reference kernels give."""
    wanted = expected(graph, images)
    for runtime in ("litert", "onnxruntime"):
        assert np.array_equal(np.load(folder / f"{runtime}.npy"), wanted), runtime
