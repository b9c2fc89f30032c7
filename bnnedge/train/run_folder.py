"""What a run leaves on disk.

=================  ====================================================================================
config.yaml        the resolved settings, written before anything else
metrics.jsonl      one JSON object a line, one line an epoch
events.out.*       the same numbers for TensorBoard
last.ckpt          the state after the last finished epoch
best.ckpt          the state after the epoch with the best first score on the split that chooses (the
                   first of equals), or after the last epoch if no split does
result.json        loss and scores of best.ckpt on the test split, written when training is over
log.txt            what was printed, with times
=================  ====================================================================================
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from bnnedge.config import RunConfig
from bnnedge.errors import CheckpointError, ConfigError
from bnnedge.files import write_atomically


class RunFolder:
    """Paths and writers of one run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.last = path / "last.ckpt"
        self.best = path / "best.ckpt"
        self.result = path / "result.json"
        self.log_file = path / "log.txt"

    def check_free(self) -> None:
        """Raise ``ConfigError`` if there is something at the path that a new run would mix with."""
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise ConfigError(f"{self.path} exists already; continue it with --resume or choose another --out")

    def create(self, config: RunConfig) -> None:
        """Make the folder with its ``config.yaml`` in one step, so that a crash leaves no folder without one."""
        self.check_free()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        except OSError as error:
            raise ConfigError(f"the run folder {self.path} cannot be made: {error.strerror}") from error
        try:
            temporary.chmod(0o755)
            config.write(temporary / "config.yaml")
            os.rename(temporary, self.path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise ConfigError(f"the run folder {self.path} cannot be made: {error.strerror}") from error

    def check_exists(self) -> None:
        """Raise ``CheckpointError`` unless this is a run folder."""
        if not self.path.is_dir():
            raise CheckpointError(f"there is no run in {self.path}; `train` makes one")
        if not self.config.is_file():
            raise CheckpointError(f"{self.path} is not a run folder: it has no config.yaml")

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add an epoch's line and see it onto the disk."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def keep_metrics(self, epochs: int) -> None:
        """Drop lines of epochs past ``epochs`` (and a half-written one): those epochs will be trained again."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict) and row.get("epoch", epochs + 1) <= epochs:
                kept.append(line + "\n")
        write_atomically(self.metrics, "".join(kept).encode())

    def log(self, line: str) -> None:
        """Add a line with the local time to ``log.txt``."""
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {line}\n")
