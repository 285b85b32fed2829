"""An end-effector policy over the real graph: simulation, controller, and the policy node itself.

The policy is a tiny checkpoint whose network answers the same to whatever it sees: the tool goes on
along y, turning about z, from where it was when the images were taken. Where the tool is, is judged
by pinocchio from the joint states.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pinocchio
import pytest

for name in ("rclpy", "niaf_msgs.msg", "domain_coordinator", "torch", "transformers"):
    pytest.importorskip(name, reason=f"{name} is not in this environment")
sys.path.insert(0, str(Path(__file__).parent))  # under importlib mode too
sys.path.insert(0, str(Path(__file__).parents[2] / "ros2_ws/src/niaf_policy/test"))

import domain_coordinator  # noqa: E402
import policy_support  # noqa: E402
import rclpy  # noqa: E402
import torch  # noqa: E402
from geometry_msgs.msg import PoseStamped  # noqa: E402
from graph_under_test import ARM_JOINTS, IMPEDANCE, ROBOT, Graph, stamp_s, violations  # noqa: E402
from rclpy.action import ActionClient  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402

from niaf_field.codec import from_message  # noqa: E402
from niaf_impedance.arm_model import ArmModel  # noqa: E402
from niaf_msgs.action import ExecuteInstruction  # noqa: E402
from niaf_msgs.msg import ActionField, AdmissionReport, ImpedanceState  # noqa: E402
from niaf_policy.checkpoint import save_checkpoint  # noqa: E402

pytestmark = pytest.mark.system

ARM = ArmModel(ROBOT)
HORIZON_S, SPEED_M_S, SPEED_RAD_S = 1.0, 0.06, 0.1
IMAGE = (96, 96)
#: patient: torch loads slowly on a busy machine
START_S = 240.0


def straight_on(folder: Path) -> Path:
    """A checkpoint whose field is the shared network alone: heads of zero, one straight motion."""
    backbone = policy_support.TINY_MODEL["backbone"] | {"patch_stride": [8, 3]}  # larger images
    config = policy_support.tiny_config(
        model={"backbone": backbone}, data={"horizon_s": HORIZON_S})
    statistics = dataclasses.replace(
        policy_support.normalization(tool=True), horizon_s=HORIZON_S, action_mean=(0.0,) * 7,
        action_scale=(1.0,) * 7)
    model, tokenizer = policy_support.tiny_model(config, tool=True)
    siren = model.prior
    with torch.no_grad():
        for parameter in (*siren.weights, *siren.biases, siren.w_out, siren.b_out):
            parameter.zero_()
        # one sine after the other, each so slow that it is nearly straight
        for weight in siren.weights:
            weight[0, 0] = 0.2 / siren.omega0
        slope = 0.2 ** len(siren.weights)
        for channel, speed in ((1, SPEED_M_S), (5, SPEED_RAD_S)):
            siren.w_out[channel, 0] = 0.5 * HORIZON_S * speed / slope
            siren.b_out[channel] = 0.5 * HORIZON_S * speed
        siren.b_out[6] = 0.04
    save_checkpoint(
        folder, model=model.eval(), config=config, normalization=statistics, tokenizer=tokenizer,
        image_size=IMAGE, instructions=policy_support.INSTRUCTIONS, results={},
    )
    return folder


class Kinematics:
    """The tool's pose in the base frame by pinocchio, from the URDF alone."""

    def __init__(self) -> None:
        self._model = pinocchio.buildModelFromUrdf(str(ROBOT.urdf))
        self._data = self._model.createData()
        self._places = [self._model.joints[self._model.getJointId(n)].idx_q for n in ARM_JOINTS]
        self._frames = [self._model.getFrameId(n) for n in (ROBOT.base_frame, ROBOT.tool_frame)]

    def __call__(self, q: Any) -> tuple[np.ndarray, Rotation]:
        full = pinocchio.neutral(self._model)
        full[self._places] = q
        pinocchio.framesForwardKinematics(self._model, self._data, full)
        base, tool = (self._data.oMf[frame] for frame in self._frames)
        pose = base.inverse() * tool
        return pose.translation.copy(), Rotation.from_matrix(pose.rotation)


