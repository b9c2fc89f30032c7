"""The flow of data through a user's network, found in whatever way works."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedBuffer
from torch.optim.swa_utils import AveragedModel

from bnnedge.errors import ConfigError, one_line
from bnnedge.layers.data_flow.flow import Flow
from bnnedge.layers.data_flow.run import Example, random_state_kept, run_flow
from bnnedge.layers.data_flow.symbolic import UntraceableError, symbolic_flow


def find_flow(model: nn.Module, example: Example | None = None) -> tuple[Flow | None, list[str]]:
    """The flow through ``model``, by a run on ``example`` or by symbolic tracing, and what did not work, in words.

    Both work on copies, in training mode and in eval mode, without the hooks that the user has registered. If
    neither works in any mode, there is no flow.
    """
    failures: list[str] = []
    ways: list[tuple[str, Callable[[nn.Module], Flow]]] = [("symbolic tracing fails", symbolic_flow)]
    if example is not None:
        ways.insert(0, ("forward fails on the example inputs", lambda network: run_flow(network, example)))
    for words, way in ways:
        found, reasons = [], []
        for training in (True, False):
            try:
                with random_state_kept():
                    network, prefix = _inner(without_hooks(copied(model)).train(training))
                    found.append(way(network).below(prefix))
            except UntraceableError as error:
                reasons.append(f"{words}: {error}")
            except (Exception, SystemExit) as error:  # the user's own code can raise anything
                reasons.append(f"{words}: {type(error).__name__}: {one_line(error, 120)}")
        if found:
            return found[0] if len(found) == 1 else found[0].join(found[1]), failures
        failures.append(reasons[-1])
    return None, failures


def _inner(model: nn.Module) -> tuple[nn.Module, str]:
    """The network inside of PyTorch's own wrappers, such as ``torch.compile``'s, and the prefix of its paths."""
    prefix = ""
    while True:
        if "_orig_mod" in model._modules:  # torch.compile; its class is not imported, which would take a second
            name = "_orig_mod"
        elif isinstance(model, nn.DataParallel | DistributedDataParallel | AveragedModel):
            name = "module"
        else:
            return model, prefix
        model, prefix = model.get_submodule(name), f"{prefix}{name}."


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of ``model``.

    Weights that ``torch.nn.utils`` computes before each forward are copied as they are now. Raises ``ConfigError``
    where something in the network cannot be copied, naming it if it is a tensor with a history.
    """
    memo: dict[int, object] = {}
    with_history: list[str] = []
    for path, module in model.named_modules():
        computed = {getattr(hook, "name", getattr(hook, "_tensor_name", None)) for hook in _torch_hooks(module)}
        for name, value in vars(module).items():
            if getattr(value, "is_leaf", True):
                continue
            if name in computed:
                memo[id(value)] = value.detach().clone()
            else:
                with_history.append(f"{path}.{name}".lstrip("."))
        for buffer in module._buffers.values():
            if isinstance(buffer, UninitializedBuffer):  # it has no __deepcopy__ of its own
                like = buffer.requires_grad, buffer.device, buffer.dtype
                memo[id(buffer)] = UninitializedBuffer(*like)  # type: ignore[arg-type]
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # objects of any kind may be attributes of a module
        reason = (
            f"{', '.join(with_history)} is a tensor with a history of operations; store it detached, as a buffer"
            if with_history
            else f"{type(error).__name__}: {one_line(error)}"
        )
        raise ConfigError(f"{type(model).__name__} cannot be copied, since {reason}") from error


def _torch_hooks(module: nn.Module) -> list[object]:
    """The hooks by which ``torch.nn.utils`` computes a weight before each forward."""
    return [h for h in module._forward_pre_hooks.values() if type(h).__module__.startswith("torch.nn.utils.")]


def without_hooks(model: nn.Module) -> nn.Module:
    """``model`` itself, without the forward hooks and pre-hooks of its modules that are not PyTorch's own."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                owner = getattr(hook, "__module__", None) or type(hook).__module__
                if not owner.startswith("torch."):
                    del hooks[key]
    return model
