"""A real graph (simulation node, impedance node) with a recorder, and a judge of what it heard.

The judge goes by the robot description and by what was on the wire: publication times and sequence
numbers as the middleware stamps them, so that neither a slow listener nor a lost message (efforts
and joint states are best effort) can look like a fault of the controller.

As a program, this file is a source of action fields in a process of its own, which can be killed.
"""

from __future__ import annotations

import array
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.experimental import EventsExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger

from niaf_field.codec import FieldMessage, to_message
from niaf_impedance import default_robot_config_path
from niaf_impedance.robot_config import load_robot_config
from niaf_impedance.settings import ControllerConfig
from niaf_msgs.msg import ActionField, AdmissionReport, ImpedanceState
from niaf_msgs.srv import ResetScene
from niaf_sim.fault_injection import FIELDS_FILE, RecordedFields

ROBOT = load_robot_config(default_robot_config_path("panda"))
ARM_JOINTS = [joint.name for joint in ROBOT.joints]
LIMIT_NM = np.array([joint.torque_limit_nm for joint in ROBOT.joints])
RATE_NM_S = np.array([joint.torque_rate_limit_nm_s for joint in ROBOT.joints])
#: longest time between two states that the torque rate is given credit for
DT_MAX_S = ControllerConfig().dt_max_s
#: resolution of a float that holds Unix time, twice over
CLOCK_S = 1e-6
#: patient: the machine that runs the tests may stop a process for long
STATE_TIMEOUT_S = 0.3
FIELD_PERIOD_S = 0.125
#: how far from the home pose anchors of fields may lie
REACH_RAD = 0.25
#: and how far one field leads back there: more would be refused as a step at the hand-over
BACK_RAD = 0.15
SIM = {"camera_rate_hz": 0.1, "overview_rate_hz": 0.1, "task_state_rate_hz": 1.0}
#: as the launch files wire the nodes
REMAPS = {"action_field": "policy/action_field", "tool_pose": "impedance/tool_pose"}
IMPEDANCE = {
    "autostart": True, "state_timeout_s": STATE_TIMEOUT_S, "state_rate_hz": 100.0,
    "late_brake_s": STATE_TIMEOUT_S, "late_brake_share": 1.0, "late_damp_share": 1.0,
}

#: deep: nothing is lost in the listener's own queue while it has no CPU
_EVERY = QoSProfile(depth=3000, reliability=ReliabilityPolicy.BEST_EFFORT)


class FieldSource:
    """Recorded fields of the shipped policy, re-anchored to the measured pose.

    They all reach down to the table, where an arm that followed one after the other would get
    stuck: anchors stay near the home pose.
    """

    def __init__(self, node: Any, strength: float = 0.5) -> None:
        self.library = RecordedFields.load()
        self._publisher = node.create_publisher(ActionField, "policy/action_field", 1)
        self._strength = np.float32(strength)
        self.sequence = 0
        self._index = 0

    def next(self, measured_rad: np.ndarray) -> FieldMessage:
        """The next field for an arm at ``measured_rad`` [7]."""
        library, prior = self.library, self.library.prior
        # of one episode, so that consecutive fields belong together
        episode = np.flatnonzero(library.episode == library.episode[0])
        index = int(episode[self._index % len(episode)])
        self._index += 1
        self.sequence += 1
        anchor = np.zeros(prior.D)
        home = ROBOT.home_rad
        back = np.clip(measured_rad, home - REACH_RAD, home + REACH_RAD) - measured_rad
        anchor[: len(home)] = measured_rad + np.clip(back, -BACK_RAD, BACK_RAD)
        now_s = time.time()
        return FieldMessage(
            stamp_s=now_s, frame_id="", sequence=self.sequence, prior_id=prior.prior_id,
            start_s=now_s, horizon_s=prior.horizon_s,
            gamma=library.gamma[index] * self._strength,
            beta=library.beta[index] * self._strength, anchor=anchor,
        )

    def publish(self, field: FieldMessage) -> None:
        self._publisher.publish(to_message(ActionField(), field))

    def listeners(self) -> int:
        return int(self._publisher.get_subscription_count())


@dataclass(frozen=True)
class Efforts:
    """Effort commands of one publisher: time of publication s [N], number [N], torque Nm [N, 7]."""

    time_s: np.ndarray
    number: np.ndarray
    torque_nm: np.ndarray


