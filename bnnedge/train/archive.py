"""The archive that ``torch.save`` writes, checked before anything in it is used.

It is a zip file of uncompressed members: one pickle, which holds the values, and the bytes of each tensor. Every member
has a CRC-32, which PyTorch does not check when it reads. A flipped bit of a weight would pass without a word.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch

from bnnedge.errors import CheckpointError, one_line
from bnnedge.files import open_regular
from bnnedge.memory import check_memory

_MOST_MEMBERS = 1_000_000
_NAMES = ("collections OrderedDict", "torch Size", "torch.storage UntypedStorage")
_FUNCTIONS = ("_rebuild_parameter", "_rebuild_tensor_v2", "_rebuild_tensor_v3")


def read_archive(path: Path) -> Any:
    """The value that ``torch.save`` wrote to ``path``, its tensors on the CPU.

    Raises ``CheckpointError``, which names ``path``, if it is missing, damaged, or holds anything but plain values and
    tensors. No code of the file is run.
    """
    with open_regular(path, CheckpointError) as file:
        try:
            _check_members(file, path)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except (CheckpointError, MemoryError):
            raise
        except Exception as error:  # a damaged file can raise anything
            reason = one_line(error).split(". ")[0][:120]
            raise CheckpointError(f"checkpoint {path} is damaged or no checkpoint of bnnedge ({reason})") from error


def _check_members(file: BinaryIO, path: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        check_memory(size, f"checkpoint {path}", CheckpointError)
        if len(members) > _MOST_MEMBERS or len({member.filename for member in members}) < len(members):
            raise zipfile.BadZipFile("its members have no names of their own")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile(f"{member.filename} is compressed")
        try:
            damaged = archive.testzip()
        except zlib.error as error:
            raise zipfile.BadZipFile(str(error)) from error
        if damaged is not None:
            raise CheckpointError(
                f"checkpoint {path} is damaged: {damaged} does not have the checksum that was saved with it; use a "
                "copy of the file, or train again"
            )
        for member in members:
            if member.filename.endswith(".pkl"):
                _check_names(archive.read(member))


def _check_names(data: bytes) -> None:
    """Raise ``UnpicklingError`` if the pickle names anything but tensors and what holds them.

    PyTorch lets through a few more, of which some take as much memory as the file asks for.
    """
    for operation, argument, _ in pickletools.genops(data):
        if operation.name == "GLOBAL" and not _is_harmless(str(argument)):
            raise pickle.UnpicklingError(f"it names {argument}, which no checkpoint holds")
        if operation.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise pickle.UnpicklingError(f"it has the operation {operation.name}, which no checkpoint holds")


def _is_harmless(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    if module == "torch":
        kind = attribute.endswith("Storage") or isinstance(getattr(torch, attribute, None), torch.dtype)
        return kind or name in _NAMES
    return name in _NAMES or (module == "torch._utils" and attribute in _FUNCTIONS)
