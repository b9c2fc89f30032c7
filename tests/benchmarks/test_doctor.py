from __future__ import annotations

import pytest

from bnnedge.benchmarks.doctor import doctor
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.kernels import native


def test_everything_is_accounted_for() -> None:
    found = dict(doctor())
    assert {f"runtime {name}" for name in RUNTIMES} <= set(found)
    assert all(found.values())
    assert "not installed" in found["package optuna"] or found["package optuna"][0].isdigit()


@pytest.mark.skipif(not native.available(), reason="native kernels were not built")
def test_the_chosen_kernel_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    names = native.kernel_names()
    monkeypatch.delenv("BNNEDGE_KERNEL", raising=False)
    assert dict(doctor())["kernels"].startswith(f"{names[0]}; also there: {names[1]}")
    monkeypatch.setenv("BNNEDGE_KERNEL", "reference")
    assert dict(doctor())["kernels"].startswith("reference (BNNEDGE_KERNEL); also there: ")
    monkeypatch.setenv("BNNEDGE_KERNEL", "warp")
    assert "BNNEDGE_KERNEL=warp does not run here" in dict(doctor())["kernels"]
