"""Records topics of the running graph into an MCAP file.

Topics are looked for in the graph until they appear; their bytes are written as they came. Each
topic is polled from its middleware queue on a 10 ms grid, so a 1 kHz topic decimated to 100 Hz
costs 100 reads a second. The file is complete once the node has ended (SIGINT or SIGTERM).
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass

import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.experimental import EventsExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions

from niaf_sim.polled_subscription import PolledSubscription
from niaf_sim.recording import COMPRESSION_NAMES, Decimator, McapRecording, RecordingError

POLL_PERIOD_S = 0.01
GRAPH_PERIOD_S = 0.5

#: what is recorded by default; "@100" keeps at most 100 messages a second
DEFAULT_TOPICS = (
    "joint_states@100",
    "effort_controller/commands@100",
    "gripper_controller/commands@20",
    "policy/action_field",
    "policy/status",
    "impedance/state",
    "impedance/admission",
    "impedance/journal",
    "impedance/joint_trajectory",
    "sim/task_state",
    "scene/image_raw",
    "wrist/image_raw",
    "/diagnostics",
    "/parameter_events",
    "/rosout",
)


@dataclass(frozen=True)
class TopicWish:
    """A topic to record and the highest rate to keep, 0 = every message."""

    topic: str
    rate_hz: float

    @staticmethod
    def parse(text: str) -> TopicWish:
        """ "joint_states@100" or "joint_states"; raises ValueError."""
        topic, at, rate = text.strip().partition("@")
        try:
            rate_hz = float(rate) if at else 0.0
        except ValueError:
            rate_hz = -1.0
        if not topic or rate_hz < 0.0 or (at and rate_hz == 0.0):
            raise ValueError(f"topic {text!r} is not of the form name or name@rate_hz")
        return TopicWish(topic, rate_hz)


@dataclass
class _Source:
    subscription: PolledSubscription
    decimator: Decimator
    type_name: str


def message_class(type_name: str) -> type:
    """Python class of "pkg/msg/Type"; raises RecordingError naming package and remedy."""
    package, kind, name = type_name.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.{kind}"), name)
    except (ImportError, AttributeError) as error:
        raise RecordingError(
            f"no Python messages for {type_name} ({error}); build and source its package"
        ) from error


class RecorderNode(Node):
    """Subscribes to what it was asked for and writes it; :meth:`poll` does the work."""

    def __init__(self) -> None:
        super().__init__("recorder")

        def text(what: str) -> ParameterDescriptor:
            return ParameterDescriptor(description=what, read_only=True)

        self.declare_parameter("output", "recording.mcap", text("file to write; overwritten"))
        self.declare_parameter(
            "topics", list(DEFAULT_TOPICS), text("names, each with an optional @highest_rate_hz")
        )
        self.declare_parameter(
            "compression", "zstd", text(f"one of {', '.join(COMPRESSION_NAMES)}")
        )
        wishes = [TopicWish.parse(t) for t in self.get_parameter("topics").value if t.strip()]
        self._wanted = {self.resolve_topic_name(wish.topic): wish for wish in wishes}
        self._sources: dict[str, _Source] = {}
        self.recording = McapRecording(
            os.path.expanduser(str(self.get_parameter("output").value)),
            compression=str(self.get_parameter("compression").value),
        )
        self._next_look_s = 0.0

    def missing(self) -> list[str]:
        """Topics asked for that nobody has published so far."""
        return sorted(set(self._wanted) - set(self._sources))

    def _look_for_topics(self) -> None:
        types = dict(self.get_topic_names_and_types())
        for topic in self.missing():
            publishers = self.get_publishers_info_by_topic(topic) if topic in types else []
            if not publishers:
                continue
            (type_name, *more) = types[topic]
            if more:
                self.get_logger().error(
                    f"{topic} has several types {types[topic]}; recording {type_name}",
                    throttle_duration_sec=10.0,
                )
            wish = self._wanted[topic]
            reliable = any(
                p.qos_profile.reliability == ReliabilityPolicy.RELIABLE for p in publishers
            )
            keep = all(
                p.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in publishers
            )
            qos = QoSProfile(
                depth=1 if wish.rate_hz else 100,
                reliability=(
                    ReliabilityPolicy.RELIABLE
                    if reliable and not wish.rate_hz
                    else ReliabilityPolicy.BEST_EFFORT
                ),
                durability=(
                    DurabilityPolicy.TRANSIENT_LOCAL if keep else DurabilityPolicy.VOLATILE
                ),
            )
            try:
                self.recording.add_topic(topic, type_name)
                subscription = PolledSubscription(self, message_class(type_name), topic, qos)
            except RecordingError as error:
                self.get_logger().error(f"{topic} is not recorded: {error}")
                del self._wanted[topic]
                continue
            period_ns = round(1e9 / wish.rate_hz) if wish.rate_hz else 0
            self._sources[topic] = _Source(subscription, Decimator(period_ns), type_name)
            self.get_logger().info(f"recording {topic} ({type_name})")

    def poll(self) -> None:
        """Write everything that waits; raises OSError when the disk refuses."""
        now_s = time.monotonic()
        if now_s >= self._next_look_s:
            self._look_for_topics()
            self._next_look_s = now_s + GRAPH_PERIOD_S
        for topic, source in self._sources.items():
            while (taken := source.subscription.take()) is not None:
                data, sent_ns = taken
                sent_ns = sent_ns if sent_ns > 0 else time.time_ns()
                if source.decimator.accept(sent_ns):
                    self.recording.write(topic, data, sent_ns, sent_ns)

    def close(self) -> str:
        """Finish the file; returns what it holds, one line per topic."""
        for source in self._sources.values():
            source.subscription.destroy()
        self.recording.close()
        lines = [
            f"  {t.messages:8d}  {t.bytes / 1e6:8.2f} MB  {t.topic}" for t in self.recording.topics
        ]
        if self.missing():
            lines.append(f"  never published: {', '.join(self.missing())}")
        size = self.recording.path.stat().st_size / 1e6
        self.destroy_node()
        return "\n".join([f"recorder: {self.recording.path} ({size:.1f} MB)", *lines])


def main(args: list[str] | None = None) -> int:
    """Record until SIGINT or SIGTERM; exit code 1 when the file could not be written."""
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    try:
        node = RecorderNode()
    except (RecordingError, ValueError, ParameterException) as error:
        print(f"recorder: cannot start: {error}", file=sys.stderr, flush=True)
        rclpy.try_shutdown()
        return 2
    executor = EventsExecutor()
    executor.add_node(node)
    failed = False
    due_s = time.monotonic()
    while not (stopping.is_set() or failed):
        due_s = max(due_s + POLL_PERIOD_S, time.monotonic())
        try:
            node.poll()
        except OSError as error:
            print(f"recorder: {node.recording.path}: {error}", file=sys.stderr, flush=True)
            failed = True
        while (left_s := due_s - time.monotonic()) > 0.0:
            executor.spin_once(timeout_sec=left_s)
    try:
        print(node.close(), flush=True)
    except OSError as error:
        print(f"recorder: cannot finish {node.recording.path}: {error}", file=sys.stderr)
        failed = True
    rclpy.try_shutdown()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
