"""The event-driven loop over topics, with messages and time by hand: what it is late with."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment")

from impedance_support import Plant, make_spline
from rclpy.serialization import serialize_message
from sensor_msgs.msg import JointState

from niaf_impedance import ControllerConfig, ImpedanceController, topic_arm
from niaf_impedance.event_loop import WATCH_PERIOD_S
from niaf_impedance.faults import Fault, Mode
from niaf_impedance.lateness import LIMITS, Rung
from niaf_impedance.topic_arm import TopicArm, with_info

PERIOD_S = 0.001
EPOCH_SEC = 1_700_000_000


class Node:
    """As much of a node as the arm needs; what was published, by topic."""

    def __init__(self) -> None:
        self.sent: dict[str, list[bytes]] = {}

    def create_publisher(self, kind, topic, qos):
        return SimpleNamespace(publish=self.sent.setdefault(topic, []).append)

    def create_subscription(self, kind, topic, callback, qos, raw):
        self.on_state = callback
        return callback

    def create_timer(self, period_s, callback, clock):
        self.watch = callback
        return callback

    def forget(self, entity) -> None:
        pass

    destroy_subscription = destroy_publisher = destroy_timer = forget

    def get_logger(self):
        return SimpleNamespace(info=lambda *_, **__: None, error=lambda *_, **__: None)


class Rig:
    """Driver, middleware and executor of one arm."""

    def __init__(self, arm, monkeypatch) -> None:
        self.now_s, self.number, self.node = 0.0, 0, Node()
        monkeypatch.setattr(topic_arm, "time", SimpleNamespace(
            monotonic=lambda: self.now_s, time=lambda: EPOCH_SEC + self.now_s))
        self.plant = Plant(arm, arm.config.home_rad, dt_s=PERIOD_S)
        self.controller = ImpedanceController(ControllerConfig(), arm)
        self.arm = TopicArm(
            self.node, self.controller, limits=LIMITS, on_tick=lambda *_: None,
            rate_hz=1.0 / PERIOD_S, epoch_sec=EPOCH_SEC, gripper_rate_hz=50.0, max_future_s=0.05,
        )
        self.message = JointState(name=list(arm.joint_names))
        self.tick()
        self.arm.activate()

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / PERIOD_S)):
            self.plant.step(self.controller.telemetry.tau)
        self.now_s += seconds

    def tick(
        self, count: int = 1, *, period_s=PERIOD_S, published: int = 1, way_s=1e-4, wait_s=2e-4
    ) -> None:
        """``count`` states, ``period_s`` and ``published`` states apart, ``way_s`` to this process
        and ``wait_s`` in it."""
        for _ in range(count):
            self.pass_time(period_s)
            self.number += published
            stamp_s, received_s = self.now_s, self.now_s + way_s
            stamp = self.message.header.stamp
            stamp.sec = EPOCH_SEC + int(stamp_s)
            stamp.nanosec = round((stamp_s % 1.0) * 1e9)
            self.message.position = self.plant.q.tolist()
            self.message.velocity = self.plant.dq.tolist()
            self.now_s += way_s + wait_s
            self.node.on_state(serialize_message(self.message), {
                "received_timestamp": round((EPOCH_SEC + received_s) * 1e9),
                "publication_sequence_number": self.number,
            })
            self.now_s -= way_s + wait_s
            self.arm._loop.watched_s = self.now_s

    def follow(self) -> None:
        now = self.controller.last_tick_s
        spline = make_spline(self.plant.q.copy(), now, 1, horizon_s=2.0)
        verdict = self.controller.offer(now, spline)
        assert verdict.accepted, verdict.text
        self.tick(5)
        assert self.controller.mode == Mode.TRACK

    @property
    def commands(self) -> int:
        return len(self.node.sent["effort_controller/commands"])


@pytest.fixture
def rig(arm, monkeypatch):
    return Rig(arm, monkeypatch)


def until(rig, mode, count, **state):
    for i in range(count):
        rig.tick(**state)
        if rig.controller.mode == mode:
            return i + 1
    raise AssertionError(f"not {mode.name} after {count} states")


def test_an_executor_that_is_always_late_brakes_and_then_damps_by_name(rig):
    rig.follow()
    late = {"wait_s": 2.0 * PERIOD_S}
    rig.tick(20, **late)
    assert rig.controller.mode == Mode.TRACK, "twenty late ticks of 500 are counted"
    until(rig, Mode.BRAKE, 150, **late)
    assert rig.controller.fault == Fault.NONE
    assert "late enough to brake" in rig.arm.lateness.text
    until(rig, Mode.DAMP, 400, **late)
    assert rig.controller.fault == Fault.LOOP_LATE
    commands = rig.commands
    rig.tick(50)
    assert rig.commands == commands + 50, "damping goes on"


def test_states_that_were_published_and_never_ticked_are_the_loops_doing(rig):
    rig.follow()
    until(rig, Mode.BRAKE, 150, period_s=3 * PERIOD_S, published=3)
    assert rig.arm.lateness.share > LIMITS.brake_share


@pytest.mark.parametrize("driver", [
    {"period_s": 8 * PERIOD_S},  # silent for a while, again and again
    {"way_s": 6e-3},  # a slow network
])
def test_a_late_driver_does_not_make_the_loop_late(rig, driver):
    rig.follow()
    rig.tick(100, **driver)
    assert rig.controller.mode == Mode.TRACK
    assert rig.arm.lateness.late == 0
    assert rig.controller.fault == Fault.NONE


@pytest.mark.parametrize("hiccup", [
    {"wait_s": 4.9e-3}, {"period_s": 6 * PERIOD_S, "published": 6},
])
def test_one_hiccup_of_a_few_milliseconds_changes_nothing(rig, hiccup):
    rig.follow()
    rig.tick(1, **hiccup)
    rig.tick(20)
    assert rig.controller.mode == Mode.TRACK
    assert rig.arm.lateness.outcome == Rung.LATE


def test_a_gap_of_its_own_longer_than_a_state_may_be_old_is_not_called_a_stale_state(rig):
    rig.follow()
    rig.tick(1, period_s=0.03, published=30)
    assert (rig.controller.mode, rig.controller.fault) == (Mode.DAMP, Fault.LOOP_LATE)


def test_a_silence_of_the_driver_of_that_length_is(rig):
    rig.follow()
    rig.tick(1, period_s=0.03)
    assert (rig.controller.mode, rig.controller.fault) == (Mode.DAMP, Fault.STATE_STALE)


def test_an_executor_that_stood_still_brakes_though_its_states_waited_in_the_socket(rig):
    rig.follow()
    rig.now_s += 0.012 + WATCH_PERIOD_S
    rig.node.watch()
    rig.now_s -= 0.012 + WATCH_PERIOD_S
    rig.tick(2)  # every one of them arrives now
    assert rig.controller.mode == Mode.BRAKE


def test_the_watch_tells_a_silent_driver_from_an_executor_that_stood_still(rig, arm, monkeypatch):
    for _ in range(6):
        rig.now_s += WATCH_PERIOD_S
        rig.node.watch()
    assert rig.controller.fault == Fault.STATE_STALE
    other = Rig(arm, monkeypatch)
    other.now_s += 6 * WATCH_PERIOD_S
    other.node.watch()
    assert other.controller.fault == Fault.LOOP_LATE


def test_a_reset_begins_the_judgement_anew(rig):
    rig.tick(1, period_s=0.03, published=30)
    assert rig.controller.fault == Fault.LOOP_LATE
    rig.tick(5)
    rig.arm.reset()
    rig.tick(5)
    assert rig.controller.mode == Mode.HOLD
    assert rig.arm.lateness.text == ""


def test_the_age_of_a_command_is_that_of_its_state_when_it_left(rig):
    rig.arm.timing.clear()
    rig.tick(20, way_s=3e-4, wait_s=2e-4)
    assert rig.arm.timing.command_age.percentiles().p50_s == pytest.approx(5e-4, abs=2e-6)
    assert rig.arm.timing.lateness.percentiles().p50_s == pytest.approx(2e-4, abs=2e-6)


def test_message_and_info_come_as_two_arguments_or_as_one_tuple():
    seen = []
    callback = with_info(lambda message, info: seen.append((message, info)))
    with pytest.raises(TypeError):  # so that rclpy asks for the info
        inspect.signature(callback).bind(b"")
    callback(b"1", {"a": 1})
    callback((b"2", {"a": 2}))
    assert seen == [(b"1", {"a": 1}), (b"2", {"a": 2})]
