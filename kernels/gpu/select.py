"""Which kernel computes a binary layer: the one place that looks at the device and at the layer.

An implementation is one of

- ``triton_popcount``: packed words, AND and popcount in plain ``tl``; any GPU, and Triton's interpreter;
- ``bmma``: packed words on the 1-bit tensor cores of compute capability 8.x and 9.0;
- ``int8_dot``: packed words, unpacked in the kernel for int8 or fp8 tensor cores; from 10.0, which has no 1-bit ones;
- ``dense``: an ordinary convolution or matrix product of +-1 values; the stash for the backward pass is packed;
- ``host``: the same on a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch

from bnnedge.errors import ConfigError
from bnnedge.kernels.layout import WORD_BITS
from bnnedge.registry import Registry

Op = Literal["bconv2d", "xnor_gemm"]
Kernels = Literal["auto", "triton", "torch"]
KERNELS: tuple[Kernels, ...] = get_args(Kernels)

PACKED = {
    "bconv2d": Registry(
        "binary convolution",
        [
            ("triton_popcount", "bnnedge.kernels.gpu.bconv2d:bconv2d"),
            ("bmma", "bnnedge.kernels.gpu.bmma_conv2d:bconv2d"),
            ("int8_dot", "bnnedge.kernels.gpu.int8_dot:bconv2d"),
        ],
    ),
    "xnor_gemm": Registry(
        "binary matrix product",
        [
            ("triton_popcount", "bnnedge.kernels.gpu.xnor_gemm:xnor_gemm"),
            ("bmma", "bnnedge.kernels.gpu.bmma_gemm:xnor_gemm"),
            ("int8_dot", "bnnedge.kernels.gpu.int8_dot:xnor_gemm"),
        ],
    ),
}
"""The implementations of each op on packed words; all have the signature and the results of ``reference.py``."""


_packed_is_faster: dict[tuple[object, ...], bool] = {}


def select(
    op: Op, device: torch.device, channels: int, groups: int = 1, kernels: str = "auto"
) -> Callable[..., Any] | None:
    """The packed implementation for a layer with these input channels (features), or None for ``dense`` and ``host``.

    The packed kernels compute layers with whole words of channels and one group. On a CPU there are none, unless
    ``kernels`` is ``triton``, which runs in Triton's interpreter. Raises ``ConfigError`` where there is no GPU and no
    interpreter. For ``auto``, whether to take it is up to ``packed_pays``.
    """
    if device.type != "cuda":
        if kernels != "triton":
            return None
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise ConfigError(f"kernels triton needs an NVIDIA GPU, the model is on {device}; take auto")
    if groups != 1 or channels % WORD_BITS != 0:
        return None
    on_gpu = device.type == "cuda"
    name = for_capability(torch.cuda.get_device_capability(device)) if on_gpu else "triton_popcount"
    function: Callable[..., Any] = PACKED[op].load(name)
    return function


def packed_pays(layer: tuple[object, ...], packed: Callable[[], object], dense: Callable[[], object]) -> bool:
    """Whether ``packed()`` takes no more time than ``dense()`` on the current GPU: measured once in a process for what
    ``layer`` names, which is all that the times depend on.

    While a CUDA graph is captured nothing can be measured, and under ``torch.use_deterministic_algorithms`` two runs
    must not differ: the packed one is taken then. (The results differ: the dense path rounds the scale to its type.)
    """
    if torch.are_deterministic_algorithms_enabled():
        return True
    if layer not in _packed_is_faster:
        capturing = torch.cuda.is_current_stream_capturing()
        _packed_is_faster[layer] = capturing or _milliseconds(packed) <= _milliseconds(dense)
    return _packed_is_faster[layer]


def _milliseconds(work: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return float(do_bench(work, warmup=5, rep=20, return_mode="median"))


def for_capability(capability: tuple[int, int]) -> str:
    """The packed implementation that suits a GPU's instructions."""
    if capability in ((8, 0), (8, 6), (8, 7), (8, 9), (9, 0)):
        return "bmma"
    return "int8_dot" if capability >= (10, 0) else "triton_popcount"
