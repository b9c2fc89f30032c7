from __future__ import annotations

import pytest

from bnnedge.benchmarks.doctor import doctor
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.kernels import native


def test_everything_is_accounted_for() -> None:
    found = dict(doctor())
    assert {f"runtime {name}" for name in RUNTIMES} <= set(found)
    assert all(found.values())
    assert "not installed" in found["package tensorflow"] or found["package tensorflow"][0].isdigit()


@pytest.mark.skipif(not native.available(), reason="native kernels were not built")
def test_the_chosen_kernels_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    names = native.kernel_names()
    monkeypatch.delenv("BNNEDGE_KERNEL", raising=False)
    found = dict(doctor())
    assert found["kernels"].startswith(f"{names[0]}; also there: {names[1]}")
    assert found["kernel of int8 stems"] == native.stem_kernel_name(names[0])
    monkeypatch.setenv("BNNEDGE_KERNEL", "reference")
    found = dict(doctor())
    assert found["kernels"].startswith("reference (BNNEDGE_KERNEL); also there: ")
    assert found["kernel of int8 stems"] == "reference (BNNEDGE_KERNEL)"
    monkeypatch.setenv("BNNEDGE_KERNEL", "warp")
    found = dict(doctor())
    assert "BNNEDGE_KERNEL=warp does not run here" in found["kernels"]
    assert "kernel of int8 stems" not in found
