"""What emulated motors share: the arrays of a plant, and the ways frames reach them.

An ``Emulator`` is attached to arrays that the owner of a plant shares: it reads joint positions and
velocities, and ``step`` writes the torque that the motors apply. It answers frames

* over any python-can bus from a thread of its own (``serve``), or
* in the caller's thread through an ``InProcessBus``: deterministic, for lock-step simulation.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import can
import numpy as np

from niaf_impedance.drives.interface import Floats
from niaf_impedance.drives.joint_map import JointMap

Self = TypeVar("Self", bound="Emulator")


class MotorJoint(Protocol):
    """What is asked of the description of a motor."""

    @property
    def motor_id(self) -> int: ...
    @property
    def map(self) -> JointMap: ...


class Motor(Protocol):
    """What every emulated motor has; positions and torques are the motor's own.

    Attributes:
        measured_nm: torque that replies report; None: what the law asks for. For a plant with a
            current loop of its own.
        damping_nms: damping after the watchdog expired, Nms/rad.
        commands: command frames followed.
    """

    measured_nm: float | None
    damping_nms: float
    commands: int

    @property
    def joint(self) -> MotorJoint: ...
    @property
    def off(self) -> bool:
        """Switched off: no torque, no fault."""
        ...

    @property
    def tripped(self) -> bool:
        """Its watchdog expired, and it damps."""
        ...

    @property
    def target_rad(self) -> float | None:
        """Position that stiffness pulls to; None without."""
        ...

    def torque(self, now_s: float, p: float, v: float) -> float:
        """Torque on the shaft at position p, velocity v (rad, rad/s), Nm; runs the watchdog."""
        ...


M = TypeVar("M", bound=Motor)


class Emulator(ABC, Generic[M]):
    """Emulated motors of an arm, attached to a plant through shared arrays.

    Attributes:
        motors: the emulated motors, in joint order.
        q, dq: joint positions and velocities [n], read; rad, rad/s.
        tau: joint torque that the motors apply [n], written by ``step``; Nm.
        hears: ids of the frames that are for these motors.
    """

    def __init__(
        self,
        motors: Sequence[M],
        hears: set[int],
        q: Floats | None,
        dq: Floats | None,
        tau: Floats | None,
        clock: Callable[[], float],
    ) -> None:
        n = len(motors)
        self.motors, self.hears = list(motors), hears
        self.q = np.zeros(n) if q is None else q
        self.dq = np.zeros(n) if dq is None else dq
        self.tau = np.zeros(n) if tau is None else tau
        self._clock = clock
        self._lock = threading.Lock()

    @abstractmethod
    def _addressed(self, arbitration_id: int, data: bytes) -> int:
        """Id of the motor that a frame is for; -1 for no motor."""

    @abstractmethod
    def _answer(
        self, motor: M, arbitration_id: int, data: bytes, now_s: float, p: float, v: float
    ) -> tuple[int, bytes] | None:
        """What a motor does with a frame; (id, data) of its reply, if any."""

    @abstractmethod
    def reply_message(self, reply_id: int, data: bytes, request: can.Message) -> can.Message:
        """Frame of a reply."""

    def handle(self, arbitration_id: int, data: bytes) -> list[tuple[int, bytes]]:
        """Replies (id, data) to one frame."""
        addressed = self._addressed(arbitration_id, data)
        if addressed < 0:
            return []
        now_s = self._clock()
        replies = []
        with self._lock:
            for i, motor in enumerate(self.motors):
                if motor.joint.motor_id != addressed:
                    continue
                p, v = self._shaft(i)
                motor.torque(now_s, p, v)  # its own fast loop ran since the last frame: watchdog
                reply = self._answer(motor, arbitration_id, data, now_s, p, v)
                if reply is not None:
                    replies.append(reply)
        return replies

    def answer(self, request: can.Message) -> list[can.Message]:
        """Frames that come back on a frame of the bus."""
        if request.is_error_frame:
            return []
        replies = self.handle(request.arbitration_id, bytes(request.data))
        return [self.reply_message(reply_id, data, request) for reply_id, data in replies]

    def step(self) -> Floats:
        """Run every motor's loop once at the plant's present state; returns ``tau`` [n], Nm."""
        now_s = self._clock()
        with self._lock:
            for i, motor in enumerate(self.motors):
                torque = motor.torque(now_s, *self._shaft(i))
                self.tau[i] = motor.joint.map.joint_torque(torque)
        return self.tau

    def _shaft(self, i: int) -> tuple[float, float]:
        m = self.motors[i].joint.map
        return m.motor_position(float(self.q[i])), m.motor_velocity(float(self.dq[i]))

    @contextmanager
    def serve(self: Self, bus: can.BusABC) -> Iterator[Self]:
        """Answer frames of ``bus`` from a thread while the context is open."""
        stop = threading.Event()

        def run() -> None:
            while not stop.is_set():
                message = bus.recv(0.02)
                if message is not None:
                    for reply in self.answer(message):
                        bus.send(reply)

        thread = threading.Thread(target=run, name="emulated_motors", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join(timeout=2.0)


class InProcessBus(can.BusABC):
    """A python-can bus whose other end is an emulator in the same thread.

    ``recv`` never waits: what has not been answered when it is called never will be, exactly as a
    deadline that has passed.
    """

    def __init__(self, emulator: Emulator) -> None:
        super().__init__(channel="in-process")
        self.channel_info = "in-process bus of emulated motors"
        self._emulator = emulator
        self._queue: deque[can.Message] = deque()
        self._connected = True

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        """Deliver a frame to the emulator and queue its replies."""
        if not self._connected:
            raise can.CanOperationError("the in-process bus is disconnected")
        self._queue.extend(self._emulator.answer(msg))

    def recv(self, timeout: float | None = None) -> can.Message | None:
        """Next reply, or None at once."""
        return self._queue.popleft() if self._queue else None

    def inject(self, message: can.Message) -> None:
        """Queue a frame that no motor sent: noise, an error frame, a stray reply."""
        self._queue.append(message)

    def disconnect(self) -> None:
        """Make every later ``send`` fail."""
        self._connected = False
