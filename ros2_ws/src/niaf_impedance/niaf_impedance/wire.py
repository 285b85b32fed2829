"""Fast CDR access to the two messages of every tick.

rclpy decodes a JointState in about 12 us, most of it for names that never change, and encodes a
Float64MultiArray in about 8 us. Here layout and names are worked out once by rclpy and a parse of
the CDR bytes, and compared byte by byte with every later message; other layouts are learnt anew.
"""

from __future__ import annotations

import numpy as np
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

FloatArray = np.ndarray

_HEADER = 4  # encapsulation
_LITTLE_ENDIAN = b"\x00\x01"


class JointStateError(ValueError):
    """A joint state that cannot drive this arm; the text names the joint and what was sent."""


def _align(offset: int, size: int) -> int:
    return offset + (-(offset - _HEADER)) % size


class JointStateDecoder:
    """Decodes serialised joint states into arm order.

    After ``decode``: ``q``, ``dq`` [n] (rad, rad/s), ``gripper_m`` (NaN when not reported),
    ``stamp`` (sec, nanosec).
    """

    def __init__(
        self, joints: tuple[str, ...], gripper_joint: str = "", width_scale: float = 1.0
    ) -> None:
        self._joints, self._gripper_joint, self._scale = joints, gripper_joint, width_scale
        self.q, self.dq = np.zeros(len(joints)), np.zeros(len(joints))
        self.gripper_m = float("nan")
        self.stamp = (0, 0)
        self._length = -1
        self._names = b""
        self._names_end = self._position = self._velocity = self._count = 0
        self._order = np.zeros(len(joints), dtype=np.intp)
        self._gripper = -1

    def decode(self, data: bytes) -> None:
        """Raises JointStateError for a message without the arm's joints."""
        if len(data) != self._length or data[12 : self._names_end] != self._names:
            self._learn(data)
        stamp = np.frombuffer(data, "<u4", 2, _HEADER)
        self.stamp = (int(stamp[0]), int(stamp[1]))
        position = np.frombuffer(data, "<f8", self._count, self._position)
        velocity = np.frombuffer(data, "<f8", self._count, self._velocity)
        np.take(position, self._order, out=self.q)
        np.take(velocity, self._order, out=self.dq)
        if self._gripper >= 0:
            self.gripper_m = float(position[self._gripper]) * self._scale

    def _learn(self, data: bytes) -> None:
        """Names and offsets of a new layout, checked against rclpy's own decoding."""
        message = deserialize_message(data, JointState)
        names = list(message.name)
        count = len(names)
        missing = [joint for joint in self._joints if joint not in names]
        if missing:
            raise JointStateError(
                f"joint_states lacks {', '.join(missing)}; it has {names or 'no joints'}. Publish "
                "these joints or correct the robot description"
            )
        for field, values in (("position", message.position), ("velocity", message.velocity)):
            if len(values) != count:
                raise JointStateError(
                    f"joint_states has {count} names but {len(values)} values in {field}; this "
                    "controller needs measured position and velocity of every joint"
                )
        if data[:2] != _LITTLE_ENDIAN:
            raise JointStateError("joint_states is not little-endian CDR; not supported here")

        def uint(offset: int) -> int:
            return int.from_bytes(data[offset : offset + 4], "little")

        at = 12 + 4 + uint(12)  # stamp, then frame_id
        at = _align(at, 4) + 4
        for _ in range(count):
            at = _align(at, 4)
            at += 4 + uint(at)
        at = _align(at, 4)
        offsets = []
        for _ in range(2):
            at = _align(at, 4)
            length = uint(at)
            at = _align(at + 4, 8)
            offsets.append(at)
            at += 8 * length
        self._length, self._names_end = len(data), offsets[0] - 8
        self._names = bytes(data[12 : self._names_end])
        self._position, self._velocity, self._count = offsets[0], offsets[1], count
        self._order = np.array([names.index(joint) for joint in self._joints], dtype=np.intp)
        self._gripper = names.index(self._gripper_joint) if self._gripper_joint in names else -1
        if self._gripper < 0:
            self.gripper_m = float("nan")
        for offset, values in zip(offsets, (message.position, message.velocity), strict=True):
            seen = np.frombuffer(data, "<f8", count, offset)
            if not np.array_equal(seen, np.asarray(values), equal_nan=True):
                self._length = -1
                raise JointStateError("joint_states has a layout that could not be decoded")


class Float64ArrayEncoder:
    """Serialised std_msgs/Float64MultiArray of n numbers with an empty layout."""

    def __init__(self, n: int) -> None:
        sentinel = np.arange(4.0e10, 4.0e10 + n)
        self._buffer = bytearray(serialize_message(Float64MultiArray(data=list(sentinel))))
        offset = self._buffer.find(sentinel.tobytes())
        if offset < 0:
            raise RuntimeError("Float64MultiArray has an unexpected layout in this middleware")
        #: the numbers to send, a view into the message
        self.values: FloatArray = np.frombuffer(self._buffer, "<f8", n, offset)
        self.values[:] = np.arange(n)
        if list(deserialize_message(self.encode(), Float64MultiArray).data) != list(range(n)):
            raise RuntimeError("Float64MultiArray has an unexpected layout in this middleware")

    def encode(self) -> bytes:
        """Bytes to publish."""
        return bytes(self._buffer)
