"""The `mambalab` command: thin subcommands; a user's mistake is one line on stderr and exit status 2."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from .ablate_cli import ablate
from .allocator import keep_freed_memory
from .bench_cli import bench
from .errors import INTERRUPTED, one_line
from .extrapolate_cli import extrapolate
from .invocation import command_line, go_offline
from .options import TEXT, eval_options, split_names
from .train_cli import train

Layout = Literal["mamba_ssm", "hf"]
# What a converted checkpoint takes along.
BESIDE_WEIGHTS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "NOTE.txt")


def _print_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    from .provenance import own_version

    if asked:
        click.echo(f"mambalab {own_version()}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version)
def cli() -> None:
    """Evaluate Mamba checkpoints zero-shot beside Pythia, on any machine, and get tables made from records."""
    if click.get_current_context().invoked_subcommand != "bench":
        # Peers are timed as they are shipped, in a process whose allocator nobody has touched, and we beside them.
        keep_freed_memory()


cli.add_command(ablate)
cli.add_command(bench)
cli.add_command(extrapolate)
cli.add_command(train)


@cli.command("eval")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", type=TEXT)
@eval_options
def eval_command(models: tuple[str, ...], tasks: str | None, out: str, **options: Any) -> None:
    """Evaluate MODELs (a directory, a hub id, or a name of `mambalab models`) and print the table."""
    go_offline(hub=options["offline"], data=options["offline"] or options["data"] is not None)
    from .zero_shot import TASKS, Settings, check_models, evaluate

    chosen = [Settings(model=model, tasks=split_names(tasks) or TASKS, **options) for model in models]
    check_models(chosen)
    runs = [evaluate(settings, Path(out), command=command_line()) for settings in chosen]
    _print_report(runs, None, ())
    for run in runs:
        click.echo(f"records: {run}", err=True)


@cli.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=TEXT)
@click.option(
    "--pair",
    nargs=2,
    multiple=True,
    metavar="A B",
    help="Compare two models on the same documents; default: both of two.",
)
@click.option("--out", type=TEXT, metavar="DIR", help="Also write report.md, report.csv and paired.csv there.")
@click.option(
    "--figures", type=TEXT, metavar="DIR", help="Also draw trainings by step and accuracies by length, as PNG and SVG."
)
def report(runs: tuple[str, ...], pair: tuple[tuple[str, str], ...], out: str | None, figures: str | None) -> None:
    """The tables of RUNs beside the published numbers: zero-shot, Tables 1 and 2, ablations, benchmarks.

    A RUN is a run directory of ours, a result file or folder of lm-eval's, or a folder above such.
    """
    paths = [Path(run) for run in runs]
    _print_report(paths, out, pair)
    if figures is not None:
        from ..reports.figures import draw_runs

        say = partial(click.echo, err=True)
        for path in draw_runs(paths, Path(figures), say):
            say(f"figure: {path}")


def _print_report(runs: Sequence[Path], out: str | None, pairs: Sequence[tuple[str, str]]) -> None:
    from ..reports.tables import report as make_report

    made = make_report(runs, pairs=pairs)
    click.echo(made.markdown)
    if out is not None:
        made.write(out)


@cli.command()
def models() -> None:
    """The models known by name, with their shapes: checkpoints, and the rows of the synthetic tasks' tables."""
    from ..models import build, parameter_count
    from ..models.registry import SPECS
    from ..models.synthetic import SYNTHETIC

    click.echo(f"{'name':<20} {'parameters':>14}  {'n_layer':>7} {'d_model':>7}  hub id")
    for spec in SPECS.values():
        shape = f"{spec.config.n_layer:>7} {spec.config.d_model:>7}"
        click.echo(f"{spec.name:<20} {spec.n_parameters:>14,}  {shape}  {spec.hub}")
    click.echo("\nFor `train --model`, rows of the paper's tables 1 and 2:\n")
    for row in SYNTHETIC.values():
        count, shape = parameter_count(build(row.config, seed=None)), f"{row.config.n_layer:>7} {row.config.d_model:>7}"
        told = f"{', '.join(row.row.values())}, table {row.table[-1]}"
        paper = f" (the paper: {row.params})" if row.params else ""
        click.echo(f"{row.name:<20} {count:>14,}  {shape}  {'. '.join(filter(None, [told + paper, row.note]))}")


