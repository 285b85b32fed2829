"""Buffers of the tick's references: who may write which one, while the tick reads others.

A plan writes two buffers off the tick. They must not be read by the running composite, by the plan
that waits for its flip, or by a plan that was judged but not yet committed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import numpy as np

from niaf_field import aligned_empty

FloatArray = np.ndarray


class BufferPool:
    """``rows`` [count, size] with owners. Buffer 0 is the tick's own and is never given away.

    ``in_use`` names the buffers that the tick reads or will read after its flip.
    """

    def __init__(self, count: int, size: int, in_use: Callable[[], Iterable[int]]) -> None:
        row = -(-size // 8) * 8  # every row starts on a cache line
        self.rows = aligned_empty(count * row).reshape(count, row)
        self.rows[:] = 0.0
        self._in_use = in_use
        self._owner = [0] * count
        self._serial = 0
        # Held for a few list operations, never while anything is computed: taking and confirming
        # must not interleave, or a buffer could be confirmed to one plan and taken by the next.
        self._lock = threading.Lock()

    def take(self, count: int, kept: Iterable[int]) -> tuple[int, tuple[int, ...]]:
        """(serial, buffers) of a new plan that itself reads the buffers ``kept``.

        The buffers longest without a new owner are given, so that a plan that waits for its commit
        keeps its own as long as possible; if it does lose them, ``confirm`` says so.
        """
        with self._lock:
            taken = {0, *kept, *self._in_use()}
            free = sorted(
                (index for index in range(len(self._owner)) if index not in taken),
                key=lambda index: self._owner[index],
            )
            self._serial += 1
            buffers = tuple(free[:count])
            for index in buffers:
                self._owner[index] = self._serial
            return self._serial, buffers

    def confirm(
        self, serial: int, buffers: Iterable[int], commit: Callable[[], None]
    ) -> bool:
        """Do ``commit`` (which puts ``buffers`` in use) if they still belong to ``serial``."""
        with self._lock:
            if any(self._owner[index] != serial for index in buffers):
                return False
            commit()
            return True
