"""The simulated cell follows fields that move the tool instead of the joints."""

import dataclasses

import numpy as np
from scipy.spatial.transform import Rotation

from niaf_field import ActionField, Channel, fold, initial_prior
from niaf_impedance import Mode
from niaf_impedance.cartesian import CR_POSITION_ERROR, CR_ROTATION_ERROR
from niaf_impedance.tool_setup import tool_pose
from niaf_impedance.tool_task import T_REPORT
from niaf_sim.env import LockstepEnv, robot_config
from niaf_sim.tasks import INSTRUCTIONS

HORIZON_S = 3.0


def circle_prior():
    """Once around 6 cm, the hand tilting: x = -A sin(pi tau), y = A (1 + cos(pi tau)), ..."""
    channels = [Channel(n, "m", "cartesian_position", "relative") for n in "xyz"]
    channels += [Channel(f"r{n}", "rad", "cartesian_rotation", "relative") for n in "xyz"]
    plain = initial_prior(channels, sine_layers=1, width=4, omega0=1.0, horizon_s=HORIZON_S)
    weight, bias = np.zeros((4, 1), np.float32), np.zeros(4, np.float32)
    weight[:2], bias[1] = np.pi, np.pi / 2
    w_out, b_out = np.zeros((6, 4), np.float32), np.zeros(6, np.float32)
    w_out[0, 0], w_out[1, 1], w_out[3, 0], w_out[4, 1] = -0.06, 0.06, 0.15, 0.1
    b_out[1], b_out[4] = 0.06, 0.1
    return dataclasses.replace(
        plain, weights=(weight,), biases=(bias,), w_out=w_out, b_out=b_out)


def test_a_circle_of_the_tool_is_followed_in_the_simulated_cell():
    """Sent anew every 0.15 s as a policy would; millimetres are friction that is not modelled."""
    prior = circle_prior()
    env = LockstepEnv(robot_config("panda"), prior)
    env.reset(0, INSTRUCTIONS[0])
    pose, _ = tool_pose(env.arm, env.cell.q)
    turn = Rotation.from_matrix(pose[:9].reshape(3, 3)).as_rotvec()
    gamma, beta = prior.layout.zeros()
    folded = fold(prior, gamma, beta, np.concatenate([pose[9:12], turn]))
    errors, places = [], []

    def note(e):
        report = e.controller._scratch[T_REPORT:]
        errors.append((report[CR_POSITION_ERROR], report[CR_ROTATION_ERROR]))
        places.append(tool_pose(e.arm, e.cell.q)[0][9:12])

    env.on_tick = note
    start_s = env.time_s
    while env.time_s < start_s + HORIZON_S - 0.2:
        field = ActionField(
            folded, start_s, HORIZON_S, env.next_sequence(), env.time_s, prior.prior_id)
        verdict = env.offer(field)
        assert verdict.accepted, verdict.text
        env.run(0.15)
    env.run(1.0)
    assert env.controller.mode == Mode.HOLD
    rms_m, rms_rad = np.sqrt(np.mean(np.square(errors), axis=0))
    assert rms_m < 2e-3
    assert np.rad2deg(rms_rad) < 0.6
    reach = np.ptp(np.array(places), axis=0)
    np.testing.assert_allclose(reach[:2], 0.12, atol=0.01)
