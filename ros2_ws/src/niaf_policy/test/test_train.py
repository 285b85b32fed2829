"""Training runs of a few steps on a tiny recording."""

from __future__ import annotations

import json
import pathlib
import shutil
import signal

import numpy as np
import policy_support
import pytest
import torch
from safetensors.torch import load_file
from transformers import Florence2ForConditionalGeneration

from niaf_data import DatasetError
from niaf_policy import train as training
from niaf_policy.backbone import florence2_config
from niaf_policy.batches import BatchSource, ChunkData
from niaf_policy.checkpoint import CheckpointError, load_checkpoint
from niaf_policy.config import AugmentConfig, BackboneConfig, Config, from_dict
from niaf_policy.runtime import load_policy
from niaf_policy.tokenizer import train_tokenizer
from niaf_policy.train import Trainer, latest_checkpoint, learning_rate_factor, main, train


def config(recording: pathlib.Path, output: pathlib.Path, **sections: dict) -> Config:
    values: dict = {
        "data": {"roots": [str(recording)], "horizon_s": 0.5, "cache_dir": str(output / "cache")},
        "optimizer": {"warmup_steps": 2, "lr": 1e-3},
        "train": {"output_dir": str(output / "run"), "batch_size": 4, "steps": 2, "threads": 1,
                  "save_minutes": 0.0, "eval_steps": 1000, "log_steps": 1000},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return policy_support.tiny_config(**values)


def weights(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    return load_file(str(folder / "model.safetensors"))


# -- batches -------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def chunks(recording: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> ChunkData:
    """Episodes of 14 frames; frames 5 to 7 of the second one are not the expert's."""
    return ChunkData(config(recording, tmp_path_factory.mktemp("chunks")).data)


def test_labels_are_future_actions_and_drive_velocities(chunks: ChunkData) -> None:
    anchor, action, velocity, pad = chunks.chunk(np.array([0]))
    assert action.shape == (1, 11, 8)  # 0.5 s at 20 frames per second, both ends
    np.testing.assert_array_equal(action[0], chunks.action[:11])
    np.testing.assert_array_equal(velocity[0], chunks.velocity[:11])
    np.testing.assert_array_equal(anchor[0], [*chunks.state[0, :7], 0.0])
    assert not pad.any()


def test_the_end_of_an_episode_is_rest(chunks: ChunkData) -> None:
    _, action, velocity, pad = chunks.chunk(np.array([10]))
    assert not pad.any()
    assert (action[0, 4:] == chunks.action[13]).all()
    assert velocity[0, 3].any()
    assert not velocity[0, 4:].any()


def test_labels_past_the_expert_are_padding(chunks: ChunkData) -> None:
    _, _, _, pad = chunks.chunk(np.array([14 + 2]))  # expert until frame 4
    assert pad[0].tolist() == [False] * 3 + [True] * 8


def test_frames_of_others_are_never_observed_and_episodes_are_split(chunks: ChunkData) -> None:
    train_frames, held = chunks.split(seed=0)
    frames = set(train_frames) | set(held)
    assert frames == set(range(42)) - {19, 20, 21}
    assert not {f // 14 for f in train_frames} & {f // 14 for f in held}


def test_batches_depend_on_seed_and_step_only(chunks: ChunkData) -> None:
    frames, _ = chunks.split(0)
    n = chunks.normalization(frames)
    tokenizer = train_tokenizer(policy_support.INSTRUCTIONS, 280)

    def source(seed: int) -> BatchSource:
        return BatchSource(chunks, frames, n, tokenizer, 24, AugmentConfig(), seed)

    first, again = source(0).training_batch(5, 4), source(0).training_batch(5, 4)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.state, again.state)
    assert not torch.equal(first.state, source(0).training_batch(6, 4).state)
    assert not torch.equal(first.state, source(1).training_batch(5, 4).state)
    plain = source(0).plain_batch(frames[:2])
    np.testing.assert_array_equal(plain.state, chunks.state[frames[:2]])
    assert plain.images.dtype == torch.uint8


def test_the_named_object_is_read_from_the_instruction(chunks: ChunkData) -> None:
    named = dict(zip(chunks.instructions, chunks.target_objects(), strict=True))
    assert named == {"pick up the red cube": 0, "pick up the green cube": 1}


def test_onset_frames_are_drawn_more_often(recording: pathlib.Path, tmp_path: pathlib.Path) -> None:
    chunks = ChunkData(
        config(recording, tmp_path, data={"onset_s": 0.1, "onset_factor": 5}).data
    )
    frames, _ = chunks.split(0)
    tokenizer = train_tokenizer(policy_support.INSTRUCTIONS, 280)
    n = chunks.normalization(frames)
    source = BatchSource(chunks, frames, n, tokenizer, 24, AugmentConfig(), 0)
    times = {int(f): int((source._by_root[0] == f).sum()) for f in frames}
    onset = {f for start in (0, 14, 22, 28) for f in (start, start + 1)}  # 0.1 s of every run
    assert times == {int(f): 5 if f in onset else 1 for f in frames}


def test_decoded_frames_are_cached_until_the_recording_changes(
    recording: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(recording, copy)
    settings = config(copy, tmp_path).data
    first = ChunkData(settings).images[0][0]
    file = tmp_path / "cache" / "copy" / "observation.images.scene.npy"
    made_ns = file.stat().st_mtime_ns
    ChunkData(settings)
    assert file.stat().st_mtime_ns == made_ns
    (copy / "meta" / "info.json").touch()
    np.testing.assert_array_equal(ChunkData(settings).images[0][0], first)
    assert file.stat().st_mtime_ns > made_ns


def test_normalization_describes_the_labels(chunks: ChunkData) -> None:
    frames, _ = chunks.split(0)
    n = chunks.normalization(frames)
    anchor, action, _, pad = chunks.chunk(frames)
    relative = (action - anchor[:, None])[~pad]
    np.testing.assert_allclose(n.action_mean[:7], relative.mean(0)[:7], atol=1e-5)
    np.testing.assert_allclose(n.action_scale[:7], relative.std(0)[:7], atol=1e-5)
    assert n.action_mean[7] == pytest.approx(0.04, abs=1e-6)  # gripper: middle and half range
    assert n.action_scale[7] == pytest.approx(0.04, abs=1e-6)
    assert n.samples == 11
    assert n.object_names == ("red", "green")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"roots": []}, "data.roots is empty"),
        ({"horizon_s": 0.52}, "not a whole number of frames"),
        ({"cameras": ["scene", "left"]}, "lacks 'observation.images.left'"),
    ],
)
def test_data_that_do_not_fit_are_named(
    recording: pathlib.Path, tmp_path: pathlib.Path, section: dict, words: str
) -> None:
    with pytest.raises(DatasetError, match=words):
        ChunkData(config(recording, tmp_path, data=section).data)


