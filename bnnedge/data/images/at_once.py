"""A bound of the memory that several threads use at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class AtOnce:
    """Lets threads work as long as what they hold together stays within a limit; the others wait."""

    def __init__(self, most: int) -> None:
        """``most`` is the limit; who needs more than that works alone."""
        self._most = self._left = most
        self._changed = threading.Condition()

    @contextmanager
    def share(self, amount: int) -> Iterator[None]:
        """Holds ``amount`` inside of ``with``, after waiting until there is as much."""
        taken = min(amount, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= taken)
            self._left -= taken
        try:
            yield
        finally:
            with self._changed:
                self._left += taken
                self._changed.notify_all()
