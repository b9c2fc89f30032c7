from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnnedge.binarization.sign import sign
from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear, binary_layers
from bnnedge.layers.convert import convert_to_binary
from bnnedge.layers.deploy import deploy, deployed_layers
from bnnedge.methods import METHODS


def test_convolution_pads_with_zeros_after_the_sign() -> None:
    layer = BinaryConv2d(3, 5, 3, stride=2, padding=1, bias=True)
    x = torch.randn(2, 3, 6, 7)
    assert layer.bias is not None
    expected = F.conv2d(sign(x), sign(layer.weight), None, 2, 1) + layer.bias.view(-1, 1, 1)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS.load(name).trains_bits])
@pytest.mark.parametrize("a32", [False, True])
def test_deploy_form_computes_what_the_trained_layers_compute(method: str, a32: bool) -> None:
    model = nn.Sequential(
        BinaryConv2d(33, 8, 3, 2, 1, groups=1, bias=True), nn.Flatten(), BinaryLinear(8 * 9, 7), nn.BatchNorm1d(7)
    )
    training_method = METHODS.load(method)
    training_method(training_method.Options(a32=a32)).attach(model)
    model.eval()
    with torch.no_grad():
        for layer in binary_layers(model).values():
            for parameter in layer.binarizer.parameters():
                parameter.add_(torch.randn_like(parameter))  # negative scales too
        x = torch.randn(4, 33, 6, 6)
        deployed = deploy(model)
        if any(layer.input_mode == "standardized" for layer in deployed_layers(deployed).values()):
            # Two orders of float32 operations: sums of up to 1188 elements, each rounded by 2^-24, make a relative
            # error below 1e-4 in the standard deviation.
            torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(deployed(x), model(x))
    assert list(deployed_layers(deployed)) == ["0", "2"]
    for deployed_layer in deployed_layers(deployed).values():
        assert set(deployed_layer.weight.unique().tolist()) == {-1.0, 1.0}
    assert list(deployed.parameters()) == list(deployed[3].parameters())  # type: ignore[index]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.again = self.body
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.again(self.body(self.stem(x))).mean((2, 3)))  # type: ignore[no-any-return]


def test_convert_leaves_first_and_last_float_and_keeps_weights_and_sharing() -> None:
    module = Shared()
    model = convert_to_binary(module)
    assert list(binary_layers(model)) == ["body"]
    body = model.get_submodule("body")
    assert body is model.get_submodule("again")
    assert isinstance(body, BinaryConv2d) and body.groups == 2
    assert torch.equal(body.weight, module.body.weight)
    assert type(module.body) is nn.Conv2d, "the original is untouched"


def test_convert_by_predicate() -> None:
    model = convert_to_binary(Shared(), lambda name, layer: isinstance(layer, nn.Linear))
    assert list(binary_layers(model)) == ["head"]


def test_convert_refuses_what_it_cannot_turn_into_bits() -> None:
    with pytest.raises(ConfigError, match="no layer to binarize: 2 Conv2d"):
        convert_to_binary(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(1, 1)))
    reflect = nn.Sequential(
        nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), nn.Conv2d(1, 1, 1)
    )
    with pytest.raises(ConfigError, match="padding_mode='reflect'"):
        convert_to_binary(reflect)
    even = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, (3, 2), padding="same"), nn.Conv2d(1, 1, 1))
    with pytest.raises(ConfigError, match="padding='same' around a kernel of 3x2 adds one pixel more on one side"):
        convert_to_binary(even)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("dilation", [1, (2, 1)])
def test_padding_by_name_is_that_of_a_float_convolution(padding: str, dilation: int | tuple[int, int]) -> None:
    layer = nn.Conv2d(3, 5, (3, 5), padding=padding, dilation=dilation, bias=False)
    twin = convert_to_binary(nn.Sequential(layer), lambda name, _: name == "0").get_submodule("0")
    x = torch.randn(2, 3, 9, 7)
    with torch.no_grad():
        assert torch.equal(twin(x), F.conv2d(sign(x), sign(layer.weight), None, 1, padding, dilation))
