"""The control loop of an arm on a bus: read every motor, tick the controller, write every motor.

Time is an argument: ``BusLoop.step`` is one period and may be driven by hand. The thread that calls
it against absolute deadlines is in ``niaf_impedance.bus_wiring``.

Two ways to close the loop (``Closing``):

* TORQUE: the host sends the whole torque. It acts on a state one period old, so damping is bounded
  by the loop rate, and a late host shows at once.
* GAINS: the host sends reference, stiffness and damping; the motors close the loop at their own
  rate. The feed-forward is what the controller asks for *minus* what the motor adds for itself at
  the measured state, so both ways command the same torque, with every limit of the controller in
  it, and changing between them is free of steps. What a motor cannot hold (kd of an MIT frame ends
  at 5 Nms/rad) stays with the host: it is part of that difference.

A measured state is as old as its stamp says. Positions are carried forward by velocity over that
age, which also covers one lost reply; except one that did not change with the newest reply though
its velocity says that it moves, because a frozen reading must stay visible.

What goes wrong, and what follows (numbers of ``faults.Fault``):

========================================== ====================== ==============================
seen                                       reported as            then
========================================== ====================== ==============================
fault status of a motor                    DRIVE_FAULT, joint     DAMP, the others stay commanded
a reply late or lost, up to the limit      nothing (counted)      state carried forward
``missing_limit`` replies missed in a row  DRIVE_SILENT, joint    DAMP, the others stay commanded
all motors at their limit                  DRIVE_SILENT, no joint silence: the motors' own
                                                                  watchdogs damp
this loop late (``lateness``)              nothing (counted)      GAINS with ``fall_back``, then
                                                                  BRAKE
this loop later still, or for longer       LOOP_LATE              DAMP
bus-off, or ``missing_limit`` bus errors   BUS_OFF                silence, as above
a frozen reading (seen by the controller)  STATE_FROZEN, joint    torque to the arm's weight, then
                                                                  silence, as above
========================================== ====================== ==============================
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

import numpy as np

from niaf_impedance.controller import ResetRefusedError
from niaf_impedance.drives.interface import (
    DRIVE_FAULT_TEXT,
    Drive,
    DriveCommand,
    DriveError,
    DriveFault,
    DriveState,
    Floats,
)
from niaf_impedance.faults import Fault, Mode
from niaf_impedance.lateness import (
    LIMITS,
    RUNG_BRAKE,
    RUNG_DAMP,
    Lateness,
    LoopLimits,
    LoopLimitsError,
    step_down,
)

#: modes in which the controller follows a reference
_FOLLOWING = (Mode.TRACK, Mode.BRAKE, Mode.HOLD)
#: a joint at rest may report this much: MIT frames have no zero velocity, and half a count of the
#: widest range is 0.07 rad/s
_REST_RAD_S = 0.1
#: below this stiffness torque of a joint the share of its stiffness in force cannot be told
_NO_STIFFNESS_NM = 1e-3


class Closing(str, Enum):
    """Where stiffness and damping act."""

    TORQUE = "torque"
    GAINS = "gains"


class BusLoopError(RuntimeError):
    """The loop cannot run with these settings; names setting, value and remedy."""


@dataclass(frozen=True)
class BusLoopConfig:
    """Settings of the loop.

    Attributes:
        rate_hz: periods per second.
        closing: where stiffness and damping act.
        fall_back: change from TORQUE to GAINS when the host is late; it lasts until the next start.
        late_periods: a step that begins this many periods after its deadline is late.
        limits: when lateness brakes and damps; ``late_periods`` here and the timeout of the state
            at ``start`` take the places of those in it.
        late_steps: so many late steps within late_window_s are a reason to fall back.
        late_window_s: see late_steps.
        missing_limit: replies missed in a row at which a motor counts as silent.
    """

    rate_hz: float
    closing: Closing = Closing.GAINS
    fall_back: bool = True
    late_periods: float = 1.0
    limits: LoopLimits = LIMITS
    late_steps: int = 3
    late_window_s: float = 1.0
    missing_limit: int = 3

    @property
    def period_s(self) -> float:
        """Time between two steps."""
        return 1.0 / self.rate_hz


@dataclass(frozen=True)
class GripperMotor:
    """A gripper on the bus: the last motor of the drive, after the arm's joints.

    Attributes:
        joint: its joint; opening width = width_scale * position.
        width_scale: see joint.
        kp: stiffness that follows the commanded width, N/m at the joint.
        kd: damping, Ns/m at the joint.
    """

    joint: str
    width_scale: float
    kp: float
    kd: float


class LoopTelemetry(Protocol):
    """What the loop asks of the controller's telemetry, float64[n]."""

    @property
    def q_ref(self) -> Floats: ...
    @property
    def dq_ref(self) -> Floats: ...
    @property
    def q(self) -> Floats: ...
    @property
    def dq(self) -> Floats: ...
    @property
    def tau_stiffness(self) -> Floats: ...
    @property
    def tau_damping(self) -> Floats: ...


