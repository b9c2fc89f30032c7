"""The flow of data through a network by a run on example inputs."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bnnedge.layers.data_flow.bounds import Bounds, bounds_of, canonical, is_uninitialized
from bnnedge.layers.data_flow.flow import (
    NETWORK_INPUT,
    SHAPE_OPERATIONS,
    WEIGHT_OPERATIONS,
    Flow,
    Value,
    constant,
    kind_of,
    layers_with_weights,
    pass_on,
)

Example = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""One tensor, several in order, or several by the names of forward's arguments."""


def run_flow(model: nn.Module, example: Example) -> Flow:
    """The flow through ``model`` on ``example``. Its forward runs and may change it; what that raises is raised."""
    recorder = _Recorder(model)
    inputs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), example)
    for tensor in _tensors(inputs):
        recorder.set(tensor, Value(origins=frozenset({NETWORK_INPUT})))
    with torch.no_grad(), recorder.watched(model), recorder:
        result = call_with(model, inputs)
    recorder.flow.outputs = pass_on(map(recorder.value, _tensors(result)), Bounds()).origins
    return recorder.flow


def call_with(model: nn.Module, example: Example) -> Any:
    """``model`` of example inputs."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple | list) else model(example)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the random generators of Python, NumPy and PyTorch's CPU as they were."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _tensors(result: Any, depth: int = 4) -> list[Tensor]:
    """The tensors in a model's result, also those in attributes of objects."""
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(result):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and depth and not isinstance(leaf, nn.Module | type):
            found += _tensors(list(vars(leaf).values()), depth - 1)
    return found


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows the ``Value`` of each tensor by its memory, so that views and changes in place need no rules."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = Flow("the flow of data in a run on the example inputs")
        self.values: dict[int, Value] = {}
        self.alive: list[Tensor] = []  # Memory that is freed could be given to another tensor.
        self.modules: list[str] = []
        self.layer_depth = 0
        self.parameters = {
            p.untyped_storage().data_ptr(): n for n, p in model.named_parameters() if not is_uninitialized(p)
        }

    def value(self, tensor: Tensor) -> Value:
        """What is known of ``tensor``; one that no operator made is a parameter or a constant."""
        place = tensor.untyped_storage().data_ptr()
        if place not in self.values:
            self.set(tensor, constant(tensor, self.parameters.get(place)))
        return self.values[place]

    def set(self, tensor: Tensor, value: Value) -> None:
        """Say what is known of ``tensor``."""
        self.alive.append(tensor)
        self.values[tensor.untyped_storage().data_ptr()] = value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        values = [] if self.layer_depth else [self.value(t) for t in given]
        replaced = {id(t): v.bounds for t, v in zip(given, values, strict=False)}
        result = func(*args, **kwargs)
        if self.layer_depth == 0:
            operation = canonical(func._schema.name.rpartition("::")[2])
            value = self._operate(func, operation, values, *_bounded((args, kwargs), replaced))
            for tensor in _tensors(result):
                whole = tensor.numel() * tensor.element_size() >= tensor.untyped_storage().nbytes()
                changed = func._schema.is_mutable and not whole
                self.set(tensor, pass_on([value, self.value(tensor)], Bounds()) if changed else value)
        return result

    def _operate(self, func: Any, operation: str, values: list[Value], args: Any, kwargs: Any) -> Value:
        weights = [v.weight for v in values if v.weight]
        if operation in WEIGHT_OPERATIONS and weights and any(v.origins for v in values):
            self.flow.weights[weights[0]] = operation
            return self.flow.call(weights[0], values)
        if operation in SHAPE_OPERATIONS:
            return Value(bounds_of(operation, func, (), {}))
        if operation == "copy":  # copy_(target, source)
            return pass_on(values[1:], values[-1].bounds)
        inside = f" in {self.modules[-1]!r}" if self.modules and self.modules[-1] else ""
        return pass_on(values, bounds_of(operation, func, args, kwargs, f"{operation}{inside}"))

    @contextmanager
    def watched(self, model: nn.Module) -> Iterator[None]:
        """Note each call of a layer with weights, in whose inside operators are not looked at."""
        layers = {id(layer): name for name, layer in layers_with_weights(model).items()}
        handles = []
        for name, module in model.named_modules():
            handles += list(self._watch(module, name, layers.get(id(module))))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, module: nn.Module, name: str, layer: str | None) -> Iterable[Any]:
        seen: list[list[Value]] = []

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.modules.append(f"{kind_of(module)} {name}" if name else "")
            if layer is not None:
                seen.append([] if self.layer_depth else [self.value(t) for t in _tensors((args, kwargs))])
                self.layer_depth += 1

        def leave(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            self.modules.pop()
            if layer is not None:
                self.layer_depth -= 1
                inputs = seen.pop()
                if self.layer_depth == 0:
                    value = self.flow.call(layer, inputs)
                    for tensor in _tensors(result):
                        self.set(tensor, value)

        yield module.register_forward_pre_hook(enter, with_kwargs=True)
        yield module.register_forward_hook(leave, with_kwargs=True)


def _bounded(arguments: Any, bounds: dict[int, Bounds]) -> Any:
    return pytree.tree_map(lambda v: bounds[id(v)] if isinstance(v, Tensor) else v, arguments)
