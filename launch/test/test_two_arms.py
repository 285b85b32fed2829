"""Two arms in two namespaces of one ROS domain: each answers to its own names only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from niaf_bringup.launch_file import InlineParameter, PackageIndex, read_launch_file

PACKAGE = Path(__file__).resolve().parent.parent
FILE = PACKAGE / "launch/two_arms.launch.yaml"
SIDES = ("left", "right")


def stand_in_index(tmp_path: Path) -> PackageIndex:
    for package, executables in (
        ("niaf_sim", ("sim_node", "recorder_node")), ("niaf_impedance", ("impedance_node",)),
        ("niaf_policy", ("policy_node",)),
    ):
        for executable in executables:
            program = tmp_path / "lib" / package / executable
            program.parent.mkdir(parents=True, exist_ok=True)
            program.touch(0o755)
    shares = {"niaf_bringup": str(PACKAGE)}
    return PackageIndex(
        lambda _: str(tmp_path), lambda name: shares.get(name, str(tmp_path / "share" / name))
    )


def test_each_namespace_has_the_nodes_of_one_arm(tmp_path: Path) -> None:
    given = {"policy": "true", "record": "true", "left": "a", "right": "b/c", "right_seed": "7"}
    plan = read_launch_file(FILE, given, stand_in_index(tmp_path))
    found = {(node.namespace, node.name) for node in plan.nodes}
    names = ("sim", "impedance", "policy", "recorder")
    assert found == {(space, name) for space in ("/a", "/b/c") for name in names}
    inline = {
        (p.key, p.name): p.value
        for node in plan.nodes for p in node.parameters if isinstance(p, InlineParameter)
    }
    assert inline[("/b/c/sim", "seed")] == 7
    assert inline[("/a/sim", "base_frame")] == "a/panda_link0"
    assert inline[("/b/c/policy", "base_frame")] == "b/c/panda_link0"
    assert inline[("/a/recorder", "output")] == "./a.mcap"


def test_policies_and_recorders_start_only_when_asked_for(tmp_path: Path) -> None:
    plan = read_launch_file(FILE, {}, stand_in_index(tmp_path))
    assert [node.name for node in plan.nodes] == ["sim", "impedance"] * 2


def test_the_python_launch_file_includes_the_yaml() -> None:
    text = FILE.with_suffix(".py").read_text()
    assert 'with_name("two_arms.launch.yaml")' in text


def test_every_argument_says_what_it_is() -> None:
    content = yaml.safe_load(FILE.read_text())
    arguments = [item["arg"] for item in content["launch"] if "arg" in item]
    assert all(argument["description"] for argument in arguments)


# -- with real nodes -----------------------------------------------------------------------------
#: few images, few states and patient watchdogs: six nodes share a small machine here
SIM = {"camera_rate_hz": 0.1, "overview_rate_hz": 0.1, "task_state_rate_hz": 1.0}
IMPEDANCE = {
    "autostart": True, "state_timeout_s": 0.5, "state_rate_hz": 20.0,
    "late_brake_s": 0.5, "late_brake_share": 1.0, "late_damp_share": 1.0,
}


def small_prior(folder: Path) -> Any:
    """A checkpoint folder for the controllers: a prior whose fields move every joint a little."""
    from niaf_field import Channel, initial_prior, save_prior

    joints = tuple(
        Channel(f"panda_joint{i}", "rad", "joint_position", "relative", 0.0, 0.05)
        for i in range(1, 8)
    )
    gripper = Channel("gripper", "m", "gripper", "absolute", 0.04, 0.02)
    prior = initial_prior(
        (*joints, gripper), sine_layers=3, width=16, omega0=4.0, horizon_s=1.0, seed=1
    )
    save_prior(prior, folder / "prior.safetensors")
    return prior


class Watcher:
    """Listens to both arms and calls their services."""

    def __init__(self, domain: int, output: Path) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor

        from niaf_msgs.msg import ActionField, AdmissionReport, ImpedanceState

        self.output = output
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("watcher", context=self.context)
        self.states: dict[str, list[Any]] = {side: [] for side in SIDES}
        self.reports: dict[str, list[Any]] = {side: [] for side in SIDES}
        self.diagnostics: list[Any] = []
        self.fields: dict[str, Any] = {}
        for side in SIDES:
            for kind, name, kept in (
                (ImpedanceState, "state", self.states[side]),
                (AdmissionReport, "admission", self.reports[side]),
            ):
                self.node.create_subscription(kind, f"/{side}/impedance/{name}", kept.append, 10)
            self.fields[side] = self.node.create_publisher(
                ActionField, f"/{side}/policy/action_field", 1
            )
        self.node.create_subscription(
            DiagnosticArray, "/diagnostics",
            lambda message: self.diagnostics.extend(message.status), 50,
        )
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)

    def spin(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.executor.spin_once(timeout_sec=0.05)

    def wait(self, ready: Any, timeout_s: float, what: str) -> None:
        end_s = time.monotonic() + timeout_s
        while not ready():
            assert time.monotonic() < end_s, (
                f"waited {timeout_s:g} s for {what}:\n{self.output.read_text()[-3000:]}"
            )
            self.executor.spin_once(timeout_sec=0.05)

    def rests_after(self, side: str, sequence: int) -> bool:
        """The field ``sequence`` has been followed to its end."""
        state = self.states[side][-1]
        return bool(state.field_sequence == sequence and state.mode == state.HOLD)

    def newest(self, side: str) -> Any:
        """A state of ``side`` that is published from now on."""
        count = len(self.states[side]) + 1
        self.wait(lambda: len(self.states[side]) >= count, 10.0, f"a state of {side}")
        return self.states[side][-1]

    def measured(self, side: str) -> np.ndarray:
        return np.array(self.newest(side).measured_position)

    def call(self, kind: Any, name: str, request: Any) -> Any:
        client = self.node.create_client(kind, name)
        self.wait(client.service_is_ready, 10.0, name)
        future = client.call_async(request)
        self.wait(future.done, 10.0, f"the answer of {name}")
        self.node.destroy_client(client)
        return future.result()

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(watcher, prior) of two arms that hold their home poses."""
    domain_coordinator = pytest.importorskip("domain_coordinator")
    folder = tmp_path_factory.mktemp("two_arms")
    prior = small_prior(folder)
    for name, values in (("sim", SIM), ("impedance", IMPEDANCE)):
        content = {"/**": {"ros__parameters": values}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    output = folder / "output.txt"
    command = [
        sys.executable, "-m", "niaf_bringup.starter", str(FILE), f"checkpoint:={folder}",
        f"sim_config:={folder / 'sim.yaml'}", f"impedance_config:={folder / 'impedance.yaml'}",
    ]
    with domain_coordinator.domain_id() as domain, output.open("w") as stream:
        environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        environment.pop("ROS_AUTOMATIC_DISCOVERY_RANGE", None)
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )
        watcher = Watcher(int(domain), output)
        try:
            watcher.wait(
                lambda: all(watcher.states.values()) or process.poll() is not None, 120.0,
                "both controllers' states",
            )
            assert process.poll() is None, output.read_text()
            yield watcher, prior
        finally:
            watcher.close()
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30.0)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert process.returncode == 0, output.read_text()[-3000:]


