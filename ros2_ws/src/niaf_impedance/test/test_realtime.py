"""What the process asks of Linux and of its own interpreter."""

from __future__ import annotations

import gc
import resource

import pytest

from niaf_impedance import realtime
from niaf_impedance.realtime import CollectorWatch, lock_memory


def test_passes_of_the_collector_are_counted_and_timed():
    watch = CollectorWatch()
    watch.start()
    watch.start()  # once is enough
    try:
        enabled = gc.isenabled()
        gc.disable()
        before = watch.passes
        gc.collect()
        gc.collect()
        assert watch.passes == before + 2
        assert 0.0 < watch.last_s <= watch.longest_s
    finally:
        watch.stop()
        if enabled:
            gc.enable()
    gc.collect()
    assert watch.passes == before + 2, "it went on after stop"
    assert watch._note not in gc.callbacks


@pytest.fixture
def limited(monkeypatch):
    """A process that may lock 64 KiB; what it asked of the C library."""
    asked = []

    class Library:
        def mlockall(self, flags):
            asked.append(flags)
            return 0

    monkeypatch.setattr(realtime, "_may_lock_anything", lambda: False)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))
    monkeypatch.setattr(realtime.ctypes, "CDLL", lambda *_, **__: Library())
    return asked


def test_a_process_of_limited_memlock_only_says_so(limited):
    """Locking future memory under a limit makes later allocations fail."""
    text = lock_memory()
    assert not limited
    assert "limited to 64 KiB" in text and "limits.conf" in text


def test_memory_is_locked_on_fault_where_nothing_forbids_it(limited, monkeypatch):
    monkeypatch.setattr(realtime, "_may_lock_anything", lambda: True)
    assert lock_memory() == "memory locked"
    assert limited == [1 | 2 | 4]
