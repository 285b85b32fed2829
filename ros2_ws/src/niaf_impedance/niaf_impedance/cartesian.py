"""Compiled Cartesian impedance: law of one tick, and the joint path of a whole reference.

The law, for tool pose error e, twist error v = x'_ref - J dq (each clipped) and W = diag(1/length,
1): ``tau = J^T (K e + D v)`` plus a posture torque in the null space, plus a push away from joint
limits. The caller adds gravity, Coriolis and, from ``ddq_ff = J^+ (x''_ref - dJ/dt dq)``, inertia.
With those, J full rank and no null-space torque, the tool moves as Lambda (x'' - x''_ref) = K e +
D v, Lambda being the arm's own Cartesian inertia: no inertia shaping, no force sensor. K and D are
diagonal in the axes of the base, or (CP_TOOL_AXES) in those of the tool: R diag(k) R^T, with R of
the reference and not of the measurement, so that a push does not turn the spring that answers it.

Pseudo-inverse. With W J = sum of sigma_i u_i v_i^T, J^+ = sum of sigma_i / (sigma_i^2 + lambda_i^2)
v_i u_i^T W. Damping is zero above a threshold s0 (CP_SIGMA) and lambda_i^2 = (s0 / 2)^2
(1 - sigma_i^2 / s0^2)^2 below: least squares damped by the smallest singular value (Chiaverini,
Siciliano, Egeland 1994, after Nakamura and Hanafusa 1986), but each singular direction by its own
value, so that directions that are well conditioned keep their exact inverse, and with the square
that makes J^+ continuously differentiable where damping sets in. The largest gain is below
1.31 / s0. The decomposition is a cyclic Jacobi iteration on the 6 x 6 matrix W J J^T W: it cannot
fail on a singular one, as a factorisation would.

Projector. N = I - J^+ J, the damped kinematic one. It is symmetric with eigenvalues in [0, 1] (0 on
directions the task needs, 1 on self-motion), so the posture torque can only shrink, and N D N takes
power out of every motion. It is *statically* consistent: N J^T = 0 where nothing is damped, so
posture never biases the wrench at rest and an external wrench F displaces the tool by F / K
exactly. It is not dynamically consistent: while the arm is moving in its null space the tool feels
J M^-1 N tau, which its stiffness takes up. The dynamically consistent projector (Khatib 1987) would
need the inverse mass matrix each tick, is only as good as the modelled inertia, is not symmetric
(its damping can feed power) and grows without bound near singularities; for the comparison see
Dietrich, Ott, Albu-Schaeffer 2015.

Bounds. Task torque: |tau_i| <= |J_lin,i| F + |J_ang,i| M with (F, M) of :func:`wrench_bound`.
Posture: Euclidean norm of stiffness and of damping each <= CP_NULL_TORQUE. Limit: per joint
<= CJ_LIMIT_TORQUE. dq_ff and ddq_ff: scaled down as a whole to CJ_DQ_MAX and CJ_DDQ_MAX. All of it
is finite for any finite state and reference of physical size (squares must not overflow).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import njit

from niaf_impedance.kinematics import (
    FRAME_COLUMNS,
    MOTION_SIZE,
    interpolate_motions,
    tool_motion,
    vector_between,
)

FloatArray = np.ndarray

CP_STIFFNESS = 0  # [6] N/m and Nm/rad, see CP_TOOL_AXES
CP_DAMPING = 6  # [6] N s/m and Nm s/rad, the same axes
CP_CLIP_M, CP_CLIP_RAD = 12, 13  # largest pose error that the stiffness sees
CP_CLIP_M_S, CP_CLIP_RAD_S = 14, 15  # largest twist error that the damping sees
CP_NULL_TORQUE = 16  # largest norm of the posture torque, Nm
CP_SIGMA = 17  # singular value of W J below which its direction is damped
CP_LENGTH = 18  # length that makes metres comparable with radians, m
CP_LIMIT_MARGIN = 19  # width of the push at joint limits, rad
CP_TOOL_AXES = 20  # 0: stiffness and damping along the base's axes, 1: along the reference's
CP_SIZE = 21

CJ_POSTURE = 0  # rad
CJ_NULL_KP, CJ_NULL_KD = 1, 2  # Nm/rad, Nm s/rad
CJ_LOW, CJ_HIGH = 3, 4  # limits from which the push keeps away, rad
CJ_LIMIT_TORQUE = 5  # push at the limit itself, Nm
CJ_DQ_MAX, CJ_DDQ_MAX = 6, 7  # rad/s, rad/s^2
CJ_INERTIA = 8  # inertia that posture torque moves in the rollout, kg m^2
CJ_ROWS = 9

CO_STIFFNESS, CO_DAMPING = 0, 1  # J^T K e, J^T D v
CO_NULL_STIFFNESS, CO_NULL_DAMPING = 2, 3
CO_LIMIT = 4
CO_DDQ_FF, CO_DQ_FF = 5, 6
CO_ROWS = 7

CR_ERROR = 0  # [6] pose error before the clip, m and rad, base axes
CR_WRENCH = 6  # [6] wrench of stiffness and damping, N and Nm
CR_POSITION_ERROR, CR_ROTATION_ERROR = 12, 13  # norms of the error
CR_SIGMA = 14  # smallest singular value of W J that the arm could have above zero
CR_MANIPULABILITY = 15  # product of the singular values of J (Yoshikawa)
CR_SIZE = 16

_A, _U, _B, _S = 0, 36, 72, 108  # places in the scratch array
_X, _Y = 114, 120
_N = 126
_SWEEPS = 12
_START_ITERATIONS = 30


def law_work_size(n: int) -> int:
    """Length of the scratch array of :func:`cartesian_law` for n joints."""
    return _N + 2 * n


def rollout_work_size(n: int) -> int:
    """Length of the scratch array of :func:`cartesian_rollout` for n joints."""
    return law_work_size(n) + n * FRAME_COLUMNS + 6 * n + 2 * MOTION_SIZE + 8 * n


def wrench_bound(cp: FloatArray) -> tuple[float, float]:
    """Largest force (N) and moment (Nm) of stiffness and damping together."""
    k, d = cp[CP_STIFFNESS : CP_STIFFNESS + 6], cp[CP_DAMPING : CP_DAMPING + 6]
    force = k[:3].max() * cp[CP_CLIP_M] + d[:3].max() * cp[CP_CLIP_M_S]
    moment = k[3:].max() * cp[CP_CLIP_RAD] + d[3:].max() * cp[CP_CLIP_RAD_S]
    return float(force), float(moment)


# -- damped pseudo-inverse -------------------------------------------------------------------------
@njit(cache=True, nogil=True, error_model="numpy")
def damped_inverse(jac, length, sigma_min, work):
    """Damped inverse B [6, 6] of J J^T into work[72:108], so that J^+ = J^T B.

    Returns (the min(6, n)-th singular value of W J, product of that many singular values of J).
    """
    n = jac.shape[1]
    weight = 1.0 / length
    trace = 0.0
    for i in range(6):
        wi = weight if i < 3 else 1.0
        for j in range(i, 6):
            total = 0.0
            for c in range(n):
                total += jac[i, c] * jac[j, c]
            total *= wi * (weight if j < 3 else 1.0)
            work[_A + 6 * i + j] = total
            work[_A + 6 * j + i] = total
            work[_U + 6 * i + j] = 0.0
            work[_U + 6 * j + i] = 0.0
        work[_U + 7 * i] = 1.0
        trace += work[_A + 7 * i]
    negligible = 1e-30 * trace * trace
    for _ in range(_SWEEPS):
        rotated = False
        for p in range(5):
            for r in range(p + 1, 6):
                pr = work[_A + 6 * p + r]
                if not pr * pr > negligible:
                    continue
                rotated = True
                pp, rr = work[_A + 7 * p], work[_A + 7 * r]
                theta = 0.5 * (rr - pp) / pr
                t = 1.0 / (abs(theta) + np.sqrt(theta * theta + 1.0))
                if theta < 0.0:
                    t = -t
                c = 1.0 / np.sqrt(t * t + 1.0)
                s = t * c
                # rows of A and of the eigenvectors, then the columns of A by symmetry
                for k in range(6):
                    x, y = work[_A + 6 * p + k], work[_A + 6 * r + k]
                    work[_A + 6 * p + k] = c * x - s * y
                    work[_A + 6 * r + k] = s * x + c * y
                    x, y = work[_U + 6 * p + k], work[_U + 6 * r + k]
                    work[_U + 6 * p + k] = c * x - s * y
                    work[_U + 6 * r + k] = s * x + c * y
                work[_A + 7 * p] = pp - t * pr
                work[_A + 7 * r] = rr + t * pr
                work[_A + 6 * p + r] = 0.0
                work[_A + 6 * r + p] = 0.0
                for k in range(6):
                    work[_A + 6 * k + p] = work[_A + 6 * p + k]
                    work[_A + 6 * k + r] = work[_A + 6 * r + k]
        if not rotated:
            break
    floor = sigma_min * sigma_min
    for i in range(6):
        square = max(work[_A + 7 * i], 0.0)
        work[_S + i] = square
        damping = 0.0
        if square < floor:
            share = 1.0 - square / floor
            damping = 0.25 * floor * share * share
        work[_X + i] = 1.0 / (square + damping)
    for i in range(6):
        wi = weight if i < 3 else 1.0
        for j in range(i, 6):
            total = 0.0
            for k in range(6):
                total += work[_U + 6 * k + i] * work[_X + k] * work[_U + 6 * k + j]
            total *= wi * (weight if j < 3 else 1.0)
            work[_B + 6 * i + j] = total
            work[_B + 6 * j + i] = total
    for i in range(1, 6):  # largest first
        value = work[_S + i]
        j = i
        while j > 0 and work[_S + j - 1] < value:
            work[_S + j] = work[_S + j - 1]
            j -= 1
        work[_S + j] = value
    rank = min(6, n)
    product = length * length * length
    for i in range(rank):
        product *= np.sqrt(work[_S + i])
    return np.sqrt(work[_S + rank - 1]), product


@njit(cache=True, nogil=True, error_model="numpy")
def _pseudo_inverse(jac, work, out):
    """out [n] = J^+ x for x in work[_X : _X + 6], after :func:`damped_inverse`."""
    for i in range(6):
        total = 0.0
        for k in range(6):
            total += work[_B + 6 * i + k] * work[_X + k]
        work[_Y + i] = total
    for c in range(jac.shape[1]):
        total = 0.0
        for i in range(6):
            total += jac[i, c] * work[_Y + i]
        out[c] = total


@njit(cache=True, nogil=True, error_model="numpy")
def _project(jac, work, vector, scratch):
    """vector [n] = N vector in place."""
    n = jac.shape[1]
    for i in range(6):
        total = 0.0
        for c in range(n):
            total += jac[i, c] * vector[c]
        work[_X + i] = total
    _pseudo_inverse(jac, work, scratch)
    for c in range(n):
        vector[c] -= scratch[c]


@njit(cache=True, nogil=True, error_model="numpy")
def _cap_norm(vector, limit):
    """Scale vector [n] in place to a norm of at most ``limit``."""
    total = 0.0
    for c in range(vector.shape[0]):
        total += vector[c] * vector[c]
    norm = np.sqrt(total)
    if norm > limit:
        for c in range(vector.shape[0]):
            vector[c] *= limit / norm


@njit(cache=True, nogil=True, error_model="numpy")
def _cap_each(vector, limits):
    """Scale vector [n] in place, as a whole, until no entry exceeds its limit."""
    worst = 1.0
    for c in range(vector.shape[0]):
        worst = max(worst, abs(vector[c]) / limits[c])
    if worst > 1.0:
        for c in range(vector.shape[0]):
            vector[c] /= worst


@njit(cache=True, nogil=True, error_model="numpy")
def _share(x, y, z, limit):
    """Factor that shortens (x, y, z) to a length of at most ``limit``, and the length."""
    norm = np.sqrt(x * x + y * y + z * z)
    return (limit / norm if norm > limit else 1.0), norm


# -- law -------------------------------------------------------------------------------------------
@njit(cache=True, nogil=True, error_model="numpy")
def _along_axes(share, cp, at, x, y, z, ref):
    """``share`` times cp[at : at + 3] along the law's axes, times the vector (x, y, z)."""
    kx, ky, kz = share * cp[at], share * cp[at + 1], share * cp[at + 2]
    if cp[CP_TOOL_AXES] == 0.0:
        return kx * x, ky * y, kz * z
    a = kx * (ref[0] * x + ref[3] * y + ref[6] * z)
    b = ky * (ref[1] * x + ref[4] * y + ref[7] * z)
    c = kz * (ref[2] * x + ref[5] * y + ref[8] * z)
    return (
        ref[0] * a + ref[1] * b + ref[2] * c,
        ref[3] * a + ref[4] * b + ref[5] * c,
        ref[6] * a + ref[7] * b + ref[8] * c,
    )


