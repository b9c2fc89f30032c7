"""Max-pooling of packed pixels in C++."""

from __future__ import annotations

import ctypes

import numpy as np

from bnnedge.kernels.geometry import Pair, check_pool
from bnnedge.kernels.layout import Words
from bnnedge.kernels.native.library import BMaxPool2dParams, checked, load_library


def bmaxpool2d(words: Words, *, kernel: Pair, stride: Pair, padding: Pair = (0, 0)) -> Words:
    """``reference.bmaxpool2d``, same arguments and result. Raises ``ConfigError`` and ``MissingDependencyError``."""
    out_height, out_width = check_pool(words, kernel, stride, padding)
    words = np.ascontiguousarray(words)
    batch, height, width, count = words.shape
    out = np.empty((batch, out_height, out_width, count), np.uint32)
    params = BMaxPool2dParams(batch, height, width, count, *kernel, *stride, *padding, out_height, out_width)
    checked(
        load_library().bnnedge_bmaxpool2d,
        ctypes.byref(params),
        words.ctypes.data,
        words.size,
        out.ctypes.data,
        out.size,
    )
    return out
