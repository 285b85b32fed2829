"""What the journal keeps makes the same torque again, bit for bit; any other input is found."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from impedance_support import Plant

from niaf_field.codec import make_field_message, to_message
from niaf_impedance import ControllerConfig, Fault, ImpedanceController, Mode
from niaf_impedance.admission import Reason
from niaf_impedance.controller import ResetRefusedError
from niaf_impedance.journal import Block, EventKind, JournaledController, Setup, setup_of
from niaf_impedance.references import reference_from_message
from niaf_impedance.replay import (
    ReplayError,
    build_controller,
    check_complete,
    replay_session,
    sessions,
    ulp_distance,
)

EPOCH_SEC = 1_700_000_000
DT_S = 0.001


def field_message(prior, q, t_s, sequence, rng, strength):
    field = make_field_message(
        prior, strength * rng.normal(size=prior.gamma_length),
        strength * rng.normal(size=prior.beta_length), np.append(q, 0.0),
        stamp_s=t_s, sequence=sequence,
    )
    empty = SimpleNamespace(header=SimpleNamespace(stamp=SimpleNamespace()),
                            start=SimpleNamespace())
    return to_message(empty, field, EPOCH_SEC)


def trajectory_message(arm, q, rng):
    points = [
        SimpleNamespace(
            positions=list(q + rng.uniform(-0.05, 0.05, arm.n)), velocities=[], accelerations=[],
            effort=[], time_from_start=SimpleNamespace(sec=0, nanosec=200_000_000 * (i + 1)),
        )
        for i in range(3)
    ]
    header = SimpleNamespace(stamp=SimpleNamespace(sec=0, nanosec=0))
    return SimpleNamespace(header=header, joint_names=list(arm.joint_names), points=points)


class Desk:
    """Judges one reference at a time a few ticks late, as the node's second thread does."""

    def __init__(self, controller, prior, rng) -> None:
        self.c, self.prior, self.rng = controller, prior, rng
        self.open = None
        self.reasons = Counter()

    def send(self, message, now_s, sequence, lead_s=0.006, again=None) -> None:
        snapshot = self.c.snapshot_for(message, now_s, lead_s, sequence, again)
        if again is None:
            reference = reference_from_message(
                message, snapshot, self.c.arm, self.prior, EPOCH_SEC, sequence)
        else:
            reference = self.open[1]
        early = self.rng.random() < 0.5  # planned right away, or only just before the commit
        plan = self.c.plan(snapshot, now_s, reference, lead_s) if early else None
        wait = int(self.rng.integers(0, 10))  # longer than the lead now and then
        self.open = [snapshot, reference, plan, now_s, lead_s, sequence, wait]

    def settle(self) -> None:
        if self.open is None:
            return
        if self.open[-1] > 0:
            self.open[-1] -= 1
            return
        snapshot, reference, plan, now_s, lead_s, sequence, _ = self.open
        plan = plan or self.c.plan(snapshot, now_s, reference, lead_s)
        verdict = self.c.commit(plan)
        self.reasons[verdict.reason] += 1
        if verdict.reason == Reason.OVERTAKEN and lead_s < 0.02:
            self.send(None, now_s, sequence, 2.0 * lead_s, again=snapshot)
        else:
            self.open = None


