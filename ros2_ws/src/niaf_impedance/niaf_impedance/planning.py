"""Whole-horizon admission: from a new reference to a hand-over that the tick can take over.

Runs off the tick, on copies and on buffers that the tick does not read, so any one thread may do it
while the tick runs in another. What is judged is the motion that would be commanded: the new
reference blended with what runs now, braked at its end, over its whole remaining window. Three
remedies are tried before a refusal: a longer blend (a step at the seam costs acceleration with
1 / blend^2; refusing it would leave an arm at rest there for good, since the next field would be
the same), then a uniform stretch of the reference in time about the seam, exact by the chain rule.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numba import njit

from niaf_field import (
    ActionField,
    Prior,
    Reference,
    SplineReference,
    aligned_empty,
    folded_size,
    siren_work_size,
)
from niaf_impedance import composite as c
from niaf_impedance import tick as k
from niaf_impedance.admission import AdmissionVerdict, Reason, Verdict
from niaf_impedance.arm_model import ArmModel
from niaf_impedance.buffers import BufferPool
from niaf_impedance.dynamics import WORK_COLUMNS, rnea, tool_position
from niaf_impedance.faults import Mode
from niaf_impedance.settings import ControllerConfig, ControllerConfigError

FloatArray = np.ndarray
AnyReference = ActionField | SplineReference

#: buffers: the tick's hold, three slots, and a bridge and a reference each for the plan that waits
#: for its flip, the one that waits for its commit, and the one in hand
BUFFERS = 1 + c.SLOTS + 3 * 2
#: pieces that the spline of one reference may have
MAX_PIECES = 512
#: rows of the scan
POSITION, VELOCITY, ACCELERATION, TORQUE, JERK, WORKSPACE, TORQUE_RATE = 0, 1, 2, 3, 4, 5, 6
_ROWS = 7
_REASONS = (
    Reason.POSITION_LIMIT,
    Reason.VELOCITY_LIMIT,
    Reason.ACCELERATION_LIMIT,
    Reason.TORQUE_LIMIT,
    Reason.JERK_LIMIT,
    Reason.WORKSPACE,
    Reason.TORQUE_RATE_LIMIT,
)
#: between two samples a peak is taken from a parabola; this covers what the parabola leaves out
_SAMPLING_MARGIN = 0.01
#: the stretch is found to one part in 2^_BISECTIONS of its range
_BISECTIONS = 6
#: samples are at least this far apart
_CLOSEST_S = 1e-4


@njit(cache=True, nogil=True)
def _keep_worst(row, joint, t, ratio, ratios, joints, instants):
    if not ratio <= np.inf:  # not a number
        ratio = np.inf
    if ratio > ratios[row]:
        ratios[row], joints[row], instants[row] = ratio, joint, t


@njit(cache=True, nogil=True)
def scan(
    times, jets, model, parent, kind, gravity, jp, cf, limits, tool, box, dynamics_work, total,
    recent, ratios, joints, instants,
):
    """Keep the worst ratio per limit of a motion, jets [K, rows, n + 1] at instants ``times`` [K].

    limits [4, n]: position min and max, acceleration, jerk (inf: not limited); tool [12] and box
    [2, 3]: tool frame and the corners that it may not leave. ratios, joints, instants [7]: position
    (distance from the middle over half the range), velocity, acceleration, inverse-dynamics torque
    with friction, jerk, tool position (joint = axis), mean rate of torque between two samples
    (friction apart, which may change sign at once). Between samples the peak of a parabola
    through three of them counts. ``recent`` [2, 5, n] scratch; rows: 4, or 3 to leave out jerk. A
    value that is not finite gives ratio inf.
    """
    n = jp.shape[1]
    tool_at, before_nm = np.zeros(3), np.zeros(n)
    for r in range(7):
        ratios[r] = 0.0
        joints[r] = -1
        instants[r] = times[0]
    t0, t1 = times[0], times[0]
    for step in range(times.shape[0]):
        t, ref = times[step], jets[step]
        q, dq, ddq = ref[0, 0:n], ref[1, 0:n], ref[2, 0:n]
        rnea(model, parent, kind, gravity, q, dq, ddq, dynamics_work, total)
        for i in range(n):
            middle = 0.5 * (limits[1, i] + limits[0, i])
            half = 0.5 * (limits[1, i] - limits[0, i])
            rigid = total[i] + jp[k.JP_ARMATURE, i] * ddq[i]
            if step > 0 and t > t1:
                rate = abs(rigid - before_nm[i]) / (t - t1)
                _keep_worst(6, i, t, rate / jp[k.JP_TORQUE_RATE, i], ratios, joints, instants)
            before_nm[i] = rigid
            torque = rigid + cf[k.CF_FRICTION_SCALE] * (
                k.friction(dq[i], jp[k.JP_COULOMB, i], jp[k.JP_VISCOUS, i],
                           cf[k.CF_COULOMB_SPEED]))
            for r in range(4 + (ref.shape[0] > 3)):
                if r == 0:
                    ratio = abs(q[i] - middle) / half
                elif r == 1:
                    ratio = abs(dq[i]) / jp[k.JP_VELOCITY, i]
                elif r == 2:
                    ratio = abs(ddq[i]) / limits[2, i]
                elif r == 3:
                    ratio = abs(torque) / jp[k.JP_TORQUE_TARGET, i]
                else:
                    ratio = abs(ref[3, i]) / limits[3, i]
                _keep_worst(r, i, t, ratio, ratios, joints, instants)
                y0, y1 = recent[0, r, i], recent[1, r, i]
                if step >= 2 and y1 >= y0 and y1 >= ratio and t > t1 and t1 > t0:
                    before, after = (y1 - y0) / (t1 - t0), (ratio - y1) / (t - t1)
                    curvature = (after - before) / (t - t0)
                    if curvature < 0.0:
                        slope = before + curvature * (t1 - t0)
                        peak = y1 - slope * slope / (4.0 * curvature)
                        _keep_worst(r, i, t1, peak, ratios, joints, instants)
                recent[0, r, i], recent[1, r, i] = y1, ratio
        t0, t1 = t1, t
        if box[1, 0] < np.inf:
            tool_position(parent, dynamics_work, tool, tool_at)
            for axis in range(3):
                middle = 0.5 * (box[1, axis] + box[0, axis])
                half = 0.5 * (box[1, axis] - box[0, axis])
                _keep_worst(5, axis, t, abs(tool_at[axis] - middle) / half, ratios, joints,
                            instants)
        if not np.isfinite(ref[0, n]):
            ratios[0], joints[0], instants[0] = np.inf, n, t


@dataclass(frozen=True)
class Snapshot:
    """What a plan has to know of the running controller, copied between two ticks.

    ``jet`` [3, n + 1] is the last commanded reference with its first two time derivatives; the
    gripper width is the last column. q, dq [n]: the last measured state.
    """

    mode: Mode
    generation: int
    deactivating: bool
    last_s: float
    sequence: int
    last_stamp_s: float
    number: int
    st: FloatArray
    count: int
    meta: FloatArray
    sf: FloatArray
    jet: FloatArray
    settings: int = 0
    q: FloatArray = field(default_factory=lambda: np.zeros(0))
    dq: FloatArray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Plan:
    """A verdict and, when accepted, the tables of the hand-over (see ``tick.flip``)."""

    verdict: AdmissionVerdict
    number: int = 0
    generation: int = 0
    stamp_s: float = 0.0
    window_s: tuple[float, float] = (0.0, 1.0)
    flip_s: float = 0.0
    brake_at_s: float = 0.0
    brake_s: float = 0.0
    end_s: float = 0.0
    meta: FloatArray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    sf: FloatArray = field(default_factory=lambda: np.zeros((0, 4)))
    buffers: tuple[int, ...] = ()
    serial: int = 0
    settings: int = 0

    @property
    def count(self) -> int:
        """Slots of the new composite."""
        return int(self.meta.shape[0])


@dataclass
class Candidate:
    """One way to enter the reference: blend duration and time scale, with what came of it."""

    blend_s: float
    scale: float
    start_s: float
    end_s: float
    seam_step: FloatArray
    brake_at_s: float
    brake_s: float
    ratios: FloatArray
    joints: FloatArray
    instants: FloatArray


class Planner:
    """Judges references and prepares hand-overs; one thread at a time may use it.

    ``jp`` and ``cf`` are the controller's arrays (only read); ``in_use`` as in :class:`BufferPool`.
    This one plans motions of the joints; ``tool_planning.ToolPlanner`` those of the tool.
    """

    #: limits in the order in which a refusal names them
    reasons: tuple[tuple[int, Reason], ...] = tuple(enumerate(_REASONS))
    bisections = _BISECTIONS

    _density = 1

    def __init__(
        self, config: ControllerConfig, arm: ArmModel, prior: Prior | None,
        jp: FloatArray, cf: FloatArray, in_use: Callable[[], Iterable[int]],
    ) -> None:
        self.config, self.arm, self.prior = config, arm, prior
        self._jp, self._cf = jp, cf
        n = self.n = arm.n
        self._prior_columns = None if prior is None else self._columns_of_prior(prior)
        spline = MAX_PIECES * (6 * (n + 1) + 1) + 1
        siren = 0 if prior is None else folded_size(prior.L, prior.H, prior.D)
        self.buffers = BufferPool(BUFFERS, max(spline, siren) + c.ANCHOR, in_use)
        self.pool = self.buffers.rows
        self._meta = np.zeros((c.SLOTS, c.META_CHANNEL + n + 1), dtype=np.int64)
        self._sf = np.zeros((c.SLOTS, 4))
        channels = n + 1 if prior is None else max(n + 1, prior.D)
        self._raw = np.zeros(4 * channels)
        self._work = aligned_empty(siren_work_size(1 if prior is None else prior.H))
        self._tmp = np.zeros((4, n + 1))
        self._dynamics_work, self._total = np.zeros((n, WORK_COLUMNS)), np.zeros(n)
        self._recent = np.zeros((2, 5, n))
        limits = arm.limits
        self._limits = np.vstack([
            limits.position_min_rad, limits.position_max_rad, limits.acceleration_rad_s2,
            limits.jerk_rad_s3,
        ])
        box = arm.config.workspace
        self._box = (
            np.full((2, 3), np.inf) if box is None else np.array([box.min_m, box.max_m])
        )

    # -- verdict ----------------------------------------------------------------------------------
    def plan(
        self, snapshot: Snapshot, t_s: float, reference: Reference, lead_s: float = 0.0
    ) -> Plan:
        """Judge ``reference`` at time ``t_s``; the hand-over begins ``lead_s`` after the snapshot.

        Nothing of the running controller changes. ``lead_s`` has to cover the time until
        ``ImpedanceController.commit``; zero when both happen between the same two ticks.
        """
        sequence = int(reference.sequence)

        def refuse(reason: Reason, text: str, **figures: object) -> Plan:
            return Plan(AdmissionVerdict(
                Verdict.REFUSED, reason, text, sequence, **figures  # type: ignore[arg-type]
            ))

        if snapshot.mode not in (Mode.TRACK, Mode.BRAKE, Mode.HOLD):
            return refuse(Reason.NOT_FOLLOWING, f"the controller is in {snapshot.mode.name}")
        if snapshot.deactivating:
            return refuse(Reason.DEACTIVATING, "the controller is deactivating")
        reason, text, columns = self._columns_of(reference)
        if reason != Reason.NONE:
            return refuse(reason, text)
        assert isinstance(reference, (ActionField, SplineReference))
        start, end, stamp = reference.start_s, reference.end_s, reference.stamp_s
        last = snapshot.last_s
        now = max(t_s, last) if math.isfinite(t_s) else last
        config = self.config
        if start > now + config.start_ahead_s:
            return refuse(
                Reason.STARTS_TOO_LATE,
                f"starts {start - now:.3f} s ahead; allowed is {config.start_ahead_s:g} s",
            )
        flip = last + lead_s
        seam = max(flip, start)
        if end - max(now, flip) < config.min_remaining_s:
            return refuse(
                Reason.EXHAUSTED, f"only {end - now:.3f} s remain of {end - start:.3f} s"
            )
        if stamp < snapshot.last_stamp_s or (
            stamp == snapshot.last_stamp_s and sequence <= snapshot.sequence
        ):
            return refuse(
                Reason.OUT_OF_ORDER,
                f"its observation ({stamp:.3f} s) is not newer than the one in force "
                f"({snapshot.last_stamp_s:.3f} s, sequence {snapshot.sequence})",
            )
        jet = np.where(np.array(columns) >= 0, reference.jet(seam, 2)[:, columns], 0.0)
        if not np.isfinite(jet).all():
            return refuse(Reason.NOT_FINITE, "the field is not finite at the hand-over")
        reason, text = self._unfit(reference, columns, seam)
        if reason != Reason.NONE:
            return refuse(reason, text)

        kept = {int(snapshot.meta[slot, c.META_BUFFER]) for slot in range(snapshot.count)}
        serial, (bridge_buffer, buffer) = self.buffers.take(2, kept)

        def enter(blend: float, scale: float) -> tuple[int, FloatArray, float, float, float]:
            """Fill the tables: (slots, seam step, new end, brake instant and duration)."""
            count = self._arrange(snapshot, flip, seam, blend, bridge_buffer)
            old = self._old_jet(count, snapshot, seam)
            self._fill_slot(count, buffer, reference, columns, seam, scale)
            self._sf[count, c.SF_SEAM], self._sf[count, c.SF_BLEND] = seam, blend
            count += 1
            new_end = end if scale == 1.0 else seam + (end - seam) / scale
            rates = np.array([1.0, scale, scale * scale])[:, None]
            step = self._seam_step(rates * jet, old, reference)
            brake_at, brake_t = self._plan_brake(
                count, snapshot, reference, columns, seam, end, new_end, scale)
            return count, step, new_end, brake_at, brake_t

        def attempt(blend: float, scale: float) -> tuple[Candidate, int]:
            count, step, new_end, brake_at, brake_t = enter(blend, scale)
            new_start = seam - (seam - start) / scale
            figures = self._scan(flip, new_end, brake_at, brake_t, count, snapshot, scale)
            return (
                Candidate(blend, scale, new_start, new_end, step, brake_at, brake_t, *figures),
                count,
            )

        def within(candidate: Candidate) -> bool:
            return bool(np.all(candidate.ratios <= allowed)) and not self._seam_too_fast(
                candidate.seam_step)

        allowed = self._allowed(snapshot, flip)
        blend = config.blend_s
        chosen, count = attempt(blend, 1.0)
        full_speed = chosen
        text, joint = self._seam_too_far(chosen.seam_step)
        if text:
            return refuse(
                Reason.SEAM_POSITION, text,
                **(self._figures(chosen, now, stamp, start, end) | {"joint": joint}),
            )
        while not within(chosen) and not self._hopeless(chosen.ratios, allowed):
            longer = min(2.0 * blend, config.blend_max_s, 0.5 * (end - seam))
            if longer <= blend:
                break
            blend = longer
            chosen, count = attempt(blend, 1.0)
            full_speed = chosen
        if (
            not within(chosen)
            and config.slow_min_scale < 1.0
            and np.isfinite(chosen.ratios).all()
            and not self._hopeless(chosen.ratios, allowed)
        ):
            slow, fast = config.slow_min_scale, 1.0
            chosen, count = attempt(blend, slow)
            if within(chosen):
                for _ in range(self.bisections):
                    middle = 0.5 * (slow + fast)
                    candidate, _ = attempt(blend, middle)
                    if within(candidate):
                        slow, chosen = middle, candidate
                    else:
                        fast = middle
                count = enter(blend, slow)[0]
        figures = self._figures(chosen, now, stamp, start, end)
        if not within(chosen):
            return self._refusal(full_speed, allowed, now, sequence,
                                 self._figures(full_speed, now, stamp, start, end))
        verdict = AdmissionVerdict(
            Verdict.ACCEPTED if chosen.scale == 1.0 else Verdict.SLOWED,
            sequence=sequence, **figures,  # type: ignore[arg-type]
        )
        if verdict.verdict == Verdict.SLOWED:
            text = self._slowed_text(full_speed, allowed, chosen.scale, now)
            verdict = replace(verdict, text=text)
        return Plan(
            verdict, snapshot.number + 1, snapshot.generation, stamp,
            (chosen.start_s, chosen.end_s - chosen.start_s), flip, chosen.brake_at_s,
            chosen.brake_s, chosen.end_s, self._meta[:count].copy(), self._sf[:count].copy(),
            (bridge_buffer, buffer), serial, snapshot.settings,
        )

    # -- what differs between joints and tool ------------------------------------------------------
    def _columns_of_prior(self, prior: Prior) -> list[int]:
        return _columns_of_prior(prior, self.arm)

    def _unfit(
        self, reference: AnyReference, columns: Sequence[int], seam: float
    ) -> tuple[Reason, str]:
        """Why the reference cannot be judged at all."""
        return Reason.NONE, ""

    def _seam_step(
        self, jet: FloatArray, old: FloatArray, reference: AnyReference
    ) -> FloatArray:
        """Reference ``jet`` at the seam minus what runs: [3, n], per joint."""
        return (jet - old)[:, : self.n]

    def _seam_too_far(self, step: FloatArray) -> tuple[str, str]:
        """(sentence, joint) when the position step is too large to be blended."""
        worst = int(np.argmax(np.abs(step[0])))
        joint = self.arm.joint_names[worst]
        if abs(step[0, worst]) <= self.config.seam_position_limit_rad:
            return "", ""
        return (
            f"{joint} would step by {step[0, worst]:+.3f} rad at the hand-over; "
            f"allowed is {self.config.seam_position_limit_rad:g}"
        ), joint

    def _seam_too_fast(self, step: FloatArray) -> tuple[str, str] | None:
        """(sentence, joint) when the velocity step is too large to be blended."""
        worst = int(np.argmax(np.abs(step[1])))
        if abs(step[1, worst]) <= self.config.seam_velocity_limit_rad_s:
            return None
        joint = self.arm.joint_names[worst]
        return (
            f"{joint} would step by {step[1, worst]:+.3f} rad/s at the hand-over; "
            f"allowed is {self.config.seam_velocity_limit_rad_s:g}"
        ), joint

    def _hopeless(self, ratios: FloatArray, allowed: FloatArray) -> bool:
        """True when neither a longer blend nor a slower motion can help."""
        return False

    def _position_at(self, snapshot: Snapshot, flip: float) -> FloatArray:
        """Joint positions [n] from which the motion starts."""
        return self._running_jet(snapshot, flip)[0, : self.n]

    def _brake_time(self, speed: FloatArray) -> float:
        """Duration of the brake at the end of a reference whose channels then move at ``speed``."""
        return self.brake_time(speed)

    def _judge(
        self, times: FloatArray, rows: int, brake_at: float, brake_t: float, end: float,
        count: int, snapshot: Snapshot, scale: float,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Worst ratio, joint and instant per limit of what the tables command at ``times``."""
        jets = np.empty((times.size, rows, self.n + 1))
        c.commanded_many(
            times, brake_at, brake_t, end, count, self.pool, self._meta, self._sf,
            snapshot.st[k.ST_GRIPPER_TARGET], self._raw, self._work, self._tmp[:rows], jets)
        return self._scan_jets(times, jets)

    def _name(self, row: int, index: int) -> str:
        if row == WORKSPACE:
            return f"tool {'xyz'[index]}"
        return self.arm.joint_names[index] if 0 <= index < self.n else "gripper"

    def _limit_text(
        self, joint: str, reason: Reason, ratio: float, ahead_s: float, allowed: float
    ) -> str:
        return (
            f"{joint} would reach {ratio:.2f} of its {reason.name.lower()} "
            f"{ahead_s:+.3f} s from now (allowed {allowed:.2f})"
        )

    # -- verdict, continued ------------------------------------------------------------------------
    def _columns_of(self, reference: Reference) -> tuple[Reason, str, list[int]]:
        if isinstance(reference, ActionField):
            if self.prior is None or reference.prior_id != self.prior.prior_id:
                known = "none" if self.prior is None else self.prior.prior_id[:12]
                return (
                    Reason.PRIOR_MISMATCH,
                    f"field belongs to prior {reference.prior_id[:12]!r}, loaded is {known!r}", [],
                )
            assert self._prior_columns is not None
            return Reason.NONE, "", self._prior_columns
        if isinstance(reference, SplineReference):
            if reference.D not in (self.n, self.n + 1):
                return (
                    Reason.CHANNEL_MISMATCH,
                    f"spline has {reference.D} channels; the arm needs {self.n} joints in order "
                    f"{list(self.arm.joint_names)}, then optionally the gripper width", [],
                )
            pieces = reference.coefficients.shape[0]
            if pieces > MAX_PIECES:
                return (
                    Reason.TOO_LONG,
                    f"spline has {pieces} pieces; at most {MAX_PIECES} are allowed: send fewer "
                    "points, or the motion in parts", [],
                )
            return Reason.NONE, "", [*range(self.n), -1 if self.n == reference.D else self.n]
        # a caller without type checking
        return Reason.UNKNOWN_KIND, f"cannot follow a {type(reference).__name__}", []

    def _allowed(self, snapshot: Snapshot, flip: float) -> FloatArray:
        """Largest ratio per row; from outside a position limit the way back is allowed."""
        config, limits = self.config, self.arm.limits
        middle = 0.5 * (limits.position_max_rad + limits.position_min_rad)
        half = 0.5 * (limits.position_max_rad - limits.position_min_rad)
        now = self._position_at(snapshot, flip)
        outside = float(np.max(np.abs(now - middle) / half)) + 1e-9
        rest = np.array([
            config.admit_velocity_ratio, config.admit_acceleration_ratio,
            config.admit_torque_ratio, 1.0, 1.0, config.admit_torque_rate_ratio,
        ])
        return np.concatenate([[max(1.0, outside)], rest * (1.0 - _SAMPLING_MARGIN)])

    def _figures(
        self, candidate: Candidate, now: float, stamp: float, start: float, end: float
    ) -> dict[str, object]:
        ratios = candidate.ratios
        return {
            "seam_position_rad": candidate.seam_step[0].copy(),
            "seam_velocity_rad_s": candidate.seam_step[1].copy(),
            "seam_acceleration_rad_s2": candidate.seam_step[2].copy(),
            "age_s": max(now - stamp, 0.0),
            "consumed_fraction": min(max((now - start) / (end - start), 0.0), 1.0),
            "instant_s": now,
            "position_ratio": float(ratios[POSITION]),
            "velocity_ratio": float(ratios[VELOCITY]),
            "acceleration_ratio": float(ratios[ACCELERATION]),
            "torque_ratio": float(ratios[TORQUE]),
            "jerk_ratio": float(ratios[JERK]),
            "workspace_ratio": float(ratios[WORKSPACE]),
            "torque_rate_ratio": float(ratios[TORQUE_RATE]),
            "blend_s": candidate.blend_s,
            "time_scale": candidate.scale,
        }

    def _refusal(
        self, candidate: Candidate, allowed: FloatArray, now: float, sequence: int,
        figures: dict[str, object],
    ) -> Plan:
        reason, text, joint, instant = self._worst(candidate, allowed, now)
        return Plan(AdmissionVerdict(
            Verdict.REFUSED, reason, text, sequence,
            **(figures | {"joint": joint, "instant_s": instant}),  # type: ignore[arg-type]
        ))

    def _worst(
        self, candidate: Candidate, allowed: FloatArray, now: float
    ) -> tuple[Reason, str, str, float]:
        """The limit that ``candidate`` passes first in the order of ``reasons``."""
        for row, reason in self.reasons:
            ratio = float(candidate.ratios[row])
            if ratio <= allowed[row]:
                continue
            index, instant = int(candidate.joints[row]), float(candidate.instants[row])
            joint = self._name(row, index)
            text = self._limit_text(joint, reason, ratio, instant - now, allowed[row])
            return (Reason.NOT_FINITE if ratio == np.inf else reason), text, joint, instant
        seam = self._seam_too_fast(candidate.seam_step)
        assert seam is not None, "refused without a reason"
        return Reason.SEAM_VELOCITY, *seam, now

    def _slowed_text(
        self, full_speed: Candidate, allowed: FloatArray, scale: float, now: float
    ) -> str:
        _, text, _, _ = self._worst(full_speed, allowed, now)
        return f"slowed to {scale:.2f} of its speed: at full speed {text.split(' (')[0]}"

    # -- the composite ----------------------------------------------------------------------------
    def _running_jet(self, snapshot: Snapshot, t: float) -> FloatArray:
        """What the running composite commands at clock time ``t`` [3, n + 1]."""
        st, out = snapshot.st, np.zeros((3, self.n + 1))
        hold = st[k.ST_GRIPPER_HOLD]
        if snapshot.mode == Mode.HOLD:
            c.composite(1, self.pool, snapshot.meta, snapshot.sf, hold, t, self._raw, self._work,
                        self._tmp[:3], out)
        else:
            c.commanded(t, st[k.ST_BRAKE_AT], st[k.ST_BRAKE_T], st[k.ST_END], snapshot.count,
                        self.pool, snapshot.meta, snapshot.sf, hold, self._raw, self._work,
                        self._tmp[:3], out)
        return out

    def _old_jet(self, count: int, snapshot: Snapshot, seam: float) -> FloatArray:
        """Jet [3, n + 1] at the seam of what the tables hold so far (path rate 1)."""
        out = np.zeros((3, self.n + 1))
        c.composite(
            count, self.pool, self._meta, self._sf, snapshot.st[k.ST_GRIPPER_TARGET], seam,
            self._raw, self._work, self._tmp[:3], out,
        )
        return out

    def _arrange(
        self, snapshot: Snapshot, flip: float, seam: float, blend: float, bridge_buffer: int
    ) -> int:
        """Fill the tables with what the new reference is blended from; returns the slots used.

        The composite that runs now is kept exactly if a slot is free and it lasts through the
        blend; otherwise it is replaced by a bridge that starts with the position, velocity and
        acceleration commanded at ``flip`` and comes to rest.
        """
        first = 0
        for index in range(1, snapshot.count):
            if flip >= snapshot.sf[index, c.SF_SEAM] + snapshot.sf[index, c.SF_BLEND]:
                first = index
        kept = range(first, snapshot.count)
        if (
            snapshot.mode == Mode.TRACK
            and len(kept) < c.SLOTS
            and seam + blend <= snapshot.st[k.ST_BRAKE_AT]
        ):
            for target, source in enumerate(kept):
                self._meta[target] = snapshot.meta[source]
                self._sf[target] = snapshot.sf[source]
            return len(kept)
        self._bridge(snapshot, flip, bridge_buffer)
        return 1

    def _bridge(self, snapshot: Snapshot, flip: float, buffer: int) -> None:
        """Slot 0 of the tables: from the jet commanded at ``flip`` to rest in ``bridge_s``."""
        x0, v0, a0 = self._running_jet(snapshot, flip)
        self._write_bridge(x0, v0, a0, flip, buffer)

    def _write_bridge(
        self, x0: FloatArray, v0: FloatArray, a0: FloatArray, flip: float, buffer: int
    ) -> None:
        """Slot 0 as a spline of all columns from value, velocity, acceleration to rest."""
        meta, sf, columns = self._meta[0], self._sf[0], x0.size
        meta[c.META_BUFFER] = buffer
        data = self.pool[buffer]
        if not v0.any() and not a0.any():
            meta[c.META_KIND] = c.KIND_HOLD
            data[:columns] = x0
            return
        T = self.config.bridge_s
        # cubic velocity: v(0) = v0, v'(0) = a0, v(T) = v'(T) = 0
        c2 = (-3.0 * v0 - 2.0 * a0 * T) / T**2
        c3 = (2.0 * v0 + a0 * T) / T**3
        coefficients = np.zeros((6, columns))
        coefficients[0], coefficients[1], coefficients[2] = x0, v0, 0.5 * a0
        coefficients[3], coefficients[4] = c2 / 3.0, c3 / 4.0
        data[0:2] = (flip, flip + T)
        data[2 : 2 + coefficients.size] = coefficients.ravel()
        meta[c.META_KIND], meta[c.META_A], meta[c.META_D] = c.KIND_SPLINE, 1, columns
        meta[c.META_CHANNEL : c.META_CHANNEL + columns] = np.arange(columns)
        sf[c.SF_START], sf[c.SF_HORIZON] = flip, T

    def _fill_slot(
        self, slot: int, buffer: int, reference: AnyReference, columns: Sequence[int],
        seam: float, scale: float,
    ) -> None:
        """Slot tables and data of ``reference``, stretched by 1 / scale about the seam."""
        meta, sf, data = self._meta[slot], self._sf[slot], self.pool[buffer]
        start, horizon = reference.start_s, reference.horizon_s
        if isinstance(reference, ActionField):
            folded = reference.folded
            meta[: c.META_BUFFER] = (c.KIND_SIREN, folded.L, folded.H, folded.D)
            data[: folded.weights.size] = folded.weights
            if scale != 1.0:
                start, horizon = seam - (seam - start) / scale, horizon / scale
        else:
            pieces = reference.coefficients.shape[0]
            meta[: c.META_BUFFER] = (c.KIND_SPLINE, pieces, 0, reference.D)
            knots, coefficients = reference.knots_s, reference.coefficients
            if scale != 1.0:
                knots = seam + (knots - seam) / scale
                coefficients = coefficients * (scale ** np.arange(6.0))[:, None]
                start, horizon = float(knots[0]), float(knots[-1] - knots[0])
            data[: pieces + 1] = knots
            data[pieces + 1 : pieces + 1 + coefficients.size] = coefficients.ravel()
        meta[c.META_BUFFER] = buffer
        meta[c.META_CHANNEL : c.META_CHANNEL + len(columns)] = columns
        sf[c.SF_START], sf[c.SF_HORIZON] = start, horizon

    def brake_time(self, velocity: FloatArray) -> float:
        """Duration that keeps the braking share of acceleration below two thirds of the limit."""
        return float(k.brake_duration(
            velocity, self.arm.limits.acceleration_rad_s2, self.config.brake_s,
            self.config.brake_max_s,
        ))

    def _plan_brake(
        self, count: int, snapshot: Snapshot, reference: AnyReference, columns: Sequence[int],
        seam: float, end: float, new_end: float, scale: float,
    ) -> tuple[float, float]:
        """(instant, duration) of the brake that ends exactly at the end of the reference."""
        joints = list(columns[:-1])
        if isinstance(reference, SplineReference):
            # Only a spline can rest exactly (its last knot is exact; start + horizon of a field is
            # rounded, and beyond its end a field is at rest in name only).
            last = reference.jet(end, 2)[1:, joints]
            if np.all(np.abs(last) < 1e-9):
                return new_end, 0.0
        probe = max(end - scale * self.config.brake_s / 2, seam)
        speed = scale * np.abs(reference.jet(probe, 1)[1][joints])
        duration = min(self._brake_time(speed), 2.0 * (new_end - seam))
        return new_end - 0.5 * duration, duration

    def _scan(
        self, begin: float, end: float, brake_at: float, brake_t: float, count: int,
        snapshot: Snapshot, scale: float,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        samples = self._density * self.config.admission_samples
        stop = brake_at + brake_t if brake_t > 0.0 else end
        # a third of the samples on the blend, where accelerations change fastest
        dense = samples // 3 + 1
        newest = self._sf[count - 1]
        blended = min(float(newest[c.SF_SEAM] + newest[c.SF_BLEND]), stop)
        times = np.concatenate([
            np.linspace(begin, blended, dense, endpoint=False),
            np.linspace(blended, stop, samples - dense),
        ])
        if self._meta[count - 1, c.META_KIND] == c.KIND_SPLINE:  # peaks lie at its knots or between
            pieces = int(self._meta[count - 1, c.META_A])
            knots = self.pool[self._meta[count - 1, c.META_BUFFER], : pieces + 1]
            inside = np.concatenate([knots, 0.5 * (knots[1:] + knots[:-1])])
            inside = inside[(inside > begin) & (inside < stop)]
            times = np.unique(np.concatenate([times, inside]))
            # a knot beside a sample would make a rate out of rounding
            times = times[np.append(True, np.diff(times) > _CLOSEST_S)]
        rows = 4 if np.isfinite(self._limits[3]).any() else 3
        return self._judge(times, rows, brake_at, brake_t, end, count, snapshot, scale)

    def _scan_jets(
        self, times: FloatArray, jets: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        arm = self.arm
        ratios, instants = np.zeros(_ROWS), np.zeros(_ROWS)
        joints = np.zeros(_ROWS, dtype=np.int64)
        scan(
            times, jets, arm.model, arm.parent, arm.kind, arm.gravity, self._jp, self._cf,
            self._limits, arm.tool, self._box, self._dynamics_work, self._total, self._recent,
            ratios, joints, instants,
        )
        return ratios, joints, instants


def _columns_of_prior(prior: Prior, arm: ArmModel) -> list[int]:
    names = [channel.name for channel in prior.channels]
    columns = []
    for joint in arm.joint_names:
        if joint not in names:
            raise ControllerConfigError(
                f"the prior has no channel for joint {joint!r}; its channels are {names}: "
                "use the prior that was trained for this arm"
            )
        columns.append(names.index(joint))
    gripper = arm.config.gripper
    if gripper is not None and gripper.channel in names:
        columns.append(names.index(gripper.channel))
    else:
        columns.append(-1)
    unused = sorted(set(names) - {names[c] for c in columns if c >= 0})
    if unused:
        raise ControllerConfigError(
            f"the prior has channels that this arm does not: {unused}; joints are "
            f"{list(arm.joint_names)}"
        )
    return columns
