"""The node with either loop over topics: as a process, over real DDS, and late on purpose."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not in this environment")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from impedance_support import make_prior  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from test_node_system import (  # noqa: E402
    FakeArm,
    change_state,
    domain,  # noqa: F401
    send,
    send_trajectory,
    set_parameter,
    start_node,
    wait_for,
)

from niaf_field import save_prior  # noqa: E402
from niaf_impedance.faults import Fault  # noqa: E402
from niaf_msgs.msg import AdmissionReport, ImpedanceState  # noqa: E402

pytestmark = pytest.mark.system

STALL_S = 0.15  # brakes
LATE_BRAKE_S = 0.1


@pytest.fixture(scope="module")
def start(arm, domain, tmp_path_factory):  # noqa: F811
    """Start one node with a loop of the given kind; the one before is ended."""
    prior = make_prior(arm)
    file = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    save_prior(prior, file)
    running = []

    def stop():
        while running:
            fake, process, context = running.pop()
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGINT)
                process.wait(10.0)
            fake.close()
            rclpy.shutdown(context=context)

    def make(loop: str):
        stop()
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=domain)
        fake = FakeArm(arm, context)
        fake.diagnostics = []
        fake.node.create_subscription(
            DiagnosticArray, "/diagnostics", fake.diagnostics.append, 10)
        process = start_node(
            f"prior:={file}", f"loop:={loop}", f"late_brake_s:={LATE_BRAKE_S}",
            *(["control_rate_hz:=1000.0"] if loop == "clock" else []),
        )
        running.append((fake, process, context))
        wait_for(lambda: fake.states or process.poll() is not None, 90.0, "the first state")
        assert process.poll() is None, process.stdout.read()
        wait_for(lambda: fake.trajectories.get_subscription_count() > 0, 5.0, "subscriptions")
        return fake, process, prior

    yield make
    stop()


@pytest.fixture(scope="module", params=["clock", "event"])
def system(request, start):
    """(fake arm, node process, prior) with the node active."""
    return start(request.param)


def mode_is(fake, mode):
    return lambda: fake.states[-1].mode == mode


def stall(process, seconds):
    """The whole process stands still, as under a scheduler that forgot it."""
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGCONT)


def loop_status(fake):
    """The newest diagnostics of the loop: (status, its values)."""
    count = len(fake.diagnostics)
    wait_for(lambda: len(fake.diagnostics) > count, 5.0, "diagnostics")
    status = next(s for s in fake.diagnostics[-1].status if s.name.endswith(": loop"))
    return status, {entry.key: entry.value for entry in status.values}


def reset(fake):
    wait_for(lambda: np.abs(fake.plant.dq).max() < 0.02, 5.0, "standstill")
    time.sleep(0.1)
    answer = fake.call(Trigger, "impedance/reset", Trigger.Request())
    assert answer.success, answer.message
    wait_for(mode_is(fake, ImpedanceState.HOLD), 2.0, "HOLD")


def test_follows_a_field_and_a_trajectory(system, arm):
    fake, _, prior = system
    assert fake.states[-1].mode == ImpedanceState.HOLD
    np.testing.assert_allclose(fake.efforts[0], arm.gravity_torque(arm.config.home_rad), atol=0.5)
    report = send(fake, prior, fake.plant.q, 1)
    assert report.verdict == AdmissionReport.ACCEPTED, report.reason_text
    wait_for(mode_is(fake, ImpedanceState.TRACK), 2.0, "TRACK")
    assert fake.states[-1].field_sequence == 1
    wait_for(mode_is(fake, ImpedanceState.HOLD), 5.0, "HOLD")
    goal = fake.plant.q + np.array([0.1, 0.0, 0.0, 0.0, 0.0, 0.0, -0.1])
    report = send_trajectory(fake, list(arm.joint_names), [goal], [0.8])
    assert report.verdict == AdmissionReport.ACCEPTED, report.reason_text
    wait_for(lambda: fake.states[-1].mode == ImpedanceState.HOLD
             and abs(fake.states[-1].reference_position[0] - goal[0]) < 1e-6, 5.0, "the goal")
    np.testing.assert_allclose(fake.plant.q, goal, atol=0.02)
    last = fake.states[-1]
    assert last.peak_torque_ratio <= 1.0
    assert last.seam_position_peak_rad < 1e-9
    assert 0.0 < last.state_age_s < 0.3


def test_the_timing_contract_is_published(system):
    fake, _, _ = system
    _, values = loop_status(fake)
    assert float(values["command_age_us.p50"]) > float(values["execution_us.p50"]) > 0.0
    assert values["tick_lateness_us.p99"] and values["late_led_to"]
    assert values["collector_passes"] == "0"
    assert "memory" in values["memory"] and "SCHED_FIFO" in values["scheduling"]


def test_gains_brake_estop_and_deactivation_go_through_the_loop(system, arm):
    fake, _, _ = system
    assert set_parameter(fake, "gains.panda_joint2.kp", 500.0).successful
    goal = fake.plant.q + 0.1
    assert send_trajectory(
        fake, list(arm.joint_names), [goal], [3.0]).verdict == AdmissionReport.ACCEPTED
    wait_for(mode_is(fake, ImpedanceState.TRACK), 2.0, "TRACK")
    assert fake.call(Trigger, "impedance/brake", Trigger.Request()).success
    wait_for(mode_is(fake, ImpedanceState.HOLD), 3.0, "HOLD")
    assert np.abs(np.array(fake.states[-1].reference_position) - goal).max() > 0.01
    assert fake.call(Trigger, "impedance/estop", Trigger.Request()).success
    wait_for(mode_is(fake, ImpedanceState.ESTOP), 2.0, "ESTOP")
    reset(fake)
    assert change_state(fake, Transition.TRANSITION_DEACTIVATE)
    end, sent = time.monotonic() + 10.0, -1
    while sent != len(fake.efforts):  # until a quarter of a second passes without a command
        assert time.monotonic() < end, "efforts go on after the deactivation"
        sent = len(fake.efforts)
        time.sleep(0.25)
    assert change_state(fake, Transition.TRANSITION_ACTIVATE)
    wait_for(mode_is(fake, ImpedanceState.HOLD), 2.0, "HOLD")


def test_silent_joint_states_damp_and_then_silence(system):
    fake, _, _ = system
    fake.silent = True
    time.sleep(1.0)
    sent = len(fake.efforts)
    time.sleep(0.3)
    assert len(fake.efforts) == sent  # the drives' watchdog is in charge now
    fake.silent = False
    wait_for(mode_is(fake, ImpedanceState.DAMP), 2.0, "DAMP")
    assert fake.states[-1].fault == Fault.STATE_STALE, "silence of the arm is not the loop's doing"
    reset(fake)


def test_a_stall_brakes_the_motion_along_its_path(system, arm):
    fake, process, _ = system
    goal = fake.plant.q + 0.1
    begin = time.monotonic()
    assert send_trajectory(
        fake, list(arm.joint_names), [goal], [4.0]).verdict == AdmissionReport.ACCEPTED
    wait_for(mode_is(fake, ImpedanceState.TRACK), 2.0, "TRACK")
    stall(process, STALL_S)
    wait_for(mode_is(fake, ImpedanceState.HOLD), 3.0, "HOLD")
    assert time.monotonic() - begin < 4.0
    assert np.abs(np.array(fake.states[-1].reference_position) - goal).max() > 0.01
    assert fake.states[-1].fault == Fault.NONE
    status, values = loop_status(fake)
    assert "late enough to brake" in status.message
    assert values["late_led_to"] == "BRAKE"
    assert float(values["late_worst_us"]) > 1e6 * LATE_BRAKE_S


def test_a_longer_stall_damps_and_is_named(system):
    fake, process, _ = system
    stall(process, 0.6)
    wait_for(mode_is(fake, ImpedanceState.DAMP), 3.0, "DAMP")
    assert fake.states[-1].fault == Fault.LOOP_LATE
    status, values = loop_status(fake)
    assert status.level == DiagnosticStatus.ERROR
    assert values["late_led_to"] == "DAMP"
    reset(fake)
    _, values = loop_status(fake)
    assert values["late_led_to"] in ("ON_TIME", "LATE"), "a reset begins anew"


def test_an_interrupt_ends_it_quietly_after_the_ramp(system):
    _, process, _ = system
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=10.0)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert "off: no torque" in output
    assert "late enough to brake" in output


def test_a_journal_of_the_compiled_loop_is_refused_in_one_line(domain, tmp_path, arm):  # noqa: F811
    save_prior(make_prior(arm), tmp_path / "prior.safetensors")
    process = start_node(f"prior:={tmp_path}", "loop:=clock", "journal:=true")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "autostart gave up" in line:
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30.0)
    output = "".join(lines) + rest
    assert "journal needs loop: event" in output
    assert "Traceback" not in output
