"""Two processes on a multicast bus: the arm's motors in one, the host's loop in the other."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("msgpack", reason="python-can's udp_multicast bus needs msgpack")

from niaf_field import spline_reference
from niaf_impedance import (
    ArmModel,
    ControllerConfig,
    ImpedanceController,
    default_robot_config_path,
)
from niaf_impedance.admission import Verdict
from niaf_impedance.bus_wiring import BusArm
from niaf_impedance.drives.description import PROTOCOLS
from niaf_impedance.faults import Fault, Mode
from niaf_impedance.lateness import ONLY_COUNT
from niaf_impedance.realtime import request_fifo
from niaf_impedance.warm_up import warm_up

pytestmark = pytest.mark.system


def wait_for(condition, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.01)


@pytest.fixture(params=PROTOCOLS)
def drives(request, tmp_path):
    """Description with a port of its own, patient enough for a loaded machine."""
    text = default_robot_config_path(f"panda_{request.param}").read_text()
    for old, new in (
        ("port: 4311", f"port: {random.randrange(2000, 4000)}"),
        ("rate_hz: 250.0", "rate_hz: 100.0"),
        ("reply_deadline_s: 0.003", "reply_deadline_s: 0.008"),
        ("missing_limit: 3 ", "missing_limit: 20 "),
        ("watchdog_s: 0.1 ", "watchdog_s: 0.4 "),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    file = tmp_path / "drives.yaml"
    file.write_text(text)
    return file


@pytest.fixture
def motors(drives):
    environment = {**os.environ, "MUJOCO_GL": "disable"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("motor_process.py")), str(drives), "60"],
        stdout=subprocess.PIPE, text=True, env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()


def test_the_host_takes_over_moves_and_releases_the_arm(drives, motors):
    controller = ImpedanceController(
        ControllerConfig(state_timeout_s=0.5, tracking_error_limit_rad=1.0),
        ArmModel.from_yaml(default_robot_config_path("panda")),
    )
    warm_up(controller)
    epoch_s = float(int(time.time()))
    states = []
    arm = BusArm(
        drives, controller, epoch_s=epoch_s, scheduling=lambda: request_fifo(65),
        on_state=lambda stamp_s, state: states.append((stamp_s, state.q.copy())),
        limits=ONLY_COUNT,
    )
    arm.open()
    try:
        wait_for(lambda: states and not arm.activation_problem(), 10.0, "states before activation")
        assert arm.off and states[-1][1].shape == (8,)
        arm.activate()
        assert controller.mode is Mode.HOLD
        time.sleep(0.3)
        start = states[-1][1][:7].copy()
        now_s = time.time() - epoch_s
        wanted = start + np.array([0.2, 0.1, -0.1, 0.1, 0.2, 0.1, 0.3])
        reference = spline_reference(
            np.array([now_s, now_s + 1.5]), np.vstack([start, wanted]),
            start_velocity=np.zeros(7), sequence=1, stamp_s=now_s,
        )
        verdict = arm.call(lambda: controller.offer(now_s, reference))
        assert verdict.verdict is Verdict.ACCEPTED, verdict.text
        wait_for(lambda: controller.mode is Mode.TRACK, 2.0, "the hand-over")
        time.sleep(2.0)
        assert controller.mode is Mode.HOLD, arm.diagnostics()
        assert states[-1][1][:7] == pytest.approx(wanted, abs=0.02)
        assert 0.0 <= time.time() - states[-1][0] < 0.5

        arm.estop()
        wait_for(lambda: controller.mode is Mode.ESTOP, 1.0, "the e-stop")
        time.sleep(0.5)
        arm.reset()
        assert controller.mode is Mode.HOLD

        arm.deactivate()
        wait_for(lambda: arm.off, 5.0, "the ramp to gravity only")
        wait_for(lambda: not arm.activation_problem(), 2.0, "states after release")
        assert arm.failure == ""

        arm.activate()
        motors.kill()  # the arm's power goes
        wait_for(lambda: controller.fault is Fault.DRIVE_SILENT, 5.0, "the fault")
        assert controller.mode is Mode.DAMP
        assert "answer" in arm.warning()  # of some motors or of none: it is cut off anywhere
    finally:
        arm.close()
