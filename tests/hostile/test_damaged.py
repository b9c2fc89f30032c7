"""Whatever is damaged, a command ends in the unchanged result or in one line, within 30 seconds and 2 GiB.

Each case is one seeded damage to one file of a kind and one command that reads it. ``pytest -k 'damaged and onnx'``
runs those of a kind; a failure names the seeds, and ``BNNEDGE_SEEDS=17,301`` runs just these.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.hostile.samples import KINDS, Damaged, commands_of, fresh, make_samples
from tests.hostile.server import BYTES, SECONDS, Ended, Server

QUICK, MANY = 50, 2000
TIMED = ("bench",)
"""Commands whose output changes from run to run."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def samples(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    make_samples(server, folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_end_in_one_line(kind: str, server: Server, samples: Path, tmp_path: Path) -> None:
    _check(kind, range(QUICK), server, samples, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_end_in_one_line(kind: str, server: Server, samples: Path, tmp_path: Path) -> None:
    _check(kind, range(QUICK, MANY), server, samples, tmp_path)


def _check(kind: str, seeds: range, server: Server, samples: Path, tmp_path: Path) -> None:
    chosen = [int(seed) for seed in os.environ.get("BNNEDGE_SEEDS", "").split(",") if seed] or seeds
    wrong = {}
    for seed in chosen:
        folder = fresh(samples, tmp_path / "damaged")
        damaged = KINDS[kind](folder, Random(f"{kind} {seed}"))
        ended = server.run(damaged.command, folder, damaged.environment)
        fault = _fault(damaged, ended, folder)
        if fault is None and ended.code == 0 and not damaged.may_differ and damaged.command[0] not in TIMED:
            right = server.run(damaged.command, fresh(samples, tmp_path / "whole"), damaged.environment)
            if right.out != ended.out:
                fault = f"another result: {ended.out[-300:]!r} instead of {right.out[-300:]!r}"
        if fault is not None:
            wrong[seed] = f"seed {seed}: {commands_of(damaged.command)}: {fault}"
    assert not wrong, f"{len(wrong)} of {len(chosen)} went wrong:\n" + "\n".join(wrong.values())


def _fault(damaged: Damaged, ended: Ended, folder: Path) -> str | None:
    lines = [line for line in ended.err.splitlines() if line.strip() and not line.startswith("warning: ")]
    if (folder / "ran").exists():
        return "code that the file names has run"
    if ended.code < 0:
        return f"ended by signal {-ended.code} after {ended.seconds:.0f} s: {ended.err[-300:]!r}"
    if ended.seconds > SECONDS or ended.bytes > BYTES:
        return f"took {ended.seconds:.0f} s and {ended.bytes >> 20} MiB"
    if "Traceback" in ended.err or ended.code not in (0, 1, 2):
        return f"exit code {ended.code}: {ended.err[-500:]!r}"
    if ended.code and (len(lines) != 1 or not lines[0].startswith("error: ")):
        return f"exit code {ended.code}, expected one line, found {ended.err[-500:]!r}"
    if any(not (character.isprintable() or character == "\n") for character in ended.err):
        return f"control characters reach the terminal: {ended.err[-300:]!r}"
    return None