def send_field(watcher: Watcher, prior: Any, side: str, sequence: int) -> Any:
    """The controller's answer to a field that starts at the pose of ``side``."""
    from niaf_field.codec import make_field_message, to_message
    from niaf_msgs.msg import ActionField

    publisher = watcher.fields[side]
    watcher.wait(lambda: publisher.get_subscription_count() > 0, 10.0, f"{side} to listen")
    count = len(watcher.reports[side])
    field = make_field_message(
        prior, np.zeros(prior.gamma_length), np.zeros(prior.beta_length),
        np.append(watcher.measured(side), 0.0), stamp_s=time.time(), sequence=sequence,
    )
    publisher.publish(to_message(ActionField(), field))
    watcher.wait(lambda: len(watcher.reports[side]) > count, 10.0, f"the report of {side}")
    return watcher.reports[side][-1]


def other(side: str) -> str:
    return SIDES[1 - SIDES.index(side)]


@pytest.mark.system
def test_both_arms_activate_and_hold_still(arms: Any) -> None:
    from niaf_msgs.msg import ImpedanceState

    watcher, _ = arms
    before = {side: watcher.measured(side) for side in SIDES}
    watcher.spin(2.0)
    for side in SIDES:
        state = watcher.newest(side)
        assert state.mode == ImpedanceState.HOLD, state.mode
        drift = np.array(state.measured_position) - before[side]
        assert np.abs(drift).max() < 1e-3
    # seeds differ, hence the poses: these are two arms, not one heard twice
    assert np.abs(before["left"] - before["right"]).max() > 1e-3


