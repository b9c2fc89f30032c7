"""The settings of a training run: each with its sentence, group and default, their checks, and their YAML form.

The flags of ``bnnedge train`` and its help are made from ``RunConfig``. A value comes from the user (a flag or a file)
or, where the user gave none, from the default here; a default of None stands for the method's, the data set's or the
machine's own value, which ``resolve`` and the training code fill in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml

from bnnedge.errors import ConfigError
from bnnedge.files import read_within
from bnnedge.options import fill, plain
from bnnedge.schema import check_plain, read_json

MOST_BYTES = 1 << 18
"""Largest file of settings; a run's takes about 2,000 bytes."""
MOST_EPOCHS = 10**6
"""Most passes over the training images."""
MOST_PIXELS = 2**16
"""Largest height and width of the network's input."""
MOST_THREADS = 4096
"""Most threads that a file may name; how many this machine can run is checked where they are started."""


class TrainingDefaults(Protocol):
    """The settings that a method brings along; see ``bnnedge/methods/method.py``."""

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


def _shown(group: str, *, unset: str = "", kind: str = "", metavar: str = "") -> dict[str, str]:
    """Return a field's metadata: how the help of ``bnnedge train`` shows it, beside the sentence under the field.

    ``group`` is the heading, ``unset`` what None stands for, ``kind`` the list (``bnnedge list KIND``) that the value
    is a name from, ``metavar`` the placeholder of the value.
    """
    return {"group": group, "unset": unset, "kind": kind, "metavar": metavar}