@dataclass(frozen=True)
class JointStates:
    """What the arm reported: stamp s [N], number [N], position, velocity, drive torque [N, 7]."""

    time_s: np.ndarray
    number: np.ndarray
    q_rad: np.ndarray
    dq_rad_s: np.ndarray
    torque_nm: np.ndarray


class Graph:
    """Starts the nodes, records what they say, calls their services."""

    def __init__(self, domain: int, folder: Path, prior: Path | None = None) -> None:
        """``prior``: that of the controller, by default the one of the recorded fields."""
        self.folder = folder
        self._prior = prior or folder / "prior.safetensors"
        self.environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
        self.environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self.environment.pop("ROS_AUTOMATIC_DISCOVERY_RANGE", None)
        with np.load(FIELDS_FILE) as data:
            (folder / "prior.safetensors").write_bytes(data["prior"].tobytes())
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._clients: dict[str, Any] = {}
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("watcher", context=self.context)
        self._efforts: list[tuple[dict, bytes]] = []
        self._joints: list[tuple[dict, bytes]] = []
        self.states: list[ImpedanceState] = []
        self.reports: list[AdmissionReport] = []
        # Not in the executor, which gives no message information and would need a core for 2 kHz.
        self._recorder = rclpy.create_node("effort_recorder", context=self.context)
        self._polled = [
            (self._recorder.create_subscription(kind, topic, lambda _: None, _EVERY), kept)
            for kind, topic, kept in (
                (Float64MultiArray, "effort_controller/commands", self._efforts),
                (JointState, "joint_states", self._joints),
            )
        ]
        self.node.create_subscription(
            ImpedanceState, "impedance/state", self.states.append, 1000)
        self.node.create_subscription(
            AdmissionReport, "impedance/admission", self.reports.append, 1000)
        self.source = FieldSource(self.node)
        self._feeding = threading.Event()
        self._ending = threading.Event()
        self.executor = EventsExecutor(context=self.context)
        self.executor.add_node(self.node)
        self._threads = [
            threading.Thread(target=run) for run in (self._spin, self._record, self._feed)
        ]
        for thread in self._threads:
            thread.start()

    # -- processes -------------------------------------------------------------------------------
    def start(self, name: str, *words: str, **parameters: object) -> subprocess.Popen[bytes]:
        """Run a module's node (or with a path, a program) with these parameters."""
        command = [sys.executable, *words]
        if parameters:
            command.append("--ros-args")
            for key, value in parameters.items():
                text = str(value).lower() if isinstance(value, bool) else str(value)
                command += ["-p", f"{key}:={text}"]
            for topic, target in REMAPS.items():
                command += ["-r", f"{topic}:={target}"]
        with self._log(name).open("ab") as log:
            process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=subprocess.STDOUT,
                stdin=subprocess.PIPE, start_new_session=True,
            )
        self.processes[name] = process
        return process

    def start_sim(self, **changes: object) -> None:
        self.start("sim", "-m", "niaf_sim.sim_node", **(SIM | changes))

    def start_impedance(self) -> None:
        self.start(
            "impedance", "-m", "niaf_impedance.impedance_node", prior=self._prior, **IMPEDANCE)

    def start_source(self) -> None:
        """A process that publishes fields from when it is given a line."""
        self.start("source", __file__)

    def let_source_begin(self) -> None:
        stdin = self.processes["source"].stdin
        assert stdin is not None
        stdin.write(b"go\n")
        stdin.flush()

    def restart_impedance(self) -> None:
        """Another controller; the recording begins before its first command."""
        for kept in (self._efforts, self._joints, self.states, self.reports):
            del kept[:]
        self.start_impedance()
        self.wait(lambda: self.states, "the controller's states", 120.0)

    def kill(self, name: str) -> float:
        """End a process at once; when, s."""
        process = self.processes.pop(name)
        process.kill()
        at_s = time.time()
        process.wait()
        return at_s

    def freeze(self, name: str, seconds: float) -> tuple[float, float]:
        """Stop a process for a while and let it go on; when it stopped and went on, s."""
        process = self.processes[name]
        process.send_signal(signal.SIGSTOP)
        stopped_s = time.time()
        try:
            time.sleep(seconds)
        finally:
            resumed_s = time.time()
            process.send_signal(signal.SIGCONT)
        return stopped_s, resumed_s

    def close(self) -> dict[str, int]:
        """End everything that was started; exit codes."""
        self._ending.set()
        self._feeding.set()
        self.executor.wake()
        for thread in self._threads:
            thread.join()
        if "source" in self.processes:
            self.kill("source")
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGINT)
        codes = {}
        for name, process in self.processes.items():
            try:
                codes[name] = process.wait(20.0)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                codes[name] = process.wait()
        # Fast DDS was seen to wait for ever in the end of a publisher: no test waits with it
        ending = threading.Thread(target=self._release, daemon=True)
        ending.start()
        ending.join(10.0)
        return codes

    def _release(self) -> None:
        self.executor.shutdown()
        self._recorder.destroy_node()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)

    # -- threads ---------------------------------------------------------------------------------
    def _spin(self) -> None:
        while not self._ending.is_set():
            self.executor.spin_once(timeout_sec=0.1)

    def _record(self) -> None:
        while not self._ending.is_set():
            for subscription, kept in self._polled:
                kind, handle = subscription.msg_type, subscription.handle
                with handle:
                    while (taken := handle.take_message(kind, True)) is not None:
                        kept.append((taken[1], taken[0]))
            time.sleep(0.004)

    def _feed(self) -> None:
        while True:
            self._feeding.wait()
            if self._ending.is_set():
                return
            self.source.publish(self.source.next(self.measured()))
            time.sleep(FIELD_PERIOD_S)

    def feed(self, on: bool = True) -> None:
        """Publish fields at 8 Hz, or stop to."""
        if on:
            self.wait(lambda: self.source.listeners() > 0, "the controller to listen")
            self._feeding.set()
        else:
            self._feeding.clear()

    # -- what was heard --------------------------------------------------------------------------
    def wait(self, ready: Callable[[], Any], what: str, timeout_s: float = 20.0) -> None:
        end_s = time.monotonic() + timeout_s
        while not ready():
            dead = [name for name, process in self.processes.items() if process.poll() is not None]
            dead += [thread.name for thread in self._threads if not thread.is_alive()]
            if dead or time.monotonic() > end_s:
                raise AssertionError(f"waited for {what}; ended: {dead}\n{self.logs()}")
            time.sleep(0.01)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def real_time(self) -> bool:
        """The kernel granted the controller real-time scheduling."""
        return "SCHED_FIFO 65 granted" in self._log("impedance").read_text()

    def logs(self) -> str:
        return "\n".join(
            f"-- {file.name}\n{file.read_text(errors='replace')[-2500:]}"
            for file in sorted(self.folder.glob("*.log"))
        )

    def measured(self) -> np.ndarray:
        """Newest arm position [7], rad."""
        return np.array(self._decode_joints(self._joints[-1:]).q_rad[0])

    def newest_states(self, count: int = 1) -> list[ImpedanceState]:
        """The next ``count`` states that are heard from now on."""
        before = len(self.states)
        self.wait(lambda: len(self.states) >= before + count, "the controller's states")
        return self.states[before:]

    def mode(self) -> int:
        return int(self.newest_states()[-1].mode)

    def wait_for_mode(self, mode: int, what: str, timeout_s: float = 20.0) -> None:
        before = len(self.states)
        self.wait(lambda: any(s.mode == mode for s in self.states[before:]), what, timeout_s)

    def wait_for_motion(self) -> None:
        """The arm follows a field and moves."""
        before = len(self.states)
        self.wait(
            lambda: any(
                s.mode == s.TRACK and max(map(abs, s.measured_velocity)) > 0.08
                for s in self.states[before:]
            ),
            "the arm to move",
        )

    def wait_for_rest(self) -> None:
        self.wait(
            lambda: np.abs(self._decode_joints(self._joints[-100:]).dq_rad_s).max() < 0.03,
            "the arm to rest",
        )

    def call(self, kind: Any, name: str, request: Any = None) -> Any:
        if name not in self._clients:  # kept: a new one may miss the answer to its first request
            self._clients[name] = self.node.create_client(kind, name)
        client = self._clients[name]
        self.wait(client.service_is_ready, name)
        request = kind.Request() if request is None else request
        sent: list[tuple[float, Any]] = []

        def answer() -> Any:
            again = kind is not ChangeState and sent and time.monotonic() - sent[-1][0] > 5.0
            if not sent or again:
                sent.append((time.monotonic(), client.call_async(request)))
            return next((future for _, future in sent if future.done()), None)

        self.wait(answer, f"the answer of {name}")
        return answer().result()

    def trigger(self, name: str) -> Trigger.Response:
        return self.call(Trigger, f"impedance/{name}")

    def home(self) -> None:
        """A new scene, the arm at its home pose in HOLD; what was recorded is forgotten."""
        self.feed(False)
        if "impedance" not in self.processes:  # a trial that failed half-way
            self.restart_impedance()
        if self.call(GetState, "impedance/get_state").current_state.label == "active":
            self._change(Transition.TRANSITION_DEACTIVATE)
        quiet_since = [-1.0, time.monotonic()]

        def quiet() -> bool:
            heard = len(self._efforts) + len(self.states)  # an arm on a bus sends no efforts
            if heard != quiet_since[0]:
                quiet_since[:] = [heard, time.monotonic()]
            return time.monotonic() - quiet_since[1] > 0.15

        self.wait(quiet, "the controller to fall silent")
        wish = ResetScene.Request(seed=3, instruction="pick up the red cube", start="home")
        answer = self.call(ResetScene, "sim/reset_scene", wish)
        assert answer.success, answer.message
        self.wait(lambda: self._change(Transition.TRANSITION_ACTIVATE), "activation")
        self.wait_for_mode(ImpedanceState.HOLD, "HOLD")
        self.forget()

    def _change(self, transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return bool(self.call(ChangeState, "impedance/change_state", request).success)

    def forget(self) -> None:
        """Begin a new recording."""
        for kept in (self._efforts, self._joints, self.states, self.reports):
            del kept[:]
        self.wait(lambda: self._joints and self.states, "states")

    def efforts(self) -> Efforts:
        kept = list(self._efforts)
        torque = [deserialize_message(data, Float64MultiArray).data for _, data in kept]
        assert all(len(row) == len(LIMIT_NM) for row in torque), "a command of another length"
        return Efforts(*_times(kept), np.array(torque).reshape(-1, len(LIMIT_NM)))

    def joint_states(self) -> JointStates:
        return self._decode_joints(list(self._joints))

    def _decode_joints(self, kept: list[tuple[dict, bytes]]) -> JointStates:
        messages = [deserialize_message(data, JointState) for _, data in kept]
        n = len(ARM_JOINTS)
        order = [messages[0].name.index(name) for name in ARM_JOINTS] if messages else []
        time_s = np.array([stamp_s(message) for message in messages])
        rows = (
            np.array([np.array(getattr(m, key))[order] for m in messages]).reshape(-1, n)
            for key in ("position", "velocity", "effort")
        )
        return JointStates(time_s, _times(kept)[1], *rows)


def _times(kept: list[tuple[dict, bytes]]) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array([info["source_timestamp"] * 1e-9 for info, _ in kept]),
        np.array([info["publication_sequence_number"] for info, _ in kept], dtype=np.int64),
    )


