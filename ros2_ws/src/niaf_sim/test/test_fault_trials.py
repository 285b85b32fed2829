"""Every kind of fault in lock-step, and controllers broken on purpose that the judge must catch."""

from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from niaf_impedance.controller import ImpedanceController
from niaf_impedance.drives.description import PROTOCOLS
from niaf_impedance.faults import Fault
from niaf_impedance.lateness import ONLY_COUNT, LoopLimits
from niaf_sim.fault_injection import Bench, HostLoop, Injection
from niaf_sim.fault_trials import (
    KINDS,
    ON_THE_BUS,
    ORDER,
    PUSHED,
    Expectation,
    Trial,
    kind_of,
    protocol_of,
    run_trial,
)

#: kinds in which the controller is known to fall short of what is expected: see the tests below
OPEN: tuple[str, ...] = ()
#: what no trial may show, whatever is open
NEVER = ("not finite", "torque command", "torque rate", "drive torque", "unnamed", "gain outside")


@pytest.fixture(scope="module")
def bench():
    return Bench()


def beside(bench, **parts):
    """A bench with some parts replaced, on the physics and fields of the other."""
    other = Bench(**parts)
    other.__dict__["fields"] = bench.fields
    if "drive_watchdog_s" not in parts:
        other.__dict__["cell"] = bench.cell
    return other


def violations(bench, kind, seeds):
    return [v for seed in seeds for v in run_trial(seed, bench, kind).violations]


@pytest.mark.parametrize("kind", list(KINDS))
def test_fault_ends_named_in_time_and_inside_the_limits(bench, kind):
    for seed in (11, 12):
        result = run_trial(seed, bench, kind)
        found = result.violations
        if kind in OPEN:
            found = tuple(v for v in found if any(word in v for word in NEVER))
        assert not found, result
        assert result.simulated_s > 0.1


def test_seeds_cover_every_kind_and_repeat_themselves(bench):
    assert {kind_of(seed) for seed in range(len(ORDER))} == set(KINDS)
    first, second = run_trial(17, bench), run_trial(17, bench)
    assert first == second or repr(first) == repr(second)  # NaN differs from itself


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", list(ON_THE_BUS))
def test_motors_of_every_protocol_break_down_on_the_bus(bench, kind, protocol):
    seed = next(seed for seed in count(30) if protocol_of(seed) == protocol)
    result = run_trial(seed, bench, kind)
    assert not result.violations, result
    assert result.note.startswith(protocol)


# -- the judge can fail ----------------------------------------------------------------------------
def with_joints(bench, **values):
    robot = bench.limits_of
    return replace(robot, joints=tuple(replace(j, **values) for j in robot.joints))


def test_judge_sees_a_torque_rate_that_is_not_limited(bench):
    broken = beside(bench, robot=with_joints(bench, torque_rate_limit_nm_s=1e6))
    assert any("torque rate" in v for v in violations(broken, "state_noisy", range(4)))


def pressed(rng, bench, rig):
    def act(rig, t_s):
        rig.cell.data.xfrc_applied[rig.hand, 2] = -400.0

    return Trial(Injection(0.1, act=act), Expectation(PUSHED, rest="free"), 0.3)


class ScalesUp(ImpedanceController):
    """The robot description cannot be made to allow more than the URDF, so after the limit."""

    def tick(self, t_s, q, dq):
        return 1.2 * super().tick(t_s, q, dq)


def test_judge_sees_a_torque_that_is_not_limited(bench, monkeypatch):
    monkeypatch.setitem(KINDS, "pressed", pressed)
    assert not any("torque command" in v for v in violations(bench, "pressed", range(2)))
    broken = beside(bench, make_controller=ScalesUp)
    assert any("torque command" in v for v in violations(broken, "pressed", range(2)))


class LetsNanThrough(ImpedanceController):
    def tick(self, t_s, q, dq):
        tau = super().tick(t_s, q, dq)
        return tau if np.isfinite(q).all() and np.isfinite(dq).all() else tau * np.nan


class NeverStale(ImpedanceController):
    def note_state_age(self, age_s):
        return False


class SlowToNotice(ImpedanceController):
    def note_state_age(self, age_s):
        return super().note_state_age(age_s / 3.0)


class KeepsQuiet(ImpedanceController):
    @property
    def fault(self):
        return Fault.NONE


class ChecksNothing(HostLoop):
    def on_field(self, message, wall_s):
        return 0, "", wall_s + 1.0


class NeverLate(HostLoop):
    def __init__(self, *args):
        super().__init__(*args, loop_limits=ONLY_COUNT)


class Nervous(HostLoop):
    def __init__(self, *args):
        super().__init__(*args, loop_limits=LoopLimits(brake_lateness_s=2e-3))


class CountsNoStates(HostLoop):
    def on_joint_state(self, data, wall_s, mono_s, received_s, number):
        return super().on_joint_state(data, wall_s, mono_s, received_s, None)


class NeverWatchesItself(HostLoop):
    def watch(self, mono_s):
        self._loop.watched_s = mono_s
        return super().watch(mono_s)


class BlamesItself(HostLoop):
    def watch(self, mono_s):
        self._loop.watched_s = -1.0
        return super().watch(mono_s)


@pytest.mark.parametrize(
    ("host", "kind", "said"),
    [
        (NeverLate, "host_stall", "ended in DAMP/STATE_STALE, expected DAMP/LOOP_LATE"),
        (NeverLate, "host_stutter", "not braked"),
        (Nervous, "host_stall", "braked at"),
        (Nervous, "host_stutter", "braked at"),
        (CountsNoStates, "state_gaps", "not braked"),
        (NeverWatchesItself, "host_stall", "ended in DAMP/STATE_STALE, expected DAMP/LOOP_LATE"),
        (BlamesItself, "state_silent", "ended in DAMP/LOOP_LATE, expected DAMP/STATE_STALE"),
    ],
)
def test_judge_sees_a_host_that_misjudges_its_lateness(bench, host, kind, said):
    found = []
    for seed in range(40):
        found += run_trial(seed, beside(bench, make_host=host), kind).violations
        if any(said in violation for violation in found):
            return
    raise AssertionError(found)


@pytest.mark.parametrize(
    ("parts", "kind", "said"),
    [
        ({"make_controller": LetsNanThrough}, "state_not_finite", "command not finite"),
        ({"make_controller": NeverStale}, "state_silent", "ended in"),
        ({"make_controller": SlowToNotice}, "state_silent", "stated"),
        ({"make_controller": KeepsQuiet}, "estop", "unnamed stop"),
        ({"make_host": ChecksNothing}, "field_wrong_prior", "answered with ACCEPTED"),
        ({"drive_watchdog_s": 10.0}, "host_killed", "ended in"),
    ],
)
def test_judge_sees_a_guard_that_is_off(bench, parts, kind, said):
    assert any(said in v for v in violations(beside(bench, **parts), kind, range(3)))


def test_judge_sees_a_stop_that_does_not_damp(bench):
    broken = beside(bench, robot=with_joints(bench, damp_nms_rad=1e-3))
    assert any("still moves" in v for v in violations(broken, "estop", range(6)))
