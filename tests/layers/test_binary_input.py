"""Layers with ``binary_input=False``: a binary kernel on a float input, whatever the method does to inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnnedge
from bnnedge.binarization.sign import sign
from bnnedge.config import RunConfig
from bnnedge.errors import ExportError
from bnnedge.export.run import export_run
from bnnedge.export.summary import summarize
from bnnedge.export.targets import TARGETS
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLayer, BinaryLinear, binary_layers, use_kernels
from bnnedge.layers.convert import convert_to_binary
from bnnedge.layers.deploy import deploy, deployed_layers
from bnnedge.methods import METHODS
from bnnedge.methods.method import Method, PhaseSize
from bnnedge.train.load import load_run
from bnnedge.train.start import start_run

BINARY = [name for name in METHODS if METHODS.load(name).trains_bits]
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in METHODS),
    *((name, {"a32": True}) for name in BINARY),
    ("xnor", {"pixel_scale": True}),
    ("ste", {"surrogate": "approx_sign"}),
]
NETWORK = """
from torch import nn

from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear


def net(num_classes, in_channels, binary_input=False):
    return nn.Sequential(
        *(BinaryConv2d(in_channels, 33, 3, padding=1, bias=True, binary_input=binary_input), nn.BatchNorm2d(33)),
        *(nn.Hardtanh(), BinaryConv2d(33, 40, 3, 2, 1), nn.BatchNorm2d(40), nn.Hardtanh(), nn.Flatten()),
        *(BinaryLinear(640, 24, binary_input=binary_input), nn.BatchNorm1d(24), nn.Linear(24, num_classes)),
    )
"""


def conv(binary_input: bool = False) -> tuple[BinaryLayer, Tensor]:
    layer = BinaryConv2d(6, 4, (3, 2), (2, 1), (1, 0), (1, 2), groups=2, bias=True, binary_input=binary_input)
    return layer, 3 * torch.randn(2, 6, 7, 6)


def linear(binary_input: bool = False) -> tuple[BinaryLayer, Tensor]:
    return BinaryLinear(9, 5, True, binary_input=binary_input), 3 * torch.randn(3, 9)


def attached(layer: BinaryLayer, method: str, options: dict[str, Any]) -> Method[Any]:
    entry = METHODS.load(method)
    made: Method[Any] = entry(entry.Options(**options))
    made.attach(nn.Sequential(layer))
    return made


def by_formula(layer: BinaryLayer, x: Tensor) -> Tensor:
    """``f(x, w) * scale + bias`` with the effective weight w of the method, in the layer's own order of operations."""
    w, scale = layer.binarizer.binarize_weight(layer.weight), layer.binarizer.output_scale(layer.weight)
    if isinstance(layer, BinaryLinear):
        y = F.linear(x, w)
    else:
        y = F.conv2d(x, w, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    shape = (-1, *[1] * (w.dim() - 2))
    y = y if scale is None else y * scale.view(shape)
    assert layer.bias is not None
    return y + layer.bias.view(shape)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [conv, linear])
