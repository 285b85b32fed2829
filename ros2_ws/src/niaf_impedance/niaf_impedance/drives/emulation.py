"""Answers the frames of any python-can bus from a thread, for both emulators."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import can

#: (id, payload, request) to the frame that goes back
MakeReply = Callable[[int, bytes, can.Message], can.Message]


@contextmanager
def serving(
    bus: can.BusABC,
    handle: Callable[[int, bytes], list[tuple[int, bytes]]],
    make_reply: MakeReply,
) -> Iterator[None]:
    """Answer what ``bus`` receives with what ``handle`` returns while the context is open."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            message = bus.recv(0.02)
            if message is None or message.is_error_frame:
                continue
            for reply_id, data in handle(message.arbitration_id, bytes(message.data)):
                bus.send(make_reply(reply_id, data, message))

    thread = threading.Thread(target=run, name="emulated_motors", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=2.0)
