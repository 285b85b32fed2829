"""Compiled evaluation of an action field: value and derivatives up to jerk in one pass.

Per sine layer, with a = W h + b (omega0 already folded into W and b):

    h    =  sin a
    h'   =  cos a  a'
    h''  =  cos a  a'' - sin a  a'^2
    h''' =  cos a (a''' - a'^3) - 3 sin a  a' a''

The matrix product handles four rows and all jets at once, so that each weight is loaded once and
the sums stay in registers; sine and cosine share one range reduction and are branch-free.
``jets_reference`` says the same plainly; the tests hold the two together.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from niaf_field.jit import kernel, ordered_kernel, strict_kernel

F64 = NDArray[np.float64]

MAX_ORDER = 3

# 1.5 * 2^52: adding and subtracting it rounds a float64 to the nearest integer.
_ROUND = 6755399441055744.0
_TWO_OVER_PI = 0.6366197723675814
# pi/2 in three parts of 33 bits (fdlibm): k * part is exact for |k| < 2^20.
_PIO2_1 = 1.57079632673412561417e00
_PIO2_2 = 6.07710050630396597660e-11
_PIO2_3 = 2.02226624871116645580e-21
# Beyond this the split reduction loses digits and the C library takes over.
_POLYNOMIAL_RANGE = 1.0e6

_S1 = -1.66666666666666307295e-1
_S2 = 8.33333333332211858878e-3
_S3 = -1.98412698295895385996e-4
_S4 = 2.75573136213857245213e-6
_S5 = -2.50507477628578072866e-8
_S6 = 1.58962301576546568060e-10
_C1 = 4.16666666666665929218e-2
_C2 = -1.38888888888730564116e-3
_C3 = 2.48015872888517045348e-5
_C4 = -2.75573141792967388112e-7
_C5 = 2.08757008419747316778e-9
_C6 = -1.13585365213876817300e-11


def siren_work_size(width: int) -> int:
    """Length of the float64 scratch vector that ``siren_jets`` needs for width H."""
    return 9 * width


@ordered_kernel
def _sin_cos(angle):  # type: ignore[no-untyped-def]
    """(sin, cos) of an angle of magnitude below _POLYNOMIAL_RANGE; NaN stays NaN."""
    k = (angle * _TWO_OVER_PI + _ROUND) - _ROUND
    r = ((angle - k * _PIO2_1) - k * _PIO2_2) - k * _PIO2_3
    turns = ((0.25 * k - 0.375) + _ROUND) - _ROUND
    quadrant = k - 4.0 * turns
    z = r * r
    s = r + r * z * (_S1 + z * (_S2 + z * (_S3 + z * (_S4 + z * (_S5 + z * _S6)))))
    c = (1.0 - 0.5 * z) + z * z * (_C1 + z * (_C2 + z * (_C3 + z * (_C4 + z * (_C5 + z * _C6)))))
    swapped = abs(quadrant - 2.0) == 1.0
    sine = c if swapped else s
    cosine = s if swapped else c
    sine = -sine if quadrant > 1.5 else sine
    cosine = -cosine if abs(quadrant - 1.5) < 1.0 else cosine
    return sine, cosine


@strict_kernel
def _sin_cos_into(angle: F64, sine: F64, cosine: F64) -> None:
    """Sine and cosine of a vector [H]."""
    n = angle.shape[0]
    large = 0
    for i in range(n):
        large += abs(angle[i]) > _POLYNOMIAL_RANGE
    if large == 0:
        for i in range(n):
            s, c = _sin_cos(angle[i])
            sine[i] = s
            cosine[i] = c
    else:
        for i in range(n):
            sine[i] = math.sin(angle[i])
            cosine[i] = math.cos(angle[i])


@kernel
def _affine0(w: F64, b: F64, h0: F64, a0: F64) -> None:
    """a0 [R] = w [R, H] h0 [H] + b [R]."""
    rows, width = w.shape
    blocked = rows - rows % 4
    for i in range(0, blocked, 4):
        w0, w1, w2, w3 = w[i], w[i + 1], w[i + 2], w[i + 3]
        s0 = s1 = s2 = s3 = 0.0
        for k in range(width):
            x0 = h0[k]
            s0 += w0[k] * x0
            s1 += w1[k] * x0
            s2 += w2[k] * x0
            s3 += w3[k] * x0
        a0[i] = s0 + b[i]
        a0[i + 1] = s1 + b[i + 1]
        a0[i + 2] = s2 + b[i + 2]
        a0[i + 3] = s3 + b[i + 3]
    for i in range(blocked, rows):
        w0 = w[i]
        s0 = 0.0
        for k in range(width):
            s0 += w0[k] * h0[k]
        a0[i] = s0 + b[i]


@kernel
def _affine1(w: F64, b: F64, h0: F64, h1: F64, a0: F64, a1: F64) -> None:
    """The same for value and first derivative."""
    rows, width = w.shape
    blocked = rows - rows % 4
    for i in range(0, blocked, 4):
        w0, w1, w2, w3 = w[i], w[i + 1], w[i + 2], w[i + 3]
        s00 = s10 = s20 = s30 = 0.0
        s01 = s11 = s21 = s31 = 0.0
        for k in range(width):
            x0 = h0[k]
            x1 = h1[k]
            v = w0[k]
            s00 += v * x0
            s01 += v * x1
            v = w1[k]
            s10 += v * x0
            s11 += v * x1
            v = w2[k]
            s20 += v * x0
            s21 += v * x1
            v = w3[k]
            s30 += v * x0
            s31 += v * x1
        a0[i] = s00 + b[i]
        a0[i + 1] = s10 + b[i + 1]
        a0[i + 2] = s20 + b[i + 2]
        a0[i + 3] = s30 + b[i + 3]
        a1[i] = s01
        a1[i + 1] = s11
        a1[i + 2] = s21
        a1[i + 3] = s31
    for i in range(blocked, rows):
        w0 = w[i]
        s00 = s01 = 0.0
        for k in range(width):
            v = w0[k]
            s00 += v * h0[k]
            s01 += v * h1[k]
        a0[i] = s00 + b[i]
        a1[i] = s01


@kernel
def _affine2(w: F64, b: F64, h0: F64, h1: F64, h2: F64, a0: F64, a1: F64, a2: F64) -> None:
    """The same up to the second derivative."""
    rows, width = w.shape
    blocked = rows - rows % 4
    for i in range(0, blocked, 4):
        w0, w1, w2, w3 = w[i], w[i + 1], w[i + 2], w[i + 3]
        s00 = s10 = s20 = s30 = 0.0
        s01 = s11 = s21 = s31 = 0.0
        s02 = s12 = s22 = s32 = 0.0
        for k in range(width):
            x0 = h0[k]
            x1 = h1[k]
            x2 = h2[k]
            v = w0[k]
            s00 += v * x0
            s01 += v * x1
            s02 += v * x2
            v = w1[k]
            s10 += v * x0
            s11 += v * x1
            s12 += v * x2
            v = w2[k]
            s20 += v * x0
            s21 += v * x1
            s22 += v * x2
            v = w3[k]
            s30 += v * x0
            s31 += v * x1
            s32 += v * x2
        a0[i] = s00 + b[i]
        a0[i + 1] = s10 + b[i + 1]
        a0[i + 2] = s20 + b[i + 2]
        a0[i + 3] = s30 + b[i + 3]
        a1[i] = s01
        a1[i + 1] = s11
        a1[i + 2] = s21
        a1[i + 3] = s31
        a2[i] = s02
        a2[i + 1] = s12
        a2[i + 2] = s22
        a2[i + 3] = s32
    for i in range(blocked, rows):
        w0 = w[i]
        s00 = s01 = s02 = 0.0
        for k in range(width):
            v = w0[k]
            s00 += v * h0[k]
            s01 += v * h1[k]
            s02 += v * h2[k]
        a0[i] = s00 + b[i]
        a1[i] = s01
        a2[i] = s02


@kernel
def _affine3(
    w: F64, b: F64, h0: F64, h1: F64, h2: F64, h3: F64, a0: F64, a1: F64, a2: F64, a3: F64
) -> None:
    """The same up to the third derivative."""
    rows, width = w.shape
    blocked = rows - rows % 4
    for i in range(0, blocked, 4):
        w0, w1, w2, w3 = w[i], w[i + 1], w[i + 2], w[i + 3]
        s00 = s10 = s20 = s30 = 0.0
        s01 = s11 = s21 = s31 = 0.0
        s02 = s12 = s22 = s32 = 0.0
        s03 = s13 = s23 = s33 = 0.0
        for k in range(width):
            x0 = h0[k]
            x1 = h1[k]
            x2 = h2[k]
            x3 = h3[k]
            v = w0[k]
            s00 += v * x0
            s01 += v * x1
            s02 += v * x2
            s03 += v * x3
            v = w1[k]
            s10 += v * x0
            s11 += v * x1
            s12 += v * x2
            s13 += v * x3
            v = w2[k]
            s20 += v * x0
            s21 += v * x1
            s22 += v * x2
            s23 += v * x3
            v = w3[k]
            s30 += v * x0
            s31 += v * x1
            s32 += v * x2
            s33 += v * x3
        a0[i] = s00 + b[i]
        a0[i + 1] = s10 + b[i + 1]
        a0[i + 2] = s20 + b[i + 2]
        a0[i + 3] = s30 + b[i + 3]
        a1[i] = s01
        a1[i + 1] = s11
        a1[i + 2] = s21
        a1[i + 3] = s31
        a2[i] = s02
        a2[i + 1] = s12
        a2[i + 2] = s22
        a2[i + 3] = s32
        a3[i] = s03
        a3[i + 1] = s13
        a3[i + 2] = s23
        a3[i + 3] = s33
    for i in range(blocked, rows):
        w0 = w[i]
        s00 = s01 = s02 = s03 = 0.0
        for k in range(width):
            v = w0[k]
            s00 += v * h0[k]
            s01 += v * h1[k]
            s02 += v * h2[k]
            s03 += v * h3[k]
        a0[i] = s00 + b[i]
        a1[i] = s01
        a2[i] = s02
        a3[i] = s03


@kernel
def _chain(
    order: int, s: F64, c: F64, a1: F64, a2: F64, a3: F64, h1: F64, h2: F64, h3: F64
) -> None:
    """Jets of sin a from sine, cosine and the jets of a, one output at a time (vectorises)."""
    n = s.shape[0]
    if order >= 1:
        for i in range(n):
            h1[i] = c[i] * a1[i]
    if order >= 2:
        for i in range(n):
            h2[i] = c[i] * a2[i] - s[i] * (a1[i] * a1[i])
    if order >= 3:
        for i in range(n):
            h3[i] = c[i] * (a3[i] - a1[i] * a1[i] * a1[i]) - 3.0 * s[i] * a1[i] * a2[i]


@kernel
def _first_layer(
    order: int, w: F64, b: F64, tau: float, a0: F64, s: F64, c: F64, h1: F64, h2: F64, h3: F64
) -> None:
    """Layer one: its input is tau, so a' = w and the higher derivatives of a vanish."""
    n = w.shape[0]
    for i in range(n):
        a0[i] = w[i] * tau + b[i]
    _sin_cos_into(a0, s, c)
    if order >= 1:
        for i in range(n):
            h1[i] = c[i] * w[i]
    if order >= 2:
        for i in range(n):
            h2[i] = -s[i] * (w[i] * w[i])
    if order >= 3:
        for i in range(n):
            h3[i] = -c[i] * (w[i] * w[i] * w[i])


