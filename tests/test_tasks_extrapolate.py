"""A finished run at one length after another: killed at any moment, it goes on and ends with the same records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from mambalab.models.registry import MambaConfig
from mambalab.models.synthetic import synthetic
from mambalab.reports import record
from mambalab.reports.record import LEFT_OUT, SEQUENCES, TOKENS, Record
from mambalab.tasks import InductionHeads, Recipe, SelectiveCopying
from mambalab.tasks.extrapolate import doublings, extrapolate, published_row
from mambalab.tasks.recipes import with_model
from mambalab.tasks.train import train

PLAN = {8: 40, 16: 40, 32: 20}
RECIPE = Recipe(
    task=InductionHeads(length=8),
    model=MambaConfig(d_model=8, n_layer=1, vocab_size=16, dt_rank=1),
    steps=4,
    batch_size=2,
    log_every=2,
    evaluate_every=2,
    checkpoint_every=2,
    sequences=4,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "seed-0"
    train(RECIPE, folder)
    return folder


def numbers(records: list[Record]) -> list[Record]:
    """Without what a clock says."""
    timed = ("seconds", "tokens_per_second")
    return [replace(r, setting={k: v for k, v in r.setting.items() if k not in timed}) for r in records]


class Killed(Exception):
    """Stands for the end of the process."""


def killed_after(lengths: int):
    """A listener that ends the process when it has heard of so many lengths."""
    heard = []

    def say(line: str) -> None:
        heard.append(line)
        if len(heard) == lengths:
            raise Killed

    return say


def test_a_record_says_what_was_measured_and_of_what(run, tmp_path):
    found = extrapolate(run, tmp_path, PLAN, provenance={"version": "1"})
    assert found == record.read(tmp_path / "records.jsonl")
    assert [(r.setting["length"], r.n, r.metric) for r in found] == [(n, k, SEQUENCES) for n, k in PLAN.items()]
    first = found[0]
    assert (first.experiment, first.model, first.task, first.seed) == (
        "extrapolation",
        "mamba-variant",
        "induction-heads",
        0,
    )
    assert (first.setting["trained_length"], first.setting["steps_done"], first.setting["chunk"]) == (8, 4, 8192)
    assert first.setting["training"]["batch_size"] == 2
    assert first.setting["published"] is None
    assert first.provenance == {"version": "1", "backend": "cpu"}
    assert sum(of for _, _, of in first.setting["by_distance"]) == first.n
    assert sum(right for _, right, _ in first.setting["by_distance"]) == round(first.value * first.n)


@pytest.mark.parametrize("written", [0, 1, 2])
@pytest.mark.parametrize("cut", [0, 1, 300])
def test_a_killed_one_goes_on_and_ends_as_one_that_ran_through(run, tmp_path, written, cut):
    whole = extrapolate(run, tmp_path / "whole", PLAN)
    out = tmp_path / "killed"
    out.mkdir()
    if written:
        with pytest.raises(Killed):
            extrapolate(run, out, PLAN, say=killed_after(written))
    with (out / "records.jsonl").open("ab") as file:
        file.write((tmp_path / "whole" / "records.jsonl").read_bytes()[:cut])
    said: list[str] = []
    resumed = extrapolate(run, out, PLAN, say=said.append)
    assert len(said) == 3 - written
    assert numbers(resumed) == numbers(whole)
    assert numbers(record.read(out / "records.jsonl")) == numbers(whole)


def test_an_equal_call_measures_nothing_and_a_longer_one_the_rest(run, tmp_path):
    extrapolate(run, tmp_path, PLAN)
    before = (tmp_path / "records.jsonl").read_bytes()
    said: list[str] = []
    assert len(extrapolate(run, tmp_path, PLAN, say=said.append)) == 3
    assert not said
    assert (tmp_path / "records.jsonl").read_bytes() == before
    assert [r.setting["length"] for r in extrapolate(run, tmp_path, {8: 40, 64: 4}, say=said.append)] == [8, 64]
    assert len(said) == 1
    assert (tmp_path / "records.jsonl").read_bytes().startswith(before)


@pytest.mark.parametrize(
    ("task", "model", "wanted"),
    [
        (InductionHeads(), synthetic("mamba").config, "Mamba"),
        (InductionHeads(trigger="early"), replace(synthetic("mamba").config, d_state=8), "Mamba"),
        (InductionHeads(), synthetic("mha-xpos").config, "MHA-xPos"),
        (InductionHeads(), synthetic("h3").config, "H3"),
        (InductionHeads(), replace(synthetic("mamba").config, d_model=32), None),
        (InductionHeads(vocab_size=8), synthetic("mamba").config, None),
        (InductionHeads(), replace(synthetic("h3").config, n_layer=3), None),
        (InductionHeads(length=16), synthetic("mamba").config, None),
        (SelectiveCopying(), synthetic("mamba").config, None),
    ],
)
def test_a_run_stands_beside_the_published_row_of_its_kind_or_none(task, model, wanted):
    assert published_row(replace(RECIPE, task=task, model=model)) == wanted


def test_of_several_answers_a_length_has_two_records(tmp_path):
    recipe = replace(RECIPE, task=SelectiveCopying(places=8, copies=2))
    train(recipe, tmp_path / "run")
    found = extrapolate(tmp_path / "run", tmp_path / "out", {16: 10})
    assert [(r.metric, r.n) for r in found] == [(TOKENS, 20), (SEQUENCES, 10)]
    assert found[0].setting["chunk"] is None


def test_a_length_left_out_has_its_reason_and_is_tried_again(tmp_path):
    recipe = replace(with_model(RECIPE, "mha-abs"), steps=2)
    recipe = replace(recipe, model=replace(recipe.model, d_model=16, n_layer=1, n_head=2, max_length=16))
    train(recipe, tmp_path / "run")
    plan = {8: 4, 32: 4}
    for _ in range(2):
        said: list[str] = []
        found = extrapolate(tmp_path / "run", tmp_path / "out", plan, say=said.append)
        assert [(r.metric, r.setting["length"]) for r in found] == [(SEQUENCES, 8), (LEFT_OUT, 32)]
        assert found[1].setting["why"].startswith("not possible: absolute positions end at max_length = 16")
        assert found == record.read(tmp_path / "out" / "records.jsonl")
    assert len(said) == 1


def test_a_folder_with_other_settings_is_refused(run, tmp_path):
    extrapolate(run, tmp_path, {8: 4})
    before = (tmp_path / "records.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"length 8 with other settings: sequences is not the same \(4 there, 5 now\)"):
        extrapolate(run, tmp_path, {8: 5, 16: 5})
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_a_folder_of_another_run_is_refused_though_no_length_is_the_same(run, tmp_path):
    train(replace(RECIPE, seed=1), tmp_path / "other")
    extrapolate(run, tmp_path / "out", {8: 4})
    with pytest.raises(ValueError, match=r"length 8 with other settings: weights is not the same"):
        extrapolate(tmp_path / "other", tmp_path / "out", {16: 4})


@pytest.mark.parametrize("line", ["{}", "no json", '{"experiment": "other"}'])
def test_a_folder_with_other_records_is_refused(run, tmp_path, line):
    (tmp_path / "records.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"records.jsonl:1: not a record of this experiment"):
        extrapolate(run, tmp_path, PLAN)
    assert (tmp_path / "records.jsonl").read_text() == line + "\n"


def test_only_a_finished_run_is_measured(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run here \(no settings.json\)"):
        extrapolate(tmp_path / "nowhere", tmp_path / "out", PLAN)
    train(RECIPE, tmp_path / "run", seconds=0.0)
    with pytest.raises(ValueError, match=r"this run is not finished \(no records.jsonl\)"):
        extrapolate(tmp_path / "run", tmp_path / "out", PLAN)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(64, 64, (64,)), (64, 256, (64, 128, 256)), (3, 23, (3, 6, 12)), (2**29, 2**31 - 1, (2**29, 2**30))],
)
def test_lengths_double(low, high, wanted):
    assert doublings(low, high) == wanted


@pytest.mark.parametrize(("low", "high"), [(8, 7), (0, 8), (-1, 8)])
def test_lengths_that_do_not_rise_are_refused(low, high):
    with pytest.raises(ValueError, match=f"the least is {low}, the most {high}$"):
        doublings(low, high)


def test_a_file_that_ends_in_something_else_is_left_alone(run, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("my notes")
    with pytest.raises(ValueError, match="its end is not of a record"):
        extrapolate(run, tmp_path, PLAN)
    assert path.read_text() == "my notes"


def test_lengths_left_out_before_stay_until_they_are_asked_for_again(run, tmp_path):
    extrapolate(run, tmp_path, {8: 4})
    path = tmp_path / "records.jsonl"
    (measured,) = record.read(path)
    setting = {**measured.setting, "length": 2**30, "why": "out of memory"}
    left_out = replace(measured, metric="length left out", value=2**30, n=1, stderr=None, setting=setting)
    record.write(path, [measured, left_out])
    extrapolate(run, tmp_path, {16: 4})
    assert [r.setting["length"] for r in record.read(path)] == [8, 2**30, 16]
