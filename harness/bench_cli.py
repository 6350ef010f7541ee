"""`mambalab bench`: the subcommands that measure speed, thin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .invocation import command_line, go_offline
from .options import DEVICE

PROFILED = ("training", "forward")


@click.group()
def bench() -> None:
    """Speed beside the peers: correctness first, then all in one run, with records and a table."""


@bench.command("scan")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--backend", default="", help="Ours by name, such as numba-cuda; default: the one the device gets.")
@click.option(
    "--shape",
    multiple=True,
    metavar="B,D,L,N[,DTYPE]",
    help="May be repeated; default: three shapes on the CPU, seven on a GPU.",
)
@click.option("--long", "long_", is_flag=True, help="Also 1,128,1048576,16.")
@click.option("--dtype", default="float32", show_default=True, help="Of shapes that name none; or float64, bfloat16…")
@click.option("--inputs", default="normal", show_default=True, help="normal; released: Δ and A as the models begin.")
@click.option("--backward", is_flag=True, help="Also forward + backward.")
@click.option("--peers", is_flag=True, help="Also every installed peer; the table says why one is left out.")
@click.option("--repeats", type=int, help="Rounds of measurement; default: 3 or more, until the medians settle.")
@click.option("--peer-seconds", default=20.0, show_default=True, help="Leave out a peer whose one call takes longer.")
@click.option("--out", default="runs/bench-scan", show_default=True, metavar="DIR")
def bench_scan(device: str, shape: tuple[str, ...], long_: bool, peer_seconds: float, out: str, **options: Any) -> None:
    """The selective scan: ours against float64, then ours, the peers and the floor in turn."""
    from . import bench, bench_scan
    from .store import check_folder

    shapes = tuple(bench_scan.Shape.parse(text) for text in shape) or bench_scan.DEFAULTS[device]
    shapes += (bench_scan.LONG,) * long_
    settings = bench_scan.Settings(shapes=shapes, device=device, call_seconds=peer_seconds, **options)
    check_folder(out)
    records = bench_scan.run(settings, command=command_line(), say=lambda line: click.echo(line, err=True))
    place = "a GPU" if device == "cuda" else "the CPU"
    click.echo(bench.write(Path(out), f"The selective scan on {place}", records))


@bench.command("zero-shot")
@click.option("--device", type=click.Choice(["cpu"]), default="cpu", show_default=True)
@click.option("--checkpoint", default="", help="A Mamba checkpoint; default: a fresh one, 4 layers, d_model 256.")
@click.option("--tasks", default="", help="Comma-separated names among the six; default: all.")
@click.option("--limit", type=int, help="Only the first N documents of each task.")
@click.option("--data", metavar="DIR", help="Read data sets offline from DIR, laid out like the hub.")
@click.option("--tokenizer", metavar="PATH", help="A tokenizer.json, a directory or a hub id.")
@click.option("--peers", is_flag=True, help="Also time lm-eval's own hf adapter on transformers.")
@click.option("--repeats", default=2, show_default=True, help="Runs of each side, at least 1.")
@click.option("--out", default="runs/bench-zero-shot", show_default=True, metavar="DIR")
def bench_zero_shot(checkpoint: str, tasks: str, peers: bool, repeats: int, out: str, **options: Any) -> None:
    """Zero-shot evaluation: our adapter beside lm-eval's own, on the same weights and documents."""
    go_offline(hub=False, data=options["data"] is not None)
    from . import bench, bench_zero_shot
    from .store import check_folder
    from .zero_shot import TASKS, Settings

    names = tuple(t.strip() for t in tasks.split(",") if t.strip()) or TASKS
    settings = Settings(model=checkpoint, tasks=names, **options)
    check_folder(out)
    records = bench_zero_shot.run(
        settings, peers=peers, repeats=repeats, command=command_line(), say=lambda line: click.echo(line, err=True)
    )
    click.echo(bench.write(Path(out), f"Zero-shot evaluation on the {options['device'].upper()}", records))


