"""Makes the torque of a recording again, and says whether it is the same, bit for bit.

    python -m niaf_impedance.replay recording.mcap --prior prior.safetensors

Reads what ``~/journal`` of the impedance node left in an MCAP file (written by the recorder or by
``ros2 bag record -s mcap``), builds the same controller and gives it the same inputs in the same
order. Exit code 0: every torque and mode is identical; 1: they depart, with the first place named;
2: the recording cannot be replayed, with the reason.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from niaf_field import FieldError, Prior, load_prior
from niaf_impedance.admission import Reason, Verdict
from niaf_impedance.arm_model import ArmModel, ArmModelError
from niaf_impedance.controller import ImpedanceController, ResetRefusedError
from niaf_impedance.faults import Fault, Mode
from niaf_impedance.journal import (
    Block,
    Event,
    EventKind,
    Setup,
    restore_state,
    setup_of,
    software,
    tuning_from_json,
)
from niaf_impedance.planning import Snapshot
from niaf_impedance.references import reference_from_message
from niaf_impedance.robot_config import (
    RobotConfig,
    RobotConfigError,
    default_robot_config_path,
    load_robot_config,
)
from niaf_impedance.settings import ControllerConfig

FloatArray = np.ndarray

JOURNAL_TYPE = "niaf_msgs/msg/ControlJournal"


class ReplayError(RuntimeError):
    """The recording cannot be replayed; one line that says why and what would help."""


@dataclass(frozen=True)
class Departure:
    """Where the computed torque first differs. ``ulp``: float64 steps between the two."""

    tick: int
    time_s: float
    joint: str
    recorded: float
    computed: float
    ulp: int
    text: str = ""

    def __str__(self) -> str:
        where = f"tick {self.tick} (t = {self.time_s:.6f} s)"
        if self.text:
            return f"{where}: {self.text}"
        return (
            f"{where}, {self.joint}: recorded {self.recorded!r}, computed {self.computed!r} "
            f"({self.ulp} ULP)"
        )


@dataclass
class Outcome:
    """What came of one session (one run of a controller)."""

    setup: Setup
    first_tick: int
    skipped_ticks: int = 0
    ticks: int = 0
    departing_ticks: int = 0
    largest_nm: float = 0.0
    departure: Departure | None = None
    events: Counter[str] = field(default_factory=Counter)
    judged: Counter[str] = field(default_factory=Counter)

    @property
    def identical(self) -> bool:
        return self.departure is None


def ulp_distance(a: float, b: float) -> int:
    """Number of float64 steps between two numbers."""

    def rank(x: float) -> int:
        bits = int(np.float64(x).view(np.int64))
        return bits if bits >= 0 else -(bits & 0x7FFF_FFFF_FFFF_FFFF)

    return abs(rank(a) - rank(b))


# -- sessions --------------------------------------------------------------------------------------
def sessions(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    """Split at every start of a controller (block numbers begin again)."""
    session: list[Block] = []
    for block in blocks:
        if session and block.number <= session[-1].number:
            yield session
            session = []
        session.append(block)
    if session:
        yield session


def check_complete(blocks: Sequence[Block]) -> None:
    """ReplayError when blocks are missing within a session."""
    for before, after in zip(blocks, blocks[1:], strict=False):
        if after.number == before.number + 1:
            continue
        first, last = before.number + 1, after.number - 1
        lost = f"block {first} is" if first == last else f"blocks {first} to {last} are"
        raise ReplayError(
            f"{lost} missing (ticks {before.first_tick + before.count} to {after.first_tick - 1}): "
            "the recorder lost them; replay what comes after with --from-block "
            f"{after.number}"
        )


def first_start(blocks: Sequence[Block]) -> int:
    """Index of the block at which a replay can begin; ReplayError when there is none.

    That is a BEGIN or checkpoint after which no judgement comes back that began before it.
    """
    starts = [i for i, b in enumerate(blocks) if b.events and b.events[0].kind == EventKind.BEGIN]
    for start in starts:
        known: set[int] = set()
        good = True
        for event in (e for block in blocks[start:] for e in block.events):
            if event.kind == EventKind.PLAN:
                known.add(int(event.values[2]))
                good &= int(event.values[3]) in known
            elif event.kind == EventKind.COMMIT and _accepted(event):
                good &= int(event.values[0]) in known
        if good:
            return start
    raise ReplayError(
        f"no place to begin: the recording starts with block {blocks[0].number}, after the "
        "controller did, and holds no checkpoint (one is made every few seconds while no "
        "reference runs); start the recorder first"
    )


def _accepted(event: Event) -> bool:
    return int(event.values[1]) != Verdict.REFUSED


# -- the replay ------------------------------------------------------------------------------------
@dataclass
class _Judgement:
    event: Event
    snapshot: Snapshot


class Replay:
    """Gives the inputs of one session to a controller built from its setup."""

    def __init__(
        self, controller: ImpedanceController, setup: Setup, decode: Callable[[Event], Any]
    ) -> None:
        """``decode``: the message of a PLAN event."""
        self.controller, self.setup, self._decode = controller, setup, decode
        self._judgements: dict[int, _Judgement] = {}

    def run(self, blocks: Sequence[Block]) -> Outcome:
        """Compare every tick; ``blocks[0]`` begins with BEGIN."""
        outcome = Outcome(self.setup, blocks[0].first_tick)
        for index, block in enumerate(blocks):
            events = list(block.events)
            if index == 0:
                begin = events.pop(0)
                outcome.events[begin.kind.name] += 1
                if begin.values:
                    restore_state(self.controller, np.array(begin.values))
            at = 0
            for row in range(block.count):
                done = block.first_tick + row
                while at < len(events) and events[at].tick <= done:
                    self._apply(events[at], outcome)
                    at += 1
                self._tick(block, row, outcome)
            for event in events[at:]:
                self._apply(event, outcome)
        return outcome

    def _tick(self, block: Block, row: int, outcome: Outcome) -> None:
        recorded = block.torque[row]
        tau = self.controller.tick(
            float(block.time_s[row]), block.position[row], block.velocity[row])
        outcome.ticks += 1
        same = np.array_equal(tau.view(np.int64), recorded.view(np.int64))
        mode = int(self.controller.mode)
        if same and mode == block.mode[row]:
            return
        outcome.departing_ticks += 1
        difference = float(np.max(np.abs(tau - recorded)))
        outcome.largest_nm = max(outcome.largest_nm, difference)
        if outcome.departure is not None:
            return
        number, time_s = block.first_tick + row, float(block.time_s[row])
        if same:
            text = f"recorded mode {Mode(block.mode[row]).name}, computed {Mode(mode).name}"
            outcome.departure = Departure(number, time_s, "", 0.0, 0.0, 0, text)
            return
        joint = int(np.flatnonzero(tau.view(np.int64) != recorded.view(np.int64))[0])
        a, b = float(recorded[joint]), float(tau[joint])
        name = self.controller.arm.joint_names[joint]
        outcome.departure = Departure(number, time_s, name, a, b, ulp_distance(a, b))

    def _depart(self, event: Event, outcome: Outcome, text: str) -> None:
        if outcome.departure is None:
            outcome.departure = Departure(
                event.tick, self.controller.last_tick_s, "", 0.0, 0.0, 0, text)

    def _apply(self, event: Event, outcome: Outcome) -> None:
        c, v, kind, n = self.controller, event.values, event.kind, self.controller.n
        if kind == EventKind.BEGIN:
            return  # a checkpoint on the way
        outcome.events[kind.name] += 1
        if kind == EventKind.ACTIVATE:
            q, dq, start = np.array(v[1 : 1 + n]), np.array(v[1 + n : 1 + 2 * n]), v[2 + 2 * n :]
            c.activate(v[0], q, dq, v[1 + 2 * n], np.array(start) if len(start) else None)
        elif kind == EventKind.DEACTIVATE:
            c.deactivate(v[0])
        elif kind == EventKind.BRAKE:
            c.brake(v[0])
        elif kind == EventKind.ESTOP:
            c.estop()
        elif kind == EventKind.SWITCH_OFF:
            c.switch_off()
        elif kind == EventKind.RESET:
            try:
                c.reset(v[0] if len(v) else None)
            except ResetRefusedError as error:
                self._depart(event, outcome, f"the reset that took place is refused: {error}")
        elif kind == EventKind.STATE_AGE:
            c.note_state_age(v[0])
        elif kind == EventKind.FAULT:
            c.report_fault(Fault(int(v[0])), int(v[1]))
        elif kind == EventKind.TUNING:
            c.set_tuning(tuning_from_json(json.loads(event.text)))
        elif kind == EventKind.SETTINGS:
            c.set_config(ControllerConfig(**json.loads(event.text)))
        elif kind == EventKind.PLAN:
            self._judgements[int(v[2])] = _Judgement(event, c.snapshot())
        elif kind == EventKind.COMMIT:
            self._commit(event, outcome)

    def _commit(self, event: Event, outcome: Outcome) -> None:
        """Plan on the snapshot of the judgement and commit. What was refused changed nothing."""
        number, recorded = int(event.values[0]), Verdict(int(event.values[1]))
        outcome.judged[recorded.name.lower()] += 1
        if recorded == Verdict.REFUSED:
            return
        judgement = self._judgements[number]
        t_s, lead_s, _, built_on, sequence = judgement.event.values
        built = self._judgements[int(built_on)].snapshot
        c = self.controller
        # older ones are done with: the judging thread works in order
        self._judgements = {j: kept for j, kept in self._judgements.items() if j >= built_on}
        try:
            reference = reference_from_message(
                self._decode(judgement.event), built, c.arm, c.prior, self.setup.epoch_sec,
                int(sequence),
            )
        except (FieldError, ValueError) as error:
            self._depart(event, outcome, f"judgement {number} cannot be decoded: {error}")
            return
        verdict = c.commit(c.plan(judgement.snapshot, t_s, reference, lead_s))
        if verdict.verdict != recorded:
            self._depart(
                event, outcome,
                f"judgement {number} was {recorded.name}, here it is {verdict.verdict.name} "
                f"({Reason(verdict.reason).name}: {verdict.text})",
            )


def replay_session(
    blocks: Sequence[Block],
    build: Callable[[Setup], ImpedanceController],
    decode: Callable[[Event], Any],
) -> Outcome:
    """Replay one session from its first possible start; ReplayError when there is none."""
    check_complete(blocks)
    start = first_start(blocks)
    try:
        setup = setup_of(blocks[start].events[0])
        controller = build(setup)
        controller.set_tuning(setup.tuning)
        outcome = Replay(controller, setup, decode).run(blocks[start:])
    except ValueError as error:
        raise ReplayError(str(error)) from error
    outcome.skipped_ticks = blocks[start].first_tick - blocks[0].first_tick
    return outcome


# -- building the controller -----------------------------------------------------------------------
def find_urdf(setup: Setup) -> Path:
    """The URDF of the recording on this machine: same content, wherever it lies."""
    recorded = Path(setup.urdf)
    nearby = [recorded, default_robot_config_path().parent.parent / "urdf" / recorded.name]
    try:
        shipped = yaml.safe_load(setup.robot_yaml).get("urdf", "")
        with tempfile.TemporaryDirectory() as folder:
            nearby.append(_load(setup.robot_yaml, Path(folder), str(shipped)).urdf)
    except RobotConfigError:
        pass  # a path of the other machine
    found = [path for path in nearby if path.is_file()]
    for path in found:
        if hashlib.sha256(path.read_bytes()).hexdigest() == setup.urdf_sha256:
            return path
    if found:
        raise ReplayError(
            f"{found[0]} is not the URDF that was used (sha256 {setup.urdf_sha256[:12]}...); "
            "bring back that version, or give --robot-config"
        )
    raise ReplayError(
        f"the URDF {recorded} is not on this machine; copy it there or give --robot-config"
    )


def _load(robot_yaml: str, folder: Path, urdf: str) -> RobotConfig:
    document = yaml.safe_load(robot_yaml)
    document["urdf"] = urdf
    file = folder / "robot.yaml"
    file.write_text(yaml.safe_dump(document))
    return load_robot_config(file)


def build_controller(
    setup: Setup, prior_file: str = "", robot_config: str = ""
) -> ImpedanceController:
    """The controller of the recording; ReplayError when arm or prior are not the recorded ones."""
    try:
        if robot_config:
            robot = load_robot_config(robot_config)
            digest = hashlib.sha256(robot.urdf.read_bytes()).hexdigest()
            if robot.source.read_text() != setup.robot_yaml or digest != setup.urdf_sha256:
                print(f"note: {robot_config} or its URDF differs from the recorded "
                      f"{setup.robot_file}", file=sys.stderr)
        else:
            urdf = find_urdf(setup)
            with tempfile.TemporaryDirectory() as folder:
                robot = _load(setup.robot_yaml, Path(folder), str(urdf))
        arm = ArmModel(robot)
    except (RobotConfigError, ArmModelError, OSError) as error:
        raise ReplayError(f"the recorded arm cannot be built: {error}") from error
    return ImpedanceController(setup.config, arm, _prior(setup, prior_file))


def _prior(setup: Setup, prior_file: str) -> Prior | None:
    if not setup.prior_id:
        return None
    path = Path(prior_file or setup.prior_file).expanduser()
    if path.is_dir():
        path = path / "prior.safetensors"
    if not path.is_file():
        raise ReplayError(
            f"prior {str(path)!r} does not exist; give --prior with the file of prior "
            f"{setup.prior_id[:12]}..."
        )
    try:
        prior = load_prior(path)
    except FieldError as error:
        raise ReplayError(str(error)) from error
    if prior.prior_id != setup.prior_id:
        raise ReplayError(
            f"{path} is prior {prior.prior_id[:12]}..., the recording was made with "
            f"{setup.prior_id[:12]}...; give that one with --prior"
        )
    return prior


# -- reading a recording ---------------------------------------------------------------------------
def recording_files(path: Path) -> list[Path]:
    """The MCAP files of a path: itself, or those of a bag's folder in order."""
    if path.is_dir():
        files = sorted(path.glob("*.mcap"), key=_bag_order)
        if not files:
            raise ReplayError(f"folder {path} holds no .mcap file; record with -s mcap")
        return files
    if not path.is_file():
        raise ReplayError(f"{path} does not exist")
    return [path]


