"""Train your own nn.Module as a binarized network in a loop of your own, and export it.

python examples/train_own_module.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import bnnedge
from bnnedge.data.dataset import load_dataset
from bnnedge.methods.method import Method

EPOCHS = 4


def network() -> nn.Module:
    """An ordinary network; the two convolutions in the middle become binary."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.Hardtanh(),
        nn.Conv2d(64, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.Hardtanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def main(folder: Path) -> float:
    """Train on handwritten digits, write ``folder/own.onnx``, and return the share of test images that are right."""
    torch.manual_seed(0)
    digits = load_dataset("digits", image_size=(8, 8))
    model = bnnedge.binarize(network(), method="ste")
    method = model.training_method
    assert isinstance(method, Method)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)

    for epoch in range(EPOCHS):
        method.start_epoch(model, epoch, EPOCHS)
        model.train()
        for images, labels in digits.batches("train", 64, generator=generator, augment=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            method.before_step(model)
            optimizer.step()
            method.after_step(model)
        print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.3f}")

    model.eval()
    images, labels = digits.samples("test", torch.arange(digits.size("test")))
    with torch.no_grad():
        right = float((model(images).argmax(1) == labels).float().mean())
    print(f"test top-1: {right:.1%}")

    report = bnnedge.export(model, images[:1], folder / "own.onnx", target="onnx")
    print(report.verification)
    return right


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
