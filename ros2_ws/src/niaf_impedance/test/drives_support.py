"""Helpers for the tests of drives: a clock by hand, an arm of three motors, one-axis plants."""

from __future__ import annotations

import numpy as np

from niaf_impedance.drives import JointMap
from niaf_impedance.drives.bus_load import BitRates
from niaf_impedance.drives.emulation import InProcessBus
from niaf_impedance.drives.mit_can import MitCanConfig, MitCanDrive, MitJoint
from niaf_impedance.drives.mit_emulator import EmulatedMotor, MitEmulator
from niaf_impedance.drives.moteus_emulator import EmulatedMoteus

FD = BitRates(1_000_000.0, 5_000_000.0)

# Direction, gear and offset differ, so that a mix-up of joints or signs shows.
JOINTS = (
    MitJoint("shoulder", "DM8009", 0x01, 0x11, 40.0, JointMap(1, 1.0, 0.0)),
    MitJoint("elbow", "DM4340", 0x02, 0x12, 27.0, JointMap(-1, 1.0, 0.3)),
    MitJoint("wrist", "DM4310", 0x03, 0x13, 7.0, JointMap(-1, 2.0, -0.2)),
)


class HandClock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class Rig:
    """Drive, in-process bus, emulated motors and a shared clock."""

    def __init__(self, joints=JOINTS, watchdog_s: float = 0.05, **config) -> None:
        self.clock = HandClock()
        self.q = np.array([0.4, -0.5, 0.6])[: len(joints)]
        self.dq = np.zeros(len(joints))
        self.emulator = MitEmulator(
            joints, self.q, self.dq, watchdog_s=watchdog_s, clock=self.clock
        )
        self.bus = InProcessBus(self.emulator)
        settings = {"rate_hz": 1000.0, "bit_rates": FD} | config
        self.drive = MitCanDrive(self.bus, MitCanConfig(joints, **settings), self.clock)

    @property
    def motors(self):
        return self.emulator.motors

    def close(self) -> None:
        self.bus.shutdown()


def break_down(motor: EmulatedMotor | EmulatedMoteus) -> None:
    """The motor reports an electrical fault and lets go."""
    if isinstance(motor, EmulatedMotor):
        motor.inject_status(0xA)
    else:
        motor.inject_fault(33)
