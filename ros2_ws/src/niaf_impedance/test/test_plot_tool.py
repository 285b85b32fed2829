"""The picture of a recording in which references moved the tool."""

from types import SimpleNamespace

import numpy as np
import pytest

from niaf_impedance import Mode, plot_recording
from niaf_impedance.plot_recording import STATE_TYPE, draw, read_trace

JOINTS = ["a", "b"]


def state(k: int, tool: bool | None):
    """State k of a recording; ``tool`` None: of an older one, without the field."""
    stamp = SimpleNamespace(sec=k // 100, nanosec=(k % 100) * 10_000_000)
    values = {name: [0.1 * k, 0.2] for name in plot_recording._ARRAYS}
    if tool is not None:
        values["tool_error"] = [1e-3 * k, 0.0, 0.0, 0.0, 2e-3, 0.0] if tool else []
    return SimpleNamespace(
        header=SimpleNamespace(stamp=stamp), name=JOINTS, mode=int(Mode.TRACK), fault=0,
        field_sequence=1 + k // 5, **values)


@pytest.fixture
def recorded(monkeypatch):
    def make(tool):
        rows = [("/impedance/state", STATE_TYPE, 0, state(k, tool)) for k in range(20)]
        monkeypatch.setattr(plot_recording, "read_messages", lambda *_: iter(rows))
        return read_trace("run.mcap")

    return make


def test_the_tools_error_is_drawn_where_it_is_recorded(recorded, tmp_path):
    trace = recorded(True)
    assert trace.tool_error.shape == (20, 6)
    figure = draw(trace, [0, 1], "tool")
    (place,) = [a for a in figure.axes if a.get_title(loc="left") == "tool position error"]
    (turn,) = [a for a in figure.axes if a.get_title(loc="left") == "tool orientation error"]
    x = next(line for line in place.lines if line.get_label() == "x")
    np.testing.assert_allclose(x.get_ydata(), np.arange(20.0))  # mm
    y = next(line for line in turn.lines if line.get_label() == "y")
    np.testing.assert_allclose(y.get_ydata(), 2.0)  # mrad
    figure.savefig(tmp_path / "tool.png", dpi=40)
    assert (tmp_path / "tool.png").stat().st_size > 10_000


@pytest.mark.parametrize("tool", [False, None])
def test_recordings_of_joint_references_are_drawn_as_before(recorded, tool):
    trace = recorded(tool)
    assert trace.tool_error is None
    titles = {axis.get_title(loc="left") for axis in draw(trace, [0], "joints").axes}
    assert titles == {"", "a"}
