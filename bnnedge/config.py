"""A run's settings: a dataclass, its YAML form, and the one function that fills any options dataclass from text.

A value comes from the user (flag, ``--set`` or file) or, where the user gave none, from the method's defaults.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import yaml

from bnnedge.errors import ConfigError

T = TypeVar("T")


class TrainingDefaults(Protocol):
    """The part of a method's defaults that a run can take over; see ``Defaults`` in ``bnnedge/methods/method.py``."""

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
    """Settings of one training run. None means: the method's defaults, or the data set's or machine's own value."""

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

    def resolve(self, defaults: TrainingDefaults, options_type: type[Any]) -> RunConfig:
        """The final settings: every None that ``defaults`` knows filled in, the method's options complete.

        With an optimizer other than the default one, learning rate, momentum and weight decay are that optimizer's
        customary ones, since the defaults would not fit. Raises ``ConfigError`` for settings at odds.
        """
        settings = _optimizer_defaults(defaults, self.optimizer or defaults.optimizer)
        filled = {name: value for name, value in settings.items() if getattr(self, name) is None}
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


def plain(options: Any) -> dict[str, Any]:
    """A dataclass as a dict whose tuples are lists, as they come back from YAML and JSON."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(options).items()}


def _at_least(config: RunConfig, **minima: float) -> None:
    for name, minimum in minima.items():
        value = getattr(config, name)
        if value is not None and not value >= minimum:
            raise ConfigError(f"{name} must be at least {minimum}, got {value}")


def _optimizer_defaults(defaults: TrainingDefaults, optimizer: str) -> dict[str, Any]:
    shared = {"optimizer": optimizer, **{n: getattr(defaults, n) for n in ("lr_type", "lr_every", "warm_up")}}
    momentum = {"momentum": defaults.momentum if defaults.optimizer == "sgd" else 0.9} if optimizer == "sgd" else {}
    if optimizer == defaults.optimizer:
        return {**shared, **momentum, "lr": defaults.lr, "weight_decay": defaults.weight_decay}
    lr, weight_decay = {"sgd": (0.1, 1e-4), "adam": (1e-3, 0.0), "adamw": (1e-3, 1e-2)}[optimizer]
    return {**shared, **momentum, "lr": lr, "weight_decay": weight_decay}


def fill(cls: type[T], values: Mapping[str, Any], owner: str) -> T:
    """An instance of dataclass ``cls`` from values that may be text, checked against the annotations.

    Knows bool, int, float, str, Literal, Optional, tuple[X, ...] (text: comma-separated) and dict. ``owner`` names
    the dataclass in messages. Raises ``ConfigError`` for an unknown name, listing the known ones, or a wrong type.
    """
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ConfigError(f"{owner} has no option {name!r}; it has: {', '.join(known) or 'none'}")
    return cls(**{name: _convert(name, value, hints[name]) for name, value in values.items()})


_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _convert(name: str, value: Any, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        return _convert(name, value, next(a for a in arguments if a is not type(None)))
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{name} must be one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        items = [v for v in value.split(",") if v.strip()] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            items = [items]
        return tuple(_convert(name, item, arguments[0]) for item in items)
    return _convert_scalar(name, value, dict if origin is dict else kind)


def _convert_scalar(name: str, value: Any, kind: Any) -> Any:
    if kind is bool and isinstance(value, str) and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = kind(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        # int(2.5) is 2: a fraction is not silently cut off.
        if number is not None and math.isfinite(number) and (isinstance(value, str) or number == value):
            return number
    elif kind is dict and isinstance(value, dict):
        return {str(k): v for k, v in value.items()}
    elif kind in (bool, str) and type(value) is kind:
        return value
    article = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", dict: "a mapping"}
    raise ConfigError(f"{name} must be {article.get(kind, kind)}, got {value!r}")


def field_docs(cls: type[Any]) -> dict[str, str]:
    """The sentence under each field of a dataclass and its bases, by field name, read from their source."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _own_field_docs(base)
    return docs


def _own_field_docs(cls: type[Any]) -> dict[str, str]:
    definition = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs
