"""What a tensor of the export graph is: its shape and the kind of its elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Dtype = Literal["float32", "bits", "int8"]
Pair = tuple[int, int]
Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]
Dtypes = tuple[Dtype, ...]
FloatArray = NDArray[np.float64]
LOWEST_CODE, HIGHEST_CODE = -128, 127


@dataclass(frozen=True)
class Quantization:
    """Code q in [-128, 127] means ``(q - zero_point) * scale``; ``scale`` is a float32 number."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class TensorSpec:
    """Shape and element kind of one tensor."""

    shape: Shape
    dtype: Dtype = "float32"
    quantization: Quantization | None = None
    """What the codes of an ``int8`` tensor mean; None for any other tensor."""
