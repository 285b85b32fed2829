"""Everything that goes into the controller, kept in order, so that its torque can be made again.

``JournaledController`` is an ``ImpedanceController`` whose public methods also note what they were
called with: the one place where an input can come in is the one place where it is kept. A tick is
copied into a preallocated block (``TICKS`` ticks each); whole blocks go to ``Journal.take``, from
which another thread publishes them. ``replay.py`` turns blocks back into torque.

What makes the torque repeatable although references are judged in another thread: judgement J is
noted when its snapshot is taken, commit J when it comes back. A plan depends on its snapshot, on
its message, on the settings, and on pool buffers that do not change while its generation is valid.
Settings that change meanwhile make the plan OVERTAKEN here; it is judged again.

A recording may begin long after the journal did: ``checkpoint`` notes the whole state, whenever it
is small because no reference runs.

No ROS, no clock, and nothing decoded here: a message is kept as the object that came in.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from importlib import metadata
from typing import Any

import numpy as np
from llvmlite import binding

from niaf_field import Prior, Reference
from niaf_impedance import tick as k
from niaf_impedance.admission import AdmissionVerdict
from niaf_impedance.arm_model import ArmModel
from niaf_impedance.controller import ImpedanceController
from niaf_impedance.faults import Fault, Mode
from niaf_impedance.planning import Plan, Snapshot
from niaf_impedance.robot_config import RobotConfigError
from niaf_impedance.settings import ControllerConfig
from niaf_impedance.tuning import AXIS_GAINS, Tuning

FloatArray = np.ndarray

#: version of the text of BEGIN
FORMAT = 1
#: ticks in a block
TICKS = 100
#: blocks kept ready, and how many may wait before the oldest is given up (10 s at 1 kHz)
_SPARE, _WAITING = 8, 100


class EventKind(IntEnum):
    """Numbers and meaning of the values as in JournalEvent.msg."""

    BEGIN = 0
    ACTIVATE = 1
    DEACTIVATE = 2
    BRAKE = 3
    ESTOP = 4
    RESET = 5
    STATE_AGE = 6
    TUNING = 7
    SETTINGS = 8
    FAULT = 9
    PLAN = 10
    COMMIT = 11
    SWITCH_OFF = 12


@dataclass(frozen=True)
class Event:
    """``tick`` counts the ticks done before it. ``message``: what a PLAN was made from, or the
    ``Setup`` of a BEGIN; both become bytes and text when they are published, not in the loop.

    Values of PLAN: arrival time s, lead s, number of the judgement, number of the judgement on
    whose snapshot the message was decoded, sequence. Of BEGIN: nothing, or a checkpoint's state.
    """

    tick: int
    kind: EventKind
    values: tuple[float, ...] = ()
    text: str = ""
    message: Any = None


class Block:
    """Up to K consecutive ticks: time_s [K], position, velocity, torque [K, n], mode [K] uint8.

    ``first_tick`` is the number of ticks done before it; only the first ``count`` rows count.
    """

    def __init__(self, joints: int, ticks: int = TICKS) -> None:
        self.number = self.first_tick = self.count = 0
        self.time_s = np.zeros(ticks)
        self.position, self.velocity, self.torque = np.zeros((3, ticks, joints))
        self.mode = np.zeros(ticks, dtype=np.uint8)
        self.events: list[Event] = []
        # views made once: indexing is most of what a copy this small costs
        self.rows = list(zip(self.position, self.velocity, self.torque, strict=True))


class Journal:
    """Blocks between the thread that ticks (which fills them) and one that publishes them."""

    def __init__(self, joints: int, ticks: int = TICKS) -> None:
        self.joints, self.ticks_per_block = joints, ticks
        self._spare: deque[Block] = deque(Block(joints, ticks) for _ in range(_SPARE))
        # beyond this the oldest is lost; the gap in the numbers shows it
        self._full: deque[Block] = deque(maxlen=_WAITING)
        self._ready = threading.Event()
        self._number = -1
        self.done = 0  # ticks before the block in hand
        self.block = self._next()

    def _next(self) -> Block:
        block = self._spare.popleft() if self._spare else Block(self.joints, self.ticks_per_block)
        self._number += 1
        block.number, block.first_tick, block.count, block.events = (
            self._number, self.done, 0, [],
        )
        return block

    # -- the thread that ticks --------------------------------------------------------------------
    def note(
        self, kind: EventKind, values: tuple[float, ...] = (), text: str = "", message: Any = None
    ) -> None:
        """Keep an event after the ticks so far."""
        block = self.block
        tick = block.first_tick + block.count
        block.events.append(Event(tick, kind, values, text, message))

    def hand_over(self) -> None:
        """Give the block in hand to the other thread, however full; nothing if it is empty."""
        block = self.block
        if block.count == 0 and not block.events:
            return
        self.done = block.first_tick + block.count
        self._full.append(block)
        self.block = self._next()
        self._ready.set()

    # -- the thread that publishes ----------------------------------------------------------------
    def take(self, timeout_s: float) -> list[Block]:
        """Blocks handed over since the last call; waits for the first. ``give_back`` them."""
        self._ready.wait(timeout_s)
        self._ready.clear()
        blocks = []
        while self._full:
            blocks.append(self._full.popleft())
        return blocks

    def give_back(self, block: Block) -> None:
        """The block is written elsewhere and may be filled again."""
        if len(self._spare) < _SPARE:
            self._spare.append(block)


@dataclass(frozen=True)
class JournaledSnapshot(Snapshot):
    """A snapshot that knows its judgement: number, and what the judgement is about."""

    judgement: int = -1
    built_on: int = -1
    message: Any = None


@dataclass(frozen=True)
class JournaledPlan(Plan):
    """A plan that knows its judgement."""

    judgement: int = -1


@dataclass(frozen=True)
class Setup:
    """What a controller is built from, as a text that a recording can carry."""

    robot: str
    robot_yaml: str
    robot_file: str
    urdf: str
    urdf_sha256: str
    config: ControllerConfig
    tuning: Tuning
    prior_id: str
    prior_file: str
    epoch_sec: int
    software: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        # Python writes the shortest decimals that read back as the same float64
        return json.dumps({"format": FORMAT, **asdict(self)})

    @staticmethod
    def from_json(text: str) -> Setup:
        """ValueError when the text is not one of this version's."""
        content = json.loads(text)
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(f"not a journal of format {FORMAT}; replay it with the version "
                             "that recorded it")
        try:
            content["config"] = ControllerConfig(**content["config"])
            content["tuning"] = tuning_from_json(content["tuning"])
            return Setup(**content)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the journal does not fit this version ({error}); replay it with "
                             "the version that recorded it") from error


