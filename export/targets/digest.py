"""The digest of an exported file, by which a flipped bit is noticed.

It is the SHA-256 of the whole file with 64 zeros in the place of the digest itself, as 64 hexadecimal digits. It stands
in the metadata as ``"digest": "<64 digits>"``, so it covers every byte of the file, and equal files have equal digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from bnnedge.errors import ExportError

DIGEST_KEY = "digest"
"""The entry of the metadata that holds the digest."""
BLANK = "0" * 64
"""What stands in the place of the digest while it is calculated."""


def with_blank(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``metadata`` with a place for the digest, which ``stamp`` fills in once the file is complete."""
    return {**metadata, DIGEST_KEY: BLANK}


def stamp(data: bytes) -> bytes:
    """Return the file ``data``, whose metadata is of ``with_blank``, with its digest.

    Raises ``ExportError`` if the metadata of the user holds such a blank digest too.
    """
    if data.count(_entry(BLANK)) != 1:
        raise ExportError(f"the metadata must not hold an entry {DIGEST_KEY!r} of zeros; leave it out")
    return data.replace(_entry(BLANK), _entry(hashlib.sha256(data).hexdigest()))


def check_digest(data: bytes, metadata: Mapping[str, Any]) -> None:
    """Raise ``ExportError`` if the file ``data`` has a digest and is not what the digest was calculated from.

    Files of older versions and of other programs have none, and pass.
    """
    if DIGEST_KEY not in metadata:
        return
    digest = metadata[DIGEST_KEY]
    entry = _entry(str(digest))
    if data.count(entry) != 1 or hashlib.sha256(data.replace(entry, _entry(BLANK))).hexdigest() != digest:
        raise ExportError(
            "the file is damaged: it has changed since its digest was made; export or copy it again, or if a tool was "
            f"meant to change it, remove the entry {DIGEST_KEY!r} from its metadata"
        )


def _entry(digest: str) -> bytes:
    return f'"{DIGEST_KEY}": "{digest}"'.encode(errors="replace")
