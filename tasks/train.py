"""The trainer: from a recipe to a folder with weights, log and records, through any number of interruptions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..ext import backends
from ..models import build, parameter_count, restore, store
from ..models.building import Model
from ..reports import record
from ..reports.record import Record
from . import memory, outcome, run_files
from .accuracy import Accuracy, measure
from .claim import claim
from .pace import Pace
from .progress import Paced, Say, clock
from .recipes import Recipe, from_json, to_json
from .step import UNROLL, Trainee, first_not_finite, shapes, stepper

# Seconds between two lines of progress; the log has them all.
SAY_EVERY = 1.0
# And where steps are so slow that the log has nothing to say: at first, and from then on.
FIRST_BEAT, BEAT = 2.0, 10.0
# Of the provenance: what may differ from one process of a run to the next.
PIECE = ("version", "digest", "commit", "dirty", "device_name", "versions")


class DivergedError(ValueError):
    """A loss that is no finite number: the run can't go on."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run stands: steps done, whether they are all, and what was measured last (None before the first time).

    late  why it did not stop in time, and what helps; None where it did
    """

    step: int
    done: bool
    accuracy: Accuracy | None
    late: str | None = None


def load(folder: str | Path, *, device: str = "cpu", backend: str | None = None) -> tuple[Recipe, Model]:
    """The recipe and the trained model of a finished run, in eval mode.

    FileNotFoundError where there is none, ValueError for weights that are not those that were measured.
    """
    recipe = from_json(run_files.read_settings(Path(folder))["recipe"])
    model = restore(folder, device=device, backend=backend)
    _check_weights(Path(folder), model)
    return recipe, model


def damage(folder: str | Path) -> str | None:
    """What is missing or torn of the weights and records that a finished run has left; None where all is whole."""
    try:
        record.read(Path(folder) / run_files.RECORDS)
        _check_weights(Path(folder), restore(folder))
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


def _check_weights(folder: Path, model: Model) -> None:
    """ValueError for weights other than those that the records were made with; older records do not say."""
    path = folder / run_files.RECORDS
    stated = {r.provenance["weights"] for r in record.read(path) if "weights" in r.provenance} if path.is_file() else ()
    if stated and stated != {run_files.digest_of(model)}:
        raise ValueError(f"{folder / run_files.MODEL}: damaged: its weights are not those that {path.name} is about")


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    device: str = "cpu",
    backend: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    experiment: str = "training",
    seconds: float | None = None,
    unroll: int = UNROLL,
    say: Say = lambda line: None,
) -> Result:
    """Train, or go on where an earlier process stopped: the weights at the end have the same bits either way.

    seconds     stop, with a checkpoint, at the last line of the log that comes before so long has passed, as far as the
                lines before it tell, but at the first one of this call at the earliest; calling again goes on
    provenance  what the records say of their origin; the backend's name is added

    ValueError for a folder that another process holds, or that has other settings (a longer run at a constant learning
    rate is the one thing that may differ). `DivergedError` names the step and the last checkpoint before it, and leaves
    a record. What is damaged of a finished run is made again from its last checkpoint; without one it is a ValueError.
    """
    folder, place, pace = Path(out), torch.device(device), Pace(recipe, seconds)
    with run_files.held(folder), torch.cuda.device(place) if place.type == "cuda" else nullcontext():
        memory.check(recipe, place)
        name = backends.pick(device, backend, recipe.model.is_complex).name
        settings = {"recipe": to_json(recipe), "device": place.type, "backend": name}
        about = {"model": outcome.model_name(recipe.model), "experiment": experiment}
        is_at_end = claim(folder, recipe, settings, about)
        if is_at_end and _is_whole(folder, say):
            say("done already, and kept as it is")
            return _finished(record.read(folder / run_files.RECORDS))
        with memory.shortage_said(recipe):
            run = _Run(recipe, folder, device=place, backend=backend, unroll=unroll, say=say, pace=pace)
            run.begin(provenance or {})
            origin = {**(provenance or {}), "backend": name, "pieces": run.pieces}
            try:
                result = run.go()
            except DivergedError:
                run.give_up(experiment, origin)
                raise
        if result.done:
            run.finish(result, experiment, origin)
    return result


def _is_whole(folder: Path, say: Say) -> bool:
    """Whether a run at its end may be kept as it is; a ValueError where it may not, and no checkpoint is left."""
    found = damage(folder)
    if found is None:
        return True
    if not run_files.checkpoints(folder):
        raise ValueError(f"{found}; no checkpoint is left to make it again from")
    say(f"going back to the last checkpoint: {found}")
    return False


def _finished(records: list[Record]) -> Result:
    """How a run stands that has these, its log perhaps not."""
    return Result(step=records[0].setting["steps_done"], done=True, accuracy=outcome.accuracy(records))


class _Run:
    """A run at work in its folder, which it holds."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        device: torch.device,
        backend: str | None,
        unroll: int,
        say: Say,
        pace: Pace,
    ) -> None:
        started = time.perf_counter()
        self.recipe, self.folder, self.unroll, self.say, self.pace = recipe, folder, unroll, say, pace
        self.told_late = False
        self.trainee = Trainee(recipe, build(recipe.model, seed=recipe.seed, backend=backend), device)
        self.step, self.log = self._resume()
        self.say_paced = Paced(say, ago=BEAT - FIRST_BEAT)
        # As if one process had done all that is kept, without a pause.
        self.started = started - (self.log[-1]["seconds"] if self.log else 0.0)

    def _resume(self) -> tuple[int, list[dict[str, Any]]]:
        """Take the latest checkpoint that is whole and that the log leads up to: its step, and the log until then."""
        errors: list[ValueError] = []
        for path in run_files.checkpoints(self.folder):
            try:
                tensors = run_files.read_checkpoint(path)
            except ValueError as error:
                errors.append(self._left_aside(error))
                continue
            if shapes(tensors) != shapes(self.trainee.tensors()):
                raise ValueError(f"{path}: its tensors are not those of this run's model; was it made by other code?")
            try:
                log = run_files.rewind_log(self.folder, int(tensors["step"]))
            except ValueError as error:
                errors.append(self._left_aside(error))
                continue
            self.trainee.restore(tensors)
            step = int(tensors["step"])
            self.say(f"going on after step {step:,}")
            return step, log
        if errors:
            raise ValueError(f"{errors[0]}; no checkpoint here can be gone on from: remove them to begin again")
        return 0, run_files.rewind_log(self.folder, 0)

    def _left_aside(self, error: ValueError) -> ValueError:
        self.say(f"left aside: {error}")
        return error

    def begin(self, provenance: Mapping[str, Any]) -> None:
        """Note what code and machine go on from here; those of which nothing is kept are forgotten."""
        kept = [piece for piece in run_files.read_pieces(self.folder) if piece["after_step"] < self.step]
        mine = {"after_step": self.step} | {name: provenance[name] for name in PIECE if name in provenance}
        self.pieces = [*kept, mine]
        run_files.write_pieces(self.folder, self.pieces)

    def go(self) -> Result:
        """Train until the recipe's end, until it is solved, or until the time is up."""
        while not self._is_done():
            task, until = self.recipe.stage(self.step)
            advance = stepper(self.trainee, task, self.unroll, self._tick)
            while self.step < until and not self._is_done():
                self._interval(advance)
                why = None if self._is_done() else self.pace.out_of_time(self.step)
                if self.step % self.recipe.checkpoint_every == 0 or self._is_done() or why:
                    run_files.write_checkpoint(self.folder, self.step, self.trainee.tensors())
                if why:
                    self.say(f"stopped after step {self.step:,} of {self.recipe.steps:,}: {why}")
                    late = self.pace.first_line_late(is_kept=True)
                    return Result(step=self.step, done=False, accuracy=self._last_accuracy(), late=late)
        return Result(step=self.step, done=True, accuracy=self._last_accuracy())

    def _is_done(self) -> bool:
        if self.step >= self.recipe.steps:
            return True
        needed = self.recipe.solved_after
        last = self._measured()[-needed:] if needed else []
        return bool(last) and len(last) == needed and all(line["sequence"] == 1 for line in last)

    def _measured(self) -> list[dict[str, Any]]:
        return [line["measured"] for line in self.log if "measured" in line]

    def _last_accuracy(self) -> Accuracy | None:
        measured = self._measured()
        return Accuracy(**measured[-1]) if measured else None

    def _interval(self, advance: Callable[[int], None]) -> None:
        """`log_every` steps, and their line in the log."""
        started = time.perf_counter()
        task, _ = self.recipe.stage(self.step)
        self.pace.begin(self.step)
        advance(self.recipe.log_every)
        # Reading the losses waits for the device.
        losses, right = self.trainee.seen.tolist()
        took = time.perf_counter() - started
        self.pace.count(self.recipe.log_every)
        if (bad := first_not_finite(losses)) is not None:
            raise DivergedError(self._diverged(self.step + bad + 1, losses[bad]))
        self.step += self.recipe.log_every
        line: dict[str, Any] = {
            "step": self.step,
            "length": task.length,
            "loss": sum(losses) / len(losses),
            "accuracy": sum(right) / len(right),
            "steps_per_second": self.recipe.log_every / took,
        }
        if self.recipe.is_measured(self.step):
            line["measured"] = asdict(self._measure())
        line["seconds"] = round(time.perf_counter() - self.started, 3)
        self.log.append(line)
        run_files.append_log(self.folder, line)
        self.say_paced(self._progress(line), after=0.0 if "measured" in line else SAY_EVERY)

    def _tick(self, done: int) -> None:
        """Say how an interval stands of which so many steps are done: on a slow device it takes minutes."""
        self.pace.count(done)
        step, (task, _) = self.step + done, self.recipe.stage(self.step)
        rate = 1 / self.pace.step_seconds()
        if not self.told_late and (late := self.pace.first_line_late(is_kept=self.step > 0)):
            self.told_late = True
            self.say(late)
        self.say_paced(f"{self._at(step, task.length)}  {rate:.4g} steps/s  {self._left(step)}", after=BEAT)

    def _at(self, step: int, length: int) -> str:
        return f"step {step:,}/{self.recipe.steps:,}  length {length:,}"

    def _left(self, step: int) -> str:
        return f"{clock(self.pace.left(step))} left"

    def _measure(self) -> Accuracy:
        started = time.perf_counter()
        self.trainee.model.eval()
        found = measure(
            self.trainee.model,
            self.recipe.task,
            seed=self.recipe.evaluation_seed,
            sequences=self.recipe.sequences,
            device=self.trainee.device,
        )
        self.trainee.model.train()
        self.pace.measuring = time.perf_counter() - started
        return found

    def _progress(self, line: dict[str, Any]) -> str:
        rate = line["steps_per_second"]
        tokens = rate * self.recipe.batch_size * line["length"]
        text = (
            f"{self._at(self.step, line['length'])}  loss {line['loss']:.4f}  accuracy {line['accuracy']:.1%}  "
            f"{rate:.4g} steps/s  {tokens:.3g} tokens/s  {self._left(self.step)}"
        )
        if measured := line.get("measured"):
            text += (
                f"  | of {measured['sequences']} sequences of length {self.recipe.task.length:,}: "
                f"tokens {measured['token']:.2%}, sequences {measured['sequence']:.2%}"
            )
        return text

    def _diverged(self, step: int, loss: float) -> str:
        last = run_files.checkpoints(self.folder)
        kept = f"the last checkpoint is {last[0]}" if last else "there is no checkpoint before it"
        return f"{self.folder}: the loss of step {step} is {loss}; {kept}"

    def give_up(self, experiment: str, provenance: Mapping[str, Any]) -> None:
        """Write the record of a run that diverged."""
        made = outcome.diverged(self.recipe, self.step, experiment=experiment, provenance=provenance)
        run_files.write_diverged(self.folder, made)

    def finish(self, result: Result, experiment: str, provenance: Mapping[str, Any]) -> None:
        """Write the weights and the records."""
        assert result.accuracy is not None, "the last line of the log is always measured"
        store(self.trainee.model, self.folder)
        made = outcome.records(
            self.recipe,
            self.log,
            result.accuracy,
            parameters=parameter_count(self.trainee.model),
            experiment=experiment,
            provenance={**provenance, "weights": run_files.digest_of(self.trainee.model)},
        )
        run_files.write_records(self.folder, made)