def _bag_order(path: Path) -> tuple[int, str]:
    tail = path.stem.rpartition("_")[2]
    return (int(tail) if tail.isdigit() else 0), path.name


def read_messages(path: Path, type_names: set[str]) -> Iterator[tuple[str, str, int, Any]]:
    """(topic, type name, log time ns, decoded message) of some types; ReplayError if unreadable."""
    from mcap.exceptions import McapError
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory

    for file in recording_files(path):
        factory = DecoderFactory()
        decoders: dict[int, Callable[[bytes], Any]] = {}
        try:
            with file.open("rb") as stream:
                for schema, channel, message in make_reader(stream).iter_messages():
                    if schema is None or schema.name not in type_names:
                        continue
                    if channel.id not in decoders:
                        decoder = factory.decoder_for(channel.message_encoding, schema)
                        if decoder is None:
                            raise ReplayError(f"{file}: {channel.topic} is not CDR with a ros2msg "
                                              "schema")
                        decoders[channel.id] = decoder
                    yield (channel.topic, schema.name, message.log_time,
                           decoders[channel.id](message.data))
        except (McapError, EOFError, ValueError) as error:
            raise ReplayError(
                f"{file} is not a complete MCAP file ({error or type(error).__name__}); was its "
                "recorder killed? try `mcap recover`"
            ) from error


