"""What the logs of trainings add to their records, and what is said where a log adds nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import mambalab
from mambalab.reports import record
from mambalab.reports.tables import report
from reports_cases import narrow, some_record
from training_cases import LOG, MEASURED, write_training

RIGHT = MEASURED | {"sequence": 1.0, "token": 1.0}


def measured(*steps: int, of: int = 4) -> list[dict]:
    """A log that is measured every 100 steps, every sequence right at these."""
    return [
        LOG[0] | {"step": step, "measured": RIGHT if step in steps else MEASURED}
        for step in range(100, 100 * of + 1, 100)
    ]


def solved(folder: Path, step: int) -> None:
    """Record that a training was solved at this step."""
    made = record.read(folder / "records.jsonl")
    shared = {name: getattr(made[0], name) for name in ("experiment", "model", "task", "setting", "seed")}
    made.append(some_record(metric="steps to solved", value=float(step), stderr=None, **shared))
    record.write(folder / "records.jsonl", made)


def test_errors_after_a_training_was_solved_are_told_with_the_step_since_which_there_are_none(tmp_path):
    logs = {
        "always right": measured(100, 200, 300, 400),
        "wrong again": measured(100, 300, 400),
        "wrong at the end": measured(100, 200, 300),
        "cut short": measured(100, 300, of=3),
    }
    for seed, (name, log) in enumerate(logs.items()):
        solved(write_training(tmp_path / name, seed=seed, log=log), 100)
    write_training(tmp_path / "unfinished", seed=4, log=measured(200, 400), finished=False)
    lines = narrow(report([tmp_path]).markdown).splitlines()
    assert [line for line in lines if line.startswith(("- Solved", "- Errors"))] == [
        "- Solved: the first measurement that found every sequence right; there is one every 200 steps, and later ones "
        "may have found errors again.",
        "- Errors after that, by its log, and then right at every measurement: mamba, seed 1, since step 300; "
        "mamba, seed 4, since step 400.",
    ]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (Path.unlink, "there is no log.jsonl"),
        (lambda log: log.write_text(""), "log.jsonl is empty"),
        (lambda log: log.write_text('{"step": 1'), "the first line of log.jsonl is not of a training"),
    ],
)
def test_a_training_without_a_log_that_can_be_drawn_is_named(tmp_path, spoil, says):
    write_training(tmp_path / "runs" / "a")
    left_out = write_training(tmp_path / "runs" / "b", seed=1)
    spoil(left_out / "log.jsonl")
    answer = mambalab("report", tmp_path / "runs", "--figures", tmp_path / "figures")
    assert answer.status == 0
    said = [line for line in answer.err.splitlines() if not line.startswith("figure: ")]
    assert said == [f"not drawn: {left_out}: {says}"]
