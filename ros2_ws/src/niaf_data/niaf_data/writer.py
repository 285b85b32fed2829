"""Write a LeRobot v3 dataset directory: whole episodes in, nothing buffered but small columns."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from niaf_data.features import STANDARD_FEATURES, DatasetError, Feature, check_frames
from niaf_data.stats import FeatureStats, column_stats, image_stats, merge_stats, stats_to_json
from niaf_data.video import write_video

CODEBASE_VERSION = "v3.0"
CHUNKS_SIZE = 1000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


class LeRobotWriter:
    """One writer owns one new directory; run several in separate processes on separate roots.

    Episodes are grouped `episodes_per_file` to a Parquet file, and metadata is rewritten with
    each of these, so that a process that dies loses at most the last unfinished group.
    """

    def __init__(
        self,
        root: str | pathlib.Path,
        fps: int,
        features: Mapping[str, Feature],
        robot_type: str,
        *,
        episodes_per_file: int = 20,
        crf: int = 12,
    ) -> None:
        self.root = pathlib.Path(root)
        if (self.root / "meta" / "info.json").exists():
            raise DatasetError(
                f"'{self.root}' already holds a dataset; choose a new directory or remove it"
            )
        if fps <= 0:
            raise DatasetError(f"fps must be positive, got {fps}")
        clash = sorted(set(features) & set(STANDARD_FEATURES))
        if clash:
            raise DatasetError(f"features {clash} are written by the format itself; drop them")
        self.fps = int(fps)
        self.features = dict(features)
        self.robot_type = robot_type
        self._crf = crf
        self._episodes_per_file = episodes_per_file
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._pending: list[pa.Table] = []
        self._parts: dict[str, list[FeatureStats]] = {}
        self._frames = 0
        self._data_file = 0
        self._meta_rows = 0
        self._closed = False
        self.root.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def episode_count(self) -> int:
        return len(self._rows)

    def add_episode(self, frames: Mapping[str, np.ndarray], instruction: str) -> int:
        """Append one episode of arrays [N, ...] keyed by feature; returns its index."""
        if self._closed:
            raise DatasetError(f"writer of '{self.root}' is closed")
        if not instruction.strip():
            raise DatasetError("the instruction of an episode must not be empty")
        length, arrays = check_frames(frames, self.features)
        episode = len(self._rows)
        task = self._tasks.setdefault(instruction, len(self._tasks))
        row: dict[str, Any] = {
            "episode_index": episode,
            "tasks": [instruction],
            "length": length,
            **_file_indices("data", self._data_file),
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + length,
        }
        arrays.update(self._standard_columns(episode, length, task))
        for key, feature in self.features.items():
            if not feature.is_video:
                continue
            relative = VIDEO_PATH.format(video_key=key, **_chunk(episode))
            write_video(self.root / relative, arrays[key], self.fps, crf=self._crf)
            row.update(_file_indices(f"videos/{key}", episode))
            row[f"videos/{key}/from_timestamp"] = 0.0
            row[f"videos/{key}/to_timestamp"] = length / self.fps
        for key, array in arrays.items():
            video = key in self.features and self.features[key].is_video
            stats = image_stats(array) if video else column_stats(array)
            self._parts.setdefault(key, []).append(stats)
            row.update({f"stats/{key}/{name}": value.tolist() for name, value in stats.items()})
        self._rows.append(row)
        self._pending.append(_table(arrays, {**self.features, **STANDARD_FEATURES}))
        self._frames += length
        if len(self._pending) >= self._episodes_per_file:
            self.flush()
        return episode

    def flush(self) -> None:
        """Write the pending columns as one Parquet file, then all metadata."""
        if not self._pending:
            return
        path = self.root / DATA_PATH.format(**_chunk(self._data_file))
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(self._pending), path, compression="zstd")
        self._pending = []
        self._data_file += 1
        self._write_meta()

    def close(self) -> None:
        """Write what is pending; a dataset with no episode leaves metadata with zero totals."""
        if self._closed:
            return
        self.flush()
        self._write_meta()
        self._closed = True

    def _standard_columns(self, episode: int, length: int, task: int) -> dict[str, np.ndarray]:
        frame = np.arange(length, dtype=np.int64)[:, None]
        return {
            "timestamp": (frame / self.fps).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full_like(frame, episode),
            "index": frame + self._frames,
            "task_index": np.full_like(frame, task),
        }

    def _write_meta(self) -> None:
        meta = self.root / "meta"
        meta.mkdir(parents=True, exist_ok=True)
        if self._rows:
            path = self.root / EPISODES_PATH.format(chunk_index=0, file_index=0)
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [{**r, **_file_indices("meta/episodes", 0)} for r in self._rows]
            _replace_parquet(pa.Table.from_pylist(rows), path)
            _replace_parquet(_tasks_table(self._tasks), meta / "tasks.parquet")
        merged = {key: merge_stats(parts) for key, parts in self._parts.items()}
        _replace_json(stats_to_json(merged), meta / "stats.json")
        _replace_json(self._info(), meta / "info.json")

    def _info(self) -> dict[str, Any]:
        features: dict[str, Any] = {}
        for key, feature in {**self.features, **STANDARD_FEATURES}.items():
            features[key] = feature.to_json()
            if feature.is_video:
                features[key]["info"] = {
                    "video.height": feature.shape[0],
                    "video.width": feature.shape[1],
                    "video.channels": 3,
                    "video.codec": "h264",
                    "video.pix_fmt": "yuv444p",
                    "video.is_depth_map": False,
                    "video.fps": self.fps,
                    "has_audio": False,
                }
        return {
            "codebase_version": CODEBASE_VERSION,
            "robot_type": self.robot_type,
            "total_episodes": len(self._rows),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNKS_SIZE,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": features,
        }


def _chunk(file: int) -> dict[str, int]:
    return {"chunk_index": file // CHUNKS_SIZE, "file_index": file % CHUNKS_SIZE}


def _file_indices(prefix: str, file: int) -> dict[str, int]:
    return {f"{prefix}/{name}": value for name, value in _chunk(file).items()}


_ARROW = {
    "float32": pa.float32(),
    "float64": pa.float64(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "uint8": pa.uint8(),
    "bool": pa.bool_(),
}


def _table(arrays: Mapping[str, np.ndarray], features: Mapping[str, Feature]) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for key, feature in features.items():
        if feature.is_video:
            continue
        flat = pa.array(arrays[key].reshape(-1), type=_ARROW[feature.dtype])
        if feature.shape == (1,):
            columns[key] = flat
        elif len(feature.shape) == 1:
            columns[key] = pa.FixedSizeListArray.from_arrays(flat, feature.shape[0])
        else:
            raise DatasetError(
                f"feature '{key}' has shape {feature.shape}; flatten it to one dimension"
            )
    return pa.table(columns)


def _tasks_table(tasks: Mapping[str, int]) -> pa.Table:
    """Task texts as the index of a pandas frame, which is how LeRobot v3 reads them."""
    table = pa.table({"task_index": list(tasks.values()), "__index_level_0__": list(tasks)})
    numpy_type = {"int64": "int64", "string": "object"}
    columns = [
        {
            "name": None if field.name.startswith("__") else field.name,
            "field_name": field.name,
            "pandas_type": "unicode" if pa.types.is_string(field.type) else str(field.type),
            "numpy_type": numpy_type[str(field.type)],
            "metadata": None,
        }
        for field in table.schema
    ]
    described = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [],
        "columns": columns,
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(described)})


def _replace_parquet(table: pa.Table, path: pathlib.Path) -> None:
    scratch = path.with_suffix(".parquet.part")
    pq.write_table(table, scratch)
    scratch.replace(path)


def _replace_json(value: Mapping[str, Any], path: pathlib.Path) -> None:
    scratch = path.with_suffix(".json.part")
    scratch.write_text(json.dumps(value, indent=2) + "\n")
    scratch.replace(path)
