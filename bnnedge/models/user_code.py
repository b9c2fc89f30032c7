"""Python files of the user: imported beside their neighbours, run only with consent, and named where they fail.

A file is loaded under a name of its own, below a package that stands for its folder, so that a file called ``queue.py``
or ``torch.py`` replaces no module, relative imports work, and ``pickle`` and ``torch.export`` find its classes again.
Absolute imports of neighbours (``import blocks``) are found for the user's files alone.

A run folder, a checkpoint or an exported file may name such a file. Whoever made it could have named any file, so it is
loaded only if this user has trained with just that file here before, or says ``--trust-code``.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bnnedge.errors import BnnedgeWarning, ConfigError, one_line, printable


def is_user_code(name: str) -> bool:
    """Whether a model's name is ``FILE.py:NAME`` and no registered one."""
    return ".py:" in name


def load_attribute(name: str) -> Callable[..., Any]:
    """The class or function that ``FILE.py:NAME`` names; runs the file if it has not run yet.

    Raises ``ConfigError`` with the line of the user's file if it fails, and if there is no such class or function.
    """
    file, _, attribute = name.rpartition(":")
    path = Path(file).resolve()
    try:
        module = _load(path)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"model file {file} fails to import: {failure(error)}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ConfigError(f"model file {file} has no class or function called {attribute!r}")
    return factory  # type: ignore[no-any-return]


def failure(error: BaseException) -> str:
    """What went wrong in the user's code, in one line: the file's name and line, the function, the error."""
    what = f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__
    if isinstance(error, SystemExit):
        what = f"it ended Python ({what})"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}: {type(error).__name__}: {error.msg}"
    place = _place(error)
    return f"{place}: {what}" if place else what


def is_failure(error: BaseException) -> bool:
    """Whether ``error`` comes out of the user's code."""
    return bool(_place(error))


def check_consent(name: str, source: str, *, trust_code: bool) -> None:
    """Raise ``ConfigError`` unless the file that ``source`` names as its model may be run.

    It may with ``trust_code``, or if this user has trained with this very file on this machine. Registered names are
    no code of a user and always pass.
    """
    if not is_user_code(name) or trust_code:
        return
    path = Path(name.rpartition(":")[0]).resolve()
    if path.is_file() and _mark(path) not in _consented():
        raise ConfigError(
            f"{source} names {printable(str(path))} as its model, and this would run that Python file; you have not "
            "trained with this file, as it is now, on this machine; add --trust-code if you trust it"
        )


def record_consent(name: str) -> None:
    """Remember that the user has named this file to train with, so that ``check_consent`` lets his runs use it."""
    if not is_user_code(name):
        return
    mark, record = _mark(Path(name.rpartition(":")[0]).resolve()), _record()
    if mark in _consented():
        return
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        with record.open("a", encoding="utf-8") as file:
            file.write(f"{mark}\n")
    except OSError as error:
        warnings.warn(
            f"{record} cannot be written ({error.strerror}), so evaluate, export and --resume of this run will ask for "
            "--trust-code",
            BnnedgeWarning,
            stacklevel=2,
        )


def _record() -> Path:
    """The file with a line for each Python file that the user has trained with; it lies outside of every run."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "bnnedge" / "trained_with"


def _mark(path: Path) -> str:
    """One line for a file at its place with its contents."""
    return hashlib.sha256(os.fsencode(path) + b"\0" + path.read_bytes()).hexdigest()


def _consented() -> set[str]:
    try:
        return set(_record().read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError):
        return set()


def _load(path: Path) -> types.ModuleType:
    root = _root(path.parent)
    package = f"bnnedge_user_{hashlib.sha256(os.fsencode(root)).hexdigest()[:12]}"
    name = ".".join((package, *path.relative_to(root).with_suffix("").parts))
    if package not in sys.modules:
        spec = importlib.machinery.ModuleSpec(package, None, is_package=True)
        spec.submodule_search_locations = [str(root)]
        sys.modules[package] = importlib.util.module_from_spec(spec)
    _Neighbours.install().add(path.parent, root)
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__bnnedge_mark__", None) == _mark(path):
        return known
    for parent in _parents(name)[1:]:
        importlib.import_module(parent)
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ConfigError(f"model file {path} cannot be imported as Python")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    module.__bnnedge_mark__ = _mark(path)  # type: ignore[attr-defined]
    return module


def _parents(name: str) -> list[str]:
    parts = name.split(".")[:-1]
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _root(folder: Path) -> Path:
    """The folder that holds the outermost package of ``folder``; ``folder`` itself if that is no package."""
    while (folder / "__init__.py").is_file() and folder.parent != folder:
        folder = folder.parent
    return folder


class _Neighbours(importlib.abc.MetaPathFinder):
    """Finds modules in the folders of the user's files, for imports that stand in files there."""

    def __init__(self) -> None:
        self.folders: list[Path] = []

    @classmethod
    def install(cls) -> _Neighbours:
        """The one finder of this process."""
        for finder in sys.meta_path:
            if isinstance(finder, cls):
                return finder
        finder = cls()
        sys.meta_path.insert(0, finder)
        return finder

    def add(self, *folders: Path) -> None:
        """Look in ``folders`` first, and forget modules of the same names from other folders of the user."""
        for folder in folders:
            if folder in self.folders:
                self.folders.remove(folder)
            for name, module in list(sys.modules.items()):
                file = getattr(module, "__file__", None)
                if file and "." not in name and Path(file).parent in self.folders and (folder / f"{name}.py").is_file():
                    del sys.modules[name]
            self.folders.insert(0, folder)

    def holds(self, frame: types.FrameType) -> bool:
        """Whether the code of ``frame`` stands in a file of the user."""
        path = Path(frame.f_code.co_filename)
        installed = {"site-packages", "dist-packages"} & set(path.parts)
        if installed or frame.f_globals.get("__name__", "").partition(".")[0] == "bnnedge":
            return False
        return any(path.is_relative_to(folder) for folder in self.folders)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is not None or fullname in sys.stdlib_module_names or not self.folders:
            return None
        importer = _importer()
        if importer is None or not self.holds(importer):
            return None
        return importlib.machinery.PathFinder.find_spec(fullname, [str(folder) for folder in self.folders], target)


def _importer() -> types.FrameType | None:
    """The frame with the import statement that is being carried out."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and (
        frame.f_code.co_filename.startswith("<frozen importlib") or frame.f_globals.get("__name__") == __name__
    ):
        frame = frame.f_back
    return frame


def _place(error: BaseException) -> str:
    """``FILE.py:LINE: in FUNCTION`` of the innermost frame in the user's files; empty if there is none."""
    place, trace, neighbours = "", error.__traceback__, _Neighbours.install()
    while trace is not None:
        if neighbours.holds(trace.tb_frame):
            code = trace.tb_frame.f_code
            place = f"{printable(Path(code.co_filename).name)}:{trace.tb_lineno}: in {code.co_name}"
        trace = trace.tb_next
    return place
