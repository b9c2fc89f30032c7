"""The float32 network of the same topology, which a binary network is compared with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from bnnedge.errors import BenchmarkError
from bnnedge.export.description import describe_metadata
from bnnedge.export.graph import Binarize, BinaryConv2d, Conv2d, Graph, TensorSpec
from bnnedge.export.passes import optimize
from bnnedge.export.targets import TARGETS
from bnnedge.export.trace import trace
from bnnedge.layers.deploy import deploy
from bnnedge.methods import METHODS
from bnnedge.models.create import create_model
from bnnedge.models.user_code import check_consent


def float_twin(graph: Graph) -> Graph:
    """``graph`` (as traced, before the passes) with float weights and without binarization; everything else stays."""
    renamed: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(renamed.get(t, t) for t in node.inputs))
        if isinstance(node, Binarize):
            renamed[node.output] = node.inputs[0]
            continue
        if isinstance(node, BinaryConv2d):
            shared = {
                f: getattr(node, f) for f in ("name", "inputs", "output", "stride", "padding", "dilation", "groups")
            }
            weight = node.weight * node.multiplier[:, None, None, None]
            node = Conv2d(**shared, weight=weight, bias=node.bias, reason="float twin")
        nodes.append(node)
    tensors = {name: TensorSpec(spec.shape) for name, spec in graph.tensors.items()}
    return replace(graph, nodes=nodes, tensors=tensors)


def float_twin_files(
    metadata: dict[str, Any], label: str = "the file", *, trust_code: bool = False
) -> list[tuple[str, bytes]]:
    """(file name, bytes) of the float32 twin of the network that ``metadata`` describes, in every target's format.

    The twin is built from the model's name with fresh weights: it is there for its speed and size, not its scores.
    Raises ``BenchmarkError`` naming the file ``label`` if its metadata does not say enough, as ``create_model`` does if
    the model is not to be found any more, and as ``check_consent`` does for a model from a Python file.
    """
    described = describe_metadata(metadata, label)
    name = metadata.get("model")
    outputs = metadata.get("num_classes") if described is None else described.info.outputs
    if not isinstance(name, str) or not isinstance(outputs, int):
        raise BenchmarkError(f"{label}: a float twin needs the model and the number of outputs in the file's metadata")
    channels, height, width = metadata["input_shape"]
    check_consent(name, label, trust_code=trust_code)
    model = create_model(name, num_classes=outputs, in_channels=channels, image_size=(height, width))
    plain = METHODS.load("ste")
    plain(plain.Options()).attach(model)
    example = torch.zeros(2, *metadata["input_shape"])
    graph = optimize(float_twin(trace(deploy(model), example)))
    graph.metadata = {**metadata, "method": "float32 twin"}
    targets = [TARGETS.load(name)() for name in TARGETS]
    return [(f"float32_twin{target.suffix}", target.write(graph)) for target in targets]
