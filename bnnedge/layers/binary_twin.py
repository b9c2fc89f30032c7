"""The binary layer that takes the place of a float layer, and the reasons why a layer has none."""

from __future__ import annotations

import weakref

from torch import nn

from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLayer, BinaryLinear
from bnnedge.layers.data_flow.flow import is_opaque

_HARMLESS = {"__module__", "__doc__", "__init__", "__annotations__", "__constants__", "reset_parameters", "extra_repr"}
_HARMLESS |= {"__firstlineno__", "__static_attributes__", "__parameters__", "__orig_bases__", "__repr__"}
"""What a subclass may define without computing anything else than its base class."""


def why_not_binary(layer: nn.Module) -> str | None:
    """Why no binary layer computes what ``layer`` computes, but for the signs; None if one does."""
    base = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    if is_opaque(layer):
        return "it computes with the weights of the layers in it without calling them"
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return "only Conv2d and Linear have binary twins"
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        return "its shape is not known before its first run; give example_inputs, or run the network once before"
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return (
            "its weight is computed by a parametrization, weight norm or pruning, which a binary layer would drop; "
            "remove that first"
        )
    if "forward" in vars(layer):
        return "its forward was replaced by another one, which a binary layer would drop"
    for kind in type(layer).__mro__[: type(layer).__mro__.index(base)]:
        own = sorted(set(vars(kind)) - _HARMLESS)
        if own:
            first = next((name for name in ("forward", "_conv_forward") if name in own), own[0])
            return f"its class {kind.__name__} defines {first}, which a binary layer would drop"
    return None


def binary_twin(layer: nn.Module) -> BinaryLayer:
    """A binary layer that takes over all that ``layer`` holds: the parameters themselves, mode, hooks, attributes.

    The parameters stay frozen where they are frozen, shared where they are shared, and of their dtype and device.

    Raises ``ConfigError`` for a convolution whose padding is not zeros.
    """
    twin: BinaryLayer
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros":
            raise ConfigError(f"a binary convolution pads with zeros; found padding_mode={layer.padding_mode!r}")
        twin = BinaryConv2d(
            layer.in_channels,
            layer.out_channels,
            (layer.kernel_size[0], layer.kernel_size[1]),
            (layer.stride[0], layer.stride[1]),
            layer.padding,  # type: ignore[arg-type]
            (layer.dilation[0], layer.dilation[1]),
            layer.groups,
            layer.bias is not None,
        )
    else:
        assert isinstance(layer, nn.Linear)
        twin = BinaryLinear(layer.in_features, layer.out_features, layer.bias is not None)
    own = {"padding": twin.padding} if isinstance(twin, BinaryConv2d) else {}
    modules = {**layer._modules, "binarizer": twin.binarizer.train(layer.training)}
    vars(twin).update({**vars(layer), **own, "_modules": modules, "binary_input": twin.binary_input})
    _rebind_hooks(twin)
    return twin


def _rebind_hooks(twin: nn.Module) -> None:
    """Make the hooks that PyTorch calls with the layer to which they belong be called with ``twin``."""
    for hooks in (twin._load_state_dict_pre_hooks, twin._state_dict_hooks):
        for hook in hooks.values():
            if getattr(hook, "with_module", False):
                hook.module = weakref.ref(twin)  # type: ignore[attr-defined]
