"""Reads descriptions (YAML) field by field; every complaint names file, key, value and remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


class RobotConfigError(ValueError):
    """A description that cannot be used; the text names file, key, value and remedy."""


class DescriptionReader:
    """Reads one mapping of the YAML; ``finish`` refuses what nobody read.

    Attributes:
        mapping: what is read.
        where: path of the mapping inside the file; empty at the top.
        file: the file, for complaints.
        used: keys that are known here.
    """

    def __init__(self, mapping: object, where: str, file: Path) -> None:
        self.where, self.file = where, file
        if not isinstance(mapping, Mapping):
            raise RobotConfigError(f"{file}: {where or 'it'} must be a mapping, not {mapping!r}")
        self.mapping: Mapping[str, Any] = mapping
        self.used: set[str] = set()

    def fail(self, key: str, problem: str) -> RobotConfigError:
        """The error that says what is wrong with ``key``."""
        path = f"{self.where}.{key}" if self.where else key
        return RobotConfigError(f"{self.file}: {path}: {problem}")

    def get(self, key: str) -> Any:
        """Any value; the key must be there."""
        self.used.add(key)
        if key not in self.mapping:
            raise self.fail(key, "missing; add it")
        return self.mapping[key]

    def has(self, key: str) -> bool:
        """An optional key is there and not null."""
        self.used.add(key)
        return self.mapping.get(key) is not None

    def inner(self, key: str) -> DescriptionReader:
        """Reader of the mapping at ``key``."""
        where = f"{self.where}.{key}" if self.where else key
        return DescriptionReader(self.get(key), where, self.file)

    def items(self, key: str, of: str) -> list[DescriptionReader]:
        """Readers of the mappings in the list at ``key``, one per ``of``."""
        entries = self.get(key)
        if not isinstance(entries, list) or not entries:
            raise self.fail(key, f"must be a list with one entry per {of}")
        return [DescriptionReader(e, f"{key}[{i}]", self.file) for i, e in enumerate(entries)]

    def text(self, key: str) -> str:
        """Text that is not empty."""
        value = self.get(key)
        if not isinstance(value, str) or not value:
            raise self.fail(key, f"must be a non-empty text, not {value!r}")
        return value

    def number(self, key: str, low: float = -math.inf, high: float = math.inf,
               above: bool = False) -> float:
        """Finite number from ``low`` (with ``above``: over it) to ``high``."""
        return self.check(key, self.get(key), low, high, above)

    def check(self, key: str, value: Any, low: float = -math.inf, high: float = math.inf,
              above: bool = False) -> float:
        """``value`` as a number inside the bounds; ``key`` is only named."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.fail(key, f"must be a number, not {value!r}")
        number = float(value)
        if not math.isfinite(number):
            raise self.fail(key, f"must be finite, not {value!r}")
        if number < low or number > high or (above and number <= low):
            sign = ">" if above else ">="
            limit = f"{sign} {low:g}" + (f" and <= {high:g}" if high < math.inf else "")
            raise self.fail(key, f"is {number:g} but must be {limit}; correct the value")
        return number

    def optional_number(self, key: str, default: float, low: float, above: bool = False) -> float:
        """As ``number``; ``default`` where the key is not there."""
        self.used.add(key)
        return self.number(key, low, above=above) if key in self.mapping else default

    def whole(self, key: str, low: int, high: int) -> int:
        """Whole number from ``low`` to ``high``."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fail(key, f"must be a whole number from {low} to {high}, not {value!r}")
        return value

    def choice(self, key: str, choices: Sequence[Any]) -> Any:
        """One of ``choices``, which are all of one type."""
        value = self.get(key)
        if value not in choices or isinstance(value, bool) != isinstance(choices[0], bool):
            raise self.fail(key, f"must be one of {list(choices)}, not {value!r}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false; ``default`` where the key is not there."""
        self.used.add(key)
        value = self.mapping.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, f"must be true or false, not {value!r}")
        return value

    def vector(self, key: str) -> tuple[float, float, float]:
        """Three finite numbers."""
        value = self.get(key)
        if not isinstance(value, list) or len(value) != 3:
            raise self.fail(key, f"must be a list of three numbers, not {value!r}")
        x, y, z = (self.check(f"{key}[{i}]", item) for i, item in enumerate(value))
        return x, y, z

    def finish(self) -> None:
        """Refuse keys that nobody read."""
        unknown = sorted(set(map(str, self.mapping)) - self.used)
        if unknown:
            raise self.fail(unknown[0], f"unknown key; known keys here: {sorted(self.used)}")


def open_description(path: str | Path, kind: str) -> DescriptionReader:
    """Reader of a YAML file that holds a mapping.

    Args:
        path: the file.
        kind: what it should describe, for the message.

    Raises:
        RobotConfigError: the file cannot be read or is not YAML.
    """
    file = Path(path).expanduser()
    try:
        document = yaml.safe_load(file.read_text())
    except OSError as error:
        raise RobotConfigError(
            f"cannot read {kind} description {file}: {error.strerror}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RobotConfigError(f"{file} is not valid YAML: {error}") from error
    return DescriptionReader(document, "", file)
