"""The generated pages hold every entry, the navigation names every page, and nothing is loaded from the network."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from bnnedge.benchmarks.devices import DEVICES
from bnnedge.benchmarks.rows import read_rows
from bnnedge.config import RunConfig
from bnnedge.data import DATASETS
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.targets import TARGETS
from bnnedge.methods import METHODS
from bnnedge.models import MODELS
from bnnedge.registry import Registry
from docs.generate import api, command_line, measured, outside, registries
from tests.conftest import ROOT
from tests.test_import_order import ORDER


@pytest.mark.parametrize(
    ("page", "entries"),
    [
        ("methods", [METHODS]),
        ("networks", [MODELS]),
        ("datasets", [DATASETS]),
        ("targets", [TARGETS, RUNTIMES, DEVICES]),
    ],
)
def test_reference_page_has_every_entry(page: str, entries: list[Registry]) -> None:
    text = registries.pages()[f"reference/{page}.md"]
    headings = re.findall(r"^##+ (\S+)$", text, flags=re.MULTILINE)
    expected = [name for registry in entries for name in registry]
    assert [heading for heading in headings if heading in expected] == expected


def test_every_method_shows_its_paper_and_options() -> None:
    text = registries.methods()
    for name in METHODS:
        method = METHODS.load(name)
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert method.paper in section
        for field in dataclasses.fields(method.Options):
            assert f"| `--{field.name.replace('_', '-')}` |" in section


def test_command_line_page_has_every_setting() -> None:
    text = command_line.page()
    for field in dataclasses.fields(RunConfig):
        if field.name != "method_options":
            assert f"--{field.name.replace('_', '-')}" in text


def test_measured_page_has_every_row() -> None:
    folder = ROOT / "benchmarks" / "results"
    rows = sum(len(path.read_text().splitlines()) for path in folder.glob("networks_*.jsonl"))
    assert rows > 0
    assert len(re.findall(r"^\| `", measured.page(folder), flags=re.MULTILINE)) == rows


def test_speeds_of_the_readme_are_those_of_rows() -> None:
    """Every median of the README's table is that of a row of that day, at 224 x 224 and one thread."""
    medians: dict[str, set[str]] = {}
    for path in (ROOT / "benchmarks" / "results").glob("networks_*.jsonl"):
        for row in read_rows(path):
            if row.threads == 1 and row.metadata["input_shape"] == [3, 224, 224]:
                medians.setdefault(row.started_at[:10], set()).add(f"{row.p50_ms:.2f}")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| .*, (\d{4}-\d\d-\d\d) \|(.*)\|$", readme, flags=re.MULTILINE)
    assert len(lines) == 2
    for date, numbers in lines:
        assert {number.strip() for number in numbers.split("|")} <= medians[date]


def test_api_pages_are_those_of_the_packages() -> None:
    pages = api.pages(ROOT / "bnnedge")
    packages = {path.parent.name for path in (ROOT / "bnnedge").glob("*/__init__.py")}
    assert {Path(page).stem for page in pages} == {*packages, api.BASE} - {"cli"}
    assert "::: bnnedge.methods.rbnn\n" in pages["api/methods.md"]
    assert all(text.count(":::") > 0 for text in pages.values())


def test_import_order_is_the_one_that_is_tested() -> None:
    page = (ROOT / "docs" / "internals" / "import-order.md").read_text(encoding="utf-8")
    listed = [set(re.findall(r"`(\w+)`", line)) for line in re.findall(r"^\d+\. (.*)$", page, flags=re.MULTILINE)]
    assert listed == [group for group in ORDER if group != {"__main__"}]


def test_navigation_names_every_page() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = set(re.findall(r"[\w/-]+\.md", str(settings["nav"])))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    generated = {*registries.pages(), *api.pages(ROOT / "bnnedge"), "reference/cli.md", "reference/measured.md"}
    assert named == written | generated


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.html", '<img src="https://example.org/x.png">'),
        ("a.html", '<script src="//example.org/x.js"></script>'),
        ("a.html", '<link rel="stylesheet" href="http://example.org/x.css">'),
        ("a.html", '<p style="background: url(https://example.org/x.png)">'),
        ("a.css", "@import 'https://example.org/x.css';"),
        ("a.css", "p { background: url(https://example.org/x.png) }"),
    ],
)
def test_what_is_loaded_from_elsewhere_is_found(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    (found,) = outside.loaded(tmp_path)
    assert "example.org" in found


def test_links_and_own_files_are_not_loaded_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="https://example.org">x</a><img src="x.png"><link rel="canonical" href="https://example.org/a.html">'
    )
    assert outside.loaded(tmp_path) == []
