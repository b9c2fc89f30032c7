"""BayesBiNN against a second implementation in NumPy float64, its behaviour in float32, evaluation, and the prior."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnedge.config import RunConfig
from bnnedge.data.dataset import load_dataset
from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear, binary_layers
from bnnedge.methods import bayesbinn
from bnnedge.methods.bayesbinn import Bayesbinn, BayesbinnOptions
from bnnedge.methods.method import PhaseSize
from bnnedge.tasks.classification import Classification
from bnnedge.train.assemble import make_state
from bnnedge.train.checkpoint import read_checkpoint
from bnnedge.train.resolve import resolve
from bnnedge.train.start import start_run
from tests.methods.slow_dense import Array, TwoLayers, example, gradients, sgn

NETWORK = """
from bnnedge.layers.binary_layers import BinaryLinear
from torch import nn


def net(num_classes, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(in_channels * image_size**2),
                         BinaryLinear(in_channels * image_size**2, 33), nn.BatchNorm1d(33), BinaryLinear(33, 10))
"""


def clipped(v: Array) -> Array:
    return (np.abs(v) <= 1).astype(float)


def slow_step(
    lam: dict[str, Array], mean_of: dict[str, Array], momentum: dict[str, Array], t: int, options: BayesbinnOptions,
    prior: dict[str, Array], images: int, alpha: float,
) -> dict[str, Array]:  # fmt: skip
    """One step from the formulas alone; draws u for each pass and layer in the order of the forward pass."""
    x, target = example()
    activation = None if options.a32 else clipped
    total = {n: np.zeros_like(v) for n, v in lam.items()}
    for _ in range(options.mc_steps):
        w, s = {}, {}
        for n in ("first", "second"):
            u = torch.rand(lam[n].shape, dtype=torch.float64).numpy()
            w[n] = np.tanh((lam[n] + 0.5 * np.log(u / (1 - u))) / options.temperature)
            mu = np.tanh(mean_of[n])
            s[n] = (1 - w[n] ** 2 + 1e-10) / options.temperature / (1 - mu**2 + 1e-10)
        g = gradients(x, target, w, activation)
        total = {n: total[n] + s[n] * g[n] for n in total}
    if options.mc_steps == 0:
        natural = gradients(x, target, {n: np.tanh(v) for n, v in lam.items()}, activation)
        total = {n: images * g for n, g in natural.items()}
    else:
        total = {n: images / options.mc_steps * g for n, g in total.items()}
    new = {}
    for n in lam:
        pulled = total[n] + options.kl_weight * (lam[n] - prior[n])
        momentum[n] = options.beta * momentum[n] + (1 - options.beta) * pulled
        new[n] = lam[n] - alpha * momentum[n] / (1 - options.beta**t)
    return new


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mc_steps": 3, "beta": 0.6},
        {"mc_steps": 2, "beta": 0.9, "faithful": True},
        {"mc_steps": 0, "beta": 0.5},
        {"kl_weight": 0.25, "a32": True, "posterior_lr_type": "step"},
        {"train_set_scale": 10.0, "posterior_lr": 0.2, "posterior_lr_type": "exp", "faithful": True},
        {"prior": "init", "beta": 0.2, "posterior_lr_type": "constant"},
        {"posterior_lr_epochs": 6, "prior": "init", "kl_weight": 0.3, "faithful": True},
        {"posterior_lr_epochs": 2},
        {"posterior_lr_epochs": 8, "posterior_lr_type": "exp", "mc_steps": 0},
    ],
    ids=str,
)
def test_trajectory(options: dict[str, Any]) -> None:
    method = Bayesbinn(BayesbinnOptions(**{"temperature": 0.7, "lambda_init": 0.4, "posterior_lr": 0.02, **options}))
    chosen = method.options
    model = TwoLayers()
    method.attach(model)
    with torch.no_grad():
        model.first.weight[0, :2] = torch.tensor([0.0, -0.0])  # both count as +1
    layers = binary_layers(model)
    start = {n: layer.weight.detach().numpy().copy() for n, layer in layers.items()}
    method.start_phase(model, 0)
    optimizer = method.make_optimizer(model, PhaseSize(epochs=4, steps_per_epoch=2, train_images=17))
    lam = start if chosen.prior == "init" else {n: chosen.lambda_init * sgn(w) for n, w in start.items()}
    prior = {n: v if chosen.prior == "init" else np.zeros_like(v) for n, v in lam.items()}
    previous, momentum = dict(lam), {n: np.zeros_like(v) for n, v in lam.items()}
    x, target = (torch.from_numpy(a) for a in example())
    images = 17 * (10 if chosen.train_set_scale == 10 else 1)
    flips = 0
    for step in range(8):
        torch.manual_seed(step)
        model.train()
        optimizer.zero_grad()
        for _ in range(method.passes):
            ((model(x) - target).square().mean() / method.passes).backward()
        method.before_step(model)
        optimizer.step()
        method.after_step(model)

        epoch = step // 2 + (1 if chosen.faithful else 0)  # of 4
        length = chosen.posterior_lr_epochs or 4
        alpha = (
            chosen.posterior_lr
            * {
                "cos": 0.5 * (1 + np.cos(np.pi * min(epoch / length, 1))),
                "step": 0.1 ** ((epoch >= length / 2) + (epoch >= 0.75 * length)),
                "exp": 1e-6 ** (epoch / length),
                "constant": 1.0,
            }[chosen.posterior_lr_type]
        )
        torch.manual_seed(step)
        mean_of = previous if chosen.faithful else lam
        new = slow_step(lam, mean_of, momentum, step + 1, chosen, prior, images, alpha)
        flips += sum(int((sgn(new[n]) != sgn(lam[n])).sum()) for n in lam)
        previous, lam = lam, new
        model.eval()
        for n, layer in layers.items():
            np.testing.assert_allclose(layer.weight.detach().numpy(), lam[n], rtol=1e-9, atol=1e-12)
            mode = sgn(previous[n] if chosen.faithful else lam[n])
            assert torch.equal(layer.binarizer.binarize_weight(layer.weight), torch.from_numpy(mode))
    assert flips > 0


def test_the_published_settings_in_float32() -> None:
    """At lambda = +-10 and tau = 1e-10 the weights are exactly +-1 and s is 1e10: the regime that the paper trains in.

    Eight float32 roundings, of 2^-24 each, stand behind s times the gradient: less than 1e-6 together.
    """
    method = Bayesbinn(BayesbinnOptions())
    layer = BinaryLinear(33, 5)
    model = nn.Sequential(layer)
    method.attach(model)
    signs = torch.where(layer.weight.detach() < 0, -1.0, 1.0)
    method.start_phase(model, 0)
    assert torch.equal(layer.weight.detach(), 10 * signs)
    w = layer.binarizer.binarize_weight(layer.weight)
    assert torch.equal(w.detach(), signs)
    gradient = torch.randn_like(w)
    w.backward(gradient)
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, 1e10 * gradient, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("lam", "temperature"), [(12.0, 1e-10), (11.0, 1e-3), (2.0, 0.1)])
def test_epsilon_is_added_to_both_variances(lam: float, temperature: float) -> None:
    """Float64, where ``1 - mu^2`` at 12 is 1.5e-10, of the size of e; its rounding of 1e-16 is 1e-6 of that."""
    layer = BinaryLinear(3, 2).double()
    layer.binarizer = bayesbinn.BayesbinnBinarizer(layer, BayesbinnOptions(temperature=temperature))
    nn.init.constant_(layer.weight, lam)
    w = layer.binarizer.train().binarize_weight(layer.weight)
    w.sum().backward()
    s = (1 - w.detach().square() + 1e-10) / temperature / (1 - np.tanh(lam) ** 2 + 1e-10)
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, s, rtol=1e-5, atol=0)


def test_metrics_are_of_the_posterior() -> None:
    layer = BinaryLinear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -3.0]]))
    found = Bayesbinn(BayesbinnOptions()).layer_metrics(layer)
    uncertain = 1 - (np.tanh(1) + np.tanh(3)) / 2
    assert found == {"latent_magnitude": 2.0, "distance_to_binary": pytest.approx(uncertain, rel=1e-6)}


@pytest.mark.parametrize("u", [0.0, 1.0])
def test_noise_is_finite(u: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, u))
    noise = bayesbinn.logistic_noise(torch.zeros(3))
    assert bool(noise.isfinite().all()) and bool((noise.sign() == (1 if u else -1)).all())


def test_noise_samples_the_posterior() -> None:
    """sign(lambda + delta) is +1 with probability sigmoid(2 lambda); 40,000 draws, five standard deviations."""
    torch.manual_seed(0)
    for value in (-1.0, 0.0, 0.3):
        lam = torch.full((40_000,), value)
        p = 1 / (1 + np.exp(-2 * value))
        share = float((lam + bayesbinn.logistic_noise(lam) > 0).double().mean())
        assert abs(share - p) < 5 * np.sqrt(p * (1 - p) / 40_000)


def evaluated(options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """What evaluation with these options gives: the output, lambda [4, 9], and the input [3, 9]."""
    torch.manual_seed(1)
    method = Bayesbinn(BayesbinnOptions(a32=True, lambda_init=0.3, **options))
    layer = BinaryLinear(9, 4)
    model = nn.Sequential(layer)
    method.attach(model)
    method.start_phase(model, 0)
    x = torch.randn(3, 9)
    before = torch.get_rng_state()
    output = method.predict(model.eval(), x)
    assert torch.equal(output, method.predict(model, x)), "the same networks at every call"
    assert torch.equal(before, torch.get_rng_state()), "training's random numbers are left alone"
    mode = torch.where(layer.weight < 0, -1.0, 1.0)
    assert torch.equal(model(x), x @ mode.T), "the draws do not stay"
    return output, layer.weight.detach(), x


def test_evaluation_by_samples() -> None:
    outputs = {a: evaluated({"evaluate_steps": 7, "evaluate_average": a}) for a in ("logits", "probabilities")}
    generator = torch.Generator().manual_seed(0)
    _, lam, x = outputs["logits"]
    lam = lam.double()
    logits = []
    for _ in range(7):
        u = torch.rand(4, 9, generator=generator).double()
        logits.append(x.double() @ torch.where(u < 1 / (1 + (-2 * lam).exp()), 1.0, -1.0).double().T)
    stacked = torch.stack(logits)
    assert not torch.equal(stacked[0], stacked[1])
    # Partial sums below 16 are rounded by at most 2^-21; 9 additions, and 7 for the mean, make less than 1e-5.
    assert float(x.abs().sum(1).max()) < 16
    torch.testing.assert_close(outputs["logits"][0].double(), stacked.mean(0), rtol=0, atol=1e-5)
    probabilities = outputs["probabilities"][0].double().exp()
    torch.testing.assert_close(probabilities, stacked.softmax(-1).mean(0), rtol=0, atol=1e-6)


def test_the_task_averages() -> None:
    """The classes of a mask are its channels, which are not the last axis; a task of one's own is asked instead."""
    method = Bayesbinn(BayesbinnOptions(a32=True, lambda_init=0.3, evaluate_steps=5))
    layer = BinaryConv2d(3, 4, 3)
    model = nn.Sequential(layer)
    method.attach(model)
    method.start_phase(model, 0)
    model.eval()
    x = torch.randn(2, 3, 6, 5)
    generator = torch.Generator().manual_seed(0)
    outputs = []
    for _ in range(5):
        u = torch.rand(layer.weight.shape, generator=generator)
        drawn = torch.where(u < bayesbinn.positive_probability(layer.weight.detach()), 1.0, -1.0)
        outputs.append(F.conv2d(x, drawn))
    stacked = torch.stack(outputs)
    assert torch.equal(method.predict(model, x), Classification(4).average(stacked, "probabilities"))
    # The float32 sums of 4 exponentials are off by less than 1e-6 of their value, and so are the probabilities.
    torch.testing.assert_close(method.predict(model, x).exp().sum(1), torch.ones(2, 4, 3), rtol=0, atol=2e-6)

    class Largest(Classification):
        def average(self, outputs: Tensor, how: Any) -> Tensor:
            assert how == "probabilities"
            return outputs.amax(0)

    method.task = Largest(4)
    assert torch.equal(method.predict(model, x), stacked.amax(0))


