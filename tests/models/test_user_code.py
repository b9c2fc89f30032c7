"""The user's own Python files: what they can import, what they cannot replace, and which line fails."""

from __future__ import annotations

import copy
import pickle
import queue
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bnnedge.errors import ConfigError
from bnnedge.models.create import create_model
from bnnedge.models.user_code import load_attribute

BLOCKS = """
from torch import nn

WIDTH = 8

def block(channels):
    return nn.Sequential(nn.Conv2d(channels, WIDTH, 3), nn.BatchNorm2d(WIDTH))
"""
NET = """
from torch import nn
{imports}

class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.body = nn.Sequential(blocks.block(in_channels), blocks.block(blocks.WIDTH))
        self.head = nn.Linear(blocks.WIDTH, num_classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
"""


def build(path: Path) -> nn.Module:
    return create_model(f"{path}:Net", num_classes=3, in_channels=1, image_size=8)


def write(folder: Path, imports: str, name: str = "net.py", width: int = 8) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "blocks.py").write_text(BLOCKS.replace("= 8", f"= {width}"))
    (folder / name).write_text(NET.format(imports=imports))
    return folder / name


@pytest.mark.parametrize(
    "imports", ["import blocks", "from . import blocks", "from .blocks import *; from . import blocks"]
)
def test_a_neighbour_can_be_imported(imports: str, tmp_path: Path) -> None:
    assert build(write(tmp_path / imports[:6].strip(), imports))(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_a_file_of_a_package_reaches_the_package_and_what_lies_above(tmp_path: Path) -> None:
    package = tmp_path / "nets"
    write(package, "from nets import blocks; from ..nets.blocks import WIDTH", "inner.py")
    (package / "deep").mkdir()
    (package / "inner.py").rename(package / "deep" / "inner.py")
    for folder in (package, package / "deep"):
        (folder / "__init__.py").write_text("")
    text = (package / "deep" / "inner.py").read_text().replace("..nets.blocks", "..blocks")
    (package / "deep" / "inner.py").write_text(text)
    assert build(package / "deep" / "inner.py")(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize("name", ["queue.py", "copy.py", "torch.py", "rich.py", "random.py", "with-dash and space.py"])
def test_a_file_may_be_called_like_a_module_and_replaces_none(name: str, tmp_path: Path) -> None:
    before = dict(sys.modules)
    model = build(write(tmp_path, "import blocks", name))
    assert sys.modules["queue"] is queue and sys.modules["copy"] is copy and sys.modules["torch"] is torch
    assert {k: v for k, v in before.items() if not k.startswith("blocks")}.items() <= sys.modules.items()
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is type(model)
    torch.export.export(again.eval(), (torch.zeros(2, 1, 8, 8),), strict=False)


def test_a_neighbour_called_like_a_module_is_not_found_by_libraries(tmp_path: Path) -> None:
    for name in ("fractions.py", "sched.py"):
        (tmp_path / name).write_text("raise RuntimeError('a library has imported the neighbour')")
    sys.modules.pop("sched", None)
    build(write(tmp_path, "import blocks"))
    import sched

    assert sched.scheduler


def test_two_folders_with_the_same_names_do_not_mix(tmp_path: Path) -> None:
    for imports in ("import blocks", "from . import blocks"):
        first = build(write(tmp_path / "first", imports, width=8))
        second = build(write(tmp_path / "second", imports, width=5))
        widths = [net.head.in_features for net in (first, second)]  # type: ignore[union-attr]
        assert widths == [8, 5]


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("def make(): return 1")
    assert load_attribute(f"{path}:make")() == 1
    path.write_text("def make(): return 22")
    assert load_attribute(f"{path}:make")() == 22


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nimport nowhere_to_be_found", "net.py:2: in <module>: ModuleNotFoundError"),
        ("x = 1\n\ndef broken(:", "net.py:3: SyntaxError"),
        ("import bad", "bad.py:1: in <module>: ZeroDivisionError"),
        ("def Net(num_classes):\n    raise KeyError('k')", "net.py:2: in Net: KeyError: 'k'"),
        ("import sys\ndef Net(num_classes):\n    sys.exit()", "net.py:3: in Net: it ended Python (SystemExit)"),
        ("def Net(num_classes):\n    return Net(num_classes)", "RecursionError"),
        ("def Net():\n    assert False", "net.py:2: in Net: AssertionError"),
    ],
)
def test_the_user_s_line_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("1 / 0")
    (tmp_path / "net.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        build(tmp_path / "net.py")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
