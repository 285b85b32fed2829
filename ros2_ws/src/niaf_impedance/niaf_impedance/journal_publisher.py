"""Publishes the blocks of a journal as ControlJournal messages, from a thread of its own."""

from __future__ import annotations

import array
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message

from niaf_impedance.journal import Block, Event, Journal, Setup
from niaf_msgs.msg import ControlJournal, JournalEvent

#: the newest blocks are kept for a recorder that joins late (10 s at 1 kHz)
QOS = QoSProfile(
    depth=100, reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


def _doubles(values: np.ndarray) -> array.array:
    return array.array("d", np.ascontiguousarray(values).tobytes())


def _event(event: Event) -> JournalEvent:
    message = JournalEvent(tick=event.tick, kind=int(event.kind), text=event.text)
    message.values = array.array("d", event.values)
    if isinstance(event.message, Setup):
        message.text = event.message.to_json()
    elif event.message is not None:
        kind = type(event.message)
        message.text = f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
        message.data = array.array("B", serialize_message(event.message))
    return message


def to_message(block: Block, names: tuple[str, ...], frame_id: str = "") -> ControlJournal:
    """The block as a message, stamp left at zero."""
    message = ControlJournal(block=block.number, first_tick=block.first_tick, name=list(names))
    message.header.frame_id = frame_id
    count = block.count
    message.time_s = _doubles(block.time_s[:count])
    message.position = _doubles(block.position[:count])
    message.velocity = _doubles(block.velocity[:count])
    message.torque = _doubles(block.torque[:count])
    message.mode = array.array("B", block.mode[:count].tobytes())
    message.events = [_event(event) for event in block.events]
    return message


class JournalPublisher:
    """Owns topic and thread; ``stop`` sends what is left."""

    def __init__(
        self, node: Node, topic: str, journal: Journal, names: tuple[str, ...], frame_id: str,
        prepare: Callable[[], object] = lambda: None,
    ) -> None:
        """``prepare`` runs first in the new thread (scheduling class)."""
        self._node, self._journal, self._names, self._frame_id = node, journal, names, frame_id
        self._publisher: Any = node.create_publisher(ControlJournal, topic, QOS)
        self._prepare, self._stopping = prepare, False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._prepare()
        while not self._stopping:
            self._publish(0.2)

    def _publish(self, timeout_s: float) -> None:
        for block in self._journal.take(timeout_s):
            message = to_message(block, self._names, self._frame_id)
            self._journal.give_back(block)
            seconds, nanosec = divmod(time.time_ns(), 1_000_000_000)
            message.header.stamp.sec, message.header.stamp.nanosec = seconds, nanosec
            self._publisher.publish(message)

    def stop(self) -> None:
        """Send the rest, wait until reliable readers have it, and end thread and topic."""
        self._stopping = True
        self._thread.join(timeout=2.0)
        self._journal.hand_over()
        self._publish(0.0)
        self._publisher.wait_for_all_acked(Duration(seconds=1.0))
        self._node.destroy_publisher(self._publisher)
