"""Lifecycle node around a trained policy: wiring only.

The executor's thread serves topics, parameters and the action server; one worker thread waits for
images, runs the network and publishes fields. A new goal replaces the one that runs, so that an
instruction can be changed without stopping the arm; the replaced goal ends aborted.
"""

from __future__ import annotations

import functools
import gc
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy._rclpy_pybind11 import RCLError
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.experimental import EventsExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rclpy.timer import Timer
from sensor_msgs.msg import Image, JointState

from niaf_field import Prior
from niaf_field.codec import make_field_message, to_message
from niaf_msgs.action import ExecuteInstruction
from niaf_msgs.msg import ActionField
from niaf_policy.observation import (
    AnchorMap,
    JointLayout,
    MessageError,
    Observation,
    ObservationBuffer,
    PairingLimits,
    Problem,
    decode_image,
)
from niaf_policy.pacing import Figures, Pacer
from niaf_policy.parameters import SCHEMA, ParameterSpec
from niaf_policy.polled_states import PolledStates, decode_pose, decode_state

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE

SUPERVISION_PERIOD_S = 0.02
IDLE_FEEDBACK_PERIOD_S = 0.5
WORKER_WAIT_S = 0.1
WARM_UP_INFERENCES = 3
STATES_KEPT = 1000
TOOL_POSE = "tool_pose"
LAST_WORDS_S = 0.3

_NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
_RELIABLE_NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)


class PolicyLike(Protocol):
    """What this node needs of a policy; niaf_policy.runtime.Policy is one."""

    @property
    def prior(self) -> Prior: ...
    @property
    def cameras(self) -> tuple[str, ...]: ...
    @property
    def image_size(self) -> tuple[int, int]: ...
    @property
    def joint_names(self) -> tuple[str, ...]: ...
    @property
    def instructions(self) -> tuple[str, ...]: ...
    def prepare_instruction(self, instruction: str) -> None: ...
    def infer(self, observation: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]: ...


PolicyLoader = Callable[[str, int], PolicyLike]


@dataclass(eq=False)
class Goal:
    """One accepted instruction. ``outcome``: empty while it runs, then why it ended."""

    handle: ServerGoalHandle
    instruction: str
    timeout_s: float
    began_s: float
    last_field_s: float
    last_feedback_s: float
    fields: int = 0
    outcome: str = ""
    success: bool = False
    cancelled: bool = False
    failure: str = ""  # set by the worker: ends the goal


class GoalServer(ActionServer):
    """Goals that are worked off in another thread.

    rclpy wants a callback that runs as long as the goal does, and would poll an awaiting one
    without pause. Here a goal only becomes EXECUTING, and its callback, which does nothing but
    state the result, is scheduled once the goal has ended.
    """

    def notify_execute(self, goal_handle: Any, execute_callback: Any) -> None:
        """Called by ``goal_handle.execute()``; nothing runs yet."""

    def finish(self, goal_handle: ServerGoalHandle, state_result: Callable[[Any], Any]) -> None:
        super().notify_execute(goal_handle, state_result)


@dataclass(eq=False)
class Session:
    """What exists while the node is configured."""

    policy: PolicyLike
    anchors: AnchorMap
    buffer: ObservationBuffer
    pacer: Pacer
    figures: Figures = field(default_factory=Figures)
    ready: threading.Event = field(default_factory=threading.Event)
    stop: bool = False
    warm_up_problem: str = ""
    warm_up_s: float = 0.0


