"""What a conversion to binary layers took, and what it left float."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KeptLayer:
    """A layer with weights that stays float."""

    name: str
    """Its module path; for weights that belong to no layer, that of the parameter."""
    kind: str
    """Its class; for weights that belong to no layer, the operation that multiplies by them."""
    reason: str


@dataclass(frozen=True)
class Conversion:
    """What ``bnnedge.binarize`` made of a network; ``str()`` gives a table."""

    binary: tuple[str, ...]
    """Module paths of the layers that became binary."""
    already_binary: tuple[str, ...]
    """Module paths of the layers that were binary before."""
    kept: tuple[KeptLayer, ...]
    """The layers that stay float, each with the reason."""
    warned: tuple[str, ...]
    """The warnings that were given."""
    chosen_by: str
    """What chose the layers: a predicate, the flow of data in a run or a trace, or the order of registration."""

    def __str__(self) -> str:
        rows = [(name, "binary", "") for name in self.binary]
        rows += [(name, "binary", "was binary before") for name in self.already_binary]
        rows += [(layer.name, "float", f"{layer.kind}: {layer.reason}") for layer in self.kept]
        width = max((len(name) for name, *_ in rows), default=0)
        lines = [f"{name:<{width}}  {what:<6}  {why}".rstrip() for name, what, why in rows]
        lines.append(f"chosen by {self.chosen_by}")
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warned)])
