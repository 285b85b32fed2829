"""How much of a CAN bus a loop uses, from frame formats and bit rates. Pure arithmetic.

Bit counts follow ISO 11898-1. ``worst_case`` adds the largest possible number of stuff bits, which
is what a bus must be planned for; without it the figure is the smallest possible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_FD_LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 32, 48, 64)


@dataclass(frozen=True)
class BitRates:
    """Bit rates of one bus.

    Attributes:
        nominal: arbitration bit rate, bit/s.
        data: CAN FD data bit rate (bit-rate switch used), bit/s; None for classic CAN.
    """

    nominal: float = 1_000_000.0
    data: float | None = None

    @property
    def is_fd(self) -> bool:
        """True for CAN FD."""
        return self.data is not None


def fd_length(payload_bytes: int) -> int:
    """The payload length CAN FD really sends, bytes."""
    for length in _FD_LENGTHS:
        if length >= payload_bytes:
            return length
    raise ValueError(f"payload of {payload_bytes} bytes does not fit a CAN FD frame (64)")


def frame_s(
    payload_bytes: int, rates: BitRates, *, extended: bool = False, worst_case: bool = True
) -> float:
    """Time of one frame on the wire including the gap after it, seconds."""
    if not rates.is_fd:
        if payload_bytes > 8:
            raise ValueError(f"payload of {payload_bytes} bytes does not fit classic CAN (8)")
        stuffable = (54 if extended else 34) + 8 * payload_bytes  # SOF to CRC
        unstuffed = 13  # CRC delimiter, acknowledge, end of frame, gap
        stuff = (stuffable - 1) // 4 if worst_case else 0
        return (stuffable + stuff + unstuffed) / rates.nominal
    assert rates.data is not None
    length = fd_length(payload_bytes)
    arbitration = 36 if extended else 17  # SOF to bit-rate switch
    crc = 17 if length <= 16 else 21
    dynamic = 1 + 4 + 8 * length  # error state, length code, data
    fixed = 4 + crc + math.ceil((4 + crc) / 4) + 1  # stuff count, CRC, fixed stuff bits, delimiter
    stuff_nominal = (arbitration - 1) // 4 if worst_case else 0
    stuff_data = dynamic // 4 if worst_case else 0
    trailer = 12  # acknowledge, end of frame, gap
    return (arbitration + stuff_nominal + trailer) / rates.nominal + (
        dynamic + stuff_data + fixed
    ) / rates.data


@dataclass(frozen=True)
class BusLoad:
    """Result of ``bus_load``.

    Attributes:
        load: share of the bus that is used, 1 = full.
        exchange_s: time of one period's frames, seconds.
        max_rate_hz: rate at which the load would be 1.
    """

    load: float
    exchange_s: float
    max_rate_hz: float


def bus_load(
    motors: int,
    rate_hz: float,
    rates: BitRates,
    *,
    command_bytes: int = 8,
    reply_bytes: int = 8,
    extended: bool = False,
    worst_case: bool = True,
) -> BusLoad:
    """Load of ``motors`` commands and as many replies at ``rate_hz``."""
    if motors < 1 or not rate_hz > 0.0:
        raise ValueError(f"motors = {motors} and rate_hz = {rate_hz} must be positive")
    exchange_s = motors * sum(
        frame_s(size, rates, extended=extended, worst_case=worst_case)
        for size in (command_bytes, reply_bytes)
    )
    return BusLoad(exchange_s * rate_hz, exchange_s, 1.0 / exchange_s)
