"""Runs episodes over the running ROS graph and reports what happened.

Starts simulation, policy and impedance node through the starter (or attaches to a graph that runs),
gives the policy one instruction after another, and writes summary.json, tracking.png, episode.mp4
and recording.mcap. The exit code says whether the graph worked, not whether the policy was good:
0 done, 1 a node died or a file is missing, 2 wrong arguments, 3 success rate below the required.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from niaf_sim.graph_process import GraphError, GraphProcess, find_starter
from niaf_sim.graphics import GraphicsError, choose_gl_backend
from niaf_sim.summary import Episode, build_summary, format_table
from niaf_sim.tasks import INSTRUCTIONS, UnknownInstructionError, parse_instruction

#: first scene seed of the demo, far from those used for recording and lock-step evaluation
DEMO_SEED = 2_000_000
#: seconds that the video goes on after a success
EPILOGUE_S = 0.8
#: longest wait for the answer of a service; generous, because the machine may be busy
SERVICE_TIMEOUT_S = 15.0
#: a controller that reported nothing for this long has switched its torque off
QUIET_S = 0.15
#: refused fields that are printed per episode; the rest is only counted
REFUSALS_SHOWN = 3
#: a stream silent for this long counts as dead
SILENCE_S = 3.0


class DemoError(RuntimeError):
    """The demo cannot go on; the text names the reason and, where there is one, the remedy."""


@dataclass(frozen=True)
class DemoConfig:
    """What the command line asked for."""

    episodes: int
    seed: int
    out: Path
    checkpoint: str
    timeout_s: float
    start_timeout_s: float
    viewer: bool
    attach: bool
    namespace: str
    instructions: tuple[str, ...]
    required_success_rate: float
    video_episodes: int
    launch_file: str
    launch_args: tuple[str, ...]


def schedule(episodes: int, seed: int, instructions: tuple[str, ...]) -> list[tuple[str, int]]:
    """(instruction, scene seed) of each episode: every instruction once per round, shuffled."""
    rng = np.random.default_rng(seed)
    order: list[str] = []
    while len(order) < episodes:
        order += [instructions[k] for k in rng.permutation(len(instructions))]
    first = DEMO_SEED + 10_000 * seed
    return [(order[k], first + k) for k in range(episodes)]


def parse_arguments(argv: list[str] | None) -> DemoConfig:
    """Command line to configuration; exits with code 2 and a message on nonsense."""
    parser = argparse.ArgumentParser(
        prog="niaf_demo", description="Closed-loop demo over the running ROS 2 graph."
    )
    parser.add_argument("--episodes", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="changes scenes and order")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the results")
    parser.add_argument("--checkpoint", default="", help="folder; default: the shipped one")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds per episode")
    parser.add_argument("--start-timeout", type=float, default=120.0, help="seconds to get ready")
    parser.add_argument("--viewer", action="store_true", help="open MuJoCo's viewer")
    parser.add_argument("--attach", action="store_true", help="use a graph that runs already")
    parser.add_argument("--namespace", default="", help="namespace of the nodes")
    parser.add_argument(
        "--instruction", action="append", default=[], help="only this one (may be repeated)"
    )
    parser.add_argument("--require-success-rate", type=float, default=0.0, metavar="0..1")
    parser.add_argument("--video-episodes", type=int, default=12, help="how many to film")
    parser.add_argument("--launch-file", default="demo.launch.yaml")
    parser.add_argument("launch_args", nargs="*", metavar="name:=value", help="for the launch file")
    a = parser.parse_args(argv)
    try:
        for text in a.instruction:
            parse_instruction(text)
    except UnknownInstructionError as error:
        parser.error(str(error))
    if a.episodes < 1:
        parser.error(f"--episodes {a.episodes}: at least 1")
    if not 0 <= a.seed < 100_000:
        parser.error(f"--seed {a.seed}: 0 to 99999")
    if not (math.isfinite(a.timeout) and a.timeout > 0.0):
        parser.error(f"--timeout {a.timeout}: seconds above 0")
    if not 0.0 <= a.require_success_rate <= 1.0:
        parser.error(f"--require-success-rate {a.require_success_rate}: 0 to 1")
    bad = [text for text in a.launch_args if ":=" not in text]
    if bad:
        parser.error(f"launch arguments look like name:=value, not {' '.join(bad)}")
    if a.attach and (a.launch_args or a.checkpoint or a.viewer):
        parser.error("--attach takes the graph as it is: no --checkpoint, --viewer, name:=value")
    return DemoConfig(
        episodes=a.episodes, seed=a.seed, out=a.out, checkpoint=a.checkpoint,
        timeout_s=a.timeout, start_timeout_s=a.start_timeout, viewer=a.viewer, attach=a.attach,
        namespace=a.namespace, instructions=tuple(a.instruction) or INSTRUCTIONS,
        required_success_rate=a.require_success_rate, video_episodes=a.video_episodes,
        launch_file=a.launch_file, launch_args=tuple(a.launch_args),
    )


def say(text: str) -> None:
    """One line for the person watching."""
    print(text, flush=True)


class Demo:
    """The ROS side of a demo run. Everything happens in one thread, inside :meth:`spin`."""

    def __init__(self, config: DemoConfig, alive: Callable[[], str]) -> None:
        """``alive`` returns empty, or why the run must end."""
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from lifecycle_msgs.srv import ChangeState, GetState
        from rclpy.action import ActionClient
        from rclpy.experimental import EventsExecutor
        from rclpy.node import Node
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from rclpy.signals import SignalHandlerOptions
        from sensor_msgs.msg import Image

        from niaf_msgs.action import ExecuteInstruction
        from niaf_msgs.msg import AdmissionReport, ImpedanceState, TaskState
        from niaf_msgs.srv import ResetScene

        self.config = config
        self._alive = alive
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        node = Node("niaf_demo", namespace=config.namespace)
        self.node = node
        newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        state = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
        node.create_subscription(TaskState, "sim/task_state", self._on_task, 10)
        node.create_subscription(ImpedanceState, "impedance/state", self._on_state, state)
        node.create_subscription(AdmissionReport, "impedance/admission", self._on_admission, state)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        node.create_subscription(Image, "overview/image_raw", self._on_image, newest)
        self._reset_client = node.create_client(ResetScene, "sim/reset_scene")
        self._get_state = {
            name: node.create_client(GetState, f"{name}/get_state")
            for name in ("impedance", "policy")
        }
        self._change_state = node.create_client(ChangeState, "impedance/change_state")
        self._execute = ActionClient(node, ExecuteInstruction, "policy/execute")
        self._executor = EventsExecutor()
        self._executor.add_node(node)

        self.task: Any = None
        self.impedance: Any = None
        self.image: Any = None
        self.heard_s: dict[str, float] = {}
        self._episode: Episode | None = None
        self._reset_stamp_s = 0.0
        self._tasks: list[tuple[float, float]] = []
        self._field_times_s: list[float] = []
        self._last_sequence = 0
        self._film: Callable[[Any], None] | None = None

    # -- what comes in -----------------------------------------------------------------------
    def _on_task(self, message: Any) -> None:
        self.task = message
        self.heard_s["sim/task_state"] = time.monotonic()
        if self._episode is not None and self._of_episode(message):
            self._tasks.append((_stamp_s(message), float(message.elapsed_s)))
            self._episode.overruns = int(message.overruns)

    def _of_episode(self, message: Any) -> bool:
        episode = self._episode
        return (
            episode is not None
            and message.seed == episode.seed
            and _stamp_s(message) > self._reset_stamp_s
        )

    def _on_state(self, message: Any) -> None:
        self.impedance = message
        self.heard_s["impedance/state"] = time.monotonic()
        if self._episode is not None:
            self._episode.trace.append(message)

    def _on_admission(self, message: Any) -> None:
        episode = self._episode
        if episode is None:
            return
        episode.refused_fields += int(message.verdict == message.REFUSED)
        episode.slowed_fields += int(message.verdict == message.SLOWED)
        episode.field_age_s.append(float(message.age_s))
        if message.verdict == message.REFUSED and episode.refused_fields <= REFUSALS_SHOWN:
            say(f"      field {message.sequence} refused: {message.reason_text}")

    def _on_diagnostics(self, message: Any) -> None:
        if self._episode is None:
            return
        for status in message.status:
            if status.name.endswith("impedance: loop"):
                figures = {}
                for item in status.values:
                    with contextlib.suppress(ValueError):
                        figures[item.key] = float(item.value)
                self._episode.loop = figures

    def _on_image(self, message: Any) -> None:
        self.image = message
        self.heard_s["overview/image_raw"] = time.monotonic()
        if self._film is not None:
            self._film(message)

    def _on_feedback(self, message: Any) -> None:
        episode = self._episode
        if episode is None:
            return
        feedback = message.feedback
        if feedback.field_sequence in (0, self._last_sequence):
            return  # a sign of life between two fields
        self._last_sequence = feedback.field_sequence
        episode.fields += 1
        episode.latency_s.append(float(feedback.latency_s))
        self._field_times_s.append(time.monotonic())

    # -- waiting -----------------------------------------------------------------------------
    def spin(self, seconds: float) -> None:
        """Serve the graph for a while; raises DemoError when something died."""
        end_s = time.monotonic() + seconds
        while True:
            problem = self._alive()
            if problem:
                raise DemoError(problem)
            left_s = end_s - time.monotonic()
            if left_s <= 0.0:
                return
            self._executor.spin_once(timeout_sec=min(left_s, 0.05))

    def wait_for(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Serve the graph until ``ready``; False after ``timeout_s``."""
        end_s = time.monotonic() + timeout_s
        while not ready():
            if time.monotonic() >= end_s:
                return False
            self.spin(0.02)
        return True

    def call(self, client: Any, request: Any, timeout_s: float, what: str) -> Any:
        """Response of a service; DemoError names the service that did not answer."""
        future = client.call_async(request)
        if not self.wait_for(future.done, timeout_s):
            raise DemoError(
                f"{what}: service {client.srv_name} did not answer in {timeout_s:.0f} s"
            )
        return future.result()

    def _lifecycle_state(self, name: str) -> str:
        from lifecycle_msgs.srv import GetState

        answer = self.call(
            self._get_state[name], GetState.Request(), SERVICE_TIMEOUT_S, f"state of {name}"
        )
        return str(answer.current_state.label)

    def _becomes_active(self, name: str) -> Callable[[], bool]:
        """Check for a node that may be busy starting: asks again and again, never waits."""
        from lifecycle_msgs.srv import GetState

        client = self._get_state[name]
        asked: list[tuple[float, Any]] = []

        def check() -> bool:
            now_s = time.monotonic()
            if asked and asked[-1][1].done():
                if asked[-1][1].result().current_state.label == "active":
                    return True
                asked.clear()
            if client.service_is_ready() and (not asked or now_s - asked[-1][0] > 5.0):
                asked.append((now_s, client.call_async(GetState.Request())))
            return False

        return check

    # -- getting ready -----------------------------------------------------------------------
    def wait_until_ready(self) -> None:
        """Wait for every part of the graph, saying what arrives; DemoError names what does not."""
        node = self.node
        began_s = time.monotonic()

        def published(topic: str) -> Callable[[], bool]:
            return lambda: node.count_publishers(topic) > 0

        steps: list[tuple[str, Callable[[], bool], str]] = [
            ("sim runs", lambda: self.task is not None, "no message on sim/task_state"),
            (
                "sim publishes joint states", published("joint_states"),
                "nobody publishes joint_states",
            ),
            (
                "cameras render", lambda: self.image is not None,
                "no image on overview/image_raw: see the camera process's message in the log",
            ),
            (
                "scene and wrist images are there",
                lambda: published("scene/image_raw")() and published("wrist/image_raw")(),
                "nobody publishes scene/image_raw or wrist/image_raw",
            ),
            (
                "impedance node is active", self._becomes_active("impedance"),
                "lifecycle node impedance is not active",
            ),
            (
                "impedance node reports", lambda: self.impedance is not None,
                "no message on impedance/state",
            ),
            (
                "policy node is active", self._becomes_active("policy"),
                "lifecycle node policy is not active (it loads its checkpoint first)",
            ),
            (
                "policy takes instructions", self._execute.server_is_ready,
                "no action server policy/execute",
            ),
            (
                "scene can be reset", self._reset_client.service_is_ready,
                "no service sim/reset_scene",
            ),
        ]
        waiting = dict((name, (check, complaint)) for name, check, complaint in steps)
        while waiting:
            for name in list(waiting):
                if waiting[name][0]():
                    del waiting[name]
                    say(f"  {time.monotonic() - began_s:5.1f} s  {name}")
            if waiting and time.monotonic() - began_s > self.config.start_timeout_s:
                missing = "; ".join(complaint for _, complaint in waiting.values())
                raise DemoError(
                    f"graph not ready after {self.config.start_timeout_s:.0f} s: {missing}"
                )
            self.spin(0.2)

    def wait_for_recorder(self) -> None:
        """The recorder is a second reader of what this node reads; nothing happens before it is."""
        if not self.wait_for(lambda: self.node.count_subscribers("impedance/state") > 1, 30.0):
            raise DemoError("the recorder does not subscribe to impedance/state within 30 s")
        self.spin(0.7)  # one more look at the graph, so that it has the other topics too

    # -- one episode -------------------------------------------------------------------------
    def _transition(self, identifier: int, wanted: str) -> None:
        from lifecycle_msgs.srv import ChangeState

        request = ChangeState.Request()
        request.transition.id = identifier
        answer = self.call(self._change_state, request, SERVICE_TIMEOUT_S, f"impedance to {wanted}")
        if not answer.success:
            now = self._lifecycle_state("impedance")
            raise DemoError(
                f"the impedance node refused to become {wanted} (it is {now}); its log says why"
            )

    def _wait_for_silence(self) -> None:
        """A deactivated controller ramps its torque down before it falls silent."""

        def silent() -> bool:
            return time.monotonic() - self.heard_s.get("impedance/state", 0.0) > QUIET_S

        if not self.wait_for(silent, 8.0):
            raise DemoError("the impedance node is inactive but still reports states after 8 s")

    def prepare(self, episode: Episode) -> None:
        """Controller off, new scene, controller on: it starts from the pose it finds."""
        from lifecycle_msgs.msg import Transition

        from niaf_msgs.srv import ResetScene

        if self._lifecycle_state("impedance") == "active":
            self._transition(Transition.TRANSITION_DEACTIVATE, "inactive")
            self._wait_for_silence()
        request = ResetScene.Request(
            seed=episode.seed, instruction=episode.instruction, start="home"
        )
        answer = self.call(self._reset_client, request, SERVICE_TIMEOUT_S, "new scene")
        if not answer.success:
            raise DemoError(f"sim/reset_scene refused: {answer.message}")
        self._reset_stamp_s = time.time()
        self._transition(Transition.TRANSITION_ACTIVATE, "active")
        self._episode = episode
        self._tasks, self._field_times_s = [], []
        fresh = self.wait_for(
            lambda: (
                self.task is not None
                and self._of_episode(self.task)
                and self.image is not None
                and _stamp_s(self.image) > self._reset_stamp_s
                and len(episode.trace) > 0
            ),
            5.0,
        )
        if not fresh:
            raise DemoError(
                "after the reset no fresh task state, image or controller state came within 5 s"
            )

    def run_episode(self, episode: Episode, film: Callable[[Any], None] | None) -> None:
        """Execute one instruction until success, timeout or the end of the goal."""
        from niaf_msgs.action import ExecuteInstruction

        self.prepare(episode)
        self._film = film
        goal = ExecuteInstruction.Goal(
            instruction=episode.instruction, timeout_s=self.config.timeout_s + 5.0
        )
        sent = self._execute.send_goal_async(goal, feedback_callback=self._on_feedback)
        if not self.wait_for(sent.done, SERVICE_TIMEOUT_S):
            raise DemoError("policy/execute did not answer the goal in time")
        handle = sent.result()
        if not handle.accepted:
            raise DemoError(f"policy/execute refused the goal {episode.instruction!r}")
        result = handle.get_result_async()
        began_s = time.monotonic()

        def succeeded() -> bool:
            return self.task is not None and self._of_episode(self.task) and self.task.success

        while time.monotonic() - began_s < self.config.timeout_s:
            self.spin(0.02)
            if succeeded() or result.done():
                break
            self._check_streams()
        episode.success = succeeded()
        episode.duration_s = time.monotonic() - began_s
        if episode.success:
            episode.outcome = "done"
        elif result.done():
            episode.outcome = f"the policy ended: {result.result().result.message}"
        else:
            episode.outcome = "time is up"
        self.spin(EPILOGUE_S)
        if not result.done():
            cancelled = handle.cancel_goal_async()
            if not self.wait_for(lambda: cancelled.done() and result.done(), 5.0):
                raise DemoError("policy/execute did not end the goal within 5 s of its cancelling")
        self.spin(0.1)
        self._film = None
        self._episode = None
        if len(self._tasks) > 1:
            (stamp_0, elapsed_0), (stamp_1, elapsed_1) = self._tasks[0], self._tasks[-1]
            episode.wall_s, episode.simulated_s = stamp_1 - stamp_0, elapsed_1 - elapsed_0
        if len(self._field_times_s) > 1:
            episode.policy_span_s = self._field_times_s[-1] - self._field_times_s[0]

    def _check_streams(self) -> None:
        now_s = time.monotonic()
        for name, heard_s in self.heard_s.items():
            if now_s - heard_s > SILENCE_S:
                raise DemoError(f"{name} has been silent for {now_s - heard_s:.1f} s")

    def close(self) -> None:
        """Leave the graph."""
        import rclpy

        self._execute.destroy()
        self.node.destroy_node()
        rclpy.try_shutdown()


