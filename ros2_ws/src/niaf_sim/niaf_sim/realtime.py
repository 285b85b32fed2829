"""What a soft real-time process asks of Linux, and what it was granted."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Callable

_PR_SET_TIMERSLACK = 29


def request_fifo(priority: int) -> str:
    """Ask for SCHED_FIFO for the calling thread (threads it starts later inherit it).

    Returns what happened in words; never raises, because a robot PC without the right still works,
    with more jitter.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (PermissionError, OSError) as error:
        return (
            f"SCHED_FIFO {priority} refused ({error.strerror}); "
            "grant rtprio in /etc/security/limits.conf for less jitter"
        )
    return f"SCHED_FIFO {priority} granted"


def ordinary_scheduling() -> None:
    """Leave an inherited real-time class (for helpers that must never delay a control loop)."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def fine_timer_slack() -> None:
    """Wake from sleeps without the 50 us slack of ordinary threads."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux with glibc: the slack stays
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def avoid_shared_memory_stall() -> str | None:
    """Let this process talk UDP only, unless the user chose a transport; call before rclpy.init.

    Fast DDS opens the shared-memory port of a new reader inside ``publish`` and may sleep a third
    of a second there; a control loop must not stop each time somebody plots a topic. (rmw_fastrtps
    ignores the setting when discovery is limited to the local host.) Returns the user's own value.
    """
    chosen = os.environ.get("FASTDDS_BUILTIN_TRANSPORTS")
    if not chosen:
        os.environ["FASTDDS_BUILTIN_TRANSPORTS"] = "UDPv4"
    return chosen


def quiet_interpreter() -> None:
    """Freeze the garbage collector and shorten the thread switch interval (call after set-up)."""
    gc.collect()
    gc.freeze()
    gc.disable()
    sys.setswitchinterval(5e-4)


def thread_cpu_s() -> float:
    """CPU time of the calling thread."""
    return time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID)


def start_thread(
    name: str, target: Callable[[], None], priority: int
) -> tuple[threading.Thread, list[str]]:
    """Start a daemon thread that first asks for SCHED_FIFO; returns it and what was granted."""
    report: list[str] = []

    def run() -> None:
        report.append(request_fifo(priority))
        fine_timer_slack()
        target()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread, report
