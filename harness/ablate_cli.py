"""`mambalab ablate`: every cell of a grid trained in a folder of its own, for several seeds."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import click

from .errors import interruption_told
from .options import BACKEND, SECONDS, STOPS, TEXT

if TYPE_CHECKING:
    from .ablate import Job


@click.command()
@click.argument("grid_name", metavar="GRID")
@click.option("--task", "task_names", multiple=True, metavar="TASK", help="One of its tasks; default: all of them.")
@click.option("--only", multiple=True, metavar="CELL", help="One of its cells; may be repeated.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Comma-separated; of weights and data.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting of all cells.")
@click.option(
    "--device", help="cpu, cuda or cuda:N, or several such as cuda:0,cuda:1; default: cuda where there is one."
)
@BACKEND
@click.option(
    "--seconds",
    type=SECONDS,
    help=f"Stop after so long, with checkpoints; the same command goes on. {STOPS}",
)
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Cells trained at once.")
@click.option("--out", type=TEXT, metavar="DIR", help="Its folder; default: runs/ablate-GRID.")
def ablate(
    grid_name: str,
    task_names: tuple[str, ...],
    only: tuple[str, ...],
    seeds: str,
    assignments: tuple[str, ...],
    device: str | None,
    backend: str | None,
    seconds: float | None,
    jobs: int,
    out: str | None,
) -> None:
    """Train the cells of GRID: selectivity, state-size, delta-rank, a-init, architecture or recall.

    Each has a run of its own, DIR/TASK/CELL/seed-N; those that are done are left as they are, those that were stopped
    or killed go on. Keys of --set are those of `mambalab train`. `mambalab report DIR` makes the table.

    Exit status: 2 for what is refused before anything is trained, 1 when a cell failed or diverged, which stops no
    other.
    """
    from .assignments import assigned, split

    begun, values = time.time(), split(assignments)
    from ..tasks import ablations
    from .ablate import Job, check_kept, claim
    from .devices import resolve_devices

    grid = ablations.grid(grid_name)
    names = ablations.tasks(grid, task_names)
    bases = [assigned(ablations.BASES[name], values) for name in names]
    cells = ablations.cells(grid, bases, _seeds(seeds), only)
    check_kept(values, bases, cells)
    places, folder = resolve_devices(device), Path(out or f"runs/ablate-{grid.name}")
    for base in bases:
        claim(folder / base.task.name, grid.name, base, places[0], backend)
    until = None if seconds is None else begun + seconds
    all_jobs = [Job(cell=c, folder=folder / c.folder, backend=backend, until=until) for c in cells]
    done, failed = _train_all(all_jobs, jobs, places)
    click.echo(f"{folder}: {done} of {len(all_jobs)} cells done" + (f", {failed} failed" if failed else ""))
    if done:
        click.echo(f"the table: mambalab report {shlex.quote(str(folder))}", err=True)
    if failed:
        sys.exit(1)


def _train_all(jobs: Sequence[Job], at_once: int, places: Sequence[str]) -> tuple[int, int]:
    """Train what is not done yet of an ablation and tell how it goes: how many cells are done then, and failed."""
    from .ablate import run

    waiting = [job for job in jobs if not job.is_done]
    done, failed, took = len(jobs) - len(waiting), 0, list[float]()
    click.echo(f"{done} of {len(jobs)} cells done already", err=True)
    with interruption_told(lambda: f"{done} of {len(jobs)} cells are done; {_goes_on(waiting)}"):
        for outcome in run(waiting, at_once, places):
            done, failed = done + (outcome.state == "done"), failed + (outcome.state == "failed")
            told = f"failed: {outcome.text}" if outcome.state == "failed" else outcome.text
            if outcome.state == "done":
                took.append(outcome.seconds)
            left = _left(took, len(jobs) - done - failed, at_once)
            click.echo(f"[{done}/{len(jobs)}] {outcome.cell}: {told} ({outcome.seconds:.0f} s{left})", err=True)
    return done, failed


def _left(took: Sequence[float], cells: int, at_once: int) -> str:
    """About how long so many cells will take, told by those that are done."""
    from ..tasks.progress import clock

    return f"; about {clock(fmean(took) * cells / at_once)} left" if took and cells else ""


def _goes_on(waiting: Sequence[Job]) -> str:
    """What the next command begins with."""
    from ..tasks.run_files import last_step

    begun = [
        f"{job.cell} after step {step:,}" for job in waiting if (step := last_step(job.folder)) and not job.is_done
    ]
    if not begun:
        return "the same command begins with the next"
    return f"the same command goes on with {', '.join(begun)}"


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--seeds takes integers such as 0,1,2, not {text!r}") from None
