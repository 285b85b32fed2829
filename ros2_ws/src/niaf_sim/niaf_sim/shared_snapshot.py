"""One physics snapshot shared between two processes without a lock.

An anonymous memory file holds a sequence counter, a stamp and the generalised positions. The single
writer makes the counter odd while it writes; a reader copies and retries until it saw the same even
counter before and after. The descriptor is handed to the child, nothing is left behind on disk.
"""

from __future__ import annotations

import mmap
import os
import time

import numpy as np

FloatArray = np.ndarray

_SEQUENCE, _STAMP_NS, _STOP, _HEADER_WORDS = 0, 1, 2, 4
_WORD_BYTES = 8


class SharedSnapshot:
    """``positions`` generalised positions with their stamp; one writer, any number of readers."""

    def __init__(self, positions: int, descriptor: int | None = None) -> None:
        """Create a new block, or map the one behind ``descriptor`` (inherited from the parent)."""
        size = (_HEADER_WORDS + positions) * _WORD_BYTES
        if descriptor is None:
            descriptor = os.memfd_create("niaf_snapshot", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, size)
        elif os.fstat(descriptor).st_size != size:
            raise ValueError(
                f"shared snapshot holds {os.fstat(descriptor).st_size} bytes, {size} expected for "
                f"{positions} positions: writer and reader do not simulate the same scene"
            )
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, size)
        self._header = np.frombuffer(self._map, dtype=np.int64, count=_HEADER_WORDS)
        self._qpos = np.frombuffer(
            self._map, dtype=np.float64, offset=_HEADER_WORDS * _WORD_BYTES, count=positions
        )

    def write(self, stamp_ns: int, qpos: FloatArray) -> None:
        """Publish ``qpos`` (float64[positions]) measured at ``stamp_ns``."""
        header = self._header
        header[_SEQUENCE] += 1
        header[_STAMP_NS] = stamp_ns
        self._qpos[:] = qpos
        header[_SEQUENCE] += 1

    def read(self, out: FloatArray) -> int:
        """Copy the newest snapshot into ``out``; returns its stamp in ns, 0 before the first."""
        header = self._header
        for _ in range(1000):
            before = int(header[_SEQUENCE])
            if before % 2 == 0:
                stamp_ns = int(header[_STAMP_NS])
                out[:] = self._qpos
                if int(header[_SEQUENCE]) == before:
                    return stamp_ns
            time.sleep(0)
        raise RuntimeError("shared snapshot stays half written: its writer died while writing")

    def request_stop(self) -> None:
        """Tell the other side to end."""
        self._header[_STOP] = 1

    @property
    def stop_requested(self) -> bool:
        return bool(self._header[_STOP])
