"""A data directory's manifest stops every run whose data are not byte for byte what was listed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hub_layout import fill, flip_a_bit
from mambalab.harness.data import DATASETS, check_manifest, write_manifest
from mambalab.harness.manifest import read_manifest
from mambalab.harness.provenance import file_digest


@pytest.fixture
def filled(tmp_path):
    return fill(tmp_path)


def test_without_a_manifest_the_files_are_taken_as_they_are(filled):
    found = check_manifest(filled)
    assert len(found) == sum(len(dataset.splits) for dataset in DATASETS.values())
    assert found["baber/piqa/train.jsonl"] == file_digest(filled / "baber" / "piqa" / "train.jsonl")


def test_a_written_manifest_is_met_and_changes_no_digest(filled):
    before = check_manifest(filled)
    assert write_manifest(filled) == filled / "manifest.json"
    assert check_manifest(filled) == before


def test_hidden_files_and_files_beside_the_data_sets_are_no_data(filled):
    before = check_manifest(filled)
    (filled / "README.md").write_text("notes")
    (filled / "baber" / "piqa" / ".lock").write_text("")
    assert check_manifest(filled) == before


def test_a_new_data_set_beside_the_listed_ones_is_taken(filled):
    write_manifest(filled)
    (filled / "me" / "mine").mkdir(parents=True)
    (filled / "me" / "mine" / "test.jsonl").write_text("{}\n")
    assert "me/mine/test.jsonl" in check_manifest(filled)


def _append(path):
    path.write_bytes(path.read_bytes() + b"\n")


DAMAGE = {
    "a flipped bit": (flip_a_bit, "has changed"),
    "one byte more": (_append, "has changed"),
    "one byte less": (lambda path: os.truncate(path, path.stat().st_size - 1), "has changed"),
    "emptied": (lambda path: os.truncate(path, 0), "has changed"),
    "missing": (Path.unlink, "is missing"),
    "a folder in its place": (lambda path: (path.unlink(), path.mkdir()), "is missing"),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["baber/piqa/validation.jsonl", "allenai/ai2_arc/ARC-Easy/train.jsonl"])
def test_a_damaged_file_stops_with_its_name_and_both_digests(filled, damage, says, name):
    listed = read_manifest(write_manifest(filled).parent)["files"]
    damage(filled / name)
    with pytest.raises(ValueError, match=f"{name} {says}") as caught:
        check_manifest(filled)
    assert listed[name]["sha256"][:12] in str(caught.value)
    assert "\n" not in str(caught.value)
    if (filled / name).is_file():
        assert file_digest(filled / name)[:12] in str(caught.value)


def test_a_file_slipped_into_a_listed_data_set_is_refused(filled):
    write_manifest(filled)
    (filled / "baber" / "piqa" / "more.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"more\.parquet is not in manifest\.json"):
        check_manifest(filled)


def _with_entry(name="a/b/c.jsonl", **entry):
    whole = {"sha256": "0" * 64, "bytes": 1} | entry
    return json.dumps({"files": {name: {k: v for k, v in whole.items() if v is not None}}})


BAD_MANIFESTS = {
    "empty": ("", "not JSON"),
    "cut short": (_with_entry()[:-3], "not JSON"),
    "not UTF-8": (b'{"files": "\xff"}', "not JSON"),
    "nested without end": ("[" * 100_000, "not JSON"),
    "a list": ("[]", "object is expected"),
    "no files": ("{}", "files must be an object"),
    "files a list": ('{"files": []}', "files must be an object"),
    "files empty": ('{"files": {}}', "lists no files"),
    "a bare digest": (json.dumps({"files": {"a/b/c": "0" * 64}}), "entry of 'a/b/c' must be an object"),
    "source a text": (_with_entry()[:-1] + ', "source": "hub"}', "source must be an object"),
    "no digest": (_with_entry(sha256=None), "64 lower-case"),
    "a digest too short": (_with_entry(sha256="0" * 63), "64 lower-case"),
    "a digest in capitals": (_with_entry(sha256="A" * 64), "64 lower-case"),
    "a digest with a line end": (_with_entry(sha256="0" * 64 + "\n"), "64 lower-case"),
    "a digest that is a number": (_with_entry(sha256=0), "64 lower-case"),
    "no size": (_with_entry(bytes=None), "must be a count"),
    "a negative size": (_with_entry(bytes=-1), "must be a count"),
    "a true size": (_with_entry(bytes=True), "must be a count"),
    "half a byte": (_with_entry(bytes=0.5), "must be a count"),
    "an absolute path": (_with_entry("/etc/passwd"), "outside the directory"),
    "a path upwards": (_with_entry("../a"), "outside the directory"),
    "a path up and down": (_with_entry("a/../../b"), "outside the directory"),
    "a path up within": (_with_entry("a/b/../c"), "outside the directory"),
    "a backslash": (_with_entry("a\\..\\..\\b"), "bad file name"),
    "a NUL": (_with_entry("a\0b"), "bad file name"),
    "a line end in a name": (_with_entry("a\nb"), "bad file name"),
    "no name": (_with_entry(""), "outside the directory"),
    "a dot": (_with_entry("."), "outside the directory"),
    "a crooked name": (_with_entry("a//b/./c"), "does not name a data file"),
    "itself": (_with_entry("manifest.json"), "does not name a data file"),
}


@pytest.mark.parametrize(("content", "says"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS)
def test_a_manifest_that_can_not_be_trusted_is_one_line(tmp_path, content, says):
    (tmp_path / "manifest.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"not a usable manifest: .*{says}") as caught:
        check_manifest(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "manifest.json") in str(caught.value)


def test_no_directory_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"no data directory at .*none"):
        check_manifest(tmp_path / "none")


def test_nothing_to_list_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no data files under"):
        write_manifest(tmp_path)
