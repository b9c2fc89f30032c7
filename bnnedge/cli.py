"""The command line. Each command parses, calls one function and prints; torch is imported by the commands that need it.

Exit codes: 0 done, 1 a failure of the work itself, 2 a mistake of the user's that one line on stderr explains, 130
interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnnedge.errors import BnnedgeError, ConfigError
from bnnedge.registry import Registry

if TYPE_CHECKING:
    from bnnedge.config import RunConfig
    from bnnedge.data.dataset import Split

app = typer.Typer(
    name="bnnedge",
    help="Train binarized neural networks, export them to bit-packed files, run and measure them on small computers.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

REGISTRIES = Registry(
    "list",
    [
        ("methods", "bnnedge.methods:METHODS"),
        ("models", "bnnedge.models:MODELS"),
        ("datasets", "bnnedge.data:DATASETS"),
        ("targets", "bnnedge.export.targets:TARGETS"),
        ("runtimes", "bnnedge.export.runtimes:RUNTIMES"),
        ("devices", "bnnedge.benchmarks.devices:DEVICES"),
    ],
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; ``argv`` is without the program's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"] or ["--help"]
    try:
        code = app(args=arguments, prog_name="bnnedge", standalone_mode=False, obj=arguments)
    except (KeyboardInterrupt, typer.Abort):  # which of the two depends on the version of typer
        code = 130
    except SystemExit as ended:  # of processes that have said what there was to say
        return int(ended.code or 0)
    except Exception as error:
        explained = _explain(error)
        if explained is None:
            raise
        message, code = explained
        if debug:
            traceback.print_exc()
        if _speaks():
            print(f"error: {' '.join(message.split())}", file=sys.stderr)
    else:
        code = code if isinstance(code, int) else 0
    if code == 130 and _speaks():
        print("error: interrupted; a training run continues with --resume", file=sys.stderr)
    return code


def _speaks() -> bool:
    """Whether this is the only process, or the one of a distributed training that prints what all agree on."""
    return os.environ.get("RANK", "0") == "0" or "WORLD_SIZE" not in os.environ


def _explain(error: Exception) -> tuple[str, int] | None:
    """Message and exit code of an error that is not a bug of ours; None for one that is."""
    if isinstance(error, BnnedgeError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1
    # The parser's own errors come from click or, in newer versions, from typer's copy of it.
    if hasattr(error, "format_message"):
        return str(error.format_message()), 2
    return None


def _print_version(wanted: bool) -> None:
    if wanted:
        from bnnedge import __version__

        print(f"bnnedge {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    # `main` takes --debug out wherever it stands; it is declared here for --help.
    pass


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    method: Annotated[str | None, typer.Option(help="Training method; see `list methods`. [default: rbnn]")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Network; see `list models`, or path/to/file.py:ClassOrFactory. [default: resnet20_1w1a]"),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set; see `list datasets`. [default: digits]")] = None,
    image_size: Annotated[int | None, typer.Option(help="Resize images to this many pixels.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split. [default: 30]")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images in one step, on all processes together. [default: 128]")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate. [default: the method's]")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam or adamw. [default: the method's]")] = None,
    lr_type: Annotated[
        str | None, typer.Option(help="cos, step, poly, exp or constant. [default: the method's]")
    ] = None,
    warm_up: Annotated[int | None, typer.Option(help="Epochs of linear learning-rate warm-up.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of initialization and data order. [default: 0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda. [default: auto]")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16, of the training step. [default: fp32]")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Train through torch.compile.")] = False,
    kernels: Annotated[
        str | None, typer.Option(help="Of binary layers: auto, triton or torch. [default: auto]")
    ] = None,
    accumulate: Annotated[int | None, typer.Option(help="Micro-batches in one step. [default: 1]")] = None,
    ema: Annotated[
        float | None, typer.Option(help="Evaluate and export a moving average of the weights with this decay.")
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(metavar="N,N", help="One process on each of these GPUs of this machine.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="This many processes on this machine, each on a GPU of its own or on the CPU.")
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="RUN|FILE", help="Start from the last weights of this run or checkpoint.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="RUN|FILE", help="Learn the outputs of this run's network, or checkpoint's.")
    ] = None,
    data_root: Annotated[str | None, typer.Option(help="Folder of the data sets. [default: $BNNEDGE_DATA]")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. [default: runs/METHOD_MODEL_DATASET]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the run folder.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="The same as --KEY VALUE; repeatable."),
    ] = None,
) -> None:
    """Train a network, keeping the weights with the best validation top-1, and test those once at the end.

    Every other setting of a run and every option of the method is given by its name too, e.g. --weight-decay 1e-4,
    --rotation-update 2, --a32 or --no-a32; `list methods --verbose` names the methods' options.
    """
    settings = {
        "method": method,
        "model": model,
        "dataset": dataset,
        "image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "optimizer": optimizer,
        "lr_type": lr_type,
        "warm_up": warm_up,
        "seed": seed,
        "device": device,
        "precision": precision,
        "compile": True if compile_ else None,
        "kernels": kernels,
        "accumulate": accumulate,
        "ema": ema,
        "init": init,
        "teacher": teacher,
        "data_root": data_root,
    }
    given = _merge_settings(settings, _assignments(context.args) + (set_ or []))
    if not resume:  # else the run's own method is the judge
        _check_options(given)
    from bnnedge.config import RunConfig

    config = RunConfig.from_dict(given)
    if gpus is not None or processes is not None:
        raise SystemExit(_launch(context.obj, config, gpus, processes))
    from bnnedge.train.distributed import join
    from bnnedge.train.start import resume_run, start_run

    folder = out or Path("runs") / f"{config.method}_{config.model.rpartition(':')[2]}_{config.dataset}"
    with join() as group:
        result = resume_run(folder, given, group) if resume else start_run(config, folder, group)
    if group.is_main:
        print(
            f"test top-1 {result['test_top1']:.2%} ({result['test_images']} images), "
            f"validation top-1 {result['val_top1']:.2%} at epoch {result['best_epoch']}; run folder {folder}"
        )


def _launch(arguments: list[str], config: RunConfig, gpus: str | None, processes: int | None) -> int:
    from bnnedge.train.launch import launch, parse_gpus, without_launch_options

    if gpus is None:
        return launch(without_launch_options(arguments), processes or 0)
    if processes is not None or config.device == "cpu":
        raise ConfigError(f"--gpus is at odds with {'--device cpu' if processes is None else '--processes'}")
    chosen = parse_gpus(gpus)
    return launch(without_launch_options(arguments), len(chosen), chosen)


@app.command()
def evaluate(
    source: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="Run folder, checkpoint or exported file.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    device: Annotated[str, typer.Option(help="For a run: auto, cpu or cuda.")] = "auto",
    runtime: Annotated[str, typer.Option(help="For a file: auto, or one of `list runtimes`.")] = "auto",
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data sets. [default: $BNNEDGE_DATA]")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")] = None,
) -> None:
    """Measure top-1 of a run's best weights or of an exported file, on the data set that it names."""
    from rich.console import Console

    from bnnedge.data.dataset import SPLITS

    if split not in SPLITS:
        raise ConfigError(f"--split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not source.exists():
        raise ConfigError(f"{source} does not exist; expected a run folder, a checkpoint or an exported file")
    if source.is_dir() or source.suffix == ".ckpt":
        result = _evaluate_run(source, split, device, data_root)
    else:
        from bnnedge.export.evaluate import evaluate_file

        found = evaluate_file(source, split, runtime, data_root, Console(stderr=True))
        result = {"source": str(source), "split": split, **asdict(found)}
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"top-1 {result['top1']:.2%} on {result['dataset']} {split} ({result['images']} images), {result['runtime']}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or checkpoint.")],
    target: Annotated[str, typer.Option(help="File format; see `list targets`.")] = "onnx",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File. [default: RUN/MODEL.ending]")] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Compare the file with the checkpoint.")] = True,
    stem: Annotated[
        str, typer.Option(help="fp32, or int8: the first convolution in 8 bits, faster and a little different.")
    ] = "fp32",
) -> None:
    """Write a run's best weights as a bit-packed file, after checking that the file computes the same."""
    from rich.console import Console

    from bnnedge.export.targets import TARGETS

    TARGETS.check(target)
    from bnnedge.export.run import export_run

    report = export_run(run, target, output, check=verify, stem=stem)
    console = Console()
    console.print(report.table())
    if report.stem is not None:
        console.print(str(report.stem), highlight=False)
    checked = str(report.verification or f"not verified: {report.not_verified}")
    console.print(checked, highlight=False, markup=False)  # "bnnedge[lce]" is no markup


