"""MCAP recording of serialised ROS messages: schema texts, decimation, writing, reading back.

No rclpy here: messages arrive as the CDR bytes that crossed the wire and are written unchanged,
under profile "ros2" and encoding "cdr", so Foxglove, PlotJuggler and ``ros2 bag`` open the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer
from mcap_ros2.decoder import DecoderFactory

#: text of the message definition "pkg/msg/Type"
DefinitionSource = Callable[[str], str]

_PRIMITIVES = frozenset(
    {"bool", "byte", "char", "float32", "float64", "string", "wstring"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
_SEPARATOR = "=" * 80
_ARRAY_SUFFIX = re.compile(r"\[[^\]]*\]$")
_STRING_BOUND = re.compile(r"<=\d+$")
_COMPRESSIONS = {
    "zstd": CompressionType.ZSTD,
    "lz4": CompressionType.LZ4,
    "none": CompressionType.NONE,
}
COMPRESSION_NAMES = tuple(_COMPRESSIONS)


class RecordingError(RuntimeError):
    """A recording cannot be written or its message definitions cannot be found."""


def full_type_name(name: str, package: str) -> str:
    """Canonical "pkg/msg/Type" of a type as written inside a .msg file of ``package``."""
    if name == "Header":
        return "std_msgs/msg/Header"
    parts = name.split("/")
    if len(parts) == 1:
        return f"{package}/msg/{name}"
    if len(parts) == 2:
        return f"{parts[0]}/msg/{parts[1]}"
    if len(parts) == 3:
        return name
    raise RecordingError(f"message type {name!r} is not of the form pkg/Type or pkg/msg/Type")


def definition_from_ament_index(type_name: str) -> str:
    """Text of the installed .msg file of "pkg/msg/Type" (found through AMENT_PREFIX_PATH)."""
    package, kind, name = type_name.split("/")
    try:
        share = get_package_share_directory(package)
    except (PackageNotFoundError, ValueError, LookupError) as error:
        raise RecordingError(
            f"no package {package!r} in AMENT_PREFIX_PATH, wanted for the definition of "
            f"{type_name}; source the workspace's setup file first"
        ) from error
    path = Path(share) / kind / f"{name}.msg"
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecordingError(f"cannot read the definition of {type_name}: {error}") from error


def _field_types(definition: str, package: str) -> Iterator[str]:
    for line in definition.splitlines():
        line = line.split("#", 1)[0].strip()
        if not line:
            continue
        word = _STRING_BOUND.sub("", _ARRAY_SUFFIX.sub("", line.split()[0]))
        if word not in _PRIMITIVES:
            yield full_type_name(word, package)


def compose_schema(type_name: str, source: DefinitionSource = definition_from_ament_index) -> str:
    """Definition of "pkg/msg/Type" followed by those of every type it contains (ros2msg text)."""
    type_name = full_type_name(type_name, "")
    seen = {type_name}
    queue = [type_name]
    parts: list[str] = []
    while queue:
        current = queue.pop(0)
        package, _, name = current.split("/")
        text = source(current).rstrip("\n")
        parts.append(text if not parts else f"{_SEPARATOR}\nMSG: {package}/{name}\n{text}")
        for inner in _field_types(text, package):
            if inner not in seen:
                seen.add(inner)
                queue.append(inner)
    return "\n".join(parts) + "\n"


@dataclass
class Decimator:
    """Lets through at most one message per ``period_ns`` on a fixed grid; 0 lets all through."""

    period_ns: int
    _next_ns: int = field(default=0, init=False)

    def accept(self, stamp_ns: int) -> bool:
        """True when a message of this stamp is to be kept."""
        if self.period_ns <= 0:
            return True
        if stamp_ns + self.period_ns // 8 < self._next_ns:  # sources jitter around the grid
            return False
        behind = stamp_ns - self._next_ns > self.period_ns  # first message, or after a pause
        self._next_ns = (stamp_ns if behind else self._next_ns) + self.period_ns
        return True


@dataclass(frozen=True)
class RecordedTopic:
    """What one topic left in the file."""

    topic: str
    type_name: str
    messages: int
    bytes: int


class McapRecording:
    """One MCAP file being written. Not thread safe; use it as a context manager."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        compression: str = "zstd",
        chunk_bytes: int = 1 << 20,
        source: DefinitionSource = definition_from_ament_index,
    ) -> None:
        if compression not in _COMPRESSIONS:
            raise RecordingError(
                f"compression {compression!r} is unknown; use one of {', '.join(_COMPRESSIONS)}"
            )
        self.path = Path(path)
        self._source = source
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb")
        except OSError as error:
            raise RecordingError(f"cannot write the recording {self.path}: {error}") from error
        self._writer = Writer(
            self._file, chunk_size=chunk_bytes, compression=_COMPRESSIONS[compression]
        )
        self._writer.start(profile="ros2", library="niaf_sim")
        self._schemas: dict[str, int] = {}
        self._channels: dict[str, int] = {}
        self._types: dict[str, str] = {}
        self._messages: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self._closed = False

    def __enter__(self) -> McapRecording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_topic(self, topic: str, type_name: str) -> None:
        """Announce a topic; raises RecordingError when its definition cannot be found."""
        if topic in self._channels:
            if self._types[topic] != type_name:
                raise RecordingError(
                    f"topic {topic} was recorded as {self._types[topic]}, now comes {type_name}"
                )
            return
        if type_name not in self._schemas:
            text = compose_schema(type_name, self._source)
            self._schemas[type_name] = self._writer.register_schema(
                type_name, "ros2msg", text.encode()
            )
        self._channels[topic] = self._writer.register_channel(
            topic, "cdr", self._schemas[type_name], {"offered_qos_profiles": ""}
        )
        self._types[topic] = type_name
        self._messages[topic] = 0
        self._bytes[topic] = 0

    def write(self, topic: str, data: bytes, log_time_ns: int, publish_time_ns: int) -> None:
        """Append one serialised message; times are Unix nanoseconds."""
        self._messages[topic] += 1
        self._bytes[topic] += len(data)
        self._writer.add_message(
            self._channels[topic], log_time_ns, data, publish_time_ns, self._messages[topic]
        )

    @property
    def topics(self) -> tuple[RecordedTopic, ...]:
        return tuple(
            RecordedTopic(topic, self._types[topic], self._messages[topic], self._bytes[topic])
            for topic in sorted(self._channels)
        )

    def close(self) -> None:
        """Write index and footer; without this the file needs ``mcap recover``."""
        if self._closed:
            return
        self._closed = True
        try:
            self._writer.finish()
        finally:
            self._file.close()


