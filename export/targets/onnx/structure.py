"""Whether an ONNX model from outside has the structure of a network as bnnedge writes it.

Runtimes trust a file: they follow paths, loop, and calculate sizes with whatever numbers stand in it. Everything that
no file of ours has is refused here, before a runtime sees it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from bnnedge.errors import ExportError, printable
from bnnedge.export.targets.onnx import functions

MOST_BYTES = 2**31
"""Bytes of one tensor, which is as much as a file of this format can hold."""
_LARGEST = 2**20
"""The largest stride, window, padding or number of channels or groups."""
_SIZES = {
    **dict.fromkeys(("strides", "dilations", "kernel_shape", "pool_shape", "pool_strides"), (2, 1)),
    **dict.fromkeys(("pads", "pool_pads"), (4, 0)),
    "channels": (1, 1),
}
"""How many numbers a list attribute of our operators has, and the smallest of them."""


def graph_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """The inputs of the network: older files list constants among those of the graph."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [info for info in model.graph.input if info.name not in constants]


def refuse_external_data(model: ModelProto) -> None:
    """Raise ``ExportError`` for a constant that lies in another file, which could be any file of this machine."""
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise ExportError(
                f"{printable(tensor.name)}: the ONNX file names another file for its values; expected all in one file"
            )


def check_structure(model: ModelProto) -> None:
    """Raise ``ExportError`` unless ``model`` is a graph without loops from float32 tensors to float32 tensors."""
    graph = model.graph
    if not graph.node:
        raise ExportError("the ONNX file has no operators; export the network again")
    for side, infos in (("input", graph_inputs(model)), ("output", graph.output)):
        if not infos:
            raise ExportError(f"the ONNX file has no {side}; export the network again")
        for info in infos:
            _check_side(side, info)
    computed = {name for node in graph.node for name in node.output}
    for info in graph.output:
        if info.name not in computed:
            raise ExportError(f"output {printable(info.name)} of the ONNX file is not computed by any operator")
    if graph.sparse_initializer:
        raise ExportError("the ONNX file has sparse constants, which bnnedge does not write")
    for tensor in _tensors(model):
        _check_constant(tensor)
    for node in _nodes(model):
        _check_node(node)


def _check_side(side: str, info: ValueInfoProto) -> None:
    name = printable(info.name)
    kind = info.type.WhichOneof("value")
    tensor = info.type.tensor_type
    if kind != "tensor_type" or tensor.elem_type != TensorProto.FLOAT:
        raise ExportError(f"{side} {name} of the ONNX file: expected a float32 tensor, found another type")
    if not tensor.shape.dim:
        raise ExportError(f"{side} {name} of the ONNX file: expected a batch [N, ...], found a single number")
    sizes = [dim.dim_value for dim in tensor.shape.dim]
    if min(sizes) < 0 or 4 * math.prod(max(size, 1) for size in sizes) > MOST_BYTES:
        raise ExportError(f"{side} {name} of the ONNX file: expected at most {MOST_BYTES:,} bytes, found {sizes}")


def _check_constant(tensor: TensorProto) -> None:
    """The stored bytes must be those of the shape: a runtime would allocate what the shape says."""
    try:
        width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError as error:
        raise ExportError(
            f"{printable(tensor.name)}: the ONNX file has an unknown data type, {error}; export it again"
        ) from error
    size = math.prod(tensor.dims) * width
    if min(tensor.dims, default=0) < 0 or size > MOST_BYTES or (tensor.raw_data and len(tensor.raw_data) != size):
        raise ExportError(
            f"{printable(tensor.name)}: {len(tensor.raw_data):,} bytes do not fit the shape {list(tensor.dims)[:8]}; "
            "export the network again"
        )


def _check_node(node: NodeProto) -> None:
    name = printable(node.name or node.op_type)
    for attribute in node.attribute:
        if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            raise ExportError(
                f"{name}: {printable(node.op_type)} holds a graph of its own, which bnnedge does not write"
            )
        if node.domain != functions.DOMAIN or attribute.ref_attr_name:
            continue
        if attribute.name in _SIZES:
            count, least = _SIZES[attribute.name]
            values = list(attribute.ints)
            if len(values) != count or not all(least <= value <= _LARGEST for value in values):
                raise ExportError(
                    f"{name}: expected {count} numbers from {least} to {_LARGEST:,} for {attribute.name}, "
                    f"found {printable(str(helper.get_attribute_value(attribute)), most=60)}"
                )
        elif attribute.name == "group" and not 1 <= attribute.i <= _LARGEST:
            raise ExportError(f"{name}: expected a group from 1 to {_LARGEST:,}, found {attribute.i}")


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    """The nodes of the graph, of the functions, and of every graph inside of them."""
    yield from _with_nested(chain(model.graph.node, *(function.node for function in model.functions)))


def _with_nested(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _with_nested(graph.node)


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every constant: of the graph, in attributes, and in graphs inside of attributes."""
    graphs = [model.graph]
    for node in _nodes(model):
        for attribute in node.attribute:
            graphs += [attribute.g, *attribute.graphs]
            yield from ([attribute.t] if attribute.HasField("t") else [])
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (part for part in (sparse.values, sparse.indices) if part.data_type)
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
