"""Real-time simulation node: the cell behind the interface of a real arm and its cameras.

A thread of its own runs the physics at 1 kHz against absolute deadlines: take the newest effort
command, advance the cell one control period, publish the joint state. Everything else (services,
parameters) is served by the main thread, and cameras render in another process.

With ``arm_interface`` mit_can or moteus the arm is reached through its motors instead: frames on a
CAN bus take the place of effort commands and joint states (:mod:`niaf_sim.motor_bus`).

All names are relative. After a reset (and at start) holding brakes keep the scene still until the
first effort command arrives, as on an arm whose brakes open when its controller takes over.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import rclpy
from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.experimental import EventsExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from niaf_impedance.drives.description import PROTOCOLS, drives_of_arm
from niaf_impedance.realtime import (
    avoid_shared_memory_stall,
    fine_timer_slack,
    quiet_interpreter,
    request_fifo,
)
from niaf_msgs.msg import TaskState
from niaf_msgs.srv import ResetScene
from niaf_sim.camera_process import NO_GRAPHICS, CameraOutput, CameraProcessConfig
from niaf_sim.polled_subscription import PolledSubscription
from niaf_sim.realtime import start_thread, thread_cpu_s
from niaf_sim.shared_snapshot import SharedSnapshot
from niaf_sim.wire import CommandDecoder, JointStateEncoder, command_problem

if TYPE_CHECKING:
    import can

    from niaf_sim.cell import Cell  # at run time main() imports it, once MUJOCO_GL is settled
    from niaf_sim.motor_bus import MotorBus

ARM_JOINTS = tuple(f"panda_joint{k}" for k in range(1, 8))
JOINT_NAMES = (*ARM_JOINTS, "panda_finger_joint1")
EFFORT = "effort"
MAIN_PRIORITY = 50
LOOP_PRIORITY = 70
RATE_WINDOW_S = 1.0


@dataclass
class LoopFigures:
    """What the physics loop measured; written by its thread only."""

    steps: int = 0
    overruns: int = 0
    catch_up_steps: int = 0
    skipped_periods: int = 0
    commands: int = 0
    rejected_commands: int = 0
    real_time_factor: float = 1.0
    lateness_peak_s: float = 0.0
    cpu_share: float = 0.0


@dataclass
class _ResetRequest:
    seed: int
    instruction: str
    start: str
    done: threading.Event = field(default_factory=threading.Event)
    problem: str = ""


class SimNode(Node):
    """Publishes what a robot cell publishes; see the module text."""

    def __init__(self, cell: Cell, gl_backend: str | None, transports: str | None) -> None:
        """Put ``cell`` on the graph.

        ``gl_backend`` and ``transports`` are the user's MUJOCO_GL and FASTDDS_BUILTIN_TRANSPORTS,
        handed on to the camera process.
        """
        super().__init__("sim")
        self._declare()
        self.cell = cell
        self._camera_environment = {
            "MUJOCO_GL": gl_backend, "FASTDDS_BUILTIN_TRANSPORTS": transports
        }
        self.cell.step(self.cell.torque_nm.copy(), 0.0)  # compiles before time counts
        self.cell.reset(
            int(self.get_parameter("seed").value),
            str(self.get_parameter("instruction").value),
            str(self.get_parameter("start").value),
        )
        self.figures = LoopFigures()
        self.frame_id = str(self.get_parameter("base_frame").value)
        self._stop = threading.Event()
        self._reset: _ResetRequest | None = None
        self.failure = ""

        newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._task_state = self.create_publisher(TaskState, "sim/task_state", 1)
        self._bus: can.BusABC | None = None
        arm_interface = str(self.get_parameter("arm_interface").value)
        if arm_interface == EFFORT:
            self._arm: _TopicArm | _MotorArm = _TopicArm(self, cell, newest)
        elif arm_interface in PROTOCOLS:
            self._arm = _MotorArm(*self._motors(arm_interface))
        else:
            raise ValueError(
                f"arm_interface is {arm_interface!r}; use one of {[EFFORT, *PROTOCOLS]}"
            )
        self._task = TaskState()
        self._task.header.frame_id = self.frame_id
        self.create_service(ResetScene, "~/reset_scene", self._on_reset_scene)

        self._shared = SharedSnapshot(self.cell.model.nq)
        self._shared.write(time.time_ns(), self.cell.snapshot())
        self._cameras = self._start_cameras()

    # -- parameters --------------------------------------------------------------------------
    def _declare(self) -> None:
        def ranged(name: str, value: float, low: float, top: float, text: str) -> None:
            limits = FloatingPointRange(from_value=low, to_value=top)
            self.declare_parameter(
                name, value,
                ParameterDescriptor(
                    description=text, read_only=True, floating_point_range=[limits]
                ),
            )

        fixed = ParameterDescriptor
        self.declare_parameter("seed", 0, fixed(description="seed of the first scene"))
        self.declare_parameter(
            "instruction", "pick up the red cube", fixed(description="task of the first scene")
        )
        self.declare_parameter("start", "home", fixed(description="first arm pose: home or random"))
        self.declare_parameter(
            "base_frame", "panda_link0", fixed(description="frame_id of joint and task states")
        )
        self.declare_parameter(
            "arm_interface", EFFORT,
            fixed(
                description=f"how the arm is reached: {EFFORT} (topics), or by frames of its "
                f"motors on a bus ({', '.join(PROTOCOLS)})"
            ),
        )
        self.declare_parameter(
            "drive_config", "",
            fixed(description="drive description (YAML) of those motors; empty: the shipped one"),
        )
        self.declare_parameter(
            "viewer", False, fixed(description="open MuJoCo's viewer (needs a screen)")
        )
        ranged("camera_rate_hz", 10.0, 0.1, 60.0, "scene and wrist images per second")
        ranged("overview_rate_hz", 10.0, 0.1, 60.0, "overview images per second")
        ranged("task_state_rate_hz", 20.0, 0.1, 1000.0, "task states per second")
        ranged(
            "max_catch_up_s", 0.05, 0.001, 1.0,
            "a loop further behind than this gives the lost time up instead of catching up",
        )

    # -- motors on a bus -----------------------------------------------------------------------
    def _motors(self, protocol: str) -> tuple[MotorBus, float]:
        """Emulated motors on the bus of the drive description, and the period of their clock."""
        from niaf_sim.motor_bus import MotorBus

        description = drives_of_arm(
            protocol, str(self.get_parameter("drive_config").value), ARM_JOINTS
        )
        motors = MotorBus(
            self.cell, description, np.array(self.cell.drives.config.watchdog_damping_nms)
        )
        self._bus = description.open_bus()
        motors.attach(self._bus)
        self.get_logger().info(
            f"{len(description.drive.joints)} {protocol} motors answer on {description.bus}"
        )
        return motors, self.cell.config.control_period_s

    # -- cameras -----------------------------------------------------------------------------
    def _start_cameras(self) -> subprocess.Popen[bytes]:
        images = float(self.get_parameter("camera_rate_hz").value)
        overview = float(self.get_parameter("overview_rate_hz").value)
        config = CameraProcessConfig(
            descriptor=self._shared.descriptor,
            positions=self.cell.model.nq,
            node_name=f"{self.get_name()}_cameras",
            namespace=self.get_namespace(),
            outputs=tuple(
                CameraOutput(
                    camera, self.resolve_topic_name(f"{camera}/image_raw"), rate_hz,
                    f"{camera}_camera",
                )
                for camera, rate_hz in (
                    ("scene", images), ("wrist", images), ("overview", overview)
                )
            ),
            viewer=bool(self.get_parameter("viewer").value),
        )
        environment = dict(os.environ)
        for name, value in self._camera_environment.items():
            environment.pop(name, None)
            if value:
                environment[name] = value
        return subprocess.Popen(
            [sys.executable, "-m", "niaf_sim.camera_process", config.to_json()],
            pass_fds=(self._shared.descriptor,),
            env=environment,
        )

    def check_cameras(self) -> str:
        """Empty while the camera process lives; else why the node must end."""
        code = self._cameras.poll()
        if code is None:
            return ""
        if code == NO_GRAPHICS:
            return "no camera images: MuJoCo cannot render here (see the message above)"
        return f"the camera process ended by itself with code {code}"

    # -- services ----------------------------------------------------------------------------
    def _on_reset_scene(
        self, request: ResetScene.Request, response: ResetScene.Response
    ) -> ResetScene.Response:
        wish = _ResetRequest(int(request.seed), request.instruction, request.start or "home")
        self._reset = wish
        if not wish.done.wait(5.0):
            response.success, response.message = False, "the physics loop does not answer"
        elif wish.problem:
            response.success, response.message = False, wish.problem
        else:
            response.success = True
            response.message = (
                f"seed {wish.seed}, {wish.instruction!r}, arm at {wish.start}; brakes hold until "
                "the first effort command"
            )
        if response.success:
            self.get_logger().info(f"reset_scene: {response.message}")
        else:
            self.get_logger().error(f"reset_scene refused: {response.message}")
        return response

    # -- the loop (its own thread) -----------------------------------------------------------
    def run_loop(self) -> None:
        """Physics until :meth:`stop`; a failure is kept in ``failure``."""
        try:
            self._loop()
        except Exception as error:
            self.failure = f"physics loop failed: {type(error).__name__}: {error}"
            self.get_logger().fatal(self.failure)

    def _loop(self) -> None:
        cell, figures, shared, arm = self.cell, self.figures, self._shared, self._arm
        data = cell.data
        period_ns = round(cell.config.control_period_s * 1e9)
        give_up_ns = round(float(self.get_parameter("max_catch_up_s").value) * 1e9)
        task_every = max(
            1, round(1e9 / (float(self.get_parameter("task_state_rate_hz").value) * period_ns))
        )
        clock, wall = time.monotonic_ns, time.time_ns
        deadline = clock() + period_ns
        window_start, window_steps, window_cpu_s = clock(), 0, thread_cpu_s()
        while not self._stop.is_set():
            now = clock()
            if now < deadline:
                time.sleep((deadline - now) * 1e-9)
                now = clock()
            elif now > deadline:
                figures.catch_up_steps += 1
            late_ns = now - deadline
            figures.lateness_peak_s = max(figures.lateness_peak_s, late_ns * 1e-9)
            if late_ns > give_up_ns:
                lost = late_ns // period_ns
                figures.skipped_periods += int(lost)
                deadline += lost * period_ns

            reset = self._reset
            if reset is not None:
                self._reset = None
                self._apply_reset(reset)
                deadline = clock()

            braked, effort, gripper = arm.take(figures)
            if not braked:
                cell.step(effort, gripper)
            stamp_ns = wall()
            arm.report(stamp_ns)
            shared.write(stamp_ns, data.qpos)

            figures.steps += 1
            window_steps += 1
            if figures.steps % task_every == 0:
                self._publish_task(stamp_ns)
            deadline += period_ns
            now = clock()
            if now > deadline:
                figures.overruns += 1
            elapsed_ns = now - window_start
            if elapsed_ns >= RATE_WINDOW_S * 1e9:
                figures.real_time_factor = window_steps * period_ns / elapsed_ns
                cpu_s = thread_cpu_s()
                figures.cpu_share = (cpu_s - window_cpu_s) / (elapsed_ns * 1e-9)
                window_start, window_steps, window_cpu_s = now, 0, cpu_s

    def _apply_reset(self, wish: _ResetRequest) -> None:
        """Reset in the loop's thread; when the scene is new, brakes hold it."""
        try:
            self.cell.reset(wish.seed, wish.instruction, wish.start)
        except ValueError as error:
            wish.problem = str(error)
        else:
            self._arm.close_brakes()  # a command for the old scene must not move the new one
            self.figures.overruns = 0
        wish.done.set()

    def _publish_task(self, stamp_ns: int) -> None:
        task, cell = self._task, self.cell
        task.header.stamp.sec, task.header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
        task.instruction = cell.instruction
        task.success = bool(cell.success())
        task.elapsed_s = cell.time_s
        task.seed = cell.seed
        task.real_time_factor = self.figures.real_time_factor
        task.overruns = self.figures.overruns
        self._task_state.publish(task)

    # -- end ---------------------------------------------------------------------------------
    def stop(self) -> None:
        """End the loop and the camera process."""
        self._stop.set()
        self._shared.request_stop()

    def close(self) -> None:
        """Release what the node owns, after the loop has ended."""
        self._shared.request_stop()
        try:
            self._cameras.wait(3.0)
        except subprocess.TimeoutExpired:
            self._cameras.kill()
            self._cameras.wait()
        self._arm.destroy()
        if self._bus is not None:
            self._bus.shutdown()
        self.destroy_node()


