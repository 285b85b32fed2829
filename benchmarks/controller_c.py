"""The machine's own limits: a C kernel of the field and peak rates, built by the system compiler.

The C kernel does what ``niaf_field.jets`` does (four rows and all jets in registers, one shared
range reduction for sine and cosine), written with compiler vectors, so that it shows what hand-made
C reaches here. The peak rates give the arithmetic bound: no program can evaluate a field faster
than its weights can be read once or its multiply-adds can be done.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from niaf_field import FoldedField, aligned_empty

#: the plain choice, and one that uses all vector registers where the compiler is older than the CPU
_TUNINGS = (("-march=native",), ("-march=native", "-mtune=icelake-server"))
_FLAGS = (
    "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math",
    "-fassociative-math", "-fno-signed-zeros", "-freciprocal-math", "-ffp-contract=fast",
)

_SOURCE = r"""
#include <stdint.h>
#include <time.h>
#ifndef LANES
#define LANES 8
#endif
#define UNROLL _Pragma("GCC unroll 16")
typedef double vec __attribute__((vector_size(LANES * 8)));

static inline double sum(vec v) {
    double s = 0; for (int i = 0; i < LANES; ++i) s += v[i]; return s;
}
static inline double seconds(void) {
    struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec;
}

AFFINE_KERNELS
static void affine(int order, const double *w, const double *b, const double *h, double *a,
                   int rows, int width, int stride) {
    if (order == 0) affine0(w, b, h, a, rows, width, stride);
    else if (order == 1) affine1(w, b, h, a, rows, width, stride);
    else if (order == 2) affine2(w, b, h, a, rows, width, stride);
    else affine3(w, b, h, a, rows, width, stride);
}

__attribute__((optimize("no-associative-math")))
static void sin_cos(const double *angle, double *sine, double *cosine, int n) {
    for (int i = 0; i < n; ++i) {
        double k = __builtin_rint(angle[i] * 0.6366197723675814);
        double r = ((angle[i] - k * 1.57079632673412561417e0) - k * 6.07710050630396597660e-11)
                   - k * 2.02226624871116645580e-21;
        double q = k - 4.0 * __builtin_floor(0.25 * k), z = r * r;
        double s = r + r * z * (-1.66666666666666307295e-1 + z * (8.33333333332211858878e-3
            + z * (-1.98412698295895385996e-4 + z * (2.75573136213857245213e-6
            + z * (-2.50507477628578072866e-8 + z * 1.58962301576546568060e-10)))));
        double c = (1.0 - 0.5 * z) + z * z * (4.16666666666665929218e-2
            + z * (-1.38888888888730564116e-3 + z * (2.48015872888517045348e-5
            + z * (-2.75573141792967388112e-7 + z * (2.08757008419747316778e-9
            + z * -1.13585365213876817300e-11)))));
        int swap = (q == 1.0) | (q == 3.0);
        double a = swap ? c : s, d = swap ? s : c;
        sine[i] = q > 1.5 ? -a : a;
        cosine[i] = ((q == 1.0) | (q == 2.0)) ? -d : d;
    }
}

/* work: 9 * width */
void field(const double *weights, int L, int H, int D, double tau, double two_over_T, int order,
           double *out, double *work) {
    double *a = work, *h = work + 4 * H, *c = work + 8 * H;
    const double *w = weights, *b = weights + H;
    for (int i = 0; i < H; ++i) a[i] = w[i] * tau + b[i];
    sin_cos(a, h, c, H);
    for (int i = 0; i < H; ++i) {
        if (order >= 1) h[H + i] = c[i] * w[i];
        if (order >= 2) h[2 * H + i] = -h[i] * w[i] * w[i];
        if (order >= 3) h[3 * H + i] = -c[i] * w[i] * w[i] * w[i];
    }
    w = weights + 2 * H;
    for (int l = 1; l < L; ++l) {
        b = w + (long)H * H;
        affine(order, w, b, h, a, H, H, H);
        sin_cos(a, h, c, H);
        const double *a1 = a + H, *a2 = a + 2 * H, *a3 = a + 3 * H;
        if (order >= 3) for (int i = 0; i < H; ++i)
            h[3 * H + i] = c[i] * (a3[i] - a1[i] * a1[i] * a1[i]) - 3.0 * h[i] * a1[i] * a2[i];
        if (order >= 2) for (int i = 0; i < H; ++i)
            h[2 * H + i] = c[i] * a2[i] - h[i] * a1[i] * a1[i];
        if (order >= 1) for (int i = 0; i < H; ++i) h[H + i] = c[i] * a1[i];
        w = b + H;
    }
    affine(order, w, w + (long)D * H, h, out, D, H, D);
    double factor = 1.0;
    for (int n = 1; n <= order; ++n) {
        factor *= two_over_T;
        for (int d = 0; d < D; ++d) out[n * D + d] *= factor;
    }
}

