"""Binary convolution layers, forward, against the bf16 convolution of the same +-1 values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bnnedge.benchmarks.gpu.gemm import counts_of, modelled_gpu, output_dtype, random_words
from bnnedge.benchmarks.gpu.measure import Amount, Implementation, require_equal
from bnnedge.benchmarks.ops.shapes import ConvShape
from bnnedge.kernels.geometry import BConv2dGeometry
from bnnedge.kernels.gpu import reference, roofline
from bnnedge.kernels.gpu.bmma import config_for
from bnnedge.kernels.gpu.select import PACKED


def geometry_of(shape: ConvShape, batch: int) -> BConv2dGeometry:
    """The layer on ``batch`` images, zero-padded."""
    return BConv2dGeometry(
        batch=batch,
        height=shape.height,
        width=shape.width,
        channels=shape.channels,
        out_channels=shape.out_channels,
        kernel=(shape.kernel, shape.kernel),
        stride=(shape.stride, shape.stride),
        padding=(shape.padding, shape.padding),
        pad_value=0,
        dilation=(1, 1),
        groups=1,
        out_height=shape.out_height,
        out_width=shape.out_width,
    )


def implementations(
    shape: ConvShape, batch: int, device: torch.device, names: Sequence[str]
) -> tuple[Amount, list[Implementation]]:
    """The layer by our kernels ``names``, from packed signs to bf16 scaled by ``alpha``, and by the peer, whose signs
    are in bf16 and channels last already."""
    g = geometry_of(shape, batch)
    signs = random_words(batch * g.height * g.width, g.channels, device)
    counts = counts_of(signs).view(batch, g.height, g.width)
    words = signs.view(batch, g.height, g.width, -1)
    filters = random_words(g.out_channels * shape.kernel**2, g.channels, device)
    filter_counts = counts_of(filters).view(g.out_channels, *g.kernel)
    filters = filters.view(g.out_channels, *g.kernel, -1)
    alpha = torch.rand(g.out_channels, device=device) + 0.5
    found = [_ours(name, words, filters, g, counts, filter_counts, alpha) for name in names]

    x = torch.cat([reference.unpack_signs(part, g.channels, torch.bfloat16) for part in torch.split(words, 16)])
    weight = reference.unpack_signs(filters, g.channels, torch.bfloat16)
    x, weight = x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2)  # channels last in memory
    found.append(Implementation("torch bf16", lambda: F.conv2d(x, weight, None, g.stride, g.padding)))
    return Amount(2.0 * batch * shape.multiply_adds, "ops"), found


def _ours(
    name: str,
    words: Tensor,
    filters: Tensor,
    g: BConv2dGeometry,
    counts: Tensor,
    filter_counts: Tensor,
    alpha: Tensor,
) -> Implementation:
    bconv2d = PACKED["bconv2d"].load(name)

    def work() -> Tensor:
        y: Tensor = bconv2d(words, filters, g, counts, filter_counts, alpha, output_dtype(words.device)).y
        return y

    def check() -> None:
        ends = torch.tensor(sorted({0, g.batch - 1}), device=words.device)
        few = BConv2dGeometry(**{**vars(g), "batch": len(ends)})
        expected = reference.bconv2d(
            words[ends], filters, few, counts[ends], filter_counts, alpha, output_dtype(words.device)
        )
        require_equal(f"bconv2d by {name}", work()[ends], expected.y)

    gpu = modelled_gpu(words.device)
    if gpu is None or name != "bmma":
        return Implementation(name, work, check)
    tile = config_for("bconv2d", words.device, g.batch * g.out_height * g.out_width, g.out_channels, 4).tile
    return Implementation(name, work, check, roofline.bconv2d(gpu, g, tile, 2).seconds * 1e6)