@njit(cache=True, nogil=True, error_model="numpy")
def limit_push(position, low, high, margin, torque):
    """Torque away from the limits of one joint: zero outside the margin, smooth, then constant."""
    x = min(max((low + margin - position) / margin, 0.0), 1.0)
    y = min(max((position - high + margin) / margin, 0.0), 1.0)
    return torque * (x * x * (3.0 - 2.0 * x) - y * y * (3.0 - 2.0 * y))


@njit(cache=True, nogil=True, error_model="numpy")
def _posture_torque(q, dq, jac, cp, cj, work, scratch, stiffness, damping):
    """Posture terms, projected: N cap(k (q_n - q)) and N cap(-d N dq)."""
    for c in range(q.shape[0]):
        stiffness[c] = cj[CJ_NULL_KP, c] * (cj[CJ_POSTURE, c] - q[c])
        damping[c] = dq[c]
    _cap_norm(stiffness, cp[CP_NULL_TORQUE])
    _project(jac, work, stiffness, scratch)
    _project(jac, work, damping, scratch)
    for c in range(q.shape[0]):
        damping[c] *= -cj[CJ_NULL_KD, c]
    _cap_norm(damping, cp[CP_NULL_TORQUE])
    _project(jac, work, damping, scratch)


@njit(cache=True, nogil=True, error_model="numpy")
def cartesian_law(q, dq, motion, jac, ref, cp, cj, work, out, report):
    """Torque and feed-forward terms of one tick into ``out`` [CO_ROWS, n].

    q, dq [n] measured; motion [24] and jac [6, n] of :func:`tool_motion` at that state; ref [24]
    motion of the reference; cp [CP_SIZE]; cj [CJ_ROWS, n]; work [law_work_size(n)] scratch;
    report [CR_SIZE]. The task torque is the sum of the first two rows.
    """
    n = q.shape[0]
    sigma, manipulability = damped_inverse(jac, cp[CP_LENGTH], cp[CP_SIGMA], work)
    report[CR_SIGMA] = sigma
    report[CR_MANIPULABILITY] = manipulability

    for k in range(3):
        report[CR_ERROR + k] = ref[9 + k] - motion[9 + k]
    report[CR_ERROR + 3], report[CR_ERROR + 4], report[CR_ERROR + 5] = vector_between(motion, ref)
    for half in range(2):
        e = CR_ERROR + 3 * half
        shorter, norm = _share(
            report[e], report[e + 1], report[e + 2], cp[CP_CLIP_M + half])
        report[CR_POSITION_ERROR + half] = norm
        x = _X + 3 * half
        work[x], work[x + 1], work[x + 2] = _along_axes(
            shorter, cp, CP_STIFFNESS + 3 * half, report[e], report[e + 1], report[e + 2], ref)
        v = 12 + 3 * half
        vx, vy, vz = ref[v] - motion[v], ref[v + 1] - motion[v + 1], ref[v + 2] - motion[v + 2]
        shorter, _ = _share(vx, vy, vz, cp[CP_CLIP_M_S + half])
        y = _Y + 3 * half
        work[y], work[y + 1], work[y + 2] = _along_axes(
            shorter, cp, CP_DAMPING + 3 * half, vx, vy, vz, ref)
    for k in range(6):
        report[CR_WRENCH + k] = work[_X + k] + work[_Y + k]
    for c in range(n):
        stiffness, damping = 0.0, 0.0
        for k in range(6):
            stiffness += jac[k, c] * work[_X + k]
            damping += jac[k, c] * work[_Y + k]
        out[CO_STIFFNESS, c] = stiffness
        out[CO_DAMPING, c] = damping
        out[CO_LIMIT, c] = limit_push(
            q[c], cj[CJ_LOW, c], cj[CJ_HIGH, c], cp[CP_LIMIT_MARGIN], cj[CJ_LIMIT_TORQUE, c])

    _posture_torque(
        q, dq, jac, cp, cj, work, work[_N : _N + n], out[CO_NULL_STIFFNESS], out[CO_NULL_DAMPING])

    for k in range(6):
        work[_X + k] = ref[18 + k] - motion[18 + k]
    _pseudo_inverse(jac, work, out[CO_DDQ_FF])
    _cap_each(out[CO_DDQ_FF], cj[CJ_DDQ_MAX])
    for k in range(6):
        work[_X + k] = ref[12 + k]
    _pseudo_inverse(jac, work, out[CO_DQ_FF])
    _cap_each(out[CO_DQ_FF], cj[CJ_DQ_MAX])