/* seconds of each of ``count`` evaluations */
void field_times(const double *weights, int L, int H, int D, const double *tau, int order,
                 double *out, double *work, double *times, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        double begin = seconds();
        field(weights, L, H, D, tau[i], 2.0, order, out, work);
        times[i] = seconds() - begin;
    }
}

/* multiply-adds per second in registers */
double peak_fma(int64_t rounds) {
    vec s[12], x = {1}, y = {0};
    UNROLL for (int n = 0; n < 12; ++n) s[n] = (vec){0};
    for (int i = 0; i < LANES; ++i) { x[i] = 1.0 + 1e-9 * i; y[i] = 1e-9; }
    double begin = seconds();
    for (int64_t i = 0; i < rounds; ++i) {
        UNROLL for (int n = 0; n < 12; ++n) s[n] = s[n] * x + y;
        __asm__ volatile("" : "+x"(s[0]), "+x"(s[1]), "+x"(s[2]), "+x"(s[3]), "+x"(s[4]),
                              "+x"(s[5]), "+x"(s[6]), "+x"(s[7]), "+x"(s[8]), "+x"(s[9]),
                              "+x"(s[10]), "+x"(s[11]));
    }
    double took = seconds() - begin, keep = 0;
    UNROLL for (int n = 0; n < 12; ++n) keep += sum(s[n]);
    return keep == 0.0 ? 0.0 : rounds * 12.0 * LANES / took;
}

/* bytes per second of reading ``count`` doubles again and again */
double read_rate(const double *data, int64_t count, int64_t rounds) {
    vec keep[8];
    UNROLL for (int n = 0; n < 8; ++n) keep[n] = (vec){0};
    double begin = seconds();
    for (int64_t r = 0; r < rounds; ++r) {
        for (int64_t i = 0; i + 8 * LANES <= count; i += 8 * LANES)
            UNROLL for (int n = 0; n < 8; ++n) keep[n] += *(const vec *)(data + i + n * LANES);
        __asm__ volatile("" ::: "memory");
    }
    double took = seconds() - begin, total = 0;
    UNROLL for (int n = 0; n < 8; ++n) total += sum(keep[n]);
    return total == 1.0 ? 0.0 : rounds * (count / (8 * LANES)) * 8.0 * LANES * 8.0 / took;
}

