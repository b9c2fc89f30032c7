"""The names of Gluon that differ between Triton 3.6 and 3.9, in one place. The kernels import them from here."""

from __future__ import annotations

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

# 3.9 keeps the old name of the copy as a function that raises, so the new one is looked for first.
async_load = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
barrier = getattr(gl, "barrier", None) or gl.thread_barrier
commit_group = async_copy.commit_group
wait_group = async_copy.wait_group

BARRIERS_OF_A_STAGE = 1 if hasattr(async_copy, "async_load") else 2
"""Machine barriers for one ``wait_group`` and ``barrier``; 3.6 adds one of its own."""
