"""What a model, a checkpoint and an exported file know of the data set; plain values, and no torch at import."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from bnnedge.data.preprocessing import Preprocessing, from_old_description
from bnnedge.errors import BnnedgeError, DataError
from bnnedge.options import plain
from bnnedge.schema import check
from bnnedge.tasks import TASKS
from bnnedge.tasks.task import Task

MOST_OUTPUTS = 2**20
"""Channels of a network's output."""
ValidationSplit = Literal["own", "none"] | float
"""The data set's own validation split, none at all, or the share of the training samples that is held out."""


@dataclass(frozen=True)
class DatasetInfo:
    """A data set as a network was trained on it."""

    name: str
    """The name in ``DATASETS``."""
    task: str
    """The name in ``TASKS``."""
    outputs: int
    """Channels of the network's output."""
    classes: tuple[str, ...]
    """What each output channel stands for; empty if the data set has no classes."""
    preprocessing: Preprocessing
    """How a stored image becomes the network's input."""
    validation_split: ValidationSplit = "own"
    """What was held out of the training samples."""

    @property
    def num_classes(self) -> int:
        """Channels of the network's output, as networks take it."""
        return self.outputs

    @property
    def class_names(self) -> tuple[str, ...]:
        """The same as ``classes``."""
        return self.classes

    def make_task(self) -> Task:
        """The task, for this many outputs. Raises ``UnknownNameError`` for a task that is not known here."""
        task = TASKS.load(self.task)(self.outputs)
        assert isinstance(task, Task)
        return task

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which JSON and checkpoints can hold; the metadata of an exported file has the same entries."""
        return {**plain(self), "preprocessing": self.preprocessing.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetInfo:
        """Inverse of ``to_dict``; also reads the description that checkpoints of version 2 hold.

        Raises ``DataError`` for a field that is missing or of a wrong type.
        """
        if "preprocessing" not in values and "mean" in values:
            return _from_old(values)
        names = [f.name for f in dataclasses.fields(cls)]
        required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        if missing := [name for name in required if name not in values]:
            raise DataError(f"the description of the data set lacks {', '.join(missing)}")
        known = {name: values[name] for name in names if name in values}
        record = Preprocessing.from_dict(known.pop("preprocessing"))
        return _checked({**known, "preprocessing": record})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> DatasetInfo | None:
        """The description in an exported file's metadata, of any version; None if the file has none.

        Raises ``DataError`` for one that is damaged.
        """
        old = metadata.get("dataset")
        if isinstance(old, Mapping):
            return cls.from_dict(old)
        if "preprocessing" not in metadata:
            return None
        return cls.from_dict({"name": old, **metadata})

    def to_metadata(self) -> dict[str, Any]:
        """The entries of an exported file's metadata."""
        values = self.to_dict()
        return {"dataset": values.pop("name"), **values}


def _from_old(values: Mapping[str, Any]) -> DatasetInfo:
    name, classes = values.get("name"), values.get("class_names")
    if not isinstance(classes, list | tuple):
        raise DataError(f"the description of the data set lacks class_names: expected a list, found {classes!r}")
    record = from_old_description(str(name), values)
    fields = {"name": name, "task": "classification", "outputs": values.get("num_classes", len(classes))}
    return _checked({**fields, "classes": classes, "preprocessing": record})


def _checked(fields: dict[str, Any]) -> DatasetInfo:
    record = fields.pop("preprocessing")
    what = "the description of the data set is not valid"
    plain_fields = check(fields, _PlainFields, what, DataError)
    try:
        TASKS.check(plain_fields.task)
    except BnnedgeError as error:
        raise DataError(f"{what}: {error}") from error
    values = {f.name: getattr(plain_fields, f.name) for f in dataclasses.fields(_PlainFields)}
    return DatasetInfo(**values, preprocessing=record)


_Text = Annotated[str, Field(max_length=1000)]
_Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class _PlainFields:
    name: _Text
    task: _Text
    outputs: Annotated[int, Field(ge=1, le=MOST_OUTPUTS)]
    classes: Annotated[tuple[_Text, ...], Field(max_length=MOST_OUTPUTS)]
    validation_split: Literal["own", "none"] | _Share = "own"
