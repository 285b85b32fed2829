"""A clock-driven loop around the compiled tick, in a thread of its own that never takes the GIL.

``_run`` sleeps until an absolute deadline, takes the newest measured state, ticks, publishes the
command and sleeps again. It calls no Python, allocates nothing and waits for nobody:

* the state comes through a seqlock: its writer makes the sequence odd, writes, makes it even; the
  reader retries a bounded number of times and then keeps the state it has. A position is carried
  forward by its velocity over its age, so that it belongs to the instant of the tick; one that did
  not change with the newest state is not, because a frozen reading must stay visible;
* a planned hand-over waits in a seqlocked mailbox, is copied between two ticks and begins at the
  instant that the plan names (``tick.flip``);
* requests (brake, estop, deactivate) are bits, obeyed between two ticks.

A deadline that was missed is skipped, never made up for: no burst of ticks. A state older than
``state_timeout_s`` damps; one last command is published and then no more, so that the drives' own
watchdogs take over. A loop that is late goes down the stop ladder (``lateness``), and so does one
whose commands wait to be sent, where whoever sends them says so (``ControlLoop.sent``).

Time is seconds on CLOCK_MONOTONIC since an epoch of the caller's choice (``ControlLoop.now_s``).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from niaf_impedance import tick as k
from niaf_impedance.admission import AdmissionVerdict, Reason, Verdict
from niaf_impedance.controller import ImpedanceController
from niaf_impedance.faults import Fault
from niaf_impedance.lateness import (
    LIMITS,
    M_LATE,
    M_WORST,
    RUNG_BRAKE,
    RUNG_DAMP,
    Lateness,
    LoopLimits,
    Rung,
    judge,
)
from niaf_impedance.planning import Plan, Snapshot
from niaf_impedance.realtime import fine_timer_slack, request_fifo
from niaf_impedance.timing import BIN_S, BINS, Percentiles, percentiles_of

FloatArray = np.ndarray
T = TypeVar("T")

_CLOCK_MONOTONIC, _CLOCK_THREAD_CPUTIME, _TIMER_ABSTIME, _EINTR = 1, 3, 1, 4
_READ_ATTEMPTS = 8
_CPU_EVERY = 256  # ticks between two looks at the thread's CPU clock

# words, int64: one writer each
W_STOP, W_PAUSE, W_PAUSED, W_REQUEST, W_STATE, W_COMMAND, W_MAIL, W_TICK = range(8)
W_HEARTBEAT, W_TICKS, W_MISSED, W_TORN, W_ADOPTED, W_OVERTAKEN, W_COMMANDS = range(8, 15)
W_SILENT, W_EVENT, W_CLEAR, W_SENT, W_SIZE = 15, 16, 17, 18, 24

# settings, float64
S_PERIOD_NS, S_EPOCH_NS, S_SIZE = 0, 1, 2

H_LATENESS, H_EXECUTION, H_AGE, H_ROWS = 0, 1, 2, 3

C_TIME, C_DUE, C_STATE_TIME, C_GRIPPER, C_MODE, C_FAULT, C_COUNT, C_TORQUE = range(8)

REQUEST_BRAKE, REQUEST_ESTOP, REQUEST_DEACTIVATE = 1, 2, 4

# where ``tick``'s arguments after t, q_in and dq_in stand
_ARGUMENTS = list(inspect.signature(k.tick.py_func).parameters)[3:]
_CF, _JP, _ST, _SI = (_ARGUMENTS.index(name) for name in ("cf", "jp", "st", "si"))
_TEL, _TAU = _ARGUMENTS.index("tel"), _ARGUMENTS.index("tau")
_PI, _PF, _PMETA, _PSF = (_ARGUMENTS.index(name) for name in ("pi", "pf", "pmeta", "psf"))

_F_STATE_STALE, _F_LOOP_LATE = int(Fault.STATE_STALE), int(Fault.LOOP_LATE)
_F_ESTOP = int(Fault.ESTOP_REQUESTED)

# -- what numba lacks: the C library's clock and ordered memory ------------------------------------
_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.uintp))
_clock_nanosleep = types.ExternalFunction(
    "clock_nanosleep", types.int32(types.int32, types.int32, types.uintp, types.uintp)
)
_write = types.ExternalFunction("write", types.intp(types.int32, types.uintp, types.uintp))


def _element(context, builder, array_type, array, index):
    view = context.make_array(array_type)(context, builder, array)
    return cgutils.get_item_pointer(context, builder, array_type, view, [index])


@intrinsic
def load_acquire(typing_context, array, index):
    """array[index] of an int64 vector; nothing after it is read before it."""

    def codegen(context, builder, signature, args):
        pointer = _element(context, builder, signature.args[0], *args)
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(array, types.intp), codegen


@intrinsic
def store_release(typing_context, array, index, value):
    """array[index] = value of an int64 vector; everything before it is written before it."""

    def codegen(context, builder, signature, args):
        pointer = _element(context, builder, signature.args[0], args[0], args[1])
        builder.store_atomic(args[2], pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), codegen


@intrinsic
def exchange(typing_context, array, index, value):
    """Put ``value`` into array[index] of an int64 vector and return what was there."""

    def codegen(context, builder, signature, args):
        pointer = _element(context, builder, signature.args[0], args[0], args[1])
        return builder.atomic_rmw("xchg", pointer, args[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def set_bits(typing_context, array, index, bits):
    """array[index] |= bits of an int64 vector, in one step."""

    def codegen(context, builder, signature, args):
        pointer = _element(context, builder, signature.args[0], args[0], args[1])
        return builder.atomic_rmw("or", pointer, args[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def fence(typing_context):
    """No access moves across it, neither in the compiler nor in the processor."""

    def codegen(context, builder, signature, args):
        builder.fence("seq_cst")
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(), codegen


@njit(cache=True, nogil=True)
def clock_ns(clock, timespec):
    """Nanoseconds on a POSIX clock; timespec int64[2] is scratch."""
    _clock_gettime(clock, timespec.ctypes.data)
    return timespec[0] * 1_000_000_000 + timespec[1]


@njit(cache=True, nogil=True)
def sleep_until(deadline_ns, timespec):
    """Return at or after ``deadline_ns`` on CLOCK_MONOTONIC."""
    while True:
        timespec[0] = deadline_ns // 1_000_000_000
        timespec[1] = deadline_ns % 1_000_000_000
        if _clock_nanosleep(_CLOCK_MONOTONIC, _TIMER_ABSTIME, timespec.ctypes.data, 0) != _EINTR:
            return


# -- seqlock ---------------------------------------------------------------------------------------
@njit(cache=True, nogil=True)
def begin_write(words, word):
    """The one writer of a cell makes its sequence odd: readers turn away."""
    store_release(words, word, words[word] + 1)
    fence()


@njit(cache=True, nogil=True)
def end_write(words, word):
    store_release(words, word, words[word] + 1)


@njit(cache=True, nogil=True)
def write_cell(words, word, cell, values):
    """Publish ``values`` in ``cell`` (both float64[m]) under the sequence ``words[word]``."""
    begin_write(words, word)
    for i in range(cell.shape[0]):
        cell[i] = values[i]
    end_write(words, word)


@njit(cache=True, nogil=True)
def read_cell(words, word, cell, values):
    """Copy ``cell`` into ``values``; False when a writer was in the way every time or before the
    first write. Then ``values`` may be a mixture."""
    for _ in range(_READ_ATTEMPTS):
        before = load_acquire(words, word)
        if before == 0 or before & 1:
            continue
        for i in range(cell.shape[0]):
            values[i] = cell[i]
        fence()
        if load_acquire(words, word) == before:
            return True
    return False


# -- the loop --------------------------------------------------------------------------------------
@njit(cache=True, nogil=True)
def _count(histogram, maxima, row, seconds):
    index = int(seconds / BIN_S)
    histogram[row, min(max(index, 0), BINS - 1)] += 1
    maxima[row] = max(maxima[row], seconds)


@njit(cache=True, nogil=True)
def _latch(si, mode, fault):
    si[k.SI_MODE], si[k.SI_FAULT], si[k.SI_FAULT_JOINT] = mode, fault, -1
    si[k.SI_GENERATION] += 1


@njit(cache=True, nogil=True)
def _following(si):
    mode = si[k.SI_MODE]
    return mode == k.MODE_TRACK or mode == k.MODE_BRAKE or mode == k.MODE_HOLD


@njit(cache=True, nogil=True)
def _obey(words, cf, jp, st, si, tel):
    """Carry out what was requested since the last tick."""
    if words[W_REQUEST] == 0:
        return
    request = exchange(words, W_REQUEST, 0)
    mode = si[k.SI_MODE]
    if mode == k.MODE_OFF:
        return
    if request & REQUEST_ESTOP:
        _latch(si, k.MODE_ESTOP, _F_ESTOP)
        return
    if request & (REQUEST_BRAKE | REQUEST_DEACTIVATE):
        k.brake(cf, jp, st, si, tel, st[k.ST_T])
    if request & REQUEST_DEACTIVATE and si[k.SI_DEACTIVATING] == 0:
        si[k.SI_DEACTIVATING] = 1
        si[k.SI_GENERATION] += 1


@njit(cache=True, nogil=True)
def _step_down(rung, cf, jp, st, si, tel):
    """Go down the ladder as far as the lateness of the loop demands."""
    if rung >= RUNG_DAMP:
        if _following(si):
            _latch(si, k.MODE_DAMP, _F_LOOP_LATE)
    elif rung == RUNG_BRAKE:
        k.brake(cf, jp, st, si, tel, st[k.ST_T])


@njit(cache=True, nogil=True)
def _adopt(words, mail, st, pi, pf, pmeta, psf):
    """Copy a plan that waits in the mailbox to where the tick looks for it."""
    sequence = load_acquire(words, W_MAIL)
    if sequence == words[W_ADOPTED] or sequence & 1:
        return
    mail_pi, mail_pf, mail_meta, mail_sf = mail
    pi[k.PI_WAITING] = 0
    pi[1:] = mail_pi[1:]
    pf[:] = mail_pf
    pmeta[:] = mail_meta
    psf[:] = mail_sf
    fence()
    if load_acquire(words, W_MAIL) != sequence:
        return  # overwritten meanwhile: the next tick looks again
    words[W_ADOPTED] = sequence
    if st[k.ST_T] > pf[k.PF_FLIP]:
        words[W_OVERTAKEN] += 1
    else:
        pi[k.PI_WAITING] = 1


@njit(cache=True, nogil=True)
def _run(
    words, settings, limits, memory, state_cell, command_cell, mail, histogram, maxima, cpu,
    timespec, state, measured, q, dq, command, event, arguments,
):
    """The loop; returns when W_STOP is set. See the module's text for the protocol.

    state [1 + 2 n], measured [2, n] (position as it was read; 1 where it changed with the newest
    state), q, dq [n], command [C_TORQUE + n]: scratch, so that nothing is allocated.
    limits, memory: of ``lateness.judge``. arguments: what ``tick`` takes after t, q and dq.
    """
    cf, jp, st, si = arguments[_CF], arguments[_JP], arguments[_ST], arguments[_SI]
    tel, tau = arguments[_TEL], arguments[_TAU]
    pi, pf, pmeta, psf = arguments[_PI], arguments[_PF], arguments[_PMETA], arguments[_PSF]
    n = tau.shape[0]
    period = int(settings[S_PERIOD_NS])
    cpu_begin = clock_ns(_CLOCK_THREAD_CPUTIME, timespec)
    cpu[2] = clock_ns(_CLOCK_MONOTONIC, timespec)
    deadline = before = clock_ns(_CLOCK_MONOTONIC, timespec)
    deadline += period
    resumed = True
    has_state = False
    while load_acquire(words, W_STOP) == 0:
        sleep_until(deadline, timespec)
        woke = clock_ns(_CLOCK_MONOTONIC, timespec)
        words[W_HEARTBEAT] += 1
        epoch = int(settings[S_EPOCH_NS])
        t = (woke - epoch) * 1e-9
        if load_acquire(words, W_PAUSE) != 0:
            store_release(words, W_PAUSED, 1)
            resumed = True
            deadline = max(deadline + period, woke)
            continue
        if words[W_PAUSED] != 0:
            store_release(words, W_PAUSED, 0)
            fence()
            if load_acquire(words, W_PAUSE) != 0:
                continue
        if exchange(words, W_CLEAR, 0) != 0:
            histogram[:] = 0
            maxima[:] = 0.0
            words[W_TICKS] = words[W_MISSED] = words[W_TORN] = 0
            memory[M_LATE] = memory[M_WORST] = 0.0
            cpu_begin = clock_ns(_CLOCK_THREAD_CPUTIME, timespec)
            cpu[2] = deadline
        lateness = (woke - deadline) * 1e-9
        gap = (woke - before) * 1e-9
        before = woke
        if resumed:  # the pause is not a period
            st[k.ST_T] = max(st[k.ST_T], t - 1e-9 * period)
            gap = 0.0
            resumed = False
        waiting = 0.0  # how long the oldest command that was not sent has been ready
        if words[W_SENT] >= 0:
            waiting = (words[W_COMMANDS] - words[W_SENT]) * period * 1e-9
        begin_write(words, W_TICK)
        rung = judge(limits, memory, max(lateness, waiting), gap)
        _step_down(rung, cf, jp, st, si, tel)
        _obey(words, cf, jp, st, si, tel)
        _adopt(words, mail, st, pi, pf, pmeta, psf)
        if read_cell(words, W_STATE, state_cell, state):
            if not has_state or state[0] != command[C_STATE_TIME]:
                for i in range(n):
                    measured[1, i] = has_state and state[1 + i] != measured[0, i]
                    measured[0, i] = state[1 + i]
                    dq[i] = state[1 + n + i]
            has_state = True
            command[C_STATE_TIME] = state[0]
        else:
            words[W_TORN] += has_state
        if has_state:
            following = _following(si)
            timeout = cf[k.CF_STATE_TIMEOUT]
            age = t - command[C_STATE_TIME]
            stale = not age <= timeout
            if stale:
                for i in range(n):
                    dq[i] = 0.0  # no velocity is known any more
                if following:
                    _latch(si, k.MODE_DAMP, _F_STATE_STALE)
            for i in range(n):
                q[i] = measured[0, i]
                since = dq[i] * min(max(age, 0.0), timeout)
                if measured[1, i] != 0.0 and np.isfinite(since):
                    q[i] += since
            k.tick(t, q, dq, *arguments)
        end_write(words, W_TICK)
        if has_state:
            silent = (
                si[k.SI_MODE] == k.MODE_OFF or (stale and not following) or k.silent(si, tel, tau))
            words[W_SILENT] = silent
            if not silent:
                words[W_COMMANDS] += 1
                command[C_TIME] = t
                command[C_DUE] = t - lateness
                command[C_GRIPPER] = st[k.ST_GRIPPER]
                command[C_MODE] = si[k.SI_MODE]
                command[C_FAULT] = si[k.SI_FAULT]
                command[C_COUNT] = words[W_COMMANDS]
                for i in range(n):
                    command[C_TORQUE + i] = tau[i]
                write_cell(words, W_COMMAND, command_cell, command)
                _write(words[W_EVENT], event.ctypes.data, 8)
        done = clock_ns(_CLOCK_MONOTONIC, timespec)
        words[W_TICKS] += 1
        _count(histogram, maxima, H_LATENESS, lateness)
        _count(histogram, maxima, H_EXECUTION, (done - woke) * 1e-9)
        if has_state and not stale:
            _count(histogram, maxima, H_AGE, (done - epoch) * 1e-9 - command[C_STATE_TIME])
        deadline += period
        if done > deadline:
            skipped = (done - deadline) // period + 1
            deadline += skipped * period
            words[W_MISSED] += skipped
        if words[W_TICKS] % _CPU_EVERY == 0:
            cpu[0] = clock_ns(_CLOCK_THREAD_CPUTIME, timespec) - cpu_begin
            cpu[1] = done - cpu[2]
    cpu[0] = clock_ns(_CLOCK_THREAD_CPUTIME, timespec) - cpu_begin
    cpu[1] = clock_ns(_CLOCK_MONOTONIC, timespec) - cpu[2]


# -- Python side -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Command:
    """One torque command: tau [n] Nm, computed at ``t_s`` (due at ``due_s``) from the state of
    ``state_s``."""

    t_s: float
    due_s: float
    state_s: float
    tau_nm: FloatArray
    gripper_m: float
    mode: int
    fault: int
    count: int


@dataclass(frozen=True)
class LoopStatistics:
    """Since start or the last ``clear_statistics``. ``age``: of the state when its command left.

    missed: deadlines without a tick of their own; late: ticks that ``lateness`` counts as late;
    torn: ticks that kept the previous state because its writer was in the way; core_share: CPU time
    of the thread over wall time; outcome: what lateness has led to since activation.
    """

    ticks: int
    missed: int
    late: int
    torn: int
    overtaken: int
    lateness: Percentiles
    execution: Percentiles
    age: Percentiles
    core_share: float
    outcome: Rung


class LoopEndedError(RuntimeError):
    """The loop's thread has ended: nothing is commanded, and the drives' own watchdogs damp."""


class ControlLoop:
    """Runs a controller's tick at ``rate_hz`` in its own thread.

    One I/O thread offers states and reads commands; any thread may plan and commit references and
    request stops. While the loop runs, call no other changing method of the controller, except
    inside ``paused()``. Times are ``now_s()`` of this loop.

    Attributes:
        lateness: what the loop's own lateness has led to.
    """

    def __init__(
        self, controller: ImpedanceController, rate_hz: float, limits: LoopLimits = LIMITS,
    ) -> None:
        self.controller, self.rate_hz = controller, rate_hz
        self.lateness = Lateness(limits, 1.0 / rate_hz)
        n = controller.n
        self._words = np.zeros(W_SIZE, dtype=np.int64)
        self._words[W_SENT] = -1
        settings = self._settings = np.zeros(S_SIZE)
        settings[S_PERIOD_NS] = round(1e9 / rate_hz)
        self._epoch_ns = 0
        self.set_epoch(time.monotonic())
        self._state_cell, self._command_cell = np.zeros(1 + 2 * n), np.zeros(C_TORQUE + n)
        self._offered, self._read = np.zeros(1 + 2 * n), np.zeros(C_TORQUE + n)
        self._histogram = np.zeros((H_ROWS, BINS), dtype=np.int64)
        self._maxima = np.zeros(H_ROWS)
        self._cpu = np.zeros(3, dtype=np.int64)
        # The tick gets its own tables for a waiting plan; the controller's are the mailbox.
        mine = list(controller._tick_arguments)
        self._si = mine[_SI]
        mail = tuple(mine[index] for index in (_PI, _PF, _PMETA, _PSF))
        for index in (_PI, _PF, _PMETA, _PSF):
            mine[index] = mine[index].copy()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._words[W_EVENT] = self._event
        self._arguments = (
            self._words, settings, self.lateness.limits, self.lateness.memory, self._state_cell,
            self._command_cell, mail, self._histogram, self._maxima, self._cpu,
            np.zeros(2, dtype=np.int64), np.zeros(1 + 2 * n), np.zeros((2, n)), np.zeros(n),
            np.zeros(n), np.zeros(C_TORQUE + n), np.ones(1, dtype=np.uint64), tuple(mine),
        )
        self._thread: threading.Thread | None = None
        self.scheduling = "not started"
        # Compile now what would be compiled, holding the GIL, when the arm moves already.
        self._words[W_STOP] = 1
        _run(*self._arguments)
        set_bits_of(self._words, W_REQUEST, 0)
        store_word(self._words, W_PAUSE, 0)
        words = np.zeros(1, dtype=np.int64)
        write_cell(words, 0, self._state_cell.copy(), self._offered)
        read_cell(words, 0, self._command_cell, self._read.copy())

    # -- life -------------------------------------------------------------------------------------
    def start(self, priority: int = 0, core: int | None = None) -> str:
        """Start the thread, at SCHED_FIFO ``priority`` and on ``core`` if given and allowed.

        Returns what was granted; without it the loop runs all the same.
        """
        if self._thread is not None:
            raise RuntimeError("the loop runs already")
        self._words[W_STOP] = 0
        ready = threading.Event()

        def run() -> None:
            fine_timer_slack()
            said = [request_fifo(priority)]
            if core is not None:
                try:
                    os.sched_setaffinity(0, {core})
                    said.append(f"on core {core}")
                except OSError as error:
                    said.append(f"core {core} refused ({error.strerror})")
            self.scheduling = ", ".join(said)
            ready.set()
            _run(*self._arguments)

        self._thread = threading.Thread(target=run, name="niaf control loop", daemon=True)
        self._thread.start()
        ready.wait()
        return self.scheduling

    def stop(self) -> None:
        """End the thread after its current period. Commands stop: ``deactivate`` first."""
        if self._thread is not None:
            store_word(self._words, W_STOP, 1)
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        self.stop()
        if self._event >= 0:
            os.close(self._event)
            self._event = -1

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def now_s(self) -> float:
        """The loop's clock."""
        return (time.monotonic_ns() - self._epoch_ns) * 1e-9

    def set_epoch(self, monotonic_s: float) -> None:
        """The loop's time is zero at this instant of CLOCK_MONOTONIC. Shift it by microseconds at
        any time (a clock that is slewed), by more only inside ``paused()``."""
        self._epoch_ns = round(monotonic_s * 1e9)
        self._settings[S_EPOCH_NS] = self._epoch_ns

    # -- states and commands ----------------------------------------------------------------------
    def offer_state(self, t_s: float, q: FloatArray, dq: FloatArray) -> None:
        """The newest measured state: q, dq [n], measured at ``t_s``. One thread only."""
        n, offered = self.controller.n, self._offered
        offered[0], offered[1 : 1 + n], offered[1 + n :] = t_s, q, dq
        write_cell(self._words, W_STATE, self._state_cell, offered)

    def read_command(self) -> Command | None:
        """The newest command; None before the first. ``count`` tells a new one from the last."""
        values = self._read
        while not read_cell(self._words, W_COMMAND, self._command_cell, values):
            if self._words[W_COMMAND] == 0 or not self.running:
                return None
            time.sleep(1e-4)  # the loop was suspended while it wrote
        return Command(
            float(values[C_TIME]), float(values[C_DUE]), float(values[C_STATE_TIME]),
            values[C_TORQUE:].copy(), float(values[C_GRIPPER]), int(values[C_MODE]),
            int(values[C_FAULT]), int(values[C_COUNT]),
        )

    def sent(self, count: int) -> None:
        """The command of this ``count`` is on its way to the arm. From the first call on, commands
        that wait to be sent make the loop late; a sender that ends calls ``sent(-1)``."""
        self._words[W_SENT] = count

    @property
    def command_fd(self) -> int:
        """An eventfd that becomes readable with every command (``os.eventfd_read`` clears it)."""
        return self._event

    @property
    def heartbeat(self) -> int:
        """Periods begun: it stands still when the loop does."""
        return int(self._words[W_HEARTBEAT])

    # -- requests ---------------------------------------------------------------------------------
    def brake(self) -> None:
        set_bits_of(self._words, W_REQUEST, REQUEST_BRAKE)

    def estop(self) -> None:
        set_bits_of(self._words, W_REQUEST, REQUEST_ESTOP)

    def deactivate(self) -> None:
        set_bits_of(self._words, W_REQUEST, REQUEST_DEACTIVATE)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No tick and no command inside: for ``activate`` and ``reset`` of the controller.

        The drives hear nothing meanwhile; keep it shorter than their watchdog. One thread only; it
        may pause again inside.
        """
        words = self._words
        if words[W_PAUSE] != 0:
            yield
            return
        store_word(words, W_PAUSE, 1)
        try:
            while self.running and words[W_PAUSED] == 0:
                time.sleep(0.2 / self.rate_hz)
            yield
        finally:
            store_word(words, W_PAUSE, 0)

    def activate(
        self, q: FloatArray, dq: FloatArray, gripper_m: float | None = None,
        tau_start_nm: FloatArray | None = None,
    ) -> None:
        """``ImpedanceController.activate`` now."""
        with self.paused():
            self.lateness.clear()
            self.controller.activate(self.now_s(), q, dq, gripper_m, tau_start_nm)

    def reset(self, q: FloatArray | None = None, dq: FloatArray | None = None) -> None:
        """``ImpedanceController.reset`` now; q, dq [n]: the newest state, ticked with or not."""
        with self.paused():
            self.controller.reset(self.now_s(), q, dq)
            self.lateness.clear()

    # -- new references ---------------------------------------------------------------------------
    def look(self, read: Callable[[], T]) -> T:
        """``read`` (which changes nothing of the controller and may run several times) on the
        result of one tick, not on two halves."""
        words = self._words
        while True:
            before = int(words[W_TICK])
            if before % 2 == 0:
                seen = read()
                if int(words[W_TICK]) == before:
                    return seen
            time.sleep(0.0)

    def snapshot(self) -> Snapshot:
        """``ImpedanceController.snapshot`` of one tick."""
        return self.look(self.controller.snapshot)

    def commit(self, plan: Plan) -> AdmissionVerdict:
        """Put an admitted plan into the mailbox of the loop; OVERTAKEN when it came too late.

        The plan needs a ``lead_s`` that covers planning and two periods.
        """
        words, verdict = self._words, plan.verdict
        if verdict.accepted and plan.flip_s < self.now_s() + 1.0 / self.rate_hz:
            return replace(
                verdict, verdict=Verdict.REFUSED, reason=Reason.OVERTAKEN,
                text="the loop reached the hand-over while the reference was judged; plan again "
                     "with a longer lead",
            )
        store_word(words, W_MAIL, int(words[W_MAIL]) | 1)
        try:
            verdict = self.controller.commit(plan)
        finally:
            # an even number: a new one for a new plan, the old one when nothing was written
            step = 1 if verdict.accepted else -1
            store_word(words, W_MAIL, int(words[W_MAIL]) + step)
        return verdict

    # -- figures ----------------------------------------------------------------------------------
    def clear_statistics(self) -> None:
        """Counters and histograms start anew with the next tick."""
        store_word(self._words, W_CLEAR, 1)

    @property
    def statistics(self) -> LoopStatistics:
        words, cpu = self._words, self._cpu
        lateness, execution, age = (
            percentiles_of(counts, float(worst))
            for counts, worst in zip(self._histogram.copy(), self._maxima, strict=True)
        )
        return LoopStatistics(
            lateness.count, int(words[W_MISSED]), self.lateness.late, int(words[W_TORN]),
            int(words[W_OVERTAKEN]) + int(self._si[k.SI_OVERTAKEN]), lateness, execution,
            age, float(cpu[0]) / max(float(cpu[1]), 1.0), self.lateness.outcome,
        )


@njit(cache=True)
def store_word(words, word, value):
    """Store a word, and let nothing that follows begin earlier."""
    exchange(words, word, value)


@njit(cache=True)
def set_bits_of(words, word, bits):
    """``set_bits`` for Python."""
    set_bits(words, word, bits)
