"""Summary figures, table, plot and video of a demo, from a synthetic run."""

import json
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from niaf_sim.plots import plot_tracking
from niaf_sim.summary import (
    Episode,
    build_summary,
    format_table,
    percentiles,
    wilson_interval,
)
from niaf_sim.video import VideoWriter

LIMITS_NM = np.array([87.0] * 4 + [12.0] * 3)
REQUIRED_KEYS = {
    "episodes", "success_rate", "per_instruction", "policy_rate_hz", "policy_latency_ms",
    "control_rate_hz", "tick_lateness_us", "missed_ticks", "real_time_factor",
    "peak_torque_ratio", "tracking_rms_rad", "seam_jump", "checkpoint", "seed",
}


def state(k, error=0.01, mode=1, missed=0):
    """One ImpedanceState at 100 Hz; the reference leads the measurement by ``error``."""
    t = k * 0.01
    q = 0.5 * np.sin(2.0 * t + np.arange(7))
    sec, nanosec = divmod(round((1000 + t) * 1e9), 10**9)
    return SimpleNamespace(
        header=SimpleNamespace(stamp=SimpleNamespace(sec=sec, nanosec=nanosec)),
        name=[f"panda_joint{i}" for i in range(1, 8)], mode=mode, fault=0, fault_text="",
        field_sequence=1 + k // 20, reference_position=q + error,
        reference_velocity=np.cos(2.0 * t + np.arange(7)), measured_position=q,
        measured_velocity=np.cos(2.0 * t + np.arange(7)) * 0.97,
        torque_command=np.sin(3 * t) * LIMITS_NM * 0.5, tick_lateness_s=1e-5 * (k % 10),
        state_age_s=2e-4,
        tick_execution_s=5e-5, tick_count=k * 10, missed_ticks=missed,
        peak_torque_ratio=0.5, peak_torque_rate_ratio=0.2, seam_position_peak_rad=1e-16,
        seam_velocity_peak_rad_s=2e-15, seam_acceleration_peak_rad_s2=3e-13,
    )


def episode(number=1, success=True, samples=200, **kwargs):
    result = Episode(
        number=number, instruction=f"pick up the {'red' if number % 2 else 'blue'} cube",
        seed=number, success=success, outcome="" if success else "time is up", duration_s=2.0,
        fields=11, policy_span_s=2.0, latency_s=[0.05, 0.06, 0.07], simulated_s=1.98, wall_s=2.0,
    )
    for k in range(samples):
        result.trace.append(state(k, **kwargs))
    return result


def test_summary_has_every_promised_key_and_survives_json():
    summary = build_summary([episode(1), episode(2, success=False)], "checkpoints/demo", 7)
    assert set(summary) >= REQUIRED_KEYS
    again = json.loads(json.dumps(summary, allow_nan=False))
    assert again["episodes"] == 2
    assert again["success_rate"] == 0.5
    assert set(again["policy_latency_ms"]) == {"p50", "p95"}
    assert set(again["tick_lateness_us"]) == {"p50", "p99", "max"}
    assert set(again["seam_jump"]) == {"position_rad", "velocity_rad_s", "acceleration_rad_s2"}


def test_figures_are_those_of_the_samples():
    summary = build_summary([episode(1, missed=2), episode(2, missed=3)], "c", 0)
    assert summary["control_rate_hz"] == pytest.approx(1000.0)
    assert summary["policy_rate_hz"] == pytest.approx(5.0)
    assert summary["policy_latency_ms"]["p50"] == pytest.approx(60.0)
    assert summary["tick_lateness_us"]["max"] == pytest.approx(90.0)
    assert summary["tracking_rms_rad"] == pytest.approx(0.01)
    assert summary["missed_ticks"] == 5
    assert summary["real_time_factor"] == pytest.approx(0.99)
    assert summary["seam_jump"]["acceleration_rad_s2"] == 3e-13
    assert summary["per_instruction"]["pick up the red cube"] == {
        "episodes": 1, "successes": 1, "success_rate": 1.0,
    }


def test_figures_over_every_tick_are_preferred_to_samples():
    runs = [episode(1), episode(2)]
    for run, p50, ticks in zip(runs, (10.0, 40.0), (1000.0, 2000.0), strict=True):
        run.loop = {
            "ticks": ticks, "tick_lateness_us.p50": p50, "tick_lateness_us.p99": 10 * p50,
            "tick_lateness_us.max": 100 * p50,
        }
    summary = build_summary(runs, "c", 0)
    assert summary["tick_lateness_us"] == {"p50": 30.0, "p99": 400.0, "max": 4000.0}
    assert set(summary["state_age_us"]) == {"p50", "p99", "max"}


def test_only_tracking_samples_count_for_the_tracking_error():
    mixed = episode(1, samples=50)
    for k in range(50, 100):
        mixed.trace.append(state(k, error=1.0, mode=3))
    assert mixed.tracking_rms_rad() == pytest.approx(0.01)


def test_what_was_not_measured_is_null_not_nan():
    empty = Episode(number=1, instruction="pick up the red cube", seed=0, outcome="no field came")
    summary = build_summary([empty], "c", 0)
    json.dumps(summary, allow_nan=False)
    assert summary["tracking_rms_rad"] is None
    assert summary["control_rate_hz"] is None
    assert "no field came" in format_table(summary)


def test_table_names_every_instruction_and_failure():
    text = format_table(build_summary([episode(1), episode(2, success=False)], "here", 0))
    assert "pick up the red cube" in text
    assert "(time is up)" in text
    assert "1/2 = 50%" in text


def test_percentiles_ignore_missing_values():
    assert percentiles([1.0, float("nan"), 3.0], 10.0, "p50 max") == {"p50": 20.0, "max": 30.0}


def test_confidence_interval_contains_the_rate_and_stays_in_range():
    for successes, trials in [(0, 6), (6, 6), (17, 20)]:
        low, high = wilson_interval(successes, trials)
        assert 0.0 <= low <= successes / trials <= high <= 1.0


def test_hand_overs_are_found_where_the_field_sequence_changes():
    seams = episode(1, samples=100).trace.seam_times_s() - 1000.0
    assert seams == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_plot_is_written_and_not_empty(tmp_path):
    path = tmp_path / "tracking.png"
    plot_tracking(path, episode(1), LIMITS_NM)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape[0] > 500
    assert pixels.std() > 5.0


def test_plot_without_samples_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="0 controller states.*state topic"):
        plot_tracking(tmp_path / "t.png", episode(1, samples=0), LIMITS_NM)


def test_video_keeps_size_time_and_browser_format(tmp_path):
    path = tmp_path / "v.mp4"
    with VideoWriter(path, 64, 48) as video:
        for k in range(10):
            frame = np.full((48, 64, 3), 20 * k, dtype=np.uint8)
            video.add(frame, 0.1 * k, "pick up the red cube", "ok")
        video.add(frame, 0.5, "too old", "")
    assert video.frames == 10
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        times = [float(f.pts * f.time_base) for f in container.decode(stream)]
    assert times == pytest.approx([0.1 * k for k in range(10)], abs=2e-3)
    head = path.read_bytes()
    assert head.find(b"moov") < head.find(b"mdat")


def test_video_refuses_frames_of_another_size(tmp_path):
    with (
        VideoWriter(tmp_path / "v.mp4", 64, 48) as video,
        pytest.raises(ValueError, match="opened for"),
    ):
        video.add(np.zeros((10, 10, 3), dtype=np.uint8), 0.0, "")
