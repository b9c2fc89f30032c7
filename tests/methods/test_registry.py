"""Every method with every network: claims, exact resume, deploy form, export to both targets. New methods join in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bnnedge.config import RunConfig
from bnnedge.data.dataset import load_dataset
from bnnedge.errors import ExportError
from bnnedge.export.run import export_run
from bnnedge.export.targets import TARGETS
from bnnedge.files import write_atomically
from bnnedge.layers.deploy import deploy, deployed_layers
from bnnedge.methods import METHODS
from bnnedge.models import MODELS
from bnnedge.train import loop
from bnnedge.train.assemble import make_state
from bnnedge.train.checkpoint import read_checkpoint
from bnnedge.train.load import load_run
from bnnedge.train.resolve import resolve
from bnnedge.train.start import resume_run, start_run

NETWORKS = """
from torch import nn


def mlp(num_classes, in_channels, image_size):
    inputs = in_channels * image_size**2
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(inputs, 65), nn.BatchNorm1d(65), nn.Hardtanh()),
        *(nn.Linear(65, 64), nn.BatchNorm1d(64), nn.Hardtanh()),
        *(nn.Linear(64, 33, bias=False), nn.BatchNorm1d(33), nn.PReLU(33)),
        nn.Linear(33, num_classes),
    )


class Net(nn.Module):
    '''Odd channels, stride 2 on an even size, a bias, a residual that keeps values at exactly 0 (ReLU).'''

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(24, 40, 3, 2, 1), nn.BatchNorm2d(40))
        self.same = nn.Sequential(nn.Conv2d(40, 40, 3, padding=1, bias=False), nn.BatchNorm2d(40))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, num_classes))

    def forward(self, x):
        x = self.down(self.stem(x))
        return self.head(x + self.same(x))
"""

EPOCHS = 4
"""Enough for a method of three phases."""


class Crash(BaseException):
    """A power cut."""


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    path = tmp_path / "networks.py"
    path.write_text(NETWORKS)
    return path


def check(method: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(
        method=method, model=model, image_size=(8,), epochs=EPOCHS, batch_size=128, device="cpu", threads=1
    )
    check_claims(config)
    start_run(config, tmp_path / "whole")
    check_resume(config, tmp_path, monkeypatch)

    loaded = load_run(tmp_path / "whole")
    if not loaded.method.trains_bits:
        with pytest.raises(ExportError, match="not -1 and \\+1, so there is no deploy form"):
            export_run(tmp_path / "whole", "onnx")
        return
    layers = deployed_layers(deploy(loaded.model))
    assert layers
    for layer in layers.values():
        assert set(layer.weight.unique().tolist()) <= {-1.0, 1.0}
    for target in TARGETS:
        report = export_run(tmp_path / "whole", target)
        if report.verification is None:
            assert report.not_verified.startswith("lce: ")
        else:
            assert report.verification.binary_layers == len(layers)


def check_claims(config: RunConfig) -> None:
    """Written anew here, not through ``check_claims`` of the library: trainable parameters = claimed parameters."""
    state = make_state(resolve(config), load_dataset("digits", 8))
    for index in range(len(state.phases)):
        state.enter_phase(index)
        claimed = [id(p) for o in state.optimizers.values() for g in o.param_groups for p in g["params"]]
        assert sorted(claimed) == sorted(id(p) for p in state.model.parameters() if p.requires_grad)
    assert sum(phase.epochs for phase in state.phases) == EPOCHS


def check_resume(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(path: Path, data: bytes) -> None:
        write_atomically(path, data)
        if path.name == "last.ckpt" and read_checkpoint(path).epoch == EPOCHS // 2:
            raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(loop, "write_atomically", crash)
        start_run(config, tmp_path / "cut")
    torch.rand(3)
    resume_run(tmp_path / "cut")
    whole, cut = (read_checkpoint(tmp_path / run / "last.ckpt") for run in ("whole", "cut"))
    assert whole.model.keys() == cut.model.keys()
    for name, value in whole.model.items():
        assert torch.equal(value, cut.model[name]), name
    assert (tmp_path / "whole" / "result.json").read_text() == (tmp_path / "cut" / "result.json").read_text()


@pytest.mark.parametrize("network", ["mlp", "Net"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_user_s_network(
    method: str, network: str, networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(method, f"{networks}:{network}", tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_every_model(
    method: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(method, model, tmp_path, monkeypatch)


ADAM = {"optimizer": "adam", "lr": 1e-2, "weight_decay": 0.0, "lr_type": "cos", "lr_every": "epoch", "warm_up": 0}
LINEAR = ADAM | {"lr_type": "poly", "lr_every": "step"}


@pytest.mark.parametrize(
    ("method", "defaults", "options"),
    [
        ("ste", ADAM, {"surrogate": "clipped_identity", "weight_clip": 1.0, "gradient_clip": 0.0}),
        ("xnor", ADAM, {"surrogate": "clipped_identity", "weight_clip": 1.0, "pixel_scale": False}),
        (
            "rbnn",
            ADAM | {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
            {"rotation_update": 1, "tmin": 1e-2, "tmax": 1e1},
        ),
        (
            "reactnet",
            ADAM | {"lr": 2.5e-3, "weight_decay": 1e-5, "lr_type": "poly"},
            {"surrogate": "approx_sign", "phases": (1, 2)},
        ),
        ("bop", ADAM, {"threshold": 1e-8, "threshold_end": None, "gamma": 1e-4, "gamma_end": 1e-6, "decay_power": 1.0}),
        ("bop2", ADAM, {"threshold": 1e-5, "gamma": 1e-2, "sigma": 1e-7, "sigma_end": 1e-2, "decay_power": 1.0}),
        ("bmd", LINEAR, {"beta_scale": None, "beta_end": None, "beta_interval": None, "freeze_epochs": 0}),
        (
            "bayesbinn",
            ADAM,
            {"posterior_lr": 1e-4, "mc_steps": 1, "temperature": 1e-10, "lambda_init": 10.0, "beta": 0.0}
            | {"train_set_scale": 1.0, "kl_weight": 1.0, "prior": "zero", "evaluate_steps": 0, "faithful": False},
        ),
        ("bnew", LINEAR, {"surrogate": "approx_sign", "regularizer": "concave", "phases": (1, 2, 3)}),
        ("float", ADAM, {}),
    ],
)
def test_defaults_are_the_published_ones(method: str, defaults: dict[str, Any], options: dict[str, Any]) -> None:
    entry = METHODS.load(method)
    assert vars(entry.defaults).items() >= defaults.items()
    assert vars(entry.Options()).items() >= options.items()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_what_it_is(method: str) -> None:
    entry = METHODS.load(method)
    assert entry.paper and entry.__doc__
    options = vars(entry.Options())
    assert entry.Options() == entry.Options(**options)
    assert not set(options) & set(vars(RunConfig())), "on the command line the run's setting would be meant"
