"""The simulated robot cell: one object that advances physics by control periods.

No ROS, no clock: time advances only in :meth:`Cell.step`, and everything random comes from the seed
given to :meth:`Cell.reset`. The real-time node, the lock-step environment and the tests drive the
same object.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mujoco
import numpy as np

from niaf_sim import scene
from niaf_sim.drive import DriveBank, DriveConfig
from niaf_sim.tasks import SuccessRule, goal_reached, parse_instruction

FloatArray = np.ndarray

STARTS = ("home", "random")


@dataclass(frozen=True)
class CellConfig:
    """Scene, drives and the region in which cubes are placed (base frame, metres)."""

    control_period_s: float = 0.001
    scene: scene.SceneConfig = field(default_factory=scene.SceneConfig)
    success: SuccessRule = field(default_factory=SuccessRule)
    cube_x_m: tuple[float, float] = (0.42, 0.60)
    cube_y_m: tuple[float, float] = (-0.11, 0.20)
    cube_gap_m: float = 0.095
    cube_yaw_rad: float = 0.25
    home_noise_rad: float = 0.03


class Cell:
    """Panda, table, three cubes, bin and cameras behind the interface of a real cell.

    ``q``, ``dq`` (float64[7]) are the drives' encoder positions and velocity estimates;
    ``torque_nm`` what the drives report as produced; ``gripper_width_m`` the measured opening.
    """

    def __init__(self, config: CellConfig | None = None) -> None:
        self.config = config or CellConfig()
        sc = self.config.scene
        ratio = self.config.control_period_s / sc.timestep_s
        self._substeps = round(ratio)
        if self._substeps < 1 or abs(ratio - self._substeps) > 1e-9:
            raise ValueError(
                f"control_period_s {self.config.control_period_s} is not a multiple of the physics "
                f"timestep {sc.timestep_s}"
            )
        self.model = scene.build_model(sc)
        self.data = mujoco.MjData(self.model)
        self.drives = DriveBank(DriveConfig(torque_limit_nm=sc.torque_limit_nm))
        joint = self.model.joint
        first = joint(scene.ARM_JOINTS[0])
        self._arm_q = slice(int(first.qposadr[0]), int(first.qposadr[0]) + 7)
        self._arm_v = slice(int(first.dofadr[0]), int(first.dofadr[0]) + 7)
        self._finger_q = [int(joint(name).qposadr[0]) for name in scene.FINGER_JOINTS]
        self._cube_q = [int(joint(f"cube{i}").qposadr[0]) for i in range(3)]
        self._cube_v = [int(joint(f"cube{i}").dofadr[0]) for i in range(3)]
        self._tcp = self.model.body("panda_hand_tcp").id
        self._renderers: dict[str, mujoco.Renderer] = {}
        self._cameras = {camera.name: camera for camera in sc.cameras}
        self.task = parse_instruction("pick up the red cube")
        self.seed = 0
        self._goal_since_s = np.inf
        self.reset(0, self.task.instruction)

    # -- state -------------------------------------------------------------------------------
    @property
    def time_s(self) -> float:
        return float(self.data.time)

    @property
    def q(self) -> FloatArray:
        return self.drives.q

    @property
    def dq(self) -> FloatArray:
        return self.drives.dq

    @property
    def torque_nm(self) -> FloatArray:
        return self.drives.torque_nm

    @property
    def q_true(self) -> FloatArray:
        return self.data.qpos[self._arm_q]

    @property
    def dq_true(self) -> FloatArray:
        return self.data.qvel[self._arm_v]

    @property
    def gripper_width_m(self) -> float:
        return float(self.data.qpos[self._finger_q[0]] + self.data.qpos[self._finger_q[1]])

    @property
    def instruction(self) -> str:
        return self.task.instruction

    def cube_positions_m(self) -> FloatArray:
        """Privileged: centres of the red, green and blue cube, float64[3, 3]."""
        return np.stack([self.data.qpos[a : a + 3] for a in self._cube_q])

    def tcp_pose(self) -> tuple[FloatArray, FloatArray]:
        """Privileged: true position [3] and rotation matrix [3, 3] of the tool centre point."""
        return self.data.xpos[self._tcp].copy(), self.data.xmat[self._tcp].reshape(3, 3).copy()

    # -- life cycle --------------------------------------------------------------------------
    def reset(self, seed: int, instruction: str, start: str = "home") -> None:
        """Place cubes and arm from ``seed``; the arm holds still under its own holding torque.

        ``start`` 'home' is the home pose with small noise; 'random' a random pose above the table.
        Raises UnknownInstructionError or ValueError, leaving the running episode untouched.
        """
        task = parse_instruction(instruction)
        if start not in STARTS:
            raise ValueError(f"start {start!r} is not one of {STARTS}")
        rng = np.random.default_rng(seed)
        self.task, self.seed = task, seed
        mujoco.mj_resetData(self.model, self.data)
        qpos = self.data.qpos
        home = np.array(scene.HOME_Q)
        noise = rng.uniform(-1.0, 1.0, 7)
        spread: float | FloatArray = self.config.home_noise_rad
        if start == "random":
            spread = np.array([0.30, 0.15, 0.20, 0.20, 0.20, 0.20, 0.30])
        qpos[self._arm_q] = home + spread * noise
        for finger in self._finger_q:
            qpos[finger] = scene.GRIPPER_MAX_M / 2
        for address, (x, y, yaw) in zip(self._cube_q, self._place_cubes(rng), strict=True):
            qpos[address : address + 3] = (x, y, self.config.scene.cube_half_m)
            qpos[address + 3 : address + 7] = (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        mujoco.mj_forward(self.model, self.data)
        hold = self.data.qfrc_bias[self._arm_v]
        self.drives.reset(qpos[self._arm_q], hold)
        self.data.ctrl[:7] = self.drives.torque_nm
        self.data.ctrl[7] = scene.GRIPPER_MAX_M
        self._goal_since_s = np.inf

    def _place_cubes(self, rng: np.random.Generator) -> list[tuple[float, float, float]]:
        c = self.config
        while True:  # three cubes fit easily: a handful of draws at most
            xy = np.column_stack([rng.uniform(*c.cube_x_m, 3), rng.uniform(*c.cube_y_m, 3)])
            gaps = np.linalg.norm(xy[[0, 0, 1]] - xy[[1, 2, 2]], axis=1)
            if gaps.min() > c.cube_gap_m:
                break
        yaw = rng.uniform(-c.cube_yaw_rad, c.cube_yaw_rad, 3)
        return [(float(x), float(y), float(a)) for (x, y), a in zip(xy, yaw, strict=True)]

    # -- one control period ------------------------------------------------------------------
    def step(self, torque_nm: FloatArray | None, gripper_width_m: float | None = None) -> None:
        """Advance one control period. ``None`` means that no command arrived in this period."""
        if torque_nm is not None:
            self.drives.command(torque_nm)
        data, model, drives = self.data, self.model, self.drives
        if gripper_width_m is not None and np.isfinite(gripper_width_m):
            data.ctrl[7] = min(max(gripper_width_m, 0.0), scene.GRIPPER_MAX_M)
        dt = model.opt.timestep
        q = data.qpos[self._arm_q]
        for _ in range(self._substeps):
            data.ctrl[:7] = drives.step(dt, q)
            mujoco.mj_step(model, data)
        if not self._goal_now():
            self._goal_since_s = np.inf
        elif self._goal_since_s == np.inf:
            self._goal_since_s = data.time

    def _goal_now(self) -> bool:
        cube = self.task.cube
        a, v = self._cube_q[cube], self._cube_v[cube]
        data = self.data
        height = data.qpos[a + 2]
        if self.task.kind == "pick" and height <= self.config.success.lift_height_m:
            return False  # the common case, kept cheap
        speed = float(np.linalg.norm(data.qvel[v : v + 3]))
        return goal_reached(
            self.task,
            self.config.success,
            data.qpos[a : a + 3],
            speed,
            np.asarray(self.config.scene.bin_position_m),
            self.gripper_width_m,
        )

    def success(self) -> bool:
        """True once the goal has held for ``success.hold_s``."""
        return self.data.time - self._goal_since_s >= self.config.success.hold_s

    # -- cameras -----------------------------------------------------------------------------
    def snapshot(self) -> FloatArray:
        """Copy of the generalised positions, enough to render this instant elsewhere."""
        return self.data.qpos.copy()

    def render(self, camera: str, data: mujoco.MjData | None = None) -> np.ndarray:
        """RGB image uint8[height, width, 3] of ``camera`` ('scene', 'wrist', 'overview')."""
        if camera not in self._cameras:
            raise KeyError(f"no camera {camera!r}; the cell has {sorted(self._cameras)}")
        settings = self._cameras[camera]
        renderer = self._renderers.get(camera)
        if renderer is None:
            renderer = mujoco.Renderer(self.model, settings.height, settings.width)
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = settings.shadows
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
            self._renderers[camera] = renderer
        renderer.update_scene(self.data if data is None else data, camera)
        return renderer.render()

    def load_visual(self, data: mujoco.MjData, qpos: FloatArray) -> None:
        """Put a :meth:`snapshot` into ``data`` (a separate MjData) ready to render."""
        data.qpos[:] = qpos
        mujoco.mj_kinematics(self.model, data)
        mujoco.mj_camlight(self.model, data)

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