class _TopicArm:
    """The arm as effort commands and joint states on topics."""

    def __init__(self, node: SimNode, cell: Cell, newest: QoSProfile) -> None:
        self._node, self._cell = node, cell
        self._joint_states = node.create_publisher(JointState, "joint_states", newest)
        self._encoder = JointStateEncoder(JOINT_NAMES, node.frame_id)
        self._finger = int(cell.model.joint(JOINT_NAMES[-1]).dofadr[0])
        self._effort_decoder = CommandDecoder(len(ARM_JOINTS))
        self._gripper_decoder = CommandDecoder(1)
        self._efforts = PolledSubscription(
            node, Float64MultiArray, "effort_controller/commands", newest
        )
        self._grippers = PolledSubscription(
            node, Float64MultiArray, "gripper_controller/commands", newest
        )
        self._braked = True

    def take(self, figures: LoopFigures) -> tuple[bool, np.ndarray | None, float | None]:
        """(brakes hold, newest torque command if there is one, newest hand command if any)."""
        effort = self._take(
            figures, self._efforts.take_newest(), self._effort_decoder, len(ARM_JOINTS), "effort"
        )
        gripper = self._take(
            figures, self._grippers.take_newest(), self._gripper_decoder, 1, "gripper"
        )
        if effort is not None:
            figures.commands += 1
            self._braked = False
        return self._braked, effort, None if gripper is None else float(gripper[0])

    def _take(
        self,
        figures: LoopFigures,
        data: bytes | None,
        decoder: CommandDecoder,
        count: int,
        name: str,
    ) -> np.ndarray | None:
        if data is None:
            return None
        values = decoder.decode(data)
        problem = command_problem(values, count)
        if problem:
            figures.rejected_commands += 1
            self._node.get_logger().warning(
                f"{name} command dropped: {problem} ({figures.rejected_commands} dropped so far)",
                throttle_duration_sec=2.0,
            )
            return None
        return values

    def report(self, stamp_ns: int) -> None:
        """Publish the joint state."""
        cell, encoder, arm = self._cell, self._encoder, len(ARM_JOINTS)
        encoder.position[:arm] = cell.q
        encoder.velocity[:arm] = cell.dq
        encoder.effort[:arm] = cell.torque_nm
        encoder.position[arm] = 0.5 * cell.gripper_width_m
        encoder.velocity[arm] = cell.data.qvel[self._finger]
        encoder.effort[arm] = 0.0
        self._joint_states.publish(encoder.encode(stamp_ns))

    def close_brakes(self) -> None:
        """Hold until the next effort command; what waits is dropped."""
        self._efforts.take_newest()
        self._grippers.take_newest()
        self._braked = True

    def destroy(self) -> None:
        """Give the subscriptions back."""
        self._efforts.destroy()
        self._grippers.destroy()


