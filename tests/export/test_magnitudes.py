"""The size of the operands of sums, against sums of absolute values that are worked out here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnedge.export.magnitudes import Magnitudes
from bnnedge.layers.deploy import binary_linear_op, sign_op


@torch.no_grad()
def test_linear_operations_add_up_absolute_values() -> None:
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    conv, norm, dense = nn.Conv2d(3, 4, 3, 2, 1).double(), nn.BatchNorm2d(4).double(), nn.Linear(4, 6).double()
    norm.train()(conv(x) * 3 + 1)
    norm.eval()
    with Magnitudes() as m:
        y = conv(x)
        z = norm(y)
        d = dense(z.mean((2, 3)))
        apart = d[:1] - d[1:] * 2
        found = [m.largest(t) for t in (y, z, d, apart)]
    wanted_y = F.conv2d(x.abs(), conv.weight.abs(), conv.bias.abs(), 2, 1)  # type: ignore[union-attr]
    deviation = torch.sqrt(norm.running_var + norm.eps)  # type: ignore[operator, arg-type]
    gain = (norm.weight / deviation).abs()[:, None, None]
    wanted_z = (wanted_y + norm.running_mean.abs()[:, None, None]) * gain + norm.bias.abs()[:, None, None]  # type: ignore[union-attr]
    wanted_d = wanted_z.mean((2, 3)) @ dense.weight.abs().T + dense.bias.abs()
    wanted = [float(t.max()) for t in (wanted_y, wanted_z, wanted_d, wanted_d[:1] + wanted_d[1:] * 2)]
    assert found == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda a, b: a - b, 11.0),
        (lambda a, b: torch.sub(a, b, alpha=3), 25.0),
        (lambda a, b: 1 - (a - b), 12.0),
        (lambda a, b: (a - b) * -2, 22.0),
        (lambda a, b: (a - b) * (a - b), 121.0),
        (lambda a, b: (a - b) / -4, 11 / 4),
        (lambda a, b: (a - b) / (b - 2), 11 * 9 / 25),
        (lambda a, b: ((a - b) ** 2).sqrt(), 11.0),
        (lambda a, b: F.hardtanh(a - b), 11.0),
        (lambda a, b: (a - b).relu_(), 11.0),
        (lambda a, b: a.sub_(b), 11.0),
        (lambda a, b: torch.cat([a, a - b]).reshape(1, 2), 11.0),
        (lambda a, b: sign_op(a - b), 1.0),
        (lambda a, b: binary_linear_op(sign_op((a - b).view(1, 1)), torch.ones(1, 1).double()), 1.0),
    ],
)
@torch.no_grad()
def test_differences_keep_the_size_of_what_they_were_taken_of(function: object, wanted: float) -> None:
    a, b = torch.tensor([4.0]).double(), torch.tensor([7.0]).double()
    with Magnitudes() as m:
        result: Tensor = function(a, b)  # type: ignore[operator]
        assert m.largest(result) == pytest.approx(wanted, rel=1e-12)