@pytest.mark.system
def test_every_topic_of_an_arm_has_ends_in_its_own_namespace_only(arms: Any) -> None:
    watcher, _ = arms
    node = watcher.node
    for side in SIDES:
        for topic, writer, reader in (
            ("joint_states", "sim", "impedance"),
            ("effort_controller/commands", "impedance", "sim"),
            ("gripper_controller/commands", "impedance", "sim"),
        ):
            name = f"/{side}/{topic}"
            ends = [
                [(e.node_namespace, e.node_name) for e in found]
                for found in (
                    node.get_publishers_info_by_topic(name),
                    node.get_subscriptions_info_by_topic(name),
                )
            ]
            assert ends == [[(f"/{side}", writer)], [(f"/{side}", reader)]]
    # what lies outside both namespaces may belong to strangers on this domain, not to these arms
    ours = {"/diagnostics", "/rosout", "/parameter_events"}
    for name, _ in node.get_topic_names_and_types():
        if name in ours or name.startswith(tuple(f"/{side}/" for side in SIDES)):
            continue
        ends = node.get_publishers_info_by_topic(name) + node.get_subscriptions_info_by_topic(name)
        owners = {end.node_namespace for end in ends}
        assert not owners & {f"/{side}" for side in SIDES}, (name, owners)


@pytest.mark.system
@pytest.mark.parametrize("side", SIDES)
def test_a_field_moves_only_the_arm_it_was_sent_to(arms: Any, side: str) -> None:
    from niaf_msgs.msg import AdmissionReport, ImpedanceState

    watcher, prior = arms
    still = other(side)
    before = {name: watcher.measured(name) for name in SIDES}
    reports = len(watcher.reports[still])
    report = send_field(watcher, prior, side, sequence=1)
    assert report.verdict == AdmissionReport.ACCEPTED, report.reason_text
    watcher.wait(lambda: watcher.rests_after(side, 1), 15.0, f"{side} to stop")
    assert np.abs(watcher.measured(side) - before[side]).max() > 5e-3
    assert np.abs(watcher.measured(still) - before[still]).max() < 1e-3
    assert watcher.states[still][-1].mode == ImpedanceState.HOLD
    assert len(watcher.reports[still]) == reports


@pytest.mark.system
def test_diagnostics_of_the_two_controllers_can_be_told_apart(arms: Any) -> None:
    watcher, _ = arms
    watcher.diagnostics.clear()
    watcher.spin(2.5)
    loops = {status.name for status in watcher.diagnostics if status.name.endswith(": loop")}
    assert loops == {f"{side}/impedance: loop" for side in SIDES}


@pytest.mark.system
def test_gains_change_on_one_arm_only(arms: Any) -> None:
    from rcl_interfaces.srv import GetParameters, SetParameters
    from rclpy.parameter import Parameter

    watcher, _ = arms
    name = "gains.panda_joint3.kp"

    def value(side: str) -> float:
        request = GetParameters.Request(names=[name])
        answer = watcher.call(GetParameters, f"/{side}/impedance/get_parameters", request)
        return float(answer.values[0].double_value)

    before = value("right")
    wish = Parameter(name, value=before - 50.0).to_parameter_msg()
    answer = watcher.call(
        SetParameters, "/left/impedance/set_parameters", SetParameters.Request(parameters=[wish])
    )
    assert answer.results[0].successful, answer.results[0].reason
    assert (value("left"), value("right")) == (before - 50.0, before)


@pytest.mark.system
def test_an_e_stop_stops_one_arm_and_the_other_goes_on(arms: Any) -> None:
    from std_srvs.srv import Trigger

    from niaf_msgs.msg import AdmissionReport, ImpedanceState

    watcher, prior = arms
    assert watcher.call(Trigger, "/left/impedance/estop", Trigger.Request()).success
    watcher.wait(
        lambda: watcher.states["left"][-1].mode == ImpedanceState.ESTOP, 5.0, "the e-stop"
    )
    assert watcher.newest("right").mode == ImpedanceState.HOLD
    assert send_field(watcher, prior, "left", 50).verdict == AdmissionReport.REFUSED
    report = send_field(watcher, prior, "right", 51)
    assert report.verdict == AdmissionReport.ACCEPTED, report.reason_text
    watcher.wait(lambda: watcher.rests_after("right", 51), 15.0, "right to stop")
    assert watcher.newest("left").mode == ImpedanceState.ESTOP
    watcher.spin(0.5)
    assert watcher.call(Trigger, "/left/impedance/reset", Trigger.Request()).success
    watcher.wait(
        lambda: watcher.states["left"][-1].mode == ImpedanceState.HOLD, 5.0, "left to hold again"
    )
