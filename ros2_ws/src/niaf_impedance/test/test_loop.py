"""The compiled loop thread: seqlock, ladder, hand-over, silence. Timings: benchmarks."""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from impedance_support import make_field
from numba import njit
from numba.core.runtime import _nrt_python, rtsys

from niaf_impedance import ImpedanceController
from niaf_impedance import tick as k
from niaf_impedance.admission import Reason
from niaf_impedance.faults import Fault, Mode
from niaf_impedance.lateness import ONLY_COUNT, Rung
from niaf_impedance.loop import (
    S_EPOCH_NS,
    W_COMMANDS,
    W_STATE,
    W_TICKS,
    ControlLoop,
    clock_ns,
    read_cell,
    sleep_until,
    write_cell,
)
from niaf_impedance.settings import ControllerConfig
from niaf_impedance.warm_up import warm_up

RATE_HZ = 1000.0
STOP, SILENT = 0, 1


@njit(nogil=True)
def _feed(words, settings, cell, state, flags, timespec):
    """``ControlLoop.offer_state`` about every millisecond, without the GIL: a state must not come
    late because the test compiles something or its main thread was suspended holding the GIL."""
    while flags[STOP] == 0:
        now = clock_ns(1, timespec)
        if flags[SILENT] == 0:
            state[0] = (now - int(settings[S_EPOCH_NS])) * 1e-9
            write_cell(words, W_STATE, cell, state)
        sleep_until(now + 800_000, timespec)


class ToyArm:
    """Offers the same pose about every millisecond until told to be silent."""

    def __init__(self, loop: ControlLoop, q: np.ndarray) -> None:
        self.loop, self.q = loop, q
        self._flags = np.zeros(2, dtype=np.int64)
        arguments = (
            loop._words, loop._settings, loop._state_cell,
            np.concatenate([[0.0], q, np.zeros_like(q)]), self._flags, np.zeros(2, dtype=np.int64),
        )
        self._flags[STOP] = 1  # compiles
        _feed(*arguments)
        self._flags[STOP] = 0
        self._thread = threading.Thread(target=_feed, args=arguments)
        self._thread.start()

    @property
    def silent(self) -> bool:
        return bool(self._flags[SILENT])

    @silent.setter
    def silent(self, value: bool) -> None:
        self._flags[SILENT] = value

    def close(self) -> None:
        self._flags[STOP] = 1
        self._thread.join()


@pytest.fixture(scope="module", autouse=True)
def _compiled(arm, prior):
    """Compile planning too, so that a plan does not come too late for its own hand-over."""
    warm_up(ImpedanceController(ControllerConfig(), arm, prior))


@pytest.fixture
def patient(arm, prior):
    """A controller that waits long for states, because the test machine may stall."""
    # these tests feed one pose for ever, which a real arm under a moving reference does not report
    config = ControllerConfig(
        state_timeout_s=0.3, dt_max_s=0.005, frozen_reference_rad=0.0, frozen_motion_rad=0.0)
    return ImpedanceController(config, arm, prior)


@pytest.fixture
def running(patient, arm):
    """(loop, toy arm), holding the home pose."""
    loop = ControlLoop(patient, RATE_HZ, ONLY_COUNT)
    toy = ToyArm(loop, arm.config.home_rad.copy())
    loop.start()
    loop.activate(arm.config.home_rad, np.zeros(arm.n))
    yield loop, toy
    toy.close()
    loop.close()


