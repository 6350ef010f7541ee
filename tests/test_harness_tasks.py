"""Task files of one's own, of every kind lm-eval has, go through the same command; a bad one is one clear line."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from command import files, mambalab, refused
from lm_eval.tasks import TaskManager
from mambalab.harness import lm
from mambalab.harness.tokenizer import load_tokenizer
from mambalab.models import checkpoint
from mambalab.models.generate import generate
from mambalab.reports import record

WORDS = ["The crew lifts the boat", "A lamp stood on the long table", "Nobody saw the sea"]
CHOICE = """
task: own_choice
dataset_path: json
dataset_kwargs: {data_files: {test: documents.jsonl, train: [documents.jsonl]}}
output_type: multiple_choice
test_split: test
fewshot_split: train
doc_to_text: "{{text}}"
doc_to_choice: ["{{text}} again", " never"]
doc_to_target: 1
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """
task: own_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: documents.jsonl}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}, {metric: word_perplexity}]
"""
GENERATE = """
task: own_generation
dataset_path: json
dataset_kwargs: {data_files: {test: documents.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{text}}"
doc_to_target: "{{continued}}"
generation_kwargs: {until: ["\\u0001"], max_gen_toks: 5}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def model(places):
    return checkpoint.load(places["mamba"])


@pytest.fixture(scope="module")
def tokenizer(places):
    return load_tokenizer(None, places["mamba"])


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, model, tokenizer) -> Path:
    """A folder of three task files and their documents; the model's own continuation stands in the first two."""
    folder = tmp_path_factory.mktemp("tasks")
    prompts = [tokenizer(text)["input_ids"] for text in WORDS]
    continued = [tokenizer.decode(row) for row in generate(model, prompts, 5)]
    continued[-1] = "something else"
    lines = [json.dumps({"text": t, "continued": c}) + "\n" for t, c in zip(WORDS, continued, strict=True)]
    (folder / "documents.jsonl").write_text("".join(lines))
    for name, text in {"choice": CHOICE, "rolling": ROLLING, "generation": GENERATE}.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def found(places, tasks, tmp_path_factory) -> dict[tuple[str, str], record.Record]:
    """Every number of one evaluation of the three task files."""
    out = tmp_path_factory.mktemp("runs")
    names = ",".join(str(tasks / f"{name}.yaml") for name in ("choice", "rolling", "generation"))
    answer = mambalab("eval", places["mamba"], "--data", places["data"], "--tasks", names, "--out", out)
    assert answer.status == 0, answer.err
    assert "own_rolling" in answer.out
    run = next(out.iterdir())
    return {(r.task, r.metric): r for r in record.read(run / "records.jsonl")}


def _log_probabilities(model, tokens: list[int]) -> torch.Tensor:
    """log p of each token but the first, from one pass over all of them."""
    with torch.inference_mode():
        logits, _ = model(torch.tensor([tokens]))
    chosen = torch.log_softmax(logits[0, :-1].float(), -1)
    return chosen.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


def test_rolling_perplexity_is_that_of_one_pass_over_each_text(found, model, tokenizer):
    texts = [tokenizer(text)["input_ids"] for text in WORDS]
    total = sum(float(_log_probabilities(model, [tokenizer.eos_token_id, *ids]).sum()) for ids in texts)
    bytes_, words = sum(len(text.encode()) for text in WORDS), sum(len(text.split()) for text in WORDS)
    assert found["own_rolling", "byte_perplexity"].value == pytest.approx(math.exp(-total / bytes_), rel=1e-5)
    assert found["own_rolling", "word_perplexity"].value == pytest.approx(math.exp(-total / words), rel=1e-5)
    assert found["own_rolling", "byte_perplexity"].n == len(WORDS)


def test_choices_are_scored_by_their_log_likelihood(found, model, tokenizer):
    right = 0
    for text in WORDS:
        context = tokenizer(text)["input_ids"]
        choices = [tokenizer(text + f" {rest}")["input_ids"] for rest in (f"{text} again", " never")]
        sums = [float(_log_probabilities(model, ids)[len(context) - 1 :].sum()) for ids in choices]
        right += sums[1] > sums[0]
    assert found["own_choice", "acc"].value == pytest.approx(right / len(WORDS))


def test_generation_is_the_models_own_greedy_continuation(found):
    assert found["own_generation", "exact_match"].value == pytest.approx(2 / 3)