@bench.command("host")
@click.option("--tasks", default="arc_easy", show_default=True, help="Comma-separated names among the six.")
@click.option("--limit", type=int, help="Only the first N documents of each task.")
@click.option("--data", metavar="DIR", help="Read data sets offline from DIR, laid out like the hub.")
@click.option("--checkpoint", default="", help="A Mamba checkpoint; default: a fresh one, 4 layers, d_model 256.")
@click.option("--tokenizer", metavar="PATH", help="A tokenizer.json, a directory or a hub id.")
@click.option("--split", default=100, show_default=True, metavar="N", help="Documents scored with the model; 0: none.")
@click.option("--repeats", default=3, show_default=True, help="Runs of each side, at least 2.")
@click.option("--out", default="runs/bench-host", show_default=True, metavar="DIR")
def bench_host(checkpoint: str, tasks: str, split: int, repeats: int, out: str, **options: Any) -> None:
    """lm-eval's own part of an evaluation, with a model that answers at once: as it is, and as it runs here."""
    go_offline(hub=False, data=options["data"] is not None)
    from . import bench, bench_host
    from .store import check_folder
    from .zero_shot import Settings

    names = tuple(t.strip() for t in tasks.split(",") if t.strip())
    settings = Settings(model=checkpoint, tasks=names, dtype="float32", **options)
    check_folder(out)
    records = bench_host.run(
        settings,
        repeats=repeats,
        split=split,
        command=command_line(),
        say=lambda line: click.echo(line, err=True),
    )
    click.echo(bench.write(Path(out), "lm-eval's own part of an evaluation", records))


@bench.command("model")
@click.option("--device", type=click.Choice(["cpu"]), default="cpu", show_default=True)
@click.option("--case", "cases", multiple=True, metavar="CASE", help="training, forward or long; may be repeated.")
@click.option("--backward", is_flag=True, help="Also forward + backward of the 130m shape.")
@click.option("--length", default=2**20, show_default=True, help="Tokens of the long case.")
@click.option("--peers", is_flag=True, help="Also every installed peer; the table says why one is left out.")
@click.option("--repeats", type=int, help="Rounds of measurement; default: 3 or more, until the medians settle.")
@click.option("--peer-seconds", default=60.0, show_default=True, help="Leave out a peer whose one call takes longer.")
@click.option("--out", default="runs/bench-model", show_default=True, metavar="DIR")
def bench_model(device: str, cases: tuple[str, ...], peer_seconds: float, out: str, **options: Any) -> None:
    """Whole models: a small one's training step, a pass of the 130m shape, and a million tokens in chunks."""
    go_offline(hub=True, data=False)
    from . import bench, bench_model
    from .store import check_folder

    settings = bench_model.Settings(cases=cases or bench_model.CASES, call_seconds=peer_seconds, **options)
    check_folder(out)
    records = bench_model.run(settings, command=command_line(), say=lambda line: click.echo(line, err=True))
    click.echo(bench.write(Path(out), f"Whole models on the {device.upper()}", records))


@bench.command("train")
@click.argument("recipes", nargs=-1, metavar="[RECIPE]...")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting of each; may be repeated.")
@DEVICE
@click.option("--peers", is_flag=True, help="Also mamba_ssm's own model; the table says why where it is left out.")
@click.option("--at-once", metavar="N,N", help="Also so many trainings at once, such as 1,4,10: the steps of all.")
@click.option("--repeats", type=int, help="Rounds of measurement; default: 3 or more, until the medians settle.")
@click.option("--out", default="runs/bench-train", show_default=True, metavar="DIR")
def bench_train(
    recipes: tuple[str, ...],
    assignments: tuple[str, ...],
    device: str | None,
    at_once: str | None,
    out: str,
    **options: Any,
) -> None:
    """Steps a second of RECIPEs as `train` takes them; default: induction-heads and selective-copying."""
    from ..tasks.recipes import recipe
    from . import bench, bench_train, bench_train_shared
    from .assignments import assigned, split
    from .devices import resolve_device
    from .store import check_folder

    values = split(assignments)
    chosen = tuple(
        (name, assigned(recipe(name), values)) for name in recipes or ("induction-heads", "selective-copying")
    )
    settings = bench_train.Settings(
        recipes=chosen,
        device=resolve_device(device),
        at_once=() if at_once is None else bench_train_shared.numbers(at_once),
        **options,
    )
    check_folder(out)
    records = bench_train.run(settings, command=command_line(), say=lambda line: click.echo(line, err=True))
    click.echo(bench.write(Path(out), "Training steps", records))


@bench.command("profile")
@click.option("--case", "cases", multiple=True, type=click.Choice(PROFILED), help="May be repeated; default: both.")
@click.option("--backward", is_flag=True, help="Also forward + backward of the 130m shape.")
@click.option("--rounds", type=click.IntRange(3), default=5, show_default=True, help="Calls that are averaged.")
def bench_profile(cases: tuple[str, ...], backward: bool, rounds: int) -> None:
    """Where our own time goes in what `bench model` times, part by part; nothing is recorded."""
    from . import bench_model, bench_profile

    settings = bench_model.Settings(cases=cases or PROFILED, backward=backward)
    for workload in settings.workloads():
        click.echo(bench_profile.run(workload, rounds=rounds).markdown())
