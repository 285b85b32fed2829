"""Renders and publishes the cell's cameras in a process of its own.

Rendering in software and serialising images hold the interpreter and both cores for milliseconds;
the physics loop has one. So the sim node only writes its newest positions into shared memory, and
this process (ordinary priority) renders them, stamped with the instant at which they were taken.
It also owns MuJoCo's viewer. The sim node starts it; it is not meant to be started by hand.
"""

from __future__ import annotations

import array
import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass

from niaf_sim.graphics import GraphicsError, choose_gl_backend
from niaf_sim.realtime import ordinary_scheduling
from niaf_sim.shared_snapshot import SharedSnapshot

#: exit code when nothing can render
NO_GRAPHICS = 3


@dataclass(frozen=True)
class CameraOutput:
    """One published camera."""

    camera: str
    topic: str
    rate_hz: float
    frame_id: str


@dataclass(frozen=True)
class CameraProcessConfig:
    """What the sim node tells the camera process."""

    descriptor: int
    positions: int
    node_name: str
    namespace: str
    outputs: tuple[CameraOutput, ...]
    viewer: bool = False
    viewer_rate_hz: float = 30.0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> CameraProcessConfig:
        raw = json.loads(text)
        raw["outputs"] = tuple(CameraOutput(**output) for output in raw["outputs"])
        return CameraProcessConfig(**raw)


@dataclass
class _Task:
    """Something due at a fixed rate; ``due_s`` on the monotonic clock."""

    period_s: float
    due_s: float

    def pop(self, now_s: float) -> bool:
        if now_s < self.due_s:
            return False
        self.due_s += self.period_s
        if self.due_s < now_s:  # more than a whole period late: skip, never burst
            self.due_s = now_s + self.period_s
        return True


def has_screen() -> bool:
    """True where a window can be opened."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _render_until_stopped(config: CameraProcessConfig, shared: SharedSnapshot) -> int:
    import mujoco  # after MUJOCO_GL is settled
    import numpy as np
    import rclpy
    from rclpy.node import Node
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from rclpy.signals import SignalHandlerOptions
    from sensor_msgs.msg import Image

    from niaf_sim.cell import Cell

    cell = Cell()
    visual = mujoco.MjData(cell.model)
    qpos = np.zeros(config.positions)
    parent = os.getppid()

    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = Node(
        config.node_name, namespace=config.namespace, start_parameter_services=False,
        use_global_arguments=False,
    )
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publishers = [node.create_publisher(Image, output.topic, qos) for output in config.outputs]
    messages = []
    for output in config.outputs:
        height, width, _ = cell.render(output.camera, visual).shape  # also warms the renderer up
        message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
        message.header.frame_id = output.frame_id
        messages.append(message)

    viewer = None
    if config.viewer:
        if has_screen():
            import mujoco.viewer

            viewer = mujoco.viewer.launch_passive(cell.model, visual)
        else:
            node.get_logger().error(
                "viewer asked for, but there is no screen (neither DISPLAY nor WAYLAND_DISPLAY is "
                "set); going on without it. Start from a desktop session, or use ssh -X"
            )
    now_s = time.monotonic()
    tasks = [_Task(1.0 / output.rate_hz, now_s) for output in config.outputs]
    view_task = _Task(1.0 / config.viewer_rate_hz, now_s)
    failed = 0
    try:
        while not shared.stop_requested and os.getppid() == parent:
            now_s = time.monotonic()
            due = [k for k, task in enumerate(tasks) if task.pop(now_s)]
            view_due = viewer is not None and view_task.pop(now_s)
            stamp_ns = shared.read(qpos) if due or view_due else 0
            if stamp_ns:
                if viewer is not None:
                    with viewer.lock():
                        cell.load_visual(visual, qpos)
                else:
                    cell.load_visual(visual, qpos)
                sec, nanosec = divmod(stamp_ns, 1_000_000_000)
                for k in due:
                    image = cell.render(config.outputs[k].camera, visual)
                    message = messages[k]
                    message.header.stamp.sec, message.header.stamp.nanosec = sec, nanosec
                    message.data = array.array("B", image.tobytes())
                    publishers[k].publish(message)
            if viewer is not None and view_due:
                if viewer.is_running():
                    viewer.sync()
                else:
                    node.get_logger().info("viewer closed; the simulation goes on")
                    viewer = None
            next_s = min(task.due_s for task in tasks)
            if viewer is not None:
                next_s = min(next_s, view_task.due_s)
            time.sleep(max(0.0, min(next_s - time.monotonic(), 0.1)))
    except Exception as error:  # reported, then the sim node ends with it
        node.get_logger().fatal(f"camera process failed: {type(error).__name__}: {error}")
        failed = 1
    if viewer is not None:
        viewer.close()
    node.destroy_node()
    rclpy.try_shutdown()
    return failed


def main() -> int:
    """Entry point: one argument, the configuration as JSON."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the sim node says when to stop
    ordinary_scheduling()
    config = CameraProcessConfig.from_json(sys.argv[1])
    shared = SharedSnapshot(config.positions, config.descriptor)
    try:
        backend = choose_gl_backend()
    except GraphicsError as error:
        print(f"camera process: {error}", file=sys.stderr, flush=True)
        return NO_GRAPHICS
    if backend.note:
        print(f"camera process: {backend.note}", file=sys.stderr, flush=True)
    os.environ["MUJOCO_GL"] = backend.name
    code = _render_until_stopped(config, shared)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # MuJoCo's GL objects complain when Python tears them down at exit


if __name__ == "__main__":
    sys.exit(main())