class _MotorArm:
    """The arm as motors that answer frames; who commands them publishes the joint states."""

    def __init__(self, motors: MotorBus, period_s: float) -> None:
        self._motors, self._period_s = motors, period_s

    def take(self, figures: LoopFigures) -> tuple[bool, np.ndarray | None, float | None]:
        """(brakes hold, what the motors ask of their current loops, opening of the hand)."""
        self._motors.poll()
        figures.commands = self._motors.frames
        torque, width = self._motors.command()
        return torque is None, torque, width

    def report(self, stamp_ns: int) -> None:
        """One period of the motors is over."""
        self._motors.advance(self._period_s)

    def close_brakes(self) -> None:
        """Hold until every motor is commanded again."""
        self._motors.close_brakes()

    def destroy(self) -> None:
        """Nothing is owned."""


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; exit code 1 when the loop or the cameras failed."""
    scheduling = request_fifo(MAIN_PRIORITY)  # before rclpy.init: its threads inherit it
    fine_timer_slack()
    # Physics needs no OpenGL: a missing GL library must not stop it. The cameras choose their own.
    gl_backend = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disable"
    transports = avoid_shared_memory_stall()
    from niaf_sim.cell import Cell

    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = SimNode(Cell(), gl_backend, transports)
    except (ValueError, ParameterException) as error:
        print(f"sim: cannot start: {error}", file=sys.stderr, flush=True)
        rclpy.try_shutdown()
        return 2
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    executor = EventsExecutor()
    executor.add_node(node)
    quiet_interpreter()
    loop, granted = start_thread("physics", node.run_loop, LOOP_PRIORITY)
    node.get_logger().info(
        f"{1.0 / node.cell.config.control_period_s:.0f} Hz physics of {node.cell.instruction!r}, "
        f"seed {node.cell.seed}; {scheduling}"
    )
    failure = ""
    while not (stopping.is_set() or failure):
        try:
            executor.spin_once(timeout_sec=0.1)
        except Exception as error:  # a callback failed: end the whole node, in order
            failure = f"{type(error).__name__}: {error}"
        failure = failure or node.failure or node.check_cameras()
    node.stop()
    loop.join(2.0)
    if failure:
        print(f"sim: {failure}", file=sys.stderr, flush=True)
    figures = node.figures
    print(
        f"sim: {figures.steps} steps, {figures.overruns} overruns since the last reset, "
        f"{figures.catch_up_steps} catch-up steps, {figures.skipped_periods} periods given up, "
        f"worst lateness {figures.lateness_peak_s * 1e3:.2f} ms, real-time factor "
        f"{figures.real_time_factor:.3f}, loop CPU {figures.cpu_share * 100:.0f} %, "
        f"{figures.commands} commands, {figures.rejected_commands} dropped; {'; '.join(granted)}",
        flush=True,
    )
    node.close()
    rclpy.try_shutdown()
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
