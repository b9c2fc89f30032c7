"""The flow of data through a network by symbolic tracing, for which no example is needed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from bnnedge.layers.data_flow.bounds import Bounds, bounds_of, canonical
from bnnedge.layers.data_flow.flow import (
    NETWORK_INPUT,
    SHAPE_OPERATIONS,
    WEIGHT_OPERATIONS,
    Flow,
    Value,
    constant,
    has_weights,
    kind_of,
    pass_on,
)

MOST_PATHS = 16
"""The number of ways through the conditions of a network that are followed."""
_FACTS = {"shape", "device", "dtype", "ndim", "requires_grad", "is_cuda", "layout"}


class UntraceableError(Exception):
    """The network cannot be traced; the message says why."""


def symbolic_flow(model: nn.Module) -> Flow:
    """The flow through ``model``, whose forward runs with symbols in place of tensors and may change it.

    Of a condition on a tensor both ways are followed. Raises ``UntraceableError`` if no way can be traced, or if
    there are more than ``MOST_PATHS``.
    """
    flow = None
    for graph in _graphs(model):
        found = _walk(model, graph)
        flow = found if flow is None else flow.join(found)
    assert flow is not None
    return flow


def _graphs(model: nn.Module) -> list[fx.Graph]:
    """The graphs of all ways through the conditions of ``model.forward``; a way that raises an error is none."""
    graphs: list[fx.Graph] = []
    pending: list[tuple[bool, ...]] = [()]
    reason, tried = "", 0
    while pending:
        if tried == MOST_PATHS:
            raise UntraceableError(f"its forward has more than {MOST_PATHS} ways through its conditions")
        tracer, tried = _Tracer(pending.pop()), tried + 1
        try:
            graphs.append(tracer.trace(model, concrete_args=_defaults(model)))
        except (Exception, SystemExit) as error:  # the user's code can raise anything when it meets a symbol
            reason = reason or f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        begun = len(tracer.given)
        pending += [(*tracer.taken[:i], not tracer.taken[i]) for i in range(begun, len(tracer.taken))]
    if not graphs:
        raise UntraceableError(reason)
    return graphs


def _defaults(model: nn.Module) -> dict[str, Any]:
    """The arguments of forward that the caller may leave out."""
    parameters = inspect.signature(type(model).forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


class _Tracer(fx.Tracer):
    """Takes the decisions ``given`` at the first conditions, and then False."""

    def __init__(self, given: tuple[bool, ...]) -> None:
        super().__init__()
        self.given = given
        self.taken: list[bool] = []

    def to_bool(self, obj: fx.Proxy) -> bool:
        index = len(self.taken)
        self.taken.append(self.given[index] if index < len(self.given) else False)
        return self.taken[-1]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if has_weights(m):
            return True
        known = type(m).__module__.startswith(("torch.nn.", "bnnedge.layers.")) and not isinstance(m, nn.Sequential)
        return known and not any(has_weights(child) for child in m.modules())


def _walk(model: nn.Module, graph: fx.Graph) -> Flow:
    flow = Flow("the flow of data in a symbolic trace")
    values: dict[fx.Node, Value] = {}
    written: dict[str, Value] = {}  # constants that the network overwrites, each use of which is a node of its own
    for node in graph.nodes:
        inputs = [values[n] for n in node.all_input_nodes]
        if node.op == "placeholder":
            values[node] = Value(origins=frozenset({NETWORK_INPUT}))
        elif node.op == "output":
            flow.outputs = pass_on(inputs, Bounds()).origins
        elif node.op == "get_attr":
            values[node] = written.get(str(node.target)) or _attribute(model, str(node.target))
        elif node.op == "call_module" and has_weights(model.get_submodule(str(node.target))):
            values[node] = flow.call(str(node.target), inputs)
        else:
            values[node] = _operate(model, node, inputs, values, flow)
            if _is_in_place(model, node):
                target = node.all_input_nodes[0]
                values[target] = values[node]
                if target.op == "get_attr":
                    written[str(target.target)] = values[node]
    return flow


def _is_in_place(model: nn.Module, node: fx.Node) -> bool:
    """Whether an operation overwrites its first argument."""
    if not node.all_input_nodes or node.all_input_nodes[0] is not node.args[0]:
        return False
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    return (
        bool(node.kwargs.get("inplace", False))
        or canonical(name) == "setitem"
        or (name.endswith("_") and not name.endswith("__"))
    )


def _attribute(model: nn.Module, path: str) -> Value:
    owner, _, name = path.rpartition(".")
    found = getattr(model.get_submodule(owner), name)
    if not isinstance(found, torch.Tensor):
        return Value()
    return constant(found, path if isinstance(found, nn.Parameter) else None)


def _operate(model: nn.Module, node: fx.Node, inputs: list[Value], values: dict[fx.Node, Value], flow: Flow) -> Value:
    """The result of an activation, a pool, a sum or any other operation without a layer."""
    call, operation, label = _operation(model, node)
    if operation in SHAPE_OPERATIONS or (operation == "getattr" and node.args[1] in _FACTS):
        return Value(bounds_of(operation, call, (), {}))
    weights = [v.weight for v in inputs if v.weight]
    if operation in WEIGHT_OPERATIONS and weights and any(v.origins for v in inputs):
        flow.weights[weights[0]] = operation
        return flow.call(weights[0], inputs)
    args = fx.node.map_arg(node.args, lambda n: values[n].bounds)
    kwargs = dict(fx.node.map_arg(node.kwargs, lambda n: values[n].bounds))
    if operation == "upsample":
        kwargs["mode"] = getattr(call, "mode", None)
    return pass_on(inputs, bounds_of(operation, call, args, kwargs, label))


def _operation(model: nn.Module, node: fx.Node) -> tuple[Callable[..., Any], str, str]:
    """The function that a node calls, its canonical name, and what a message calls it."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return module, canonical(kind_of(module)), f"{kind_of(module)} {str(node.target)!r}"
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))

    def method(x: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, name)(*args, **kwargs)

    call = method if node.op == "call_method" else node.target
    assert callable(call)
    return call, canonical(name), name.strip("_")
