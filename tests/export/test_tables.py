"""The tables of layers show names as they are: no markup, no emoji codes, no control characters."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bnnedge.export.api import ExportReport
from bnnedge.export.summary import summary_table
from bnnedge.export.targets.target import LayerRow

HOSTILE = "[/nope][red]:smile:\x1b[2J\n"
SHOWN = r"[/nope][red]:smile:\x1b[2J\n"


def row(binary_weights: int) -> LayerRow:
    return LayerRow(
        name=HOSTILE,
        kind=HOSTILE,
        input_shape=(1,),
        output_shape=(1,),
        binary_weights=binary_weights,
        float_params=1,
        weight_bytes=4,
        binary_macs=0,
        float_macs=0,
        reason=HOSTILE,
    )


def text_of(table: Table) -> str:
    console = Console(file=io.StringIO(), width=300)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(character.isprintable() or character == "\n" for character in text)
    return text


def test_summary() -> None:
    assert text_of(summary_table([row(0)], HOSTILE)).count(SHOWN) == 3  # title, name and kind


def test_export() -> None:
    report = ExportReport(Path(HOSTILE), 1, 1, [row(0), row(1)], None, constant_signs={})
    assert text_of(report.table()).count(SHOWN) == 6  # name and kind of both rows, one reason, and the file
    report = ExportReport(Path("x"), 1, 1, [row(1)], None, constant_signs={HOSTILE: -1})
    assert "all signs of its input are -1" in text_of(report.table())
