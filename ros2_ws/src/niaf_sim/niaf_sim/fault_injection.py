"""Lock-step rig for fault injection: policy, host loop, drives and arm on one simulated time line.

The rig runs what a robot runs, message by message: a policy whose recorded fields become
``FieldMessage``, joint states as serialised bytes, the checks of the impedance node, the
controller, and behind it either the FOC drive model with its watchdog or emulated motors (MIT mode
or moteus) that answer real frames on python-can's ``virtual`` bus. A fault is a set of hooks
(:class:`Injection`) between these parts. No ROS graph and no clock: everything follows from the
seed.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import can
import mujoco
import numpy as np
from can.interfaces.virtual import VirtualBus

from niaf_field.codec import FieldLimits, FieldMessage, diagnose_field, field_from_message
from niaf_field.prior import Prior, load_prior
from niaf_impedance.admission import Verdict
from niaf_impedance.arm_model import ArmModel
from niaf_impedance.controller import ControllerConfig, ImpedanceController
from niaf_impedance.drives import DriveCommand, DriveError, DriveFault
from niaf_impedance.drives.description import (
    MOTEUS,
    DriveDescription,
    load_drive_description,
    make_drive,
    make_emulator,
)
from niaf_impedance.drives.emulation import Emulator
from niaf_impedance.drives.mit_can import MitCanConfig
from niaf_impedance.event_loop import WATCH_PERIOD_S as WATCH_S
from niaf_impedance.event_loop import EventLoop, StateIntake
from niaf_impedance.faults import Mode
from niaf_impedance.lateness import LoopLimits
from niaf_impedance.robot_config import RobotConfig, default_robot_config_path
from niaf_impedance.wire import JointStateDecoder
from niaf_sim import scene
from niaf_sim.cell import Cell, CellConfig
from niaf_sim.drive import DriveBank, DriveConfig
from niaf_sim.env import robot_config
from niaf_sim.wire import JointStateEncoder, command_problem

FloatArray = np.ndarray

DT_S = 0.001
EPOCH_SEC = 1_700_000_000
REPLAN_S = 0.15
#: largest trial, ticks
MOST_TICKS = 7000
JOINT_NAMES = (*scene.ARM_JOINTS, "panda_finger_joint1")
FIELDS_FILE = Path(__file__).parent / "data" / "fault_fields.npz"

#: types of the MIT-mode motors behind the bus: enough torque for each joint's limit
MIT_MOTORS = ("DM10010",) * 4 + ("DM8006",) * 3
#: a bus may be this full: two that share the motors carry their frames at the control rate
BUS_LOAD = 4.0


@dataclass(frozen=True)
class RecordedFields:
    """Fields that the shipped policy published in closed loop, consecutive within an episode.

    gamma [K, gamma_length] (stored with 8 bits per value), beta [K, beta_length], episode [K].
    """

    prior: Prior
    gamma: FloatArray
    beta: FloatArray
    episode: FloatArray

    @classmethod
    def load(cls, file: Path = FIELDS_FILE) -> RecordedFields:
        """The recording with the prior it was made with, so that a new checkpoint cannot part
        them."""
        with np.load(file) as data, tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "prior.safetensors"
            copy.write_bytes(data["prior"].tobytes())
            gamma = data["gamma_counts"] * data["gamma_scale"][:, None]
            return cls(
                load_prior(copy), gamma.astype(np.float32), data["beta"].astype(np.float32),
                data["episode"],
            )


@dataclass
class Reading:
    """One joint state on its way: arm order plus gripper joint, float64[8]; stamp s of the wall."""

    q: FloatArray
    dq: FloatArray
    stamp_s: float
    #: transport time; a reading that is overtaken is lost, as with a queue of depth 1
    delay_s: float = 0.0
    #: published, and lost on the way
    lost: bool = False
    #: replaces the serialised message when set
    raw: bytes | None = None


@dataclass
class Injection:
    """Hooks of one fault. Every hook is optional; all times are true seconds since the start.

    act(rig, t_s): called at every tick before anything else (may set the rig's switches);
    fields(rig, message): what arrives instead of a field that the policy published;
    state(rig, reading): what is sent instead of a reading, None for nothing;
    drive(bank): changes the FOC drives after the command and before the physics.
    """

    onset_s: float
    act: Callable[[Rig, float], None] | None = None
    fields: Callable[[Rig, FieldMessage], Sequence[FieldMessage]] | None = None
    state: Callable[[Rig, Reading], Reading | None] | None = None
    drive: Callable[[DriveBank], None] | None = None
    note: str = ""


@dataclass(frozen=True)
class Heard:
    """What the host said about a message. ``number`` 0: accepted."""

    t_s: float
    number: int
    text: str
    injected: bool = False


class HostLoop:
    """What the impedance node does between its topics and the controller; times are arguments.

    State intake, event loop, message check and controller are the node's own; this is the glue of
    ``topic_arm.TopicArm`` and of the node's field callback.
    ``wall_s`` is the machine's settable clock less the epoch, ``mono_s`` its monotonic clock.
    """

    def __init__(
        self,
        controller: ImpedanceController,
        prior: Prior,
        limits: FieldLimits,
        rate_hz: float,
        loop_limits: LoopLimits | None = None,
    ) -> None:
        """``loop_limits``: the node's by default."""
        self.controller, self.prior, self.limits = controller, prior, limits
        self._period_s = 1.0 / rate_hz
        gripper = controller.arm.config.gripper
        self.decoder = JointStateDecoder(
            controller.arm.joint_names,
            gripper.joint if gripper else "",
            gripper.width_scale if gripper else 1.0,
        )
        self._states = StateIntake(self.decoder, limits.max_future_s, self._period_s, EPOCH_SEC)
        self.gate = self._states.gate
        self.gate.bearable_s = controller.bearable_age_s(self._period_s)
        if loop_limits is None:
            loop_limits = LoopLimits(damp_lateness_s=controller.config.state_timeout_s)
        self._loop = EventLoop(controller, self._states, loop_limits, self._period_s, -DT_S)

    def activate(self) -> None:
        """Hold the pose of the newest state, measured a tick before time 0."""
        decoder, gate = self.decoder, self.gate
        gate.newest_s, gate.received_s = -DT_S, -DT_S
        self.controller.activate(-DT_S, decoder.q, decoder.dq, gripper_m=decoder.gripper_m)
        self._loop.clear()

    def reset(self) -> None:
        """``~/reset``; ResetRefusedError or ValueError says why not."""
        self.controller.reset(self.gate.newest_s)
        self._loop.lateness.clear()

    def on_joint_state(
        self, data: bytes, wall_s: float, mono_s: float, received_s: float, number: int
    ) -> FloatArray | None:
        """Torque to publish for a serialised joint state; None: nothing is published.

        received_s: when this process had it, wall clock; number: its publisher's.
        """
        controller, decoder = self.controller, self.decoder
        if not self._states.receive(
            data, controller.mode, controller.config.state_timeout_s, wall_s, mono_s, received_s,
            number,
        ) or controller.mode == Mode.OFF:
            return None
        self._loop.begin()
        tau = controller.tick(self.gate.newest_s, decoder.q, decoder.dq)
        return None if controller.off or controller.silent else tau

    def watch(self, mono_s: float) -> FloatArray | None:
        """The timer that sees silence; a torque is published once when the arm is silent."""
        return self.controller.telemetry.tau if self._loop.watch(mono_s) else None

    def on_field(self, message: FieldMessage, wall_s: float) -> tuple[int, str, float]:
        """(number, text, end of the reference on the wall clock) of a field; number 0: accepted."""
        finding = diagnose_field(message, self.prior, wall_s, self.limits)
        if finding is not None:
            self.controller.refused_count += 1
            return int(finding[0]), finding[1], -math.inf
        verdict = self.controller.offer(wall_s, field_from_message(message, self.prior))
        if verdict.verdict == Verdict.REFUSED:
            return int(verdict.reason), verdict.text, -math.inf
        # a reference that is let in slowed is stretched about the hand-over
        seam_s = max(self.gate.newest_s, message.start_s)
        end_s = message.start_s + message.horizon_s
        return 0, "", seam_s + (end_s - seam_s) / verdict.time_scale

    def set_gains(self, kp: FloatArray, kd: FloatArray) -> str:
        """Why a parameter set was refused; empty when it is in force."""
        problem = self.controller.check_gains(kp, kd, self._period_s)
        if not problem:
            self.controller.set_gains(kp, kd)
            self.gate.bearable_s = self.controller.bearable_age_s(self._period_s)
        return problem


class FocArm:
    """The cell behind the FOC drive model."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self.finger_q = int(cell.model.joint(JOINT_NAMES[-1]).qposadr[0])
        self.q, self.dq = np.zeros(8), np.zeros(8)

    def read(self, t_s: float) -> tuple[float, bool]:
        """Fill q, dq; (time of measurement, fresh)."""
        self.q[:7], self.dq[:7] = self._cell.q, self._cell.dq
        self.q[7] = self._cell.data.qpos[self.finger_q]
        return t_s, True

    def apply(self, torque: FloatArray | None, gripper_m: float, injection: Injection) -> None:
        """One control period with this command, None for none."""
        cell = self._cell
        if torque is not None:
            cell.drives.command(torque)
        if injection.drive is not None:
            injection.drive(cell.drives)
        cell.step(None, gripper_m)

    @property
    def torque_nm(self) -> FloatArray:
        return self._cell.drives.torque_nm

    @property
    def watchdog_tripped(self) -> bool:
        return self._cell.drives.watchdog_tripped

    @property
    def own_limit_nm(self) -> FloatArray:
        """What the drives limit their watchdog's damping to [7]."""
        return np.array(self._cell.drives.config.torque_limit_nm)

    resolution_nm = np.zeros(7)
    fault = DriveFault.NONE

    def close(self) -> None:
        """Nothing is held."""


class _HostSide(VirtualBus):
    """The host's end of a virtual bus whose motors answer at once."""

    def __init__(self, channel: object, emulator: Emulator[Any]) -> None:
        super().__init__(channel=channel, protocol=can.CanProtocol.CAN_FD)
        self._emulator = emulator
        self.motor_side = VirtualBus(channel=channel, protocol=can.CanProtocol.CAN_FD)
        self.cut = False
        #: frames that the controller itself raises; an interface delivers them past its id filters
        self.error_frames: deque[can.Message] = deque()

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        if self.cut:
            raise can.CanOperationError("transmit queue is full: no acknowledge on the wire")
        super().send(msg, timeout)
        while (frame := self.motor_side.recv(0.0)) is not None:
            for reply in self._emulator.answer(frame):
                self.motor_side.send(reply)

    def recv(self, timeout: float | None = None) -> can.Message | None:
        if self.error_frames:
            return self.error_frames.popleft()
        return super().recv(0.0)  # time stands still: what is not here yet never comes

    def shutdown(self) -> None:
        self.motor_side.shutdown()
        super().shutdown()


_CHANNELS = itertools.count()


@cache
def _drives(protocol: str, watchdog_s: float) -> DriveDescription:
    """The shipped drives of the simulated Panda without its hand, at the rate of the trials."""
    path = default_robot_config_path(f"panda_{protocol}")
    description = load_drive_description(path, (*scene.ARM_JOINTS,))
    common: dict[str, Any] = {"rate_hz": 1.0 / DT_S, "max_bus_load": BUS_LOAD}
    drive = description.drive
    if isinstance(drive, MitCanConfig):
        mit_joints = tuple(
            replace(joint, motor=motor, own_ranges=None)
            for joint, motor in zip(drive.joints, MIT_MOTORS, strict=False)
        )
        return replace(description, drive=replace(
            drive, joints=mit_joints, watchdog_max_s=watchdog_s, set_watchdog_s=watchdog_s,
            **common))
    return replace(description, drive=replace(
        drive, joints=drive.joints[:len(scene.ARM_JOINTS)], watchdog_s=watchdog_s, **common))


class BusDriven:
    """The same physics behind emulated motors on a virtual CAN bus.

    The driver between bus and topics: it asks once a period (with a command, if there is one) and
    publishes the answers in the next, if every motor answered. On a drive fault other than a
    missing reply it names it, stops publishing and stops sending, so that the controller sees
    silence and the motors' watchdogs act.
    """

    def __init__(self, cell: Cell, protocol: str, foc: DriveConfig) -> None:
        self._cell, self.protocol = cell, protocol
        description = _drives(protocol, foc.watchdog_s)
        self.now_s = -DT_S
        self.emulator = make_emulator(description, lambda: self.now_s)
        for motor, damping in zip(self.emulator.motors, foc.watchdog_damping_nms, strict=True):
            motor.damping_nms = motor.joint.map.motor_gain(damping)
        self.bus = _HostSide(f"fault-trial-{next(_CHANNELS)}", self.emulator)
        self.drive = make_drive(description, self.bus, lambda: self.now_s)
        self.finger_q = int(cell.model.joint(JOINT_NAMES[-1]).qposadr[0])
        self.q, self.dq = np.zeros(8), np.zeros(8)
        self._command = DriveCommand.zeros(7)
        self.fault = DriveFault.NONE
        self._silent = False
        self._collected, self._stamp_s = False, -math.inf
        self._see()
        self._state = self.drive.enable()
        # the first command: the torque that holds the arm, as the brakes open
        self._command.tau_ff[:] = cell.torque_nm
        self.drive.write(self._command)
        self.now_s = 0.0

    def _see(self) -> None:
        self.emulator.q[:], self.emulator.dq[:] = self._cell.q_true, self._cell.dq_true

    def read(self, t_s: float) -> tuple[float, bool]:
        """The answers to the last request; (time of the oldest, a state may be published)."""
        if not self._silent and not self._collected:
            self._collect()
        if self._silent:
            return t_s, False
        state = self._state
        self.q[:7], self.dq[:7] = state.q, state.dq
        self.q[7] = self._cell.data.qpos[self.finger_q]
        for number in state.fault.tolist():
            if number:
                self.fault = self.fault or DriveFault(number)
                if number != DriveFault.MISSING_REPLY:
                    self._stop(DriveFault(number))
        stamp_s, before_s = float(state.stamp.min()), self._stamp_s
        self._stamp_s = stamp_s
        return stamp_s, stamp_s > before_s and not self._silent

    def _collect(self) -> None:
        self._collected = True
        try:
            self._state = self.drive.read()
        except DriveError as error:
            self._stop(error.fault)

    def _stop(self, fault: DriveFault) -> None:
        self.fault, self._silent = self.fault or fault, True  # what came first is the cause

    def apply(self, torque: FloatArray | None, gripper_m: float, injection: Injection) -> None:
        """One control period with this command, None for none."""
        cell, data = self._cell, self._cell.data
        if torque is not None and not self._silent:
            self._command.tau_ff[:] = torque
            self._collected = False
            try:
                self.drive.write(self._command)
            except DriveError as error:
                self._stop(error.fault)
        elif not self._silent:
            self._collect()  # asks for the state alone
        data.ctrl[7] = gripper_m
        for _ in range(round(DT_S / cell.model.opt.timestep)):
            self._see()
            data.ctrl[:7] = self.emulator.step()
            mujoco.mj_step(cell.model, data)
            self.now_s += cell.model.opt.timestep
        self._see()

    @property
    def torque_nm(self) -> FloatArray:
        return self.emulator.tau

    @property
    def watchdog_tripped(self) -> bool:
        return any(motor.tripped for motor in self.emulator.motors)

    @property
    def own_limit_nm(self) -> FloatArray:
        """What the motors limit their watchdog's damping to [7]: the range of MIT frames, not the
        rating; with moteus the rating."""
        return np.array([
            motor.joint.map.gear * (
                motor.joint.torque_limit_nm if self.protocol == MOTEUS else motor.ranges.torque_nm)
            for motor in self.emulator.motors
        ])

    @property
    def resolution_nm(self) -> FloatArray:
        """Step of the torque word [7]."""
        return self.drive.capabilities.torque_step

    def close(self) -> None:
        self.bus.shutdown()


class Trace:
    """What happened at every tick [T]: written by the rig, read by the judge."""

    def __init__(self) -> None:
        self.ticks = 0
        self.t_s = np.zeros(MOST_TICKS)
        #: stamp of the state that the command answers to; NaN where nothing was sent
        self.stamp_s = np.zeros(MOST_TICKS)
        self.sent = np.zeros(MOST_TICKS, dtype=bool)
        self.command_nm = np.zeros((MOST_TICKS, 7))
        self.drive_nm = np.zeros((MOST_TICKS, 7))
        self.q = np.zeros((MOST_TICKS, 7))
        self.dq = np.zeros((MOST_TICKS, 7))
        self.q_ref = np.zeros((MOST_TICKS, 7))
        self.gripper_m = np.zeros(MOST_TICKS)
        self.gain_ok = np.ones(MOST_TICKS, dtype=bool)
        self.mode = np.zeros(MOST_TICKS, dtype=np.int64)
        self.fault = np.zeros(MOST_TICKS, dtype=np.int64)
        self.watchdog = np.zeros(MOST_TICKS, dtype=bool)


@dataclass
class Bench:
    """What trials of one process share. Replace a part to build a controller that must be caught.

    ``limits_of`` is the robot description that the judge goes by; ``robot`` the one that the
    controller is given; they differ only in negative controls.
    """

    robot: RobotConfig = field(default_factory=lambda: robot_config("panda"))
    config: ControllerConfig = field(default_factory=ControllerConfig)
    make_controller: Callable[[ControllerConfig, ArmModel, Prior], ImpedanceController] = (
        ImpedanceController
    )
    make_host: Callable[..., HostLoop] = HostLoop
    drive_watchdog_s: float = DriveConfig((1.0,) * 7, watchdog_damping_nms=(1.0,) * 7).watchdog_s
    field_limits: FieldLimits = field(default_factory=FieldLimits)

    @cached_property
    def limits_of(self) -> RobotConfig:
        return robot_config("panda")

    @cached_property
    def arm(self) -> ArmModel:
        return ArmModel(self.robot)

    @cached_property
    def fields(self) -> RecordedFields:
        return RecordedFields.load()

    @cached_property
    def cell(self) -> Cell:
        """Physics at the control rate; the cubes fall out of the way, which halves its time."""
        cell = Cell(CellConfig(scene=scene.SceneConfig(timestep_s=DT_S)))
        for i in range(3):
            geom = cell.model.geom(f"cube{i}").id
            cell.model.geom_contype[geom] = cell.model.geom_conaffinity[geom] = 0
        config = replace(cell.drives.config, watchdog_s=self.drive_watchdog_s)
        cell.drives = DriveBank(config)
        return cell

    @cached_property
    def decay_s(self) -> float:
        """Slowest time constant of the arm under the damping of DAMP, over a few poses."""
        arm = ArmModel(self.limits_of)
        damp = np.array([joint.damp_nms_rad for joint in self.limits_of.joints])
        rng = np.random.default_rng(0)
        home = self.limits_of.home_rad
        slowest = 0.0
        for _ in range(30):
            mass = arm.mass_matrix(home + rng.uniform(-0.5, 0.5, arm.n))
            rates = np.linalg.eigvals(np.linalg.solve(mass, np.diag(damp))).real
            slowest = max(slowest, 1.0 / float(rates.min()))
        return slowest


class Rig:
    """One trial's loop. Switches that a fault may set are plain attributes."""

    def __init__(self, bench: Bench, seed: int, protocol: str = "") -> None:
        """``protocol``: what the motors on the bus speak; empty: the FOC drives' arm."""
        self.bench, self.rng = bench, np.random.default_rng([seed, 1])
        cell = self.cell = bench.cell
        cell.model.opt.gravity[:] = (0.0, 0.0, -9.81)
        cell.reset(seed, "pick up the red cube", "random")
        cell.drives.limit_nm[:] = cell.drives.config.torque_limit_nm
        cell.data.xfrc_applied[:] = 0.0
        self.hand = cell.model.body("panda_hand").id
        self.arm: FocArm | BusDriven = (
            BusDriven(cell, protocol, cell.drives.config) if protocol else FocArm(cell)
        )
        library = bench.fields
        self.controller = bench.make_controller(bench.config, bench.arm, library.prior)
        self.host = bench.make_host(
            self.controller, library.prior, bench.field_limits, 1.0 / DT_S
        )
        self._encoder = JointStateEncoder(JOINT_NAMES)
        #: states on their way: (arrival, number, message)
        self._in_flight: deque[tuple[float, int, bytes]] = deque()
        self._number = 0
        self.trace = Trace()
        self.heard: list[Heard] = []
        self.refused_sets = 0
        self.unexplained_sets = 0
        # switches
        self.wall_offset_s = 0.0
        self.sensor_offset_s = 0.0
        self.host_runs = True
        #: where the states of a stall wait: in the socket, to come one by one, or with the
        #: middleware, which keeps the newest
        self.stall_queues = False
        self.policy_runs = True
        self.bus_to_drives = True
        self.replan_s = REPLAN_S
        # policy
        self._next_observation_s = float(self.rng.uniform(0.0, 0.03))
        self._published: list[tuple[float, FieldMessage, bool]] = []
        self._sequence = 0
        self._field = int(self.rng.integers(len(library.gamma)))
        self.strength = float(self.rng.uniform(0.7, 1.15))
        #: end of the newest accepted field, true seconds; -inf: none yet
        self.field_end_s = -math.inf
        self.t_s = 0.0
        self._tick = 0
        # the executor's timer, and what it does first when state and timer wait
        self._watch_due_s = DT_S * int(self.rng.integers(round(WATCH_S / DT_S)))
        self.watch_first = bool(self.rng.random() < 0.5)
        self._ran = True
        self._activate()

    @property
    def wall_s(self) -> float:
        return self.t_s + self.wall_offset_s

    def _activate(self) -> None:
        """As the node does: from the newest joint state, without knowing the drives' torque."""
        stamp_s, _ = self.arm.read(0.0)
        host = self.host
        host.decoder.decode(self._encode(Reading(self.arm.q, self.arm.dq, stamp_s)))
        host.activate()

    def _encode(self, reading: Reading) -> bytes:
        if reading.raw is not None:
            return reading.raw
        encoder = self._encoder
        encoder.position[:], encoder.velocity[:] = reading.q, reading.dq
        return encoder.encode(EPOCH_SEC * 1_000_000_000 + round(reading.stamp_s * 1e9))

    # -- policy ----------------------------------------------------------------------------------
    def observed_field(self) -> FieldMessage:
        """The next recorded field, re-anchored to the pose measured now."""
        library = self.bench.fields
        prior = library.prior
        index = self._field % len(library.gamma)
        self._field += 1
        self._sequence += 1
        anchor = np.zeros(prior.D)
        for i, channel in enumerate(prior.channels):
            if channel.semantics == "relative":
                anchor[i] = self.cell.q[i] if isinstance(self.arm, FocArm) else self.arm.q[i]
        return FieldMessage(
            stamp_s=self.wall_s, frame_id="", sequence=self._sequence, prior_id=prior.prior_id,
            start_s=self.wall_s, horizon_s=prior.horizon_s,
            gamma=library.gamma[index] * np.float32(self.strength),
            beta=library.beta[index] * np.float32(self.strength), anchor=anchor,
        )

    def publish(self, message: FieldMessage, after_s: float, injected: bool = False) -> None:
        """Let a field arrive at the host ``after_s`` from now."""
        self._published.append((self.t_s + after_s, message, injected))

    def _run_policy(self, injection: Injection) -> None:
        if self.policy_runs and self.t_s >= self._next_observation_s:
            self._next_observation_s += self.replan_s
            message = self.observed_field()
            if injection.fields is not None and self.t_s >= injection.onset_s:
                for changed in injection.fields(self, message):
                    self.publish(changed, float(self.rng.uniform(0.03, 0.08)), True)
            else:
                self.publish(message, float(self.rng.uniform(0.03, 0.08)))

    def _deliver_fields(self) -> None:
        due = [entry for entry in self._published if entry[0] <= self.t_s]
        if not due:
            return
        self._published = [entry for entry in self._published if entry[0] > self.t_s]
        for _, message, injected in due:
            number, text, end_s = self.host.on_field(message, self.wall_s)
            self.heard.append(Heard(self.t_s, number, text, injected))
            if number == 0:
                self.field_end_s = end_s - self.wall_offset_s

    # -- parameters ------------------------------------------------------------------------------
    def set_gains(self, kp: FloatArray, kd: FloatArray) -> None:
        """A parameter set of all gains, as a client may send it."""
        before = (self.controller.kp.copy(), self.controller.kd.copy())
        problem = self.host.set_gains(kp, kd)
        if problem:
            self.refused_sets += 1
            if before[0].tobytes() != self.controller.kp.tobytes():
                self.unexplained_sets += 1

    # -- the loop --------------------------------------------------------------------------------
    def run(self, duration_s: float, injection: Injection) -> None:
        """Advance everything by ``duration_s``."""
        for _ in range(round(duration_s / DT_S)):
            self._step(injection)

    def _step(self, injection: Injection) -> None:
        t_s = self.t_s
        faulty = t_s >= injection.onset_s
        if injection.act is not None and faulty:
            injection.act(self, t_s)
        self._run_policy(injection)
        measured_s, fresh = self.arm.read(t_s)
        if fresh:
            stamp_s = measured_s + self.wall_offset_s + self.sensor_offset_s
            reading: Reading | None = Reading(self.arm.q, self.arm.dq, stamp_s)
            if injection.state is not None and faulty:
                assert reading is not None
                reading = injection.state(
                    self, Reading(reading.q.copy(), reading.dq.copy(), stamp_s)
                )
            if reading is not None:
                self._number += 1
                if not reading.lost:
                    self._in_flight.append(
                        (t_s + reading.delay_s, self._number, self._encode(reading)))
        torque = self._run_host() if self.host_runs else None
        self._ran = self.host_runs
        if torque is not None and command_problem(torque, 7):
            # the arm's driver refuses what is not a number; the judge sees it all the same
            self._record(torque)
            torque = None
        else:
            self._record(torque)
        delivered = torque if self.bus_to_drives else None
        self.arm.apply(delivered, self.controller.gripper_m, injection)
        trace, k = self.trace, self._tick
        trace.drive_nm[k] = self.arm.torque_nm
        trace.watchdog[k] = self.arm.watchdog_tripped
        trace.q[k], trace.dq[k] = self.cell.q_true, self.cell.dq_true
        self._tick += 1
        trace.ticks = self._tick
        self.t_s = self._tick * DT_S

    def _run_host(self) -> FloatArray | None:
        self._deliver_fields()
        watching = self.t_s >= self._watch_due_s - 1e-9
        if watching:
            overdue = (self.t_s - self._watch_due_s + 1e-9) // WATCH_S
            self._watch_due_s += WATCH_S * (1.0 + overdue)
            if self.watch_first:
                torque = self.host.watch(self.t_s)
                if torque is not None:
                    return torque  # what has arrived is ticked next: one command a period
        due: list[tuple[float, int, bytes]] = []
        flight = self._in_flight
        while flight and flight[0][0] <= self.t_s + 1e-9:
            due.append(flight.popleft())
        queued = self.stall_queues and not self._ran
        torque = None
        for arrived_s, number, data in due if queued else due[-1:]:  # depth 1: overwritten
            received_s = self.wall_s if queued else arrived_s + self.wall_offset_s
            tau = self.host.on_joint_state(data, self.wall_s, self.t_s, received_s, number)
            torque = torque if tau is None else tau
        if watching and not self.watch_first:
            tau = self.host.watch(self.t_s)
            torque = tau if torque is None else torque
        return torque

    def _record(self, torque: FloatArray | None) -> None:
        trace, k, controller = self.trace, self._tick, self.controller
        trace.t_s[k] = self.t_s
        trace.sent[k] = torque is not None
        if torque is not None:
            trace.command_nm[k] = torque
        trace.stamp_s[k] = self.host.gate.newest_s
        trace.mode[k], trace.fault[k] = int(controller.mode), int(controller.fault)
        trace.q_ref[k] = controller.telemetry.q_ref
        trace.gripper_m[k] = controller.gripper_m
        kp, kd = controller.kp, controller.kd
        trace.gain_ok[k] = bool(
            (kp >= 0.0).all() and (kd >= 0.0).all()
            and (kp <= self._kp_max).all() and (kd <= self._kd_max).all()
        )

    @cached_property
    def _kp_max(self) -> FloatArray:
        return np.array([joint.kp.maximum for joint in self.bench.limits_of.joints])

    @cached_property
    def _kd_max(self) -> FloatArray:
        return np.array([joint.kd.maximum for joint in self.bench.limits_of.joints])

    def close(self) -> None:
        self.arm.close()
