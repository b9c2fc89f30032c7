"""Several operators of LCE in one file, and whole networks, against LCE's interpreter and in several threads."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bnnedge.export.passes import optimize
from bnnedge.export.runtimes import lce as lce_module
from bnnedge.export.runtimes.lce import Lce
from bnnedge.export.runtimes.litert import LiteRt
from bnnedge.export.targets.tflite.reader import parse_model
from bnnedge.export.targets.tflite.target import LceTarget
from bnnedge.export.targets.tflite.writer import serialize
from bnnedge.export.trace import trace
from bnnedge.kernels.layout import pack
from bnnedge.kernels.plugins import litert_delegate
from bnnedge.layers.deploy import deploy
from bnnedge.methods import METHODS
from bnnedge.models import MODELS
from bnnedge.models.create import create_model
from tests.kernels.litert.chain import chain, image
from tests.kernels.litert.convolution import Case, Parameters, conv_model, expected
from tests.kernels.litert.running import (
    interpreter,
    invoke,
    multiplies_in_float,
    needs_delegate,
    needs_lce,
    partitions_of,
    run,
)

pytestmark = needs_delegate


def test_neighbours_become_one_node() -> None:
    loaded = interpreter(chain()[0])
    loaded.allocate_tensors()
    names = [op["op_name"] for op in loaded._get_ops_details()]
    assert names.count("DELEGATE") == 1


@needs_lce
def test_chain_and_its_inner_tensors() -> None:
    data, inner = chain()
    for tapped in ((), *((index,) for _, index in inner)):
        raw = parse_model(data).raw
        raw.subgraphs[0].outputs = [*tapped, *raw.subgraphs[0].outputs]
        changed = serialize(raw)
        loaded = interpreter(changed)
        for seed in range(3):
            x = image(1, seed)
            loaded.allocate_tensors()
            loaded.set_tensor(loaded.get_input_details()[0]["index"], x)
            loaded.invoke()
            extension = lce_module._extension().LiteInterpreter(changed, 1, True, False, False)
            for detail, wanted in zip(loaded.get_output_details(), extension.predict([x]), strict=True):
                np.testing.assert_array_equal(loaded.get_tensor(detail["index"]), wanted)


def test_batches_are_resized() -> None:
    data, _ = chain()
    loaded = interpreter(data)
    singles = {seed: run(data, image(1, seed)) for seed in range(4)}
    assert len({one.tobytes() for one in singles.values()}) == 4
    for seeds in ([0, 1, 2, 3], [2], [3, 3, 0], [1, 2]):
        batch = np.concatenate([image(1, seed) for seed in seeds])
        found = invoke(loaded, batch)
        np.testing.assert_array_equal(found, np.concatenate([singles[seed] for seed in seeds]))


def test_images_are_resized() -> None:
    """The padding of SAME changes with the size, so the convolution is prepared anew."""
    case = Case(size=(8, 8), stride=(2, 2))
    loaded = interpreter(conv_model(case, Parameters.of(case)))
    for size in ((8, 8), (7, 8), (8, 8), (9, 5), (2, 1), (6, 6)):
        resized = replace(case, size=size)
        p = Parameters.of(resized)
        p = replace(p, **{name: getattr(Parameters.of(case), name) for name in ("weight", "gamma", "beta")})
        np.testing.assert_array_equal(invoke(loaded, pack(p.signs).view(np.int32)), expected(resized, p))


def test_interpreters_in_threads_share_a_delegate_or_not() -> None:
    data, _ = chain()
    wanted = [run(data, image(4, seed)) for seed in range(4)]
    shared = litert_delegate(threads=2)
    failures: list[str] = []

    def work(number: int) -> None:
        loaded = interpreter(data, shared if number % 2 else litert_delegate(threads=2))
        for repeat in range(30):
            seed = (number + repeat) % 4
            if not np.array_equal(invoke(loaded, image(4, seed)), wanted[seed]):
                failures.append(f"thread {number}, repeat {repeat}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


FORKING = """
import gc, os, sys
import numpy as np
from bnnedge.kernels.plugins import litert_delegate
from tests.kernels.litert.chain import chain, image
from tests.kernels.litert.running import interpreter, invoke
data, _ = chain()
loaded = interpreter(data, litert_delegate(threads=4))
wanted = invoke(loaded, image(32))
child = os.fork()
if child == 0:
    right = sys.argv[1] == "drops" or np.array_equal(invoke(loaded, image(32)), wanted)
    if sys.argv[1] == "exits":
        sys.exit(0)
    loaded = None
    gc.collect()
    os._exit(0 if right else 1)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), np.array_equal(invoke(loaded, image(32)), wanted))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("does", ["runs", "drops", "exits"])
