"""Options that several commands share, and what they may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Option = Callable[[Any], Any]


class _Text(click.ParamType):
    """A text that is not empty: an unset variable of the shell would otherwise mean the current directory."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value:
            self.fail("an empty text", param, ctx)
        return value


class _Seconds(click.FloatRange):
    """A time of 0 or more; nan, which is neither more nor less, is none."""

    name = "seconds"

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = super().convert(value, param, ctx)
        if found != found:
            self.fail(f"{value} is no time", param, ctx)
        return found


TEXT, SECONDS = _Text(), _Seconds()
# What --seconds promises of a training.
STOPS = "A run stops at the last line of its log that can be reached in time, but trains log_every steps at least."
DEVICE = click.option("--device", help="cpu, cuda or cuda:N; default: cuda where there is one.")
BACKEND = click.option("--backend", help="A backend of the scan by name (see doctor); never falls back.")


def eval_options(command: Any) -> Any:
    """The options of every command that evaluates: fields of `zero_shot.Settings`, and --out."""
    options: list[Option] = [
        click.option(
            "--tasks",
            help="Comma-separated lm-eval task names or YAML paths; default: the six of the paper's Table 3.",
        ),
        click.option(
            "--num-fewshot", type=int, help="Examples in the prompt; default: the task's own (0 for the six)."
        ),
        click.option(
            "--data",
            type=TEXT,
            metavar="DIR",
            help="Read data sets offline from DIR, laid out like the hub (see fetch).",
        ),
        click.option("--limit", type=int, help="Only the first N documents of each task."),
        click.option("--dtype", default="auto", show_default=True, help="auto, float32, float16 or bfloat16."),
        DEVICE,
        BACKEND,
        click.option("--parity", help="fp16: round as the official evaluation script does."),
        click.option("--revision", help="Revision of the checkpoint on the hub."),
        click.option(
            "--tokenizer",
            type=TEXT,
            metavar="PATH",
            help="A tokenizer.json, a directory or a hub id; default: the checkpoint's, else GPT-NeoX-20B.",
        ),
        click.option(
            "--max-length", default=2048, show_default=True, help="A context that leaves no room loses its left end."
        ),
        click.option("--batch-tokens", default=2048, show_default=True, help="Input tokens of one forward pass."),
        click.option("--offline", is_flag=True, help="Never ask the hub; only its cache and local directories."),
        click.option("--seed", default=1234, show_default=True, help="For few-shot examples and sampling."),
        click.option(
            "--out", type=TEXT, default="runs", show_default=True, metavar="DIR", help="Where run directories go."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def split_names(tasks: str | None) -> tuple[str, ...] | None:
    """The names in an option's comma-separated list, None where it was not given."""
    if tasks is None:
        return None
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if not names:
        raise ValueError(f"no task is named in --tasks {tasks!r}")
    return names
