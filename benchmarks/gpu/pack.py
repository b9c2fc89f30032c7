"""Packing kernels against a copy of as many bytes: all of them are bound by memory."""

from __future__ import annotations

import torch
from torch import Tensor

from bnnedge.benchmarks.gpu.gemm import modelled_gpu
from bnnedge.benchmarks.gpu.measure import Amount, Contender, require_equal
from bnnedge.kernels.gpu import reference, roofline
from bnnedge.kernels.gpu.bn_pack import bn_sign_pack
from bnnedge.kernels.gpu.pack import sign_pack
from bnnedge.kernels.gpu.reference import Packed

OPS = ("sign_pack", "bn_sign_pack")


def contenders(op: str, batch: int, size: int, channels: int, device: torch.device) -> tuple[Amount, list[Contender]]:
    """``op`` of OPS on bf16 [batch, size, size, channels], and a copy; the amount is what ``op`` reads and writes."""
    y, residual = (torch.randn((batch, size, size, channels), device=device).to(torch.bfloat16) for _ in range(2))
    scale, shift = torch.randn(channels, device=device), torch.randn(channels, device=device)

    def work() -> tuple[Tensor, Packed]:
        return (y, sign_pack(y)) if op == "sign_pack" else bn_sign_pack(y, scale, shift, residual)

    def check() -> None:
        # The bits must be those of the z that was stored, whose rounding is the kernel's own.
        z, packed = work()
        ends = [0, batch - 1]
        for field, expected in reference.sign_pack(z[ends])._asdict().items():
            require_equal(f"{op}, {field}", getattr(packed, field)[ends], expected)

    z, packed = work()
    touched = [y, *packed] if op == "sign_pack" else [y, residual, z, *packed]
    nbytes = sum(tensor.numel() * tensor.element_size() for tensor in touched if tensor is not None)
    source = torch.zeros(nbytes // 2, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    gpu = modelled_gpu(device)
    least_us = None if gpu is None else roofline.pack(gpu, nbytes).seconds * 1e6
    copy = Contender("torch copy", lambda: target.copy_(source), None, least_us)
    return Amount(float(nbytes), "bytes"), [Contender(op, work, check, least_us), copy]
