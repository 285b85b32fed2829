"""An arm behind ROS topics, ticked by the compiled loop against absolute deadlines.

Three threads: the executor's, which puts every state of ``joint_states`` where the loop finds it;
the loop's (:class:`niaf_impedance.loop.ControlLoop`), which needs neither Python nor its lock; and
a sender, which the loop wakes and which publishes the newest command. A command is as old as the
free phase between the arm's clock and this one makes it, half a period in the mean; in return the
time base is steady, and the stop ladder acts while Python stands still: no states come through to
the loop (STATE_STALE), or nobody sends what it computes (LOOP_LATE).

The loop runs on the monotonic clock and follows what NTP slews of the wall clock, never a step.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from rclpy.node import Node

from niaf_impedance.admission import AdmissionVerdict
from niaf_impedance.clocks import WallClock
from niaf_impedance.controller import ImpedanceController, ResetRefusedError
from niaf_impedance.lateness import Lateness, LoopLimits
from niaf_impedance.loop import Command, ControlLoop, LoopEndedError
from niaf_impedance.planning import Plan, Snapshot
from niaf_impedance.realtime import ordinary_priority
from niaf_impedance.timing import LoopTiming
from niaf_impedance.topic_arm import OnTick, TopicLink

T = TypeVar("T")

#: how long the sender waits for a command before it looks whether it should end
_PATIENCE_S = 0.1


class ClockedTopicArm(TopicLink):
    """The methods of TopicArm, for the executor's thread; from ``start`` to ``close`` it ticks.

    Attributes:
        timing: lateness of ticks, age and departure of commands; written by the sender.
        lateness: what the loop's own lateness has led to.
        scheduling: what the loop's thread was granted.
    """

    _periods_held = 2.0  # a state waits for the next tick, at worst a whole period

    def __init__(
        self,
        node: Node,
        controller: ImpedanceController,
        *,
        limits: LoopLimits,
        on_tick: OnTick,
        rate_hz: float,
        priority: int,
        **topics: Any,
    ) -> None:
        """``topics``: as TopicLink. ``on_tick`` is called after every command, by the sender.
        ``priority``: SCHED_FIFO of the loop's thread, 0: none."""
        with ordinary_priority():
            self._loop = ControlLoop(controller, rate_hz, limits)
        self._wall = WallClock()
        self.timing = LoopTiming(1.0 / rate_hz)
        self._on_tick = on_tick
        super().__init__(node, controller, rate_hz=rate_hz, **topics)
        self._set_clock()
        self._stopping = self._told_off = False
        self._complaint = ""  # of the sender
        self._loop.sent(0)  # from now on commands that nobody sends make the loop late
        self.scheduling = self._loop.start(priority)
        self._sender = threading.Thread(target=self._send, name="sender", daemon=True)
        self._sender.start()

    # -- what the node asks ------------------------------------------------------------------------
    @property
    def lateness(self) -> Lateness:
        return self._loop.lateness

    def call(self, work: Callable[[], T]) -> T:
        """Do ``work`` while the loop is paused (a period or two) and return its result."""
        with self._loop.paused():
            return work()

    def look(self, read: Callable[[], T]) -> T:
        """``read`` on the result of one tick, in any thread; it may run several times."""
        return self._loop.look(read)

    def snapshot(self) -> Snapshot:
        """``ImpedanceController.snapshot``, beside the running loop."""
        return self._loop.snapshot()

    def commit(self, plan: Plan) -> AdmissionVerdict:
        """``ImpedanceController.commit``, beside the running loop."""
        return self._loop.commit(plan)

    @property
    def clock_problem(self) -> str:
        """Why times of other nodes cannot be used: the wall clock was set while the loop ran."""
        return self._wall.problem

    def activation_problem(self) -> str:
        """Why the arm cannot be taken over now; empty when it can."""
        return self.failure or super().activation_problem()

    @property
    def failure(self) -> str:  # type: ignore[override]
        """Why no torque is commanded any more; empty while loop and sender run."""
        if self._loop.running and self._sender.is_alive():
            return ""
        return "a thread of the loop has ended: the drives' own watchdogs damp; configure again"

    def warning(self) -> str:
        """What an operator should know now; empty when all is well."""
        return super().warning() or self._complaint

    def activate(self) -> None:
        """Hold the measured pose. ValueError when the state is no good."""
        decoder = self._decoder
        with self._loop.paused():
            self._set_clock()
            self._loop.activate(decoder.q, decoder.dq, gripper_m=decoder.gripper_m)
            self._taken_over()
            self.timing.clear()
        self._told_off = False

    def deactivate(self) -> None:
        """Begin the ramp to gravity only; the ticks go on until the mode is OFF."""
        if self.failure:
            self._controller.switch_off()
        else:
            self._loop.deactivate()

    def reset(self) -> None:
        """Leave DAMP or ESTOP at standstill. ResetRefusedError or ValueError says why not."""
        decoder = self._decoder
        with self._running().paused():
            problem = self._controller.reset_problem()
            if problem:  # a clock that was set must not reach a reference that runs
                raise ResetRefusedError(problem)
            self._set_clock()
            self._taken_over()
            # the state may have come since the last tick, after a silence for instance
            self._loop.reset(decoder.q, decoder.dq)

    def brake(self) -> None:
        """Slow down along the path, then hold."""
        self._running().brake()

    def estop(self) -> None:
        """Damp at the next tick and latch."""
        self._running().estop()

    def _running(self) -> ControlLoop:
        if self.failure:
            raise LoopEndedError(self.failure)
        return self._loop

    def diagnostics(self) -> dict[str, Any]:
        """Key-values for a diagnostic status."""
        figures = self._loop.statistics
        return {
            **super().diagnostics(),
            "loop deadlines missed": figures.missed,
            "loop execution_us.p99": f"{figures.execution.p99_s * 1e6:.0f}",
            "loop core share": f"{figures.core_share:.3f}",
            "states torn": figures.torn,
            "hand-overs overtaken": figures.overtaken,
        }

    def close(self) -> None:
        """End both threads and destroy the topics. Commands stop: ``deactivate`` first."""
        self._stopping = True
        self._sender.join()
        self._loop.close()
        super().close()

    # -- measured state ----------------------------------------------------------------------------
    def _on_joint_state(self, data: bytes, info: dict[str, Any]) -> None:
        if not self._receive(data, info):
            return
        offset_s = self._wall.offset_s
        self._wall.follow(time.monotonic(), time.time())
        if self._wall.offset_s != offset_s:
            self._loop.set_epoch(self._epoch_sec - self._wall.offset_s)
        self._offer()

    def _offer(self) -> None:
        """Give the newest state to the loop, with its age as it was when it came in."""
        since_s = time.monotonic() - self._began_s
        self._loop.offer_state(
            self._loop.now_s() - self._states.age_s - since_s, self._decoder.q, self._decoder.dq)

    def _set_clock(self) -> None:
        """Take the wall clock as it is now (the arm is at rest), and move the newest state too."""
        self._wall.set(time.monotonic(), time.time())
        self._loop.set_epoch(self._epoch_sec - self._wall.offset_s)
        if self._began_s > 0.0:
            self._offer()

    # -- commands ----------------------------------------------------------------------------------
    def _send(self) -> None:
        loop, poll = self._loop, select.poll()
        poll.register(loop.command_fd, select.POLLIN)
        while not self._stopping:
            if not poll.poll(1e3 * _PATIENCE_S):
                if self.off and not self._told_off and loop.heartbeat > 0 and self.timing.ticks:
                    self._told_off = True
                    self._node.get_logger().info("off: no torque is commanded")
                continue
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(loop.command_fd)
            try:
                command = loop.read_command()
                if command is not None:
                    self._publish(command)
            except Exception as error:  # the next command must find the sender alive
                self._complaint = f"a command was not sent: {type(error).__name__}: {error}"

    def _publish(self, command: Command) -> None:
        timing, age_s = self.timing, command.t_s - command.state_s
        timing.begin(command.t_s, command.due_s, age_s, command.t_s - command.due_s)
        self._effort.values[:] = command.tau_nm
        self._effort_publisher.publish(self._effort.encode())
        self._loop.sent(command.count)
        timing.end(self._loop.now_s())
        if timing.ticks % self._gripper_every == 0:
            self._width.values[0] = command.gripper_m
            self._gripper_publisher.publish(self._width.encode())
        seconds, fraction = divmod(command.state_s, 1.0)
        self._on_tick(self._epoch_sec + int(seconds), int(fraction * 1e9))
