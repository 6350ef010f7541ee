"""What `mambalab demo` runs on: a small tokenizer made from the bundled miniature documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 1024
MINIATURE = Path(__file__).parent / "miniature"


def build_tokenizer(data_dir: Path) -> Tokenizer:
    """Train a byte-level BPE of 1,024 tokens on the sentences under `data_dir`; `<|endoftext|>` is id 0.

    Depends on nothing but the files, so the committed tokenizer.json can be rebuilt to the byte. Raises ValueError
    where the sentences are too few for that many tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(data_dir), trainer)
    size = tokenizer.get_vocab_size()
    if size != VOCAB_SIZE:
        raise ValueError(f"{data_dir} has text for {size} tokens; the tokenizer needs {VOCAB_SIZE}")
    return tokenizer


def sentences(data_dir: Path) -> Iterator[str]:
    """Every text under `data_dir`, by file name, then line: the strings with a space, which no id or label has."""
    for path in sorted(data_dir.rglob("*.jsonl"), key=lambda path: path.relative_to(data_dir).as_posix()):
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                yield from (text for text in _strings(json.loads(line)) if " " in text)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
