"""Compiled tool kinematics: forward kinematics, Jacobian, rotation vectors, motions on SE(3).

Works on the same ``model, parent, kind`` arrays as :mod:`niaf_impedance.dynamics`, without the GIL
and without allocating. Everything is expressed in the axes of the model's base.

A *motion* is float64[24]: what a rigid frame does at one instant. Rotation, row-major, [0:9];
position [9:12]; linear velocity [12:15]; angular velocity [15:18]; linear acceleration [18:21];
angular acceleration [21:24]. Velocities and accelerations are those of the frame's origin, along
base axes, so twist = motion[12:18] and spatial acceleration (classical) = motion[18:24].

Orientation references are *rotation vectors* r on top of an anchor orientation: R = exp([r]x)
R_anchor. With J_l the left Jacobian of SO(3), omega = J_l(r) dr. The map from r to R is exact and
smooth for every r; |r| < pi makes it one-to-one.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import njit

MOTION_R, MOTION_P, MOTION_V, MOTION_W, MOTION_A, MOTION_ALPHA = 0, 9, 12, 15, 18, 21
MOTION_SIZE = 24
#: scratch columns per joint: R[9] p[3] v[3] w[3] a[3] alpha[3], i.e. one motion
FRAME_COLUMNS = MOTION_SIZE

#: below this square of the angle the coefficients are summed as series (seven terms: last bit)
_SERIES = 0.25


# -- forward kinematics ----------------------------------------------------------------------------
@njit(cache=True, nogil=True, error_model="numpy")
def _carry(u, rx, ry, rz, out):
    """Motion of a point at ``r`` (base axes) from the origin of motion ``u``, moving rigidly."""
    wx, wy, wz = u[15], u[16], u[17]
    dx, dy, dz = u[21], u[22], u[23]
    ex, ey, ez = wy * rz - wz * ry, wz * rx - wx * rz, wx * ry - wy * rx
    out[9], out[10], out[11] = u[9] + rx, u[10] + ry, u[11] + rz
    out[12], out[13], out[14] = u[12] + ex, u[13] + ey, u[14] + ez
    out[15], out[16], out[17] = wx, wy, wz
    out[18] = u[18] + dy * rz - dz * ry + wy * ez - wz * ey
    out[19] = u[19] + dz * rx - dx * rz + wz * ex - wx * ez
    out[20] = u[20] + dx * ry - dy * rx + wx * ey - wy * ex
    out[21], out[22], out[23] = dx, dy, dz


@njit(cache=True, nogil=True, error_model="numpy")
def tool_motion(model, parent, kind, tool, q, dq, frames, jac, motion):
    """Forward kinematics of the tool: writes Jacobian ``jac`` [6, n] and ``motion`` [24].

    tool [12]: fixed rotation row-major and translation of the tool in the last joint's frame.
    frames [n, 24] scratch. Jacobian rows: linear velocity of the tool's origin, then angular
    velocity. The accelerations of ``motion`` are those at zero joint acceleration, i.e. the
    velocity product dJ/dt dq; the twist is J dq.
    """
    n = model.shape[0]
    root = motion  # an unmoving base, built where the result goes
    for k in range(24):
        root[k] = 0.0
    root[0], root[4], root[8] = 1.0, 1.0, 1.0
    for i in range(n):
        m = model[i]
        f = frames[i]
        u = root if parent[i] < 0 else frames[parent[i]]
        # parent's rotation times the placement's
        for r in range(3):
            a0, a1, a2 = u[3 * r], u[3 * r + 1], u[3 * r + 2]
            f[3 * r] = a0 * m[0] + a1 * m[3] + a2 * m[6]
            f[3 * r + 1] = a0 * m[1] + a1 * m[4] + a2 * m[7]
            f[3 * r + 2] = a0 * m[2] + a1 * m[5] + a2 * m[8]
        ax, ay, az = m[12], m[13], m[14]
        zx = f[0] * ax + f[1] * ay + f[2] * az
        zy = f[3] * ax + f[4] * ay + f[5] * az
        zz = f[6] * ax + f[7] * ay + f[8] * az
        rx = u[0] * m[9] + u[1] * m[10] + u[2] * m[11]
        ry = u[3] * m[9] + u[4] * m[10] + u[5] * m[11]
        rz = u[6] * m[9] + u[7] * m[10] + u[8] * m[11]
        vi = dq[i]
        wx, wy, wz = u[15], u[16], u[17]
        # parent's angular velocity across the joint's velocity
        cx, cy, cz = (wy * zz - wz * zy) * vi, (wz * zx - wx * zz) * vi, (wx * zy - wy * zx) * vi
        if kind[i] == 0:
            _carry(u, rx, ry, rz, f)
            f[15], f[16], f[17] = wx + zx * vi, wy + zy * vi, wz + zz * vi
            f[21] += cx
            f[22] += cy
            f[23] += cz
            c, s = np.cos(q[i]), np.sin(q[i])
            v = 1.0 - c
            j00, j01, j02 = c + v * ax * ax, v * ax * ay - s * az, v * ax * az + s * ay
            j10, j11, j12 = v * ax * ay + s * az, c + v * ay * ay, v * ay * az - s * ax
            j20, j21, j22 = v * ax * az - s * ay, v * ay * az + s * ax, c + v * az * az
            for r in range(3):
                a0, a1, a2 = f[3 * r], f[3 * r + 1], f[3 * r + 2]
                f[3 * r] = a0 * j00 + a1 * j10 + a2 * j20
                f[3 * r + 1] = a0 * j01 + a1 * j11 + a2 * j21
                f[3 * r + 2] = a0 * j02 + a1 * j12 + a2 * j22
        else:
            _carry(u, rx + zx * q[i], ry + zy * q[i], rz + zz * q[i], f)
            f[12] += zx * vi
            f[13] += zy * vi
            f[14] += zz * vi
            f[18] += 2.0 * cx
            f[19] += 2.0 * cy
            f[20] += 2.0 * cz
    f = frames[n - 1]
    for r in range(3):
        a0, a1, a2 = f[3 * r], f[3 * r + 1], f[3 * r + 2]
        motion[3 * r] = a0 * tool[0] + a1 * tool[3] + a2 * tool[6]
        motion[3 * r + 1] = a0 * tool[1] + a1 * tool[4] + a2 * tool[7]
        motion[3 * r + 2] = a0 * tool[2] + a1 * tool[5] + a2 * tool[8]
    _carry(
        f,
        f[0] * tool[9] + f[1] * tool[10] + f[2] * tool[11],
        f[3] * tool[9] + f[4] * tool[10] + f[5] * tool[11],
        f[6] * tool[9] + f[7] * tool[10] + f[8] * tool[11],
        motion,
    )
    for i in range(n):
        for r in range(6):
            jac[r, i] = 0.0
    i = n - 1
    while i >= 0:
        f = frames[i]
        m = model[i]
        # the axis is the same before and after the joint's own rotation
        zx = f[0] * m[12] + f[1] * m[13] + f[2] * m[14]
        zy = f[3] * m[12] + f[4] * m[13] + f[5] * m[14]
        zz = f[6] * m[12] + f[7] * m[13] + f[8] * m[14]
        if kind[i] == 0:
            rx, ry, rz = motion[9] - f[9], motion[10] - f[10], motion[11] - f[11]
            jac[0, i] = zy * rz - zz * ry
            jac[1, i] = zz * rx - zx * rz
            jac[2, i] = zx * ry - zy * rx
            jac[3, i], jac[4, i], jac[5, i] = zx, zy, zz
        else:
            jac[0, i], jac[1, i], jac[2, i] = zx, zy, zz
        i = parent[i]


# -- rotation vectors ------------------------------------------------------------------------------
@njit(cache=True, nogil=True, error_model="numpy")
def rotation_coefficients(x):
    """Coefficients of exp and left Jacobian at squared angle ``x``: (A, B, C, B', C').

    A = sin t / t, B = (1 - cos t) / t^2, C = (t - sin t) / t^3 with t = sqrt(x); B' and C' are
    their derivatives by t, divided by t.
    """
    if x < _SERIES:
        a = b = c = db = dc = 0.0
        # sums of (-x)^k / (2k + i)!, and of their derivatives
        factorial = 1.0
        power = 1.0
        for k in range(8):
            a += power / factorial
            b += power / (factorial * (2 * k + 2))
            c += power / (factorial * (2 * k + 2) * (2 * k + 3))
            following = factorial * (2 * k + 2) * (2 * k + 3)
            db -= (2 * k + 2) * power / (following * (2 * k + 4))
            dc -= (2 * k + 2) * power / (following * (2 * k + 4) * (2 * k + 5))
            factorial = following
            power *= -x
        return a, b, c, db, dc
    t = np.sqrt(x)
    half = np.sin(0.5 * t)
    a = np.sin(t) / t
    b = 2.0 * half * half / x
    c = (1.0 - a) / x
    return a, b, c, (a - 2.0 * b) / x, (b - 3.0 * c) / x


@njit(cache=True, nogil=True, error_model="numpy")
def rotation_from_vector(x, y, z, out):
    """exp([r]x) of r = (x, y, z), row-major into ``out`` [9]."""
    t2 = x * x + y * y + z * z
    a, b, _, _, _ = rotation_coefficients(t2)
    out[0] = 1.0 - b * (y * y + z * z)
    out[1] = b * x * y - a * z
    out[2] = b * x * z + a * y
    out[3] = b * x * y + a * z
    out[4] = 1.0 - b * (x * x + z * z)
    out[5] = b * y * z - a * x
    out[6] = b * x * z - a * y
    out[7] = b * y * z + a * x
    out[8] = 1.0 - b * (x * x + y * y)


@njit(cache=True, nogil=True, error_model="numpy")
def _vector_from_entries(m00, m01, m02, m10, m11, m12, m20, m21, m22):
    # The largest of the four quaternion components is found first, so that nothing cancels, also
    # not at half a turn (where the sign of the result is arbitrary).
    trace = m00 + m11 + m22
    if trace >= m00 and trace >= m11 and trace >= m22:
        w, x, y, z = 1.0 + trace, m21 - m12, m02 - m20, m10 - m01
    elif m00 >= m11 and m00 >= m22:
        w, x, y, z = m21 - m12, 1.0 + m00 - m11 - m22, m01 + m10, m02 + m20
    elif m11 >= m22:
        w, x, y, z = m02 - m20, m01 + m10, 1.0 - m00 + m11 - m22, m12 + m21
    else:
        w, x, y, z = m10 - m01, m02 + m20, m12 + m21, 1.0 - m00 - m11 + m22
    if w < 0.0:
        w, x, y, z = -w, -x, -y, -z
    s = np.sqrt(x * x + y * y + z * z)
    if s < 1e-8 * w:
        factor = 2.0 / w  # atan(s / w) / s, its next term is below the last bit
    elif s > 0.0:
        factor = 2.0 * np.arctan2(s, w) / s
    else:
        factor = 0.0
    return factor * x, factor * y, factor * z


@njit(cache=True, nogil=True, error_model="numpy")
def vector_between(a, b):
    """Rotation vector of R_b R_a^T, length in [0, pi]; rotations row-major in a[0:9], b[0:9]."""
    return _vector_from_entries(
        b[0] * a[0] + b[1] * a[1] + b[2] * a[2],
        b[0] * a[3] + b[1] * a[4] + b[2] * a[5],
        b[0] * a[6] + b[1] * a[7] + b[2] * a[8],
        b[3] * a[0] + b[4] * a[1] + b[5] * a[2],
        b[3] * a[3] + b[4] * a[4] + b[5] * a[5],
        b[3] * a[6] + b[4] * a[7] + b[5] * a[8],
        b[6] * a[0] + b[7] * a[1] + b[8] * a[2],
        b[6] * a[3] + b[7] * a[4] + b[8] * a[5],
        b[6] * a[6] + b[7] * a[7] + b[8] * a[8],
    )


@njit(cache=True, nogil=True, error_model="numpy")
def angular_motion(x, y, z, vx, vy, vz, ax, ay, az):
    """(omega, d omega/dt), six numbers, from the jet (r, dr/dt, d2r/dt2) of a rotation vector."""
    _, b, c, db, dc = rotation_coefficients(x * x + y * y + z * z)
    rate = x * vx + y * vy + z * vz
    # r x dr, r x (r x dr), r x ddr, r x (r x ddr), dr x (r x dr)
    px, py, pz = y * vz - z * vy, z * vx - x * vz, x * vy - y * vx
    qx, qy, qz = y * pz - z * py, z * px - x * pz, x * py - y * px
    sx, sy, sz = y * az - z * ay, z * ax - x * az, x * ay - y * ax
    tx, ty, tz = y * sz - z * sy, z * sx - x * sz, x * sy - y * sx
    ux, uy, uz = vy * pz - vz * py, vz * px - vx * pz, vx * py - vy * px
    db *= rate
    dc *= rate
    return (
        vx + b * px + c * qx,
        vy + b * py + c * qy,
        vz + b * pz + c * qz,
        ax + b * sx + c * (tx + ux) + db * px + dc * qx,
        ay + b * sy + c * (ty + uy) + db * py + dc * qy,
        az + b * sz + c * (tz + uz) + db * pz + dc * qz,
    )


@njit(cache=True, nogil=True, error_model="numpy")
def vector_rate(x, y, z, wx, wy, wz):
    """J_l(r)^-1 omega: derivative of the rotation vector r = (x, y, z) for omega; |r| <= pi."""
    t2 = x * x + y * y + z * z
    if t2 < _SERIES:
        d = 1.0 / 12.0 + t2 * (
            1.0 / 720.0 + t2 * (1.0 / 30240.0 + t2 * (
                1.0 / 1209600.0 + t2 * (1.0 / 47900160.0 + t2 * (691.0 / 1307674368000.0)))))
    else:
        a, b, _, _, _ = rotation_coefficients(t2)
        d = (1.0 - 0.5 * a / b) / t2
    px, py, pz = y * wz - z * wy, z * wx - x * wz, x * wy - y * wx
    return (
        wx - 0.5 * px + d * (y * pz - z * py),
        wy - 0.5 * py + d * (z * px - x * pz),
        wz - 0.5 * pz + d * (x * py - y * px),
    )


@njit(cache=True, nogil=True, error_model="numpy")
def vector_acceleration(x, y, z, vx, vy, vz, ax, ay, az):
    """Second derivative of the rotation vector r for rate v and angular acceleration a."""
    _, _, _, bx, by, bz = angular_motion(x, y, z, vx, vy, vz, 0.0, 0.0, 0.0)
    return vector_rate(x, y, z, ax - bx, ay - by, az - bz)


# -- motions ---------------------------------------------------------------------------------------
@njit(cache=True, nogil=True, error_model="numpy")
def _turned_motion(x, y, z, vx, vy, vz, ax, ay, az, base, out):
    """Angular part of exp([r]x) R_base for the jet of r; ``out`` may be ``base``."""
    ox, oy, oz, bx, by, bz = angular_motion(x, y, z, vx, vy, vz, ax, ay, az)
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = (
        base[0], base[1], base[2], base[3], base[4], base[5], base[6], base[7], base[8])
    wx, wy, wz = base[15], base[16], base[17]
    dx, dy, dz = base[21], base[22], base[23]
    rotation_from_vector(x, y, z, out)
    e00, e01, e02, e10, e11, e12, e20, e21, e22 = (
        out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7], out[8])
    out[0] = e00 * r00 + e01 * r10 + e02 * r20
    out[1] = e00 * r01 + e01 * r11 + e02 * r21
    out[2] = e00 * r02 + e01 * r12 + e02 * r22
    out[3] = e10 * r00 + e11 * r10 + e12 * r20
    out[4] = e10 * r01 + e11 * r11 + e12 * r21
    out[5] = e10 * r02 + e11 * r12 + e12 * r22
    out[6] = e20 * r00 + e21 * r10 + e22 * r20
    out[7] = e20 * r01 + e21 * r11 + e22 * r21
    out[8] = e20 * r02 + e21 * r12 + e22 * r22
    tx = e00 * wx + e01 * wy + e02 * wz
    ty = e10 * wx + e11 * wy + e12 * wz
    tz = e20 * wx + e21 * wy + e22 * wz
    out[15], out[16], out[17] = ox + tx, oy + ty, oz + tz
    out[21] = bx + oy * tz - oz * ty + e00 * dx + e01 * dy + e02 * dz
    out[22] = by + oz * tx - ox * tz + e10 * dx + e11 * dy + e12 * dz
    out[23] = bz + ox * ty - oy * tx + e20 * dx + e21 * dy + e22 * dz


@njit(cache=True, nogil=True, error_model="numpy")
def motion_from_channels(jets, anchor, motion):
    """Motion [24] from jets [3, >= 6] of x, y, z, rx, ry, rz and the anchor's rotation [9]."""
    for k in range(9):
        motion[k] = anchor[k]
    for k in range(3):
        motion[9 + k], motion[12 + k], motion[18 + k] = jets[0, k], jets[1, k], jets[2, k]
        motion[15 + k] = 0.0
        motion[21 + k] = 0.0
    _turned_motion(
        jets[0, 3], jets[0, 4], jets[0, 5], jets[1, 3], jets[1, 4], jets[1, 5],
        jets[2, 3], jets[2, 4], jets[2, 5], motion, motion,
    )


