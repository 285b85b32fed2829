"""Drive back ends: how torque, or gains with a reference, reaches an arm's motors.

Importing this package needs neither python-can nor moteus; each back end lives in its own module:
``mit_can`` (MIT-mode motors through python-can), ``moteus_drive`` (moteus through its own
library), and their emulators ``mit_emulator`` and ``moteus_emulator``.
"""

from niaf_impedance.drives.interface import (
    Drive,
    DriveCapabilities,
    DriveCommand,
    DriveError,
    DriveFault,
    DriveState,
    Saturation,
    WriteReport,
)
from niaf_impedance.drives.joint_map import JointMap

__all__ = [
    "Drive",
    "DriveCapabilities",
    "DriveCommand",
    "DriveError",
    "DriveFault",
    "DriveState",
    "JointMap",
    "Saturation",
    "WriteReport",
]
