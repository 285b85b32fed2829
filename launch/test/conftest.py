"""A prefix with stand-ins for the nodes, to see exactly what a launch file gives each of them."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).resolve().parent.parent

EXECUTABLES = {
    "niaf_sim": ("sim_node", "recorder_node"),
    "niaf_policy": ("policy_node",),
    "niaf_impedance": ("impedance_node",),
}

#: Writes what it was given, with the content of its parameter files, and waits for SIGINT.
STAND_IN = """#!{python}
import json, os, signal, sys, time
import yaml
words = sys.argv[1:]
split = words.index("--ros-args")
given = {{"arguments": words[:split], "remaps": [], "parameters": {{}}}}
rest = words[split + 1:]
while rest:
    flag, value, rest = rest[0], rest[1], rest[2:]
    if flag == "-r":
        given["remaps"].append(value)
    elif flag == "--params-file":
        for key, content in yaml.safe_load(open(value)).items():
            for name, setting in content["ros__parameters"].items():
                given["parameters"][name] = [key if key != "/**" else "", setting]
    else:
        sys.exit(f"unexpected {{flag}}")
name = next(r for r in given["remaps"] if r.startswith("__node:=")).partition(":=")[2]
given["remaps"].sort()
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
path = os.path.join({folder!r}, name + ".json")
with open(path + ".tmp", "w") as stream:
    json.dump(given, stream)
os.rename(path + ".tmp", path)
while True:
    time.sleep(0.05)
"""


@dataclass(frozen=True)
class StandIns:
    """Environment in which the launch files find stand-ins, and what those were given."""

    environment: dict[str, str]
    prefix: Path
    folder: Path

    def wait(self, names: tuple[str, ...], timeout_s: float = 60.0) -> dict[str, Any]:
        """What each named node was given, once all have started."""
        end_s = time.monotonic() + timeout_s
        while not all((self.folder / f"{name}.json").exists() for name in names):
            if time.monotonic() > end_s:
                there = sorted(path.stem for path in self.folder.glob("*.json"))
                raise AssertionError(f"waited for {names}, started: {there}")
            time.sleep(0.05)
        return {p.stem: json.loads(p.read_text()) for p in sorted(self.folder.glob("*.json"))}

    def clear(self) -> None:
        for path in self.folder.glob("*.json"):
            path.unlink()


@pytest.fixture
def stand_ins(tmp_path: Path) -> StandIns:
    prefix, folder = tmp_path / "prefix", tmp_path / "given"
    folder.mkdir()
    index = prefix / "share/ament_index/resource_index/packages"
    index.mkdir(parents=True)
    for package, executables in EXECUTABLES.items():
        (index / package).touch()
        for executable in executables:
            program = prefix / "lib" / package / executable
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(STAND_IN.format(python=sys.executable, folder=str(folder)))
            program.chmod(0o755)
        (prefix / "share" / package).mkdir()
    (index / "niaf_bringup").touch()
    for data in ("launch", "config"):
        share = prefix / "share/niaf_bringup" / data
        share.mkdir(parents=True)
        for file in (PACKAGE / data).glob("*.*"):
            (share / file.name).symlink_to(file)
    environment = {
        **os.environ,
        "AMENT_PREFIX_PATH": f"{prefix}{os.pathsep}{os.environ.get('AMENT_PREFIX_PATH', '')}",
        "PYTHONPATH": f"{PACKAGE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "ROS_LOG_DIR": str(tmp_path / "log"),
        "PYTHONUNBUFFERED": "1",
    }
    return StandIns(environment, prefix, folder)
