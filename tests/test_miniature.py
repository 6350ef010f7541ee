"""The bundled miniature task files: official schemas, right in number and balance, and loadable by stock lm-eval."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from mambalab.harness.demo import END_OF_TEXT, MINIATURE, VOCAB_SIZE, build_tokenizer, sentences

HELLASWAG = {
    "ind": int,
    "activity_label": str,
    "ctx_a": str,
    "ctx_b": str,
    "ctx": str,
    "endings": list,
    "source_id": str,
    "split": str,
    "split_type": str,
    "label": str,
}
PIQA = {"goal": str, "sol1": str, "sol2": str, "label": int}
ARC = {"id": str, "question": str, "choices": dict, "answerKey": str}
WINOGRANDE = {"sentence": str, "option1": str, "option2": str, "answer": str}

# Each task's evaluated file, its other files, its fields.
TASKS = {
    "lambada_openai": ("EleutherAI/lambada_openai/test.jsonl", [], {"text": str}),
    "hellaswag": ("Rowan/hellaswag/validation.jsonl", ["train"], HELLASWAG),
    "piqa": ("baber/piqa/validation.jsonl", ["train"], PIQA),
    "arc_easy": ("allenai/ai2_arc/ARC-Easy/test.jsonl", ["train", "validation"], ARC),
    "arc_challenge": ("allenai/ai2_arc/ARC-Challenge/test.jsonl", ["train", "validation"], ARC),
    "winogrande": ("allenai/winogrande/winogrande_xl/validation.jsonl", ["train"], WINOGRANDE),
}
CHOICE_TASKS = [task for task in TASKS if task != "lambada_openai"]
FILES = [(task, evaluated) for task, (evaluated, _, _) in TASKS.items()]
FILES += [
    (task, f"{evaluated.rpartition('/')[0]}/{split}.jsonl") for task, (evaluated, s, _) in TASKS.items() for split in s
]
IN_PROCESS_OF_ITS_OWN = """
import json, pathlib, lm_eval, lm_eval.tasks
folder = pathlib.Path(lm_eval.tasks.__file__).parent
folders = [str(folder / name) for name in ("lambada", "hellaswag", "piqa", "arc", "winogrande")]
manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=folders)
tasks = ["lambada_openai", "hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande"]
found = lm_eval.simple_evaluate(model="dummy", tasks=tasks, task_manager=manager, bootstrap_iters=0)
counts = {task: n["effective"] for task, n in found["n-samples"].items()}
print(json.dumps({"counts": counts, "results": found["results"]}))
"""


def documents(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (MINIATURE / name).read_text(encoding="utf-8").splitlines()]


def evaluated(task: str) -> list[dict[str, Any]]:
    return documents(TASKS[task][0])


def choices_and_answer(task: str, document: dict[str, Any]) -> tuple[list[str], int]:
    """The texts to choose from and the index of the right one, read as the stock task file reads them."""
    if task == "hellaswag":
        return document["endings"], int(document["label"])
    if task == "piqa":
        return [document["sol1"], document["sol2"]], document["label"]
    if task == "winogrande":
        return [document["option1"], document["option2"]], ["1", "2"].index(document["answer"])
    return document["choices"]["text"], document["choices"]["label"].index(document["answerKey"])


@pytest.mark.parametrize(("task", "name"), FILES, ids=[name for _, name in FILES])
def test_fields_and_types_are_the_official_ones(task, name):
    for document in documents(name):
        assert {field: type(value) for field, value in document.items()} == TASKS[task][2]


@pytest.mark.parametrize("task", TASKS)
def test_there_are_twenty_documents_and_no_two_are_equal(task):
    texts = [json.dumps({k: v for k, v in d.items() if k not in ("id", "ind", "source_id")}) for d in evaluated(task)]
    assert len(texts) >= 20
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("task", ["arc_easy", "arc_challenge", "hellaswag"])
def test_identifiers_are_distinct(task):
    names = [document.get("id", document.get("ind")) for document in evaluated(task)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("task", [task for task in TASKS if TASKS[task][1]])
def test_small_splits_hold_documents_of_the_evaluated_one(task):
    name, splits, _ = TASKS[task]
    for split in splits:
        small = documents(f"{name.rpartition('/')[0]}/{split}.jsonl")
        assert small == evaluated(task)[: len(small)] != []


@pytest.mark.parametrize("task", CHOICE_TASKS)
def test_choices_are_distinct_texts_and_the_answer_is_one_of_them(task):
    for document in evaluated(task):
        choices, answer = choices_and_answer(task, document)
        assert 0 <= answer < len(choices)
        assert len(set(choices)) == len(choices)
        assert all(isinstance(choice, str) and choice.strip() for choice in choices)


@pytest.mark.parametrize("task", CHOICE_TASKS)
def test_no_position_holds_many_more_answers_than_another(task):
    widths = [len(choices_and_answer(task, document)[0]) for document in evaluated(task)]
    usual = Counter(widths).most_common(1)[0][0]
    answers = Counter(
        choices_and_answer(task, d)[1] for d, w in zip(evaluated(task), widths, strict=True) if w == usual
    )
    assert max(answers.values()) - min(answers[i] for i in range(usual)) <= 2


@pytest.mark.parametrize("task", ["hellaswag", "piqa", "arc_easy", "arc_challenge"])
def test_length_does_not_give_the_answer_away(task):
    pairs = [choices_and_answer(task, document) for document in evaluated(task)]
    for extreme in (max, min):
        hits = sum(extreme(choices, key=len) == choices[answer] for choices, answer in pairs)
        assert hits <= len(pairs) * 0.6


@pytest.mark.parametrize("task", ["arc_easy", "arc_challenge"])
def test_arc_has_three_and_five_choices_and_both_ways_to_label_them(task):
    labels = {"".join(document["choices"]["label"]) for document in evaluated(task)}
    assert labels == {"ABC", "ABCD", "ABCDE", "1234"}


def test_hellaswag_has_both_styles():
    tagged = [d for d in evaluated("hellaswag") if "[header]" in d["ctx"]]
    plain = [d for d in evaluated("hellaswag") if "[" not in " ".join([d["ctx"], *d["endings"]])]
    assert min(len(tagged), len(plain)) >= 10
    assert all("[title]" in d["ctx"] and "[step]" in d["ctx"] and d["ctx_b"] == "" for d in tagged)
    assert all(d["ctx"] == f"{d['ctx_a']} {d['ctx_b']}" and d["ctx_b"].islower() for d in plain)


def test_lambada_ends_in_a_word_that_the_passage_has_shown():
    for document in evaluated("lambada_openai"):
        passage, _, last = document["text"].rpartition(" ")
        assert 40 <= len(document["text"].split()) <= 80
        assert last.isalpha()
        assert last in passage


def test_winogrande_sentences_are_twins_with_opposite_answers():
    rows = evaluated("winogrande")
    for one, two in zip(rows[::2], rows[1::2], strict=True):
        assert one["sentence"].count("_") == two["sentence"].count("_") == 1
        assert one["sentence"].partition("_")[0] == two["sentence"].partition("_")[0]
        assert (one["option1"], one["option2"]) == (two["option1"], two["option2"])
        assert {one["answer"], two["answer"]} == {"1", "2"}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_text_beyond_ascii(task):
    assert not (MINIATURE / TASKS[task][0]).read_text(encoding="utf-8").isascii()


def test_the_manifest_lists_every_data_file_as_it_is():
    files = [path for path in MINIATURE.rglob("*") if path.is_file() and path.parent != MINIATURE]
    found = {
        path.relative_to(MINIATURE).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in files
    }
    assert json.loads((MINIATURE / "manifest.json").read_text(encoding="utf-8"))["files"] == found


def test_rebuilding_the_tokenizer_gives_the_same_bytes():
    rebuilt = build_tokenizer(MINIATURE)
    assert rebuilt.to_str(pretty=True).encode() == (MINIATURE / "tokenizer.json").read_bytes()
    assert rebuilt.get_vocab_size() == VOCAB_SIZE
    assert rebuilt.token_to_id(END_OF_TEXT) == 0


def test_the_tokenizer_gives_every_text_back():
    tokenizer = build_tokenizer(MINIATURE)
    for text in [*sentences(MINIATURE), "naïve 東京 🙂\tend"]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_too_little_text_for_the_vocabulary_is_refused(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"text": "one short line"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="needs 1024"):
        build_tokenizer(tmp_path)


def test_stock_task_files_of_lm_eval_load_and_score_all_six_tasks(tmp_path):
    # In a process of its own: the datasets library reads its settings once, when it is imported.
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
    }
    command = [sys.executable, "-c", IN_PROCESS_OF_ITS_OWN]
    run = subprocess.run(command, cwd=MINIATURE, env=os.environ | offline, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["counts"] == {task: len(evaluated(task)) for task in TASKS}
    assert all("acc,none" in found["results"][task] for task in TASKS)
