"""A whole training step of our straight-through estimator against plain PyTorch's, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from bnnedge.benchmarks.gpu.measure import Amount, Implementation
from bnnedge.benchmarks.gpu.stash import kept_bytes
from bnnedge.benchmarks.methods.cost import noise
from bnnedge.benchmarks.methods.plain_ste import LEARNING_RATE, PlainConv2d, PlainLinear, PlainSteTraining
from bnnedge.config import RunConfig
from bnnedge.errors import BenchmarkError
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear
from bnnedge.models.create import create_model
from bnnedge.train.assemble import make_state
from bnnedge.train.device import autocast
from bnnedge.train.resolve import resolve
from bnnedge.train.step import train_step

WARMUP = 3
"""Steps of a contender before its memory is measured; the first ones compile and choose algorithms."""
LOSSES_AGREE = 0.05
"""Largest relative difference of ``mean_loss`` from the peer's: bf16 rounds the same sums in another order."""
Step = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Setting:
    """What every contender trains on."""

    model: str
    image_size: int
    num_classes: int
    batch_size: int
    precision: str
    """bf16 or fp32."""
    device: str
    compile: bool = True
    """Whether the compiled contenders take part; compilation takes minutes."""

    def batch(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Random images [B, 3, H, W] and labels."""
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn((self.batch_size, 3, self.image_size, self.image_size), generator=generator)
        labels = torch.randint(self.num_classes, (self.batch_size,), generator=generator)
        device = torch.device(self.device)
        return images.to(device, memory_format=torch.channels_last), labels.to(device)


@dataclass
class Training:
    """One way to train, ready for its next step."""

    name: str
    step: Step
    kept_bytes: int | None
    """Bytes that autograd keeps of the binary blocks between forward and backward for one batch; None if compiled."""
    restarted: Callable[[], Training] | None = None
    """Makes the same training again with its initial weights; None for a peer."""
    peak_memory_bytes: int | None = None
    """Bytes that it added to the allocator's peak; None on a CPU."""


def trainings(setting: Setting) -> list[Training]:
    """One training a contender, whose memory is measured while it is made."""
    makers = [partial(_ours, setting), partial(_ours, setting, recompute=True), partial(_plain, setting)]
    if setting.compile:
        makers += [partial(_ours, setting, compiled=True), partial(_plain, setting, compiled=True)]
    return [_with_memory(make, setting) for make in makers]


def implementations(setting: Setting, made: list[Training], check_steps: int) -> tuple[Amount, list[Implementation]]:
    """Each of ``trainings`` as work on the same batch; ours are right if their losses are the peer's."""
    batch = setting.batch()
    found = []
    for training in made:
        make = training.restarted
        check = None if make is None else partial(check_losses, setting, make, check_steps)
        found.append(Implementation(training.name, partial(training.step, *batch), check))
    return Amount(float(setting.batch_size), "images"), found


def check_losses(setting: Setting, ours: Callable[[], Training], steps: int) -> None:
    """Raise ``BenchmarkError`` unless ours and the eager peer, from the same weights, learn four batches alike."""
    found, expected = mean_loss(setting, ours(), steps), _peer_loss(setting, steps)
    if not abs(found - expected) <= LOSSES_AGREE * abs(expected):
        raise BenchmarkError(
            f"after {steps} steps our loss is {found:.4f} and the peer's {expected:.4f}; "
            "no time is taken of wrong results"
        )


@cache
def _peer_loss(setting: Setting, steps: int) -> float:
    """The peer's ``mean_loss``, which each of ours is compared with."""
    return mean_loss(setting, _plain(setting), steps)


def mean_loss(setting: Setting, training: Training, steps: int) -> float:
    """Mean loss of the last quarter of ``steps`` steps, which cycle through four batches."""
    batches = [setting.batch(seed) for seed in range(4)]
    losses = [training.step(*batches[i % len(batches)]) for i in range(steps)]
    last = losses[-max(1, steps // 4) :]
    return sum(last) / len(last)


def _ours(setting: Setting, compiled: bool = False, recompute: bool = False) -> Training:
    torch.manual_seed(0)
    config = resolve(
        RunConfig(
            method="ste",
            model=setting.model,
            batch_size=setting.batch_size,
            epochs=60,
            lr=LEARNING_RATE,
            device=torch.device(setting.device).type,  # type: ignore[arg-type]
            precision=setting.precision,  # type: ignore[arg-type]
            compile=compiled,
            recompute=recompute,
        )
    )
    state = make_state(config, noise(setting.image_size, setting.num_classes))
    state.model.train()

    def step(images: Tensor, labels: Tensor) -> float:
        return train_step(state, images, labels).loss

    images, _ = setting.batch()
    parts = _binary_parts(state.model)
    kept = None if compiled else kept_bytes(parts, state.model, lambda: _forward(state.model, images, setting))
    name = f"bnnedge{', compiled' * compiled}{', recompute' * recompute}"
    return Training(name, step, kept, partial(_ours, setting, compiled, recompute))


def _plain(setting: Setting, compiled: bool = False) -> Training:
    torch.manual_seed(0)
    device = torch.device(setting.device)
    model = create_model(setting.model, num_classes=setting.num_classes, in_channels=3, image_size=setting.image_size)
    channels_last = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    training = PlainSteTraining(channels_last, device, setting.precision, compiled)
    parts = _binary_parts(training.model)
    images, _ = setting.batch()
    kept = None if compiled else kept_bytes(parts, training.model, lambda: _forward(training.model, images, setting))
    return Training(f"torch{', compiled' if compiled else ' eager'}", training.step, kept)


def _binary_parts(model: nn.Module) -> list[nn.Module]:
    """The blocks of a network that has them, with their batch norms and activations; else its binary layers."""
    if isinstance(blocks := getattr(model, "blocks", None), nn.Module):
        return list(blocks.children())
    kinds = (BinaryConv2d, BinaryLinear, PlainConv2d, PlainLinear)
    return [module for module in model.modules() if isinstance(module, kinds)]


def _forward(model: nn.Module, images: Tensor, setting: Setting) -> Tensor:
    with autocast(images.device, setting.precision):
        logits: Tensor = model(images)
    return logits


def _with_memory(make: Callable[[], Training], setting: Setting) -> Training:
    device = torch.device(setting.device)
    if device.type != "cuda":
        return make()
    before = torch.cuda.memory_allocated(device)
    training = make()
    batch = setting.batch()
    for _ in range(WARMUP):
        training.step(*batch)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    training.step(*batch)
    training.peak_memory_bytes = torch.cuda.max_memory_allocated(device) - before
    return training
