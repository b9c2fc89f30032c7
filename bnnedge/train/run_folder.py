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
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from bnnedge.config import RunConfig
from bnnedge.errors import BnnedgeError, BnnedgeWarning, CheckpointError, ConfigError, printable
from bnnedge.files import append, read_within, remove_unfinished, write_atomically
from bnnedge.schema import read_json

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

MOST_METRICS_BYTES = 1 << 28
"""Largest metrics.jsonl; a line of a network with 20 binary layers takes about 3,000 bytes."""


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
        try:
            str(self.path).encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"{printable(str(self.path))} is not UTF-8; choose another --out") from error
        try:
            free = not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir()))
        except OSError as error:
            raise ConfigError(f"the run folder {self.path} cannot be looked into: {error.strerror}") from error
        if not free:
            raise ConfigError(f"{self.path} exists already; continue it with --resume or choose another --out")

    def create(self, config: RunConfig) -> None:
        """Make the folder with its ``config.yaml`` in one step, so that a crash leaves no folder without one."""
        self.check_free()
        place = Path(os.path.realpath(self.path))  # a folder cannot take the place of a symbolic link
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{place.name[:40]}.", dir=place.parent))
        except OSError as error:
            raise ConfigError(f"the run folder {self.path} cannot be made: {error.strerror}") from error
        try:
            temporary.chmod(0o755)
            config.write(temporary / "config.yaml")
            os.rename(temporary, place)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not isinstance(error, OSError):
                raise
            raise ConfigError(f"the run folder {self.path} cannot be made: {error.strerror}") from error

    def check_exists(self) -> None:
        """Raise ``CheckpointError`` unless this is a run folder."""
        if not self.path.is_dir():
            raise CheckpointError(f"there is no run in {self.path}; `train` makes one")
        if not self.config.is_file():
            raise CheckpointError(f"{self.path} is not a run folder: it has no config.yaml")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A context in which no other process, on this machine or on another that shares the disk, trains this run.

        The lock is one of the operating system on ``config.yaml``, so it ends with the process, however that ends.
        Raises ``CheckpointError`` if another process has it.
        """
        with self._open_to_lock() as file:
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CheckpointError(
                    f"another process is training the run in {self.path}; wait until it has ended, or end it first"
                ) from error
            except OSError as error:
                warnings.warn(
                    f"{self.path} cannot be locked ({error.strerror}); see that no second process trains this run",
                    BnnedgeWarning,
                    stacklevel=2,
                )
            yield

    def _open_to_lock(self) -> BinaryIO:
        try:
            return self.config.open("r+b")  # disks over a network lock only what can be written
        except PermissionError:
            return self.config.open("rb")

    def remove_unfinished(self) -> None:
        """Remove what a process that was killed while it wrote has left; for the one that has the lock."""
        for path in (self.metrics, self.last, self.best, self.result):
            remove_unfinished(self.path, path.name)

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add an epoch's line and see it onto the disk."""
        append(self.metrics, (json.dumps(row, allow_nan=False) + "\n").encode())

    def keep_metrics(self, epochs: int) -> None:
        """Keep the lines of the first ``epochs`` epochs, each once; the others will be trained again.

        A half-written last line is one of those. Warns if an epoch has no line, as in a file that is damaged.
        """
        kept: dict[int, bytes] = {}
        data = read_within(self.metrics, MOST_METRICS_BYTES, CheckpointError) if self.metrics.exists() else b""
        for line in data.split(b"\n"):
            try:
                row = read_json(line, "metrics.jsonl", CheckpointError)
            except BnnedgeError:
                continue
            epoch = row.get("epoch") if isinstance(row, dict) else None
            if type(epoch) is int and 1 <= epoch <= epochs:
                kept[epoch] = line + b"\n"
        if lost := [epoch for epoch in range(1, epochs + 1) if epoch not in kept]:
            some = ", ".join(map(str, lost[:5])) + (" and more" if len(lost) > 5 else "")
            warnings.warn(
                f"{self.metrics} is damaged: it has no readable line of epoch {some}; the run goes on, and its curves "
                "will lack them",
                BnnedgeWarning,
                stacklevel=2,
            )
        write_atomically(self.metrics, b"".join(kept[epoch] for epoch in sorted(kept)))

    def log(self, line: str) -> None:
        """Add a line with the local time to ``log.txt``."""
        append(self.log_file, f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {line}\n".encode(errors="replace"))
