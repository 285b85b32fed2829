"""Parts under the sim node: codecs, shared snapshot, graphics choice, polled subscription."""

import os
import time

import numpy as np
import pytest
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, MultiArrayDimension

from niaf_sim import graphics
from niaf_sim.camera_process import CameraOutput, CameraProcessConfig
from niaf_sim.graphics import GraphicsError, choose_gl_backend
from niaf_sim.shared_snapshot import SharedSnapshot
from niaf_sim.wire import CommandDecoder, JointStateEncoder, command_problem

NAMES = tuple(f"panda_joint{k}" for k in range(1, 8)) + ("panda_finger_joint1",)


@pytest.mark.parametrize("frame", ["", "panda_link0", "odd"])
def test_encoded_joint_state_is_what_rclpy_reads(frame):
    encoder = JointStateEncoder(NAMES, frame)
    encoder.position[:] = np.arange(8) * 0.1
    encoder.velocity[:] = -np.arange(8)
    encoder.effort[:] = 7.0
    message = deserialize_message(encoder.encode(1_795_000_000_123_456_789), JointState)
    assert tuple(message.name) == NAMES
    assert message.header.frame_id == frame
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1_795_000_000, 123_456_789)
    np.testing.assert_array_equal(message.position, np.arange(8) * 0.1)
    np.testing.assert_array_equal(message.velocity, -np.arange(8.0))
    np.testing.assert_array_equal(message.effort, [7.0] * 8)


def test_commands_are_decoded_with_and_without_a_layout():
    decoder = CommandDecoder(7)
    values = [0.5 * k for k in range(7)]
    plain = Float64MultiArray(data=values)
    np.testing.assert_array_equal(decoder.decode(bytes(serialize_message(plain))), values)
    plain.layout.dim = [MultiArrayDimension(label="joint", size=7, stride=7)]
    np.testing.assert_array_equal(decoder.decode(bytes(serialize_message(plain))), values)
    short = Float64MultiArray(data=[1.0])
    np.testing.assert_array_equal(decoder.decode(bytes(serialize_message(short))), [1.0])


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (np.zeros(7), ""),
        (np.zeros(6), "6 numbers, 7 expected"),
        (np.array([]), "0 numbers, 7 expected"),
        (np.array([0, np.nan, 0, 0, 0, 0, 0]), "not finite"),
        (np.array([0, 0, 0, 0, 0, 0, -np.inf]), "not finite"),
    ],
)
def test_commands_that_must_not_reach_a_drive_are_named(values, complaint):
    problem = command_problem(values, 7)
    assert problem.startswith(complaint)
    assert bool(problem) == bool(complaint)


def test_snapshot_crosses_the_descriptor():
    writer = SharedSnapshot(5)
    reader = SharedSnapshot(5, os.dup(writer.descriptor))
    out = np.zeros(5)
    assert reader.read(out) == 0
    writer.write(123, np.arange(5.0))
    assert reader.read(out) == 123
    np.testing.assert_array_equal(out, np.arange(5.0))
    assert not reader.stop_requested
    writer.request_stop()
    assert reader.stop_requested


def test_snapshot_of_another_scene_is_refused():
    writer = SharedSnapshot(5)
    with pytest.raises(ValueError, match="do not simulate the same scene"):
        SharedSnapshot(6, writer.descriptor)


def test_snapshot_left_half_written_is_noticed():
    writer = SharedSnapshot(2)
    writer.write(1, np.zeros(2))
    writer._header[0] += 1
    with pytest.raises(RuntimeError, match="half written"):
        writer.read(np.zeros(2))


def test_camera_configuration_survives_the_command_line():
    config = CameraProcessConfig(
        descriptor=3, positions=30, node_name="sim_cameras", namespace="/left",
        outputs=(CameraOutput("scene", "/left/scene/image_raw", 10.0, "scene_camera"),),
    )
    assert CameraProcessConfig.from_json(config.to_json()) == config


def answers(monkeypatch, **works):
    asked = []

    def probe(backend, environment, timeout_s):
        asked.append(backend)
        return "" if works.get(backend) else "no library"

    monkeypatch.setattr(graphics, "_probe", probe)
    return asked


def test_egl_is_tried_first_and_taken_in_silence(monkeypatch):
    asked = answers(monkeypatch, egl=True)
    backend = choose_gl_backend({})
    assert (backend.name, backend.note, asked) == ("egl", "", ["egl"])


def test_osmesa_steps_in_and_says_why(monkeypatch):
    answers(monkeypatch, osmesa=True)
    backend = choose_gl_backend({"MUJOCO_GL": "disable"})
    assert backend.name == "osmesa"
    assert "egl does not work: no library" in backend.note


def test_the_users_choice_comes_first(monkeypatch):
    asked = answers(monkeypatch, glfw=True)
    assert choose_gl_backend({"MUJOCO_GL": "GLFW"}).name == "glfw"
    assert asked == ["glfw"]


def test_without_any_graphics_the_packages_are_named(monkeypatch):
    answers(monkeypatch)
    with pytest.raises(GraphicsError, match="libegl1 libgl1-mesa-dri.*libosmesa6"):
        choose_gl_backend({})


def test_polled_subscription_delivers_without_an_executor():
    import rclpy
    from rclpy.node import Node

    from niaf_sim.polled_subscription import PolledSubscription

    context = rclpy.Context()
    domain_coordinator = pytest.importorskip("domain_coordinator")
    with domain_coordinator.domain_id() as number:
        rclpy.init(context=context, domain_id=int(number))
        node = Node("polling", context=context)
        polled = PolledSubscription(node, Float64MultiArray, "numbers", 10)
        publisher = node.create_publisher(Float64MultiArray, "numbers", 10)
        assert polled.topic == "/numbers"
        assert polled.take() is None
        end = time.monotonic() + 5.0
        while polled.publisher_count == 0 and time.monotonic() < end:
            time.sleep(0.01)
        for value in (1.0, 2.0, 3.0):
            publisher.publish(Float64MultiArray(data=[value]))
        time.sleep(0.1)
        first, sent_ns = polled.take()
        assert deserialize_message(first, Float64MultiArray).data[0] == 1.0
        assert abs(time.time_ns() - sent_ns) < 5e9
        newest = polled.take_newest()
        assert deserialize_message(newest, Float64MultiArray).data[0] == 3.0
        assert polled.take_newest() is None
        polled.destroy()
        node.destroy_node()
        rclpy.try_shutdown(context=context)