/* seconds of one sine and cosine, over a vector of n */
double sin_cos_cost(const double *angle, double *sine, double *cosine, int n, int64_t rounds) {
    double best = 1e9;
    for (int64_t r = 0; r < rounds; ++r) {
        double begin = seconds();
        for (int i = 0; i < 20; ++i) {
            sin_cos(angle, sine, cosine, n);
            __asm__ volatile("" ::: "memory");
        }
        double took = (seconds() - begin) / (20.0 * n);
        if (took < best) best = took;
    }
    return best;
}
"""


def _affine(jets: int, rows: int = 4) -> str:
    """C function a[n] = w h[n] (+ b for n = 0), ``rows`` rows and all jets in named registers."""
    block = [(r, n) for r in range(rows) for n in range(jets)]
    lines = [
        f"static void affine{jets - 1}(const double *w, const double *b, const double *h,",
        "                    double *a, int rows, int width, int stride) {",
        f"for (int i = 0; i < rows; i += {rows}) {{",
        "vec " + ", ".join(f"s{r}{n} = {{0}}" for r, n in block) + ";",
        "const double *q = w + (long)i * width;",
        "for (int k = 0; k < width; k += LANES) {",
        "vec v, " + ", ".join(f"x{n} = *(const vec *)(h + {n} * width + k)" for n in range(jets)),
        ";",
    ]
    for r in range(rows):
        lines.append(f"v = *(const vec *)(q + {r} * width + k);")
        lines += [f"s{r}{n} += v * x{n};" for n in range(jets)]
    lines.append("}")
    lines += [
        f"a[{n} * stride + i + {r}] = sum(s{r}{n})" + (f" + b[i + {r}];" if n == 0 else ";")
        for r, n in block
    ]
    return "\n".join([*lines, "} }"])


@dataclass(frozen=True)
class Bound:
    """Seconds that one evaluation needs at least, by what limits it."""

    multiply_add_s: float
    reading_s: float
    sine_s: float

    @property
    def total_s(self) -> float:
        """Reading overlaps with arithmetic; the sines do not overlap with the products."""
        return max(self.multiply_add_s, self.reading_s) + self.sine_s


class CLibrary:
    """The compiled C source. ``None`` from ``build`` where there is no compiler."""

    def __init__(self, library: ctypes.CDLL, compiler: str) -> None:
        self._library, self.compiler = library, compiler
        self._read_rates: dict[int, float] = {}
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        library.field.argtypes = [
            pointer, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_double, ctypes.c_double,
            ctypes.c_int, pointer, pointer,
        ]
        library.field_times.argtypes = [
            pointer, ctypes.c_int, ctypes.c_int, ctypes.c_int, pointer, ctypes.c_int, pointer,
            pointer, pointer, number,
        ]
        library.peak_fma.argtypes, library.peak_fma.restype = [number], ctypes.c_double
        library.read_rate.argtypes = [pointer, number, number]
        library.read_rate.restype = ctypes.c_double
        library.sin_cos_cost.argtypes = [pointer, pointer, pointer, ctypes.c_int, number]
        library.sin_cos_cost.restype = ctypes.c_double

    def field(
        self, folded: FoldedField, tau: float, two_over_T: float, order: int, out: np.ndarray,
        work: np.ndarray,
    ) -> None:
        self._library.field(
            folded.weights.ctypes.data, folded.L, folded.H, folded.D, tau, two_over_T, order,
            out.ctypes.data, work.ctypes.data,
        )

    def field_times(
        self, folded: FoldedField, taus: np.ndarray, order: int, out: np.ndarray, work: np.ndarray,
        times: np.ndarray,
    ) -> None:
        """Fill ``times`` [K] with the seconds of each evaluation at ``taus`` [K]."""
        self._library.field_times(
            folded.weights.ctypes.data, folded.L, folded.H, folded.D, taus.ctypes.data, order,
            out.ctypes.data, work.ctypes.data, times.ctypes.data, times.size,
        )

    # The best of many short bursts: a rate is what the machine can do when nobody disturbs it.
    @cached_property
    def multiply_adds_per_s(self) -> float:
        return max(self._library.peak_fma(40_000) for _ in range(200))

    def read_bytes_per_s(self, doubles: int) -> float:
        """From the cache level that a buffer of this many float64 lives in."""
        if doubles not in self._read_rates:
            data = aligned_empty(doubles)
            data[:] = 0.0
            rounds = max(1, 400_000 // doubles)
            self._read_rates[doubles] = max(
                self._library.read_rate(data.ctypes.data, doubles, rounds) for _ in range(200)
            )
        return self._read_rates[doubles]

    def sin_cos_s(self, width: int) -> float:
        angle = np.linspace(-30.0, 30.0, width)
        sine, cosine = np.empty(width), np.empty(width)
        return float(self._library.sin_cos_cost(
            angle.ctypes.data, sine.ctypes.data, cosine.ctypes.data, width, 200))

    def bound(self, folded: FoldedField, order: int) -> Bound:
        """The arithmetic lower bound of one evaluation up to ``order`` on this machine."""
        products = (folded.L - 1) * folded.H**2 + folded.D * folded.H
        return Bound(
            (order + 1) * products / self.multiply_adds_per_s,
            folded.weights.nbytes / self.read_bytes_per_s(folded.weights.size),
            folded.L * folded.H * self.sin_cos_s(folded.H),
        )


def build() -> list[CLibrary]:
    """The kernel with vectors of 32 and of 64 bytes; empty where there is no C compiler."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc") or ""
    libraries = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.c"
        source.write_text(
            _SOURCE.replace("AFFINE_KERNELS", "\n".join(_affine(jets) for jets in range(1, 5)))
        )
        for number, (tuning, lanes) in enumerate(itertools.product(_TUNINGS, (4, 8))):
            target = Path(folder) / f"kernel{number}.so"
            command = [compiler, *_FLAGS, *tuning, f"-DLANES={lanes}", str(source)]
            command += ["-o", str(target), "-lm"]
            if not compiler or subprocess.run(command, capture_output=True).returncode != 0:
                continue
            name = f"{Path(compiler).name} -O3 {' '.join(tuning)} with {8 * lanes}-byte vectors"
            libraries.append(CLibrary(ctypes.CDLL(str(target)), name))
    return libraries
