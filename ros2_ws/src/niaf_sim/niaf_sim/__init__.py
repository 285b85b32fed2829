"""MuJoCo cell, FOC drives, cameras, tasks, scripted expert, lock-step environment, sim node."""

import os

# MuJoCo picks its OpenGL back end when it is first imported, hence here and not beside the
# renderer: a robot PC or CI has no screen. An empty value counts as unset.
os.environ["MUJOCO_GL"] = os.environ.get("MUJOCO_GL") or "egl"
