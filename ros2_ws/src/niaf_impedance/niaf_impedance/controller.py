"""The impedance controller: owns the arrays of the compiled tick, admits references, changes mode.

No ROS, no clock: every time is an argument, in seconds of one clock of the caller's choice. Use
a clock with a small epoch (seconds since start): at 1.7e9 s a float64 resolves only 0.24 us.
Methods must be called from one thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from niaf_field import (
    ActionField,
    Prior,
    Reference,
    SplineReference,
    aligned_empty,
    siren_work_size,
)
from niaf_impedance import tick as k
from niaf_impedance.admission import AdmissionVerdict, Reason, Verdict
from niaf_impedance.arm_model import ArmModel
from niaf_impedance.dynamics import WORK_COLUMNS
from niaf_impedance.faults import Fault, Mode

FloatArray = np.ndarray
AnyReference = ActionField | SplineReference

FEEDFORWARD = {"gravity": k.FF_GRAVITY, "nonlinear": k.FF_NONLINEAR, "full": k.FF_FULL}

#: peak of |d rate / dt| of the braking profile times its duration (quintic smoothstep)
_BRAKE_PEAK = 1.875

#: largest phase lag of the damping at its crossover
_LAG_LIMIT_RAD = 1.1


class ControllerConfigError(ValueError):
    """A setting that the controller cannot run with; names setting, value and remedy."""


class ResetRefusedError(RuntimeError):
    """``reset`` was asked for while it is not allowed; the text says why."""


@dataclass(frozen=True)
class ControllerConfig:
    """Settings of the controller that do not belong to one arm.

    feedforward: 'gravity' (at the measured pose), 'nonlinear' (adds Coriolis and centrifugal
    torque) or 'full' (adds inertia times reference acceleration, rotor inertia included).

    brake_s is the shortest duration of braking; it is lengthened up to brake_max_s to respect the
    acceleration limits. bridge_s: time in which a motion that has to be left comes to rest under
    the blend. damp_gravity: in DAMP and ESTOP the arm's weight is still carried, so that it sinks
    neither onto the work nor onto a hand; switch it off only for an arm whose model or mounting is
    in doubt, for then the weight comes down against the damping. admit_*_ratio: largest peak over
    limit that admission lets through; accelerations may pass the maker's planning limit for an
    instant (a blend does), torque may not.
    """

    feedforward: str = "full"
    friction_scale: float = 0.8
    coulomb_speed_rad_s: float = 0.03
    blend_s: float = 0.10
    blend_max_s: float = 0.40
    brake_s: float = 0.30
    brake_max_s: float = 1.0
    bridge_s: float = 0.30
    gain_ramp_s: float = 0.5
    deactivate_s: float = 0.3
    state_timeout_s: float = 0.02
    dt_max_s: float = 0.005
    clock_tolerance_ticks: int = 20
    jump_margin_rad: float = 0.05
    overspeed_ratio: float = 1.5
    tracking_error_limit_rad: float = 0.5
    standstill_rad_s: float = 0.05
    damp_gravity: bool = True
    admission_samples: int = 64
    admit_velocity_ratio: float = 1.0
    admit_acceleration_ratio: float = 3.0
    admit_torque_ratio: float = 1.0
    seam_position_limit_rad: float = 0.35
    seam_velocity_limit_rad_s: float = 2.0
    start_ahead_s: float = 0.5
    min_remaining_s: float = 0.02

    def __post_init__(self) -> None:
        if self.feedforward not in FEEDFORWARD:
            raise ControllerConfigError(
                f"feedforward is {self.feedforward!r}; use one of {sorted(FEEDFORWARD)}"
            )
        zero_allowed = {"friction_scale", "jump_margin_rad", "min_remaining_s", "start_ahead_s"}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, (str, bool)):
                continue
            bad = not math.isfinite(value) or value < 0.0
            if bad or (value == 0.0 and entry.name not in zero_allowed):
                raise ControllerConfigError(
                    f"{entry.name} is {value!r}; it must be finite and positive"
                )
        if self.admission_samples < 8:
            raise ControllerConfigError(
                f"admission_samples is {self.admission_samples}; it must be at least 8"
            )


@dataclass(frozen=True)
class Telemetry:
    """What the last tick computed: views float64[n], overwritten by the next tick."""

    q_ref: FloatArray
    dq_ref: FloatArray
    ddq_ref: FloatArray
    q: FloatArray
    dq: FloatArray
    tau: FloatArray
    tau_stiffness: FloatArray
    tau_damping: FloatArray
    tau_gravity: FloatArray
    tau_inertia: FloatArray
    tau_friction: FloatArray


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
    """

    def __init__(self, config: ControllerConfig, arm: ArmModel, prior: Prior | None = None) -> None:
        self.config, self.arm, self.prior = config, arm, prior
        n = self.n = arm.n
        gripper = arm.config.gripper
        self._prior_columns = None if prior is None else self._columns_of_prior(prior)

        cf = self._cf = np.zeros(k.CF_SIZE)
        cf[k.CF_DT_MAX] = config.dt_max_s
        cf[k.CF_STATE_TIMEOUT] = config.state_timeout_s
        cf[k.CF_JUMP_MARGIN] = config.jump_margin_rad
        cf[k.CF_OVERSPEED_RATIO] = config.overspeed_ratio
        cf[k.CF_FEEDFORWARD] = FEEDFORWARD[config.feedforward]
        cf[k.CF_FRICTION_SCALE] = config.friction_scale
        cf[k.CF_COULOMB_SPEED] = config.coulomb_speed_rad_s
        cf[k.CF_DAMP_GRAVITY] = 1.0 if config.damp_gravity else 0.0
        cf[k.CF_DEACTIVATE] = config.deactivate_s
        cf[k.CF_CLOCK_TOLERANCE] = config.clock_tolerance_ticks
        if gripper is not None:
            cf[k.CF_GRIPPER_MAX] = gripper.max_width_m
            cf[k.CF_GRIPPER_SPEED] = gripper.speed_limit_m_s
            cf[k.CF_GRIPPER_HYSTERESIS] = gripper.hysteresis_m

        joints = arm.config.joints
        jp = self._jp = np.zeros((k.JP_ROWS, n))
        jp[k.JP_KP] = jp[k.JP_KP_TARGET] = [joint.kp.default for joint in joints]
        jp[k.JP_KD] = jp[k.JP_KD_TARGET] = [joint.kd.default for joint in joints]
        jp[k.JP_TORQUE] = arm.limits.torque_nm
        jp[k.JP_TORQUE_RATE] = arm.limits.torque_rate_nm_s
        jp[k.JP_DAMP] = [joint.damp_nms_rad for joint in joints]
        jp[k.JP_COULOMB] = [joint.coulomb_nm for joint in joints]
        jp[k.JP_VISCOUS] = [joint.viscous_nms_rad for joint in joints]
        jp[k.JP_ARMATURE] = arm.armature_kgm2
        jp[k.JP_VELOCITY] = arm.limits.velocity_rad_s
        jp[k.JP_TRACKING] = config.tracking_error_limit_rad

        self._st = np.zeros(k.ST_SIZE)
        self._si = np.zeros(k.SI_SIZE, dtype=np.int64)
        self._st[k.ST_GRIPPER] = cf[k.CF_GRIPPER_MAX]
        self._meta = np.zeros((k.SLOTS, k.META_CHANNEL + n + 1), dtype=np.int64)
        self._sf = np.zeros((k.SLOTS, 4))
        self._data = [aligned_empty(n + 1) for _ in range(k.SLOTS)]
        self._tel = np.zeros((k.TEL_ROWS, n + 1))
        self._tau = np.zeros(n)
        self._ref = np.zeros((3, n + 1))
        self._tmp = np.zeros((3, n + 1))
        self._dyn = np.zeros((5, n))
        self._dynamics_work = np.zeros((n, WORK_COLUMNS))
        self._raw = np.zeros(3 * (n + 1))
        self._work = aligned_empty(siren_work_size(1 if prior is None else prior.H))
        # admission works on copies, so that it may leave the tick's arrays alone
        self._scan_meta = self._meta.copy()
        self._scan_sf = self._sf.copy()
        self._scan_scratch = (self._tmp.copy(), self._ref.copy(), self._dynamics_work.copy(),
                              self._dyn.copy())
        self._ratios = np.zeros(4)
        self._ratio_joints = np.zeros(4, dtype=np.int64)
        self._ratio_instants = np.zeros(4)
        self._sequence = 0
        self._last_stamp_s = -math.inf
        self._window = (0.0, 1.0)
        names = ("q_ref", "dq_ref", "ddq_ref", "q", "dq")
        rows = {name: self._tel[i, :n] for i, name in enumerate(names)}
        self.telemetry = Telemetry(
            tau=self._tau,
            tau_stiffness=self._tel[k.TEL_STIFFNESS, :n],
            tau_damping=self._tel[k.TEL_DAMPING, :n],
            tau_gravity=self._tel[k.TEL_GRAVITY, :n],
            tau_inertia=self._tel[k.TEL_INERTIA, :n],
            tau_friction=self._tel[k.TEL_FRICTION, :n],
            **rows,
        )
        self._inverse_inertias = [np.linalg.inv(arm.mass_matrix(q)) for q in _poses(arm)]
        self.refused_count = 0
        self.accepted_count = 0
        self._bind()

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
    def fault_joint(self) -> str:
        index = int(self._si[k.SI_FAULT_JOINT])
        return self.arm.joint_names[index] if 0 <= index < self.n else ""

    @property
    def gripper_m(self) -> float:
        """Commanded opening width, m."""
        return float(self._st[k.ST_GRIPPER])

    @property
    def sequence(self) -> int:
        """Sequence of the newest accepted reference since activation; 0: none."""
        return self._sequence

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
            self._st[k.ST_SIGMA] < self._sf[newest, k.SF_SEAM] + self._sf[newest, k.SF_BLEND]
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
        start = self.arm.gravity_torque(q) if tau_start_nm is None else np.array(tau_start_nm)
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
        self._hold_in_slot(0, self._tel[k.TEL_Q_REF])
        si[:] = 0
        si[k.SI_COUNT] = 1
        si[k.SI_FAULT_JOINT] = -1
        si[k.SI_MODE] = Mode.HOLD
        st[k.ST_RATE] = 0.0
        self._jp[k.JP_KP] = self._jp[k.JP_KP_TARGET]
        self._jp[k.JP_KD] = self._jp[k.JP_KD_TARGET]
        self._sequence = 0
        self._last_stamp_s = -math.inf
        self._bind()

    def deactivate(self, t_s: float) -> None:
        """Brake along the path, ramp to gravity and damping only, then OFF (tick gives zero)."""
        mode = self.mode
        if mode in (Mode.DAMP, Mode.ESTOP):
            self._si[k.SI_MODE] = Mode.OFF
        elif mode != Mode.OFF and self._si[k.SI_DEACTIVATING] == 0:
            self.brake(t_s)
            self._si[k.SI_DEACTIVATING] = 1

    def brake(self, t_s: float) -> None:
        """Slow down along the path to a stop, then hold. Does nothing unless in TRACK."""
        if self.mode != Mode.TRACK:
            return
        st = self._st
        at = max(t_s, float(st[k.ST_T]))
        if at >= st[k.ST_BRAKE_AT]:
            return
        remaining = max(float(st[k.ST_END]) - at, 1e-6)
        st[k.ST_BRAKE_AT] = at
        st[k.ST_BRAKE_T] = min(self._brake_time(self._tel[k.TEL_DQ_REF, : self.n]), 2 * remaining)

    def estop(self) -> None:
        """Damp at once and latch. Allowed in every mode."""
        if self.mode != Mode.OFF:
            self._si[k.SI_MODE] = Mode.ESTOP
            self._si[k.SI_FAULT] = Fault.ESTOP_REQUESTED
            self._si[k.SI_FAULT_JOINT] = -1

    def reset(self, t_s: float | None = None) -> None:
        """Leave DAMP or ESTOP: hold the measured pose. ResetRefusedError unless at standstill.

        ``t_s`` is the time to go on from (after a clock jump), by default that of the last tick.
        """
        mode = self.mode
        if mode == Mode.OFF:
            raise ResetRefusedError("the controller is OFF; activate it instead")
        if mode not in (Mode.DAMP, Mode.ESTOP):
            return
        speed = np.abs(self.telemetry.dq)
        worst = int(np.argmax(speed))
        if not speed[worst] <= self.config.standstill_rad_s:
            raise ResetRefusedError(
                f"{self.arm.joint_names[worst]} moves at {speed[worst]:.3f} rad/s; reset is "
                f"allowed below standstill_rad_s = {self.config.standstill_rad_s:g}; wait for rest"
            )
        self.activate(
            float(self._st[k.ST_T]) if t_s is None else t_s,
            self.telemetry.q.copy(),
            self.telemetry.dq.copy(),
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
        gravity = self._cf[k.CF_DAMP_GRAVITY] * self.arm.gravity_torque(self.telemetry.q)
        step = self._jp[k.JP_TORQUE_RATE] * min(age_s, self.config.state_timeout_s)
        limit = self._jp[k.JP_TORQUE]
        self._tau[:] = np.clip(np.clip(gravity, self._tau - step, self._tau + step), -limit, limit)
        self._si[k.SI_MODE] = Mode.DAMP
        self._si[k.SI_FAULT] = Fault.STATE_STALE
        self._si[k.SI_FAULT_JOINT] = -1
        return True

    def set_gains(self, kp: Sequence[float] | FloatArray, kd: Sequence[float] | FloatArray) -> None:
        """New stiffness [n] and damping [n]: checked against the arm's ranges, then ramped."""
        self._check_ranges(kp, kd)
        jp = self._jp
        for target, current, ramp, values in (
            (k.JP_KP_TARGET, k.JP_KP, k.JP_KP_RATE, kp),
            (k.JP_KD_TARGET, k.JP_KD, k.JP_KD_RATE, kd),
        ):
            jp[target] = values
            jp[ramp] = np.abs(jp[target] - jp[current]) / self.config.gain_ramp_s
            if self.mode == Mode.OFF:
                jp[current] = jp[target]

    def _check_ranges(
        self, kp: Sequence[float] | FloatArray, kd: Sequence[float] | FloatArray
    ) -> None:
        for name, values in (("kp", kp), ("kd", kd)):
            if len(values) != self.n:
                raise ControllerConfigError(f"{name} needs {self.n} values, got {len(values)}")
            for joint, value in zip(self.arm.config.joints, values, strict=True):
                allowed = joint.kp if name == "kp" else joint.kd
                if not allowed.minimum <= value <= allowed.maximum:
                    raise ControllerConfigError(
                        f"gains.{joint.name}.{name} = {value:g} is outside "
                        f"[{allowed.minimum:g}, {allowed.maximum:g}]; choose a value inside"
                    )

    def check_gains(
        self, kp: Sequence[float] | FloatArray, kd: Sequence[float] | FloatArray, period_s: float
    ) -> str:
        """Why these gains cannot be used at this tick period; empty when they can.

        Besides the ranges: damping acts one period and the drives' delay late. The fastest rate at
        which it takes speed out of the arm, the largest eigenvalue of M^-1 Kd (joints are coupled:
        folded, an arm has directions with hardly more inertia than the rotors), times that delay
        is the phase lag at crossover; beyond about 1.1 rad the arm starts to shake.
        """
        try:
            self._check_ranges(kp, kd)
        except ControllerConfigError as error:
            return str(error)
        damping = np.asarray(kd, dtype=np.float64)
        root = np.sqrt(damping)
        worst, pose = 0.0, 0
        for index, inverse in enumerate(self._inverse_inertias):
            # eigenvalues of M^-1 Kd are those of Kd^1/2 M^-1 Kd^1/2
            rate = float(np.linalg.eigvalsh(root[:, None] * inverse * root)[-1])
            if rate > worst:
                worst, pose = rate, index
        delay = period_s + self.arm.config.feedback_delay_s
        if worst * delay <= _LAG_LIMIT_RAD:
            return ""
        excess = 100.0 * (1.0 - _LAG_LIMIT_RAD / (worst * delay))
        share = np.sum(damping * np.diag(self._inverse_inertias[pose])) or 1.0
        names = ", ".join(
            f"{name} {value:g}" for name, value, inverse in zip(
                self.arm.joint_names, damping, np.diag(self._inverse_inertias[pose]), strict=True
            ) if value * inverse > share / self.n
        )
        return (
            f"damping too high for the delay: it would act at {worst:.0f} rad/s with "
            f"{delay * 1e3:.1f} ms delay ({worst * delay:.2f} rad of lag, at most "
            f"{_LAG_LIMIT_RAD:g}); lower kd by {excess:.0f} % "
            f"(mostly {names}) or raise control_rate_hz"
        )

    # -- the tick ---------------------------------------------------------------------------------
    def tick(self, t_s: float, q: FloatArray, dq: FloatArray) -> FloatArray:
        """Torque command [n] for the state measured at ``t_s``: a view, overwritten next time.

        q, dq: contiguous float64[n]. The result is finite and within the limits whatever comes in.
        """
        arm = self.arm
        k.tick(
            t_s, q, dq, self._cf, self._jp, self._st, self._si, arm.model, arm.parent, arm.kind,
            arm.gravity, self._d0, self._d1, self._d2, self._meta, self._sf, self._raw, self._work,
            self._tmp, self._ref, self._dynamics_work, self._dyn, self._tel, self._tau,
        )
        return self._tau

    # -- admission and hand-over ------------------------------------------------------------------
    def offer(self, t_s: float, reference: Reference) -> AdmissionVerdict:
        """Judge a new reference at time ``t_s`` and, if accepted, hand over to it."""
        verdict = self._admit(t_s, reference)
        if verdict.accepted:
            self.accepted_count += 1
        else:
            self.refused_count += 1
        return verdict

    def _admit(self, t_s: float, reference: Reference) -> AdmissionVerdict:
        sequence = int(reference.sequence)

        def refuse(reason: Reason, text: str, **figures: object) -> AdmissionVerdict:
            return AdmissionVerdict(
                Verdict.REFUSED, reason, text, sequence, **figures  # type: ignore[arg-type]
            )

        mode = self.mode
        if mode not in (Mode.TRACK, Mode.BRAKE, Mode.HOLD):
            return refuse(Reason.NOT_FOLLOWING, f"the controller is in {mode.name}")
        if self._si[k.SI_DEACTIVATING]:
            return refuse(Reason.DEACTIVATING, "the controller is deactivating")
        if isinstance(reference, ActionField):
            if self.prior is None or reference.prior_id != self.prior.prior_id:
                known = "none" if self.prior is None else self.prior.prior_id[:12]
                return refuse(
                    Reason.PRIOR_MISMATCH,
                    f"field belongs to prior {reference.prior_id[:12]!r}, loaded is {known!r}",
                )
            assert self._prior_columns is not None
            columns = self._prior_columns
        elif isinstance(reference, SplineReference):
            if reference.D not in (self.n, self.n + 1):
                return refuse(
                    Reason.CHANNEL_MISMATCH,
                    f"spline has {reference.D} channels; the arm needs {self.n} joints in order "
                    f"{list(self.arm.joint_names)}, then optionally the gripper width",
                )
            columns = [*range(self.n), -1 if self.n == reference.D else self.n]
        else:  # a caller without type checking
            return refuse(Reason.UNKNOWN_KIND, f"cannot follow a {type(reference).__name__}")
        start, end, stamp = reference.start_s, reference.end_s, reference.stamp_s
        last = float(self._st[k.ST_T])
        now = max(t_s, last) if math.isfinite(t_s) else last
        if start > now + self.config.start_ahead_s:
            return refuse(
                Reason.STARTS_TOO_LATE,
                f"starts {start - now:.3f} s ahead; allowed is {self.config.start_ahead_s:g} s",
            )
        seam = max(last, start)
        if end - now < self.config.min_remaining_s:
            return refuse(
                Reason.EXHAUSTED, f"only {end - now:.3f} s remain of {end - start:.3f} s"
            )
        if stamp < self._last_stamp_s or (
            stamp == self._last_stamp_s and sequence <= self._sequence
        ):
            return refuse(
                Reason.OUT_OF_ORDER,
                f"its observation ({stamp:.3f} s) is not newer than the one in force "
                f"({self._last_stamp_s:.3f} s, sequence {self._sequence})",
            )

        n, config = self.n, self.config
        jet = reference.jet(seam, 2)
        if not np.isfinite(jet).all():
            return refuse(Reason.NOT_FINITE, "the field is not finite at the hand-over")
        count, data = self._arrange(seam, config.blend_s)
        step = jet[:, columns[:n]] - self._old_jet(count, data, seam)[:, :n]
        age = max(now - stamp, 0.0)
        consumed = min(max((now - start) / (end - start), 0.0), 1.0)
        figures: dict[str, object] = {
            "seam_position_rad": step[0].copy(),
            "seam_velocity_rad_s": step[1].copy(),
            "seam_acceleration_rad_s2": step[2].copy(),
            "age_s": age,
            "consumed_fraction": consumed,
            "instant_s": seam,
        }
        for row, limit, reason, unit in (
            (0, config.seam_position_limit_rad, Reason.SEAM_POSITION, "rad"),
            (1, config.seam_velocity_limit_rad_s, Reason.SEAM_VELOCITY, "rad/s"),
        ):
            worst = int(np.argmax(np.abs(step[row])))
            if abs(step[row, worst]) > limit:
                joint = self.arm.joint_names[worst]
                return refuse(
                    reason,
                    f"{joint} would step by {step[row, worst]:+.3f} {unit} at the hand-over; "
                    f"allowed is {limit:g}",
                    joint=joint,
                    **figures,
                )

        limits = (
            (0, max(1.0, self._outside_ratio()), Reason.POSITION_LIMIT),
            (1, config.admit_velocity_ratio, Reason.VELOCITY_LIMIT),
            (2, config.admit_acceleration_ratio, Reason.ACCELERATION_LIMIT),
            (3, config.admit_torque_ratio, Reason.TORQUE_LIMIT),
        )
        # A step at the seam costs acceleration with 1 / blend^2. A field that only its hand-over
        # makes too fast is let in over a longer blend: refusing it would leave an arm at rest
        # there for good, since the next field would be the same.
        blend = config.blend_s
        while True:
            if blend != config.blend_s:
                count, data = self._arrange(seam, blend)
            data.append(
                self._fill_slot(self._scan_meta[count], self._scan_sf[count], reference, columns)
            )
            self._scan_sf[count, k.SF_SEAM] = seam
            self._scan_sf[count, k.SF_BLEND] = blend
            count += 1
            brake_at, brake_t = self._plan_brake(reference, columns, seam)
            ratios, joints, instants = self._scan(last, end, brake_at, brake_t, count, data)
            longer = min(2.0 * blend, config.blend_max_s, 0.5 * (end - seam))
            if longer <= blend or all(ratios[row] <= limit for row, limit, _ in limits):
                break
            blend = longer
        figures |= {
            "position_ratio": float(ratios[0]),
            "velocity_ratio": float(ratios[1]),
            "acceleration_ratio": float(ratios[2]),
            "torque_ratio": float(ratios[3]),
            "blend_s": blend,
        }
        for row, limit, reason in limits:
            if not ratios[row] <= limit:
                index = int(joints[row])
                joint = self.arm.joint_names[index] if 0 <= index < n else "gripper"
                if ratios[row] == np.inf:
                    reason = Reason.NOT_FINITE
                return refuse(
                    reason,
                    f"{joint} would reach {ratios[row]:.2f} of its {reason.name.lower()} "
                    f"{instants[row] - now:+.3f} s from now (allowed {limit:.2f})",
                    **(figures | {"joint": joint, "instant_s": float(instants[row])}),
                )

        self._install(count, data, brake_at, brake_t, end)
        self._sequence, self._last_stamp_s = sequence, stamp
        self._window = (start, end - start)
        return AdmissionVerdict(
            Verdict.ACCEPTED, sequence=sequence, **figures  # type: ignore[arg-type]
        )

    # -- internals of the hand-over ---------------------------------------------------------------
    def _columns_of_prior(self, prior: Prior) -> list[int]:
        names = [channel.name for channel in prior.channels]
        columns = []
        for joint in self.arm.joint_names:
            if joint not in names:
                raise ControllerConfigError(
                    f"the prior has no channel for joint {joint!r}; its channels are {names}: "
                    "use the prior that was trained for this arm"
                )
            columns.append(names.index(joint))
        gripper = self.arm.config.gripper
        if gripper is not None and gripper.channel in names:
            columns.append(names.index(gripper.channel))
        else:
            columns.append(-1)
        unused = sorted(set(names) - {names[c] for c in columns if c >= 0})
        if unused:
            raise ControllerConfigError(
                f"the prior has channels that this arm does not: {unused}; joints are "
                f"{list(self.arm.joint_names)}"
            )
        return columns

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

    def _bind(self) -> None:
        self._d0, self._d1, self._d2 = self._data

    def _hold_in_slot(self, slot: int, values: FloatArray) -> None:
        self._meta[slot, k.META_KIND] = k.KIND_HOLD
        buffer = aligned_empty(self.n + 1)
        buffer[:] = values
        self._data[slot] = buffer

    def _old_jet(self, count: int, data: list[FloatArray], seam: float) -> FloatArray:
        """Jet [3, n + 1] at the seam of what the scan tables hold (path rate 1)."""
        out = np.zeros((3, self.n + 1))
        slots = (data + [data[0]] * k.SLOTS)[: k.SLOTS]
        k.composite(
            count, *slots, self._scan_meta, self._scan_sf, self._st[k.ST_GRIPPER_HOLD], seam,
            self._raw, self._work, self._scan_scratch[0], out,
        )
        return out

    def _arrange(self, seam: float, blend: float) -> tuple[int, list[FloatArray]]:
        """Choose what the new reference is blended from; fills the scan copies of slot tables.

        The composite that runs now is kept exactly if a slot is free and it lasts through the
        blend; otherwise it is replaced by a bridge that starts with the position, velocity and
        acceleration of the last tick and comes to rest.
        """
        st, si = self._st, self._si
        count = int(si[k.SI_COUNT])
        sigma = float(st[k.ST_T])
        first = 0
        for index in range(1, count):
            if sigma >= self._sf[index, k.SF_SEAM] + self._sf[index, k.SF_BLEND]:
                first = index
        kept = list(range(first, count))
        blend_end = seam + blend
        if self.mode == Mode.TRACK and len(kept) < k.SLOTS and blend_end <= st[k.ST_BRAKE_AT]:
            for target, source in enumerate(kept):
                self._scan_meta[target] = self._meta[source]
                self._scan_sf[target] = self._sf[source]
            return len(kept), [self._data[source] for source in kept]
        return 1, [self._bridge()]

    def _bridge(self) -> FloatArray:
        """Slot 0 of the scan tables: from the last commanded jet to rest in ``bridge_s``."""
        start = float(self._st[k.ST_T])
        n = self.n
        meta, sf = self._scan_meta[0], self._scan_sf[0]
        x0, v0, a0 = self._tel[[k.TEL_Q_REF, k.TEL_DQ_REF, k.TEL_DDQ_REF]]
        if not v0.any() and not a0.any():
            meta[k.META_KIND] = k.KIND_HOLD
            buffer = aligned_empty(n + 1)
            buffer[:] = x0
            return buffer
        T = self.config.bridge_s
        # cubic velocity: v(0) = v0, v'(0) = a0, v(T) = v'(T) = 0
        c2 = (-3.0 * v0 - 2.0 * a0 * T) / T**2
        c3 = (2.0 * v0 + a0 * T) / T**3
        coefficients = np.zeros((6, n + 1))
        coefficients[0], coefficients[1], coefficients[2] = x0, v0, 0.5 * a0
        coefficients[3], coefficients[4] = c2 / 3.0, c3 / 4.0
        buffer = aligned_empty(2 + 6 * (n + 1))
        buffer[0:2] = (start, start + T)
        buffer[2:] = coefficients.ravel()
        meta[k.META_KIND], meta[k.META_A], meta[k.META_D] = k.KIND_SPLINE, 1, n + 1
        meta[k.META_CHANNEL :] = np.arange(n + 1)
        sf[k.SF_START], sf[k.SF_HORIZON] = start, T
        return buffer

    def _fill_slot(
        self, meta: FloatArray, sf: FloatArray, reference: AnyReference, columns: Sequence[int]
    ) -> FloatArray:
        """Write the slot tables for ``reference`` and return its private copy as a flat buffer."""
        if isinstance(reference, ActionField):
            folded = reference.folded
            meta[: k.META_CHANNEL] = (k.KIND_SIREN, folded.L, folded.H, folded.D)
            buffer = aligned_empty(folded.weights.size)
            buffer[:] = folded.weights
            self._grow(folded.D, folded.H)
        else:
            pieces = reference.coefficients.shape[0]
            meta[: k.META_CHANNEL] = (k.KIND_SPLINE, pieces, 0, reference.D)
            buffer = aligned_empty(pieces + 1 + reference.coefficients.size)
            buffer[: pieces + 1] = reference.knots_s
            buffer[pieces + 1 :] = reference.coefficients.ravel()
            self._grow(reference.D, 1)
        meta[k.META_CHANNEL :] = columns
        sf[k.SF_START], sf[k.SF_HORIZON] = reference.start_s, reference.end_s - reference.start_s
        return buffer

    def _grow(self, channels: int, width: int) -> None:
        if self._raw.size < 3 * channels:
            self._raw = np.zeros(3 * channels)
        if self._work.size < siren_work_size(width):
            self._work = aligned_empty(siren_work_size(width))

    def _brake_time(self, velocity: FloatArray) -> float:
        """Duration that keeps the braking share of acceleration below two thirds of the limit."""
        needed = float(np.max(np.abs(velocity) / self.arm.limits.acceleration_rad_s2))
        return min(max(self.config.brake_s, 1.5 * _BRAKE_PEAK * needed), self.config.brake_max_s)

    def _plan_brake(
        self, reference: AnyReference, columns: Sequence[int], seam: float
    ) -> tuple[float, float]:
        """(instant, duration) of the brake that ends exactly at the end of ``reference``."""
        end = reference.end_s
        if isinstance(reference, SplineReference):
            # Only a spline can rest exactly (its last knot is exact; start + horizon of a field is
            # rounded, and beyond its end a field is at rest in name only).
            last = reference.jet(end, 2)[1:, columns[: self.n]]
            if np.all(np.abs(last) < 1e-9):
                return end, 0.0
        speed = np.abs(reference.jet(max(end - self.config.brake_s / 2, seam), 1)[1])
        duration = min(self._brake_time(speed[columns[: self.n]]), 2.0 * (end - seam))
        return end - 0.5 * duration, duration

    def _outside_ratio(self) -> float:
        """Position ratio of the current reference: from outside a limit the way back is allowed."""
        limits = self.arm.limits
        middle = 0.5 * (limits.position_max_rad + limits.position_min_rad)
        half = 0.5 * (limits.position_max_rad - limits.position_min_rad)
        return float(np.max(np.abs(self.telemetry.q_ref - middle) / half)) + 1e-9

    def _scan(
        self, last: float, end: float, brake_at: float, brake_t: float, count: int,
        data: list[FloatArray],
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        arm = self.arm
        stop = brake_at + brake_t if brake_t > 0.0 else end
        # a third of the samples on the blend, where accelerations change fastest
        dense = self.config.admission_samples // 3 + 1
        newest = self._scan_sf[count - 1]
        blended = min(float(newest[k.SF_SEAM] + newest[k.SF_BLEND]), stop)
        times = np.concatenate([
            np.linspace(last, blended, dense, endpoint=False),
            np.linspace(blended, stop, self.config.admission_samples - dense),
        ])
        slots = (data + [data[0]] * k.SLOTS)[: k.SLOTS]
        tmp, ref, dynamics_work, dyn = self._scan_scratch
        k.scan(
            times, brake_at, brake_t, end, count, *slots, self._scan_meta, self._scan_sf,
            self._st[k.ST_GRIPPER_HOLD], arm.model, arm.parent, arm.kind, arm.gravity, self._jp,
            self._cf, arm.limits.position_min_rad, arm.limits.position_max_rad,
            arm.limits.acceleration_rad_s2, self._raw, self._work, tmp, ref, dynamics_work, dyn,
            self._ratios, self._ratio_joints, self._ratio_instants,
        )
        return self._ratios, self._ratio_joints, self._ratio_instants

    def _install(
        self, count: int, data: list[FloatArray], brake_at: float, brake_t: float, end: float
    ) -> None:
        self._meta[:count] = self._scan_meta[:count]
        self._sf[:count] = self._scan_sf[:count]
        self._data = (data + [data[0]] * k.SLOTS)[: k.SLOTS]
        st, si = self._st, self._si
        st[k.ST_BRAKE_AT], st[k.ST_BRAKE_T], st[k.ST_END] = brake_at, brake_t, end
        st[k.ST_GRIPPER_HOLD] = st[k.ST_GRIPPER_TARGET]
        si[k.SI_COUNT] = count
        si[k.SI_SEAM] = 1
        si[k.SI_MODE] = Mode.TRACK
        self._bind()


def _poses(arm: ArmModel, count: int = 40) -> list[FloatArray]:
    """The home pose and poses spread around it, within the limits (seeded)."""
    rng = np.random.default_rng(0)
    home, limits = arm.config.home_rad, arm.limits
    spread = home + rng.normal(scale=0.4, size=(count, arm.n))
    return [home, *np.clip(spread, limits.position_min_rad, limits.position_max_rad)]