@cli.command()
@click.argument("directory", type=TEXT)
@click.option("--tasks", help="Comma-separated names among the six; default: all.")
def fetch(directory: str, tasks: str | None) -> None:
    """Fill DIRECTORY with the six tasks' data sets from the hub, and write its SHA-256 manifest."""
    from .data import fetch as fetch_data

    for line in fetch_data(Path(directory), split_names(tasks)):
        click.echo(line)


@cli.command()
@click.option("--hub", is_flag=True, help="Also try to reach the hub.")
def doctor(hub: bool) -> None:
    """What works here, what does not, and why."""
    from .doctor import diagnose, render

    findings = diagnose(hub=hub)
    click.echo(render(findings))
    if any(finding.state == "problem" for finding in findings):
        sys.exit(1)


@cli.command()
@click.option("--arch", default="sm_80,sm_90,sm_100", show_default=True, help="Comma-separated architectures of GPUs.")
@click.option("--out", type=TEXT, metavar="DIR", help="Default: the cache; elsewhere, MAMBALAB_CACHE=DIR uses it.")
def build(arch: str, out: str | None) -> None:
    """Compile the GPU kernels now, for any GPU, so that their first use needs no time and no compiler."""
    from .build import build_kernels

    for line in build_kernels(arch, out):
        click.echo(line)


@cli.command()
@click.option("--out", default="runs/demo", show_default=True, metavar="DIR", help="Where everything goes.")
def demo(out: str) -> None:
    """The main jobs in miniature, offline: six small tasks zero-shot, and a trained Mamba at up to 2^20 tokens."""
    go_offline(hub=True, data=True)
    from .demo import extrapolate_checkpoint, run_demo

    click.echo(run_demo(Path(out), command_line()))
    click.echo(f"written to {out}/report.md and {out}/report.csv", err=True)
    click.echo(extrapolate_checkpoint(Path(out) / "extrapolation", lambda line: click.echo(line, err=True)))
    click.echo(f"written to {out}/extrapolation/table.md; the plot is accuracy-by-length.png beside it", err=True)


@cli.command()
@click.argument("checkpoint", type=TEXT)
@eval_options
@click.option("--control", is_flag=True, help="Also score with the carried state dropped: that must disagree.")
def parity(checkpoint: str, tasks: str | None, out: str, control: bool, **options: Any) -> None:
    """Hold our scores of a Mamba CHECKPOINT against lm-eval's `hf` adapter on transformers, request by request."""
    go_offline(hub=options["offline"], data=options["offline"] or options["data"] is not None)
    from ..reports import record
    from .parity import CONTROL, run_parity
    from .zero_shot import TASKS, Settings

    settings = Settings(model=checkpoint, tasks=split_names(tasks) or TASKS, **options)
    records = run_parity(settings, Path(out), control=control, command=command_line(), report=click.echo)
    record.write(Path(out) / "records.jsonl", records)
    failed = {r.setting["control"] for r in records if r.metric in ("outside", "differing documents") and r.value}
    if control and CONTROL not in failed:
        click.echo("the control agrees too: these tasks carry no state, or the comparison can't see it", err=True)
    if None in failed or (control and CONTROL not in failed):
        sys.exit(1)


