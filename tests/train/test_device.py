"""One step in other ways: micro-batches, bf16, channels_last, torch.compile, batches made ahead."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnnedge.config import RunConfig
from bnnedge.data.dataset import load_dataset
from bnnedge.errors import ConfigError, MissingDependencyError
from bnnedge.files import write_atomically
from bnnedge.layers.binary_layers import binary_layers
from bnnedge.layers.recompute import offer
from bnnedge.methods import METHODS
from bnnedge.models import MODELS
from bnnedge.train import loop
from bnnedge.train.assemble import make_state
from bnnedge.train.checkpoint import read_checkpoint
from bnnedge.train.device import check_compiler, prepare_device
from bnnedge.train.distributed import ALONE, Group
from bnnedge.train.loader import load_parts, one_ahead, to_device
from bnnedge.train.metrics import evaluate
from bnnedge.train.resolve import resolve
from bnnedge.train.rng import epoch_generator
from bnnedge.train.start import resume_run, start_run
from bnnedge.train.step import train_step

Config = Callable[..., RunConfig]

BN_FREE = """
from torch import nn

from bnnedge.layers.binary_layers import BinaryConv2d


def net(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 5, 3, 2, 1), BinaryConv2d(5, 33, 3, 2, 1), nn.Flatten(), nn.Linear(132, num_classes)
    )
