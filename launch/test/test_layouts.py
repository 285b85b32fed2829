"""The operator's layouts: every topic and field they name exists, as this project publishes it."""

from __future__ import annotations

import ast
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("niaf_msgs.msg")

from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image

from niaf_impedance.robot_config import default_robot_config_path, load_robot_config
from niaf_msgs.msg import AdmissionReport, ImpedanceState
from niaf_sim.recorder_node import DEFAULT_TOPICS

PACKAGE = Path(__file__).resolve().parent.parent
PERSPECTIVE = PACKAGE / "rqt/niaf.perspective"
PLOTJUGGLER = PACKAGE / "plotjuggler/niaf.xml"
FOXGLOVE = PACKAGE / "foxglove/niaf.json"

#: what the layouts may name, as the nodes publish it when launched without arguments
TOPICS = {
    "/impedance/state": ImpedanceState,
    "/impedance/admission": AdmissionReport,
    "/diagnostics": DiagnosticArray,
    "/scene/image_raw": Image,
    "/wrist/image_raw": Image,
}
JOINTS = len(load_robot_config(default_robot_config_path()).joints)

_NUMBER = re.compile(r"(u?int\d+|float|double|boolean|octet)")


def problem_of(path: str, separator: str, joints: int = JOINTS) -> str:
    """Why "/topic<separator>field[index]" names no number of a message; empty when it does."""
    topic = next((t for t in TOPICS if path.startswith(t + separator)), None)
    if topic is None:
        return f"{path}: nobody publishes this topic"
    field = path[len(topic) + len(separator) :]
    name, _, rest = field.partition("[")
    type_name = TOPICS[topic].get_fields_and_field_types().get(name)
    if type_name is None:
        return f"{path}: {topic} has no field {name}"
    is_array = type_name.startswith("sequence<")
    if not _NUMBER.fullmatch(type_name.removeprefix("sequence<").removesuffix(">")):
        return f"{path}: {type_name} is no number"
    if is_array != bool(rest):
        return f"{path}: {type_name} needs {'an index' if is_array else 'no index'}"
    if rest and not (rest.endswith("]") and rest[:-1].isdigit() and int(rest[:-1]) < joints):
        return f"{path}: the index must lie within the {joints} joints"
    return ""


def keys_of(node: dict[str, Any], at: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """(path, stored value) of every key of an rqt perspective."""
    assert set(node) == {"keys", "groups"}
    for name, value in node["keys"].items():
        yield f"{at}{name}", value
    for name, group in node["groups"].items():
        yield from keys_of(group, f"{at}{name}/")


@pytest.fixture(scope="module")
def perspective() -> dict[str, Any]:
    """Path of every key of the perspective -> its value as rqt would restore it."""
    values = {}
    for path, stored in keys_of(json.loads(PERSPECTIVE.read_text())):
        if stored["type"] == "repr":
            values[path] = ast.literal_eval(stored["repr"])
        else:
            assert stored["type"] == "repr(QByteArray.hex)"
            text = re.fullmatch(r"QtCore\.QByteArray\((.+)\)", stored["repr(QByteArray.hex)"])
            assert text, f"{path} would not restore"
            values[path] = bytes.fromhex(ast.literal_eval(text[1]).decode())
    return values


@pytest.fixture(scope="module")
def foxglove() -> dict[str, Any]:
    layout: dict[str, Any] = json.loads(FOXGLOVE.read_text())
    return layout


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/impedance/state/measured_position[6]", ""),
        ("/impedance/state/mode", ""),
        ("/impedance/state/measured_position[7]", "within the 7 joints"),
        ("/impedance/state/measured_position", "needs an index"),
        ("/impedance/state/mode[0]", "needs no index"),
        ("/impedance/state/measured_torque[0]", "no field"),
        ("/impedance/state/fault_text", "no number"),
        ("/impedance/status/mode", "nobody publishes"),
    ],
)
def test_a_wrong_path_is_noticed(path: str, complaint: str) -> None:
    found = problem_of(path, "/", 7)
    assert complaint in found
    assert bool(found) == bool(complaint)


def test_perspective_plots_fields_that_exist(perspective: dict[str, Any]) -> None:
    lists = [value for path, value in perspective.items() if path.endswith("plugin/topics")]
    paths = [path for one in lists for path in one]
    assert len(paths) >= 5
    assert [problem_of(path, "/") for path in paths if problem_of(path, "/")] == []


def test_perspective_runs_what_it_configures_and_opens_the_impedance_node(
    perspective: dict[str, Any],
) -> None:
    running = perspective["pluginmanager/running-plugins"]
    instances = {
        f"pluginmanager/plugin__{name.replace('/', '__')}__{serial}"
        for name, serials in running.items()
        for serial in serials
    }
    configured = {"/".join(p.split("/")[:2]) for p in perspective if "/plugin__" in p}
    assert configured == instances
    selected = [value for path, value in perspective.items() if path.endswith("selected_nodes")]
    assert selected == [["/impedance"]]


