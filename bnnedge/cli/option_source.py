"""The options of a training method, read from its source file, because importing a method imports torch.

Only what options dataclasses are made of is understood: annotated fields whose annotation and default are written with
built-in types, literals and names from the top level of a file, and base classes from the same file or imported by
name from another one of this package. ``tests/cli/test_option_source.py`` compares the result with the imported
dataclass of every registered method.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import bnnedge
from bnnedge.options import sentences

_PACKAGE = Path(bnnedge.__file__).parent
_KNOWN_NAMES = {"bool": bool, "int": int, "float": float, "str": str, "dict": dict, "tuple": tuple, "Literal": Literal}


@dataclass(frozen=True)
class Option:
    """One field of an options dataclass."""

    name: str
    annotation: Any
    default: Any
    sentence: str
    """The string under the field, on one line."""


def read_options(path: str) -> tuple[Option, ...]:
    """Return the fields of the ``Options`` of the method class at ``path``, "package.module:Class", in their order."""
    module, _, name = path.partition(":")
    options_class = _find_options(*_definition(module, name))
    return tuple(_fields(*options_class).values())


@dataclass(frozen=True)
class _Source:
    """What stands at the top level of a file, by name."""

    classes: dict[str, ast.ClassDef]
    values: dict[str, ast.expr]
    imports: dict[str, str]
    """The module of this package that a name is imported from."""


@cache
def _source(module: str) -> _Source:
    file = _PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    source = _Source({}, {}, {})
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.ClassDef):
            source.classes[statement.name] = statement
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            source.values[statement.targets[0].id] = statement.value
        elif isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("bnnedge."):
            source.imports.update({alias.name: str(statement.module) for alias in statement.names})
    return source


def _definition(module: str, name: str) -> tuple[str, ast.ClassDef]:
    """Return the class called ``name`` in ``module``, and the module in which it is written."""
    source = _source(module)
    if name in source.imports:
        return _definition(source.imports[name], name)
    if name not in source.classes:
        raise LookupError(f"{module} defines no class {name} and imports none from this package")
    return module, source.classes[name]


def _bases(module: str, definition: ast.ClassDef) -> Iterator[tuple[str, ast.ClassDef]]:
    for base in definition.bases:
        name = base.value if isinstance(base, ast.Subscript) else base  # Method[RbnnOptions]
        if isinstance(name, ast.Name) and name.id in {**_source(module).classes, **_source(module).imports}:
            yield _definition(module, name.id)


def _find_options(module: str, method: ast.ClassDef) -> tuple[str, ast.ClassDef]:
    for statement in method.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="Options")], value=ast.Name(id=name)):
                return _definition(module, name)
    for base_module, base in _bases(module, method):
        return _find_options(base_module, base)
    raise LookupError(f"class {method.name} of {module} names no Options")


def _fields(module: str, definition: ast.ClassDef) -> dict[str, Option]:
    found: dict[str, Option] = {}
    for base_module, base in reversed(list(_bases(module, definition))):
        found |= _fields(base_module, base)
    docs = sentences(definition)
    for statement in definition.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as default):
                if not ast.unparse(annotation).startswith("ClassVar"):
                    sentence = docs.get(name) or (found[name].sentence if name in found else "")
                    found[name] = Option(name, _value(module, annotation), _value(module, default), sentence)
    return found


def _value(module: str, expression: ast.expr) -> Any:
    """Evaluate an annotation or a default."""
    names = {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)} - set(_KNOWN_NAMES)
    source = _source(module)
    known = dict(_KNOWN_NAMES)
    for name in names:
        if name in source.imports:
            known[name] = _value(source.imports[name], ast.Name(name, ast.Load()))
        elif name in source.values:
            known[name] = _value(module, source.values[name])
        else:
            raise LookupError(f"{module} defines no value {name} and imports none from this package")
    code = compile(ast.fix_missing_locations(ast.Expression(expression)), module, "eval")
    return eval(code, {"__builtins__": {}}, known)