"""


class Crash(BaseException):
    """A power cut."""


def cut_and_resume(config: RunConfig, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(path: Path, data: bytes) -> None:
        write_atomically(path, data)
        if path.name == "last.ckpt":
            raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(loop, "write_atomically", crash)
        start_run(config, out)
    resume_run(out)


def assert_same_weights(a: Path, b: Path) -> None:
    x, y = (read_checkpoint(run / "last.ckpt").model for run in (a, b))
    assert all(torch.equal(x[key], y[key]) for key in x)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["train_loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_recomputing_gives_the_same_weights(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []

    def noted_offer(y: Tensor, again: Callable[[], Tensor]) -> None:
        def noted() -> Tensor:
            computed.append(y.shape)
            return again()

        offer(y, noted)

    monkeypatch.setattr("bnnedge.layers.binary_layers.offer", noted_offer)
    for name in ("kept", "recompute"):
        start_run(tiny_config(epochs=2, recompute=name == "recompute"), tmp_path / name)
        assert bool(computed) == (name == "recompute")
    assert_same_weights(tmp_path / "kept", tmp_path / "recompute")


@pytest.mark.parametrize("other", [{"compile": True}, {"kernels": "torch"}])
def test_recompute_needs_bits_and_eager_training(other: dict[str, Any], tiny_config: Config) -> None:
    with pytest.raises(ConfigError, match="recompute is for eager training on bits"):
        tiny_config(recompute=True, **other)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("method", "options"), [("ste", {}), ("bayesbinn", {"mc_steps": 2}), ("bop", {"gamma": 1e-2, "threshold": 1e-6})]
)
def test_micro_batches_without_batch_norm_give_the_weights_of_one_batch(
    method: str, options: dict[str, Any], tiny_config: Config, tmp_path: Path
) -> None:
    """Noise on the weights is that of one batch, too."""
    (tmp_path / "free.py").write_text(BN_FREE)
    base = tiny_config(method=method, model=f"{tmp_path / 'free.py'}:net", batch_size=101, epochs=2)
    for name, pieces in (("one", 1), ("five", 5)):  # 101 and the last batch of 47: no multiples of 5
        config = RunConfig.from_dict({**base.to_dict(), "accumulate": pieces, "method_options": options})
        start_run(config, tmp_path / name)
    one, five = (read_checkpoint(tmp_path / name / "last.ckpt").model for name in ("one", "five"))
    for key, weight in one.items():
        # As in test_distributed.py: sums of up to 101 x 64 terms in another order, over 26 steps, in float64.
        torch.testing.assert_close(five[key], weight, rtol=0, atol=1e-9 * float(weight.abs().max()), msg=key)
    assert torch.equal(one["1.weight"] < 0, five["1.weight"] < 0)
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "five"), rel=1e-9)


def test_batch_norm_sees_one_micro_batch(tiny_config: Config, tmp_path: Path) -> None:
    for name, pieces in (("one", 1), ("four", 4)):
        start_run(tiny_config(accumulate=pieces, epochs=1), tmp_path / name)
    tracked = [read_checkpoint(tmp_path / n / "last.ckpt").model["bn.num_batches_tracked"] for n in ("one", "four")]
    assert int(tracked[1]) == 4 * int(tracked[0])


@pytest.mark.parametrize("method", METHODS)
def test_bf16_keeps_weights_and_states_in_float32_and_resumes_exactly(
    method: str, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(method=method, epochs=4, batch_size=100, precision="bf16")
    start_run(config, tmp_path / "whole")
    cut_and_resume(config, tmp_path / "cut", monkeypatch)
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    saved = read_checkpoint(tmp_path / "whole" / "last.ckpt")
    states = [v for o in saved.optimizers.values() for s in o["state"].values() for v in s.values()]
    for tensor in (*saved.model.values(), *(s for s in states if isinstance(s, Tensor))):
        assert tensor.dtype in (torch.float32, torch.int64)
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]


@pytest.mark.parametrize("method", METHODS)
def test_bf16_binarizes_weights_as_float32_does(method: str, tiny_config: Config) -> None:
    """Rounding to bf16 happens in products of activations, never before the sign of a weight."""
    state = make_state(resolve(tiny_config(method=method, precision="bf16")), load_dataset("digits", 8))
    layer = binary_layers(state.model)["conv"]
    state.method.start_epoch(state.model, 0, 3)
    state.model.train()
    exact = _weight(layer.binarizer, layer.weight)
    with torch.autocast("cpu", torch.bfloat16):
        found = _weight(layer.binarizer, layer.weight)
    assert found.dtype == torch.float32
    assert torch.equal(found, exact)


def _weight(binarizer: Any, weight: Tensor) -> Tensor:
    torch.manual_seed(0)  # BayesBiNN's sample
    result: Tensor = binarizer.binarize_weight(weight)
    return result


def test_bf16_is_in_the_forward_pass_and_not_in_evaluation(tiny_config: Config) -> None:
    state = make_state(resolve(tiny_config(precision="bf16")), load_dataset("digits", 8))
    seen: list[tuple[bool, torch.dtype]] = []
    stem = state.model.stem
    assert isinstance(stem, nn.Module)
    stem.register_forward_hook(lambda module, inputs, output: seen.append((module.training, output.dtype)))
    state.model.train()
    images, labels = next(state.dataset.batches("train", 20, epoch_generator(0, 0), augment=True))
    train_step(state, images, labels)
    evaluate(state.model, state.dataset, "val", state.device, state.method.predict)
    assert set(seen) == {(True, torch.bfloat16), (False, torch.float32)}


CHANNELS_LAST = [("tiny", method) for method in METHODS]
# Where weights go through more than what is done to each element by itself.
MORE_CHANNELS_LAST = [(model, method) for model in MODELS for method in ("ste", "rbnn", "bnew", "xnor")]


def break_ties(model: nn.Module) -> None:
    """Add the same small numbers to the outputs of the binary layers in every step and in each memory format.

    A binary layer's sums are integers times a scale, so equal ones are common, and batch norm centers many of them on
    exactly 0. Where the scale is part of the weight (rbnn, xnor), rounding alone then decides signs, which gradients
    ``Hardtanh`` passes, and which element of a window is its maximum.
    """
    for number, layer in enumerate(binary_layers(model).values()):

        def moved(layer: nn.Module, inputs: Any, y: Tensor, number: int = number) -> Tensor:
            offsets = torch.rand(y.shape, generator=torch.Generator().manual_seed(number))
            return y + 0.1 * torch.empty_like(y).copy_(offsets)  # in the format of y

        layer.register_forward_hook(moved)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("model", "method"),
    [*CHANNELS_LAST, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE_CHANNELS_LAST)],
)
def test_channels_last_trains_every_model(model: str, method: str, tiny_config: Config) -> None:
    """The memory format of a GPU, tried on the CPU: losses of two steps and gradients are those of the usual format."""
    config = resolve(tiny_config(method=method, **({} if model == "tiny" else {"model": model})))
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    losses, gradients = [], []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        state = make_state(config, load_dataset("digits", 8))
        state.model.to(memory_format=memory_format)  # type: ignore[call-overload]
        state.method.start_epoch(state.model, 0, 3)
        state.model.train()
        break_ties(state.model)
        for module in state.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # its mask is drawn in the order of memory
        x = images.contiguous(memory_format=memory_format)
        losses.append([train_step(state, x, labels).loss])
        gradients.append({name: p.grad.clone() for name, p in state.model.named_parameters() if p.grad is not None})
        losses[-1].append(train_step(state, x, labels).loss)
    # Convolutions add up to 4608 terms in another order, in float64, in up to 34 layers: below 1e-10 of the sums. A
    # batch norm right behind makes some gradients 0, all but rounding, which is that of the largest ones.
    usual, other = gradients
    largest = {name: float(gradient.abs().max()) for name, gradient in usual.items()}
    assert largest and list(usual) == list(other)
    for name, gradient in usual.items():
        atol = 1e-10 * largest[name] + 1e-13 * max(largest.values())
        torch.testing.assert_close(other[name], gradient, rtol=0, atol=atol, msg=name)
    # The optimizer divides small gradients by their size, and with it their rounding.
    assert losses[1] == pytest.approx(losses[0], rel=1e-8)


def test_items_are_made_one_ahead_in_another_thread() -> None:
    made: list[int] = []
    threads = set()

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            threads.add(threading.get_ident())
            yield number
        raise ZeroDivisionError

    ahead = one_ahead(items())
    got = [next(ahead) for _ in range(5)]
    assert got == made == list(range(5)) and threading.get_ident() not in threads
    with pytest.raises(ZeroDivisionError):
        next(ahead)
    stopped = one_ahead(iter(range(1000)))
    assert [next(stopped), next(stopped)] == [0, 1]
    stopped.close()  # type: ignore[attr-defined]
    assert list(one_ahead(iter(()))) == []


def test_parts_on_the_cpu_are_the_batches(tiny_config: Config) -> None:
    dataset, cpu = load_dataset("digits", 8), torch.device("cpu")
    group = ALONE
    batches = dataset.plan("train", 500, torch.Generator().manual_seed(0))
    for (parts, size), (images, labels) in zip(
        load_parts(batches, group, 3, cpu), dataset.batches("train", 500, torch.Generator().manual_seed(0)), strict=True
    ):
        assert size == len(labels) and len(parts) == 3
        assert torch.equal(torch.cat([x for x, _ in to_device(parts, cpu)]), images)


def test_no_compiler_is_one_line(tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("No working C++\ncompiler found")

    monkeypatch.setattr(torch, "compile", lambda *_: fail)
    with pytest.raises(MissingDependencyError, match=r"--compile cannot build for cpu here.*No working C") as caught:
        start_run(tiny_config(compile=True), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_compiler_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    # Not by monkeypatch, which takes away what it finds unset: later tests would miss it.
    without = torch._inductor.config.patch({"fx_graph_cache": False, "cpp.cxx": ("no-such-compiler",)})
    with without, pytest.raises(MissingDependencyError, match="--compile cannot build for cpu here"):
        check_compiler(torch.device("cpu"))
    torch._dynamo.reset()


class FakeGpu:
    """What PyTorch would say of a machine with GPUs that know no bfloat16."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_gpus_that_cannot_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch)
    with pytest.raises(ConfigError, match="precision bf16: Tesla T4 computes in no bfloat16; use fp32"):
        prepare_device(RunConfig(device="cuda", precision="bf16"))
    with pytest.raises(ConfigError, match=r"process 3 of this machine has no GPU of its own: PyTorch sees 2"):
        prepare_device(RunConfig(device="cuda"), Group(2, 3, 2))
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(MissingDependencyError, match="several GPUs need NCCL, which this PyTorch lacks"):
        prepare_device(RunConfig(device="cuda"), Group(1, 2, 1))


