"""Compiled recursive Newton-Euler for trees of one-degree-of-freedom joints.

Constants are read once from a pinocchio model (:mod:`niaf_impedance.arm_model`), which also checks
this routine against pinocchio; the routine itself needs neither the GIL nor memory.

Model row per joint, float64[28]: placement in the parent frame, rotation row-major [0:9] and
translation [9:12]; joint axis [12:15] in the joint frame; mass [15]; centre of mass [16:19];
inertia about the centre of mass, row-major [19:28]. ``kind[i]``: 0 revolute, 1 prismatic.
"""

from __future__ import annotations

import numpy as np
from numba import njit

FloatArray = np.ndarray

MODEL_COLUMNS = 28
REVOLUTE, PRISMATIC = 0, 1
#: scratch columns per joint: R[9] p[3] w[3] wd[3] a[3] f[3] n[3]
WORK_COLUMNS = 27


@njit(cache=True, nogil=True, error_model="numpy")
def rnea(model, parent, kind, gravity, q, dq, ddq, work, tau):  # type: ignore[no-untyped-def]
    """Inverse dynamics: writes ``tau`` [n] for state ``q, dq`` and acceleration ``ddq`` [n].

    model [n, 28], parent int64[n] (-1 = base), kind int64[n], gravity [3] in the base frame,
    work [n, 27] scratch.
    """
    n = model.shape[0]
    for i in range(n):
        m = model[i]
        w = work[i]
        zx, zy, zz = m[12], m[13], m[14]
        if kind[i] == 0:
            c, s = np.cos(q[i]), np.sin(q[i])
            v = 1.0 - c
            j00, j01, j02 = c + v * zx * zx, v * zx * zy - s * zz, v * zx * zz + s * zy
            j10, j11, j12 = v * zx * zy + s * zz, c + v * zy * zy, v * zy * zz - s * zx
            j20, j21, j22 = v * zx * zz - s * zy, v * zy * zz + s * zx, c + v * zz * zz
            for r in range(3):
                a0, a1, a2 = m[3 * r], m[3 * r + 1], m[3 * r + 2]
                w[3 * r] = a0 * j00 + a1 * j10 + a2 * j20
                w[3 * r + 1] = a0 * j01 + a1 * j11 + a2 * j21
                w[3 * r + 2] = a0 * j02 + a1 * j12 + a2 * j22
                w[9 + r] = m[9 + r]
        else:
            for r in range(3):
                a0, a1, a2 = m[3 * r], m[3 * r + 1], m[3 * r + 2]
                w[3 * r], w[3 * r + 1], w[3 * r + 2] = a0, a1, a2
                w[9 + r] = m[9 + r] + (a0 * zx + a1 * zy + a2 * zz) * q[i]
        p = parent[i]
        if p < 0:
            px, py, pz = 0.0, 0.0, 0.0
            dx, dy, dz = 0.0, 0.0, 0.0
            ax, ay, az = -gravity[0], -gravity[1], -gravity[2]
        else:
            u = work[p]
            px, py, pz = u[12], u[13], u[14]
            dx, dy, dz = u[15], u[16], u[17]
            ax, ay, az = u[18], u[19], u[20]
        rx, ry, rz = w[9], w[10], w[11]
        # acceleration of this frame's origin, in parent axes: a + wd x r + w x (w x r)
        ex, ey, ez = py * rz - pz * ry, pz * rx - px * rz, px * ry - py * rx
        bx = ax + dy * rz - dz * ry + py * ez - pz * ey
        by = ay + dz * rx - dx * rz + pz * ex - px * ez
        bz = az + dx * ry - dy * rx + px * ey - py * ex
        # into this frame
        wx = w[0] * px + w[3] * py + w[6] * pz
        wy = w[1] * px + w[4] * py + w[7] * pz
        wz = w[2] * px + w[5] * py + w[8] * pz
        gx = w[0] * dx + w[3] * dy + w[6] * dz
        gy = w[1] * dx + w[4] * dy + w[7] * dz
        gz = w[2] * dx + w[5] * dy + w[8] * dz
        hx = w[0] * bx + w[3] * by + w[6] * bz
        hy = w[1] * bx + w[4] * by + w[7] * bz
        hz = w[2] * bx + w[5] * by + w[8] * bz
        vi, ai = dq[i], ddq[i]
        cx, cy, cz = (wy * zz - wz * zy) * vi, (wz * zx - wx * zz) * vi, (wx * zy - wy * zx) * vi
        if kind[i] == 0:
            gx, gy, gz = gx + cx + zx * ai, gy + cy + zy * ai, gz + cz + zz * ai
            wx, wy, wz = wx + zx * vi, wy + zy * vi, wz + zz * vi
        else:
            hx += 2.0 * cx + zx * ai
            hy += 2.0 * cy + zy * ai
            hz += 2.0 * cz + zz * ai
        w[12], w[13], w[14] = wx, wy, wz
        w[15], w[16], w[17] = gx, gy, gz
        w[18], w[19], w[20] = hx, hy, hz
        # force and moment about this frame's origin
        mass = m[15]
        kx, ky, kz = m[16], m[17], m[18]
        ex, ey, ez = wy * kz - wz * ky, wz * kx - wx * kz, wx * ky - wy * kx
        fx = mass * (hx + gy * kz - gz * ky + wy * ez - wz * ey)
        fy = mass * (hy + gz * kx - gx * kz + wz * ex - wx * ez)
        fz = mass * (hz + gx * ky - gy * kx + wx * ey - wy * ex)
        lx = m[19] * wx + m[20] * wy + m[21] * wz
        ly = m[22] * wx + m[23] * wy + m[24] * wz
        lz = m[25] * wx + m[26] * wy + m[27] * wz
        nx = m[19] * gx + m[20] * gy + m[21] * gz + wy * lz - wz * ly
        ny = m[22] * gx + m[23] * gy + m[24] * gz + wz * lx - wx * lz
        nz = m[25] * gx + m[26] * gy + m[27] * gz + wx * ly - wy * lx
        w[21], w[22], w[23] = fx, fy, fz
        w[24] = nx + ky * fz - kz * fy
        w[25] = ny + kz * fx - kx * fz
        w[26] = nz + kx * fy - ky * fx
    for i in range(n - 1, -1, -1):
        m = model[i]
        w = work[i]
        if kind[i] == 0:
            tau[i] = m[12] * w[24] + m[13] * w[25] + m[14] * w[26]
        else:
            tau[i] = m[12] * w[21] + m[13] * w[22] + m[14] * w[23]
        p = parent[i]
        if p >= 0:
            u = work[p]
            fx = w[0] * w[21] + w[1] * w[22] + w[2] * w[23]
            fy = w[3] * w[21] + w[4] * w[22] + w[5] * w[23]
            fz = w[6] * w[21] + w[7] * w[22] + w[8] * w[23]
            u[21] += fx
            u[22] += fy
            u[23] += fz
            u[24] += w[0] * w[24] + w[1] * w[25] + w[2] * w[26] + w[10] * fz - w[11] * fy
            u[25] += w[3] * w[24] + w[4] * w[25] + w[5] * w[26] + w[11] * fx - w[9] * fz
            u[26] += w[6] * w[24] + w[7] * w[25] + w[8] * w[26] + w[9] * fy - w[10] * fx


@njit(cache=True, nogil=True, error_model="numpy")
def tool_position(parent, work, tool, out):  # type: ignore[no-untyped-def]
    """Origin of the tool frame in the root frame [3], from the placements that ``rnea`` left in
    ``work``; ``tool`` [12] is the frame in the last joint's frame."""
    x, y, z = tool[9], tool[10], tool[11]
    i = work.shape[0] - 1
    while i >= 0:
        w = work[i]
        x, y, z = (
            w[9] + w[0] * x + w[1] * y + w[2] * z,
            w[10] + w[3] * x + w[4] * y + w[5] * z,
            w[11] + w[6] * x + w[7] * y + w[8] * z,
        )
        i = parent[i]
    out[0], out[1], out[2] = x, y, z
