"""Stored answers come back to the last bit, and what is damaged, cut short or of something else is never believed."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from mambalab.harness import keys
from mambalab.harness.answers import Answers
from mambalab.harness.zero_shot import Settings

KEY = "k" * 64
VALUES = {"a": [[-1.1, True]], "b": [[5e-324, False], [-0.1 - 0.2, True]], "c": [[float("-inf"), False]], "d": ["é\n"]}


def refuse():
    raise AssertionError("computed though it was answered")


def fill(path: Path, key: str = KEY) -> Path:
    with Answers(path, key) as answers:
        for question, value in VALUES.items():
            answers(question, lambda value=value: value)
    return path


@contextmanager
def largest_file(size: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_answers_come_back_to_the_last_bit_and_are_not_computed_again(tmp_path):
    with Answers(fill(tmp_path / "a"), KEY) as answers:
        assert {question: answers(question, refuse) for question in VALUES} == VALUES
        assert (answers.recalled, answers.computed) == (len(VALUES), 0)


def test_an_answer_looks_the_same_whether_it_was_computed_or_recalled(tmp_path):
    with Answers(tmp_path / "a", KEY) as answers:
        first = answers("q", lambda: [(1.5, True)])
        assert answers("q", refuse) == first == [[1.5, True]]


def test_a_question_is_its_content(tmp_path):
    asked = ["scores", [([1, 2], [3])]]
    with Answers(tmp_path / "a", KEY) as answers:
        answers(asked, lambda: 1)
        assert answers(["scores", (((1, 2), (3,)),)], refuse) == 1
        for other in (["scores", [([1, 2], [4])]], ["scores", [([1], [2, 3])]], ["other", [([1, 2], [3])]]):
            assert answers(other, lambda: 2) == 2


def test_answers_under_another_key_are_not_used(tmp_path):
    with Answers(fill(tmp_path / "a"), "another") as answers:
        assert answers("a", lambda: "computed") == "computed"
        assert answers.recalled == 0


@pytest.mark.parametrize("cut", [1, 2, 30, 64, 65, 66, 130, 136])
def test_a_last_line_cut_short_is_taken_off_and_the_rest_kept(tmp_path, cut):
    path = fill(tmp_path / "a")
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Answers(path, KEY) as answers:
        assert [answers(question, refuse) for question in "abc"] == [VALUES[question] for question in "abc"]
        assert answers("d", lambda: VALUES["d"]) == VALUES["d"]
    assert path.read_bytes() == whole


def test_no_single_damaged_byte_is_ever_believed(tmp_path, caplog):
    path = fill(tmp_path / "a")
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with Answers(path, KEY) as answers:
            found = {question: answers(question, lambda: None) for question in VALUES}
        kept = {question: value for question, value in found.items() if value is not None}
        assert kept == {question: VALUES[question] for question in kept}
        assert len(kept) >= len(VALUES) - 2
    assert "damaged lines of" in caplog.text


def test_bytes_that_are_no_text_are_damage_and_not_a_crash(tmp_path):
    path = fill(tmp_path / "a")
    path.write_bytes(b"\xff\x00\xfe\n\n \n" + path.read_bytes())
    with Answers(path, KEY) as answers:
        assert answers("d", refuse) == VALUES["d"]


@pytest.mark.parametrize("size", [0, 1, 100, 200, 300])
def test_a_disk_that_fills_is_one_line_and_leaves_whole_lines(tmp_path, size):
    path, undisturbed = tmp_path / "a", fill(tmp_path / "undisturbed").read_bytes()
    with (
        pytest.raises(ValueError, match=r"can't write .*/a: File too large; .* goes on from there$"),
        largest_file(size),
    ):
        fill(path)
    whole = undisturbed[:size].rpartition(b"\n")
    assert path.exists() == bool(whole[0])
    assert not path.exists() or path.read_bytes() == b"".join(whole[:2])
    assert fill(path).read_bytes() == undisturbed


@pytest.mark.parametrize("step", ["os.fsync", "os.truncate"])
def test_a_failing_disk_is_one_line(tmp_path, monkeypatch, step):
    def fail(*_):
        raise OSError(5, "Input/output error")

    path = fill(tmp_path / "a")
    path.write_bytes(path.read_bytes()[:-3])
    monkeypatch.setattr("mambalab.harness.answers.SYNC_SECONDS", 0)
    monkeypatch.setattr(step, fail)
    with pytest.raises(ValueError, match=r"can't (write|read) .*/a: Input/output error"):
        fill(path)


def test_no_answer_leaves_no_file(tmp_path):
    with Answers(tmp_path / "a", KEY):
        pass
    with pytest.raises(AssertionError), Answers(tmp_path / "a", KEY) as answers:
        answers("q", refuse)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["folder", "fifo", "full"])
def test_a_place_that_is_no_plain_file_is_refused(tmp_path, place):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(ValueError, match=f"{place}: it is not a plain file"):
        Answers(tmp_path / place, KEY)


SETTINGS = Settings(model="m")
ORIGIN = dict.fromkeys((*keys.DECIDING, *keys.ROUNDING), "as usual") | {"checkpoint": {"digest": "c"}}
OTHERWISE = {
    "tasks": ("piqa",),
    "num_fewshot": 2,
    "limit": 3,
    "dtype": "float16",
    "backend": "reference",
    "parity": "fp16",
    "max_length": 77,
    "batch_tokens": 78,
    "seed": 79,
}
# Where something lies; its content is in the provenance.
PLACES = {"model", "data", "device", "revision", "tokenizer", "offline"}


def test_every_setting_either_decides_or_is_a_place():
    assert OTHERWISE.keys() | PLACES == {field.name for field in fields(Settings)}


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_setting_that_decides_is_part_of_both_keys(name):
    other = replace(SETTINGS, **{name: OTHERWISE[name]})
    for key in (keys.run_key, keys.answers_key):
        assert key(other, ORIGIN) != key(SETTINGS, ORIGIN)


@pytest.mark.parametrize("name", ["checkpoint", *keys.DECIDING])
def test_whatever_ran_is_part_of_both_keys(name):
    other = ORIGIN | {name: {"digest": "other"}}
    for key in (keys.run_key, keys.answers_key):
        assert key(SETTINGS, other) != key(SETTINGS, ORIGIN)


def test_the_key_parts_are_those_that_decide_a_number():
    wanted = "digest versions device dtype backend kernel tokenizer data task_version asked"
    assert set(keys.DECIDING) == set(wanted.split())


@pytest.mark.parametrize("name", keys.ROUNDING)
def test_how_a_machine_rounds_is_part_of_the_answers_key_alone(name):
    other = ORIGIN | {name: "other"}
    assert keys.answers_key(SETTINGS, other) != keys.answers_key(SETTINGS, ORIGIN)
    assert keys.run_key(SETTINGS, other) == keys.run_key(SETTINGS, ORIGIN)


@pytest.mark.parametrize("variable", ["MKL_CBWR", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "NVIDIA_TF32_OVERRIDE"])
def test_what_the_environment_tells_the_libraries_is_part_of_the_answers_key(monkeypatch, variable):
    usual = keys.answers_key(SETTINGS, ORIGIN)
    monkeypatch.setenv(variable, "77")
    assert keys.answers_key(SETTINGS, ORIGIN) != usual


def test_another_set_of_vector_instructions_is_another_answers_key(monkeypatch):
    usual = keys.answers_key(SETTINGS, ORIGIN)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "other")
    assert keys.answers_key(SETTINGS, ORIGIN) != usual


def test_where_things_lie_is_no_part_of_a_key():
    moved = replace(SETTINGS, model="/elsewhere/m", data="d", tokenizer="t", revision="r", device="cpu", offline=True)
    assert keys.answers_key(moved, ORIGIN) == keys.answers_key(SETTINGS, ORIGIN)