def block_from_message(message: Any) -> Block:
    """The block of a decoded ControlJournal; ReplayError when its arrays do not fit together."""
    count, n = len(message.time_s), len(message.name)
    block = Block(n, 0)
    block.number, block.first_tick, block.count = message.block, message.first_tick, count
    block.time_s = np.array(message.time_s, dtype=np.float64)
    try:
        block.position, block.velocity, block.torque = (
            np.array(values, dtype=np.float64).reshape(count, n)
            for values in (message.position, message.velocity, message.torque)
        )
        block.mode = np.frombuffer(bytes(message.mode), dtype=np.uint8).reshape(count)
        block.events = [
            Event(e.tick, EventKind(e.kind), tuple(e.values), e.text, bytes(e.data))
            for e in message.events
        ]
    except ValueError as error:
        raise ReplayError(f"block {message.block} is damaged or of another version: {error}"
                          ) from error
    return block


def decode_event(event: Event) -> Any:
    """The ROS message of a PLAN event that was read from a recording."""
    import importlib

    from rclpy.serialization import deserialize_message

    package, _, name = event.text.partition("/msg/")
    try:
        kind = getattr(importlib.import_module(f"{package}.msg"), name)
        return deserialize_message(event.message, kind)
    except (ImportError, AttributeError, ValueError) as error:
        raise ReplayError(
            f"a message of type {event.text!r} cannot be decoded ({error}); source the workspace"
        ) from error