def eventful_run(arm, prior, duration_s=4.5):
    """(blocks, torques [K, n], modes [K], reasons) of a run in which nearly all happens."""
    rng = np.random.default_rng(7)
    c = JournaledController(ControllerConfig(), arm, prior, epoch_sec=EPOCH_SEC)
    plant = Plant(arm, arm.config.home_rad, DT_S)
    desk = Desk(c, prior, rng)
    c.activate(0.0, plant.q, plant.dq, gripper_m=0.05)
    torques, modes, blocks = [], [], []
    for step in range(round(duration_s / DT_S)):
        now = plant.time_s
        desk.settle()
        if step % 37 == 5 and desk.open is None:
            # 3.0 is refused now and then
            strength = 3.0 if rng.random() < 0.2 else 0.2
            message = (
                trajectory_message(arm, plant.q, rng) if rng.random() < 0.3
                else field_message(prior, plant.q, now, step, rng, strength)
            )
            desk.send(message, now, step)
        if step == 400:
            c.set_tuning(replace(c.tuning, kp=tuple(0.7 * kp for kp in c.tuning.kp)))
        elif step == 700:
            c.set_tuning(replace(c.tuning, damping_ratio=0.6, friction_scale=0.5))
        elif step == 900:
            c.brake(c.last_tick_s)
        elif step == 1200:
            c.set_config(replace(c.config, blend_s=0.07, velocity_filter_s=0.002))
        elif step == 1500:
            c.estop()
        elif step == 2400:
            c.reset(now)
            assert c.checkpoint()
        elif step == 2900:
            assert c.note_state_age(0.1)
        elif step == 3300:
            c.reset()
        elif step == 3500:
            c.report_fault(Fault.DRIVE_FAULT, 2)
            c.report_fault(Fault.DRIVE_FAULT, 2)
        elif step == 3700:
            c.deactivate(c.last_tick_s)
        elif step == 3790:
            c.switch_off()
        elif step == 3800:
            c.activate(now, plant.q, plant.dq, tau_start_nm=c.telemetry.tau.copy())
        elif step == 4300:
            c.deactivate(c.last_tick_s)
        torques.append(c.tick(now, plant.q, plant.dq).copy())
        modes.append(int(c.mode))
        plant.step(torques[-1])
        blocks += [copy.deepcopy(b) for b in c.journal.take(0.0)]
    c.journal.hand_over()
    return blocks + c.journal.take(0.0), np.array(torques), np.array(modes), desk.reasons


@pytest.fixture(scope="module")
def recorded(arm, prior):
    return eventful_run(arm, prior)


def again(blocks, arm, prior):
    return replay_session(
        blocks, lambda setup: ImpedanceController(setup.config, arm, prior),
        lambda event: event.message,
    )


def test_the_journal_holds_what_happened(recorded):
    blocks, torques, modes, reasons = recorded
    assert set(modes) == set(Mode)
    assert {Reason.NONE, Reason.OVERTAKEN} < set(reasons)  # and at least one refusal
    np.testing.assert_array_equal(np.vstack([b.torque[: b.count] for b in blocks]), torques)
    np.testing.assert_array_equal(np.concatenate([b.mode[: b.count] for b in blocks]), modes)
    kinds = {event.kind for block in blocks for event in block.events}
    assert kinds == set(EventKind)


def test_a_replay_is_identical(recorded, arm, prior):
    blocks, torques, _, reasons = recorded
    outcome = again(blocks, arm, prior)
    assert outcome.identical, outcome.departure
    assert outcome.ticks == len(torques)
    assert outcome.judged["accepted"] + outcome.judged["slowed"] == reasons[Reason.NONE] > 10
    assert outcome.events["FAULT"] == 1  # the repeated one changed nothing


def test_a_replay_begins_at_a_checkpoint(recorded, arm, prior):
    blocks, torques, _, _ = recorded
    outcome = again(blocks[3:], arm, prior)
    assert outcome.identical, outcome.departure
    assert outcome.first_tick == 2400
    assert outcome.skipped_ticks == 2100
    assert outcome.ticks == len(torques) - 2400


def test_without_begin_or_checkpoint_there_is_no_place_to_begin(recorded, arm, prior):
    blocks, *_ = recorded
    with pytest.raises(ReplayError, match="starts with block 40"):
        again(blocks[40:], arm, prior)


def test_a_flipped_bit_is_found_at_its_tick(recorded, arm, prior):
    blocks = copy.deepcopy(recorded[0])
    block = blocks[3]
    block.position.view(np.uint64)[42, 5] ^= np.uint64(1 << 30)
    outcome = again(blocks, arm, prior)
    assert outcome.departure is not None
    assert outcome.departure.tick == block.first_tick + 42
    assert outcome.departure.ulp > 0


def test_a_changed_torque_is_found_in_its_joint(recorded, arm, prior):
    blocks = copy.deepcopy(recorded[0])
    blocks[5].torque.view(np.uint64)[7, 3] ^= np.uint64(1)
    outcome = again(blocks, arm, prior)
    assert outcome.departing_ticks == 1
    assert outcome.departure.tick == blocks[5].first_tick + 7
    assert outcome.departure.joint == arm.joint_names[3]
    assert outcome.departure.ulp == 1


