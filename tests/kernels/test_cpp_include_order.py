"""The files of ``kernels/cpp`` are layers: each includes its own layer and lower ones, and there are no cycles."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from posixpath import normpath

import pytest

CPP = Path(__file__).resolve().parents[2] / "kernels" / "cpp"

LAYERS = (
    ("contract", ("include/bnnedge/*.h", "border.*", "cpu_features.*", "tail.*", "thread_pool.*", "workspace.h")),
    ("kernels", ("portable/*", "reference/*", "x86/*", "neon/*")),
    ("selection", ("bconv2d.cc", "pack.cc", "select.cc")),
    ("layers", ("conv*", "stem*")),
    ("interfaces", ("c_api.cc", "include/bnnedge/c_api.h", "onnxruntime/*", "tflite/*")),
    ("tests", ("tests/*",)),
)
"""Lowest first. The last layer with a pattern for a file is the file's."""
INTERFACES = ("c_api.cc", "onnxruntime", "tflite")
"""None of them includes another one."""
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def rank(path: str) -> int:
    """The position in ``LAYERS``, -1 for a file that no pattern is for."""
    return max((i for i, (_, ps) in enumerate(LAYERS) if any(fnmatchcase(path, p) for p in ps)), default=-1)


def included(path: str, files: Mapping[str, str]) -> dict[str, str]:
    """File -> what ``path`` calls it, for all files of this project that it includes."""
    found = {}
    for name in INCLUDE.findall(files[path]):
        beside = normpath(str(PurePosixPath(path).parent / name))
        found[beside if beside in files else f"include/{name}"] = name
    return found


def are_interfaces_apart(path: str, target: str) -> bool:
    """Whether the files belong to two different ``INTERFACES``."""
    own, other = path.split("/")[0], target.split("/")[0]
    return own in INTERFACES and other in INTERFACES and own != other


def faults(files: Mapping[str, str]) -> list[str]:
    """One line for each include that does not exist or goes upwards, and for a cycle; ``files`` is path -> text."""
    lines = []
    for path in files:
        if rank(path) < 0:
            lines.append(f"{path} is in no layer")
        for target, name in included(path, files).items():
            if target not in files:
                lines.append(f"{path} includes {name}, which does not exist")
            elif rank(target) > rank(path):
                lines.append(f"{path} ({LAYERS[rank(path)][0]}) includes {target} ({LAYERS[rank(target)][0]})")
            elif are_interfaces_apart(path, target):
                lines.append(f"{path} includes {target} of another interface")
    try:
        TopologicalSorter({path: set(included(path, files)) for path in files}).prepare()
    except CycleError as error:
        lines.append(" includes ".join(reversed(error.args[1])))
    return lines


def test_includes_go_downwards() -> None:
    files = {
        path.relative_to(CPP).as_posix(): path.read_text() for path in CPP.rglob("*") if path.suffix in {".h", ".cc"}
    }
    assert len(files) > 80
    assert faults(files) == []


HEALTHY = {
    "include/bnnedge/conv.h": "",
    "portable/tail.h": '#include "bnnedge/conv.h"\n',
    "x86/conv_avx2.cc": '#include "../portable/tail.h"\n#include <cstdint>\n',
    "conv.cc": '#include "bnnedge/conv.h"\n',
    "tflite/op.h": '#include "bnnedge/conv.h"\n',
    "tflite/op.cc": '#include "op.h"\n',
    "tests/conv_test.cc": '#include "../tflite/op.h"\n',
}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        (
            {"portable/tail.h": '#include "../conv_plan.h"\n', "conv_plan.h": ""},
            "(kernels) includes conv_plan.h (layers)",
        ),
        ({"conv.cc": '  #  include "tflite/op.h"\n'}, "conv.cc (layers) includes tflite/op.h (interfaces)"),
        ({"c_api.cc": '#include "tflite/op.h"\n'}, "c_api.cc includes tflite/op.h of another interface"),
        ({"onnxruntime/layer.cc": '#include "../tflite/op.h"\n'}, "includes tflite/op.h of another interface"),
        (
            {"include/bnnedge/conv.h": '#include "bnnedge/c_api.h"\n', "include/bnnedge/c_api.h": ""},
            "c_api.h (interfaces)",
        ),
        ({"tail.h": '#include "border.h"\n', "border.h": '#include "tail.h"\n'}, "tail.h includes border.h"),
        ({"conv.cc": '#include "bnnedge/gone.h"\n'}, "conv.cc includes bnnedge/gone.h, which does not exist"),
        ({"loose.h": ""}, "loose.h is in no layer"),
    ],
)
def test_a_fault_is_found(changes: dict[str, str], fault: str | None) -> None:
    found = faults(HEALTHY | changes)
    assert found == [] if fault is None else any(fault in line for line in found), found
