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
from niaf_impedance.settings import ControllerConfig
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
        rejected: joint states that were refused so far.
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
        self._epoch_sec, self._max_future_s, self._on_tick = epoch_sec, max_future_s, on_tick
        self.rate_hz = rate_hz
        self.timing = LoopTiming(1.0 / rate_hz)
        self.rejected = 0
        self._problem = ""
        self._received_s = self._newest_s = -math.inf
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
        if self._problem:
            return self._problem
        age = time.monotonic() - self._received_s
        if age > self._controller.config.state_timeout_s:
            topic = self._node.resolve_topic_name("joint_states")
            if self._received_s == -math.inf:
                return f"no message on {topic} yet; is the arm's driver running?"
            return f"the newest message on {topic} is {age:.3f} s old"
        return ""

    def warning(self) -> str:
        """What an operator should know now; empty when all is well."""
        return self._problem

    def activate(self) -> None:
        """Hold the measured pose. ValueError when the state is no good."""
        decoder = self._decoder
        self._controller.activate(
            self._newest_s, decoder.q, decoder.dq, gripper_m=decoder.gripper_m)
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
        self._controller.reset(self._newest_s)

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
        return {"joint states rejected": self.rejected}

    def close(self) -> None:
        """Destroy topics and timer."""
        node = self._node
        node.destroy_timer(self._timer)
        node.destroy_subscription(self._subscription)
        node.destroy_publisher(self._effort_publisher)
        node.destroy_publisher(self._gripper_publisher)

    # -- measured state and tick -------------------------------------------------------------------
    def _refuse(self, problem: str) -> None:
        self.rejected += 1
        self._problem = problem
        self._node.get_logger().error(
            f"joint state refused: {problem} ({self.rejected} so far)",
            throttle_duration_sec=2.0,
        )

    def _on_joint_state(self, data: bytes) -> None:
        controller, decoder = self._controller, self._decoder
        began_s = time.monotonic()
        try:
            decoder.decode(data)
        except JointStateError as error:
            self._refuse(str(error))
            return
        sec, nanosec = decoder.stamp
        stamp_s = (sec - self._epoch_sec) + nanosec * 1e-9
        age_s = (time.time() - self._epoch_sec) - stamp_s
        if age_s < -self._max_future_s:
            self._refuse(f"its stamp lies {-age_s:.3f} s ahead of this clock; synchronise")
            return
        if age_s > controller.config.state_timeout_s:
            self._refuse(
                f"it was measured {age_s:.3f} s ago (state_timeout_s is "
                f"{controller.config.state_timeout_s:g}); synchronise the clocks or relieve the CPU"
            )
            return
        if stamp_s <= self._newest_s:
            if stamp_s == self._newest_s or self._newest_s - stamp_s < 1.0:
                self.rejected += 1  # duplicate or out of order: the watchdog sees silence
                return
            # the clock was set back: a running arm damps (silence), then ~/reset starts anew
            if controller.mode not in (Mode.OFF, Mode.DAMP, Mode.ESTOP):
                self._refuse("its stamp lies more than a second before the one before")
                return
        self._newest_s, self._received_s, self._problem = stamp_s, began_s, ""
        if controller.mode == Mode.OFF:
            return
        timing = self.timing
        timing.begin(began_s, stamp_s, age_s)
        self._effort.values[:] = controller.tick(stamp_s, decoder.q, decoder.dq)
        if controller.off:  # deactivation has just ended: fall silent
            self._node.get_logger().info("off: no torque is commanded")
            return
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
        if controller.note_state_age(time.monotonic() - self._received_s):
            self._effort.values[:] = controller.telemetry.tau
            self._effort_publisher.publish(self._effort.encode())
