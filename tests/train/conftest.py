"""A network small enough for many runs in seconds, given as a user's own file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bnnedge.config import RunConfig

TINY = '''
import os
import time

from torch import nn

from bnnedge.layers.binary_layers import BinaryConv2d


class Tiny(nn.Module):
    """Dropout makes training depend on the global generator; a step can be slowed down so that a kill hits inside."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 5, 3, 2, 1)
        self.stem_bn = nn.BatchNorm2d(5)
        self.conv = BinaryConv2d(5, 33, 3, 2, 1)
        self.bn = nn.BatchNorm2d(33)
        self.drop = nn.Dropout(0.1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(33, num_classes)

    def forward(self, x):
        if self.training:
            time.sleep(float(os.environ.get("STEP_S", "0")))
        x = self.bn(self.conv(self.stem_bn(self.stem(x))))
        return self.classifier(self.drop(self.pool(x).flatten(1)))
'''


@pytest.fixture
def tiny_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """Settings of a run of about 0.1 s an epoch; keyword arguments override them."""
    (tmp_path / "tiny.py").write_text(TINY)

    def make(**values: Any) -> RunConfig:
        base = {
            "method": "ste",
            "model": f"{tmp_path / 'tiny.py'}:Tiny",
            "image_size": 8,
            "epochs": 3,
            "device": "cpu",
            "threads": 1,
        }
        return RunConfig(**{**base, **values})

    return make


@pytest.fixture(autouse=True)
def keep_thread_count() -> Any:
    """Runs set PyTorch's thread count; leave it as it was."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
