"""The policy node with tool channels, in this process: where it anchors fields, what it refuses."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment")
pytest.importorskip("niaf_msgs.msg", reason="niaf_msgs is not built")
pytest.importorskip("domain_coordinator", reason="no domain_coordinator")

from geometry_msgs.msg import PoseStamped
from scipy.spatial.transform import Rotation
from test_node_faults import MadeUpPolicy, bench  # noqa: F401

from niaf_field import Channel, initial_prior

pytestmark = pytest.mark.system

TOOL = (
    *(Channel(n, "m", "cartesian_position", "relative") for n in "xyz"),
    *(Channel(f"r{n}", "rad", "cartesian_rotation", "relative") for n in "xyz"),
)
TURN = Rotation.from_rotvec([3.0, 0.2, -0.1])
SPEED_M_S = 0.2


class ToolPolicy(MadeUpPolicy):
    def __init__(self) -> None:
        super().__init__()
        self.prior = initial_prior(TOOL, sine_layers=1, width=4, omega0=3.0, horizon_s=0.5)
        self.gamma = np.zeros(self.prior.gamma_length, np.float32)


class Tool:
    """A tool that moves along x, told in poses of its own instants."""

    def __init__(self, made) -> None:
        self.made, self.pose = made, PoseStamped()
        self.publisher = made.robot.create_publisher(PoseStamped, "tool_pose", 10)
        self.pose.header.frame_id = "panda_link0"
        q = TURN.as_quat()
        (self.pose.pose.orientation.x, self.pose.pose.orientation.y,
         self.pose.pose.orientation.z, self.pose.pose.orientation.w) = (float(v) for v in q)
        self.began_ns = time.time_ns()
        self.silent = False
        publish = made.publish

        def both() -> None:
            publish()
            if not self.silent:  # off the instants of the images
                self.say(time.time_ns() - 15_000_000)
                self.say(time.time_ns())

        made.publish = both

    def x(self, at_ns: int) -> float:
        return SPEED_M_S * (at_ns - self.began_ns) * 1e-9

    def say(self, at_ns: int) -> None:
        stamp = self.pose.header.stamp
        stamp.sec, stamp.nanosec = divmod(at_ns, 1_000_000_000)
        self.pose.pose.position.x, self.pose.pose.position.z = self.x(at_ns), 0.4
        self.publisher.publish(self.pose)


@pytest.fixture
def moving(bench):  # noqa: F811
    made = bench(ToolPolicy())
    return made, Tool(made)


def test_fields_are_anchored_at_the_tool_of_the_images_instant(moving) -> None:
    made, tool = moving
    made.send()
    made.until(lambda: len(made.fields) >= 5)
    for field in made.fields[2:]:
        stamp_ns = field.header.stamp.sec * 1_000_000_000 + field.header.stamp.nanosec
        anchor = np.array(field.anchor)
        np.testing.assert_allclose(anchor[:3], [tool.x(stamp_ns), 0.0, 0.4], atol=1e-6)
        np.testing.assert_allclose(anchor[3:], TURN.as_rotvec(), atol=1e-9)
    made.node._publish_diagnostics()
    made.until(lambda: made.status)
    assert "age_s.tool_pose" in {pair.key for pair in made.status[-1].values}


def spoil_frame(pose: PoseStamped) -> None:
    pose.header.frame_id = "map"


def spoil_orientation(pose: PoseStamped) -> None:
    pose.pose.orientation.x = pose.pose.orientation.y = 0.0
    pose.pose.orientation.z = pose.pose.orientation.w = 0.0


def spoil_position(pose: PoseStamped) -> None:
    pose.pose.position.y = float("nan")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_frame, "is in frame 'map', needed is the robot's base 'panda_link0'"),
        (spoil_orientation, "has length 0"),
        (spoil_position, "position is"),
    ],
)
def test_poses_that_cannot_be_used_end_the_goal_with_the_reason(moving, spoil, words) -> None:
    made, tool = moving
    spoil(tool.pose)
    ended = made.ended(made.send())
    assert not ended.success
    assert "/tool_pose" in ended.message
    assert words in ended.message
    assert not made.fields
    assert made.node._session.figures.drops["bad tool pose"] > 0


def test_without_poses_no_field_is_sent_and_the_topic_is_named(moving) -> None:
    made, tool = moving
    tool.silent = True
    ended = made.ended(made.send())
    assert "no message on /tool_pose yet; is the impedance node active" in ended.message
    assert made.node._session.figures.drops["no tool pose"] > 0
    tool.silent = False
    made.send()
    made.until(lambda: made.fields)


def test_policies_of_joints_do_not_subscribe_to_the_tool(bench) -> None:  # noqa: F811
    made = bench()
    assert made.node._poses is None
    made.send()
    made.until(lambda: made.fields)
