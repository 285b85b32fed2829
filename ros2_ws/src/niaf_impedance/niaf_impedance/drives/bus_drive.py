"""What drives on a python-can bus share: one frame to every motor, answers until one deadline.

``BusDrive`` sends, collects, counts and tells late answers from missing ones; it knows no frame. A
back end says how frames are made and what an answer means.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import can
import numpy as np

from niaf_impedance.drives.back_end import all_or_none, mark_missing, not_confirmed, refusal
from niaf_impedance.drives.bus_load import BusLoad
from niaf_impedance.drives.interface import (
    DRIVE_FAULT_TEXT,
    NOTHING_CLIPPED,
    DriveCommand,
    DriveError,
    DriveFault,
    DriveState,
    Saturation,
    WriteReport,
    check_command,
)

_MOST_QUEUED = 256  # frames taken without waiting: a flooded bus must not hold the loop
_BUS_OFF_BIT = 0x40  # of the id of a SocketCAN error frame
_ROUNDS_TO_DISABLE = 5

Self = TypeVar("Self", bound="BusDrive")


@dataclass(frozen=True)
class BusStatistics:
    """Counters since construction, updated in place; per motor [n] unless said otherwise.

    ``bus`` [4]: unknown frames, error frames, frames of a wrong length or content, failed sends.
    """

    sent: np.ndarray
    replies: np.ndarray
    missing: np.ndarray
    late: np.ndarray
    saturated: np.ndarray
    bus: np.ndarray

    @classmethod
    def zeros(cls, motors: int) -> BusStatistics:
        """All counters at zero."""
        sent, replies, missing, late, saturated = np.zeros((5, motors), dtype=np.int64)
        return cls(sent, replies, missing, late, saturated, np.zeros(4, dtype=np.int64))


def listen_to(bus: can.BusABC, ids: Iterable[int], *, standard_only: bool = False) -> None:
    """Let only frames of these ids through where driver or kernel can filter.

    Without that, python-can filters in ``recv``, and there a frame that is filtered out ends a
    ``recv(0)`` as if nothing were queued: answers behind it would count as missing. Then every
    frame is let through, and who receives tells them apart.
    """
    if standard_only:
        kind = {"can_mask": 0x7FF, "extended": False}
    else:  # an id below 0x800 may come in either kind of frame
        kind = {"can_mask": 0x1FFFFFFF}
    bus.set_filters([{"can_id": i, **kind} for i in sorted(ids)])  # type: ignore[misc]
    if not getattr(bus, "_is_filtered", False):
        bus.set_filters(None)


class BusDrive(ABC):
    """Base of ``Drive`` back ends on a python-can bus. Not thread-safe: one loop owns it."""

    def __init__(
        self,
        bus: can.BusABC,
        joints: Sequence[str],
        load: BusLoad,
        clock: Callable[[], float],
        *,
        reply_deadline_s: float,
        patience_s: float,
    ) -> None:
        """Touches nothing.

        Args:
            bus: where the motors are.
            joints: names of the motors' joints [n].
            load: worst-case load of the bus.
            clock: seconds, monotonic; stamps and deadlines go by it.
            reply_deadline_s: how long after the last command ``read`` waits for answers.
            patience_s: the same while motors are switched on or off: no loop depends on it yet.
        """
        self._bus, self._clock, self._load = bus, clock, load
        self._names = tuple(joints)
        n = self._n = len(self._names)
        self._reply_deadline_s, self._patience_s = reply_deadline_s, patience_s
        self._state = DriveState.unknown(n)
        self._waiting = [False] * n  # answer to the last request still out
        self._requested = False  # a request is out that read() has not collected
        self._sent_at = math.nan
        self._enabled = False
        self.statistics = BusStatistics.zeros(n)

    # ---- what a back end adds -------------------------------------------------------------------

    @abstractmethod
    def _ensure_checked(self) -> None:
        """Do the self-check if it was not done yet."""

    @abstractmethod
    def _state_requests(self) -> Iterable[can.Message]:
        """A frame per motor that asks for its state and commands nothing."""

    @abstractmethod
    def _commands(
        self,
        tau: list[float],
        q: list[float],
        dq: list[float],
        kp: list[float],
        kd: list[float],
        clipped: list[Saturation],
    ) -> Sequence[can.Message]:
        """A command frame per motor; what did not fit is appended to ``clipped`` and counted."""

    @abstractmethod
    def _switch_on(self) -> None:
        """Switch on motors that are all without fault; they do nothing yet."""

    @abstractmethod
    def _off_frame(self, i: int) -> can.Message:
        """Frame that takes the torque off motor ``i``."""

    @abstractmethod
    def _clear_frame(self, i: int) -> can.Message:
        """Frame that clears the latched faults of motor ``i``."""

    @abstractmethod
    def _take(self, message: can.Message) -> tuple[int, bool] | None:
        """Fill the state from an answer; (motor, it says that it is off), or None for other frames.

        Its stamp is ``_sent_at``.
        """

    # ---- contract -------------------------------------------------------------------------------

    @property
    def load(self) -> BusLoad:
        """Worst-case bus load at the configured rate."""
        return self._load

    @property
    def enabled(self) -> bool:
        """True between ``enable`` and ``disable``."""
        return self._enabled

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            self.disable()

    def enable(self) -> DriveState:
        """Self-check once, then enable every motor with zero gains and torque; all or none."""
        self._ensure_checked()
        state = self._read(self._patience_s)
        if not state.ok:
            raise refusal("before enabling", state, self._names)
        self._enabled = True
        with all_or_none(self.disable):
            self._switch_on()
            self._write_idle()
            if not self._read(self._patience_s).ok:
                raise refusal("after the first command", self._state, self._names)
        return self._state

    def disable(self) -> None:
        """Send frames that take the torque off until every motor confirms, at most five rounds.

        Raises:
            DriveError: DISABLE_NOT_CONFIRMED naming the motors that did not.
        """
        self._enabled = False
        off = [False] * self._n
        problem = ""
        for _ in range(_ROUNDS_TO_DISABLE):
            for step in (
                lambda: self._send_to([i for i in range(self._n) if not off[i]], self._off_frame),
                lambda: self._collect(self._patience_s, off),
            ):
                try:
                    step()
                except DriveError as error:  # keep trying: the others may still hear
                    problem = f" ({error})"
            if all(off):
                return
        raise not_confirmed(self._names, off, f"that it is off{problem}")

    def clear_faults(self) -> None:
        """Clear latched faults of every (disabled) motor.

        Raises:
            DriveError: BAD_CONFIGURATION while enabled.
        """
        if self._enabled:
            raise DriveError(
                DriveFault.BAD_CONFIGURATION, "clear_faults() while enabled; disable() first"
            )
        self._send_to(range(self._n), self._clear_frame)
        self._collect(self._patience_s)

    def read(self) -> DriveState:
        """Collect answers until all are in or the deadline has passed.

        Answers a ``write`` that was not read yet; else asks every motor for its state, which
        commands nothing.

        Returns:
            The drive's own state, filled in place. A motor that did not answer keeps its old values
            *and its old stamp*, has fault MISSING_REPLY and a ``missing`` count.

        Raises:
            DriveError: BUS_OFF or BUS_ERROR.
        """
        return self._read(self._reply_deadline_s)

    def write(self, command: DriveCommand) -> WriteReport:
        """Send one frame to every motor; returns what was clipped.

        Raises:
            DriveError: COMMAND_INVALID (nothing was sent), NOT_ENABLED, BUS_ERROR or BUS_OFF (every
                other motor was still sent its frame).
        """
        if not self._enabled:
            raise DriveError(
                DriveFault.NOT_ENABLED, "write() to disabled motors; call enable() first"
            )
        tau, q, dq = command.tau_ff.tolist(), command.q.tolist(), command.dq.tolist()
        kp, kd = command.kp.tolist(), command.kd.tolist()
        check_command(tau, q, dq, kp, kd, self._names)
        clipped: list[Saturation] = []
        messages = self._commands(tau, q, dq, kp, kd, clipped)
        self._drain()  # what is still queued answers the previous request
        self._count_missing()
        failure: DriveError | None = None
        for i, message in enumerate(messages):
            try:
                self._send(message)
                self.statistics.sent[i] += 1
            except DriveError as error:
                failure = failure or error
        self._start_waiting(range(self._n))
        if failure is not None:
            raise failure
        return WriteReport(tuple(clipped)) if clipped else NOTHING_CLIPPED

    def _write_idle(self) -> None:
        """A command of zero gains and torque at the measured pose."""
        idle = DriveCommand.zeros(self._n)
        idle.q[:] = self._state.q
        self.write(idle)

    # ---- frames ---------------------------------------------------------------------------------

    def _read(self, deadline_s: float) -> DriveState:
        if not self._requested:
            self._drain()
            for message in self._state_requests():
                self._send(message)
            self._start_waiting(range(self._n))
        self._collect(deadline_s)
        return self._state

    def _send(self, message: can.Message) -> None:
        try:
            self._bus.send(message)
        except can.CanError as error:
            self.statistics.bus[3] += 1
            raise DriveError(
                DriveFault.BUS_ERROR,
                f"{self._bus.channel_info} refused the frame for id "
                f"0x{message.arbitration_id:02X}: {error}; "
                + DRIVE_FAULT_TEXT[DriveFault.BUS_ERROR].cure,
            ) from error

    def _send_to(self, motors: Iterable[int], frame: Callable[[int], can.Message]) -> None:
        """Send each of ``motors`` its frame, whatever fails for one of them."""
        chosen = list(motors)
        failure: DriveError | None = None
        try:
            self._drain()
        except DriveError as error:  # must not keep a disable frame from being sent
            failure = error
        for i in chosen:
            try:
                self._send(frame(i))
            except DriveError as error:
                failure = failure or error
        self._start_waiting(chosen)
        if failure is not None:
            raise failure

    def _start_waiting(self, motors: Iterable[int]) -> None:
        self._sent_at = self._clock()
        for i in motors:
            self._waiting[i] = True
        self._requested = True

    def _receive(self, timeout_s: float) -> can.Message | None:
        try:
            message = self._bus.recv(timeout_s)
        except can.CanError as error:
            raise DriveError(
                DriveFault.BUS_ERROR,
                f"receiving from {self._bus.channel_info} failed: {error}; "
                + DRIVE_FAULT_TEXT[DriveFault.BUS_ERROR].cure,
            ) from error
        if message is not None and message.is_error_frame:
            self.statistics.bus[1] += 1
            if message.arbitration_id & _BUS_OFF_BIT:
                raise DriveError(
                    DriveFault.BUS_OFF,
                    f"{self._bus.channel_info} is bus-off; "
                    + DRIVE_FAULT_TEXT[DriveFault.BUS_OFF].cure,
                )
        return message

    def _collect(self, deadline_s: float, off: list[bool] | None = None) -> None:
        """Take answers until none is awaited or the deadline after the last send has passed."""
        end = self._sent_at + deadline_s
        after_deadline = 0
        while any(self._waiting) and after_deadline < _MOST_QUEUED:
            left = end - self._clock()
            if left <= 0.0:  # still take what came in time and was only not looked at
                left = 0.0
                after_deadline += 1
            message = self._receive(left)
            if message is None:
                break
            self._handle(message, off)
        self._count_missing()
        self._requested = False

    def _count_missing(self) -> None:
        for i in range(self._n):
            if self._waiting[i]:
                self._waiting[i] = False
                mark_missing(self._state, self.statistics.missing, i)

    def _drain(self) -> None:
        """Take what is queued without waiting: answers to the previous request, perhaps late."""
        for _ in range(_MOST_QUEUED):
            message = self._receive(0.0)
            if message is None:
                return
            self._handle(message, None)

    def _handle(self, message: can.Message, off: list[bool] | None) -> None:
        if message.is_error_frame:
            return
        taken = self._take(message)
        if taken is None:
            return
        i, is_off = taken
        if self._waiting[i]:
            self._waiting[i] = False
            self.statistics.replies[i] += 1
        else:
            self.statistics.late[i] += 1
        self._state.missing[i] = 0
        if off is not None and is_off:
            off[i] = True
