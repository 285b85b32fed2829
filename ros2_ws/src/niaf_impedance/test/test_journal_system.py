"""Journal, recorder and replay over real DDS: what a running node did is made again from a file."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not in this environment")
pytest.importorskip("niaf_msgs.msg", reason="niaf_msgs is not built")
pytest.importorskip("domain_coordinator", reason="no domain_coordinator")
pytest.importorskip("niaf_sim.recorder_node", reason="niaf_sim is not there to record")

import test_node_system as node_system  # noqa: E402
from impedance_support import make_prior  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from test_node_system import FakeArm, send, set_parameter, start_node, wait_for  # noqa: E402
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint  # noqa: E402

from niaf_field import save_prior  # noqa: E402
from niaf_impedance import Mode, plot_recording, replay  # noqa: E402
from niaf_msgs.msg import AdmissionReport  # noqa: E402

pytestmark = pytest.mark.system

domain = node_system.domain

TOPICS = ["impedance/journal", "impedance/state", "impedance/admission", "action_field",
          "/parameter_events", "/diagnostics"]


def start_recorder(output, topics):
    quoted = ", ".join(f"'{topic}'" for topic in topics)
    return subprocess.Popen(
        [sys.executable, "-m", "niaf_sim.recorder_node", "--ros-args", "-p", f"output:={output}",
         "-p", f"topics:=[{quoted}]"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )


def end(process):
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20.0)
    return output


@pytest.fixture(scope="module")
def recording(arm, domain, tmp_path_factory):
    """(file, late file) of a short run; the second recorder came late."""
    folder = tmp_path_factory.mktemp("recording")
    prior = make_prior(arm)
    save_prior(prior, folder / "prior.safetensors")
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    fake = FakeArm(arm, context)
    files = [folder / "all.mcap", folder / "late.mcap"]
    recorders = [start_recorder(files[0], TOPICS)]
    # recorders that start beside it may hold up a small machine for a while
    node = start_node(f"prior:={folder}", "journal:=true", "state_timeout_s:=1.0")
    try:
        wait_for(lambda: fake.states or node.poll() is not None, 60.0, "the first state")
        assert node.poll() is None, node.stdout.read()
        wait_for(lambda: fake.fields.get_subscription_count() > 1, 20.0, "node and recorder")
        wait_for(lambda: fake.node.count_publishers("impedance/admission") > 0, 5.0, "reports")
        time.sleep(0.3)  # a reader that has just been found may still miss the first report
        run(fake, prior, arm, lambda: recorders.append(start_recorder(files[1], TOPICS)))
        output = end(node)
        assert "Traceback" not in output, output
        time.sleep(0.3)
        for recorder in recorders:
            output = end(recorder)
            assert recorder.returncode == 0, output
    finally:
        for process in (node, *recorders):
            if process.poll() is None:
                process.kill()
        fake.close()
        rclpy.shutdown(context=context)
    return files


def run(fake, prior, arm, halfway):
    for sequence in range(1, 7):
        report = send(fake, prior, fake.plant.q, sequence)
        assert report.verdict == AdmissionReport.ACCEPTED, report.reason_text
        time.sleep(0.2)
    assert send(fake, prior, fake.plant.q, 7, prior_id="0" * 64).verdict == AdmissionReport.REFUSED
    assert set_parameter(fake, "gains.panda_joint2.kp", 280.0).successful
    trajectories = fake.node.create_publisher(JointTrajectory, "impedance/joint_trajectory", 1)
    wait_for(lambda: trajectories.get_subscription_count() > 0, 5.0, "the trajectory subscription")
    message = JointTrajectory(joint_names=list(arm.joint_names))
    for i in range(3):
        point = JointTrajectoryPoint(positions=list(fake.plant.q + 0.02 * np.sin(i)))
        point.time_from_start.nanosec = 250_000_000 * (i + 1)
        message.points.append(point)
    reports = len(fake.reports)
    trajectories.publish(message)
    wait_for(lambda: len(fake.reports) > reports, 5.0, "the report on the trajectory")
    assert fake.reports[-1].verdict != AdmissionReport.REFUSED, fake.reports[-1].reason_text
    time.sleep(0.3)
    assert fake.call(Trigger, "impedance/brake", Trigger.Request()).success
    halfway()
    wait_for(lambda: fake.fields.get_subscription_count() > 2, 20.0, "the late recorder")
    time.sleep(0.6)  # it looks for topics every half second
    wait_for(lambda: fake.states[-1].mode == Mode.HOLD or fake.states[-1].fault, 15.0, "HOLD")
    assert fake.states[-1].mode == Mode.HOLD, fake.states[-1].fault_text
    assert fake.call(Trigger, "impedance/estop", Trigger.Request()).success
    time.sleep(0.6)
    assert fake.call(Trigger, "impedance/reset", Trigger.Request()).success
    wait_for(lambda: fake.states[-1].mode == Mode.HOLD, 2.0, "HOLD")
    assert send(fake, prior, fake.plant.q, 8).verdict == AdmissionReport.ACCEPTED
    time.sleep(0.5)


def test_the_recording_of_a_node_replays_bit_for_bit(recording, capsys):
    code = replay.main([str(recording[0])])
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    assert "bit for bit" in printed.out
    assert "1 estop, 1 reset" in printed.out
    (blocks,) = replay.journals(recording[0]).values()
    assert blocks[0].number == 0
    assert sum(block.count for block in blocks) > 1000


def test_a_recorder_that_came_late_has_what_it_needs(recording, capsys):
    code = replay.main([str(recording[1])])
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err


def test_a_recording_without_the_right_prior_is_refused(recording, tmp_path, arm, capsys):
    other = make_prior(arm, scale=0.06)
    save_prior(other, tmp_path / "prior.safetensors")
    assert replay.main([str(recording[0]), "--prior", str(tmp_path)]) == 2
    assert "the recording was made with" in capsys.readouterr().err


def test_a_cut_off_or_empty_file_is_one_clear_line(recording, tmp_path, capsys):
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(recording[0].read_bytes()[:5000])
    for file, words in ((cut, "not a complete MCAP file"), (tmp_path / "none", "does not exist")):
        assert replay.main([str(file)]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_a_picture_is_made_of_the_recording(recording, tmp_path, capsys):
    picture = tmp_path / "tracking.png"
    assert plot_recording.main([str(recording[0]), "--out", str(picture)]) == 0
    assert picture.stat().st_size > 50_000
    assert "hand-overs" in capsys.readouterr().out
