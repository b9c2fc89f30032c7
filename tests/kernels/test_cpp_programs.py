"""C++ test programs in builds of their own: emulated instruction sets, sessions in threads, sanitizers, fuzzing.

``BNNEDGE_FUZZ_SECONDS`` sets how long each fuzz target runs (60). What a target finds is kept in ``build/cpp_fuzz``.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LCE_MODELS = sorted((REPOSITORY / "tests" / "lce_models").glob("*.tflite"))
FUZZ_TARGETS = ("fuzz_litert_delegate", "fuzz_flexbuffer", "fuzz_onnxruntime")
FUZZ_SECONDS = int(os.environ.get("BNNEDGE_FUZZ_SECONDS", "60"))
LONGEST_INPUT = 20_000
"""Bytes; the largest seed is a little below."""
SIMDE = Path("/usr/include/simde")
REMEDIES = {"cmake": "pip install cmake", "ninja": "pip install ninja", "clang++": "apt-get install clang"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the programs are for Linux")
slow = pytest.mark.slow


def run(*command: str | Path, **environment: str) -> str:
    """Standard output; fails the test with the last that the command had to say."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=os.environ | environment)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-6000:]}", pytrace=False)
    return done.stdout


def build(name: str, *targets: str, compiler: str | None = None, **options: str) -> Path:
    """The folder with the programs ``targets``, in ``build/cpp_<name>``; skips where a tool is missing."""
    for tool in ("cmake", "ninja", *([compiler] if compiler else [])):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} not found: {REMEDIES[tool]}")
    folder = REPOSITORY / "build" / f"cpp_{name}"
    environment: Mapping[str, str] = {"CXX": compiler} if compiler else {}
    definitions = [f"-DBNNEDGE_{key}={value}" for key, value in {"TESTS": "ON", **options}.items()]
    run("cmake", "-S", REPOSITORY / "kernels" / "cpp", "-B", folder, "-G", "Ninja", *definitions, **environment)
    run("cmake", "--build", folder, "--target", *targets)
    return folder / "tests"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the kernels are for x86-64")
@pytest.mark.skipif(not SIMDE.exists(), reason=f"{SIMDE} not found: apt-get install libsimde-dev")
def test_avx512_and_amx_kernels_on_any_cpu() -> None:
    """The instructions are emulated in plain C++, so that a machine without them tests these kernels too."""
    programs = build("emulated", "conv_kernel_test", "stem_test", EMULATE="ON")
    assert re.search(r"avx512: [1-9]\d* cases, 0 failed", run(programs / "conv_kernel_test", "avx512"))
    stems = run(programs / "stem_test")
    assert "avx512: stem amx" in stems and " 0 failures" in stems


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    run(sys.executable, Path(__file__).with_name("fuzz_seeds.py"), folder)
    return folder


@slow
def test_sessions_in_threads_agree_and_do_not_allocate(seeds: Path) -> None:
    programs = build("plain", "sessions_test")
    assert run(programs / "sessions_test", *models(seeds)) == "allocations counted, 0 failures\n"


@slow
def test_sessions_share_nothing_they_should_not(seeds: Path) -> None:
    programs = build("thread_sanitizer", "sessions_test", SANITIZE="thread")
    assert "0 failures" in run(programs / "sessions_test", *models(seeds), TSAN_OPTIONS="halt_on_error=1")


def models(seeds: Path) -> list[Path]:
    """LCE's own and ours, with an int8 stem among them."""
    return [*LCE_MODELS, *sorted((seeds / "fuzz_litert_delegate").glob("export*"))]


@pytest.fixture(scope="module")
def fuzzers() -> Path:
    sanitizers = "address,undefined"
    targets = ("conv_kernel_test", "stem_test", *FUZZ_TARGETS)
    return build("fuzz", *targets, compiler="clang++", SANITIZE=sanitizers, FUZZ="ON")


@slow
def test_kernels_with_sanitizers(fuzzers: Path) -> None:
    assert "portable" in run(fuzzers / "conv_kernel_test")
    assert "0 failures" in run(fuzzers / "stem_test")


@slow
@pytest.mark.parametrize("target", FUZZ_TARGETS)
def test_fuzz(fuzzers: Path, seeds: Path, target: str) -> None:
    """Every seed runs, and nothing that the fuzzer makes of them in that time crashes or gives another result."""
    folder = fuzzers.parent / target
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    found = [f"-artifact_prefix={folder}/", "-timeout=25", "-rss_limit_mb=2048"]
    limits = [f"-max_total_time={FUZZ_SECONDS}", f"-max_len={LONGEST_INPUT}", "-print_final_stats=1"]
    run(fuzzers / target, *found, *limits, corpus, seeds / target)
