"""Fast CDR codecs for the two 1 kHz messages of the control loop.

rclpy converts a JointState in about 15 us and a Float64MultiArray in about 8 us, most of it for
fields that never change. Here the constant bytes are prepared once by rclpy itself and only stamp
and numbers are written. The layout is found by looking for sentinel values and checked by decoding.
"""

from __future__ import annotations

import numpy as np
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

FloatArray = np.ndarray

_HEAD_BYTES = 16


class JointStateEncoder:
    """Serialised sensor_msgs/JointState with fixed names; n joints."""

    def __init__(self, names: tuple[str, ...], frame_id: str = "") -> None:
        n = len(names)
        message = JointState(name=list(names))
        message.header.frame_id = frame_id
        sec, nanosec = 0x1A2B3C4D, 0x05060708
        message.header.stamp.sec, message.header.stamp.nanosec = sec, nanosec
        message.position = [1.0e10 + k for k in range(n)]
        message.velocity = [2.0e10 + k for k in range(n)]
        message.effort = [3.0e10 + k for k in range(n)]
        self._buffer = bytearray(serialize_message(message))
        self._stamp = self._view(np.array([sec, nanosec], dtype="<u4"))
        self.position = self._view(np.array(message.position, dtype="<f8"))
        self.velocity = self._view(np.array(message.velocity, dtype="<f8"))
        self.effort = self._view(np.array(message.effort, dtype="<f8"))
        self.position[:], self.velocity[:], self.effort[:] = 1.5, 2.5, 3.5
        check = deserialize_message(self.encode(7_000_000_009), JointState)
        if (
            tuple(check.name) != tuple(names)
            or (check.header.stamp.sec, check.header.stamp.nanosec) != (7, 9)
            or list(check.position) != [1.5] * n
            or list(check.velocity) != [2.5] * n
            or list(check.effort) != [3.5] * n
        ):
            raise RuntimeError("JointState layout of this middleware is not the one expected")

    def _view(self, sentinel: np.ndarray) -> np.ndarray:
        pattern = sentinel.tobytes()
        offset = self._buffer.find(pattern)
        if offset < 0 or self._buffer.find(pattern, offset + 1) >= 0:
            raise RuntimeError("JointState layout of this middleware is not the one expected")
        return np.frombuffer(self._buffer, dtype=sentinel.dtype, count=sentinel.size, offset=offset)

    def encode(self, stamp_ns: int) -> bytes:
        """Bytes to publish, with the numbers now in position, velocity and effort."""
        self._stamp[0], self._stamp[1] = divmod(stamp_ns, 1_000_000_000)
        return bytes(self._buffer)


class CommandDecoder:
    """Serialised std_msgs/Float64MultiArray; fast with n numbers and an empty layout."""

    def __init__(self, n: int) -> None:
        self._n = n
        template = bytes(serialize_message(Float64MultiArray(data=[4.0e10 + k for k in range(n)])))
        numbers = np.array([4.0e10 + k for k in range(n)], dtype="<f8").tobytes()
        self._offset = template.find(numbers)
        if self._offset < 0:
            raise RuntimeError("Float64MultiArray layout of this middleware is unexpected")
        # encapsulation, empty layout, count; the alignment bytes before the numbers are undefined
        self._head = template[:_HEAD_BYTES]
        self._length = len(template)

    def decode(self, data: bytes) -> FloatArray:
        """Numbers of the message, float64[whatever was sent]."""
        if len(data) == self._length and data[:_HEAD_BYTES] == self._head:
            return np.frombuffer(data, dtype="<f8", count=self._n, offset=self._offset)
        return np.array(deserialize_message(data, Float64MultiArray).data, dtype=np.float64)


def command_problem(values: FloatArray, count: int) -> str:
    """Why an effort command must not reach a drive; empty when it may."""
    if values.shape != (count,):
        return f"{values.size} numbers, {count} expected"
    if not np.isfinite(values).all():
        return f"not finite: {np.array2string(values, precision=3)}"
    return ""
