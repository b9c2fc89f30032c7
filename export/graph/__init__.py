"""The export graph: what every pass rewrites and every target writes. NumPy and dataclasses only, no torch objects.

Semantics are PyTorch's: tensors are [N, C, H, W] or [N, C], weights OIHW, padding symmetric and zero. Shapes carry the
batch size of the example input in dimension 0; targets make that dimension dynamic where they can.

A tensor is ``float32``, ``bits`` or ``int8``. A ``bits`` tensor holds values in {-1, +1} only; how it is stored is the
target's business (``kernels/layout.py`` is the packed form). An ``int8`` tensor holds codes, see ``Quantization``.

``node.py`` is the contract of a node. The nodes stand in one file a family; a new one is listed here. A new operator is
a node here, a handler in ``bnnedge/export/trace`` and one form in every folder of ``bnnedge/export/targets``. Where one
of them is missing, export stops with the name of the layer, the operator and the target.
"""

from bnnedge.export.graph.activation import Activation, Binarize, Clip, PRelu
from bnnedge.export.graph.arithmetic import Add, Affine, Div, Mean, Mul, Sqrt, Sub
from bnnedge.export.graph.convolution import BinaryConv2d, Conv2d, Linear
from bnnedge.export.graph.fused import BinarizeBelow, Block, Stem
from bnnedge.export.graph.graph import Graph
from bnnedge.export.graph.int8 import Dequantize, Quantize, QuantizedConv2d
from bnnedge.export.graph.node import FloatNode, Node, WeightlessNode, Weights
from bnnedge.export.graph.pooling import AvgPool2d, MaxPool2d
from bnnedge.export.graph.shape import Concat, PadChannels, Reshape, SpaceToDepth, Subsample
from bnnedge.export.graph.tensor import (
    HIGHEST_CODE,
    LOWEST_CODE,
    Dtype,
    Dtypes,
    FloatArray,
    Pair,
    Quantization,
    Shape,
    Shapes,
    TensorSpec,
)

__all__ = [
    "HIGHEST_CODE",
    "LOWEST_CODE",
    "Activation",
    "Add",
    "Affine",
    "AvgPool2d",
    "Binarize",
    "BinarizeBelow",
    "BinaryConv2d",
    "Block",
    "Clip",
    "Concat",
    "Conv2d",
    "Dequantize",
    "Div",
    "Dtype",
    "Dtypes",
    "FloatArray",
    "FloatNode",
    "Graph",
    "Linear",
    "MaxPool2d",
    "Mean",
    "Mul",
    "Node",
    "PRelu",
    "PadChannels",
    "Pair",
    "Quantization",
    "Quantize",
    "QuantizedConv2d",
    "Reshape",
    "Shape",
    "Shapes",
    "SpaceToDepth",
    "Sqrt",
    "Stem",
    "Sub",
    "Subsample",
    "TensorSpec",
    "WeightlessNode",
    "Weights",
]
