"""Bounds of the values of a tensor, as far as the operations that made it imply them.

Interval arithmetic: each operation maps the bounds of its arguments to bounds of its result. An operation that is not
known here gives no bounds, so that a bound that is stated always holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils import _pytree as pytree

INF = math.inf
TINY = math.ulp(0.0)
"""The least positive number, a lower bound of values that are above 0."""


class Bounds(NamedTuple):
    """``low <= x <= high`` for each value x of a tensor."""

    low: float = -INF
    high: float = INF
    learnt: bool = False
    """Whether they hold for the present values of parameters only, which training may change."""
    source: str = ""
    """The operation that gave the values one sign; empty if they have both."""

    @property
    def one_sign(self) -> bool:
        """Whether ``sign(x)``, which is +1 at 0, is the same for all values."""
        return self.low >= 0 or self.high < 0


def hull(several: Sequence[Bounds]) -> Bounds:
    """The bounds of values each of which keeps one of ``several``."""
    if not several:
        return Bounds()
    low, high = min(b.low for b in several), max(b.high for b in several)
    return _from(several, low, high)


def bounds_of_constant(tensor: Tensor, learnt: bool) -> Bounds:
    """The least and the largest value of a parameter, a buffer or a constant."""
    if tensor.is_complex() or tensor.is_meta or not tensor.numel() > 0 or type(tensor).__name__.startswith("Uninit"):
        return Bounds()
    low, high = (float(v) for v in torch.aminmax(tensor.detach().float()))
    return Bounds() if math.isnan(low) else Bounds(low, high, learnt)


def is_uninitialized(tensor: Tensor) -> bool:
    """Whether a tensor of a lazy layer has no shape yet."""
    return isinstance(tensor, UninitializedParameter | UninitializedBuffer)


def canonical(name: str) -> str:
    """One spelling of an operation's name as a module, a function, a method or an operator of ATen."""
    spelled = name.replace("_", "").lower()
    return _OTHER_NAMES.get(spelled, spelled)


def bounds_of(
    operation: str, call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], label: str = ""
) -> Bounds:
    """The bounds of ``call(*args, **kwargs)``, in whose arguments a ``Bounds`` stands in place of each tensor.

    ``operation`` is the canonical name; ``label`` is how a message calls the operation.
    """
    given = [b for b in pytree.tree_leaves((args, kwargs), is_leaf=_is_bounds) if _is_bounds(b)]
    found = _from(given, *_interval(operation, call, args, kwargs, given))
    if found.learnt and found.one_sign:
        free_args, free_kwargs = pytree.tree_map(_forget_learnt, (args, kwargs), is_leaf=_is_bounds)
        given = [_forget_learnt(b) for b in given]
        always = _from(given, *_interval(operation, call, free_args, free_kwargs, given))
        found = always if always.one_sign else found
    return found._replace(source=label) if found.one_sign and not found.source else found


def _forget_learnt(value: Any) -> Any:
    return Bounds() if isinstance(value, Bounds) and value.learnt else value


def _is_bounds(value: Any) -> bool:
    return isinstance(value, Bounds)


def _from(several: Sequence[Bounds], low: float, high: float) -> Bounds:
    if math.isnan(low) or math.isnan(high):
        low, high = -INF, INF
    found = Bounds(low, high, any(b.learnt for b in several))
    sources = [b.source for b in several if b.source]
    return found._replace(source=sources[0]) if sources and found.one_sign else found


def _interval(
    operation: str, call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], given: Sequence[Bounds]
) -> tuple[float, float]:
    if operation in _FIXED:
        return _FIXED[operation]
    if not given:
        return -INF, INF
    x = given[0]
    if operation in _MONOTONE:
        low, high = _apply(call, args, kwargs)
        return (max(low, TINY), high) if operation in _POSITIVE else (low, high)
    if operation in _ARITHMETIC:
        return _arithmetic(operation, args, kwargs)
    if operation in _KEEPS_NONNEGATIVE:
        return (0.0, x.high) if x.low >= 0 else (-INF, INF)
    if operation in _MAGNITUDES or (operation == "pow" and len(args) > 1 and args[1] in (2, 4, 6)):
        return 0.0, INF
    if operation in ("sum", "cumsum", "logcumsumexp", "nansum"):
        return (x.low, INF) if x.low >= 0 else (-INF, x.high) if x.high <= 0 else (-INF, INF)
    if operation == "threshold":  # values above args[1] stay, the others become args[2]
        limit, value = (list(args[1:]) + [kwargs.get("threshold"), kwargs.get("value")])[:2]
        return min(limit, value), max(x.high, value)
    if operation in _PADS:
        padded = kwargs.get("value", args[3] if operation == "pad" and len(args) > 3 else None)
        padded = args[2] if operation == "constantpadnd" and len(args) > 2 else padded
        return min(x.low, padded or 0.0), max(x.high, padded or 0.0)
    if operation in _ADDS_ZEROS:
        return 0.0 if x.low >= 0 else -INF, INF if x.high > 0 else 0.0
    if kwargs.get("mode") == "bicubic" or not (operation in _KEEPS or operation.startswith(_KEEPING_POOLS)):
        return -INF, INF
    return min(b.low for b in given), max(b.high for b in given)