def wait_for(condition, what, timeout_s=3.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
        time.sleep(0.002)


def follow(loop, prior, q, lead_s=0.25):
    """Commit a field to the running loop; the field."""
    now = loop.now_s()
    field = make_field(prior, q, now, 1)
    verdict = loop.commit(loop.controller.plan(loop.snapshot(), now, field, lead_s=lead_s))
    assert verdict.accepted, verdict.text
    return field


def test_runs_on_its_own_and_publishes_what_holds_the_arm(running, arm):
    loop, _ = running
    wait_for(lambda: loop.read_command() is not None, "the first command")
    first, heartbeat = loop.read_command(), loop.heartbeat
    time.sleep(0.3)
    last, statistics = loop.read_command(), loop.statistics
    assert loop.heartbeat > heartbeat
    assert last.count > first.count
    assert last.t_s > last.state_s > first.state_s
    assert last.mode == Mode.HOLD
    np.testing.assert_allclose(last.tau_nm, arm.gravity_torque(arm.config.home_rad), atol=1e-6)
    assert statistics.ticks > 3
    assert 0 < statistics.age.count <= statistics.lateness.count + 1
    assert 0.0 < statistics.age.p50_s < 0.3
    assert statistics.outcome in (Rung.ON_TIME, Rung.LATE)


def test_every_command_wakes_its_reader(running):
    loop, _ = running
    wait_for(lambda: loop.read_command() is not None, "the first command")
    os.eventfd_read(loop.command_fd)
    before = loop.read_command().count
    time.sleep(0.05)
    woken = os.eventfd_read(loop.command_fd)  # counts the commands since it was read
    assert woken >= loop.read_command().count - before - 2 > 0


def test_a_tick_from_python_leaves_no_object_behind(patient, arm):
    home, zero = arm.config.home_rad, np.zeros(arm.n)
    patient.activate(0.0, home, zero)
    times = [0.001 * i for i in range(1, 1301)]
    for t in times[:300]:
        patient.tick(t, home, zero)
    before = sys.getallocatedblocks()
    for t in times[300:]:
        patient.tick(t, home, zero)
    assert abs(sys.getallocatedblocks() - before) < 10


def test_a_thousand_ticks_of_the_loop_allocate_nothing(arm, prior):
    controller = ImpedanceController(ControllerConfig(
        state_timeout_s=30.0, frozen_reference_rad=0.0, frozen_motion_rad=0.0), arm, prior)
    loop = ControlLoop(controller, 2000.0, ONLY_COUNT)
    _nrt_python.memsys_enable_stats()
    home = arm.config.home_rad
    loop.offer_state(loop.now_s(), home, np.zeros(arm.n))
    loop.start()
    try:
        loop.activate(home, np.zeros(arm.n))
        plan = controller.plan(
            loop.snapshot(), loop.now_s(), make_field(prior, home, loop.now_s(), 1), lead_s=0.3)
        assert loop.commit(plan).accepted
        before, ticks = rtsys.get_allocation_stats(), loop.statistics.ticks
        wait_for(lambda: loop._words[W_TICKS] > ticks + 1000, "1000 ticks", 10.0)
        after = rtsys.get_allocation_stats()
        assert controller.sequence == 1, "the hand-over lies inside"
    finally:
        loop.close()
    assert after == before


@njit(nogil=True)
def _hammer(words, cell, values, idle, stop):
    """Write cells whose numbers all are equal, with a short rest so that readers get a chance."""
    x = 0.0
    while stop[0] == 0:
        x += 1.0
        for i in range(values.shape[0]):
            values[i] = x
        write_cell(words, 0, cell, values)
        for i in range(2000):
            idle[i % 8] += x


@njit(nogil=True)
def _watch(words, cell, values, reads, seen):
    """Count in ``seen``: new values accepted, torn ones accepted, torn ones in careless copies."""
    last = 0.0
    for _ in range(reads):
        if read_cell(words, 0, cell, values):
            seen[0] += values[0] != last
            last = values[0]
            for i in range(values.shape[0]):
                seen[1] += values[i] != last
        for i in range(values.shape[0]):
            values[i] = cell[i]
        seen[2] += values[0] != values[values.shape[0] - 1]


def test_a_snapshot_torn_by_its_writer_is_never_accepted():
    words, stop = np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int64)
    seen = np.zeros(3, dtype=np.int64)
    cell, copy, written = np.zeros((3, 60))  # long, so that tearing it is easy
    _hammer(words, cell, written, np.zeros(8), stop)  # compile
    _watch(words, cell, copy, 1, seen)
    stop[0] = 0
    writer = threading.Thread(target=_hammer, args=(words, cell, written, np.zeros(8), stop))
    writer.start()
    end = time.monotonic() + 20.0
    try:
        while (seen[0] < 100 or seen[2] < 3) and time.monotonic() < end:
            _watch(words, cell, copy, 20_000, seen)
    finally:
        stop[0] = 1
        writer.join()
    accepted, torn, careless = seen
    assert accepted >= 100, "the writer did not run at the same time"
    assert careless >= 3, "nothing was ever torn: this proves nothing"
    assert torn == 0


