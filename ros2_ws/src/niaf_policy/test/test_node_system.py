"""The policy node as a process, over real DDS, with cameras and an arm played by the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from policy_support import IMAGE, JOINTS

rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not in this environment")
niaf_msgs = pytest.importorskip("niaf_msgs.msg", reason="niaf_msgs is not built")
domain_coordinator = pytest.importorskip("domain_coordinator", reason="no domain_coordinator")

from action_msgs.msg import GoalStatus  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from rcl_interfaces.srv import SetParameters  # noqa: E402
from rclpy.action import ActionClient  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import Image, JointState  # noqa: E402

from niaf_field import load_prior  # noqa: E402
from niaf_field.codec import field_from_message, from_message  # noqa: E402
from niaf_msgs.action import ExecuteInstruction  # noqa: E402
from niaf_msgs.msg import ActionField  # noqa: E402

pytestmark = pytest.mark.system

IMAGE_PERIOD_S = 0.1
STATE_PERIOD_S = 0.01
START_S = 240.0  # loading torch on a machine that is busy with a training run
INSTRUCTION = "pick up the red cube"


class FakeRobot:
    """Publishes joint states and camera images; listens to the policy."""

    def __init__(self, context) -> None:
        self.node = rclpy.create_node("fake_robot", context=context)
        newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        # order must not matter
        self.state = JointState(name=["panda_finger_joint1", *reversed(JOINTS)])
        self.state.position = [0.02, *(0.1 * k for k in range(7, 0, -1))]
        self.state.velocity = [0.0] * 8
        self.states = self.node.create_publisher(JointState, "joint_states", newest)
        self.cameras = {
            name: self.node.create_publisher(Image, f"{name}/image_raw", newest)
            for name in ("scene", "wrist")
        }
        self.image = Image(height=IMAGE, width=IMAGE, encoding="rgb8", step=3 * IMAGE)
        self.image.data = np.zeros(IMAGE * IMAGE * 3, np.uint8).tobytes()
        self.fields: list[ActionField] = []
        self.status: list[DiagnosticStatus] = []
        self.image_stamps: set[tuple[int, int]] = set()
        self.node.create_subscription(ActionField, "policy/action_field", self.fields.append, 10)
        self.node.create_subscription(
            DiagnosticArray, "policy/status", lambda m: self.status.extend(m.status), 10)
        self.execute = ActionClient(self.node, ExecuteInstruction, "policy/execute")
        self.silent = False
        self.stopping = threading.Event()
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def until(self, condition, timeout_s, what) -> None:
        # Only this thread spins: a client that sends from another one may lose the answer.
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
            self.executor.spin_once(timeout_sec=0.02)

    def rest(self, duration_s) -> None:
        end = time.monotonic() + duration_s
        self.until(lambda: time.monotonic() > end, duration_s + 60.0, "time")

    def _run(self) -> None:
        image_due = time.monotonic()
        while not self.stopping.is_set():
            sec, nanosec = divmod(time.time_ns(), 1_000_000_000)
            self.state.header.stamp.sec, self.state.header.stamp.nanosec = sec, nanosec
            self.states.publish(self.state)
            if time.monotonic() >= image_due:
                image_due += IMAGE_PERIOD_S
                if not self.silent:
                    self.image.header.stamp = self.state.header.stamp
                    self.image_stamps.add((sec, nanosec))
                    for publisher in self.cameras.values():
                        publisher.publish(self.image)
            time.sleep(STATE_PERIOD_S)

    def close(self) -> None:
        self.stopping.set()
        self.thread.join()
        self.executor.shutdown()
        self.node.destroy_node()

    def send(self, instruction, timeout_s=60.0):
        """(goal handle, future of its result, list of feedback)."""
        assert self.execute.wait_for_server(20.0)
        feedback = []
        goal = ExecuteInstruction.Goal(instruction=instruction, timeout_s=timeout_s)
        sent = self.execute.send_goal_async(
            goal, feedback_callback=lambda m: feedback.append(m.feedback))
        self.until(sent.done, 20.0, "the answer to the goal")
        handle = sent.result()
        result = handle.get_result_async() if handle.accepted else None
        return SimpleNamespace(handle=handle, result=result, feedback=feedback)

    def cancel(self, goal):
        goal.handle.cancel_goal_async()
        self.until(goal.result.done, 20.0, "the end of the goal")
        return goal.result.result()

    def values(self):
        """Values of the newest status as a dict."""
        return {pair.key: pair.value for pair in self.status[-1].values}

    def set_parameter(self, name, value):
        client = self.node.create_client(SetParameters, "policy/set_parameters")
        assert client.wait_for_service(20.0)
        message = Parameter(name, value=value).to_parameter_msg()
        future = client.call_async(SetParameters.Request(parameters=[message]))
        self.until(future.done, 20.0, f"setting {name}")
        return future.result().results[0]


def start_node(*parameters: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "niaf_policy.policy_node", "--ros-args"]
    for parameter in parameters:
        command += ["-p", parameter]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def domain():
    with domain_coordinator.domain_id() as domain:
        before = dict(os.environ)
        os.environ["ROS_DOMAIN_ID"] = str(domain)
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        yield domain
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def system(domain, checkpoint):
    """(fake robot, node process) with the node active."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    robot = FakeRobot(context)
    process = start_node(
        f"checkpoint:={checkpoint}", "policy_rate_hz:=5.0", "max_observation_age_s:=1.0",
        "fault_patience_s:=5.0",
    )
    try:
        robot.until(lambda: robot.status or process.poll() is not None, START_S, "the first status")
        assert process.poll() is None, process.stdout.read()
        yield robot, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)
            process.wait(30.0)
        robot.close()
        rclpy.shutdown(context=context)