def test_a_task_file_is_found_from_the_current_directory_and_its_documents_beside_it(
    places, tasks, tmp_path, monkeypatch
):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "below").mkdir()
    shutil.copytree(tasks, tmp_path / "below" / "tasks")
    monkeypatch.chdir(tmp_path / "below")
    for data in ([], ["--data", places["data"]]):
        answer = mambalab("eval", places["mamba"], "--tasks", "./tasks/choice.yaml,tasks/rolling.yaml", *data)
        assert answer.status == 0, answer.err
        assert {"own_choice", "own_rolling"} <= set(answer.out.replace("|", " ").split())
    assert (tmp_path / "below" / "runs").is_dir()


def test_a_changed_task_file_or_document_gives_another_run(places, tasks, tmp_path):
    own = shutil.copytree(tasks, tmp_path / "tasks")

    def run() -> str:
        arguments = ("--data", places["data"], "--tasks", own / "choice.yaml", "--out", tmp_path / "runs")
        answer = mambalab("eval", places["mamba"], *arguments)
        return answer.err.splitlines()[-1]

    first = run()
    assert run() == first
    path = own / "documents.jsonl"
    path.write_text(path.read_text().replace("Nobody", "Everybody"))
    second = run()
    (own / "choice.yaml").write_text(CHOICE.replace(" never", " always"))
    assert len({first, second, run()}) == 3


def test_examples_come_from_the_task_files_own_split(places, tasks, tmp_path):
    arguments = ("--data", places["data"], "--tasks", tasks / "choice.yaml", "--num-fewshot", 2, "--out", tmp_path)
    answer = mambalab("eval", places["mamba"], *arguments)
    assert answer.status == 0, answer.err
    assert "few-shot on own_choice" in answer.out


def test_simple_evaluate_gives_the_same_numbers(places, tasks, found, tmp_path, monkeypatch):
    assert lm.MambaLM  # imported, it is registered
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tasks)
    # Its decorator hides its parameters from type checkers.
    simple_evaluate: Any = lm_eval.simple_evaluate
    results = simple_evaluate(
        model="mambalab",
        model_args=f"pretrained={places['mamba']},dtype=float32",
        tasks=["own_choice", "own_rolling", "own_generation"],
        task_manager=TaskManager(include_defaults=False, include_path=str(tasks)),
        bootstrap_iters=0,
    )
    theirs = {
        (task, key.removesuffix(",none")): value
        for task, metrics in results["results"].items()
        for key, value in metrics.items()
        if key.endswith(",none") and "_stderr" not in key
    }
    assert theirs == {key: r.value for key, r in found.items()}


BAD = {
    "no file": (None, "no task file at {path}"),
    "broken YAML": ("task: [a\nb: {", "task file {path} can't be read: "),
    "a list": ("- a\n- b\n", "task file {path} can't be read: Expected YAML dict"),
    "nothing": ("", "task file {path} is empty"),
    "a group of nothing": ("group: own\ntask: []\n", "task {path}"),
    "a number for a list": (CHOICE + "filter_list: 1\n", "task file {path}: filter_list must be a list, not 1"),
    "a word for a number": (CHOICE + "num_fewshot: many\n", "{path}: num_fewshot must be an integer, not 'many'"),
    "truth for a number": (CHOICE + "repeats: true\n", "{path}: repeats must be an integer, not True"),
    "less than no examples": (CHOICE + "num_fewshot: -1\n", "{path}: num_fewshot must be at least 0"),
    "a metric without a name": (CHOICE.replace("metric: acc,", ""), "each entry of metric_list must name its metric"),
    "a NUL in a name": (CHOICE.replace("[documents.jsonl]", '["\\0"]'), "{path} or its documents"),
    "an include that is not there": ("include: none.yaml\ntask: own\n", "none.yaml"),
    "a function that is not there": ("task: own\ndataset_path: json\ndoc_to_text: !function own.f\n", "own"),
    "no name": (CHOICE.replace("task: own_choice", ""), "task file {path} needs task, a text, not None"),
    "a name that leads elsewhere": (
        CHOICE.replace("own_choice", "../../own"),
        "{path}: task must be a name that a file",
    ),
    "a name with a NUL": (CHOICE.replace("own_choice", '"a\\0b"'), "{path}: task must be a name", "not 'a\\x00b'"),
    "no documents' place": (CHOICE.replace("dataset_path: json", ""), "task file {path} needs dataset_path"),
    "an unknown kind": (CHOICE.replace("multiple_choice", "telepathy"), "{path} or its documents", "telepathy"),
    "an unknown split": (CHOICE.replace("test_split: test", "test_split: exam"), "{path} or its documents", "exam"),
    "documents that are not there": (CHOICE.replace("documents.jsonl", "none.jsonl"), "{path} or its", "none.jsonl"),
    "a broken template": (CHOICE.replace('"{{text}}"', '"{{text"'), "{path} or its documents", "TemplateSyntaxError"),
    "a field that is not there": (
        GENERATE.replace("{{text}}", "{{text.a.b}}"),
        "{path} or its documents",
        "UndefinedError",
    ),
    "a metric that is not there": (CHOICE.replace("metric: acc,", "metric: charm,"), "own_choice gave no number"),
    "a longer text than may be": (GENERATE.replace("toks: 5", "toks: 4096"), "max_gen_toks 4096", "max_length 2048"),
}