def test_an_unwritten_or_half_written_cell_is_not_accepted():
    words, cell, values = np.zeros(1, dtype=np.int64), np.ones(3), np.zeros(3)
    assert not read_cell(words, 0, cell, values)
    write_cell(words, 0, cell, np.full(3, 2.0))
    assert read_cell(words, 0, cell, values)
    words[0] += 1
    assert not read_cell(words, 0, cell, values)


def test_silence_damps_then_the_loop_falls_silent_until_states_return(running, arm):
    loop, toy = running
    wait_for(lambda: loop.read_command() is not None, "the first command")
    toy.silent = True
    wait_for(lambda: loop.controller.mode == Mode.DAMP, "DAMP")
    assert loop.controller.fault == Fault.STATE_STALE
    time.sleep(0.02)
    last = loop.read_command()
    assert last.mode == Mode.DAMP
    np.testing.assert_allclose(last.tau_nm, arm.gravity_torque(toy.q), atol=1e-6)
    heartbeat = loop.heartbeat
    time.sleep(0.05)
    assert loop.heartbeat > heartbeat
    assert loop.read_command().count == last.count
    toy.silent = False
    wait_for(lambda: loop.read_command().count > last.count, "commands again")
    assert loop.controller.mode == Mode.DAMP, "latched"
    with loop.paused():
        loop.controller.reset(loop.now_s())
    wait_for(lambda: loop.read_command().mode == Mode.HOLD, "HOLD")


def test_stop_ends_the_thread_within_50_ms(running):
    loop, _ = running
    took = []
    for _ in range(3):
        begin = time.monotonic()
        loop.stop()
        took.append(time.monotonic() - begin)
        assert not loop.running
        loop.start()
    assert min(took) < 0.05


def commands_of(loop, duration_s):
    """Every command that could be read in ``duration_s``, in order."""
    commands, end = [loop.read_command()], time.monotonic() + duration_s
    while time.monotonic() < end:
        command = loop.read_command()
        if command.count != commands[-1].count:
            commands.append(command)
        time.sleep(0.0002)
    return commands


def test_a_plan_committed_while_it_runs_makes_no_torque_step(running, prior, arm):
    loop, toy = running
    controller = loop.controller
    wait_for(lambda: loop.read_command() is not None, "the first command")
    for sequence in (1, 2):  # from rest, then in motion
        now = loop.now_s()
        field = make_field(prior, toy.q, now, sequence, seed=sequence)
        plan = controller.plan(loop.snapshot(), now, field, lead_s=0.25)
        verdict = loop.commit(plan)
        assert verdict.accepted, verdict.text
        assert controller.sequence == sequence - 1, "handed over before its instant"
        commands = commands_of(loop, plan.flip_s - loop.now_s() + 0.2)
        assert controller.sequence == sequence
        assert controller.mode == Mode.TRACK
        # what remains of a step is that of the toy's states, which come late on a busy machine
        for a, b in zip(commands, commands[1:], strict=False):
            if b.count == a.count + 1:
                step = arm.limits.torque_rate_nm_s * (b.t_s - a.t_s)
                assert np.all(np.abs(b.tau_nm - a.tau_nm) <= 1.001 * step)
    assert controller.statistics.seam_position_peak_rad < 1e-9
    assert controller.statistics.seam_velocity_peak_rad_s < 1e-8
    assert controller.statistics.seam_acceleration_peak_rad_s2 < 1e-7


