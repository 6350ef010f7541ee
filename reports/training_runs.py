"""Training runs as their folders tell them: what was asked for and the log so far, whether they are finished or not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

from . import jsonl, markdown, record
from .naming import how, in_effect, length, model_key
from .record import SECONDS, SEQUENCES, SOLVED, SOLVED_SECONDS, SPEED, STEADY, TOKENS, Record
from .trained import EXPERIMENT as TRAINING
from .trained import Trained

# As tasks.run_files and harness.ablate write them; a run has records at its end, or a record that it diverged.
SETTINGS, LOG, RECORDS = "settings.json", "log.jsonl", "records.jsonl"
ENDS = (RECORDS, f"diverged/{RECORDS}")
NUMBERS = {"step", "loss", "accuracy", "steps_per_second", "seconds"}

ANSWERS: Mapping[str, Callable[[Mapping[str, Any]], int]] = MappingProxyType(
    {
        "induction-heads": lambda task: task["vocab_size"] - 1,
        "selective-copying": lambda task: task["vocab_size"] - 2,
        "associative-recall": lambda task: task["vocab_size"] - task["vocab_size"] // 2,
    }
)
"""How many symbols of a task, given its settings, can be an answer: one in so many guesses is right by chance."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A run: `setting` is its recipe as it takes effect, `log` a line each so many steps.

    Old settings name no `model`, nor `experiment`. `name` is that of `folder`, from the one down that was searched;
    `is_finished`, whether records say how it ended.
    """

    name: str
    folder: Path
    setting: Mapping[str, Any] = field(repr=False)
    log: Sequence[Mapping[str, Any]] = field(repr=False)
    model: str | None
    experiment: str | None = None
    is_finished: bool

    @property
    def task(self) -> str:
        return self.setting["task"]["name"]

    @property
    def length(self) -> int:
        """Tokens that the task counts as its length, without a curriculum's."""
        return length(self.setting)

    @property
    def seed(self) -> int:
        return self.setting["seed"]

    @property
    def step(self) -> int:
        """How many were done, as the log says."""
        return self.log[-1]["step"] if self.log else 0

    @property
    def measured(self) -> list[Mapping[str, Any]]:
        """The lines of the log with what was measured on the fixed set."""
        return [line for line in self.log if "measured" in line]

    @property
    def lacking(self) -> str:
        """Why the log has no line."""
        log = self.folder / LOG
        if not log.is_file():
            return f"there is no {LOG}"
        return f"the first line of {LOG} is not of a training" if log.stat().st_size else f"{LOG} is empty"

    @property
    def steady(self) -> int | None:
        """The step of the measurement from which on every one, up to the last, found every sequence right."""
        right = list(takewhile(lambda line: line["measured"]["sequence"] == 1, reversed(self.measured)))
        return right[-1]["step"] if right else None

    @property
    def chance_loss(self) -> float | None:
        """Cross entropy, in nats, of a guess among all answers there are; None for a task that is not known here."""
        answers = ANSWERS.get(self.task)
        return math.log(answers(self.setting["task"])) if answers else None


def find(paths: Iterable[Path]) -> list[TrainingRun]:
    """The training runs in these folders and below, each once, by path. ValueError for settings that are damaged."""
    above = {file.parent: path for path in paths if path.is_dir() for file in path.rglob(SETTINGS)}
    return [run for folder in sorted(above) for run in _read(folder, above[folder])]


def _read(folder: Path, above: Path) -> Iterator[TrainingRun]:
    try:
        settings = jsonl.read_object(folder / SETTINGS)
    except ValueError:
        # Other programs call files so, too.
        if (folder / LOG).is_file():
            raise
        return
    setting, model, experiment = (settings.get(name) for name in ("recipe", "model", "experiment"))
    if not isinstance(setting, dict) or not all(isinstance(name, str | None) for name in (model, experiment)):
        return
    try:
        name = folder.relative_to(above).as_posix() if folder != above else folder.resolve().name
        ended = _first_record(folder)
        run = TrainingRun(
            name=name,
            folder=folder,
            setting=in_effect(setting, settings.get("device")),
            log=_log(folder / LOG),
            model=ended.model if ended else model,
            experiment=ended.experiment if ended else experiment,
            is_finished=ended is not None,
        )
        yield _checked(run)
    except KeyError as error:
        raise ValueError(f"{folder / SETTINGS} was not written by mambalab: it has no {error}") from None


