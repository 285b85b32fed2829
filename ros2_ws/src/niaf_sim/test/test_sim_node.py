"""System test of the simulation node: a real process over real DDS on a domain of its own."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("niaf_msgs.msg", reason="build niaf_msgs and source the workspace first")
domain_coordinator = pytest.importorskip("domain_coordinator")

from rclpy.experimental import EventsExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import Image, JointState  # noqa: E402
from std_msgs.msg import Float64MultiArray  # noqa: E402

from niaf_msgs.msg import TaskState  # noqa: E402
from niaf_msgs.srv import ResetScene  # noqa: E402

pytestmark = pytest.mark.system
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
QUEUED = QoSProfile(depth=200, reliability=ReliabilityPolicy.BEST_EFFORT)
SEED, INSTRUCTION = 5, "put the green cube in the bin"


class Observer(Node):
    """Hears everything the sim says; answers joint states with a damped spring when asked to."""

    def __init__(self, context):
        super().__init__("observer", context=context)
        self.states, self.ages_s, self.images, self.tasks = [], [], {}, []
        self.target = None
        self.efforts = self.create_publisher(
            Float64MultiArray, "effort_controller/commands", NEWEST
        )
        self.create_subscription(JointState, "joint_states", self.on_state, QUEUED)
        self.create_subscription(TaskState, "sim/task_state", self.tasks.append, 10)
        for camera in ("scene", "wrist", "overview"):
            self.create_subscription(
                Image, f"{camera}/image_raw",
                lambda image, camera=camera: self.images.setdefault(camera, []).append(image),
                NEWEST,
            )
        self.reset = self.create_client(ResetScene, "sim/reset_scene")
        self.executor_ = EventsExecutor(context=context)
        self.executor_.add_node(self)

    def on_state(self, state):
        self.states.append(state)
        self.ages_s.append(time.time() - stamp_s(state))
        if self.target is not None:
            q, dq = np.array(state.position[:7]), np.array(state.velocity[:7])
            torque = self.hold + 60.0 * (self.target - q) - 15.0 * dq
            self.efforts.publish(Float64MultiArray(data=torque.tolist()))

    def spin(self, seconds, until=None):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (until and until()):
            self.executor_.spin_once(timeout_sec=0.05)
        return until is None or until()

    def reset_scene(self, **request):
        assert self.reset.wait_for_service(5.0)
        future = self.reset.call_async(ResetScene.Request(**request))
        assert self.spin(6.0, future.done), "reset_scene did not answer"
        return future.result()


def stamp_s(message):
    return message.header.stamp.sec + message.header.stamp.nanosec * 1e-9


@pytest.fixture(scope="module")
def domain():
    """A ROS domain nobody else uses; discovery is not narrowed, see avoid_shared_memory_stall."""
    with domain_coordinator.domain_id() as number:
        yield int(number)


@pytest.fixture(scope="module")
def sim(domain, tmp_path_factory):
    log = tmp_path_factory.mktemp("sim") / "sim.log"
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    environment.pop("ROS_AUTOMATIC_DISCOVERY_RANGE", None)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "niaf_sim.sim_node", "--ros-args", "-p", f"seed:={SEED}",
                "-p", f"instruction:={INSTRUCTION}",
            ],
            stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )
    process.log = log
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def observer(sim, domain):
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = Observer(context)
    if not node.spin(40.0, lambda: node.states and len(node.images) == 3 and node.tasks):
        pytest.fail(f"the sim did not come up:\n{sim.log.read_text()}")
    yield node
    node.destroy_node()
    rclpy.try_shutdown(context=context)


def test_joint_states_come_at_1_khz_with_monotonic_stamps(observer):
    observer.spin(0.5)
    observer.states.clear()
    observer.spin(2.0)
    stamps = np.array([stamp_s(state) for state in observer.states])
    steps = np.diff(stamps)
    assert (steps > 0).all()
    assert np.median(steps) == pytest.approx(1e-3, rel=0.1)
    assert (len(stamps) - 1) / (stamps[-1] - stamps[0]) > 900.0
    state = observer.states[-1]
    assert list(state.name) == [f"panda_joint{k}" for k in range(1, 8)] + ["panda_finger_joint1"]
    assert len(state.position) == len(state.velocity) == len(state.effort) == 8
    assert np.median(observer.ages_s) < 0.02


def test_brakes_hold_until_the_first_command(observer):
    before = np.array(observer.states[-1].position[:7])
    observer.spin(0.5)
    assert np.array_equal(before, observer.states[-1].position[:7])


def test_task_state_tells_task_and_real_time(observer):
    observer.tasks.clear()
    observer.spin(1.0)
    assert 10 <= len(observer.tasks) <= 25
    task = observer.tasks[-1]
    assert (task.instruction, task.seed, task.success) == (INSTRUCTION, SEED, False)
    assert task.real_time_factor == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("camera", "height", "width"), [("scene", 96, 96), ("wrist", 96, 96), ("overview", 360, 480)]
)
def test_images_arrive_with_the_promised_format(observer, camera, height, width):
    observer.images.clear()
    assert observer.spin(5.0, lambda: len(observer.images.get(camera, [])) >= 4)
    images = observer.images[camera]
    image = images[-1]
    assert (image.encoding, image.height, image.width) == ("rgb8", height, width)
    assert image.step == 3 * width
    assert len(image.data) == height * width * 3
    assert np.frombuffer(image.data, dtype=np.uint8).std() > 10.0, "the image is blank"
    assert 0.0 <= time.time() - stamp_s(image) < 1.0
    steps = np.diff([stamp_s(i) for i in images])
    assert np.median(steps) == pytest.approx(0.1, rel=0.3)


def test_a_wrong_reset_is_refused_and_says_what_is_known(observer):
    answer = observer.reset_scene(seed=1, instruction="juggle the cubes", start="home")
    assert not answer.success
    assert "pick up the red cube" in answer.message
    answer = observer.reset_scene(seed=1, instruction=INSTRUCTION, start="upside down")
    assert not answer.success
    assert "upside down" in answer.message
    assert observer.tasks[-1].seed == SEED


def test_commands_move_the_arm_and_bad_ones_do_not_reach_it(observer, sim):
    assert observer.reset_scene(seed=9, instruction="pick up the blue cube").success
    assert observer.spin(2.0, lambda: observer.tasks[-1].seed == 9)
    start = np.array(observer.states[-1].position[:7])
    observer.hold = np.array(observer.states[-1].effort[:7])  # the drives' own holding torque
    for bad in ([1.0] * 6, [float("nan")] * 7, [0.0] * 6 + [float("inf")], []):
        observer.efforts.publish(Float64MultiArray(data=bad))
        observer.spin(0.1)
    assert np.array_equal(start, observer.states[-1].position[:7]), "a bad command had effect"
    observer.target = start + np.array([0.25, 0, 0, 0, 0, 0, 0.3])
    observer.spin(2.0)
    moved = np.array(observer.states[-1].position[:7]) - start
    assert moved[0] == pytest.approx(0.25, abs=0.08)
    assert moved[6] == pytest.approx(0.3, abs=0.12)
    assert observer.tasks[-1].elapsed_s > 1.0


def test_silence_of_commands_damps_the_drives(observer):
    observer.target = observer.target + np.array([-0.6, 0, 0, 0, 0, 0, 0])
    observer.spin(0.25)
    moving = abs(observer.states[-1].velocity[0])
    assert moving > 0.2, "the arm should be on its way"
    observer.target = None
    observer.states.clear()
    observer.spin(0.6)
    velocity = np.array([state.velocity[0] for state in observer.states])
    assert abs(velocity[-1]) < 0.1 * moving, "the watchdog did not brake joint 1"
    # damping opposes the motion: torque is -d * velocity once the watchdog has acted
    late = [state for state in observer.states[-50:] if abs(state.velocity[1]) > 0.02]
    for state in late:
        assert state.effort[1] * state.velocity[1] < 0.0


def test_it_stops_cleanly_on_sigint_and_reports_what_it_did(observer, sim):
    sim.send_signal(signal.SIGINT)
    assert sim.wait(10.0) == 0
    text = sim.log.read_text()
    assert "effort command dropped: 6 numbers, 7 expected" in text
    report = re.search(r"(\d+) commands, (\d+) dropped", text)
    assert int(report[1]) > 500
    assert int(report[2]) == 4


def test_a_parameter_out_of_range_is_named(domain):
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [
            sys.executable, "-m", "niaf_sim.sim_node", "--ros-args", "-p", "camera_rate_hz:=500.0",
        ],
        env=environment, capture_output=True, text=True, timeout=60,
    )
    assert done.returncode == 2
    assert "camera_rate_hz" in done.stderr
    assert "out of range" in done.stderr
