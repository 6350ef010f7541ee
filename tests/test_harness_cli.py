"""The commands do what they say, from an untrained checkpoint to a report, on small checkpoints and miniature data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command import TOKENIZER, mambalab, process
from mambalab.harness.task_files import TASKS
from mambalab.models import build, checkpoint, parameter_count
from mambalab.models.registry import SPECS
from mambalab.models.synthetic import SYNTHETIC
from mambalab.reports import record


def evaluate(out: Path, *arguments: object) -> list[Path]:
    """The run directories of an evaluation."""
    answer = mambalab("eval", *arguments, "--out", out)
    assert answer.status == 0, answer.err
    said = [line.removeprefix("records: ") for line in answer.err.splitlines() if line.startswith("records: ")]
    return [Path(line) for line in said]


def values(run: Path) -> dict[tuple[str, str], tuple[float, float | None, int]]:
    """(value, standard error, n) of every (task, metric)."""
    return {(r.task, r.metric): (r.value, r.stderr, r.n) for r in record.read(run / "records.jsonl")}


@pytest.fixture(scope="module")
def of_both_layouts(places, tmp_path_factory) -> list[Path]:
    """Runs of the same weights in both layouts over documents of all six tasks."""
    out = tmp_path_factory.mktemp("layouts")
    return evaluate(out, places["mamba"], places["hf"], "--data", places["data"], "--limit", 4)


def test_models_lists_every_known_checkpoint():
    lines = mambalab("models").out.splitlines()
    for spec in SPECS.values():
        (line,) = [line for line in lines if line.split()[:1] == [spec.name]]
        assert f"{spec.n_parameters:,}" in line
        assert spec.hub in line


def test_models_says_where_a_row_of_the_paper_differs():
    lines = mambalab("models").out.splitlines()
    for row in SYNTHETIC.values():
        (line,) = [line for line in lines if line.split()[:1] == [row.name]]
        assert f"{parameter_count(build(row.config, seed=None)):,}" in line
        assert (row.params or "") in line
        assert line.endswith(row.note)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["eval", "--help"]])
def test_help_is_printed_where_it_is_asked_for_or_nothing_is(arguments):
    answer = mambalab(*arguments)
    assert answer.status == 0
    assert answer.out.startswith("Usage: mambalab")


def test_the_version_is_printed():
    assert mambalab("--version").out.split()[0] == "mambalab"


def test_both_layouts_of_the_same_weights_give_the_same_numbers(of_both_layouts):
    ours, theirs = map(values, of_both_layouts)
    assert ours == theirs
    assert {task for task, _ in ours} == set(TASKS)


def test_two_models_stand_in_one_table_and_are_compared(of_both_layouts):
    table = mambalab("report", *of_both_layouts).out
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert {"mamba", "mamba-hf"} <= set(rows)
    assert "document by document" in table
    assert "random weights" in table


def test_eval_prints_what_report_reads_from_its_runs(places, tmp_path):
    arguments = ("--data", places["data"], "--tasks", "piqa", "--limit", 4, "--out", tmp_path / "runs")
    answer = mambalab("eval", places["mamba"], *arguments)
    assert answer.out == mambalab("report", tmp_path / "runs", "--out", tmp_path / "report").out
    assert (tmp_path / "report" / "report.md").read_text() in answer.out
    assert (tmp_path / "report" / "report.csv").read_text().startswith("model,task,metric")


@pytest.mark.parametrize("limit", [1, 3])
def test_a_limit_takes_the_first_documents(places, of_both_layouts, tmp_path, limit):
    (run,) = evaluate(tmp_path, places["mamba"], "--data", places["data"], "--tasks", "piqa,arc_easy", "--limit", limit)
    assert {n for _, _, n in values(run).values()} == {limit}
    whole = (of_both_layouts[0] / "samples" / "piqa.jsonl").read_text().splitlines()
    for line, first in zip((run / "samples" / "piqa.jsonl").read_text().splitlines(), whole, strict=False):
        ours, theirs = json.loads(line), json.loads(first)
        assert ours["doc_hash"] == theirs["doc_hash"]
        for (a, _), (b, _) in zip(ours["filtered_resps"], theirs["filtered_resps"], strict=True):
            assert float(a) == pytest.approx(float(b), abs=1e-4)


def test_a_finished_run_is_kept_and_said_to_be(places, tmp_path, caplog):
    arguments = (places["mamba"], "--data", places["data"], "--tasks", "piqa", "--limit", 2)
    (run,) = evaluate(tmp_path, *arguments)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert evaluate(tmp_path, *arguments) == [run]
    assert f"{run} is complete already: kept" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_run_without_its_records_is_done_again(places, tmp_path):
    arguments = (places["mamba"], "--data", places["data"], "--tasks", "piqa", "--limit", 2)
    (run,) = evaluate(tmp_path, *arguments)
    records = (run / "records.jsonl").read_text()
    (run / "records.jsonl").unlink()
    assert evaluate(tmp_path, *arguments) == [run]
    assert values(run) == {(r.task, r.metric): (r.value, r.stderr, r.n) for r in map(_record, records.splitlines())}


def _record(line: str) -> record.Record:
    return record.from_json(json.loads(line))


def test_whatever_decides_a_number_gives_another_run(places, tmp_path):
    other = shutil.copytree(places["data"], tmp_path / "data")
    path = other / "baber/piqa/validation.jsonl"
    path.write_bytes(path.read_bytes().replace(b"the", b"THE", 1))
    (other / "manifest.json").unlink()
    usual = (places["mamba"], "--data", places["data"], "--tasks", "piqa", "--limit", 1)
    changes = {
        "nothing": usual,
        "dtype": (*usual, "--dtype", "bfloat16"),
        "parity": (*usual, "--parity", "fp16"),
        "limit": (*usual, "--limit", 2),
        "examples": (*usual, "--num-fewshot", 1),
        "seed": (*usual, "--seed", 7),
        "length": (*usual, "--max-length", 32),
        "backend": (*usual, "--backend", "reference"),
        "data": (*usual, "--data", other),
        "model": (places["hf"], *usual[1:]),
    }
    runs = {name: evaluate(tmp_path / "runs", *arguments)[0] for name, arguments in changes.items()}
    # The reference is what a CPU without Numba's kernels gets anyway.
    backends = {name: record.read(run / "records.jsonl")[0].provenance["backend"] for name, run in runs.items()}
    if backends["nothing"] == "reference":
        del runs["backend"]
    assert len({run.name for run in runs.values()}) == len(runs)


def test_where_the_files_lie_does_not_give_another_run(places, tmp_path):
    data, model = shutil.copytree(places["data"], tmp_path / "d"), shutil.copytree(places["mamba"], tmp_path / "mamba")
    (first,) = evaluate(tmp_path, places["mamba"], "--data", places["data"], "--tasks", "piqa", "--limit", 1)
    (second,) = evaluate(tmp_path, model, "--data", data, "--tasks", "piqa", "--limit", 1, "--tokenizer", TOKENIZER)
    assert first == second


def test_examples_in_the_prompt_change_the_scores_and_are_recorded(places, of_both_layouts, tmp_path):
    arguments = (places["mamba"], "--data", places["data"], "--tasks", "piqa", "--limit", 4, "--num-fewshot", 2)
    (run,) = evaluate(tmp_path, *arguments)
    assert {r.setting["num_fewshot"] for r in record.read(run / "records.jsonl")} == {2}
    prompts = [
        {json.loads(line)["prompt_hash"] for line in (path / "samples" / "piqa.jsonl").read_text().splitlines()}
        for path in (run, of_both_layouts[0])
    ]
    assert not prompts[0] & prompts[1]
    assert "few-shot on piqa" in mambalab("report", run).out


@pytest.mark.parametrize(("tasks", "status"), [("piqa,hellaswag", 0), ("boolq", 2)])
def test_data_from_a_directory_opens_no_socket(places, tmp_path, monkeypatch, tasks, status):
    def refuse(*given):
        raise AssertionError(f"a socket was opened: {given}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    arguments = ("--data", places["data"], "--tasks", tasks, "--limit", 1, "--out", tmp_path)
    assert mambalab("eval", places["mamba"], *arguments).status == status


def test_a_transformers_model_goes_through_the_same_command(places, tmp_path):
    (run,) = evaluate(
        tmp_path, places["neox"], "--data", places["data"], "--tasks", "piqa,lambada_openai", "--limit", 4
    )
    assert {r.provenance["backend"] for r in record.read(run / "records.jsonl")} == {"transformers"}
    assert ("lambada_openai", "perplexity") in values(run)


def test_an_untrained_checkpoint_is_reproducible_and_says_that_it_is_random(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        shape = ("--d-model", 16, "--n-layer", 1, "--vocab-size", 50, "--seed", seed)
        assert mambalab("init", tmp_path / name, *shape).status == 0
    weights = {name: checkpoint.load(tmp_path / name).state_dict() for name in "abc"}
    assert all(torch.equal(weights["a"][key], weights["b"][key]) for key in weights["a"])
    assert not torch.equal(weights["a"]["lm_head.weight"], weights["c"]["lm_head.weight"])
    assert "random weights, drawn from seed 1" in (tmp_path / "a" / "NOTE.txt").read_text()


def test_converting_there_and_back_gives_the_same_files(places, tmp_path):
    assert mambalab("convert", places["hf"], tmp_path / "back", "--layout", "mamba_ssm").status == 0
    ours, theirs = (checkpoint.load(path).state_dict() for path in (places["mamba"], tmp_path / "back"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    for name in ("tokenizer.json", "NOTE.txt"):
        assert (tmp_path / "back" / name).read_bytes() == (places["mamba"] / name).read_bytes()


def test_parity_agrees_and_its_control_does_not(places, tmp_path):
    arguments = ("--data", places["data"], "--tasks", "piqa,arc_easy", "--limit", 4, "--out", tmp_path, "--control")
    answer = mambalab("parity", places["mamba"], *arguments)
    assert answer.status == 0, answer
    lines = answer.out.splitlines()
    assert [line.split(":")[0] for line in lines if " agrees;" in line] == ["piqa", "arc_easy"]
    assert sum("DISAGREES" in line for line in lines) == 2
    assert record.read(tmp_path / "records.jsonl")


def test_lm_evals_own_command_runs_our_adapter_and_its_results_make_the_same_table(places, tmp_path):
    # The stock task files name the data sets as on the hub, so the data directory is the current one.
    data = shutil.copytree(places["data"], tmp_path / "data")
    arguments = ("run", "--model", "mambalab", "--model_args", f"pretrained={places['mamba']}", "--limit", 4)
    arguments += ("--tasks", "piqa,lambada_openai", "--output_path", tmp_path / "theirs", "--log_samples")
    answer = process("lm-eval", *arguments, folder=data, HF_DATASETS_CACHE=str(tmp_path / "cache"))
    assert answer.status == 0, answer.err[-2000:]
    report = mambalab("report", tmp_path / "theirs")
    assert report.status == 0, report.err
    ours = ("--data", places["data"], "--tasks", "piqa,lambada_openai", "--limit", 4)
    (run,) = evaluate(tmp_path / "ours", places["mamba"], *ours)
    theirs = _cells(report.out)
    assert theirs == _cells(mambalab("report", run).out)
    assert sum(cell[0].isdigit() for cell in theirs) == 3


def _cells(report: str) -> list[str]:
    """The values in the first table's only row (lm-eval draws the standard error of a perplexity by bootstrap)."""
    row = [line for line in report.splitlines() if line.startswith("|")][2]
    return [cell.split("±")[0].strip() for cell in row.split("|")[2:-1]]
