"""Tables 1 and 2 follow from records: every row of the paper's, ours beside or above it, and what was not run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from command import mambalab
from mambalab.models.synthetic import SYNTHETIC
from mambalab.reports import published, record, synthetic
from mambalab.reports.naming import marks
from mambalab.reports.record import Record
from mambalab.reports.tables import report
from mambalab.reports.trained import trained
from mambalab.tasks.recipes import Optimiser, Recipe, recipe, to_json, with_model
from reports_cases import csv_rows, narrow, some_record, write_lines


def training(recipe: Recipe, model: str, steps_done: int | None = None, **values: float) -> list[Record]:
    """What a training of the recipe might have measured."""
    made = {"sequence_accuracy": 0.5, "training_seconds": 600.0, "steps_per_second": 250.0, "parameters": 67520}
    return [
        some_record(
            experiment="training",
            model=model,
            task=recipe.task.name,
            metric=metric.replace("_", " "),
            value=value,
            stderr=None,
            n=256,
            setting=to_json(recipe) | {"steps_done": steps_done or recipe.steps},
            seed=recipe.seed,
        )
        for metric, value in (made | values).items()
    ]


def reading(model: str, cells: Mapping[int, float | str], seed: int = 0, **changes: Any) -> list[Record]:
    """What a model might have got right at each length, or why nothing was measured there."""
    row = SYNTHETIC[model].row["model"] if SYNTHETIC[model].table == "table2" else None
    shared: dict[str, Any] = {
        "chunk": 64,
        "chance": 1 / 15,
        "weights": f"{model} {seed}",
        "trained_length": 256,
        "published": row,
        "training": to_json(with_model(recipe("induction-heads"), model)),
        "steps_done": 2500,
        "rows": 256,
        "seconds": 1.0,
        "tokens_per_second": 1000,
        "by_distance": [],
    }
    return [
        some_record(
            experiment="extrapolation",
            model=model,
            task="induction-heads",
            metric="length left out" if isinstance(cell, str) else "sequence accuracy",
            value=float(length) if isinstance(cell, str) else cell,
            stderr=None,
            n=256,
            setting=shared | {"length": length} | ({"why": cell} if isinstance(cell, str) else {}) | changes,
            seed=seed,
        )
        for length, cell in cells.items()
    ]


def table(tmp_path, records: list[Record]) -> str:
    record.write(tmp_path / "records.jsonl", records)
    return narrow(report([tmp_path]).table)


HEADS = recipe("induction-heads")
COPYING = replace(recipe("selective-copying"), steps=50_000)


def test_table_1_has_every_row_with_each_of_our_trainings(tmp_path):
    longer = replace(COPYING, steps=400_000, seed=1)
    records = [
        *training(longer, "mamba-s6", token_accuracy=0.999, sequence_accuracy=0.97, steps_to_solved=350_000.0),
        *training(COPYING, "mamba-s6", token_accuracy=0.75),
        *training(with_model(COPYING, "h3-hyena"), "h3-hyena", token_accuracy=0.25),
    ]
    assert table(tmp_path, records) == TABLE1


TABLE1 = """\
| Model | Architecture | Layer | Answers right % | Sequences right % | Published % | Seed | Steps | Steps to solved \
| Minutes | Steps/s | Parameters |
|:-|:-|:-|-:|-:|-:|-:|-:|-:|-:|-:|-:|
| S4 | No gate | S4 | not run | — | 18.3 | — | — | — | — | — | — |
| - | No gate | S6 | not run | — | 97.0 | — | — | — | — | — | — |
| H3 | H3 | S4 | not run | — | 57.0 | — | — | — | — | — | — |
| Hyena | H3 | Hyena | 25.00 | 50.00 | 30.1 | 0 | 50,000 | — | 10.0 | 250 | 67,520 |
| - | H3 | S6 | not run | — | 99.7 | — | — | — | — | — | — |
| - | Mamba | S4 | not run | — | 56.4 | — | — | — | — | — | — |
| - | Mamba | Hyena | not run | — | 28.4 | — | — | — | — | — | — |
| Mamba | Mamba | S6 | 75.00 | 50.00 | 99.8 | 0 | 50,000 | — | 10.0 | 250 | 67,520 |
| Mamba | Mamba | S6 | 99.90 | 97.00 | 99.8 | 1 | 400,000 | 350,000 | 10.0 | 250 | 67,520 |