@cli.command("lm-eval", context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lm_eval(arguments: tuple[str, ...]) -> None:
    """lm-eval's own command line with `--model mambalab` registered: all ARGUMENTS go to it."""
    from lm_eval.__main__ import cli_evaluate

    from . import lm  # noqa: F401  (registers the adapter)
    from .lm_eval_host import done_once

    sys.argv = ["lm-eval", *arguments]
    with done_once():
        cli_evaluate()


@cli.command()
@click.argument("source", type=TEXT)
@click.argument("destination", type=TEXT)
@click.option("--layout", type=click.Choice(["mamba_ssm", "hf"]), required=True, help="The layout to write.")
def convert(source: str, destination: str, layout: Layout) -> None:
    """Rewrite a Mamba checkpoint (recognised by content) in the chosen layout, in float32."""
    from ..models import checkpoint
    from .store import folder, write_text

    with folder(destination, new=True):
        found = checkpoint.find(source)
        checkpoint.save(checkpoint.load(found), destination, layout=layout)
        for name in BESIDE_WEIGHTS:
            if (found / name).is_file():
                write_text(Path(destination) / name, (found / name).read_text(encoding="utf-8"))
    click.echo(f"wrote {destination} in the {layout} layout")


@cli.command()
@click.argument("destination", type=TEXT)
@click.option("--like", help="The shape of a Mamba of `mambalab models`; the options below override it.")
@click.option("--d-model", type=int)
@click.option("--n-layer", type=int)
@click.option("--vocab-size", type=int, help="Default: 50277, the GPT-NeoX-20B tokenizer's.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--layout", type=click.Choice(["mamba_ssm", "hf"]), default="mamba_ssm", show_default=True)
def init(destination: str, like: str | None, seed: int, layout: Layout, **shape: int | None) -> None:
    """Write an untrained Mamba, initialised as the original code does, as a checkpoint in DESTINATION."""
    from dataclasses import replace

    from ..models import Mamba, checkpoint
    from ..models.registry import MambaConfig, spec
    from .provenance import machine
    from .store import folder, write_text

    given = {name: value for name, value in shape.items() if value is not None}
    if like is None and not {"d_model", "n_layer"} <= given.keys():
        raise ValueError("name a shape: --like NAME, or --d-model and --n-layer")
    config = spec(like).config if like else MambaConfig(d_model=1, n_layer=1, vocab_size=50277)
    if not isinstance(config, MambaConfig):
        raise ValueError(f"{like} is no Mamba")
    config = replace(config, **given)
    memory = machine()["memory_gib"]
    if memory and config.n_parameters * 4 > memory * 2**30:
        raise ValueError(f"no memory for {config.n_parameters:,} parameters: here are {memory} GiB")
    with folder(destination, new=True):
        try:
            model = Mamba(config, seed=seed)
        except RuntimeError as error:
            raise ValueError(f"no memory for {config.n_parameters:,} parameters: {one_line(error)}") from error
        checkpoint.save(model, destination, layout=layout)
        write_text(Path(destination) / "NOTE.txt", f"random weights, drawn from seed {seed} and never trained\n")
    click.echo(f"wrote {destination}: {config.n_parameters:,} parameters")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. ValueError, OSError and a kernel that can't run are the user's to mend: one line, status 2.

    MAMBALAB_TRACEBACK=1 shows the traceback instead.
    """
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("mambalab").setLevel(logging.INFO)
    for name in ("lm_eval", "huggingface_hub", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        cli.main(args=given or ["--help"], prog_name="mambalab", standalone_mode=False)
    except click.exceptions.Abort:
        print("mambalab: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        _fail(error.format_message())
    except (ValueError, OSError) as error:
        if os.environ.get("MAMBALAB_TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.strerror is not None:
            # A write that fails does not say where; our own files do.
            _fail(f"{error.filename or 'writing to the output'}: {error.strerror}")
        _fail(str(error))
    except RuntimeError as error:
        nvrtc = sys.modules.get("mambalab.ext.nvrtc")
        if nvrtc is None or not isinstance(error, nvrtc.KernelError) or os.environ.get("MAMBALAB_TRACEBACK"):
            raise
        _fail(str(error).partition("\n")[0])


def _fail(message: str, limit: int = 1000) -> None:
    line = " ".join(message.split())
    if len(line) > limit:
        # The reason may stand at either end.
        line = f"{line[: limit // 2]} … {line[-limit // 2 :]}"
    # Where even this can't be written, the status still says it.
    with contextlib.suppress(OSError):
        print(f"mambalab: {line}", file=sys.stderr)
    sys.exit(2)
