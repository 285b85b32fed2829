"""Joint impedance control of torque-controlled arms along action fields.

The core (everything except ``*_node.py``) imports no ROS, reads no clock and never sleeps:
time and measured state are arguments. Entry points::

    arm = ArmModel.from_yaml(default_robot_config_path())
    controller = ImpedanceController(ControllerConfig(), arm, prior)
    controller.activate(t_s, q, dq)
    torque_nm = controller.tick(t_s, q, dq)
"""

from niaf_impedance.admission import AdmissionVerdict, Verdict
from niaf_impedance.arm_model import ArmModel, ArmModelError
from niaf_impedance.controller import ControllerConfig, ImpedanceController
from niaf_impedance.faults import Fault, Mode
from niaf_impedance.robot_config import (
    RobotConfig,
    RobotConfigError,
    default_robot_config_path,
    load_robot_config,
)

__all__ = [
    "AdmissionVerdict",
    "ArmModel",
    "ArmModelError",
    "ControllerConfig",
    "Fault",
    "ImpedanceController",
    "Mode",
    "RobotConfig",
    "RobotConfigError",
    "Verdict",
    "default_robot_config_path",
    "load_robot_config",
]
