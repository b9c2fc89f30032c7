"""Describe a data set of your own, train on it, and write a file that knows its preprocessing and its classes.

    python examples/own_data.py [FOLDER]

The same function ``load_stripes``, in a file ``bnnedge/data/stripes.py`` and with a line in the table of
``bnnedge/data/__init__.py``, would make ``bnnedge train --dataset stripes`` work.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import bnnedge
from bnnedge.data.augmentation import Flip
from bnnedge.data.dataset import prepare
from bnnedge.data.info import DatasetInfo
from bnnedge.data.samples import MemorySamples
from bnnedge.data.source import Source, own_validation
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.targets.target import read_file
from bnnedge.methods.method import Method

EPOCHS = 3


def load_stripes(data_root: Path | None = None) -> Source:
    """Noisy grey images of 12 x 12 bytes with stripes that run across (class 0) or down (class 1)."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 400)
    across = np.where(np.arange(12) % 4 < 2, 60, 200)[None, :, None].repeat(12, 2)
    stripes = np.where(labels[:, None, None] == 0, across, across.transpose(0, 2, 1))
    noisy = np.clip(stripes + generator.normal(0, 60, stripes.shape), 0, 255).astype(np.uint8)
    images, targets = torch.from_numpy(noisy[:, None]), torch.from_numpy(labels)
    return Source(
        name="stripes",
        train=MemorySamples(images[:300], targets[:300]),
        test=MemorySamples(images[300:], targets[300:]),
        size=(12, 12),
        channels=1,
        classes=("across", "down"),
        validation=own_validation(targets[:300].numpy(), 0.1, seed=0),
        augmentation=Flip(),
    )


def main(folder: Path) -> float:
    """Write ``folder/stripes.onnx``, and return the share of test images for which the file is right."""
    torch.manual_seed(0)
    dataset = prepare(load_stripes())
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.Hardtanh(),
        nn.Flatten(),
        nn.Linear(32 * 6 * 6, dataset.info.outputs),
    )
    model = bnnedge.binarize(network, method="ste")
    method = model.training_method
    assert isinstance(method, Method)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(EPOCHS):
        method.start_epoch(model, epoch, EPOCHS)
        model.train()
        for images, targets in dataset.batches("train", 32, generator=generator, augment=True):
            optimizer.zero_grad()
            dataset.task.loss(model(images), targets).backward()
            method.before_step(model)
            optimizer.step()
            method.after_step(model)

    path = folder / "stripes.onnx"
    example = torch.zeros(1, *dataset.info.preprocessing.input_shape)
    bnnedge.export(model.eval(), example, path, target="onnx", metadata=dataset.info.to_metadata())

    # From here on only the file is used: it knows how a stored image becomes its input, and its classes.
    file = read_file(path)
    info = DatasetInfo.from_metadata(file.metadata)
    assert info is not None
    session = RUNTIMES.load("onnxruntime").open(file.data)
    pixels, labels = dataset.raw_arrays("test")
    outputs = session.run(info.preprocessing.normalize(pixels))
    right = float((outputs.argmax(1) == labels).mean())
    print(f"{path}: classes {', '.join(info.classes)}; test top-1 {right:.1%}")
    return right


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
