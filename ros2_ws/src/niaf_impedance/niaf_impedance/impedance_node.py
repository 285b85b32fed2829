"""Lifecycle node around the impedance controller: wiring only.

The tick runs in the callback of ``joint_states``: over a topic an event-driven tick has the
freshest state. New references are judged in a second thread (``admission_worker``) on a snapshot;
everything else runs in the first, so that nothing needs a lock.
"""

from __future__ import annotations

import array
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
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.timer import Timer
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from niaf_field import FieldError, Prior, Reference, load_prior
from niaf_field.codec import FieldLimits, diagnose_field, field_from_message, from_message
from niaf_impedance.admission import AdmissionVerdict, Reason, Verdict
from niaf_impedance.admission_worker import AdmissionWorker, Job, Judged, Rejection
from niaf_impedance.arm_model import ArmModel, ArmModelError
from niaf_impedance.controller import (
    ControllerConfigError,
    ImpedanceController,
    ResetRefusedError,
)
from niaf_impedance.faults import Fault, Mode, describe
from niaf_impedance.journal import JournaledController
from niaf_impedance.journal_publisher import JournalPublisher
from niaf_impedance.live_tuning import LiveTuning, declare
from niaf_impedance.parameters import node_schema
from niaf_impedance.planning import Snapshot
from niaf_impedance.realtime import (
    avoid_shared_memory_stall,
    fine_timer_slack,
    quiet_interpreter,
    request_fifo,
)
from niaf_impedance.references import reference_from_trajectory
from niaf_impedance.robot_config import (
    RobotConfigError,
    default_robot_config_path,
    load_robot_config,
)
from niaf_impedance.settings import ControllerConfig
from niaf_impedance.timing import LoopTiming, Percentiles
from niaf_impedance.trajectory import TrajectoryError
from niaf_impedance.tuning import Tuning
from niaf_impedance.warm_up import warm_up
from niaf_impedance.wire import Float64ArrayEncoder, JointStateDecoder, JointStateError
from niaf_msgs.msg import ActionField, AdmissionReport, ImpedanceState

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE

