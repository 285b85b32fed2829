"""Configuration files, overrides and their errors."""

from __future__ import annotations

import pathlib

import pytest

from niaf_policy.config import Config, ConfigError, apply_overrides, from_dict, load_config, to_dict

SHIPPED = sorted((pathlib.Path(__file__).parents[1] / "config").glob("*.yaml"))


def test_defaults_survive_a_round_trip_through_json() -> None:
    assert from_dict(Config, to_dict(Config())) == Config()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_files_are_valid(path: pathlib.Path) -> None:
    config = load_config(path, ["data.roots=[somewhere]"])
    assert config.data.roots == ("somewhere",)


def test_overrides_win_over_the_file_over_defaults(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("optimizer: {lr: 1e-4}\ntrain: {steps: 7}\nmodel: {siren: {groups: 4}}\n")
    config = load_config(file, ["train.steps=9", "model.siren.gamma=row", "data.roots=[a, b]"])
    assert config.optimizer.lr == 1e-4  # YAML takes 1e-4 for text
    assert config.train.steps == 9
    assert config.model.siren.gamma == "row"
    assert config.model.siren.groups == 4
    assert config.data.roots == ("a", "b")
    assert config.train.batch_size == Config().train.batch_size


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.learning_rate=1", "unknown setting 'optimizer.learning_rate'"),
        ("optimiser.lr=1", "did you mean 'optimizer'"),
        ("train.step=4", "did you mean 'train.steps'"),
        ("model.siren.gama=row", "did you mean 'model.siren.gamma'"),
        ("train.steps=many", "train.steps = 'many': give a whole number"),
        ("train.steps=0", "train.steps = 0: must be at least 1"),
        ("train.bf16=1", "train.bf16 = 1: give true or false"),
        ("optimizer.lr=fast", "optimizer.lr = 'fast': give a number"),
        ("optimizer.betas=[0.9]", "give 2 values"),
        ("data.roots=here", "data.roots = 'here': give a list"),
        ("data.weights=[1.0]", "one per data.roots entry"),
        ("data.horizon_s=0", "must be positive"),
        ("model.siren.gamma=half", "use 'full' or 'row'"),
        ("model.siren.groups=5", "must divide model.siren.width"),
        ("model.backbone.depths=[1]", "all stage lists need the same length"),
        ("train=3", "'train.' must be a mapping"),
        ("steps", "must look like section.name=value"),
        ("train.steps.more=3", "'steps' is not a section"),
    ],
)
def test_errors_name_key_value_and_remedy(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["train.steps=5", override])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"), [("[1, 2]", "must hold a mapping"), ("a: [", "cannot be read")]
)
def test_unreadable_files_are_named(tmp_path: pathlib.Path, text: str, words: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


def test_overrides_leave_the_given_values_alone() -> None:
    values = {"train": {"steps": 1}}
    assert apply_overrides(values, ["train.steps=2"])["train"]["steps"] == 2
    assert values["train"]["steps"] == 1
