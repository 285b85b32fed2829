"""Read LeRobot dataset directories, v3.0 and v2.1, with one interface."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from niaf_data.features import STANDARD_FEATURES, DatasetError, Feature, features_from_json
from niaf_data.stats import FeatureStats, merge_stats, stats_from_json
from niaf_data.video import read_video


@dataclass(frozen=True)
class VideoClip:
    """Where one episode's frames of one camera lie."""

    path: pathlib.Path
    from_timestamp_s: float


@dataclass(frozen=True)
class Episode:
    """One episode: rows [start, stop) of the columns, its instruction and its clips."""

    index: int
    length: int
    start: int
    stop: int
    instruction: str
    clips: dict[str, VideoClip]


class LeRobotDataset:
    """One directory. `columns()` holds all frames of all episodes in `.episodes` order."""

    def __init__(
        self,
        root: pathlib.Path,
        info: dict[str, Any],
        episodes: tuple[Episode, ...],
        data_files: tuple[pathlib.Path, ...],
        stats: dict[str, FeatureStats],
    ) -> None:
        self.root = root
        self.fps = float(info["fps"])
        self.robot_type = str(info.get("robot_type"))
        self.features: dict[str, Feature] = features_from_json(info["features"])
        self.episodes = episodes
        self.stats = stats
        self._data_files = data_files
        self._columns: dict[str, np.ndarray] | None = None

    @property
    def video_keys(self) -> tuple[str, ...]:
        return tuple(key for key, feature in self.features.items() if feature.is_video)

    @property
    def frame_count(self) -> int:
        return sum(episode.length for episode in self.episodes)

    @property
    def instructions(self) -> tuple[str, ...]:
        return tuple(sorted({episode.instruction for episode in self.episodes}))

    def columns(self) -> dict[str, np.ndarray]:
        """All numeric columns as arrays [frames, ...]; shape (1,) features come as [frames]."""
        if self._columns is None:
            self._columns = self._read_columns()
        return self._columns

    def video_frames(self, key: str, episode: Episode | int) -> np.ndarray:
        """Decoded frames of one camera and episode: uint8 [N, height, width, 3]."""
        chosen = episode if isinstance(episode, Episode) else self.episodes[episode]
        if key not in chosen.clips:
            raise DatasetError(f"no video '{key}' in '{self.root}'; it has {list(self.video_keys)}")
        clip = chosen.clips[key]
        return read_video(clip.path, chosen.length, self.fps, clip.from_timestamp_s)

    def _read_columns(self) -> dict[str, np.ndarray]:
        wanted = {k: f for k, f in self.features.items() if not f.is_video}
        wanted.update(STANDARD_FEATURES)
        tables = [_read_parquet(path) for path in self._data_files]
        if not tables:
            return {}
        out: dict[str, np.ndarray] = {}
        for key, feature in wanted.items():
            parts = [_to_numpy(t, key, feature) for t in tables if key in t.column_names]
            if len(parts) == len(tables):
                out[key] = np.concatenate(parts)
        order = np.lexsort((out["frame_index"], out["episode_index"]))
        if not np.array_equal(order, np.arange(len(order))):
            out = {key: value[order] for key, value in out.items()}
        if len(order) != self.frame_count:
            raise DatasetError(
                f"'{self.root}' has {len(order)} data rows but its episode table counts "
                f"{self.frame_count}; a data file is missing or cut short"
            )
        return out


class LeRobotCollection:
    """Several directories read as one; episode rows are offset into the joined columns."""

    def __init__(self, datasets: Sequence[LeRobotDataset]) -> None:
        if not datasets:
            raise DatasetError("no dataset given; pass at least one directory")
        first = datasets[0]
        for other in datasets[1:]:
            if other.fps != first.fps:
                raise DatasetError(
                    f"'{other.root}' has {other.fps} fps, '{first.root}' has {first.fps}; "
                    "train on one rate"
                )
            if other.features.keys() != first.features.keys():
                differing = sorted(set(other.features) ^ set(first.features))
                raise DatasetError(
                    f"'{other.root}' and '{first.root}' differ in features {differing}"
                )
        self.datasets = tuple(datasets)
        self.fps = first.fps
        self.features = first.features
        self.video_keys = first.video_keys
        joined: list[Episode] = []
        self._source: list[tuple[int, Episode]] = []
        rows = 0
        for number, dataset in enumerate(self.datasets):
            for e in dataset.episodes:
                joined.append(
                    Episode(
                        len(joined), e.length, e.start + rows, e.stop + rows, e.instruction, e.clips
                    )
                )
                self._source.append((number, e))
            rows += dataset.frame_count
        self.episodes = tuple(joined)
        self.frame_count = rows
        self.instructions = tuple(sorted({e.instruction for e in joined}))
        keys = set.intersection(*(set(d.stats) for d in self.datasets))
        self.stats = {key: merge_stats([d.stats[key] for d in self.datasets]) for key in keys}

    def dataset_of(self, episode: int) -> int:
        """Number of the directory that a joined episode came from."""
        return self._source[episode][0]

    def columns(self) -> dict[str, np.ndarray]:
        parts = [dataset.columns() for dataset in self.datasets if dataset.frame_count]
        keys = set.intersection(*(set(part) for part in parts))
        return {key: np.concatenate([part[key] for part in parts]) for key in sorted(keys)}

    def video_frames(self, key: str, episode: Episode | int) -> np.ndarray:
        number, source = self._source[episode.index if isinstance(episode, Episode) else episode]
        return self.datasets[number].video_frames(key, source)