@njit(cache=True, nogil=True, error_model="numpy")
def scale_motion(motion, rate, rate_dot):
    """Chain rule in place: derivatives by path time become derivatives by time."""
    for k in range(12, 18):
        v = motion[k]
        motion[k] = v * rate
        motion[k + 6] = motion[k + 6] * rate * rate + v * rate_dot


@njit(cache=True, nogil=True, error_model="numpy")
def blend_motions(old, new, w, w1, w2, out):
    """Blend of two motions with weight ``w`` of the new one and its derivatives w1, w2.

    Positions blend along the straight line, orientations along the shortest rotation between the
    two, exp(w log(R_new R_old^T)) R_old, exact in velocity and acceleration. It does not depend on
    the anchors the references were written with. Turns of half a revolution between the two have
    no shortest way and must be refused beforehand. ``out`` may be either of them.
    """
    if w <= 0.0 and w1 == 0.0 and w2 == 0.0:
        for k in range(24):
            out[k] = old[k]
        return
    if w >= 1.0:
        for k in range(24):
            out[k] = new[k]
        return
    for k in range(3):
        p, v, a = old[9 + k], old[12 + k], old[18 + k]
        dp, dv, da = new[9 + k] - p, new[12 + k] - v, new[18 + k] - a
        out[9 + k] = p + w * dp
        out[12 + k] = v + w * dv + w1 * dp
        out[18 + k] = a + w * da + 2.0 * w1 * dv + w2 * dp
    x, y, z, vx, vy, vz, ax, ay, az = _vector_jet(old, new)
    _turned_motion(
        w * x, w * y, w * z,
        w1 * x + w * vx, w1 * y + w * vy, w1 * z + w * vz,
        w2 * x + 2.0 * w1 * vx + w * ax,
        w2 * y + 2.0 * w1 * vy + w * ay,
        w2 * z + 2.0 * w1 * vz + w * az,
        old, out,
    )