@dataclass(frozen=True)
class RecordedMessage:
    """One decoded message; ``message`` has the attributes of its .msg file."""

    topic: str
    type_name: str
    log_time_ns: int
    publish_time_ns: int
    message: Any


def read_recording(
    path: str | os.PathLike[str], topics: list[str] | None = None
) -> Iterator[RecordedMessage]:
    """Decode a recording in order of log time."""
    with open(path, "rb") as stream:
        reader = make_reader(stream, decoder_factories=[DecoderFactory()])
        for schema, channel, message, decoded in reader.iter_decoded_messages(topics=topics):
            yield RecordedMessage(
                topic=channel.topic,
                type_name=schema.name if schema else "",
                log_time_ns=message.log_time,
                publish_time_ns=message.publish_time,
                message=decoded,
            )


def recording_topics(path: str | os.PathLike[str]) -> dict[str, int]:
    """Message count per topic, from the file's own summary."""
    with open(path, "rb") as stream:
        summary = make_reader(stream).get_summary()
    if summary is None or summary.statistics is None:
        raise RecordingError(f"{path} has no summary: it was not closed; run `mcap recover` on it")
    counts = summary.statistics.channel_message_counts
    return {
        channel.topic: counts.get(channel_id, 0)
        for channel_id, channel in sorted(summary.channels.items())
    }
