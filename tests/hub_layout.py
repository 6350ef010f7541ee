"""Small data sets in the hub's layout, for the tests that read data directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mambalab.harness.data import DATASETS

VALID: dict[str, dict[str, Any]] = {
    "lambada_openai": {"text": "She opened the door and saw the sea"},
    "hellaswag": {
        "activity_label": "Rowing",
        "ctx_a": "A crew lifts a boat.",
        "ctx_b": "",
        "endings": ["They row.", "They sing.", "They sleep.", "They melt."],
        "label": "0",
    },
    "piqa": {"goal": "open a jar", "sol1": "twist the lid", "sol2": "twist the glass", "label": 0},
    "arc_easy": {
        "id": "1",
        "question": "Which of these is a gas?",
        "choices": {"text": ["steam", "ice", "rock"], "label": ["A", "B", "C"]},
        "answerKey": "A",
    },
    "winogrande": {"sentence": "The cup fell off the tray as the _ was wet.", "option1": "cup", "option2": "tray"}
    | {"answer": "2"},
}
VALID["arc_challenge"] = VALID["arc_easy"]


def fill(directory: Path) -> Path:
    """Two documents in every file of all six tasks, without a manifest."""
    for task, dataset in DATASETS.items():
        for split in dataset.splits:
            path = directory / dataset.file(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text((json.dumps(VALID[task]) + "\n") * 2)
    return directory


def evaluated_file(directory: Path, task: str) -> Path:
    return directory / DATASETS[task].file(DATASETS[task].split)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