def _apply(call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[float, float]:
    """The two ends of a function that never falls."""

    def ends(value: Any) -> Any:
        return torch.tensor([value.low, value.high]) if _is_bounds(value) else value

    try:
        with torch.no_grad():
            found = call(*map(ends, args), **{name: ends(value) for name, value in kwargs.items()})
        low, high = found.tolist()
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return -INF, INF
    return low, high


def _arithmetic(operation: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[float, float]:
    ends = [_ends(value) for value in [*args, *(kwargs[k] for k in ("input", "other") if k in kwargs)]]
    if operation == "neg":
        low, high = ends[0]
        return -high, -low
    if len(ends) < 2 or (operation.endswith("div") and ends[1][0] <= 0 <= ends[1][1]):
        return -INF, INF
    (a, b), (c, d) = ends[1::-1] if operation == "rsub" else ends[:2]
    if operation in ("maximum", "minimum"):
        choose = max if operation == "maximum" else min
        return choose(a, c), choose(b, d)
    if operation in ("add", "iadd", "radd", "sub", "isub", "rsub"):
        factor = float(kwargs.get("alpha", 1)) * (-1 if operation.endswith("sub") else 1)
        c, d = sorted((_times(factor, c), _times(factor, d)))
        return a + c, b + d
    if operation.endswith("div"):
        c, d = 1 / d if d else INF, 1 / c if c else INF
    corners = [_times(p, q) for p in (a, b) for q in (c, d)]
    return min(corners), max(corners)


def _ends(value: Any) -> tuple[float, float]:
    if isinstance(value, Bounds):
        return value.low, value.high
    return (float(value), float(value)) if isinstance(value, int | float) else (-INF, INF)


def _times(p: float, q: float) -> float:
    return 0.0 if p == 0 or q == 0 else p * q


_OTHER_NAMES = {
    "prelukernel": "prelu",
    "softmax2d": "softmax",
    "logsigmoidforward": "logsigmoid",
    "clip": "clamp",
    "truediv": "div",
    "multiply": "mul",
    "rmul": "mul",
    "imul": "mul",
    "divide": "div",
    "subtract": "sub",
    "negative": "neg",
}
_FIXED = {
    "softmax": (TINY, 1.0),
    "safesoftmax": (TINY, 1.0),
    "softmin": (TINY, 1.0),
    "gumbelsoftmax": (0.0, 1.0),
    "logsigmoid": (-INF, -TINY),
    "bernoulli": (0.0, 1.0),
    "rand": (0.0, 1.0),
    "randlike": (0.0, 1.0),
    "zeroslike": (0.0, 0.0),
    "newzeros": (0.0, 0.0),
    "zeros": (0.0, 0.0),
    "oneslike": (1.0, 1.0),
    "newones": (1.0, 1.0),
    "ones": (1.0, 1.0),
}
_MONOTONE = {
    *("relu", "relu6", "hardtanh", "clamp", "clampmin", "clampmax", "sigmoid", "hardsigmoid", "exp", "exp2"),
    *("expm1", "softplus", "softsign", "tanh", "erf", "atan", "asinh", "sinh", "log1p", "log", "elu", "selu"),
    *("celu", "leakyrelu", "softshrink", "hardshrink", "tanhshrink", "floor", "ceil", "round", "trunc", "sign"),
}
_POSITIVE = {"exp", "exp2", "sigmoid", "softplus"}
_KEEPS_NONNEGATIVE = {
    *("prelu", "rrelu", "rreluwithnoise", "gelu", "silu", "swish", "mish", "hardswish", "lppool2d", "lppool1d"),
}
_MAGNITUDES = {
    *("abs", "absolute", "square", "sqrt", "cosh", "norm", "linalgvectornorm", "linalgnorm", "var", "std"),
    *("count", "nonzero", "logicalnot", "eq", "ne", "lt", "le", "gt", "ge"),
}
_ARITHMETIC = {
    "add",
    "iadd",
    "radd",
    "sub",
    "isub",
    "rsub",
    "mul",
    "div",
    "idiv",
    "neg",
    "maximum",
    "minimum",
}
_PADS = {
    "pad",
    "constantpadnd",
    "zeropad1d",
    "zeropad2d",
    "zeropad3d",
}
_ADDS_ZEROS = {
    *("avgpool1d", "avgpool2d", "avgpool3d", "dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("featuredropout", "nativedropout", "maxunpool2d"),
}
_KEEPS = {
    *("identity", "view", "unsafeview", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes"),
    *("t", "contiguous", "clone", "detach", "alias", "to", "tocopy", "float", "double", "half", "bfloat16"),
    *("type", "expand", "expandas", "repeat", "repeatinterleave", "tile", "getitem", "select", "slice"),
    *("narrow", "chunk", "split", "splitwithsizes", "unsafesplit", "unbind", "squeeze", "unsqueeze", "mean"),
    *("amax", "amin", "max", "min", "median", "channelshuffle", "nativechannelshuffle", "pixelshuffle"),
    *("pixelunshuffle", "roll", "flip", "movedim", "gather", "index", "indexselect", "cat", "concat"),
    *("concatenate", "hstack", "vstack", "stack", "where", "upsample", "interpolate", "sort", "topk"),
    *("asstrided", "setitem", "unfold", "im2col"),
}
_KEEPING_POOLS = (
    "maxpool",
    "adaptivemaxpool",
    "fractionalmaxpool",
    "adaptiveavgpool",
    "upsamplenearest",
    "upsamplebilinear",
    "upsamplelinear",
    "reflectionpad",
    "replicationpad",
)
