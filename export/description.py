"""What an exported file says of its data set and its task; every reader of a file asks here. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bnnedge.data.info import DatasetInfo
from bnnedge.errors import DataError, ExportError
from bnnedge.tasks.task import Task


@dataclass(frozen=True)
class FileDescription:
    """The data set and the task that a file was trained on."""

    info: DatasetInfo
    task: Task

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output for one input, without the batch."""
        return self.task.output_shape(*self.info.preprocessing.size)


def describe_metadata(metadata: Mapping[str, Any], label: str = "the file") -> FileDescription | None:
    """The description in a file's metadata, of any version of bnnedge; None if it has none.

    Raises ``ExportError`` naming ``label`` for a description that is damaged or names a task that is not known here.
    """
    try:
        info = DatasetInfo.from_metadata(metadata)
    except DataError as error:
        raise ExportError(f"{label}: {error}; export the network again") from error
    return None if info is None else FileDescription(info, info.make_task())