def _stamp_s(message: Any) -> float:
    return message.header.stamp.sec + message.header.stamp.nanosec * 1e-9


class Film:
    """Overview images of several episodes in one video, with captions."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None
        self._offset_s = 0.0
        self._last_s = 0.0

    def of(
        self, episode: Episode, total: int, succeeded: Callable[[], bool]
    ) -> Callable[[Any], None]:
        """Callback that appends each image of ``episode``."""
        start: list[float] = []

        def add(message: Any) -> None:
            from niaf_sim.video import VideoWriter

            if message.encoding != "rgb8":
                raise DemoError(f"overview/image_raw is {message.encoding}, rgb8 expected")
            rgb = np.frombuffer(message.data, dtype=np.uint8)
            rgb = rgb.reshape(message.height, message.width, 3)
            if self._writer is None:
                self._writer = VideoWriter(self._path, message.width, message.height)
            stamp_s = _stamp_s(message)
            if not start:
                start.append(stamp_s)
                self._offset_s = self._last_s + (0.3 if self._writer.frames else 0.0)
            since_s = stamp_s - start[0]
            self._last_s = self._offset_s + since_s
            done = succeeded()
            self._writer.add(
                rgb, self._last_s,
                f"{episode.number}/{total}  \u201c{episode.instruction}\u201d",
                "success" if done else f"{since_s:4.1f} s",
                (110, 220, 120) if done else (235, 235, 235),
            )

        return add

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _start_recorder(config: DemoConfig, path: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "niaf_sim.recorder_node", "--ros-args"]
    command += ["-p", f"output:={path.resolve()}"]
    if config.namespace:
        command += ["-r", f"__ns:=/{config.namespace.strip('/')}"]
    with log.open("wb") as stream:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _stop_recorder(recorder: subprocess.Popen[bytes]) -> None:
    if recorder.poll() is None:
        recorder.send_signal(signal.SIGINT)
        try:
            recorder.wait(20.0)
        except subprocess.TimeoutExpired:
            recorder.kill()
            recorder.wait()


def torque_limits_nm() -> np.ndarray:
    """Torque limits of the simulated drives, float64[7]."""
    os.environ["MUJOCO_GL"] = "disable"  # reading a number needs no OpenGL
    from niaf_sim.scene import SceneConfig

    return np.array(SceneConfig().torque_limit_nm)


def _write_results(config: DemoConfig, episodes: list[Episode], checkpoint: str) -> dict[str, Any]:
    from niaf_sim.plots import plot_tracking

    summary = build_summary(episodes, checkpoint, config.seed)
    (config.out / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    plotted = next((e for e in episodes if e.success), episodes[0])
    plot_tracking(config.out / "tracking.png", plotted, torque_limits_nm())
    return summary


def _run(config: DemoConfig, stopped: Callable[[], str]) -> int:
    out = config.out
    out.mkdir(parents=True, exist_ok=True)
    results = [out / n for n in ("summary.json", "tracking.png", "episode.mp4", "recording.mcap")]
    for path in results:
        path.unlink(missing_ok=True)  # what lies there afterwards is from this run
    graph: GraphProcess | None = None
    recorder: subprocess.Popen[bytes] | None = None
    demo: Demo | None = None
    film = Film(out / "episode.mp4")
    episodes: list[Episode] = []

    def alive() -> str:
        problem = stopped() or (graph.problem() if graph is not None else "")
        if not problem and recorder is not None and recorder.poll() is not None:
            problem = f"the recorder ended with code {recorder.returncode}; see {out}/recorder.log"
        return problem

    failure = ""
    try:
        if not config.attach:
            backend = choose_gl_backend()
            if backend.note:
                say(f"graphics: {backend.note}")
            os.environ["MUJOCO_GL"] = backend.name
            graph = GraphProcess(_launch_command(config), out / "graph.log")
            say(f"starting {config.launch_file} (output in {graph.log})")
        os.nice(5)  # the graph comes first: this process and the recorder only watch
        demo = Demo(config, alive)
        demo.wait_until_ready()
        if graph is not None:
            graph.watch()
        recorder = _start_recorder(config, out / "recording.mcap", out / "recorder.log")
        demo.wait_for_recorder()
        plan = schedule(config.episodes, config.seed, config.instructions)
        for number, (instruction, seed) in enumerate(plan, 1):
            episode = Episode(number=number, instruction=instruction, seed=seed)
            say(f"[{number}/{len(plan)}] {instruction} (seed {seed})")
            running = demo

            def succeeded(running: Demo = running, seed: int = seed) -> bool:
                return bool(running.task.success and running.task.seed == seed)

            demo.run_episode(
                episode,
                film.of(episode, len(plan), succeeded) if number <= config.video_episodes else None,
            )
            episodes.append(episode)
            say(
                f"      {'SUCCESS' if episode.success else 'failed: ' + episode.outcome} after "
                f"{episode.duration_s:.1f} s; {episode.fields} fields at "
                f"{episode.policy_rate_hz:.1f} Hz ({episode.refused_fields} refused), tracking rms "
                f"{episode.tracking_rms_rad() * 1e3:.1f} mrad, real-time factor "
                f"{episode.real_time_factor:.3f}".replace("nan", "-")
            )
    except (DemoError, GraphError, GraphicsError) as error:
        failure = str(error)
        if graph is not None:
            failure += f"\n  last output of the nodes ({graph.log}):\n{graph.log_tail()}"
    finally:
        if recorder is not None:
            _stop_recorder(recorder)
        if demo is not None:
            demo.close()
        film.close()
        if graph is not None:
            complaint = graph.stop()
            if complaint and not failure:
                say(f"while stopping: {complaint} (see {graph.log})")
    summary: dict[str, Any] | None = None
    if episodes:
        checkpoint = config.checkpoint or ("(running graph)" if config.attach else "(shipped)")
        try:
            summary = _write_results(config, episodes, checkpoint)
        except (ValueError, OSError) as error:
            failure = failure or str(error)
    if summary is not None:
        say("")
        say(format_table(summary))
        say("")
    missing = [path.name for path in results if not path.is_file() or path.stat().st_size == 0]
    if not failure and missing:
        failure = f"not written: {', '.join(missing)}"
    if failure:
        print(f"demo failed: {failure}", file=sys.stderr, flush=True)
        return 1
    for path in results:
        say(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")
    if summary is not None and summary["success_rate"] < config.required_success_rate:
        print(
            f"success rate {summary['success_rate']:.2f} is below the required "
            f"{config.required_success_rate:.2f}",
            file=sys.stderr,
        )
        return 3
    return 0


def _launch_command(config: DemoConfig) -> list[str]:
    command = [*find_starter(), config.launch_file]
    if config.checkpoint:
        command.append(f"checkpoint:={Path(config.checkpoint).resolve()}")
    if config.viewer:
        command.append("viewer:=true")
    if config.namespace:
        command.append(f"namespace:={config.namespace}")
    return [*command, *config.launch_args]


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``niaf_demo``."""
    config = parse_arguments(argv)
    caught: list[str] = []

    def note(number: int, _: object) -> None:
        caught.append(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return _run(config, lambda: f"stopped by {caught[0]}" if caught else "")


if __name__ == "__main__":
    sys.exit(main())
