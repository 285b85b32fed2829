"""Lifecycle node around the impedance controller: wiring only.

The arm is either behind topics (``topic_arm``: the tick runs in the callback of ``joint_states``;
``clocked_arm``: in the compiled loop) or behind a bus of motor drives (``bus_wiring``: in a thread
of its own). What touches the controller goes through the methods of these. New references are
judged in one more thread (``admission_worker``) on a snapshot.
"""

from __future__ import annotations

import array
import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from rclpy._rclpy_pybind11 import RCLError
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.timer import Timer
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from niaf_field import FieldError, Prior, Reference, load_prior
from niaf_field.codec import FieldLimits, diagnose_field, field_from_message, from_message
from niaf_impedance.admission import AdmissionVerdict, Reason, Verdict
from niaf_impedance.admission_worker import AdmissionWorker, Job, Judged, Rejection
from niaf_impedance.arm_model import ArmModel, ArmModelError
from niaf_impedance.bus_wiring import BusArm
from niaf_impedance.clocked_arm import ClockedTopicArm
from niaf_impedance.clocks import SkewEstimate
from niaf_impedance.controller import (
    ControllerConfigError,
    ImpedanceController,
    ResetRefusedError,
)
from niaf_impedance.drives.bus_loop import BusLoopError
from niaf_impedance.drives.description import drives_of_arm
from niaf_impedance.drives.interface import DriveError, DriveState
from niaf_impedance.faults import Fault, Mode, describe
from niaf_impedance.journal import JournaledController
from niaf_impedance.journal_publisher import JournalPublisher
from niaf_impedance.lateness import LoopLimitsError, Rung
from niaf_impedance.live_tuning import LiveTuning, declare
from niaf_impedance.loop import LoopEndedError
from niaf_impedance.parameters import loop_limits, node_schema
from niaf_impedance.planning import Snapshot
from niaf_impedance.realtime import (
    CollectorWatch,
    avoid_shared_memory_stall,
    fine_timer_slack,
    lock_memory,
    quiet_interpreter,
    request_fifo,
)
from niaf_impedance.reanchoring import NoPoseError, PoseHistory, measured_anchor
from niaf_impedance.references import reference_from_trajectory
from niaf_impedance.robot_config import (
    RobotConfigError,
    default_robot_config_path,
    load_robot_config,
)
from niaf_impedance.settings import ControllerConfig
from niaf_impedance.timing import Percentiles
from niaf_impedance.tool_state import ToolState
from niaf_impedance.topic_arm import TopicArm
from niaf_impedance.trajectory import TrajectoryError
from niaf_impedance.tuning import Tuning
from niaf_impedance.warm_up import warm_up
from niaf_msgs.msg import ActionField, AdmissionReport, ImpedanceState

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE

Arm = TopicArm | ClockedTopicArm | BusArm

#: the timing diagnostics warn beyond this lateness, in periods, and this part of what brakes
WARN_PERIODS, WARN_SHARE = 5.0, 0.5
#: how far the thread of the compiled loop stands above the others of this process
LOOP_PRIORITY = 10
SETTLE_PERIOD_S = 0.005
#: what a ramp down may take beyond its settings
SHUTDOWN_MARGIN_S = 0.3
END_S = 8
#: least lead of a hand-over that moves the tool
TOOL_LEAD_S = 0.03
#: how often a reference is judged again when the loop went on past its hand-over meanwhile
JUDGEMENTS = 3
#: the loop does not run; why an arm refuses what it was asked for
ENDED = (BusLoopError, LoopEndedError)
REFUSALS = (ResetRefusedError, ValueError, DriveError, *ENDED)
#: how often the journal is sent on though its block is not full, and its least time to checkpoints
JOURNAL_FLUSH_S, JOURNAL_CHECKPOINT_S = 1.0, 5.0

_NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
_RELIABLE_NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)


class StartError(RuntimeError):
    """The node cannot be set up; one line that names what is wrong."""


def prior_file(text: str) -> Path:
    """The prior's file for a file or checkpoint folder."""
    if not text:
        raise StartError(
            "parameter 'prior' is empty; set it to prior.safetensors or the checkpoint folder"
        )
    path = Path(text).expanduser()
    if path.is_dir():
        inside = path / "prior.safetensors"
        if not inside.is_file():
            raise StartError(f"prior: folder {path} holds no prior.safetensors; not a checkpoint?")
        return inside
    if not path.is_file():
        raise StartError(f"prior: {path} does not exist")
    return path


