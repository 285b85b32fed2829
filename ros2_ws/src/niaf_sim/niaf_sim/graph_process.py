"""Starts a set of nodes as a child process, watches every one of them, and leaves none behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path


class GraphError(RuntimeError):
    """The nodes could not be started, or one of them ended; names which and why."""


@dataclass(frozen=True)
class WatchedProcess:
    """A process of the graph; ``started`` (clock ticks since boot) tells a re-used pid apart."""

    pid: int
    started: int
    name: str

    def alive(self) -> bool:
        return process_start(self.pid) == self.started


def process_start(pid: int) -> int:
    """Start time of a live process in clock ticks since boot; -1 when it ended (zombies too)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return -1
    fields = text.rpartition(")")[2].split()
    return -1 if fields[0] in "ZX" else int(fields[19])


def node_name(pid: int) -> str:
    """ROS node name on the command line of ``pid`` ("__node:=x"), else the program's name."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "?"
    for word in words:
        if word.startswith("__node:="):
            return word.removeprefix("__node:=")
    scripts = [os.path.basename(word) for word in words if word and not word.startswith("-")]
    return scripts[1] if len(scripts) > 1 and scripts[0].startswith("python") else scripts[0]


def descendants(pid: int, direct: bool = False) -> list[WatchedProcess]:
    """Live children of ``pid``, and unless ``direct`` their children and so on."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except OSError:
                continue
            children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found: list[WatchedProcess] = []
    queue = [pid]
    while queue:
        for child in children.get(queue.pop(0), []):
            if not direct:
                queue.append(child)
            started = process_start(child)
            if started >= 0:
                found.append(WatchedProcess(child, started, node_name(child)))
    return found


def find_starter() -> list[str]:
    """Command that runs a ``*.launch.yaml`` of niaf_bringup; raises GraphError with the remedy."""
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix

    try:
        installed = Path(get_package_prefix("niaf_bringup")) / "lib/niaf_bringup/niaf_start"
        if os.access(installed, os.X_OK):
            return [str(installed)]
    except (PackageNotFoundError, LookupError):
        pass
    on_path = shutil.which("niaf_start")
    if on_path:
        return [on_path]
    raise GraphError(
        "niaf_start not found: package niaf_bringup is not in AMENT_PREFIX_PATH; build the "
        "workspace and source its setup file, or start the graph yourself and use --attach"
    )


class GraphProcess:
    """The starter with its nodes; output goes to ``log``."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal is ours to pass on, once
            )
        self._watched: list[WatchedProcess] = []

    def log_tail(self, lines: int = 15) -> str:
        """Last lines of the nodes' output."""
        text = self.log.read_text(errors="replace").splitlines()
        return "\n".join("    " + line for line in text[-lines:])

    def watch(self) -> list[str]:
        """Remember the nodes that run now as those that must keep running; returns their names."""
        self._watched = descendants(self._process.pid, direct=True)
        return [process.name for process in self._watched]

    def problem(self) -> str:
        """Empty while everything lives; else which node ended."""
        code = self._process.poll()
        if code is not None:
            return f"the starter ended with code {code}"
        dead = [process.name for process in self._watched if not process.alive()]
        return f"node {', '.join(sorted(set(dead)))} died" if dead else ""

    def stop(self) -> str:
        """SIGINT, then SIGTERM, then SIGKILL, to the starter; leftovers are killed. Returns a
        complaint, empty after a clean stop."""
        family = descendants(self._process.pid)
        complaint = ""
        for number, patience_s in ((signal.SIGINT, 15.0), (signal.SIGTERM, 12.0)):
            if self._process.poll() is None:
                self._process.send_signal(number)
                try:
                    self._process.wait(patience_s)
                except subprocess.TimeoutExpired:
                    complaint = f"the starter ignored {number.name}"
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        end_s = time.monotonic() + 1.0
        while any(process.alive() for process in family) and time.monotonic() < end_s:
            time.sleep(0.05)
        left = [process for process in family if process.alive()]
        for process in left:
            os.kill(process.pid, signal.SIGKILL)
        if left:
            names = ", ".join(process.name for process in left)
            complaint = (complaint + "; " if complaint else "") + f"had to kill {names}"
        if not complaint and self._process.returncode not in (0, 130, -signal.SIGINT):
            complaint = f"the starter ended with code {self._process.returncode}"
        return complaint
