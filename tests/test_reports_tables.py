"""Tables of tasks are pure functions of records: ours beside the published number, with every reservation said."""

from __future__ import annotations

import math

import pytest
from mambalab.reports import markdown, record, zero_shot
from mambalab.reports.published import COLUMNS
from mambalab.reports.runs import load_run, load_runs
from mambalab.reports.tables import report, zero_shot_long, zero_shot_table
from reports_cases import PROVENANCE, SIX, csv_rows, some_record, write_run

FULL = {column.task: column.documents for column in COLUMNS}


def _published_checkpoint(source, **more):
    return {**PROVENANCE, "checkpoint": {"source": source, "digest": "ffee", "layout": "hf", **more}}


def _exact(tmp_path, model, values, n=None, name="exact", **changes):
    """A records-only run with the given values, percent for accuracies, on whole sets."""
    made = [
        some_record(
            model=model,
            task=task,
            metric=metric,
            value=value / (1 if metric == "perplexity" else 100),
            stderr=0.5 if metric == "perplexity" else 0.01,
            n=n or FULL[task],
            **changes,
        )
        for (task, metric), value in values.items()
    ]
    record.write(tmp_path / name / "records.jsonl", made)
    return tmp_path / name


MAMBA = dict(zip((c.key for c in COLUMNS), (16.0, 44.0, 35.0, 64.0, 48.0, 24.0, 55.0), strict=True))


def test_ours_stands_beside_the_published_number_with_z_in_our_standard_errors(tmp_path):
    (run,) = load_runs(_exact(tmp_path, "mamba-130m", MAMBA))
    frame = zero_shot_long([run]).set_index(["task", "metric"])
    row = frame.loc[("winogrande", "acc")]
    assert (row["ours"], row["stderr"], row["published"], row["source"]) == pytest.approx((55, 1, 51.9, "Table 3"))
    assert row["z"] == pytest.approx((55 - 51.9) / 1)
    ppl = frame.loc[("lambada_openai", "perplexity")]
    assert (ppl["ours"], ppl["published"], ppl["z"]) == pytest.approx((16, 16.07, (16 - 16.07) / 0.5))


def test_only_numbers_beyond_two_standard_errors_are_marked(tmp_path):
    (run,) = load_runs(_exact(tmp_path, "mamba-130m", MAMBA))
    cells = zero_shot_table([run]).iloc[0].to_dict()
    assert cells["WinoGrande acc ↑"] == "**55.00 ± 1.00 (51.9)**"
    assert [name for name, cell in cells.items() if "**" in cell] == ["WinoGrande acc ↑"]
    assert cells["LAMBADA ppl ↓"] == "16.00 ± 0.50 (16.07)"


def test_the_average_and_the_published_average_are_computed_from_their_rows(tmp_path):
    (run,) = load_runs(_exact(tmp_path, "state-spaces/mamba-370m", MAMBA))
    (average,) = [row for row in zero_shot.rows([run]) if row.task == zero_shot.AVERAGE]
    assert average.ours == pytest.approx((44 + 35 + 64 + 48 + 24 + 55) / 6)
    assert average.stderr == pytest.approx(math.sqrt(6) / 6)
    # Table 3 prints 50.0 for this row.
    assert average.published == pytest.approx((55.6 + 46.5 + 69.5 + 55.1 + 28.0 + 55.3) / 6)


def test_a_missing_task_leaves_the_average_blank_and_says_why(tmp_path):
    values = {key: value for key, value in MAMBA.items() if key[0] != "winogrande"}
    runs = load_runs(_exact(tmp_path, "mamba-130m", values))
    assert zero_shot_table(runs).to_dict("records")[0]["Average ↑"] == markdown.BLANK
    assert "mamba-130m: no average, because winogrande acc is missing." in zero_shot.notes(runs)


def test_a_limited_sample_keeps_its_comparison_and_gets_a_note(tmp_path):
    runs = load_runs(_exact(tmp_path, "mamba-130m", {("piqa", "acc"): 64.0}, n=100))
    (row,) = zero_shot.rows(runs)
    assert row.published == 64.5
    assert any("limited sample (piqa 100 of 1,838 documents)" in note for note in zero_shot.notes(runs))


def test_whole_sets_get_no_note_about_limits(tmp_path):
    assert not any("limited" in note for note in zero_shot.notes(load_runs(_exact(tmp_path, "mamba-130m", MAMBA))))


@pytest.mark.parametrize(
    ("model", "provenance"),
    [
        ("/weights/mamba-130m", PROVENANCE),
        ("mamba-130m", _published_checkpoint("/weights/mamba-130m")),
        ("mamba-130m", _published_checkpoint("EleutherAI/pythia-160m", revision="step3000")),
        ("mamba-130m", _published_checkpoint("state-spaces/mamba-130m", note="random weights, seed 0")),
    ],
)
def test_other_weights_have_no_published_value(tmp_path, model, provenance):
    runs = load_runs(_exact(tmp_path, model, MAMBA, provenance=provenance))
    assert all(row.published is None and row.z is None for row in zero_shot.rows(runs))
    assert zero_shot_table(runs).to_dict("records")[0]["PIQA acc ↑"] == "64.00 ± 1.00 (—)"
    assert any("not a published checkpoint" in note for note in zero_shot.notes(runs))


