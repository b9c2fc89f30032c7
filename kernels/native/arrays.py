"""Checks of the NumPy arrays that go to C by address: C reads and writes contiguous memory and sees no types."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ConfigError


def check_array(name: str, array: NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    """Raises ``ConfigError`` unless ``array`` is contiguous and has this type and shape."""
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ConfigError(f"{name} must be contiguous {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}")


def output_buffer(out: NDArray[Any] | None, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """``out``, checked, or a new array where it is None."""
    if out is None:
        return np.empty(shape, dtype)
    check_array("out", out, dtype, shape)
    return out


def contiguous(name: str, array: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """``array``, copied only if it is not contiguous. Raises ``ConfigError`` for another type."""
    if array.dtype != dtype:
        raise ConfigError(f"{name} must be {np.dtype(dtype)}, got {array.dtype}")
    return np.ascontiguousarray(array)


def per_channel(name: str, array: NDArray[Any] | None, dtype: type[np.generic], channels: int) -> NDArray[Any] | None:
    """``array`` [channels], contiguous, or None. Raises ``ConfigError`` for another type or shape."""
    if array is None:
        return None
    array = contiguous(name, array, dtype)
    if array.shape != (channels,):
        raise ConfigError(f"{name} must have one value per output channel, shape ({channels},), got {array.shape}")
    return array