def test_evaluation_by_the_mean() -> None:
    output, lam, x = evaluated({"evaluate_mean": True})
    expected = (x @ lam.tanh().T).log_softmax(-1)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)


def test_a_certain_weight_is_never_drawn_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([0.0, 1 - 2.0**-24]))
    method = Bayesbinn(BayesbinnOptions(evaluate_steps=1))
    assert method._draw(torch.tensor([-1e5, 1e5]), torch.Generator()).tolist() == [-1.0, 1.0]


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., RunConfig]:
    (tmp_path / "net.py").write_text(NETWORK)

    def make(**values: Any) -> RunConfig:
        options = {"temperature": 0.5, "posterior_lr": 0.01, **values.pop("options", {})}
        common = {"image_size": 8, "epochs": 2, "device": "cpu", "threads": 1, **values}
        return RunConfig("bayesbinn", f"{tmp_path / 'net.py'}:net", method_options=options, **common)

    return make


def test_the_first_task_s_posterior_is_the_second_one_s_prior(config: Any, tmp_path: Path) -> None:
    start_run(config(), tmp_path / "task1")
    posterior = read_checkpoint(tmp_path / "task1" / "last.ckpt").model["2.weight"]
    second = config(init=str(tmp_path / "task1"), options={"prior": "init"})
    state = make_state(resolve(second), load_dataset("digits", 8), fresh=True)
    layer = binary_layers(state.model)["2"]
    assert torch.equal(layer.weight, posterior) and torch.equal(layer.binarizer.prior, posterior)  # type: ignore[arg-type]
    start_run(second, tmp_path / "task2")
    last = read_checkpoint(tmp_path / "task2" / "last.ckpt").model
    assert torch.equal(last["2.binarizer.prior"], posterior)
    assert not torch.equal(last["2.weight"], posterior)
    third = config(init=str(tmp_path / "task2"), options={"prior": "init"})
    state = make_state(resolve(third), load_dataset("digits", 8), fresh=True)
    assert torch.equal(binary_layers(state.model)["2"].binarizer.prior, last["2.weight"])  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["nothing", "another method"])
def test_a_prior_needs_a_posterior(source: str, config: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"options": {"prior": "init"}}
    words = "needs --init with a run of bayesbinn; none was given"
    if source == "another method":
        other = dataclasses.replace(config(), method="ste", method_options={})
        start_run(other, tmp_path / "ste")
        settings["init"], words = str(tmp_path / "ste"), "ste is of another method"
    with pytest.raises(ConfigError, match=words):
        start_run(config(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"lambda_init": -1.0}, "lambda_init must be above 0"),
        ({"mc_steps": -1}, "mc_steps must be at least 0"),
        ({"evaluate_steps": -1}, "evaluate_steps must be at least 0"),
        ({"beta": 1.0}, "beta must be from 0 to below 1"),
        ({"posterior_lr_epochs": 0}, "posterior_lr_epochs must be at least 1"),
        ({"posterior_lr_epochs": 9, "posterior_lr_type": "constant"}, "posterior_lr_epochs is a schedule's"),
        ({"prior": "flat"}, "prior must be one of zero, init"),
        ({"evaluate_mean": True, "evaluate_steps": 3}, "two ways of evaluation"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BayesbinnOptions(**options)
