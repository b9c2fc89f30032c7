"""Where and in which precision a run trains: the device, autocast, TF32, the compiled forward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch import distributed as dist

from bnnedge.config import RunConfig
from bnnedge.errors import ConfigError, MissingDependencyError
from bnnedge.train.distributed import ALONE, Group

Forward = Callable[[Tensor], Tensor]


def find_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` stands for.

    Raises ``ConfigError`` for another name, ``MissingDependencyError`` for a GPU that is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be one of auto, cpu, cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError("device cuda: PyTorch sees no GPU here; use --device cpu or auto")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def prepare_device(config: RunConfig, group: Group = ALONE) -> torch.device:
    """The device of this process, set up for the run's precision; ``cuda`` is then this process's GPU.

    float32 is IEEE's on a GPU, not TF32. Raises ``MissingDependencyError`` or ``ConfigError`` for what is not there.
    """
    device = find_device(config.device)
    if device.type == "cuda":
        if group.size > 1:
            _take_gpu(group)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        if config.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ConfigError(f"precision bf16: {torch.cuda.get_device_name()} computes in no bfloat16; use fp32")
    elif config.kernels == "triton":
        raise ConfigError("kernels triton needs an NVIDIA GPU, the run is on the CPU; use --kernels auto")
    if config.compile:
        check_compiler(device)
    return device


def _take_gpu(group: Group) -> None:
    found = torch.cuda.device_count()
    if group.local_rank >= found:
        raise ConfigError(
            f"process {group.local_rank + 1} of this machine has no GPU of its own: PyTorch sees {found}; start one "
            "process for each"
        )
    if not dist.is_nccl_available():
        raise MissingDependencyError("several GPUs need NCCL, which this PyTorch lacks; use --device cpu or one GPU")
    torch.cuda.set_device(group.local_rank)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a training step's forward pass and loss; weights, gradients and optimizers stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def check_compiler(device: torch.device) -> None:
    """Raise ``MissingDependencyError`` unless ``torch.compile`` can build something for ``device``."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # whatever is missing, and that depends on the backend
        reason = " ".join(str(error).split())[:160]
        raise MissingDependencyError(
            f"--compile cannot build for {device.type} here (a C++ compiler, on a GPU Triton too, is needed): {reason}"
        ) from error


def compiled(model: nn.Module) -> Forward:
    """``model`` through ``torch.compile``, its parameters and names untouched.

    One graph for each batch size. Numbers that methods change between steps (RBNN's t, BMD's beta) are inputs of the
    graphs, so a graph serves all epochs, and a resumed run has the same ones.
    """
    forward = torch.compile(model, dynamic=True)

    def call(images: Tensor) -> Tensor:
        torch._dynamo.mark_static(images)
        try:
            return forward(images)  # type: ignore[no-any-return]
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"--compile does not work with this model and method; leave it out: {reason}") from error

    return call
