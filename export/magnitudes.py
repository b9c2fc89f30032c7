"""How large the operands of every sum in a network are, followed through the float64 replay.

Rounding errors are relative to the operands of a sum, not to its result: ``1e6 - 1e6`` may be off by 0.06 in float32.
An operation adds at most u times the sum of the absolute values of its operands, and passes the errors of its inputs
on, multiplied by the absolute values of its coefficients. So where the inputs are off by up to ``eps M(x)``, the output
of ``y = W x + b`` is off by up to ``(eps + u) M(y)`` with

    M(y) = |W| M(x) + |b|,    M(x) = |x| for the network's input,

and likewise for sums, means and batch norms (Higham 2002, "Accuracy and Stability of Numerical Algorithms", sections
3.1 and 3.5). To first order ``M(a b) = M(a) M(b)`` and ``M(a / b) = M(a) M(b) / b^2``. What moves values moves M. What
stretches no distance (clamps, maxima, sigmoid, softmax) passes M on. Signs, and integer sums of signs, are exact, so
their M is their own size. M is never below the absolute value itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

_EXACT = {"sign", "binary_conv2d", "binary_linear"}
_LINEAR = {"convolution", "mm", "addmm", "bmm", "mean", "sum", "avg_pool2d", "adaptive_avg_pool2d"}
_MOVES = {"cat", "stack", "clone", "unsafe_view", "constant_pad_nd", "index", "index_select", "max_pool2d_with_indices"}


class Magnitudes(TorchDispatchMode):
    """While it is active, it follows M of every float tensor that PyTorch computes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = WeakIdKeyDictionary()

    def largest(self, tensor: Tensor) -> float:
        """The largest M in ``tensor``."""
        return float(self._of(tensor).max()) if tensor.numel() else 0.0

    def _of(self, tensor: Tensor) -> Tensor:
        known: Tensor | None = self._known.get(tensor)  # type: ignore[no-untyped-call]
        return tensor.abs() if known is None else known

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # a function mode outside must not see the operations of this one
            return self._followed(func, args, kwargs or {})

    def _followed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        magnitudes, keywords = pytree.tree_map(lambda a: self._of(a) if _is_float(a) else a, (args, kwargs))
        values = [a.clone() if _is_float(a) else a for a in args] if "div" in func._schema.name else list(args)
        result = func(*args, **kwargs)
        outputs = [output for output in pytree.tree_leaves(result) if _is_float(output)]
        if outputs and any(map(_is_float, pytree.tree_leaves((args, kwargs)))):
            found = pytree.tree_leaves(_follow(func, values, magnitudes, keywords, outputs[0]))
            for output, magnitude in zip(outputs, found, strict=False):
                fits = magnitude.shape == output.shape
                known = magnitude if fits else magnitude.max().expand(output.shape)
                self._known[output] = torch.maximum(known, output.abs())
        return result


def _follow(func: Any, values: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Any:
    """M of what ``func`` returns, a tensor or several; ``args`` and ``kwargs`` hold M in place of every tensor."""
    name = func._schema.name.partition("::")[2].strip("_")
    if name in _EXACT or output.numel() == 0:
        return output.abs()
    if name in _LINEAR or name in _MOVES or func.is_view:
        return func(*args, **kwargs)
    if name in ("add", "sub", "rsub"):
        return args[0] + abs(args[2] if len(args) > 2 else kwargs.get("alpha", 1)) * abs(args[1])
    if name == "mul":
        return args[0] * abs(args[1])
    if name == "div":
        return args[0] * abs(args[1]) / (values[1] * values[1])
    if "batch_norm" in name:
        return _batch_norm(args)
    if name == "sqrt":
        return args[0].sqrt()
    if name == "pow":
        return args[0] ** args[1]
    floats = [m for m in pytree.tree_leaves((args, kwargs)) if _is_float(m)]
    others = [m.max() for m in floats[1:] if m.numel()]
    for other in others:
        floats[0] = torch.maximum(floats[0], other)
    return floats[0]


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _batch_norm(args: tuple[Any, ...]) -> Tensor:
    x, weight, bias, mean, variance = args[:5]
    epsilon = next(a for a in reversed(args) if isinstance(a, float))
    shape = (1, -1, *[1] * (x.dim() - 2))
    gain = (variance + epsilon).rsqrt() * (1.0 if weight is None else weight)
    y: Tensor = (x + mean.view(shape)) * gain.view(shape)
    return y if bias is None else y + bias.view(shape)
