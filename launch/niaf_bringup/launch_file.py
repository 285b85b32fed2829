"""Reads a strict subset of upstream's YAML launch format into a plan of processes.

The same file works under ``ros2 launch``; here everything outside the subset is an error, so that
a file never means two things. The subset:

* ``arg`` (name, default, description, choice), ``let`` (name, value, if, unless)
* ``group`` (list form), ``push_ros_namespace`` / ``push-ros-namespace`` (namespace, if, unless)
* ``node`` (pkg, exec, name, namespace, args, param, remap, env, output, on_exit: shutdown, if,
  unless); ``name`` is required: without it upstream writes parameters for all nodes, not this one
* substitutions ``$(var x)``, ``$(env X)``, ``$(env X default)``, ``$(find-pkg-share p)``,
  ``$(find-pkg-prefix p)``, ``$(dirname)``; they nest

Left out: include, respawn, event handlers, lifecycle events, composable nodes, Python launch files.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

#: keys of a node: those it must have, those it may have
NODE_NEEDS = ("pkg", "exec", "name")
NODE_KNOWS = ("namespace", "args", "param", "remap", "env", "output", "on_exit", "if", "unless")


class LaunchFileError(ValueError):
    """The launch file or its arguments cannot be used; names the place and the remedy."""


@dataclass(frozen=True)
class Argument:
    """A declared launch argument. ``default`` None = must be given."""

    name: str
    default: str | None
    description: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class InlineParameter:
    """A parameter with its value in the launch file; ``key`` is the node's fully qualified name."""

    key: str
    name: str
    value: Any

    def as_yaml(self) -> str:
        """Content of a ROS parameter file with this one parameter."""
        content = {self.key: {"ros__parameters": {self.name: self.value}}}
        text: str = yaml.safe_dump(content, default_flow_style=False)
        return text


@dataclass(frozen=True)
class NodePlan:
    """One process to start."""

    package: str
    executable: str
    program: str
    name: str
    namespace: str
    arguments: tuple[str, ...]
    parameters: tuple[Path | InlineParameter, ...]
    remaps: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]
    shutdown_on_exit: bool

    def command(self, write_parameters: Callable[[InlineParameter], Path]) -> list[str]:
        """Command line in upstream's order; ``write_parameters`` puts inline ones into a file."""
        words = [self.program, *self.arguments, "--ros-args"]
        words += ["-r", f"__node:={self.name}", "-r", f"__ns:={self.namespace or '/'}"]
        for parameter in self.parameters:
            path = parameter if isinstance(parameter, Path) else write_parameters(parameter)
            words += ["--params-file", str(path)]
        for source, target in self.remaps:
            words += ["-r", f"{source}:={target}"]
        return words


@dataclass(frozen=True)
class LaunchPlan:
    """What a launch file asks for, with its arguments filled in."""

    nodes: tuple[NodePlan, ...]
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class PackageIndex:
    """Where installed packages are; stands in for ament's index in tests."""

    prefix: Callable[[str], str]
    share: Callable[[str], str]


def ament_index() -> PackageIndex:
    """The index of the sourced workspaces."""
    from ament_index_python.packages import get_package_prefix, get_package_share_directory

    return PackageIndex(get_package_prefix, get_package_share_directory)


def read_launch_file(
    path: Path,
    given: Mapping[str, str],
    index: PackageIndex | None = None,
    environment: Mapping[str, str] | None = None,
) -> LaunchPlan:
    """Plan of ``path`` with the arguments ``given``; raises LaunchFileError at anything it cannot
    read, at unknown or missing arguments and at nodes whose executable is not installed."""
    reader = _Reader(path, given, index, environment)
    nodes = reader.read()
    return LaunchPlan(tuple(nodes), tuple(reader.declared))


def declared_arguments(path: Path) -> tuple[Argument, ...]:
    """Arguments at the top level of ``path``, with defaults as written in the file."""
    declared = []
    for item in _load(path):
        kind, body = _action(item, str(path))
        if kind == "arg":
            declared.append(_argument(body, str(path)))
    return tuple(declared)


