"""Which kernel computes a binary layer: the one place that looks at the device and at the layer's size.

An implementation is one of

- ``triton_popcount``: packed words, AND and popcount in plain ``tl``; any GPU, and Triton's interpreter;
- ``bmma``: packed words on the 1-bit tensor cores of compute capability 8.x and 9.0;
- ``int8_dot``: packed words, unpacked in the kernel for int8 or fp8 tensor cores; from 10.0, which has no 1-bit ones;
- ``dense``: an ordinary convolution or matrix product of +-1 values; the stash for the backward pass is packed;
- ``host``: the same on a CPU.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, get_args

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
"""Op to its implementations on packed words; all have the signature and the results of ``reference.py``."""

LEAST_CHANNELS = 64
"""Below this the dense path is taken: half of each 128-bit load of packed words would be empty."""
LEAST_OUT_CHANNELS = 32
"""Below this half of the smallest tile of output channels would be."""


@dataclass(frozen=True)
class LayerShape:
    """What of a layer's size decides: input and output channels (features), kernel taps, groups."""

    channels: int
    out_channels: int
    taps: int = 1
    groups: int = 1


def select(op: Op, device: torch.device, shape: LayerShape, kernels: str = "auto") -> str:
    """Name of the implementation for this layer.

    ``kernels`` is ``auto``, which takes the dense path where the packed one cannot pay, or ``triton``, which takes it
    only where no packed kernel can compute the layer; on a CPU, ``triton`` runs in Triton's interpreter. Raises
    ``ConfigError`` where there is no GPU and no interpreter.
    """
    if device.type != "cuda":
        if kernels != "triton":
            return "host"
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise ConfigError(f"kernels triton needs an NVIDIA GPU, the model is on {device}; take auto")
    if not packable(shape) or (kernels == "auto" and not pays(shape)):
        return "dense"
    return for_capability(torch.cuda.get_device_capability(device)) if device.type == "cuda" else "triton_popcount"


def packable(shape: LayerShape) -> bool:
    """Whether the packed kernels compute this layer: whole words of channels, one group."""
    return shape.groups == 1 and shape.channels % WORD_BITS == 0


def pays(shape: LayerShape) -> bool:
    """Whether a layer is large enough for a packed kernel; to be replaced by measured bounds."""
    return shape.channels >= LEAST_CHANNELS and shape.out_channels >= LEAST_OUT_CHANNELS


def for_capability(capability: tuple[int, int]) -> str:
    """The packed implementation that suits a GPU's instructions."""
    if capability in ((8, 0), (8, 6), (8, 7), (8, 9), (9, 0)):
        return "bmma"
    return "int8_dot" if capability >= (10, 0) else "triton_popcount"