def test_random_weights_are_said_to_be_random(tmp_path):
    origin = _published_checkpoint("demo/mamba", note="random weights, seed 0")
    runs = load_runs(_exact(tmp_path, "demo/mamba", MAMBA, provenance=origin))
    assert "demo/mamba: random weights, seed 0" in zero_shot.notes(runs)
    assert "demo/mamba: random weights, seed 0" in report([tmp_path]).table


def test_few_shot_numbers_stand_beside_no_zero_shot_ones(tmp_path):
    runs = load_runs(_exact(tmp_path, "mamba-130m", MAMBA, setting={"num_fewshot": 5}))
    assert all(row.published is None for row in zero_shot.rows(runs))
    assert any("few-shot on arc_challenge" in note for note in zero_shot.notes(runs))


def test_official_arithmetic_is_said(tmp_path):
    runs = load_runs(_exact(tmp_path, "mamba-130m", MAMBA, setting={"parity": "fp16"}))
    assert any("(parity fp16)" in note for note in zero_shot.notes(runs))


def test_a_number_without_a_standard_error_has_no_z(tmp_path):
    record.write(tmp_path / "r.jsonl", [some_record(stderr=None, n=1)])
    (row,) = zero_shot.rows(load_runs(tmp_path / "r.jsonl"))
    assert (row.stderr, row.z) == (None, None)
    assert row.difference is not None


def test_pythias_own_numbers_serve_where_table3_has_no_row(tmp_path):
    runs = load_runs(_exact(tmp_path, "EleutherAI/pythia-12b", MAMBA))
    found = {(row.task, row.metric): row for row in zero_shot.rows(runs)}
    assert found["piqa", "acc"].source == "Pythia v1"
    assert found["hellaswag", "acc_norm"].published is None
    assert any("Pythia v1 = EleutherAI/pythia" in note for note in zero_shot.notes(runs))


def test_models_are_sorted_by_size_with_mamba_beside_its_pythia(tmp_path):
    names = ["mamba-370m", "EleutherAI/pythia-410m", "state-spaces/mamba-130m", "pythia-160m"]
    runs = [run for i, name in enumerate(names) for run in load_runs(_exact(tmp_path, name, MAMBA, name=str(i)))]
    wanted = ["pythia-160m", "state-spaces/mamba-130m", "EleutherAI/pythia-410m", "mamba-370m"]
    assert list(zero_shot_table(runs)["Model"]) == wanted


def test_other_tasks_stand_in_the_details_only(tmp_path):
    write_run(tmp_path / "r", "mamba-130m", tasks=(*SIX, "boolq"))
    made = report([tmp_path])
    assert "boolq" not in made.table
    assert "| boolq" in made.markdown
    assert {row["task"] for row in csv_rows(made.csv)} == {*SIX, "boolq", zero_shot.AVERAGE}


def test_a_run_of_other_tasks_only_is_still_a_table(tmp_path):
    write_run(tmp_path / "r", "mamba-130m", tasks=("boolq",))
    assert "| boolq" in report([tmp_path]).table


def test_the_csv_holds_every_digit_and_empty_cells(tmp_path):
    path = write_run(tmp_path / "r", "mine", tasks=("winogrande",))
    (row,) = csv_rows(report([path]).csv)
    (made,) = load_run(path).records
    assert float(row["ours"]) == made.value * 100
    assert made.stderr is not None
    assert float(row["stderr"]) == made.stderr * 100
    assert (row["published"], row["z"], row["n"]) == ("", "", "40")


def test_what_ran_is_said_under_the_tables(tmp_path):
    provenance = _published_checkpoint("state-spaces/mamba-130m")
    text = report([write_run(tmp_path / "r", "mamba-130m", provenance=provenance)]).markdown
    wanted = ["backend cpu (kernel abcdef01)", "float32", "a CPU, 2 threads", "mambalab 0.1.0 (files 01234567"]
    wanted += [
        "commit fedcba98 with changes",
        "torch 2.13.0",
        "weights ffee",
        "tokenizer 99887766",
        "data piqa.jsonl 00112233",
        "piqa 1.0",
    ]
    assert [part for part in wanted if part not in text] == []


def test_what_all_runs_share_is_said_once(tmp_path):
    other = {**PROVENANCE, "backend": "transformers", "kernel": None}
    write_run(tmp_path / "a", "a", provenance=PROVENANCE)
    write_run(tmp_path / "b", "b", provenance=other)
    lines = report([tmp_path]).markdown.split("## What ran\n\n")[1].splitlines()
    assert lines[:2] == ["- a: backend cpu (kernel abcdef01)", "- b: backend transformers"]
    assert lines[2].startswith("- All: float32, cpu, a CPU, 2 threads; tokenizer 99887766; mambalab 0.1.0")


