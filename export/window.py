"""PyTorch's sliding windows in terms of what TFLite can express: VALID, SAME, and explicit padding.

PyTorch pads both ends alike; TensorFlow's SAME gives the odd pixel to the end and pads only as much as the windows
need. At stride 2 on an even size the two disagree by one pixel, without any error to be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ExportError
from bnnedge.export.graph import Pair
from bnnedge.kernels.geometry import output_size


@dataclass(frozen=True)
class Window:
    """The windows along one axis of an image: ``size`` pixels, ``padding`` of them added at both ends."""

    size: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    @property
    def extent(self) -> int:
        """Pixels from the first tap to the last, both included."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def output(self) -> int:
        """The number of windows, which is the size of the output."""
        return output_size(self.size, self.kernel, self.stride, self.padding, self.dilation)

    @property
    def edges(self) -> Pair:
        """Pixels to add before and after the axis so that VALID gives PyTorch's windows.

        Of the pixels after it, those that no window reaches are left out.
        """
        reach = (self.output - 1) * self.stride + self.extent
        return self.padding, max(0, reach - self.padding - self.size)

    @property
    def same_edge(self) -> int:
        """Pixels that TensorFlow's SAME adds before the image."""
        reach = (-(-self.size // self.stride) - 1) * self.stride + self.extent
        return max(reach - self.size, 0) // 2

    @property
    def is_same(self) -> bool:
        """Whether TensorFlow's SAME means these very windows."""
        return self.output == -(-self.size // self.stride) and self.padding == self.same_edge

    def inside(self) -> NDArray[np.bool_]:
        """A mask [output, kernel] of the taps that fall on the image, for each window."""
        starts = np.arange(self.output) * self.stride - self.padding
        taps = starts[:, None] + np.arange(self.kernel) * self.dilation
        return (taps >= 0) & (taps < self.size)


@dataclass(frozen=True)
class Windows:
    """The windows over an image: one ``Window`` for the rows and one for the columns."""

    rows: Window
    columns: Window

    @classmethod
    def of(cls, name: str, size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)) -> Windows:
        """The windows of layer ``name``. Raises ``ExportError`` if none fits into the image."""
        rows, columns = (Window(*axis) for axis in zip(size, kernel, stride, padding, dilation, strict=True))
        if min(rows.output, columns.output) < 1:
            raise ExportError(
                f"{name}: a {kernel[0]}x{kernel[1]} window with dilation {dilation} and padding {padding} does not fit "
                f"into {size[0]}x{size[1]} pixels; enlarge the input"
            )
        return cls(rows, columns)

    @property
    def is_padded(self) -> bool:
        """Whether any tap falls outside the image: the first window starts ``padding`` before it."""
        return self.rows.padding > 0 or self.columns.padding > 0

    @property
    def is_same(self) -> bool:
        """Whether TensorFlow's SAME means these very windows."""
        return self.rows.is_same and self.columns.is_same

    @property
    def edges(self) -> NDArray[np.int32]:
        """``paddings`` of the TFLite operator PAD for an NHWC tensor, shape [4, 2]."""
        return np.array([(0, 0), self.rows.edges, self.columns.edges, (0, 0)], np.int32)

    @property
    def padded_size(self) -> Pair:
        """Height and width after adding ``edges``."""
        return self.rows.size + sum(self.rows.edges), self.columns.size + sum(self.columns.edges)

    @property
    def output_size(self) -> Pair:
        """Number of windows down and across."""
        return self.rows.output, self.columns.output
