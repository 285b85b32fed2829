"""The arm behind motors on a bus in a running graph: followed, lost, taken back, moved elsewhere.

Simulation node and impedance node exchange the motors' own frames over a multicast bus; nothing but
services, fields and reports is on the graph. Details are tested in lock-step (niaf_sim).
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

for name in ("rclpy", "niaf_msgs.msg", "domain_coordinator", "msgpack", "moteus"):
    pytest.importorskip(name, reason=f"{name} is not in this environment")
sys.path.insert(0, str(Path(__file__).parent))  # under importlib mode too

import domain_coordinator  # noqa: E402
from graph_under_test import IMPEDANCE, LIMIT_NM, ROBOT, SIM, Graph  # noqa: E402

from niaf_impedance import default_robot_config_path  # noqa: E402
from niaf_impedance.faults import Fault  # noqa: E402
from niaf_msgs.msg import ImpedanceState  # noqa: E402

pytestmark = pytest.mark.system


def patient_drives(protocol: str, folder: Path) -> Path:
    """The shipped description with a port of its own, for a loaded machine."""
    text = default_robot_config_path(f"panda_{protocol}").read_text()
    deadline = {"mit_can": "0.003", "moteus": "0.0035"}[protocol]
    port = {"mit_can": 43113, "moteus": 43114}[protocol]
    for old, new in (
        (f"port: {port}", f"port: {random.randrange(20000, 40000)}"),
        ("rate_hz: 250.0", "rate_hz: 200.0"),
        (f"reply_deadline_s: {deadline} ", "reply_deadline_s: 0.0045 "),
        ("missing_limit: 3 ", "missing_limit: 40 "),
        ("watchdog_s: 0.1 ", "watchdog_s: 0.5 "),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    file = folder / f"{protocol}.yaml"
    file.write_text(text)
    return file


@pytest.fixture(params=["mit_can", "moteus"])
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Graph]:
    drives = {
        "arm_interface": request.param,
        "drive_config": patient_drives(request.param, tmp_path),
    }
    with domain_coordinator.domain_id() as domain:
        graph = Graph(int(domain), tmp_path)
        try:
            graph.start("sim", "-m", "niaf_sim.sim_node", **(SIM | drives))
            graph.start(
                "impedance", "-m", "niaf_impedance.impedance_node",
                prior=tmp_path / "prior.safetensors", **(IMPEDANCE | drives),
            )
            graph.wait(lambda: graph.states, "the controller's first state", 120.0)
            yield graph
        finally:
            codes = graph.close()
    assert set(codes.values()) == {0}, f"{codes}\n{graph.logs()}"


def test_the_arm_follows_and_comes_back_after_a_loss_and_a_new_scene(graph: Graph) -> None:
    graph.wait_for_mode(ImpedanceState.HOLD, "HOLD")
    graph.forget()
    graph.feed()
    graph.wait_for_motion()  # measured by the motors
    followed = [state for state in graph.newest_states(50) if state.mode == state.TRACK]
    graph.feed(False)
    assert followed
    for state in followed:
        assert state.fault == 0
        assert (np.abs(state.torque_command) <= LIMIT_NM * (1 + 1e-9)).all()
    graph.wait_for_mode(ImpedanceState.HOLD, "HOLD after the last field")

    graph.freeze("sim", 1.0)  # no motor answers; then they run on, and hear nothing
    graph.wait_for_mode(ImpedanceState.DAMP, "DAMP")
    lost = graph.newest_states()[-1]
    assert lost.fault == Fault.DRIVE_SILENT, lost.fault_text
    end_s = time.monotonic() + 20.0
    while not (answer := graph.trigger("reset")).success:
        assert time.monotonic() < end_s, answer.message
        time.sleep(0.05)
    graph.wait_for_mode(ImpedanceState.HOLD, "HOLD after reset")
    assert graph.newest_states()[-1].fault == 0

    graph.home()  # deactivated, another scene, activated
    held = np.array(graph.newest_states()[-1].measured_position)
    assert held == pytest.approx(ROBOT.home_rad, abs=0.05)  # each scene varies it
    graph.feed()
    graph.wait_for_motion()
    graph.feed(False)


def test_a_description_of_other_motors_is_refused_by_the_simulation() -> None:
    other = default_robot_config_path("panda_mit_can")
    result = subprocess.run(
        [sys.executable, "-m", "niaf_sim.sim_node", "--ros-args", "-p", "arm_interface:=moteus",
         "-p", f"drive_config:={other}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 2
    assert f"{other}: protocol: is 'mit_can', but arm_interface is 'moteus'" in result.stderr