def test_a_forked_process_has_none_of_the_threads(does: str) -> None:
    """There the delegate starts its own threads, and neither waits for its parent's nor crashes."""
    command = [sys.executable, "-c", FORKING, does]
    root = Path(__file__).parents[3]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)
    assert ended.stdout == "0 True\n", ended.stderr


@pytest.fixture(scope="module", params=itertools.product(MODELS, ["ste", "rbnn"]), ids="-".join)
def network(request: pytest.FixtureRequest) -> bytes:
    name, method_name = request.param
    torch.manual_seed(0)
    model = create_model(name, num_classes=10, in_channels=3, image_size=32)
    method = METHODS.load(method_name)
    method(method.Options()).attach(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.normal_()
                module.bias.normal_()
    return LceTarget().write(optimize(trace(deploy(model), torch.zeros(2, 3, 32, 32))))


@needs_lce
def test_networks_agree_with_lce_in_every_layer(network: bytes) -> None:
    """LCE's float operators are built-in kernels, LiteRT's are XNNPACK's: a sign near zero may turn, and what follows
    it then differs. So integers are compared layer by layer for the same signs."""
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    outputs, signs = LiteRt.tap(network, x)
    (output,) = outputs.values()
    np.testing.assert_array_equal(output, LiteRt.open(network, threads=2).run(x))
    _, others = Lce.tap(network, x)
    assert list(signs) == list(others) and len(signs) >= 5
    first = next(iter(signs))
    assert np.count_nonzero(signs[first] != others[first]) <= 1e-5 * signs[first].size + 1
    for layer, values in signs.items():
        np.testing.assert_array_equal(LiteRt.integers(network, layer, values), Lce.integers(network, layer, values))


@pytest.mark.parametrize("name", ["resnet18_1w1a", "resnet20_1w1a"])
def test_networks_are_the_same_fused_and_not(name: str) -> None:
    """Nothing is fused that also leaves the graph."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=10, in_channels=3, image_size=32)
    method = METHODS.load("ste")
    method(method.Options()).attach(model)
    data = LceTarget().write(optimize(trace(deploy(model), torch.zeros(2, 3, 32, 32))))
    raw = parse_model(data).raw
    inner = [int(op.outputs[0]) for op in raw.subgraphs[0].operators[:-4]]
    raw.subgraphs[0].outputs = [*raw.subgraphs[0].outputs, *inner]
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    tapped = interpreter(serialize(raw))
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal((1, 32, 32, 3)).astype(np.float32)
        tapped.allocate_tensors()
        tapped.set_tensor(tapped.get_input_details()[0]["index"], x)
        tapped.invoke()
        for threads in (1, 2):
            found = run(data, x, litert_delegate(threads))
            np.testing.assert_array_equal(found, tapped.get_tensor(tapped.get_output_details()[0]["index"]))


def test_residual_networks_are_one_partition() -> None:
    sizes = {"resnet18_1w1a": [32, 128] if multiplies_in_float() else [32], "resnet20_1w1a": [32]}
    for name, size in [(name, size) for name, several in sizes.items() for size in several]:
        model = create_model(name, num_classes=10, in_channels=3, image_size=size)
        method = METHODS.load("ste")
        method(method.Options()).attach(model)
        assert partitions_of(LceTarget().write(optimize(trace(deploy(model), torch.zeros(2, 3, size, size))))) == 1
