"""The compiled loop behind topics: what a reset may not do. Messages by hand, the loop's time."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment")

from impedance_support import Plant, make_spline
from rclpy.serialization import serialize_message
from sensor_msgs.msg import JointState
from test_topic_arm import EPOCH_SEC, Node

from niaf_impedance import ControllerConfig, ImpedanceController
from niaf_impedance.clocked_arm import ClockedTopicArm
from niaf_impedance.controller import ResetRefusedError
from niaf_impedance.faults import Fault, Mode
from niaf_impedance.lateness import ONLY_COUNT
from niaf_impedance.loop import LoopEndedError

TIMEOUT_S = 0.5  # patient: these processes are not alone on the machine
#: the arm's clock, ahead or behind of the machine's by what a test sets
CLOCK = {"shift_s": 0.0}


class Rig:
    """A driver that says what it is told; the executor's callbacks run in the test's thread."""

    def __init__(self, arm, monkeypatch) -> None:
        import niaf_impedance.clocked_arm as clocked_arm
        import niaf_impedance.topic_arm as topic_arm

        clock = type("Clock", (), {
            "monotonic": staticmethod(time.monotonic),
            "time": staticmethod(lambda: time.time() + CLOCK["shift_s"]),
            "sleep": staticmethod(time.sleep),
        })
        CLOCK["shift_s"] = 0.0
        for module in (clocked_arm, topic_arm):
            monkeypatch.setattr(module, "time", clock)
        self.node, self.lock = Node(), threading.Lock()
        self.controller = ImpedanceController(
            ControllerConfig(state_timeout_s=TIMEOUT_S, frozen_reference_rad=0.0), arm)
        self.arm = ClockedTopicArm(
            self.node, self.controller, limits=ONLY_COUNT, on_tick=lambda *_: None, rate_hz=250.0,
            priority=0, epoch_sec=EPOCH_SEC, gripper_rate_hz=50.0, max_future_s=0.05,
        )
        self.arm._gate.bearable_s = np.inf  # nothing here is about the age of states
        self.plant = Plant(arm, arm.config.home_rad)
        self.message = JointState(name=list(arm.joint_names))

    def say(self, q, dq) -> None:
        now_s = time.time() + CLOCK["shift_s"]
        stamp = self.message.header.stamp
        stamp.sec, stamp.nanosec = int(now_s), int((now_s % 1.0) * 1e9)
        self.message.position, self.message.velocity = list(q), list(dq)
        self.node.on_state(serialize_message(self.message), {})

    def say_for(self, seconds: float) -> None:
        """States of an arm that stands where it is told to be."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            q = self.arm.look(lambda: self.controller.telemetry.q_ref.copy())
            self.say(q if np.any(q) else self.plant.q, np.zeros(7))
            time.sleep(0.002)


@pytest.fixture
def rig(arm, monkeypatch):
    rig = Rig(arm, monkeypatch)
    rig.say_for(0.05)
    rig.arm.activate()
    rig.say_for(0.05)
    yield rig
    rig.arm.close()
    CLOCK["shift_s"] = 0.0


def test_a_reset_while_the_arm_follows_is_refused_and_no_clock_moves_the_path(rig):
    controller = rig.controller
    for lead_s in (0.1, 0.2, 0.4, 0.8):  # the first plan compiles, the machine is busy
        now_s = rig.arm._loop.now_s()
        reference = make_spline(rig.plant.q, now_s + lead_s, 1, reach=0.3, horizon_s=4.0)
        plan = controller.plan(rig.arm.snapshot(), now_s, reference, lead_s)
        if rig.arm.commit(plan).accepted:
            break
        rig.say_for(0.01)
    rig.say_for(lead_s)
    rig.say_for(0.3)
    assert controller.mode == Mode.TRACK
    CLOCK["shift_s"] = 0.3  # less than state_timeout_s: the states go on
    rig.say(rig.arm.look(lambda: controller.telemetry.q_ref.copy()), np.zeros(7))
    before = rig.arm.look(lambda: controller.telemetry.q_ref.copy())
    with pytest.raises(ResetRefusedError, match="in TRACK"):
        rig.arm.reset()
    time.sleep(0.02)
    after = rig.arm.look(lambda: controller.telemetry.q_ref.copy())
    assert np.abs(after - before).max() < 0.02
    assert "set by +0.3" in rig.arm.clock_problem


def test_a_reset_looks_at_the_newest_state_and_not_at_the_last_tick_alone(rig):
    rig.say(rig.plant.q, np.zeros(7))
    time.sleep(1.5 * TIMEOUT_S)
    assert rig.controller.fault == Fault.STATE_STALE
    moved = rig.plant.q + 0.03
    with rig.arm._loop.paused():  # no tick between the state and the reset
        rig.say(moved, np.full(7, 1.0))
        with pytest.raises(ResetRefusedError, match=r"moves at 1\.000 rad/s"):
            rig.arm.reset()
        rig.say(moved, np.zeros(7))
        rig.arm.reset()
        assert rig.controller.mode == Mode.HOLD
        np.testing.assert_array_equal(rig.controller.telemetry.q_ref, moved)


def test_a_thread_that_ended_is_named_by_all_that_ask(rig):
    rig.arm._loop.stop()
    assert "a thread of the loop has ended" in rig.arm.warning()
    assert rig.arm.activation_problem() == rig.arm.failure
    for request in (rig.arm.estop, rig.arm.brake, rig.arm.reset):
        with pytest.raises(LoopEndedError):
            request()
    rig.arm.deactivate()
    assert rig.arm.off


def test_a_listener_that_fails_stops_no_command(arm, rig):
    def fail(*_):
        raise RuntimeError("nobody can be told")

    rig.arm._on_tick = fail
    sent = len(rig.node.sent["effort_controller/commands"])
    rig.say_for(0.3)
    assert len(rig.node.sent["effort_controller/commands"]) > sent + 10
    assert "nobody can be told" in rig.arm.warning()
