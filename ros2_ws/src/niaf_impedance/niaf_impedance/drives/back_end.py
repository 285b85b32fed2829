"""What all back ends share: missing replies, refusals in words, the bus budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from niaf_impedance.drives.bus_load import BitRates, BusLoad, bus_load
from niaf_impedance.drives.interface import (
    DRIVE_FAULT_TEXT,
    DriveError,
    DriveFault,
    DriveState,
    Ints,
    describe_faults,
)

#: one finding of a self-check: number, joint, line of text
Finding = tuple[DriveFault, str, str]


def mark_missing(state: DriveState, missing: Ints, i: int) -> None:
    """Motor ``i`` did not answer: old values and stamp stay, fault and both counts say so."""
    missing[i] += 1
    state.missing[i] += 1
    state.fault[i] = DriveFault.MISSING_REPLY


def raise_findings(findings: Sequence[Finding]) -> None:
    """Raise one error that lists every finding of a self-check; nothing if there are none."""
    if findings:
        motors = tuple(dict.fromkeys(name for _, name, _ in findings))
        raise DriveError(
            findings[0][0], "self-check refused:\n" + "\n".join(f[2] for f in findings), motors
        )


def refusal(when: str, state: DriveState, joints: tuple[str, ...]) -> DriveError:
    """The error of an ``enable`` that found faults in ``state``."""
    names = tuple(n for n, f in zip(joints, state.fault.tolist(), strict=True) if f)
    return DriveError(
        DriveFault.ENABLE_REFUSED,
        f"{when}: {describe_faults(state, joints)}; "
        + DRIVE_FAULT_TEXT[DriveFault.ENABLE_REFUSED].cure,
        names,
    )


def not_confirmed(joints: tuple[str, ...], off: Sequence[bool], what: str) -> DriveError:
    """The error of a ``disable`` that some motors did not confirm."""
    names = tuple(name for name, done in zip(joints, off, strict=True) if not done)
    return DriveError(
        DriveFault.DISABLE_NOT_CONFIRMED,
        f"{', '.join(names)} did not confirm {what}; "
        + DRIVE_FAULT_TEXT[DriveFault.DISABLE_NOT_CONFIRMED].cure,
        names,
    )


@contextmanager
def all_or_none(disable: Callable[[], None]) -> Iterator[None]:
    """Switch every motor off again when enabling fails half way."""
    try:
        yield
    except DriveError as error:
        try:
            disable()
        except DriveError as second:
            raise DriveError(
                error.fault, f"{error}; and then {second}", error.motors + second.motors
            ) from error
        raise


def checked_bus_load(
    motors: int,
    rate_hz: float,
    rates: BitRates,
    budget: float,
    *,
    command_bytes: int = 8,
    reply_bytes: int = 8,
    extended: bool = False,
) -> BusLoad:
    """Worst-case load of a loop.

    Raises:
        DriveError: BUS_OVER_BUDGET, with the rate that would fit.
    """
    load = bus_load(
        motors,
        rate_hz,
        rates,
        command_bytes=command_bytes,
        reply_bytes=reply_bytes,
        extended=extended,
    )
    if load.load > budget:
        data = f" and {rates.data / 1e6:g} Mbit/s data" if rates.data else ""
        raise DriveError(
            DriveFault.BUS_OVER_BUDGET,
            f"{motors} motors at {rate_hz:g} Hz need {load.load:.0%} of a bus with "
            f"{rates.nominal / 1e6:g} Mbit/s{data} (worst-case stuffing), budget {budget:.0%}; "
            f"at most {budget * load.max_rate_hz:.0f} Hz fit. "
            + DRIVE_FAULT_TEXT[DriveFault.BUS_OVER_BUDGET].cure,
        )
    return load
