"""What the simulator's threads ask of Linux besides what the controller does."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from niaf_impedance.realtime import fine_timer_slack, request_fifo


def ordinary_scheduling() -> None:
    """Leave an inherited real-time class (for helpers that must never delay a control loop)."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


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