@njit(cache=True, nogil=True, error_model="numpy")
def _vector_jet(old, new):
    """Jet (value, rate, acceleration; nine numbers) of log(R_new R_old^T) of two motions."""
    x, y, z = vector_between(old, new)
    # E = R_new R_old^T turns with w_new - E w_old; E w = w + A r x w + B r x (r x w)
    a, b, _, _, _ = rotation_coefficients(x * x + y * y + z * z)
    wx, wy, wz = old[15], old[16], old[17]
    px, py, pz = y * wz - z * wy, z * wx - x * wz, x * wy - y * wx
    ex = wx + a * px + b * (y * pz - z * py)
    ey = wy + a * py + b * (z * px - x * pz)
    ez = wz + a * pz + b * (x * py - y * px)
    ox, oy, oz = new[15] - ex, new[16] - ey, new[17] - ez
    wx, wy, wz = old[21], old[22], old[23]
    px, py, pz = y * wz - z * wy, z * wx - x * wz, x * wy - y * wx
    dx = new[21] - (oy * ez - oz * ey) - wx - a * px - b * (y * pz - z * py)
    dy = new[22] - (oz * ex - ox * ez) - wy - a * py - b * (z * px - x * pz)
    dz = new[23] - (ox * ey - oy * ex) - wz - a * pz - b * (x * py - y * px)
    vx, vy, vz = vector_rate(x, y, z, ox, oy, oz)
    ax, ay, az = vector_acceleration(x, y, z, vx, vy, vz, dx, dy, dz)
    return x, y, z, vx, vy, vz, ax, ay, az


