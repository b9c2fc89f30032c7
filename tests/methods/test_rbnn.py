"""RBNN against a second implementation in NumPy float64, written from the paper's formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnnedge.binarization.sign import sign
from bnnedge.binarization.standardize import standardize, standardized_sign
from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear
from bnnedge.methods.rbnn import Rbnn, RbnnBinarizer, RbnnOptions, kronecker_factors, surrogate_schedule

Array = NDArray[np.float64]


@pytest.mark.parametrize(
    ("n", "factors"),
    [(144, (12, 12)), (288, (16, 18)), (576, (24, 24)), (1152, (32, 36)), (2304, (48, 48)), (4608, (64, 72)),
     (64, (8, 8)), (128, (8, 16)), (7, (1, 7)), (1, (1, 1))],
)  # fmt: skip
def test_kronecker_factors(n: int, factors: tuple[int, int]) -> None:
    assert kronecker_factors(n) == factors


@pytest.mark.parametrize(("epoch", "t", "k"), [(0, 0.01, 100.0), (1, 0.1, 10.0), (2, 1.0, 1.0)])
def test_surrogate_schedule(epoch: int, t: float, k: float) -> None:
    assert surrogate_schedule(epoch, 3, 1e-2, 1e1) == pytest.approx((t, k), rel=1e-12)


def test_schedule_ends_just_below_tmax() -> None:
    t, k = surrogate_schedule(999, 1000, 1e-2, 1e1)
    assert t == pytest.approx(9.931, abs=1e-3)
    assert k == 1.0


def make(options: RbnnOptions, *, channels: int = 5) -> tuple[BinaryConv2d, RbnnBinarizer]:
    layer = BinaryConv2d(4, channels, 3, padding=1)
    binarizer = RbnnBinarizer(layer, options)
    layer.binarizer = binarizer
    layer.double()
    with torch.no_grad():
        binarizer.alpha.copy_(torch.randn(channels))  # negative scales too
        binarizer.beta.copy_(torch.randn(channels) * 2)
    return layer, binarizer


def numpy_standardize(x: Array) -> Array:
    flat = x.reshape(len(x), -1)
    standard: Array = (flat - flat.mean(1, keepdims=True)) / flat.std(1, ddof=1, keepdims=True)
    return standard.reshape(x.shape)


def numpy_rotated(w: Array, beta: Array, r1: Array, r2: Array) -> Array:
    flat = numpy_standardize(w).reshape(len(w), -1)
    strength = np.abs(np.sin(beta))[:, None]
    # vec(r1^T X r2) for row-major X is (r1 kron r2)^T vec(X): the Kronecker form of the paper.
    rotated: Array = (1 - strength) * flat + strength * (flat @ np.kron(r1, r2))
    return rotated.reshape(w.shape)


def test_forward_is_the_paper_s_formula() -> None:
    layer, binarizer = make(RbnnOptions())
    w, beta = layer.weight.detach().numpy(), binarizer.beta.detach().numpy()
    w3 = numpy_rotated(w, beta, binarizer.r1.numpy(), binarizer.r2.numpy())
    np.testing.assert_allclose(binarizer.rotated(layer.weight).detach().numpy(), w3, rtol=0, atol=1e-12)
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    a = torch.from_numpy(np.where(numpy_standardize(x.numpy()) < 0, -1.0, 1.0))
    expected = torch.nn.functional.conv2d(a, torch.from_numpy(np.where(w3 < 0, -1.0, 1.0)), padding=1)
    expected = expected * binarizer.alpha.view(-1, 1, 1)
    assert torch.equal(layer.eval()(x), expected)
    # In training alpha is in the weight: at most 36 summands of magnitude alpha are rounded in another order.
    torch.testing.assert_close(layer.train()(x), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("rule", ["paper", "authors"])
@pytest.mark.parametrize("block", [1, 80, 10**6], ids=["row", "rows", "all"])
def test_weight_gradient(rule: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnnedge.binarization.row_blocks.BLOCK", block)
    layer, binarizer = make(RbnnOptions(rotation_gradient=rule))  # type: ignore[arg-type]
    with torch.no_grad():
        binarizer.alpha[1] = 0  # alpha's own gradient needs no alpha
    binarizer.set_surrogate(0.5, 2.0)
    incoming = torch.randn_like(layer.weight)
    binarizer.binarize_weight(layer.weight).backward(incoming)

    w, beta = layer.weight.detach().numpy(), binarizer.beta.detach().numpy()
    r1, r2 = binarizer.r1.numpy(), binarizer.r2.numpy()
    w3 = numpy_rotated(w, beta, r1, r2)
    alpha = binarizer.alpha.detach().numpy()[:, None, None, None]  # binarize_weight gives alpha sign(w3)
    assert binarizer.alpha.grad is not None
    alpha_gradient = (incoming.numpy() * numpy_sgn(w3)).sum((1, 2, 3))
    np.testing.assert_allclose(binarizer.alpha.grad.numpy(), alpha_gradient, rtol=1e-10, atol=1e-12)
    g = alpha * incoming.numpy() * np.maximum(2.0 * (math.sqrt(2) * 0.5 - 0.25 * np.abs(w3)), 0)
    strength = np.abs(np.sin(beta))[:, None, None]
    g2 = g.reshape(len(w), *r1.shape[:1], r2.shape[0])
    x_gradient = (1 - strength) * g2
    if rule == "paper":
        x_gradient = x_gradient + strength * (r1 @ g2 @ r2.T)
    x_gradient = x_gradient.reshape(len(w), -1)
    # Jacobian of the standardization, written out.
    x = numpy_standardize(w).reshape(len(w), -1)
    n, std = x.shape[1], w.reshape(len(w), -1).std(1, ddof=1, keepdims=True)
    w_gradient = (
        x_gradient - x_gradient.mean(1, keepdims=True) - x * (x_gradient * x).sum(1, keepdims=True) / (n - 1)
    ) / std
    assert layer.weight.grad is not None
    np.testing.assert_allclose(layer.weight.grad.numpy().reshape(len(w), -1), w_gradient, rtol=1e-10, atol=1e-12)

    rotated = (r1.T @ x.reshape(g2.shape) @ r2).reshape(len(w), -1)
    beta_gradient = (g.reshape(len(w), -1) * (rotated - x)).sum(1) * np.cos(beta) * np.sign(np.sin(beta))
    assert binarizer.beta.grad is not None
    np.testing.assert_allclose(binarizer.beta.grad.numpy(), beta_gradient, rtol=1e-10, atol=1e-12)


def test_at_the_start_only_the_paper_s_gradient_reaches_the_weights() -> None:
    norms = {}
    for rule in ("paper", "authors"):
        layer, binarizer = make(RbnnOptions(rotation_gradient=rule))
        torch.nn.init.constant_(binarizer.beta, math.pi / 2)
        binarizer.binarize_weight(layer.weight).backward(torch.randn_like(layer.weight))
        assert layer.weight.grad is not None
        norms[rule] = float(layer.weight.grad.norm())
    assert norms["paper"] > 0.1
    assert norms["authors"] < 1e-12


def numpy_learn(x: Array, r1: Array, r2: Array) -> tuple[Array, Array]:
    for _ in range(3):
        b = np.where(r1.T @ x @ r2 < 0, -1.0, 1.0)
        u, _, vt = np.linalg.svd(sum(b[c] @ r2.T @ x[c].T for c in range(len(x))))
        r1 = (u @ vt).T
        u, _, vt = np.linalg.svd(sum(x[c].T @ r1 @ b[c] for c in range(len(x))))
        r2 = u @ vt
    return r1, r2


@pytest.mark.parametrize("channels", [1, 5, 33])
def test_rotation_learning(channels: int) -> None:
    layer, binarizer = make(RbnnOptions(), channels=channels)
    x = standardize(layer.weight.detach()).view(-1, binarizer.a, binarizer.b)

    def objective() -> float:
        return float((binarizer.r1.T @ x @ binarizer.r2).abs().sum())

    expected = numpy_learn(x.numpy(), binarizer.r1.numpy().copy(), binarizer.r2.numpy().copy())
    addresses = binarizer.r1.data_ptr(), binarizer.r2.data_ptr()
    before = objective()
    binarizer.learn_rotation(layer.weight)
    assert (binarizer.r1.data_ptr(), binarizer.r2.data_ptr()) == addresses, "in place"
    assert objective() >= before
    for found, wanted in zip((binarizer.r1, binarizer.r2), expected, strict=True):
        eye = torch.eye(len(found), dtype=torch.float64)
        torch.testing.assert_close(found.T @ found, eye, rtol=0, atol=1e-12)
        if channels > 1:  # with one channel the sums are rank-deficient and the SVD is not unique
            np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-9)


def test_rotation_is_updated_before_every_nth_epoch_only() -> None:
    method = Rbnn(RbnnOptions(rotation_update=2))
    model = torch.nn.Sequential(BinaryConv2d(4, 6, 3))
    method.attach(model)
    binarizer = model[0].binarizer
    seen: list[Tensor] = []
    for epoch in range(4):
        with torch.no_grad():
            model[0].weight.add_(torch.randn_like(model[0].weight))  # type: ignore[operator, arg-type]
        before = binarizer.r1.clone()  # type: ignore[union-attr, operator]
        method.start_epoch(model, epoch, 4)
        seen.append(torch.equal(before, binarizer.r1))  # type: ignore[arg-type, union-attr]
    assert seen == [False, True, False, True]


def standardize_backward(x: Array, g: Array) -> Array:
    """Gradient at x of ``sum(g * standardize(x))``, row by row."""
    z, std = numpy_standardize(x), x.std(1, ddof=1, keepdims=True)
    centred = g - g.mean(1, keepdims=True) - z * (g * z).sum(1, keepdims=True) / (x.shape[1] - 1)
    return np.asarray(centred / std)


def numpy_sgn(x: Array) -> Array:
    return np.where(x < 0, -1.0, 1.0)


class SlowLayer:
    """One dense RBNN layer with its state, forward and backward pass."""

    def __init__(self, layer: BinaryLinear, a32: bool) -> None:
        self.quantize = (lambda z: z) if a32 else numpy_sgn
        self.a32 = a32
        binarizer = layer.binarizer
        assert isinstance(binarizer, RbnnBinarizer)
        self.values = {
            "weight": layer.weight.detach().numpy().copy(),
            "alpha": binarizer.alpha.detach().numpy().copy(),
            "beta": binarizer.beta.detach().numpy().copy(),
        }
        self.momentum: dict[str, Array] = {}
        self.r1, self.r2 = binarizer.r1.numpy().copy(), binarizer.r2.numpy().copy()

    def matrices(self) -> Array:
        x: Array = numpy_standardize(self.values["weight"]).reshape(-1, len(self.r1), len(self.r2))
        return x

    def forward(self, x: Array) -> Array:
        self.x, self.z = x, numpy_standardize(x)
        self.w3 = numpy_rotated(self.values["weight"], self.values["beta"], self.r1, self.r2)
        self.sums = self.quantize(self.z) @ numpy_sgn(self.w3).T
        return np.asarray(self.sums * self.values["alpha"])

    def backward(self, dy: Array, t: float, rule: str) -> tuple[Array, dict[str, Array]]:
        k, root = max(1 / t, 1.0), math.sqrt(2)
        ds = dy * self.values["alpha"]
        g = (ds.T @ self.quantize(self.z)) * np.maximum(k * (root * t - t * t * np.abs(self.w3)), 0)
        x2 = self.matrices()
        g2 = g.reshape(x2.shape)
        strength = np.abs(np.sin(self.values["beta"]))
        rotated = (self.r1.T @ x2 @ self.r2).reshape(len(g), -1)
        through = (1 - strength)[:, None, None] * g2
        if rule == "paper":
            through = through + strength[:, None, None] * (self.r1 @ g2 @ self.r2.T)
        beta = self.values["beta"]
        gradients = {
            "weight": standardize_backward(self.values["weight"], through.reshape(len(g), -1)),
            "alpha": (dy * self.sums).sum(0),
            "beta": (g * (rotated - x2.reshape(len(g), -1))).sum(1) * np.cos(beta) * np.sign(np.sin(beta)),
        }
        ta = max(t, 1.0)  # activations: k = 1
        da = ds @ numpy_sgn(self.w3)
        if not self.a32:
            da = da * np.maximum(root * ta - ta * ta * np.abs(self.z), 0)
        return standardize_backward(self.x, da), gradients

    def step(self, gradients: dict[str, Array], lr: float) -> None:
        for name, g in gradients.items():
            g = g + 1e-4 * self.values[name]
            self.momentum[name] = 0.9 * self.momentum[name] + g if name in self.momentum else g
            self.values[name] = self.values[name] - lr * self.momentum[name]


@pytest.mark.parametrize(("rule", "a32"), [("paper", False), ("authors", False), ("paper", True)])
def test_trajectory(rule: Literal["paper", "authors"], a32: bool) -> None:
    """Six epochs of two steps: t crosses 1, the rotations are learnt in every second epoch."""
    method = Rbnn(RbnnOptions(rotation_gradient=rule, rotation_update=2, tmin=0.1, tmax=5.0, a32=a32))
    first, second = BinaryLinear(12, 20), BinaryLinear(20, 3)
    model = nn.Sequential(first, second).double()
    method.attach(model)
    model.double()
    with torch.no_grad():
        for layer in (first, second):
            layer.binarizer.beta.mul_(torch.linspace(-0.9, 0.9, len(layer.weight)))  # type: ignore[operator]
    slow = [SlowLayer(first, a32), SlowLayer(second, a32)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    random = np.random.default_rng(3)
    x, target = random.normal(size=(7, 12)), random.normal(size=(7, 3)) * 3
    start = [numpy_sgn(numpy_rotated(c.values["weight"], c.values["beta"], c.r1, c.r2)) for c in slow]
    for epoch in range(6):
        method.start_epoch(model, epoch, 6)
        t = 0.1 * 50 ** (epoch / 6)
        for copy in slow:
            if epoch % 2 == 0:
                copy.r1, copy.r2 = numpy_learn(copy.matrices(), copy.r1, copy.r2)
        for _ in range(2):
            optimizer.zero_grad()
            (model(torch.from_numpy(x)) - torch.from_numpy(target)).square().mean().backward()
            optimizer.step()
            y = slow[1].forward(slow[0].forward(x))
            dh, second_gradients = slow[1].backward(2 * (y - target) / y.size, t, rule)
            _, first_gradients = slow[0].backward(dh, t, rule)
            slow[0].step(first_gradients, 0.02)
            slow[1].step(second_gradients, 0.02)
            for layer, copy in zip((first, second), slow, strict=True):
                found: dict[str, Any] = {
                    "weight": layer.weight,
                    "alpha": layer.binarizer.alpha,
                    "beta": layer.binarizer.beta,
                }
                for name, value in copy.values.items():
                    np.testing.assert_allclose(found[name].detach().numpy(), value, rtol=1e-9, atol=1e-9, err_msg=name)
    assert all((before != numpy_sgn(copy.w3)).any() for before, copy in zip(start, slow, strict=True))


def ddp_rotation(rank: int, folder: str) -> None:
    """Run one of two replicas, which share rank 0's weights and rotations but have other data and random numbers."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)
    torch.set_num_threads(1)
    model = nn.Sequential(BinaryLinear(12, 5), nn.BatchNorm1d(5), BinaryLinear(5, 3))
    method = Rbnn(RbnnOptions())
    method.attach(model)
    replica = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(replica.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-4)
    for epoch in range(2):
        before = model[0].binarizer.r1.clone()  # type: ignore[operator, union-attr]
        method.start_epoch(replica, epoch, 2)
        assert not torch.equal(before, model[0].binarizer.r1)  # type: ignore[arg-type, union-attr]
        for _ in range(3):
            optimizer.zero_grad()
            replica(torch.randn(8, 12)).square().mean().backward()
            optimizer.step()
            method.after_step(replica)
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_rotations_agree_on_all_replicas_of_a_distributed_run(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(  # type: ignore[attr-defined]
        ddp_rotation, (str(tmp_path),), nprocs=2
    )
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, value in first.items():
        if "running" not in name:  # statistics of each replica's own data
            assert torch.equal(value, second[name]), name


def test_rotation_angle() -> None:
    layer, binarizer = make(RbnnOptions())
    w3 = numpy_rotated(
        layer.weight.detach().numpy(), binarizer.beta.detach().numpy(), binarizer.r1.numpy(), binarizer.r2.numpy()
    ).ravel()
    b = numpy_sgn(w3)
    angle = math.degrees(math.acos(w3 @ b / math.sqrt((w3 @ w3) * (b @ b))))
    found = Rbnn(RbnnOptions()).layer_metrics(layer)
    assert found["rotation_angle_deg"] == pytest.approx(angle, rel=1e-9)
    assert 0 < angle < 90


def test_activations_use_k_1_and_t_of_at_least_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnnedge.binarization.row_blocks.BLOCK", 40)  # one sample of 36 in each
    _, binarizer = make(RbnnOptions())
    for t, expected in ((0.1, 1.0), (3.0, 3.0)):
        binarizer.set_surrogate(t, max(1 / t, 1))
        x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
        incoming = torch.randn_like(x)
        binarizer.binarize_input(x).backward(incoming)
        z = numpy_standardize(x.detach().numpy())
        g = incoming.numpy() * np.maximum(math.sqrt(2) * expected - expected**2 * np.abs(z), 0)
        wanted = standardize_backward(x.detach().numpy().reshape(2, -1), g.reshape(2, -1))
        assert x.grad is not None
        np.testing.assert_allclose(x.grad.numpy().reshape(2, -1), wanted, rtol=0, atol=1e-12)


def test_constant_samples_give_plus_one_and_finite_gradients() -> None:
    layer, binarizer = make(RbnnOptions())
    x = torch.full((2, 4, 3, 3), 0.25, dtype=torch.float64, requires_grad=True)
    assert torch.equal(binarizer.binarize_input(x), torch.ones_like(x))
    layer(x).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    assert torch.equal(sign(standardize(torch.zeros(1, 5))), torch.ones(1, 5))


@pytest.mark.parametrize("value", [0.0, 0.3, -7e5, 1e-9])
def test_constant_rows_become_0_with_zero_gradient(value: float) -> None:
    """So do those whose mean is rounded. The row between them is standardized as usual."""
    x = torch.full((3, 1001), value)
    x[1] = torch.linspace(1, 2, 1001)
    x.requires_grad_()
    z = standardize(x)
    z.backward(torch.randn(3, 1001))
    assert x.grad is not None
    assert not z[0].any() and not z[2].any() and not x.grad[0].any() and not x.grad[2].any()
    assert float(z[1].detach().std()) == pytest.approx(1, abs=1e-5)
    assert x.grad[1].any()


def test_dense_layers_and_filters_that_are_too_small() -> None:
    dense = BinaryLinear(35, 3)
    assert RbnnBinarizer(dense, RbnnOptions()).binarize_weight(dense.weight).shape == (3, 35)
    with pytest.raises(ConfigError, match="at least 2 weights"):
        RbnnBinarizer(BinaryConv2d(4, 4, 1, groups=4), RbnnOptions())


def test_alpha_starts_at_the_mean_magnitude_of_the_framework_s_own_initialization() -> None:
    """That initialization is uniform between -1 and 1 over sqrt(n) for filters of n = 36 weights.

    The mean over 40,000 filters must be within five standard deviations of its expectation.
    """
    layer = BinaryConv2d(4, 40_000, 3)
    nn.init.constant_(layer.weight, 7.0)  # a network's own initialization plays no part
    binarizer = RbnnBinarizer(layer, RbnnOptions())
    bound = 1 / 6
    deviation = bound / math.sqrt(12 * 36 * 40_000)
    alpha = binarizer.alpha.detach().double()
    assert abs(float(alpha.mean()) - bound / 2) < 5 * deviation
    assert 0 < float(alpha.min()) < float(alpha.max()) < bound
    assert torch.equal(binarizer.beta, torch.full((40_000,), math.pi / 2))


@pytest.mark.parametrize("bad", [{"rotation_update": 0}, {"tmin": 1.0, "tmax": 0.1}, {"rotation_gradient": "mine"}])
def test_bad_options(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        RbnnOptions(**bad)  # type: ignore[arg-type]


def test_memory_format_and_autocast_change_no_sign() -> None:
    """The signs of channels-last tensors, and those under autocast, are the signs of the plain evaluation."""
    layer, binarizer = make(RbnnOptions())
    layer.float()
    x = torch.randn(3, 4, 6, 5)
    signs, weight = binarizer.binarize_input(x), binarizer.eval().binarize_weight(layer.weight)
    binarizer.train()
    with torch.no_grad():
        scaled = weight * binarizer.alpha.view(-1, 1, 1, 1)
        assert torch.equal(binarizer.binarize_weight(layer.weight), scaled)
        assert torch.equal(binarizer.binarize_input(x.to(memory_format=torch.channels_last)), signs)
        layer.weight.data = layer.weight.data.to(memory_format=torch.channels_last)
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(binarizer.binarize_weight(layer.weight), scaled)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(binarizer.binarize_weight(layer.weight), scaled)
            half = x.bfloat16()
            assert torch.equal(binarizer.binarize_input(half).float(), binarizer.binarize_input(half.float()))


def test_channels_last_activations_stay_in_one_compiled_graph() -> None:
    """An argument ``out=`` in that format would split the graph, and Inductor fails at the sizes of its pieces."""
    torch._dynamo.reset()
    x = torch.randn(3, 5, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    compiled = torch.compile(standardized_sign, fullgraph=True, backend="aot_eager")
    found = [torch.autograd.grad(f(x, 1.0).pow(3).sum(), x)[0] for f in (standardized_sign, compiled)]
    assert torch.equal(*found)
    torch._dynamo.reset()
