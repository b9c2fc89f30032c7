"""Cycle models of the NEON kernels' inner loops by llvm-mca, as a Markdown table.

    python tests/aarch64/mca_neon.py > benchmarks/results/mca_neon.md

Needs aarch64-linux-gnu-g++ and llvm-mca 19 or newer (``LLVM_MCA`` names another program). The loops are those that the
compiler is given: they are written in assembly and taken from its output.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

CPP = Path(__file__).resolve().parents[2] / "kernels" / "cpp"
MCA = os.environ.get("LLVM_MCA", "llvm-mca-19")
ITERATIONS = 300

# Core -> the kernel that select.cc puts first there.
CHOSEN = {
    "cortex-a53": "neon",
    "cortex-a55": "neon_table",
    "cortex-a72": "neon",
    "neoverse-n1": "neon_table",
    "neoverse-n2": "neon_table",
    "neoverse-v1": "neon_dot",
    "neoverse-v2": "neon_table",
}
ALSO = {"cortex-a72": "Cortex-A72 (Raspberry Pi 4)", "neoverse-n1": "Neoverse N1, Cortex-A76 (Raspberry Pi 5)"}
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-DBNNEDGE_NEON", "-DBNNEDGE_NEON_DOT", f"-I{CPP}/include"]
KERNELS = {
    "neon": ["-march=armv8-a", f"{CPP}/neon/conv_2x16_neon.cc"],
    "neon_dot": ["-march=armv8.2-a+dotprod", f"{CPP}/neon/conv_2x16_neon_dot.cc"],
    "neon_table": ["-march=armv8-a", f"{CPP}/neon/conv_2x128_neon_table.cc"],
}
# Bits of K x pixels x output channels of one round of each loop.
MACS = {
    "neon": 4 * 32 * 2 * 16,
    "neon_dot": 4 * 32 * 2 * 16,
    "neon_table": 3 * 5 * 2 * 128,
    "plain": 4 * 32 * 2 * 16,
}

INTRODUCTION = """# Inner loops of the NEON kernels, modelled

Binary multiply-adds per cycle, simulated / bound of the resources, by llvm-mca: models, not silicon. A model is good
for comparing loops with each other on one core, no more. Made by `python tests/aarch64/mca_neon.py`.

- `neon`, `neon_dot`: carry-save, 2 pixels x 16 channels; `neon_table`: look-ups of five bits, 2 pixels x 128 channels.
  The loops of `kernels/cpp/neon` with all their loads, L1 hits assumed, without what surrounds them: widening the
  counts, making prefixes or the panel. Bold: what `select.cc` takes.
- `plain`: an eor, a cnt and an add per 128 bits with the same tile and loads and no widening of the byte counters: the
  best that a kernel can reach that counts each word by itself, as Larq Compute Engine's does.

The in-order models (A53, A55) delay an operation that would finish before an older one, which silicon need not do.

On Cortex-A72 `neon` cannot be ahead of `plain`: bsl takes two of the slots that an eor, a cnt or an add takes one of,
and there are two a cycle: carry-save (2 eor, bsl, cnt, add) and plain counting both need 6 for 2 x 128 bits.
"""


def loop_of(kernel: str) -> str:
    """The first loop with loads in the compiler's output for a kernel's file; others differ in address registers."""
    command = ["aarch64-linux-gnu-g++", *FLAGS, *KERNELS[kernel], "-S", "-o", "-"]
    assembly = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loops = re.findall(r"^1:\n(.*?^b\.ne) 1b$", assembly, re.DOTALL | re.MULTILINE)
    loop = next(loop for loop in loops if "ldr q" in loop)
    return str(loop).replace("2:\n", "").removesuffix("b.ne")


def plain_loop() -> str:
    """Four words of K: per word four weight vectors and one broadcast word of each of two pixels."""
    lines: list[str] = []
    for word in range(4):
        vectors = [(pixel, v) for pixel in range(2) for v in range(4)]
        lines += [f"ldr q{24 + v}, [x1, #{64 * word + 16 * v}]" for v in range(4)]
        lines += [f"ldr q{28 + pixel}, [x{2 + pixel}, #{16 * word}]" for pixel in range(2)]
        lines += [f"eor v{16 + 4 * pixel + v}.16b, v{28 + pixel}.16b, v{24 + v}.16b" for pixel, v in vectors]
        lines += [f"cnt v{16 + i}.16b, v{16 + i}.16b" for i in range(8)]
        lines += [f"add v{i}.16b, v{i}.16b, v{16 + i}.16b" for i in range(8)]
    return "\n".join([*lines, "add x1, x1, #256", "add x2, x2, #64", "add x3, x3, #64", "subs x4, x4, #1"])


def macs_per_cycle(loop: str, macs: int, core: str) -> str:
    """Simulated / bound."""
    command = [MCA, "-mtriple=aarch64-linux-gnu", f"-mcpu={core}", "-mattr=+dotprod", f"-iterations={ITERATIONS}"]
    report = subprocess.run(command, input=loop, capture_output=True, text=True, check=True).stdout
    found = {key: float(value) for key, value in re.findall(r"^([A-Z][\w ]+):\s+([\d.]+)$", report, re.MULTILINE)}
    cycles = found["Total Cycles"] / ITERATIONS
    return f"{macs / cycles:.0f} / {macs / found['Block RThroughput']:.0f}"


def main() -> None:
    try:
        version = subprocess.run([MCA, "--version"], capture_output=True, text=True, check=True).stdout
        loops = {**{kernel: loop_of(kernel) for kernel in KERNELS}, "plain": plain_loop()}
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} not found: apt-get install llvm-19 g++-aarch64-linux-gnu, or set LLVM_MCA")
    release = re.search(r"LLVM version [\d.]+", version)
    print(INTRODUCTION)
    print(f"{release[0] if release else version.strip()}.\n")
    print(f"| core | {' | '.join(loops)} |\n|---|{'---:|' * len(loops)}")
    for core in CHOSEN:
        name = ALSO.get(core) or core.title().replace("Neoverse-", "Neoverse ")
        rates = {kernel: macs_per_cycle(loop, MACS[kernel], core) for kernel, loop in loops.items()}
        rates[CHOSEN[core]] = f"**{rates[CHOSEN[core]]}**"
        print(f"| {name} | {' | '.join(rates.values())} |")


if __name__ == "__main__":
    main()
