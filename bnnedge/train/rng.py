"""The state of the random number generators, and the seeds that are derived from a run's seed."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnnedge.errors import CheckpointError

_WORDS = 624
"""32-bit words in the state of the Mersenne Twister, the generator of NumPy and Python."""


def rng_state() -> dict[str, Any]:
    """State of the global generators of PyTorch (CPU and this GPU), NumPy and Python, as plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        "numpy": [str(name), [int(k) for k in keys], int(position), int(has_gauss), float(gauss)],
        "python": list(random.getstate()),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Inverse of ``rng_state``. A GPU's state is left alone if none was saved."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def check_rng_state(state: dict[str, Any], what: str) -> None:
    """Raise ``CheckpointError``, which begins with ``what``, unless ``state`` is one that ``rng_state`` can give.

    NumPy takes any position, and then reads outside of the state.
    """
    try:
        torch_states = [state["torch"], *state["cuda"]]
        kind, keys, position, has_gauss, gauss = state["numpy"]
        version, internal, next_gauss = state["python"]
        *words, index = internal
        python_state = (version, tuple(internal), next_gauss)
        random.Random().setstate(python_state)
        sound = (
            all(isinstance(s, Tensor) and s.dtype == torch.uint8 and s.dim() == 1 for s in torch_states)
            and torch_states[0].shape == torch.get_rng_state().shape
            and kind == "MT19937"
            and all(len(w) == _WORDS and all(0 <= word < 2**32 for word in w) for w in (keys, words))
            and 0 <= position <= _WORDS
            and 0 <= index <= _WORDS
            and has_gauss in (0, 1)
            and all(isinstance(number, int | float) for number in (gauss, next_gauss or 0.0))
        )
        torch.Generator().set_state(torch_states[0])
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, IndexError):
        sound = False
    if not sound:
        raise CheckpointError(f"{what}: expected the state of the random generators, found something else")


def seed_everything(seed: int) -> None:
    """Set the global generators of PyTorch, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # NumPy's seed has 32 bits
    random.seed(seed)


def mixed_seed(*numbers: int) -> int:
    """One seed of several numbers; different numbers give unrelated random streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The source of an epoch's data order and augmentation."""
    return torch.Generator().manual_seed(mixed_seed(seed, epoch))
