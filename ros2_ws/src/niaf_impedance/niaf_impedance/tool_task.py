"""What the tick does where it follows the tool instead of the joints: the Cartesian law.

Whether a controller follows joints or the tool is decided when it is built (``CF_TASK``); the tick
then differs in the reference it evaluates (``composite.tool_commanded``) and in this step. The step
also leaves the *joint equivalents* of the tool reference in the tick's ``ref``, so that
feed-forward, friction, checks and telemetry stay those of joints: position = the measured one (a
tool reference has no joint position), velocity = J^+ of the reference's twist, acceleration = the
feed-forward.

Arrays: gains [3, GAINS] now, target, rate of change (entries ``CP_*`` of the law, then the
null-space gains); cj [CJ_ROWS, n]; scratch [scratch_size(n)] with the parts named ``T_*``.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from numba import njit

from niaf_impedance.cartesian import (
    CJ_NULL_KD,
    CJ_NULL_KP,
    CO_DAMPING,
    CO_DDQ_FF,
    CO_DQ_FF,
    CO_LIMIT,
    CO_NULL_DAMPING,
    CO_NULL_STIFFNESS,
    CO_ROWS,
    CO_STIFFNESS,
    CP_SIZE,
    CR_SIZE,
    cartesian_law,
    law_work_size,
)
from niaf_impedance.composite import TOOL_COLUMNS, TOOL_GRIPPER, TOOL_JET
from niaf_impedance.kinematics import FRAME_COLUMNS, MOTION_SIZE, tool_motion

G_NULL_KP, G_NULL_KD = CP_SIZE, CP_SIZE + 1
GAINS = CP_SIZE + 2
NOW, TARGET, RATE = 0, 1, 2

#: tool jets: the commanded one, one slot's, the one before a hand-over; measured motion; report
T_REF, T_SLOT, T_OLD = 0, TOOL_JET, 2 * TOOL_JET
T_MOTION = 3 * TOOL_JET
T_REPORT = T_MOTION + MOTION_SIZE
T_JETS = T_REPORT + CR_SIZE  # [3, 7] columns of one slot
T_STEP = T_JETS + 3 * TOOL_COLUMNS  # [3, 6] step at a hand-over
T_ARRAYS = T_STEP + 18  # Jacobian [6, n], law [7, n], frames [n, 24], the law's scratch


def scratch_size(n: int) -> int:
    """Length of the scratch array for n joints."""
    return T_ARRAYS + (6 + CO_ROWS + FRAME_COLUMNS) * n + law_work_size(n)


@njit(cache=True, nogil=True)
def ramp_gains(gains, cj, dt):
    """Move the gains towards their targets and spread the null-space ones over the joints."""
    for i in range(GAINS):
        gap = gains[TARGET, i] - gains[NOW, i]
        step = gains[RATE, i] * dt
        if abs(gap) <= step:
            gains[NOW, i] = gains[TARGET, i]
        elif gap > 0.0:
            gains[NOW, i] += step
        else:
            gains[NOW, i] -= step
    for c in range(cj.shape[1]):
        cj[CJ_NULL_KP, c] = gains[NOW, G_NULL_KP]
        cj[CJ_NULL_KD, c] = gains[NOW, G_NULL_KD]


@njit(cache=True, nogil=True)
def tool_step(q, dq, model, parent, kind, tool, gains, cj, scratch, ref):
    """Law for the tool jet in ``scratch[T_REF]`` at q, dq [n]; joint equivalents into ``ref``.

    ref [3, n + 1]; the torque terms stay in ``scratch`` for :func:`tool_torque`.
    """
    n = q.shape[0]
    at = T_ARRAYS
    jac = scratch[at : at + 6 * n].reshape((6, n))
    at += 6 * n
    law = scratch[at : at + CO_ROWS * n].reshape((CO_ROWS, n))
    at += CO_ROWS * n
    frames = scratch[at : at + FRAME_COLUMNS * n].reshape((n, FRAME_COLUMNS))
    work = scratch[at + FRAME_COLUMNS * n :]
    motion = scratch[T_MOTION : T_MOTION + MOTION_SIZE]
    target = scratch[T_REF : T_REF + MOTION_SIZE]
    tool_motion(model, parent, kind, tool, q, dq, frames, jac, motion)
    cartesian_law(
        q, dq, motion, jac, target, gains[NOW], cj, work, law,
        scratch[T_REPORT : T_REPORT + CR_SIZE])
    for c in range(n):
        ref[0, c] = q[c]
        ref[1, c] = law[CO_DQ_FF, c]
        ref[2, c] = law[CO_DDQ_FF, c]
    for r in range(3):
        ref[r, n] = scratch[T_REF + TOOL_GRIPPER + r]


@njit(cache=True, nogil=True)
def tool_torque(strength, scratch, stiffness, damping, posture):
    """Torque terms [n + 1] of the last :func:`tool_step`; ``strength`` fades what pulls somewhere.

    Damping and the push away from joint limits never fade.
    """
    n = posture.shape[0] - 1
    at = T_ARRAYS + 6 * n
    for c in range(n):
        stiffness[c] = strength * scratch[at + CO_STIFFNESS * n + c]
        damping[c] = scratch[at + CO_DAMPING * n + c]
        posture[c] = (
            strength * scratch[at + CO_NULL_STIFFNESS * n + c]
            + scratch[at + CO_NULL_DAMPING * n + c] + scratch[at + CO_LIMIT * n + c])
