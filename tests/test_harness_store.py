"""Files of a run are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os

import pytest
from mambalab.harness.store import check_folder, write_json, write_text


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_comes_back_byte_for_byte_from_a_new_folder(tmp_path):
    path = tmp_path / "run" / "samples" / "a.jsonl"
    write_text(path, "β\r\nsecond\u2028line\n")
    assert path.read_bytes() == "β\r\nsecond\u2028line\n".encode()


def test_a_second_write_replaces_the_first_and_leaves_one_file(tmp_path):
    write_text(tmp_path / "a", "a long first content")
    write_text(tmp_path / "a", "short")
    assert (tmp_path / "a").read_text() == "short"
    assert _names(tmp_path) == ["a"]


def test_json_has_sorted_keys_and_ends_its_last_line(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": {"Δ": None}})
    text = (tmp_path / "a.json").read_text()
    assert text.index('"Δ"') < text.index('"b"')
    assert text.endswith("}\n")
    assert json.loads(text) == {"b": [1, 2.5], "a": {"Δ": None}}


def test_a_symbolic_link_is_written_through(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object()])
def test_a_value_that_json_lacks_is_refused_and_nothing_is_written(tmp_path, value):
    with pytest.raises(ValueError, match=r"a\.json"):
        write_json(tmp_path / "a.json", {"value": value})
    assert _names(tmp_path) == []


@pytest.mark.parametrize("place", ["file/inside", "file/deep/inside", "folder", "fifo"])
def test_a_place_that_holds_no_file_is_one_line_naming_it(tmp_path, place):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match=f"can't write .*{place}") as caught:
        write_text(tmp_path / place, "text")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "kept"
    assert _names(tmp_path) == ["fifo", "file", "folder"]


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_full_disk_is_one_line_and_keeps_the_old_file_alone(tmp_path, monkeypatch, step):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.json"
    write_json(path, {"old": True})
    monkeypatch.setattr(*(("os.fsync", fail) if step == "fsync" else ("pathlib.Path.replace", fail)))
    with pytest.raises(ValueError, match=r"can't write .*a\.json: No space left on device$"):
        write_json(path, {"new": True})
    assert json.loads(path.read_text()) == {"old": True}
    assert _names(tmp_path) == ["a.json"]


def test_an_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a", "text")
    assert _names(tmp_path) == []


def test_a_folder_is_made_and_left_empty_by_its_check(tmp_path):
    check_folder(tmp_path / "a" / "b")
    assert _names(tmp_path / "a" / "b") == []


def test_a_folder_below_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"can't write in .*file/b: Not a directory"):
        check_folder(tmp_path / "file" / "b")