# -- joint path of a reference ---------------------------------------------------------------------
@njit(cache=True, nogil=True, error_model="numpy")
def _following(
    q, dq, ref, model, parent, kind, tool, cp, cj, rate, largest, frames, jac, motion, work,
    null, ddq,
):
    """Joint acceleration that follows ``ref`` in closed loop; returns the smallest sigma."""
    n = q.shape[0]
    tool_motion(model, parent, kind, tool, q, dq, frames, jac, motion)
    sigma, _ = damped_inverse(jac, cp[CP_LENGTH], cp[CP_SIGMA], work)
    scratch = work[_N : _N + n]
    other = work[_N + n : _N + 2 * n]
    _posture_torque(q, dq, jac, cp, cj, work, scratch, null, other)
    for c in range(n):
        inertia = cj[CJ_INERTIA, c]
        # posture damping faster than the integration step would only be numerically unstable
        slower = min(1.0, largest * inertia / max(cj[CJ_NULL_KD, c], 1e-12))
        null[c] = (null[c] + slower * other[c]) / inertia
    _project(jac, work, null, scratch)
    rx, ry, rz = vector_between(motion, ref)
    ex, ey, ez = ref[9] - motion[9], ref[10] - motion[10], ref[11] - motion[11]
    linear, _ = _share(ex, ey, ez, cp[CP_CLIP_M])
    angular, _ = _share(rx, ry, rz, cp[CP_CLIP_RAD])
    work[_X], work[_X + 1], work[_X + 2] = linear * ex, linear * ey, linear * ez
    work[_X + 3], work[_X + 4], work[_X + 5] = angular * rx, angular * ry, angular * rz
    for half in range(2):
        v = 12 + 3 * half
        vx, vy, vz = ref[v] - motion[v], ref[v + 1] - motion[v + 1], ref[v + 2] - motion[v + 2]
        shorter, _ = _share(vx, vy, vz, cp[CP_CLIP_M_S + half])
        x = _X + 3 * half
        work[x] = rate * rate * work[x] + 2.0 * rate * shorter * vx
        work[x + 1] = rate * rate * work[x + 1] + 2.0 * rate * shorter * vy
        work[x + 2] = rate * rate * work[x + 2] + 2.0 * rate * shorter * vz
    for k in range(6):
        work[_X + k] += ref[18 + k] - motion[18 + k]
    _pseudo_inverse(jac, work, ddq)
    for c in range(n):
        ddq[c] += null[c]
    return sigma


