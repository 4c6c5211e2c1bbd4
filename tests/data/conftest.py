"""A tokenizer small enough to train in a test: byte-level BPE with ChatML's control tokens."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxsft.data.tokenizer import Tokenizer

SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "user assistant system Hello world, how are you? I am fine, thanks.",
    "### Instruction: Name a colour. ### Response: Blue is a colour.",
] * 3


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Vocabulary of 320: `<s>` 0, `</s>` 1, `<|im_start|>` 2, `<|im_end|>` 3; defines BOS and EOS."""
    return make_tokenizer(bos_token="<s>", eos_token="</s>")


def make_tokenizer(**names: str) -> Tokenizer:
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **names))


def write_jsonl(path: Path, records: list) -> str:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return str(path)


def supervised(tokenizer: Tokenizer, ids, weights) -> list[str]:
    """The runs of tokens with a loss weight, decoded."""
    runs, current = [], []
    for token, weight in zip(ids, weights):
        if weight:
            current.append(int(token))
        elif current:
            runs.append(tokenizer.decode(current))
            current = []
    return runs + ([tokenizer.decode(current)] if current else [])
