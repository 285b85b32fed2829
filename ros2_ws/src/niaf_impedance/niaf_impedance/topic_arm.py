"""An arm behind ROS topics: ``joint_states`` in, one tick per message, efforts out.

Over a topic an event-driven tick has the freshest state, so the executor's thread is the tick
thread. The same few methods as :class:`niaf_impedance.bus_wiring.BusArm`, so that the node need not
know which arm it has.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from niaf_impedance.controller import ImpedanceController
from niaf_impedance.faults import Mode
from niaf_impedance.reanchoring import PoseHistory
from niaf_impedance.settings import ControllerConfig
from niaf_impedance.state_gate import StateGate
from niaf_impedance.timing import LoopTiming
from niaf_impedance.tuning import Tuning
from niaf_impedance.wire import Float64ArrayEncoder, JointStateDecoder, JointStateError

T = TypeVar("T")

WATCHDOG_PERIOD_S = 0.005

_NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)

#: (sec, nanosec of the state, its age in seconds): called after every tick, in its thread
OnTick = Callable[[int, int, float], None]


class TopicArm:
    """Subscription, publishers and watchdog of one arm. Every method belongs to the executor.

    Attributes:
        timing: lateness and duration of ticks.
        history: measured poses, if somebody wants them kept.
    """

    def __init__(
        self,
        node: Node,
        controller: ImpedanceController,
        *,
        epoch_sec: int,
        rate_hz: float,
        gripper_rate_hz: float,
        max_future_s: float,
        on_tick: OnTick,
    ) -> None:
        self._node, self._controller = node, controller
        self._epoch_sec, self._on_tick = epoch_sec, on_tick
        self._gate = StateGate(max_future_s)
        self.rate_hz = rate_hz
        self.history: PoseHistory | None = None
        self.timing = LoopTiming(1.0 / rate_hz)
        gripper = controller.arm.config.gripper
        self._decoder = JointStateDecoder(
            controller.arm.joint_names,
            gripper.joint if gripper else "",
            gripper.width_scale if gripper else 1.0,
        )
        self._gripper_every = max(1, round(rate_hz / gripper_rate_hz))
        self._effort = Float64ArrayEncoder(controller.n)
        self._width = Float64ArrayEncoder(1)
        self._effort_publisher = node.create_publisher(
            Float64MultiArray, "effort_controller/commands", _NEWEST)
        self._gripper_publisher = node.create_publisher(
            Float64MultiArray, "gripper_controller/commands", _NEWEST)
        self._subscription = node.create_subscription(
            JointState, "joint_states", self._on_joint_state, _NEWEST, raw=True)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(WATCHDOG_PERIOD_S, self._watch, clock=steady)

    # -- what the node asks ------------------------------------------------------------------------
    def call(self, work: Callable[[], T]) -> T:
        """Do ``work`` between two ticks and return its result: here, at once."""
        return work()

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

    @property
    def clock_problem(self) -> str:
        """Why times of other nodes cannot be used; a state with a wrong stamp is refused itself."""
        return ""

    def warning(self) -> str:
        """What an operator should know now; empty when all is well."""
        return self._gate.problem

    def activate(self) -> None:
        """Hold the measured pose. ValueError when the state is no good."""
        decoder = self._decoder
        self._controller.activate(
            self._gate.newest_s, decoder.q, decoder.dq, gripper_m=decoder.gripper_m)
        self.timing.clear()

    def deactivate(self) -> None:
        """Begin the ramp to gravity only; the ticks go on until the mode is OFF."""
        self._controller.deactivate(self._controller.last_tick_s)

    @property
    def off(self) -> bool:
        """No torque is commanded."""
        return self._controller.off

    def reset(self) -> None:
        """Leave DAMP or ESTOP at standstill. ResetRefusedError or ValueError says why not."""
        self._controller.reset(self._gate.newest_s)

    def brake(self) -> None:
        """Slow down along the path, then hold."""
        self._controller.brake(self._controller.last_tick_s)

    def estop(self) -> None:
        """Damp at the next tick and latch."""
        self._controller.estop()

    def check_tuning(self, tuning: Tuning, config: ControllerConfig) -> str:
        """Why this tuning cannot be used over these topics; empty when it can."""
        return self._controller.check_tuning(
            tuning, self.timing.period_s, config.velocity_filter_s)

    def diagnostics(self) -> dict[str, Any]:
        """Key-values for a diagnostic status."""
        return {"joint states rejected": self._gate.rejected}

    def close(self) -> None:
        """Destroy topics and timer."""
        node = self._node
        node.destroy_timer(self._timer)
        node.destroy_subscription(self._subscription)
        node.destroy_publisher(self._effort_publisher)
        node.destroy_publisher(self._gripper_publisher)

    # -- measured state and tick -------------------------------------------------------------------
    def _on_joint_state(self, data: bytes) -> None:
        controller, decoder, gate = self._controller, self._decoder, self._gate
        began_s = time.monotonic()
        sec = nanosec = 0
        stamp_s = age_s = 0.0
        try:
            decoder.decode(data)
        except JointStateError as error:
            admitted = gate.refuse(str(error))
        else:
            sec, nanosec = decoder.stamp
            stamp_s = (sec - self._epoch_sec) + nanosec * 1e-9
            now_s = time.time() - self._epoch_sec
            age_s = now_s - stamp_s
            admitted = gate.admit(
                stamp_s, now_s, began_s, controller.mode, controller.config.state_timeout_s)
        if admitted and self.history is not None:
            self.history.add(stamp_s, decoder.q, decoder.gripper_m)
        if not admitted:
            if gate.problem:
                self._node.get_logger().error(
                    f"joint state refused: {gate.problem} ({gate.rejected} so far)",
                    throttle_duration_sec=2.0,
                )
            return
        if controller.mode == Mode.OFF:
            return
        timing = self.timing
        timing.begin(began_s, stamp_s, age_s, 0.0)
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
        self._on_tick(sec, nanosec, age_s)

    def _watch(self) -> None:
        """Silence of joint_states is the one fault that the tick cannot see."""
        controller = self._controller
        if controller.mode == Mode.OFF:
            return
        if controller.note_state_age(time.monotonic() - self._gate.received_s):
            self._effort.values[:] = controller.telemetry.tau
            self._effort_publisher.publish(self._effort.encode())
