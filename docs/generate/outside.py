"""What a built site loads from other places than itself. Links that a reader may follow are not loaded."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

_LOADS = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "img": ("src", "srcset"),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
}
_FOLLOWED = {"canonical", "next", "prev", "edit"}
"""Values of ``rel`` of a ``<link>`` that browsers do not load."""
_OUTSIDE = re.compile(r"^(?:https?:)?//", re.IGNORECASE)
_IN_STYLE = re.compile(r"""(?:url\(\s*['"]?|@import\s+['"])((?:https?:)?//[^'")\s]+)""", re.IGNORECASE)


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "link" and values.get("rel") in _FOLLOWED:
            return
        for name in _LOADS.get(tag, ()):
            if _OUTSIDE.match(values.get(name, "").strip()):
                self.found.append(values[name])
        self.found += _IN_STYLE.findall(values.get("style", ""))


def loaded(site: Path) -> list[str]:
    """``PAGE: URL`` for everything outside that HTML pages and style sheets in the folder ``site`` load."""
    found = []
    for path in sorted(site.rglob("*")):
        if path.suffix == ".html":
            parser = _Loads()
            parser.feed(path.read_text(encoding="utf-8"))
            urls = parser.found
        elif path.suffix == ".css":
            urls = _IN_STYLE.findall(path.read_text(encoding="utf-8"))
        else:
            continue
        found += [f"{path.relative_to(site)}: {url}" for url in urls]
    return found
