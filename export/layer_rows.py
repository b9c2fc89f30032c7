"""The layers of a network in PyTorch or in the export graph: shapes, weights by bit width, multiply-accumulates."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from bnnedge.export.graph import Graph
from bnnedge.export.passes import optimize
from bnnedge.export.targets.target import LayerRow
from bnnedge.export.trace import trace
from bnnedge.layers.deploy import deploy
from bnnedge.models import MODELS
from bnnedge.models.create import check_model_name, create_model
from bnnedge.models.network import Network
from bnnedge.models.user_code import is_user_code
from bnnedge.train.load import load_run


def graph_rows(graph: Graph) -> list[LayerRow]:
    """One row per node with weights. Bytes are what the values need: 1 bit, 1 byte or 4 bytes each."""
    rows = []
    for node in graph.nodes:
        weights = node.weights()
        if not weights:
            continue
        shape = graph.tensors[node.output].shape
        sizes = {bits: sum(each.values.size for each in weights if each.bits == bits) for bits in (1, 8, 32)}
        macs = {weights[0].bits: node.macs(graph.shapes(node), shape)}
        rows.append(
            LayerRow(
                name=node.name,
                kind=node.label,
                input_shape=graph.tensors[node.inputs[0]].shape[1:],
                output_shape=shape[1:],
                binary_weights=sizes[1],
                float_params=sizes[32],
                weight_bytes=math.ceil(sizes[1] / 8) + sizes[8] + 4 * sizes[32],
                binary_macs=macs.get(1, 0),
                float_macs=macs.get(32, 0),
                reason=node.reason,
                int8_weights=sizes[8],
                int8_macs=macs.get(8, 0),
            )
        )
    return rows


def network_rows(
    source: str,
    *,
    num_classes: int | None,
    in_channels: int | None,
    image_size: int | tuple[int, ...] | None,
    trust_code: bool,
) -> list[LayerRow]:
    """The rows of a run folder, a checkpoint or a model by name, as ``summarize`` describes them."""
    path = Path(source)
    if path.suffix != ".py" and (path.exists() or ("/" in source and not is_user_code(source))):
        loaded = load_run(path, trust_code=trust_code)
        info = loaded.dataset
        return _model_rows(loaded.model, info.preprocessing.input_shape)
    check_model_name(source)
    usual = (10, 3, 32, 32)
    if not is_user_code(source):
        record: Network = MODELS.load(source)
        usual = (record.classes, record.channels, record.height, record.width)
    height, width = usual[2:]
    if image_size is not None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[-1])
    channels = in_channels or usual[1]
    model = create_model(source, num_classes=num_classes or usual[0], in_channels=channels, image_size=(height, width))
    return _model_rows(model, (channels, height, width))


def _model_rows(model: nn.Module, shape: tuple[int, ...]) -> list[LayerRow]:
    return graph_rows(optimize(trace(deploy(model), torch.zeros(2, *shape))))
