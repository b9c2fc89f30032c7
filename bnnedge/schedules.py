"""Values that change while training goes on, as pure functions of the time ``t``; a resumed run needs no state.

``t`` counts epochs or steps from 0, and may be a fraction where a formula allows it.

===========  ======================================================================  =================================
cosine       ``end + (start - end) (1 + cos(pi t / T)) / 2``                         Loshchilov and Hutter 2017,
                                                                                     arXiv:1608.03983, eq. 5
polynomial   ``(start - end) (1 - min(t, T) / T)^power + end``                       linear for power 1
staircase    ``start rate^floor(t / every)``                                         exponential decay in steps
steps        ``start rate^n``, n the number of milestones that are at most t
warm_up      ``start min((t + 1) / w, 1)``                                           linear, Goyal et al. 2017,
                                                                                     arXiv:1706.02677, section 2.2
===========  ======================================================================  =================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def cosine(t: float, total: float, start: float, end: float = 0.0) -> float:
    """A cosine from ``start`` at 0 to ``end`` at ``total``; afterwards the value stays."""
    return end + (start - end) * (1 + math.cos(math.pi * min(t / total, 1.0))) / 2


def polynomial(t: float, total: float, start: float, end: float = 0.0, power: float = 1.0) -> float:
    """A power law from ``start`` at 0 to ``end`` at ``total``, rising or falling; afterwards the value stays."""
    return (start - end) * math.pow(1 - min(t, total) / total, power) + end


def staircase(t: float, every: float, start: float, rate: float) -> float:
    """``start``, multiplied by ``rate`` after each ``every``."""
    return start * rate ** math.floor(t / every)


def steps(t: float, milestones: Sequence[float], start: float, rate: float) -> float:
    """``start``, multiplied by ``rate`` at each milestone."""
    return start * rate ** sum(milestone <= t for milestone in milestones)


def warm_up(t: float, length: float, start: float) -> float:
    """Rises to ``start`` over ``length``: ``start / length`` at 0, ``start`` at ``length - 1``."""
    return start * min((t + 1) / length, 1.0)
