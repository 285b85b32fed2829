"""What the control process asks of Linux, and what it was granted."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
import time
from collections.abc import Iterator

_PR_SET_TIMERSLACK = 29
_CAP_IPC_LOCK = 14


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


@contextlib.contextmanager
def ordinary_priority() -> Iterator[None]:
    """Leave SCHED_FIFO for as long as something is compiled, which would starve other processes."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    lowered = policy == os.SCHED_FIFO
    if lowered:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    try:
        yield
    finally:
        if lowered:
            os.sched_setscheduler(0, policy, parameters)


def fine_timer_slack() -> None:
    """Wake from sleeps without the 50 us slack of ordinary threads."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux with glibc: the slack stays
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def avoid_shared_memory_stall() -> str | None:
    """Use UDP between processes unless the user chose a transport; call before ``rclpy.init``.

    Fast DDS opens the shared-memory port of a new reader inside ``publish`` and may sleep there
    for a third of a second: the loop must not stop because somebody plots a topic. (rmw_fastrtps
    ignores the setting when discovery is limited to the local host.) Returns the user's own value.
    """
    chosen = os.environ.get("FASTDDS_BUILTIN_TRANSPORTS")
    if not chosen:
        os.environ["FASTDDS_BUILTIN_TRANSPORTS"] = "UDPv4"
    return chosen


def quiet_interpreter() -> None:
    """Freeze and stop the garbage collector, switch threads sooner. Call after set-up."""
    gc.collect()
    gc.freeze()
    gc.disable()
    sys.setswitchinterval(5e-4)


def lock_memory() -> str:
    """Keep the pages of this process in memory once they were touched; says what happened.

    Pages that are never touched cost nothing. Not asked for where the process may lock a limited
    amount only: the lock would hold for later memory too, which could then not be had at all.
    """
    remedy = "grant 'memlock unlimited' in /etc/security/limits.conf or start with CAP_IPC_LOCK"
    limit, hard_limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard_limit == resource.RLIM_INFINITY != limit:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard_limit, hard_limit))
        limit = hard_limit
    if limit != resource.RLIM_INFINITY and not _may_lock_anything():
        return (
            f"memory not locked (memlock is limited to {limit // 1024} KiB): a page fault may "
            f"delay a tick; {remedy}"
        )
    current, future, on_fault = 1, 2, 4
    library = ctypes.CDLL(None, use_errno=True)
    if library.mlockall(current | future | on_fault) == 0:
        return "memory locked"
    reason = os.strerror(ctypes.get_errno())
    return f"memory lock refused ({reason}): a page fault may delay a tick; {remedy}"


def _may_lock_anything() -> bool:
    """Whether CAP_IPC_LOCK is in force: then RLIMIT_MEMLOCK is not."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_IPC_LOCK & 1)
    return False


class CollectorWatch:
    """Counts and times the passes of Python's garbage collector, in whatever thread they run.

    After ``quiet_interpreter`` the collector runs only when somebody calls it: with the libraries
    of this process loaded a full pass stops every Python thread for about a tenth of a second.

    Attributes:
        passes: how many since ``start``.
        longest_s: the longest.
        last_s: the newest.
    """

    def __init__(self) -> None:
        self.passes = 0
        self.longest_s = self.last_s = 0.0
        self._began_s = 0.0

    def start(self) -> None:
        """Count from now on."""
        self.passes, self.longest_s, self.last_s = 0, 0.0, 0.0
        if self._note not in gc.callbacks:
            gc.callbacks.append(self._note)

    def stop(self) -> None:
        """Count no more."""
        if self._note in gc.callbacks:
            gc.callbacks.remove(self._note)

    def _note(self, phase: str, info: dict[str, int]) -> None:
        now_s = time.monotonic()
        if phase == "start":
            self._began_s = now_s
        else:
            self.last_s = now_s - self._began_s
            self.longest_s = max(self.longest_s, self.last_s)
            self.passes += 1
