"""Includes two_arms.launch.yaml, for those who expect a Python launch file."""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import AnyLaunchDescriptionSource


def generate_launch_description() -> LaunchDescription:
    """The nodes and arguments of the YAML file of the same name."""
    path = Path(__file__).with_name("two_arms.launch.yaml")
    return LaunchDescription([IncludeLaunchDescription(AnyLaunchDescriptionSource(str(path)))])