def test_two_models_are_compared_and_the_rest_only_on_demand(tmp_path):
    names = ("mamba-130m", "pythia-160m", "mamba-370m")
    paths = [write_run(tmp_path / name, name, seed=i) for i, name in enumerate(names)]
    assert "## mamba-130m against pythia-160m, document by document" in report(paths[:2]).markdown
    assert "against" not in report(paths).markdown
    made = report(paths, pairs=[("mamba-370m", "pythia-160m"), ("mamba-130m", "mamba-370m")])
    assert "## mamba-370m against pythia-160m" in made.markdown
    assert {(row["first"], row["second"]) for row in csv_rows(made.paired_csv)} == {
        ("mamba-370m", "pythia-160m"),
        ("mamba-130m", "mamba-370m"),
    }


def test_a_paired_table_gives_both_models_their_difference_and_its_p(tmp_path):
    paths = [write_run(tmp_path / name, name, seed=i) for i, name in enumerate(("mamba-130m", "pythia-160m"))]
    made = report(paths)
    rows = {(row["task"], row["metric"]): row for row in csv_rows(made.paired_csv)}
    for run in map(load_run, paths):
        own = {(r.task, r.metric): r.value for r in run.records}
        side = "a" if run.model == "mamba-130m" else "b"
        assert all(float(row[side]) == pytest.approx(own[key]) for key, row in rows.items())
    assert len(rows) == 7
    assert rows["lambada_openai", "perplexity"]["only_a"] == ""
    assert "of 7 measures" in made.markdown


def test_two_runs_of_one_model_are_told_apart(tmp_path):
    other = {**PROVENANCE, "backend": "transformers"}
    write_run(tmp_path / "a", "mamba-130m")
    write_run(tmp_path / "b", "mamba-130m", provenance=other)
    made = report([tmp_path], pairs=[("mamba-130m [cpu]", "mamba-130m [transformers]")])
    assert "## mamba-130m [cpu] against mamba-130m [transformers]" in made.markdown
    with pytest.raises(ValueError, match="'mamba-130m' names 2 runs"):
        report([tmp_path], pairs=[("mamba-130m", "mamba-130m [cpu]")])


def test_a_pair_that_is_not_there_is_named(tmp_path):
    path = write_run(tmp_path / "a", "mamba-130m")
    with pytest.raises(ValueError, match="no run of 'pythia-160m'; there are mamba-130m"):
        report([path], pairs=[("mamba-130m", "pythia-160m")])


def test_different_documents_stop_a_pair_that_was_asked_for_and_are_noted_otherwise(tmp_path):
    paths = [write_run(tmp_path / name, name, count=count) for name, count in (("a", 40), ("b", 30))]
    assert "Not compared: lambada_openai: the documents differ: 0 only" in report(paths).markdown
    with pytest.raises(ValueError, match="a against b: lambada_openai: the documents differ"):
        report(paths, pairs=[("a", "b")])


def test_a_report_needs_runs():
    with pytest.raises(ValueError, match="no runs given"):
        report([])


def test_a_report_is_written_whole(tmp_path):
    made = report([write_run(tmp_path / "a", "a"), write_run(tmp_path / "b", "b")])
    made.write(tmp_path / "out")
    written = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert written == {"report.md": made.markdown, "report.csv": made.csv, "paired.csv": made.paired_csv}


def test_bars_and_line_breaks_in_names_stay_in_their_cell(tmp_path):
    text = report([write_run(tmp_path / "a", "a|b\nc", tasks=("winogrande",))]).table
    body = text.split("\n\n")[0].splitlines()
    assert len(body) == 3
    assert "a\\|b c" in body[2]


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (markdown.fixed(44.167), "44.17"),
        (markdown.fixed(52341.7), "52,342"),
        (markdown.fixed(None), "—"),
        (markdown.printed(33.0, "acc"), "33.0"),
        (markdown.printed(5.04, "perplexity"), "5.04"),
        (markdown.measured(44.167, 0.69), "44.17 ± 0.69"),
        (markdown.measured(44.167, None), "44.17"),
        (markdown.signed(-2.5, bold_beyond=2), "**-2.50**"),
        (markdown.signed(2.0, bold_beyond=2), "+2.00"),
        (markdown.signed(12345.6), "+12,346"),
        (markdown.probability(0.0412), "0.041"),
        (markdown.probability(3.21e-9), "3.2e-09"),
        (markdown.probability(1.0), "1"),
        (markdown.significant(0.0123456), "0.0123"),
        (markdown.significant(1.5), "1.50"),
        (markdown.significant(3542.4), "3,542"),
        (markdown.ratio(None), "—"),
        (markdown.count(10042), "10,042"),
    ],
)
def test_a_number_gets_its_digits_in_one_place(made, wanted):
    assert made == wanted


@pytest.mark.parametrize(("experiment", "counted"), [("kill-training", "trainings"), ("kill-campaign", "evaluations")])
def test_the_tables_of_kills_say_what_n_counts(tmp_path, experiment, counted):
    record.write(tmp_path / "records.jsonl", [some_record(experiment=experiment, metric="kills", value=10.0, n=4)])
    assert f"\n- n: {counted}, each started again until it ended, " in report([tmp_path]).table
