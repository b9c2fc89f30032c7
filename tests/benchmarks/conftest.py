"""What several benchmark tests measure: rows of known numbers, and a small classifier of real digits as a graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnnedge.benchmarks.rows import BenchmarkRow
from bnnedge.data.dataset import Dataset, load_dataset
from bnnedge.export.graph import Graph, Linear, Reshape, TensorSpec

RowFactory = Callable[..., BenchmarkRow]
SIZE = 8


@pytest.fixture
def make_row() -> RowFactory:
    def make(**changes: Any) -> BenchmarkRow:
        fields: dict[str, Any] = {
            "file": "out/resnet20.onnx",
            "runtime": "onnxruntime",
            "runtime_version": "1.31.1",
            "device": "local",
            "threads": 1,
            "input": "digits test",
            "batch_size": 1,
            "warmup": 10,
            "runs": 100,
            "p20_ms": 0.9,
            "p50_ms": 1.0,
            "p80_ms": 1.2,
            "images_per_s": 1000.0,
            "task": "classification",
            "scores": {"top1": 0.975},
            "samples": 359,
            "peak_memory_bytes": 3 * 2**20,
            "file_bytes": 61440,
            "metadata": {"method": "ste", "model": "resnet20_1w1a", "input_shape": [1, 16, 16]},
            "environment": {"cpu": "Cortex-A72", "versions": {"bnnedge": "0.1.0"}, "git_commit": None},
            "started_at": "2026-01-31T12:00:00+00:00",
        }
        return BenchmarkRow(**{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits", image_size=SIZE)


@pytest.fixture(scope="session")
def digits_classifier(digits: Dataset) -> tuple[Graph, NDArray[np.float64]]:
    """Least-squares classifier of 8x8 digits as a graph with metadata, and its float64 outputs on the test split."""
    images, labels = digits.arrays("train")
    design = _with_ones(images)
    ridge = design.T @ design + np.eye(design.shape[1])
    solution = np.linalg.solve(ridge, design.T @ np.eye(10)[labels])  # [65, 10]
    graph = Graph(
        inputs=("image",),
        outputs=("scores",),
        nodes=[
            Reshape(name="flatten", inputs=("image",), output="flat", shape=(SIZE * SIZE,)),
            Linear(name="fc", inputs=("flat",), output="scores", weight=solution[:-1].T, bias=solution[-1]),
        ],
        tensors={
            "image": TensorSpec((1, 1, SIZE, SIZE)),
            "flat": TensorSpec((1, SIZE * SIZE)),
            "scores": TensorSpec((1, 10)),
        },
        metadata={
            "producer": "bnnedge",
            "method": "ste",
            "model": "resnet20_1w1a",
            "input_shape": [1, SIZE, SIZE],
            **json.loads(json.dumps(digits.info.to_metadata())),
        },
    )
    return graph, _with_ones(digits.arrays("test")[0]) @ solution


def _with_ones(images: NDArray[np.float32]) -> NDArray[np.float64]:
    flat = images.reshape(len(images), -1).astype(np.float64)
    return np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