def test_a_goal_makes_fields_of_the_checkpoint(system, checkpoint):
    robot, _ = system
    goal = robot.send(INSTRUCTION)
    assert goal.handle.accepted
    robot.until(lambda: len(robot.fields) >= 4, 20.0, "four fields")
    result = robot.cancel(goal)
    assert result.status == GoalStatus.STATUS_CANCELED
    assert result.result.success
    assert result.result.message == "cancelled"
    robot.rest(0.5)
    count = len(robot.fields)
    assert result.result.fields == count
    robot.rest(0.5)
    assert len(robot.fields) == count  # cancelling ends the publishing
    prior = load_prior(checkpoint / "prior.safetensors")
    assert [f.sequence for f in robot.fields] == list(range(1, count + 1))
    for message in robot.fields:
        field = from_message(message)
        field_from_message(field, prior)  # raises when it does not fit
        assert field.prior_id == prior.prior_id
        assert field.gamma.shape == (prior.gamma_length,)
        assert field.beta.shape == (prior.beta_length,)
        assert field.horizon_s == prior.horizon_s
        np.testing.assert_allclose(field.anchor, [*(0.1 * k for k in range(1, 8)), 0.0])
        stamp = (message.header.stamp.sec, message.header.stamp.nanosec)
        assert stamp in robot.image_stamps
        assert (message.start.sec, message.start.nanosec) == stamp
        assert message.header.frame_id == "panda_link0"
        assert message.instruction == INSTRUCTION
        assert 0.0 < message.inference_s <= message.observation_age_s < 5.0
    stamps = [f.header.stamp.sec + 1e-9 * f.header.stamp.nanosec for f in robot.fields]
    assert min(np.diff(stamps)) > 0.0  # never the same observation twice
    last = goal.feedback[-1]
    assert last.field_sequence >= count - 1
    assert 0.0 < last.progress < 1.0
    assert last.policy_rate_hz > 0.0
    assert last.latency_s > 0.0


@pytest.mark.parametrize(
    ("instruction", "timeout_s", "words"),
    [
        ("", 5.0, "the instruction is empty"),
        (" \t ", 5.0, "the instruction is empty"),
        ("pick up the red cube and then " * 9, 5.0, "tokens, this model reads 24"),
        (INSTRUCTION, 0.0, "timeout_s is 0"),
        (INSTRUCTION, float("nan"), "timeout_s is nan"),
    ],
)
def test_bad_goals_are_rejected_with_a_reason(system, instruction, timeout_s, words):
    robot, _ = system
    goal = robot.send(instruction, timeout_s)
    assert not goal.handle.accepted
    robot.until(lambda: words in robot.values()["last rejected goal"], 5.0, "the reason")