class PolicyNode(LifecycleNode):
    """Topics, action server, parameters and timers; see the module text."""

    def __init__(self, load: PolicyLoader) -> None:
        super().__init__("policy")
        self._load = load
        self._declare(SCHEMA)
        #: set when autostart failed: the process must end
        self.failed = False
        self._session: Session | None = None
        self._worker: threading.Thread | None = None
        self._goal: Goal | None = None
        self._finished: list[Goal] = []
        self._taking_goals = False
        self._sequence = 0  # grows over the life of the process
        self._epoch_sec = int(time.time())
        self._rejection = ""
        self._last_end = ""
        self._problem = ""
        self._images: dict[str, Subscription] = {}
        #: measured tool pose: from the first checkpoint on whose relative channels move the tool
        self._poses: PolledStates | None = None
        # Guards buffer, figures, goal and pacer; notified when an image or a goal arrives.
        self._changed = threading.Condition()
        self._limits = self._pairing_limits({})
        self.add_post_set_parameters_callback(self._on_parameters_set)
        self._create_entities()
        self._autostart_timer: Timer | None = None
        if self.get_parameter("autostart").value:
            self._autostart_timer = self.create_timer(0.05, self._autostart, clock=_steady())

    # -- parameters ------------------------------------------------------------------------------
    def _declare(self, schema: tuple[ParameterSpec, ...]) -> None:
        for spec in schema:
            unit = f" [{spec.unit}]" if spec.unit else ""
            descriptor = ParameterDescriptor(
                description=spec.description + unit, read_only=not spec.live
            )
            if spec.minimum is not None and spec.maximum is not None:
                if isinstance(spec.default, float):
                    descriptor.floating_point_range = [
                        FloatingPointRange(from_value=spec.minimum, to_value=spec.maximum)
                    ]
                else:
                    descriptor.integer_range = [
                        IntegerRange(from_value=int(spec.minimum), to_value=int(spec.maximum))
                    ]
            self.declare_parameter(spec.name, spec.default, descriptor)

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _pairing_limits(self, changed: Mapping[str, Any]) -> PairingLimits:
        def value(name: str) -> float:
            return float(changed.get(name, self._value(name)))

        return PairingLimits(
            max_age_s=value("max_observation_age_s"),
            max_future_s=value("max_future_s"),
            max_skew_s=value("max_skew_s"),
        )

    def _on_parameters_set(self, changed: list[Parameter]) -> None:
        values = {parameter.name: parameter.value for parameter in changed}
        with self._changed:
            self._limits = self._pairing_limits(values)
            if self._session is not None and "policy_rate_hz" in values:
                self._session.pacer.set_rate(float(values["policy_rate_hz"]))
        live = {spec.name for spec in SCHEMA if spec.live}
        text = ", ".join(f"{name} = {value:g}" for name, value in values.items() if name in live)
        if text:
            self.get_logger().info(text)

    # -- lifecycle -------------------------------------------------------------------------------
    def _autostart(self) -> None:
        if self._autostart_timer is not None:
            self.destroy_timer(self._autostart_timer)
            self._autostart_timer = None
        self.trigger_configure()
        if self._session is not None:
            self.trigger_activate()
        self.failed = not self._taking_goals

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        checkpoint = str(self._value("checkpoint"))
        began_s = time.monotonic()
        try:
            if not checkpoint:
                raise ValueError(
                    "parameter 'checkpoint' is empty; set it to a checkpoint folder "
                    "(-p checkpoint:=FOLDER)"
                )
            policy = self._load(checkpoint, int(self._value("torch_threads")))
            session = self._make_session(policy)
            self._start_worker(session)
        except (RuntimeError, ValueError, OSError) as error:
            self.get_logger().error(f"cannot configure: {' '.join(str(error).split())}")
            return FAILURE
        self._session = session
        self._subscribe_to(policy.cameras)
        prior = policy.prior
        self.get_logger().info(
            f"{checkpoint}: prior {prior.prior_id[:12]} (L={prior.L}, H={prior.H}, D={prior.D}), "
            f"cameras {', '.join(policy.cameras)} at "
            f"{policy.image_size[1]}x{policy.image_size[0]}, loaded in "
            f"{time.monotonic() - began_s:.1f} s, warm inference {session.warm_up_s * 1e3:.0f} ms"
        )
        return SUCCESS

    def _make_session(self, policy: PolicyLike) -> Session:
        layout = JointLayout(
            policy.joint_names,
            str(self._value("gripper_joint")),
            float(self._value("gripper_width_scale")),
        )
        topics = {name: self.resolve_topic_name(_image_topic(name)) for name in policy.cameras}
        anchors = AnchorMap(policy.prior.channels, layout)
        if anchors.needs_tool and self._poses is None:
            self._poses = PolledStates(self, PoseStamped, TOOL_POSE, STATES_KEPT)
        base_frame = str(self._value("base_frame"))
        buffer = ObservationBuffer(
            topics,
            self.resolve_topic_name("joint_states"),
            lambda data: decode_state(data, layout),
            STATES_KEPT,
            self.resolve_topic_name(TOOL_POSE) if anchors.needs_tool else "",
            lambda data: decode_pose(data, base_frame),
        )
        pacer = Pacer(float(self._value("policy_rate_hz")))
        return Session(policy, anchors, buffer, pacer)

    def _start_worker(self, session: Session) -> None:
        """Start the worker and wait until it is warm: the network must be warm in its thread."""
        worker = threading.Thread(target=self._work, args=(session,), name="inference")
        worker.start()
        session.ready.wait()
        if session.warm_up_problem:
            worker.join()
            raise ValueError(session.warm_up_problem)
        self._worker = worker

    def _create_entities(self) -> None:
        """What does not depend on the checkpoint.

        Nothing is destroyed before the node itself, and callbacks do nothing while there is no
        session: EventsExecutor may crash on events of an entity that was destroyed before it.
        """
        self._field_publisher = self.create_publisher(
            ActionField, "~/action_field", _RELIABLE_NEWEST
        )
        self._status_publishers = [
            self.create_publisher(DiagnosticArray, topic, 10)
            for topic in ("~/status", "/diagnostics")
        ]
        self._states = PolledStates(self, JointState, "joint_states", STATES_KEPT)
        self._server = GoalServer(
            self,
            ExecuteInstruction,
            "~/execute",
            execute_callback=lambda handle: None,  # never called: see GoalServer
            goal_callback=self._on_goal,
            handle_accepted_callback=self._on_accepted,
            cancel_callback=self._on_cancel,
        )
        self.create_timer(SUPERVISION_PERIOD_S, self._supervise, clock=_steady())
        self.create_timer(1.0, self._publish_diagnostics, clock=_steady())

    def _subscribe_to(self, cameras: tuple[str, ...]) -> None:
        for camera in cameras:
            if camera not in self._images:
                self._images[camera] = self.create_subscription(
                    Image,
                    _image_topic(camera),
                    functools.partial(self._on_image, camera),
                    _NEWEST,
                )

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._taking_goals = True
        self.get_logger().info("active: waiting for an instruction")
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._taking_goals = False
        self._end_goal("the policy node was deactivated", success=False)
        self._supervise()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._taking_goals = False
        self._end_goal("the policy node was shut down", success=False)
        self._supervise()
        self._release()
        return SUCCESS

    def _release(self) -> None:
        session = self._session
        if session is None:
            return
        with self._changed:
            session.stop = True
            self._changed.notify_all()
        if self._worker is not None:
            self._worker.join()
        self._worker = None
        self._session = None

    # -- goals (executor's thread) ---------------------------------------------------------------
    def _on_goal(self, request: ExecuteInstruction.Goal) -> GoalResponse:
        problem = self._goal_problem(request)
        if not problem:
            return GoalResponse.ACCEPT
        self._rejection = problem
        self.get_logger().warning(f"goal rejected: {problem}")
        self._publish_diagnostics()
        return GoalResponse.REJECT

    def _goal_problem(self, request: ExecuteInstruction.Goal) -> str:
        if not self._taking_goals or self._session is None:
            return "the policy node is not active; activate it first"
        if not (math.isfinite(request.timeout_s) and request.timeout_s > 0.0):
            return f"timeout_s is {request.timeout_s:g}; give a positive number of seconds"
        try:
            self._session.policy.prepare_instruction(request.instruction)
        except ValueError as error:
            return str(error)
        return ""

    def _on_accepted(self, handle: ServerGoalHandle) -> None:
        self._end_goal("replaced by a new instruction", success=False)
        handle.execute()
        request, now_s = handle.request, time.monotonic()
        goal = Goal(handle, request.instruction, request.timeout_s, now_s, now_s, now_s)
        with self._changed:
            self._goal = goal
            self._problem = ""
            if self._session is not None:
                self._session.pacer.reset()
            self._changed.notify_all()
        self.get_logger().info(f"executing '{goal.instruction}' for up to {goal.timeout_s:g} s")

    def _on_cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        goal = self._goal
        if goal is not None and goal.handle == handle:
            goal.cancelled = True
            self._end_goal("cancelled", success=True)
        return CancelResponse.ACCEPT

    def _end_goal(self, outcome: str, success: bool) -> None:
        """No field of the running goal is published after this; ``_supervise`` reports the end."""
        with self._changed:
            goal, self._goal = self._goal, None
            self._problem = ""
            if goal is not None:
                self._last_end = f"'{goal.instruction}': {outcome}"
                goal.outcome, goal.success = outcome, success
                self._finished.append(goal)

    def _supervise(self) -> None:
        """End the goal when its time is up or it cannot go on, and state results."""
        goal, now_s = self._goal, time.monotonic()
        if goal is not None:
            patience_s = float(self._value("fault_patience_s"))
            if goal.failure:
                self._end_goal(goal.failure, success=False)
            elif now_s - goal.began_s >= goal.timeout_s:
                self._end_goal(f"timeout_s ({goal.timeout_s:g} s) is over", success=True)
            elif now_s - goal.last_field_s > patience_s:
                self._end_goal(
                    f"no field for {patience_s:g} s (fault_patience_s): {self._why_silent()}",
                    success=False,
                )
            elif now_s - max(goal.last_field_s, goal.last_feedback_s) > IDLE_FEEDBACK_PERIOD_S:
                goal.last_feedback_s = now_s
                self._send_feedback(goal, now_s, 0.0)
                self.get_logger().warning(
                    f"no field is published: {self._why_silent()}", throttle_duration_sec=1.0
                )
        finished, self._finished = self._finished, []
        for ended in finished:
            handle = ended.handle
            # A cancelled goal is CANCELING only after the cancel callback: see it next time.
            if ended.cancelled and handle.is_active and not handle.is_cancel_requested:
                self._finished.append(ended)
            else:
                self._server.finish(handle, functools.partial(self._result, ended))

    def _result(self, goal: Goal, handle: ServerGoalHandle) -> ExecuteInstruction.Result:
        if handle.is_cancel_requested:
            handle.canceled()
        elif goal.success:
            handle.succeed()
        else:
            handle.abort()
        text = f"'{goal.instruction}': {goal.outcome}; {goal.fields} fields"
        if goal.success:
            self.get_logger().info(text)
        else:
            self.get_logger().error(text)
        return ExecuteInstruction.Result(
            success=goal.success, message=goal.outcome, fields=goal.fields
        )

    def _why_silent(self) -> str:
        session = self._session
        if session is None:
            return "not configured"
        made = self._observe(session)
        if isinstance(made, Problem):
            return made.text
        return self._problem or "observations arrive, but inference has not ended yet"

    def _send_feedback(self, goal: Goal, now_s: float, latency_s: float) -> None:
        session = self._session
        assert session is not None
        feedback = ExecuteInstruction.Feedback()
        feedback.field_sequence = self._sequence
        feedback.progress = min(1.0, (now_s - goal.began_s) / goal.timeout_s)
        feedback.policy_rate_hz = session.figures.rate_hz(now_s)
        feedback.latency_s = latency_s
        goal.handle.publish_feedback(feedback)

    # -- images (executor's thread) --------------------------------------------------------------
    def _on_image(self, camera: str, message: Image) -> None:
        session = self._session
        if session is None or camera not in session.policy.cameras:
            return
        stamp = message.header.stamp
        try:
            pixels = decode_image(
                height=message.height,
                width=message.width,
                encoding=message.encoding,
                step=message.step,
                data=message.data,
                size=session.policy.image_size,
                camera=camera,
            )
        except MessageError as error:
            with self._changed:
                session.buffer.reject_image(camera, str(error))
                session.figures.drops["bad image"] += 1
            self.get_logger().error(f"image refused: {error}", throttle_duration_sec=2.0)
            return
        with self._changed:
            session.buffer.add_image(camera, stamp.sec * 1_000_000_000 + stamp.nanosec, pixels)
            self._changed.notify_all()

    # -- inference (worker's thread) -------------------------------------------------------------
    def _work(self, session: Session) -> None:
        session.warm_up_problem = self._warm_up(session)
        session.ready.set()
        if session.warm_up_problem:
            return
        considered: int | None = None
        served: Goal | None = None
        while not session.stop:
            with self._changed:
                goal = self._goal
                fresh = session.buffer.view_stamp_ns() != considered or goal is not served
                if not fresh:
                    self._changed.wait(WORKER_WAIT_S)
                    goal = self._goal
                self._take_states(session)
                stamp = session.buffer.view_stamp_ns()
                if goal is None or goal.failure or (stamp == considered and goal is served):
                    considered, served = stamp, goal
                    continue
                considered, served = stamp, goal
                made = self._observe(session)
                if isinstance(made, Problem):
                    session.figures.drops[made.kind.value] += 1
                    self._problem = made.text
                    continue
                if not session.pacer.take(time.monotonic()):
                    continue
            try:
                self._infer_and_publish(session, goal, made)
            except Exception as error:  # ends the goal with the reason; the node lives on
                goal.failure = f"inference failed: {type(error).__name__}: {error}"

    def _take_states(self, session: Session) -> None:
        with self._changed:
            for stamp_ns, data in self._states.take_all():
                session.buffer.add_state(stamp_ns, data)
            if self._poses is not None:
                for stamp_ns, data in self._poses.take_all():
                    session.buffer.add_pose(stamp_ns, data)

    def _observe(self, session: Session) -> Observation | Problem:
        with self._changed:
            self._take_states(session)
            return session.buffer.assemble(time.time_ns(), self._limits)

    def _warm_up(self, session: Session) -> str:
        """Run the network as it will be run; returns what went wrong."""
        policy = session.policy
        blank = np.zeros((*policy.image_size, 3), np.uint8)
        observation = {
            "images": dict.fromkeys(policy.cameras, blank),
            "state": np.zeros(2 * len(policy.joint_names) + 1),
            "instruction": policy.instructions[0] if policy.instructions else "go",
        }
        try:
            for _ in range(WARM_UP_INFERENCES):
                began_s = time.monotonic()
                gamma, beta = policy.infer(observation)
                session.warm_up_s = time.monotonic() - began_s
            make_field_message(
                policy.prior, gamma, beta, np.zeros(policy.prior.D), stamp_s=0.0, sequence=1
            )
        except Exception as error:  # whatever it is: on_configure waits for this thread
            return f"the policy fails on a blank observation: {error or type(error).__name__}"
        gc.collect()
        gc.freeze()  # a full collection over torch's objects takes 0.1 s
        return ""

    def _infer_and_publish(self, session: Session, goal: Goal, seen: Observation) -> None:
        policy = session.policy
        began_s = time.monotonic()
        gamma, beta = policy.infer(
            {
                "images": seen.images,
                "state": seen.state.vector,
                "instruction": goal.instruction,
            }
        )
        inference_s = time.monotonic() - began_s
        anchor = session.anchors.anchor(seen.state, seen.tool)
        stamp_s = (seen.stamp_ns - self._epoch_sec * 1_000_000_000) * 1e-9
        with self._changed:
            if goal.outcome or session.stop:
                return
            age_s = (time.time_ns() - seen.stamp_ns) * 1e-9
            made = make_field_message(
                policy.prior, gamma, beta, anchor,
                stamp_s=stamp_s,
                sequence=self._sequence + 1,
                frame_id=str(self._value("base_frame")),
                instruction=goal.instruction,
                observation_age_s=age_s,
                inference_s=inference_s,
            )
            self._field_publisher.publish(to_message(ActionField(), made, self._epoch_sec))
            self._sequence += 1
            now_s = time.monotonic()
            goal.fields += 1
            goal.last_field_s = now_s
            self._problem = ""
            session.figures.note_field(now_s, age_s, inference_s)
            self._send_feedback(goal, now_s, age_s)

    # -- diagnostics -----------------------------------------------------------------------------
    def _publish_diagnostics(self) -> None:
        session = self._session
        if session is None:
            return
        now_s = time.monotonic()
        with self._changed:
            goal, figures = self._goal, session.figures
            made = self._observe(session)
            ages = session.buffer.ages_s(time.time_ns())
            rate_hz = figures.rate_hz(now_s)
            latency, inference = figures.latency.quantiles(), figures.inference.quantiles()
            drops = dict(figures.drops)
        problem = made.text if isinstance(made, Problem) else self._problem
        status = DiagnosticStatus(
            name=f"{self.get_fully_qualified_name()}: policy",
            hardware_id=session.policy.prior.prior_id[:12],
        )
        if goal is None:
            status.level = DiagnosticStatus.WARN if problem else DiagnosticStatus.OK
            status.message = problem or "waiting for an instruction"
        else:
            status.level = DiagnosticStatus.ERROR if problem else DiagnosticStatus.OK
            status.message = problem or f"executing '{goal.instruction}'"
        status.values = _key_values({
            "instruction": "" if goal is None else goal.instruction,
            "last goal ended": self._last_end,
            "last rejected goal": self._rejection,
            "fields": figures.fields,
            "field sequence": self._sequence,
            "rate_hz": f"{rate_hz:.1f}",
            "latency_ms.p50": f"{latency.p50_s * 1e3:.1f}",
            "latency_ms.p95": f"{latency.p95_s * 1e3:.1f}",
            "latency_ms.max": f"{latency.max_s * 1e3:.1f}",
            "inference_ms.p50": f"{inference.p50_s * 1e3:.1f}",
            "inference_ms.p95": f"{inference.p95_s * 1e3:.1f}",
            **{f"age_s.{name}": f"{age:.3f}" for name, age in ages.items()},
            "dropped observations": sum(drops.values()),
            **{f"dropped: {name}": count for name, count in sorted(drops.items())},
        })
        message = DiagnosticArray(status=[status])
        seconds, nanosec = divmod(time.time_ns(), 1_000_000_000)
        message.header.stamp.sec, message.header.stamp.nanosec = seconds, nanosec
        for publisher in self._status_publishers:
            publisher.publish(message)

    # -- end -------------------------------------------------------------------------------------
    def begin_shutdown(self) -> bool:
        """End the goal. True: there was one; spin a little longer so that its result is sent."""
        self._taking_goals = False
        running = self._goal is not None
        self._end_goal("the policy node was stopped", success=False)
        self._supervise()
        return running

    def close(self) -> None:
        """Release everything, after the last spin."""
        self._release()
        self._server.destroy()
        self._states.destroy()
        if self._poses is not None:
            self._poses.destroy()
        self.destroy_node()


