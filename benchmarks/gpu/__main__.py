"""``python -m bnnedge.benchmarks.gpu gemm|conv|pack|step``: a table of microseconds, and a JSON line a row.

On a CPU the kernels run in Triton's interpreter (``TRITON_INTERPRET=1``), which shows that the commands work; its times
mean nothing. A training step on a CPU is a real one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from bnnedge.benchmarks.gpu import conv as convs
from bnnedge.benchmarks.gpu import gemm as gemms
from bnnedge.benchmarks.gpu import pack as packs
from bnnedge.benchmarks.gpu import step as steps
from bnnedge.benchmarks.gpu.clock import clock_for
from bnnedge.benchmarks.gpu.measure import Amount, Case, Implementation, measure
from bnnedge.benchmarks.gpu.row import GpuRow, environment_of
from bnnedge.benchmarks.ops.shapes import read_shapes
from bnnedge.benchmarks.rows import append_rows, check_appendable
from bnnedge.errors import BenchmarkError, BnnedgeError
from bnnedge.kernels.gpu.select import PACKED, Op, for_capability

app = typer.Typer(add_completion=False)
Device = Annotated[str, typer.Option(help="cuda, or cuda:1 and so on; cpu for the interpreter.")]
Turns = Annotated[int, typer.Option(min=1, help="Times that every contender has its turn.")]
Json = Annotated[Path | None, typer.Option(help="JSON lines file to add to.")]
Kernels = Annotated[
    list[str] | None,
    typer.Option(help="Kernel, several times for several; the GPU's own and the portable if left out."),
]
Maker = Callable[[], tuple[Amount, list[Implementation]]]
"""Makes the operands of a case; it is called when its turn comes, since operands fill the memory."""

UNITS = {"ops": ("TOPS", 1e12), "bytes": ("GB/s", 1e9), "images": ("images/s", 1.0)}
"""Unit of an amount to the name and size of the unit of its rate."""


@app.command()
def gemm(
    size: Annotated[
        list[int] | None, typer.Option(help="Rows, columns and products; 1024 to 16384 if left out.")
    ] = None,
    implementation: Kernels = None,
    device: Device = "cuda",
    turns: Turns = 21,
    json: Json = None,
) -> None:
    """Binary matrix product of packed operands against cuBLAS's in bf16 and int8."""
    place, names = _place(device), _kernel_names("xnor_gemm", implementation, device)
    sizes = size or [1024, 2048, 4096, 8192, 16384]
    for value in sizes:
        if value < 32 or value % 32:
            raise BenchmarkError(f"--size must be a multiple of 32 from 32, got {value}")
    cases: list[tuple[str, Maker]] = [
        (" x ".join([str(value)] * 3), partial(gemms.implementations, value, place, names)) for value in sizes
    ]
    _run("gemm", cases, place, turns, json)


