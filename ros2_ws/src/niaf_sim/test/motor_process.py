"""The simulated arm's motors in a process of their own, in real time, without ROS (for a test).

python motor_process.py drives.yaml seconds
"""

from __future__ import annotations

import sys
import time

import numpy as np

from niaf_impedance.drives.description import load_drive_description
from niaf_impedance.realtime import request_fifo
from niaf_sim.cell import Cell
from niaf_sim.motor_bus import MotorBus
from niaf_sim.scene import ARM_JOINTS

PERIOD_S = 0.001


def main() -> None:
    description = load_drive_description(sys.argv[1], ARM_JOINTS)
    cell = Cell()
    cell.step(cell.torque_nm.copy())  # compiles before time counts
    cell.reset(0, "pick up the red cube")
    motors = MotorBus(cell, description, np.array(cell.drives.config.watchdog_damping_nms))
    bus = description.open_bus()
    motors.attach(bus)
    request_fifo(70)
    print("ready", flush=True)
    due = time.monotonic()
    end = due + float(sys.argv[2])
    while due < end:
        time.sleep(max(0.0, due - time.monotonic()))
        motors.poll()
        torque, width = motors.command()
        if torque is not None:
            cell.step(torque, width)
        motors.advance(PERIOD_S)
        due += PERIOD_S
    print(f"frames {motors.frames}, arm time {cell.time_s:.3f} s", flush=True)
    bus.shutdown()


if __name__ == "__main__":
    main()