- Selective copying of 16 tokens among 4,112 places, 16 markers after them: the share of answers that are right, and \
of sequences with no answer wrong, on 256 sequences.
- Published: Mamba paper, arXiv:2312.00752v2, Table 1, after 400,000 steps; it does not say whether of answers or of \
sequences.
- Solved: the first measurement that found every sequence right; there is one every 5,000 steps, and later ones may \
have found errors again.
- Trained in batches of 64, Adam at 0.0001, constant.
"""


def test_our_names_of_the_rows_of_table_1_are_the_models():
    rows = [row for row in SYNTHETIC.values() if row.table == "table1"]
    runs = trained([r for row in rows for r in training(with_model(COPYING, row.name), row.name, token_accuracy=1.0)])
    assert all(map(synthetic.is_table1, runs))
    made, _ = synthetic.table1(synthetic.of_table1(runs), marks(run.named for run in runs))
    assert list(made["Answers right %"]) == ["100.00"] * len(published.rows("table1.csv"))
    assert [(arch, layer) for arch, layer in zip(made["Architecture"], made["Layer"], strict=True)] == [
        (row.row["arch"], row.row["layer"]) for row in rows
    ]


def test_what_is_no_row_of_table_1_stands_in_a_table_of_trainings(tmp_path):
    quick = recipe("selective-copying-quick")
    heads = replace(recipe("induction-heads"), steps=1024)
    told = {"token_accuracy": 1.0, "sequence_accuracy": 1.0, "steps_to_solved": 900.0, "seconds_to_solved": 12.5}
    records = [*training(quick, "mamba-s6", token_accuracy=0.5), *training(heads, "mamba", None, **told)]
    assert table(tmp_path, records).split("\n\n")[0] == TRAININGS


TRAININGS = """\
| Model | Task | Length | Trained | Seed | Batch | Steps | Answers right % | Sequences right % | Steps to solved \
| Seconds to solved | Steps/s | Minutes | Parameters |
|:-|:-|-:|-:|-:|-:|-:|-:|-:|-:|-:|-:|-:|-:|
| mamba | induction-heads | 256 | (1) | 0 | 8 | 1,024 | 100.00 | 100.00 | 900 | 12.5 | 250 | 10.0 | 67,520 |
| mamba-s6 | selective-copying | 256 | (2) | 0 | 16 | 8,500 | 50.00 | 50.00 | — | — | 250 | 10.0 | 67,520 |"""


def test_a_row_of_table_1_has_a_mark_of_how_it_was_trained(tmp_path):
    decayed = replace(COPYING, optimiser=Optimiser(decay="cosine"))
    longer = replace(COPYING, steps=400_000)
    records = [r for one in (decayed, longer) for r in training(one, "mamba-s6", token_accuracy=0.5)]
    lines = table(tmp_path, records).splitlines()
    assert [line.split(" | ")[5:9] for line in lines if line.startswith("| Mamba | Mamba | S6")] == [
        ["99.8", "(1)", "0", "50,000"],
        ["99.8", "(2)", "0", "400,000"],
    ]
    assert "| S4 | No gate | S4 | not run | — | 18.3 | — | — | — | — | — | — | — |" in lines
    assert lines[-2:] == [
        "- (1): batches of 64, Adam at 0.001, cosine decay.",
        "- (2): batches of 64, Adam at 0.0001, constant.",
    ]


def test_trainings_told_apart_by_nothing_else_have_their_setting_in_the_note(tmp_path):
    narrow_state = replace(COPYING, model=replace(COPYING.model, d_state=4))
    records = [r for one in (COPYING, narrow_state) for r in training(one, "mamba-variant")]
    lines = table(tmp_path, records).splitlines()
    assert lines[-2:] == [
        "- (1): batches of 64, Adam at 0.0001, constant, d_state 16.",
        "- (2): batches of 64, Adam at 0.0001, constant, d_state 4.",
    ]


def test_what_tells_models_of_one_name_apart_is_said_however_they_were_trained(tmp_path):
    narrow_state = replace(COPYING, model=replace(COPYING.model, d_state=4), matmul="tf32")
    records = [r for one in (COPYING, narrow_state) for r in training(one, "mamba-variant")]
    notes = table(tmp_path, records).splitlines()[-2:]
    assert [note.rpartition(", ")[2] for note in notes] == ["d_state 16.", "d_state 4."]


@pytest.mark.parametrize("experiment", ["training", "ablation-selectivity"])
def test_settings_that_name_the_model_make_a_row_of_table_1_of_an_unfinished_run_alone(tmp_path, experiment):
    named = {"recipe": to_json(COPYING), "model": "mamba-s6", "experiment": experiment}
    (tmp_path / "settings.json").write_text(json.dumps(named))
    line = {"step": 5000, "loss": 1.5, "accuracy": 0.5, "steps_per_second": 200.0, "seconds": 600.0}
    write_lines(tmp_path / "log.jsonl", [line])
    text = narrow(report([tmp_path]).markdown)
    assert ("| Mamba | Mamba | S6 | — | — | 99.8 | 0 | 5,000 of 50,000 |" in text) == (experiment == "training")
    assert "not finished, step 5,000 of 50,000" in text


def test_a_copy_of_a_run_is_no_second_one(tmp_path):
    made = training(COPYING, "mamba-s6", token_accuracy=0.5)
    for name in ("run", "backup"):
        record.write(tmp_path / name / "records.jsonl", made)
    assert narrow(report([tmp_path]).markdown).count("| Mamba | Mamba | S6 |") == 1


def test_a_training_that_is_there_twice_is_one_line_that_names_both_folders(tmp_path):
    folders = tmp_path / "a", tmp_path / "b"
    for folder, accuracy in zip(folders, (0.5, 0.25), strict=True):
        record.write(folder / "records.jsonl", training(COPYING, "mamba-s6", token_accuracy=accuracy))
    answer = mambalab("report", *folders)
    assert (answer.status, answer.err) == (
        2,
        "mambalab: two trainings of mamba-s6 on selective-copying with the same settings and seed 0: "
        f"{folders[0]} and {folders[1]}\n",
    )


@pytest.mark.parametrize("is_known", [True, False])
def test_a_row_of_table_1_may_be_unfinished_where_another_names_its_model(tmp_path, is_known):
    model = COPYING.model if is_known else replace(COPYING.model, d_state=4)
    going_on = replace(COPYING, steps=400_000, seed=1, model=model, matmul="tf32")
    line = {"step": 120_000, "loss": 1.5, "accuracy": 0.5, "steps_per_second": 200.0, "seconds": 600.0}
    folder = tmp_path / "seed-1"
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"recipe": to_json(going_on)}))
    write_lines(folder / "log.jsonl", [line | {"measured": {"token": 0.625, "sequence": 0.25}}])
    lines = table(tmp_path, training(COPYING, "mamba-s6", token_accuracy=0.5)).splitlines()
    rows = [line for line in lines if line.startswith("| Mamba | Mamba | S6")]
    unfinished = "| Mamba | Mamba | S6 | 62.50 | 25.00 | 99.8 | (2) | 1 | 120,000 of 400,000 | — | 10.0 | 200 | — |"
    assert rows[1:] == [unfinished] * is_known
    assert ("- (2): batches of 64, Adam at 0.0001, constant, matrix products in TF32." in lines) == is_known
    assert "step 120,000 of 400,000 after 10.0 minutes, 62.50 % of answers" in lines[-1]


def test_table_2_has_ours_over_the_papers_line(tmp_path):
    records = [
        *reading("mamba", {64: 1.0, 128: 255 / 256, 2**21: 0.5}, seed=1),
        *reading("mamba", {64: 1.0}),
        *reading("mha-abs", {64: 0.5, 128: "out of memory", 2**21: "not possible: too long"}),
        *reading("mamba-s6", {128: 0.25}),
    ]
    records += training(HEADS, "mamba", 2500, parameters=73664, training_seconds=90.0)
    text = table(tmp_path, records)
    lines = text[text.index("| Model | Measured") :].splitlines()
    lengths = " | ".join(f"2^{i}" for i in range(6, 22))
    assert lines[0] == f"| Model | Measured | Parameters | Steps | Minutes | n | {lengths} |"
    unmeasured = " | ".join(["—"] * 13)
    none = "—"
    assert lines[2:5] == [
        f"| MHA-Abs | seed 0 | — | 2,500 | — | 256 | 50.0 | oom | {unmeasured} | not possible |",
        "| MHA-Abs | paper | 137K | — | — | — | 100.0 | 99.6 | 100.0 | 58.6 | 26.6 | 18.8 | 9.8 | 10.9 | 7.8 "
        + "| oom " * 6
        + "| — |",
        "| MHA-RoPE | not run |" + " — |" * 20,
    ]
    mamba = lines.index(next(line for line in lines if line.startswith("| Mamba ")))
    assert lines[mamba : mamba + 4] == [
        f"| Mamba | seed 0 | 73,664 | 2,500 | 1.50 | 256 | 100.0 | {none} | {unmeasured} | {none} |",
        f"| Mamba | seed 1 | — | 2,500 | — | 256 | 100.0 | 99.6 | {unmeasured} | 50.0 |",
        "| Mamba | paper | 74K | — | — | — " + "| 100.0 " * 15 + "| — |",
        f"| mamba-s6 | seed 0 | — | 2,500 | — | 256 | {none} | 25.0 | {unmeasured} | {none} |",
    ]
    assert lines[-3:] == [
        "- Induction heads: % of sequences whose last token is right, on 256 sequences a length (n). —: not run, or "
        "not known from these records.",
        "- Paper: arXiv:2312.00752v2, Table 11 (the numbers of Table 2), trained at length 256; its parameters as "
        "printed. oom: out of memory.",
        "- Trained: as told under “Training”.",
    ]


def test_a_way_to_train_has_one_number_in_all_tables_of_a_report_and_is_told_once(tmp_path):
    short_first, wide = replace(HEADS, curriculum=((1024, 16),)), replace(HEADS, batch_size=32)
    ways = (short_first, wide, HEADS)
    near = [r for one in ways for r in training(one, "mamba", 2500, token_accuracy=1.0)]
    far = [
        r
        for name, one in zip("bca", (wide, HEADS, short_first), strict=True)
        for r in reading("mamba", {64: 0.5}, training=to_json(one), weights=name, by_distance=[[16, 3, 4]])
    ]
    record.write(tmp_path / "records.jsonl", [*near, *far, *training(COPYING, "mamba-s6")])
    text = narrow(report([tmp_path]).markdown)
    copying, heads, table2 = text.split("\n## ")[:3]
    assert "| Mamba | Mamba | S6 | — | 50.00 | 99.8 | (1) |" in copying
    assert [line for line in text.splitlines() if line.startswith("- (")] == [
        "- (1): batches of 64, Adam at 0.0001, constant.",
        "- (2): batches of 8, Adam at 0.001, constant, first 1,024 steps at length 16.",
        "- (3): batches of 32, Adam at 0.001, constant.",
        "- (4): batches of 8, Adam at 0.001, constant.",
    ]
    assert [line.split(" | ")[3] for line in heads.splitlines() if line.startswith("| mamba")] == ["(2)", "(3)", "(4)"]
    ours = [line.split(" | ")[2] for line in table2.splitlines() if line.startswith("| Mamba | seed")]
    by_length = [line.split(" | ")[0] for line in table2.splitlines() if line.startswith("| (")]
    assert (ours, by_length) == (["(3)", "(4)", "(2)"], ["| (2)", "| (3)", "| (4)"] * 2)
    assert "Trained for 2,500 steps at length 2^8: mamba (2), seed 0; mamba (3), seed 0; mamba (4), seed 0." in table2
    assert [part.count("- Trained: as told under “Selective copying (Table 1)”.") for part in (heads, table2)] == [1, 1]


def test_a_training_that_may_be_one_of_two_tells_nothing_of_a_row_of_table_2():
    here = trained(training(HEADS, "mamba", 2500))
    records = reading("mamba", {64: 1.0})
    assert [one.training for one in synthetic.reaches(records, here)] == here
    assert [one.training for one in synthetic.reaches(records, here * 2)] == [None]
    assert [one.training for one in synthetic.reaches(records, trained(training(HEADS, "mamba")))] == [None]


def test_the_number_of_sequences_of_each_model_is_in_table_2():
    few, many = reading("mamba", {64: 1.0}), reading("mamba", {128: 1.0})
    found = synthetic.reaches([replace(few[0], n=4), *many])
    frame, _ = synthetic.table2(found, marks(one.named for one in found))
    assert "4 to 256" in list(frame["n"])


def test_a_length_measured_after_all_is_no_longer_left_out():
    (one,) = synthetic.reaches([*reading("mamba", {64: "out of memory"}), *reading("mamba", {64: 0.75})])
    assert one.cells == {64: 0.75}


def test_tf32_is_named_only_where_it_was_trained_on_a_gpu(tmp_path):
    """Whatever device its accuracy was measured on."""
    made = replace(recipe("induction-heads"), matmul="tf32")
    setting = {"training": to_json(made), "steps_done": 2500}
    far = [replace(r, setting={**r.setting, **setting}) for r in reading("mamba", {64: 1.0})]
    for device in ("cpu", "cuda:0"):
        trained_on = {"device": device, "backend": "cpu"}
        near = [replace(r, provenance=trained_on) for r in training(made, "mamba", 2500, token_accuracy=0.5)]
        text = table(tmp_path, [*near, *far])
        notes = [line for line in text.splitlines() if line.startswith("- Trained in ")]
        assert ["TF32" in note for note in notes] == [device != "cpu"]
        assert "| Trained |" not in text


def test_two_records_of_a_length_are_said():
    with pytest.raises(ValueError, match=r"^two records of mamba, seed 0, at one length$"):
        synthetic.reaches(reading("mamba", {64: 1.0}) * 2)


@pytest.mark.parametrize("of", ["training", "ablation-a-init", "extrapolation"])
@pytest.mark.parametrize("value", ["1.5", "-0.25", "NaN", "1e999"])
def test_an_accuracy_that_is_no_fraction_is_one_clear_line_that_names_the_file(tmp_path, of, value):
    made = reading("mamba", {64: 0.5}) if of == "extrapolation" else training(HEADS, "mamba", sequence_accuracy=0.5)
    path = tmp_path / "records.jsonl"
    path.write_text(
        record.to_lines(replace(r, experiment=of) for r in made).replace('"value": 0.5', f'"value": {value}')
    )
    answer = mambalab("report", tmp_path)
    assert (answer.status, answer.out) == (2, "")
    assert answer.err.startswith(f"mambalab: {path}:1: ")
    assert answer.err.count("\n") == 1


def test_every_number_is_in_the_csv(tmp_path):
    record.write(
        tmp_path / "records.jsonl", [*reading("mamba", {64: 0.1}), *training(COPYING, "s4", token_accuracy=0.3)]
    )
    lines = csv_rows(report([tmp_path]).csv)
    far = {"model": "mamba", "seed": "0", "steps": "2500", "length": "64", "sequences": "256"}
    assert any((far | {"sequence accuracy": "0.1"}).items() <= line.items() for line in lines)
    assert any({"metric": "token accuracy", "value": "0.3"}.items() <= line.items() for line in lines)