class LoopSettings(Protocol):
    """What the loop asks of the controller's settings."""

    @property
    def standstill_rad_s(self) -> float: ...


class LoopController(Protocol):
    """What the loop asks of a controller (``ImpedanceController``)."""

    @property
    def config(self) -> LoopSettings: ...
    @property
    def mode(self) -> Mode: ...
    @property
    def last_tick_s(self) -> float: ...
    @property
    def kp(self) -> Floats: ...
    @property
    def kd(self) -> Floats: ...
    @property
    def silent(self) -> bool: ...
    @property
    def gripper_m(self) -> float: ...
    @property
    def telemetry(self) -> LoopTelemetry: ...

    def activate(
        self,
        t_s: float,
        q: Floats,
        dq: Floats,
        gripper_m: float | None = None,
        tau_start_nm: Floats | None = None,
    ) -> None: ...
    def tick(self, t_s: float, q: Floats, dq: Floats) -> Floats: ...
    def reset(self, t_s: float | None = None) -> None: ...
    def reset_problem(self) -> str: ...
    def brake(self, t_s: float) -> None: ...
    def report_fault(self, fault: Fault, joint: int = -1) -> None: ...


@dataclass
class LoopFigures:
    """What the loop counted since ``start``.

    Attributes:
        steps: periods.
        late_steps: periods that began too late.
        worst_lateness_s: largest time after a deadline.
        missing_replies: replies that did not come in time, all motors.
        saturated: values that did not fit into a frame.
        last_saturation: the newest of them, in words.
        bus_errors: reads or writes that the bus refused.
    """

    steps: int = 0
    late_steps: int = 0
    worst_lateness_s: float = 0.0
    missing_replies: int = 0
    saturated: int = 0
    last_saturation: str = ""
    bus_errors: int = 0


@dataclass
class _Run:
    """State of one activation."""

    closing: Closing
    fell_back: str = ""  # why the loop is no longer closed as configured
    problem: str = ""  # first drive fault, in words
    silent: bool = False  # nothing is written any more
    bus_errors: int = 0  # in a row
    share: float = 1.0  # of the stiffness in force, below 1 while deactivating
    late_at_s: deque[float] = field(default_factory=deque)
    began_s: float = math.nan  # the step before