def test_a_plan_that_comes_too_late_is_overtaken_and_changes_nothing(running, prior):
    loop, toy = running
    now = loop.now_s()
    plan = loop.controller.plan(
        loop.snapshot(), now, make_field(prior, toy.q, now, 1), lead_s=0.001)
    time.sleep(0.01)
    assert loop.commit(plan).reason == Reason.OVERTAKEN
    time.sleep(0.02)
    assert loop.controller.mode == Mode.HOLD
    assert loop.controller.accepted_count == 0


def test_brake_and_estop_are_obeyed_between_ticks(running, prior):
    loop, toy = running
    now = loop.now_s()
    field = make_field(prior, toy.q, now, 1)
    plan = loop.controller.plan(loop.snapshot(), now, field, lead_s=0.25)
    assert loop.commit(plan).accepted
    wait_for(lambda: loop.controller.mode == Mode.TRACK, "TRACK")
    loop.brake()
    wait_for(lambda: loop.controller.mode == Mode.BRAKE, "BRAKE")
    wait_for(lambda: loop.controller.mode == Mode.HOLD, "HOLD")
    assert loop.now_s() < field.end_s, "it stopped before its reference ended"
    loop.estop()
    wait_for(lambda: loop.read_command().mode == Mode.ESTOP, "ESTOP")
    assert loop.controller.fault == Fault.ESTOP_REQUESTED


def test_deactivation_ends_off_and_silent(running):
    loop, _ = running
    wait_for(lambda: loop.read_command() is not None, "the first command")
    loop.deactivate()
    wait_for(lambda: loop.controller.mode == Mode.OFF, "OFF")
    time.sleep(0.01)
    commands = int(loop._words[W_COMMANDS])
    time.sleep(0.03)
    assert loop._words[W_COMMANDS] == commands


def test_nothing_ticks_inside_paused(running):
    loop, _ = running
    with loop.paused():
        ticks, heartbeat = loop.statistics.ticks, loop.heartbeat
        time.sleep(0.03)
        assert loop.statistics.ticks == ticks
        assert loop.heartbeat > heartbeat
    wait_for(lambda: loop.statistics.ticks > ticks, "ticks")
    assert loop.controller.mode == Mode.HOLD


def test_missed_deadlines_are_skipped_and_counted_never_made_up_for(patient, arm):
    rate = 400_000.0  # faster than a tick
    loop = ControlLoop(patient, rate, ONLY_COUNT)
    loop.offer_state(loop.now_s(), arm.config.home_rad, np.zeros(arm.n))
    loop.start()
    try:
        loop.activate(arm.config.home_rad, np.zeros(arm.n))
        loop.clear_statistics()
        time.sleep(0.1)
    finally:
        loop.close()
    statistics, passed_s = loop.statistics, loop._cpu[1] * 1e-9
    assert statistics.missed > 0
    share = (statistics.ticks + statistics.missed) / (passed_s * rate)
    assert 0.5 < share < 1.01, "a stall at the very end is not counted, a burst would be above 1"


def test_braking_follows_the_settings_of_the_running_controller(running, prior):
    loop, toy = running
    follow(loop, prior, toy.q)
    wait_for(lambda: loop.controller.mode == Mode.TRACK, "TRACK")
    with loop.paused():
        loop.controller.set_config(replace(loop.controller.config, brake_s=0.07, brake_max_s=0.07))
    loop.brake()
    wait_for(lambda: loop.controller.mode != Mode.TRACK, "the end of TRACK")
    assert loop.controller._st[k.ST_BRAKE_T] == pytest.approx(0.07)


# -- lateness (the rule itself: test_lateness) -----------------------------------------------------
TOO_FAST_HZ = 400_000.0  # no tick is ever on time


