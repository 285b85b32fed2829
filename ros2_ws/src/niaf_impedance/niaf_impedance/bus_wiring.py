"""An arm on a bus for the node: the loop's thread and how everything else gets into it.

The loop's thread is the tick thread: it alone touches controller and drive. Other threads hand it
callables (``call``, ``post``), which it runs between two steps; it never waits for anybody.

    arm = BusArm(path, controller, scheduling=lambda: request_fifo(70), on_state=publish)
    arm.open()                    # bus, thread; states come, nothing is commanded
    arm.activate()                # self-check, enable, hold the measured pose
    snapshot = arm.snapshot()
    plan = controller.plan(snapshot, now_s, reference, lead_s)     # takes long: not in the loop
    verdict = arm.commit(plan)
    arm.deactivate()              # braking, gravity only, motors off; states keep coming
    arm.close()

Times that come from outside (fields) and those of the controller are wall-clock seconds
since ``epoch_s``. The loop runs on the monotonic clock; the difference is taken anew at every
activation and reset and follows what NTP slews in between. A clock that is set during a run does
not move the arm: ``clock_problem`` says so, and no field is followed any more.

What waits for the loop's thread and gives up is told that it failed, and that is made true: a call
that was not begun is withdrawn, and motors that a late one switches on are switched off again.
Only ``estop``, ``brake`` and ``deactivate`` are never withdrawn.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from niaf_impedance.admission import AdmissionVerdict
from niaf_impedance.clocks import WallClock
from niaf_impedance.controller import ImpedanceController
from niaf_impedance.drives.bus_loop import BusLoop, BusLoopError, Closing
from niaf_impedance.drives.description import DriveDescription, load_drive_description, make_drive
from niaf_impedance.drives.interface import DriveError, DriveState, Floats, describe_faults
from niaf_impedance.faults import Fault
from niaf_impedance.lateness import Lateness, LoopLimits
from niaf_impedance.planning import Plan, Snapshot
from niaf_impedance.reanchoring import PoseHistory
from niaf_impedance.settings import ControllerConfig
from niaf_impedance.timing import LoopTiming
from niaf_impedance.tuning import Tuning

T = TypeVar("T")

#: (wall-clock time of the state in seconds since 1970, state): called in the loop's thread
OnState = Callable[[float, DriveState], None]

#: without motors under control the state is asked for this often
_WATCH_HZ = 50.0
#: how long the loop's thread may take to answer; switching motors on and off takes its time
_ANSWER_S, _SWITCHING_S = 2.0, 10.0


class BusArm:
    """One arm behind a bus. Every public method may be called from any thread but the loop's.

    Attributes:
        description: the drive description.
        joints: names of all motors: the arm's joints, then the gripper's.
        timing: lateness and duration of steps; written by the loop's thread.
        failure: why the loop's thread ended; empty while it runs.
        history: measured poses, if somebody wants them kept; set it before ``open``.
        untold_states: how often ``on_state`` raised.
    """

    def __init__(
        self,
        description: str | Path | DriveDescription,
        controller: ImpedanceController,
        *,
        epoch_s: float = 0.0,
        on_state: OnState | None = None,
        scheduling: Callable[[], str] | None = None,
        limits: LoopLimits | None = None,
    ) -> None:
        """Read the description; touches no bus.

        Args:
            description: YAML file, or what was read from it.
            controller: what is ticked; from ``open`` to ``close`` it belongs to the loop's thread.
            epoch_s: wall-clock second at which the controller's time is zero.
            on_state: called after every step; must not block. What it raises stops nothing: it is
                counted and told by ``warning``.
            scheduling: called first in the loop's thread, returns what it was granted.
            limits: when a late loop brakes and damps, in place of the description's.

        Raises:
            RobotConfigError: the description cannot be used.
        """
        arm = controller.arm
        if not isinstance(description, DriveDescription):
            description = load_drive_description(description, arm.joint_names)
        if limits is not None:
            description = replace(description, loop=replace(description.loop, limits=limits))
        self.description = description
        self.joints = tuple(joint.name for joint in description.drive.joints)
        self.timing = LoopTiming(description.loop.period_s)
        self.failure = ""
        self.scheduling = ""
        self.untold_states = 0
        self._untold = ""  # why, since the last activation or reset
        self._controller, self._epoch_s = controller, epoch_s
        self._on_state, self._schedule = on_state, scheduling
        self._damp = np.array([joint.damp_nms_rad for joint in arm.config.joints])
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: BusLoop | None = None
        self._bus: Any = None
        self._watch_problem = "no answer yet"
        self._wall = WallClock()
        self.history: PoseHistory | None = None

    # -- life -------------------------------------------------------------------------------------
    def open(self) -> None:
        """Connect to the bus and start the loop's thread; nothing is commanded yet.

        Raises:
            RobotConfigError: the bus cannot be opened.
            DriveError: the configuration contradicts itself or does not fit on the bus.
            BusLoopError: drive and arm do not fit together.
        """
        loop = self.description.loop
        if self._controller.moves_tool and (loop.closing is Closing.GAINS or loop.fall_back):
            raise BusLoopError(
                "this prior moves the tool, and motors can only close joint gains: set closing: "
                "torque and fall_back: false in the drive description"
            )
        self._bus = self.description.open_bus()
        try:
            drive = make_drive(self.description, self._bus)
            self._loop = BusLoop(
                drive, self._controller, self._controller.arm.joint_names, self._damp,
                self.description.loop, self.description.gripper,
            )
        except (DriveError, BusLoopError):
            self._bus.shutdown()
            raise
        self._thread = threading.Thread(target=self._run, name="bus_loop", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Motors off at once if they are still on, thread and bus closed."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_SWITCHING_S)
            self._thread = None
        if self._bus is not None:
            self._bus.shutdown()
            self._bus = None

    def activate(self) -> None:
        """Self-check, enable, hold the measured pose.

        Raises:
            DriveError, BusLoopError, ValueError: why not; the motors are off.
        """
        def start() -> None:
            loop = self._need_loop()
            if not loop.enabled:  # the clock of an arm under control is left alone
                self._wall.set(time.monotonic(), time.time())
                loop.clock_offset_s = self._wall.offset_s - self._epoch_s
            loop.start(self._controller.config.state_timeout_s)
            self.timing.clear()
            self._untold = ""

        self.call(start, _SWITCHING_S, undo=self._release)

    def activation_problem(self) -> str:
        """Why the arm cannot be taken over now; empty when it can."""
        return self._ended or self._watch_problem

    def deactivate(self) -> None:
        """Begin the ramp to gravity only; the motors are switched off at its end (``off``)."""
        self.post(self._release)

    @property
    def off(self) -> bool:
        """No motor is under control."""
        return self._loop is None or not self._loop.enabled

    @property
    def unheard(self) -> bool:
        """The arm is silent: the host has stopped writing."""
        return self._loop is not None and self._loop.silent

    # -- into the loop's thread -------------------------------------------------------------------
    def post(self, work: Callable[[], T]) -> Future[T]:
        """Have ``work`` done in the loop's thread before its next step; does not wait."""
        future: Future[T] = Future()
        self._calls.append((work, future))
        return future

    def call(
        self, work: Callable[[], T], timeout_s: float = _ANSWER_S,
        undo: Callable[[], object] | None = None,
    ) -> T:
        """``post`` and wait for the result; what ``work`` raises is raised here.

        Work that was not begun in time is withdrawn. Work that was begun goes on; if it succeeds
        although this call has failed, ``undo`` is done in the loop's thread.

        Raises:
            BusLoopError: the loop does not run, or did not answer in time.
        """
        self._check_runs()
        future = self.post(work)
        try:
            return future.result(timeout_s)
        except CancelledError as error:
            raise BusLoopError(self._ended or "the bus loop has ended") from error
        except FutureTimeout as error:
            late = f"the bus loop did not answer within {timeout_s:g} s"
            if future.cancel():
                raise BusLoopError(self.failure or f"{late}; the request is withdrawn") from error
            if future.done():  # just now, or what it raised is a timeout of its own
                return future.result()
            if undo is None:
                raise BusLoopError(f"{late}; it is still at it") from error
            self.post(lambda: None if future.exception() else undo())
            raise BusLoopError(
                f"{late}; if motors are switched on yet, they are switched off again") from error

    def look(self, read: Callable[[], T]) -> T:
        """``read`` on the result of one step; from ``on_state`` only, where the loop waits."""
        return read()

    def snapshot(self) -> Snapshot:
        """``ImpedanceController.snapshot`` between two steps."""
        return self.call(self._controller.snapshot)

    def commit(self, plan: Plan) -> AdmissionVerdict:
        """``ImpedanceController.commit`` between two steps."""
        return self.call(lambda: self._controller.commit(plan))

    def pose_at(self, stamp_s: float) -> Floats:
        """Measured pose at that time; NoPoseError when none is known. Needs ``history``."""
        history = self.history
        assert history is not None
        return self.call(lambda: history.at(stamp_s))

    @property
    def lateness(self) -> Lateness:
        """What the loop's own lateness has led to."""
        return self._need_loop().lateness

    def reset(self) -> None:
        """Leave DAMP or ESTOP at standstill; motors in fault are cleared and enabled again.

        Raises:
            ResetRefusedError, DriveError: why not.
        """
        def work() -> None:
            loop, wall, now_s = self._need_loop(), WallClock(), time.monotonic()
            wall.set(now_s, time.time())
            loop.reset(now_s, wall.offset_s - self._epoch_s)
            self._wall = wall  # not before: what is refused must not move the clock of a reference
            self._untold = ""

        self.call(work, _SWITCHING_S, undo=self._release)

    def brake(self) -> None:
        """Slow down along the path, then hold.

        Raises:
            BusLoopError: the loop does not run.
        """
        self._check_runs()
        self.post(lambda: self._controller.brake(self._controller.last_tick_s))

    def estop(self) -> None:
        """Damp at the next step and latch.

        Raises:
            BusLoopError: the loop does not run, or has not done it yet; then it still will.
        """
        self._check_runs()
        try:
            self.post(self._controller.estop).result(_ANSWER_S)
        except (FutureTimeout, CancelledError) as error:
            raise BusLoopError(
                self.failure or f"the bus loop did not answer within {_ANSWER_S:g} s; it damps as "
                "soon as it goes on"
            ) from error

    # -- what the node publishes ------------------------------------------------------------------
    @property
    def rate_hz(self) -> float:
        """Steps of the loop per second."""
        return self.description.loop.rate_hz

    def tuned(self) -> None:
        """The tuning has changed: nothing follows, a state is at most a few periods old here."""

    def check_tuning(self, tuning: Tuning, config: ControllerConfig) -> str:
        """Why this tuning cannot be used over this bus; empty when it can."""
        problem = tuning.outside_ranges(self._controller.arm.config)
        if problem:
            return problem
        if tuning.damping_ratio > 0.0:
            return (
                f"damping_ratio is {tuning.damping_ratio:g}: damping that follows the inertia is "
                "not handed to motors on a bus; set it to 0 and set gains.<joint>.kd"
            )
        if self._controller.moves_tool:  # all of it is closed by the host, two periods late
            return self._controller.check_tuning(
                tuning, 2.0 * self.description.loop.period_s, config.velocity_filter_s)
        kp = np.asarray(tuning.effective_kp(self._controller.arm.config))
        return self.check_gains(kp, np.asarray(tuning.kd))

    def check_gains(self, kp: Floats, kd: Floats) -> str:
        """Why these gains cannot be used; empty when they can.

        What the motors close acts after the delay of their own loop; what stays with the host (all
        of it with torque closing or where fall-back starts there) acts two periods later.
        """
        controller, period_s = self._controller, self.description.loop.period_s
        if self._loop is None:
            return "the bus is not open"
        host_kp, host_kd = self._loop.host_share(np.asarray(kp), np.asarray(kd))
        problem = controller.check_gains(kp, kd, 0.0)
        if not problem and np.any(host_kd > 0.0):
            least = [joint.kd.minimum for joint in controller.arm.config.joints]
            problem = controller.check_gains(
                host_kp, np.maximum(host_kd, least), 2.0 * period_s)
            if problem:
                problem = (
                    f"{problem} (what the motors do not close themselves acts two periods of "
                    f"{period_s * 1e3:g} ms late)"
                )
        return problem

    def diagnostics(self) -> dict[str, str]:
        """Key-values for a diagnostic status."""
        loop = self._loop
        if loop is None:
            return {"bus": "closed"}
        figures = loop.figures
        return {
            "protocol": self.description.protocol,
            "bus": " ".join(f"{key}={value}" for key, value in self.description.bus.items()),
            "loop_rate_hz": f"{self.description.loop.rate_hz:g}",
            "closing": loop.closing.value,
            "fallback": loop.fell_back,
            "drive_fault": loop.problem,
            "motors": "silent" if loop.silent else ("on" if loop.enabled else "off"),
            "motor_states": describe_faults(loop.state, self.joints) or "no fault",
            "hottest_c": _hottest(loop.state, self.joints),
            "steps": str(figures.steps),
            "late_steps": str(figures.late_steps),
            "worst_lateness_us": f"{figures.worst_lateness_s * 1e6:.0f}",
            "missing_replies": str(figures.missing_replies),
            "saturated_values": str(figures.saturated),
            "last_saturation": figures.last_saturation,
            "bus_errors": str(figures.bus_errors),
            "untold_states": str(self.untold_states),
            "scheduling": self.scheduling,
        }

    @property
    def clock_problem(self) -> str:
        """Why times of other nodes cannot be used; empty when they can."""
        return "" if self.off else self._wall.problem

    def warning(self) -> str:
        """What an operator should know now; empty when all is well."""
        if self._ended:
            return self._ended
        loop = self._need_loop()
        worst = self._watch_problem
        if loop.enabled:
            worst = loop.problem or loop.fell_back or self._wall.problem
        return worst or self._untold or self._slow_torque

    @property
    def _slow_torque(self) -> str:
        """What a rate below that of the controller's longest tick does; empty when it is not."""
        period_s, most_s = self.description.loop.period_s, self._controller.config.dt_max_s
        if period_s <= most_s * (1.0 + 1e-9):
            return ""
        return (
            f"rate_hz is {self.rate_hz:g}, but a step counts for dt_max_s = {most_s * 1e3:g} ms at "
            f"most: torque, gains, gripper move at {most_s / period_s:.0%} of their rates; raise "
            f"rate_hz to {1.0 / most_s:g}, or the controller's dt_max_s to {period_s * 1e3:g} ms"
        )

    # -- the loop's thread ------------------------------------------------------------------------
    def _need_loop(self) -> BusLoop:
        if self._loop is None:
            raise BusLoopError("the bus is not open; call open() first")
        return self._loop

    @property
    def _ended(self) -> str:
        """Why nothing reaches the motors; empty while the loop's thread runs."""
        if self.failure or self._thread is None:
            return self.failure or "the bus is not open"
        return "" if self._thread.is_alive() else "the bus loop has ended"

    def _check_runs(self) -> None:
        if self._ended:
            hint = "" if self.failure else "; call open() first"
            raise BusLoopError(self._ended + hint)

    def _release(self) -> None:
        controller = self._controller
        controller.deactivate(controller.last_tick_s)
        if self.off and not controller.off:  # a reset gave up half way: no tick brings it to OFF
            controller.switch_off()

    def _run(self) -> None:
        try:
            if self._schedule is not None:
                self.scheduling = self._schedule()
            self._steps()
        except BaseException as error:  # the node must learn why
            self.failure = f"bus loop failed: {type(error).__name__}: {error}"
        finally:
            loop = self._need_loop()
            if loop.enabled:
                try:
                    loop.stop()
                    self._controller.switch_off()  # so that nobody reads HOLD
                except DriveError as error:
                    self._controller.report_fault(Fault.DRIVE_SILENT)
                    self.failure = "; then ".join(filter(None, (self.failure, str(error))))
            for _, future in self._drain():
                future.cancel()

    def _drain(self) -> list[tuple[Callable[[], Any], Future[Any]]]:
        taken = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._calls.popleft())
        return taken

    def _steps(self) -> None:
        loop, period_s, timing = self._need_loop(), self.description.loop.period_s, self.timing
        clock = time.monotonic
        due_s = clock()
        self._wall.set(due_s, time.time())
        while not self._stop.is_set():
            now_s = clock()
            if now_s < due_s:
                time.sleep(due_s - now_s)
                now_s = clock()
            runs = loop.runs
            for work, future in self._drain():
                if not future.set_running_or_notify_cancel():
                    continue  # withdrawn
                try:
                    future.set_result(work())
                except Exception as error:
                    future.set_exception(error)
            self._wall.follow(clock(), time.time())
            loop.clock_offset_s = self._wall.offset_s - self._epoch_s
            if loop.enabled:
                if loop.runs != runs:  # starting or resetting the motors took many periods
                    now_s = due_s = clock()
                loop.step(due_s, now_s)
                if loop.enabled:
                    age_s = now_s - float(np.nanmin(loop.state.stamp))
                    timing.begin(now_s, due_s, age_s, now_s - due_s)
                    timing.end(clock())
                self._watch_problem = ""
                # Lost periods are not caught up: answers could not come in between.
                due_s += period_s * max(1, math.ceil((clock() - due_s) / period_s))
            else:
                self._watch(loop)
                due_s = clock() + 1.0 / _WATCH_HZ
            if np.isfinite(loop.state.stamp).all():
                self._tell(loop.state)

    def _tell(self, state: DriveState) -> None:
        try:
            self._keep(state)
            if self._on_state is not None:
                wall_s = time.time() - time.monotonic() + float(state.stamp.min())
                self._on_state(wall_s, state)
        except Exception as error:  # whoever listens must not take the arm's torque away
            self.untold_states += 1
            self._untold = f"a state was not told: {type(error).__name__}: {error}"

    def _keep(self, state: DriveState) -> None:
        if self.history is None:
            return
        n, gripper = self._controller.n, self.description.gripper
        width_m = None if gripper is None else gripper.width_scale * float(state.q[n])
        stamp_s = float(state.stamp.min()) + self._wall.offset_s - self._epoch_s
        self.history.add(stamp_s, state.q[:n], width_m)

    def _watch(self, loop: BusLoop) -> None:
        try:
            state = loop.watch()
        except DriveError as error:
            self._watch_problem = str(error)
            return
        self._watch_problem = describe_faults(state, self.joints)


def _hottest(state: DriveState, joints: tuple[str, ...]) -> str:
    if np.isnan(state.temperature_c).all():
        return ""
    i = int(np.nanargmax(state.temperature_c))
    return f"{state.temperature_c[i]:.0f} ({joints[i]})"
