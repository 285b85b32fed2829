"""Which OpenGL back end MuJoCo can render with here, found by trying in a child process.

MuJoCo reads ``MUJOCO_GL`` once, when it is imported, and fails there when the library behind it is
missing. So the choice is made before the import, in a process that may die.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

HEADLESS_BACKENDS = ("egl", "osmesa")
_PROBE = (
    "import mujoco\n"
    "c = mujoco.GLContext(16, 16)\n"
    "c.make_current()\n"
    "m = mujoco.MjModel.from_xml_string('<mujoco/>')\n"
    "mujoco.MjrContext(m, mujoco.mjtFontScale.mjFONTSCALE_100)\n"
    "import os\n"
    "os._exit(0)\n"
)
_PACKAGES = "libegl1 libgl1-mesa-dri (EGL) or libosmesa6 (OSMesa)"


class GraphicsError(RuntimeError):
    """No OpenGL back end works on this machine."""


@dataclass(frozen=True)
class GlBackend:
    """Value for MUJOCO_GL; ``note`` says what was passed over and is empty otherwise."""

    name: str
    note: str


def _probe(backend: str, environment: Mapping[str, str], timeout_s: float) -> str:
    """Empty when ``backend`` works, else the last line of what it said."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**environment, "MUJOCO_GL": backend},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:.0f} s"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"probe ended with code {done.returncode}"


def choose_gl_backend(
    environment: Mapping[str, str] | None = None, timeout_s: float = 60.0
) -> GlBackend:
    """First back end that renders: the one in MUJOCO_GL if set, then EGL, then OSMesa.

    Raises GraphicsError naming the Debian packages when none does.
    """
    environment = dict(os.environ) if environment is None else environment
    wanted = environment.get("MUJOCO_GL", "").strip().lower()
    order = [wanted] if wanted not in ("", "disable", "disabled", "off", "0", "false") else []
    order += [name for name in HEADLESS_BACKENDS if name not in order]
    failures: list[str] = []
    for name in order:
        failure = _probe(name, environment, timeout_s)
        if not failure:
            note = f"MUJOCO_GL={name}; " + "; ".join(failures) if failures else ""
            return GlBackend(name, note)
        failures.append(f"{name} does not work: {failure}")
    raise GraphicsError(
        "MuJoCo cannot render here (" + "; ".join(failures) + "). "
        f"Install {_PACKAGES}: apt install libegl1 libgl1-mesa-dri"
    )