KINEMATICS = Kinematics()


class Operator:
    """Gives the policy its instruction and listens; one thread spins it."""

    def __init__(self, graph: Graph) -> None:
        self.node = rclpy.create_node("operator", context=graph.context)
        self.executor = SingleThreadedExecutor(context=graph.context)
        self.executor.add_node(self.node)
        self.fields: list[ActionField] = []
        self.poses: list[PoseStamped] = []
        self.node.create_subscription(ActionField, "policy/action_field", self.fields.append, 100)
        self.node.create_subscription(PoseStamped, "impedance/tool_pose", self.poses.append, 1000)
        self.client = ActionClient(self.node, ExecuteInstruction, "policy/execute")
        self._graph = graph

    def until(self, ready: Callable[[], Any], what: str, timeout_s: float = 60.0) -> None:
        end_s = time.monotonic() + timeout_s
        while not ready():
            dead = [n for n, p in self._graph.processes.items() if p.poll() is not None]
            if dead or time.monotonic() > end_s:
                raise AssertionError(f"waited for {what}; ended: {dead}\n{self._graph.logs()}")
            self.executor.spin_once(timeout_sec=0.02)

    def begin(self) -> Any:
        """Handle of a goal that runs."""
        self.until(self.client.server_is_ready, "the policy", START_S)
        goal = ExecuteInstruction.Goal(
            instruction=policy_support.INSTRUCTIONS[0], timeout_s=600.0)
        handles = []

        def accepted() -> bool:
            # the policy refuses goals until it is active
            if not handles or (handles[-1].done() and not handles[-1].result().accepted):
                handles.append(self.client.send_goal_async(goal))
            return bool(handles[-1].done() and handles[-1].result().accepted)

        self.until(accepted, "the goal to be accepted", START_S)
        return handles[-1].result()

    def close(self) -> None:
        self.executor.shutdown()
        self.client.destroy()
        self.node.destroy_node()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Graph, Operator]]:
    """The recording of one run: motion for some seconds, then the goal is cancelled."""
    folder = tmp_path_factory.mktemp("graph")
    checkpoint = straight_on(folder / "checkpoint")
    with domain_coordinator.domain_id() as domain:
        graph = Graph(int(domain), folder, prior=checkpoint / "prior.safetensors")
        operator = Operator(graph)
        try:
            graph.start_sim(camera_rate_hz=5.0)
            graph.start(
                "impedance", "-m", "niaf_impedance.impedance_node",
                prior=checkpoint / "prior.safetensors",
                **IMPEDANCE | {"field_max_age_s": 5.0, "min_remaining_s": 0.0})
            graph.start(
                "policy", "-m", "niaf_policy.policy_node", checkpoint=checkpoint,
                policy_rate_hz=5.0, max_observation_age_s=4.0, fault_patience_s=30.0)
            graph.wait(lambda: graph.states, "the controller's first state", START_S)
            handle = operator.begin()

            def travelled() -> float:
                places = [np.array(s.tool_measured[:3]) for s in graph.states[::10]]
                return float(np.linalg.norm(places[-1] - places[0])) if places else 0.0

            operator.until(
                lambda: len(operator.fields) >= 15 and travelled() > 0.08, "15 fields and 8 cm")
            handle.cancel_goal_async()
            operator.until(
                lambda: graph.states[-1].mode != ImpedanceState.TRACK and
                graph.states[-1].mode != ImpedanceState.BRAKE, "the end of the motion")
            graph.wait_for_rest()
            graph.wait(lambda: graph.states[-1].mode == ImpedanceState.HOLD, "HOLD")
            yield graph, operator
        finally:
            operator.close()
            codes = graph.close()
    assert set(codes.values()) == {0}, f"{codes}\n{graph.logs()}"