def test_float32_on_a_gpu_is_ieee(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch)
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        torch.backends.cudnn.allow_tf32 = True
        prepare_device(RunConfig(device="cuda"))
        assert [backend.allow_tf32 for backend in backends] == [False, False]
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_compiled_training_resumes_exactly(
    method: str, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config = tiny_config(method=method, epochs=6, batch_size=100, compile=True, model=compilable(tmp_path))
    start_run(config, tmp_path / "whole")
    # One of check_compiler, two batch sizes in each of three phases at most. Methods' schedules add none.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 7
    torch._dynamo.reset()
    cut_and_resume(config, tmp_path / "cut", monkeypatch)
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", METHODS)
def test_compiled_training_is_training(method: str, tiny_config: Config, tmp_path: Path) -> None:
    """Without dropout and samples of weights, which draw other random numbers when they are compiled."""
    torch._dynamo.reset()
    options = {"mc_steps": 0} if method == "bayesbinn" else {}
    model = compilable(tmp_path, dropout=False)
    config = tiny_config(method=method, method_options=options, epochs=3, batch_size=100, compile=True, model=model)
    start_run(config, tmp_path / "compiled")
    start_run(RunConfig.from_dict({**config.to_dict(), "compile": False}), tmp_path / "plain")
    # 13 steps of float64 sums in another order; each may amplify an error of 2^-53 a thousandfold, not more.
    assert losses(tmp_path / "compiled")[0] == pytest.approx(losses(tmp_path / "plain")[0], rel=1e-9)
    a, b = (read_checkpoint(tmp_path / run / "last.ckpt").model for run in ("compiled", "plain"))
    assert list(a) == list(b)


def compilable(folder: Path, dropout: bool = True) -> str:
    """The tiny network without a call that torch.compile warns of."""
    source = (folder / "tiny.py").read_text().replace("time.sleep", "float")
    (folder / "net.py").write_text(source if dropout else source.replace("nn.Dropout(0.1)", "nn.Identity()"))
    return f"{folder / 'net.py'}:Tiny"


def first_losses(model: str, precision: str, tiny_config: Config) -> list[float]:
    """The loss of one step on four images, without and with the compiler."""
    torch._dynamo.reset()
    images, labels = torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 2, 3])
    found = []
    for compiled in (False, True):
        config = tiny_config(model=model, image_size=16, compile=compiled, precision=precision)
        state = make_state(resolve(config), load_dataset("digits", 16))
        generator = torch.Generator().manual_seed(0)
        for module in state.model.train().modules():
            if isinstance(
                module, nn.BatchNorm2d
            ):  # else a sum that equals its channel's mean leaves a sign to rounding
                module.bias.data.copy_(torch.rand(module.bias.shape, generator=generator) - 0.5)
        found.append(train_step(state, images, labels).loss)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("model", MODELS)
def test_every_model_compiles(model: str, tiny_config: Config) -> None:
    """The step is in float64, where the order of a sum turns no sign.

    Its errors, of up to 4608 terms in each of 34 layers, are below 1e-10 of the sums.
    """
    plain, compiled = first_losses(model, "fp32", tiny_config)
    assert compiled == pytest.approx(plain, rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_model_compiles_in_bf16(model: str, tiny_config: Config) -> None:
    """The compiler rounds to bf16 at other places, which turns signs all over an untrained network, so the losses have
    no bound; that of equal logits, ln 10, lies below a hundred for any of these networks."""
    assert all(0 < loss < 100 for loss in first_losses(model, "bf16", tiny_config))


@pytest.mark.slow
def test_a_compiler_is_found_where_there_is_one(require: Callable[..., None]) -> None:
    require("g++")
    check_compiler(torch.device("cpu"))
