"""LeRobot v3 dataset directories: Parquet tables, MP4 videos and JSON metadata, with no torch."""

from niaf_data.features import DatasetError
from niaf_data.features import Feature
from niaf_data.features import recording_features
from niaf_data.reader import Episode
from niaf_data.reader import LeRobotCollection
from niaf_data.reader import LeRobotDataset
from niaf_data.reader import open_dataset
from niaf_data.reader import open_datasets
from niaf_data.writer import LeRobotWriter

__all__ = [
    'DatasetError',
    'Episode',
    'Feature',
    'LeRobotCollection',
    'LeRobotDataset',
    'LeRobotWriter',
    'open_dataset',
    'open_datasets',
    'recording_features',
]
