"""Adds the generated pages to the documentation, and refuses a site that would load anything from the network.

MkDocs calls ``on_files`` before it reads the pages and ``on_post_build`` when the site is written.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from docs.generate import api, command_line, measured, outside, registries

ROOT = Path(__file__).parents[2]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Generate every page that follows from the code."""
    pages = {
        **registries.pages(),
        **api.pages(ROOT / "bnnedge"),
        "reference/cli.md": command_line.page(),
        "reference/measured.md": measured.page(ROOT / "benchmarks" / "results"),
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """Raise ``PluginError`` that lists what the built site would load from elsewhere."""
    found = outside.loaded(Path(config.site_dir))
    if found:
        raise PluginError("the site would load from the network: " + "; ".join(found))
