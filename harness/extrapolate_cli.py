"""`mambalab extrapolate`: the accuracy of a finished training run at other lengths, as a table and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import click

from .options import BACKEND, DEVICE, TEXT


@click.command()
@click.argument("run", metavar="RUN", type=TEXT)
@click.option("--max-length", default="2^20", show_default=True, help="The longest; 2^24 and 16777216 are the same.")
@click.option("--min-length", default="2^6", show_default=True, help="The shortest; each next one is twice as long.")
@click.option("--sequences", type=click.IntRange(1, 2**24), default=256, show_default=True, help="Of each length.")
@click.option("--chunk", default="2^13", show_default=True, help="Tokens of a sequence in one forward pass.")
@DEVICE
@BACKEND
@click.option("--out", type=TEXT, metavar="DIR", help="Where records and plots go; default: RUN/extrapolation.")
def extrapolate(
    run: str,
    max_length: str,
    min_length: str,
    sequences: int,
    chunk: str,
    device: str | None,
    backend: str | None,
    out: str | None,
) -> None:
    """Measure a finished training RUN at lengths that it was not trained at, and draw accuracy against length.

    Models with a state read sequences in chunks, in memory that does not grow with the length; others read them whole,
    as far as memory goes. A length that is measured is kept: the same command, after a kill, goes on with the next one.
    """
    from .assignments import read

    low, high = read(min_length, int, "--min-length"), read(max_length, int, "--max-length")
    width = read(chunk, int, "--chunk")
    if width < 1:
        raise ValueError(f"--chunk must be at least 1, not {width}")
    from ..tasks.extrapolate import doublings

    plan = dict.fromkeys(doublings(low, high), sequences)
    folder = Path(out or Path(run) / "extrapolation")
    click.echo(measured(Path(run), folder, plan, width, device, backend, lambda line: click.echo(line, err=True)))
    click.echo(f"written to {folder}: records.jsonl, table.md, and the plots as PNG and SVG", err=True)


def measured(
    run: Path,
    out: Path,
    plan: Mapping[int, int],
    chunk: int,
    device: str | None,
    backend: str | None,
    say: Callable[[str], object],
) -> str:
    """Measure a run at each length of the plan (length -> sequences); return the tables of these.

    Tables and plots in `out` are of all lengths whose records are there.
    """
    from ..reports import extrapolation, figures, jsonl, record
    from ..tasks import extrapolate as measure
    from .devices import resolve_device
    from .train_cli import origin

    recipe = measure.finished(run)
    place = resolve_device(device)
    asked = measure.extrapolate(
        run,
        out,
        plan,
        chunk=chunk,
        device=place,
        backend=backend,
        provenance=origin(recipe, place, backend),
        say=say,
    )
    # An earlier call may have measured other lengths.
    everything = record.read(out / "records.jsonl")
    jsonl.write_whole(out / "table.md", extrapolation.report(everything))
    figures.draw(everything, out)
    return extrapolation.report(asked)
