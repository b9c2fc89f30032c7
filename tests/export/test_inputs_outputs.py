"""Several inputs and several named outputs: through both formats, every runtime and verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import bnnedge
from bnnedge.errors import DataError, ExportError, VerificationError
from bnnedge.export import api
from bnnedge.export.graph import Graph, Linear
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.targets import TARGETS
from bnnedge.export.targets.tflite.reader import parse_model
from bnnedge.export.trace import trace
from bnnedge.export.verify import same_arg_max
from bnnedge.layers.binary_layers import BinaryConv2d
from bnnedge.layers.deploy import deploy

C = 40
CONSTANT = torch.ones(2, 2)


class TwoInputs(nn.Module):
    """An image and a vector in; a map, class scores and, if asked, the image's own features out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, C, 3, padding=1)
        self.image = BinaryConv2d(C, C, 3, padding=1, bias=True)
        self.map = nn.Conv2d(C, 2, 1)
        self.scores = nn.Linear(C + 5, 4)

    def forward(self, image: Tensor, hint: Tensor) -> dict[str, Tensor]:
        features = self.image(self.stem(image)) * 0.05
        return {
            "mask": self.map(features),
            "scores": self.scores(torch.cat([features.mean((2, 3)), hint], 1)),
            "features": features,
        }


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return TwoInputs().eval()


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"image": (64, 3, 6, 7), "hint": (64, 5)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def export(model: nn.Module, inputs: Any, folder: Path, target: str, **options: Any) -> api.ExportReport:
    return bnnedge.export(model, inputs, folder / f"net{TARGETS.load(target).suffix}", target, **options)


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("as_tuple", [False, True])
def test_names_travel_and_every_runtime_runs_them(
    as_tuple: bool, target: str, model: nn.Module, inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    report = export(model, tuple(inputs.values()) if as_tuple else inputs, tmp_path, target)
    data = report.path.read_bytes()
    metadata = TARGETS.load(target)().read_metadata(data)
    assert "input_shape" not in metadata
    assert metadata["inputs"] == [{"name": "image", "shape": [3, 6, 7]}, {"name": "hint", "shape": [5]}]
    assert [(out["name"], out["shape"]) for out in metadata["outputs"]] == [
        ("mask", [2, 6, 7]),
        ("scores", [4]),
        ("features", [C, 6, 7]),
    ]
    if target == "onnx":
        written = onnx.load_model_from_string(data).graph
        assert [v.name for v in written.input] == ["image", "hint"]
        assert [v.name for v in written.output] == ["mask", "scores", "features"]
    else:
        file = parse_model(data)
        assert (file.input_names, file.output_names) == (("image", "hint"), ("mask", "scores", "features"))
        assert [file.name(tensor) for tensor in (*file.inputs, *file.outputs)] == [
            "image", "hint", "mask", "scores", "features",
        ]  # fmt: skip
    with torch.no_grad():
        expected = deploy(model)(*inputs.values())
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    ran = 0
    for runtime in map(RUNTIMES.load, TARGETS.load(target).runtimes):
        if runtime.unavailable() is not None:
            continue
        session = runtime.open(data)
        found = session.run_all(arrays)
        assert list(found) == ["mask", "scores", "features"]
        for name, values in found.items():
            # Signs are the same; what follows has below 400 summands of sizes up to 18: 8 sqrt(400) 2^-24 times 18.
            np.testing.assert_allclose(values, expected[name].numpy(), rtol=0, atol=8 * 20 * 2.0**-24 * 18)
        np.testing.assert_array_equal(session.run(arrays), found["mask"])
        with pytest.raises(DataError, match="the file has the inputs image, hint, found one array without a name"):
            session.run(arrays["image"])
        with pytest.raises(DataError, match="found image; give all of them by name"):
            session.run({"image": arrays["image"]})
        ran += 1
    assert ran


@pytest.mark.parametrize("target", list(TARGETS))
def test_verification_compares_every_output(
    target: str, model: nn.Module, inputs: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = export(model, inputs, tmp_path, target, verify_images={k: v.numpy() for k, v in inputs.items()})
    if report.verification is None:
        pytest.skip(report.not_verified)
    assert (report.verification.binary_layers, report.verification.integers) == (1, 64 * C * 6 * 7)
    assert report.verification.agreement > 0.99

    optimize = api.optimize  # type: ignore[attr-defined]

    def shifted(graph: Graph, stem: Any) -> Graph:
        for node in graph.nodes:
            if isinstance(node, Linear):
                node.bias = node.bias + 1e-3
        return optimize(graph, stem)

    monkeypatch.setattr(api, "optimize", shifted)
    with pytest.raises(VerificationError, match=r"^output scores differs by 0\.001"):
        export(model, inputs, tmp_path, target)


def test_the_caller_says_what_agreement_means(model: nn.Module, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    shapes: list[tuple[int, ...]] = []

    def half(found: Any, expected: Any) -> float:
        shapes.append(found.shape)
        return 0.5

    report = export(model, inputs, tmp_path, "onnx", agreement=half)
    assert report.verification is not None and report.verification.agreement == 0.5
    assert shapes == [(64, 2, 6, 7), (64, 4), (64, C, 6, 7)]
    by_name = {"mask": same_arg_max, "scores": half, "features": lambda found, expected: 0.25}
    report = export(model, inputs, tmp_path, "onnx", agreement=by_name)
    assert report.verification is not None and report.verification.agreement == 0.25


class Returns(nn.Module):
    """Whatever a function makes of a convolved image and of the image."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.result = result

    def forward(self, x: Tensor) -> Any:
        return self.result(self.conv(x), x)


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (lambda y, x: y, ("conv",)),
        (lambda y, x: (y,), ("conv",)),
        (lambda y, x: {"only": y}, ("only",)),
        (lambda y, x: (y, y * 2), ("output_0", "output_1")),
        (lambda y, x: [y * 2, y], ("output_0", "output_1")),
        (lambda y, x: {"conv": y * 2, "other": y}, ("conv", "other")),  # a layer is called like another output
        (lambda y, x: {"a": y, "b": y, "c": x}, ("a", "b", "c")),  # one tensor under two names, and an input
    ],
)
@pytest.mark.parametrize("target", list(TARGETS))
def test_what_a_model_may_return(result: Any, names: tuple[str, ...], target: str, tmp_path: Path) -> None:
    model, x = Returns(result).eval(), torch.randn(3, 2, 4, 5)
    report = export(model, x, tmp_path, target, check=target == "onnx")
    metadata = TARGETS.load(target)().read_metadata(report.path.read_bytes())
    assert tuple(out["name"] for out in metadata["outputs"]) == names
    assert metadata["input_shape"] == [2, 4, 5]
    runtime = RUNTIMES.load("onnxruntime" if target == "onnx" else "litert")
    with torch.no_grad():
        expected = model(x)
    expected = list(expected.values()) if isinstance(expected, dict) else expected
    expected = [expected] if isinstance(expected, Tensor) else expected
    for name, values, wanted in zip(
        names, runtime.open(report.path.read_bytes()).run_all(x.numpy()).values(), expected, strict=True
    ):
        np.testing.assert_allclose(values, wanted.numpy(), rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("result", "given", "message"),
    [
        (lambda y, x: {"a": (y, y)}, torch.zeros(2, 2, 3, 3), "that is not nested"),
        (lambda y, x: {"a": y, "b": CONSTANT}, torch.zeros(2, 2, 3, 3), "output b .* does not depend"),
        (lambda y, x: {"input": y, "b": x}, torch.zeros(2, 2, 3, 3), "an input and an output .* both called 'input'"),
        (lambda y, x: y, (torch.zeros(2, 2, 3, 3), torch.zeros(2, 2)), "do not fit forward of Returns: too many"),
        (lambda y, x: y, {"z": torch.zeros(2, 2, 3, 3)}, "do not fit forward of Returns: missing .* 'x'"),
    ],
)
def test_what_cannot_be_named_is_refused(result: Any, given: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        trace(Returns(result).eval(), given)


def test_an_int8_stem_needs_one_input(model: nn.Module, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no int8 stem: the model has the inputs image, hint"):
        export(model, inputs, tmp_path, "onnx", stem="int8")
