"""The float32 network of the same topology, which a binary network is compared with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from bnnedge.export.graph import Binarize, BinaryConv2d, Conv2d, Graph, TensorSpec
from bnnedge.export.passes import optimize
from bnnedge.export.targets import TARGETS
from bnnedge.export.trace import trace
from bnnedge.layers.deploy import deploy
from bnnedge.methods import METHODS
from bnnedge.models.create import create_model


def float_twin(graph: Graph) -> Graph:
    """``graph`` (as traced, before the passes) with float weights and without signs; everything else stays."""
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


def float_twin_files(metadata: dict[str, Any]) -> list[tuple[str, bytes]]:
    """(file name, bytes) of the float32 twin of the network that ``metadata`` describes, in every target's format.

    The twin is built from the model's name with fresh weights: it is there for its speed and size, not its accuracy.
    Raises as ``create_model`` does if the model is not to be found any more.
    """
    channels, height, _ = metadata["input_shape"]
    model = create_model(
        metadata["model"], num_classes=metadata["num_classes"], in_channels=channels, image_size=height
    )
    plain = METHODS.load("ste")
    plain(plain.Options()).attach(model)
    example = torch.zeros(2, *metadata["input_shape"])
    graph = optimize(float_twin(trace(deploy(model), example)))
    graph.metadata = {**metadata, "method": "float32 twin", "dataset": None}
    targets = [TARGETS.load(name)() for name in TARGETS]
    return [(f"float32_twin{target.suffix}", target.write(graph)) for target in targets]
