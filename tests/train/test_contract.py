"""What the loop promises to methods: order of the hooks, phases, several passes, own optimizers, exact resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnnedge.binarization.binarizer import Binarizer
from bnnedge.config import RunConfig
from bnnedge.data.dataset import load_dataset
from bnnedge.errors import CheckpointError, ConfigError
from bnnedge.files import write_atomically
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLayer, binary_layers
from bnnedge.methods import METHODS
from bnnedge.methods.method import Method, Phase, PhaseSize, share_epochs
from bnnedge.train import loop
from bnnedge.train.assemble import make_state
from bnnedge.train.assign import check_claims, make_optimizers
from bnnedge.train.checkpoint import read_checkpoint
from bnnedge.train.load import load_run
from bnnedge.train.resolve import resolve
from bnnedge.train.rng import epoch_generator
from bnnedge.train.run_folder import RunFolder
from bnnedge.train.start import resume_run, start_run

Config = Callable[..., RunConfig]


class NoisyBinarizer(Binarizer):
    """Training sees a random relaxation, so that a pass depends on the global generator."""

    def binarize_weight(self, weight: Tensor) -> Tensor:
        return torch.tanh(weight + torch.randn_like(weight)) if self.training else super().binarize_weight(weight)


@dataclass
class ToyOptions:
    """Options of the toy."""

    mc_steps: int = 2
    """Passes in one step."""


class Toy(Method[ToyOptions]):
    """Uses everything that the contract offers: momentum SGD on binary weights, two phases, frozen at the end."""

    paper = "none"
    Options = ToyOptions

    def __init__(self, options: ToyOptions) -> None:
        super().__init__(options)
        self.calls: list[str] = []

    @property
    def passes(self) -> int:
        return self.options.mc_steps

    def make_binarizer(self, layer: BinaryLayer) -> Binarizer:
        return NoisyBinarizer()

    def phases(self, epochs: int) -> tuple[Phase, ...]:
        first, second = share_epochs(epochs, (1, 1))
        return (Phase("first", first), Phase("second", second, weight_decay=0.0))

    def start_phase(self, model: nn.Module, index: int) -> None:
        self.calls.append(f"start_phase {index}")
        self.phase = index
        if index == 1:
            with torch.no_grad():
                for layer in binary_layers(model).values():
                    layer.weight.mul_(0.5)  # once: a resume must not halve them again

    def make_optimizer(self, model: nn.Module, size: PhaseSize) -> torch.optim.Optimizer:
        self.calls.append(f"make_optimizer {size.epochs}x{size.steps_per_epoch} of {size.train_images}")
        return torch.optim.SGD([layer.weight for layer in binary_layers(model).values()], lr=0.3, momentum=0.9)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.dim() > 1

    def start_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
        self.calls.append(f"start_epoch {epoch}/{epochs}")
        if self.phase == 1 and epoch == 2:
            for layer in binary_layers(model).values():
                layer.weight.requires_grad_(False)
                layer.weight.grad = None

    def before_step(self, model: nn.Module) -> None:
        self.calls.append("before_step")

    def after_step(self, model: nn.Module) -> None:
        self.calls.append("after_step")

    def predict(self, model: nn.Module, images: Tensor) -> Tensor:
        self.calls.append("predict")
        return model(images) + torch.rand(())  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS._paths, "toy", f"{__name__}:Toy")


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Crash(BaseException):
    """A power cut."""


@pytest.mark.parametrize("finished", range(1, 6))
def test_resume_is_exact_in_and_between_phases(
    finished: int, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(method="toy", epochs=6, batch_size=128, weight_decay=0.01)
    start_run(config, tmp_path / "whole")
    written = 0

    def crash(path: Path, data: bytes) -> None:
        nonlocal written
        write_atomically(path, data)
        written += path.name == "last.ckpt"
        if written == finished:
            raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(loop, "write_atomically", crash)
        start_run(config, tmp_path / "cut")
    torch.rand(5)
    resume_run(tmp_path / "cut")
    for name in ("last.ckpt", "best.ckpt"):
        a, b = (read_checkpoint(tmp_path / run / name) for run in ("whole", "cut"))
        assert (a.epoch, a.best_epoch, a.best_score) == (b.epoch, b.best_epoch, b.best_score)
        assert all(torch.equal(a.model[key], b.model[key]) for key in a.model)
        for kind in a.optimizers:
            for key, state in a.optimizers[kind]["state"].items():
                assert all(torch.equal(v, b.optimizers[kind]["state"][key][n]) for n, v in state.items())
    timeless = [
        [{k: v for k, v in row.items() if k not in ("epoch_s", "images_per_s")} for row in rows(tmp_path / run)]
        for run in ("whole", "cut")
    ]
    assert timeless[0] == timeless[1]
    assert [row["phase"] for row in timeless[0]] == ["first"] * 3 + ["second"] * 3


def test_each_phase_starts_its_learning_rate_and_its_best_epoch_anew(tiny_config: Config, tmp_path: Path) -> None:
    result = start_run(tiny_config(method="toy", epochs=6, lr=0.1, optimizer="sgd"), tmp_path / "run")
    lr = [row["lr"] for row in rows(tmp_path / "run")]
    assert lr[:3] == lr[3:]
    assert lr[0] == 0.1 > lr[1] > lr[2]
    best = 4 + max(range(3), key=lambda e: rows(tmp_path / "run")[3 + e]["val_top1"])
    assert result["best_epoch"] == best
    assert load_run(tmp_path / "run").epoch == best


@pytest.mark.parametrize(
    ("every", "expected"), [("step", [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]), ("epoch", [0.8] * 4 + [0.4] * 4)]
)
def test_each_step_has_its_learning_rate(
    every: str, expected: list[float], tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config(method="ste", epochs=2, batch_size=350, lr=0.8, lr_type="poly", lr_every=every)
    state = make_state(resolve(config), load_dataset("digits", 8))
    seen: list[float] = []

    def note(model: nn.Module) -> None:
        seen.extend(group["lr"] for group in state.optimizers["run"].param_groups)

    state.method.before_step = note  # type: ignore[method-assign]
    (tmp_path / "run").mkdir()
    loop.fit(state, RunFolder(tmp_path / "run"))
    assert seen == pytest.approx(expected, rel=1e-12)


def test_hooks_are_called_in_the_documented_order(tiny_config: Config, tmp_path: Path) -> None:
    config = resolve(tiny_config(method="toy", epochs=2, batch_size=700))
    state = make_state(config, load_dataset("digits", 8))
    (tmp_path / "run").mkdir()
    loop.fit(state, RunFolder(tmp_path / "run"))
    plan = "make_optimizer 1x2 of 1259"
    epoch = ["start_epoch 0/1", *["before_step", "after_step"] * 2, "predict"]
    assert isinstance(state.method, Toy)
    assert state.method.calls == ["start_phase 0", plan, *epoch, "start_phase 1", plan, *epoch]


def test_gradients_of_several_passes_are_averaged(tiny_config: Config) -> None:
    config = resolve(tiny_config(method="toy", epochs=2, batch_size=1259, method_options={"mc_steps": 4}))
    state = make_state(config, load_dataset("digits", 8))
    images, labels = next(state.dataset.batches("train", 1259, epoch_generator(config.seed, 0), augment=True))
    generator = torch.get_rng_state()
    state.model.train()
    weight = binary_layers(state.model)["conv"].weight
    single: list[Tensor] = []
    for _ in range(4):
        single += torch.autograd.grad(nn.functional.cross_entropy(state.model(images), labels), [weight])
    assert not torch.equal(single[0], single[1])
    seen: list[Tensor] = []

    def note(model: nn.Module) -> None:
        assert weight.grad is not None
        seen.append(weight.grad.clone())

    state.method.before_step = note  # type: ignore[method-assign]
    torch.set_rng_state(generator)

    class Silent:
        def step(self, *_: object) -> None: ...

    loop._train_steps(state, Silent())  # type: ignore[arg-type]
    # A quarter of the loss gives exactly a quarter of every gradient, and both sums run in the same order.
    assert torch.equal(seen[0], single[0] / 4 + single[1] / 4 + single[2] / 4 + single[3] / 4)


def test_claims() -> None:
    binary, norm, dense = BinaryConv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Linear(3, 2)
    model = nn.Sequential(binary, norm, dense)
    method = Toy(ToyOptions())
    method.attach(model)
    config = RunConfig(lr=0.1, optimizer="sgd", momentum=0.5, weight_decay=0.25)

    def make(phase: Phase) -> dict[str, torch.optim.Optimizer]:
        return make_optimizers(config, model, method, phase, steps_per_epoch=1, train_images=1)

    made = make(Phase("p", 1))
    assert [p.shape for p in made["method"].param_groups[0]["params"]] == [(3, 2, 1, 1)]
    decayed, others = made["run"].param_groups
    assert ([p.shape for p in decayed["params"]], decayed["weight_decay"]) == ([(2, 3)], 0.25)
    assert [decayed[k] for k in ("lr", "momentum", "dampening", "nesterov")] == [0.1, 0.5, 0, False]
    assert ([p.shape for p in others["params"]], others["weight_decay"]) == ([(3,), (3,), (2,)], 0.0)
    for settings, kind in (
        (RunConfig(lr=0.1, optimizer="adam"), torch.optim.Adam),
        (RunConfig(lr=0.1, optimizer="adamw"), torch.optim.AdamW),
    ):
        other = make_optimizers(settings, model, method, Phase("p", 1), 1, 1)["run"]
        assert type(other) is kind and other.defaults["betas"] == (0.9, 0.999) and other.defaults["eps"] == 1e-8
    assert make(Phase("p", 1, weight_decay=0.5))["run"].param_groups[0]["weight_decay"] == 0.5
    norm.requires_grad_(False)
    dense.requires_grad_(False)
    assert list(make(Phase("p", 1))) == ["method"], "nothing is left for the run's optimizer"

    sgd = torch.optim.SGD
    with pytest.raises(ConfigError, match=r"0\.weight to none"):
        check_claims(model, {})
    with pytest.raises(ConfigError, match=r"0\.weight to several"):
        check_claims(model, {"a": sgd([binary.weight]), "b": sgd([binary.weight])})
    with pytest.raises(ConfigError, match="and 1 of those claimed are frozen"):
        check_claims(model, {"a": sgd([binary.weight, dense.weight])})


@pytest.mark.parametrize(
    ("epochs", "shares", "given", "expected"),
    [
        (6, (1, 1), (), (3, 3)),
        (7, (1, 5, 1), (), (1, 5, 1)),
        (3, (1, 100, 1), (), (1, 1, 1)),
        (10, (200, 1000), (), (2, 8)),
        (5, (1, 1), (4, 1), (4, 1)),
    ],
)
def test_epochs_are_shared(
    epochs: int, shares: tuple[float, ...], given: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert share_epochs(epochs, shares, given) == expected
    assert sum(expected) == epochs


@pytest.mark.parametrize(
    ("epochs", "given", "words"),
    [
        (1, (), "2 phases need at least 2 epochs, got 1"),
        (5, (4, 2), r"add up to epochs \(5\), got \(4, 2\)"),
        (5, (5,), "must be 2 numbers"),
        (5, (5, 0), "numbers from 1"),
    ],
)
def test_epochs_that_cannot_be_shared(epochs: int, given: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        share_epochs(epochs, (1, 1), given)


def test_warm_up_longer_than_a_phase_is_refused(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"warm_up \(2\) must be below the epochs of each phase \(2\)"):
        start_run(tiny_config(method="toy", epochs=4, warm_up=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_init_takes_the_last_weights_of_another_method_s_run(tiny_config: Config, tmp_path: Path) -> None:
    start_run(tiny_config(method="rbnn", epochs=2), tmp_path / "first")
    last = read_checkpoint(tmp_path / "first" / "last.ckpt").model
    config = tiny_config(method="ste", init=str(tmp_path / "first"))
    state = make_state(resolve(config), load_dataset("digits", 8), fresh=True)
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, last[name]), name
    result = start_run(config, tmp_path / "second")
    assert resume_run(tmp_path / "second", {"init": str(tmp_path / "first")}) == result

    source = (tmp_path / "tiny.py").read_text().replace("33", "32")
    (tmp_path / "other.py").write_text(source)
    with pytest.raises(CheckpointError, match=r"does not fit model .*other.py:Tiny: conv\.weight"):
        start_run(tiny_config(model=f"{tmp_path / 'other.py'}:Tiny", init=str(tmp_path / "first")), tmp_path / "third")
    assert not (tmp_path / "third").exists()