@njit(cache=True, nogil=True, error_model="numpy")
def _quintic(p0, v0, a0, p1, v1, a1, u):
    """Quintic through two jets over a unit interval at u: value, first, second derivative."""
    d = p1 - p0 - v0 - 0.5 * a0
    e = v1 - v0 - a0
    f = a1 - a0
    c3 = 10.0 * d - 4.0 * e + 0.5 * f
    c4 = -15.0 * d + 7.0 * e - f
    c5 = 6.0 * d - 3.0 * e + 0.5 * f
    value = p0 + u * (v0 + u * (0.5 * a0 + u * (c3 + u * (c4 + u * c5))))
    first = v0 + u * (a0 + u * (3.0 * c3 + u * (4.0 * c4 + u * 5.0 * c5)))
    second = a0 + u * (6.0 * c3 + u * (12.0 * c4 + u * 20.0 * c5))
    return value, first, second


@njit(cache=True, nogil=True, error_model="numpy")
def interpolate_motions(a, b, interval_s, u, out):
    """Motion at share ``u`` in [0, 1] of the time ``interval_s`` between motions a and b.

    Quintic in position and in the rotation vector from a; meets both motions in all derivatives.
    """
    h = interval_s
    for k in range(3):
        out[9 + k], first, second = _quintic(
            a[9 + k], a[12 + k] * h, a[18 + k] * h * h,
            b[9 + k], b[12 + k] * h, b[18 + k] * h * h, u,
        )
        out[12 + k], out[18 + k] = first / h, second / (h * h)
    for k in range(9):
        out[k] = a[k]
    for k in range(3):  # the chart is a's orientation, which does not move
        out[15 + k] = 0.0
        out[21 + k] = 0.0
    x, y, z = vector_between(a, b)
    vx, vy, vz = vector_rate(x, y, z, b[15], b[16], b[17])
    ax, ay, az = vector_acceleration(x, y, z, vx, vy, vz, b[21], b[22], b[23])
    rx, sx, tx = _quintic(0.0, a[15] * h, a[21] * h * h, x, vx * h, ax * h * h, u)
    ry, sy, ty = _quintic(0.0, a[16] * h, a[22] * h * h, y, vy * h, ay * h * h, u)
    rz, sz, tz = _quintic(0.0, a[17] * h, a[23] * h * h, z, vz * h, az * h * h, u)
    hh = h * h
    _turned_motion(rx, ry, rz, sx / h, sy / h, sz / h, tx / hh, ty / hh, tz / hh, out, out)