def stamp_s(message: Any) -> float:
    stamp = message.header.stamp
    return float(stamp.sec + stamp.nanosec * 1e-9)


# -- the judge -------------------------------------------------------------------------------------
def violations(
    efforts: Efforts, joints: JointStates, states: list[ImpedanceState],
    gravity_nm: Callable[[np.ndarray], np.ndarray],
) -> list[str]:
    """What is wrong with a recording, in words; empty when nothing is.

    Efforts: finite; inside the limit; two that were published n messages apart (n - 1 lost) change
    by no more than the rate times n dt_max and, as a state may be up to dt_max old, by no more than
    the rate times the time between them plus dt_max. The one command after a silence of
    state_timeout_s or more may instead go towards the arm's weight, and no further.
    Joint states: the drives' torque inside the limit. States of the controller: torque inside the
    limit and, by their stamps, the rate; a stop has a fault with a name, and nothing else has one.
    """
    found = []
    torque = efforts.torque_nm
    assert len(torque) > 20, "hardly any effort command was heard"
    if not np.isfinite(torque).all():
        found.append("an effort command is not finite")
    over = float(np.nanmax(np.abs(torque) / LIMIT_NM))
    if over > 1.0 + 1e-9:
        found.append(f"an effort command is {over:.3f} of the limit")
    apart, between_s = np.diff(efforts.number), np.diff(efforts.time_s)
    if (apart < 1).any():
        found.append("efforts out of order, or of two publishers")
    allowed_s = np.minimum(apart * DT_MAX_S, np.maximum(between_s, 0.0) + DT_MAX_S)
    ratio = np.abs(np.diff(torque, axis=0)) / (RATE_NM_S * (allowed_s[:, None] + CLOCK_S))
    for k in np.flatnonzero((ratio > 1.0).any(axis=1)):
        if between_s[k] > 0.9 * STATE_TIMEOUT_S:
            seen = joints.q_rad[joints.time_s <= efforts.time_s[k + 1]]
            weight = gravity_nm(seen[-1])
            low = np.minimum(torque[k], weight) - RATE_NM_S * DT_MAX_S
            high = np.maximum(torque[k], weight) + RATE_NM_S * DT_MAX_S
            if ((torque[k + 1] >= low) & (torque[k + 1] <= high)).all():
                continue
        joint = int(ratio[k].argmax())
        found.append(
            f"torque of {ARM_JOINTS[joint]} steps by {torque[k + 1, joint] - torque[k, joint]:.2f} "
            f"Nm, {ratio[k, joint]:.2f} of what its rate allows, {between_s[k] * 1e3:.2f} ms and "
            f"{apart[k]} messages after the one before"
        )
    if not np.isfinite(joints.torque_nm).all() or not np.isfinite(joints.q_rad).all():
        found.append("a joint state is not finite")
    over = float(np.nanmax(np.abs(joints.torque_nm) / LIMIT_NM))
    if over > 1.0 + 1e-9:
        found.append(f"a drive gives {over:.3f} of the torque limit")
    found += _state_violations(states)
    return found