class ImpedanceNode(LifecycleNode):
    """Topics, services, parameters and timers of the controller."""

    def __init__(self, scheduling: str = "", memory: str = "") -> None:
        super().__init__("impedance")
        self._scheduling, self._memory = scheduling, memory
        self._collector, self._collector_passes = CollectorWatch(), 0
        declare(self, node_schema())
        chosen = str(self.get_parameter("robot_config").value)
        robot = load_robot_config(chosen or default_robot_config_path())
        self.arm = ArmModel(robot)
        self._base_frame = str(self.get_parameter("base_frame").value) or robot.base_frame
        self.controller: ImpedanceController | None = None
        self._tuning = LiveTuning(self, robot, self._check_tuning, self._apply_tuning)
        self.add_post_set_parameters_callback(self._after_set)
        self._worker: AdmissionWorker | None = None
        self._link: Arm | None = None
        self._journal: JournalPublisher | None = None
        self._checkpoint_due_s = 0.0
        self._trajectories = 0
        self._field_clock = SkewEstimate()
        self._prior: Prior | None = None
        self._epoch_sec = int(time.time())
        self._loop_timers: list[Timer] = []
        self._servers: list[Any] = []
        self._readers: list[Any] = []
        self._writers: list[Any] = []
        self._lifecycle_active = False
        self._autostart_timer: Timer | None = None
        self._autostart_waiting = False
        self._last_fault, self._last_mode = Fault.NONE, Mode.OFF
        self._last_lateness = Rung.ON_TIME
        if self.get_parameter("autostart").value:
            self._autostart_timer = self.create_timer(0.1, self._autostart, clock=_steady())

    # -- parameters ------------------------------------------------------------------------------
    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _apply_tuning(self, tuning: Tuning, config: ControllerConfig) -> None:
        controller, link = self.controller, self._link
        assert controller is not None
        assert link is not None

        def apply() -> None:
            controller.set_config(config)
            controller.set_tuning(tuning)

        link.call(apply)
        link.tuned()

    def _set_state_rate(self, link: Arm) -> None:
        self._state_every = max(1, round(link.rate_hz / float(self._value("state_rate_hz"))))

    def _after_set(self, changed: list[Parameter]) -> None:
        if self._link is not None:
            self._set_state_rate(self._link)

    def _check_tuning(self, tuning: Tuning, config: ControllerConfig) -> str:
        return "not configured" if self._link is None else self._link.check_tuning(tuning, config)

    # -- lifecycle -------------------------------------------------------------------------------
    def _autostart(self) -> None:
        if self._autostart_timer is not None and self.controller is None:
            self.trigger_configure()
            if self.controller is None:
                self._end_autostart()
                self.get_logger().error("autostart gave up: configuration failed (see above)")
            return
        problem = self._activation_problem()
        if problem:
            if not self._autostart_waiting:
                self._autostart_waiting = True
                self.get_logger().info(f"waiting to activate: {problem}")
            return
        self._end_autostart()
        self.trigger_activate()

    def _end_autostart(self) -> None:
        if self._autostart_timer is not None:
            self.destroy_timer(self._autostart_timer)
            self._autostart_timer = None

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            file = prior_file(str(self._value("prior")))
            self._prior = load_prior(file)
            _, config = self._tuning.values()
            controller = self._make_controller(config, file)
            warm_up(controller)
            # Its last collection takes about 0.1 s: here, and not where states already stream in.
            quiet_interpreter()
            self._collector.start()
            self._link = self._make_link(controller)
            self._tuning.start(controller)
            self._link.tuned()
        except (
            StartError, FieldError, ControllerConfigError, RobotConfigError, DriveError,
            BusLoopError, LoopLimitsError, OSError,
        ) as error:
            self._release()
            self.get_logger().error(f"cannot configure: {error}")
            return FAILURE
        self._limits = FieldLimits(
            max_age_s=float(self._value("field_max_age_s")),
            max_future_s=float(self._value("field_max_future_s")),
        )
        self._worker = AdmissionWorker(controller.plan, self._calm_worker)
        self._create_entities(controller)
        self.controller = controller
        self.get_logger().info(
            f"{self.arm.config.robot}: {self.arm.n} joints, prior {self._prior.prior_id[:12]} "
            f"(L={self._prior.L}, H={self._prior.H}), feed-forward {config.feedforward}; "
            f"{self._scheduling}"
        )
        return SUCCESS

    def _make_controller(self, config: ControllerConfig, file: Path) -> ImpedanceController:
        if not self._value("journal"):
            return ImpedanceController(config, self.arm, self._prior)
        if self._value("loop") == "clock" and self._value("arm_interface") == "effort":
            raise StartError(
                "journal needs loop: event; the compiled loop takes requests and references "
                "between two of its ticks, and a journal would not know which. Set one of the two"
            )
        return JournaledController(
            config, self.arm, self._prior, epoch_sec=self._epoch_sec,
            prior_file=str(file.resolve()),
        )

    def _make_link(self, controller: ImpedanceController) -> Arm:
        self._tool = ToolState(controller)
        self._message, self._views = _state_message(controller, self._tool, self._base_frame)
        self._state_publisher = self.create_publisher(ImpedanceState, "~/state", 10)
        self._pose_publisher = self.create_publisher(PoseStamped, "~/tool_pose", 10)
        self._pose_message = PoseStamped()
        self._pose_message.header.frame_id = self._base_frame
        self._writers += [self._state_publisher, self._pose_publisher]
        limits = loop_limits({spec.name: self._value(spec.name) for spec in node_schema()})
        priority = int(self._value("realtime_priority"))
        if self._value("arm_interface") == "effort":
            topics: dict[str, Any] = {
                "limits": limits, "epoch_sec": self._epoch_sec,
                "rate_hz": float(self._value("control_rate_hz")),
                "gripper_rate_hz": float(self._value("gripper_rate_hz")),
                "max_future_s": float(self._value("field_max_future_s")),
            }
            link: Arm
            if self._value("loop") == "event":
                link = TopicArm(self, controller, on_tick=self._on_tick, **topics)
            else:
                link = ClockedTopicArm(
                    self, controller, on_tick=self._on_sent,
                    priority=min(priority + LOOP_PRIORITY, 99) if priority > 0 else 0, **topics)
            link.history = self._history(link.rate_hz)
        else:
            self._joint_publisher = self.create_publisher(JointState, "joint_states", _NEWEST)
            self._writers.append(self._joint_publisher)
            description = drives_of_arm(
                str(self._value("arm_interface")), str(self._value("drive_config")),
                self.arm.joint_names,
            )
            link = BusArm(
                description, controller,
                epoch_s=float(self._epoch_sec), on_state=self._on_bus_state,
                scheduling=lambda: request_fifo(priority), limits=limits,
            )
            link.history = self._history(link.rate_hz)
            link.open()
        self._set_state_rate(link)
        self._pose_every = max(1, round(link.rate_hz / float(self._value("tool_pose_rate_hz"))))
        return link

    def _history(self, rate_hz: float) -> PoseHistory | None:
        """Measured poses as far back as an observation may lie, if fields are anchored at them."""
        if self._value("anchor") == "field":
            return None
        span_s = float(self._value("field_max_age_s")) + float(self._value("field_max_future_s"))
        ahead_s = float(self._value("state_timeout_s"))
        return PoseHistory(self.arm.n + 1, span_s, rate_hz, ahead_s)

    def _create_entities(self, controller: ImpedanceController) -> None:
        self._admission_publisher = self.create_publisher(AdmissionReport, "~/admission", 10)
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._writers += [self._admission_publisher, self._diagnostics_publisher]
        self._servers = [
            self.create_service(Trigger, "~/estop", self._on_estop),
            self.create_service(Trigger, "~/reset", self._on_reset),
            self.create_service(Trigger, "~/brake", self._on_brake),
        ]
        self._readers = [
            self.create_subscription(
                ActionField, "action_field", self._on_field, _RELIABLE_NEWEST),
            self.create_subscription(
                JointTrajectory, "~/joint_trajectory", self._on_trajectory, _RELIABLE_NEWEST),
        ]
        self._loop_timers = [
            self.create_timer(SETTLE_PERIOD_S, self._beat, clock=_steady()),
            self.create_timer(1.0, self._publish_diagnostics, clock=_steady()),
        ]
        if isinstance(controller, JournaledController):
            self._journal = JournalPublisher(
                self, "~/journal", controller.journal, self.arm.joint_names,
                self._base_frame, self._calm_worker,
            )
            self._loop_timers.append(
                self.create_timer(JOURNAL_FLUSH_S, self._flush_journal, clock=_steady()))

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        assert self.controller is not None
        assert self._link is not None
        problem = self._activation_problem()
        if not self._link.off:
            problem = "it is still braking or ramping down; wait until it is off"
        if problem:
            self.get_logger().error(f"cannot activate: {problem}")
            return FAILURE
        try:
            self._link.activate()
        except REFUSALS as error:
            self.get_logger().error(f"cannot activate: {error}")
            return FAILURE
        self._last_fault = Fault.NONE
        self._last_mode = self.controller.mode
        self._lifecycle_active = True
        self.get_logger().info("active: holding the measured pose")
        return super().on_activate(state)

    def _activation_problem(self) -> str:
        """Why the arm cannot be taken over now; empty when it can."""
        return "not configured" if self._link is None else self._link.activation_problem()

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        # The ramp to gravity only goes on in the tick until the mode is OFF.
        assert self._link is not None
        self._link.deactivate()
        self._lifecycle_active = False
        self.get_logger().info("deactivating: braking, then gravity only, then silent")
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        if not self.quiet:
            self.get_logger().error("cannot clean up: still braking or ramping down; wait a moment")
            return FAILURE
        self._release()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.begin_shutdown()
        end_s = time.monotonic() + self.shutdown_s
        # ticks in this very thread cannot go on meanwhile: then the drives' watchdogs take over
        while (
            not self.quiet and not isinstance(self._link, TopicArm) and time.monotonic() < end_s
        ):
            time.sleep(SETTLE_PERIOD_S)
        self._release()
        return SUCCESS

    def _release(self) -> None:
        self._collector.stop()
        self.controller = self._tuning.controller = None
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        self._end_journal()
        self._lifecycle_active = False
        for owned, destroy in (
            (self._loop_timers, self.destroy_timer), (self._readers, self.destroy_subscription),
            (self._servers, self.destroy_service), (self._writers, self.destroy_publisher),
        ):
            for entity in owned:
                destroy(entity)
            owned.clear()

    # -- journal ---------------------------------------------------------------------------------
    def _flush_journal(self) -> None:
        """Blocks close when they are full; here those of a loop that slows down or stops do."""
        controller, now_s = self.controller, time.monotonic()
        if not isinstance(controller, JournaledController):
            return
        link = self._link
        assert link is not None
        if link.failure:
            return
        if now_s >= self._checkpoint_due_s and link.call(controller.checkpoint):
            self._checkpoint_due_s = now_s + JOURNAL_CHECKPOINT_S
        link.call(controller.journal.hand_over)

    def _end_journal(self) -> None:
        if self._journal is not None:
            self._journal.stop()
            self._journal = None

    def destroy_node(self) -> None:
        """As every node's; motors off and what the journal still holds sent first."""
        self._collector.stop()
        if self._link is not None:
            self._link.close()
        self._end_journal()
        super().destroy_node()

    # -- after every tick ------------------------------------------------------------------------
    def _on_tick(self, sec: int, nanosec: int) -> None:
        self._on_sent(sec, nanosec)
        self._settle()

    def _on_sent(self, sec: int, nanosec: int) -> None:
        """After every command, in whatever thread sends it."""
        link = self._link
        if link is None:  # a command before ``_make_link`` has returned
            return
        if link.timing.ticks % self._state_every == 0:
            self._publish_state(sec, nanosec)
        if link.timing.ticks % self._pose_every == 0:
            self._publish_tool_pose()

    def _beat(self) -> None:
        """What must go on when no ticks come, or when they come in another thread."""
        self._report_changes()
        controller = self.controller
        if (
            not self._lifecycle_active
            and controller is not None
            and controller.mode in (Mode.DAMP, Mode.ESTOP)
            and self._link is not None
            and self._link.unheard
            and not self._link.failure
        ):  # nothing is commanded, and no tick will see the arm come to rest
            self._link.call(controller.switch_off)
        self._settle()

    def _on_bus_state(self, wall_s: float, state: DriveState) -> None:
        """In the bus loop's thread, after each of its steps."""
        link = self._link
        if not isinstance(link, BusArm):  # states before ``open`` has returned
            return
        sec, nanosec = divmod(int(wall_s * 1e9), 1_000_000_000)
        message = JointState(name=list(link.joints))
        message.header.stamp.sec, message.header.stamp.nanosec = sec, nanosec
        message.position, message.velocity = state.q.tolist(), state.dq.tolist()
        message.effort = state.tau.tolist()
        self._joint_publisher.publish(message)
        if not link.off:
            self._on_sent(sec, nanosec)

    def _report_changes(self) -> None:
        controller = self.controller
        if controller is None:
            return
        fault, mode = controller.fault, controller.mode
        if fault != self._last_fault and fault != Fault.NONE:
            where = f" ({controller.fault_joint})" if controller.fault_joint else ""
            self.get_logger().error(f"fault {int(fault)}{where}: {describe(fault)}")
        if mode != self._last_mode:
            self.get_logger().info(f"{self._last_mode.name} -> {mode.name}")
        self._last_fault, self._last_mode = fault, mode
        outcome = self._last_lateness if self._link is None else self._link.lateness.outcome
        if outcome > max(self._last_lateness, Rung.LATE):
            assert self._link is not None
            self.get_logger().warning(self._link.lateness.text)
        self._last_lateness = outcome

    # -- new references --------------------------------------------------------------------------
    def _calm_worker(self) -> None:
        """The judging thread stays below the tick, and above everything that is not real time."""
        request_fifo(int(self._value("realtime_priority")) // 2)

    def _submit(
        self, message: Any, sequence: int, now_s: float,
        build: Callable[[Snapshot], Reference | Rejection],
    ) -> None:
        worker = self._worker
        assert worker is not None
        assert self._link is not None
        assert self.controller is not None
        if self._link.failure:
            return
        held = self._link.lateness.holds_back
        lead_s = float(self._value("handover_lead_s")) + 2.0 * self._link.timing.period_s
        if self.controller.moves_tool:  # inverse kinematics over the whole window takes longer
            lead_s = max(lead_s, TOOL_LEAD_S)
        snapshot = self._snapshot(message, sequence, now_s, lead_s)

        def judged() -> Reference | Rejection:
            return Rejection(int(Reason.LOOP_LATE), held) if held else build(snapshot)

        worker.submit(Job(sequence, snapshot, now_s, lead_s, judged))

    def _snapshot(
        self, message: Any, sequence: int, now_s: float, lead_s: float,
        again: Snapshot | None = None,
    ) -> Snapshot:
        controller, link = self.controller, self._link
        assert controller is not None
        assert link is not None
        if isinstance(controller, JournaledController):
            return link.call(
                lambda: controller.snapshot_for(message, now_s, lead_s, sequence, again))
        return link.snapshot()

    def _on_field(self, message: ActionField) -> None:
        prior, limits, epoch_sec = self._prior, self._limits, self._epoch_sec
        if self.controller is None or prior is None:
            return
        now_s = time.time() - epoch_sec
        rejection = self._clock_rejection(message, now_s) or self._reanchor(message)

        def build(snapshot: Snapshot) -> Reference | Rejection:
            if rejection is not None:
                return rejection
            field = from_message(message, epoch_sec)
            finding = diagnose_field(field, prior, now_s, limits)
            if finding is not None:
                return Rejection(int(finding[0]), finding[1])
            return field_from_message(field, prior)

        self._submit(message, int(message.sequence), now_s, build)

    def _clock_rejection(self, message: ActionField, now_s: float) -> Rejection | None:
        limits, stamp_s = self._limits, self._seconds(message.header.stamp)
        if message.observation_age_s > 0.0 and (  # told when it was sent, and at all believable
            -limits.max_future_s <= now_s - stamp_s <= limits.max_age_s
        ):
            self._field_clock.add(now_s, stamp_s + message.observation_age_s)
        assert self._link is not None
        problem = self._link.clock_problem or self._field_clock.problem(
            float(self._value("clock_skew_max_s")))
        return Rejection(int(Reason.CLOCK_SKEW), problem) if problem else None

    def _reanchor(self, message: ActionField) -> Rejection | None:
        """Put the pose measured at the observation in the place of the policy's, if so asked."""
        link, prior = self._link, self._prior
        assert link is not None
        assert prior is not None
        if link.history is None:
            return None
        stamp_s = self._seconds(message.header.stamp)
        try:
            pose = link.pose_at(stamp_s)
            anchor = measured_anchor(prior, self.arm, pose[: self.arm.n], float(pose[-1]))
        except NoPoseError as error:
            return Rejection(int(Reason.NO_POSE), f"no pose at its observation time: {error}")
        message.anchor = array.array("d", anchor.tobytes())
        return None

    def _seconds(self, stamp: Time) -> float:
        """On the controller's clock."""
        return float(stamp.sec - self._epoch_sec) + 1e-9 * stamp.nanosec

    def _on_trajectory(self, message: JointTrajectory) -> None:
        controller, epoch_sec = self.controller, self._epoch_sec
        if controller is None:
            return
        if not message.points:
            assert self._link is not None
            try:
                self._link.brake()
            except ENDED as error:
                self.get_logger().error(str(error))
                return
            self.get_logger().info("empty trajectory: braking")
            return
        self._trajectories += 1
        sequence = self._trajectories

        def build(snapshot: Snapshot) -> Reference | Rejection:
            try:
                return reference_from_trajectory(message, snapshot, self.arm, epoch_sec, sequence)
            except TrajectoryError as error:
                return Rejection(int(Reason.BAD_TRAJECTORY), str(error))

        self._submit(message, sequence, time.time() - epoch_sec, build)

    def _settle(self) -> None:
        """Hand what was judged meanwhile to the tick, and report it."""
        worker, controller, link = self._worker, self.controller, self._link
        if worker is None or controller is None or link is None or link.failure:
            return
        for judged in worker.finished():
            job, outcome = judged.job, judged.outcome
            if isinstance(outcome, Rejection):
                controller.refused_count += 1
                self._report(judged, None)
                continue
            verdict = link.commit(outcome)
            if verdict.reason == Reason.OVERTAKEN and job.attempt < JUDGEMENTS:
                lead_s = 2.0 * job.lead_s
                snapshot = self._snapshot(None, job.sequence, job.now_s, lead_s, job.snapshot)
                worker.submit(replace(
                    job, snapshot=snapshot, lead_s=lead_s, attempt=job.attempt + 1))
                continue
            if verdict.reason == Reason.OVERTAKEN:
                controller.refused_count += 1
            self._report(judged, verdict)

    def _report(self, judged: Judged, verdict: AdmissionVerdict | None) -> None:
        job, report = judged.job, AdmissionReport()
        report.sequence = job.sequence
        if verdict is None:
            assert isinstance(judged.outcome, Rejection)
            report.verdict = AdmissionReport.REFUSED
            report.reason, report.reason_text = judged.outcome.reason, judged.outcome.text
        else:
            _fill_report(report, verdict, judged.reference_start_s)
        seconds, nanosec = divmod(time.time_ns(), 1_000_000_000)
        report.header.stamp.sec, report.header.stamp.nanosec = seconds, nanosec
        report.header.frame_id = self._base_frame
        if report.verdict != AdmissionReport.ACCEPTED:
            word = "refused" if report.verdict == AdmissionReport.REFUSED else "slowed"
            self.get_logger().warning(
                f"reference {report.sequence} {word}: {report.reason_text}",
                throttle_duration_sec=1.0,
            )
        self._admission_publisher.publish(report)

    # -- services --------------------------------------------------------------------------------
    def _on_estop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        controller, link = self.controller, self._link
        response.success = False
        response.message = "the controller is off: no torque is commanded"
        if controller is None or link is None or controller.mode == Mode.OFF:
            return response
        try:
            link.estop()
        except ENDED as error:  # the drives' own watchdogs damp
            response.message = str(error)
            return response
        response.success, response.message = True, "damping; ~/reset at standstill to go on"
        self._report_changes()
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        problem = self._activation_problem()
        if self._link is not None and not problem:
            try:
                self._link.reset()
            except REFUSALS as error:
                problem = str(error)
        response.success, response.message = not problem, problem or "holding the measured pose"
        if not problem:
            self._report_changes()
        return response

    def _on_brake(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        controller, link = self.controller, self._link
        if (
            controller is None or link is None
            or controller.mode in (Mode.OFF, Mode.DAMP, Mode.ESTOP)
        ):
            response.success, response.message = False, "no motion to brake"
        else:
            try:
                link.brake()
            except ENDED as error:
                response.success, response.message = False, str(error)
                return response
            response.success, response.message = True, "braking along the path, then holding"
        return response

    # -- published figures -----------------------------------------------------------------------
    def _publish_state(self, sec: int, nanosec: int) -> None:
        controller, message, link = self.controller, self._message, self._link
        if controller is None or link is None:
            return
        timing = link.timing
        link.look(self._read_state)
        message.header.stamp.sec, message.header.stamp.nanosec = sec, nanosec
        message.mode = int(controller.mode)
        fault = controller.fault
        message.fault = int(fault)
        message.fault_text = describe(fault)
        message.field_sequence = controller.sequence
        message.tau = controller.tau
        message.path_rate = controller.path_rate
        message.gripper_command_m = controller.gripper_m
        message.tick_period_s = controller.last_period_s
        message.tick_execution_s = timing.last_execution_s
        message.tick_lateness_s, message.state_age_s = timing.window_late_s, timing.window_age_s
        message.tick_count = timing.ticks
        message.missed_ticks = timing.missed
        message.blending = controller.blending
        figures = controller.statistics
        message.peak_torque_ratio = figures.peak_torque_ratio
        message.peak_torque_rate_ratio = figures.peak_torque_rate_ratio
        message.seam_position_peak_rad = figures.seam_position_peak_rad
        message.seam_velocity_peak_rad_s = figures.seam_velocity_peak_rad_s
        message.seam_acceleration_peak_rad_s2 = figures.seam_acceleration_peak_rad_s2
        timing.window_late_s = timing.window_age_s = 0.0
        self._state_publisher.publish(message)

    def _read_state(self) -> None:
        """What the last tick computed, into the message."""
        if self.controller is not None and self.controller.moves_tool:
            self._tool.measure()
            self._tool.note()
        for view, source in self._views:
            view[:] = source

    def _read_tool(self) -> None:
        self._tool.measure()
        assert self.controller is not None
        self._tool_at_s = self.controller.last_tick_s

    def _publish_tool_pose(self) -> None:
        """The tool's pose at the last tick, for whoever listens."""
        if not self.arm.config.tool_frame or not self._pose_publisher.get_subscription_count():
            return
        assert self._link is not None
        self._link.look(self._read_tool)
        # positions are carried forward to the tick where that is later than the state
        sec, nanosec = divmod(round(self._tool_at_s * 1e9), 1_000_000_000)
        sec += self._epoch_sec
        message, (x, y, z, qx, qy, qz, qw) = self._pose_message, self._tool.measured.tolist()
        message.header.stamp.sec, message.header.stamp.nanosec = sec, nanosec
        position, turn = message.pose.position, message.pose.orientation
        position.x, position.y, position.z = x, y, z
        turn.x, turn.y, turn.z, turn.w = qx, qy, qz, qw
        self._pose_publisher.publish(message)

    def _publish_diagnostics(self) -> None:
        controller, link = self.controller, self._link
        if controller is None or link is None:
            return
        mode, fault = controller.mode, controller.fault
        who = self.get_fully_qualified_name().strip("/")
        stop = DiagnosticStatus(name=f"{who}: stop ladder", hardware_id=self._hardware)
        stop.level = DiagnosticStatus.ERROR if fault != Fault.NONE else DiagnosticStatus.OK
        stop.message = describe(fault) or mode.name
        if fault == Fault.NONE and link.warning():
            stop.level, stop.message = DiagnosticStatus.WARN, link.warning()
        stop.values = _key_values({
            "mode": mode.name,
            "fault": int(fault),
            "fault joint": controller.fault_joint,
            "field sequence": controller.sequence,
            "fields accepted": controller.accepted_count,
            "fields refused": controller.refused_count,
        })
        loop = self._loop_status(link, mode, fault)
        drives = DiagnosticStatus(name=f"{who}: drives", hardware_id=self._hardware)
        drives.level = DiagnosticStatus.OK
        drives.message = link.warning() or str(self._value("arm_interface"))
        if link.warning():
            drives.level = DiagnosticStatus.WARN
        if fault in (Fault.DRIVE_FAULT, Fault.DRIVE_SILENT, Fault.BUS_OFF):
            drives.level = DiagnosticStatus.ERROR
        drives.values = _key_values(link.diagnostics())
        message = DiagnosticArray(status=[stop, loop, drives, self._clock_status()])
        seconds, nanosec = divmod(time.time_ns(), 1_000_000_000)
        message.header.stamp.sec, message.header.stamp.nanosec = seconds, nanosec
        self._diagnostics_publisher.publish(message)

    def _loop_status(self, link: Arm, mode: Mode, fault: Fault) -> DiagnosticStatus:
        """The timing contract: what was measured, and where it leaves what is asked of it."""
        timing, late, collector = link.timing, link.lateness, self._collector
        ticks, lateness = timing.window_ticks, timing.lateness.percentiles()
        command_age = timing.command_age.percentiles()
        who = self.get_fully_qualified_name().strip("/")
        status = DiagnosticStatus(name=f"{who}: loop", hardware_id=self._hardware)
        says = [f"{ticks} ticks in the last second"]
        if mode != Mode.OFF and ticks < 0.9 / timing.period_s:
            says.append(f"{1.0 / timing.period_s:.0f} expected")
        if late.outcome >= Rung.BRAKE:
            says.append(late.text)
        elif late.share > WARN_SHARE * float(self._value("late_brake_share")):
            says.append(f"{100.0 * late.share:.0f} % of the periods are late")
        elif lateness.max_s > WARN_PERIODS * timing.period_s:
            says.append(f"a tick came {lateness.max_s * 1e3:.1f} ms late since activation")
        if command_age.p99_s > 0.5 * late.damp_s:
            says.append(
                f"commands leave {command_age.p99_s * 1e3:.1f} ms (p99) after their state was "
                "measured, more than half of state_timeout_s")
        if collector.passes > self._collector_passes:
            says.append(f"the garbage collector stopped Python for {collector.last_s * 1e3:.0f} ms")
        status.message = "; ".join(says)
        status.level = DiagnosticStatus.WARN if len(says) > 1 else DiagnosticStatus.OK
        if fault == Fault.LOOP_LATE:
            status.level = DiagnosticStatus.ERROR
        status.values = _key_values({
            "rate_hz": ticks,
            "ticks": timing.ticks,
            "missed_ticks": timing.missed,
            **_percentiles("tick_lateness_us", lateness),
            **_percentiles("state_age_us", timing.age.percentiles()),
            **_percentiles("command_age_us", command_age),
            **_percentiles("execution_us", timing.execution.percentiles()),
            "late_ticks": late.late,
            "late_share": f"{late.share:.3f}",
            "late_worst_us": f"{late.worst_s * 1e6:.0f}",
            "late_led_to": late.outcome.name,
            "collector_passes": collector.passes,
            "collector_longest_us": f"{collector.longest_s * 1e6:.0f}",
            "collector_last_us": f"{collector.last_s * 1e6:.0f}",
            "scheduling": link.scheduling or self._scheduling,
            "memory": self._memory,
        })
        timing.window_ticks, self._collector_passes = 0, collector.passes
        return status

    def _clock_status(self) -> DiagnosticStatus:
        assert self._link is not None
        who = self.get_fully_qualified_name().strip("/")
        skew_s, most_s = self._field_clock.skew_s, float(self._value("clock_skew_max_s"))
        problem = self._link.clock_problem or self._field_clock.problem(most_s)
        status = DiagnosticStatus(name=f"{who}: clocks", hardware_id=self._hardware)
        status.level = DiagnosticStatus.WARN if problem else DiagnosticStatus.OK
        status.message = problem or "fields and states on one clock"
        status.values = _key_values({"field clock skew_ms": f"{1e3 * skew_s:.1f}"})
        return status

    @property
    def _hardware(self) -> str:
        namespace = self.get_namespace().strip("/")
        return f"{namespace}/{self.arm.config.robot}" if namespace else self.arm.config.robot

    # -- end -------------------------------------------------------------------------------------
    def begin_shutdown(self) -> None:
        """Start the ramp to gravity only (the caller keeps spinning until ``quiet``)."""
        self._end_autostart()
        if self._link is not None:
            self._link.deactivate()

    @property
    def quiet(self) -> bool:
        """No torque is commanded any more."""
        return self._link is None or self._link.off or bool(self._link.failure)

    @property
    def shutdown_s(self) -> float:
        """Longest time from ``begin_shutdown`` to ``quiet`` of an arm that comes to rest."""
        if self.controller is None:
            return 0.0
        config = self.controller.config
        return config.brake_max_s + config.deactivate_s + SHUTDOWN_MARGIN_S


def _steady() -> Clock:
    return Clock(clock_type=ClockType.STEADY_TIME)


def _key_values(values: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=str(value)) for key, value in values.items()]


def _percentiles(name: str, p: Percentiles) -> dict[str, str]:
    return {
        f"{name}.p50": f"{p.p50_s * 1e6:.0f}",
        f"{name}.p99": f"{p.p99_s * 1e6:.0f}",
        f"{name}.p999": f"{p.p999_s * 1e6:.0f}",
        f"{name}.max": f"{p.max_s * 1e6:.0f}",
    }


def _state_message(
    controller: ImpedanceController, tool: ToolState, base_frame: str
) -> tuple[ImpedanceState, list[tuple[np.ndarray, np.ndarray]]]:
    """A message whose arrays are filled through views: (message, [(view, source)])."""
    message = ImpedanceState(name=list(controller.arm.joint_names))
    message.header.frame_id = base_frame
    t = controller.telemetry
    views = []
    sources = [
        ("reference_position", t.q_ref), ("reference_velocity", t.dq_ref),
        ("reference_acceleration", t.ddq_ref), ("measured_position", t.q),
        ("measured_velocity", t.dq), ("torque_stiffness", t.tau_stiffness),
        ("torque_damping", t.tau_damping), ("torque_posture", t.tau_posture),
        ("torque_gravity", t.tau_gravity), ("torque_inertia", t.tau_inertia),
        ("torque_friction", t.tau_friction), ("torque_command", t.tau),
    ]
    if controller.moves_tool:
        sources += [
            ("tool_reference", tool.reference), ("tool_measured", tool.measured),
            ("tool_error", tool.error), ("tool_wrench", tool.wrench),
        ]
    for name, source in sources:
        values = array.array("d", bytes(8 * source.size))
        setattr(message, name, values)
        views.append((np.frombuffer(getattr(message, name), dtype=np.float64), source))
    return message, views


def _fill_report(
    report: AdmissionReport, verdict: AdmissionVerdict, reference_start_s: float
) -> None:
    report.verdict = int(verdict.verdict)
    report.reason, report.reason_text = int(verdict.reason), verdict.text
    report.joint = verdict.joint
    if math.isfinite(reference_start_s):
        report.instant_s = verdict.instant_s - reference_start_s
    report.time_scale = verdict.time_scale
    report.peak_position_ratio = verdict.position_ratio
    report.peak_velocity_ratio = verdict.velocity_ratio
    report.peak_acceleration_ratio = verdict.acceleration_ratio
    report.peak_torque_ratio = verdict.torque_ratio
    report.peak_jerk_ratio = verdict.jerk_ratio
    report.peak_workspace_ratio = verdict.workspace_ratio
    for name, values in (
        ("seam_position_rad", verdict.seam_position_rad),
        ("seam_velocity_rad_s", verdict.seam_velocity_rad_s),
        ("seam_acceleration_rad_s2", verdict.seam_acceleration_rad_s2),
    ):
        setattr(report, name, array.array("d", np.ascontiguousarray(values).tobytes()))
    report.age_s, report.consumed_fraction = verdict.age_s, verdict.consumed_fraction
    report.blend_s = verdict.blend_s
    assert verdict.verdict in Verdict


def working_executor(node: ImpedanceNode) -> Executor:
    """EventsExecutor if it delivers here, else SingleThreadedExecutor (three times the CPU)."""
    delivered = threading.Event()
    probe = node.create_timer(0.001, delivered.set, clock=_steady())
    executor: Executor | None = None
    try:
        from rclpy.experimental import EventsExecutor

        executor = EventsExecutor()
        executor.add_node(node)
        end = time.monotonic() + 1.0
        while not delivered.is_set() and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.1)
    except (ImportError, RuntimeError) as error:
        node.get_logger().warning(f"EventsExecutor cannot be used: {error}")
    node.destroy_timer(probe)
    if executor is not None and delivered.is_set():
        return executor
    node.get_logger().warning(
        "EventsExecutor does not deliver here; using SingleThreadedExecutor, which costs about "
        "three times the CPU per joint state"
    )
    if executor is not None:
        executor.remove_node(node)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    return executor


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; exit code 2 when it cannot start."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    fine_timer_slack()
    avoid_shared_memory_stall()
    warm_up()  # compiles at ordinary priority: later it would starve the other processes
    scheduling, memory = request_fifo(_priority(args)), lock_memory()
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node: ImpedanceNode | None = None
    try:
        node = ImpedanceNode(scheduling, memory)
        executor = working_executor(node)
        node.get_logger().info(f"{scheduling}; {memory}")
        code = 0
        while not stopping.is_set():
            try:
                executor.spin_once(timeout_sec=0.1)
            except RCLError as error:  # rclpy raises it for a transition that is not allowed now
                node.get_logger().error(f"request refused: {error}")
            except Exception as error:  # a defect: do not leave the arm to its watchdogs at once
                text = f"{type(error).__name__}: {error}"
                node.get_logger().fatal(f"unexpected {text}; ramping down and ending")
                code = 1
                stopping.set()
        node.begin_shutdown()
        end = time.monotonic() + node.shutdown_s
        while not node.quiet and time.monotonic() < end:
            with contextlib.suppress(Exception):  # named above
                executor.spin_once(timeout_sec=0.02)
        executor.remove_node(node)
        return code
    except (RobotConfigError, ArmModelError, ParameterException, ControllerConfigError) as error:
        print(f"impedance: cannot start: {error}", file=sys.stderr, flush=True)
        return 2
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            # Python's own end restores the default action: a second Ctrl-C would cut the exit short
            signal.signal(number, signal.SIG_IGN)
        # The arm is off by now. Should the middleware's own end hang, the kernel ends the process.
        signal.alarm(END_S)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()


def _priority(args: list[str] | None) -> int:
    """``realtime_priority`` before ROS is up: only ``-p realtime_priority:=N`` can be seen here."""
    for word in reversed(sys.argv if args is None else args):
        name, sign, value = word.partition(":=")
        if name == "realtime_priority" and sign and value.isdigit():
            return min(int(value), 99)
    return next(int(s.default) for s in node_schema() if s.name == "realtime_priority")


if __name__ == "__main__":
    sys.exit(main())