def open_dataset(root: str | pathlib.Path) -> LeRobotDataset:
    """Open a LeRobot v3.0 or v2.1 directory."""
    folder = pathlib.Path(root)
    path = folder / "meta" / "info.json"
    if not path.is_file():
        raise DatasetError(
            f"'{folder}' is not a LeRobot dataset: '{path}' is missing; give the directory that "
            "holds 'meta', 'data' and 'videos'"
        )
    info = _read_json(path)
    version = str(info.get("codebase_version", ""))
    if version.startswith("v3"):
        return _open_v3(folder, info)
    if version.startswith("v2"):
        return _open_v2(folder, info)
    raise DatasetError(f"'{path}' says codebase_version '{version}'; v3.0 and v2.1 are read")


def open_datasets(roots: Iterable[str | pathlib.Path]) -> LeRobotCollection:
    """Open several directories as one; they must agree in rate and features."""
    return LeRobotCollection([open_dataset(root) for root in roots])


def _open_v3(root: pathlib.Path, info: dict[str, Any]) -> LeRobotDataset:
    features = features_from_json(info["features"])
    tables = [_read_parquet(p) for p in sorted((root / "meta" / "episodes").glob("*/*.parquet"))]
    rows = [row for table in tables for row in _without_stats(table).to_pylist()]
    rows.sort(key=lambda row: int(row["episode_index"]))
    episodes: list[Episode] = []
    start = 0
    for row in rows:
        clips = {
            key: VideoClip(
                root
                / info["video_path"].format(
                    video_key=key,
                    chunk_index=row[f"videos/{key}/chunk_index"],
                    file_index=row[f"videos/{key}/file_index"],
                ),
                float(row[f"videos/{key}/from_timestamp"]),
            )
            for key, feature in features.items()
            if feature.is_video
        }
        length = int(row["length"])
        episodes.append(
            Episode(len(episodes), length, start, start + length, _instruction(row["tasks"]), clips)
        )
        start += length
    pairs = sorted({(int(r["data/chunk_index"]), int(r["data/file_index"])) for r in rows})
    files = [root / info["data_path"].format(chunk_index=c, file_index=f) for c, f in pairs]
    path = root / "meta" / "stats.json"
    stats = stats_from_json(_read_json(path)) if path.is_file() else {}
    return LeRobotDataset(root, info, tuple(episodes), tuple(files), stats)


def _open_v2(root: pathlib.Path, info: dict[str, Any]) -> LeRobotDataset:
    features = features_from_json(info["features"])
    rows = sorted(_read_lines(root / "meta" / "episodes.jsonl"), key=lambda r: r["episode_index"])
    chunk_size = int(info["chunks_size"])
    episodes: list[Episode] = []
    files: list[pathlib.Path] = []
    start = 0
    for row in rows:
        number = int(row["episode_index"])
        place = {"episode_chunk": number // chunk_size, "episode_index": number}
        files.append(root / info["data_path"].format(**place))
        clips = {
            key: VideoClip(root / info["video_path"].format(video_key=key, **place), 0.0)
            for key, feature in features.items()
            if feature.is_video
        }
        length = int(row["length"])
        episodes.append(
            Episode(len(episodes), length, start, start + length, _instruction(row["tasks"]), clips)
        )
        start += length
    per_episode = root / "meta" / "episodes_stats.jsonl"
    whole = root / "meta" / "stats.json"
    stats: dict[str, FeatureStats] = {}
    if per_episode.is_file():
        parts = [stats_from_json(line["stats"]) for line in _read_lines(per_episode)]
        if parts:
            stats = {key: merge_stats([part[key] for part in parts]) for key in parts[0]}
    elif whole.is_file():
        stats = stats_from_json(_read_json(whole))
    return LeRobotDataset(root, info, tuple(episodes), tuple(files), stats)


def _instruction(tasks: Any) -> str:
    return str(tasks[0]) if isinstance(tasks, (list, tuple)) else str(tasks)


def _without_stats(table: pa.Table) -> pa.Table:
    return table.select([name for name in table.column_names if not name.startswith("stats/")])


def _to_numpy(table: pa.Table, key: str, feature: Feature) -> np.ndarray:
    column = table.column(key).combine_chunks()
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        width = int(np.prod(feature.shape))
        flat = column.flatten().to_numpy(zero_copy_only=False)
        if len(flat) != len(column) * width:
            raise DatasetError(f"column '{key}' has rows of other width than {width}")
        values = flat.reshape(len(column), *feature.shape)
        if feature.shape == (1,):
            values = values[:, 0]
    else:
        values = column.to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(values.astype(feature.dtype))


def _read_parquet(path: pathlib.Path) -> pa.Table:
    if not path.is_file():
        raise DatasetError(f"data file '{path}' is missing; copy the whole dataset directory")
    try:
        return pq.read_table(path)
    except pa.ArrowException as error:
        raise DatasetError(f"data file '{path}' cannot be read: {error}") from error


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise DatasetError(f"metadata file '{path}' cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DatasetError(f"metadata file '{path}' must hold a JSON object")
    return value


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DatasetError(f"metadata file '{path}' is missing; the dataset is incomplete")
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
