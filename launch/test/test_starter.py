"""The starter with small real processes: nothing is left behind, and the exit code tells."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).resolve().parent.parent

NODE_TEXT = """#!{python}
import os, signal, subprocess, sys, time
mode = sys.argv[1]
out = sys.argv[2]
def stop(*_):
    if mode == "orphan":
        sys.exit(0)
    if mode != "deaf":
        sys.exit(3 if mode == "bad_stop" else 0)
signal.signal(signal.SIGINT, stop)
if mode == "orphan":
    child = subprocess.Popen(["sleep", "1000"])
    open(out + ".child", "w").write(str(child.pid))
open(out, "w").write(str(os.getpid()))
print("hello from", mode, flush=True)
if mode == "fail":
    sys.exit(7)
if mode == "done":
    sys.exit(0)
while True:
    time.sleep(0.02)
"""


def ignore_interrupts() -> None:
    """As a shell does for what it runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Starts ``niaf_start`` with one node per mode; returns the process."""
    prefix = tmp_path / "install"
    program = prefix / "lib/robot/node"
    program.parent.mkdir(parents=True)
    program.write_text(NODE_TEXT.format(python=sys.executable))
    program.chmod(0o755)
    index = prefix / "share/ament_index/resource_index/packages"
    index.mkdir(parents=True)
    (index / "robot").touch()
    processes: list[subprocess.Popen[str]] = []

    def run(*modes: str, extra: str = "", ignore_sigint: bool = False) -> subprocess.Popen[str]:
        lines = ["launch:"]
        for mode in modes:
            lines.append(
                f"- node: {{pkg: robot, exec: node, name: {mode}, args: {mode} {tmp_path}/{mode}"
                f"{extra}}}"
            )
        path = tmp_path / "set.launch.yaml"
        path.write_text("\n".join(lines) + "\n")
        process = subprocess.Popen(
            [sys.executable, "-m", "niaf_bringup.starter", str(path)],
            env={
                **os.environ,
                "AMENT_PREFIX_PATH": str(prefix),
                "PYTHONPATH": f"{PACKAGE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=ignore_interrupts if ignore_sigint else None,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)


def wait_for(path: Path) -> int:
    """Process number that a node wrote."""
    end_s = time.monotonic() + 20.0
    while time.monotonic() < end_s:
        if path.is_file() and path.read_text():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"{path.name} did not start")


def gone(pid: int) -> bool:
    end_s = time.monotonic() + 5.0
    while time.monotonic() < end_s:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_every_node_and_the_code_is_0(
    start: Any, tmp_path: Path, number: signal.Signals
) -> None:
    process = start("a", "b")
    pids = [wait_for(tmp_path / name) for name in ("a", "b")]
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    assert all(gone(pid) for pid in pids)
    assert "[a-1] hello from a" in output


def test_sigint_works_when_the_parent_shell_had_it_ignored(start: Any, tmp_path: Path) -> None:
    process = start("a", ignore_sigint=True)
    wait_for(tmp_path / "a")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output


def test_a_failed_node_leaves_the_others_running_and_makes_the_code_1(
    start: Any, tmp_path: Path
) -> None:
    process = start("a", "fail")
    pid = wait_for(tmp_path / "a")
    assert gone(wait_for(tmp_path / "fail"))
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert gone(pid)
    assert "failed: fail-2" in output


def test_on_exit_shutdown_ends_the_set(start: Any, tmp_path: Path) -> None:
    process = start("done", "a", extra=", on_exit: shutdown")
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    assert "done-1 ended" in output


def test_the_set_ends_when_all_nodes_have_ended(start: Any) -> None:
    process = start("done")
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_an_error_while_stopping_makes_the_code_1(start: Any, tmp_path: Path) -> None:
    process = start("bad_stop")
    wait_for(tmp_path / "bad_stop")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 1


@pytest.mark.slow
def test_a_node_deaf_to_sigint_gets_sigterm(start: Any, tmp_path: Path) -> None:
    process = start("deaf")
    pid = wait_for(tmp_path / "deaf")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "sending SIGTERM" in output
    assert gone(pid)


def test_what_a_node_left_behind_is_killed(start: Any, tmp_path: Path) -> None:
    process = start("orphan")
    wait_for(tmp_path / "orphan")
    child = wait_for(tmp_path / "orphan.child")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert gone(child)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.launch.yaml"], "no launch file nothing.launch.yaml"),
        (["{file}", "x:=1"], "unknown arguments x"),
        (["{file}", "x=1"], "look like name:=value"),
        (["{file}", "x:=1", "x:=2"], "given twice"),
    ],
)
def test_bad_arguments_end_with_code_2_and_the_reason(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from niaf_bringup import starter

    path = tmp_path / "empty.launch.yaml"
    path.write_text("launch: []\n")
    assert starter.main([word.format(file=path) for word in words]) == 2
    assert message in capsys.readouterr().err
