"""One control tick, compiled: reference, blend, time scaling, law, dynamics, limits, stop ladder.

``tick`` is the only place where torque is made. It runs on flat preallocated arrays, allocates
nothing, and does not need the GIL; ROS node, lock-step environment, replay and tests all call it.

Reference. Up to three *slots* are kept, oldest first. Slot 0 is what the arm follows; each later
slot k is blended over the slots before it from ``seam`` over ``blend`` seconds of path time::

    C_0 = R_0,   C_k = (1 - w_k) C_{k-1} + w_k R_k

so a reference that arrives in the middle of a blend starts from the blend itself, without a kink.
Path time sigma is the clock in TRACK. In BRAKE its rate falls from 1 to 0 over ``brake_T`` with a
quintic profile, so that velocity and acceleration scale by the chain rule and the arm stays on
its path; a planned brake ends exactly at the end of the newest reference.

Tool references (``CF_TASK``, decided when the controller is built) are blended as poses; the torque
comes from the Cartesian law (``tool_task.py``) and everything else is the same, on the joint
equivalents of the reference. See ``composite.py`` for slots and blends of both.

Hand-over. ``planning.py`` prepares the tables of the next composite off the tick, in buffers that
the tick does not read. The tick takes them over (``flip``) at the first instant past ``flip_s``, if
nothing has changed meanwhile that the plan did not know (its generation number).

Arrays (n joints; column n of width n + 1 is the gripper):

========  ==================  ==================================================================
cf        [CF_SIZE]           configuration, rows ``CF_*``
jp        [JP_ROWS, n]        per-joint parameters, rows ``JP_*``
st        [ST_SIZE]           state, entries ``ST_*``
si        [SI_SIZE] int64     state, entries ``SI_*``
meta      [3, 5 + n + 1]      per slot: kind, sizes a and b, D, buffer, then channel of each column
sf        [3, 4]              per slot: start_s, horizon_s, seam_s, blend_s
pool      [P, CAP]            buffers: folded weights, or knots and coefficients, or held values;
                              buffer 0 is the tick's own (the pose it holds)
pi pf     [PI_SIZE] [PF_SIZE] the planned hand-over that waits: flag, tables and instants
pmeta psf as meta, sf         its slot tables
tel       [TEL_ROWS, n + 1]   what the tick computed, rows ``TEL_*``
tool      [12]                tool frame in the last joint's frame
gains cj scratch              of the Cartesian law, see ``tool_task.py``
========  ==================  ==================================================================

No fast-math flag is set in this module: the finite checks below must survive the compiler.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import njit

from niaf_field.blend import smoothstep5
from niaf_impedance.cartesian import CR_POSITION_ERROR, CR_ROTATION_ERROR
from niaf_impedance.composite import (
    KIND_HOLD,
    META_BUFFER,
    META_KIND,
    TOOL_COLUMNS,
    TOOL_JET,
    commanded,
    composite,
    tool_commanded,
    tool_composite,
    tool_hold,
    tool_step_between,
)
from niaf_impedance.dynamics import rnea
from niaf_impedance.tool_task import (
    T_JETS,
    T_OLD,
    T_REF,
    T_REPORT,
    T_SLOT,
    T_STEP,
    ramp_gains,
    tool_step,
    tool_torque,
)

MODE_OFF, MODE_TRACK, MODE_BRAKE, MODE_HOLD, MODE_DAMP, MODE_ESTOP = 0, 1, 2, 3, 4, 5
FF_GRAVITY, FF_NONLINEAR, FF_FULL = 0, 1, 2
#: peak of |d rate / dt| of the braking profile times its duration (quintic smoothstep)
BRAKE_PEAK = 1.875

# fault numbers: niaf_impedance.faults.Fault (a test holds the two together)
F_STATE_NOT_FINITE, F_STATE_STALE, F_STATE_JUMP, F_CLOCK, F_STATE_FROZEN = 10, 11, 12, 13, 14
F_OVERSPEED, F_TRACKING_ERROR, F_REFERENCE_NOT_FINITE, F_DYNAMICS_NOT_FINITE = 20, 21, 30, 31

CF_DT_MAX = 0  # largest dt that the torque-rate limit and ramps are given, s
CF_STATE_TIMEOUT = 1  # a longer gap between two states is a fault, s
CF_JUMP_MARGIN = 2  # position change allowed beyond twice the velocity limit, rad
CF_OVERSPEED_RATIO = 3
CF_FEEDFORWARD = 4  # FF_*
CF_FRICTION_SCALE = 5
CF_COULOMB_SPEED = 6  # speed at which the Coulomb term has reached 76 %, rad/s
CF_DAMP_GRAVITY = 7  # 1: gravity is compensated in DAMP and ESTOP
CF_DEACTIVATE = 8  # duration of the ramp to gravity only, s
CF_GRIPPER_MAX = 9
CF_GRIPPER_SPEED = 10
CF_GRIPPER_HYSTERESIS = 11
CF_CLOCK_TOLERANCE = 12  # states in a row without advancing time before it is a fault
CF_ERROR_CLIP = 13  # largest position error that the stiffness sees, rad; 0: no clip
CF_DAMPING_RATIO = 14  # 0: kd as set; else kd = 2 ratio sqrt(kp M_ii(q))
CF_VELOCITY_FILTER = 15  # time constant of the filter on the measured velocity, s; 0: none
CF_TASK = 16  # 1: references move the tool, 0: the joints
CF_TRACKING_M, CF_TRACKING_RAD = 17, 18  # tracking error of the tool that is a fault
# a joint whose reading does not change in any bit while its reference, or the integral of its
# measured velocity, goes this far is a fault, rad; 0: not checked
CF_FROZEN_REFERENCE, CF_FROZEN_MOTION = 19, 20
CF_ROBOT_GRAVITY = 21  # 1: the robot adds its own gravity torque to what is sent
CF_BRAKE, CF_BRAKE_MAX = 22, 23  # shortest and longest duration of braking, s
CF_STANDSTILL = 24  # speed below which an arm that damps counts as at rest, rad/s
CF_SIZE = 25

JP_KP, JP_KD, JP_KP_TARGET, JP_KD_TARGET, JP_KP_RATE, JP_KD_RATE = 0, 1, 2, 3, 4, 5
JP_TORQUE, JP_TORQUE_RATE, JP_DAMP, JP_COULOMB, JP_VISCOUS, JP_ARMATURE = 6, 7, 8, 9, 10, 11
JP_VELOCITY, JP_TRACKING, JP_KD_MIN, JP_KD_MAX = 12, 13, 14, 15
JP_TORQUE_TARGET = 16  # JP_TORQUE moves there within the torque rate
JP_ACCELERATION = 17  # limit, for the duration of braking
JP_ROWS = 18

ST_T = 0  # time of the last tick, s
ST_DT = 1  # measured period, s
ST_SIGMA = 2  # path time, s
ST_RATE = 3  # d sigma / dt
ST_BRAKE_AT = 4  # path time (= clock) at which braking begins, s
ST_BRAKE_T = 5  # duration of braking, s; 0: the reference ends at rest by itself
ST_END = 6  # end of the newest reference, s
ST_GRIPPER_TARGET = 7
ST_GRIPPER = 8
ST_DEACTIVATE_AT = 9
ST_PEAK_TORQUE = 10  # window statistics since activation
ST_PEAK_TORQUE_RATE = 11
ST_SEAM_POSITION = 12
ST_SEAM_VELOCITY = 13
ST_SEAM_ACCELERATION = 14
ST_GRIPPER_HOLD = 15  # width used by references without a gripper channel
ST_SIZE = 16

SI_MODE, SI_FAULT, SI_FAULT_JOINT, SI_COUNT, SI_SEQUENCE, SI_DEACTIVATING, SI_STUCK, SI_TICKS = (
    0, 1, 2, 3, 4, 5, 6, 7,
)
SI_DROPPED = 8  # states refused because time ran backwards
SI_GENERATION = 9  # changes with everything that makes a plan in preparation worthless
SI_OVERTAKEN = 10  # plans that came to nothing because of that
SI_SIZE = 11

PI_WAITING, PI_COUNT, PI_GENERATION, PI_SEQUENCE, PI_SIZE = 0, 1, 2, 3, 4
PF_FLIP, PF_BRAKE_AT, PF_BRAKE_T, PF_END, PF_SIZE = 0, 1, 2, 3, 4

TEL_Q_REF, TEL_DQ_REF, TEL_DDQ_REF, TEL_Q, TEL_DQ = 0, 1, 2, 3, 4
TEL_STIFFNESS, TEL_DAMPING, TEL_GRAVITY, TEL_INERTIA, TEL_FRICTION = 5, 6, 7, 8, 9
TEL_DQ_FILTERED, TEL_POSTURE = 10, 11
# since the joint's reading changed last: its reference then, integral of its velocity, ticks
TEL_FROZEN_REFERENCE, TEL_FROZEN_MOTION, TEL_FROZEN_TICKS = 12, 13, 14
TEL_ROWS = 15


@njit(cache=True, nogil=True)
def brake_duration(velocity, acceleration, shortest, longest):
    """Duration of braking from ``velocity`` [n] that keeps its share of the acceleration below two
    thirds of the limits ``acceleration`` [n], within [shortest, longest], s."""
    needed = 0.0
    for i in range(acceleration.shape[0]):
        needed = max(needed, abs(velocity[i]) / acceleration[i])
    return min(max(shortest, 1.5 * BRAKE_PEAK * needed), longest)


@njit(cache=True, nogil=True)
def brake(cf, jp, st, si, tel, t):
    """Slow down along the path from ``t`` (or the last tick) to a stop; nothing unless in TRACK."""
    at = max(t, st[ST_T])
    if si[SI_MODE] != MODE_TRACK or at >= st[ST_BRAKE_AT]:
        return
    duration = brake_duration(
        tel[TEL_DQ_REF], jp[JP_ACCELERATION], cf[CF_BRAKE], cf[CF_BRAKE_MAX])
    st[ST_BRAKE_T] = min(duration, 2.0 * max(st[ST_END] - at, 1e-6))
    st[ST_BRAKE_AT] = at
    si[SI_GENERATION] += 1


@njit(cache=True, nogil=True)
def silent(si, tel, tau):
    """``ImpedanceController.silent``."""
    if si[SI_MODE] != MODE_DAMP or si[SI_FAULT] != F_STATE_FROZEN:
        return False
    at_weight = True
    for i in range(tau.shape[0]):
        at_weight = at_weight and abs(tau[i] - tel[TEL_GRAVITY, i]) < 1e-6
    return at_weight


@njit(cache=True, nogil=True)
def commanded_tool(st, si, t, pool, meta, sf, raw, work, scratch, place):
    """Tool jet commanded at clock time t into ``scratch`` from ``place``; returns (sigma, rate,
    stopped)."""
    jets = scratch[T_JETS : T_JETS + 3 * TOOL_COLUMNS].reshape((3, TOOL_COLUMNS))
    other, out = scratch[T_SLOT : T_SLOT + TOOL_JET], scratch[place : place + TOOL_JET]
    if si[SI_MODE] == MODE_HOLD:
        tool_composite(1, pool, meta, sf, st[ST_GRIPPER_HOLD], t, raw, work, jets, other, out)
        return t, 0.0, False
    return tool_commanded(
        t, st[ST_BRAKE_AT], st[ST_BRAKE_T], st[ST_END], si[SI_COUNT], pool, meta, sf,
        st[ST_GRIPPER_HOLD], raw, work, jets, other, out)


@njit(cache=True, nogil=True)
def _note_seam(st, row, step):
    """Keep the largest step of the reference at a hand-over, row 0 (pose) to 2 (acceleration)."""
    st[ST_SEAM_POSITION + row] = max(st[ST_SEAM_POSITION + row], abs(step))


@njit(cache=True, nogil=True)
def flip(
    cf, st, si, pool, meta, sf, pi, pf, pmeta, psf, raw, work, tmp, ref, scratch
):
    """Take over the waiting plan, or drop it when the world has moved on; measure the seam step.

    tmp [2, 3, n + 1] scratch. True when taken over.
    """
    pi[PI_WAITING] = 0
    mode = si[SI_MODE]
    if (pi[PI_GENERATION] != si[SI_GENERATION] or si[SI_DEACTIVATING] != 0
            or mode not in (MODE_TRACK, MODE_BRAKE, MODE_HOLD)):
        si[SI_OVERTAKEN] += 1
        return False
    at, hold_width = pf[PF_FLIP], st[ST_GRIPPER_HOLD]
    count, old = si[SI_COUNT], tmp[1]
    moves_tool = cf[CF_TASK] != 0.0
    if moves_tool:
        commanded_tool(st, si, at, pool, meta, sf, raw, work, scratch, T_OLD)
    elif mode == MODE_HOLD:
        composite(1, pool, meta, sf, hold_width, at, raw, work, tmp[0], old)
    else:
        commanded(at, st[ST_BRAKE_AT], st[ST_BRAKE_T], st[ST_END], count, pool, meta, sf,
                  hold_width, raw, work, tmp[0], old)
    count = pi[PI_COUNT]
    for k in range(count):
        for c in range(meta.shape[1]):
            meta[k, c] = pmeta[k, c]
        for c in range(sf.shape[1]):
            sf[k, c] = psf[k, c]
    st[ST_BRAKE_AT], st[ST_BRAKE_T], st[ST_END] = pf[PF_BRAKE_AT], pf[PF_BRAKE_T], pf[PF_END]
    st[ST_GRIPPER_HOLD] = st[ST_GRIPPER_TARGET]
    si[SI_COUNT], si[SI_SEQUENCE] = count, pi[PI_SEQUENCE]
    si[SI_MODE] = MODE_TRACK
    si[SI_GENERATION] += 1
    if moves_tool:
        commanded_tool(st, si, at, pool, meta, sf, raw, work, scratch, T_REF)
        step = scratch[T_STEP : T_STEP + 18].reshape((3, 6))
        tool_step_between(
            scratch[T_OLD : T_OLD + TOOL_JET], scratch[T_REF : T_REF + TOOL_JET], step)
        for r in range(3):
            for c in range(6):
                _note_seam(st, r, step[r, c])
        return True
    commanded(at, st[ST_BRAKE_AT], st[ST_BRAKE_T], st[ST_END], count, pool, meta, sf,
              st[ST_GRIPPER_HOLD], raw, work, tmp[0], ref)
    for i in range(ref.shape[1] - 1):
        for r in range(3):
            _note_seam(st, r, ref[r, i] - old[r, i])
    return True


@njit(cache=True, nogil=True)
def friction(velocity, coulomb, viscous, speed):
    return coulomb * np.tanh(velocity / speed) + viscous * velocity


@njit(cache=True, nogil=True)
def tick(
    t, q_in, dq_in, cf, jp, st, si, model, parent, kind, gravity, pool, meta, sf, pi, pf, pmeta,
    psf, raw, work, tmp, ref, dynamics_work, dyn, tel, tau, tool, gains, cj, scratch,
):
    """Advance the controller to time ``t`` with measured ``q_in``, ``dq_in`` [n] into ``tau`` [n].

    tau holds the previous command on entry. The result is finite, inside the torque limits, and
    within the torque rate times the measured period of the previous command, whatever comes in.
    """
    n = tau.shape[0]
    before_s = st[ST_T]
    dt = t - before_s
    clock_good = np.isfinite(dt)
    if not clock_good or dt < 0.0:
        si[SI_DROPPED] += 1
        dt = 0.0
        if clock_good and si[SI_MODE] in (MODE_DAMP, MODE_ESTOP):
            st[ST_T] = t  # the clock was set back: damping must go on by the new one
    advancing = dt > 0.0
    if advancing:
        st[ST_T] = t
        si[SI_STUCK] = 0
    else:
        si[SI_STUCK] += 1
    now = st[ST_T]
    st[ST_DT] = dt
    dt_limited = min(dt, cf[CF_DT_MAX])
    si[SI_TICKS] += 1
    mode = si[SI_MODE]
    q, dq = tel[TEL_Q, 0:n], tel[TEL_DQ, 0:n]

    # -- measured state ------------------------------------------------------------------------
    fault = 0
    fault_joint = -1
    for i in range(n):
        if not (np.isfinite(q_in[i]) and np.isfinite(dq_in[i])):
            fault, fault_joint = F_STATE_NOT_FINITE, i
    if fault == 0:
        for i in range(n):
            reach = 2.0 * jp[JP_VELOCITY, i] * dt + cf[CF_JUMP_MARGIN]
            if abs(q_in[i] - q[i]) > reach:
                fault, fault_joint = F_STATE_JUMP, i
            elif abs(dq_in[i]) > cf[CF_OVERSPEED_RATIO] * jp[JP_VELOCITY, i]:
                fault, fault_joint = F_OVERSPEED, i
        alive = 0.3  # of the margin, while no joint's reading changes at all
        for i in range(n):
            if q_in[i] != q[i]:
                alive = 1.0
        for i in range(n):
            if q_in[i] != q[i]:
                tel[TEL_FROZEN_REFERENCE, i] = tel[TEL_Q_REF, i]
                tel[TEL_FROZEN_MOTION, i] = 0.0
                tel[TEL_FROZEN_TICKS, i] = 0.0
            else:
                tel[TEL_FROZEN_TICKS, i] += 1.0
                tel[TEL_FROZEN_MOTION, i] += dq_in[i] * dt_limited
                # how far a soft joint may lag before it overcomes its friction does not count
                asked = abs(tel[TEL_Q_REF, i] - tel[TEL_FROZEN_REFERENCE, i]) - (
                    3.0 * jp[JP_COULOMB, i] / max(jp[JP_KP, i], 1e-9))
                moved = abs(tel[TEL_FROZEN_MOTION, i])
                if fault == 0 and (
                    asked > alive * cf[CF_FROZEN_REFERENCE] > 0.0
                    or moved > cf[CF_FROZEN_MOTION] > 0.0
                ):
                    fault, fault_joint = F_STATE_FROZEN, i
            q[i] = q_in[i]
            dq[i] = dq_in[i]
    else:  # what is finite still serves gravity and damping, joint by joint
        for i in range(n):
            if np.isfinite(dq_in[i]):
                dq[i] = dq_in[i]
            elif np.isfinite(q_in[i]) and dt > 0.0:
                dq[i] = (q_in[i] - q[i]) / dt
            else:
                dq[i] = 0.0
            if np.isfinite(q_in[i]):
                q[i] = q_in[i]
    if dt > cf[CF_STATE_TIMEOUT]:
        fault, fault_joint = F_STATE_STALE, -1
    elif si[SI_STUCK] > cf[CF_CLOCK_TOLERANCE]:
        fault, fault_joint = F_CLOCK, -1

    if mode == MODE_OFF:
        for i in range(n):
            tau[i] = 0.0
        return

    # -- reference -----------------------------------------------------------------------------
    if pi[PI_WAITING] != 0 and now >= pf[PF_FLIP]:
        flip(cf, st, si, pool, meta, sf, pi, pf, pmeta, psf, raw, work, tmp, ref, scratch)
        mode = si[SI_MODE]
    following = mode in (MODE_TRACK, MODE_BRAKE, MODE_HOLD)
    hold_width = st[ST_GRIPPER_HOLD]
    moves_tool = cf[CF_TASK] != 0.0
    smoothing = dt / (cf[CF_VELOCITY_FILTER] + dt) if dt > 0.0 else 0.0
    if following:
        if mode == MODE_HOLD:
            st[ST_RATE] = 0.0
            if moves_tool:
                commanded_tool(st, si, now, pool, meta, sf, raw, work, scratch, T_REF)
            else:
                composite(1, pool, meta, sf, hold_width, now, raw, work, tmp[0], ref)
        else:
            if moves_tool:
                s, rate, stopped = commanded_tool(
                    st, si, now, pool, meta, sf, raw, work, scratch, T_REF)
            else:
                s, rate, stopped = commanded(
                    now, st[ST_BRAKE_AT], st[ST_BRAKE_T], st[ST_END], si[SI_COUNT], pool, meta,
                    sf, hold_width, raw, work, tmp[0], ref)
            st[ST_SIGMA] = s
            st[ST_RATE] = rate
            if stopped:
                mode = MODE_HOLD
                si[SI_COUNT] = 1
                si[SI_GENERATION] += 1
                meta[0, META_KIND] = KIND_HOLD
                meta[0, META_BUFFER] = 0
                if moves_tool:
                    tool_hold(scratch[T_REF : T_REF + TOOL_JET], pool[0])
                else:
                    for c in range(n + 1):
                        pool[0, c] = ref[0, c]
            elif rate < 1.0:
                mode = MODE_BRAKE
        if moves_tool:
            ramp_gains(gains, cj, dt_limited)
            estimate = dyn[5, 0:n]
            for i in range(n):
                before = tel[TEL_DQ_FILTERED, i]
                estimate[i] = before + smoothing * (dq[i] - before)
            tool_step(q, estimate, model, parent, kind, tool, gains, cj, scratch, ref)
        if fault == 0:
            for c in range(n + 1):
                if not (np.isfinite(ref[0, c]) and np.isfinite(ref[1, c])
                        and np.isfinite(ref[2, c])):
                    fault, fault_joint = F_REFERENCE_NOT_FINITE, c
        if fault == 0:
            for i in range(n):
                if abs(ref[0, i] - q[i]) > jp[JP_TRACKING, i]:
                    fault, fault_joint = F_TRACKING_ERROR, i
            if moves_tool and (
                scratch[T_REPORT + CR_POSITION_ERROR] > cf[CF_TRACKING_M]
                or scratch[T_REPORT + CR_ROTATION_ERROR] > cf[CF_TRACKING_RAD]
            ):
                fault, fault_joint = F_TRACKING_ERROR, -1
        if fault != 0:
            si[SI_FAULT] = fault
            si[SI_FAULT_JOINT] = fault_joint
            si[SI_GENERATION] += 1
            mode = MODE_DAMP
            following = False
    if mode == MODE_HOLD and si[SI_DEACTIVATING] == 1:
        si[SI_DEACTIVATING] = 2
        st[ST_DEACTIVATE_AT] = now

    # -- torque by term ------------------------------------------------------------------------
    velocity_now, acceleration, zero = dyn[0], dyn[1], dyn[2]
    bias, total = dyn[3], dyn[4]
    feedforward = int(cf[CF_FEEDFORWARD])
    for i in range(zero.shape[0]):
        zero[i] = 0.0
    for i in range(n):
        velocity_now[i] = dq[i] if feedforward != FF_GRAVITY and following else 0.0
    rnea(model, parent, kind, gravity, q, velocity_now, zero, dynamics_work, bias)
    if following:
        strength = 1.0
        if si[SI_DEACTIVATING] == 2:
            strength = 1.0 - smoothstep5((now - st[ST_DEACTIVATE_AT]) / cf[CF_DEACTIVATE])[0]
            if now - st[ST_DEACTIVATE_AT] >= cf[CF_DEACTIVATE]:
                mode = MODE_OFF
        if feedforward == FF_FULL:
            for i in range(n):
                acceleration[i] = ref[2, i]
            rnea(model, parent, kind, gravity, q, velocity_now, acceleration, dynamics_work, total)
        # one joint a tick: the inertia changes slowly
        if cf[CF_DAMPING_RATIO] > 0.0 and not moves_tool:
            j = si[SI_TICKS] % n
            unit = dyn[5]
            for i in range(n):
                unit[i] = 0.0
            unit[j] = 1.0
            rnea(model, parent, kind, zero, q, zero, unit, dynamics_work, dyn[6])
            inertia = dyn[6, j] + jp[JP_ARMATURE, j]
            damping = 2.0 * cf[CF_DAMPING_RATIO] * np.sqrt(jp[JP_KP, j] * inertia)
            jp[JP_KD_TARGET, j] = min(max(damping, jp[JP_KD_MIN, j]), jp[JP_KD_MAX, j])
        clip, filtered = cf[CF_ERROR_CLIP], tel[TEL_DQ_FILTERED]
        for i in range(n):
            for kp, target, ramp in ((JP_KP, JP_KP_TARGET, JP_KP_RATE),
                                     (JP_KD, JP_KD_TARGET, JP_KD_RATE)):
                step = jp[ramp, i] * dt_limited
                gap = jp[target, i] - jp[kp, i]
                jp[kp, i] = jp[target, i] if abs(gap) <= step else jp[kp, i] + np.sign(gap) * step
            tel[TEL_Q_REF, i] = ref[0, i]
            tel[TEL_DQ_REF, i] = ref[1, i]
            tel[TEL_DDQ_REF, i] = ref[2, i]
            error = ref[0, i] - q[i]
            if clip > 0.0:
                error = min(max(error, -clip), clip)
            filtered[i] += smoothing * (dq[i] - filtered[i])
            tel[TEL_STIFFNESS, i] = strength * jp[JP_KP, i] * error
            tel[TEL_DAMPING, i] = jp[JP_KD, i] * (ref[1, i] - filtered[i])
            tel[TEL_GRAVITY, i] = bias[i]
            inertia = 0.0
            if feedforward == FF_FULL:
                inertia = total[i] - bias[i] + jp[JP_ARMATURE, i] * ref[2, i]
            tel[TEL_INERTIA, i] = strength * inertia
            tel[TEL_FRICTION, i] = strength * cf[CF_FRICTION_SCALE] * friction(
                ref[1, i], jp[JP_COULOMB, i], jp[JP_VISCOUS, i], cf[CF_COULOMB_SPEED])
        if moves_tool:
            tool_torque(
                strength, scratch, tel[TEL_STIFFNESS], tel[TEL_DAMPING], tel[TEL_POSTURE])
        tel[TEL_Q_REF, n] = ref[0, n]
        tel[TEL_DQ_REF, n] = ref[1, n]
        tel[TEL_DDQ_REF, n] = ref[2, n]
        # gripper: ignore wobble below the hysteresis, go all the way at the ends, limit the speed
        width = min(max(ref[0, n], 0.0), cf[CF_GRIPPER_MAX])
        if abs(width - st[ST_GRIPPER_TARGET]) > cf[CF_GRIPPER_HYSTERESIS]:
            st[ST_GRIPPER_TARGET] = width
        elif width < cf[CF_GRIPPER_HYSTERESIS]:
            st[ST_GRIPPER_TARGET] = 0.0
        elif width > cf[CF_GRIPPER_MAX] - cf[CF_GRIPPER_HYSTERESIS]:
            st[ST_GRIPPER_TARGET] = cf[CF_GRIPPER_MAX]
        reach = cf[CF_GRIPPER_SPEED] * dt_limited
        st[ST_GRIPPER] += min(max(st[ST_GRIPPER_TARGET] - st[ST_GRIPPER], -reach), reach)
    else:
        at_rest = si[SI_DEACTIVATING] != 0
        for i in range(n):
            at_rest = at_rest and abs(dq[i]) <= cf[CF_STANDSTILL]
        if at_rest:
            mode = MODE_OFF
        for i in range(n):
            # a frozen reading says nothing about speed: the drives' watchdog has to damp
            trusted = 0.0 if si[SI_FAULT] == F_STATE_FROZEN else 1.0
            tel[TEL_Q_REF, i] = q[i]
            tel[TEL_DQ_REF, i] = 0.0
            tel[TEL_DDQ_REF, i] = 0.0
            tel[TEL_DQ_FILTERED, i] = dq[i]
            tel[TEL_STIFFNESS, i] = 0.0
            tel[TEL_DAMPING, i] = -jp[JP_DAMP, i] * dq[i] * trusted
            tel[TEL_GRAVITY, i] = cf[CF_DAMP_GRAVITY] * bias[i]
            tel[TEL_INERTIA, i] = 0.0
            tel[TEL_FRICTION, i] = 0.0
            tel[TEL_POSTURE, i] = 0.0
    si[SI_MODE] = mode

    if cf[CF_ROBOT_GRAVITY] != 0.0:
        rnea(model, parent, kind, gravity, q, zero, zero, dynamics_work, dyn[6])
        for i in range(n):  # while damping the bias is gravity alone, and none of it is ours
            tel[TEL_GRAVITY, i] = tel[TEL_GRAVITY, i] - dyn[6, i] if following else 0.0

    # -- sum and limits (nothing after this touches the torque) -----------------------------------
    for i in range(n):
        wish = (tel[TEL_STIFFNESS, i] + tel[TEL_DAMPING, i] + tel[TEL_GRAVITY, i]
                + tel[TEL_INERTIA, i] + tel[TEL_FRICTION, i] + tel[TEL_POSTURE, i])
        if not np.isfinite(wish):
            if si[SI_MODE] != MODE_ESTOP:
                si[SI_MODE] = MODE_DAMP
            si[SI_FAULT] = F_DYNAMICS_NOT_FINITE
            si[SI_FAULT_JOINT] = i
            wish = 0.0
        before = tau[i]
        step = jp[JP_TORQUE_RATE, i] * dt_limited
        gap = jp[JP_TORQUE_TARGET, i] - jp[JP_TORQUE, i]
        jp[JP_TORQUE, i] += min(max(gap, -step), step)
        limit = jp[JP_TORQUE, i]
        wish = min(max(wish, before - step), before + step)
        wish = min(max(wish, -limit), limit)
        tau[i] = wish
        st[ST_PEAK_TORQUE] = max(st[ST_PEAK_TORQUE], abs(wish) / limit)
        if dt > 0.0:
            ratio = abs(wish - before) / (jp[JP_TORQUE_RATE, i] * dt)
            st[ST_PEAK_TORQUE_RATE] = max(st[ST_PEAK_TORQUE_RATE], ratio)


