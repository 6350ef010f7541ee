"""`mambalab train` trains what its options say, and refuses what it can't in one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
from command import files, mambalab, refused
from mambalab.harness.assignments import assigned, split
from mambalab.harness.train_cli import chosen
from mambalab.models.synthetic import SYNTHETIC
from mambalab.reports import record
from mambalab.tasks.recipes import RECIPES, recipe
from mambalab.tasks.train import load

TINY = {
    "steps": "8",
    "batch_size": "2",
    "log_every": "4",
    "evaluate_every": "4",
    "checkpoint_every": "4",
    "sequences": "8",
    "task.length": "8",
    "model.d_model": "8",
    "model.n_layer": "1",
    "model.dt_rank": "1",
}


def settings(**changes: str) -> list[str]:
    pairs = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"--set={key}={value}" for key, value in pairs.items()]


@dataclass(frozen=True, kw_only=True)
class Inner:
    length: int = 4
    kind: Literal["plain", "fancy"] = "plain"
    rank: int | Literal["auto"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Outer:
    rate: float = 1.0
    limit: int | None = None
    flag: bool = False
    stages: tuple[tuple[int, int], ...] = ()
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.rate > self.inner.length:
            raise ValueError("rate above length")


def test_train_trains_what_the_options_say(tmp_path):
    out = tmp_path / "run"
    answer = mambalab("train", "induction-heads", *settings(optimiser__learning_rate="0.01"), "--seed=5", "--out", out)
    assert answer.status == 0
    assert answer.out.startswith(f"{out}: done after 8 steps; ")
    assert "step 8/8  length 8  loss " in answer.err
    trained, model = load(out)
    assert (trained.seed, trained.task.length, trained.optimiser.learning_rate) == (5, 8, 0.01)
    assert trained.model.d_model == 8
    found = record.read(out / "records.jsonl")
    assert {r.seed for r in found} == {5}
    assert {r.provenance["backend"] for r in found} == {"cpu"}
    assert found[0].provenance["command"].startswith("mambalab train induction-heads --set=")
    assert sum(p.numel() for p in model.parameters()) == next(r.value for r in found if r.metric == "parameters")


def test_the_help_names_every_recipe_and_model_and_shows_a_curriculum():
    told = mambalab("train", "--help").out
    words = told.replace(",", " ").split()
    assert set(words) >= {*RECIPES, *SYNTHETIC}
    (shown,) = [word.removeprefix("curriculum=") for word in told.replace(": ", " ").split() if "curriculum=1" in word]
    assert chosen(recipe("induction-heads"), None, {"curriculum": shown}).curriculum == ((1024, 16), (1024, 64))


def test_train_that_is_stopped_goes_on(tmp_path):
    command = ("train", "selective-copying", *[s for s in settings(task__places="9") if "length" not in s])
    first = mambalab(*command, "--set=task.copies=2", "--seconds=0", "--out", tmp_path / "run")
    assert first.out.endswith(" sequences without an error\n")
    assert "stopped after 4 steps" in first.out
    second = mambalab(*command, "--set=task.copies=2", "--out", tmp_path / "run")
    assert "done after 8 steps" in second.out
    assert "going on after step 4" in second.err


def test_an_interruption_is_one_line_that_says_how_it_goes_on(tmp_path, monkeypatch):
    command = ("train", "induction-heads", *settings(steps="12"), "--out", tmp_path / "run")
    assert mambalab(*command, "--seconds=0").status == 0

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mambalab.tasks.step.Trainee.advance", interrupt)
    answer = mambalab(*command)
    assert answer.status == 130
    assert answer.err.splitlines()[-1] == (
        f"mambalab: interrupted; the same command goes on after step 4, the last checkpoint in {tmp_path / 'run'}"
    )
    other = mambalab(*command[:-1], tmp_path / "other").err
    assert other == (
        "mambalab: interrupted; the same command begins again, for the first checkpoint is that of step 4 "
        "(--seconds N stops with one)\n"
    )


def test_a_run_that_stops_late_says_so_at_its_end(tmp_path):
    answer = mambalab("train", "induction-heads", *settings(), "--seconds=1e-9", "--out", tmp_path / "run")
    assert ", not measured yet" not in answer.out
    assert "; a run stops only at a line of its log, and the 4 steps to the first take 0:00:00; sooner " in answer.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["induction-head"], "unknown task 'induction-head'; nearest: induction-heads, "),
        (["induction-heads", "--model=mambo"], "unknown synthetic model 'mambo'; nearest: mamba"),
        (
            ["induction-heads", "--set=task.lenght=5"],
            "unknown setting 'task.lenght' of induction-heads; nearest: task.length",
        ),
        (
            ["selective-copying", "--set=task.length=64"],
            "unknown setting 'task.length' of selective-copying; nearest: ",
        ),
        (["induction-heads", "--set=task.length"], "--set takes key=value, not 'task.length'"),
        (["induction-heads", "--set=task.length=two"], "task.length must be an integer, not 'two'"),
        (["induction-heads", "--set=task.vocab_size=32"], "model.vocab_size must be at least task.vocab_size"),
        (["selective-copying", "--set=task.places=8"], "copies must be at most places, not 16 data tokens in 8 places"),
        (["induction-heads", "--set=task.length=2000000000"], "no memory to train on 8 rows of 2,000,000,000 tokens"),
        (["induction-heads", "--set=seed=1", "--seed=2"], "--set seed is given twice"),
        (["induction-heads", "--set=steps=1000"], "steps must be a multiple of log_every, 128, not 1000"),
        (["induction-heads", "--backend=gpu"], "unknown backend 'gpu'"),
        (["induction-heads", "--device=tpu"], "unknown device 'tpu'; known: cpu, cuda, cuda:N"),
    ],
)
def test_train_refuses_in_one_line(arguments, says, tmp_path, unchecked):
    line = refused(mambalab("train", *arguments, "--out", tmp_path / "run"))
    assert says in line
    assert not files(tmp_path)


def test_train_refuses_a_folder_of_other_settings(tmp_path):
    assert mambalab("train", "induction-heads", *settings(), "--out", tmp_path / "run").status == 0
    before = files(tmp_path)
    line = refused(mambalab("train", "induction-heads", *settings(batch_size="3"), "--out", tmp_path / "run"))
    assert "is a run of other settings: recipe.batch_size is 2 there, not 3; name another folder" in line
    assert files(tmp_path) == before


def test_a_run_that_diverges_is_one_line_too(tmp_path):
    """It failed, where a mistake in its settings is refused: the status is another."""
    command = ("train", "induction-heads", *settings(optimiser__learning_rate="1e30"), "--out", tmp_path / "run")
    for _ in range(2):
        answer = mambalab(*command)
        assert answer.status == 1
        assert answer.err == (
            f"mambalab: {tmp_path / 'run'}: the loss of step 2 is nan; there is no checkpoint before it\n"
        )
    (found,) = record.read(tmp_path / "run" / "diverged" / "records.jsonl")
    assert (found.experiment, found.metric, found.value) == ("training", "diverged after step", 0)
    assert "| mamba-variant | induction-heads |" in mambalab("report", tmp_path).out


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ({"rate": "2.5"}, Outer(rate=2.5)),
        ({"limit": "2^10", "flag": "true"}, Outer(limit=1024, flag=True)),
        ({"limit": "none"}, Outer()),
        ({"stages": "300x16,200x64"}, Outer(stages=((300, 16), (200, 64)))),
        ({"stages": ""}, Outer()),
        ({"inner.kind": "fancy", "inner.rank": "3"}, Outer(inner=Inner(kind="fancy", rank=3))),
        ({"inner.rank": "auto"}, Outer()),
        ({"rate": "9", "inner.length": "10"}, Outer(rate=9.0, inner=Inner(length=10))),
    ],
)
def test_values_are_read_as_their_types_and_set_together(values, want):
    assert assigned(Outer(), values) == want


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rate": "fast"}, "rate must be a number, not 'fast'"),
        ({"limit": "1.5"}, "limit must be an integer or none, not '1.5'"),
        ({"flag": "yes"}, "flag must be true or false, not 'yes'"),
        ({"stages": "3x"}, "stages must be pairs such as 300x16,200x64, not '3x'"),
        ({"inner.kind": "odd"}, "inner.kind must be plain or fancy, not 'odd'"),
        ({"inner.rank": "best"}, "inner.rank must be an integer or auto, not 'best'"),
        ({"inner": "x"}, "inner holds settings of its own: set inner.length, inner.kind, inner.rank"),
        ({"rate.x": "1"}, "rate is one value, without settings of its own"),
        ({"inner.lengths": "1"}, "unknown setting 'inner.lengths'; nearest: inner.length"),
        ({"zzz": "1"}, "unknown setting 'zzz'; known: rate, limit, flag, stages, inner"),
    ],
)
def test_what_is_no_setting_is_refused(values, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        assigned(Outer(), values)


def test_a_key_is_given_once():
    assert split(["a.b=c=d", "e="]) == {"a.b": "c=d", "e": ""}
    with pytest.raises(ValueError, match="--set a is given twice"):
        split(["a=1", "a=2"])


def test_keys_may_begin_with_recipe(tmp_path):
    given = [setting.replace("--set=", "--set=recipe.") for setting in settings(seed="3")]
    assert mambalab("train", "induction-heads", *given, "--out", tmp_path / "run").status == 0
    assert load(tmp_path / "run")[0].seed == 3


def test_a_model_by_name_gets_an_embedding_of_the_task_s_symbols():
    assert chosen(recipe("copying"), "h3-s6", {"steps": "5000"}).steps == 5000
    assert chosen(recipe("associative-recall"), "mamba", {}).model.vocab_size == 8192
