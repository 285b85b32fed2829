"""The node in this process with a made-up policy: faults, life cycle, figures. No torch."""

from __future__ import annotations

import gc
import os
import time

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not in this environment")
niaf_msgs = pytest.importorskip("niaf_msgs.msg", reason="niaf_msgs is not built")
domain_coordinator = pytest.importorskip("domain_coordinator", reason="no domain_coordinator")

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from rclpy.action import ActionClient  # noqa: E402
from rclpy.experimental import EventsExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from sensor_msgs.msg import Image, JointState  # noqa: E402

from niaf_field import Channel, initial_prior  # noqa: E402
from niaf_msgs.action import ExecuteInstruction  # noqa: E402
from niaf_msgs.msg import ActionField  # noqa: E402
from niaf_policy.policy_node import PolicyNode  # noqa: E402

pytestmark = pytest.mark.system

JOINTS = ("elbow", "wrist")
CHANNELS = (
    Channel("wrist", "rad", "joint_position", "relative"),
    Channel("elbow", "rad", "joint_position", "relative"),
    Channel("gripper", "m", "gripper", "absolute"),
)


class MadeUpPolicy:
    """Answers with zeros; can be told to fail."""

    cameras = ("scene", "wrist")
    image_size = (4, 6)
    joint_names = JOINTS
    instructions = ("wave",)

    def __init__(self) -> None:
        self.prior = initial_prior(CHANNELS, sine_layers=1, width=4, omega0=3.0, horizon_s=0.5)
        self.seen: list[dict] = []
        self.failure = ""
        self.gamma = np.zeros(self.prior.gamma_length, np.float32)

    def prepare_instruction(self, instruction: str) -> None:
        if not instruction.strip():
            raise ValueError("the instruction is empty")

    def infer(self, observation):
        if self.failure:
            raise RuntimeError(self.failure)
        self.seen.append(observation)
        return self.gamma, np.zeros(self.prior.beta_length, np.float32)


class Bench:
    """The node, its policy, and a robot that publishes when told to."""

    def __init__(self, policy: MadeUpPolicy, **parameters) -> None:
        self.policy = policy
        overrides = [f"-p {name}:={value}" for name, value in {
            "checkpoint": "made-up", "gripper_joint": "finger", "fault_patience_s": 0.5,
            "policy_rate_hz": 20.0, **parameters,
        }.items()]
        rclpy.init(args=["--ros-args", *" ".join(overrides).split()])
        self.node = PolicyNode(lambda checkpoint, threads: policy)
        self.robot = rclpy.create_node("robot", use_global_arguments=False)
        self.executor = EventsExecutor()
        self.executor.add_node(self.node)
        self.executor.add_node(self.robot)
        self.states = self.robot.create_publisher(JointState, "joint_states", 1)
        self.cameras = [
            self.robot.create_publisher(Image, f"{c}/image_raw", 1) for c in policy.cameras
        ]
        self.state = JointState(name=["finger", "wrist", "elbow", "other"])
        self.state.position = [0.01, 0.2, 0.1, 9.0]
        self.state.velocity = [0.0, 0.4, 0.3, 9.0]
        self.image = Image(height=4, width=6, step=20, encoding="bgr8")
        pixels = np.zeros((4, 20), np.uint8)
        pixels[:, 0:18:3] = 200  # blue
        self.image.data = pixels.tobytes()
        self.fields: list[ActionField] = []
        self.status = []
        self.robot.create_subscription(ActionField, "policy/action_field", self.fields.append, 10)
        self.robot.create_subscription(
            DiagnosticArray, "policy/status", lambda m: self.status.extend(m.status), 10)
        self.client = ActionClient(self.robot, ExecuteInstruction, "policy/execute")
        self.shift_s = 0.0
        self.next_s = 0.0
        self.until(lambda: self.node.failed or self.node._taking_goals)
        self.until(self.client.server_is_ready)

    def publish(self) -> None:
        now_ns = time.time_ns() + int(self.shift_s * 1e9)
        for message in (self.state, self.image):
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(now_ns, 1_000_000_000)
        self.states.publish(self.state)
        for publisher in self.cameras:
            publisher.publish(self.image)

    def until(self, condition, timeout_s=8.0) -> None:
        end_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end_s, "waited in vain"
            if time.monotonic() > self.next_s:
                self.next_s = time.monotonic() + 0.05
                self.publish()
            self.executor.spin_once(timeout_sec=0.01)

    def send(self, instruction="wave", timeout_s=30.0):
        sent = self.client.send_goal_async(
            ExecuteInstruction.Goal(instruction=instruction, timeout_s=timeout_s))
        self.until(sent.done)
        assert sent.result().accepted
        return sent.result().get_result_async()

    def ended(self, result) -> ExecuteInstruction.Result:
        self.until(result.done)
        return result.result().result

    def close(self) -> None:
        self.node.begin_shutdown()
        for node in (self.node, self.robot):
            self.executor.remove_node(node)
        self.executor.shutdown()
        self.client.destroy()
        self.node.close()
        self.robot.destroy_node()
        rclpy.shutdown()