def journals(path: Path, topic: str = "") -> dict[str, list[Block]]:
    """Blocks of every journal topic in the recording."""
    found: dict[str, list[Block]] = {}
    for name, _, _, message in read_messages(path, {JOURNAL_TYPE}):
        if topic in ("", name):
            found.setdefault(name, []).append(block_from_message(message))
    if not found:
        wanted = f"nothing on {topic}" if topic else "no ControlJournal"
        raise ReplayError(
            f"{path} holds {wanted}; start the impedance node with journal:=true and record its "
            "~/journal topic"
        )
    return found


# -- command line ----------------------------------------------------------------------------------
def _report(name: str, outcome: Outcome) -> str:
    setup = outcome.setup
    lines = [f"{name}: {setup.robot}, prior {setup.prior_id[:12] or 'none'}, "
             f"{outcome.ticks} ticks from tick {outcome.first_tick}"]
    if outcome.skipped_ticks:
        lines.append(f"  the first {outcome.skipped_ticks} recorded ticks lie before the first "
                     "checkpoint and were left out")
    events = ", ".join(f"{count} {kind.lower()}" for kind, count in outcome.events.items())
    lines.append(f"  events: {events}")
    if outcome.judged:
        judged = ", ".join(f"{count} {verdict}" for verdict, count in outcome.judged.items())
        lines.append(f"  references: {judged}")
    if outcome.departure is None:
        lines.append(f"  identical: {outcome.ticks} of {outcome.ticks} ticks, bit for bit")
        return "\n".join(lines)
    lines.append(f"  DEPARTS at {outcome.departure}")
    lines.append(f"  {outcome.departing_ticks} of {outcome.ticks} ticks differ, by at most "
                 f"{outcome.largest_nm:.3g} Nm")
    here = software()
    changed = [f"{name} {was} -> {here.get(name, 'absent')}"
               for name, was in setup.software.items() if here.get(name) != was]
    if changed:
        lines.append(f"  hint: recorded with other software or hardware: {', '.join(changed)}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 identical, 1 departs, 2 unusable."""
    parser = argparse.ArgumentParser(
        prog="python -m niaf_impedance.replay",
        description="Compute the torque of a recording again and compare it bit for bit.",
    )
    parser.add_argument("recording", type=Path, help="MCAP file, or folder of a bag")
    parser.add_argument("--prior", default="", help="prior.safetensors or checkpoint folder; by "
                        "default where the recording says it was")
    parser.add_argument("--robot-config", default="", help="robot description to use instead of "
                        "the recorded one")
    parser.add_argument("--topic", default="", help="journal topic; by default all of them")
    parser.add_argument("--from-block", type=int, default=0,
                        help="begin at the first checkpoint at or after this block")
    options = parser.parse_args(arguments)
    same = True
    try:
        for topic, blocks in journals(options.recording, options.topic).items():
            for number, session in enumerate(sessions(blocks)):
                session = [block for block in session if block.number >= options.from_block]
                if not session:
                    continue
                outcome = replay_session(
                    session,
                    lambda setup: build_controller(setup, options.prior, options.robot_config),
                    decode_event,
                )
                same &= outcome.identical
                print(_report(f"{topic} session {number + 1}", outcome), flush=True)
    except ReplayError as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
