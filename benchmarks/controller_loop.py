"""Lateness, misses and CPU share of the compiled loop thread under load."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from controller_parts import make_field, make_prior

from niaf_impedance.arm_model import ArmModel
from niaf_impedance.controller import ImpedanceController
from niaf_impedance.lateness import ONLY_COUNT
from niaf_impedance.loop import ControlLoop, LoopStatistics
from niaf_impedance.settings import ControllerConfig

FIFO_PRIORITY = 80
STATE_PERIOD_S = 0.002


@contextmanager
def idle() -> Iterator[None]:
    yield


@contextmanager
def torch_forward() -> Iterator[None]:
    """A small network evaluated without pause in another thread, on any core."""
    torch.set_num_threads(1)
    network = torch.nn.Sequential(
        *(layer for _ in range(4) for layer in (torch.nn.Linear(512, 512), torch.nn.GELU()))
    )
    batch = torch.randn(64, 512)
    stop = threading.Event()

    def run() -> None:
        with torch.inference_mode():
            while not stop.is_set():
                network(batch)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def ros_traffic() -> Iterator[None]:
    """Joint states at 1 kHz and 80 KB at 10 Hz, published and received in this process."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Float32MultiArray

    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("controller_benchmark", context=context)
    states = node.create_publisher(JointState, "benchmark/states", 1)
    plans = node.create_publisher(Float32MultiArray, "benchmark/plans", 1)
    received = [0]

    def count(_: Any) -> None:
        received[0] += 1

    node.create_subscription(JointState, "benchmark/states", count, 1)
    node.create_subscription(Float32MultiArray, "benchmark/plans", count, 1)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    stop = threading.Event()
    names = [f"joint{i}" for i in range(7)]

    def spin() -> None:
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.05)

    def publish() -> None:
        state = JointState(name=names, position=[0.1] * 7, velocity=[0.0] * 7)
        plan = Float32MultiArray()
        plan.data.frombytes(bytes(80_000))
        for i in range(10**9):
            if stop.wait(0.001):
                return
            states.publish(state)
            if i % 100 == 0:
                plans.publish(plan)

    threads = [threading.Thread(target=spin), threading.Thread(target=publish)]
    for thread in threads:
        thread.start()
    try:
        yield
        assert received[0] > 10, "the ROS traffic did not flow"
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)


@contextmanager
def other_core_busy(core: int) -> Iterator[None]:
    """Pure arithmetic without pause on ``core``, as another job would."""
    command = [sys.executable, "-c", "x = 1\nwhile True: x = x * 7 % 1000003"]
    process = subprocess.Popen(
        command, preexec_fn=lambda: os.sched_setaffinity(0, {core}), stdin=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def torch_and_ros() -> Iterator[None]:
    with torch_forward(), ros_traffic():
        yield


def run_loop(
    arm: ArmModel, rate_hz: float, ticks: int, load: Callable[[], Any], core: int
) -> tuple[LoopStatistics, str]:
    """``ticks`` deadlines of a loop that follows fields (H = 128), states at 500 Hz and a new field
    every half second from Python, under ``load``."""
    prior = make_prior(arm, 128)
    config = ControllerConfig(
        state_timeout_s=5.0, frozen_reference_rad=0.0, frozen_motion_rad=0.0)  # one pose for ever
    controller = ImpedanceController(config, arm, prior)
    # a ladder that stops the arm would change what is measured
    loop = ControlLoop(controller, rate_hz, ONLY_COUNT)
    home, zero = arm.config.home_rad, np.zeros(arm.n)
    stop = threading.Event()

    def offer() -> None:
        while not stop.is_set():
            loop.offer_state(loop.now_s(), home, zero)
            time.sleep(STATE_PERIOD_S)

    writer = threading.Thread(target=offer)
    accepted, sequence = 0, 0
    with load():
        scheduling = loop.start(FIFO_PRIORITY, core)
        writer.start()
        try:
            loop.activate(home, zero)
            time.sleep(0.2)
            loop.clear_statistics()
            end = time.monotonic() + ticks / rate_hz
            while time.monotonic() < end:
                sequence += 1
                now = loop.now_s()
                field = make_field(prior, home, now, sequence)
                plan = controller.plan(loop.snapshot(), now, field, lead_s=0.1)
                accepted += loop.commit(plan).accepted
                time.sleep(max(0.0, min(0.5, end - time.monotonic())))
            statistics = loop.statistics
        finally:
            stop.set()
            writer.join()
            loop.close()
    assert accepted > 0, "no field was ever followed"
    return statistics, scheduling
