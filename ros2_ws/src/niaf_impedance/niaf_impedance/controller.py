"""The impedance controller: owns the arrays of the compiled tick, changes mode, hands over.

No ROS, no clock: every time is an argument, in seconds of one clock of the caller's choice. Use
a clock with a small epoch (seconds since start): at 1.7e9 s a float64 resolves only 0.24 us.

Threads. All methods belong to the thread that ticks, except ``plan``: it may run in one other
thread, on a ``snapshot`` taken between two ticks, and ``commit`` hands its result over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from niaf_field import Prior, Reference, aligned_empty, siren_work_size
from niaf_impedance import cartesian as law
from niaf_impedance import composite as c
from niaf_impedance import tick as k
from niaf_impedance import tool_task as task
from niaf_impedance.admission import AdmissionVerdict, Reason, Verdict
from niaf_impedance.arm_model import ArmModel
from niaf_impedance.dynamics import WORK_COLUMNS
from niaf_impedance.faults import Fault, Mode
from niaf_impedance.kinematics import MOTION_SIZE
from niaf_impedance.planning import Plan, Planner, Snapshot
from niaf_impedance.settings import FEEDFORWARD, ControllerConfig, ControllerConfigError
from niaf_impedance.tool_planning import ToolPlanner
from niaf_impedance.tool_setup import (
    damping_matrix,
    gain_targets,
    joint_parameters,
    moves_tool,
    tool_pose,
)
from niaf_impedance.tuning import Tuning

FloatArray = np.ndarray

#: largest phase lag of the damping at its crossover
_LAG_LIMIT_RAD = 1.1


class ResetRefusedError(RuntimeError):
    """``reset`` was asked for while it is not allowed; the text says why."""


@dataclass(frozen=True)
class Telemetry:
    """What the last tick computed: views float64[n], overwritten by the next tick.

    While references move the tool, ``q_ref`` is the measured position (such a reference has no
    joint position), ``dq_ref`` the joint velocity that gives the reference's twist, ``ddq_ref`` the
    acceleration that is fed forward; ``tau_posture`` then holds the null-space terms and the push
    away from joint limits. ``tool_reference`` [24] is the motion that the law followed last (see
    kinematics.py), ``tool_error`` [6] its distance from the measured pose (m, rad) before the
    clips, ``tool_wrench`` [6] what stiffness and damping made of it (N, Nm).
    """

    q_ref: FloatArray
    dq_ref: FloatArray
    ddq_ref: FloatArray
    q: FloatArray
    dq: FloatArray
    tau: FloatArray
    tau_stiffness: FloatArray
    tau_damping: FloatArray
    tau_posture: FloatArray
    tau_gravity: FloatArray
    tau_inertia: FloatArray
    tau_friction: FloatArray
    tool_reference: FloatArray
    tool_error: FloatArray
    tool_wrench: FloatArray


@dataclass(frozen=True)
class WindowStatistics:
    """Peaks since activation. The seam figures are the step of the commanded reference at a
    hand-over: new composite minus last commanded value, both at the instant of the last tick."""

    peak_torque_ratio: float
    peak_torque_rate_ratio: float
    seam_position_peak_rad: float
    seam_velocity_peak_rad_s: float
    seam_acceleration_peak_rad_s2: float


class ImpedanceController:
    """Follows references with joint impedance; see ``tick.py`` for law and stop ladder.

    ``prior`` (if given) is the only prior whose fields are admitted; its channel table maps
    channels to joints by name. Splines have channels in joint order, then optionally the gripper.
    A prior with cartesian channels makes a controller that follows the tool (``moves_tool``): it
    admits that prior's fields only, and needs the section ``cartesian`` of the description.
    """

    def __init__(self, config: ControllerConfig, arm: ArmModel, prior: Prior | None = None) -> None:
        self.config, self.arm, self.prior = config, arm, prior
        n = self.n = arm.n
        cf = self._cf = np.zeros(k.CF_SIZE)
        joints = arm.config.joints
        jp = self._jp = np.zeros((k.JP_ROWS, n))
        self.moves_tool = moves_tool(prior)
        #: of the Cartesian law, see tool_task; idle while references move the joints
        self._gains = np.zeros((3, task.GAINS))
        self._cj = np.zeros((law.CJ_ROWS, n))
        self._scratch = np.zeros(task.scratch_size(n))
        if self.moves_tool:
            self._gains[task.TARGET] = gain_targets(arm, Tuning.of(arm.config))
            self._cj[:] = joint_parameters(arm, config)
        self._write_config()
        jp[k.JP_TORQUE_RATE] = arm.limits.torque_rate_nm_s
        jp[k.JP_DAMP] = [joint.damp_nms_rad for joint in joints]
        jp[k.JP_ARMATURE] = arm.armature_kgm2
        jp[k.JP_VELOCITY] = arm.limits.velocity_rad_s
        jp[k.JP_ACCELERATION] = arm.limits.acceleration_rad_s2
        jp[k.JP_KD_MIN] = [joint.kd.minimum for joint in joints]
        jp[k.JP_KD_MAX] = [joint.kd.maximum for joint in joints]

        self._planner = (
            ToolPlanner(
                config, arm, prior, jp, cf, self._buffers_in_use, self._gains, self._cj)
            if prior is not None and self.moves_tool
            else Planner(config, arm, prior, jp, cf, self._buffers_in_use)
        )
        pool = self._pool = self._planner.pool
        self._st = np.zeros(k.ST_SIZE)
        self._si = np.zeros(k.SI_SIZE, dtype=np.int64)
        self._st[k.ST_GRIPPER] = cf[k.CF_GRIPPER_MAX]
        self._meta = np.zeros((c.SLOTS, c.META_CHANNEL + n + 1), dtype=np.int64)
        self._sf = np.zeros((c.SLOTS, 4))
        self._pi = np.zeros(k.PI_SIZE, dtype=np.int64)
        self._pf = np.zeros(k.PF_SIZE)
        self._pmeta, self._psf = self._meta.copy(), self._sf.copy()
        self._tel = np.zeros((k.TEL_ROWS, n + 1))
        self._tau = np.zeros(n)
        self._ref = np.zeros((3, n + 1))
        self._tmp = np.zeros((2, 3, n + 1))
        self._dyn = np.zeros((7, max(n, 3)))
        self._dynamics_work = np.zeros((n, WORK_COLUMNS))
        channels = n + 1 if prior is None else max(n + 1, prior.D)
        self._raw = np.zeros(3 * channels)
        self._work = aligned_empty(siren_work_size(1 if prior is None else prior.H))
        self._tick_arguments = (
            cf, jp, self._st, self._si, arm.model, arm.parent, arm.kind, arm.gravity, pool,
            self._meta, self._sf, self._pi, self._pf, self._pmeta, self._psf, self._raw,
            self._work, self._tmp, self._ref, self._dynamics_work, self._dyn, self._tel, self._tau,
            arm.tool, self._gains, self._cj, self._scratch,
        )
        self._number = 0
        self._planned_buffers: tuple[int, ...] = ()
        self._settings = 0  # counts what changes under a plan: tuning and configuration
        self._committed_sequence = 0
        self._last_stamp_s = -math.inf
        self._window = (0.0, 1.0)
        names = ("q_ref", "dq_ref", "ddq_ref", "q", "dq")
        rows = {name: self._tel[i, :n] for i, name in enumerate(names)}
        report = task.T_REPORT
        self.telemetry = Telemetry(
            tau=self._tau,
            tau_stiffness=self._tel[k.TEL_STIFFNESS, :n],
            tau_damping=self._tel[k.TEL_DAMPING, :n],
            tau_posture=self._tel[k.TEL_POSTURE, :n],
            tau_gravity=self._tel[k.TEL_GRAVITY, :n],
            tau_inertia=self._tel[k.TEL_INERTIA, :n],
            tau_friction=self._tel[k.TEL_FRICTION, :n],
            tool_reference=self._scratch[task.T_REF : task.T_REF + MOTION_SIZE],
            tool_error=self._scratch[report + law.CR_ERROR : report + law.CR_ERROR + 6],
            tool_wrench=self._scratch[report + law.CR_WRENCH : report + law.CR_WRENCH + 6],
            **rows,
        )
        self._check_poses = _poses(arm)
        masses = [arm.mass_matrix(q) for q in self._check_poses]
        self._inertias = [(mass, np.linalg.inv(mass)) for mass in masses]
        self.refused_count = 0
        self.accepted_count = 0
        self.tuning = Tuning.of(arm.config)
        self._set_targets(self.tuning, config.gain_ramp_s)
        jp[k.JP_KP], jp[k.JP_KD] = jp[k.JP_KP_TARGET], jp[k.JP_KD_TARGET]
        jp[k.JP_TORQUE] = jp[k.JP_TORQUE_TARGET]
        self._gains[task.NOW] = self._gains[task.TARGET]

    def _write_config(self) -> None:
        cf, config, gripper = self._cf, self.config, self.arm.config.gripper
        cf[k.CF_DT_MAX] = config.dt_max_s
        cf[k.CF_STATE_TIMEOUT] = config.state_timeout_s
        cf[k.CF_JUMP_MARGIN] = config.jump_margin_rad
        cf[k.CF_OVERSPEED_RATIO] = config.overspeed_ratio
        cf[k.CF_STANDSTILL] = config.standstill_rad_s
        cf[k.CF_FEEDFORWARD] = FEEDFORWARD[config.feedforward]
        cf[k.CF_COULOMB_SPEED] = config.coulomb_speed_rad_s
        cf[k.CF_DAMP_GRAVITY] = 1.0 if config.damp_gravity else 0.0
        cf[k.CF_ROBOT_GRAVITY] = 1.0 if self.arm.config.gravity_added_by_robot else 0.0
        cf[k.CF_BRAKE], cf[k.CF_BRAKE_MAX] = config.brake_s, config.brake_max_s
        cf[k.CF_DEACTIVATE] = config.deactivate_s
        cf[k.CF_CLOCK_TOLERANCE] = config.clock_tolerance_ticks
        if gripper is not None:
            cf[k.CF_GRIPPER_MAX] = gripper.max_width_m
            cf[k.CF_GRIPPER_SPEED] = gripper.speed_limit_m_s
            cf[k.CF_GRIPPER_HYSTERESIS] = gripper.hysteresis_m
        cf[k.CF_FROZEN_REFERENCE] = config.frozen_reference_rad
        cf[k.CF_FROZEN_MOTION] = config.frozen_motion_rad
        cf[k.CF_VELOCITY_FILTER] = config.velocity_filter_s
        self._jp[k.JP_TRACKING] = config.tracking_error_limit_rad
        cf[k.CF_TASK] = 1.0 if self.moves_tool else 0.0
        cf[k.CF_TRACKING_M] = config.tracking_tool_limit_m
        cf[k.CF_TRACKING_RAD] = config.tracking_tool_limit_rad
        if self.moves_tool:
            self._cj[law.CJ_DDQ_MAX] = (
                config.admit_acceleration_ratio * self.arm.limits.acceleration_rad_s2)

    # -- what the caller reads --------------------------------------------------------------------
    @property
    def mode(self) -> Mode:
        return Mode(int(self._si[k.SI_MODE]))

    @property
    def off(self) -> bool:
        """No torque is commanded."""
        return bool(self._si[k.SI_MODE] == Mode.OFF)

    @property
    def fault(self) -> Fault:
        return Fault(int(self._si[k.SI_FAULT]))

    @property
    def silent(self) -> bool:
        """Nothing should be sent any more: what is measured cannot be trusted, so the drives' own
        watchdog, which has its own measurement, damps better than this controller could. Until the
        torque has come down to the arm's weight it is still sent."""
        return bool(k.silent(self._si, self._tel, self._tau))

    @property
    def fault_joint(self) -> str:
        index = int(self._si[k.SI_FAULT_JOINT])
        return self.arm.joint_names[index] if 0 <= index < self.n else ""

    @property
    def gripper_m(self) -> float:
        """Commanded opening width, m."""
        return float(self._st[k.ST_GRIPPER])

    @property
    def sequence(self) -> int:
        """Sequence of the newest reference handed over to since activation; 0: none."""
        return int(self._si[k.SI_SEQUENCE])

    @property
    def last_tick_s(self) -> float:
        return float(self._st[k.ST_T])

    @property
    def last_period_s(self) -> float:
        """Measured time between the last two ticks."""
        return float(self._st[k.ST_DT])

    @property
    def ticks(self) -> int:
        return int(self._si[k.SI_TICKS])

    @property
    def dropped_states(self) -> int:
        """States whose time stamp ran backwards or was not a number."""
        return int(self._si[k.SI_DROPPED])

    @property
    def blending(self) -> bool:
        if self.mode not in (Mode.TRACK, Mode.BRAKE):
            return False
        newest = int(self._si[k.SI_COUNT]) - 1
        return newest > 0 and bool(
            self._st[k.ST_SIGMA] < self._sf[newest, c.SF_SEAM] + self._sf[newest, c.SF_BLEND]
        )

    @property
    def tau(self) -> float:
        """Field time of the newest reference in [-1, 1]; 1 while holding."""
        if self.mode not in (Mode.TRACK, Mode.BRAKE):
            return 1.0
        start, horizon = self._window
        value = 2.0 * (float(self._st[k.ST_SIGMA]) - start) / horizon - 1.0
        return min(max(value, -1.0), 1.0)

    @property
    def path_rate(self) -> float:
        """Rate of path time against the clock: 1 in TRACK, falling to 0 in BRAKE."""
        return float(self._st[k.ST_RATE])

    @property
    def kp(self) -> FloatArray:
        """Stiffness in force now, Nm/rad [n] (ramps towards the last ``set_gains``)."""
        return self._jp[k.JP_KP]

    @property
    def kd(self) -> FloatArray:
        """Damping in force now, Nm s/rad [n]."""
        return self._jp[k.JP_KD]

    @property
    def statistics(self) -> WindowStatistics:
        st = self._st
        return WindowStatistics(
            float(st[k.ST_PEAK_TORQUE]),
            float(st[k.ST_PEAK_TORQUE_RATE]),
            float(st[k.ST_SEAM_POSITION]),
            float(st[k.ST_SEAM_VELOCITY]),
            float(st[k.ST_SEAM_ACCELERATION]),
        )

    # -- mode changes -----------------------------------------------------------------------------
    def activate(
        self,
        t_s: float,
        q: FloatArray,
        dq: FloatArray,
        gripper_m: float | None = None,
        tau_start_nm: FloatArray | None = None,
    ) -> None:
        """Hold the measured pose with zero error.

        The torque starts at ``tau_start_nm`` (what flows in the drives now), by default at the
        torque that holds the arm against gravity, and moves within the rate limit: no step.
        ``gripper_m`` is the measured width; by default the last command is kept.
        """
        q, dq = self._checked_state(q, dq)
        if not math.isfinite(t_s):
            raise ValueError(f"activation time is {t_s}; it must be finite")
        st, si, n = self._st, self._si, self.n
        start = self._weight(q) if tau_start_nm is None else np.array(tau_start_nm)
        if start.shape != (n,) or not np.isfinite(start).all():
            raise ValueError(f"tau_start_nm must be {n} finite torques, got {start}")
        limit = self._jp[k.JP_TORQUE]
        self._tau[:] = np.clip(start, -limit, limit)
        if gripper_m is not None and math.isfinite(gripper_m):
            st[k.ST_GRIPPER] = min(max(gripper_m, 0.0), self._cf[k.CF_GRIPPER_MAX])
        width = st[k.ST_GRIPPER]
        st[k.ST_GRIPPER_TARGET] = st[k.ST_GRIPPER_HOLD] = width
        st[k.ST_PEAK_TORQUE : k.ST_SEAM_ACCELERATION + 1] = 0.0
        st[k.ST_T] = t_s
        self._tel[:] = 0.0
        self._tel[k.TEL_Q_REF, :n] = self._tel[k.TEL_Q, :n] = q
        self._tel[k.TEL_DQ, :n] = dq
        self._tel[k.TEL_Q_REF, n] = width
        if self.moves_tool:
            pose = np.zeros(c.TOOL_JET)
            pose[:24], _ = tool_pose(self.arm, q)
            pose[c.TOOL_GRIPPER] = width
            c.tool_hold(pose, self._pool[0])
            self._cj[law.CJ_POSTURE] = q
            self._gains[task.NOW] = self._gains[task.TARGET]
        else:
            self._pool[0, : n + 1] = self._tel[k.TEL_Q_REF]
        self._tel[k.TEL_DQ_FILTERED, :n] = dq
        self._tel[k.TEL_FROZEN_REFERENCE, :n] = q
        self._meta[0, c.META_KIND], self._meta[0, c.META_BUFFER] = c.KIND_HOLD, 0
        generation = int(si[k.SI_GENERATION])
        si[:] = 0
        si[k.SI_GENERATION] = generation + 1
        si[k.SI_COUNT] = 1
        si[k.SI_FAULT_JOINT] = -1
        si[k.SI_MODE] = Mode.HOLD
        st[k.ST_RATE] = 0.0
        self._jp[k.JP_KP] = self._jp[k.JP_KP_TARGET]
        self._jp[k.JP_KD] = self._jp[k.JP_KD_TARGET]
        self._pi[k.PI_WAITING] = 0
        self._committed_sequence = 0
        self._last_stamp_s = -math.inf

    def _weight(self, q: FloatArray) -> FloatArray:
        """Torque [n] that has to be sent to hold the arm still at ``q``."""
        if self.arm.config.gravity_added_by_robot:
            return np.zeros(self.n)
        return self.arm.gravity_torque(q)

    def deactivate(self, t_s: float) -> None:
        """Brake along the path, ramp to gravity and damping only, then OFF (tick gives zero).

        From DAMP and ESTOP: OFF at the first tick at standstill.
        """
        if self.mode != Mode.OFF and self._si[k.SI_DEACTIVATING] == 0:
            self.brake(t_s)
            self._si[k.SI_DEACTIVATING] = 1
            self._si[k.SI_GENERATION] += 1

    def switch_off(self) -> None:
        """OFF at once: for a loop that hears nothing any more, so that no tick can do it."""
        self._si[k.SI_MODE] = Mode.OFF
        self._si[k.SI_GENERATION] += 1

    def brake(self, t_s: float) -> None:
        """Slow down along the path to a stop, then hold. Does nothing unless in TRACK."""
        k.brake(self._cf, self._jp, self._st, self._si, self._tel, t_s)

    def estop(self) -> None:
        """Damp at once and latch. Allowed in every mode."""
        if self.mode != Mode.OFF:
            self._latch(Mode.ESTOP, Fault.ESTOP_REQUESTED)

    def report_fault(self, fault: Fault, joint: int = -1) -> None:
        """Damp because of something that only the caller sees (a drive, the bus, the loop).

        ``joint`` is an index or -1. The first fault stays; OFF and ESTOP are left alone.
        """
        if self.mode not in (Mode.OFF, Mode.DAMP, Mode.ESTOP):
            self._latch(Mode.DAMP, fault, joint)

    def _latch(self, mode: Mode, fault: Fault, joint: int = -1) -> None:
        si = self._si
        si[k.SI_MODE], si[k.SI_FAULT], si[k.SI_FAULT_JOINT] = mode, fault, joint
        si[k.SI_GENERATION] += 1

    def reset_problem(self) -> str:
        """Why nothing can be reset, whether or not the arm rests; empty when it can."""
        mode = self.mode
        if mode == Mode.OFF:
            return "the controller is OFF; activate it instead"
        if self._si[k.SI_DEACTIVATING] != 0:
            return "the controller is on its way to OFF; activate it then"
        if mode not in (Mode.DAMP, Mode.ESTOP):
            return f"nothing to reset: the controller is in {mode.name}"
        if self.fault == Fault.STATE_FROZEN and self._tel[
            k.TEL_FROZEN_TICKS, self._si[k.SI_FAULT_JOINT]
        ] > 0.0:
            return (
                f"the reading of {self.fault_joint} still does not change; move the joint a little "
                "by hand to see that it lives, or deactivate and activate again"
            )
        return ""

    def reset(
        self, t_s: float | None = None, q: FloatArray | None = None, dq: FloatArray | None = None,
    ) -> None:
        """Leave DAMP or ESTOP: hold the measured pose. ResetRefusedError unless at standstill.

        ``t_s`` is the time to go on from (after a clock jump), q and dq [n] a state newer than that
        of the last tick; by default they are those of the last tick.
        """
        problem = self.reset_problem()
        if problem:
            raise ResetRefusedError(problem)
        q = self.telemetry.q.copy() if q is None else q
        dq = self.telemetry.dq.copy() if dq is None else dq
        speed = np.maximum(np.abs(self.telemetry.dq), np.abs(dq))
        worst = int(np.argmax(speed))
        if not speed[worst] <= self.config.standstill_rad_s:
            raise ResetRefusedError(
                f"{self.arm.joint_names[worst]} moves at {speed[worst]:.3f} rad/s; reset is "
                f"allowed below standstill_rad_s = {self.config.standstill_rad_s:g}; wait for rest"
            )
        self.activate(
            float(self._st[k.ST_T]) if t_s is None else t_s, q, dq,
            tau_start_nm=self._tau.copy(),
        )

    def note_state_age(self, age_s: float) -> bool:
        """Watchdog: tell how old the newest state is. True when this latched STATE_STALE.

        Then ``telemetry.tau`` is the one torque still worth sending: gravity at the last pose (no
        velocity is known), within the rate limit. Send it once and fall silent, so that the
        drives' own watchdog takes over.
        """
        if self.mode in (Mode.OFF, Mode.DAMP, Mode.ESTOP):
            return False
        if not age_s > self.config.state_timeout_s:
            return False
        gravity = self._cf[k.CF_DAMP_GRAVITY] * self._weight(self.telemetry.q)
        step = self._jp[k.JP_TORQUE_RATE] * min(age_s, self.config.state_timeout_s)
        limit = self._jp[k.JP_TORQUE]
        self._tau[:] = np.clip(np.clip(gravity, self._tau - step, self._tau + step), -limit, limit)
        self._latch(Mode.DAMP, Fault.STATE_STALE)
        return True

    # -- tuning -----------------------------------------------------------------------------------
    def set_gains(self, kp: Sequence[float] | FloatArray, kd: Sequence[float] | FloatArray) -> None:
        """New stiffness [n] and damping [n], the rest of the tuning as it is."""
        self.set_tuning(replace(self.tuning, kp=tuple(kp), kd=tuple(kd)))

    def check_gains(
        self, kp: Sequence[float] | FloatArray, kd: Sequence[float] | FloatArray, period_s: float
    ) -> str:
        """``check_tuning`` of these gains and the rest of the tuning as it is."""
        return self.check_tuning(replace(self.tuning, kp=tuple(kp), kd=tuple(kd)), period_s)

    def set_tuning(self, tuning: Tuning) -> None:
        """New gains, friction, torque limits: checked against the ranges, gains ramped.

        ControllerConfigError names what is outside its range. Whether the damping suits the loop's
        delay is another question: ``check_tuning``.
        """
        problem = tuning.outside_ranges(self.arm.config)
        if problem:
            raise ControllerConfigError(problem)
        self.tuning = tuning
        self._settings += 1
        self._set_targets(tuning, self.config.gain_ramp_s)
        if self.mode == Mode.OFF:
            jp = self._jp
            jp[k.JP_KP], jp[k.JP_KD] = jp[k.JP_KP_TARGET], jp[k.JP_KD_TARGET]
            jp[k.JP_TORQUE] = jp[k.JP_TORQUE_TARGET]
            self._gains[task.NOW] = self._gains[task.TARGET]

    def _set_targets(self, tuning: Tuning, ramp_s: float) -> None:
        jp, cf = self._jp, self._cf
        jp[k.JP_KP_TARGET] = tuning.effective_kp(self.arm.config)
        jp[k.JP_KP_RATE] = np.abs(jp[k.JP_KP_TARGET] - jp[k.JP_KP]) / ramp_s
        if tuning.damping_ratio == 0.0:
            jp[k.JP_KD_TARGET] = tuning.kd
            jp[k.JP_KD_RATE] = np.abs(jp[k.JP_KD_TARGET] - jp[k.JP_KD]) / ramp_s
        else:  # the tick moves the target with the inertia
            jp[k.JP_KD_RATE] = jp[k.JP_KD_MAX] / ramp_s
        cf[k.CF_DAMPING_RATIO] = tuning.damping_ratio
        cf[k.CF_ERROR_CLIP] = tuning.error_clip_rad
        cf[k.CF_FRICTION_SCALE] = tuning.friction_scale
        jp[k.JP_COULOMB], jp[k.JP_VISCOUS] = tuning.coulomb_nm, tuning.viscous_nms_rad
        jp[k.JP_TORQUE_TARGET] = tuning.torque_limit_nm
        if self.moves_tool:
            gains = self._gains
            gains[task.TARGET] = gain_targets(self.arm, tuning)
            gains[task.RATE] = np.abs(gains[task.TARGET] - gains[task.NOW]) / ramp_s

    def check_tuning(
        self, tuning: Tuning, period_s: float, velocity_filter_s: float | None = None
    ) -> str:
        """Why this tuning cannot be used at this tick period; empty when it can.

        ``velocity_filter_s``: that of the settings in force unless given.

        Besides the ranges: damping acts one period, the drives' delay and the velocity filter
        late. The fastest rate at which it takes speed out of the arm, the largest eigenvalue of
        M^-1 Kd (joints are coupled: folded, an arm has directions with hardly more inertia than
        the rotors), times that delay is the phase lag at crossover; beyond about 1.1 rad the arm
        starts to shake. And stiffness that acts late drives the arm: to first order the delay takes
        kp * delay away from kd, whatever the inertia, so kd must be more than that.
        """
        problem = tuning.outside_ranges(self.arm.config)
        if problem:
            return problem
        if velocity_filter_s is None:
            velocity_filter_s = self.config.velocity_filter_s
        delay = self._delay_s(period_s, velocity_filter_s)
        if self.moves_tool:
            return self._check_tool_damping(tuning, delay) or self._too_little_tool_damping(
                tuning, delay)
        if tuning.damping_ratio == 0.0:
            problem = self._too_little_damping(tuning, delay)
            if problem:
                return problem
        worst, pose, damping = self._fastest_damping(tuning)
        if worst * delay <= _LAG_LIMIT_RAD:
            return ""
        excess = 100.0 * (1.0 - _LAG_LIMIT_RAD / (worst * delay))
        inverse = np.diag(self._inertias[pose][1])
        share = np.sum(damping * inverse) or 1.0
        names = ", ".join(
            f"{name} {value:g}"
            for name, value, mobility in zip(self.arm.joint_names, damping, inverse, strict=True)
            if value * mobility > share / self.n
        )
        knob = "kd" if tuning.damping_ratio == 0.0 else "damping_ratio"
        return (
            f"damping too high for the delay: it would act at {worst:.0f} rad/s with "
            f"{delay * 1e3:.1f} ms delay ({worst * delay:.2f} rad of lag, at most "
            f"{_LAG_LIMIT_RAD:g}); lower {knob} by {excess:.0f} % "
            f"(mostly {names}) or raise control_rate_hz"
        )

    def bearable_age_s(self, period_s: float) -> float:
        """Age of the measured states from which the tuning in force drives the arm instead of
        damping it: a quarter turn of lag at the fastest rate at which damping acts. At least zero.
        """
        rate = (
            self._fastest_tool_damping(self.tuning) if self.moves_tool
            else self._fastest_damping(self.tuning)[0]
        )
        if rate <= 0.0:
            return math.inf
        delay_s = self._delay_s(period_s, self.config.velocity_filter_s)
        return max(0.5 * math.pi / rate - delay_s, 0.0)

    def _delay_s(self, period_s: float, velocity_filter_s: float) -> float:
        return period_s + self.arm.config.feedback_delay_s + velocity_filter_s

    def _fastest_damping(self, tuning: Tuning) -> tuple[float, int, FloatArray]:
        """Largest rate of damping over the poses, rad/s; which pose, and its damping [n]."""
        worst, pose, damping = 0.0, 0, np.zeros(self.n)
        for index, (inertia, inverse) in enumerate(self._inertias):
            candidate = np.asarray(tuning.kd, dtype=np.float64)
            if tuning.damping_ratio > 0.0:
                kp = np.asarray(tuning.effective_kp(self.arm.config))
                wanted = 2.0 * tuning.damping_ratio * np.sqrt(kp * np.diag(inertia))
                candidate = np.clip(wanted, self._jp[k.JP_KD_MIN], self._jp[k.JP_KD_MAX])
            root = np.sqrt(candidate)
            # eigenvalues of M^-1 Kd are those of Kd^1/2 M^-1 Kd^1/2
            rate = float(np.linalg.eigvalsh(root[:, None] * inverse * root)[-1])
            if rate > worst:
                worst, pose, damping = rate, index, candidate
        return worst, pose, damping

    def _too_little_damping(self, tuning: Tuning, delay_s: float) -> str:
        kp = tuning.effective_kp(self.arm.config)
        for name, stiffness, damping in zip(self.arm.joint_names, kp, tuning.kd, strict=True):
            if damping < stiffness * delay_s:
                return (
                    f"too little damping for the stiffness of {name}: kp {stiffness:g} acts "
                    f"{delay_s * 1e3:.1f} ms late, which takes {stiffness * delay_s:.2g} from kd "
                    f"{damping:g}; raise its kd or lower its kp"
                )
        return ""

    def _too_little_tool_damping(self, tuning: Tuning, delay_s: float) -> str:
        """The same of the Cartesian law, whose stiffness and damping share their axes."""
        gains = gain_targets(self.arm, tuning)
        stiffness = gains[law.CP_STIFFNESS : law.CP_STIFFNESS + 6]
        damping = gains[law.CP_DAMPING : law.CP_DAMPING + 6]
        pairs = [
            ("position", stiffness[:3], damping[:3]), ("orientation", stiffness[3:], damping[3:]),
            ("posture", gains[[task.G_NULL_KP]], gains[[task.G_NULL_KD]]),
        ]
        for name, kp, kd in pairs:
            lacking = kp * delay_s - kd
            if lacking.max() > 0.0:
                i = int(lacking.argmax())
                return (
                    f"too little damping for the stiffness of the tool's {name}: {kp[i]:g} acts "
                    f"{delay_s * 1e3:.1f} ms late, which takes {kp[i] * delay_s:.2g} from its "
                    f"damping {kd[i]:g}; raise the damping or lower the stiffness"
                )
        return ""

    def _check_tool_damping(self, tuning: Tuning, delay_s: float) -> str:
        """The same bound for the Cartesian law."""
        worst = self._fastest_tool_damping(tuning)
        if worst * delay_s <= _LAG_LIMIT_RAD:
            return ""
        excess = 100.0 * (1.0 - _LAG_LIMIT_RAD / (worst * delay_s))
        return (
            f"damping too high for the delay: it would act at {worst:.0f} rad/s with "
            f"{delay_s * 1e3:.1f} ms delay ({worst * delay_s:.2f} rad of lag, at most "
            f"{_LAG_LIMIT_RAD:g}); lower cartesian.<axis>.damping_* and "
            f"cartesian.null_damping_nms_rad by {excess:.0f} % or raise control_rate_hz"
        )

    def _fastest_tool_damping(self, tuning: Tuning) -> float:
        """The largest eigenvalue of M^-1 (J^T D J + N D_n N) over the poses, rad/s."""
        gains = gain_targets(self.arm, tuning)
        return max(
            float(np.abs(np.linalg.eigvals(inverse @ damping_matrix(self.arm, gains, q))).max())
            for q, (_, inverse) in zip(self._check_poses, self._inertias, strict=True)
        )

    def set_config(self, config: ControllerConfig) -> None:
        """Change settings while running; they hold from the next tick and the next plan."""
        self.config = self._planner.config = config
        self._settings += 1
        self._write_config()

    # -- the tick ---------------------------------------------------------------------------------
    def tick(self, t_s: float, q: FloatArray, dq: FloatArray) -> FloatArray:
        """Torque command [n] for the state measured at ``t_s``: a view, overwritten next time.

        q, dq: contiguous float64[n]. The result is finite and within the limits whatever comes in.
        """
        k.tick(t_s, q, dq, *self._tick_arguments)
        return self._tau

    # -- new references ---------------------------------------------------------------------------
    def offer(self, t_s: float, reference: Reference) -> AdmissionVerdict:
        """Judge a new reference at time ``t_s`` and, if admitted, hand over to it at once."""
        return self.commit(self.plan(self.snapshot(), t_s, reference))

    def snapshot(self) -> Snapshot:
        """Copy of what ``plan`` has to know; take it between two ticks."""
        si = self._si
        return Snapshot(
            self.mode, int(si[k.SI_GENERATION]), bool(si[k.SI_DEACTIVATING]),
            float(self._st[k.ST_T]), self._committed_sequence, self._last_stamp_s, self._number,
            self._st.copy(), int(si[k.SI_COUNT]), self._meta.copy(), self._sf.copy(),
            self._tel[: k.TEL_DDQ_REF + 1].copy(), self._settings,
            self._tel[k.TEL_Q, : self.n].copy(), self._tel[k.TEL_DQ, : self.n].copy(),
        )

    def plan(
        self, snapshot: Snapshot, t_s: float, reference: Reference, lead_s: float = 0.0
    ) -> Plan:
        """Judge ``reference`` and prepare the hand-over; see :meth:`Planner.plan`."""
        return self._planner.plan(snapshot, t_s, reference, lead_s)

    def commit(self, plan: Plan) -> AdmissionVerdict:
        """Give an admitted plan to the tick; its verdict, or OVERTAKEN when it came too late.

        The tick hands over at the first instant past the plan's flip (at once when that is the
        last tick). OVERTAKEN means: snapshot and plan again, with a longer lead.
        """
        verdict = plan.verdict
        if not verdict.accepted:
            self.refused_count += 1
            return verdict
        behind = float(self._st[k.ST_T]) - plan.flip_s
        if (
            plan.generation != self._si[k.SI_GENERATION]
            or plan.number != self._number + 1
            or plan.settings != self._settings
            or behind > 0.0
            or not self._planner.buffers.confirm(
                plan.serial, plan.buffers, lambda: self._put_in_mailbox(plan))
        ):
            return replace(
                verdict, verdict=Verdict.REFUSED, reason=Reason.OVERTAKEN,
                text="the controller went on while the reference was judged; judge it again",
            )
        if behind == 0.0:
            k.flip(
                self._cf, self._st, self._si, self._pool, self._meta, self._sf, self._pi, self._pf,
                self._pmeta, self._psf, self._raw, self._work, self._tmp, self._ref,
                self._scratch,
            )
        self.accepted_count += 1
        return verdict

    def _put_in_mailbox(self, plan: Plan) -> None:
        """Hand the tables of an admitted plan to the tick, the flag last."""
        pi, pf = self._pi, self._pf
        self._number = plan.number
        self._pmeta[: plan.count], self._psf[: plan.count] = plan.meta, plan.sf
        pf[k.PF_FLIP], pf[k.PF_END] = plan.flip_s, plan.end_s
        pf[k.PF_BRAKE_AT], pf[k.PF_BRAKE_T] = plan.brake_at_s, plan.brake_s
        pi[k.PI_COUNT], pi[k.PI_GENERATION] = plan.count, plan.generation
        pi[k.PI_SEQUENCE] = plan.verdict.sequence
        self._planned_buffers = plan.buffers
        self._committed_sequence, self._last_stamp_s = plan.verdict.sequence, plan.stamp_s
        self._window = plan.window_s
        pi[k.PI_WAITING] = 1

    def _buffers_in_use(self) -> list[int]:
        """Buffers that the tick reads now or after its flip (the waiting plan's first: a flip in
        between only moves them into the slots)."""
        return [*self._planned_buffers, *map(int, self._meta[:, c.META_BUFFER])]

    def _checked_state(self, q: FloatArray, dq: FloatArray) -> tuple[FloatArray, FloatArray]:
        pair = []
        for name, values in (("q", q), ("dq", dq)):
            array = np.ascontiguousarray(values, dtype=np.float64)
            if array.shape != (self.n,):
                raise ValueError(f"measured {name} has shape {array.shape}, expected ({self.n},)")
            if not np.isfinite(array).all():
                joint = self.arm.joint_names[int(np.flatnonzero(~np.isfinite(array))[0])]
                raise ValueError(f"measured {name} of {joint} is not finite; cannot activate")
            pair.append(array)
        return pair[0], pair[1]


def _poses(arm: ArmModel, count: int = 40) -> list[FloatArray]:
    """The home pose and poses spread around it, within the limits (seeded)."""
    rng = np.random.default_rng(0)
    home, limits = arm.config.home_rad, arm.limits
    spread = home + rng.normal(scale=0.4, size=(count, arm.n))
    return [home, *np.clip(spread, limits.position_min_rad, limits.position_max_rad)]
