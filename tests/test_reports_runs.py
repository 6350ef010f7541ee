"""Runs are read whole, ours and lm-eval's, and whatever is no run is one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mambalab.reports import record
from mambalab.reports.runs import Run, labels, load_run, load_runs
from reports_cases import PROVENANCE, SIX, documents, records_of, some_record, write_lines, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "mamba-130m-0123", "mamba-130m")


def test_a_run_directory_holds_records_and_documents(run):
    loaded = load_run(run)
    assert loaded.model == "mamba-130m"
    assert set(loaded.samples) == set(SIX)
    assert len(loaded.samples["piqa"]) == 40
    assert loaded.samples["piqa"][0].values.keys() == {"acc", "acc_norm"}
    assert loaded.provenance["backend"] == "cpu"


def test_every_run_below_a_folder_is_found(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, name, tasks=("piqa",))
    assert [r.model for r in load_runs(tmp_path)] == ["a", "b"]
    with pytest.raises(ValueError, match="holds 2 runs, not one"):
        load_run(tmp_path)


def test_a_bare_records_file_is_a_run_for_each_model_and_backend(tmp_path):
    path = tmp_path / "records.jsonl"
    other = {**PROVENANCE, "backend": "transformers"}
    record.write(path, [some_record(), some_record(model="b"), some_record(provenance=other)])
    runs = load_runs(tmp_path)
    assert [(r.model, r.provenance["backend"]) for r in runs] == [
        ("mamba-130m", "cpu"),
        ("b", "cpu"),
        ("mamba-130m", "transformers"),
    ]
    assert labels(runs) == ["mamba-130m [cpu]", "b", "mamba-130m [transformers]"]


def test_runs_of_one_model_get_the_shortest_distinct_labels(tmp_path):
    half = {**PROVENANCE, "dtype": "float16"}
    record.write(tmp_path / "records.jsonl", [some_record(), some_record(provenance=half)])
    runs = load_runs(tmp_path)
    assert labels(runs) == ["mamba-130m [cpu, float32]", "mamba-130m [cpu, float16]"]
    assert labels([runs[0], runs[0]]) == ["mamba-130m 1", "mamba-130m 2"]
    assert labels([load_run(write_run(tmp_path / "x", "/weights/mine", tasks=("piqa",)))]) == ["mine"]
    again = [load_run(write_run(tmp_path / f"run-{i}", "m", tasks=("piqa",))) for i in "ab"]
    assert labels(again) == ["m (run-a)", "m (run-b)"]


def _cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


SPOILT = {
    "no records": (lambda r: (r / "records.jsonl").unlink(), "is not a finished run: it has no records.jsonl"),
    "empty records": (lambda r: _cut(r / "records.jsonl", 0), "records.jsonl is empty"),
    "records cut short": (lambda r: _cut(r / "records.jsonl", 1500), r"records.jsonl:\d: not JSON"),
    "a record without a backend": (
        lambda r: _edit(r / "records.jsonl", '"backend": "cpu", ', ""),
        r"records.jsonl:1: provenance must name the backend",
    ),
    "samples cut short": (lambda r: _cut(r / "samples" / "piqa.jsonl", 1500), r"piqa.jsonl:\d+: not JSON"),
    "samples cut at a line": (
        lambda r: write_lines(r / "samples" / "piqa.jsonl", documents("piqa", 40, 0)[:39]),
        "piqa acc was measured on 40 documents, its samples hold 39",
    ),
    "empty samples": (lambda r: _cut(r / "samples" / "piqa.jsonl", 0), "piqa.jsonl is empty"),
    "a sample of another form": (
        lambda r: write_lines(r / "samples" / "piqa.jsonl", [{"text": "x"}]),
        "piqa.jsonl:1: a sample needs doc_id and doc_hash",
    ),
    "a document twice": (
        lambda r: write_lines(r / "samples" / "piqa.jsonl", [documents("piqa", 1, 0)[0]] * 2),
        "piqa.jsonl:2: document 0 comes twice",
    ),
    "an infinite log-likelihood": (
        lambda r: _edit(r / "samples" / "lambada_openai.jsonl", '"perplexity": -', '"perplexity": -Infinity, "x": -'),
        "lambada_openai.jsonl:1: -Infinity is no measured number",
    ),
    "run.json cut short": (lambda r: _cut(r / "run.json", 5), "run.json: not JSON"),
    "run.json without a model": (lambda r: (r / "run.json").write_text("{}"), "run.json names no model"),
    "another run's records": (
        lambda r: (r / "run.json").write_text('{"model": "pythia-160m"}'),
        "a run of pythia-160m holds records of mamba-130m",
    ),
    "a record twice": (
        lambda r: record.write(r / "records.jsonl", [some_record()] * 2),
        "2 records of piqa acc for mamba-130m",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_run_is_one_clear_line(run, spoil, message):
    spoil(run)
    with pytest.raises(ValueError, match=message) as caught:
        load_run(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_a_record_edited_by_hand_does_not_follow_from_its_documents(tmp_path, metric):
    lines = documents("piqa", 40, 0)
    path = write_run(tmp_path / "r", "mamba-130m", tasks=("piqa",))
    good = {r.metric: r for r in records_of("mamba-130m", "piqa", lines, PROVENANCE)}
    value = good[metric].value
    edited = [some_record(**{**vars(r), "value": r.value + 0.1 * (r.metric == metric)}) for r in good.values()]
    record.write(path / "records.jsonl", edited)
    with pytest.raises(ValueError, match=f"piqa {metric} is recorded as {value + 0.1}, its samples give {value}"):
        load_run(path)


def test_an_edited_perplexity_does_not_follow_from_its_documents(tmp_path):
    path = write_run(tmp_path / "r", "mamba-130m", tasks=("lambada_openai",))
    edited = [some_record(**{**vars(r), "value": r.value * 0.99}) for r in record.read(path / "records.jsonl")]
    record.write(path / "records.jsonl", edited)
    with pytest.raises(ValueError, match="lambada_openai perplexity is recorded as"):
        load_run(path)


NO_RUNS = {
    "nothing there": (lambda p: p / "gone", FileNotFoundError, "no file .*gone"),
    "an empty folder": (lambda p: p, ValueError, "is not a run: it holds neither"),
    "text": (lambda p: _file(p / "notes.md", "hello"), ValueError, "notes.md: not JSON"),
    "another JSON file": (lambda p: _file(p / "x.json", "{}"), ValueError, "x.json is not an lm-eval results file"),
    "empty results": (
        lambda p: _file(p / "results_1.json", '{"results": {}, "config": {"model": "hf"}}'),
        ValueError,
        "holds no metric like 'acc,none'",
    ),
    "results of another form": (
        lambda p: _file(p / "results_1.json", '{"results": {"piqa": 0.5}, "config": {"model": "hf"}}'),
        ValueError,
        "is not in lm-eval's form",
    ),
    "results without a count": (
        lambda p: _file(p / "r.json", '{"results": {"piqa": {"acc,none": 0.5}}, "config": {"model": "hf"}}'),
        ValueError,
        "piqa acc: n must be at least 1",
    ),
    "results cut short": (lambda p: _file(p / "results_1.json", '{"results": {'), ValueError, "not JSON"),
}


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(("make", "error", "message"), NO_RUNS.values(), ids=NO_RUNS)
def test_what_is_no_run_is_one_clear_line(tmp_path, make, error, message):
    with pytest.raises(error, match=message) as caught:
        load_runs(make(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "model"),
    [
        ({"model": "hf", "model_args": "pretrained=EleutherAI/pythia-160m,dtype=float16"}, "EleutherAI/pythia-160m"),
        ({"model": "hf", "model_args": {"pretrained": "a/b", "peft": "c/d"}}, "a/b+c/d"),
        ({"model": "hf", "model_args": {"pretrained": "a/b", "revision": "step3000"}}, "a/b@step3000"),
        ({"model": "hf", "model_args": {"pretrained": "a/b", "revision": "step143000"}}, "a/b"),
        ({"model": "dummy", "model_args": {}}, "dummy"),
        ({"model": "dummy", "model_args": None}, "dummy"),
    ],
)
def test_lm_evals_arguments_say_which_weights_ran(tmp_path, config, model):
    content = {
        "results": {"piqa": {"alias": "piqa", "acc,none": 0.5, "acc_stderr,none": "N/A"}},
        "n-samples": {"piqa": {"original": 1838, "effective": 10}},
        "config": config,
    }
    run = load_run(_file(tmp_path / "results_2026.json", json.dumps(content)))
    assert run.model == model
    assert run.provenance["backend"] == f"lm-eval:{config['model']}"
    assert [(r.value, r.stderr, r.n) for r in run.records] == [(0.5, None, 10)]


QUESTIONS = [{"q": f"Is {i} | odd?", "choices": ["no way", "yes"], "gold": i % 2} for i in range(6)]


def _questions(**_):
    import datasets

    return datasets.DatasetDict({"test": datasets.Dataset.from_list(QUESTIONS)})


COMMON = {"custom_dataset": _questions, "dataset_path": "none", "test_split": "test", "metadata": {"version": 1.0}}
CHOICE = {
    "task": "parity_choice",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{q}}\nAnswer:",
    "doc_to_target": "gold",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
LAST_WORD = {
    "task": "parity_word",
    "output_type": "loglikelihood",
    "doc_to_text": "{{q}}",
    "doc_to_target": " {{choices[gold]}}",
    "metric_list": [{"metric": "perplexity", "aggregation": "perplexity"}, {"metric": "acc"}],
}


@pytest.fixture(scope="module")
def from_lm_eval(tmp_path_factory):
    """What lm-eval itself writes with --output_path and --log_samples, for a model that likes short answers."""
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    class Short(LM):
        def loglikelihood(self, requests) -> Any:
            return [(-0.37 * len(request.arguments[1]), False) for request in requests]

        def loglikelihood_rolling(self, requests) -> Any:
            raise AssertionError("no task asks for it")

        def generate_until(self, requests) -> Any:
            raise AssertionError("no task asks for it")

    # Its decorator hides simple_evaluate's parameters from the type checker.
    evaluate: Any = lm_eval.simple_evaluate
    folder = tmp_path_factory.mktemp("lm_eval")
    tracker = EvaluationTracker(output_path=str(folder / "out"))
    results = evaluate(
        model=Short(),
        tasks=[{**COMMON, **task} for task in (CHOICE, LAST_WORD)],
        limit=5,
        bootstrap_iters=0,
        evaluation_tracker=tracker,
        task_manager=TaskManager(include_defaults=False),
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, lines in samples.items():
        tracker.save_results_samples(task_name=task, samples=lines)
    return folder / "out", results


def test_what_lm_eval_writes_is_read_as_a_run(from_lm_eval):
    folder, results = from_lm_eval
    run = load_run(folder)
    assert isinstance(run, Run)
    assert run.model == "Short"
    assert {(r.task, r.metric) for r in run.records} == {
        ("parity_choice", "acc"),
        ("parity_choice", "acc_norm"),
        ("parity_word", "perplexity"),
        ("parity_word", "acc"),
    }
    for r in run.records:
        assert r.value == results["results"][r.task][f"{r.metric},none"]
        assert r.n == len(run.samples[r.task]) == 5
        assert r.provenance["backend"] == "lm-eval:Short"
        assert r.provenance["documents"] == 6
        assert r.provenance["versions"]["lm_eval"] == results["lm_eval_version"]


def test_lm_evals_documents_are_held_against_its_results(from_lm_eval, tmp_path):
    folder, _ = from_lm_eval
    for file in folder.rglob("*.json*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (samples,) = tmp_path.glob("samples_parity_word_*.jsonl")
    samples.write_text("".join(samples.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(ValueError, match="parity_word perplexity was measured on 5 documents, its samples hold 4"):
        load_run(tmp_path)
