"""The record of a network: how it is built, what it is meant for, and what it consists of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from bnnedge.errors import ConfigError

Build = Callable[[int, int, tuple[int, int]], nn.Module]
"""``build(num_classes, in_channels, (height, width))`` makes the network, freshly initialized."""


@dataclass(frozen=True)
class Network:
    """One entry of ``MODELS``. Its binary layers are ``BinaryConv2d`` and ``BinaryLinear``; a training method says how
    they binarize.

    The three counts are those of the network at ``classes``, ``channels``, ``height`` and ``width``, without the
    parameters that a method adds of its own, as RBNN does.
    """

    description: str
    """What the network is, in one or two sentences."""
    build: Build
    """See ``Build``."""
    paper: str
    """Authors, year, title, identifier."""
    classes: int
    """Number of classes that the network is meant for."""
    channels: int
    """Channels of the images that it is meant for."""
    height: int
    """Height of these images in pixels."""
    width: int
    """Width of these images in pixels."""
    binary_weights: int
    """Number of weights in the binary layers."""
    binary_layers: int
    """Number of binary layers."""
    parameters: int
    """Number of all trainable parameters, the binary weights among them."""
    smallest_size: tuple[int, int]
    """Height and width in pixels of the smallest image that the network takes."""
    size_step: int = 1
    """Height and width must be multiples of this many pixels."""
    task: str = "classification"
    """Name of the task that the network is made for."""
    forms: tuple[Network, ...] = ()
    """The forms among which the image size chooses, as ``by_image_size`` has it; none if there is but one form."""

    def form(self, image_size: tuple[int, int]) -> Network:
        """The form that images of this height and width get; the network itself if it has but one."""
        return _choose(self.forms, image_size) if self.forms else self

    def check(self, name: str, image_size: tuple[int, int]) -> None:
        """Raise ``ConfigError`` unless the network, called ``name``, takes images of this height and width."""
        (height, width), (lowest, narrowest), step = image_size, self.smallest_size, self.size_step
        if height < lowest or width < narrowest:
            raise ConfigError(
                f"image size {height}x{width} is below {lowest}x{narrowest} (height x width), the smallest that {name} "
                "takes"
            )
        if height % step or width % step:
            raise ConfigError(
                f"{name} takes images whose height and width are multiples of {step} pixels; {height}x{width} is not"
            )

    def details(self) -> list[str]:
        """The record in lines for people to read."""
        lines = [self.description, f"task: {self.task}", f"paper: {self.paper}"]
        if not self.forms:
            return lines + self._counted()
        for form in self.forms:
            lowest, narrowest = form.smallest_size
            lines += [f"form for images of {lowest}x{narrowest} pixels or more", f"  {form.description}"]
            lines += [f"  {line}" for line in form._counted()]
        return lines

    def _counted(self) -> list[str]:
        (lowest, narrowest), step = self.smallest_size, self.size_step
        multiples = f", in multiples of {step}" if step > 1 else ""
        return [
            f"input: made for {self.channels} channels of {self.height}x{self.width} pixels (height x width); takes "
            f"{lowest}x{narrowest} or more{multiples}",
            f"classes: made for {self.classes}, takes any number",
            f"parameters: {self.parameters:,} at that input and number of classes, before a method adds its own",
            f"binary weights: {self.binary_weights:,} of these, in {self.binary_layers} layers",
        ]


def by_image_size(description: str, *forms: Network) -> Network:
    """One network of several ``forms``, given from the smallest images to the largest.

    An image gets the last form whose ``smallest_size`` it reaches in height and in width. The network's own facts are
    those of the first form.
    """

    def build(num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
        return _choose(forms, image_size).build(num_classes, in_channels, image_size)

    return dataclasses.replace(forms[0], description=description, build=build, forms=forms)


def _choose(forms: tuple[Network, ...], image_size: tuple[int, int]) -> Network:
    """The last form that takes images of this height and width, or the first form if none does."""
    fitting = [f for f in forms if image_size[0] >= f.smallest_size[0] and image_size[1] >= f.smallest_size[1]]
    return fitting[-1] if fitting else forms[0]