def test_another_tuning_departs_when_it_was_set(recorded, arm, prior):
    blocks = copy.deepcopy(recorded[0])
    block = next(b for b in blocks if any(e.kind == EventKind.TUNING for e in b.events))
    block.events = [e for e in block.events if e.kind != EventKind.TUNING]
    outcome = again(blocks, arm, prior)
    assert 400 <= outcome.departure.tick < 405


def test_a_missing_block_is_named(recorded, arm, prior):
    blocks, *_ = recorded
    with pytest.raises(ReplayError, match=r"block 4 is missing \(ticks 400 to 499\)"):
        again(blocks[:4] + blocks[5:], arm, prior)
    with pytest.raises(ReplayError, match=r"blocks 4 to 6 are missing \(ticks 400 to 699\)"):
        check_complete(blocks[:4] + blocks[7:])


def test_a_restarted_controller_is_a_session_of_its_own(recorded):
    blocks, *_ = recorded
    assert [len(s) for s in sessions(blocks[:5] + blocks[:7])] == [5, 7]


def test_the_setup_survives_its_text_and_builds_the_same_arm(recorded, arm, prior):
    setup = setup_of(recorded[0][0].events[0])
    assert Setup.from_json(setup.to_json()) == setup
    rebuilt = build_controller(replace(setup, prior_id=""))
    np.testing.assert_array_equal(rebuilt.arm.model, arm.model)
    assert replace(rebuilt.arm.config, source=arm.config.source) == arm.config
    with pytest.raises(ReplayError, match="is not the URDF that was used"):
        build_controller(replace(setup, urdf_sha256="0" * 64))
    with pytest.raises(ReplayError, match="give --prior"):
        build_controller(setup)


def test_settings_that_change_under_a_judgement_make_it_overtaken(arm, prior):
    c = JournaledController(ControllerConfig(), arm, prior, epoch_sec=EPOCH_SEC)
    q = arm.config.home_rad
    c.activate(0.0, q, np.zeros(arm.n))
    message = field_message(prior, q, 0.0, 1, np.random.default_rng(0), 0.1)
    snapshot = c.snapshot_for(message, 0.0, 0.01, 1)
    reference = reference_from_message(message, snapshot, arm, prior, EPOCH_SEC, 1)
    plan = c.plan(snapshot, 0.0, reference, 0.01)
    assert plan.verdict.accepted
    limits = c.tuning.torque_limit_nm
    c.set_tuning(replace(c.tuning, torque_limit_nm=tuple(0.5 * limit for limit in limits)))
    assert c.commit(plan).reason == Reason.OVERTAKEN


def test_a_refused_reset_leaves_no_event(arm, prior):
    c = JournaledController(ControllerConfig(), arm, prior)
    with pytest.raises(ResetRefusedError):
        c.reset()
    assert [event.kind for event in c.journal.block.events] == [EventKind.BEGIN]


def test_references_without_a_message_are_not_taken(arm, prior):
    c = JournaledController(ControllerConfig(), arm, prior)
    c.activate(0.0, arm.config.home_rad, np.zeros(arm.n))
    with pytest.raises(TypeError, match="snapshot_for"):
        c.plan(c.snapshot(), 0.0, None)


def test_a_full_queue_loses_the_oldest_blocks_not_the_loop(arm):
    c = JournaledController(ControllerConfig(), arm, ticks_per_block=1)
    q = arm.config.home_rad
    c.activate(0.0, q, np.zeros(arm.n))
    for step in range(150):
        c.tick(step * DT_S, q, np.zeros(arm.n))
    numbers = [block.number for block in c.journal.take(0.0)]
    assert numbers == list(range(50, 150))


@pytest.mark.parametrize(("a", "b", "ulp"), [
    (1.0, 1.0, 0), (1.0, np.nextafter(1.0, 2.0), 1), (0.0, -0.0, 0), (5e-324, -5e-324, 2),
])
def test_ulp_distance(a, b, ulp):
    assert ulp_distance(a, b) == ulp


def test_blocks_are_contiguous_rows():
    block = Block(7, 4)
    assert all(a.flags.c_contiguous for a in (block.position, block.velocity, block.torque))
