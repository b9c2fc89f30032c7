"""Kernels that memory bounds, against a copy of as many bytes: packing, the end of a block, and its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bnnedge.benchmarks.gpu.gemm import modelled_gpu
from bnnedge.benchmarks.gpu.measure import Amount, Implementation, require_equal
from bnnedge.errors import BenchmarkError
from bnnedge.kernels.gpu import reference, roofline
from bnnedge.kernels.gpu.bn_clip_pack import bn_clip_pack
from bnnedge.kernels.gpu.bn_gradient import bn_clip_gradient
from bnnedge.kernels.gpu.bn_statistics import batch_statistics
from bnnedge.kernels.gpu.pack import sign_pack

OPS = ("sign_pack", "bn_clip_pack", "bn_gradient")


def implementations(
    op: str, batch: int, size: int, channels: int, device: torch.device
) -> tuple[Amount, list[Implementation]]:
    """``op`` of OPS on bf16 [batch, size, size, channels], and a copy; the amount is the bytes that ``op`` reads and
    writes."""
    y, residual = (torch.randn((batch, size, size, channels), device=device).to(torch.bfloat16) for _ in range(2))
    nbytes = _nbytes(op, y)
    source = torch.zeros(nbytes // 2, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    gpu = modelled_gpu(device)
    least_us = None if gpu is None else roofline.pack(gpu, nbytes).seconds * 1e6
    copy = Implementation("torch copy", lambda: target.copy_(source), None, least_us)
    work, check = _sign_pack(y) if op == "sign_pack" else _tail(op, y, residual)
    return Amount(float(nbytes), "bytes"), [Implementation(op, work, check, least_us), copy]


def _nbytes(op: str, y: Tensor) -> int:
    elements, channels = y.numel(), y.shape[-1]
    if op == "sign_pack":
        return roofline.pack_bytes(elements, channels, y.element_size())
    forward, backward = roofline.tail_bytes(elements, channels, y.element_size())
    return forward if op == "bn_clip_pack" else backward


WorkAndCheck = tuple[Callable[[], Any], Callable[[], None]]
"""What is timed, and what raises ``BenchmarkError`` if its result is wrong."""


def _sign_pack(y: Tensor) -> WorkAndCheck:
    def check() -> None:
        ends = [0, len(y) - 1]
        for field, expected in reference.sign_pack(y[ends])._asdict().items():
            require_equal(f"sign_pack, {field}", getattr(sign_pack(y), field)[ends], expected)

    return lambda: sign_pack(y), check


def _tail(op: str, y: Tensor, residual: Tensor) -> WorkAndCheck:
    """The end of a block as a training step runs it: batch normalisation, sum and clip, with the batch's statistics."""
    channels = y.shape[-1]
    weight, bias, *running = (torch.rand(channels, device=y.device) for _ in range(4))
    mean, invstd = batch_statistics(y, running[0], running[1], 1e-5, 0.1)
    z, bits = bn_clip_pack(y, mean, invstd, weight, bias, residual)
    mask = bits.mask
    assert mask is not None

    def check_forward() -> None:
        ends = [0, len(y) - 1]
        _require_close(op, z[ends], reference.bn_clip_pack(y[ends], mean, invstd, weight, bias, residual[ends])[0])
        # The bits must be those of the z that was stored, whose rounding is the kernel's own.
        expected = reference.sign_pack(z[ends])
        require_equal("bn_clip_pack, signs", bits.signs[ends], expected.signs)
        require_equal("bn_clip_pack, counts", bits.counts[ends], expected.counts)
        require_equal("bn_clip_pack, mask", mask[ends], reference.pack_bits(z[ends].abs() < 1))

    def check_backward() -> None:
        arguments = residual, mask, y, mean, invstd, weight
        _require_close(op, bn_clip_gradient(*arguments)[0], reference.bn_clip_gradient(*arguments)[0])

    if op == "bn_clip_pack":
        return lambda: bn_clip_pack(y, mean, invstd, weight, bias, residual), check_forward
    return lambda: bn_clip_gradient(residual, mask, y, mean, invstd, weight), check_backward


def _require_close(op: str, found: Tensor, expected: Tensor) -> None:
    """Raise ``BenchmarkError`` for a difference beyond one step of bf16.

    The interpreter truncates to bf16 where a GPU rounds (2**-7 of the value), and float32 rounds the terms before.
    """
    if not torch.allclose(found.float(), expected.float(), rtol=2**-7, atol=2**-16):
        raise BenchmarkError(f"{op} differs from the reference; no time is taken of wrong results")
