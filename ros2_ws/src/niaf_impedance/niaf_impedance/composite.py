"""The commanded reference at an instant: slots, their blend, path time. Joint and tool references.

Tables and formats are those of :mod:`niaf_impedance.tick`. Joint references are jets of columns and
blend column by column. Tool references are *tool jets*, float64[27]: a motion (see
:mod:`niaf_impedance.kinematics`), then width, rate and acceleration of the gripper. Their slots
have the columns x, y, z, rx, ry, rz, gripper; the rotation vector turns the orientation that the
last nine values of the slot's buffer hold. Poses are blended as poses, so slots may differ in that
orientation.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from numba import njit

from niaf_field.blend import blend_jets, smoothstep5
from niaf_field.jets import field_jets, time_scale_jets
from niaf_field.spline import spline_jets
from niaf_impedance.kinematics import (
    MOTION_SIZE,
    blend_motions,
    motion_from_channels,
    scale_motion,
    vector_between,
)

SLOTS = 3
KIND_HOLD, KIND_SIREN, KIND_SPLINE = 0, 1, 2
META_KIND, META_A, META_B, META_D, META_BUFFER, META_CHANNEL = 0, 1, 2, 3, 4, 5
SF_START, SF_HORIZON, SF_SEAM, SF_BLEND = 0, 1, 2, 3

#: columns of a tool reference, and the place of the gripper in a tool jet
TOOL_COLUMNS = 7
TOOL_GRIPPER = MOTION_SIZE
TOOL_JET = MOTION_SIZE + 3
#: values at the end of a buffer: the orientation that its rotation channels turn, row-major
ANCHOR = 9


# -- joint references ------------------------------------------------------------------------------
@njit(cache=True, nogil=True)
def _slot_jet(data, meta, sf, gripper_hold, s, raw, work, out):
    """Jet of one slot at path time s, columns gathered into ``out`` [order + 1, n + 1]."""
    rows, columns = out.shape
    kind = meta[META_KIND]
    if kind == KIND_HOLD:
        for c in range(columns):
            out[0, c] = data[c]
            for r in range(1, rows):
                out[r, c] = 0.0
        return
    a, b, d = meta[META_A], meta[META_B], meta[META_D]
    jet = raw[0 : rows * d].reshape((rows, d))
    if kind == KIND_SIREN:
        field_jets(data, a, b, d, sf[SF_START], sf[SF_HORIZON], s, rows - 1, jet, work)
    else:
        coefficients = data[a + 1 : a + 1 + a * 6 * d].reshape((a, 6, d))
        spline_jets(data[0 : a + 1], coefficients, s, rows - 1, jet)
    for c in range(columns):
        channel = meta[META_CHANNEL + c]
        if channel >= 0:
            for r in range(rows):
                out[r, c] = jet[r, channel]
        else:
            out[0, c] = gripper_hold
            for r in range(1, rows):
                out[r, c] = 0.0


@njit(cache=True, nogil=True)
def composite(count, pool, meta, sf, gripper_hold, s, raw, work, tmp, out):
    """Blended reference at path time s: value and path derivatives [order + 1, n + 1] (order 2 or 3
    by the shapes of ``tmp`` and ``out``)."""
    first = 0
    for k in range(1, count):
        if s >= sf[k, SF_SEAM] + sf[k, SF_BLEND]:
            first = k
    for k in range(first, count):
        if k > first and s <= sf[k, SF_SEAM]:
            continue  # weight zero
        data = pool[meta[k, META_BUFFER]]
        if k == first:
            _slot_jet(data, meta[k], sf[k], gripper_hold, s, raw, work, out)
        else:
            _slot_jet(data, meta[k], sf[k], gripper_hold, s, raw, work, tmp)
            blend_jets(out, tmp, s, sf[k, SF_SEAM], sf[k, SF_BLEND], out)


@njit(cache=True, nogil=True)
def path_time(t, brake_at, brake_t):
    """(sigma, its first, second and third derivative, stopped) at clock time t with braking planned
    at brake_at over brake_t."""
    if t <= brake_at or brake_t <= 0.0:
        return t, 1.0, 0.0, 0.0, False
    x = (t - brake_at) / brake_t
    if x >= 1.0:
        return brake_at + 0.5 * brake_t, 0.0, 0.0, 0.0, True
    value, first, second, _ = smoothstep5(x)
    x4 = x * x * x * x
    integral = x4 * (2.5 + x * (x - 3.0))
    sigma = brake_at + brake_t * (x - integral)
    return sigma, 1.0 - value, -first / brake_t, -second / (brake_t * brake_t), False


@njit(cache=True, nogil=True)
def commanded(t, brake_at, brake_t, end, count, pool, meta, sf, hold_width, raw, work, tmp, out):
    """Reference at clock time t, time derivatives, into ``out``; returns (sigma, rate, stopped)."""
    s, rate, rate_dot, rate_ddot, stopped = path_time(t, brake_at, brake_t)
    if brake_t <= 0.0 and t >= end:  # the reference ends at rest by itself
        s, rate, rate_dot, rate_ddot, stopped = end, 0.0, 0.0, 0.0, True
    composite(count, pool, meta, sf, hold_width, s, raw, work, tmp, out)
    if rate != 1.0:
        time_scale_jets(out, rate, rate_dot, rate_ddot, out)
    return s, rate, stopped


# -- tool references -------------------------------------------------------------------------------
@njit(cache=True, nogil=True)
def _tool_slot(data, meta, sf, gripper_hold, s, raw, work, jets, out):
    """Tool jet of one slot at path time s; jets [3, 7] scratch."""
    _slot_jet(data, meta, sf, gripper_hold, s, raw, work, jets)
    motion_from_channels(jets, data[data.shape[0] - ANCHOR :], out)
    for r in range(3):
        out[TOOL_GRIPPER + r] = jets[r, TOOL_COLUMNS - 1]


@njit(cache=True, nogil=True)
def tool_composite(count, pool, meta, sf, gripper_hold, s, raw, work, jets, other, out):
    """Blended tool jet ``out`` [27] at path time s; jets [3, 7] and other [27] scratch."""
    first = 0
    for k in range(1, count):
        if s >= sf[k, SF_SEAM] + sf[k, SF_BLEND]:
            first = k
    _tool_slot(
        pool[meta[first, META_BUFFER]], meta[first], sf[first], gripper_hold, s, raw, work, jets,
        out)
    g = TOOL_GRIPPER
    for k in range(first + 1, count):
        if s <= sf[k, SF_SEAM]:
            continue  # weight zero
        _tool_slot(
            pool[meta[k, META_BUFFER]], meta[k], sf[k], gripper_hold, s, raw, work, jets, other)
        rate = 1.0 / sf[k, SF_BLEND]
        w, w1, w2, _ = smoothstep5((s - sf[k, SF_SEAM]) * rate)
        w1 *= rate
        w2 *= rate * rate
        blend_motions(out, other, w, w1, w2, out)
        d0, d1, d2 = other[g] - out[g], other[g + 1] - out[g + 1], other[g + 2] - out[g + 2]
        out[g] += w * d0
        out[g + 1] += w * d1 + w1 * d0
        out[g + 2] += w * d2 + 2.0 * w1 * d1 + w2 * d0


@njit(cache=True, nogil=True)
def tool_commanded(
    t, brake_at, brake_t, end, count, pool, meta, sf, hold_width, raw, work, jets, other, out
):
    """Tool jet at clock time t, time derivatives, into ``out``; returns (sigma, rate, stopped)."""
    s, rate, rate_dot, _, stopped = path_time(t, brake_at, brake_t)
    if brake_t <= 0.0 and t >= end:  # the reference ends at rest by itself
        s, rate, rate_dot, stopped = end, 0.0, 0.0, True
    tool_composite(count, pool, meta, sf, hold_width, s, raw, work, jets, other, out)
    if rate != 1.0:
        scale_motion(out, rate, rate_dot)
        v = out[TOOL_GRIPPER + 1]
        out[TOOL_GRIPPER + 1] = v * rate
        out[TOOL_GRIPPER + 2] = out[TOOL_GRIPPER + 2] * rate * rate + v * rate_dot
    return s, rate, stopped


@njit(cache=True, nogil=True)
def tool_hold(jet, data):
    """The pose of a tool jet as columns of a held slot: rotation vector from the base's axes."""
    for k in range(ANCHOR):
        data[data.shape[0] - ANCHOR + k] = 0.0
    for k in range(3):
        data[data.shape[0] - ANCHOR + 4 * k] = 1.0
        data[k] = jet[9 + k]
    data[3], data[4], data[5] = vector_between(data[data.shape[0] - ANCHOR :], jet)
    data[TOOL_COLUMNS - 1] = jet[TOOL_GRIPPER]


