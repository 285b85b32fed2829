"""The page of complaints names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/complaints.md"
TESTS = ROOT / "ros2_ws/src/niaf_impedance/test"


def named() -> list[tuple[str, str]]:
    """(file, test) in the order of the page; ``::test`` alone belongs to the file before it."""
    pairs, file = [], ""
    for match in re.finditer(r"`([\w/]*\.py)?(?:::(test_\w+))?`", PAGE.read_text()):
        file = match[1] or file
        pairs.append((file, match[2] or ""))
    return pairs


@pytest.mark.skipif(not PAGE.is_file(), reason="docs/ is not beside an installed package")
def test_every_named_test_exists() -> None:
    pairs = named()
    assert len(pairs) > 40
    for file, test in pairs:
        path = ROOT / file if "/" in file else TESTS / file
        assert path.is_file(), f"{file} does not exist"
        assert f"def {test}(" in path.read_text() or not test, f"{file} has no {test}"