@pytest.mark.parametrize(("method", "options"), OPTIONS, ids=str)
def test_the_input_enters_as_it_is_and_its_whole_gradient_returns(
    method: str, options: dict[str, Any], make: Any, training: bool
) -> None:
    layer, x = make()
    attached(layer, method, options)
    layer.train(training)
    x.requires_grad_()
    results = []
    for function in (layer, lambda x: by_formula(layer, x)):
        torch.manual_seed(5)  # BayesBiNN draws its weights anew in each pass
        y = function(x)
        results.append((y, *torch.autograd.grad(y, [x, layer.weight], torch.ones_like(y).cumsum(0), allow_unused=True)))
    for found, expected in zip(*results, strict=True):
        assert (found is None and expected is None) or torch.equal(found, expected)
    if not training and method != "float":
        assert set(layer.binarizer.binarize_weight(layer.weight).unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("make", [conv, linear])
@pytest.mark.parametrize("method", METHODS)
def test_a_binary_input_is_the_default(method: str, make: Any) -> None:
    """What the tests above compare with does differ from a layer whose input is binarized."""
    layer, x = make(binary_input=True)
    attached(layer, method, {})
    layer.eval()
    with torch.no_grad():
        assert torch.equal(layer(x), by_formula(layer, x)) == (method == "float")


@pytest.mark.parametrize("make", [conv, linear])
@pytest.mark.parametrize("method", BINARY)
def test_a_training_step_moves_the_weights(method: str, make: Any) -> None:
    layer, x = make()
    model = nn.Sequential(layer)
    made = attached(layer, method, {})
    torch.manual_seed(1)
    made.start_phase(model, 0)
    size = PhaseSize(epochs=4, steps_per_epoch=1, train_images=len(x))
    own = made.make_optimizer(model, size)
    claimed = set() if own is None else {id(p) for group in own.param_groups for p in group["params"]}
    rest = [p for p in model.parameters() if id(p) not in claimed]
    optimizers = [torch.optim.SGD(rest, lr=0.1)] + ([] if own is None else [own])
    made.start_epoch(model, 0, 4)
    before = layer.weight.detach().clone()
    model.train()(x).square().mean().backward()
    assert layer.weight.grad is not None and layer.weight.grad.count_nonzero() > 0
    made.before_step(model)
    for optimizer in optimizers:
        optimizer.step()
    made.after_step(model)
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize("kernels", ["auto", "triton", "torch"])
def test_plain_pytorch_computes_it_with_all_kernels(kernels: Any) -> None:
    layer, x = conv()
    use_kernels(nn.Sequential(layer), kernels)
    assert torch.equal(layer(x), by_formula(layer, x))


@pytest.mark.parametrize("make", [conv, linear])
@pytest.mark.parametrize(("method", "options"), [case for case in OPTIONS if case[0] != "float"], ids=str)
def test_the_deploy_form_leaves_the_input_alone(method: str, options: dict[str, Any], make: Any) -> None:
    layer, x = make()
    attached(layer, method, options)
    model = nn.Sequential(layer).eval()
    (deployed,) = deployed_layers(deploy(model)).values()
    assert (deployed.input_mode, deployed.scales_pixels) == ("float", False)
    assert torch.equal(deployed(x), model(x)), "the same operations in the same order"


@pytest.mark.parametrize("make", [conv, linear])
def test_the_state_dict_is_that_of_any_binary_layer(make: Any) -> None:
    (layer, x), (twin, _) = make(), make(binary_input=True)
    twin.load_state_dict(layer.state_dict())
    assert twin.binary_input and not layer.binary_input
    assert "binary_input=False" in repr(layer) and "binary_input" not in repr(twin)
    assert not torch.equal(layer(x), twin(x))


def test_converted_modules_keep_it() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 1), BinaryConv2d(4, 4, 1, binary_input=False), *(nn.Conv2d(4, 4, 1),) * 2)
    module.append(nn.Conv2d(4, 2, 1))
    for model in (convert_to_binary(module), bnnedge.binarize(module, method="rbnn")):
        assert {n: layer.binary_input for n, layer in binary_layers(model).items()} == {"1": False, "2": True}
    x = torch.randn(2, 4, 3, 3)
    layer = binary_layers(convert_to_binary(module))["1"]
    assert torch.equal(layer(x), F.conv2d(x, sign(layer.weight)))


@pytest.mark.parametrize("method", METHODS)
def test_it_is_trained_saved_exported_and_verified(method: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    config = RunConfig(method, f"{tmp_path / 'net.py'}:net", image_size=(8,), epochs=4, device="cpu", threads=1)
    start_run(config, tmp_path / "run")
    model = load_run(tmp_path / "run").model
    assert [layer.binary_input for layer in binary_layers(model).values()] == [False, True, False]
    if method not in BINARY:
        with pytest.raises(ExportError, match="no deploy form"):
            deploy(model)
        return
    for layer in deployed_layers(deploy(model)).values():
        assert set(layer.weight.unique().tolist()) == {-1.0, 1.0}
    for target in TARGETS:
        report = export_run(tmp_path / "run", target)
        assert [row.name for row in report.rows if row.binary_macs] == ["3"]
        if report.verification is None:
            assert report.not_verified.startswith("lce: ")
        else:
            assert report.verification.images > 0


def test_the_summary_counts_it_as_float_arithmetic(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    rows = {r.name: r for r in summarize(f"{tmp_path / 'net.py'}:net", num_classes=4, in_channels=2, image_size=8)}
    assert [(name, row.binary_macs, row.float_macs) for name, row in rows.items() if name in ("0", "3", "7")] == [
        ("0", 0, 33 * 2 * 9 * 64),
        ("3", 40 * 33 * 9 * 16, 0),
        ("7", 0, 640 * 24),
    ]
