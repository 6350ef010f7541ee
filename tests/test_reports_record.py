"""A record is refused unless it is whole, and comes back from its file as it went in."""

from __future__ import annotations

import errno
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mambalab.reports import jsonl, record
from mambalab.reports.record import Record
from reports_cases import some_record

BAD = {
    "no backend": ({"provenance": {"device": "cpu"}}, "backend"),
    "an empty backend": ({"provenance": {"backend": ""}}, "backend"),
    "a nan": ({"value": math.nan}, "value must be a finite number, not nan"),
    "an infinite perplexity": ({"value": math.inf}, "value must be a finite number, not inf"),
    "a value in words": ({"value": "0.5"}, "value must be a finite number"),
    "more than all right": (
        {"metric": "token accuracy", "value": 1.5},
        r"^token accuracy must be a fraction from 0 to 1, not 1\.5$",
    ),
    "less than none right": (
        {"metric": "sequence accuracy", "value": -0.25},
        r"^sequence accuracy must be a fraction from 0 to 1, not -0\.25$",
    ),
    "a boolean value": ({"value": True}, "value must be a finite number"),
    "a negative standard error": ({"stderr": -0.1}, "stderr must be at least 0, not -0.1"),
    "a nan standard error": ({"stderr": math.nan}, "stderr must be a finite number"),
    "no documents": ({"n": 0}, "n must be at least 1, not 0"),
    "half a document": ({"n": 1.5}, "n must be an integer, not 1.5"),
    "no model": ({"model": " "}, "model must be a non-empty string"),
    "a task that is no name": ({"task": None}, "task must be a non-empty string"),
    "a setting that is no dict": ({"setting": [1]}, "setting must be a dict"),
    "a setting that JSON can't hold": ({"setting": {"x": object()}}, "setting must be plain JSON"),
    "a setting with a nan": ({"setting": {"x": math.nan}}, "setting must be plain JSON"),
    "a seed in words": ({"seed": "one"}, "seed must be an integer"),
}

names = st.text(min_size=1).filter(str.strip)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
finite = st.floats(allow_nan=False, allow_infinity=False)
records = st.builds(
    Record,
    experiment=names,
    model=names,
    task=names,
    metric=names,
    setting=st.dictionaries(st.text(), plain, max_size=4),
    seed=st.none() | st.integers(),
    value=finite,
    stderr=st.none() | finite.map(abs),
    n=st.integers(min_value=1),
    provenance=st.dictionaries(st.text(), plain, max_size=4).map(lambda p: p | {"backend": "cpu"}),
)


@pytest.mark.parametrize(("changes", "rule"), BAD.values(), ids=BAD)
def test_a_bad_record_is_refused_at_birth(changes, rule):
    with pytest.raises(ValueError, match=rule) as caught:
        some_record(**changes)
    assert "\n" not in str(caught.value)


@given(st.lists(records, min_size=1, max_size=4))
def test_records_come_back_as_they_were_written(tmp_path_factory, some):
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    record.write(path, some)
    assert record.read(path) == some


@given(records)
def test_equal_records_give_equal_bytes_whatever_the_order_of_their_keys(one):
    backwards = dict(reversed(one.provenance.items()))
    other = some_record(**{**vars(one), "provenance": backwards})
    assert record.to_lines([one]) == record.to_lines([other])


def test_numpy_numbers_become_plain_ones(tmp_path):
    record.write(tmp_path / "r.jsonl", [some_record(value=np.float32(0.5), n=np.int64(3), stderr=np.float64(0.25))])
    (back,) = record.read(tmp_path / "r.jsonl")
    assert (type(back.value), back.value, back.n, back.stderr) == (float, 0.5, 3, 0.25)


def test_a_record_keeps_its_own_copy_of_its_provenance():
    mine = {"backend": "cpu", "data": {}}
    made = some_record(provenance=mine)
    mine["data"]["late"] = 1
    assert made.provenance == {"backend": "cpu", "data": {}}


BROKEN = {
    "a line cut short": (lambda good: good[0] + "\n" + good[1][:40], r":2: not JSON .* was it cut short"),
    "a blank line": (lambda good: good[0] + "\n\n" + good[1], r":2: not JSON"),
    "an empty file": (lambda good: "", "is empty"),
    "a list": (lambda good: "[1]\n", r":1: a JSON object is expected, not list"),
    "a nan": (lambda good: good[0].replace("0.5", "NaN"), r":1: NaN is no measured number"),
    "no backend": (lambda good: good[0].replace('"backend"', '"backhand"'), r":1: provenance must name the backend"),
    "a missing key": (lambda good: good[0].replace('"n": 26, ', ""), r":1: not a record: missing n"),
    "an unknown key": (lambda good: '{"extra": 1, ' + good[0][1:], r":1: not a record: unknown extra"),
    "a wrong value": (lambda good: good[0] + "\n" + good[1].replace("26", "0"), r":2: n must be at least 1"),
}


@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_with_its_line(tmp_path, spoil, message):
    good = record.to_lines([some_record(), some_record(metric="acc_norm")]).splitlines()
    path = tmp_path / "records.jsonl"
    path.write_text(spoil(good))
    with pytest.raises(ValueError, match=message) as caught:
        record.read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(b'{"model": "\xff\xfe"}\n')
    with pytest.raises(ValueError, match=r"r.jsonl:1: not JSON"):
        record.read(tmp_path / "r.jsonl")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^no file .*gone.jsonl$"):
        record.read(tmp_path / "gone.jsonl")


def test_no_records_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="no records"):
        record.write(tmp_path / "r.jsonl", [])
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "report.md"
    jsonl.write_whole(path, "old")

    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        jsonl.write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