def test_a_loop_that_is_late_too_often_brakes_along_the_path(patient, arm, prior):
    loop = ControlLoop(patient, TOO_FAST_HZ, replace(ONLY_COUNT, brake_share=0.2))
    toy = ToyArm(loop, arm.config.home_rad.copy())
    loop.start()
    try:
        loop.activate(arm.config.home_rad, np.zeros(arm.n))
        field = follow(loop, prior, toy.q)
        wait_for(lambda: patient.sequence == 1, "the hand-over")
        wait_for(lambda: patient.mode == Mode.HOLD, "HOLD")
        assert loop.now_s() < field.end_s, "it stopped before its reference ended"
        assert patient.fault == Fault.NONE
        assert loop.lateness.outcome == Rung.BRAKE
        assert "late enough to brake" in loop.lateness.text
        assert loop.statistics.late > 100
    finally:
        toy.close()
        loop.close()


def test_a_loop_that_stays_late_damps_and_says_why(patient, arm):
    loop = ControlLoop(patient, TOO_FAST_HZ, replace(ONLY_COUNT, brake_share=0.2, damp_share=0.5))
    toy = ToyArm(loop, arm.config.home_rad.copy())
    loop.start()
    try:
        loop.activate(arm.config.home_rad, np.zeros(arm.n))
        wait_for(lambda: patient.mode == Mode.DAMP, "DAMP")
        assert patient.fault == Fault.LOOP_LATE
        assert loop.lateness.outcome == Rung.DAMP
    finally:
        toy.close()
        loop.close()


def test_commands_that_nobody_sends_damp_although_the_loop_is_on_time(patient, arm):
    """Python hangs: what waits to be sent gets old, and the ladder does not need Python."""
    limits = replace(ONLY_COUNT, damp_lateness_s=0.25)
    loop = ControlLoop(patient, RATE_HZ, limits)
    toy = ToyArm(loop, arm.config.home_rad.copy())
    loop.start()
    try:
        loop.activate(arm.config.home_rad, np.zeros(arm.n))
        wait_for(lambda: loop.read_command() is not None, "the first command")
        assert patient.mode == Mode.HOLD, "a loop whose sender says nothing is not judged by it"
        loop.sent(loop.read_command().count)  # and never again
        wait_for(lambda: patient.mode == Mode.DAMP, "DAMP")
        assert patient.fault == Fault.LOOP_LATE
        assert loop.lateness.worst_s > 0.25
        loop.reset()  # the sender is still mute
        wait_for(lambda: patient.mode == Mode.DAMP, "DAMP again")
        loop.sent(-1)
        loop.reset()
        assert patient.mode == Mode.HOLD
        assert loop.lateness.text == ""
    finally:
        toy.close()
        loop.close()


# -- measured state --------------------------------------------------------------------------------
def test_positions_are_carried_to_the_instant_of_the_tick_unless_the_reading_is_frozen(
    patient, arm
):
    loop = ControlLoop(patient, RATE_HZ, ONLY_COUNT)
    home, speed = arm.config.home_rad, np.full(arm.n, 0.05)
    loop.start()
    try:
        loop.activate(home, np.zeros(arm.n))

        def seen(position):
            """Measured position as the tick took it, and how old the state was at least."""
            begin, ticks = loop.now_s(), patient.ticks
            loop.offer_state(begin, position, speed)
            wait_for(lambda: patient.ticks > ticks + 5, "ticks")
            return loop.look(lambda: (patient.telemetry.q.copy(), patient.last_tick_s - begin))

        seen(home)
        moved, age_s = seen(home + 1e-3)
        np.testing.assert_allclose(moved - home - 1e-3, 0.05 * age_s, rtol=1e-6)
        frozen, _ = seen(home + 1e-3)
        np.testing.assert_array_equal(frozen, home + 1e-3)
    finally:
        loop.close()
