"""The published numbers: complete, with their sources, in one unit, and found only for published checkpoints."""

from __future__ import annotations

import json

import pytest
from mambalab.reports import published
from mambalab.reports.published import ACCURACIES, COLUMNS, DIRECTORY

FILES = sorted(p.name for p in DIRECTORY.iterdir() if p.suffix in (".csv", ".json"))
MAMBA_AND_PYTHIA = [r["model"] for r in published.rows("table3.csv") if r["model"].startswith(("Mamba", "Pythia"))]


@pytest.mark.parametrize("name", FILES)
def test_the_readme_gives_each_file_its_source_in_a_line(name):
    lines = [line for line in (DIRECTORY / "README.md").read_text().splitlines() if f"`{name}`" in line]
    assert len(lines) == 1
    assert len(lines[0].split("|")[-2].strip()) > 20


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".csv")])
def test_every_row_of_a_csv_names_its_source(name):
    found = [row for row in published.rows(name) if row.get("status") != "not found"]
    assert found
    assert all(row["source"].strip() for row in found)


@pytest.mark.parametrize("row", MAMBA_AND_PYTHIA)
def test_averages_are_computed_from_the_row(row):
    (printed,) = [r for r in published.rows("table3.csv") if r["model"] == row]
    found = published.find(row.lower())
    assert found is not None
    assert found.average is not None
    assert found.average == pytest.approx(float(printed["average_arithmetic"]), abs=0.006)
    disagrees = abs(found.average - float(printed["average_printed"])) > 0.06
    assert disagrees == (row in ("Mamba-370M", "Mamba-790M"))


def test_table3_gives_a_row_in_percent_by_task_and_metric():
    row = published.table3("Mamba-130M")
    assert set(row) == {column.key for column in COLUMNS}
    assert row["lambada_openai", "perplexity"] == 16.07
    assert row["hellaswag", "acc_norm"] == 35.3


def test_an_unknown_row_of_table3_is_an_error_that_lists_the_rows():
    with pytest.raises(ValueError, match=r"has no row 'Mamba-7B'; it has .*Mamba-2\.8B"):
        published.table3("Mamba-7B")


def test_pythias_own_numbers_agree_with_table3_in_percent():
    own, printed = published.pythia_official("pythia-410m"), published.table3("Pythia-410M")
    assert own is not None
    assert ("hellaswag", "acc_norm") not in own.values
    for key, value in own.values.items():
        assert value == pytest.approx(printed[key], abs=3 * own.stderrs[key])


def test_the_reproduction_is_in_percent_with_standard_errors():
    found = published.reproduction("mamba-130m")
    assert found is not None
    for key, value in published.table3("Mamba-130M").items():
        assert found.values[key] == pytest.approx(value, abs=2 * found.stderrs[key])
    assert published.reproduction("mamba-130b") is None


@pytest.mark.parametrize(
    ("checkpoint", "row"),
    [
        ("mamba-130m", "Mamba-130M"),
        ("state-spaces/mamba-130m", "Mamba-130M"),
        ("state-spaces/mamba-2.8b-hf", "Mamba-2.8B"),
        ("EleutherAI/pythia-1b", "Pythia-1B"),
        ("/weights/state-spaces/mamba-790m/", "Mamba-790M"),
        ("/cache/models--EleutherAI--pythia-160m/snapshots/0123abc", "Pythia-160M"),
        ("pythia-12b", "pythia-12b"),
        ("EleutherAI/pythia-70m-deduped", "pythia-70m-deduped"),
        ("/weights/mamba-130m", None),
        ("somebody/mamba-130m", None),
        ("state-spaces/mamba-2.8b-slimpj", None),
        ("rwkv-3b", None),
        ("/", None),
    ],
)
def test_only_a_published_checkpoint_has_published_numbers(checkpoint, row):
    found = published.find(checkpoint)
    assert (found and found.name) == row


def test_an_earlier_training_step_has_no_published_numbers():
    assert published.find("EleutherAI/pythia-160m", "step3000") is None
    assert published.find("EleutherAI/pythia-160m", "step143000") is not None


def test_pythias_without_hellaswag_have_no_published_average():
    found = published.find("pythia-12b")
    assert found is not None
    assert found.average is None
    assert set(found.values) == {c.key for c in COLUMNS} - {("hellaswag", "acc_norm")}


def test_models_are_sorted_by_size_with_mamba_after_its_pythia():
    models = ["other", "mamba-2.8b", "pythia-1b", "state-spaces/mamba-130m", "mamba-790m", "pythia-160m", "pythia-70m"]
    wanted = ["pythia-70m", "pythia-160m", "state-spaces/mamba-130m", "pythia-1b", "mamba-790m", "mamba-2.8b", "other"]
    assert sorted(models, key=published.size_order) == wanted


def test_set_sizes_are_those_behind_the_official_standard_errors():
    known = json.loads((DIRECTORY / "lm_eval_tasks.json").read_text())["n_examples_derived_from_official_stderr"]
    held = {column.task: column.documents for column in COLUMNS}
    assert {task: held[task] for task in known if task in held} == {t: n for t, (n,) in known.items() if t in held}
    assert set(held) - set(known) == {"hellaswag"}


def test_hellaswags_size_is_the_one_of_the_real_set(data):
    file = data / "zero_shot" / "Rowan" / "hellaswag" / "validation.jsonl"
    with file.open() as lines:
        assert sum(1 for _ in lines) == {c.task: c.documents for c in COLUMNS}["hellaswag"]


def test_six_accuracies_make_the_average():
    assert len(ACCURACIES) == 6