@dataclass(frozen=True)
class RunConfig:
    """Settings of one training run. Raises ``ConfigError`` for values that are out of range or at odds."""

    method: str = field(default="rbnn", metadata=_shown("Run", kind="methods"))
    """Training method."""
    model: str = field(
        default="resnet20_1w1a", metadata=_shown("Run", kind="models", metavar="NAME|FILE.py:CLASS_OR_FUNCTION")
    )
    """Network to train: a registered one, or one of your own from a Python file."""
    dataset: str = field(default="digits", metadata=_shown("Run", kind="datasets"))
    """Data set to train on."""
    epochs: int = field(default=30, metadata=_shown("Run"))
    """Passes over the training images."""
    batch_size: int = field(default=128, metadata=_shown("Run"))
    """Images in one optimizer step, counted over all processes together."""
    seed: int = field(default=0, metadata=_shown("Run"))
    """Seed of initialization, data order and augmentation; the split of the data does not depend on it."""

    data_root: str | None = field(default=None, metadata=_shown("Data", unset="$BNNEDGE_DATA", metavar="FOLDER"))
    """Folder of the data sets that are read from files."""
    image_size: tuple[int, ...] | None = field(
        default=None, metadata=_shown("Data", unset="the data set's", metavar="PIXELS|HEIGHTxWIDTH")
    )
    """Size of the network's input images in pixels: one number for square images, or height and width."""
    preprocess: str | None = field(default=None, metadata=_shown("Data", unset="the data set's", kind="preprocessings"))
    """Preprocessing that turns pixels into the network's input (resizing, scale, mean, standard deviation); it is saved
    in the checkpoint and in exported files."""
    augment: str = field(default="own", metadata=_shown("Data", kind="augmentations"))
    """Random changes of the training images: an augmentation by name, own for the data set's, or none."""
    validation_split: Literal["own", "none"] | float = field(default="own", metadata=_shown("Data"))
    """Fraction of the training images that is held out for validation, above 0 and below 1; own for the data set's
    split; none to train on all of them, which keeps the weights of the last epoch."""
    validate_on: Literal["val", "test"] = field(default="val", metadata=_shown("Data"))
    """Split whose score chooses the best epoch. Some published code chooses by the test split, which makes the test
    score too good; result.json then says so."""

    task: str | None = field(
        default=None, metadata=_shown("Network", unset="the network's or the data set's", kind="tasks")
    )
    """Task that the network learns, which sets its output, its loss and its scores."""
    init: str | None = field(default=None, metadata=_shown("Network", unset="random", metavar="RUN|FILE"))
    """Run folder or checkpoint whose last weights training starts from."""

    optimizer: Literal["sgd", "adam", "adamw"] | None = field(
        default=None, metadata=_shown("Optimizer", unset="the method's")
    )
    """Rule that updates all parameters, except those that the method updates itself."""
    momentum: float | None = field(default=None, metadata=_shown("Optimizer", unset="the method's, else 0.9"))
    """Momentum of sgd, from 0 to below 1."""
    weight_decay: float | None = field(
        default=None,
        metadata=_shown("Optimizer", unset="the method's; with another optimizer, that one's customary value"),
    )
    """L2 penalty on all parameters; with adamw, decoupled weight decay."""
    ema: float | None = field(default=None, metadata=_shown("Optimizer", unset="none"))
    """Decay, above 0 and below 1, of an exponential moving average of the weights; the averaged weights are then
    evaluated and exported."""

    lr: float | None = field(
        default=None,
        metadata=_shown("Learning rate", unset="the method's; with another optimizer, that one's customary value"),
    )
    """Peak learning rate."""
    lr_type: Literal["cos", "step", "poly", "exp", "constant"] | None = field(
        default=None, metadata=_shown("Learning rate", unset="the method's")
    )
    """Learning-rate schedule of a phase: cosine to lr_end, a factor lr_gamma at each of lr_steps, polynomial to lr_end,
    a factor lr_gamma every lr_decay_epochs, or constant."""
    lr_every: Literal["epoch", "step"] | None = field(
        default=None, metadata=_shown("Learning rate", unset="the method's")
    )
    """Whether the learning rate changes after every epoch or after every optimizer step."""
    lr_end: float = field(default=0.0, metadata=_shown("Learning rate"))
    """Learning rate at which the cos and poly schedules end."""
    lr_power: float = field(default=1.0, metadata=_shown("Learning rate"))
    """Power of the poly schedule; 1 is linear."""
    lr_steps: tuple[int, ...] = field(default=(), metadata=_shown("Learning rate"))
    """Epochs, counted from 0, at whose start the step schedule multiplies the learning rate by lr_gamma."""
    lr_decay_epochs: int | None = field(default=None, metadata=_shown("Learning rate", unset="none"))
    """Epochs after which the exp schedule multiplies the learning rate by lr_gamma again."""
    lr_gamma: float = field(default=0.1, metadata=_shown("Learning rate"))
    """Factor of the step and exp schedules."""
    warm_up: int | None = field(default=None, metadata=_shown("Learning rate", unset="the method's"))
    """Epochs at the start in which the learning rate rises linearly to its peak."""

    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=_shown("Speed and memory"))
    """Where to train; auto takes the GPU if there is one."""
    precision: Literal["fp32", "bf16"] = field(default="fp32", metadata=_shown("Speed and memory"))
    """Arithmetic of the forward pass and the loss: float32, or bfloat16 by autocast. Weights and evaluation are always
    float32."""
    compile: bool = field(default=False, metadata=_shown("Speed and memory"))
    """Train through torch.compile."""
    kernels: Literal["auto", "triton", "torch"] = field(default="auto", metadata=_shown("Speed and memory"))
    """Binary layers on packed bits: auto where that is faster, triton wherever a GPU kernel exists, torch nowhere."""
    recompute: bool = field(default=False, metadata=_shown("Speed and memory"))
    """Save memory: a batch normalisation behind a binary convolution keeps no input for the backward pass, which
    computes the convolution once more from the bits."""
    accumulate: int = field(default=1, metadata=_shown("Speed and memory"))
    """Micro-batches into which the images of a step are divided; each is passed forward and backward by itself, and
    batch normalisation sees one at a time."""
    threads: int | None = field(default=None, metadata=_shown("Speed and memory", unset="PyTorch's"))
    """CPU threads of PyTorch; the last bits of a result can depend on their number."""

    sync_batch_norm: bool = field(default=True, metadata=_shown("Several processes"))
    """Whether batch normalisation takes its statistics over the images of all processes, or over each process's own."""

    teacher: str | None = field(default=None, metadata=_shown("Teacher", unset="none", metavar="RUN|FILE"))
    """Run folder or checkpoint of a network on the same data set, whose outputs are learnt beside the labels."""
    distill_weight: float = field(default=1.0, metadata=_shown("Teacher"))
    """Weight of the teacher's outputs in the loss, from 0 to 1; the labels have the rest."""
    distill_temperature: float = field(default=1.0, metadata=_shown("Teacher"))
    """Temperature by which both networks' outputs are divided in the loss."""

    method_options: dict[str, Any] = field(default_factory=dict)
    """Options of the method, by name."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", _size(self.image_size))
        self._check_each()
        self._check_together()

    def _check_each(self) -> None:
        _at_least(
            self,
            epochs=1,
            accumulate=1,
            warm_up=0,
            threads=1,
            weight_decay=0,
            seed=0,
            lr_end=0,
            lr_decay_epochs=1,
        )
        _at_most(
            self,
            epochs=MOST_EPOCHS,
            batch_size=2**24,
            accumulate=2**24,
            threads=MOST_THREADS,
            lr_decay_epochs=MOST_EPOCHS,
        )
        for name in ("lr", "lr_gamma", "lr_power", "distill_temperature"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, got {value}")
        if self.batch_size < 2:
            raise ConfigError(f"batch_size must be at least 2 (batch normalisation), got {self.batch_size}")
        if self.seed >= 2**63:
            raise ConfigError(f"seed must be below 2^63, got {self.seed}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"ema must be above 0 and below 1, e.g. 0.999, got {self.ema}")
        if not isinstance(self.validation_split, str) and not 0 < self.validation_split < 1:
            raise ConfigError(f"validation_split must be above 0 and below 1, got {self.validation_split}")
        if not 0 <= self.distill_weight <= 1:
            raise ConfigError(f"distill_weight must be from 0 to 1, got {self.distill_weight}")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum must be from 0 to below 1, got {self.momentum}")

    def _check_together(self) -> None:
        if self.recompute and (self.compile or self.kernels == "torch"):
            raise ConfigError("recompute is for eager training on bits; leave out compile and kernels torch")
        if self.teacher is None and (self.distill_weight, self.distill_temperature) != (1, 1):
            raise ConfigError("distill_weight and distill_temperature need a teacher")
        if self.warm_up is not None and self.warm_up >= self.epochs:
            raise ConfigError(f"warm_up ({self.warm_up}) must be below epochs ({self.epochs})")
        if any(a >= b for a, b in zip((0, *self.lr_steps), (*self.lr_steps, self.epochs), strict=True)):
            raise ConfigError(f"lr_steps must rise and lie between 0 and epochs ({self.epochs}), got {self.lr_steps}")

    def resolve(self, defaults: TrainingDefaults, options_type: type[Any]) -> RunConfig:
        """Return the final settings: each None replaced where ``defaults`` has a value, the method's options complete.

        With an optimizer other than the method's, learning rate, momentum and weight decay are that optimizer's
        customary ones, since the method's would not fit. Raises ``ConfigError`` for settings at odds.
        """
        chosen = _optimizer_defaults(defaults, self.optimizer or defaults.optimizer)
        filled = {name: value for name, value in chosen.items() if getattr(self, name) is None}
        options = fill(options_type, self.method_options, f"method {self.method}")
        resolved = dataclasses.replace(self, **filled, method_options=plain(options))
        if resolved.optimizer != "sgd" and resolved.momentum is not None:
            raise ConfigError(f"momentum belongs to optimizer sgd; leave it out with optimizer {resolved.optimizer}")
        for kind, name, flag in (
            ("step", "lr_steps", "--lr-steps 10,20"),
            ("exp", "lr_decay_epochs", "--lr-decay-epochs 100"),
        ):
            if resolved.lr_type == kind and not getattr(resolved, name):
                raise ConfigError(f"lr_type {kind} needs {name}, e.g. {flag}")
            if resolved.lr_type != kind and getattr(resolved, name):
                raise ConfigError(f"{name} belongs to lr_type {kind}; leave it out with lr_type {resolved.lr_type}")
        return resolved

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, as YAML files and checkpoints hold them."""
        return plain(self)

    def write(self, path: Path) -> None:
        """Write the settings as a YAML file."""
        path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Return the settings of which ``values`` are some, as plain values or as text.

        Raises ``ConfigError`` for an unknown name and for a value of the wrong type.
        """
        return fill(cls, values, "a run")

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """Return the settings that a YAML or JSON file holds. Raises ``ConfigError`` if it is missing or damaged."""
        return cls.from_dict(read_settings(path))


def read_settings(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file, or a JSON file if ``path`` ends in ``.json``, holds.

    Raises ``ConfigError`` if the file is missing, damaged or holds anything else.
    """
    data = read_within(path, MOST_BYTES, ConfigError)
    try:
        values = (
            read_json(data, f"{path} cannot be read as a run's settings", ConfigError)
            if path.suffix == ".json"
            else yaml.load(data.decode("utf-8-sig"), _PlainLoader)
        )
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as a run's settings: {reason}") from error
    check_plain(values, str(path), ConfigError)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} should hold a setting a line, `name: value`, but holds a {type(values).__name__}")
    return {str(k): v for k, v in values.items()}


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, of which a short text can make a value that fills the memory, and without equal names."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("expected every value written out, found an alias (*name)")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for name, _ in node.value:
            if isinstance(name, yaml.ScalarNode):
                if name.value in seen:
                    raise yaml.YAMLError(f"{name.value} stands there twice")
                seen.add(name.value)
        return super().construct_mapping(node, deep)