@njit(cache=True, nogil=True, error_model="numpy")
def _start_on(
    ref, dq_start, model, parent, kind, tool, cp, frames, jac, motion, work, step, q, dq
):
    """Move ``q`` onto the pose of ``ref`` (damped Newton) and set ``dq`` to its twist."""
    n = q.shape[0]
    scratch = work[_N : _N + n]
    for i in range(_START_ITERATIONS + 1):
        tool_motion(model, parent, kind, tool, q, dq_start, frames, jac, motion)
        damped_inverse(jac, cp[CP_LENGTH], cp[CP_SIGMA], work)
        x, y, z = ref[9] - motion[9], ref[10] - motion[10], ref[11] - motion[11]
        rx, ry, rz = vector_between(motion, ref)
        linear, distance = _share(x, y, z, 0.1)
        angular, angle = _share(rx, ry, rz, 0.3)
        if i == _START_ITERATIONS or not distance + angle > 1e-12:
            break
        work[_X], work[_X + 1], work[_X + 2] = linear * x, linear * y, linear * z
        work[_X + 3], work[_X + 4], work[_X + 5] = angular * rx, angular * ry, angular * rz
        _pseudo_inverse(jac, work, step)
        for c in range(n):
            q[c] += step[c]
    for k in range(6):
        work[_X + k] = ref[12 + k]
    _pseudo_inverse(jac, work, dq)
    for c in range(n):
        step[c] = dq_start[c]
    _project(jac, work, step, scratch)
    for c in range(n):
        dq[c] += step[c]


