"""Starts the nodes of a ``*.launch.yaml`` where ``ros2 launch`` is not installed.

    niaf_start demo.launch.yaml namespace:=left viewer:=true

FILE is a path, or the name of a file in niaf_bringup's launch folder. The part of the format that
is understood is described in launch_file.py; anything else is an error.

Every node gets its own session, so a Ctrl-C reaches it once, through the starter. On SIGINT or
SIGTERM each node gets SIGINT, after 5 s SIGTERM, after 5 s more SIGKILL; processes that a node left
behind are killed. A node that ends leaves the others running, unless it says ``on_exit: shutdown``.

Exit code: 0 all nodes ended well or were stopped by request, 1 a node failed or had to be killed,
2 the file or the arguments cannot be used.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from niaf_bringup.launch_file import (
    InlineParameter,
    LaunchFileError,
    LaunchPlan,
    NodePlan,
    ament_index,
    declared_arguments,
    read_launch_file,
)

#: seconds given to each signal before the next, harder one
PATIENCE_S = ((signal.SIGINT, 5.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 2.0))
POLL_S = 0.05


@dataclass
class RunningNode:
    """A started process; ``code`` is None while it runs."""

    label: str
    plan: NodePlan
    process: subprocess.Popen[bytes]
    code: int | None = None
    asked_to_stop: bool = False
    signals: list[signal.Signals] = field(default_factory=list)

    def poll(self) -> int | None:
        """Exit code, None while running. What the node left in its session is killed first: the
        zombie keeps the group number from being used by somebody else."""
        if self.code is None:
            ended = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.code = self.process.wait()
        return self.code

    def failed(self) -> bool:
        """True unless the node ended with 0, or by the SIGINT that asked it to."""
        if signal.SIGKILL in self.signals or self.code is None:
            return True
        wanted = (0, -signal.SIGINT, 128 + signal.SIGINT) if self.asked_to_stop else (0,)
        return self.code not in wanted


class NodeSet:
    """Runs the nodes of a plan; :meth:`run` returns when all have ended."""

    def __init__(self, plan: LaunchPlan, folder: Path, out: IO[str]) -> None:
        self._plan = plan
        self._folder = folder
        self._out = out
        self._out_lock = threading.Lock()
        self._nodes: list[RunningNode] = []
        self._readers: list[threading.Thread] = []
        self._stop_reason = ""
        self._files = 0

    def request_stop(self, reason: str) -> None:
        """Ask for a stop; may be called from a signal handler."""
        self._stop_reason = self._stop_reason or reason

    def run(self) -> int:
        """0 when every node ended well, else 1."""
        try:
            for number, plan in enumerate(self._plan.nodes, 1):
                if self._stop_reason:
                    break
                self._start(plan, f"{plan.name}-{number}")
            while not self._stop_reason and any(node.code is None for node in self._nodes):
                for node in self._nodes:
                    self._watch(node)
                time.sleep(POLL_S)
        finally:
            self._stop()
        for reader in self._readers:
            reader.join(timeout=1.0)
        failed = [node.label for node in self._nodes if node.failed()]
        if failed:
            self._say(f"failed: {', '.join(failed)}")
        return int(bool(failed))

    def _start(self, plan: NodePlan, label: str) -> None:
        command = plan.command(self._write_parameters)
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **dict(plan.environment)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        node = RunningNode(label, plan, process)
        self._nodes.append(node)
        self._say(f"{label}: started, pid {process.pid}")
        reader = threading.Thread(target=self._copy_output, args=(node,), daemon=True)
        reader.start()
        self._readers.append(reader)

    def _watch(self, node: RunningNode) -> None:
        if node.code is None and node.poll() is not None:
            self._say(f"{node.label}: ended with code {node.code}")
            if node.plan.shutdown_on_exit:
                self.request_stop(f"{node.label} ended")

    def _stop(self) -> None:
        live = [node for node in self._nodes if node.poll() is None]
        if live:
            self._say(f"stopping ({self._stop_reason or 'error'})")
        for number, patience_s in PATIENCE_S:
            live = [node for node in live if node.poll() is None]
            for node in live:
                node.asked_to_stop = True
                node.signals.append(number)
                if number != signal.SIGINT:
                    self._say(f"{node.label}: still running, sending {number.name}")
                node.process.send_signal(number)
            end_s = time.monotonic() + patience_s
            while any(node.poll() is None for node in live) and time.monotonic() < end_s:
                time.sleep(POLL_S)
        for node in self._nodes:
            if node.asked_to_stop:
                self._say(f"{node.label}: ended with code {node.code}")

    def _write_parameters(self, parameter: InlineParameter) -> Path:
        self._files += 1
        path = self._folder / f"parameters_{self._files}.yaml"
        path.write_text(parameter.as_yaml(), encoding="utf-8")
        return path

    def _copy_output(self, node: RunningNode) -> None:
        assert node.process.stdout is not None
        for line in node.process.stdout:
            text = line.decode(errors="replace").rstrip("\n")
            with self._out_lock, contextlib.suppress(BrokenPipeError):
                print(f"[{node.label}] {text}", file=self._out, flush=True)

    def _say(self, text: str) -> None:
        with self._out_lock, contextlib.suppress(BrokenPipeError):
            print(f"[niaf_start] {text}", file=self._out, flush=True)


def find_launch_file(name: str) -> Path:
    """``name`` as a path, or in niaf_bringup's launch folder (also without ``.launch.yaml``)."""
    candidates = [Path(name)]
    if os.sep not in name:
        try:
            folder = Path(ament_index().share("niaf_bringup")) / "launch"
        except LookupError:
            folder = Path(__file__).resolve().parent.parent / "launch"
        candidates += [folder / name, folder / f"{name}.launch.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            if candidate.suffix not in (".yaml", ".yml"):
                raise LaunchFileError(f"{candidate}: only *.launch.yaml is understood here")
            return candidate
    raise LaunchFileError(f"no launch file {name}; looked at {', '.join(map(str, candidates))}")


def parse_assignments(words: list[str]) -> dict[str, str]:
    """``name:=value`` words as a mapping."""
    given: dict[str, str] = {}
    for word in words:
        name, separator, value = word.partition(":=")
        if not separator or not name:
            raise LaunchFileError(f"{word!r}: launch arguments look like name:=value")
        if name in given:
            raise LaunchFileError(f"{name}:= is given twice")
        given[name] = value
    return given


def _show_arguments(path: Path) -> None:
    for argument in declared_arguments(path):
        default = "required" if argument.default is None else f"default {argument.default!r}"
        choices = f"; one of {', '.join(argument.choices)}" if argument.choices else ""
        print(f"  {argument.name}:=  {argument.description} ({default}{choices})")


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``niaf_start``."""
    parser = argparse.ArgumentParser(
        prog="niaf_start", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", help="a *.launch.yaml, or the name of one in niaf_bringup")
    parser.add_argument("arguments", nargs="*", metavar="name:=value")
    parser.add_argument("--show-args", action="store_true", help="list the arguments and end")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and end")
    options = parser.parse_args(argv)
    try:
        path = find_launch_file(options.file)
        if options.show_args:
            _show_arguments(path)
            return 0
        plan = read_launch_file(path, parse_assignments(options.arguments))
    except LaunchFileError as error:
        print(f"niaf_start: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="niaf_start_") as folder:
        if options.dry_run:
            for node in plan.nodes:
                print(shlex.join(node.command(lambda p: Path(f"<{p.key} {p.name}={p.value}>"))))
            return 0
        nodes = NodeSet(plan, Path(folder), sys.stdout)

        def stop(number: int, _: FrameType | None) -> None:
            nodes.request_stop(signal.Signals(number).name)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        return nodes.run()


if __name__ == "__main__":
    sys.exit(main())
