"""Instruction text to token ids: a byte-pair tokenizer learnt from the instructions themselves."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<image>")


class InstructionError(ValueError):
    """An instruction cannot be given to the model."""


def train_tokenizer(corpus: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with all 256 bytes in its alphabet, so any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([normalise_instruction(text) for text in sorted(corpus)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )


def load_tokenizer(folder: str | pathlib.Path) -> Any:
    """Load tokenizer files of a checkpoint folder without any network."""
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def normalise_instruction(text: str) -> str:
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(text.lower().split()).rstrip(".")


def encode_instruction(tokenizer: Any, text: str, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask, int64 [max_tokens] each; padded at the end.

    Raises InstructionError for empty or too long text: cutting it would change its meaning.
    """
    clean = normalise_instruction(text)
    if not clean:
        raise InstructionError("the instruction is empty; say what the arm shall do")
    ids = tokenizer(clean)["input_ids"]
    if len(ids) > max_tokens:
        raise InstructionError(
            f"instruction '{text}' takes {len(ids)} tokens, this model reads {max_tokens}; "
            "shorten it"
        )
    out = np.full(max_tokens, tokenizer.pad_token_id, dtype=np.int64)
    out[: len(ids)] = ids
    mask = np.zeros(max_tokens, dtype=np.int64)
    mask[: len(ids)] = 1
    return out, mask
