"""Time per tick by part, beside the arithmetic bound, a C kernel, numpy and torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import controller_c
import numpy as np
from controller_plain import NumpyField, PlainTick, TorchField
from numba import njit

from niaf_field import (
    ActionField,
    Channel,
    Prior,
    aligned_empty,
    fold,
    initial_prior,
    siren_jets,
    siren_work_size,
)
from niaf_impedance import tick as k
from niaf_impedance.arm_model import ArmModel
from niaf_impedance.controller import ImpedanceController
from niaf_impedance.dynamics import rnea
from niaf_impedance.loop import clock_ns
from niaf_impedance.settings import ControllerConfig

FloatArray = np.ndarray

LAYERS = 3
WIDTHS = (64, 128, 256)
HORIZON_S = 1.0


@dataclass(frozen=True)
class Times:
    """Microseconds of one call."""

    p50: float
    p99: float
    p999: float

    @staticmethod
    def of(seconds: FloatArray, clock_s: float = 0.0) -> Times:
        """Percentiles, less the cost of reading the clock."""
        p50, p99, p999 = np.percentile(seconds, (50.0, 99.0, 99.9)) - clock_s
        return Times(float(p50) * 1e6, float(p99) * 1e6, float(p999) * 1e6)


@njit(nogil=True)
def _clock_times(timespec, times):  # type: ignore[no-untyped-def]
    for i in range(times.shape[0]):
        begin = clock_ns(1, timespec)
        times[i] = (clock_ns(1, timespec) - begin) * 1e-9


@njit(nogil=True)
def _field_times(weights, L, H, D, taus, order, out, work, timespec, times):  # type: ignore[no-untyped-def]
    for i in range(times.shape[0]):
        begin = clock_ns(1, timespec)
        siren_jets(weights, L, H, D, taus[i], 2.0, order, out, work)
        times[i] = (clock_ns(1, timespec) - begin) * 1e-9


@njit(nogil=True)
def _rnea_times(  # type: ignore[no-untyped-def]
    model, parent, kind, gravity, q, dq, ddq, work, tau, timespec, times
):
    for i in range(times.shape[0]):
        begin = clock_ns(1, timespec)
        rnea(model, parent, kind, gravity, q, dq, ddq, work, tau)
        times[i] = (clock_ns(1, timespec) - begin) * 1e-9


@njit(nogil=True)
def _tick_times(t0, dt, q, dq, arguments, timespec, times):  # type: ignore[no-untyped-def]
    for i in range(times.shape[0]):
        begin = clock_ns(1, timespec)
        k.tick(t0 + dt * i, q, dq, *arguments)
        times[i] = (clock_ns(1, timespec) - begin) * 1e-9


def make_prior(arm: ArmModel, width: int) -> Prior:
    """A prior of the shipped shape with random weights and ``full`` modulation."""
    joints = tuple(
        Channel(name, "rad", "joint_position", "relative", 0.0, 0.05) for name in arm.joint_names
    )
    gripper = Channel("gripper", "m", "gripper", "absolute", 0.04, 0.02)
    return initial_prior(
        (*joints, gripper), sine_layers=LAYERS, width=width, omega0=4.0, horizon_s=HORIZON_S,
        gamma_kind="full", seed=1,
    )


def make_field(
    prior: Prior, q: FloatArray, start_s: float, sequence: int, strength: float = 0.2
) -> ActionField:
    rng = np.random.default_rng(sequence)
    gamma = strength * rng.normal(size=prior.gamma_length)
    beta = strength * rng.normal(size=prior.beta_length)
    folded = fold(prior, gamma, beta, np.append(q, 0.0))
    return ActionField(folded, start_s, prior.horizon_s, sequence, start_s, prior.prior_id)


#: one pose is fed for ever here, which a real arm under a moving reference does not report
_CONFIG = ControllerConfig(state_timeout_s=10.0, frozen_reference_rad=0.0, frozen_motion_rad=0.0)


def tracking_controller(arm: ArmModel, prior: Prior) -> tuple[ImpedanceController, ActionField]:
    """A controller in TRACK at t = 0.2 s, past the blend, and the field it follows."""
    controller = ImpedanceController(_CONFIG, arm, prior)
    home, zero = arm.config.home_rad, np.zeros(arm.n)
    controller.activate(0.0, home, zero)
    controller.tick(0.001, home, zero)
    field = make_field(prior, home, 0.001, 1)
    verdict = controller.offer(0.001, field)
    assert verdict.accepted and verdict.time_scale == 1.0, verdict.text
    for i in range(1, 200):
        controller.tick(0.001 * (i + 1), home, zero)
    assert controller.mode == k.MODE_TRACK and not controller.blending
    return controller, field


def _python_times(call: Callable[[int], object], count: int, warm: int = 50) -> Times:
    for i in range(warm):
        call(i)
    seconds = np.empty(count)
    clock = time.perf_counter
    for i in range(count):
        begin = clock()
        call(warm + i)
        seconds[i] = clock() - begin
    return Times.of(seconds)


def clock_cost_s(timespec: FloatArray) -> float:
    times = np.empty(20_000)
    _clock_times(timespec, times)
    return float(np.median(times))


def _in_rounds(rounds: int, sample: Callable[[FloatArray], object], count: int) -> FloatArray:
    """``rounds`` separate bursts of samples, so that one disturbance cannot colour all of them."""
    samples = []
    for _ in range(rounds):
        times = np.empty(count)
        sample(times)
        samples.append(times)
    return np.concatenate(samples)


def measure_fields(
    arm: ArmModel, libraries: list[controller_c.CLibrary], count: int
) -> dict[int, dict[str, Any]]:
    """Per width: Times per order of the kernel, of C and numpy, torch to order 2, the bound."""
    return {width: _measure_field(arm, width, libraries, count) for width in WIDTHS}


def _measure_field(
    arm: ArmModel, width: int, libraries: list[controller_c.CLibrary], count: int
) -> dict[str, Any]:
    timespec = np.zeros(2, dtype=np.int64)
    clock_s = clock_cost_s(timespec)
    folded = make_field(make_prior(arm, width), arm.config.home_rad, 0.0, 1).folded
    work = aligned_empty(siren_work_size(width))
    taus = np.random.default_rng(0).uniform(-1.0, 1.0, count)
    row: dict[str, Any] = {"niaf": [], "c": [], "numpy": [], "torch": [], "bound": []}
    plain, autograd = NumpyField(folded), TorchField(folded)
    for order in range(4):
        out = aligned_empty((order + 1) * folded.D).reshape(order + 1, folded.D)
        oracle = plain.jet(0.3, 2.0, order)
        ours = partial(
            _field_times, folded.weights, folded.L, folded.H, folded.D, taus, order, out, work,
            timespec,
        )
        ours(np.empty(50))
        row["niaf"].append(Times.of(_in_rounds(5, ours, count // 5), clock_s))
        candidates, bounds = [], []
        for library in libraries:
            library.field(folded, 0.3, 2.0, order, out, work)
            error = np.abs(out - oracle).max() / np.abs(oracle).max()
            assert error < 1e-12, f"C kernel differs from numpy by {error}"
            c = partial(library.field_times, folded, taus, order, out, work)
            candidates.append(Times.of(_in_rounds(5, c, count // 5), clock_s))
            bounds.append(library.bound(folded, order))
        row["c"].append(min(candidates, key=lambda times: times.p50) if libraries else None)
        row["bound"].append(min(bounds, key=lambda b: b.total_s) if libraries else None)
        row["numpy"].append(_jet_times(plain, taus, order, min(count, 2000)))
        if order <= 2:
            row["torch"].append(_jet_times(autograd, taus, order, min(count, 200)))
    return row


def _jet_times(
    field: NumpyField | TorchField, taus: FloatArray, order: int, count: int
) -> Times:
    return _python_times(lambda i: field.jet(taus[i % taus.size], 2.0, order), count, warm=10)


def measure_ticks(arm: ArmModel, count: int) -> dict[str, Any]:
    """Parts of the tick and the whole tick per width; microseconds.

    Parts that are not functions of their own are differences of whole ticks: ``checks`` is a tick
    that is off; ``limits`` a damping tick less checks and one rigid-body torque; ``law`` a tick
    that holds less the damping one and the second rigid-body torque.
    """
    timespec = np.zeros(2, dtype=np.int64)
    clock_s = clock_cost_s(timespec)
    home, zero = arm.config.home_rad, np.zeros(arm.n)
    work, tau = np.zeros((arm.n, 27)), np.zeros(arm.n)
    dq, ddq = np.full(arm.n, 0.1), np.full(arm.n, 0.5)

    def rigid(times: FloatArray) -> None:
        _rnea_times(arm.model, arm.parent, arm.kind, arm.gravity, home, dq, ddq, work, tau,
                    timespec, times)

    rigid(np.empty(20))
    result: dict[str, Any] = {"rnea": Times.of(_in_rounds(5, rigid, count // 5), clock_s)}
    prior = make_prior(arm, WIDTHS[1])
    controller = ImpedanceController(_CONFIG, arm, prior)
    arguments = controller._tick_arguments
    for name, mode in (("off", k.MODE_OFF), ("damp", k.MODE_DAMP), ("hold", k.MODE_HOLD)):
        controller.activate(0.0, home, zero)
        arguments[3][k.SI_MODE] = mode

        def modal(times: FloatArray) -> None:
            _tick_times(controller.last_tick_s + 1e-6, 1e-6, home, zero, arguments, timespec, times)

        modal(np.empty(20))
        result[name] = Times.of(_in_rounds(5, modal, count // 5), clock_s)
        assert controller.mode == mode, f"{name}: {controller.fault.name}"
    torque = result["rnea"].p50
    result["checks"] = result["off"].p50
    result["limits"] = max(result["damp"].p50 - result["off"].p50 - torque, 0.0)
    result["law"] = max(result["hold"].p50 - result["damp"].p50 - torque, 0.0)

    result["tick"] = {width: _measure_whole_tick(arm, width, count) for width in WIDTHS}
    return result


def _measure_whole_tick(arm: ArmModel, width: int, count: int) -> dict[str, Times]:
    timespec = np.zeros(2, dtype=np.int64)
    clock_s = clock_cost_s(timespec)
    home, zero = arm.config.home_rad, np.zeros(arm.n)
    controller, field = tracking_controller(arm, make_prior(arm, width))
    arguments = controller._tick_arguments
    begin = controller.last_tick_s

    def whole(times: FloatArray) -> None:
        _tick_times(
            controller.last_tick_s + 1e-6, 1e-6, home, zero, arguments, timespec, times)

    row = {"niaf": Times.of(_in_rounds(5, whole, count // 5), clock_s)}
    assert controller.mode == k.MODE_TRACK, controller.fault.name
    now = controller.last_tick_s
    row["niaf_from_python"] = _python_times(
        lambda i: controller.tick(now + 1e-5 * (i + 1), home, zero), min(count, 5000))
    assert controller.mode == k.MODE_TRACK, controller.fault.name
    for name, plain_field, samples in (
        ("numpy", NumpyField(field.folded), 2000), ("torch", TorchField(field.folded), 200),
    ):
        row[name] = _plain_tick_times(
            PlainTick(controller, field, plain_field), begin, home, zero, min(count, samples))
    return row


def _plain_tick_times(
    plain: PlainTick, begin: float, q: FloatArray, dq: FloatArray, count: int
) -> Times:
    return _python_times(lambda i: plain.tick(begin + 1e-5 * (i + 1), q, dq), count, warm=10)


def same_torque(arm: ArmModel) -> float:
    """Largest torque difference between the tick and the plain versions over a field, Nm.

    So that what is compared in time computes the same thing. The limits are wide open.
    """
    prior = make_prior(arm, WIDTHS[0])
    controller, field = tracking_controller(arm, prior)
    controller._jp[k.JP_TORQUE_RATE] = 1e9
    worst = 0.0
    for plain_field in (NumpyField(field.folded), TorchField(field.folded)):
        plain = PlainTick(controller, field, plain_field)
        rng = np.random.default_rng(3)
        for _ in range(20):
            t = controller.last_tick_s + 0.005
            q = arm.config.home_rad + rng.normal(scale=0.002, size=arm.n)
            dq = rng.normal(scale=0.02, size=arm.n)
            expected = plain.tick(t, q, dq)
            worst = max(worst, float(np.abs(controller.tick(t, q, dq) - expected).max()))
    return worst