@kernel
def siren_jets(
    weights: F64,
    L: int,
    H: int,
    D: int,
    tau: float,
    two_over_T: float,
    order: int,
    out: F64,
    work: F64,
) -> None:
    """Value and derivatives of a folded field at tau, in physical units. No allocation, no GIL.

    weights: flat buffer of ``fold``; tau: dimensionless, -1 at the start, +1 at the end of the
    horizon; two_over_T: 2 / horizon (1/s); order: 0 to 3; out [>= order + 1, D] receives the n-th
    time derivative in row n (channel unit / s^n); work [siren_work_size(H)] is scratch.
    """
    a0 = work[0:H]
    a1 = work[H : 2 * H]
    a2 = work[2 * H : 3 * H]
    a3 = work[3 * H : 4 * H]
    h0 = work[4 * H : 5 * H]
    h1 = work[5 * H : 6 * H]
    h2 = work[6 * H : 7 * H]
    h3 = work[7 * H : 8 * H]
    c = work[8 * H : 9 * H]
    _first_layer(order, weights[0:H], weights[H : 2 * H], tau, a0, h0, c, h1, h2, h3)
    at = 2 * H
    for _ in range(L - 1):
        w = weights[at : at + H * H].reshape((H, H))
        b = weights[at + H * H : at + H * H + H]
        at += H * H + H
        if order == 0:
            _affine0(w, b, h0, a0)
        elif order == 1:
            _affine1(w, b, h0, h1, a0, a1)
        elif order == 2:
            _affine2(w, b, h0, h1, h2, a0, a1, a2)
        else:
            _affine3(w, b, h0, h1, h2, h3, a0, a1, a2, a3)
        _sin_cos_into(a0, h0, c)
        _chain(order, h0, c, a1, a2, a3, h1, h2, h3)
    w = weights[at : at + D * H].reshape((D, H))
    b = weights[at + D * H : at + D * H + D]
    if order == 0:
        _affine0(w, b, h0, out[0])
    elif order == 1:
        _affine1(w, b, h0, h1, out[0], out[1])
    elif order == 2:
        _affine2(w, b, h0, h1, h2, out[0], out[1], out[2])
    else:
        _affine3(w, b, h0, h1, h2, h3, out[0], out[1], out[2], out[3])
    factor = 1.0
    for n in range(1, order + 1):
        factor *= two_over_T
        for d in range(D):
            out[n, d] *= factor