@app.command()
def summary(
    source: Annotated[str, typer.Argument(metavar="MODEL|RUN|FILE", help="Model name, run folder or exported file.")],
    num_classes: Annotated[int, typer.Option(min=1, help="For a model name.")] = 10,
    in_channels: Annotated[int, typer.Option(min=1, help="For a model name.")] = 3,
    image_size: Annotated[int, typer.Option(min=1, help="For a model name, pixels.")] = 32,
) -> None:
    """Show each layer's shapes, parameters by bit width, memory and multiply-accumulates."""
    from rich.console import Console

    from bnnedge.export.summary import summarize, summary_table

    rows = summarize(source, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    Console().print(summary_table(rows, source))


@app.command()
def bench(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Exported files.")],
    runtime: Annotated[str, typer.Option(help="auto, or one of `list runtimes`.")] = "auto",
    device: Annotated[
        str, typer.Option(help="Where to measure: local, or ssh://[USER@]HOST[:PORT][/PYTHON].")
    ] = "local",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of the runtime.")] = 1,
    warmup: Annotated[int, typer.Option(min=0, help="Runs of each file before any is timed.")] = 10,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each file, in turn with the others'.")] = 100,
    data: Annotated[
        str | None, typer.Option(help="Data set for input and accuracy, or `random`. [default: the file's own]")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Test images for the accuracy. [default: all, or as many as 1 GiB holds]")
    ] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Add the first file's float32 twin.")] = False,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data sets. [default: $BNNEDGE_DATA]")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Append one JSON line per file to this file.")
    ] = None,
) -> None:
    """Measure latency, accuracy, memory and size of exported files, side by side."""
    from rich.console import Console

    from bnnedge.benchmarks.bench import bench as measure
    from bnnedge.benchmarks.report import comparison_table

    rows = measure(
        files,
        runtime=runtime,
        threads=threads,
        warmup=warmup,
        runs=runs,
        data=data,
        baseline=baseline,
        json_path=json_file,
        device=device,
        data_root=data_root,
        images=images,
    )
    Console().print(comparison_table(rows))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    rows: Annotated[Path | None, typer.Option(help="Rows of `bench --json`. [default: RUN/bench.jsonl]")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Picture. [default: RUN/report.png]")] = None,
) -> None:
    """Draw a run's accuracy and loss curves and its files' latency and size, as one PNG."""
    from bnnedge.benchmarks.report import report as draw
    from bnnedge.benchmarks.result import read_rows
    from bnnedge.train.run_folder import RunFolder

    RunFolder(run).check_exists()
    measured = read_rows(rows or run / "bench.jsonl") if rows or (run / "bench.jsonl").exists() else []
    picture = output or run / "report.png"
    draw(run, measured, picture)
    print(f"wrote {picture}")


