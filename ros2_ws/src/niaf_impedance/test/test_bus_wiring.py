"""The loop's thread over a virtual bus, for every back end: nothing outside touches the loop."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import replace

import can
import numpy as np
import pytest
from drives_support import break_down
from impedance_support import make_spline

from niaf_impedance import ControllerConfig, ImpedanceController, bus_wiring
from niaf_impedance.bus_wiring import BusArm
from niaf_impedance.controller import ResetRefusedError
from niaf_impedance.drives.bus_loop import BusLoopError, Closing
from niaf_impedance.drives.description import MIT_CAN, PROTOCOLS, drives_of_arm, make_emulator
from niaf_impedance.drives.interface import DriveError, DriveFault
from niaf_impedance.faults import Fault, Mode
from niaf_impedance.lateness import ONLY_COUNT
from niaf_impedance.warm_up import warm_up


def wait_for(condition, what: str, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.005)


class Wired:
    """An arm on a virtual bus, with limits for a loaded machine; it stands where it is commanded.

    Attributes:
        arm: what is tested.
        emulator: its motors.
        controller: belongs to the loop's thread while the bus is open.
        modes: of the controller, one after the other.
    """

    def __init__(self, model, protocol: str, closing: Closing = Closing.GAINS) -> None:
        description = drives_of_arm(protocol, "", model.joint_names)
        patient = (
            {"set_watchdog_s": 0.9, "watchdog_max_s": 1.0, "register_deadline_s": 0.5}
            if protocol == MIT_CAN
            else {"watchdog_s": 0.9, "register_deadline_s": 2.0}
        )
        description = replace(
            description,
            bus={"interface": "virtual", "channel": f"arm-{uuid.uuid4()}"},
            drive=replace(description.drive, rate_hz=50.0, reply_deadline_s=0.015, **patient),
            loop=replace(
                description.loop, rate_hz=50.0, closing=closing, missing_limit=20, fall_back=False
            ),
        )
        self.emulator = make_emulator(description)
        self.emulator.q[: model.n] = model.config.home_rad
        self._motors = can.Bus(**description.bus)
        self._serving = self.emulator.serve(self._motors)
        self._serving.__enter__()
        config = ControllerConfig(state_timeout_s=0.8, dt_max_s=1.0 / 50.0)
        self.controller = ImpedanceController(config, model)
        warm_up(self.controller)
        self.epoch_s = time.time() - 10.0
        self.modes: list[Mode] = []
        self.arm = BusArm(
            description, self.controller, epoch_s=self.epoch_s, on_state=self._follow,
            limits=ONLY_COUNT,
        )

    def _follow(self, wall_s: float, state) -> None:
        n = self.controller.arm.n
        if self.modes[-1:] != [self.controller.mode]:
            self.modes.append(self.controller.mode)
        if self.controller.mode is Mode.TRACK:
            self.emulator.q[:n] = self.controller.telemetry.q_ref
            self.emulator.dq[:n] = self.controller.telemetry.dq_ref
        else:
            self.emulator.dq[:n] = 0.0

    def take_over(self) -> None:
        self.arm.open()
        wait_for(lambda: not self.arm.activation_problem(), "states")
        self.arm.activate()

    def take_over_patiently(self) -> None:
        """``take_over`` where the tests have made waiting short."""
        self.arm.open()
        wait_for(lambda: not self.arm.activation_problem(), "states")
        loop = self.arm._loop
        self.arm.call(lambda: loop.start(self.controller.config.state_timeout_s), 10.0)

    def mode(self) -> Mode:
        return self.arm.call(lambda: self.controller.mode)

    def motors_off(self) -> bool:
        return all(motor.off for motor in self.emulator.motors)

    def set_wall_clock(self) -> None:
        """As if somebody had set the wall clock of this machine."""
        def step() -> None:
            self.arm._wall.offset_s -= 0.1

        self.arm.call(step)
        wait_for(lambda: self.arm.clock_problem, "the loop to see it")

    def close(self) -> None:
        self.arm.close()
        self._serving.__exit__(None, None, None)
        self._motors.shutdown()


@pytest.fixture(params=PROTOCOLS)
def build(arm, request):
    opened: list[Wired] = []

    def make(closing: Closing = Closing.GAINS) -> Wired:
        opened.append(Wired(arm, request.param, closing))
        return opened[-1]

    yield make
    for wired in opened:
        wired.close()


def test_an_arm_is_taken_over_and_released(build):
    wired = build()
    bus_arm = wired.arm
    assert bus_arm.activation_problem() == "the bus is not open"
    with pytest.raises(BusLoopError, match="not open"):
        bus_arm.activate()
    bus_arm.open()
    wait_for(lambda: not bus_arm.activation_problem(), "states")
    assert bus_arm.off
    bus_arm.activate()
    assert wired.mode() is Mode.HOLD
    assert bus_arm.call(threading.current_thread).name == "bus_loop"
    assert bus_arm.diagnostics()["motors"] == "on"
    assert bus_arm.diagnostics()["protocol"] == bus_arm.description.protocol
    with pytest.raises(ZeroDivisionError):
        bus_arm.call(lambda: 1 / 0)  # comes back to who asked; the loop goes on
    bus_arm.deactivate()
    wait_for(lambda: bus_arm.off, "the ramp")
    wait_for(wired.motors_off, "the motors to be off")
    wait_for(lambda: not bus_arm.activation_problem(), "states after release")
    assert bus_arm.failure == "" and bus_arm.warning() == ""


def test_closing_the_arm_switches_its_motors_off(build):
    wired = build()
    wired.take_over()
    wired.arm.close()
    assert wired.arm.off and wired.arm.failure == ""
    assert wired.motors_off()


def test_a_reference_reaches_the_motors(build, arm):
    wired = build()
    wired.take_over()
    home = np.array(arm.config.home_rad)
    now_s = time.time() - wired.epoch_s
    spline = make_spline(home, now_s, 1, seed=5, reach=0.05, horizon_s=1.0)
    verdict = wired.arm.call(lambda: wired.controller.offer(now_s, spline))
    assert verdict.accepted, verdict.text
    wait_for(
        lambda: Mode.TRACK in wired.modes and wired.modes[-1] is Mode.HOLD,
        "the reference to begin and end",
    )
    motors = wired.emulator.motors
    q_ref = wired.arm.call(lambda: wired.controller.telemetry.q_ref.copy())
    assert np.abs(q_ref - home).max() > 0.02

    def told() -> bool:  # by the newest frames, where the arm and the hand are to be
        targets = [m.target_rad for m in motors]
        if None in targets:
            return False
        joint = [m.joint.map.joint_position(t) for m, t in zip(motors, targets, strict=True)]
        gripper_m = wired.arm.call(lambda: wired.controller.gripper_m)
        return bool(
            np.allclose(joint[: arm.n], q_ref, atol=2e-3) and abs(2 * joint[-1] - gripper_m) < 1e-3
        )

    wait_for(told, "the end of the reference in the motors")


def test_a_motor_in_fault_is_named_and_reset_takes_the_arm_back(build):
    wired = build()
    wired.take_over()
    break_down(wired.emulator.motors[3])
    wait_for(lambda: wired.controller.fault is Fault.DRIVE_FAULT, "the fault")
    assert wired.mode() is Mode.DAMP
    assert wired.controller.fault_joint == "panda_joint4"
    assert wired.arm.warning().startswith("panda_joint4: 1")
    wired.arm.reset()
    assert wired.mode() is Mode.HOLD
    assert wired.arm.warning() == ""
    assert not any(motor.off for motor in wired.emulator.motors)


def test_a_silent_bus_is_named_and_the_motors_damp(build):
    wired = build()
    wired.take_over()
    for motor in wired.emulator.motors:
        motor.silent = True
    wait_for(lambda: wired.controller.fault is Fault.DRIVE_SILENT, "the fault")
    assert "no motor answered" in wired.arm.warning()
    assert wired.arm.diagnostics()["motors"] == "silent"

    def all_tripped() -> bool:
        wired.emulator.step()
        return all(motor.tripped for motor in wired.emulator.motors)

    wait_for(all_tripped, "the motors' watchdogs")
    for motor in wired.emulator.motors:
        motor.silent = False
    wired.arm.reset()
    assert wired.mode() is Mode.HOLD


def test_damping_on_the_host_is_bounded_by_the_bus_rate(build):
    in_motors, on_host = build(), build(Closing.TORQUE)
    in_motors.arm.open()
    on_host.arm.open()
    controller = in_motors.controller
    assert in_motors.arm.check_gains(controller.kp, controller.kd) == ""
    assert "two periods of 20 ms late" in on_host.arm.check_gains(controller.kp, controller.kd)


def test_a_loop_that_stood_still_damps_by_name_and_can_be_reset(build):
    wired = build()
    wired.take_over()
    wired.arm.post(lambda: time.sleep(1.0))  # longer than a state may be old
    wait_for(lambda: wired.mode() is Mode.DAMP, "DAMP")
    assert wired.controller.fault is Fault.LOOP_LATE
    assert "LOOP_LATE" in wired.arm.warning()
    wired.arm.reset()
    assert wired.mode() is Mode.HOLD
    assert wired.arm.lateness.text == ""


# -- what gives up waiting -------------------------------------------------------------------------
@pytest.fixture
def gate():
    opened = threading.Event()
    yield opened
    opened.set()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(bus_wiring, "_SWITCHING_S", 0.1)
    monkeypatch.setattr(bus_wiring, "_ANSWER_S", 0.1)


def answers(wired: Wired) -> None:
    """The loop has made whole rounds since."""
    for _ in range(3):
        wired.arm.call(lambda: None, 10.0)


def slow_down(wired: Wired, name: str, gate: threading.Event) -> None:
    """``BusLoop.<name>`` takes until the gate opens."""
    loop = wired.arm._loop
    real = getattr(loop, name)

    def slow(*args) -> None:
        try:
            real(*args)
        finally:
            gate.wait(10.0)

    setattr(loop, name, slow)


def test_an_activation_that_nobody_waits_for_any_more_is_not_begun(build, gate, impatient):
    wired = build()
    wired.arm.open()
    wait_for(lambda: not wired.arm.activation_problem(), "states")
    wired.arm.post(lambda: gate.wait(10.0))
    with pytest.raises(BusLoopError, match="withdrawn"):
        wired.arm.activate()
    gate.set()
    answers(wired)
    assert wired.arm.off and wired.motors_off() and wired.controller.mode is Mode.OFF


def test_motors_that_an_activation_switches_on_too_late_are_switched_off(build, gate, impatient):
    wired = build()
    wired.arm.open()
    wait_for(lambda: not wired.arm.activation_problem(), "states")
    slow_down(wired, "start", gate)
    with pytest.raises(BusLoopError, match="switched off again"):
        wired.arm.activate()
    wait_for(lambda: not wired.motors_off(), "the motors to be on")
    gate.set()
    wait_for(lambda: wired.arm.off and wired.motors_off(), "the motors to be off")
    assert wired.controller.mode is Mode.OFF and wired.arm.failure == ""


def test_a_reset_that_comes_too_late_ends_with_the_motors_off(build, gate, impatient):
    wired = build()
    wired.take_over_patiently()
    wired.arm.post(wired.controller.estop)
    answers(wired)
    slow_down(wired, "reset", gate)
    with pytest.raises(BusLoopError, match="switched off again"):
        wired.arm.reset()
    gate.set()
    wait_for(lambda: wired.arm.off and wired.motors_off(), "the motors to be off")
    assert wired.controller.mode is Mode.OFF


def test_a_late_reset_that_is_refused_changes_nothing(build, gate, impatient):
    wired = build()
    wired.take_over_patiently()
    slow_down(wired, "reset", gate)
    with pytest.raises(BusLoopError):
        wired.arm.reset()
    gate.set()
    answers(wired)
    assert wired.controller.mode is Mode.HOLD and not wired.arm.off


def test_an_estop_is_done_even_when_nobody_waits_for_it_any_more(build, gate, impatient):
    wired = build()
    wired.take_over_patiently()
    wired.arm.post(lambda: gate.wait(10.0))
    with pytest.raises(BusLoopError, match="damps as soon as"):
        wired.arm.estop()
    gate.set()
    wait_for(lambda: wired.controller.mode is Mode.ESTOP, "the e-stop")


def test_what_a_call_raises_comes_back_even_if_it_is_a_timeout(build):
    wired = build()
    wired.arm.open()

    def late() -> None:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        wired.arm.call(late)


# -- what is refused -------------------------------------------------------------------------------
def test_an_arm_that_is_still_ramping_down_is_not_taken_over(build):
    wired = build()
    wired.take_over()
    wired.set_wall_clock()
    wired.arm.deactivate()
    with pytest.raises(BusLoopError, match="already"):
        wired.arm.activate()
    answers(wired)
    assert wired.arm.off or wired.arm.clock_problem, "the clock was taken anew under the ramp"
    wait_for(lambda: wired.arm.off and wired.motors_off(), "the ramp")
    wired.arm.activate()
    assert wired.mode() is Mode.HOLD and wired.arm.clock_problem == ""


def test_a_reset_with_nothing_to_reset_leaves_the_clock_alone(build):
    wired = build()
    wired.take_over()
    wired.set_wall_clock()
    with pytest.raises(ResetRefusedError, match="HOLD"):
        wired.arm.reset()
    answers(wired)
    assert "set by" in wired.arm.clock_problem and wired.mode() is Mode.HOLD
    wired.arm.estop()
    wired.arm.reset()
    assert wired.mode() is Mode.HOLD and wired.arm.clock_problem == ""


def test_an_arm_whose_motors_a_reset_left_off_can_be_deactivated(build):
    wired = build()
    wired.take_over()
    wired.arm.estop()
    wired.arm.call(wired.arm._loop.stop)
    wired.arm.deactivate()
    answers(wired)
    assert wired.controller.mode is Mode.OFF
    wired.arm.activate()
    assert wired.mode() is Mode.HOLD


# -- what must not end the loop, and what does -----------------------------------------------------
def test_a_listener_that_fails_takes_no_torque_away(build):
    wired = build()
    wired.take_over()
    follow = wired.arm._on_state

    def fail(wall_s: float, state) -> None:
        raise ValueError("no publisher")

    wired.arm._on_state = fail
    wait_for(lambda: wired.arm.untold_states > 3, "states that nobody hears")
    assert wired.mode() is Mode.HOLD and not wired.arm.off and not wired.motors_off()
    assert wired.arm.failure == ""
    assert wired.arm.warning() == "a state was not told: ValueError: no publisher"
    assert int(wired.arm.diagnostics()["untold_states"]) > 3
    wired.arm._on_state = follow
    wired.arm.brake()
    wired.arm.deactivate()
    wait_for(lambda: wired.arm.off, "the ramp")
    wired.arm.activate()
    assert wired.arm.warning() == ""


@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit("broken")])
def test_a_loop_that_ended_is_named_by_whoever_is_asked(build, error):
    wired = build()
    wired.take_over()

    def fail(due_s: float, now_s: float) -> None:
        raise error

    wired.arm._loop.step = fail
    wait_for(lambda: not wired.arm._thread.is_alive(), "the end of the loop")
    for text in (wired.arm.failure, wired.arm.warning(), wired.arm.activation_problem()):
        assert text == f"bus loop failed: {type(error).__name__}: broken"
    for ask in (wired.arm.brake, wired.arm.estop, wired.arm.reset, wired.arm.activate):
        with pytest.raises(BusLoopError, match="bus loop failed"):
            ask()
    wired.arm.deactivate()
    assert wired.arm.off and wired.motors_off() and wired.controller.mode is Mode.OFF


def test_motors_that_do_not_confirm_the_end_of_the_loop_are_named_too(build):
    wired = build()
    wired.take_over()

    def fail(due_s: float, now_s: float) -> None:
        raise RuntimeError("broken")

    def refuse() -> None:
        raise DriveError(DriveFault.DISABLE_NOT_CONFIRMED, "panda_joint2 did not confirm")

    wired.arm._loop._drive.disable = refuse
    wired.arm._loop.step = fail
    wait_for(lambda: not wired.arm._thread.is_alive(), "the end of the loop")
    assert "RuntimeError: broken; then [161 DISABLE_NOT_CONFIRMED]" in wired.arm.warning()
    assert wired.controller.mode is Mode.DAMP
    assert wired.controller.fault is Fault.DRIVE_SILENT


def test_a_closed_arm_is_not_said_to_be_well(build):
    wired = build()
    wired.take_over()
    wired.arm.close()
    assert wired.arm.warning() == wired.arm.activation_problem() == "the bus is not open"


def test_a_rate_at_which_torque_moves_too_slowly_is_told(build):
    wired = build()
    wired.controller.set_config(replace(wired.controller.config, dt_max_s=0.005))
    wired.take_over()
    for _ in range(2):
        assert "move at 25% of their rates; raise rate_hz to 200" in wired.arm.warning()
        wired.arm.deactivate()
        wait_for(lambda: wired.arm.off, "the ramp")
    assert wired.arm.activation_problem() == ""
