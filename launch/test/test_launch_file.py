"""Reading of the YAML launch subset, with a made-up package index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from niaf_bringup.launch_file import (
    InlineParameter,
    LaunchFileError,
    LaunchPlan,
    PackageIndex,
    declared_arguments,
    join_names,
    read_launch_file,
)


@pytest.fixture
def index(tmp_path: Path) -> PackageIndex:
    program = tmp_path / "install/lib/robot/drive_node"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "install/share/robot").mkdir(parents=True)

    def find(package: str, folder: str) -> str:
        if package != "robot":
            raise LookupError(package)
        return str(tmp_path / "install" / folder)

    return PackageIndex(lambda p: find(p, ""), lambda p: find(p, "share/robot"))


@pytest.fixture
def read(tmp_path: Path, index: PackageIndex) -> Any:
    def run(text: str, environment: dict[str, str] | None = None, **given: str) -> LaunchPlan:
        path = tmp_path / "set.launch.yaml"
        path.write_text("launch:\n" + text)
        return read_launch_file(path, given, index, environment or {})

    return run


NODE = "- node: {pkg: robot, exec: drive_node, name: drive"


def command(plan: LaunchPlan) -> list[str]:
    (node,) = plan.nodes
    return node.command(lambda p: Path(f"<{p.key} {p.name} {p.value!r}>"))[1:]


def test_a_node_has_name_namespace_parameters_and_remaps_in_upstreams_order(
    read: Any, tmp_path: Path
) -> None:
    (tmp_path / "p.yaml").write_text("{}")
    plan = read(
        "- push_ros_namespace: {namespace: cell}\n"
        "- node:\n"
        "    pkg: robot\n"
        "    exec: drive_node\n"
        "    name: drive\n"
        "    namespace: left\n"
        "    args: --flag 'two words'\n"
        "    param:\n"
        "      - {from: $(dirname)/p.yaml}\n"
        "      - {name: rate, value: 2.5}\n"
        "    remap:\n"
        "      - {from: a, to: b}\n"
        "    env:\n"
        "      - {name: X, value: '1'}\n"
    )
    assert command(plan) == [
        "--flag", "two words", "--ros-args", "-r", "__node:=drive", "-r", "__ns:=/cell/left",
        "--params-file", str(tmp_path / "p.yaml"), "--params-file", "</cell/left/drive rate 2.5>",
        "-r", "a:=b",
    ]  # fmt: skip
    assert plan.nodes[0].environment == (("X", "1"),)


def test_an_empty_namespace_is_the_root(read: Any) -> None:
    plan = read("- push_ros_namespace: {namespace: ''}\n" + NODE + "}\n")
    assert command(plan) == ["--ros-args", "-r", "__node:=drive", "-r", "__ns:=/"]


def test_a_group_ends_its_namespace_and_variables(read: Any) -> None:
    plan = read(
        "- group:\n"
        "    - push_ros_namespace: {namespace: left}\n"
        "    - let: {name: x, value: '1'}\n"
        "    - node: {pkg: robot, exec: drive_node, name: a}\n"
        "- node: {pkg: robot, exec: drive_node, name: b}\n"
    )
    assert [node.namespace for node in plan.nodes] == ["/left", ""]
    with pytest.raises(LaunchFileError, match="no variable x"):
        read("- group:\n    - let: {name: x, value: '1'}\n- let: {name: y, value: $(var x)}\n")


@pytest.mark.parametrize(
    ("given", "kind", "expected"),
    [("500", "float", 500.0), ("7", "int", 7), ("true", "bool", True), ("123", "str", "123")],
)
def test_a_typed_parameter_takes_the_type_that_the_file_names(
    read: Any, given: str, kind: str, expected: Any
) -> None:
    plan = read(
        "- arg: {name: x}\n"
        + NODE + f", param: [{{name: p, value: $(var x), type: {kind}}}]}}\n",
        x=given,
    )  # fmt: skip
    (parameter,) = plan.nodes[0].parameters
    assert isinstance(parameter, InlineParameter)
    assert parameter.value == expected
    assert type(parameter.value) is type(expected)


@pytest.mark.parametrize(("given", "kind"), [("1.5", "int"), ("fast", "float"), ("2", "bool")])
def test_a_value_of_another_type_is_refused(read: Any, given: str, kind: str) -> None:
    with pytest.raises(LaunchFileError, match=f"is not of type {kind}"):
        read(
            "- arg: {name: x}\n"
            + NODE + f", param: [{{name: p, value: $(var x), type: {kind}}}]}}\n",
            x=given,
        )  # fmt: skip


def test_conditions_leave_nodes_out(read: Any) -> None:
    text = "- arg: {name: go, default: 'false'}\n" + NODE + ", if: $(var go)}\n"
    assert read(text).nodes == ()
    assert len(read(text, go="True").nodes) == 1
    with pytest.raises(LaunchFileError, match="not true or false"):
        read(text, go="maybe")


def test_substitutions_nest_and_values_are_not_read_again(read: Any) -> None:
    plan = read(
        "- arg: {name: which, default: ROBOT}\n"
        "- let: {name: x, value: $(env $(var which))}\n" + NODE + ", args: $(var x)}\n",
        environment={"ROBOT": "$(var nothing)"},
    )
    assert plan.nodes[0].arguments == ("$(var", "nothing)")
    assert read(NODE + ", args: $(env MISSING fallback)}\n").nodes[0].arguments == ("fallback",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- include: {file: x}\n", "action include unsupported"),
        (NODE + ", respawn: true}\n", "respawn unsupported"),
        ("- node: {pkg: robot, exec: drive_node}\n", "name missing"),
        ("- node: {pkg: robot, exec: nothing, name: n}\n", "no executable nothing"),
        ("- node: {pkg: absent, exec: x, name: n}\n", "package absent is not installed"),
        (NODE + ", param: [{from: /nowhere.yaml}]}\n", "no parameter file /nowhere.yaml"),
        (NODE + ", on_exit: restart}\n", "only 'shutdown'"),
        (NODE + ", args: $(eval 1)}\n", "unsupported"),
        (NODE + ", args: '$(var x'}\n", "no closing bracket"),
        ("- arg: {name: a}\n", "argument a:=... must be given"),
        ("- arg: {name: a, default: true}\n", "put True between quotes"),
        ("- {arg: {name: a}, let: {name: b}}\n", "an action is one key"),
        (NODE + "}\n" + NODE + "}\n", "more than one node named drive"),
        (NODE + ", if: 'true', unless: 'true'}\n", "exclude each other"),
    ],
)
def test_what_is_outside_the_subset_is_refused_by_name(
    read: Any, text: str, message: str
) -> None:
    with pytest.raises(LaunchFileError, match=message):
        read(text)


def test_unknown_arguments_are_refused_with_the_known_ones(read: Any) -> None:
    with pytest.raises(LaunchFileError, match="unknown arguments sped; there are: speed"):
        read("- arg: {name: speed, default: '1'}\n", sped="2")


def test_an_argument_outside_its_choices_is_refused(read: Any) -> None:
    text = "- arg: {name: mode, default: a, choice: [{value: a}, {value: b}]}\n"
    assert read(text, mode="b").arguments[0].choices == ("a", "b")
    with pytest.raises(LaunchFileError, match="mode:=c is not one of a, b"):
        read(text, mode="c")


@pytest.mark.parametrize("content", ["- a\n", "launch: 1\n", "other: []\n", "launch: [\n"])
def test_a_file_that_is_no_launch_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.launch.yaml"
    path.write_text(content)
    with pytest.raises(LaunchFileError, match="bad.launch.yaml"):
        declared_arguments(path)


def test_names_join_as_in_ros() -> None:
    assert join_names("", "a") == "/a"
    assert join_names("/a", "b/") == "/a/b"
    assert join_names("/a", "/b") == "/b"
    assert join_names("/a", "") == "/a"
    assert join_names("", "") == ""
