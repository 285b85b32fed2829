"""The demo runner: plan, arguments, care for child processes, and whole runs over DDS."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

from niaf_sim.demo import DEMO_SEED, parse_arguments, schedule
from niaf_sim.graph_process import GraphProcess, descendants, node_name, process_start
from niaf_sim.record import EVALUATION_SEED
from niaf_sim.recorder_node import TopicWish
from niaf_sim.recording import recording_topics
from niaf_sim.tasks import INSTRUCTIONS

HERE = Path(__file__).parent


def test_six_episodes_cover_both_tasks_and_all_colours():
    plan = schedule(6, 0, INSTRUCTIONS)
    assert sorted(text for text, _ in plan) == sorted(INSTRUCTIONS)
    assert plan == schedule(6, 0, INSTRUCTIONS)
    assert plan != schedule(6, 1, INSTRUCTIONS)


def test_scene_seeds_are_never_those_used_for_recording():
    seeds = [seed for run in range(3) for _, seed in schedule(30, run, INSTRUCTIONS)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= DEMO_SEED > EVALUATION_SEED


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--episodes", "0"], "--episodes 0: at least 1"),
        (["--instruction", "dance"], "the cell knows: pick up the red cube"),
        (["--timeout", "nan"], "seconds above 0"),
        (["--require-success-rate", "85"], "0 to 1"),
        (["record=true"], "name:=value"),
        (["--attach", "--viewer"], "--attach takes the graph as it is"),
    ],
)
def test_nonsense_on_the_command_line_is_refused_with_a_reason(capsys, arguments, complaint):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(arguments)
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err


def test_recorder_topics_are_parsed():
    assert TopicWish.parse("joint_states@100") == TopicWish("joint_states", 100.0)
    assert TopicWish.parse(" /rosout ") == TopicWish("/rosout", 0.0)
    for bad in ("@5", "a@", "a@-1", "a@fast", "a@0"):
        with pytest.raises(ValueError, match="name@rate_hz"):
            TopicWish.parse(bad)


PARENT = """
import subprocess, sys, time
children = [
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", f"__node:={name}"])
    for name in ("sim", "policy")
]
try:
    while True:
        time.sleep(0.1)
except KeyboardInterrupt:
    if "tidy" in sys.argv:
        for child in children:
            child.kill()
            child.wait()
"""


def start_family(tmp_path, *words):
    graph = GraphProcess([sys.executable, "-c", PARENT, *words], tmp_path / "graph.log")
    end = time.monotonic() + 20.0
    while time.monotonic() < end and len(descendants(graph._process.pid)) < 2:
        time.sleep(0.05)
    time.sleep(0.3)  # until both have become what their command line says
    return graph


def test_a_node_that_dies_is_named(tmp_path):
    graph = start_family(tmp_path, "tidy")
    assert sorted(graph.watch()) == ["policy", "sim"]
    assert graph.problem() == ""
    victim = next(p for p in graph._watched if p.name == "policy")
    os.kill(victim.pid, signal.SIGKILL)
    end = time.monotonic() + 5.0
    while not graph.problem() and time.monotonic() < end:
        time.sleep(0.05)
    assert graph.problem() == "node policy died"
    assert graph.stop() == ""


def test_stopping_leaves_no_process_behind_even_when_the_starter_is_careless(tmp_path):
    graph = start_family(tmp_path, "careless")
    family = descendants(graph._process.pid)
    complaint = graph.stop()
    assert "had to kill" in complaint
    assert "sim" in complaint
    time.sleep(0.2)
    assert not [process for process in family if process.alive()]


def test_own_process_is_alive_and_a_free_pid_is_not():
    assert process_start(os.getpid()) > 0
    assert process_start(2**22 + 1) == -1
    assert node_name(2**22 + 1) == "?"


@pytest.fixture
def isolated():
    domain_coordinator = pytest.importorskip("domain_coordinator")
    pytest.importorskip("niaf_msgs.msg", reason="build niaf_msgs and source the workspace first")
    with domain_coordinator.domain_id() as number:
        environment = {**os.environ, "ROS_DOMAIN_ID": str(number)}
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        environment.pop("ROS_AUTOMATIC_DISCOVERY_RANGE", None)
        yield environment


def run_demo(environment, tmp_path, *words, timeout_s=2):
    """Sim node and stand-ins on an isolated domain, the demo attached to them."""
    with (tmp_path / "nodes.log").open("wb") as log:
        nodes = [
            subprocess.Popen(
                [sys.executable, *command], env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            for command in (
                ["-m", "niaf_sim.sim_node"], [str(HERE / "scripted_graph.py"), *words]
            )
        ]
        try:
            return subprocess.run(
                [
                    sys.executable, "-m", "niaf_sim.demo", "--attach", "--episodes", "2",
                    "--timeout", str(timeout_s), "--out", str(tmp_path / "out"),
                    "--require-success-rate", "0.5",
                ],
                env=environment, capture_output=True, text=True, timeout=250,
            )
        finally:
            for node in nodes:
                if node.poll() is None:
                    node.send_signal(signal.SIGINT)
            for node in nodes:
                try:
                    node.wait(10.0)
                except subprocess.TimeoutExpired:
                    node.kill()
                    node.wait()


@pytest.mark.system
def test_attached_run_writes_every_file(isolated, tmp_path):
    done = run_demo(isolated, tmp_path)
    out = tmp_path / "out"
    assert done.returncode == 3, done.stdout + done.stderr  # all worked; nobody moved a cube
    assert "success rate 0.00 is below the required 0.50" in done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["episodes"] == 2
    assert summary["real_time_factor"] == pytest.approx(1.0, abs=0.05)
    assert [run["outcome"] for run in summary["runs"]] == ["time is up"] * 2
    assert (out / "tracking.png").stat().st_size > 10_000
    with av.open(str(out / "episode.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) > 20
    counts = recording_topics(out / "recording.mcap")
    for topic in ("/joint_states", "/impedance/state", "/sim/task_state", "/scene/image_raw"):
        assert counts[topic] > 10, counts


@pytest.mark.system
def test_run_whose_nodes_die_ends_with_a_named_reason(isolated, tmp_path):
    done = run_demo(isolated, tmp_path, "mortal", timeout_s=5)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "demo failed:" in done.stderr
    assert "silent for" in done.stderr or "did not answer" in done.stderr
    assert (tmp_path / "out" / "summary.json").is_file(), "the first episode's figures are kept"
