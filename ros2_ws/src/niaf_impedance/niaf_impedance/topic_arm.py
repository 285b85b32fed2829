"""An arm behind ROS topics: ``joint_states`` in, one tick per message, efforts out.

Over a topic an event-driven tick has the freshest state, so the executor's thread is the tick
thread. The same few methods as :class:`niaf_impedance.clocked_arm.ClockedTopicArm` and
:class:`niaf_impedance.bus_wiring.BusArm`, so that the node need not know which arm it has.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from niaf_impedance.admission import AdmissionVerdict
from niaf_impedance.controller import ImpedanceController
from niaf_impedance.event_loop import WATCH_PERIOD_S, EventLoop, StateIntake
from niaf_impedance.faults import Mode
from niaf_impedance.lateness import Lateness, LoopLimits
from niaf_impedance.planning import Plan, Snapshot
from niaf_impedance.reanchoring import PoseHistory
from niaf_impedance.settings import ControllerConfig
from niaf_impedance.timing import LoopTiming
from niaf_impedance.tuning import Tuning
from niaf_impedance.wire import Float64ArrayEncoder, JointStateDecoder

T = TypeVar("T")

_NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)

#: (sec, nanosec of the state): called after every tick, in its thread
OnTick = Callable[[int, int], None]


def with_info(handle: Callable[[bytes, dict[str, Any]], None]) -> Callable[..., None]:
    """``handle(message, info)`` as a subscription's callback.

    An executor passes two arguments, as documented, or (EventsExecutor of Jazzy) both as one tuple.
    """

    def callback(*given: Any) -> None:
        if len(given) == 1:
            given = given[0]
        handle(*given)

    callback.__signature__ = inspect.signature(handle)  # type: ignore[attr-defined]
    return callback


class TopicLink:
    """Topics of one arm, and the newest state that was let through. Belongs to the executor.

    Attributes:
        rate_hz: ticks per second.
        history: measured poses, if somebody wants them kept.
        failure: why no torque is commanded any more; empty while the loop runs.
    """

    failure = ""
    _periods_held = 1.0

    def __init__(
        self,
        node: Node,
        controller: ImpedanceController,
        *,
        epoch_sec: int,
        rate_hz: float,
        gripper_rate_hz: float,
        max_future_s: float,
    ) -> None:
        self._node, self._controller, self._epoch_sec = node, controller, epoch_sec
        self.rate_hz = rate_hz
        self.history: PoseHistory | None = None
        #: when the callback of the newest state began
        self._began_s = 0.0
        gripper = controller.arm.config.gripper
        self._decoder = JointStateDecoder(
            controller.arm.joint_names,
            gripper.joint if gripper else "",
            gripper.width_scale if gripper else 1.0,
        )
        self._states = StateIntake(self._decoder, max_future_s, 1.0 / rate_hz, epoch_sec)
        self._gate = self._states.gate
        #: how long a torque waits for the next, and a state for its tick
        self._held_s = self._periods_held / rate_hz
        self.tuned()
        self._gripper_every = max(1, round(rate_hz / gripper_rate_hz))
        self._effort = Float64ArrayEncoder(controller.n)
        self._width = Float64ArrayEncoder(1)
        self._effort_publisher = node.create_publisher(
            Float64MultiArray, "effort_controller/commands", _NEWEST)
        self._gripper_publisher = node.create_publisher(
            Float64MultiArray, "gripper_controller/commands", _NEWEST)
        self._subscription = node.create_subscription(
            JointState, "joint_states", with_info(self._on_joint_state), _NEWEST, raw=True)

    def _on_joint_state(self, data: bytes, info: dict[str, Any]) -> None:
        raise NotImplementedError

    def _receive(self, data: bytes, info: dict[str, Any]) -> bool:
        """Decode and judge a state; whether it may reach the tick."""
        controller, gate = self._controller, self._gate
        began_s = self._began_s = time.monotonic()
        received = info.get("received_timestamp")
        if not self._states.receive(
            data, controller.mode, controller.config.state_timeout_s,
            time.time() - self._epoch_sec, began_s,
            received * 1e-9 - self._epoch_sec if received else None,
            info.get("publication_sequence_number"),
        ):
            if gate.problem:
                self._node.get_logger().error(
                    f"joint state refused: {gate.problem} ({gate.rejected} so far)",
                    throttle_duration_sec=2.0,
                )
            return False
        if self.history is not None:
            self.history.add(gate.newest_s, self._decoder.q, self._decoder.gripper_m)
        return True

    # -- what the node asks ------------------------------------------------------------------------
    def activation_problem(self) -> str:
        """Why the arm cannot be taken over now; empty when it can."""
        if self._gate.problem:
            return self._gate.problem
        age = time.monotonic() - self._gate.received_s
        if age > self._controller.config.state_timeout_s:
            topic = self._node.resolve_topic_name("joint_states")
            if self._gate.received_s == -math.inf:
                return f"no message on {topic} yet; is the arm's driver running?"
            return f"the newest message on {topic} is {age:.3f} s old"
        return ""

    def warning(self) -> str:
        """What an operator should know now; empty when all is well."""
        return self.failure or self._gate.problem

    @property
    def unheard(self) -> bool:
        """The arm is silent: no tick will come."""
        silent_s = time.monotonic() - self._gate.received_s
        return silent_s > self._controller.config.state_timeout_s

    def _taken_over(self) -> None:
        """The arm is held anew: what was measured before may be of another clock."""
        if self.history is not None:
            self.history.clear()

    @property
    def off(self) -> bool:
        """No torque is commanded."""
        return self._controller.off

    def check_tuning(self, tuning: Tuning, config: ControllerConfig) -> str:
        """Why this tuning cannot be used over these topics; empty when it can."""
        return self._controller.check_tuning(tuning, self._held_s, config.velocity_filter_s)

    def tuned(self) -> None:
        """The tuning has changed: how old states may be depends on it."""
        self._gate.bearable_s = self._controller.bearable_age_s(self._held_s)

    def pose_at(self, stamp_s: float) -> Any:
        """Measured pose at that time; NoPoseError when none is known. Needs ``history``."""
        assert self.history is not None
        return self.history.at(stamp_s)

    def diagnostics(self) -> dict[str, Any]:
        """Key-values for a diagnostic status."""
        return {
            "joint states rejected": self._gate.rejected,
            "joint states_ms.bearable": f"{1e3 * self._gate.bearable_s:.1f}",
        }

    def close(self) -> None:
        """Destroy the topics."""
        node = self._node
        node.destroy_subscription(self._subscription)
        node.destroy_publisher(self._effort_publisher)
        node.destroy_publisher(self._gripper_publisher)


class TopicArm(TopicLink):
    """Ticks in the callback of ``joint_states``. Every method belongs to the executor.

    Attributes:
        timing: lateness and duration of ticks.
        scheduling: empty: the executor's thread ticks.
    """

    def __init__(
        self,
        node: Node,
        controller: ImpedanceController,
        *,
        limits: LoopLimits,
        on_tick: OnTick,
        rate_hz: float,
        **topics: Any,
    ) -> None:
        """``topics``: as TopicLink. ``on_tick`` is called after every tick, in its thread."""
        self.timing = LoopTiming(1.0 / rate_hz)
        self.scheduling = ""
        self._on_tick = on_tick
        super().__init__(node, controller, rate_hz=rate_hz, **topics)
        self._loop = EventLoop(
            controller, self._states, limits, 1.0 / rate_hz, time.monotonic())
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(WATCH_PERIOD_S, self._watch, clock=steady)

    # -- what the node asks ------------------------------------------------------------------------
    @property
    def lateness(self) -> Lateness:
        """What the loop's own lateness has led to."""
        return self._loop.lateness

    def call(self, work: Callable[[], T]) -> T:
        """Do ``work`` between two ticks and return its result: here, at once."""
        return work()

    look = call

    def snapshot(self) -> Snapshot:
        """``ImpedanceController.snapshot``."""
        return self._controller.snapshot()

    def commit(self, plan: Plan) -> AdmissionVerdict:
        """``ImpedanceController.commit``."""
        return self._controller.commit(plan)

    @property
    def clock_problem(self) -> str:
        """Why times of other nodes cannot be used; a state with a wrong stamp is refused itself."""
        return ""

    def activate(self) -> None:
        """Hold the measured pose. ValueError when the state is no good."""
        decoder = self._decoder
        self._controller.activate(
            self._gate.newest_s, decoder.q, decoder.dq, gripper_m=decoder.gripper_m)
        self._taken_over()
        self.timing.clear()
        self._loop.clear()

    def deactivate(self) -> None:
        """Begin the ramp to gravity only; the ticks go on until the mode is OFF."""
        self._controller.deactivate(self._controller.last_tick_s)

    def reset(self) -> None:
        """Leave DAMP or ESTOP at standstill. ResetRefusedError or ValueError says why not."""
        self._controller.reset(self._gate.newest_s)
        self._taken_over()
        self.lateness.clear()

    def brake(self) -> None:
        """Slow down along the path, then hold."""
        self._controller.brake(self._controller.last_tick_s)

    def estop(self) -> None:
        """Damp at the next tick and latch."""
        self._controller.estop()

    def close(self) -> None:
        """Destroy topics and timer."""
        self._node.destroy_timer(self._timer)
        super().close()

    # -- measured state and tick -------------------------------------------------------------------
    def _on_joint_state(self, data: bytes, info: dict[str, Any]) -> None:
        controller, decoder = self._controller, self._decoder
        if not self._receive(data, info) or controller.mode == Mode.OFF:
            return
        timing, stamp_s = self.timing, self._gate.newest_s
        late_s = self._loop.begin()
        timing.begin(self._began_s, stamp_s, self._states.age_s, late_s)
        self._effort.values[:] = controller.tick(stamp_s, decoder.q, decoder.dq)
        if controller.off:  # deactivation has just ended: fall silent
            self._node.get_logger().info("off: no torque is commanded")
            return
        if not controller.silent:
            self._effort_publisher.publish(self._effort.encode())
            if timing.ticks % self._gripper_every == 0:
                self._width.values[0] = controller.gripper_m
                self._gripper_publisher.publish(self._width.encode())
        timing.end(time.monotonic())
        self._on_tick(*decoder.stamp)

    def _watch(self) -> None:
        if self._loop.watch(time.monotonic()):
            self._effort.values[:] = self._controller.telemetry.tau
            self._effort_publisher.publish(self._effort.encode())
