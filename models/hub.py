"""The Hugging Face hub, through its cache: the few files of a repository that a checkpoint needs."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import constants, snapshot_download

from .weight_files import ENTRIES

_SMALL = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt")
# Safetensors first: a repository that has both formats is downloaded once.
_WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"),
)


def is_repository_id(text: str) -> bool:
    """Whether this could be the "owner/name" of a repository."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) is not None


def fetch(repository: str, *, revision: str | None = None, offline: bool = False) -> Path:
    """The cached snapshot of a model repository, downloaded unless `offline` or HF_HUB_OFFLINE forbids it.

    A FileNotFoundError says why there is none.
    """
    offline = offline or constants.HF_HUB_OFFLINE
    for weights in _WEIGHTS:
        folder = _snapshot(repository, revision, offline, [*_SMALL, *weights])
        if any((folder / name).is_file() for name in ENTRIES):
            return folder
    where = "the hub's cache" if offline else "the hub"
    raise FileNotFoundError(f"{repository}: {where} has no weights for it ({', '.join(ENTRIES)})")


def _snapshot(repository: str, revision: str | None, offline: bool, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=offline, allow_patterns=patterns))
    except Exception as error:
        # What the transport raises depends on the hub library's version; an errno is the disk's own complaint.
        if isinstance(error, OSError) and error.errno:
            raise
        at = f" at revision {revision}" if revision else ""
        if offline:
            why = "the hub's cache does not hold it, and offline forbids fetching it"
        else:
            why = f"the hub did not give it ({type(error).__name__}: {str(error).splitlines()[0]})"
        raise FileNotFoundError(f"{repository}{at}: no folder of this name is here, and {why}") from error
