"""The tokenizer: any text, no network."""

from __future__ import annotations

import pathlib
import socket

import numpy as np
import pytest

from niaf_policy.tokenizer import (
    InstructionError,
    encode_instruction,
    load_tokenizer,
    normalise_instruction,
    train_tokenizer,
)

CORPUS = ("pick up the red cube", "put the blue cube in the bin")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("network access")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("offline")
def test_saved_tokenizers_load_offline_and_agree(tmp_path: pathlib.Path) -> None:
    made = train_tokenizer(CORPUS, 300)
    made.save_pretrained(str(tmp_path))
    loaded = load_tokenizer(tmp_path)
    assert len(loaded) == len(made)
    for text in (*CORPUS, "greife den roten würfel", "拿起红色方块", "a/b-c 12"):
        ids, mask = encode_instruction(made, text, 64)
        again, _ = encode_instruction(loaded, text, 64)
        np.testing.assert_array_equal(ids, again)
        used = ids[: mask.sum()]
        assert loaded.decode(used, skip_special_tokens=True).strip() == text
    assert loaded.convert_tokens_to_ids("<image>") == made.convert_tokens_to_ids("<image>")


def test_training_does_not_depend_on_the_order_of_the_corpus() -> None:
    first, second = train_tokenizer(CORPUS, 300), train_tokenizer(CORPUS[::-1], 300)
    assert first.get_vocab() == second.get_vocab()


def test_padding_follows_the_text() -> None:
    tokenizer = train_tokenizer(CORPUS, 300)
    ids, mask = encode_instruction(tokenizer, CORPUS[0], 16)
    used = int(mask.sum())
    assert mask.tolist() == [1] * used + [0] * (16 - used)
    assert ids[0] == tokenizer.bos_token_id
    assert ids[used - 1] == tokenizer.eos_token_id
    assert (ids[used:] == tokenizer.pad_token_id).all()


def test_spelling_variants_are_one_instruction() -> None:
    assert normalise_instruction("  Pick up\tthe RED cube. ") == CORPUS[0]


@pytest.mark.parametrize("text", ["", "   ", "\n.", "..."])
def test_empty_instructions_are_refused(text: str) -> None:
    with pytest.raises(InstructionError, match="empty"):
        encode_instruction(train_tokenizer(CORPUS, 300), text, 16)


def test_long_instructions_are_refused_not_cut() -> None:
    with pytest.raises(InstructionError, match="this model reads 16"):
        encode_instruction(train_tokenizer(CORPUS, 300), "pick up the red cube " * 9, 16)
