"""A file in which LCE's operators follow one another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnnedge.export.targets.tflite.bit_forms import bmaxpool2d_options
from bnnedge.export.targets.tflite.writer import ABSENT, TfliteWriter
from bnnedge.kernels.layout import pack
from tests.kernels.litert.convolution import Case, conv_options
from tests.kernels.litert.running import Array
from tests.kernels.litert.writing import SAME, VALID, flexbuffer


def chain(batch: int = 1) -> tuple[bytes, list[tuple[str, Array]]]:
    """A file of one partition, float -> bits -> conv (bits) -> pool -> conv (float) -> bits -> float; inner tensors."""
    rng = np.random.default_rng(3)
    writer = TfliteWriter()
    first = pack(rng.choice([-1, 1], (40, 3, 3, 33))).view(np.int32)
    second = pack(rng.choice([-1, 1], (7, 3, 3, 40))).view(np.int32)
    tau = rng.integers(140, 158, 40).astype(np.int32)
    gamma, beta = (rng.standard_normal(7).astype(np.float32) for _ in range(2))
    valid = Case(channels=33, padding=VALID)
    image = writer.tensor("image", (batch, 9, 9, 33))
    bits = writer.custom("LceQuantize", [image], writer.tensor("bits", (batch, 9, 9, 2), "int32"))
    hidden = writer.tensor("hidden", (batch, 7, 7, 2), "int32")
    constants = [writer.constant("first", first), ABSENT, ABSENT, writer.constant("tau", tau)]
    writer.custom("LceBconv2d", [bits, *constants], hidden, flexbuffer(**conv_options(valid)))
    pooled = writer.tensor("pooled", (batch, 4, 4, 2), "int32")
    writer.custom("LceBMaxPool2d", [hidden], pooled, bmaxpool2d_options((3, 3), (2, 2), SAME))
    sums = writer.tensor("sums", (batch, 4, 4, 7))
    constants = [writer.constant("second", second), writer.constant("gamma", gamma), writer.constant("beta", beta)]
    same = flexbuffer(**conv_options(Case(channels=40)))
    writer.custom("LceBconv2d", [pooled, *constants, ABSENT], sums, same)
    signs = writer.custom("LceQuantize", [sums], writer.tensor("signs", (batch, 4, 4, 1), "int32"))
    result = writer.custom("LceDequantize", [signs], writer.tensor("result", (batch, 4, 4, 7)))
    return writer.finish([image], [result], {}), [("sums", sums), ("bits", bits)]  # type: ignore[list-item]


def image(batch: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((batch, 9, 9, 33)).astype(np.float32)
