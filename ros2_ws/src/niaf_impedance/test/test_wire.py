"""Fast CDR access against rclpy's own serialisation."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment")

from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from niaf_impedance.wire import Float64ArrayEncoder, JointStateDecoder, JointStateError


def state(names, position, velocity, frame="", effort=()):
    message = JointState(name=list(names), position=list(position), velocity=list(velocity))
    message.effort = list(effort)
    message.header.frame_id = frame
    message.header.stamp.sec, message.header.stamp.nanosec = 1_700_000_001, 250_000_000
    return serialize_message(message)


@pytest.mark.parametrize("frame", ["", "a", "base", "panda_link0"])
def test_joints_are_found_by_name_in_any_order(frame):
    decoder = JointStateDecoder(("a", "bb", "ccc"), "finger", 2.0)
    names = ["ccc", "finger", "a", "other_joint", "bb"]
    for shift in (0.0, 0.5):
        position = np.arange(5.0) + shift
        decoder.decode(state(names, position, 10.0 + position, frame, position))
        np.testing.assert_array_equal(decoder.q, position[[2, 4, 0]])
        np.testing.assert_array_equal(decoder.dq, 10.0 + position[[2, 4, 0]])
        assert decoder.gripper_m == 2.0 * position[1]
        assert decoder.stamp == (1_700_000_001, 250_000_000)


def test_changed_order_is_noticed():
    decoder = JointStateDecoder(("a", "b"))
    decoder.decode(state("ab", [1.0, 2.0], [0.0, 0.0]))
    decoder.decode(state("ba", [1.0, 2.0], [0.0, 0.0]))
    np.testing.assert_array_equal(decoder.q, [2.0, 1.0])
    assert np.isnan(decoder.gripper_m)


def test_missing_joint_and_missing_velocity_are_named():
    decoder = JointStateDecoder(("a", "b"))
    with pytest.raises(JointStateError, match=r"lacks b; it has \['a', 'x'\]"):
        decoder.decode(state("ax", [1.0, 2.0], [0.0, 0.0]))
    with pytest.raises(JointStateError, match="2 names but 0 values in velocity"):
        decoder.decode(state("ab", [1.0, 2.0], []))


def test_nan_passes_through_to_the_tick_that_handles_it():
    decoder = JointStateDecoder(("a", "b"))
    decoder.decode(state("ab", [np.nan, 2.0], [0.0, np.inf]))
    assert np.isnan(decoder.q[0])
    assert np.isinf(decoder.dq[1])


def test_encoded_efforts_are_what_rclpy_reads():
    encoder = Float64ArrayEncoder(7)
    encoder.values[:] = np.linspace(-3.0, 3.0, 7)
    message = deserialize_message(encoder.encode(), Float64MultiArray)
    np.testing.assert_array_equal(message.data, encoder.values)
    assert len(message.layout.dim) == 0
