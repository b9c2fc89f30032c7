"""A run's settings: a dataclass, its YAML form, and the one function that fills any options dataclass from text.

A value comes from the user (flag, ``--set`` or file) or, where the user gave none, from the method's recipe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml

from bnnedge.errors import ConfigError
from bnnedge.options import fill, plain


class TrainingDefaults(Protocol):
    """The part of a method's recipe that a run can take over; see ``Recipe`` in ``bnnedge/methods/method.py``."""

    @property
    def optimizer(self) -> str: ...
    @property
    def lr(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def lr_type(self) -> str: ...
    @property
    def lr_every(self) -> str: ...
    @property
    def warm_up(self) -> int: ...


@dataclass(frozen=True)
class RunConfig:
    """Settings of one training run. None means: the method's recipe, or the data set's or machine's own value."""

    method: str = "rbnn"
    """Name of the training method."""
    model: str = "resnet20_1w1a"
    """Name of the network, or path/to/file.py:ClassOrFactory."""
    dataset: str = "digits"
    """Name of the data set."""
    image_size: int | None = None
    """Height and width in pixels to which images are resized."""
    epochs: int = 30
    """Passes over the training split."""
    batch_size: int = 128
    """Images in one optimizer step, on all processes together."""
    accumulate: int = 1
    """Micro-batches in which a step's images are passed forward and backward; batch normalisation sees one at a time.
    """
    ema: float | None = None
    """Decay of a moving average of the weights, which is then evaluated and exported; None: none."""
    lr: float | None = None
    """Peak learning rate."""
    optimizer: Literal["sgd", "adam", "adamw"] | None = None
    """Rule that updates all parameters, save those that the method updates itself."""
    momentum: float | None = None
    """Momentum of sgd, from 0 to below 1."""
    weight_decay: float | None = None
    """L2 penalty (adamw: decoupled decay) on all parameters."""
    lr_type: Literal["cos", "step", "poly", "exp", "constant"] | None = None
    """Learning-rate schedule of a phase: cosine to lr_end, a factor at each of lr_steps, polynomial to lr_end, a factor
    every lr_decay_epochs, or none."""
    lr_every: Literal["epoch", "step"] | None = None
    """How often the learning rate changes."""
    lr_end: float = 0.0
    """Learning rate that the cos and poly schedules come to."""
    lr_power: float = 1.0
    """Power of the poly schedule; 1 is linear."""
    lr_steps: tuple[int, ...] = ()
    """Epochs, counted from 0, at whose start the step schedule multiplies the learning rate by lr_gamma."""
    lr_decay_epochs: int | None = None
    """Epochs between two factors lr_gamma of the exp schedule."""
    lr_gamma: float = 0.1
    """Factor of the step and exp schedules."""
    warm_up: int | None = None
    """Epochs of linear learning-rate warm-up."""
    seed: int = 0
    """Seed of initialization, data order and augmentation; the split of the data does not depend on it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes the GPU if there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Forward pass and loss in float32, or in bfloat16 by autocast; weights and evaluation are always float32."""
    compile: bool = False
    """Train through torch.compile."""
    kernels: Literal["auto", "triton", "torch"] = "auto"
    """Binary layers on packed bits: auto where they are faster, triton wherever a GPU kernel can, torch nowhere."""
    recompute: bool = False
    """Batch norms behind binary convolutions keep no input for the backward pass, which convolves the bits once more.
    """
    sync_batch_norm: bool = True
    """With several processes, batch normalisation over the images of all; else over each process's own."""
    threads: int | None = None
    """CPU threads of PyTorch; the last bits of a result can depend on it."""
    init: str | None = None
    """Run folder or checkpoint with the weights that training starts from; None: the model's own initialization."""
    teacher: str | None = None
    """Run folder or checkpoint of a network on the same data set, whose outputs are learnt; None: learn the labels."""
    distill_weight: float = 1.0
    """Weight of the teacher's outputs in the loss, from 0 to 1; the labels have the rest."""
    distill_temperature: float = 1.0
    """Temperature of both networks' outputs in the loss."""
    data_root: str | None = None
    """Folder of the data sets that are read from files; None is $BNNEDGE_DATA."""
    method_options: dict[str, Any] = field(default_factory=dict)
    """Options of the method, by name."""

    def __post_init__(self) -> None:
        _at_least(
            self,
            epochs=1,
            image_size=1,
            accumulate=1,
            warm_up=0,
            threads=1,
            weight_decay=0,
            seed=0,
            lr_end=0,
            lr_decay_epochs=1,
        )
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"ema must be above 0 and below 1, e.g. 0.999, got {self.ema}")
        if self.recompute and (self.compile or self.kernels == "torch"):
            raise ConfigError("recompute is for eager training on bits; leave out compile and kernels torch")
        if self.batch_size < 2:
            raise ConfigError(f"batch_size must be at least 2 (batch normalisation), got {self.batch_size}")
        for name in ("lr", "lr_gamma", "lr_power", "distill_temperature"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, got {value}")
        if not 0 <= self.distill_weight <= 1:
            raise ConfigError(f"distill_weight must be from 0 to 1, got {self.distill_weight}")
        if self.teacher is None and (self.distill_weight, self.distill_temperature) != (1, 1):
            raise ConfigError("distill_weight and distill_temperature need a teacher")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum must be from 0 to below 1, got {self.momentum}")
        if self.seed >= 2**63:
            raise ConfigError(f"seed must be below 2^63, got {self.seed}")
        if self.warm_up is not None and self.warm_up >= self.epochs:
            raise ConfigError(f"warm_up ({self.warm_up}) must be below epochs ({self.epochs})")
        if any(a >= b for a, b in zip((0, *self.lr_steps), (*self.lr_steps, self.epochs), strict=True)):
            raise ConfigError(f"lr_steps must rise and lie between 0 and epochs ({self.epochs}), got {self.lr_steps}")

    def resolve(self, recipe: TrainingDefaults, options_type: type[Any]) -> RunConfig:
        """The final settings: every None that ``recipe`` knows filled in, the method's options complete.

        With an optimizer other than the recipe's, learning rate, momentum and weight decay are that optimizer's
        customary ones, since the recipe's would not fit. Raises ``ConfigError`` for settings at odds.
        """
        defaults = _optimizer_defaults(recipe, self.optimizer or recipe.optimizer)
        filled = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        options = fill(options_type, self.method_options, f"method {self.method}")
        resolved = dataclasses.replace(self, **filled, method_options=plain(options))
        if resolved.optimizer != "sgd" and resolved.momentum is not None:
            raise ConfigError(f"momentum belongs to optimizer sgd; leave it out with optimizer {resolved.optimizer}")
        for kind, name, example in (("step", "lr_steps", "10,20"), ("exp", "lr_decay_epochs", "100")):
            if resolved.lr_type == kind and not getattr(resolved, name):
                raise ConfigError(f"lr_type {kind} needs {name}, e.g. --set {name}={example}")
            if resolved.lr_type != kind and getattr(resolved, name):
                raise ConfigError(f"{name} belongs to lr_type {kind}; leave it out with lr_type {resolved.lr_type}")
        return resolved

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and checkpoints hold them."""
        return plain(self)

    def write(self, path: Path) -> None:
        """As YAML."""
        path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Inverse of ``to_dict``; also takes text values. Raises ``ConfigError`` for unknown keys and wrong types."""
        return fill(cls, values, "a run")

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """From a YAML file. Raises ``ConfigError`` if it is missing or not such a file."""
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{path} cannot be read as a run's settings: {reason}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: expected `name: value` lines, got a {type(values).__name__}")
        return cls.from_dict({str(k): v for k, v in values.items()})


def _at_least(config: RunConfig, **minima: float) -> None:
    for name, minimum in minima.items():
        value = getattr(config, name)
        if value is not None and not value >= minimum:
            raise ConfigError(f"{name} must be at least {minimum}, got {value}")


def _optimizer_defaults(recipe: TrainingDefaults, optimizer: str) -> dict[str, Any]:
    shared = {"optimizer": optimizer, **{n: getattr(recipe, n) for n in ("lr_type", "lr_every", "warm_up")}}
    momentum = {"momentum": recipe.momentum if recipe.optimizer == "sgd" else 0.9} if optimizer == "sgd" else {}
    if optimizer == recipe.optimizer:
        return {**shared, **momentum, "lr": recipe.lr, "weight_decay": recipe.weight_decay}
    lr, weight_decay = {"sgd": (0.1, 1e-4), "adam": (1e-3, 0.0), "adamw": (1e-3, 1e-2)}[optimizer]
    return {**shared, **momentum, "lr": lr, "weight_decay": weight_decay}