def test_the_tool_goes_where_the_policy_sends_it(run: tuple[Graph, Operator]) -> None:
    graph, _ = run
    states = list(graph.states)
    taken = [r for r in graph.reports if r.verdict != AdmissionReport.REFUSED]
    assert len(taken) >= 5, [r.reason_text for r in graph.reports]
    (start, turned), (end, turn) = (
        KINEMATICS(states[k].measured_position) for k in (0, -1))
    moved, about = end - start, (turn * turned.inv()).as_rotvec()
    assert moved[1] > 0.07
    assert np.abs(moved[[0, 2]]).max() < 0.25 * moved[1]
    assert about[2] > 0.3 * moved[1] * SPEED_RAD_S / SPEED_M_S
    assert np.abs(about[:2]).max() < 0.1


def test_states_say_where_the_tool_is_and_should_be(run: tuple[Graph, Operator]) -> None:
    graph, _ = run
    following = [s for s in graph.states if s.mode in (s.TRACK, s.BRAKE, s.HOLD)]
    errors = []
    for state in following:
        place, turn = KINEMATICS(state.measured_position)
        np.testing.assert_allclose(state.tool_measured[:3], place, atol=1e-9)
        measured, wanted = (
            Rotation.from_quat(pose[3:]) for pose in (state.tool_measured, state.tool_reference))
        assert (measured * turn.inv()).magnitude() < 1e-7
        error = np.concatenate([
            np.array(state.tool_reference[:3]) - place, (wanted * turn.inv()).as_rotvec()])
        np.testing.assert_allclose(state.tool_error, error, atol=1e-7)
        assert np.isfinite(state.tool_wrench).all()
        errors.append(np.linalg.norm(error[:3]))
    assert max(errors) < 0.02  # friction that is not known holds the arm back
    assert 0.0 < np.median(errors) < 0.01


def test_fields_begin_where_the_tool_was_when_the_images_were_taken(
    run: tuple[Graph, Operator]
) -> None:
    graph, operator = run
    joints = graph.joint_states()
    checked = 0
    for message in operator.fields:
        field = from_message(message)
        after = int(np.searchsorted(joints.time_s, field.stamp_s))
        if not 0 < after < len(joints.time_s):
            continue
        if joints.time_s[after] - joints.time_s[after - 1] > 0.004:
            continue  # states were lost around it
        share = (field.stamp_s - joints.time_s[after - 1]) / (
            joints.time_s[after] - joints.time_s[after - 1])
        q = joints.q_rad[after - 1] + share * (joints.q_rad[after] - joints.q_rad[after - 1])
        place, turn = KINEMATICS(q)
        checked += 1
        assert np.linalg.norm(field.anchor[:3] - place) < 2e-3
        assert (Rotation.from_rotvec(field.anchor[3:6]) * turn.inv()).magnitude() < 5e-3
        assert field.anchor[6] == 0.0
    assert checked >= 5


def test_published_poses_are_those_of_the_joint_states(run: tuple[Graph, Operator]) -> None:
    graph, operator = run
    joints = graph.joint_states()
    at = {round(time_s * 1e6): q for time_s, q in zip(joints.time_s, joints.q_rad, strict=True)}
    checked = 0
    for pose in operator.poses:
        assert pose.header.frame_id == ROBOT.base_frame
        q = at.get(round(stamp_s(pose) * 1e6))
        if q is None:
            continue  # lost on its way here
        place, turn = KINEMATICS(q)
        p, o = pose.pose.position, pose.pose.orientation
        np.testing.assert_allclose([p.x, p.y, p.z], place, atol=1e-9)
        assert (Rotation.from_quat([o.x, o.y, o.z, o.w]) * turn.inv()).magnitude() < 1e-7
        checked += 1
    assert checked > 0.3 * len(operator.poses) > 10


def test_seams_are_smooth_and_nothing_is_a_fault(run: tuple[Graph, Operator]) -> None:
    graph, _ = run
    states = list(graph.states)
    assert {s.fault for s in states} == {0}
    assert {s.mode for s in states} >= {ImpedanceState.TRACK, ImpedanceState.HOLD}
    assert states[-1].mode == ImpedanceState.HOLD
    assert len({s.field_sequence for s in states}) >= 5  # hand-overs
    assert states[-1].seam_position_peak_rad < 1e-9
    assert states[-1].seam_velocity_peak_rad_s < 1e-8
    found = violations(graph.efforts(), graph.joint_states(), states, ARM.gravity_torque)
    assert found == []