#: lateness beyond which the timing diagnostics warn and raise an error, in periods
WARN_PERIODS, ERROR_PERIODS = 1.0, 5.0
WATCHDOG_PERIOD_S = 0.005
SHUTDOWN_S = 1.5
#: how often a reference is judged again when the loop went on past its hand-over meanwhile
JUDGEMENTS = 3
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

    def __init__(self, scheduling: str = "") -> None:
        super().__init__("impedance")
        self._scheduling = scheduling
        declare(self, node_schema())
        chosen = str(self.get_parameter("robot_config").value)
        robot = load_robot_config(chosen or default_robot_config_path())
        self.arm = ArmModel(robot)
        self.controller: ImpedanceController | None = None
        self._tuning = LiveTuning(self, robot, self._apply_tuning)
        self._worker: AdmissionWorker | None = None
        self._journal: JournalPublisher | None = None
        self._checkpoint_due_s = 0.0
        self._trajectories = 0
        self._prior: Prior | None = None
        self._epoch_sec = int(time.time())
        self._loop_timers: list[Timer] = []
        self._servers: list[Any] = []
        self._readers: list[Any] = []
        self._writers: list[Any] = []
        self._lifecycle_active = False
        self._autostart_timer: Timer | None = None
        self._autostart_waiting = False
        self._clear_input()
        if self.get_parameter("autostart").value:
            self._autostart_timer = self.create_timer(0.1, self._autostart, clock=_steady())

    # -- parameters ------------------------------------------------------------------------------
    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _apply_tuning(self, tuning: Tuning, config: ControllerConfig) -> None:
        assert self.controller is not None
        self.controller.set_config(config)
        self.controller.set_tuning(tuning)
        rate = float(self._value("control_rate_hz"))
        self._state_every = max(1, round(rate / float(self._value("state_rate_hz"))))

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
            self._tuning.start(controller)
            warm_up(controller)
            # Its last collection takes about 0.1 s: here, and not where states already stream in.
            quiet_interpreter()
        except (StartError, FieldError, ControllerConfigError, OSError) as error:
            self._tuning.controller = None
            self.get_logger().error(f"cannot configure: {error}")
            return FAILURE
        self._limits = FieldLimits(
            max_age_s=float(self._value("field_max_age_s")),
            max_future_s=float(self._value("field_max_future_s")),
        )
        self._clear_input()
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
        return JournaledController(
            config, self.arm, self._prior, epoch_sec=self._epoch_sec,
            prior_file=str(file.resolve()),
        )

    def _create_entities(self, controller: ImpedanceController) -> None:
        n = self.arm.n
        gripper = self.arm.config.gripper
        self._decoder = JointStateDecoder(
            self.arm.joint_names,
            gripper.joint if gripper else "",
            gripper.width_scale if gripper else 1.0,
        )
        self._timing = LoopTiming(1.0 / float(self._value("control_rate_hz")))
        rate = float(self._value("control_rate_hz"))
        self._state_every = max(1, round(rate / float(self._value("state_rate_hz"))))
        self._gripper_every = max(1, round(rate / float(self._value("gripper_rate_hz"))))
        self._effort = Float64ArrayEncoder(n)
        self._width = Float64ArrayEncoder(1)
        self._effort_publisher = self.create_publisher(
            Float64MultiArray, "effort_controller/commands", _NEWEST)
        self._gripper_publisher = self.create_publisher(
            Float64MultiArray, "gripper_controller/commands", _NEWEST)
        self._state_publisher = self.create_publisher(ImpedanceState, "~/state", 10)
        self._admission_publisher = self.create_publisher(AdmissionReport, "~/admission", 10)
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._writers = [
            self._effort_publisher, self._gripper_publisher, self._state_publisher,
            self._admission_publisher, self._diagnostics_publisher,
        ]
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
            self.create_subscription(
                JointState, "joint_states", self._on_joint_state, _NEWEST, raw=True),
        ]
        self._loop_timers = [
            self.create_timer(WATCHDOG_PERIOD_S, self._watch, clock=_steady()),
            self.create_timer(1.0, self._publish_diagnostics, clock=_steady()),
        ]
        self._message, self._views = _state_message(self.arm, controller)
        if isinstance(controller, JournaledController):
            self._journal = JournalPublisher(
                self, "~/journal", controller.journal, self.arm.joint_names,
                self.arm.config.base_frame, self._calm_worker,
            )
            self._loop_timers.append(
                self.create_timer(JOURNAL_FLUSH_S, self._flush_journal, clock=_steady()))

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        problem = self._activation_problem()
        if problem:
            self.get_logger().error(f"cannot activate: {problem}")
            return FAILURE
        assert self.controller is not None
        decoder = self._decoder
        try:
            self.controller.activate(
                self._newest_s, decoder.q, decoder.dq, gripper_m=decoder.gripper_m
            )
        except ValueError as error:
            self.get_logger().error(f"cannot activate: {error}")
            return FAILURE
        self._timing.clear()
        self._last_fault = Fault.NONE
        self._last_mode = self.controller.mode
        self._lifecycle_active = True
        self.get_logger().info("active: holding the measured pose")
        return super().on_activate(state)

    def _activation_problem(self) -> str:
        """Why the arm cannot be taken over now; empty when it can."""
        if self.controller is None:
            return "not configured"
        if self._input_problem:
            return self._input_problem
        age = time.monotonic() - self._received_s
        if age > self.controller.config.state_timeout_s:
            topic = self.resolve_topic_name("joint_states")
            if self._received_s == -math.inf:
                return f"no message on {topic} yet; is the arm's driver running?"
            return f"the newest message on {topic} is {age:.3f} s old"
        return ""

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        # The ramp to gravity only goes on in the tick until the mode is OFF.
        assert self.controller is not None
        self.controller.deactivate(self.controller.last_tick_s)
        self._lifecycle_active = False
        self.get_logger().info("deactivating: braking, then gravity only, then silent")
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return SUCCESS

    def _release(self) -> None:
        self.controller = self._tuning.controller = None
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
        if now_s >= self._checkpoint_due_s and controller.checkpoint():
            self._checkpoint_due_s = now_s + JOURNAL_CHECKPOINT_S
        controller.journal.hand_over()

    def _end_journal(self) -> None:
        if self._journal is not None:
            self._journal.stop()
            self._journal = None

    def destroy_node(self) -> None:
        """As every node's; what the journal still holds is sent first."""
        self._end_journal()
        super().destroy_node()

    # -- measured state and tick -----------------------------------------------------------------
    def _clear_input(self) -> None:
        self._received_s = -math.inf
        self._newest_s = -math.inf
        self._input_problem = ""
        self._rejected_states = 0
        self._last_fault = Fault.NONE
        self._last_mode = Mode.OFF

    def _refuse_state(self, problem: str) -> None:
        self._rejected_states += 1
        self._input_problem = problem
        self.get_logger().error(
            f"joint state refused: {problem} ({self._rejected_states} so far)",
            throttle_duration_sec=2.0,
        )

    def _on_joint_state(self, data: bytes) -> None:
        controller = self.controller
        if controller is None:
            return
        decoder = self._decoder
        began_s = time.monotonic()
        try:
            decoder.decode(data)
        except JointStateError as error:
            self._refuse_state(str(error))
            return
        sec, nanosec = decoder.stamp
        stamp_s = (sec - self._epoch_sec) + nanosec * 1e-9
        age_s = (time.time() - self._epoch_sec) - stamp_s
        if age_s < -float(self._limits.max_future_s):
            self._refuse_state(f"its stamp lies {-age_s:.3f} s ahead of this clock; synchronise")
            return
        if age_s > controller.config.state_timeout_s:
            self._refuse_state(
                f"it was measured {age_s:.3f} s ago (state_timeout_s is "
                f"{controller.config.state_timeout_s:g}); synchronise the clocks or relieve the CPU"
            )
            return
        if stamp_s <= self._newest_s:
            if stamp_s == self._newest_s or self._newest_s - stamp_s < 1.0:
                self._rejected_states += 1  # duplicate or out of order: the watchdog sees silence
                return
            # the clock was set back: a running arm damps (silence), then ~/reset starts anew
            if controller.mode not in (Mode.OFF, Mode.DAMP, Mode.ESTOP):
                self._refuse_state("its stamp lies more than a second before the one before")
                return
        self._newest_s = stamp_s
        self._received_s = began_s
        self._input_problem = ""
        if controller.mode == Mode.OFF:
            return
        timing = self._timing
        timing.begin(began_s, stamp_s, age_s)
        self._effort.values[:] = controller.tick(stamp_s, decoder.q, decoder.dq)
        if controller.off:  # deactivation has just ended: fall silent
            self.get_logger().info("off: no torque is commanded")
            return
        self._effort_publisher.publish(self._effort.encode())
        ticks = timing.ticks
        if ticks % self._gripper_every == 0:
            self._width.values[0] = controller.gripper_m
            self._gripper_publisher.publish(self._width.encode())
        if ticks % self._state_every == 0:
            self._publish_state(sec, nanosec, age_s)
            self._report_changes()
        timing.end(time.monotonic())
        self._settle()

    def _watch(self) -> None:
        """Silence of joint_states is the one fault that the tick cannot see."""
        controller = self.controller
        if controller is None:
            return
        self._settle()
        if controller.mode == Mode.OFF:
            return
        if controller.note_state_age(time.monotonic() - self._received_s):
            self._effort.values[:] = controller.telemetry.tau
            self._effort_publisher.publish(self._effort.encode())
            self._report_changes()

    def _report_changes(self) -> None:
        controller = self.controller
        assert controller is not None
        fault, mode = controller.fault, controller.mode
        if fault != self._last_fault and fault != Fault.NONE:
            where = f" ({controller.fault_joint})" if controller.fault_joint else ""
            self.get_logger().error(f"fault {int(fault)}{where}: {describe(fault)}")
        if mode != self._last_mode:
            self.get_logger().info(f"{self._last_mode.name} -> {mode.name}")
        self._last_fault, self._last_mode = fault, mode

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
        lead_s = float(self._value("handover_lead_s"))
        snapshot = self._snapshot(message, sequence, now_s, lead_s)
        worker.submit(Job(sequence, snapshot, now_s, lead_s, lambda: build(snapshot)))

    def _snapshot(
        self, message: Any, sequence: int, now_s: float, lead_s: float,
        again: Snapshot | None = None,
    ) -> Snapshot:
        controller = self.controller
        assert controller is not None
        if isinstance(controller, JournaledController):
            return controller.snapshot_for(message, now_s, lead_s, sequence, again)
        return controller.snapshot()

    def _on_field(self, message: ActionField) -> None:
        prior, limits, epoch_sec = self._prior, self._limits, self._epoch_sec
        if self.controller is None or prior is None:
            return
        now_s = time.time() - epoch_sec

        def build(snapshot: Snapshot) -> Reference | Rejection:
            field = from_message(message, epoch_sec)
            finding = diagnose_field(field, prior, now_s, limits)
            if finding is not None:
                return Rejection(int(finding[0]), finding[1])
            return field_from_message(field, prior)

        self._submit(message, int(message.sequence), now_s, build)

    def _on_trajectory(self, message: JointTrajectory) -> None:
        controller, epoch_sec = self.controller, self._epoch_sec
        if controller is None:
            return
        if not message.points:
            controller.brake(controller.last_tick_s)
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
        worker, controller = self._worker, self.controller
        if worker is None or controller is None:
            return
        for judged in worker.finished():
            job, outcome = judged.job, judged.outcome
            if isinstance(outcome, Rejection):
                controller.refused_count += 1
                self._report(judged, None)
                continue
            verdict = controller.commit(outcome)
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
        report.header.frame_id = self.arm.config.base_frame
        if report.verdict != AdmissionReport.ACCEPTED:
            word = "refused" if report.verdict == AdmissionReport.REFUSED else "slowed"
            self.get_logger().warning(
                f"reference {report.sequence} {word}: {report.reason_text}",
                throttle_duration_sec=1.0,
            )
        self._admission_publisher.publish(report)

    # -- services --------------------------------------------------------------------------------
    def _on_estop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        controller = self.controller
        response.success = controller is not None and controller.mode != Mode.OFF
        if controller is not None and response.success:
            controller.estop()
            response.message = "damping; ~/reset at standstill to go on"
            self._report_changes()
        else:
            response.message = "the controller is off: no torque is commanded"
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        controller = self.controller
        problem = "not active" if controller is None else self._activation_problem()
        if controller is not None and not problem:
            try:
                controller.reset(self._newest_s)
            except (ResetRefusedError, ValueError) as error:
                problem = str(error)
        response.success, response.message = not problem, problem or "holding the measured pose"
        if not problem:
            self._report_changes()
        return response

    def _on_brake(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        controller = self.controller
        if controller is None or controller.mode in (Mode.OFF, Mode.DAMP, Mode.ESTOP):
            response.success, response.message = False, "no motion to brake"
        else:
            controller.brake(controller.last_tick_s)
            response.success, response.message = True, "braking along the path, then holding"
        return response

    # -- published figures -----------------------------------------------------------------------
    def _publish_state(self, sec: int, nanosec: int, age_s: float) -> None:
        controller, message, timing = self.controller, self._message, self._timing
        assert controller is not None
        for view, source in self._views:
            view[:] = source
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
        message.tick_lateness_s = timing.window_age_s
        message.state_age_s = age_s
        message.tick_count = timing.ticks
        message.missed_ticks = timing.missed
        message.blending = controller.blending
        figures = controller.statistics
        message.peak_torque_ratio = figures.peak_torque_ratio
        message.peak_torque_rate_ratio = figures.peak_torque_rate_ratio
        message.seam_position_peak_rad = figures.seam_position_peak_rad
        message.seam_velocity_peak_rad_s = figures.seam_velocity_peak_rad_s
        message.seam_acceleration_peak_rad_s2 = figures.seam_acceleration_peak_rad_s2
        timing.window_age_s = 0.0
        self._state_publisher.publish(message)

    def _publish_diagnostics(self) -> None:
        controller = self.controller
        if controller is None:
            return
        timing = self._timing
        mode, fault = controller.mode, controller.fault
        who = self.get_fully_qualified_name().strip("/")
        stop = DiagnosticStatus(name=f"{who}: stop ladder", hardware_id=self._hardware)
        stop.level = DiagnosticStatus.ERROR if fault != Fault.NONE else DiagnosticStatus.OK
        stop.message = describe(fault) or mode.name
        if fault == Fault.NONE and self._input_problem:
            stop.level, stop.message = DiagnosticStatus.WARN, self._input_problem
        stop.values = _key_values({
            "mode": mode.name,
            "fault": int(fault),
            "fault joint": controller.fault_joint,
            "field sequence": controller.sequence,
            "fields accepted": controller.accepted_count,
            "fields refused": controller.refused_count,
            "joint states rejected": self._rejected_states,
        })
        interval = timing.interval.percentiles()
        loop = DiagnosticStatus(name=f"{who}: loop", hardware_id=self._hardware)
        worst = interval.max_s / timing.period_s if timing.window_ticks else 0.0
        loop.level = DiagnosticStatus.OK
        loop.message = f"{timing.window_ticks} ticks in the last second"
        if mode != Mode.OFF and timing.window_ticks < 0.9 / timing.period_s:
            loop.level = DiagnosticStatus.WARN
            loop.message += f", {1.0 / timing.period_s:.0f} expected"
        elif worst > ERROR_PERIODS:
            loop.level = DiagnosticStatus.WARN
            loop.message += f"; a tick came {worst:.1f} periods late since activation"
        loop.values = _key_values({
            "rate_hz": timing.window_ticks,
            "ticks": timing.ticks,
            "missed_ticks": timing.missed,
            **_percentiles("tick_lateness_us", interval),
            **_percentiles("state_age_us", timing.age.percentiles()),
            **_percentiles("execution_us", timing.execution.percentiles()),
            "scheduling": self._scheduling,
        })
        timing.window_ticks = 0
        message = DiagnosticArray(status=[stop, loop])
        seconds, nanosec = divmod(time.time_ns(), 1_000_000_000)
        message.header.stamp.sec, message.header.stamp.nanosec = seconds, nanosec
        self._diagnostics_publisher.publish(message)

    @property
    def _hardware(self) -> str:
        return self.arm.config.robot

    # -- end -------------------------------------------------------------------------------------
    def begin_shutdown(self) -> None:
        """Start the ramp to gravity only (the caller keeps spinning until ``quiet``)."""
        self._end_autostart()
        if self.controller is not None:
            self.controller.deactivate(self.controller.last_tick_s)

    @property
    def quiet(self) -> bool:
        """No torque is commanded any more."""
        return self.controller is None or self.controller.mode == Mode.OFF


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
    arm: ArmModel, controller: ImpedanceController
) -> tuple[ImpedanceState, list[tuple[np.ndarray, np.ndarray]]]:
    """A message whose arrays are filled through views: (message, [(view, source)])."""
    message = ImpedanceState(name=list(arm.joint_names))
    message.header.frame_id = arm.config.base_frame
    t = controller.telemetry
    views = []
    for name, source in (
        ("reference_position", t.q_ref), ("reference_velocity", t.dq_ref),
        ("reference_acceleration", t.ddq_ref), ("measured_position", t.q),
        ("measured_velocity", t.dq), ("torque_stiffness", t.tau_stiffness),
        ("torque_damping", t.tau_damping), ("torque_posture", t.tau_posture),
        ("torque_gravity", t.tau_gravity), ("torque_inertia", t.tau_inertia),
        ("torque_friction", t.tau_friction), ("torque_command", t.tau),
    ):
        values = array.array("d", bytes(8 * arm.n))
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
    scheduling = request_fifo(_priority(args))
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node: ImpedanceNode | None = None
    try:
        node = ImpedanceNode(scheduling)
        executor = working_executor(node)
        node.get_logger().info(scheduling)
        while not stopping.is_set():
            executor.spin_once(timeout_sec=0.1)
        node.begin_shutdown()
        end = time.monotonic() + SHUTDOWN_S
        while not node.quiet and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.02)
        executor.remove_node(node)
        return 0
    except (RobotConfigError, ArmModelError, ParameterException, ControllerConfigError) as error:
        print(f"impedance: cannot start: {error}", file=sys.stderr, flush=True)
        return 2
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            # Python's own end restores the default action: a second Ctrl-C would cut the exit short
            signal.signal(number, signal.SIG_IGN)
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
