"""Checkpoint folders: what is saved is what is loaded, and damage is named."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import policy_support
import pytest
import torch
from safetensors.torch import load_file, save_file

from niaf_field import load_prior, save_prior
from niaf_policy.checkpoint import CheckpointError, load_checkpoint
from niaf_policy.runtime import InstructionError, ObservationError, load_policy

SIZE = policy_support.IMAGE


def observation(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "images": {c: rng.integers(0, 255, (SIZE, SIZE, 3), np.uint8) for c in ("scene", "wrist")},
        "state": rng.normal(0.0, 0.1, 15),
        "instruction": policy_support.INSTRUCTIONS[0],
    }


def test_loaded_policies_answer_as_the_saved_model(checkpoint: pathlib.Path) -> None:
    config = policy_support.tiny_config()
    model, tokenizer = policy_support.tiny_model(config)
    policy_support.stir_heads(model)
    policy = load_policy(checkpoint)
    seen = observation()
    gamma, beta = policy.infer(seen)
    ids = torch.tensor([tokenizer(seen["instruction"])["input_ids"]])
    state = torch.tensor(seen["state"], dtype=torch.float32)[None]
    with torch.no_grad():
        wanted = model.eval()(
            torch.from_numpy(np.stack([seen["images"]["scene"], seen["images"]["wrist"]])[None]),
            torch.cat([state[:, :7], state[:, 14:]], dim=1),
            state[:, 7:14],
            torch.ones_like(ids),
            text_ids=ids,
        )
    np.testing.assert_allclose(gamma, wanted[0][0], atol=1e-5)
    np.testing.assert_allclose(beta, wanted[1][0], atol=1e-5)
    assert gamma.dtype == beta.dtype == np.float32
    assert gamma.shape == (policy.prior.gamma_length,)
    assert beta.shape == (policy.prior.beta_length,)


def test_every_input_matters(checkpoint: pathlib.Path) -> None:
    policy = load_policy(checkpoint)
    base = policy.infer(observation())[0]
    for change in ("scene", "wrist", "position", "velocity", "gripper", "instruction"):
        other = observation()
        if change in other["images"]:
            other["images"][change] = 255 - other["images"][change]
        elif change == "instruction":
            other["instruction"] = policy_support.INSTRUCTIONS[1]
        else:
            other["state"][{"position": 0, "velocity": 7, "gripper": 14}[change]] += 0.1
        assert np.abs(policy.infer(other)[0] - base).max() > 1e-6, change


def test_the_folder_holds_what_a_controller_needs(checkpoint: pathlib.Path) -> None:
    loaded = load_checkpoint(checkpoint)
    prior = load_prior(checkpoint / "prior.safetensors")
    assert prior.prior_id == loaded.prior.prior_id
    assert [c.name for c in prior.channels] == [*policy_support.JOINTS, "gripper"]
    assert [c.is_relative for c in prior.channels] == [True] * 7 + [False]
    assert prior.horizon_s == loaded.normalization.horizon_s
    assert set(prior.limits) == {"position_min", "position_max", "velocity_min", "velocity_max"}
    assert loaded.instructions == policy_support.INSTRUCTIONS
    assert loaded.image_size == (SIZE, SIZE)
    for file in checkpoint.iterdir():
        assert file.stat().st_mode & 0o777 == 0o644
        assert file.suffix in (".json", ".safetensors")


def test_row_modulation_is_shorter_and_loads(tmp_path: pathlib.Path) -> None:
    siren = {**policy_support.TINY_MODEL["siren"], "gamma": "row"}
    policy = load_policy(policy_support.make_checkpoint(tmp_path / "row", model={"siren": siren}))
    assert policy.prior.gamma_kind == "row"
    assert policy.infer(observation())[0].shape == (2 * 16,)


Damage = Callable[[pathlib.Path], object]


def edit_json(name: str, change: Callable[[dict], object]) -> Damage:
    def damage(folder: pathlib.Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return damage


def edit_tensors(change: Callable[[dict], object]) -> Damage:
    def damage(folder: pathlib.Path) -> None:
        tensors = load_file(str(folder / "model.safetensors"))
        change(tensors)
        save_file(tensors, str(folder / "model.safetensors"))

    return damage


def other_prior(folder: pathlib.Path) -> None:
    prior = load_prior(folder / "prior.safetensors")
    changed = type(prior)(**{**_fields(prior), "omega0": prior.omega0 + 1.0})
    save_prior(changed, folder / "prior.safetensors")


def _fields(prior: object) -> dict:
    return {name: getattr(prior, name) for name in type(prior).__dataclass_fields__}


def truncate(name: str) -> Damage:
    def damage(folder: pathlib.Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return damage


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "does not exist; give the folder that holds config.json"),
    "no model": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors' is missing"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json' is missing"),
    "no prior": (lambda f: (f / "prior.safetensors").unlink(), "prior.safetensors' is missing"),
    "cut model": (truncate("model.safetensors"), "not a readable safetensors file"),
    "cut prior": (truncate("prior.safetensors"), "prior.safetensors' cannot be used"),
    "cut config": (truncate("config.json"), "config.json' is not readable JSON"),
    "cut normalization": (truncate("normalization.json"), "normalization.json' is not readable"),
    "cut tokenizer": (truncate("tokenizer.json"), "tokenizer files in"),
    "list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object"),
    "other kind": (edit_json("config.json", lambda v: v.update(kind="act")), "says kind 'act'"),
    "newer version": (
        edit_json("config.json", lambda v: v.update(format_version=99)), "version 99",
    ),
    "unknown setting": (
        edit_json("config.json", lambda v: v["model"].update(sirene={})), "did you mean",
    ),
    "no cameras": (edit_json("config.json", lambda v: v.pop("cameras")), "damaged ('cameras')"),
    "odd image size": (
        edit_json("config.json", lambda v: v.update(image_size=[32])), "config.json' is damaged",
    ),
    "no statistics": (
        edit_json("normalization.json", lambda v: v.pop("action_scale")), "action_scale",
    ),
    "short statistics": (
        edit_json("normalization.json", lambda v: v["action_scale"].pop()), "action_scale",
    ),
    "zero scale": (
        edit_json("normalization.json", lambda v: v["action_scale"].__setitem__(0, 0.0)),
        "action_scale",
    ),
    "text for a number": (
        edit_json("normalization.json", lambda v: v.update(horizon_s="long")), "normalization.json",
    ),
    "missing tensor": (edit_tensors(lambda t: t.pop("prior.w_out")), "1 tensors missing"),
    "unknown tensor": (
        edit_tensors(lambda t: t.update(extra=torch.zeros(1))), "1 unknown (first ['extra'])",
    ),
    "wrong shape": (
        edit_tensors(lambda t: t.update({"prior.b_out": torch.zeros(3)})), "prior.b_out",
    ),
    "not finite": (
        edit_tensors(lambda t: t["prior.w_out"].fill_(float("nan"))), "'prior.w_out' is not finite",
    ),
    "other prior": (other_prior, "does not belong to"),
    "other vocabulary": (
        edit_json("config.json", lambda v: v["florence2"]["text_config"].update(vocab_size=7)),
        "model.safetensors' does not fit",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_a_checkpoint_error_that_names_it(
    name: str, checkpoint: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    damage, words = DAMAGES[name]
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda o: o["images"].pop("wrist"), ObservationError, "no image of camera 'wrist'"),
        (
            lambda o: o["images"].update(scene=np.zeros((8, SIZE, 3), np.uint8)),
            ObservationError, "image of camera 'scene' is uint8",
        ),
        (
            lambda o: o["images"].update(scene=np.zeros((SIZE, SIZE, 3))),
            ObservationError, "float64",
        ),
        (lambda o: o.update(state=np.zeros(14)), ObservationError, "expected (15,)"),
        (lambda o: o["state"].__setitem__(3, np.nan), ObservationError, "not finite"),
        (lambda o: o.update(instruction=" "), InstructionError, "empty"),
        (lambda o: o.update(instruction="pick " * 40), InstructionError, "this model reads 24"),
    ],
)
def test_observations_that_do_not_fit_are_refused(
    checkpoint: pathlib.Path, change: Callable[[dict], object], kind: type, words: str
) -> None:
    policy = load_policy(checkpoint)
    seen = observation()
    change(seen)
    with pytest.raises(kind) as caught:
        policy.infer(seen)
    assert words in str(caught.value)
