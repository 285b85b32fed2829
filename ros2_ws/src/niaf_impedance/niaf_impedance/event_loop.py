"""An event-driven loop without its topics: one tick per measured state, and a watch over silence.

Whoever carries the messages (``topic_arm`` over ROS, the lock-step host of the fault trials) calls

    if states.receive(data, mode, timeout_s, now_s, monotonic_s, received_s, number):
        late_s = loop.begin()
        tau = controller.tick(states.gate.newest_s, states.decoder.q, states.decoder.dq)

per message, and ``loop.watch(monotonic_s)`` every ``WATCH_PERIOD_S``. No ROS, no clock.
"""

from __future__ import annotations

from niaf_impedance.controller import ImpedanceController
from niaf_impedance.faults import Mode
from niaf_impedance.lateness import RUNG_LATE, Lateness, LoopLimits, step_down
from niaf_impedance.state_gate import OwnDelay, StateGate
from niaf_impedance.wire import JointStateDecoder, JointStateError

WATCH_PERIOD_S = 0.005


class StateIntake:
    """States as they arrive, serialised: decoded, judged, and what they tell of this process.

    Attributes:
        decoder: the newest state that could be read.
        gate: which states were let through, and why others were not.
        delay: what this process itself is late with.
        age_s: of the newest state, when it was received here.
    """

    def __init__(
        self, decoder: JointStateDecoder, max_future_s: float, period_s: float, epoch_sec: int
    ) -> None:
        self.decoder, self.gate = decoder, StateGate(max_future_s)
        self.delay = OwnDelay(period_s)
        self.age_s = 0.0
        self._epoch_sec = epoch_sec

    def receive(
        self,
        data: bytes,
        mode: Mode,
        timeout_s: float,
        now_s: float,
        monotonic_s: float,
        received_s: float | None,
        number: int | None,
    ) -> bool:
        """Decode and judge a state; whether it may reach the tick.

        now_s, received_s (when the middleware had it, None: it does not say): wall clock since the
        epoch; number: its publisher's; timeout_s: how old it may be.
        """
        decoder = self.decoder
        try:
            decoder.decode(data)
        except JointStateError as error:
            return self.gate.refuse(str(error))
        sec, nanosec = decoder.stamp
        stamp_s = (sec - self._epoch_sec) + nanosec * 1e-9
        self.age_s = now_s - stamp_s
        if not self.gate.admit(stamp_s, now_s, monotonic_s, mode, timeout_s):
            return False
        self.delay.note(stamp_s, now_s, received_s, number)
        return True


class EventLoop:
    """The stop ladder of such a loop: its own lateness told from an arm that is silent.

    Attributes:
        lateness: what the loop's own lateness has led to.
        watched_s: when the watch came last, monotonic clock.
    """

    def __init__(
        self,
        controller: ImpedanceController,
        states: StateIntake,
        limits: LoopLimits,
        period_s: float,
        monotonic_s: float,
    ) -> None:
        self.lateness = Lateness(limits, period_s)
        self.watched_s = monotonic_s
        self._controller, self._gate, self._delay = controller, states.gate, states.delay
        self._busy_s = 0.0

    def clear(self) -> None:
        """A new activation."""
        self.lateness.clear()
        self._busy_s = 0.0

    def begin(self) -> float:
        """The tick of the newest state begins: go down the ladder as far as its lateness demands.

        Returns:
            How late it is, s.
        """
        delay = self._delay
        late_s, self._busy_s = max(delay.late_s, self._busy_s), 0.0
        rung = self.lateness.judge(late_s, delay.gap_s)
        if rung > RUNG_LATE:
            step_down(rung, self._controller)
        return late_s

    def watch(self, monotonic_s: float) -> bool:
        """Silence of the arm is the one fault that the tick cannot see.

        A watch that comes late itself tells that this loop stood still: then the silence is its
        own, also when the states of that time are still on their way out of a socket.

        Returns:
            Whether ``telemetry.tau`` is to be sent once (``ImpedanceController.note_state_age``).
        """
        controller = self._controller
        busy_s = monotonic_s - self.watched_s
        silent_s = monotonic_s - self._gate.received_s
        self.watched_s = monotonic_s
        if controller.mode == Mode.OFF:
            return False
        if busy_s > 2.0 * WATCH_PERIOD_S:
            self._busy_s = max(self._busy_s, busy_s - WATCH_PERIOD_S)
        if min(busy_s, silent_s) > controller.config.state_timeout_s:
            step_down(self.lateness.judge(busy_s, 0.0), controller)
            return False
        return controller.note_state_age(silent_s)