@strict_kernel
def field_jets(
    weights: F64,
    L: int,
    H: int,
    D: int,
    start_s: float,
    horizon_s: float,
    t_s: float,
    order: int,
    out: F64,
    work: F64,
) -> None:
    """``siren_jets`` at an instant; outside the horizon the end value with zero derivatives.

    The instant of either end itself belongs to the horizon (derivatives are not zeroed there).
    """
    two_over_T = 2.0 / horizon_s
    # Compared as a sum, so that t_s = start_s + horizon_s is inside after rounding too.
    if t_s < start_s or t_s > start_s + horizon_s:
        tau = -1.0 if t_s < start_s else 1.0
        siren_jets(weights, L, H, D, tau, two_over_T, 0, out, work)
        for n in range(1, order + 1):
            for d in range(D):
                out[n, d] = 0.0
    else:
        siren_jets(
            weights, L, H, D, (t_s - start_s) * two_over_T - 1.0, two_over_T, order, out, work
        )


@strict_kernel
def field_jets_many(
    weights: F64,
    L: int,
    H: int,
    D: int,
    start_s: float,
    horizon_s: float,
    t_s: F64,
    order: int,
    out: F64,
    work: F64,
) -> None:
    """``field_jets`` for every instant of t_s [K] into out [K, >= order + 1, D]."""
    for k in range(t_s.shape[0]):
        field_jets(weights, L, H, D, start_s, horizon_s, t_s[k], order, out[k], work)


@kernel
def time_scale_jets(
    jets: F64, sigma_dot: float, sigma_ddot: float, sigma_dddot: float, out: F64
) -> None:
    """Time derivatives of Phi(sigma(t)) from derivatives of Phi in sigma (chain rule).

    jets [order + 1, D]: n-th derivative of Phi with respect to path time sigma, order 0 to 3.
    sigma_dot is dimensionless, sigma_ddot 1/s, sigma_dddot 1/s^2. out has the shape of jets and may
    be the same array.
    """
    rows, channels = jets.shape
    for d in range(channels):
        j0 = jets[0, d]
        out[0, d] = j0
        if rows > 1:
            j1 = jets[1, d]
            if rows > 2:
                j2 = jets[2, d]
                if rows > 3:
                    out[3, d] = (
                        jets[3, d] * (sigma_dot * sigma_dot * sigma_dot)
                        + 3.0 * j2 * sigma_dot * sigma_ddot
                        + j1 * sigma_dddot
                    )
                out[2, d] = j2 * (sigma_dot * sigma_dot) + j1 * sigma_ddot
            out[1, d] = j1 * sigma_dot
