"""Run one network from two files: in ONNX Runtime and in LiteRT, both with bnnedge's plug-ins.

    python examples/run_exported.py [FOLDER]

The network is made here with random weights, so that the program needs no run folder; use your own files instead.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from torch import nn

import bnnedge


def in_onnxruntime(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outputs [N, ...] of an ``.onnx`` file for images [N, C, H, W]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    bnnedge.register_onnxruntime(options)
    session = onnxruntime.InferenceSession(str(path), options)
    outputs: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: images})[0]
    return outputs


def in_litert(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outputs [N, ...] of a ``.tflite`` file for images [N, C, H, W], one at a time."""
    interpreter = Interpreter(str(path), experimental_delegates=[bnnedge.litert_delegate(threads=1)])
    interpreter.allocate_tensors()
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for image in images:
        interpreter.set_tensor(entry["index"], image[None].transpose(0, 2, 3, 1).copy())  # LiteRT's images are NHWC
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(result["index"]))
    return np.concatenate(outputs)


def main(folder: Path) -> float:
    """Return the largest difference between the outputs of both files; it comes from rounding alone."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.Hardtanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    model = bnnedge.binarize(network).eval()
    example = torch.zeros(1, 3, 24, 24)
    for name, target in (("network.onnx", "onnx"), ("network.tflite", "lce")):
        bnnedge.export(model, example, folder / name, target=target)

    images = np.random.default_rng(0).standard_normal((4, 3, 24, 24), dtype=np.float32)
    first, second = in_onnxruntime(folder / "network.onnx", images), in_litert(folder / "network.tflite", images)
    difference = float(np.abs(first - second).max())
    print(f"classes {first.argmax(1)} and {second.argmax(1)}, largest difference {difference:.1e}")
    return difference


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