@pytest.fixture
def bench():
    made = []

    def make(policy=None, **parameters) -> Bench:
        made.append(Bench(policy or MadeUpPolicy(), **parameters))
        return made[-1]

    with domain_coordinator.domain_id() as domain:
        before = dict(os.environ)
        os.environ["ROS_DOMAIN_ID"] = str(domain)
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        yield make
        while made:
            made.pop().close()
        gc.collect()  # what is left of a participant would confuse the next test's discovery
        os.environ.clear()
        os.environ.update(before)


def test_joints_are_mapped_by_name_and_anchors_by_channel(bench):
    b = bench()
    result = b.send()
    b.until(lambda: len(b.fields) >= 2)
    seen = b.policy.seen[-1]
    np.testing.assert_allclose(seen["state"], [0.1, 0.2, 0.3, 0.4, 0.02])
    assert set(seen["images"]) == {"scene", "wrist"}
    assert seen["images"]["scene"].shape == (4, 6, 3)
    assert (seen["images"]["scene"] == [0, 0, 200]).all()  # bgr8 with padded rows, now RGB
    np.testing.assert_allclose(b.fields[-1].anchor, [0.2, 0.1, 0.0])
    assert not result.done()


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda b: setattr(b.policy, "failure", "out of memory"), "inference failed: RuntimeError"),
        (lambda b: b.policy.gamma.fill(np.nan), "gamma[0] is nan"),
        (lambda b: setattr(b.state, "name", ["finger", "wrist", "e", "other"]), "lacks elbow"),
        (lambda b: setattr(b.state, "velocity", []), "0 values in velocity"),
        (lambda b: setattr(b.image, "encoding", "mono8"), "encoded as 'mono8'"),
        (lambda b: setattr(b, "shift_s", 3.0), "ahead of this clock"),
        (lambda b: setattr(b, "shift_s", -3.0), "s old"),
    ],
)
def test_a_fault_stops_the_fields_and_names_itself(bench, break_it, words):
    b = bench()
    result = b.send()
    b.until(lambda: b.fields)
    break_it(b)
    ended = b.ended(result)
    assert not ended.success
    assert words in ended.message
    count = len(b.fields)
    end_s = time.monotonic() + 0.3
    b.until(lambda: time.monotonic() > end_s)
    assert len(b.fields) == count
    assert ended.fields == count


def test_a_dropout_shorter_than_the_patience_is_survived_and_counted(bench):
    b = bench(fault_patience_s=5.0)
    result = b.send(timeout_s=2.0)
    b.until(lambda: b.fields)
    b.shift_s = -0.4
    end_s = time.monotonic() + 0.4
    b.until(lambda: time.monotonic() > end_s)
    count = len(b.fields)
    b.shift_s = 0.0
    b.until(lambda: len(b.fields) > count)
    assert b.ended(result).success
    b.status.clear()
    b.until(lambda: b.status)
    values = {pair.key: pair.value for pair in b.status[-1].values}
    assert int(values["dropped: stale image"]) > 0
    assert "timeout_s" in values["last goal ended"]


def test_without_joint_states_the_goal_ends_with_that_reason(bench):
    b = bench()
    b.states.publish = lambda message: None
    ended = b.ended(b.send())
    # states from before the goal may be remembered, but none is near the new images
    assert "/joint_states" in ended.message


def test_deactivation_ends_the_goal_and_refuses_others(bench):
    b = bench()
    result = b.send()
    b.until(lambda: b.fields)
    b.node.trigger_deactivate()
    ended = b.ended(result)
    assert "deactivated" in ended.message
    sent = b.client.send_goal_async(ExecuteInstruction.Goal(instruction="wave", timeout_s=1.0))
    b.until(sent.done)
    assert not sent.result().accepted
    before = b.fields[-1].sequence
    b.node.trigger_cleanup()
    b.node.trigger_configure()
    b.node.trigger_activate()
    b.until(lambda: b.client.server_is_ready())
    b.send()
    b.until(lambda: b.fields[-1].sequence > before)  # the count goes on


def test_shutdown_during_a_goal_is_quiet(bench):
    b = bench()
    b.send()
    b.until(lambda: b.fields)
    b.node.trigger_shutdown()
    count = len(b.fields)
    end_s = time.monotonic() + 0.2
    b.until(lambda: time.monotonic() > end_s)
    assert len(b.fields) <= count + 1


def test_the_rate_is_an_average_below_the_cameras(bench):
    b = bench(policy_rate_hz=5.0)
    b.send()
    end_s = time.monotonic() + 2.0
    b.until(lambda: time.monotonic() > end_s)
    assert 5 <= len(b.fields) <= 12
    result = b.node.set_parameters([Parameter("policy_rate_hz", value=40.0)])[0]
    assert not result.successful


def test_configuration_fails_with_one_line_when_the_policy_cannot_run(bench, capfd):
    policy = MadeUpPolicy()
    policy.failure = "weights are\n  broken"
    assert bench(policy).node.failed
    printed = capfd.readouterr()
    assert "cannot configure: the policy fails on a blank observation: weights are broken" in (
        printed.out + printed.err
    )