def test_plotjuggler_curves_exist() -> None:
    root = ElementTree.parse(PLOTJUGGLER).getroot()
    curves = [curve.attrib["name"] for curve in root.iter("curve")]
    assert len(curves) == len(list(root.iter("curve"))) > 7 * JOINTS
    assert [problem_of(name, "/") for name in curves if problem_of(name, "/")] == []
    for field in ("reference_position", "measured_position", "torque_command"):
        for joint in range(JOINTS):
            assert f"/impedance/state/{field}[{joint}]" in curves


def test_plotjuggler_splitters_hold_what_they_count() -> None:
    root = ElementTree.parse(PLOTJUGGLER).getroot()
    splitters = list(root.iter("DockSplitter"))
    assert splitters
    for splitter in splitters:
        count = int(splitter.attrib["count"])
        assert len(splitter) == count
        sizes = [float(size) for size in splitter.attrib["sizes"].split(";")]
        assert len(sizes) == count
        assert sum(sizes) == pytest.approx(1.0, abs=1e-5)
        assert splitter.attrib["orientation"] in ("|", "-")


def test_plotjuggler_subscribes_to_what_it_plots() -> None:
    root = ElementTree.parse(PLOTJUGGLER).getroot()
    plugins = {plugin.attrib["ID"]: plugin for plugin in root.iter("plugin")}
    live = plugins["ROS2 Topic Subscriber"].find("selected_topics")
    recorded = plugins["DataLoad MCAP"].find("parameters")
    assert live is not None
    assert recorded is not None
    topics = set(live.attrib["value"].split(";"))
    assert topics == set(recorded.attrib["selected_topics"].split(";"))
    assert topics <= set(TOPICS)
    for curve in root.iter("curve"):
        assert any(curve.attrib["name"].startswith(topic + "/") for topic in topics)


def test_foxglove_paths_exist_for_every_joint_of_the_slider(foxglove: dict[str, Any]) -> None:
    panels = foxglove["configById"]
    slider = panels["GlobalVariableSliderPanel!joint"]["sliderProps"]
    assert slider == {"min": 0, "max": JOINTS - 1, "step": 1}
    assert slider["min"] <= foxglove["globalVariables"]["joint"] <= slider["max"]
    paths = [path["value"] for panel in panels.values() for path in panel.get("paths", [])]
    assert len(paths) > 10
    for path in paths:
        for joint in range(slider["min"], slider["max"] + 1):
            assert problem_of(path.replace("[$joint:$joint]", f"[{joint}]"), ".") == ""


def test_foxglove_layout_places_every_panel_once(foxglove: dict[str, Any]) -> None:
    placed: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, str):
            placed.append(node)
            return
        assert node["direction"] in ("row", "column")
        assert 0 < node["splitPercentage"] < 100
        walk(node["first"])
        walk(node["second"])

    walk(foxglove["layout"])
    assert sorted(placed) == sorted(foxglove["configById"])


def test_foxglove_images_and_diagnostics_have_the_right_topics(foxglove: dict[str, Any]) -> None:
    panels = foxglove["configById"]
    images = {
        config["imageMode"]["imageTopic"]
        for name, config in panels.items()
        if name.startswith("Image!")
    }
    assert images == {"/scene/image_raw", "/wrist/image_raw"}
    assert {TOPICS[topic] for topic in images} == {Image}
    diagnostics = {
        config["topicToRender"] for config in panels.values() if "topicToRender" in config
    }
    assert diagnostics == {"/diagnostics"}


def test_topics_are_those_of_the_demo_launch_and_in_its_recordings() -> None:
    items = yaml.safe_load((PACKAGE / "launch/demo.launch.yaml").read_text())["launch"]
    arguments = {item["arg"]["name"]: item["arg"] for item in items if "arg" in item}
    assert arguments["namespace"]["default"] == ""
    (group,) = [item["group"] for item in items if "group" in item]
    nodes = {item["node"]["name"]: item["node"] for item in group if "node" in item}
    renamed = [remap["from"] for node in nodes.values() for remap in node.get("remap", [])]
    assert sorted(renamed) == ["action_field", "tool_pose"]
    for topic in TOPICS:
        if TOPICS[topic] in (ImpedanceState, AdmissionReport):
            assert topic.split("/")[1] in nodes
    recorded = {wish if wish.startswith("/") else f"/{wish}" for wish in DEFAULT_TOPICS}
    assert set(TOPICS) <= {topic.partition("@")[0] for topic in recorded}
