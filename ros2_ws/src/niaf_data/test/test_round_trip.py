"""A dataset written here reads back the same, in v3 and in the v2.1 layout."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from niaf_data import DatasetError, LeRobotWriter, open_dataset, open_datasets, recording_features
from niaf_data.video import write_video

JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
FEATURES = recording_features(JOINTS, {"scene": (96, 96), "wrist": (96, 96)}, ("red", "green"))


def moving_square(length: int, offset: int) -> np.ndarray:
    """uint8 [N, 96, 96, 3]: a coloured 8-pixel square over a smooth background."""
    y, x = np.mgrid[0:96, 0:96]
    frames = np.stack([np.stack([x, y, 128 + 0 * x], -1).astype(np.uint8)] * length)
    for i in range(length):
        frames[i, 40:48, (offset + i) % 80 : (offset + i) % 80 + 8] = (220, 30, 30)
    return frames


def episode(length: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "observation.state": rng.normal(size=(length, 8)).astype(np.float32),
        "observation.velocity": rng.normal(size=(length, 7)).astype(np.float32),
        "action": rng.normal(size=(length, 8)).astype(np.float32),
        "is_expert": rng.random(length) > 0.3,
        "privileged.cubes": rng.normal(size=(length, 6)).astype(np.float32),
        "observation.images.scene": moving_square(length, seed),
        "observation.images.wrist": moving_square(length, seed + 20),
    }


def write(root: pathlib.Path, episodes: list[dict[str, np.ndarray]]) -> None:
    with LeRobotWriter(root, 20, FEATURES, "panda", episodes_per_file=2) as writer:
        for i, frames in enumerate(episodes):
            writer.add_episode(frames, f"pick up the {'red' if i % 2 else 'green'} cube")


def test_columns_and_videos_survive_a_round_trip(tmp_path: pathlib.Path) -> None:
    episodes = [episode(n, s) for n, s in ((12, 0), (7, 1), (9, 2))]
    write(tmp_path / "d", episodes)
    dataset = open_dataset(tmp_path / "d")
    assert [e.length for e in dataset.episodes] == [12, 7, 9]
    assert dataset.episodes[1].instruction == "pick up the red cube"
    columns = dataset.columns()
    for e, frames in zip(dataset.episodes, episodes, strict=True):
        for key, feature in FEATURES.items():
            if not feature.is_video:
                np.testing.assert_array_equal(columns[key][e.start : e.stop], frames[key])
        seen = dataset.video_frames("observation.images.scene", e)
        error = np.abs(seen.astype(int) - frames["observation.images.scene"])
        assert error.mean() < 2.0
        assert np.quantile(error, 0.999) < 25
    np.testing.assert_allclose(columns["timestamp"][:12], np.arange(12) / 20, atol=1e-6)
    np.testing.assert_array_equal(columns["index"], np.arange(28))


def test_stats_equal_numpy_over_all_frames(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "d", [episode(12, 0), episode(7, 1)])
    dataset = open_dataset(tmp_path / "d")
    action = dataset.columns()["action"].astype(np.float64)
    np.testing.assert_allclose(dataset.stats["action"]["mean"], action.mean(0), atol=1e-9)
    np.testing.assert_allclose(dataset.stats["action"]["std"], action.std(0), atol=1e-9)
    np.testing.assert_allclose(dataset.stats["action"]["max"], action.max(0))
    assert dataset.stats["observation.images.scene"]["mean"].shape == (3, 1, 1)


def test_several_directories_read_as_one(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "a", [episode(5, 0)])
    write(tmp_path / "b", [episode(6, 1), episode(4, 2)])
    both = open_datasets([tmp_path / "a", tmp_path / "b"])
    assert [(e.start, e.stop) for e in both.episodes] == [(0, 5), (5, 11), (11, 15)]
    assert both.columns()["action"].shape == (15, 8)
    assert both.dataset_of(2) == 1
    clip = both.video_frames("observation.images.wrist", 2)
    assert clip.shape == (4, 96, 96, 3)


def test_a_v21_directory_is_read(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "old"
    frames = [episode(6, 0), episode(4, 1)]
    write(tmp_path / "new", frames)
    info = json.loads((tmp_path / "new" / "meta" / "info.json").read_text())
    info["codebase_version"] = "v2.1"
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info["video_path"] = (
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    )
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    rows, stats = [], []
    new = open_dataset(tmp_path / "new")
    for e in new.episodes:
        place = {"episode_chunk": 0, "episode_index": e.index}
        path = root / info["data_path"].format(**place)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = {k: v[e.start : e.stop] for k, v in new.columns().items()}
        pq.write_table(pa.table({k: list(v) if v.ndim > 1 else v for k, v in part.items()}), path)
        for key in new.video_keys:
            write_video(
                root / info["video_path"].format(video_key=key, **place), frames[e.index][key], 20
            )
        rows.append({"episode_index": e.index, "tasks": [e.instruction], "length": e.length})
        action = part["action"].astype(float)
        stats.append(
            {
                "episode_index": e.index,
                "stats": {
                    "action": {
                        "min": action.min(0).tolist(),
                        "max": action.max(0).tolist(),
                        "mean": action.mean(0).tolist(),
                        "std": action.std(0).tolist(),
                        "count": [e.length],
                    }
                },
            }
        )
    (root / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "meta" / "episodes_stats.jsonl").write_text("\n".join(map(json.dumps, stats)))
    old = open_dataset(root)
    np.testing.assert_array_equal(old.columns()["action"], new.columns()["action"])
    assert old.video_frames("observation.images.scene", 1).shape == (4, 96, 96, 3)
    np.testing.assert_allclose(old.stats["action"]["std"], new.stats["action"]["std"])


def test_an_offset_clip_inside_a_joined_video_is_found(tmp_path: pathlib.Path) -> None:
    from niaf_data.video import read_video

    frames = moving_square(30, 0)
    write_video(tmp_path / "joined.mp4", frames, 20)
    clip = read_video(tmp_path / "joined.mp4", 8, 20.0, from_timestamp_s=13 / 20)
    assert np.abs(clip.astype(int) - frames[13:21]).mean() < 2.0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"action": np.zeros((5, 7), np.float32)}, "'action' has shape"),
        ({"action": np.full((5, 8), np.nan, np.float32)}, "not finite at frame 0"),
        ({"observation.state": np.zeros((4, 8), np.float32)}, "frames, the others have"),
        ({"surprise": np.zeros((5, 1))}, "unknown \\['surprise'\\]"),
    ],
)
def test_a_bad_episode_is_refused_by_name(
    tmp_path: pathlib.Path, change: dict[str, np.ndarray], match: str
) -> None:
    writer = LeRobotWriter(tmp_path / "d", 20, FEATURES, "panda")
    with pytest.raises(DatasetError, match=match):
        writer.add_episode({**episode(5, 0), **change}, "pick up the red cube")


def test_an_existing_dataset_is_never_overwritten(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "d", [episode(3, 0)])
    with pytest.raises(DatasetError, match="already holds a dataset"):
        LeRobotWriter(tmp_path / "d", 20, FEATURES, "panda")


def test_a_missing_directory_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DatasetError, match="is not a LeRobot dataset"):
        open_dataset(tmp_path / "nowhere")
