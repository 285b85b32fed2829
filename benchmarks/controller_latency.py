"""From the bytes of a joint state to the bytes of its torque command: in-process and over DDS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from controller_parts import Times, make_prior, tracking_controller

from niaf_field import save_prior
from niaf_impedance.arm_model import ArmModel

#: states per second, and what each loop is told as control_rate_hz
RATE_HZ = 500.0
LOOP_RATE_HZ = {"event": RATE_HZ, "clock": 1000.0}
#: every state moves this joint the other way, so that its torque tells which state it answers to
MARKED, MARK_RAD = 0, 1e-3


def in_process(arm: ArmModel, count: int) -> Times:
    """Decode, tick, encode: what the node's callback does, without the middleware."""
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import JointState

    from niaf_impedance.wire import Float64ArrayEncoder, JointStateDecoder

    controller, _ = tracking_controller(arm, make_prior(arm, 128))
    decoder = JointStateDecoder(arm.joint_names)
    encoder = Float64ArrayEncoder(arm.n)
    message = JointState(name=list(arm.joint_names), position=list(arm.config.home_rad),
                         velocity=[0.0] * arm.n)
    data = serialize_message(message)
    now = controller.last_tick_s
    seconds = np.empty(count)
    for i in range(-50, count):
        t = now + 1e-5 * (i + 51)
        begin = time.perf_counter()
        decoder.decode(data)
        encoder.values[:] = controller.tick(t, decoder.q, decoder.dq)
        encoder.encode()
        if i >= 0:
            seconds[i] = time.perf_counter() - begin
    return Times.of(seconds)


def over_dds(arm: ArmModel, count: int, loop: str) -> dict[str, Any]:
    """Publish a joint state, wait for the torque that answers it; the node is its own process.

    A field every half second keeps the node in TRACK. Both ways of DDS (UDP on this host), both
    processes' executors and the tick are inside the figure; with loop ``clock`` also the wait for
    the loop's next deadline.
    """
    import rclpy
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Float64MultiArray

    from niaf_field.codec import make_field_message, to_message
    from niaf_impedance.realtime import avoid_shared_memory_stall, fine_timer_slack, request_fifo
    from niaf_msgs.msg import ActionField, ImpedanceState

    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    avoid_shared_memory_stall()
    fine_timer_slack()
    request_fifo(1)  # before ordinary jobs and behind the node; the receive threads inherit it
    prior = make_prior(arm, 128)
    newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("latency_benchmark", context=context)
    publisher = node.create_publisher(JointState, "joint_states", newest)
    fields = node.create_publisher(ActionField, "action_field", 1)
    torques = node.create_subscription(
        Float64MultiArray, "effort_controller/commands", lambda _: None, newest, raw=True)
    modes: list[int] = []
    watcher = node.create_subscription(
        ImpedanceState, "impedance/state", lambda _: None, 1)

    def take(subscription: Any, kind: type, raw: bool) -> Any:
        with subscription.handle:
            return subscription.handle.take_message(kind, raw)

    message = JointState(name=list(arm.joint_names), position=list(arm.config.home_rad),
                         velocity=[0.0] * arm.n)
    gripper = arm.config.gripper
    if gripper is not None:
        message.name.append(gripper.joint)
        message.position.append(0.02)
        message.velocity.append(0.0)
    data = [bytearray(), bytearray()]
    for side, sign in enumerate((-1.0, 1.0)):
        message.position[MARKED] = arm.config.home_rad[MARKED] + sign * MARK_RAD
        data[side] = bytearray(serialize_message(message))
    # a state on the other side changes the torque by this much, the field's motion by less
    noticed_nm = 0.3 * 2.0 * MARK_RAD * arm.config.joints[MARKED].kp.default

    def marked_torque(command: bytes) -> float:
        return float(np.frombuffer(command[-8 * arm.n :], "<f8")[MARKED])

    last_nm, side = 0.0, 0
    seconds: list[float] = []
    unanswered, sequence = 0, 0
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prior.safetensors"
        save_prior(prior, file)
        command = [sys.executable, "-m", "niaf_impedance.impedance_node", "--ros-args"]
        for parameter in (
            f"loop:={loop}", f"control_rate_hz:={LOOP_RATE_HZ[loop]}", f"prior:={file}",
            "state_timeout_s:=1.0", "late_brake_s:=1.0", "late_brake_share:=1.0",
            "late_damp_share:=1.0",  # measured, not stopped
            "frozen_reference_rad:=0.0", "frozen_motion_rad:=0.0",  # one pose for ever
        ):
            command += ["-p", parameter]
        log = Path(folder) / "node.log"
        with log.open("w") as sink:
            process = subprocess.Popen(command, stdout=sink, stderr=sink, start_new_session=True)
        try:
            begin, next_field, tracking = time.monotonic(), 0.0, False
            deadline = begin
            while len(seconds) < count:
                now = time.monotonic()
                if process.poll() is not None or now - begin > 60.0 + 4.0 * count / RATE_HZ:
                    raise RuntimeError(
                        f"the impedance node does not answer ({len(seconds)} of {count} states)\n"
                        + log.read_text()[-3000:]
                    )
                state = take(watcher, ImpedanceState, False)
                if state is not None:
                    tracking = state[0].mode == ImpedanceState.TRACK
                    modes.append(int(state[0].mode))
                if modes and now > next_field:
                    sequence += 1
                    next_field = now + 0.5
                    fields.publish(to_message(ActionField(), make_field_message(
                        prior, 0.2 * rng.normal(size=prior.gamma_length).astype(np.float32),
                        np.zeros(prior.beta_length, dtype=np.float32),
                        np.append(arm.config.home_rad, 0.0), stamp_s=time.time(),
                        sequence=sequence,
                    )))
                deadline = max(deadline + 1.0 / RATE_HZ, now)
                time.sleep(max(0.0, deadline - time.monotonic()))
                while (command := take(torques, Float64MultiArray, True)) is not None:
                    last_nm = marked_torque(command[0])
                side = 1 - side
                sec, nanosec = divmod(time.time_ns(), 1_000_000_000)
                np.frombuffer(data[side], "<u4", 2, 4)[:] = (sec, nanosec)
                sent = time.perf_counter()
                publisher.publish(bytes(data[side]))
                answer = None
                while answer is None and time.perf_counter() - sent < 0.02:
                    answer = take(torques, Float64MultiArray, True)
                    if answer is not None:  # the side with the larger angle gets less torque
                        before_nm, last_nm = last_nm, marked_torque(answer[0])
                        if (last_nm - before_nm) * (1 - 2 * side) < noticed_nm:
                            answer = None  # it answers to an older state
                if answer is None:
                    side = 1 - side  # the torque is still on the other side
                if not tracking:
                    continue
                if answer is None:
                    unanswered += 1
                else:
                    seconds.append(time.perf_counter() - sent)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(10.0)
                except subprocess.TimeoutExpired:
                    process.kill()
            node.destroy_node()
            rclpy.shutdown(context=context)
    return {"round_trip": Times.of(np.array(seconds)), "unanswered": unanswered,
            "states": len(seconds) + unanswered, "fields": sequence}

