"""Topics of the arm's state read by polling instead of by an executor.

An executor pays about 100 us of Python for every message of a 1 kHz topic; the policy needs one of
a hundred. Taking serialised messages from the middleware's queue costs a few microseconds each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import JointState

from niaf_policy.observation import (
    JointLayout,
    MeasuredState,
    ToolPose,
    measured_state,
    tool_pose,
)

_LITTLE_ENDIAN = b"\x00\x01"


def stamp_of(data: bytes) -> int:
    """Unix nanoseconds of a serialised message that begins with a Header."""
    order: Any = "little" if data[:2] == _LITTLE_ENDIAN else "big"
    sec = int.from_bytes(data[4:8], order, signed=True)
    return sec * 1_000_000_000 + int.from_bytes(data[8:12], order)


def decode_state(data: bytes, layout: JointLayout) -> MeasuredState:
    """Raises MessageError when the policy's joints are not all there."""
    message = deserialize_message(data, JointState)
    return measured_state(message.name, message.position, message.velocity, layout)


def decode_pose(data: bytes, base_frame: str) -> ToolPose:
    """Raises MessageError when it is no pose in the base frame."""
    message = deserialize_message(data, PoseStamped)
    p, q = message.pose.position, message.pose.orientation
    return tool_pose(
        message.header.frame_id, (p.x, p.y, p.z), (q.x, q.y, q.z, q.w), base_frame
    )


class PolledStates:
    """Serialised messages of ``kind`` (with a header), on demand. ``depth``: how many wait at most
    (the newest stay).

    Create it in the thread that spins the executor; one thread at a time may take.
    """

    def __init__(self, node: Node, kind: Any, topic: str, depth: int) -> None:
        qos = QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._kind = kind
        self._subscription = node.create_subscription(kind, topic, _never_called, qos, raw=True)
        # Documented nowhere, hence checked: executors collect what this list holds.
        node._subscriptions.remove(self._subscription)
        if self._subscription in tuple(node.subscriptions):
            raise RuntimeError("rclpy keeps its subscriptions elsewhere: polling is not possible")
        self.topic: str = self._subscription.topic_name

    def take_all(self) -> Iterator[tuple[int, bytes]]:
        """(stamp in Unix ns, serialised message) of everything that waits, oldest first."""
        subscription: Any = self._subscription
        while True:
            with subscription.handle:
                taken = subscription.handle.take_message(self._kind, True)
            if taken is None:
                return
            data = taken[0]
            yield stamp_of(data), data

    def destroy(self) -> None:
        """Release it; the node does not do so."""
        self._subscription.destroy()


def _never_called(_: object) -> None:
    raise AssertionError("a polled subscription was dispatched by an executor")
