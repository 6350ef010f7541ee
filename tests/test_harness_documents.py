"""The documents of the six tasks are checked field by field before a run, and a bad one is named by file and line."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from hub_layout import VALID, evaluated_file, fill
from mambalab.harness.data import DATASETS, check_documents


@pytest.fixture
def filled(tmp_path):
    return fill(tmp_path)


def test_every_task_has_its_published_count_of_documents():
    counts = {task: dataset.documents for task, dataset in DATASETS.items()}
    assert counts == {
        "lambada_openai": 5153,
        "hellaswag": 10042,
        "piqa": 1838,
        "arc_easy": 2376,
        "arc_challenge": 1172,
        "winogrande": 1267,
    }


def test_the_stock_task_files_ask_for_the_same_data_sets():
    yaml = pytest.importorskip("yaml")
    folder = Path(pytest.importorskip("lm_eval.tasks").__file__).parent

    class Loose(yaml.SafeLoader):
        pass

    Loose.add_multi_constructor("!", lambda loader, suffix, node: None)
    files = {
        "lambada_openai": "lambada/lambada_openai.yaml",
        "hellaswag": "hellaswag/hellaswag.yaml",
        "piqa": "piqa/piqa.yaml",
        "arc_easy": "arc/arc_easy.yaml",
        "arc_challenge": "arc/arc_challenge.yaml",
        "winogrande": "winogrande/default.yaml",
    }
    for task, dataset in DATASETS.items():
        wanted = yaml.load((folder / files[task]).read_text(), Loose)
        if "include" in wanted:
            wanted = yaml.load((folder / "arc" / wanted["include"]).read_text(), Loose) | wanted
        evaluated = wanted.get("test_split") or wanted.get("validation_split")
        asked = {wanted.get(f"{name}_split") for name in ("training", "validation", "test")} - {None}
        assert (wanted["dataset_path"], wanted["dataset_name"]) == (dataset.repo, dataset.config)
        assert (evaluated, asked) == (dataset.split, set(dataset.splits))


@pytest.mark.parametrize("task", DATASETS)
def test_whole_documents_are_counted(filled, task):
    assert check_documents(filled, task) == 2


def _changed(task, path, value):
    """A valid document of `task`, but for the field at `path` (dotted): `value`, or gone for None."""
    document = copy.deepcopy(VALID[task])
    *folders, last = path.split(".")
    place = document
    for folder in folders:
        place = place[folder]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document


BAD_DOCUMENTS = [
    ("lambada_openai", "text", None, "no field 'text'"),
    ("lambada_openai", "text", "", "'text' is empty"),
    ("lambada_openai", "text", "word", "after a space"),
    ("lambada_openai", "text", "a guess to come ", "after a space"),
    ("lambada_openai", "text", ["a", "b"], "must be of type str, not list"),
    ("hellaswag", "ctx_b", None, "no field 'ctx_b'"),
    ("hellaswag", "ctx_a", " ", "'ctx_a' is empty"),
    ("hellaswag", "activity_label", 3, "must be of type str, not int"),
    ("hellaswag", "endings", ["a", "b", "c"], "must hold 4 texts, not 3"),
    ("hellaswag", "endings", ["a", "b", "c", ""], "must hold texts"),
    ("hellaswag", "endings", ["a", "b", "c", 4], "must hold texts"),
    ("hellaswag", "endings", "abcd", "must be of type list"),
    ("hellaswag", "label", "4", "'label' is '4', not one of '0', '1', '2', '3'"),
    ("hellaswag", "label", "", "'label' is ''"),
    ("hellaswag", "label", 0, "must be of type str, not int"),
    ("piqa", "goal", "", "'goal' is empty"),
    ("piqa", "sol2", None, "no field 'sol2'"),
    ("piqa", "sol1", "half \ud83d a pair", "surrogate"),
    ("piqa", "label", 2, "not one of 0, 1"),
    ("piqa", "label", -1, "not one of 0, 1"),
    ("piqa", "label", "1", "must be of type int, not str"),
    ("piqa", "label", True, "must be of type int, not bool"),
    ("arc_easy", "question", "", "'question' is empty"),
    ("arc_easy", "choices", ["a"], "must be of type dict"),
    ("arc_easy", "choices.text", None, "no field 'text'"),
    ("arc_easy", "choices.text", ["steam", "ice"], "not 2 with 3"),
    ("arc_easy", "choices.label", ["A", "A", "B"], "repeat"),
    ("arc_easy", "choices.label", [], "not 3 with 0"),
    ("arc_challenge", "answerKey", "E", "'answerKey' is 'E', not one of 'A', 'B', 'C'"),
    ("arc_challenge", "answerKey", 0, "must be of type str"),
    ("winogrande", "sentence", "No gap in here.", "must have a gap"),
    ("winogrande", "sentence", "It ends in a _", "must have a gap"),
    ("winogrande", "option1", "", "'option1' is empty"),
    ("winogrande", "answer", "", "'answer' is ''"),
    ("winogrande", "answer", 1, "must be of type str, not int"),
]


@pytest.mark.parametrize(("task", "field", "value", "says"), BAD_DOCUMENTS)
def test_a_document_that_can_not_be_asked_is_named_by_file_and_line(filled, task, field, value, says):
    path = evaluated_file(filled, task)
    lines = [VALID[task], VALID[task], _changed(task, field, value), VALID[task]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=says) as caught:
        check_documents(filled, task)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert "\n" not in str(caught.value)


BAD_LINES = {
    "cut short": lambda line: line[:-5],
    "two documents": lambda line: line + line,
    "not JSON": lambda line: b"goal: open a jar",
    "a list": lambda line: b"[" + line + b"]",
    "a number": lambda line: b"3",
    "blank": lambda line: b"",
    "not UTF-8": lambda line: line.replace(b"a jar", b"a \xff jar"),
    "NaN": lambda line: line.replace(b": 0", b": NaN"),
    "nested without end": lambda line: b"[" * 100_000,
    "binary": lambda line: bytes(range(200, 256)),
    "another task's": lambda line: json.dumps(VALID["winogrande"]).encode(),
}


@pytest.mark.parametrize("damage", BAD_LINES.values(), ids=BAD_LINES)
@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_a_broken_line_is_named_by_file_and_number(filled, damage, ending):
    line = json.dumps(VALID["piqa"]).encode()
    path = evaluated_file(filled, "piqa")
    path.write_bytes(line + b"\n" + damage(line) + b"\n" + line + ending)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (each has its own words; file and line are the point)
        check_documents(filled, "piqa")
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", DATASETS)
@pytest.mark.parametrize("content", [b"", b"\n", b"\n \n"])
def test_an_empty_file_is_refused(filled, task, content):
    evaluated_file(filled, task).write_bytes(content)
    with pytest.raises(ValueError, match="is empty"):
        check_documents(filled, task)


@pytest.mark.parametrize("task", DATASETS)
def test_a_missing_file_is_refused_by_name(filled, task):
    evaluated_file(filled, task).unlink()
    with pytest.raises(ValueError, match=DATASETS[task].file(DATASETS[task].split)):
        check_documents(filled, task)


def test_the_few_shot_file_must_be_there_and_hold_objects(filled):
    train = filled / "baber" / "piqa" / "train.jsonl"
    train.write_text('{"goal": ')
    with pytest.raises(ValueError, match=r"train\.jsonl:1: not JSON"):
        check_documents(filled, "piqa")
    train.unlink()
    with pytest.raises(ValueError, match=r"train\.jsonl is missing"):
        check_documents(filled, "piqa")


def test_a_file_without_its_last_line_end_is_whole(filled):
    path = evaluated_file(filled, "piqa")
    path.write_text(path.read_text().rstrip("\n"))
    assert check_documents(filled, "piqa") == 2


def test_other_tasks_and_parquet_are_left_to_lm_eval(filled):
    assert check_documents(filled, "openbookqa") is None
    for split in DATASETS["piqa"].splits:
        (filled / DATASETS["piqa"].file(split)).rename(filled / "baber" / "piqa" / f"{split}.parquet")
    assert check_documents(filled, "piqa") is None


def test_the_real_sets_hold_what_the_published_numbers_are_over(data):
    counts = {task: check_documents(data / "zero_shot", task) for task in DATASETS}
    assert counts == {task: dataset.documents for task, dataset in DATASETS.items()}
