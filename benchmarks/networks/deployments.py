"""The deployments of a network that are compared: ours and the others', each called in its own best way.

Ours are the two exported files, with an int8 stem if asked for. The peers run the same topology:

- the binary TFLite file in Larq Compute Engine, with its default and its indirect kernel (XNNPACK for its few float
  operators changes nothing measurable), with a float stem and with ours;
- the float32 and int8 twins in ONNX Runtime and LiteRT, with all optimisations, which is their default
  (``int8_twin_7bit`` where ONNX Runtime's kernels leave 7 bits of a weight, see ``int8_onnx.weight_bits``);
- the float32 twin in PyTorch, eager, with batch norms folded and channels last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnnedge.benchmarks.networks.twins import NetworkForms, run_torch, run_torch_behind
from bnnedge.errors import BenchmarkError
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.runtimes.lce import Kernel, Lce, LceSession
from bnnedge.export.runtimes.runtime import Images, Session
from bnnedge.export.targets.tflite.reader import parse_model

EXACT, ROUNDED, INT8 = 1e-3, 1e-3, 0.4
"""Largest relative difference of the outputs from PyTorch's; unrelated outputs differ by about 1.4."""
CHECK_IMAGES = 2


@dataclass(frozen=True)
class Deployment:
    """One form of the network and the runtime that runs it, not opened yet."""

    file: str
    """The name of the form in rows and tables."""
    runtime: str
    """Name in RUNTIMES, or ``lce indirect``, or ``torch``."""
    runtime_version: str
    form: str
    """``binary``, ``float32 twin`` or ``int8 twin``."""
    file_bytes: int
    ours: bool
    open: Callable[[int], Session]
    """Opens it with a number of threads."""
    codes: Callable[[Images, Sequence[str]], list[NDArray[np.int8]]] | None = None
    """Reads the codes of an int8 stem, see ``VerifyingRuntime.codes``; None for a float stem."""

    @property
    def name(self) -> str:
        return f"{self.file} in {self.runtime}"

    def check(self, session: Session, network: NetworkForms, images: Images) -> None:
        """Raise ``BenchmarkError`` unless ``session`` computes what PyTorch does: no time is taken of wrong results."""
        binary = self.form == "binary"
        if self.codes is not None and network.int8_stem is not None:
            entered, left = self.codes(images, network.int8_stem.stem.tensors)
            network.int8_stem.stem.check(images, entered, left)
            expected = run_torch_behind(network, left, images)
        else:
            expected = run_torch(network.binary if binary else network.twin, images)
        found = np.concatenate([session.run(images[i : i + 1]) for i in range(len(images))])
        limit = EXACT if binary else INT8 if self.form == "int8 twin" else ROUNDED
        if found.shape != expected.shape:
            raise BenchmarkError(f"{self.name}: expected output {expected.shape}, found {found.shape}")
        differences = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        if not (differences <= limit).all():
            raise BenchmarkError(
                f"{self.name}: the output differs by {differences.max():.2g} of its size from "
                f"PyTorch's, {limit:g} is allowed; no time is taken of wrong results"
            )


class TorchSession(Session):
    """An eager PyTorch module."""

    name: ClassVar[str] = "torch"

    def __init__(self, module: nn.Module, threads: int) -> None:
        torch.set_num_threads(threads)
        self._module = module

    def prepare(self, images: Images) -> Tensor:
        return torch.from_numpy(images).contiguous(memory_format=torch.channels_last)

    def invoke(self, prepared: Tensor) -> NDArray[np.float32]:
        with torch.inference_mode():
            output: NDArray[np.float32] = self._module(prepared).numpy()
        return output


def deployments(network: NetworkForms, leave_out: Callable[[str], None]) -> list[Deployment]:
    """Ours first, then the peers. What cannot run here is left out, and ``leave_out`` is told why.

    Raises ``BenchmarkError`` if none of ours can run.
    """
    found: list[Deployment] = []

    def add(
        suffix: str,
        data: bytes | BenchmarkError,
        form: str,
        runtime: str,
        kernel: Kernel | None = None,
        int8_stem: bool = False,
        weight_bits: int = 8,
    ) -> None:
        name = network.name if form == "binary" else form.replace(" ", "_")
        name += "_int8_stem" if int8_stem else "" if weight_bits == 8 else f"_{weight_bits}bit"
        label = runtime if kernel in (None, "default") else f"{runtime} {kernel}"
        reason = str(data) if isinstance(data, BenchmarkError) else RUNTIMES.load(runtime).unavailable()
        if isinstance(data, BenchmarkError) or reason:
            leave_out(f"{name}{suffix} in {label}: {reason}")
            return
        opener: Callable[[int], Session]
        opener = partial(_open, runtime, data) if kernel is None else partial(_open_lce, kernel, data)
        version = RUNTIMES.load(runtime).version()
        ours = runtime.endswith("+bnnedge")
        codes = partial(RUNTIMES.load(runtime).codes, data) if int8_stem else None
        found.append(Deployment(f"{name}{suffix}", label, version, form, len(data), ours, opener, codes))

    own = network.int8_stem
    add(".onnx", own.onnx if own else network.binary_onnx, "binary", "onnxruntime+bnnedge", int8_stem=own is not None)
    add(".tflite", own.tflite if own else network.binary_tflite, "binary", "litert+bnnedge", int8_stem=own is not None)
    if not found:
        raise BenchmarkError("neither of bnnedge's plug-ins can be used here; `bnnedge doctor` says why")
    for kernel in ("indirect", "default"):
        add(".tflite", network.binary_tflite, "binary", Lce.name, kernel)
        if own:
            add(".tflite", own.tflite, "binary", Lce.name, kernel, int8_stem=True)
    add(".onnx", network.int8_onnx, "int8 twin", "onnxruntime", weight_bits=network.int8_onnx_weight_bits)
    add(".tflite", network.int8_tflite, "int8 twin", "litert")
    add(".onnx", network.float_onnx, "float32 twin", "onnxruntime")
    add(".tflite", network.float_tflite, "float32 twin", "litert")
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.twin.parameters())
    module = partial(TorchSession, network.twin)
    found.append(Deployment("float32_twin", TorchSession.name, torch.__version__, "float32 twin", size, False, module))
    return found


def open_checked(
    deployment: Deployment, network: NetworkForms, images: Images, threads: int, leave_out: Callable[[str], None]
) -> Session | None:
    """A session that gives right outputs for ``images``.

    Raises a ``BnnedgeError`` if one of ours does not. For a peer that does not the result is None, and ``leave_out`` is
    told why.
    """
    try:
        session = deployment.open(threads)
        deployment.check(session, network, images)
    except Exception as error:  # a peer may raise anything
        if deployment.ours:
            raise
        reason = " ".join(str(error).split())[:200]
        leave_out(reason if reason.startswith(deployment.name) else f"{deployment.name}: {reason}")
        return None
    return session


def _open(runtime: str, data: bytes, threads: int) -> Session:
    session: Session = RUNTIMES.load(runtime).open(data, threads)
    return session


def _open_lce(kernel: Kernel, data: bytes, threads: int) -> Any:
    return LceSession(parse_model(data), data, threads, kernel)
