"""MCAP round trip: what is written as CDR bytes comes back through the mcap_ros2 decoder."""

import pytest
from builtin_interfaces.msg import Time
from mcap.reader import make_reader
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image, JointState

from niaf_sim.recording import (
    Decimator,
    McapRecording,
    RecordingError,
    compose_schema,
    full_type_name,
    read_recording,
    recording_topics,
)

DEFINITIONS = {
    "demo_msgs/msg/Outer": (
        "# string[] not_a_field\nuint8 RED=1\nInner[<=3] inner\nstring<=5 name\nHeader header\n"
    ),
    "demo_msgs/msg/Inner": "float64[3] xyz  # metres\nother_msgs/Leaf leaf\n",
    "other_msgs/msg/Leaf": "bool set true\ndemo_msgs/msg/Inner2 more\n",
    "demo_msgs/msg/Inner2": "int32 a\n",
    "std_msgs/msg/Header": "builtin_interfaces/Time stamp\nstring frame_id\n",
    "builtin_interfaces/msg/Time": "int32 sec\nuint32 nanosec\n",
}


@pytest.mark.parametrize("compression", ["zstd", "lz4", "none"])
def test_messages_come_back_unchanged(tmp_path, compression):
    path = tmp_path / "a" / "r.mcap"
    state = JointState(name=["a", "b"], position=[0.25, -1.5], velocity=[1.0, 2.0])
    image = Image(height=2, width=1, encoding="rgb8", step=3, data=bytes(range(6)))
    with McapRecording(path, compression=compression) as recording:
        recording.add_topic("/joint_states", "sensor_msgs/msg/JointState")
        recording.add_topic("/scene/image_raw", "sensor_msgs/msg/Image")
        for k in range(5):
            state.header.stamp = Time(sec=k, nanosec=7)
            recording.write("/joint_states", serialize_message(state), k * 10**9 + 9, k * 10**9)
        recording.write("/scene/image_raw", serialize_message(image), 10**10, 10**10)
    rows = list(read_recording(path))
    assert [row.topic for row in rows] == ["/joint_states"] * 5 + ["/scene/image_raw"]
    assert rows[3].message.header.stamp.sec == 3
    assert rows[3].log_time_ns == 3 * 10**9 + 9
    assert list(rows[3].message.position) == [0.25, -1.5]
    assert list(rows[3].message.name) == ["a", "b"]
    assert bytes(rows[5].message.data) == bytes(range(6))
    assert recording_topics(path) == {"/joint_states": 5, "/scene/image_raw": 1}


def test_file_announces_profile_and_encodings_that_foxglove_expects(tmp_path):
    path = tmp_path / "r.mcap"
    with McapRecording(path) as recording:
        recording.add_topic("/joint_states", "sensor_msgs/msg/JointState")
        recording.write("/joint_states", serialize_message(JointState()), 1, 1)
    with path.open("rb") as stream:
        reader = make_reader(stream)
        summary = reader.get_summary()
        assert reader.get_header().profile == "ros2"
    (channel,) = summary.channels.values()
    (schema,) = summary.schemas.values()
    assert channel.message_encoding == "cdr"
    assert schema.encoding == "ros2msg"
    assert schema.name == "sensor_msgs/msg/JointState"
    assert b"MSG: std_msgs/Header" in schema.data
    assert b"MSG: builtin_interfaces/Time" in schema.data


def test_schema_holds_every_nested_type_once():
    text = compose_schema("demo_msgs/msg/Outer", DEFINITIONS.__getitem__)
    headers = [line[5:] for line in text.splitlines() if line.startswith("MSG: ")]
    assert headers == [
        "demo_msgs/Inner", "std_msgs/Header", "other_msgs/Leaf", "builtin_interfaces/Time",
        "demo_msgs/Inner2",
    ]
    assert text.startswith(DEFINITIONS["demo_msgs/msg/Outer"])
    assert text.count("float64[3] xyz") == 1


def test_type_names_are_completed():
    assert full_type_name("Header", "x") == "std_msgs/msg/Header"
    assert full_type_name("Point", "geometry_msgs") == "geometry_msgs/msg/Point"
    assert full_type_name("a/B", "x") == "a/msg/B"


def test_unknown_package_names_package_and_remedy():
    with pytest.raises(RecordingError, match="no package 'no_such_msgs'.*source the workspace"):
        compose_schema("no_such_msgs/msg/X")


def test_wrong_compression_is_refused(tmp_path):
    with pytest.raises(RecordingError, match="'brotli' is unknown; use one of zstd, lz4, none"):
        McapRecording(tmp_path / "r.mcap", compression="brotli")


def test_changed_type_of_a_topic_is_refused(tmp_path):
    with McapRecording(tmp_path / "r.mcap", source=lambda _: "int32 a\n") as recording:
        recording.add_topic("/t", "p/msg/A")
        recording.add_topic("/t", "p/msg/A")
        with pytest.raises(RecordingError, match="recorded as p/msg/A, now comes p/msg/B"):
            recording.add_topic("/t", "p/msg/B")


def test_decimator_keeps_the_asked_rate_under_jitter():
    decimator = Decimator(10_000_000)
    start = 1_700_000_000_000_000_000
    kept = [
        k for k in range(2000) if decimator.accept(start + k * 1_000_000 + (37 * k % 400) * 1000)
    ]
    assert 199 <= len(kept) <= 202
    assert all(9 <= b - a <= 11 for a, b in zip(kept, kept[1:], strict=False))


def test_decimator_of_zero_keeps_all():
    decimator = Decimator(0)
    assert all(decimator.accept(k) for k in range(10))
