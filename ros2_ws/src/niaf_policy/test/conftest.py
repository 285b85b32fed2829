"""Fixtures; helpers live in policy_support.py beside this file."""

from __future__ import annotations

import os
import pathlib
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may ask a server
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import policy_support
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tiny untrained checkpoint folder; do not change it."""
    return policy_support.make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A small LeRobot directory of smooth motions; do not change it."""
    return policy_support.make_recording(tmp_path_factory.mktemp("recording") / "expert")