@pytest.mark.parametrize(("text", "says"), [(t, s) for t, *s in BAD.values()], ids=BAD)
def test_a_bad_task_file_is_one_clear_line(places, tasks, tmp_path, text, says):
    path = tmp_path / "own.yaml"
    shutil.copy(tasks / "documents.jsonl", tmp_path)
    if text is not None:
        path.write_text(text)
    before = files(tmp_path)
    out = tmp_path / "out"
    answer = mambalab("eval", places["mamba"], "--data", places["data"], "--tasks", path, "--limit", 1, "--out", out)
    # Some are seen only when the prompts are made, with a progress bar begun.
    line = refused(answer) if "/s]" not in answer.err else answer.err.splitlines()[-1]
    assert answer.status == 2
    assert line.startswith("mambalab: ")
    assert all(part.format(path=path) in line for part in says)
    # What the model has answered by then is kept for the next attempt.
    assert {name: size for name, size in files(tmp_path).items() if "answers-" not in name} == before


@pytest.mark.parametrize("content", ["null", 'null\n{"text": "a"}', '{"text": "a"}\nnull', "[1]", "3", "{", "[{}, 3]"])
def test_documents_that_are_no_json_objects_are_refused_before_they_crash_the_reader(places, tasks, tmp_path, content):
    own = shutil.copytree(tasks, tmp_path / "own")
    (own / "documents.jsonl").write_text(content)
    line = refused(mambalab("eval", places["mamba"], "--tasks", own / "choice.yaml", "--out", tmp_path / "out"))
    assert str(own / "documents.jsonl") in line


def test_documents_in_one_json_array_are_taken(places, tasks, tmp_path):
    own = shutil.copytree(tasks, tmp_path / "own")
    (own / "documents.jsonl").write_text('[{"text": "The crew"},\n{"text": "lifts"}]')
    asked = ("--data", places["data"], "--tasks", own / "choice.yaml", "--out", tmp_path / "out")
    assert mambalab("eval", places["mamba"], *asked).status == 0


def test_a_task_file_that_links_to_itself_is_none(places, tmp_path):
    (tmp_path / "own.yaml").symlink_to(tmp_path / "own.yaml")
    asked = ("--tasks", tmp_path / "own.yaml", "--out", tmp_path / "out")
    assert f"no task file at {tmp_path}/own.yaml" in refused(mambalab("eval", places["mamba"], *asked))


def test_two_tasks_of_one_name_are_refused(places, tasks, tmp_path):
    shutil.copytree(tasks, tmp_path / "again")
    names = f"{tasks / 'choice.yaml'},{tmp_path / 'again' / 'choice.yaml'}"
    line = refused(
        mambalab("eval", places["mamba"], "--data", places["data"], "--tasks", names, "--out", tmp_path / "o")
    )
    assert "own_choice is among the tasks already" in line


def test_parity_refuses_a_task_that_generates(places, tasks, tmp_path):
    arguments = ("--data", places["data"], "--tasks", tasks / "generation.yaml", "--out", tmp_path)
    line = refused(mambalab("parity", places["mamba"], *arguments))
    assert "generation.yaml can't be compared" in line
    assert "own_generation (generate_until)" in line


def test_what_a_stock_task_asks_has_one_digest_in_every_process():
    # Hash seeds and addresses differ between processes; a finished run would never be found again.
    code = (
        "import sys\nfrom pathlib import Path\nfrom mambalab.harness.demo import MINIATURE\n"
        "from mambalab.harness.task_files import TASKS, load_tasks, task_digest\n"
        "tasks = load_tasks(TASKS, MINIATURE)['tasks']\n"
        "print('DIGESTS', *(task_digest(task, limit=3, num_fewshot=None) for task in tasks.values()))\n"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    first, second = (run.stdout.splitlines()[-1] for run in runs)
    assert first == second
    assert len(set(first.split())) == 7
