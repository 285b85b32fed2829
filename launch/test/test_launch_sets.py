"""The launch files themselves: what each node is given, by the starter and by ``ros2 launch``."""

from __future__ import annotations

import importlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

PACKAGE = Path(__file__).resolve().parent.parent
SETS = {
    "demo": ("impedance", "policy", "sim"),
    "sim": ("sim",),
    "policy": ("policy",),
    "impedance": ("impedance",),
}
#: arguments that differ from every default
GIVEN = {
    "namespace": "left",
    "checkpoint": "/tmp/other checkpoint",
    "robot_config": "/tmp/robot.yaml",
    "control_rate_hz": "500",
    "policy_rate_hz": "10",
    "viewer": "true",
    "record": "true",
    "record_file": "/tmp/run.mcap",
    "seed": "7",
    "arm_interface": "mit_can",
    "drive_config": "/tmp/drives.yaml",
    "journal": "true",
    "loop": "clock",
    "gains": str(PACKAGE / "config/gains.yaml"),
}


def upstream_missing() -> str:
    """Why ``ros2 launch`` cannot be tried here; empty when it can."""
    # A process of its own: in this one, "launch" may be the folder that these tests are in. And
    # "import launch" alone proves nothing, a data folder of that name passes for a package.
    probe = "from launch import LaunchDescription; import launch_ros.actions, launch_yaml"
    tried = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    if tried.returncode:
        return f"launch_ros is not installed ({tried.stderr.strip().splitlines()[-1]})"
    return "" if shutil.which("ros2") else "no ros2 command"


def declared(name: str) -> list[str]:
    content = yaml.safe_load((PACKAGE / f"launch/{name}.launch.yaml").read_text())
    return [item["arg"]["name"] for item in content["launch"] if "arg" in item]


def words(name: str, given: dict[str, str]) -> list[str]:
    return [f"{key}:={given[key]}" for key in declared(name) if key in given]


def run(command: list[str], stand_ins: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """What the nodes were given by ``command``, which must then stop cleanly on SIGINT."""
    stand_ins.clear()
    process = subprocess.Popen(
        command,
        env=stand_ins.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        given: dict[str, Any] = stand_ins.wait(names)
    finally:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    return given


def starter(name: str, given: dict[str, str]) -> list[str]:
    file = f"{name}.launch.yaml"
    return [sys.executable, "-m", "niaf_bringup.starter", file, *words(name, given)]


def upstream(file: str, given: dict[str, str]) -> list[str]:
    name = file.partition(".")[0]
    return ["ros2", "launch", "niaf_bringup", file, *words(name, given)]


@pytest.mark.system
@pytest.mark.parametrize("name", SETS)
def test_the_starter_starts_the_nodes_of_a_set(name: str, stand_ins: Any) -> None:
    given = run(starter(name, {}), stand_ins, SETS[name])
    assert sorted(given) == list(SETS[name])


@pytest.mark.system
def test_arguments_reach_the_nodes(stand_ins: Any) -> None:
    given = run(starter("demo", GIVEN), stand_ins, (*SETS["demo"], "recorder"))
    assert all("__ns:=/left" in node["remaps"] for node in given.values())
    assert given["sim"]["parameters"]["seed"] == ["/left/sim", 7]
    assert given["sim"]["parameters"]["viewer"] == ["/left/sim", True]
    impedance = given["impedance"]
    assert impedance["parameters"]["control_rate_hz"] == ["/left/impedance", 500.0]
    assert impedance["parameters"]["prior"][1] == "/tmp/other checkpoint/prior.safetensors"
    assert impedance["parameters"]["robot_config"][1] == "/tmp/robot.yaml"
    assert impedance["parameters"]["arm_interface"] == ["/left/impedance", "mit_can"]
    assert impedance["parameters"]["journal"] == ["/left/impedance", True]
    assert impedance["parameters"]["loop"] == ["/left/impedance", "clock"]
    assert given["sim"]["parameters"]["drive_config"] == ["/left/sim", "/tmp/drives.yaml"]
    assert "action_field:=policy/action_field" in impedance["remaps"]
    assert "tool_pose:=impedance/tool_pose" in given["policy"]["remaps"]
    assert given["policy"]["parameters"]["policy_rate_hz"] == ["/left/policy", 10.0]
    assert given["policy"]["parameters"]["checkpoint"][1] == "/tmp/other checkpoint"
    assert given["recorder"]["parameters"]["output"][1] == "/tmp/run.mcap"


@pytest.mark.system
@pytest.mark.parametrize("arguments", [{}, GIVEN], ids=["defaults", "all_given"])
@pytest.mark.parametrize("name", SETS)
def test_ros2_launch_gives_the_nodes_the_same_as_the_starter(
    name: str, arguments: dict[str, str], stand_ins: Any
) -> None:
    if reason := upstream_missing():
        pytest.skip(reason)
    names = (*SETS[name], "recorder") if arguments else SETS[name]
    ours = run(starter(name, arguments), stand_ins, names)
    assert run(upstream(f"{name}.launch.yaml", arguments), stand_ins, names) == ours
    assert run(upstream(f"{name}.launch.py", arguments), stand_ins, names) == ours


@pytest.mark.parametrize("path", sorted((PACKAGE / "config").glob("*.yaml")), ids=lambda p: p.name)
def test_parameter_files_have_one_wildcard_section(path: Path) -> None:
    """A file with other sections besides would win over values set by the launch file."""
    assert list(yaml.safe_load(path.read_text())) == ["/**"]


@pytest.mark.parametrize("name", SETS)
def test_each_set_has_a_python_launch_file_that_includes_the_yaml(name: str) -> None:
    text = (PACKAGE / f"launch/{name}.launch.py").read_text()
    assert f'with_name("{name}.launch.yaml")' in text


@pytest.mark.parametrize("name", SETS)
def test_every_argument_says_what_it_is(name: str) -> None:
    content = yaml.safe_load((PACKAGE / f"launch/{name}.launch.yaml").read_text())
    arguments = [item["arg"] for item in content["launch"] if "arg" in item]
    assert all(argument["description"] for argument in arguments)


@pytest.mark.parametrize("node", ["policy", "impedance"])
def test_every_parameter_that_a_node_is_given_is_one_that_it_declares(node: str) -> None:
    """ROS ignores unknown names in parameter files: a misspelt one would never be noticed."""
    module = importlib.import_module(f"niaf_{node}.parameters")
    names = {spec.name for spec in (module.SCHEMA if node == "policy" else module.node_schema())}
    config = yaml.safe_load((PACKAGE / f"config/{node}.yaml").read_text())
    given = set(config["/**"]["ros__parameters"])
    for action in yaml.safe_load((PACKAGE / f"launch/{node}.launch.yaml").read_text())["launch"]:
        for entry in action.get("group", []):
            if entry.get("node", {}).get("name") == node:
                given |= {p["name"] for p in entry["node"]["param"] if "name" in p}
    assert len(given) >= 3
    assert given - names == set()
