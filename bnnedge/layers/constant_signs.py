"""What is said of a binary layer whose input has the same sign everywhere: it learns nothing, and passes nothing on."""

from __future__ import annotations


def constant_signs_text(layer: str, sign: float, where: str = "") -> str:
    """The warning about ``layer``, whose input has ``sign`` everywhere; ``where`` names the inputs, if not all."""
    never = "never negative" if sign > 0 else "always negative"
    return (
        f"{layer}: the input of this binary layer is {never}{f' {where}' if where else ''}, so all its signs are "
        f"{sign:+.0f} and it learns nothing from them; move the activation in front of it behind the next batch "
        "normalisation, or replace it by one with values of both signs (Hardtanh, PReLU)"
    )
