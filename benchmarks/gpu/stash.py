"""How many bytes layers keep between the forward and the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def kept_bytes(layers: Iterable[nn.Module], model: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes that autograd keeps of what ``layers`` of ``model`` compute in ``forward``, each buffer once.

    Parameters and buffers of the model itself are not counted, since they are there without autograd.
    """
    buffers: dict[int, Tensor] = {}
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}

    def note(tensor: Tensor) -> Tensor:
        # Holding the tensor keeps its address from being used again by a later buffer.
        buffers[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with ExitStack() as stack:
        open_hooks: list[Any] = []

        def enter(module: nn.Module, inputs: Any) -> None:
            open_hooks.append(saved_tensors_hooks(note, lambda kept: kept))
            open_hooks[-1].__enter__()

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            open_hooks.pop().__exit__(None, None, None)

        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(enter).remove)
            stack.callback(layer.register_forward_hook(leave).remove)
        forward()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in buffers.items() if address not in own)
