"""What the control process asks of Linux, and what it was granted."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys

_PR_SET_TIMERSLACK = 29


def request_fifo(priority: int) -> str:
    """Ask for SCHED_FIFO for this thread and those started later; says what happened.

    Call it before ``rclpy.init``: the middleware's receive threads inherit the class, and without
    it the latency of a state under load is about eight times worse.
    """
    if priority <= 0:
        return "SCHED_FIFO not asked for (realtime_priority is 0)"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (OSError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return (
            f"SCHED_FIFO {priority} refused ({reason}): expect late ticks under load; grant "
            "'rtprio' in /etc/security/limits.conf or start with CAP_SYS_NICE"
        )
    return f"SCHED_FIFO {priority} granted"


def fine_timer_slack() -> None:
    """Wake from sleeps without the 50 us slack of ordinary threads."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux with glibc: the slack stays
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def avoid_shared_memory_stall() -> None:
    """Use UDP between processes unless the user chose a transport; call before ``rclpy.init``.

    Fast DDS opens the shared-memory port of a new reader inside ``publish`` and may sleep there
    for a third of a second: the loop must not stop because somebody plots a topic.
    """
    os.environ.setdefault("FASTDDS_BUILTIN_TRANSPORTS", "UDPv4")


def quiet_interpreter() -> None:
    """Freeze and stop the garbage collector, switch threads sooner. Call after set-up."""
    gc.collect()
    gc.freeze()
    gc.disable()
    sys.setswitchinterval(5e-4)
