"""`mambalab extrapolate` measures a finished run at other lengths, draws it, and refuses what it can't in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command import files, mambalab, refused
from mambalab.harness import demo
from mambalab.models.registry import MambaConfig
from mambalab.reports import record
from mambalab.tasks import InductionHeads, Recipe
from mambalab.tasks.train import train

WRITTEN = {
    "records.jsonl",
    "table.md",
    *(f"accuracy-by-{what}.{kind}" for what in ("length", "distance") for kind in ("png", "svg")),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "seed-5"
    recipe = Recipe(
        task=InductionHeads(length=8),
        model=MambaConfig(d_model=8, n_layer=1, vocab_size=16, dt_rank=1),
        steps=2,
        batch_size=2,
        seed=5,
        log_every=2,
        evaluate_every=2,
        checkpoint_every=2,
        sequences=4,
    )
    train(recipe, folder)
    return folder


def test_extrapolate_prints_a_table_and_writes_records_and_plots(run, tmp_path):
    command = ("extrapolate", run, "--min-length=2^3", "--max-length=40", "--sequences=6", "--chunk=4")
    answer = mambalab(*command, "--device=cpu", "--out", tmp_path)
    assert answer.status == 0
    assert [line.split("|")[1].strip() for line in answer.out.splitlines() if line.startswith("| 2^")][:3] == [
        "2^3",
        "2^4",
        "2^5",
    ]
    assert "length 32: " in answer.err
    assert {path.name for path in tmp_path.iterdir()} == WRITTEN
    assert (tmp_path / "table.md").read_text() + "\n" == answer.out
    found = record.read(tmp_path / "records.jsonl")
    assert [(r.setting["length"], r.setting["chunk"], r.n, r.seed) for r in found] == [
        (n, 4, 6, 5) for n in (8, 16, 32)
    ]
    assert found[0].provenance["command"].startswith("mambalab extrapolate ")
    assert found[0].provenance["digest"]


def test_extrapolate_again_measures_nothing_and_says_the_same(run, tmp_path):
    command = (
        "extrapolate",
        run,
        "--min-length=8",
        "--max-length=16",
        "--sequences=4",
        "--device=cpu",
        "--out",
        tmp_path,
    )
    first, again = mambalab(*command), mambalab(*command)
    assert first.out == again.out
    assert "length 8: " not in again.err


def test_tables_and_plots_keep_what_an_earlier_call_measured(run, tmp_path):
    command = ("extrapolate", run, "--sequences=4", "--device=cpu", "--out", tmp_path)
    mambalab(*command, "--min-length=8", "--max-length=16")
    plot = (tmp_path / "accuracy-by-length.svg").read_bytes()
    answer = mambalab(*command, "--min-length=32", "--max-length=32")
    assert "| 2^3 " not in answer.out
    assert all(f"| 2^{e} " in (tmp_path / "table.md").read_text() for e in (3, 4, 5))
    assert (tmp_path / "accuracy-by-length.svg").read_bytes() != plot


def test_results_lie_beside_the_run_unless_a_folder_is_named(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    mambalab("extrapolate", copied, "--min-length=8", "--max-length=8", "--sequences=2", "--device=cpu")
    assert {path.name for path in (copied / "extrapolation").iterdir()} == WRITTEN


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--max-length=2^x"], "--max-length must be an integer, not '2^x'"),
        (["--min-length=long"], "--min-length must be an integer, not 'long'"),
        (["--max-length=32"], "lengths must rise from at least 1: the least is 64, the most 32"),
        (["--min-length=0"], "lengths must rise from at least 1: the least is 0, the most 1,048,576"),
        (["--min-length=2", "--max-length=4"], "length must be from 3 to 2^31 - 1, not 2"),
        (["--max-length=2^31"], "lengths must be at most 2^31 - 1, to which tasks count, not 2,147,483,648"),
        (["--max-length=2^60"], "to which tasks count, not 1,152,921,504,606,846,976"),
        (["--sequences=0"], "0 is not in the range 1<=x<=16777216"),
        (["--chunk=0"], "--chunk must be at least 1, not 0"),
        (["--device=tpu"], "unknown device 'tpu'; known: cpu, cuda, cuda:N"),
        (["--backend=cuda", "--device=cpu"], "cuda"),
        (["--out="], "an empty text"),
    ],
)
def test_impossible_options_are_one_line(run, tmp_path, options, why):
    before = files(run)
    out = [] if "--out=" in options else ["--out", tmp_path / "out"]
    assert why in refused(mambalab("extrapolate", run, *options, *out))
    assert files(run) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("missing", "why"),
    [
        ("settings.json", "no run here (no settings.json)"),
        ("records.jsonl", "this run is not finished (no records.jsonl)"),
        ("model.safetensors", "no weights here"),
        ("config.json", "no config.json here"),
    ],
)
def test_what_is_no_finished_run_is_one_line(run, tmp_path, missing, why):
    copied = shutil.copytree(run, tmp_path / "run")
    (copied / missing).unlink()
    assert why in refused(mambalab("extrapolate", copied, "--max-length=64", "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_one_line(run, tmp_path):
    (tmp_path / "file").touch()
    assert "can't write in" in refused(
        mambalab("extrapolate", run, "--max-length=64", "--out", tmp_path / "file" / "out")
    )


def test_the_demo_measures_a_checkpoint_and_draws_it(run, tmp_path):
    said: list[str] = []
    text = demo.extrapolate_checkpoint(tmp_path, said.append, run=run, plan={8: 4, 16: 2})
    assert "| 2^4      |" in text
    assert "of 2 |" in text
    assert {path.name for path in tmp_path.iterdir()} == WRITTEN
    assert len(said) == 2


def test_the_demo_reaches_a_million_tokens_with_few_sequences():
    assert demo.PLAN[2**20] == 4
    assert max(demo.PLAN) == 2**20
    assert sum(length * sequences for length, sequences in demo.PLAN.items()) < 10 * 2**20
