"""The one sign function of the project, which follows the bit contract of ``kernels/layout.py``."""

from __future__ import annotations

import torch
from torch import Tensor


def sign(x: Tensor) -> Tensor:
    """``-1`` where ``x < 0``, else ``+1``, in the shape and dtype of ``x``. No gradient flows.

    So 0.0, -0.0 and NaN give +1, as they do in the packing rule of Larq Compute Engine. This differs from the published
    code of RBNN, ReActNet and BNEW, where a weight or an activation of exactly 0 stays 0, and from BayesBiNN's, where
    the mode of lambda = 0 is -1.
    """
    return sign_around(x, 0)


def sign_around(x: Tensor, threshold: float | Tensor) -> Tensor:
    """``-1`` where ``x < threshold``, else ``+1``; ``threshold`` may be a tensor that broadcasts to ``x``."""
    x = x.detach()
    # torch.compile fuses this expression; at an argument out= in the channels_last format it would split its graph.
    if torch.compiler.is_compiling():
        return torch.where(x < threshold, -1.0, 1.0).to(x.dtype)
    # The comparison writes 1.0 or 0.0 in the dtype of x. A bool tensor and torch.where took 14 times as long on an
    # AVX-512 CPU.
    below = torch.lt(x, threshold, out=torch.empty_like(x))
    return torch.add(torch.ones((), dtype=x.dtype, device=x.device), below, alpha=-2, out=below)
