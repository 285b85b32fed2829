"""A subscription read by polling instead of by an executor.

The executor pays about 100 us of Python per message. A loop that wants only the newest message when
its own tick begins takes it from the middleware's queue for a few microseconds, and a 1 kHz topic
read at 100 Hz costs 100 takes a second, not 1000 callbacks. The subscription belongs to its node
(names, remaps, QoS) but is taken off the list that executors read.
"""

from __future__ import annotations

from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile


class PolledSubscription:
    """Serialised messages of one topic, on demand.

    Create it before the node joins an executor, or in the thread that spins the executor.
    """

    def __init__(self, node: Node, message_type: type, topic: str, qos: QoSProfile) -> None:
        self._subscription = node.create_subscription(
            message_type, topic, _never_called, qos, raw=True
        )
        # Documented nowhere, hence checked: executors collect what this list holds.
        node._subscriptions.remove(self._subscription)
        if self._subscription in tuple(node.subscriptions):
            raise RuntimeError("rclpy keeps its subscriptions elsewhere: polling is not possible")
        self.message_type = message_type
        self.topic = self._subscription.topic_name

    def take(self) -> tuple[bytes, int] | None:
        """Oldest waiting message as CDR bytes with its publication time (Unix ns), or None."""
        subscription: Any = self._subscription
        with subscription.handle:
            taken = subscription.handle.take_message(self.message_type, True)
        if taken is None:
            return None
        data, info = taken
        return data, int(info["source_timestamp"])

    def take_newest(self) -> bytes | None:
        """Newest waiting message, older ones are dropped; None when nothing new arrived."""
        newest = None
        while (taken := self.take()) is not None:
            newest = taken[0]
        return newest

    @property
    def publisher_count(self) -> int:
        return int(self._subscription.get_publisher_count())

    def destroy(self) -> None:
        """Release it; the node does not do so."""
        self._subscription.destroy()


def _never_called(_: object) -> None:
    raise AssertionError("a polled subscription was dispatched by an executor")
