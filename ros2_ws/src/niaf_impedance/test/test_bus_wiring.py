"""The loop's thread over a virtual bus: hand-overs get in, nothing outside touches the loop."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import replace

import can
import pytest

from niaf_impedance import ControllerConfig, ImpedanceController, default_robot_config_path
from niaf_impedance.bus_wiring import BusArm
from niaf_impedance.drives.bus_loop import BusLoopError, Closing
from niaf_impedance.drives.description import load_drive_description
from niaf_impedance.drives.mit_emulator import MitEmulator
from niaf_impedance.faults import Mode


def wait_for(condition, what: str, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.005)


@pytest.fixture
def build(arm):
    """Arms on a virtual bus, with limits for a loaded machine; the emulated arm stands still."""
    opened = []

    def make(closing: Closing = Closing.GAINS) -> BusArm:
        description = load_drive_description(
            default_robot_config_path("panda_mit_can"), arm.joint_names
        )
        description = replace(
            description,
            bus={"interface": "virtual", "channel": f"arm-{uuid.uuid4()}"},
            drive=replace(
                description.drive, rate_hz=50.0, set_watchdog_s=0.9, watchdog_max_s=1.0,
                register_deadline_s=0.5,
            ),
            loop=replace(
                description.loop, rate_hz=50.0, closing=closing, missing_limit=20, fall_back=False
            ),
        )
        emulator = MitEmulator(description.drive.joints)
        emulator.q[: arm.n] = arm.config.home_rad
        motors = can.Bus(**description.bus)
        serving = emulator.serve(motors)
        serving.__enter__()
        controller = ImpedanceController(ControllerConfig(state_timeout_s=0.8), arm)
        bus_arm = BusArm(description, controller, epoch_s=time.time() - 10.0)
        opened.append((bus_arm, serving, motors))
        return bus_arm

    yield make
    for bus_arm, serving, motors in opened:
        bus_arm.close()
        serving.__exit__(None, None, None)
        motors.shutdown()


def test_an_arm_is_taken_over_and_released(build):
    bus_arm = build()
    assert bus_arm.activation_problem() == "the bus is not open"
    with pytest.raises(BusLoopError, match="not open"):
        bus_arm.activate()
    bus_arm.open()
    wait_for(lambda: not bus_arm.activation_problem(), "states")
    assert bus_arm.off
    bus_arm.activate()
    assert bus_arm.call(lambda: bus_arm._controller.mode) is Mode.HOLD
    assert bus_arm.call(threading.current_thread).name == "bus_loop"
    assert bus_arm.diagnostics()["motors"] == "on"
    with pytest.raises(ZeroDivisionError):
        bus_arm.call(lambda: 1 / 0)  # comes back to who asked; the loop goes on
    bus_arm.deactivate()
    wait_for(lambda: bus_arm.off, "the ramp")
    assert bus_arm.failure == "" and bus_arm.warning() == ""


def test_closing_the_arm_switches_its_motors_off(build):
    bus_arm = build()
    bus_arm.open()
    wait_for(lambda: not bus_arm.activation_problem(), "states")
    bus_arm.activate()
    bus_arm.close()
    assert bus_arm.off and bus_arm.failure == ""


def test_damping_on_the_host_is_bounded_by_the_bus_rate(build):
    in_motors, on_host = build(), build(Closing.TORQUE)
    in_motors.open()
    on_host.open()
    controller = in_motors._controller
    assert in_motors.check_gains(controller.kp, controller.kd) == ""
    assert "two periods of 20 ms late" in on_host.check_gains(controller.kp, controller.kd)