def setup_of(event: Event) -> Setup:
    """Setup of a BEGIN, from this process or from a recording; ValueError as ``from_json``."""
    return event.message if isinstance(event.message, Setup) else Setup.from_json(event.text)


def tuning_from_json(content: dict[str, Any]) -> Tuning:
    """Tuning from what ``asdict`` made of it, lists for tuples."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
    }
    for name in AXIS_GAINS:  # one value for all axes in older recordings
        value = values.get(f"tool_{name}", 0.0)
        if not isinstance(value, tuple):
            values[f"tool_{name}"] = (value,) * 3
    return Tuning(**values)


def software() -> dict[str, str]:
    """Versions and processor on which the last bits of a float depend."""
    versions = {name: metadata.version(name) for name in ("numpy", "numba", "llvmlite", "pin")}
    return {
        "python": platform.python_version(), **versions,
        "cpu": str(binding.get_host_cpu_name()), "machine": platform.machine(),
    }


class JournaledController(ImpedanceController):
    """An ImpedanceController that keeps what it is given; see the module's text.

    References come in through ``snapshot_for`` (not ``snapshot`` or ``offer``: a replay needs the
    message).
    """

    def __init__(
        self, config: ControllerConfig, arm: ArmModel, prior: Prior | None = None, *,
        epoch_sec: int = 0, prior_file: str = "", ticks_per_block: int = TICKS,
    ) -> None:
        super().__init__(config, arm, prior)
        robot = arm.config
        try:
            robot_yaml = robot.source.read_text()
            urdf_sha256 = hashlib.sha256(robot.urdf.read_bytes()).hexdigest()
        except OSError as error:
            raise RobotConfigError(
                f"the journal needs {error.filename}, which cannot be read: {error.strerror}"
            ) from error
        self.journal = Journal(arm.n, ticks_per_block)
        self._setup = Setup(
            robot.robot, robot_yaml, str(robot.source.resolve()), str(robot.urdf), urdf_sha256,
            config, self.tuning, "" if prior is None else prior.prior_id, prior_file, epoch_sec,
            software(),
        )
        self._inside = False
        self._judgements = 0
        self.journal.note(EventKind.BEGIN, message=self._setup)

    @contextmanager
    def _outermost(self) -> Iterator[bool]:
        """True unless called by another public method, which is noted itself."""
        outer, self._inside = not self._inside, True
        try:
            yield outer
        finally:
            if outer:
                self._inside = False

    # -- the tick ---------------------------------------------------------------------------------
    def tick(self, t_s: float, q: FloatArray, dq: FloatArray) -> FloatArray:
        tau = self._tau
        k.tick(t_s, q, dq, *self._tick_arguments)
        block = self.journal.block
        i = block.count
        block.time_s[i] = t_s
        position, velocity, torque = block.rows[i]
        position[:] = q
        velocity[:] = dq
        torque[:] = tau
        block.mode[i] = self._si[k.SI_MODE]
        block.count = i + 1
        if block.count == block.time_s.shape[0]:
            self.journal.hand_over()
        return tau

    # -- mode changes -----------------------------------------------------------------------------
    def activate(
        self, t_s: float, q: FloatArray, dq: FloatArray, gripper_m: float | None = None,
        tau_start_nm: FloatArray | None = None,
    ) -> None:
        with self._outermost() as outer:
            super().activate(t_s, q, dq, gripper_m, tau_start_nm)
            if outer:
                width = math.nan if gripper_m is None else gripper_m
                start = () if tau_start_nm is None else tuple(tau_start_nm)
                self.journal.note(EventKind.ACTIVATE, (t_s, *q, *dq, width, *start))

    def deactivate(self, t_s: float) -> None:
        with self._outermost():
            super().deactivate(t_s)
            self.journal.note(EventKind.DEACTIVATE, (t_s,))

    def brake(self, t_s: float) -> None:
        with self._outermost() as outer:
            super().brake(t_s)
            if outer:
                self.journal.note(EventKind.BRAKE, (t_s,))

    def estop(self) -> None:
        super().estop()
        self.journal.note(EventKind.ESTOP)

    def report_fault(self, fault: Fault, joint: int = -1) -> None:
        # a caller may repeat it every tick
        news = self.mode not in (Mode.OFF, Mode.DAMP, Mode.ESTOP)
        super().report_fault(fault, joint)
        if news:
            self.journal.note(EventKind.FAULT, (int(fault), joint))

    def switch_off(self) -> None:
        super().switch_off()
        self.journal.note(EventKind.SWITCH_OFF)

    def reset(
        self, t_s: float | None = None, q: FloatArray | None = None, dq: FloatArray | None = None,
    ) -> None:
        if q is not None or dq is not None:
            raise TypeError("a journaled controller is reset to the state of its last tick")
        with self._outermost():
            super().reset(t_s)
            self.journal.note(EventKind.RESET, () if t_s is None else (t_s,))

    def note_state_age(self, age_s: float) -> bool:
        latched = super().note_state_age(age_s)
        if latched:  # else nothing changed
            self.journal.note(EventKind.STATE_AGE, (age_s,))
        return latched

    # -- settings ---------------------------------------------------------------------------------
    def set_tuning(self, tuning: Tuning) -> None:
        super().set_tuning(tuning)
        self.journal.note(EventKind.TUNING, text=json.dumps(asdict(tuning)))

    def set_config(self, config: ControllerConfig) -> None:
        super().set_config(config)
        self.journal.note(EventKind.SETTINGS, text=json.dumps(asdict(config)))

    # -- new references ---------------------------------------------------------------------------
    def snapshot_for(
        self, message: Any, t_s: float, lead_s: float, sequence: int,
        again: Snapshot | None = None,
    ) -> JournaledSnapshot:
        """Snapshot to judge ``message`` on; ``plan`` it with the same time and lead.

        ``again``: the snapshot of the attempt before when its reference is judged again; then
        ``message`` is that one's.
        """
        built_on: int | None = None
        if isinstance(again, JournaledSnapshot):
            message, built_on = again.message, again.built_on
        snapshot = super().snapshot()
        number = self._judgements = self._judgements + 1
        built_on = number if built_on is None else built_on
        self.journal.note(
            EventKind.PLAN, (t_s, lead_s, number, built_on, sequence), message=message)
        return JournaledSnapshot(
            **vars(snapshot), judgement=number, built_on=built_on,
            message=message,
        )

    def plan(
        self, snapshot: Snapshot, t_s: float, reference: Reference, lead_s: float = 0.0
    ) -> Plan:
        if not isinstance(snapshot, JournaledSnapshot):
            raise TypeError("a journaled controller judges on snapshot_for(message, ...): "
                            "without the message nobody can replay it")
        plan = super().plan(snapshot, t_s, reference, lead_s)
        return JournaledPlan(**vars(plan), judgement=snapshot.judgement)

    def commit(self, plan: Plan) -> AdmissionVerdict:
        if not isinstance(plan, JournaledPlan):
            if plan.verdict.accepted:
                raise TypeError("commit takes the plans of this controller")
            return super().commit(plan)  # superseded: it never came to a judgement
        verdict = super().commit(plan)
        self.journal.note(
            EventKind.COMMIT, (plan.judgement, int(verdict.verdict), int(verdict.reason)))
        return verdict

    # -- checkpoints ------------------------------------------------------------------------------
    def checkpoint(self) -> bool:
        """Note the state, so that a replay can begin here; False while a reference runs."""
        if self.mode in (Mode.TRACK, Mode.BRAKE) or self._pi[k.PI_WAITING]:
            return False
        self.journal.hand_over()
        setup = replace(self._setup, config=self.config, tuning=self.tuning)
        values = state_values(self)
        self.journal.note(EventKind.BEGIN, tuple(values.tolist()), message=setup)
        return True


def _state_arrays(controller: ImpedanceController) -> list[np.ndarray]:
    """Every array of the tick but the arm's constants, scratch of the field, and the references."""
    c, arm = controller, controller.arm
    left_out = (c._pool, c._work, arm.model, arm.parent, arm.kind, arm.gravity)
    return [
        a for a in c._tick_arguments
        if isinstance(a, np.ndarray) and not any(a is other for other in left_out)
    ]


def state_values(controller: ImpedanceController) -> FloatArray:
    """The controller's state while no reference runs, one vector."""
    c = controller
    held = c._pool[0, : c.n + 1]
    scalars = (c._number, c._committed_sequence, c._last_stamp_s, *c._window)
    return np.concatenate([scalars, held, *(a.ravel() for a in _state_arrays(c))])


def restore_state(controller: ImpedanceController, values: FloatArray) -> None:
    """Undo ``state_values`` on a controller of the same setup; ValueError on another length."""
    c = controller
    values = np.asarray(values, dtype=np.float64)
    arrays = _state_arrays(c)
    expected = 5 + c.n + 1 + sum(a.size for a in arrays)
    if values.size != expected:
        raise ValueError(
            f"a checkpoint has {values.size} values, this version expects {expected}; replay it "
            "with the version that recorded it"
        )
    c._number, c._committed_sequence = int(values[0]), int(values[1])
    c._last_stamp_s, c._window = float(values[2]), (float(values[3]), float(values[4]))
    c._planned_buffers = ()
    at = 5 + c.n + 1
    c._pool[0, : c.n + 1] = values[5:at]
    for a in arrays:
        a[...] = values[at : at + a.size].reshape(a.shape)
        at += a.size