def _load(path: Path) -> list[Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LaunchFileError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise LaunchFileError(f"{path}: not YAML ({error})") from error
    if not isinstance(content, dict) or set(content) != {"launch"}:
        raise LaunchFileError(f"{path}: the file must hold one key, 'launch'")
    if not isinstance(content["launch"], list):
        raise LaunchFileError(f"{path}: 'launch' must be a list of actions")
    return content["launch"]


def _action(item: Any, where: str) -> tuple[str, Any]:
    if not isinstance(item, dict) or len(item) != 1:
        raise LaunchFileError(f"{where}: an action is one key with its content, not {item!r}")
    ((kind, body),) = item.items()
    return str(kind), body


def _only(body: Any, where: str, needed: tuple[str, ...], optional: tuple[str, ...]) -> None:
    """Refuse a mapping with keys outside the subset, or without a needed one."""
    if not isinstance(body, dict):
        raise LaunchFileError(f"{where}: expected a mapping, not {body!r}")
    extra = sorted(str(key) for key in set(body) - set(needed) - set(optional))
    if extra:
        raise LaunchFileError(f"{where}: {', '.join(extra)} unsupported; use ros2 launch for that")
    missing = [key for key in needed if key not in body]
    if missing:
        raise LaunchFileError(f"{where}: {', '.join(missing)} missing")


def _list(body: Any, where: str) -> list[Any]:
    if not isinstance(body, list):
        raise LaunchFileError(f"{where}: expected a list, not {body!r}")
    return body


def _argument(body: Any, where: str) -> Argument:
    _only(body, f"{where}: arg", ("name",), ("default", "description", "choice"))
    name = str(body["name"])
    choices = []
    for choice in _list(body.get("choice", []), f"{where}: arg {name}: choice"):
        _only(choice, f"{where}: arg {name}: choice", ("value",), ())
        choices.append(_text(choice["value"], f"{where}: arg {name}: choice"))
    default = body.get("default")
    if default is not None:
        default = _text(default, f"{where}: arg {name}: default")
    return Argument(name, default, str(body.get("description", "")), tuple(choices))


def _text(value: Any, where: str) -> str:
    """Upstream wants text here; a bare ``true`` or ``1.0`` would be an error there."""
    if not isinstance(value, str):
        raise LaunchFileError(f"{where}: must be text, put {value!r} between quotes")
    return value


def _typed(value: Any, text: str, kind: Any, where: str) -> Any:
    """``value`` as the type that the file names, so that 500 can be given for 500.0."""
    if kind == "str":
        return text
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "float" and number:
        return float(value)
    if (kind == "int" and number and isinstance(value, int)) or (
        kind == "bool" and isinstance(value, bool)
    ):
        return value
    if kind not in ("bool", "float", "int", "str"):
        raise LaunchFileError(f"{where}: type {kind!r} unsupported (bool, float, int, str)")
    raise LaunchFileError(f"{where}: {text!r} is not of type {kind}")


def join_names(namespace: str, more: str) -> str:
    """``more`` inside ``namespace``, by ROS's rules; result is absolute, or empty for the root."""
    joined = more if more.startswith("/") else f"{namespace}/{more}"
    joined = "/" + "/".join(part for part in joined.split("/") if part)
    return "" if joined == "/" else joined


class _Reader:
    def __init__(
        self,
        path: Path,
        given: Mapping[str, str],
        index: PackageIndex | None,
        environment: Mapping[str, str] | None,
    ) -> None:
        self._path = path
        self._given = dict(given)
        self._index = ament_index() if index is None else index
        self._environment = os.environ if environment is None else environment
        self.declared: list[Argument] = []

    def read(self) -> list[NodePlan]:
        nodes = self._read_list(_load(self._path), {}, "", str(self._path))
        unknown = sorted(set(self._given) - {argument.name for argument in self.declared})
        if unknown:
            known = ", ".join(argument.name for argument in self.declared) or "none"
            raise LaunchFileError(
                f"{self._path}: unknown arguments {', '.join(unknown)}; there are: {known}"
            )
        twice = sorted({n.name for n in nodes if [_full(m) for m in nodes].count(_full(n)) > 1})
        if twice:
            raise LaunchFileError(f"{self._path}: more than one node named {', '.join(twice)}")
        return nodes

    def _read_list(
        self, items: list[Any], variables: dict[str, str], namespace: str, where: str
    ) -> list[NodePlan]:
        nodes: list[NodePlan] = []
        for item in items:
            kind, body = _action(item, where)
            if kind == "arg":
                self._declare(body, variables, where)
            elif kind == "let":
                _only(body, f"{where}: let", ("name", "value"), ("if", "unless"))
                if self._enabled(body, variables, where):
                    value = _text(body["value"], f"{where}: let {body['name']}")
                    variables[str(body["name"])] = self._fill(value, variables, where)
            elif kind == "group":
                if not isinstance(body, list):
                    raise LaunchFileError(f"{where}: group: only the list form is supported")
                nodes += self._read_list(body, dict(variables), namespace, where)
            elif kind in ("push_ros_namespace", "push-ros-namespace"):
                _only(body, f"{where}: {kind}", ("namespace",), ("if", "unless"))
                if self._enabled(body, variables, where):
                    more = self._fill(str(body["namespace"]), variables, where)
                    namespace = join_names(namespace, more)
            elif kind == "node":
                place = f"{where}: node {body.get('name', '?') if isinstance(body, dict) else '?'}"
                _only(body, place, NODE_NEEDS, NODE_KNOWS)
                if self._enabled(body, variables, place):
                    nodes.append(self._node(body, variables, namespace, place))
            else:
                raise LaunchFileError(f"{where}: action {kind} unsupported; use ros2 launch for it")
        return nodes

    def _declare(self, body: Any, variables: dict[str, str], where: str) -> None:
        argument = _argument(body, where)
        self.declared.append(argument)
        if argument.name in self._given:
            value = self._given[argument.name]
        elif argument.default is not None:
            value = self._fill(argument.default, variables, f"{where}: arg {argument.name}")
        else:
            raise LaunchFileError(f"{where}: argument {argument.name}:=... must be given")
        if argument.choices and value not in argument.choices:
            raise LaunchFileError(
                f"{where}: {argument.name}:={value} is not one of {', '.join(argument.choices)}"
            )
        variables[argument.name] = value

    def _node(
        self, body: dict[str, Any], variables: dict[str, str], namespace: str, where: str
    ) -> NodePlan:
        def fill(key: str, default: str = "") -> str:
            return self._fill(str(body.get(key, default)), variables, where)

        package, executable, name = fill("pkg"), fill("exec"), fill("name")
        if body.get("output", "screen") not in ("screen", "log", "both"):
            raise LaunchFileError(f"{where}: output: {body['output']!r} unsupported")
        if body.get("on_exit", "shutdown") != "shutdown":
            raise LaunchFileError(f"{where}: on_exit: only 'shutdown' is supported")
        own = join_names(namespace, fill("namespace"))
        return NodePlan(
            package=package,
            executable=executable,
            program=self._program(package, executable, where),
            name=name,
            namespace=own,
            arguments=tuple(shlex.split(fill("args"))),
            parameters=self._parameters(body, variables, join_names(own, name), where),
            remaps=tuple(self._pairs(body, "remap", ("from", "to"), variables, where)),
            environment=tuple(self._pairs(body, "env", ("name", "value"), variables, where)),
            shutdown_on_exit="on_exit" in body,
        )

    def _program(self, package: str, executable: str, where: str) -> str:
        path = os.path.join(self._look_up(self._index.prefix, package, where), "lib", package)
        program = os.path.join(path, executable)
        if not os.access(program, os.X_OK):
            there = sorted(os.listdir(path)) if os.path.isdir(path) else []
            raise LaunchFileError(
                f"{where}: package {package} has no executable {executable}; "
                f"in {path}: {', '.join(there) or 'nothing'} (rebuild the workspace?)"
            )
        return program

    def _parameters(
        self, body: dict[str, Any], variables: dict[str, str], key: str, where: str
    ) -> tuple[Path | InlineParameter, ...]:
        found: list[Path | InlineParameter] = []
        for entry in _list(body.get("param", []), f"{where}: param"):
            if isinstance(entry, dict) and "from" in entry:
                _only(entry, f"{where}: param", ("from",), ())
                path = Path(self._fill(str(entry["from"]), variables, where))
                if not path.is_file():
                    raise LaunchFileError(f"{where}: no parameter file {path}")
                found.append(path)
            else:
                _only(entry, f"{where}: param", ("name", "value"), ("type",))
                name = self._fill(str(entry["name"]), variables, where)
                place = f"{where}: param {name}"
                value = self._value(entry["value"], variables, place)
                if "type" in entry:
                    text = self._fill(str(entry["value"]), variables, where)
                    value = _typed(value, text, entry["type"], place)
                found.append(InlineParameter(key, name, value))
        return tuple(found)

    def _value(self, value: Any, variables: dict[str, str], where: str) -> Any:
        """Value with substitutions, typed as upstream does it: text is read as YAML."""
        if isinstance(value, list):
            return [self._value(item, variables, where) for item in value]
        if not isinstance(value, str):
            return value
        text = self._fill(value, variables, where)
        try:
            typed = yaml.safe_load(text)
        except yaml.YAMLError:
            return text
        return text if typed is None or isinstance(typed, dict) else typed

    def _pairs(
        self,
        body: dict[str, Any],
        key: str,
        names: tuple[str, str],
        variables: dict[str, str],
        where: str,
    ) -> list[tuple[str, str]]:
        pairs = []
        for entry in _list(body.get(key, []), f"{where}: {key}"):
            _only(entry, f"{where}: {key}", names, ())
            first, second = (self._fill(str(entry[name]), variables, where) for name in names)
            pairs.append((first, second))
        return pairs

    def _enabled(self, body: dict[str, Any], variables: dict[str, str], where: str) -> bool:
        if "if" in body and "unless" in body:
            raise LaunchFileError(f"{where}: 'if' and 'unless' exclude each other")
        if "if" in body:
            return self._truth(body["if"], variables, where)
        if "unless" in body:
            return not self._truth(body["unless"], variables, where)
        return True

    def _truth(self, value: Any, variables: dict[str, str], where: str) -> bool:
        text = self._fill(str(value), variables, where).strip().lower()
        if text not in ("true", "1", "false", "0"):
            raise LaunchFileError(f"{where}: {text!r} is not true or false")
        return text in ("true", "1")

    # -- substitutions -----------------------------------------------------------------------
    def _fill(self, text: str, variables: Mapping[str, str], where: str) -> str:
        """``text`` with every ``$(...)`` replaced, once: values are not read again."""
        filled, rest = self._fill_until(text, variables, where, inside=False)
        assert not rest
        return filled

    def _fill_until(
        self, text: str, variables: Mapping[str, str], where: str, inside: bool
    ) -> tuple[str, str]:
        """Filled text up to the closing bracket (``inside``) or the end, and what follows it."""
        done = ""
        while text:
            if text.startswith("$("):
                inner, text = self._fill_until(text[2:], variables, where, inside=True)
                done += self._substitute(inner, variables, where)
            elif inside and text[0] == ")":
                return done, text[1:]
            else:
                done, text = done + text[0], text[1:]
        if inside:
            raise LaunchFileError(f"{where}: no closing bracket in $({done}")
        return done, ""

    def _substitute(self, inner: str, variables: Mapping[str, str], where: str) -> str:
        try:
            verb, *words = shlex.split(inner)
        except ValueError as error:
            raise LaunchFileError(f"{where}: $({inner}) cannot be read ({error})") from error
        if verb == "dirname" and not words:
            return str(self._path.absolute().parent)
        if verb == "var" and len(words) == 1:
            if words[0] not in variables:
                raise LaunchFileError(f"{where}: no variable {words[0]} (missing arg or let)")
            return variables[words[0]]
        if verb == "env" and len(words) in (1, 2):
            if words[0] not in self._environment and len(words) == 1:
                raise LaunchFileError(f"{where}: environment variable {words[0]} is not set")
            return self._environment.get(words[0], words[-1])
        if verb == "find-pkg-share" and len(words) == 1:
            return self._look_up(self._index.share, words[0], where)
        if verb == "find-pkg-prefix" and len(words) == 1:
            return self._look_up(self._index.prefix, words[0], where)
        raise LaunchFileError(f"{where}: $({inner}) unsupported; use ros2 launch for it")

    @staticmethod
    def _look_up(find: Callable[[str], str], package: str, where: str) -> str:
        try:
            return find(package)
        except LookupError as error:
            raise LaunchFileError(
                f"{where}: package {package} is not installed or its workspace is not sourced"
            ) from error


def _full(node: NodePlan) -> str:
    return join_names(node.namespace, node.name)
