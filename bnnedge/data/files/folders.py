"""Where the folders of data sets are looked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bnnedge.errors import DataError

DATA_ROOT_VARIABLE = "BNNEDGE_DATA"


def data_folder(name: str, data_root: Path | None, expected: str) -> Path:
    """``data_root`` or ``$BNNEDGE_DATA``. Raises ``DataError`` without either; ``expected`` says what it holds."""
    root = data_root or (Path(os.environ[DATA_ROOT_VARIABLE]) if os.environ.get(DATA_ROOT_VARIABLE) else None)
    if root is None:
        raise DataError(
            f"{name} needs its folder: give --data-root (or {DATA_ROOT_VARIABLE}), the folder that holds {expected}"
        )
    return root


def find_folder(name: str, data_root: Path | None, choices: Sequence[str]) -> Path:
    """The first of ``choices``, which are relative paths, that is a folder in ``data_root`` or ``$BNNEDGE_DATA``.

    Raises ``DataError`` that names them for the data set ``name``.
    """
    expected = " or ".join(choices)
    root = data_folder(name, data_root, expected)
    for choice in choices:
        if (root / choice).is_dir():
            return root / choice
    raise DataError(f"{name}: expected the folder {root / expected}{' there' if len(choices) > 1 else ''}")
