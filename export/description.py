"""What an exported file says of itself, checked once; every reader of a file asks here. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from bnnedge.data.info import MOST_OUTPUTS, DatasetInfo
from bnnedge.errors import DataError, ExportError
from bnnedge.schema import check, read_json
from bnnedge.tasks.task import Task

MOST_METADATA_BYTES = 2**20
MOST_INPUT_NUMBERS = 2**28
"""Numbers of one input of a network: an image of 3 channels may have 9,000 x 9,000 pixels."""

_Text = Annotated[str, Field(max_length=1000)]
_Shape = Annotated[list[Annotated[int, Field(ge=1, le=MOST_INPUT_NUMBERS)]], Field(max_length=8)]


class _NamedShape(TypedDict):
    name: _Text
    shape: _Shape


class Metadata(TypedDict, total=False):
    """The entries of a file's metadata that bnnedge writes; others are the user's own. Shapes are without the batch."""

    producer: _Text
    bnnedge_version: _Text
    bit_layout_version: Annotated[int, Field(ge=0, le=10**6)]
    model: _Text
    method: _Text
    num_classes: Annotated[int, Field(ge=1, le=MOST_OUTPUTS)]
    input_shape: Annotated[_Shape, Field(min_length=1)]
    inputs: Annotated[list[_NamedShape], Field(max_length=1000)]
    outputs: int | Annotated[list[_NamedShape], Field(max_length=1000)]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class FileDescription:
    """The data set and the task that a file was trained on."""

    info: DatasetInfo
    task: Task

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output for one input, without the batch."""
        return self.task.output_shape(*self.info.preprocessing.size)


def parse_metadata(text: bytes | str) -> dict[str, Any]:
    """The metadata that a file holds as JSON. Raises ``ExportError`` for anything but what ``Metadata`` describes."""
    what = "the metadata of the file"
    if len(text) > MOST_METADATA_BYTES:
        raise ExportError(f"{what}: expected at most {MOST_METADATA_BYTES:,} bytes, found {len(text):,}")
    metadata = read_json(text, what, ExportError)
    if not isinstance(metadata, dict):
        raise ExportError(f"{what}: expected a JSON object, found a {type(metadata).__name__}")
    check_metadata(metadata, what)
    return metadata


def check_metadata(metadata: Mapping[str, Any], what: str) -> None:
    """Raise ``ExportError``, which begins with ``what``, unless ``metadata`` is as ``Metadata`` describes."""
    shape = check(dict(metadata), Metadata, what, ExportError).get("input_shape", [])
    if math.prod(shape) > MOST_INPUT_NUMBERS:
        raise ExportError(f"{what}: expected an input of at most {MOST_INPUT_NUMBERS:,} numbers, found {shape}")


def describe_metadata(metadata: Mapping[str, Any], label: str = "the file") -> FileDescription | None:
    """The description in a file's metadata, of any version of bnnedge; None if it has none.

    Raises ``ExportError`` naming ``label`` for a description that is damaged, names a task that is not known here, or
    is of images of another size than the input that the file describes.
    """
    try:
        info = DatasetInfo.from_metadata(metadata)
    except DataError as error:
        raise ExportError(f"{label}: {error}; export the network again") from error
    if info is None:
        return None
    shape = metadata.get("input_shape")
    if shape is not None and list(shape) != list(info.preprocessing.input_shape):
        described = list(info.preprocessing.input_shape)
        raise ExportError(f"{label}: takes inputs of {shape}, but describes images of {described}; export it again")
    return FileDescription(info, info.make_task())