def test_a_new_goal_replaces_the_running_one(system):
    robot, _ = system
    first = robot.send(INSTRUCTION)
    second = robot.send("pick up the green cube", timeout_s=3.0)
    assert second.handle.accepted
    robot.until(first.result.done, 10.0, "the end of the first goal")
    ended = first.result.result()
    assert ended.status == GoalStatus.STATUS_ABORTED
    assert not ended.result.success
    assert "replaced" in ended.result.message
    robot.until(second.result.done, 20.0, "the timeout of the second goal")
    ended = second.result.result()
    assert ended.status == GoalStatus.STATUS_SUCCEEDED
    assert ended.result.success
    assert "timeout_s (3 s) is over" in ended.result.message
    assert robot.fields[-1].instruction == "pick up the green cube"


def test_silent_cameras_stop_the_fields_and_are_named(system):
    robot, _ = system
    goal = robot.send(INSTRUCTION)
    before = len(robot.fields)
    robot.until(lambda: len(robot.fields) > before, 20.0, "a field")
    robot.silent = True
    robot.rest(1.5)  # the age limit, and an inference that was under way
    count = len(robot.fields)
    robot.until(goal.result.done, 20.0, "the end of the goal")
    assert len(robot.fields) == count
    ended = goal.result.result()
    assert ended.status == GoalStatus.STATUS_ABORTED
    assert not ended.result.success
    assert "the newest image on /scene/image_raw is" in ended.result.message
    assert "camera is silent" in ended.result.message
    assert robot.status[-1].level in (DiagnosticStatus.ERROR, DiagnosticStatus.WARN)
    assert "/scene/image_raw" in robot.status[-1].message
    assert goal.feedback[-1].policy_rate_hz == 0.0
    robot.silent = False


def test_an_image_of_the_wrong_size_is_named(system):
    robot, _ = system
    robot.image.height = IMAGE // 2
    robot.rest(0.5)  # images that were under way
    goal = robot.send(INSTRUCTION)
    before = len(robot.fields)
    robot.until(goal.result.done, 20.0, "the end of the goal")
    robot.image.height = IMAGE
    assert len(robot.fields) == before
    assert "is 32x16 pixels, the policy was trained on 32x32" in goal.result.result().result.message
    robot.until(lambda: robot.status[-1].level == DiagnosticStatus.OK, 10.0, "recovery")


def test_the_rate_is_live_and_has_a_range(system):
    robot, _ = system
    assert robot.set_parameter("policy_rate_hz", 6.0).successful
    result = robot.set_parameter("policy_rate_hz", 300.0)
    assert not result.successful
    assert result.reason


def test_two_interrupts_end_the_goal_and_the_process(system):
    robot, process = system
    goal = robot.send(INSTRUCTION)
    robot.until(lambda: goal.feedback, 20.0, "feedback")
    process.send_signal(signal.SIGINT)
    robot.rest(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30.0)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    robot.until(goal.result.done, 5.0, "the end of the goal")
    assert "stopped" in goal.result.result().result.message


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("checkpoint:=CORRUPT", "model.safetensors' is not a readable safetensors file"),
        ("policy_rate_hz:=100.0", "policy_rate_hz"),
    ],
)
def test_a_bad_start_is_one_clear_line_and_code_2(domain, tmp_path, checkpoint, parameter, words):
    folder = tmp_path / "corrupt"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "model.safetensors").write_bytes(b"no tensors")
    process = start_node(parameter.replace("CORRUPT", str(folder)))
    output, _ = process.communicate(timeout=START_S)
    assert process.returncode == 2, output
    assert words in output
    assert "Traceback" not in output
    errors = [line for line in output.splitlines() if "cannot" in line]
    assert len(errors) == 1, output
