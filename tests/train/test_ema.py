"""The moving average of the weights against its formula, and where it is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bnnedge.config import RunConfig
from bnnedge.data.dataset import load_dataset
from bnnedge.errors import ConfigError
from bnnedge.files import write_atomically
from bnnedge.layers.binary_layers import binary_layers
from bnnedge.layers.deploy import deploy, deployed_layers
from bnnedge.methods import METHODS
from bnnedge.train import loop
from bnnedge.train.build import make_model
from bnnedge.train.checkpoint import read_checkpoint
from bnnedge.train.ema import Ema
from bnnedge.train.load import load_run
from bnnedge.train.metrics import evaluate
from bnnedge.train.start import resume_run, start_run

Config = Callable[..., RunConfig]


def test_formula() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    turned = torch.zeros(2)
    model.register_buffer("turned", turned)
    ema = Ema(model, decay=0.5, averages=lambda name: name != "turned")
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    for step in range(12):
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape) * 5)
        if step == 8:
            model[0].bias.requires_grad_(False)
        ema.update(model)
        decay = min(0.5, (1 + step) / (10 + step))  # 0.5 from step 8 on
        for name, tensor in model.state_dict().items():
            copied = name in ("turned", "1.num_batches_tracked") or (name == "0.bias" and step >= 8)
            expected[name] = tensor.clone() if copied else decay * expected[name] + (1 - decay) * tensor
    for name, value in expected.items():
        # Values up to about 20 in float64, three roundings a step; copies are exact.
        torch.testing.assert_close(ema.weights[name], value, rtol=0, atol=12 * 3 * 20 * 2**-53, msg=name)
    assert torch.equal(ema.weights["0.bias"], model.state_dict()["0.bias"]) and torch.equal(
        ema.weights["turned"], turned
    )


def test_applied_is_undone() -> None:
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.9, lambda name: True)
    first = model.weight.clone()
    with torch.no_grad():
        model.weight.add_(1)
    with pytest.raises(ZeroDivisionError), ema.applied(model):
        assert torch.equal(model.weight, first)
        raise ZeroDivisionError
    assert torch.equal(model.weight, first + 1)


def follow(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The trained weights after every step of the runs to come."""
    seen: list[dict[str, Tensor]] = []
    update = Ema.update

    def note(ema: Ema, model: nn.Module) -> None:
        update(ema, model)
        seen.append({k: v.clone() for k, v in model.state_dict().items()})

    monkeypatch.setattr(Ema, "update", note)
    return seen


def test_checkpoints_hold_the_average_and_training_does_not_see_it(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_run(tiny_config(epochs=2), tmp_path / "plain")
    seen = follow(monkeypatch)
    start_run(tiny_config(epochs=2, ema=0.8), tmp_path / "run")
    saved = read_checkpoint(tmp_path / "run" / "last.ckpt")
    assert saved.ema["steps"] == len(seen) == 20
    assert all(torch.equal(v, saved.ema["trained"][k]) for k, v in seen[-1].items())
    plain = read_checkpoint(tmp_path / "plain" / "last.ckpt")
    assert all(torch.equal(v, saved.ema["trained"][k]) for k, v in plain.model.items())
    config = RunConfig.read(tmp_path / "run" / "config.yaml")
    for key in ("conv.weight", "bn.running_var", "classifier.bias"):
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            average = make_model(config, saved.dataset)[0].state_dict()[key].double()
        for step, weights in enumerate(seen):
            decay = min(0.8, (1 + step) / (10 + step))
            average = decay * average + (1 - decay) * weights[key]
        # 20 steps of three roundings in float32, values up to about 2.
        torch.testing.assert_close(saved.model[key].double(), average, rtol=0, atol=20 * 3 * 2 * 2**-24, msg=key)
        assert not torch.equal(saved.model[key], saved.ema["trained"][key])


def test_evaluation_and_deploy_form_are_of_the_average(tiny_config: Config, tmp_path: Path) -> None:
    result = start_run(tiny_config(epochs=2, ema=0.9), tmp_path / "run")
    loaded = load_run(tmp_path / "run", "last")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    dataset, cpu = load_dataset("digits", 8), torch.device("cpu")
    assert evaluate(loaded.model, dataset, "val", cpu).scores["top1"] == rows[-1]["val_top1"]
    assert evaluate(load_run(tmp_path / "run").model, dataset, "test", cpu).scores["top1"] == result["test_top1"]
    saved = read_checkpoint(tmp_path / "run" / "last.ckpt")
    deployed = deployed_layers(deploy(loaded.model))["conv"]
    assert torch.equal(deployed.weight > 0, saved.model["conv.weight"] >= 0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_averages_resumes_or_refuses(
    method: str, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(method=method, epochs=4, batch_size=300, ema=0.7)
    if method in ("bop", "bop2"):
        with pytest.raises(ConfigError, match=f"method {method} trains -1 and \\+1 .* leave out --ema"):
            start_run(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return
    start_run(config, tmp_path / "whole")

    class Crash(BaseException):
        pass

    def crash(path: Path, data: bytes) -> None:
        write_atomically(path, data)
        if path.name == "last.ckpt" and read_checkpoint(path).epoch == 3:
            raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(loop, "write_atomically", crash)
        start_run(config, tmp_path / "cut")
    resume_run(tmp_path / "cut")
    a, b = (read_checkpoint(tmp_path / run / "last.ckpt") for run in ("whole", "cut"))
    assert all(torch.equal(a.model[k], b.model[k]) for k in a.model)
    assert all(torch.equal(a.ema["trained"][k], b.ema["trained"][k]) for k in a.model)
    assert a.ema["steps"] == b.ema["steps"]
    if method == "rbnn":  # an average of rotations would not be one
        r1 = a.model["conv.binarizer.r1"]
        torch.testing.assert_close(r1 @ r1.T, torch.eye(len(r1)), rtol=0, atol=1e-5)
    if method == "bnew":  # frozen weights stay what they are
        assert binary_layers(load_run(tmp_path / "whole", "last").model)["conv"].weight.abs().eq(1).all()


@pytest.mark.parametrize("decay", [0, 1, -0.5, 1.5])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match="ema must be above 0 and below 1"):
        RunConfig(ema=decay)