@njit(cache=True, nogil=True)
def tool_step_between(old, new, out):
    """``new`` minus ``old`` of two tool jets: [3, 6] step of pose, twist, acceleration."""
    for k in range(3):
        out[0, k] = new[9 + k] - old[9 + k]
    out[0, 3], out[0, 4], out[0, 5] = vector_between(old, new)
    for k in range(6):
        out[1, k] = new[12 + k] - old[12 + k]
        out[2, k] = new[18 + k] - old[18 + k]


# -- over a window ---------------------------------------------------------------------------------
@njit(cache=True, nogil=True)
def commanded_many(
    times, brake_at, brake_t, end, count, pool, meta, sf, hold_width, raw, work, tmp, out
):
    """``commanded`` at clock instants ``times`` [K] into ``out`` [K, rows, n + 1]."""
    for i in range(times.shape[0]):
        commanded(times[i], brake_at, brake_t, end, count, pool, meta, sf, hold_width, raw, work,
                  tmp, out[i])


@njit(cache=True, nogil=True)
def tool_commanded_many(
    times, brake_at, brake_t, end, count, pool, meta, sf, hold_width, raw, work, jets, other, out
):
    """``tool_commanded`` at clock instants ``times`` [K] into ``out`` [K, 27]."""
    for i in range(times.shape[0]):
        tool_commanded(times[i], brake_at, brake_t, end, count, pool, meta, sf, hold_width, raw,
                       work, jets, other, out[i])