class BusLoop:
    """One arm: drive, controller and the state of the loop between them. One thread owns it.

    Attributes:
        figures: counters.
        clock_offset_s: what is added to the drive's clock to get the controller's.
        enabled: motors are on.
        lateness: what the loop's own lateness has led to.
        runs: how often it was started or reset.
    """

    def __init__(
        self,
        drive: Drive,
        controller: LoopController,
        joints: tuple[str, ...],
        damp_nms_rad: Floats,
        config: BusLoopConfig,
        gripper: GripperMotor | None = None,
    ) -> None:
        """Check that drive and arm fit together.

        Args:
            drive: all motors, the gripper's last.
            controller: what is ticked.
            joints: the arm's joints, in the controller's order [n].
            damp_nms_rad: damping of DAMP and ESTOP [n].
            config: settings.
            gripper: the gripper's motor, if it is on the bus.

        Raises:
            BusLoopError: joints differ, the rate does not fit, or a setting cannot be used.
        """
        capabilities = drive.capabilities
        wanted = joints if gripper is None else (*joints, gripper.joint)
        if capabilities.joints != wanted:
            raise BusLoopError(
                f"the drive has the joints {list(capabilities.joints)}, the arm needs "
                f"{list(wanted)} in this order; correct the drive description"
            )
        if not 0.0 < config.rate_hz <= capabilities.max_rate_hz:
            raise BusLoopError(
                f"rate_hz {config.rate_hz:g} does not fit on the bus; at most "
                f"{capabilities.max_rate_hz:.0f} Hz"
            )
        if config.missing_limit < 2 or config.late_steps < 1 or config.late_periods <= 0.0:
            raise BusLoopError(
                f"missing_limit {config.missing_limit} must be at least 2, late_steps "
                f"{config.late_steps} at least 1, late_periods {config.late_periods:g} above 0"
            )
        self.config, self.figures = config, LoopFigures()
        self.clock_offset_s = 0.0
        self.enabled = False
        self._drive, self._controller, self._gripper = drive, controller, gripper
        self._joints = wanted
        n = self._n = len(joints)
        self._damp = np.array(damp_nms_rad, dtype=np.float64)
        self._kp_max, self._kd_max = capabilities.kp_max[:n], capabilities.kd_max[:n]
        self._limit = capabilities.torque_limit[:n]
        self._damping_alone = capabilities.damping_alone
        self._command = DriveCommand.zeros(len(wanted))
        self._state = DriveState.unknown(len(wanted))
        #: position and stamp of each motor's newest answer, and whether that answer changed it [n]
        self._seen_q, self._seen_s = np.full(n, np.nan), np.full(n, np.nan)
        self._changed = np.ones(n, dtype=bool)
        self._run = _Run(config.closing)
        self.lateness = self._lateness(config.limits.damp_lateness_s)
        self.runs = 0

    # -- what the caller reads --------------------------------------------------------------------
    @property
    def state(self) -> DriveState:
        """What the motors said last; overwritten in place."""
        return self._state

    @property
    def closing(self) -> Closing:
        """Where stiffness and damping act now."""
        return self._run.closing

    @property
    def fell_back(self) -> str:
        """Why it is not as configured; empty when it is."""
        return self._run.fell_back

    @property
    def problem(self) -> str:
        """The first fault of motors or bus since the start, in words."""
        return self._run.problem

    @property
    def silent(self) -> bool:
        """The host has stopped writing: the motors' own watchdogs act."""
        return self._run.silent

    def host_share(self, kp: Floats, kd: Floats) -> tuple[Floats, Floats]:
        """Stiffness and damping [n] that the host has to close, because the motors do not."""
        if self._run.closing is Closing.TORQUE or self.config.closing is Closing.TORQUE:
            return kp, kd
        kp_motor, kd_motor = self._in_motor(kp, kd)
        return kp - kp_motor, kd - kd_motor

    # -- start and end ----------------------------------------------------------------------------
    def watch(self) -> DriveState:
        """Ask for the state without commanding anything (motors off).

        Raises:
            DriveError: the bus failed.
        """
        self._state = self._drive.read()
        return self._state

    def start(self, state_timeout_s: float) -> None:
        """Self-check and enable every motor, then hold the measured pose.

        The torque starts at what the motors report, zero as a rule, and moves within the
        controller's rate limit.

        Raises:
            DriveError: the self-check or a motor refused.
            BusLoopError: the motors are on already, or the watchdogs of host and motors do not fit
                together.
            ValueError: the controller refused the measured pose.
        """
        if self.enabled:  # enabling sends commands without torque: the arm would drop
            raise BusLoopError(
                f"the motors are on already (the controller is in {self._controller.mode.name}); "
                "deactivate, and wait until they are off"
            )
        self._state = self._drive.enable()
        try:
            problem = watchdog_problem(self.config, self._drive.watchdog_s, state_timeout_s)
            if problem:
                raise BusLoopError(problem)
            self._activate()
        except (BusLoopError, ValueError):
            self._drive.disable()
            raise
        self.enabled = True
        self.figures = LoopFigures()
        self.lateness = self._lateness(state_timeout_s)
        self._begin_run()

    def stop(self) -> None:
        """Take torque off every motor at once (after the controller's own ramp, as a rule).

        Raises:
            DriveError: a motor did not confirm.
        """
        self.enabled = False
        self._drive.disable()

    def reset(self, now_s: float, clock_offset_s: float | None = None) -> None:
        """Leave DAMP or ESTOP at standstill; motors that are off or in fault are cured first.

        Whatever can be known beforehand is refused before any motor is switched: for as long as
        motors are off, nothing carries the arm.

        Args:
            now_s: seconds of the drive's clock.
            clock_offset_s: new ``clock_offset_s``, taken over once nothing refuses.

        Raises:
            ResetRefusedError: nothing is to be reset, or the arm moves; nothing was switched.
            DriveError: the bus failed or a motor is silent, and nothing was switched; or a motor
                refused to be switched on, and all are off. The controller stays where it is.
        """
        controller = self._controller
        problem = controller.reset_problem()
        if problem:
            raise ResetRefusedError(problem)
        self._state = self._drive.read()
        self._check_rest()
        again = not self.enabled or self._run.silent or self._faulty()
        if again:
            self.enabled = False
            self._drive.disable()
            self._drive.clear_faults()
            self._state = self._drive.enable()
            self.enabled = True
        if clock_offset_s is not None:
            self.clock_offset_s = clock_offset_s
        controller.reset(now_s + self.clock_offset_s)
        if again:
            self._activate()
        self._begin_run()

    def _check_rest(self) -> None:
        """Refuse unless every joint rests, by what its motor says now and by the last tick."""
        state, n = self._state, self._n
        silent = state.missing >= self.config.missing_limit
        if silent.any():
            names = tuple(name for name, mute in zip(self._joints, silent, strict=True) if mute)
            raise DriveError(
                DriveFault.MISSING_REPLY,
                f"{', '.join(names)}: no answer, so whether the arm rests is not known; nothing "
                f"was switched; {DRIVE_FAULT_TEXT[DriveFault.MISSING_REPLY].cure}",
                names,
            )
        speed = np.maximum(np.abs(state.dq[:n]), np.abs(self._controller.telemetry.dq))
        worst, limit = int(np.argmax(speed)), self._controller.config.standstill_rad_s
        if not speed[worst] <= limit:  # NaN neither
            raise ResetRefusedError(
                f"{self._joints[worst]} moves at {speed[worst]:.3f} rad/s; reset is allowed below "
                f"standstill_rad_s = {limit:g}; wait for rest"
            )

    def _faulty(self) -> bool:
        """A motor reports a fault; one lost reply, which every bus has now and then, is none."""
        quiet = (DriveFault.NONE, DriveFault.MISSING_REPLY)
        return not np.isin(self._state.fault, quiet).all()

    def _begin_run(self) -> None:
        self._run = _Run(self.config.closing)
        self.lateness.clear()
        self.runs += 1

    def _lateness(self, state_timeout_s: float) -> Lateness:
        limits = replace(
            self.config.limits, late_periods=self.config.late_periods,
            damp_lateness_s=state_timeout_s)
        try:
            return Lateness(limits, self.config.period_s)
        except LoopLimitsError as error:
            raise BusLoopError(f"lateness: {error}") from error

    def _activate(self) -> None:
        """Hold the pose that was measured when the motors were enabled."""
        state, n = self._state, self._n
        self._controller.activate(
            float(state.stamp.max()) + self.clock_offset_s,
            state.q[:n].copy(),
            state.dq[:n].copy(),
            gripper_m=self._width(),
            tau_start_nm=state.tau[:n].copy(),
        )

    # -- one period -------------------------------------------------------------------------------
    def step(self, due_s: float, now_s: float) -> None:
        """Read, tick, write. When the controller has become OFF, disable instead.

        Args:
            due_s: deadline at which this step should have begun, seconds of the drive's clock.
            now_s: when it begins.

        Raises:
            DriveError: a motor did not confirm that it was disabled.
        """
        run, figures, controller = self._run, self.figures, self._controller
        figures.steps += 1
        self._judge_lateness(due_s, now_s)
        errors_before = figures.bus_errors
        try:
            self._state = self._drive.read()
            self._judge_motors()
        except DriveError as error:
            self._bus_failed(error)
        q, dq = self._measured(now_s)
        tau = controller.tick(now_s + self.clock_offset_s, q, dq)
        if controller.mode == Mode.OFF:
            self.stop()
            return
        if controller.silent and not run.silent:
            run.silent = True
            run.problem = run.problem or (
                "STATE_FROZEN: a reading stands still; nothing is sent, the motors damp themselves")
        if run.silent:
            return
        self._fill(tau)
        try:
            report = self._drive.write(self._command)
        except DriveError as error:
            self._bus_failed(error)
            return
        if report.saturations:
            figures.saturated += len(report.saturations)
            figures.last_saturation = str(report.saturations[-1])
        if figures.bus_errors == errors_before:
            run.bus_errors = 0
        if self._all_silent():  # that was the last command: damping, and the weight as last seen
            run.silent = True

    def _judge_lateness(self, due_s: float, now_s: float) -> None:
        run, config, late_s = self._run, self.config, now_s - due_s
        figures, lateness, before = self.figures, self.lateness, self.lateness.late
        figures.worst_lateness_s = max(figures.worst_lateness_s, late_s)
        gap_s = 0.0 if math.isnan(run.began_s) else now_s - run.began_s
        run.began_s = now_s
        rung = lateness.judge(late_s, gap_s)
        late = run.late_at_s
        if lateness.late > before:
            figures.late_steps += 1
            late.append(now_s)
            while late[0] < now_s - config.late_window_s:
                late.popleft()
        can_fall_back = run.closing is Closing.TORQUE and config.fall_back
        if can_fall_back and rung < RUNG_DAMP and (
            len(late) >= config.late_steps or rung == RUNG_BRAKE
        ):
            lateness.clear()  # the motors bear a late host better: judged anew
            run.closing = Closing.GAINS
            run.fell_back = (
                f"LOOP_LATE: {len(late)} steps within {config.late_window_s:g} s began more than "
                f"{config.late_periods * config.period_s * 1e3:g} ms late (the last "
                f"{late_s * 1e3:.1f} ms); gains act in the motors until the next activation; "
                "relieve the CPU, grant real-time priority or lower rate_hz"
            )
        elif rung >= RUNG_DAMP:
            self._report(Fault.LOOP_LATE, -1, lateness.text)
        else:
            step_down(rung, self._controller)

    def _judge_motors(self) -> None:
        state, limit = self._state, self.config.missing_limit
        if not state.fault.any():
            return
        self.figures.missing_replies += int(np.count_nonzero(state.missing))
        if self._all_silent():
            self._report(
                Fault.DRIVE_SILENT, -1, f"no motor answered {limit} requests in a row; "
                + DRIVE_FAULT_TEXT[DriveFault.MISSING_REPLY].cure,
            )
            return
        for i, number in enumerate(state.fault.tolist()):
            fault = DriveFault(number)
            silent = state.missing[i] >= limit
            if fault is DriveFault.NONE or (fault is DriveFault.MISSING_REPLY and not silent):
                continue
            text = DRIVE_FAULT_TEXT[fault]
            self._report(
                Fault.DRIVE_SILENT if silent else Fault.DRIVE_FAULT,
                i if i < self._n else -1,
                f"{self._joints[i]}: {number} {fault.name}, {text.cause}; {text.cure}",
            )

    def _all_silent(self) -> bool:
        return bool((self._state.missing >= self.config.missing_limit).all())

    def _bus_failed(self, error: DriveError) -> None:
        run = self._run
        self.figures.bus_errors += 1
        if error.fault in (DriveFault.BUS_OFF, DriveFault.BUS_ERROR):
            run.bus_errors += 1
            off = error.fault is DriveFault.BUS_OFF
            if off or run.bus_errors >= self.config.missing_limit:
                self._report(Fault.BUS_OFF, -1, str(error))
                run.silent = True
        else:  # nothing was sent: the motors keep the last command until their watchdogs act
            self._report(Fault.DRIVE_FAULT, -1, str(error))
            run.silent = True

    def _report(self, fault: Fault, joint: int, text: str) -> None:
        if not self._run.problem:
            self._run.problem = text
        if self._controller.mode in _FOLLOWING:
            self._controller.report_fault(fault, joint)

    def _measured(self, now_s: float) -> tuple[Floats, Floats]:
        """Position and velocity [n] now, carried forward over the age of the state."""
        state, n, config = self._state, self._n, self.config
        heard = state.missing[:n] < config.missing_limit  # a silent motor's velocity is not known
        dq = np.where(heard, state.dq[:n], 0.0)
        answered = state.stamp[:n] != self._seen_s
        self._changed = np.where(answered, state.q[:n] != self._seen_q, self._changed)
        self._seen_q[:], self._seen_s[:] = state.q[:n], state.stamp[:n]
        longest = (config.missing_limit + 1) * config.period_s
        since = np.clip(now_s - state.stamp[:n], 0.0, longest)
        carried = self._changed | (np.abs(dq) <= _REST_RAD_S)
        return state.q[:n] + np.where(carried, dq * since, 0.0), dq

    def _width(self) -> float | None:
        if self._gripper is None:
            return None
        return float(self._state.q[self._n]) * self._gripper.width_scale

    # -- what the motors are told -----------------------------------------------------------------
    def _in_motor(self, kp: Floats, kd: Floats) -> tuple[Floats, Floats]:
        kp_motor = np.minimum(kp, self._kp_max)
        reach = self._kd_max
        if not self._damping_alone:
            reach = reach * kp_motor / self._kp_max
        return kp_motor, np.minimum(kd, reach)

    def _stiffness_share(self) -> float:
        """Share of kp in force: the controller fades stiffness out while deactivating.

        The largest over the joints, because a clipped position error looks like a smaller one.
        """
        t, run = self._controller.telemetry, self._run
        full = np.abs(self._controller.kp * (t.q_ref - t.q))
        told = full > _NO_STIFFNESS_NM
        if told.any():
            run.share = min(float((np.abs(t.tau_stiffness)[told] / full[told]).max()), 1.0)
        return run.share

    def _fill(self, tau: Floats) -> None:
        """The command whose sum of terms, at the measured state, is ``tau`` [n]."""
        command, n, controller = self._command, self._n, self._controller
        t = controller.telemetry
        if self._run.closing is Closing.TORQUE:
            command.kp[:n] = 0.0
            command.kd[:n] = 0.0
            command.q[:n], command.dq[:n] = t.q, 0.0
            command.tau_ff[:n] = tau
        else:
            if controller.mode in _FOLLOWING:
                kp, kd = self._stiffness_share() * controller.kp, controller.kd
            else:
                kp, kd = np.zeros(n), self._damp
            kp_motor, kd_motor = self._in_motor(kp, kd)
            soft = kp_motor > 0.0
            zero = np.zeros(n)
            forward = tau - t.tau_stiffness * np.divide(kp_motor, kp, out=zero.copy(), where=soft)
            forward -= t.tau_damping * np.divide(kd_motor, kd, out=zero.copy(), where=kd > 0.0)
            # The error that the controller's stiffness saw, which it may have clipped ...
            error = np.divide(t.tau_stiffness, kp, out=t.q_ref - t.q, where=soft)
            # ... and less where the feed-forward cannot take away what exceeds a torque limit:
            # the motor adds stiffness without knowing the controller's limits.
            over = np.where(soft, forward - np.clip(forward, -self._limit, self._limit), 0.0)
            error += np.divide(over, kp_motor, out=zero, where=soft)
            command.q[:n], command.dq[:n] = t.q + error, t.dq_ref
            command.kp[:n], command.kd[:n] = kp_motor, kd_motor
            command.tau_ff[:n] = forward - over
        gripper = self._gripper
        if gripper is not None:
            command.q[n] = controller.gripper_m / gripper.width_scale
            command.kp[n], command.kd[n] = gripper.kp, gripper.kd


def watchdog_problem(config: BusLoopConfig, watchdog_s: float, state_timeout_s: float) -> str:
    """Why the three watches over silence contradict each other; empty when they do not.

    The host must have named a silent motor before anything else acts: before its own timeout of
    the state and before the motors' watchdog, which a host in time never sees.
    """
    named_s = (config.missing_limit + 1) * config.period_s
    for name, value in (("state_timeout_s", state_timeout_s), ("the motors' watchdog", watchdog_s)):
        if not (math.isfinite(value) and value > named_s):
            return (
                f"{name} is {value * 1e3:g} ms, but a silent motor is only named after "
                f"{named_s * 1e3:g} ms ({config.missing_limit} missed replies at "
                f"{config.rate_hz:g} Hz); lengthen it, lower missing_limit or raise rate_hz"
            )
    return ""
