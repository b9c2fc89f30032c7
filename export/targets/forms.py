"""The table that a target writes its nodes by: one function a node class, its *form* in that format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from bnnedge.errors import ExportError
from bnnedge.export.graph import Node

Writer = TypeVar("Writer")
Form = TypeVar("Form", bound=Callable[..., None])


class Forms(Generic[Writer]):
    """Forms by node class. A subclass of a node needs a form of its own: it computes something else."""

    def __init__(self, target: str, operands: str = "") -> None:
        self._target = target
        self._operands = operands
        self._forms: dict[type[Node], Callable[[Any, Writer], None]] = {}

    def register(self, *kinds: type[Node]) -> Callable[[Form], Form]:
        """Let the decorated function, ``form(node, writer)``, write nodes of these classes.

        Raises ``ValueError`` for a class that has a form already.
        """

        def add(form: Form) -> Form:
            for kind in kinds:
                if kind in self._forms:
                    raise ValueError(f"two forms of {kind.__name__} are registered for the target {self._target}")
                self._forms[kind] = form
            return form

        return add

    def write(self, node: Node, writer: Writer) -> None:
        """Append ``node`` to the file. Raises ``ExportError`` naming layer, operator and target if it has no form."""
        form = self._forms.get(type(node))
        if form is None:
            operator = f"{type(node).__name__}{self._operands}"
            raise ExportError(f"{node.name}: the target {self._target} has no form for {operator}")
        form(node, writer)
