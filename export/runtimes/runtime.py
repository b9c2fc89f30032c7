"""The contract of a runtime: load a file, run images through it, and look inside for verification.

Images go in as NCHW float32 and signs come out as NCHW int8, whatever layout the runtime has inside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import DataError

Images = NDArray[np.float32]
Inputs = Images | Mapping[str, Images]
"""The one input of a file, or all of its inputs by name."""
Outputs = dict[str, NDArray[np.float32]]
"""Every output of a file by name, each [N, ...]."""


class Session(ABC):
    """A network that is ready to run."""

    @abstractmethod
    def prepare(self, images: Images) -> Any:
        """Images [N, C, H, W] in the session's own layout. It is a step of its own, which is not timed."""

    @abstractmethod
    def invoke(self, prepared: Any) -> NDArray[np.float32]:
        """Run what ``prepare`` returned and return the output [N, ...], the first one if there are several."""

    def run(self, images: Images) -> NDArray[np.float32]:
        """``invoke(prepare(images))``."""
        return self.invoke(self.prepare(images))


class FileSession(Session):
    """A file loaded into a runtime, ready to run; its inputs and outputs have names."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    @abstractmethod
    def prepare(self, images: Inputs) -> Any:
        """Inputs [N, C, H, W] or [N, C] in the runtime's own layout.

        Raises ``DataError`` for an input that is missing or that the file does not have.
        """

    @abstractmethod
    def invoke_all(self, prepared: Any) -> Outputs:
        """Run what ``prepare`` returned and return every output by name."""

    def invoke(self, prepared: Any) -> NDArray[np.float32]:
        return self.invoke_all(prepared)[self.output_names[0]]

    def run(self, images: Inputs) -> NDArray[np.float32]:
        """The first output for ``images``."""
        return self.invoke(self.prepare(images))

    def run_all(self, images: Inputs) -> Outputs:
        """Every output for ``images`` by name."""
        return self.invoke_all(self.prepare(images))

    def inputs_of(self, images: Inputs) -> dict[str, Images]:
        """``images`` by name, in the order of ``input_names``.

        Raises ``DataError`` as ``prepare`` does, and for an empty batch, which no runtime promises to run.
        """
        given = images if isinstance(images, Mapping) else {self.input_names[0]: images}
        if sorted(given) != sorted(self.input_names):
            found = ", ".join(images) if isinstance(images, Mapping) else "one array without a name"
            expected = ", ".join(self.input_names)
            raise DataError(f"the file has the inputs {expected}, found {found}; give all of them by name")
        if any(len(values) == 0 for values in given.values()):
            raise DataError("expected a batch of at least one image, found an empty one")
        return {name: given[name] for name in self.input_names}


class Runtime(ABC):
    """One way to execute a file. All methods are static facts of the runtime; a session holds the state."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def unavailable(cls) -> str | None:
        """None if the runtime can be used here; else one sentence: what is missing and how to get it."""

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Version of the runtime, for benchmark rows."""

    @classmethod
    @abstractmethod
    def open(cls, data: bytes, threads: int = 1) -> FileSession:
        """Load a file's bytes. Raises ``ExportError`` if they are damaged or hold operators it does not know."""


class VerifyingRuntime(Runtime):
    """A runtime that can also show what happens inside, so that an exported file can be verified in it."""

    @classmethod
    @abstractmethod
    def tap(cls, data: bytes, images: Inputs) -> tuple[Outputs, dict[str, NDArray[np.int8]]]:
        """Run ``data`` with its binary layers' inputs exposed.

        Returns the outputs by name and, for each binary convolution (by graph node name), the signs {-1, +1} that
        entered it, [N, C, H, W].
        """

    @classmethod
    @abstractmethod
    def integers(cls, data: bytes, layer: str, signs: NDArray[np.int8]) -> NDArray[np.int32]:
        """Feed ``signs`` [N, C, H, W] to binary convolution ``layer`` with the weights and geometry that the file
        holds, and return the integer sums [N, O, OH, OW] of the runtime's own kernel (multiplier 1, bias 0)."""

    @classmethod
    @abstractmethod
    def codes(cls, data: bytes, images: Images, tensors: Sequence[str]) -> list[NDArray[np.int8]]:
        """The codes [N, C, H, W] of ``int8`` tensors (by graph name) for ``images``, from -128 to 127."""
