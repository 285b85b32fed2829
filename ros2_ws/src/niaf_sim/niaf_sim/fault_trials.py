"""Randomised fault trials: what is injected, what must follow, and the judge.

One seed is one trial: it names the fault (``kind_of``), draws its parameters and everything else.
:func:`run_trial` runs it in lock-step (:mod:`niaf_sim.fault_injection`) and judges the trace.

The judge uses nothing that the controller says about its own limits: they are computed again from
the robot description, the instants from the controller's documented settings. It asks of every
trial: commands finite, inside the torque limit and the torque rate; drives inside their limit;
gains inside their ranges; joints inside their mechanical limits; true speed and true tracking error
beyond the stated thresholds never without a stop; a stop that has a name; and of each kind that the
stated end (:class:`Expectation`) is reached within the stated time, stays, and leaves the arm at
rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import can
import numpy as np

from niaf_field.codec import FieldMessage, RefusalReason
from niaf_impedance.admission import Reason
from niaf_impedance.arm_model import ArmModel
from niaf_impedance.controller import ResetRefusedError
from niaf_impedance.drives import DriveFault
from niaf_impedance.drives import mit_frames as mit
from niaf_impedance.drives.description import MOTEUS, PROTOCOLS
from niaf_impedance.drives.interface import DRIVE_FAULT_TEXT
from niaf_impedance.faults import Fault, Mode, describe
from niaf_impedance.lateness import LIMITS
from niaf_impedance.state_gate import PERSISTENT_S
from niaf_sim.drive import DriveBank, DriveConfig
from niaf_sim.fault_injection import (
    DT_S,
    EPOCH_SEC,
    JOINT_NAMES,
    REPLAN_S,
    WATCH_S,
    Bench,
    BusDriven,
    FocArm,
    Injection,
    Reading,
    Rig,
)
from niaf_sim.wire import JointStateEncoder

FloatArray = np.ndarray

FOLLOWING = (Mode.TRACK, Mode.BRAKE, Mode.HOLD)
STOPPED = (Mode.DAMP, Mode.ESTOP, Mode.OFF)
#: bound on instants: one tick until it is seen, one until the mode is on the record
TICKS_S = 2 * DT_S
#: what whole-horizon admission may say of a field that is well-formed
JUDGED = frozenset(
    int(reason) for reason in Reason if reason >= Reason.NOT_FINITE
) - {int(Reason.DEACTIVATING)}


@dataclass(frozen=True)
class Expectation:
    """What must follow a fault.

    ends: allowed names of the end, '<MODE>/<FAULT>' with 'FOLLOWING' for TRACK, BRAKE or HOLD
    without a fault, 'EXHAUSTED' for HOLD reached through BRAKE, 'WATCHDOG' for drives that damp.
    within_s: the end is reached this long after the onset and kept (inf: whenever it comes; an end
    that is FOLLOWING is kept from the onset on).
    refusals: numbers of which one must have been given to each injected field; empty: any verdict.
    drive_faults: of which one must have been named by the drive; empty: none is asked for.
    rest: 'still', 'sinks' (held by the drives' damping alone) or 'free' (not asked for).
    unseen_s: how long true speed or tracking error may be beyond its threshold without a stop.
    exhausts: within_s is counted for a field at full speed; a slowed one may take as much longer as
    its report said, down to slow_min_scale.
    in_limits: joints stay inside their mechanical limits.
    brakes: an arm that follows a field at the onset must (True) or must not (False) be braked
    within brakes_within_s of it; None: it may.
    """

    ends: frozenset[str]
    within_s: float = math.inf
    refusals: frozenset[int] = frozenset()
    drive_faults: frozenset[DriveFault] = frozenset()
    rest: str = "still"
    unseen_s: float = 0.03
    exhausts: bool = False
    in_limits: bool = True
    brakes: bool | None = None
    brakes_within_s: float = math.inf


@dataclass(frozen=True)
class Trial:
    """A drawn fault: hooks, expectation, length and drive."""

    injection: Injection
    expectation: Expectation
    #: length after the onset, s
    after_s: float
    #: called once after the rig was built
    prepare: Callable[[Rig], None] | None = None


@dataclass(frozen=True)
class TrialResult:
    """Verdict on one trial with its figures; ``violations`` is empty for a good one."""

    seed: int
    kind: str
    note: str
    outcome: str
    violations: tuple[str, ...]
    worst_torque_ratio: float
    worst_rate_ratio: float
    worst_drive_ratio: float
    stop_s: float
    bound_s: float
    simulated_s: float
    accepted: int
    refused: int
    reasons: dict[str, int] = field(default_factory=dict)


Draw = Callable[[np.random.Generator, Bench, Rig], Trial]


def _stop(*faults: Fault | str) -> frozenset[str]:
    return frozenset(f"DAMP/{fault if isinstance(fault, str) else fault.name}" for fault in faults)


ON = frozenset({"FOLLOWING"})
EXHAUSTED = frozenset({"EXHAUSTED"})
#: what pushing an arm may end in besides going on
PUSHED = _stop(Fault.TRACKING_ERROR, Fault.OVERSPEED, Fault.STATE_JUMP)
#: what a joint without torque may end in: friction holds it on one encoder count
STUCK = _stop(Fault.STATE_FROZEN)


def _onset(rng: np.random.Generator) -> float:
    """Mostly in motion, now and then at rest before the first field arrives."""
    return float(rng.uniform(0.0, 0.02) if rng.random() < 0.1 else rng.uniform(0.12, 0.45))


def _silence_s(bench: Bench) -> float:
    """Longest time from the last state to the named stop."""
    return bench.config.state_timeout_s + WATCH_S + TICKS_S


def _settle_s(bench: Bench) -> float:
    return 2.0 * bench.decay_s


# -- lateness --------------------------------------------------------------------------------------
#: runs of ticks without a state that are sure, or not sure, to brake and to damp: one tick more
#: than the run lies between the two states around it, and equal to a limit is neither
_BRAKES_AFTER = round(LIMITS.brake_lateness_s / DT_S)
_DAMPS_AFTER = round(LIMITS.damp_lateness_s / DT_S) - 1


def _late(wrong: FloatArray, length_s: float, *, stalled: bool) -> Expectation:
    """What docs/controller.md ("Late.") makes of periods that went wrong, for the first length_s.

    wrong bool[T]: no state was ticked though one was published, by ticks since the onset. stalled:
    the loop itself stood still, so that its watch may count a tick late on top of the lost ones.
    """
    keep = math.exp(-DT_S / LIMITS.window_s)
    first = dict.fromkeys(("sure brake", "brake", "sure damp", "damp"), math.inf)

    def at(name: str, when: bool, t_s: float) -> None:
        if when:
            first[name] = min(first[name], t_s)

    low = high = 0.0
    run = 0
    for k, lost in enumerate(wrong[:round(length_s / DT_S)]):
        t_s = k * DT_S
        if lost:
            run += 1
            continue
        if run:
            low = 1.0 - (1.0 - low) * keep ** run
            high = 1.0 - (1.0 - high) * keep ** (run + stalled)
            at("sure brake", run > _BRAKES_AFTER, t_s)
            at("brake", run >= _BRAKES_AFTER, t_s)
            at("sure damp", run > _DAMPS_AFTER, t_s)
            at("damp", run >= _DAMPS_AFTER, t_s)
        else:
            low, high = low * keep, high * keep
        run = 0
        for share, sure in ((low, "sure "), (high, "")):
            at(f"{sure}brake", share > LIMITS.brake_share, t_s)
            at(f"{sure}damp", share > LIMITS.damp_share, t_s)
    damped = _stop(Fault.LOOP_LATE)
    may_brake = min(first["brake"], first["damp"])
    brakes = True if first["sure brake"] < first["damp"] else None
    if first["sure damp"] < math.inf:
        return Expectation(damped, first["sure damp"] + TICKS_S, unseen_s=0.06, brakes=brakes,
                           brakes_within_s=first["sure brake"] + TICKS_S)
    if may_brake == math.inf:
        return Expectation(ON, brakes=False, brakes_within_s=length_s)
    return Expectation(
        ON if first["damp"] == math.inf else ON | damped, unseen_s=0.06, brakes=brakes,
        brakes_within_s=first["sure brake"] + TICKS_S)


# -- policy ----------------------------------------------------------------------------------------
def _exhausts(rig: Rig) -> float:
    """Bound for a stream of fields that ends: one horizon after the last that can be let in."""
    return 0.08 + rig.bench.fields.prior.horizon_s + TICKS_S


def policy_killed(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    onset = float(rng.uniform(0.1, 0.3))

    def act(rig: Rig, t_s: float) -> None:
        rig.policy_runs = False

    bound = _exhausts(rig)
    return Trial(Injection(onset, act=act), Expectation(EXHAUSTED, bound, exhausts=True),
                 0.05)


def policy_frozen(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """It goes on publishing its last field, stamps and all."""
    onset = float(rng.uniform(0.1, 0.3))
    kept: list[FieldMessage] = []

    def fields(rig: Rig, message: FieldMessage) -> list[FieldMessage]:
        kept.append(message)
        return [kept[0]]

    bound = _exhausts(rig) + REPLAN_S  # the first copy is a new field
    return Trial(
        Injection(onset, fields=fields),
        Expectation(
            EXHAUSTED, bound,
            frozenset({0, Reason.OUT_OF_ORDER, RefusalReason.STAMP_TOO_OLD,
                       RefusalReason.START_IN_PAST, RefusalReason.EXHAUSTED}),
            exhausts=True,
        ),
        0.05,
    )


def policy_flood(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Up to one field per tick for a while."""
    onset, length = _onset(rng), float(rng.uniform(0.02, 0.06))
    period = int(rng.integers(1, 5))

    def act(rig: Rig, t_s: float) -> None:
        if t_s < onset + length and rig._tick % period == 0:
            rig.publish(rig.observed_field(), float(rng.uniform(0.0, 0.03)))

    return Trial(
        Injection(onset, act=act, note=f"every {period} ms for {length * 1e3:.0f} ms"),
        Expectation(ON), 0.35,
    )


def policy_out_of_order(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Fields arrive in a random order, some twice, some with a sequence that went back."""
    onset = _onset(rng)

    def act(rig: Rig, t_s: float) -> None:
        if rig._tick % 20 == 0:
            message = rig.observed_field()
            if rng.random() < 0.3:
                message = _changed(message, sequence=int(rng.integers(0, message.sequence + 1)))
            for _ in range(int(rng.integers(1, 3))):
                rig.publish(message, float(rng.uniform(0.0, 0.25)))

    return Trial(Injection(onset, act=act), Expectation(ON), 0.45)


def policy_late(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Inference so slow that fields are too old when they arrive."""
    onset, extra = float(rng.uniform(0.05, 0.2)), float(rng.uniform(0.5, 0.9))
    limits = bench.field_limits

    def fields(rig: Rig, message: FieldMessage) -> list[FieldMessage]:
        return [_changed(message, stamp_s=message.stamp_s - extra,
                         start_s=message.start_s - extra)]

    assert extra >= limits.max_age_s
    bound = _exhausts(rig)
    return Trial(
        Injection(onset, fields=fields, note=f"{extra:.2f} s late"),
        Expectation(EXHAUSTED, bound, frozenset({
            RefusalReason.STAMP_TOO_OLD, RefusalReason.START_IN_PAST, RefusalReason.EXHAUSTED,
        }), exhausts=True),
        0.05,
    )


# -- fields ----------------------------------------------------------------------------------------
def _changed(message: FieldMessage, **values: object) -> FieldMessage:
    settings = {name: getattr(message, name) for name in message.__dataclass_fields__} | values
    return FieldMessage(**settings)  # type: ignore[arg-type]


def _bad_field(
    rng: np.random.Generator,
    change: Callable[[FieldMessage], FieldMessage],
    refusals: frozenset[int],
    note: str,
) -> Trial:
    """From the onset every field is bad: what ran goes on to its end, or the arm holds."""
    onset = _onset(rng)

    def fields(rig: Rig, message: FieldMessage) -> list[FieldMessage]:
        return [change(message)]

    return Trial(
        Injection(onset, fields=fields, note=note), Expectation(ON, refusals=refusals), 0.35
    )


def field_not_finite(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    value = float(rng.choice([np.nan, np.inf, -np.inf]))
    name = str(rng.choice(["gamma", "beta", "anchor", "stamp_s", "start_s", "horizon_s"]))

    def change(message: FieldMessage) -> FieldMessage:
        old = getattr(message, name)
        if isinstance(old, float):
            return _changed(message, **{name: value})
        new = old.copy()
        new[rng.integers(new.size, size=int(rng.integers(1, 4)))] = value
        return _changed(message, **{name: new})

    return _bad_field(rng, change, frozenset({int(RefusalReason.NOT_FINITE)}), f"{name} = {value}")


def field_huge_modulation(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Beyond the limit it is refused as such, below by admission, if its motion is not possible."""
    name = str(rng.choice(["gamma", "beta"]))
    factor = float(10.0 ** rng.uniform(0.3, 30.0 if rng.random() < 0.3 else 4.0))
    some = rng.random() < 0.5

    def change(message: FieldMessage) -> FieldMessage:
        new = getattr(message, name).copy()
        where = rng.integers(new.size, size=20) if some else slice(None)
        new[where] *= np.float32(factor)
        return _changed(message, **{name: new})

    return _bad_field(
        rng, change, JUDGED | {0, int(RefusalReason.MODULATION_TOO_LARGE)},
        f"{name} x {factor:.2g}{' in places' if some else ''}",
    )


def field_noise(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Well-formed nonsense: what is let in must stay inside the limits."""
    spread = float(10.0 ** rng.uniform(-2.5, 0.0))

    def change(message: FieldMessage) -> FieldMessage:
        noise = rng.normal(scale=spread, size=message.gamma.size).astype(np.float32)
        return _changed(message, gamma=message.gamma + noise)

    return _bad_field(rng, change, JUDGED | {0}, f"gamma + N(0, {spread:.2g})")


def field_wrong_prior(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    other = str(rng.choice(["", "0" * 64, "not a hash", rig.bench.fields.prior.prior_id[:-1]]))
    return _bad_field(
        rng, lambda m: _changed(m, prior_id=other),
        frozenset({int(RefusalReason.PRIOR_MISMATCH)}), f"prior_id {other[:12]!r}",
    )


def field_wrong_length(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    name = str(rng.choice(["gamma", "beta", "anchor"]))
    size = int(rng.choice([0, 1, -1, 7, 100000]))

    def change(message: FieldMessage) -> FieldMessage:
        old = getattr(message, name)
        return _changed(message, **{name: np.resize(old, size if size >= 0 else old.size - 1)})

    reason = RefusalReason[f"{name.upper()}_LENGTH"]
    return _bad_field(rng, change, frozenset({int(reason)}), f"{name}: {size} values")


def field_wrong_horizon(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Outside the allowed range it is refused; inside, the motion is only faster or slower."""
    limits = bench.field_limits
    if rng.random() < 0.5:
        horizon = float(rng.choice([0.0, -1.0, 1e-9, 0.049, 31.0, 1e9]))
        assert not limits.min_horizon_s <= horizon <= limits.max_horizon_s
        refusals = frozenset({int(RefusalReason.BAD_HORIZON)})
    else:
        horizon = float(10.0 ** rng.uniform(-1.3, 1.4))
        refusals = JUDGED | {
            0, int(RefusalReason.EXHAUSTED), int(Reason.EXHAUSTED), int(RefusalReason.BAD_HORIZON)
        }
    return _bad_field(rng, lambda m: _changed(m, horizon_s=horizon), refusals, f"{horizon:g} s")


def field_wrong_time(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Stamp or start ahead of or behind the host's clock."""
    name = str(rng.choice(["stamp_s", "start_s", "both"]))
    offset = float(rng.choice([-1.0, 1.0]) * 10.0 ** rng.uniform(-0.2, 6.0))
    reasons = (
        {RefusalReason.START_IN_FUTURE, RefusalReason.STAMP_IN_FUTURE} if offset > 0.0 else
        {RefusalReason.START_IN_PAST, RefusalReason.STAMP_TOO_OLD, RefusalReason.EXHAUSTED}
    )

    def change(message: FieldMessage) -> FieldMessage:
        names = ("stamp_s", "start_s") if name == "both" else (name,)
        return _changed(message, **{n: getattr(message, n) + offset for n in names})

    return _bad_field(
        rng, change, frozenset(int(r) for r in reasons), f"{name} {offset:+.3g} s"
    )


def field_elsewhere(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Anchored to another pose: the seam step or a limit refuses it."""
    limit = bench.config.seam_position_limit_rad
    joint, sign = int(rng.integers(7)), float(rng.choice([-1.0, 1.0]))
    distance = limit * float(10.0 ** rng.uniform(0.5, 3.0))

    def change(message: FieldMessage) -> FieldMessage:
        anchor = message.anchor.copy()
        anchor[joint] += sign * distance
        return _changed(message, anchor=anchor)

    return _bad_field(rng, change, frozenset({int(Reason.SEAM_POSITION)}),
                      f"{JOINT_NAMES[joint]} {sign * distance:+.2f} rad")


# -- clocks ----------------------------------------------------------------------------------------
def clock_jump(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """The wall clock of the whole machine is set: fields, states and host alike."""
    onset = _onset(rng)
    jump = float(rng.choice([-1.0, 1.0]) * 10.0 ** rng.uniform(-3.5, 4.0))
    timeout = bench.config.state_timeout_s

    def act(rig: Rig, t_s: float) -> None:
        rig.wall_offset_s = jump

    if abs(jump) < timeout - 3 * DT_S:
        # a small step back is a few states that are not newer: less than the timeout of silence
        expectation = Expectation(ON)
    elif abs(jump) > timeout + WATCH_S + 2 * DT_S:
        expectation = Expectation(_stop(Fault.STATE_STALE), _silence_s(bench))
    else:
        expectation = Expectation(ON | _stop(Fault.STATE_STALE))
    return Trial(
        Injection(onset, act=act, note=f"{jump:+.4g} s"), expectation,
        _silence_s(bench) + _settle_s(bench),
    )


def clock_of_sensor_jump(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Only the clock that stamps the joint states is set: ahead, or behind."""
    onset = _onset(rng)
    jump = float(rng.choice([-1.0, 1.0]) * 10.0 ** rng.uniform(-3.5, 4.0))

    def act(rig: Rig, t_s: float) -> None:
        rig.sensor_offset_s = jump

    timeout, future = bench.config.state_timeout_s, bench.field_limits.max_future_s
    bearable = rig.host.gate.bearable_s  # nobody can tell a clock that is behind from old states
    if -min(timeout - 3 * DT_S, bearable - DT_S) < jump < timeout - 3 * DT_S:
        expectation = Expectation(ON)
    elif -timeout < jump < -bearable - 2 * DT_S:
        expectation = Expectation(
            _stop(Fault.STATE_STALE), _silence_s(bench) + PERSISTENT_S, rest="sinks")
    elif jump > max(timeout, future) + DT_S or jump < -(timeout + WATCH_S + 2 * DT_S):
        expectation = Expectation(_stop(Fault.STATE_STALE), _silence_s(bench), rest="sinks")
    else:
        expectation = Expectation(ON | _stop(Fault.STATE_STALE), rest="sinks")
    return Trial(
        Injection(onset, act=act, note=f"{jump:+.4g} s"), expectation,
        _silence_s(bench) + PERSISTENT_S + _settle_s(bench),
    )


def clock_stuck(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """States keep coming with a stamp that stands still (or creeps by less than it should)."""
    onset = _onset(rng)
    share = float(rng.choice([0.0, 0.0, 1e-6]))
    begin: list[float] = []

    def state(rig: Rig, reading: Reading) -> Reading:
        begin.append(reading.stamp_s)
        reading.stamp_s = begin[0] + share * (reading.stamp_s - begin[0])
        return reading

    return Trial(
        Injection(onset, state=state, note=f"advances at {share:g}"),
        Expectation(_stop(Fault.STATE_STALE, Fault.CLOCK_NOT_ADVANCING), _silence_s(bench) + 0.02,
                    rest="sinks"),
        _silence_s(bench) + _settle_s(bench),
    )


# -- joint states ----------------------------------------------------------------------------------
def state_silent(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """The stream ends, or repeats its last message."""
    onset, repeats = _onset(rng), rng.random() < 0.5
    last: list[Reading] = []

    def state(rig: Rig, reading: Reading) -> Reading | None:
        last.append(reading)
        return last[0] if repeats else None

    return Trial(
        Injection(onset, state=state, note="repeats" if repeats else "ends"),
        Expectation(_stop(Fault.STATE_STALE), _silence_s(bench), rest="sinks"),
        _silence_s(bench) + _settle_s(bench) + 0.1,
    )


def state_gaps(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Messages are missing at random, in runs shorter than the timeout.

    Those that the driver did not send are nobody's lateness; those that it did and that never came
    count as the loop's.
    """
    onset, share, sent = _onset(rng), float(rng.uniform(0.05, 0.7)), rng.random() < 0.5
    longest, length = int(0.8 * bench.config.state_timeout_s / DT_S), 0.8 if sent else 0.3
    missing = rng.random(round(length / DT_S) + 1) < share
    for k in range(longest, len(missing)):
        missing[k] &= not missing[k - longest : k].all()
    count = [-1]

    def state(rig: Rig, reading: Reading) -> Reading | None:
        count[0] += 1
        reading.lost = bool(missing[min(count[0], len(missing) - 1)])
        return reading if sent or not reading.lost else None

    expectation = _late(missing & sent, length, stalled=False)
    return Trial(
        Injection(onset, state=state, note=f"{share:.0%} {'lost' if sent else 'not sent'}"),
        replace(expectation, rest="free"), length,
    )


def state_frozen(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Fresh stamps on values that stand still: one joint or all; the speed stays or reads zero."""
    onset = float(rng.uniform(0.15, 0.45))
    joints = np.arange(7) if rng.random() < 0.5 else rng.integers(7, size=1)
    zero = rng.random() < 0.3
    kept: list[Reading] = []

    def state(rig: Rig, reading: Reading) -> Reading:
        kept.append(Reading(reading.q.copy(), reading.dq.copy(), 0.0))
        reading.q[joints] = kept[0].q[joints]
        reading.dq[joints] = 0.0 if zero else kept[0].dq[joints]
        return reading

    return Trial(
        Injection(onset, state=state, note=f"{'all' if len(joints) > 1 else JOINT_NAMES[joints[0]]}"
                  f"{', speed zero' if zero else ''}"),
        # a reading that stands still with speed zero cannot show how far the joint was pushed
        Expectation(ON | PUSHED | STUCK, rest="free", unseen_s=0.15), 0.5,
    )


def state_delayed(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    onset = _onset(rng)
    timeout = bench.config.state_timeout_s
    delay = float(rng.uniform(0.001, 2.5 * timeout))
    jitter = float(rng.choice([0.0, 0.3])) * delay

    def state(rig: Rig, reading: Reading) -> Reading:
        reading.delay_s = delay - jitter * float(rng.random())
        return reading

    bearable = rig.host.gate.bearable_s
    named = _silence_s(bench) + PERSISTENT_S
    if delay - jitter > timeout + DT_S:
        expectation = Expectation(_stop(Fault.STATE_STALE), _silence_s(bench), rest="sinks")
    elif delay - jitter > bearable + 2 * DT_S:  # the arm may shake until all states are old
        expectation = Expectation(PUSHED | _stop(Fault.STATE_STALE), named, rest="free",
                                  unseen_s=named)
    elif delay < min(bearable, timeout - 3 * DT_S) - DT_S:
        expectation = Expectation(ON, unseen_s=0.03 + delay)
    else:
        expectation = Expectation(
            ON | PUSHED | _stop(Fault.STATE_STALE), rest="free", unseen_s=named + delay
        )
    return Trial(
        Injection(onset, state=state, note=f"{delay * 1e3:.1f} ms, jitter {jitter * 1e3:.1f} ms"),
        expectation, max(named + _settle_s(bench), 0.4),
    )


def state_reordered(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Some messages overtake others, some come twice."""
    onset = _onset(rng)
    back: list[Reading] = []

    def state(rig: Rig, reading: Reading) -> Reading:
        back.append(Reading(reading.q.copy(), reading.dq.copy(), reading.stamp_s))
        if rng.random() < 0.3:
            return back[max(0, len(back) - 1 - int(rng.integers(1, 6)))]
        return reading

    return Trial(Injection(onset, state=state), Expectation(ON), 0.3)


def state_noisy(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    onset = _onset(rng)
    q_spread = float(10.0 ** rng.uniform(-5.0, -1.3))
    dq_spread = float(10.0 ** rng.uniform(-3.0, 0.7))
    joints = np.arange(7) if rng.random() < 0.5 else rng.integers(7, size=1)

    def state(rig: Rig, reading: Reading) -> Reading:
        reading.q[joints] += rng.normal(scale=q_spread, size=len(joints))
        reading.dq[joints] += rng.normal(scale=dq_spread, size=len(joints))
        return reading

    return Trial(
        Injection(onset, state=state, note=f"q {q_spread:.1e} rad, dq {dq_spread:.1e} rad/s"),
        Expectation(ON | PUSHED, rest="free"), 0.3,
    )


def state_not_finite(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """One NaN or infinity, once or from now on."""
    onset = _onset(rng)
    value = float(rng.choice([np.nan, np.inf, -np.inf]))
    joint, once = int(rng.integers(7)), rng.random() < 0.5
    position = rng.random() < 0.5
    count = [0]

    def state(rig: Rig, reading: Reading) -> Reading:
        count[0] += 1
        if count[0] == 1 or not once:
            (reading.q if position else reading.dq)[joint] = value
        return reading

    return Trial(
        Injection(onset, state=state, note=f"{'q' if position else 'dq'} of {JOINT_NAMES[joint]} "
                  f"{value}{' once' if once else ''}"),
        # without a position the weight is that of the last pose known, which the arm drifts from
        Expectation(
            _stop(Fault.STATE_NOT_FINITE), TICKS_S,
            rest="sinks" if position and not once else "still",
        ),
        _settle_s(bench) + 0.1,
    )


def state_jump(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """An encoder loses its zero."""
    onset, joint = _onset(rng), int(rng.integers(7))
    margin = bench.config.jump_margin_rad
    least = margin + 2.0 * 2.0 * bench.limits_of.joints[joint].velocity_limit_rad_s * DT_S
    jump = float(rng.choice([-1.0, 1.0]) * (least + 10.0 ** rng.uniform(-3.0, 1.0)))

    def state(rig: Rig, reading: Reading) -> Reading:
        reading.q[joint] += jump
        return reading

    return Trial(
        Injection(onset, state=state, note=f"{JOINT_NAMES[joint]} {jump:+.3f} rad"),
        Expectation(_stop(Fault.STATE_JUMP), TICKS_S, rest="free"), 0.25,
    )


def state_malformed(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Messages of another arm: a joint less, no velocities; never a torque from them."""
    onset = _onset(rng)
    names = list(JOINT_NAMES)
    what = str(rng.choice(["less", "renamed", "empty"]))
    if what == "less":
        names.pop(int(rng.integers(7)))
    elif what == "renamed":
        names[int(rng.integers(7))] = "panda_joint9"
    else:
        names = ["a"]
    encoder = JointStateEncoder(tuple(names))

    def state(rig: Rig, reading: Reading) -> Reading:
        encoder.position[:] = 0.1
        encoder.velocity[:] = 0.0
        sec = EPOCH_SEC * 1_000_000_000
        reading.raw = encoder.encode(sec + round(reading.stamp_s * 1e9))
        return reading

    return Trial(
        Injection(onset, state=state, note=what),
        Expectation(_stop(Fault.STATE_STALE), _silence_s(bench), rest="sinks"),
        _silence_s(bench) + _settle_s(bench),
    )


def state_permuted(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """The publisher changes the order of the joints: names decide, nothing happens."""
    onset = _onset(rng)
    order = rng.permutation(len(JOINT_NAMES))
    encoder = JointStateEncoder(tuple(JOINT_NAMES[i] for i in order))

    def state(rig: Rig, reading: Reading) -> Reading:
        encoder.position[:], encoder.velocity[:] = reading.q[order], reading.dq[order]
        sec = EPOCH_SEC * 1_000_000_000
        reading.raw = encoder.encode(sec + round(reading.stamp_s * 1e9))
        return reading

    return Trial(Injection(onset, state=state), Expectation(ON), 0.25)


# -- drives ----------------------------------------------------------------------------------------
def drive_dropout(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Commands do not reach the drives for a while; beyond their watchdog they damp."""
    onset = _onset(rng)
    length = float(10.0 ** rng.uniform(-2.3, -0.5))

    def act(rig: Rig, t_s: float) -> None:
        rig.bus_to_drives = t_s >= onset + length

    watchdog = rig.cell.drives.config.watchdog_s
    return Trial(
        Injection(onset, act=act, note=f"{length * 1e3:.0f} ms"),
        Expectation(ON | PUSHED | STUCK, drive_faults=frozenset(
            {DriveFault.LOST_COMMUNICATION} if length > watchdog + 2 * DT_S else ()
        ), unseen_s=watchdog + 0.01, rest="free"),
        length + 0.25,
    )


def _fall_s(rig: Rig, joint: int, torque_nm: float) -> float:
    """Bound on the time in which a joint under ``torque_nm`` reaches a threshold of the ladder."""
    bench = rig.bench
    arm = ArmModel(bench.limits_of)
    inertia = float(arm.mass_matrix(rig.cell.q_true.copy())[joint, joint])
    net = torque_nm - bench.limits_of.joints[joint].coulomb_nm
    return 2.0 * math.sqrt(2.0 * bench.config.tracking_error_limit_rad * inertia / net) + 0.03


def motor_dead(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """One FOC drive gives a fraction of its torque or none; under load its joint falls."""
    onset, joint = _onset(rng), int(rng.integers(7))
    share = float(rng.choice([0.0, 0.0, rng.uniform(0.0, 0.9)]))

    def drive(bank: DriveBank) -> None:
        bank.limit_nm[joint] = share * bank.config.torque_limit_nm[joint]

    injection = Injection(onset, note=f"{JOINT_NAMES[joint]} at {share:.0%}")

    def act(rig: Rig, t_s: float) -> None:
        injection.drive = drive

    injection.act = act
    load = abs(float(ArmModel(bench.limits_of).gravity_torque(rig.cell.q_true.copy())[joint]))
    # nothing but its mechanical stop can hold a joint without torque
    if share == 0.0 and load > 10.0:
        expectation = Expectation(PUSHED, _fall_s(rig, joint, 0.7 * load), rest="free",
                                  in_limits=False)
    else:
        expectation = Expectation(ON | PUSHED | STUCK, rest="free", in_limits=False)
    return Trial(injection, expectation, 0.45 if expectation.within_s == math.inf
                 else expectation.within_s + 0.05)


def motor_runaway(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """One FOC drive gives its full torque whatever it is told."""
    onset, joint = _onset(rng), int(rng.integers(7))
    sign = float(rng.choice([-1.0, 1.0]))
    torque = sign * rig.cell.drives.config.torque_limit_nm[joint]

    def drive(bank: DriveBank) -> None:
        bank.request_nm[joint] = torque

    injection = Injection(onset, note=f"{JOINT_NAMES[joint]} {torque:+.0f} Nm")

    def act(rig: Rig, t_s: float) -> None:
        injection.drive = drive

    injection.act = act
    load = abs(float(ArmModel(bench.limits_of).gravity_torque(rig.cell.q_true.copy())[joint]))
    net = max(0.5 * abs(torque), abs(torque) - load - 20.0)
    return Trial(
        injection,
        Expectation(PUSHED, _fall_s(rig, joint, net), rest="free", in_limits=False),
        _fall_s(rig, joint, net) + 0.05,
    )


def _break_down(rng: np.random.Generator, rig: Rig, joint: int) -> tuple[
    Callable[[], None], DriveFault
]:
    """What makes a motor report a fault and let go, and the name that it is to have."""
    assert isinstance(rig.arm, BusDriven)
    motor = rig.arm.emulator.motors[joint]
    if rig.arm.protocol == MOTEUS:
        from niaf_impedance.drives.moteus_drive import FAULT_CODES

        code = int(rng.choice(list(FAULT_CODES)))
        return lambda: motor.inject_fault(code), FAULT_CODES[code]
    status = int(rng.choice([0x8, 0x9, 0xA, 0xB, 0xC, 0xE, 0x5]))
    return lambda: motor.inject_status(status), mit.status_fault(status)


def bus_motor_fault(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """One motor on the bus reports a fault and lets go."""
    onset, joint = _onset(rng), int(rng.integers(7))
    break_down, named = _break_down(rng, rig, joint)
    done = [False]

    def act(rig: Rig, t_s: float) -> None:
        if not done[0]:
            done[0] = True
            break_down()

    return Trial(
        Injection(onset, act=act, note=f"{JOINT_NAMES[joint]} {named.name}"),
        Expectation(_stop(Fault.STATE_STALE), _silence_s(bench) + 2 * DT_S,
                    drive_faults=frozenset({named}), rest="free", in_limits=False),
        0.2,
    )


def bus_motor_silent(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """One motor no longer answers, or neither hears nor answers."""
    onset, joint, deaf = _onset(rng), int(rng.integers(7)), rng.random() < 0.5

    def act(rig: Rig, t_s: float) -> None:
        assert isinstance(rig.arm, BusDriven)
        emulator = rig.arm.emulator
        motor = emulator.motors[joint]
        motor.silent = True
        if not deaf:
            return
        if rig.arm.protocol == MOTEUS:
            from niaf_impedance.drives.moteus_drive import command_ids

            emulator.hears -= command_ids([motor.joint])
        else:
            motor.deaf = True

    return Trial(
        Injection(onset, act=act, note=f"{JOINT_NAMES[joint]}{' deaf' if deaf else ''}"),
        Expectation(_stop(Fault.STATE_STALE), _silence_s(bench) + 2 * DT_S,
                    drive_faults=frozenset({DriveFault.MISSING_REPLY}), rest="sinks"),
        _silence_s(bench) + _settle_s(bench),
    )


def bus_replies_lost(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Single replies get lost: their joints are a few ticks old, nothing stops."""
    onset, share = _onset(rng), float(rng.uniform(0.01, 0.06))

    def act(rig: Rig, t_s: float) -> None:
        assert isinstance(rig.arm, BusDriven)
        for motor in rig.arm.emulator.motors:
            if rng.random() < share:
                motor.drop_replies = 1

    return Trial(
        Injection(onset, act=act, note=f"{share:.0%}"),
        # what a driver does not publish is not the host's lateness, however long it goes on
        Expectation(ON, brakes=False, brakes_within_s=0.6), 0.6,
    )


def bus_off(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """The host's CAN controller goes bus-off, or the wire is cut."""
    onset, cut = _onset(rng), rng.random() < 0.5

    def act(rig: Rig, t_s: float) -> None:
        assert isinstance(rig.arm, BusDriven)
        rig.arm.bus.cut = True
        if not cut:
            rig.arm.bus.error_frames.append(
                can.Message(arbitration_id=0x40, is_error_frame=True, is_extended_id=False)
            )

    return Trial(
        Injection(onset, act=act, note="wire cut" if cut else "error frame"),
        Expectation(_stop(Fault.STATE_STALE), _silence_s(bench) + 2 * DT_S,
                    drive_faults=frozenset({DriveFault.BUS_ERROR if cut else DriveFault.BUS_OFF}),
                    rest="sinks"),
        _silence_s(bench) + _settle_s(bench) + 0.05,
    )


# -- host ------------------------------------------------------------------------------------------
def host_killed(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """The controller's process dies: the drives' watchdog is all there is."""
    onset = _onset(rng)

    def act(rig: Rig, t_s: float) -> None:
        rig.host_runs = False

    watchdog = DriveConfig.watchdog_s  # as stated, whatever the bench has put in
    return Trial(
        Injection(onset, act=act),
        Expectation(frozenset({"WATCHDOG"}), watchdog + TICKS_S, rest="sinks",
                    drive_faults=frozenset({DriveFault.LOST_COMMUNICATION}),
                    unseen_s=watchdog + 0.01),
        watchdog + _settle_s(bench),
    )


def host_stall(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """The scheduler takes the host away for 5 to 500 ms.

    Afterwards the middleware has the newest state; or all of that time come one after the other out
    of a socket, and only the watch that came late itself can tell.
    """
    onset, queued = _onset(rng), rng.random() < 0.4
    ticks = round(10.0 ** rng.uniform(math.log10(5.0), math.log10(500.0)))
    rig.stall_queues = queued
    since = [0]

    def act(rig: Rig, t_s: float) -> None:
        since[0] += 1
        rig.host_runs = since[0] > ticks

    length = ticks * DT_S
    quiet = length + 3 * DT_S
    if not queued:
        wrong = np.arange(ticks + 4) < ticks
        expectation = _late(wrong, quiet, stalled=False)
    else:
        # the watch came up to a period before the stall, and takes one off what it saw
        slack = round(WATCH_S / DT_S) - 1
        damps = _DAMPS_AFTER if rig.watch_first else _DAMPS_AFTER + 1 + slack
        expectation = Expectation(
            _stop(Fault.LOOP_LATE) if ticks > damps else
            ON | _stop(Fault.LOOP_LATE) if ticks >= _DAMPS_AFTER else ON,
            quiet if ticks > damps else math.inf, unseen_s=0.06,
            brakes=True if _BRAKES_AFTER + slack < ticks < _DAMPS_AFTER else
            False if ticks < _BRAKES_AFTER else None,
            brakes_within_s=quiet,
        )
    return Trial(
        Injection(onset, act=act, note=f"{ticks} ms{', states queued' if queued else ''}"),
        expectation, length + _settle_s(bench),
    )


def host_stutter(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Many stalls shorter than the timeout, with a tenth to nine tenths of the time in all."""
    onset, length = _onset(rng), 0.8
    longest = int(rng.integers(3, round(0.7 * bench.config.state_timeout_s / DT_S) + 1))
    duty = float(rng.uniform(0.1, 0.9))
    wrong = np.zeros(round(length / DT_S) + 1, dtype=bool)
    k = 0
    while k < len(wrong):
        stall = int(rng.integers(2, longest + 1))
        wrong[k : k + stall] = True
        k += stall + max(1, round(stall * (1.0 / duty - 1.0) * float(rng.uniform(0.5, 1.5))))
    since = [-1]

    def act(rig: Rig, t_s: float) -> None:
        since[0] += 1
        rig.host_runs = not wrong[min(since[0], len(wrong) - 1)]

    return Trial(
        Injection(onset, act=act, note=f"up to {longest} ms, {wrong.mean():.0%} in all"),
        replace(_late(wrong, length, stalled=True), rest="free"), length,
    )


def parameter_storm(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Gains are set every few ticks, half of the sets invalid."""
    onset, period = _onset(rng), int(rng.integers(1, 12))
    joints = bench.limits_of.joints

    def act(rig: Rig, t_s: float) -> None:
        if rig._tick % period:
            return
        kp = np.array([rng.uniform(0.2, 1.0) * j.kp.maximum for j in joints])
        kd = np.array([rng.uniform(0.1, 0.6) * j.kd.maximum for j in joints])
        if rng.random() < 0.5:
            victim = kp if rng.random() < 0.5 else kd
            victim[int(rng.integers(7))] = float(rng.choice([np.nan, np.inf, -1.0, 1e9, -np.inf]))
        rig.set_gains(kp, kd)

    return Trial(
        Injection(onset, act=act, note=f"every {period} ms"), Expectation(ON, rest="free"), 0.3
    )


def estop(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    onset = _onset(rng)

    def act(rig: Rig, t_s: float) -> None:
        if rig.controller.mode != Mode.ESTOP:
            rig.controller.estop()

    return Trial(
        Injection(onset, act=act), Expectation(frozenset({"ESTOP/ESTOP_REQUESTED"}), TICKS_S),
        _settle_s(bench) + 0.1,
    )


def brake_and_deactivate(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """~/brake, or the lifecycle's deactivation, in the middle of a motion."""
    onset, off = float(rng.uniform(0.12, 0.4)), rng.random() < 0.5
    config = bench.config
    done = [False]

    def act(rig: Rig, t_s: float) -> None:
        rig.policy_runs = False
        rig._published.clear()
        if not done[0]:
            done[0] = True
            controller = rig.controller
            if off:
                controller.deactivate(controller.last_tick_s)
            else:
                controller.brake(controller.last_tick_s)

    bound = config.brake_max_s + TICKS_S
    if off:
        bound += config.deactivate_s + TICKS_S
    return Trial(
        Injection(onset, act=act, note="deactivate" if off else "brake"),
        Expectation(frozenset({"OFF/NONE"}) if off else EXHAUSTED, bound,
                    rest="free" if off else "still"),
        bound + 0.05,
    )


def service_storm(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """estop, reset and brake at random, several times in a few ticks."""
    onset = _onset(rng)

    def act(rig: Rig, t_s: float) -> None:
        if rng.random() < 0.05:
            controller = rig.controller
            what = int(rng.integers(4))
            if what == 0:
                controller.estop()
            elif what == 1:
                controller.brake(controller.last_tick_s)
            else:
                try:
                    rig.host.reset()
                except ResetRefusedError:
                    rig.refused_sets += 1

    ends = ON | {"ESTOP/ESTOP_REQUESTED"} | PUSHED
    return Trial(Injection(onset, act=act), Expectation(ends, rest="free"), 0.4)


# -- the world -------------------------------------------------------------------------------------
def collision(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Something pushes the hand, for an instant or for good."""
    onset = _onset(rng)
    force = rng.normal(size=3)
    force *= 10.0 ** rng.uniform(1.0, 2.9) / np.linalg.norm(force)
    length = float(10.0 ** rng.uniform(-2.0, 0.0))

    def act(rig: Rig, t_s: float) -> None:
        rig.cell.data.xfrc_applied[rig.hand, :3] = force if t_s < onset + length else 0.0

    return Trial(
        Injection(onset, act=act, note=f"{np.linalg.norm(force):.0f} N, {length * 1e3:.0f} ms"),
        # what holds a joint on one encoder count may well be named a frozen reading
        Expectation(ON | PUSHED | STUCK, rest="free", in_limits=False), 0.4,
    )


def payload(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """The hand weighs more than the model knows."""
    onset, mass = _onset(rng), float(rng.uniform(0.2, 8.0))

    def act(rig: Rig, t_s: float) -> None:
        rig.cell.data.xfrc_applied[rig.hand, 2] = -9.81 * mass

    return Trial(
        Injection(onset, act=act, note=f"{mass:.1f} kg"), Expectation(ON | PUSHED, rest="free"), 0.4
    )


def none(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Control: without a fault nothing stops."""
    return Trial(Injection(math.inf), Expectation(ON, rest="free"), 0.7)


def two_at_once(rng: np.random.Generator, bench: Bench, rig: Rig) -> Trial:
    """Two faults of the list; whatever stops the arm must be named and inside the limits."""
    names = rng.choice([name for name in EVERYWHERE if name != "two_at_once"], size=2)
    first, second = (EVERYWHERE[str(name)](rng, bench, rig) for name in names)
    a, b = first.injection, second.injection

    def act(rig: Rig, t_s: float) -> None:
        for injection in (a, b):
            if injection.act is not None and t_s >= injection.onset_s:
                injection.act(rig, t_s)

    def fields(rig: Rig, message: FieldMessage) -> list[FieldMessage]:
        messages = [message]
        for injection in (a, b):
            if injection.fields is not None and rig.t_s >= injection.onset_s:
                messages = [m for old in messages for m in injection.fields(rig, old)]
        return messages

    def state(rig: Rig, reading: Reading) -> Reading | None:
        changed: Reading | None = reading
        for injection in (a, b):
            if changed is not None and injection.state is not None and (
                rig.t_s >= injection.onset_s
            ):
                changed = injection.state(rig, changed)
        return changed

    def drive(bank: DriveBank) -> None:
        for injection in (a, b):
            if injection.drive is not None:
                injection.drive(bank)

    onset = min(a.onset_s, b.onset_s)
    ends = first.expectation.ends | second.expectation.ends | ON | EXHAUSTED | PUSHED
    ends |= {"WATCHDOG"} | _stop(
        Fault.STATE_STALE, Fault.STATE_NOT_FINITE, Fault.CLOCK_NOT_ADVANCING,
        Fault.STATE_FROZEN, Fault.LOOP_LATE)
    if "OFF/NONE" in ends:  # while deactivating, DAMP goes on to OFF
        ends |= {end.replace("DAMP", "OFF") for end in ends}
    length = min(max(first.after_s + a.onset_s, second.after_s + b.onset_s) - onset, 0.8) \
        if math.isfinite(onset) else 0.7
    return Trial(
        Injection(onset, act=act, fields=fields, state=state, drive=drive,
                  note=f"{names[0]} ({a.note}) + {names[1]} ({b.note})"),
        Expectation(frozenset(ends), rest="free", in_limits=False, unseen_s=0.08), length,
    )


#: faults of the FOC drives' arm
EVERYWHERE: dict[str, Draw] = {
    draw.__name__: draw for draw in (
        policy_killed, policy_frozen, policy_flood, policy_out_of_order, policy_late,
        field_not_finite, field_huge_modulation, field_noise, field_wrong_prior,
        field_wrong_length, field_wrong_horizon, field_wrong_time, field_elsewhere,
        clock_jump, clock_of_sensor_jump, clock_stuck,
        state_silent, state_gaps, state_frozen, state_delayed, state_reordered, state_noisy,
        state_not_finite, state_jump, state_malformed, state_permuted,
        drive_dropout, motor_dead, motor_runaway,
        host_killed, host_stall, host_stutter, parameter_storm, estop, brake_and_deactivate,
        service_storm, collision, payload, none,
    )
}
#: faults of the arm behind a CAN bus
ON_THE_BUS: dict[str, Draw] = {
    draw.__name__: draw
    for draw in (bus_motor_fault, bus_motor_silent, bus_replies_lost, bus_off)
}
KINDS: dict[str, Draw] = EVERYWHERE | {"two_at_once": two_at_once} | ON_THE_BUS

#: order in which seeds take kinds; pairs and host stalls have more to draw than others
ORDER = (*KINDS, "two_at_once", "two_at_once", "host_stall", "field_noise")


def kind_of(seed: int) -> str:
    """The kind that a seed stands for."""
    return ORDER[seed % len(ORDER)]


def protocol_of(seed: int) -> str:
    """What the motors speak where this seed has motors on a bus."""
    return PROTOCOLS[int(np.random.default_rng([seed, 2]).integers(len(PROTOCOLS)))]


# -- one trial -------------------------------------------------------------------------------------
def run_trial(seed: int, bench: Bench, kind: str | None = None) -> TrialResult:
    """Run and judge the trial of ``seed`` (of ``kind`` instead of its own, if given)."""
    name = kind_of(seed) if kind is None else kind
    rig = Rig(bench, seed, protocol_of(seed) if name in ON_THE_BUS else "")
    try:
        trial = KINDS[name](np.random.default_rng([seed, 0]), bench, rig)
        onset = trial.injection.onset_s
        length = (onset if math.isfinite(onset) else 0.0) + trial.after_s
        rig.run(round(length / DT_S) * DT_S, trial.injection)
        if trial.expectation.exhausts:
            quiet_s = onset + 2.0 * REPLAN_S  # a field under way at the onset still arrives
            while rig.t_s < quiet_s or (
                rig.controller.mode != Mode.HOLD
                and rig.t_s < max(onset, rig.field_end_s) + _exhausts(rig) + REPLAN_S
            ):
                rig.run(0.02, trial.injection)
            rig.run(0.1, trial.injection)
        return judge(seed, name, rig, trial)
    finally:
        rig.close()


def judge(seed: int, kind: str, rig: Rig, trial: Trial) -> TrialResult:
    """Compare a trace with limits and expectation; see the module's page."""
    trace, e = rig.trace, trial.expectation
    bench = rig.bench
    n = trace.ticks
    found: list[str] = []
    joints = bench.limits_of.joints
    limit = np.array([joint.torque_limit_nm for joint in joints])
    rate = np.array([joint.torque_rate_limit_nm_s for joint in joints])
    names = bench.limits_of.joints

    # -- what was commanded
    sent = np.flatnonzero(trace.sent[:n])
    command = trace.command_nm[sent]
    torque_ratio = rate_ratio = 0.0
    if not np.isfinite(command).all():
        k = sent[int(np.flatnonzero(~np.isfinite(command).all(axis=1))[0])]
        found.append(f"command not finite at {trace.t_s[k]:.3f} s")
    elif len(sent):
        torque_ratio = float(np.max(np.abs(command) / limit))
        if torque_ratio > 1.0 + 1e-9:
            found.append(f"torque command {torque_ratio:.4f} of the limit")
        if len(sent) > 1:
            step = np.abs(np.diff(command, axis=0))
            # Time between two commands: true time, or the stamps' where they say more, which the
            # documented law caps at dt_max_s.
            stamps = np.minimum(np.diff(trace.stamp_s[sent]), bench.config.dt_max_s)
            elapsed = np.maximum(np.diff(trace.t_s[sent]), stamps)
            ratio = step / (rate * elapsed[:, None])
            rate_ratio = float(ratio.max())
            if rate_ratio > 1.0 + 1e-6:
                k, j = np.unravel_index(int(ratio.argmax()), ratio.shape)
                found.append(
                    f"torque rate {rate_ratio:.3f} of the limit on {names[j].name} at "
                    f"{trace.t_s[sent[k + 1]]:.3f} s ({step[k, j]:.2f} Nm)"
                )
    if not np.isfinite(trace.gripper_m[:n]).all():
        found.append("gripper command not finite")
    if not trace.gain_ok[:n].all() or rig.unexplained_sets:
        found.append("a gain outside its range is in force")

    # -- what the drives and the arm did
    drive = trace.drive_nm[:n]
    drive_ratio = math.inf
    if not np.isfinite(drive).all() or not np.isfinite(trace.q[:n]).all():
        found.append("drive torque or arm not finite")
    else:
        allowed = np.where(
            trace.watchdog[:n, None], rig.arm.own_limit_nm, limit + rig.arm.resolution_nm
        )
        drive_ratio = float(np.max(np.abs(drive) / allowed))
        if drive_ratio > 1.0 + 1e-9:
            found.append(f"drive torque {drive_ratio:.4f} of the limit")
    if e.in_limits:
        low, high = rig.cell.model.jnt_range[:7].T
        over = np.maximum(trace.q[:n] - high, low - trace.q[:n])
        if over.max() > 0.02:
            found.append(f"{names[int(over.max(axis=0).argmax())].name} {over.max():.3f} rad "
                         "beyond its mechanical limit")
    stopped = np.isin(trace.mode[:n], [int(m) for m in STOPPED]) | trace.watchdog[:n]
    speed_limit = np.array([joint.velocity_limit_rad_s for joint in joints])
    _unseen(found, "speed beyond overspeed_ratio", trace.t_s[:n], stopped, e.unseen_s, names,
            np.abs(trace.dq[:n]) > 1.05 * bench.config.overspeed_ratio * speed_limit)
    following = np.isin(trace.mode[:n], [int(m) for m in FOLLOWING])
    _unseen(found, "tracking error beyond its limit", trace.t_s[:n], stopped, e.unseen_s, names,
            (np.abs(trace.q_ref[:n] - trace.q[:n]) > bench.config.tracking_error_limit_rad + 0.02)
            & following[:, None])

    # -- names
    for k in np.flatnonzero(np.diff(trace.mode[:n], prepend=trace.mode[0])):
        mode, fault = Mode(int(trace.mode[k])), Fault(int(trace.fault[k]))
        if mode in (Mode.DAMP, Mode.ESTOP) and not describe(fault):
            found.append(f"unnamed stop: {mode.name} at {trace.t_s[k]:.3f} s")
    for heard in rig.heard:
        if heard.number and not heard.text:
            found.append(f"unnamed refusal: reason {heard.number}")
        if heard.injected and e.refusals and heard.number not in e.refusals:
            found.append(f"injected field answered with {_reason(heard.number)}")
    drive_fault = rig.arm.fault
    if drive_fault == DriveFault.NONE and trace.watchdog[:n].any():
        drive_fault = DriveFault.LOST_COMMUNICATION
    if e.drive_faults and drive_fault not in e.drive_faults:
        found.append(f"drive named {drive_fault.name}, expected "
                     f"{sorted(f.name for f in e.drive_faults)}")
    if drive_fault != DriveFault.NONE and not DRIVE_FAULT_TEXT[drive_fault].cause:
        found.append("unnamed drive fault")

    # -- end, time, rest
    outcome, reached_s = _outcome(trace, n, e.ends)
    onset = trial.injection.onset_s if math.isfinite(trial.injection.onset_s) else 0.0
    stop_s = reached_s - onset
    bound_s = e.within_s
    if e.exhausts:
        slowest = rig.bench.fields.prior.horizon_s / bench.config.slow_min_scale + 0.1
        end_s = min(rig.field_end_s - onset, slowest) + 0.5 * bench.config.brake_max_s
        bound_s = max(bound_s, end_s + TICKS_S)
    if outcome not in e.ends:
        found.append(f"ended in {outcome}, expected {' or '.join(sorted(e.ends))}")
    elif stop_s > bound_s + 1e-9:
        found.append(f"{outcome} after {stop_s:.3f} s, stated {bound_s:.3f} s")
    if e.brakes is not None:
        _brakes(found, trace.t_s[:n], trace.mode[:n], onset, e)
    if outcome in e.ends and e.rest != "free" and not outcome.startswith("FOLLOWING"):
        _rest(found, rig, e, n, reached_s, names)
    note = trial.injection.note
    if isinstance(rig.arm, BusDriven):
        note = f"{rig.arm.protocol} {note}"
    accepted = sum(1 for heard in rig.heard if heard.number == 0)
    reasons: dict[str, int] = {}
    for heard in rig.heard:
        if heard.number:
            reasons[_reason(heard.number)] = reasons.get(_reason(heard.number), 0) + 1
    return TrialResult(
        seed, kind, note, outcome, tuple(dict.fromkeys(found)), torque_ratio,
        rate_ratio, drive_ratio, stop_s if not outcome.startswith("FOLLOWING") else math.nan,
        bound_s, n * DT_S, accepted, len(rig.heard) - accepted, reasons,
    )


def _reason(number: int) -> str:
    if number == 0:
        return "ACCEPTED"
    return RefusalReason(number).name if number < 100 else Reason(number).name


def _brakes(
    found: list[str], t_s: FloatArray, mode: FloatArray, onset: float, e: Expectation
) -> None:
    """Whether the arm was braked, or not, as expected."""
    begin = max(int(np.searchsorted(t_s, onset)), 1)
    end = int(np.searchsorted(t_s, onset + e.brakes_within_s, side="right"))
    left_off = np.isin(mode[begin:end], (int(Mode.BRAKE), int(Mode.HOLD)))
    braked = left_off & (mode[begin - 1 : end - 1] == int(Mode.TRACK))
    if e.brakes and mode[begin - 1] == int(Mode.TRACK) and not braked.any():
        found.append(f"not braked within {e.brakes_within_s:.3f} s")
    if not e.brakes and braked.any():
        found.append(f"braked at {t_s[begin + int(braked.argmax())]:.3f} s")


def _unseen(
    found: list[str], what: str, t_s: FloatArray, stopped: FloatArray, longest_s: float,
    joints: tuple, beyond: FloatArray,
) -> None:
    """A threshold that the arm truly passed must have led to a stop soon after."""
    for j in range(beyond.shape[1]):
        run = 0
        for k in np.flatnonzero(beyond[:, j]):
            run = run + 1 if k and beyond[k - 1, j] and not stopped[k] else 1
            if stopped[k]:
                run = 0
            if run * DT_S > longest_s:
                found.append(f"{what} of {joints[j].name} unseen at {t_s[k]:.3f} s")
                return


def _outcome(trace: object, n: int, ends: frozenset[str]) -> tuple[str, float]:
    """Name of the end and the instant since when it has been kept."""
    mode, fault, t_s = trace.mode[:n], trace.fault[:n], trace.t_s[:n]  # type: ignore[attr-defined]
    watchdog = trace.watchdog[:n]  # type: ignore[attr-defined]

    def since(kept: FloatArray) -> float:
        breaks = np.flatnonzero(~kept)
        return float(t_s[breaks[-1] + 1]) if len(breaks) else float(t_s[0])

    last, last_fault = Mode(int(mode[-1])), Fault(int(fault[-1]))
    if last in FOLLOWING and last_fault == Fault.NONE:
        if watchdog[-1] and "WATCHDOG" in ends:
            return "WATCHDOG", since(watchdog)
        at = since(mode == int(Mode.HOLD)) if last == Mode.HOLD else math.inf
        if last == Mode.HOLD and (mode == int(Mode.BRAKE)).any() and "EXHAUSTED" in ends:
            return "EXHAUSTED", at
        if last == Mode.HOLD and "EXHAUSTED" in ends and not (mode == int(Mode.TRACK)).any():
            return "EXHAUSTED", at  # never set off
        return "FOLLOWING", since(fault == int(Fault.NONE))
    return f"{last.name}/{last_fault.name}", since((mode == last) & (fault == last_fault))


def _rest(
    found: list[str], rig: Rig, e: Expectation, n: int, reached_s: float, joints: tuple
) -> None:
    """Speed at the end of the trial against what the stop's damping leaves of it."""
    trace, bench = rig.trace, rig.bench
    t_s, dq = trace.t_s[:n], np.abs(trace.dq[:n])
    end = dq[-20:].max(axis=0)
    damped = np.flatnonzero(trace.watchdog[:n])
    if len(damped) and not trace.watchdog[n - 1]:  # commands came back: the arm had been sinking
        reached_s = max(reached_s, float(t_s[damped[-1]]))
    elapsed = max(float(t_s[-1]) - reached_s - 0.02, 0.0)
    after = dq[(t_s >= reached_s) & (t_s <= reached_s + 0.02)]
    begin = float(after.max()) if len(after) else 0.0
    # half as slow again as the slowest mode of the stated damping, plus the drives' ripple
    allowed = np.full(7, begin * math.exp(-elapsed / (1.5 * bench.decay_s)) + 0.05)
    if e.rest == "sinks" or trace.watchdog[n - 1]:
        damping = np.array(rig.cell.drives.config.watchdog_damping_nms)
        weight = np.abs(ArmModel(bench.limits_of).gravity_torque(trace.q[n - 1].copy()))
        allowed += 1.5 * (weight + 2.0) / damping
    worst = int((end / allowed).argmax())
    if end[worst] > allowed[worst]:
        found.append(
            f"{joints[worst].name} still moves at {end[worst]:.2f} rad/s {elapsed:.2f} s after the "
            f"stop, {allowed[worst]:.2f} allowed (was {begin:.2f})"
        )


__all__ = ["KINDS", "Bench", "Expectation", "FocArm", "TrialResult", "kind_of", "run_trial"]
