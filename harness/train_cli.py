"""`mambalab train`: a recipe, changed by options, trained in a folder of its own."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import click

from .errors import interruption_told
from .invocation import command_line
from .options import BACKEND, DEVICE, SECONDS, STOPS, TEXT


class _NamesLast(click.Command):
    """A command whose help ends with the names that it takes, which are read only when they are asked for."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from ..models.synthetic import SYNTHETIC
        from ..tasks.recipes import RECIPES

        for title, names in (("TASK", RECIPES), ("--model", SYNTHETIC)):
            with formatter.section(title):
                # Click would break names at their hyphens.
                width = formatter.width - formatter.current_indent
                for line in textwrap.wrap(", ".join(names), width, break_on_hyphens=False):
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


@click.command(cls=_NamesLast)
@click.argument("task", metavar="TASK")
@click.option(
    "--model",
    "model_name",
    help="A row of the paper's tables 1 and 2, by a name listed below; default: a Mamba.",
)
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting; may be repeated.")
@click.option("--seed", type=click.IntRange(0, 2**62 - 1), help="Of weights and data; default: 0.")
@DEVICE
@BACKEND
@click.option(
    "--seconds",
    type=SECONDS,
    help=f"Stop after so long, with a checkpoint; the same command goes on. {STOPS}",
)
@click.option(
    "--steps-per-graph",
    "unroll",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="On a GPU.",
)
@click.option("--out", type=TEXT, metavar="DIR", help="The run's folder; default: runs/TASK-seed-N.")
def train(
    task: str,
    model_name: str | None,
    assignments: tuple[str, ...],
    seed: int | None,
    device: str | None,
    backend: str | None,
    seconds: float | None,
    unroll: int,
    out: str | None,
) -> None:
    """Train a model on TASK, a recipe, by a name listed below.

    Keys of --set are the recipe's fields: steps, batch_size, task.length, model.d_state, optimiser.learning_rate …
    All numbers of steps are multiples of log_every.

    Shorter rows come first with --set curriculum=1024x16,1024x64: 1024 steps at length 16 (of selective-copying: 16
    places), as many at 64, the others at the task's own; --set curriculum= is none.

    A run that was stopped or killed goes on where its last checkpoint is, and ends with the same weights.

    Exit status: 2 for what is refused, 1 for a loss that became no finite number, which leaves a record.
    """
    from .assignments import split

    values = split(assignments if seed is None else [*assignments, f"seed={seed}"])
    from ..tasks import recipes
    from ..tasks.train import DivergedError
    from ..tasks.train import train as train_recipe
    from .devices import resolve_device

    recipe = chosen(recipes.recipe(task), model_name, values)
    place = resolve_device(device)
    folder = Path(out or f"runs/{task}-seed-{recipe.seed}")
    try:
        with interruption_told(lambda: _goes_on(folder, recipe.checkpoint_every)):
            result = train_recipe(
                recipe,
                folder,
                device=place,
                backend=backend,
                provenance=origin(recipe, place, backend),
                seconds=seconds,
                unroll=unroll,
                say=lambda line: click.echo(line, err=True),
            )
    except DivergedError as error:
        click.echo(f"mambalab: {error}", err=True)
        sys.exit(1)
    click.echo(f"{folder}: {summary(result)}")


def chosen(recipe: Any, model_name: str | None, values: dict[str, str]) -> Any:
    """The recipe with another model, where one is named, and these settings."""
    from ..tasks.recipes import with_model
    from .assignments import assigned

    if model_name is not None:
        recipe = with_model(recipe, model_name)
    return assigned(recipe, values)


def _goes_on(folder: Path, checkpoint_every: int) -> str:
    from ..tasks.run_files import last_step

    if step := last_step(folder):
        return f"the same command goes on after step {step:,}, the last checkpoint in {folder}"
    return (
        f"the same command begins again, for the first checkpoint is that of step {checkpoint_every:,} (--seconds N "
        "stops with one)"
    )


def origin(recipe: Any, device: str, backend: str | None) -> dict[str, Any]:
    """What the records of training this recipe on this device say of their origin."""
    from ..ext import backends
    from .provenance import provenance

    name = backends.pick(device, backend, recipe.model.is_complex).name
    return provenance(
        backend=name, kernel=backends.kernel_digest(name), device=device, dtype="float32", command=command_line()
    )


def summary(result: Any) -> str:
    """How a run stands, in one line."""
    told = f"{'done' if result.done else 'stopped'} after {result.step:,} steps"
    if (found := result.accuracy) is None:
        told += ", not measured yet"
    else:
        right = round(found.sequence * found.sequences)
        told += f"; {found.token:.2%} of answers right, {right} of {found.sequences} sequences without an error"
    return f"{told}; {result.late}" if result.late else told
