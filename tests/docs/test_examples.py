"""The programs in ``examples/`` run, and do what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bnnedge.kernels import plugins
from tests.conftest import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SMALLEST, LARGEST = {"train_own_module": 0.6, "own_data": 0.9, "run_exported": 0.0}, {"run_exported": 1e-4}
"""What ``main`` returns: shares of pictures that are right, and a difference that rounding explains. Chance is 0.1 for
the ten digits and 0.5 for the two kinds of stripes; the outputs of run_exported are of the order of 1."""


def test_every_example_is_listed() -> None:
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert {path.stem for path in EXAMPLES} == set(SMALLEST)
    for path in EXAMPLES:
        assert f"`{path.name}`" in text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (plugins.LITERT_DELEGATE, plugins.ONNXRUNTIME_OPERATORS):
        if path.stem == "run_exported" and (reason := plugins.unavailable(name)):
            pytest.skip(reason)
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, spec.name, module)
    spec.loader.exec_module(module)
    result = module.main(tmp_path)
    assert SMALLEST[path.stem] <= result <= LARGEST.get(path.stem, 1.0)
