"""Whether two run folders hold the same training, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from bnnedge.train.checkpoint import read_checkpoint


def assert_same_state(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same_state(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def assert_same_run(a: Path, b: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        x, y = (vars(read_checkpoint(run / name)) for run in (a, b))
        assert_same_state(x, y, name)
    rows = [[json.loads(s) for s in (run / "metrics.jsonl").read_text().splitlines()] for run in (a, b)]
    for row in (*rows[0], *rows[1]):
        del row["epoch_s"], row["images_per_s"]
    assert rows[0] == rows[1]
    assert (a / "result.json").read_text() == (b / "result.json").read_text()