@app.command()
def doctor() -> None:
    """Show what was found on this machine: kernels and the chosen one, plug-ins, runtimes, optional packages, GPU."""
    from bnnedge.benchmarks.doctor import doctor as examine

    for what, found in examine():
        print(f"{what}: {found}")


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(metavar="|".join(REGISTRIES), help="What to list.")],
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Add what each is and its options.")] = False,
) -> None:
    """List what can be named in the other commands."""
    registry = REGISTRIES.load(kind)
    for name in registry:
        print(name)
        if verbose:
            for line in _details(registry.load(name)):
                print(f"    {line}")


def _assignments(arguments: list[str]) -> list[str]:
    """``--name value``, ``--name=value``, ``--name`` (true) and ``--no-name`` (false) as ``name=value``."""
    found = []
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or len(name) == 2:
            raise ConfigError(f"train takes options only, got {name!r}")
        if not equals:
            is_value = bool(rest) and not rest[0].startswith("--")
            value = rest.pop(0) if is_value else "true"
            if not is_value and name.startswith("--no-"):
                name, value = name.removeprefix("--no-"), "false"
        found.append(f"{name.lstrip('-').lower()}={value}")
    return found


def _merge_settings(settings: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Flags and assignments as the mapping that ``RunConfig.from_dict`` takes; given twice is an error."""
    from dataclasses import fields

    from bnnedge.config import RunConfig

    given = {name: value for name, value in settings.items() if value is not None}
    method_options: dict[str, Any] = {}
    known = {f.name for f in fields(RunConfig)} - {"method_options"}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise ConfigError(f"--set expects key=value, got {assignment!r}")
        target = given if name in known else method_options
        if name in target:
            raise ConfigError(f"{name} is given twice; it was {target[name]!r}, then {value!r}")
        target[name] = value.strip()
    return {**given, "method_options": method_options} if method_options else given


def _check_options(given: dict[str, Any]) -> None:
    """Refuse a name that is neither a setting nor an option of the method, listing both."""
    from dataclasses import fields

    from bnnedge.config import RunConfig
    from bnnedge.methods import METHODS

    method = given.get("method", RunConfig.method)
    METHODS.check(method)
    for name in given.get("method_options", {}):
        known = [f.name for f in fields(METHODS.load(method).Options)]
        if name not in known:
            settings = sorted({f.name for f in fields(RunConfig)} - {"method_options"})
            raise ConfigError(
                f"method {method} has no option {name!r}; its options: {', '.join(known) or 'none'}; "
                f"settings of every run: {', '.join(settings)}"
            )


def _evaluate_run(run: Path, split: Split, device: str, data_root: Path | None) -> dict[str, Any]:
    from rich.console import Console

    from bnnedge.data.dataset import load_dataset
    from bnnedge.train.device import find_device
    from bnnedge.train.load import load_run
    from bnnedge.train.metrics import evaluate as evaluate_model

    loaded = load_run(run)
    saved_root = loaded.config.data_root
    root = data_root or (Path(saved_root) if saved_root else None)
    dataset = load_dataset(loaded.dataset.name, loaded.dataset.image_size, root)
    where = find_device(device)
    predict, console = loaded.method.predict, Console(stderr=True)
    mean = evaluate_model(loaded.model.to(where), dataset, split, where, predict, console=console)
    return {
        "source": str(run),
        "runtime": f"pytorch {where.type}",
        "dataset": loaded.dataset.name,
        "split": split,
        "images": mean.images,
        "top1": mean.top1,
    }


def _details(entry: Any) -> list[str]:
    """For people: the first sentence of an entry's docstring, and of a method its paper, defaults and options."""
    import dataclasses
    import inspect

    from bnnedge.options import field_docs

    if hasattr(entry, "details"):
        return list(entry.details())
    lines = [(inspect.getdoc(entry) or "").split("\n\n")[0].replace("\n", " ")]
    if inspect.ismethod(getattr(entry, "unavailable", None)):  # a runtime's; a device is asked about one
        reason = entry.unavailable()
        lines.append("available" if reason is None else f"not available: {reason}")
    if hasattr(entry, "paper"):
        defaults = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(entry.defaults).items())
        lines += [f"paper: {entry.paper}", f"defaults: {defaults}"]
        docs = field_docs(entry.Options)
        lines += [
            f"--{f.name.replace('_', '-')} {_text(f.default)}  {docs.get(f.name, '')}"
            for f in dataclasses.fields(entry.Options)
        ]
    return lines


def _text(value: Any) -> str:
    """A default as one would type it."""
    return ",".join(map(str, value)) or "''" if isinstance(value, tuple) else str(value).lower()


if __name__ == "__main__":
    sys.exit(main())
