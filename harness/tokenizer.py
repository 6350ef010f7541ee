"""Find the tokenizer of a checkpoint, name it by its content, and check that it fits the embedding."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from .errors import one_line

# What every released Mamba and Pythia checkpoint was trained with.
GPT_NEOX = "EleutherAI/gpt-neox-20b"
END_OF_TEXT = ("<|endoftext|>", "</s>", "<eos>")


def load_tokenizer(source: str | None, checkpoint: Path, *, offline: bool = False) -> Any:
    """A transformers fast tokenizer from `source`: a tokenizer.json, a directory or a hub id.

    Without a source: the checkpoint's own files, else the GPT-NeoX-20B tokenizer from the hub or its cache.
    Raises ValueError in one line when there is none.
    """
    if source is None and not _has_tokenizer(checkpoint):
        return _from_pretrained(GPT_NEOX, offline, f", tried because {checkpoint} has no tokenizer.json")
    source = str(checkpoint) if source is None else source
    path = Path(source).expanduser()
    if path.is_dir() and not (path / "tokenizer_config.json").is_file():
        # Without its config transformers would guess the special tokens, and may add some of its own.
        path = path / "tokenizer.json"
        if not os.path.lexists(path):
            raise ValueError(f"no tokenizer in {source}: neither tokenizer.json nor tokenizer_config.json is there")
        return _from_file(path)
    if path.is_file():
        return _from_file(path)
    if not path.is_dir() and (path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1):
        raise ValueError(f"no tokenizer at {source}: neither a file nor a directory")
    return _from_pretrained(str(path), offline)


def _has_tokenizer(directory: Path) -> bool:
    # One that can't be read is not the same as none.
    return any(os.path.lexists(directory / name) for name in ("tokenizer.json", "tokenizer_config.json"))


def _from_file(path: Path) -> Any:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a tokenizer.json: it is no plain file")
    try:
        fast = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        raise ValueError(f"{path} is not a tokenizer.json: {one_line(error)}") from error
    end = next((token for token in END_OF_TEXT if fast.token_to_id(token) is not None), None)
    if end is None:
        raise ValueError(f"{path} has none of the end-of-text tokens {', '.join(END_OF_TEXT)}")
    return PreTrainedTokenizerFast(tokenizer_object=fast, bos_token=end, eos_token=end, name_or_path=str(path))


def _from_pretrained(source: str, offline: bool, why: str = "") -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=offline)
    except Exception as error:
        hint = "pass --tokenizer with a tokenizer.json or a directory that holds one"
        raise ValueError(f"no usable tokenizer at {source}{why} ({one_line(error)}); {hint}") from error
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer at {source} has no tokenizer.json (a fast tokenizer is needed)")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer at {source} names no end-of-text token (eos_token)")
    return tokenizer


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of the tokenizer's whole definition (vocabulary, merges, normaliser, special tokens)."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def check_fit(tokenizer: Any, vocabulary: int) -> None:
    """Refuse a tokenizer with ids that the embedding (of `vocabulary` rows) does not have."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise ValueError(
            f"the tokenizer at {tokenizer.name_or_path} has ids up to {largest}, the embedding only {vocabulary} rows: "
            "they do not belong together"
        )
