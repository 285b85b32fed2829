"""LeRobot v3 dataset directories: Parquet tables, MP4 videos and JSON metadata, with no torch."""

from niaf_data.features import DatasetError, Feature, recording_features
from niaf_data.reader import Episode, LeRobotCollection, LeRobotDataset, open_dataset, open_datasets
from niaf_data.writer import LeRobotWriter

__all__ = [
    "DatasetError",
    "Episode",
    "Feature",
    "LeRobotCollection",
    "LeRobotDataset",
    "LeRobotWriter",
    "open_dataset",
    "open_datasets",
    "recording_features",
]
