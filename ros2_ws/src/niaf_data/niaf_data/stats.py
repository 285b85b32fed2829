"""Per-feature statistics in LeRobot's `stats.json` form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

FeatureStats = dict[str, np.ndarray]


def column_stats(values: np.ndarray) -> FeatureStats:
    """Statistics over frames of values [N, ...]; each entry has the shape of one frame."""
    x = np.asarray(values, dtype=np.float64)
    stats = {
        "min": x.min(axis=0),
        "max": x.max(axis=0),
        "mean": x.mean(axis=0),
        "std": x.std(axis=0),
        "count": np.array([len(x)], dtype=np.int64),
    }
    quantiles = np.quantile(x, list(QUANTILES.values()), axis=0)
    stats.update({name: quantiles[i] for i, name in enumerate(QUANTILES)})
    return stats


def image_stats(frames: np.ndarray, max_frames: int = 8) -> FeatureStats:
    """Per-channel statistics of uint8 frames [N, height, width, 3], in [0, 1], shape (3, 1, 1)."""
    picks = np.unique(np.linspace(0, len(frames) - 1, max_frames).astype(int))
    pixels = frames[picks].reshape(-1, 3).astype(np.float32) / 255.0
    stats = {k: v.reshape(3, 1, 1) for k, v in column_stats(pixels).items() if k != "count"}
    stats["count"] = np.array([len(picks)], dtype=np.int64)
    return stats


def merge_stats(parts: Sequence[Mapping[str, np.ndarray]]) -> FeatureStats:
    """Merge statistics of disjoint parts; exact but for quantiles, which are averaged by count."""
    counts = np.array([float(np.ravel(p["count"])[0]) for p in parts])
    weight = counts / counts.sum()
    mean = sum(w * np.asarray(p["mean"], float) for w, p in zip(weight, parts, strict=True))
    second = sum(
        w * (np.asarray(p["std"], float) ** 2 + np.asarray(p["mean"], float) ** 2)
        for w, p in zip(weight, parts, strict=True)
    )
    merged = {
        "min": np.min([np.asarray(p["min"], float) for p in parts], axis=0),
        "max": np.max([np.asarray(p["max"], float) for p in parts], axis=0),
        "mean": np.asarray(mean),
        "std": np.sqrt(np.maximum(np.asarray(second) - np.asarray(mean) ** 2, 0.0)),
        "count": np.array([int(counts.sum())], dtype=np.int64),
    }
    for name in QUANTILES:
        if all(name in p for p in parts):
            merged[name] = np.asarray(
                sum(w * np.asarray(p[name], float) for w, p in zip(weight, parts, strict=True))
            )
    return merged


def stats_to_json(stats: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    return {k: {n: np.asarray(v).tolist() for n, v in s.items()} for k, s in stats.items()}


def stats_from_json(described: Mapping[str, Any]) -> dict[str, FeatureStats]:
    return {k: {n: np.asarray(v) for n, v in s.items()} for k, s in described.items()}