@njit(cache=True, nogil=True, error_model="numpy")
def cartesian_rollout(
    times, references, q_start, dq_start, model, parent, kind, tool, cp, cj, rate_rad_s, step_s,
    work, q_path, dq_path, ddq_path, residual, sigma,
):
    """Joint path q, dq, ddq [K, n] of ``references`` [K, 24] at instants ``times`` [K].

    Closed-loop inverse kinematics of second order, critically damped at ``rate_rad_s`` and with the
    law's posture pull, integrated by the classical Runge-Kutta method in steps of at most
    ``step_s`` (keep rate times step below 0.5); between instants the reference is a quintic. The
    path begins *on* the reference, next to q_start, with the self-motion of dq_start, so that what
    comes out belongs to the reference and not to where contact has pushed the arm. The damped
    inverse is the law's. residual [K, 2]: pose error left over, m and rad; sigma [K]: smallest
    singular value. A reference that cannot be reached leaves a residual; numbers that are not
    finite stay not finite. work [rollout_work_size(n)] is scratch.
    """
    n = q_start.shape[0]
    at = _N + 2 * n
    frames = work[at : at + n * 24].reshape((n, 24))
    at += n * 24
    jac = work[at : at + 6 * n].reshape((6, n))
    at += 6 * n
    motion = work[at : at + 24]
    ref = work[at + 24 : at + 48]
    at += 48
    q, dq, ddq = work[at : at + n], work[at + n : at + 2 * n], work[at + 2 * n : at + 3 * n]
    at += 3 * n
    q_try, dq_try = work[at : at + n], work[at + n : at + 2 * n]
    null = work[at + 2 * n : at + 3 * n]
    at += 3 * n
    dq_sum, ddq_sum = work[at : at + n], work[at + n : at + 2 * n]
    q[:] = q_start
    _start_on(
        references[0], dq_start, model, parent, kind, tool, cp, frames, jac, motion, work, null, q,
        dq,
    )
    largest = 1.0 / step_s
    count = times.shape[0]
    for k in range(count):
        target = references[k]
        following = references[min(k + 1, count - 1)]
        interval = 0.0
        if k + 1 < count and times[k + 1] > times[k]:
            interval = times[k + 1] - times[k]
        steps = int(min(max(np.ceil(interval / step_s), 1.0), 1e4))
        h = interval / steps
        for i in range(steps):
            for c in range(n):
                q_try[c], dq_try[c] = q[c], dq[c]
                dq_sum[c] = 0.0
                ddq_sum[c] = 0.0
            for stage in range(4):
                share = 0.0 if stage == 0 else (1.0 if stage == 3 else 0.5)
                if interval == 0.0 or (i == 0 and stage == 0):
                    ref[:] = target
                elif stage != 2:  # the second and third stage are at the same instant
                    interpolate_motions(target, following, interval, (i + share) / steps, ref)
                if stage > 0:
                    for c in range(n):
                        q_try[c] = q[c] + share * h * dq_try[c]
                        dq_try[c] = dq[c] + share * h * ddq[c]
                smallest = _following(
                    q_try, dq_try, ref, model, parent, kind, tool, cp, cj, rate_rad_s, largest,
                    frames, jac, motion, work, null, ddq,
                )
                if i == 0 and stage == 0:
                    sigma[k] = smallest
                    for c in range(n):
                        q_path[k, c] = q[c]
                        dq_path[k, c] = dq[c]
                        ddq_path[k, c] = ddq[c]
                    x, y, z = ref[9] - motion[9], ref[10] - motion[10], ref[11] - motion[11]
                    residual[k, 0] = np.sqrt(x * x + y * y + z * z)
                    x, y, z = vector_between(motion, ref)
                    residual[k, 1] = np.sqrt(x * x + y * y + z * z)
                    if interval == 0.0:
                        break
                weight = 1.0 if stage in (0, 3) else 2.0
                for c in range(n):
                    dq_sum[c] += weight * dq_try[c]
                    ddq_sum[c] += weight * ddq[c]
            for c in range(n):
                q[c] += h / 6.0 * dq_sum[c]
                dq[c] += h / 6.0 * ddq_sum[c]
