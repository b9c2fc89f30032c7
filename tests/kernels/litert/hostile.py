"""Files with every byte of the options, every tensor and every index changed: ``python -m`` runs them all in a process.

It prints how many ran and how many were refused."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import numpy as np

from bnnedge.export.targets.tflite.bit_forms import bmaxpool2d_options
from bnnedge.export.targets.tflite.reader import parse_model
from bnnedge.export.targets.tflite.writer import schema, serialize
from bnnedge.kernels.layout import pack
from tests.kernels.litert.builtin_graph import BuiltinGraph
from tests.kernels.litert.chain import chain, image
from tests.kernels.litert.convolution import Case, Parameters, conv_model
from tests.kernels.litert.running import Array, interpreter
from tests.kernels.litert.writing import SAME, model_of

GOOD = Case(channels=64, outputs=5, size=(5, 6))


def survives(data: bytes, x: Array) -> bool:
    """Whether the file ran; False if it was refused."""
    try:
        loaded = interpreter(data)
        loaded.allocate_tensors()
        entry = loaded.get_input_details()[0]
        loaded.set_tensor(entry["index"], np.resize(x, entry["shape"]).astype(entry["dtype"]))
        loaded.invoke()
    except (RuntimeError, ValueError):
        return False
    return True


def builtin_model() -> tuple[bytes, Array]:
    graph = BuiltinGraph((1, 3, 4, 33))
    table = graph.gather(graph.constant(np.ones((1, 2, 2, 33), np.float32)), [0, 1], axis=1)
    thinned = graph.subsample(graph.pad(graph.first, [(0, 0), (1, 0), (0, 0), (0, 0)]), (1, 2, 2, 1))
    return graph.finish(graph.signs(graph.clip(graph.add(thinned, table, "SUB")))), graph.x


def hostile_models() -> list[tuple[bytes, Array]]:
    p = Parameters.of(GOOD)
    words = pack(p.signs).view(np.int32)
    pooled = model_of("LceBMaxPool2d", bmaxpool2d_options((2, 2), (2, 2), SAME), words, words[:, :3, :3])
    return [(conv_model(GOOD, p), words), (pooled, words)]


def hostile_options() -> list[bool]:
    """Every byte of the options changed, the options cut off anywhere, and noise."""
    rng = np.random.default_rng(0)
    ran = []
    for data, x in hostile_models():
        blob = bytes(parse_model(data).raw.subgraphs[0].operators[0].customOptions)
        blobs = [blob[:size] for size in range(len(blob))] + [blob[start:] for start in range(len(blob))]
        for position, value in itertools.product(range(len(blob)), (0, 1, 0x24, 0x7F, 0x80, 0xFF)):
            blobs.append(blob[:position] + bytes([value]) + blob[position + 1 :])
        for _ in range(200):
            noise = np.frombuffer(blob, np.uint8).copy()
            noise[rng.integers(0, len(blob), 4)] = rng.integers(0, 256, 4)
            blobs.append(noise.tobytes())
        raw = parse_model(data).raw
        for changed in blobs:
            raw.subgraphs[0].operators[0].customOptions = np.frombuffer(changed, np.uint8)
            ran.append(survives(serialize(raw), x))
    return ran


def hostile_tensors() -> list[bool]:
    """Every tensor with another type, shape or buffer, every index another one."""
    string = schema().TensorType.STRING
    shapes = [[], [1], [0], [5], [2**31 - 1], [1, 5, 6, 2, 1], [2, 5, 6, 2], [1, 2**20, 2**20, 2], [1, 1, 1, 1]]
    ran = []
    for data, x in [*hostile_models(), (chain()[0], image(1)), builtin_model()]:
        count = len(parse_model(data).subgraph.tensors)
        for index in range(count):
            fields: list[dict[str, Any]] = [{"type": code} for code in range(11) if code != string]
            fields += [{"shape": shape} for shape in shapes] + [{"buffer": buffer} for buffer in range(4)]
            for changes in fields:
                raw = parse_model(data).raw
                for name, value in changes.items():
                    setattr(raw.subgraphs[0].tensors[index], name, value)
                ran.append(survives(serialize(raw), x))
        codes = [op.code for op in parse_model(data).operators]
        for number, op in enumerate(parse_model(data).subgraph.operators):
            # Interpreters themselves crash where a builtin operator that was not claimed lacks a tensor.
            is_ours = codes[number].startswith("Lce")
            for field in ("inputs", "outputs"):
                length = len(getattr(op, field))
                for position, index in itertools.product(range(length), range(-1 if is_ours else 0, count + 1)):
                    raw = parse_model(data).raw
                    indices = [int(i) for i in getattr(op, field)]
                    indices[position] = index
                    setattr(raw.subgraphs[0].operators[number], field, indices)
                    ran.append(survives(serialize(raw), x))
                for indices in ([], [0] * 9, [count - 1, count - 1]) if is_ours else ():
                    raw = parse_model(data).raw
                    setattr(raw.subgraphs[0].operators[number], field, indices)
                    ran.append(survives(serialize(raw), x))
    return ran


HOSTILE = {"options": hostile_options, "tensors": hostile_tensors}


if __name__ == "__main__":
    outcomes = HOSTILE[sys.argv[1]]()
    print(sum(outcomes), len(outcomes) - sum(outcomes))
