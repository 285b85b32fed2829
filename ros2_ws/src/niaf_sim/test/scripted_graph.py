"""Stand-ins for the policy and impedance nodes, to test the demo runner without a checkpoint.

`impedance` holds the pose it was activated in with a damped spring; `policy` accepts goals and
reports a "field" five times a second. With the argument "mortal" it dies in the second goal.
"""

import contextlib
import os
import sys
import threading
import time

import numpy as np
import rclpy
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from niaf_msgs.action import ExecuteInstruction
from niaf_msgs.msg import AdmissionReport, ImpedanceState

NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


class Impedance(Node):
    """Answers each joint state with a torque while active."""

    def __init__(self):
        super().__init__("impedance")
        self.active, self.target, self.hold, self.ticks, self.sequence = True, None, None, 0, 0
        self.efforts = self.create_publisher(
            Float64MultiArray, "effort_controller/commands", NEWEST
        )
        self.states = self.create_publisher(ImpedanceState, "impedance/state", NEWEST)
        self.reports = self.create_publisher(AdmissionReport, "impedance/admission", 10)
        self.create_subscription(JointState, "joint_states", self.on_state, NEWEST)
        self.create_service(GetState, "~/get_state", self.on_get)
        self.create_service(ChangeState, "~/change_state", self.on_change)

    def on_get(self, _, response):
        response.current_state = State(
            id=State.PRIMARY_STATE_ACTIVE if self.active else State.PRIMARY_STATE_INACTIVE,
            label="active" if self.active else "inactive",
        )
        return response

    def on_change(self, request, response):
        on = request.transition.id == Transition.TRANSITION_ACTIVATE
        response.success = on != self.active
        self.active, self.target = on, None
        return response

    def on_state(self, state):
        if not self.active:
            return
        q, dq = np.array(state.position[:7]), np.array(state.velocity[:7])
        if self.target is None:
            self.target, self.hold = q, np.array(state.effort[:7])
        torque = self.hold + 40.0 * (self.target - q) - 10.0 * dq
        self.efforts.publish(Float64MultiArray(data=torque.tolist()))
        self.ticks += 1
        if self.ticks % 10 == 0:
            m = ImpedanceState(
                name=state.name[:7], mode=ImpedanceState.TRACK, field_sequence=self.sequence,
                tick_count=self.ticks, tick_lateness_s=2e-4, state_age_s=3e-4,
                peak_torque_ratio=0.4,
            )
            m.header = state.header
            m.reference_position, m.measured_position = self.target.tolist(), q.tolist()
            m.reference_velocity, m.measured_velocity = [0.0] * 7, dq.tolist()
            m.torque_command = torque.tolist()
            self.states.publish(m)


class Policy(Node):
    """Reports fields that nobody follows."""

    def __init__(self, impedance, mortal):
        super().__init__("policy")
        self.impedance, self.mortal, self.goals, self.sequence = impedance, mortal, 0, 0
        self.create_service(GetState, "~/get_state", impedance.on_get_policy)
        self.server = ActionServer(
            self, ExecuteInstruction, "~/execute", self.execute,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
            callback_group=ReentrantCallbackGroup(),
        )

    def execute(self, handle):
        self.goals += 1
        result = ExecuteInstruction.Result(success=True, message="cancelled")
        while not handle.is_cancel_requested:
            if self.mortal and self.goals == 2:
                os._exit(9)
            self.sequence += 1
            self.impedance.sequence = self.sequence
            handle.publish_feedback(
                ExecuteInstruction.Feedback(field_sequence=self.sequence, latency_s=0.06)
            )
            self.impedance.reports.publish(AdmissionReport(sequence=self.sequence, age_s=0.07))
            time.sleep(0.2)
        handle.canceled()
        return result


def always_active(_, response):
    response.current_state = State(id=State.PRIMARY_STATE_ACTIVE, label="active")
    return response


def main():
    rclpy.init()
    impedance = Impedance()
    impedance.on_get_policy = always_active
    policy = Policy(impedance, "mortal" in sys.argv)
    executor = MultiThreadedExecutor(4)
    executor.add_node(policy)
    alone = rclpy.executors.SingleThreadedExecutor()
    alone.add_node(impedance)
    threading.Thread(target=spin_quietly, args=(alone,), daemon=True).start()
    spin_quietly(executor)
    os._exit(0)


def spin_quietly(executor):
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        executor.spin()


if __name__ == "__main__":
    main()
