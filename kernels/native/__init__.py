"""The C++ kernels of ``kernels/cpp`` in Python; results equal those of ``kernels/reference.py`` bit for bit.

``bconv2d`` computes one convolution in one call. ``Conv`` is prepared once and run many times, with the output
transforms of deployed models. ``pack_nhwc``, ``pack_nchw``, ``unpack_nhwc`` and ``bmaxpool2d`` work on what surrounds a
convolution.
"""

from __future__ import annotations

from bnnedge.kernels.native.conv import Conv, OutputTransform, Tail, bconv2d, call, peak, to_params
from bnnedge.kernels.native.library import (
    BConv2dParams,
    BMaxPool2dParams,
    available,
    kernel_names,
    load_library,
    stem_kernel_name,
)
from bnnedge.kernels.native.pack import pack_nchw, pack_nhwc, unpack_nhwc
from bnnedge.kernels.native.pool import bmaxpool2d

__all__ = [
    "BConv2dParams",
    "BMaxPool2dParams",
    "Conv",
    "OutputTransform",
    "Tail",
    "available",
    "bconv2d",
    "bmaxpool2d",
    "call",
    "kernel_names",
    "load_library",
    "pack_nchw",
    "pack_nhwc",
    "peak",
    "stem_kernel_name",
    "to_params",
    "unpack_nhwc",
]