def _checked(run: TrainingRun) -> TrainingRun:
    """The run, if all is there that is said of one. KeyError where something is not."""
    _standing(run)
    return run


def _log(path: Path) -> list[dict[str, Any]]:
    """Its lines. One that a kill cut short, or that no run wrote, ends it."""
    lines = []
    for text in jsonl.read_bytes(path).splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or not line.keys() >= NUMBERS:
            break
        lines.append(line)
    return lines


def _first_record(folder: Path) -> Record | None:
    ends = (folder / name for name in ENDS)
    return next((record.read(end)[0] for end in ends if end.is_file()), None)


def unfinished(runs: Sequence[TrainingRun]) -> list[str]:
    """A line for each run that is not finished: how far it is, what it last got right, and how it is trained."""
    return [_standing(run) for run in runs if not run.is_finished]


def so_far(runs: Sequence[TrainingRun], finished: Sequence[Trained]) -> list[Trained]:
    """What the logs of unfinished runs say whose model has a name, be it from a finished one of the same model."""
    names = {model_key(one.setting): one.model for one in finished}
    called = [(run, run.model or names.get(model_key(run.setting))) for run in runs]
    return [
        Trained(
            model=model,
            task=run.task,
            seed=run.seed,
            setting={**run.setting, "steps_done": run.step},
            values=_values(run),
            is_finished=False,
        )
        for run, model in called
        if model and not run.is_finished and run.experiment in (None, TRAINING)
    ]


def with_logs(finished: Iterable[Trained], runs: Iterable[TrainingRun]) -> list[Trained]:
    """The trainings with what the logs beside their records tell; a log that ends before its training tells nothing."""
    whole = {run.folder.resolve(): run for run in runs if run.log}
    return [_with_log(one, whole.get(one.folder.resolve()) if one.folder else None) for one in finished]


def _with_log(one: Trained, run: TrainingRun | None) -> Trained:
    if run is None or run.step != one.steps or run.steady is None:
        return one
    return replace(one, values={**one.values, STEADY: run.steady})


def _values(run: TrainingRun) -> dict[str, float]:
    """The last numbers of a log, under the names that records have for them."""
    values: dict[str, float] = {}
    if run.measured:
        last = run.measured[-1]["measured"]
        values |= {TOKENS: last["token"], SEQUENCES: last["sequence"]}
    if solved := [line for line in run.measured if line["measured"]["sequence"] == 1]:
        values |= {SOLVED: solved[0]["step"], SOLVED_SECONDS: solved[0]["seconds"]}
    if run.steady is not None:
        values[STEADY] = run.steady
    if run.log:
        values[SPEED] = median(line["steps_per_second"] for line in run.log)
        values[SECONDS] = run.log[-1]["seconds"]
    return values


def _standing(run: TrainingRun) -> str:
    right = ""
    if run.measured:
        last = run.measured[-1]["measured"]
        right = (
            f", {markdown.fixed(100 * last['token'])} % of answers and "
            f"{markdown.fixed(100 * last['sequence'])} % of sequences right when last measured"
        )
    took = f" after {markdown.significant(run.log[-1]['seconds'] / 60)} minutes" if run.log else ""
    return (
        f"{run.name}: not finished, step {run.step:,} of {run.setting['steps']:,}{took}{right} "
        f"({kind(run.setting)} on {run.task} at length {run.length:,}, seed {run.seed}; {how(run.setting)})."
    )


def kind(setting: Mapping[str, Any]) -> str:
    """What mixes in a model: its name where no record has one."""
    return setting["model"].get("mixer", "mamba")