def _size(given: Any) -> tuple[int, ...] | None:
    """Return an image size as (pixels,) or (height, width); older checkpoints hold a single number."""
    if given is None:
        return None
    size = tuple(given) if isinstance(given, list | tuple) else (given,)
    if len(size) not in (1, 2) or min(size) < 1 or max(size) > MOST_PIXELS:
        raise ConfigError(
            f"image_size must be one number or height and width, each from 1 to {MOST_PIXELS} pixels, got {given}"
        )
    return size[:1] if size[0] == size[-1] else size


def _at_least(config: RunConfig, **minima: float) -> None:
    for name, minimum in minima.items():
        value = getattr(config, name)
        if value is not None and not value >= minimum:
            raise ConfigError(f"{name} must be at least {minimum}, got {value}")


def _at_most(config: RunConfig, **maxima: int) -> None:
    for name, maximum in maxima.items():
        value = getattr(config, name)
        if value is not None and value > maximum:
            raise ConfigError(f"{name} must be at most {maximum}, got {value}")


def _optimizer_defaults(defaults: TrainingDefaults, optimizer: str) -> dict[str, Any]:
    shared = {"optimizer": optimizer, **{n: getattr(defaults, n) for n in ("lr_type", "lr_every", "warm_up")}}
    momentum = {"momentum": defaults.momentum if defaults.optimizer == "sgd" else 0.9} if optimizer == "sgd" else {}
    if optimizer == defaults.optimizer:
        return {**shared, **momentum, "lr": defaults.lr, "weight_decay": defaults.weight_decay}
    lr, weight_decay = {"sgd": (0.1, 1e-4), "adam": (1e-3, 0.0), "adamw": (1e-3, 1e-2)}[optimizer]
    return {**shared, **momentum, "lr": lr, "weight_decay": weight_decay}
