"""Hand-over from one reference to the next with exact derivatives.

Phi = (1 - s) Phi_old + s Phi_new, s a quintic smoothstep in time from ``seam_s`` over ``blend_s``.
s and its first two derivatives match at both ends, so value, velocity and acceleration stay
continuous; jerk is exact but may step at the two ends.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from niaf_field.jit import strict_kernel

F64 = NDArray[np.float64]


@strict_kernel
def smoothstep5(x: float) -> tuple[float, float, float, float]:
    """Quintic smoothstep and its first three derivatives with respect to x.

    Below 0: (0, 0, 0, 0); above 1: (1, 0, 0, 0). NaN stays NaN.
    """
    if x <= 0.0:
        return 0.0, 0.0, 0.0, 0.0
    if x >= 1.0:
        return 1.0, 0.0, 0.0, 0.0
    y = 1.0 - x
    value = x * x * x * (10.0 + x * (6.0 * x - 15.0))
    first = 30.0 * x * x * y * y
    second = 60.0 * x * y * (1.0 - 2.0 * x)
    third = 60.0 - 360.0 * x * y
    return value, first, second, third


@strict_kernel
def blend_jets(old: F64, new: F64, t_s: float, seam_s: float, blend_s: float, out: F64) -> None:
    """Blend two jets [order + 1, D] taken at the same instant; the order (0 to 3) is out's.

    Before ``seam_s`` the result is old, after ``seam_s + blend_s`` it is new, exactly. blend_s <= 0
    is a plain switch at the seam. out may be old or new.
    """
    rows, channels = out.shape
    elapsed_s = t_s - seam_s
    if elapsed_s < 0.0 or (elapsed_s == 0.0 and blend_s > 0.0):
        for n in range(rows):
            for d in range(channels):
                out[n, d] = old[n, d]
        return
    if elapsed_s >= blend_s:
        for n in range(rows):
            for d in range(channels):
                out[n, d] = new[n, d]
        return
    rate = 1.0 / blend_s
    s0, s1, s2, s3 = smoothstep5(elapsed_s * rate)
    s1 *= rate
    s2 *= rate * rate
    s3 *= rate * rate * rate
    for d in range(channels):
        d0 = new[0, d] - old[0, d]
        v0 = old[0, d] + s0 * d0
        if rows > 1:
            d1 = new[1, d] - old[1, d]
            v1 = old[1, d] + s0 * d1 + s1 * d0
            if rows > 2:
                d2 = new[2, d] - old[2, d]
                v2 = old[2, d] + s0 * d2 + 2.0 * s1 * d1 + s2 * d0
                if rows > 3:
                    d3 = new[3, d] - old[3, d]
                    out[3, d] = old[3, d] + s0 * d3 + 3.0 * s1 * d2 + 3.0 * s2 * d1 + s3 * d0
                out[2, d] = v2
            out[1, d] = v1
        out[0, d] = v0