# -- steps ---------------------------------------------------------------------------------------
def test_overfitting_one_batch_lowers_the_loss(
    recording: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(config(recording, tmp_path, optimizer={"lr": 3e-3}, train={"steps": 100}))
    batch = trainer.batches.plain_batch(trainer.train_frames[:4])
    monkeypatch.setattr(trainer.batches, "training_batch", lambda step, size: batch)
    numbers = [trainer.train_step() for _ in range(25)]
    assert numbers[-1]["position"] < 0.3 * numbers[0]["position"]
    assert numbers[-1]["loss"] < 0.5 * numbers[0]["loss"]
    assert {"position", "velocity", "jerk", "auxiliary"} <= set(numbers[0])


def test_two_steps_then_resume_equal_four_steps(
    recording: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    whole = train(config(recording, tmp_path / "whole", train={"steps": 4}))
    # The learning rate depends on the planned length: stop a run of four after two.
    trainer = Trainer(config(recording, tmp_path / "parts", train={"steps": 4}))
    for _ in range(2):
        trainer.train_step()
    trainer.save()
    code = main(["--resume", str(tmp_path / "parts" / "run")])
    assert code == 0
    resumed = latest_checkpoint(tmp_path / "parts" / "run")
    assert resumed.name == whole.name == "000004"
    expected = weights(whole)
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, expected[name]), name
    state = load_file(str(resumed / "training_state" / "state.safetensors"))
    wanted = load_file(str(whole / "training_state" / "state.safetensors"))
    assert set(state) == set(wanted)
    assert all(torch.equal(value, wanted[name]) for name, value in state.items())
    assert any(name.startswith("model.auxiliary.") for name in state)
    assert not any(name.startswith("auxiliary.") for name in expected)  # not shipped
    load_policy(resumed)


def test_a_new_run_can_start_from_a_checkpoint(
    recording: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    first = train(config(recording, tmp_path / "a"))
    second = config(recording, tmp_path / "b", train={"init_from": str(first)})
    trainer = Trainer(second)
    assert trainer.progress.step == 0
    start = weights(first)
    for name, tensor in training.shipped_state(trainer.model).items():
        assert torch.equal(tensor, start[name]), name
    assert trainer.normalization == load_checkpoint(first).normalization
    trainer.run()
    moved = weights(latest_checkpoint(tmp_path / "b" / "run"))
    assert any(not torch.equal(moved[name], start[name]) for name in start)
    assert json.loads((tmp_path / "b" / "run" / "checkpoints" / "000002" / "train_config.json")
                      .read_text())["train"]["init_from"] == str(first)


def test_other_joints_cannot_start_from_it(
    recording: pathlib.Path, checkpoint: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(checkpoint, folder)
    with pytest.raises(CheckpointError, match="use matching data"):
        Trainer(
            config(recording, tmp_path, data={"horizon_s": 0.4}, train={"init_from": str(folder)})
        )


def test_a_saved_florence2_folder_is_a_backbone(
    recording: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    sizes = from_dict(BackboneConfig, policy_support.TINY_MODEL["backbone"])
    tokenizer = train_tokenizer(policy_support.INSTRUCTIONS, 280)
    ids = {"bos": 0, "pad": 1, "eos": 2, "image": 4}
    torch.manual_seed(1)
    published = Florence2ForConditionalGeneration(florence2_config(sizes, len(tokenizer), ids))
    published.save_pretrained(str(tmp_path / "florence"))
    tokenizer.save_pretrained(str(tmp_path / "florence"))
    model = {**policy_support.TINY_MODEL, "backbone": {"pretrained": str(tmp_path / "florence")}}
    trainer = Trainer(
        config(recording, tmp_path, model=model, optimizer={"backbone_lr_factor": 0.1})
    )
    ours = trainer.model.backbone.florence.state_dict()
    theirs = published.model.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    rates = {group["factor"] for group in trainer.optimizer.param_groups}
    assert rates == {0.1, 1.0}
    folder = trainer.run()
    shutil.rmtree(tmp_path / "florence")  # the checkpoint stands on its own
    assert load_checkpoint(folder).model.backbone.width == 32


def test_old_checkpoints_make_room_but_the_last_stays(
    recording: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    last = train(config(recording, tmp_path,
                        train={"steps": 4, "save_steps": 1, "keep_checkpoints": 2}))
    kept = sorted(p.name for p in last.parent.iterdir())
    assert kept == ["000003", "000004"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.step=3"], "did you mean 'train.steps'"),
        (["data.roots=[]"], "data.roots is empty"),
        (["--resume", "/no/such/run"], "holds no finished checkpoint"),
        (["--config", "/no/such/file.yaml"], "cannot be read"),
    ],
)
def test_the_command_line_fails_with_one_line(
    arguments: list[str], words: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, *([] if "--resume" in arguments
                               else [f"train.output_dir={tmp_path / 'run'}"])]) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert len(printed.splitlines()) == 1


def test_a_checkpoint_of_another_configuration_cannot_be_resumed(
    recording: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(recording, tmp_path))
    run = str(tmp_path / "run")
    assert main(["--resume", run, "train.steps=3", "model.siren.layers=3"]) == 2
    assert "does not fit" in capsys.readouterr().err


def test_an_interrupt_ends_the_run_with_a_checkpoint(
    recording: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer = Trainer(config(recording, tmp_path, train={"steps": 1000}))
    step = trainer.train_step

    def step_then_interrupt() -> dict[str, float]:
        numbers = step()
        if trainer.progress.step == 2:
            signal.raise_signal(signal.SIGINT)
        return numbers

    monkeypatch.setattr(trainer, "train_step", step_then_interrupt)
    try:
        folder = trainer.run()
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert folder.name == "000002"
    assert load_checkpoint(folder).instructions == ChunkData(trainer.config.data).instructions


def test_learning_rate_warms_up_and_decays() -> None:
    o = Config().optimizer
    assert learning_rate_factor(0, 0.0, o) == pytest.approx(1 / o.warmup_steps)
    assert learning_rate_factor(o.warmup_steps, 0.0, o) == pytest.approx(1.0)
    assert learning_rate_factor(10**6, 1.0, o) == pytest.approx(o.final_lr_factor)