def _image_topic(camera: str) -> str:
    return f"{camera}/image_raw"


def _steady() -> Clock:
    return Clock(clock_type=ClockType.STEADY_TIME)


def _key_values(values: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=str(value)) for key, value in values.items()]


def _load_policy(checkpoint: str, threads: int) -> PolicyLike:
    from niaf_policy.runtime import load_policy  # torch: not before signals are in hand

    return load_policy(checkpoint, threads)


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; exit code 2 when it cannot start."""
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = PolicyNode(_load_policy)
        node.get_logger().info("loading torch")
        import niaf_policy.runtime  # noqa: F401  seconds, in which SIGINT ends the process at once
    except ParameterException as error:
        print(f"policy: cannot start: {error}", file=sys.stderr, flush=True)
        rclpy.try_shutdown()
        return 2
    except KeyboardInterrupt:
        rclpy.try_shutdown()
        return 130
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    executor = EventsExecutor()
    executor.add_node(node)
    code = 0
    try:
        while not (stopping.is_set() or node.failed):
            try:
                executor.spin_once(timeout_sec=0.1)
            except RCLError as error:  # rclpy raises it for a transition that is not allowed now
                node.get_logger().error(f"request refused: {error}")
        end_s = time.monotonic() + (LAST_WORDS_S if node.begin_shutdown() else 0.0)
        while time.monotonic() < end_s:
            executor.spin_once(timeout_sec=0.02)
    except Exception as error:  # a callback failed: end the whole node, in order
        print(f"policy: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        code = 1
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # Python's own end would restore the default action
    executor.remove_node(node)
    node.close()
    rclpy.try_shutdown()
    return 2 if node.failed else code


if __name__ == "__main__":
    sys.exit(main())