@app.command()
def conv(
    network: Annotated[
        list[str] | None, typer.Option(help="Table of shapes; resnet18_imagenet and resnet34_imagenet if left out.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    implementation: Kernels = None,
    device: Device = "cuda",
    turns: Turns = 21,
    json: Json = None,
) -> None:
    """Binary convolution layers, forward, against cuDNN's in bf16."""
    place, names = _place(device), _kernel_names("bconv2d", implementation, device)
    cases: list[tuple[str, Maker]] = [
        (f"{table} {shape.name}", partial(convs.implementations, shape, batch_size, place, names))
        for table in network or ["resnet18_imagenet", "resnet34_imagenet"]
        for shape in read_shapes(table)
    ]
    _run("conv", cases, place, turns, json)


@app.command()
def pack(
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    size: Annotated[list[str] | None, typer.Option(help="Map as PIXELSxCHANNELS, such as 56x64.")] = None,
    device: Device = "cuda",
    turns: Turns = 21,
    json: Json = None,
) -> None:
    """Packing kernels against a copy of as many bytes."""
    place = _place(device)
    cases: list[tuple[str, Maker]] = []
    for text in size or ["56x64", "28x128", "14x256", "7x512"]:
        pixels, _, channels = text.partition("x")
        if not (pixels.isdigit() and channels.isdigit() and int(pixels) and int(channels)):
            raise BenchmarkError(f"--size must be like 56x64 (pixels, channels), got {text!r}")
        for op in packs.OPS:
            work = partial(packs.implementations, op, batch_size, int(pixels), int(channels), place)
            cases.append((f"{op} {text}", work))
    _run("pack", cases, place, turns, json)


@app.command()
def step(
    model: Annotated[str, typer.Option(help="Network; see `bnnedge list models`.")] = "resnet18_1w1a",
    image_size: Annotated[int, typer.Option(min=1, help="Pixels.")] = 224,
    num_classes: Annotated[int, typer.Option(min=2)] = 1000,
    batch_size: Annotated[int, typer.Option(min=2)] = 256,
    precision: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    compiled: Annotated[bool, typer.Option(help="The compiled contenders too; compilation takes minutes.")] = True,
    check_steps: Annotated[int, typer.Option(min=1, help="Steps over which ours must learn as the peer does.")] = 20,
    device: Device = "cuda",
    turns: Turns = 11,
    json: Json = None,
) -> None:
    """A whole training step, STE with Adam, against plain PyTorch's: images a second, memory, what backward keeps."""
    if precision not in ("bf16", "fp32"):
        raise BenchmarkError(f"--precision must be bf16 or fp32, got {precision!r}")
    place, notes = _place(device, kernels=False), Console(stderr=True)
    if json is not None:
        check_appendable(json, GpuRow)
    setting = steps.Setting(model, image_size, num_classes, batch_size, precision, str(place), compiled)
    made = steps.trainings(setting)
    name = f"{model}, {image_size}x{image_size}, batch {batch_size}, {precision}"
    case = Case("step", name, *steps.implementations(setting, made, check_steps))
    measured = measure(case, clock_for(place, graphs=False), turns, environment_of(place), notes)
    memory = {training.name: training for training in made}
    rows = [
        dataclasses.replace(
            row,
            peak_memory_bytes=memory[row.contender].peak_memory_bytes,
            kept_bytes=memory[row.contender].kept_bytes,
        )
        for row in measured
    ]
    if json is not None:
        append_rows(json, rows)
    Console().print(table("step", rows))


def _place(device: str, kernels: bool = True) -> torch.device:
    """The device called ``device``. On a CPU our Triton ``kernels`` need the interpreter, and training does not.

    Raises ``BenchmarkError`` for a device that is not there or cannot be used.
    """
    try:
        place = torch.device(device)
    except RuntimeError:
        raise BenchmarkError(f"--device must be cuda, cuda:N or cpu, got {device!r}") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise BenchmarkError(f"no {device} here: PyTorch sees {torch.cuda.device_count()} GPUs")
    if place.type == "cpu" and kernels and os.environ.get("TRITON_INTERPRET") != "1":
        raise BenchmarkError("on a CPU the kernels run in Triton's interpreter only: set TRITON_INTERPRET=1")
    if place.type not in ("cuda", "cpu"):
        raise BenchmarkError(f"--device must be cuda, cuda:N or cpu, got {device!r}")
    return place


def _kernel_names(op: Op, names: Sequence[str] | None, device: str) -> list[str]:
    if names:
        for name in names:
            PACKED[op].load(name)  # an unknown name raises here
        return list(names)
    place = torch.device(device)
    own = for_capability(torch.cuda.get_device_capability(place)) if place.type == "cuda" else "triton_popcount"
    return list(dict.fromkeys([own, "triton_popcount"]))


def _run(
    benchmark: str, cases: Sequence[tuple[str, Maker]], device: torch.device, turns: int, json: Path | None
) -> None:
    console, notes = Console(), Console(stderr=True)
    if json is not None:
        check_appendable(json, GpuRow)
    environment = environment_of(device)
    rows: list[GpuRow] = []
    for number, (case, make) in enumerate(cases, start=1):
        notes.print(f"{number}/{len(cases)}  {case}", highlight=False)
        measured = measure(Case(benchmark, case, *make()), clock_for(device), turns, environment, notes)
        if json is not None:
            append_rows(json, measured)
        rows += measured
    console.print(table(benchmark, rows))


def table(benchmark: str, rows: Sequence[GpuRow]) -> Table:
    """Microseconds, rate, the multiple of the time of the first contender of the case, and the model or memory."""
    environment = rows[0].environment
    machine = environment["cpu"]
    if environment["gpu"] is not None:
        machine = f"{environment['gpu']['name']}, driver {environment['gpu']['driver_version']}"
    elif benchmark != "step":
        machine = "Triton's interpreter: no timings"
    caption = f"{machine}, torch {environment['versions']['torch']}, {environment['date_utc'][:10]}"
    result = Table(title=benchmark, caption=caption, caption_justify="left")
    for column in ("case", "contender"):
        result.add_column(column, overflow="fold")
    name, unit = UNITS[rows[0].unit]
    extra = ("peak MiB", "kept MiB") if benchmark == "step" else ("model us",)
    for column in ("p50 us", name, "times", *extra):
        result.add_column(column, justify="right", no_wrap=True)
    first: dict[str, GpuRow] = {}
    for row in rows:
        case = "" if row.case in first else row.case
        own = first.setdefault(row.case, row)
        memory = [None if n is None else n / 2**20 for n in (row.peak_memory_bytes, row.kept_bytes)]
        last = memory if benchmark == "step" else [row.modelled_us]
        numbers = (f"{row.p50_us:.1f}", f"{row.rate / unit:.4g}", f"{row.p50_us / own.p50_us:.2f}")
        result.add_row(case, row.contender, *numbers, *("" if n is None else f"{n:.1f}" for n in last))
    return result


def main() -> None:
    """Run the command line; a mistake of the user's is one line and exit code 2."""
    try:
        app(standalone_mode=False)
    except BnnedgeError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except Exception as error:
        # The parser's own errors come from click or, in newer versions, from typer's copy of it.
        if not hasattr(error, "format_message"):
            raise
        typer.echo(f"error: {error.format_message()}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
