"""The walk through a traced program: every operator goes to its handler, which appends nodes to the export graph.

Operators on constants alone (weights, buffers) are evaluated while tracing, so the graph holds only what depends on
the inputs.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn

from bnnedge.errors import ExportError
from bnnedge.export import graph as g
from bnnedge.export.trace.signature import named_inputs, output_names
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear

Handler = Callable[["Tracer", fx.Node, list[Any]], None]
HANDLERS: dict[str, Handler] = {}
"""ATen operators, and those of the deploy form, by name."""


def handles(*operators: str) -> Callable[[Handler], Handler]:
    """Register a handler, ``handler(tracer, node, arguments)``. Raises ``ValueError`` for an operator that has one."""

    def register(handler: Handler) -> Handler:
        for operator in operators:
            if operator in HANDLERS:
                raise ValueError(f"two handlers are registered for {operator}")
            HANDLERS[operator] = handler
        return handler

    return register


def trace(deployed: nn.Module, example_inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor]) -> g.Graph:
    """The export graph of a model in its deploy form (``bnnedge.layers.deploy.deploy``).

    Args:
        example_inputs: float tensors [N, C, H, W] or [N, C] as for ``named_inputs``; they fix all sizes but N.

    Raises ``ExportError`` naming the layer and the operator that has no counterpart in the graph, or saying why
    PyTorch itself cannot trace the model.
    """
    for path, module in deployed.named_modules():
        if isinstance(module, BinaryConv2d | BinaryLinear):
            raise ExportError(f"{path or 'model'}: the layer is not in its deploy form; trace deploy(model)")
    inputs = {name: tensor.cpu().float() for name, tensor in named_inputs(deployed, example_inputs).items()}
    enabled = logging.root.manager.disable
    logging.disable()  # torch.export logs and prints pages about what the error below says in a line
    try:
        with redirect_stderr(io.StringIO()):
            program = torch.export.export(deployed, tuple(inputs.values()), strict=False)
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        raise ExportError(f"torch.export cannot trace {type(deployed).__name__}: {reason.splitlines()[0]}") from error
    finally:
        logging.disable(enabled)
    return Tracer(program, tuple(inputs)).run()


class Tracer:
    """Walks the traced program; ``values`` holds a constant or the name of a graph tensor for every fx node."""

    def __init__(self, program: torch.export.ExportedProgram, inputs: tuple[str, ...]) -> None:
        self.program = program
        self.inputs = inputs
        self.outputs = output_names(program.call_spec.out_spec)
        self.values: dict[fx.Node, Any] = {}
        self.held: dict[fx.Node, str] = {}
        """What the model calls the parameter or buffer behind a node."""
        self.nodes: list[g.Node] = []
        self.tensors: dict[str, g.TensorSpec] = {}
        self.names: set[str] = set()
        self.calls: list[str] = []
        for name in set(self.inputs) & set(self.outputs):
            raise ExportError(f"an input and an output of the model are both called {name!r}; rename one")

    def run(self) -> g.Graph:
        """The graph of the whole program."""
        signature = self.program.graph_signature
        constants = {**self.program.state_dict, **self.program.constants}
        held = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        inputs = iter(self.inputs)
        outputs: tuple[str, ...] = ()
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                if node.name in held:
                    self.values[node] = constants[held[node.name]].detach()
                    self.held[node] = held[node.name]
                else:
                    self.bind(node, next(inputs), "float32")
            elif node.op == "call_function":
                self.call(node)
            elif node.op == "output":
                outputs = self.results(node.args[0])
        return g.Graph(self.inputs, outputs, self.nodes, self.tensors, calls=tuple(self.calls)).validate()

    def call(self, node: fx.Node) -> None:
        """Evaluate an operator on constants, or hand it to its handler."""
        sources = [self.values[n] for n in node.all_input_nodes]
        if sources and all(isinstance(s, Tensor) for s in sources):
            known = fx.node.map_arg((node.args, node.kwargs), lambda n: self.values[n])
            self.values[node] = node.target(*known[0], **known[1])  # type: ignore
            return
        self._check_finite(node)
        args = [fx.node.map_arg(a, lambda n: self.values[n]) for a in self._positional(node)]
        handler = HANDLERS.get(str(node.target))
        if handler is None:
            raise ExportError(
                f"{self.path(node) or 'model'}: operator {node.target} has no counterpart in the export graph"
            )
        handler(self, node, args)

    def _check_finite(self, node: fx.Node) -> None:
        """Raise ``ExportError`` for a constant that is NaN or infinite, which a sign behind it would hide."""
        for source in node.all_input_nodes:
            value = self.values[source]
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                odd = int((~torch.isfinite(value)).sum())
                what = self.held.get(source) or f"a constant of {node.target}"
                raise ExportError(
                    f"{self.path(node) or 'model'}: {what} is NaN or infinite in {odd} of {value.numel()} values; "
                    "train again, from a checkpoint in which it is finite"
                )

    def results(self, nodes: Sequence[fx.Node]) -> tuple[str, ...]:
        """The tensors that the model returns, under the names of its outputs."""
        outputs: list[str] = []
        for node, name in zip(nodes, self.outputs, strict=True):
            tensor = self.values.get(node)
            if not isinstance(tensor, str):
                raise ExportError(f"output {name or node} of the model does not depend on its inputs")
            outputs.append(self._called(tensor, name, outputs) if name else tensor)
        return tuple(outputs)

    def _called(self, tensor: str, name: str, outputs: list[str]) -> str:
        """``tensor`` under another name: renamed, or copied if it is an input or an output already."""
        if tensor in self.inputs or tensor in outputs:
            spec = self.tensors[tensor]
            self._append(g.Reshape(name=self.unique(name), inputs=(tensor,), output=name, shape=spec.shape[1:]), spec)
            return name
        for node in self.nodes:
            node.inputs = tuple(name if read == tensor else read for read in node.inputs)
            node.output = name if node.output == tensor else node.output
        self.tensors[name] = self.tensors.pop(tensor)
        self.values = {node: name if value is tensor else value for node, value in self.values.items()}
        return name

    @staticmethod
    def _positional(node: fx.Node) -> list[Any]:
        """All arguments in schema order, defaults filled in."""
        schema = node.target._schema  # type: ignore[union-attr]
        args = list(node.args)
        for argument in schema.arguments[len(args) :]:
            args.append(node.kwargs.get(argument.name, argument.default_value))
        return args

    @staticmethod
    def path(node: fx.Node) -> str:
        """Path of the module that the operator was called in."""
        stack = node.meta.get("nn_module_stack") or {}
        return list(stack.values())[-1][0] if stack else ""

    def bind(self, node: fx.Node, name: str, dtype: g.Dtype) -> None:
        """Declare ``name`` as the tensor that ``node`` computes."""
        self.tensors[name] = g.TensorSpec(tuple(int(d) for d in node.meta["val"].shape), dtype)
        self.values[node] = name

    def unique(self, name: str) -> str:
        """``name``, or with a number behind it if another node has that name."""
        candidate, count = name, 1
        while candidate in self.names:
            count += 1
            candidate = f"{name}#{count}"
        self.names.add(candidate)
        return candidate

    def emit(
        self, node: fx.Node, kind: type[g.Node], inputs: list[str], /, *, is_layer: bool = False, **fields: Any
    ) -> None:
        """Append a graph node for ``node``. A layer carries its module's path, any other node path/operator."""
        path = self.path(node)
        operator = str(node.target).split(".")[1]
        name = self.unique(path if is_layer and path else f"{path}/{operator}".lstrip("/"))
        made = kind(name=name, inputs=tuple(inputs), output=self._tensor_of(name), **fields)
        self.bind(node, made.output, made.writes(tuple(self.tensors[tensor].dtype for tensor in inputs))[0])
        self.nodes.append(made)

    def insert(self, kind: type[g.Node], name: str, source: str, spec: g.TensorSpec, **fields: Any) -> str:
        """Append a graph node that has no fx node of its own, and return the tensor that it writes."""
        name = self.unique(name)
        return self._append(kind(name=name, inputs=(source,), output=self._tensor_of(name), **fields), spec)

    def _append(self, node: g.Node, spec: g.TensorSpec) -> str:
        self.tensors[node.output] = spec
        self.nodes.append(node)
        return node.output

    def _tensor_of(self, node: str) -> str:
        """What the output of a node is called: as the node, unless the model's inputs or outputs have that name."""
        return f"{node}/value" if node in self.inputs or node in self.outputs else node

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a graph tensor."""
        return self.tensors[tensor].shape

    def alias(self, node: fx.Node, tensor: str) -> None:
        """Let the value of ``node`` be ``tensor``."""
        self.values[node] = tensor

    def fail(self, node: fx.Node, why: str) -> ExportError:
        """The error for an operator that a handler knows but cannot express."""
        return ExportError(f"{self.path(node) or 'model'}: {node.target} cannot be exported: {why}")


def array(t: Tensor) -> g.FloatArray:
    """A constant as float64."""
    values: g.FloatArray = t.double().numpy()
    return values


def pair(value: Any) -> g.Pair:
    """One number for rows and columns, or one for each."""
    values = [value] if isinstance(value, int) else list(value)
    return (int(values[0]), int(values[-1]))
