"""How the command was called, and whether it may use the network."""

from __future__ import annotations

import os
import shlex
import sys


def go_offline(*, hub: bool, data: bool) -> None:
    """Forbid the network to checkpoints or data sets, before transformers and datasets look (once, at import)."""
    for variable, wanted in (("HF_HUB_OFFLINE", hub), ("HF_DATASETS_OFFLINE", data)):
        if wanted:
            os.environ[variable] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def command_line() -> str:
    """The command as it was typed, for a record's provenance."""
    return shlex.join(["mambalab", *sys.argv[1:]])
