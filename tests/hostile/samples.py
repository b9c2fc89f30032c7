"""One undamaged file of every kind, and how each is damaged: bytes as they lie, values inside, structure."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import flatbuffers
import numpy as np
import onnx
import torch
import yaml
from ai_edge_litert import schema_py_generated as tflite_schema

from tests.hostile.data_samples import DATA, write_data
from tests.hostile.mutations import damage_bytes, damage_value
from tests.hostile.server import Server

TRAIN = (
    "train --method ste --model resnet20_1w1a --dataset digits --image-size 8 --batch-size 629 --epochs 2 --threads 1 "
    "--device cpu --out run"
)
BENCH = ("--runs", "1", "--warmup", "0", "--data", "random")
METADATA = "bnnedge"
"""The name under which both formats hold the metadata."""


@dataclass(frozen=True)
class Damaged:
    """A command on a folder in which one file has been damaged."""

    command: tuple[str, ...]
    may_differ: bool
    """Whether the damage may have made another, valid file, so that another result is right."""
    environment: dict[str, str] | None = None


def make_samples(server: Server, folder: Path) -> None:
    """Train a network and export, measure and report it, each file under the name that the kinds below use."""
    for command in (
        TRAIN,
        "export run --target onnx -o m.onnx",
        "export run --target lce -o m.tflite",
        f"bench m.onnx m.tflite {' '.join(BENCH)} --json run/bench.jsonl",
    ):
        ended = server.run(command.split(), folder)
        assert ended.code == 0, ended.err
    _record_a_device(server, folder)
    write_data(folder / "data")
    for dataset in DATA:
        trained = server.run(_trained_on(dataset), folder)
        assert trained.code == 0, trained.err
        shutil.rmtree(folder / f"trained on {dataset}")


def damage_checkpoint(folder: Path, random: Random) -> Damaged:
    which = random.choice(("best", "last"))
    path = folder / "run" / f"{which}.ckpt"
    may_differ = random.random() < 0.6
    if may_differ:
        buffer = io.BytesIO()
        torch.save(damage_value(torch.load(path, weights_only=True), random), buffer)
        path.write_bytes(buffer.getvalue())
    else:
        path.write_bytes(damage_bytes(path.read_bytes(), random))
    if which == "last":
        return _resumed(folder, may_differ)
    commands = (("evaluate", "run"), ("summary", "run"), ("export", "run", "--no-verify", "-o", "x.onnx"))
    return Damaged(random.choice(commands), may_differ)


def damage_settings(folder: Path, random: Random) -> Damaged:
    path = folder / "run" / "config.yaml"
    if random.random() < 0.7:
        settings = damage_value(yaml.safe_load(path.read_bytes()), random)
        if isinstance(settings, dict) and isinstance(settings.get("epochs"), int):
            settings["epochs"] = min(settings["epochs"], 2)  # to train on for long is right and takes long
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    else:
        path.write_bytes(damage_bytes(path.read_bytes(), random))
    return _resumed(folder, True)


def damage_result(folder: Path, random: Random) -> Damaged:
    _damage_json(folder / "run" / "result.json", random)
    return random.choice((Damaged(("train", "--out", "run", "--resume"), True), _reported()))


def damage_metrics(folder: Path, random: Random) -> Damaged:
    _damage_json_lines(folder / "run" / "metrics.jsonl", random)
    return _reported() if random.random() < 0.3 else _resumed(folder, True)


def damage_rows(folder: Path, random: Random) -> Damaged:
    _damage_json_lines(folder / "run" / "bench.jsonl", random)
    bench = ("bench", "m.onnx", *BENCH, "--json", "run/bench.jsonl")
    return random.choice((_reported(), Damaged(bench, True)))


def damage_onnx(folder: Path, random: Random) -> Damaged:
    path = folder / "m.onnx"
    model = onnx.load(str(path))
    kind = random.choice(("bytes", "metadata", "structure"))
    if kind == "bytes":
        path.write_bytes(damage_bytes(path.read_bytes(), random))
        return Damaged(_used("m.onnx", random), False)
    entry = next(e for e in model.metadata_props if e.key == METADATA)
    metadata = json.loads(entry.value)
    metadata.pop("digest", None)
    if kind == "metadata":
        metadata = damage_value(metadata, random)
    else:
        _damage_nodes(model, random)
    entry.value = json.dumps(metadata)
    path.write_bytes(model.SerializeToString())
    return Damaged(_used("m.onnx", random), True)


def damage_tflite(folder: Path, random: Random) -> Damaged:
    path = folder / "m.tflite"
    kind = random.choice(("bytes", "metadata", "structure"))
    if kind == "bytes":
        path.write_bytes(damage_bytes(path.read_bytes(), random))
        return Damaged(_used("m.tflite", random), False)
    model = tflite_schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    entry = next(e for e in model.metadata if e.name == METADATA.encode())
    metadata = json.loads(bytes(model.buffers[entry.buffer].data))
    metadata.pop("digest", None)
    if kind == "metadata":
        metadata = damage_value(metadata, random)
    else:
        _damage_operators(model, random)
    model.buffers[entry.buffer].data = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return Damaged(_used("m.tflite", random), True)


def damage_device(folder: Path, random: Random) -> Damaged:
    """What a device sends, damaged: its lines of JSON as values, or all of it as bytes."""
    path = folder / "device.bytes"
    if random.random() < 0.6:
        lines = path.read_bytes().splitlines()
        at = random.randrange(len(lines))
        lines[at] = json.dumps(damage_value(json.loads(lines[at]), random)).encode()
        path.write_bytes(b"\n".join(lines) + b"\n")
    else:
        path.write_bytes(damage_bytes(path.read_bytes(), random))
    command = ("bench", "m.tflite", *BENCH, "--device", "ssh://box")
    return Damaged(command, True, {"BNNEDGE_SSH": f"{sys.executable} -S device.py"})


def _trained_on(dataset: str) -> tuple[str, ...]:
    root, _ = DATA[dataset]
    train = (
        "train --method ste --model resnet20_1w1a --image-size 8 --batch-size 64 --epochs 1 --threads 1 --device cpu"
    )
    return (*train.split(), "--dataset", dataset, "--data-root", root, "--out", f"trained on {dataset}")


def damage_data(dataset: str) -> Callable[[Path, Random], Damaged]:
    """What damages a file of ``dataset``, before a network is trained on it."""

    def damage(folder: Path, random: Random) -> Damaged:
        DATA[dataset][1](folder / "data", random)
        return Damaged(_trained_on(dataset), True)

    return damage


KINDS: dict[str, Callable[[Path, Random], Damaged]] = {
    "checkpoint": damage_checkpoint,
    "settings": damage_settings,
    "result": damage_result,
    "metrics": damage_metrics,
    "rows": damage_rows,
    "onnx": damage_onnx,
    "tflite": damage_tflite,
    "device": damage_device,
    **{dataset: damage_data(dataset) for dataset in DATA},
}


def _resumed(folder: Path, may_differ: bool) -> Damaged:
    (folder / "run" / "result.json").unlink()
    return Damaged(("train", "--out", "run", "--resume"), may_differ)


def _reported() -> Damaged:
    return Damaged(("report", "run", "-o", "report.png"), True)


def _used(file: str, random: Random) -> tuple[str, ...]:
    return random.choice((("evaluate", file), ("summary", file), ("bench", file, *BENCH)))


def _damage_json(path: Path, random: Random) -> None:
    if random.random() < 0.7:
        path.write_text(json.dumps(damage_value(json.loads(path.read_bytes()), random)), encoding="utf-8")
    else:
        path.write_bytes(damage_bytes(path.read_bytes(), random))


def _damage_json_lines(path: Path, random: Random) -> None:
    if random.random() < 0.7:
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        at = random.randrange(len(rows))
        rows[at] = damage_value(rows[at], random)
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    else:
        path.write_bytes(damage_bytes(path.read_bytes(), random))


def _damage_nodes(model: Any, random: Random) -> None:
    graph = model.graph
    node, constant = random.choice(graph.node), random.choice(graph.initializer)
    kind = random.randrange(12)
    if kind == 0:
        del graph.output[:]
    elif kind == 1:
        graph.input.append(onnx.helper.make_tensor_value_info("second", onnx.TensorProto.FLOAT, [1]))
    elif kind == 2:
        graph.output[0].name = graph.input[0].name
    elif kind == 3:
        node.input[random.randrange(len(node.input))] = random.choice(("", "nowhere", node.output[0]))
    elif kind == 4:
        node.op_type = random.choice(("Loop", "Add", "NoSuch", "SequenceConstruct", "NonZero", "Size"))
    elif kind == 5 and node.attribute:
        attribute = random.choice(node.attribute)
        new = random.choice((0, -1, 5, 2**40, "text", [0, 0], [-1, 2**31], [1] * 40, 0.5))
        node.attribute.remove(attribute)
        node.attribute.append(onnx.helper.make_attribute(attribute.name, new))
    elif kind == 6:
        constant.dims[:] = random.choice(([], [0], [1 << 40], [-1], [2**31, 2**31], [3, 3], [1] * 40))
    elif kind == 7:
        constant.raw_data = constant.raw_data[: len(constant.raw_data) // 2]
    elif kind == 8:
        constant.data_type = random.randrange(25)
    elif kind == 9:
        constant.ClearField("raw_data")
        constant.data_location = onnx.TensorProto.EXTERNAL
        constant.external_data.add(
            key="location", value=random.choice(("m.tflite", "../x", "/dev/zero", "/etc/passwd"))
        )
    elif kind == 10:
        del graph.node[random.randrange(len(graph.node)) :]
    else:
        model.opset_import[0].version = random.choice((0, 1, 99, -1))


def _damage_operators(model: Any, random: Random) -> None:
    graph = model.subgraphs[0]
    operator, tensor = random.choice(graph.operators), random.choice(graph.tensors)
    numbers = (-1, -2, 0, 1, len(graph.tensors), 2**31 - 1)
    kind = random.randrange(12)
    if kind in (0, 1):
        inputs = np.array(operator.inputs, np.int32)
        inputs[random.randrange(len(inputs))] = random.choice(numbers)
        operator.inputs = inputs
    elif kind == 2:
        operator.outputs = np.array([random.choice(numbers)], np.int32)
    elif kind in (3, 4) and tensor.shape is not None and len(tensor.shape):
        shape = np.array(tensor.shape, np.int32)
        shape[random.randrange(len(shape))] = random.choice((-1, 0, 1, 3, 2**26 + 1, 2**31 - 1))
        tensor.shape = shape
    elif kind == 5:
        tensor.type = random.randrange(20)
    elif kind == 6:
        tensor.buffer = random.choice((0, 1, len(model.buffers), 2**31))
    elif kind == 7:
        custom = random.choice([o for o in graph.operators if o.customOptions is not None])
        custom.customOptions = np.frombuffer(damage_bytes(bytes(custom.customOptions), random), np.uint8)
    elif kind == 8:
        graph.operators = []
    elif kind == 9:
        graph.outputs = random.choice((graph.inputs, [], [len(graph.tensors)], [-1]))
    elif kind == 10:
        code = random.choice(model.operatorCodes)
        code.builtinCode = random.choice((0, 3, 27, 32, 119, 130, 200))
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    else:
        operator.builtinOptions = None


_DEVICE = """import pathlib, sys, threading, time
threading.Thread(target=sys.stdin.buffer.read, daemon=True).start()
sys.stdout.buffer.write(pathlib.Path("device.bytes").read_bytes())
sys.stdout.flush()
time.sleep(1)
"""
_RECORDER = """import os, subprocess, sys, threading
agent = subprocess.Popen([sys.executable, "-m", "bnnedge.benchmarks.devices.remote.agent"], stdout=subprocess.PIPE)
with open("device.bytes", "wb") as file:
    while part := os.read(agent.stdout.fileno(), 65536):
        file.write(part)
        file.flush()
        os.write(1, part)
"""


def _record_a_device(server: Server, folder: Path) -> None:
    """Measure m.tflite with an agent of this machine and keep what it sends."""
    (folder / "device.py").write_text(_DEVICE, encoding="utf-8")
    (folder / "recorder.py").write_text(_RECORDER, encoding="utf-8")
    command = ("bench", "m.tflite", *BENCH, "--device", "ssh://box")
    ended = server.run(command, folder, {"BNNEDGE_SSH": f"{sys.executable} recorder.py"})
    assert ended.code == 0, ended.err
    replayed = server.run(command, folder, {"BNNEDGE_SSH": f"{sys.executable} -S device.py"})
    assert replayed.code == 0, replayed.err


def fresh(samples: Path, folder: Path) -> Path:
    """A copy of the samples with a Python file beside them that leaves a mark if anything runs it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(samples, folder)
    (folder / "canary.py").write_text("open('ran', 'w')\n", encoding="utf-8")
    return folder


def commands_of(damaged: Sequence[str]) -> str:
    """The command as one would type it."""
    return " ".join(("bnnedge", *damaged))
