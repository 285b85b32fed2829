"""The tuning of a running arm as ROS parameters: checked together, ramped, reverted, saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.timer import Timer
from std_srvs.srv import Trigger

from niaf_impedance.controller import ImpedanceController
from niaf_impedance.parameters import (
    ParameterSpec,
    controller_settings,
    node_schema,
    parameter_file_text,
    tuning_from,
    tuning_schema,
)
from niaf_impedance.robot_config import RobotConfig
from niaf_impedance.settings import ControllerConfig, ControllerConfigError
from niaf_impedance.tuning import Tuning


def declare(node: Node, schema: tuple[ParameterSpec, ...]) -> None:
    """Declare every parameter of the schema with its range, so that rqt shows a slider."""
    for spec in schema:
        unit = f" [{spec.unit}]" if spec.unit else ""
        descriptor = ParameterDescriptor(
            description=spec.description + unit, read_only=not spec.live
        )
        if spec.choices:
            descriptor.additional_constraints = f"one of: {', '.join(spec.choices)}"
        if spec.minimum is not None and spec.maximum is not None:
            if isinstance(spec.default, float):
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=spec.minimum, to_value=spec.maximum)
                ]
            else:
                descriptor.integer_range = [
                    IntegerRange(from_value=int(spec.minimum), to_value=int(spec.maximum))
                ]
        node.declare_parameter(spec.name, spec.default, descriptor)


class LiveTuning:
    """Parameters, ``~/revert_gains`` and ``~/save_gains`` of one node.

    A set is judged as a whole by ``check`` (ranges, sampled-data bound) and refused with the reason
    as its result; ``apply`` is called with tuning and settings once a set was accepted.
    """

    def __init__(
        self,
        node: Node,
        robot: RobotConfig,
        check: Callable[[Tuning, ControllerConfig], str],
        apply: Callable[[Tuning, ControllerConfig], None],
    ) -> None:
        self._node, self._robot, self._check, self._apply = node, robot, check, apply
        self._names = [spec.name for spec in tuning_schema(robot)]
        self._settings = [spec.name for spec in node_schema()]
        declare(node, tuning_schema(robot))
        self.controller: ImpedanceController | None = None
        self._reverted_to: dict[str, Any] = {}
        self._rejected: list[str] = []
        self._restore_timer: Timer | None = None
        node.add_on_set_parameters_callback(self._on_set)
        node.add_post_set_parameters_callback(self._after_set)
        self._services = [
            node.create_service(Trigger, "~/revert_gains", self._on_revert),
            node.create_service(Trigger, "~/save_gains", self._on_save),
        ]

    def start(self, controller: ImpedanceController) -> None:
        """Give the configured values to a new controller; ControllerConfigError when they clash."""
        tuning, config = self.values()
        problem = self._check(tuning, config)
        if problem:
            raise ControllerConfigError(problem)
        controller.set_tuning(tuning)
        self.controller = controller
        self._reverted_to = {name: self._node.get_parameter(name).value for name in self._names}

    def values(self, changed: dict[str, Any] | None = None) -> tuple[Tuning, ControllerConfig]:
        """Tuning and settings as the parameters are, with ``changed`` put over them."""
        names = self._names + self._settings
        known = {name: self._node.get_parameter(name).value for name in names}
        known |= {name: value for name, value in (changed or {}).items() if name in known}
        return tuning_from(known, self._robot), controller_settings(known)

    # -- changes -----------------------------------------------------------------------------------
    def _ours(self, changed: list[Parameter]) -> dict[str, Any]:
        known = {*self._names, *self._settings}
        return {p.name: p.value for p in changed if p.name in known}

    def _on_set(self, changed: list[Parameter]) -> SetParametersResult:
        ours = self._ours(changed)
        if not ours or self.controller is None:
            return SetParametersResult(successful=True)
        try:
            tuning, config = self.values(ours)
            problem = self._check(tuning, config)
        except ControllerConfigError as error:
            problem = str(error)
        if problem:
            self._node.get_logger().warning(f"parameters rejected: {problem}")
            self._restore_later(list(ours))
            return SetParametersResult(successful=False, reason=problem)
        return SetParametersResult(successful=True)

    def _after_set(self, changed: list[Parameter]) -> None:
        ours = self._ours(changed)
        if not ours or self.controller is None:
            return
        tuning, config = self.values()
        if (tuning, config) == (self.controller.tuning, self.controller.config):
            return
        self._apply(tuning, config)
        text = ", ".join(
            f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}"
            for name, value in ours.items()
        )
        self._node.get_logger().info(f"tuning changes over {config.gain_ramp_s:g} s: {text}")

    def _restore_later(self, rejected: list[str]) -> None:
        """rqt keeps showing a rejected value until the parameter is set again to the valid one."""
        self._rejected = rejected
        if self._restore_timer is None:
            steady = Clock(clock_type=ClockType.STEADY_TIME)
            self._restore_timer = self._node.create_timer(0.05, self._restore, clock=steady)

    def _restore(self) -> None:
        if self._restore_timer is not None:
            self._node.destroy_timer(self._restore_timer)
            self._restore_timer = None
        self._node.set_parameters([self._node.get_parameter(name) for name in self._rejected])

    # -- services ----------------------------------------------------------------------------------
    def _on_revert(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self.controller is None:
            response.success, response.message = False, "not configured: nothing to revert"
            return response
        different = {
            name: value for name, value in self._reverted_to.items()
            if self._node.get_parameter(name).value != value
        }
        result = self._node.set_parameters_atomically(
            [Parameter(name, value=value) for name, value in different.items()])
        response.success = result.successful
        response.message = result.reason or (
            f"{len(different)} values ramp back to those the node was configured with"
        )
        return response

    def _on_save(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        chosen = str(self._node.get_parameter("gains_file").value)
        default = f"~/.ros/niaf/{self._robot.robot}_gains.yaml"
        file = Path(chosen or default).expanduser()
        values = {name: self._node.get_parameter(name).value for name in self._names}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(file.name + ".part")
            partial.write_text(parameter_file_text(self._node.get_name(), values))
            partial.replace(file)
        except OSError as error:
            response.success = False
            response.message = f"{file} cannot be written: {error.strerror}; set gains_file"
            return response
        response.success = True
        response.message = f"{file}: start with gains:={file} to use it"
        self._node.get_logger().info(f"tuning saved to {file}")
        return response