def _state_violations(states: list[ImpedanceState]) -> list[str]:
    found = []
    for before, state in zip([None, *states], states, strict=False):
        commanded = np.array(state.torque_command)
        if not np.isfinite(commanded).all() or (np.abs(commanded) > LIMIT_NM * (1 + 1e-9)).any():
            found.append(f"state at tick {state.tick_count}: torque {commanded}")
        stopped = state.mode in (state.DAMP, state.ESTOP)
        if stopped != (state.fault != 0) or bool(state.fault) != bool(state.fault_text):
            found.append(
                f"mode {state.mode} with fault {state.fault} {state.fault_text!r} at tick "
                f"{state.tick_count}"
            )
        if before is None or state.tick_count <= before.tick_count:
            continue  # the first, or activated anew
        elapsed_s = min(
            stamp_s(state) - stamp_s(before), (state.tick_count - before.tick_count) * DT_MAX_S)
        step = np.abs(commanded - np.array(before.torque_command))
        silent = stamp_s(state) - stamp_s(before) > 0.9 * STATE_TIMEOUT_S
        if not silent and (step > RATE_NM_S * (elapsed_s + CLOCK_S)).any():
            found.append(
                f"state at tick {state.tick_count}: torque changed by {step.max():.2f} Nm in "
                f"{elapsed_s * 1e3:.2f} ms"
            )
    return found


def spoiled(field: FieldMessage, **changes: Any) -> FieldMessage:
    """The field with other values, which may be nonsense."""
    return replace(field, **changes)


# -- a source of its own ---------------------------------------------------------------------------
def main() -> None:
    """Once told to, publish fields at 8 Hz for the arm that the controller measures."""
    rclpy.init()
    node = rclpy.create_node("field_source")
    source = FieldSource(node)
    position = array.array("d")

    def on_state(state: ImpedanceState) -> None:
        position[:] = array.array("d", state.measured_position)

    node.create_subscription(ImpedanceState, "impedance/state", on_state, 1)

    def publish() -> None:
        if position and source.listeners():
            source.publish(source.next(np.array(position)))

    sys.stdin.readline()
    node.create_timer(FIELD_PERIOD_S, publish)
    rclpy.spin(node)


if __name__ == "__main__":
    main()
