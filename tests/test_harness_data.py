"""A data directory is filled from the hub whole data set by whole data set, and found again by hub names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_layout import VALID, evaluated_file, fill, flip_a_bit
from mambalab.harness import data
from mambalab.harness.data import DATASETS, check_documents, check_manifest, fetch, locate
from mambalab.harness.manifest import read_manifest


def _load(dataset, split, revision):
    """What the hub would give: the whole evaluated split, three documents of any other."""
    task = next(name for name, known in DATASETS.items() if known is dataset)
    count = dataset.documents if split == dataset.split else 3
    return [VALID[task] | {"extra": f"{split} {number} é\u2028"} for number in range(count)]


def _resolve(dataset):
    return "0123456789abcdef" * 2


def _fetch(directory, *tasks, load=_load):
    return list(fetch(directory, tasks or None, load=load, resolve=_resolve))


def _contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.fixture
def filled(tmp_path):
    return fill(tmp_path)


@pytest.mark.parametrize("repo", sorted({dataset.repo for dataset in DATASETS.values()}))
def test_a_hub_name_is_found_as_an_absolute_path(filled, monkeypatch, repo):
    monkeypatch.chdir(filled)
    found = locate(".", repo)
    assert found.is_absolute()
    assert found == filled / repo


def test_an_unknown_name_gets_the_list_of_what_is_there(filled):
    with pytest.raises(ValueError, match=r"no 'super/glue' under .*it holds: .*Rowan/hellaswag.*baber/piqa"):
        locate(filled, "super/glue")


def test_a_directory_one_level_too_high_is_told_the_right_one(filled):
    (filled / "above").mkdir()
    (filled / "above" / "zero_shot").symlink_to(filled)
    with pytest.raises(ValueError, match=r"no 'baber/piqa' under .*/above, but under .*/above/zero_shot: give that"):
        locate(filled / "above", "baber/piqa")


def test_a_fetched_directory_is_whole_checked_and_listed(tmp_path):
    said = _fetch(tmp_path)
    assert [line.partition(":")[0] for line in said] == list(DATASETS)
    assert set(check_manifest(tmp_path)) >= {d.file(split) for d in DATASETS.values() for split in d.splits}
    for task, dataset in DATASETS.items():
        assert check_documents(tmp_path, task) == dataset.documents
    assert read_manifest(tmp_path)["source"]["piqa"] == {
        "repo": "baber/piqa",
        "config": None,
        "revision": "0123456789abcdef" * 2,
    }


def test_datasets_reads_what_was_fetched_by_configuration_and_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    _fetch(tmp_path / "hub")
    for task, dataset in DATASETS.items():
        read = datasets.load_dataset(
            str(locate(tmp_path / "hub", dataset.repo)), dataset.config, cache_dir=str(tmp_path / "cache")
        )
        assert set(read) == set(dataset.splits)
        assert len(read[dataset.split]) == dataset.documents
        assert read[dataset.split][1] == _load(dataset, dataset.split, None)[1], task


@pytest.mark.parametrize("order", [("arc_easy", "arc_challenge"), ("arc_challenge", "arc_easy")])
def test_configurations_of_one_repository_come_one_after_the_other(tmp_path, order):
    datasets = pytest.importorskip("datasets")
    for number, task in enumerate(order, 1):
        _fetch(tmp_path / "hub", task)
        check_manifest(tmp_path / "hub")
        for known in order[:number]:
            read = datasets.load_dataset(
                str(tmp_path / "hub" / "allenai" / "ai2_arc"), DATASETS[known].config, cache_dir=str(tmp_path / "cache")
            )
            assert len(read["test"]) == DATASETS[known].documents


def test_a_second_fetch_reads_nothing_and_changes_nothing(tmp_path):
    _fetch(tmp_path)
    before = _contents(tmp_path)

    def refuse(*_):
        raise AssertionError("the hub was asked")

    said = list(fetch(tmp_path, load=refuse, resolve=refuse))
    assert all("there already" in line for line in said)
    assert _contents(tmp_path) == before


def test_a_damaged_file_is_fetched_again_and_no_other(tmp_path):
    _fetch(tmp_path, "piqa", "winogrande")
    before = _contents(tmp_path)
    flip_a_bit(evaluated_file(tmp_path, "piqa"))
    asked = []
    _fetch(tmp_path, "piqa", "winogrande", load=lambda *given: asked.append(given[0].repo) or _load(*given))
    assert set(asked) == {"baber/piqa"}
    assert _contents(tmp_path) == before


@pytest.mark.parametrize("reads", range(5))
def test_a_fetch_interrupted_while_reading_leaves_only_whole_data_sets(tmp_path, reads):
    asked = []

    def interrupted(*given):
        asked.append(given)
        if len(asked) > reads:
            raise KeyboardInterrupt
        return _load(*given)

    with pytest.raises(KeyboardInterrupt):
        _fetch(tmp_path, "piqa", "arc_challenge", load=interrupted)
    check_manifest(tmp_path)
    held = _contents(tmp_path)
    assert len(held) == (0 if reads < 2 else 3)
    _fetch(tmp_path, "piqa", "arc_challenge")
    assert check_documents(tmp_path, "arc_challenge") == 1172


@pytest.mark.parametrize("writes", range(6))
def test_a_fetch_killed_while_writing_is_refused_until_it_is_repeated(tmp_path, monkeypatch, writes):
    _fetch(tmp_path / "whole", "piqa", "arc_challenge")
    written, write = [], data.write_text

    def killed(path, text):
        if len(written) == writes:
            raise KeyboardInterrupt
        written.append(path)
        write(path, text)

    monkeypatch.setattr(data, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        _fetch(tmp_path / "hub", "piqa", "arc_challenge")
    with pytest.raises(ValueError, match=r"(piqa|ai2_arc).* is missing"):
        check_manifest(tmp_path / "hub")
    monkeypatch.undo()
    _fetch(tmp_path / "hub", "piqa", "arc_challenge")
    assert _contents(tmp_path / "hub") == _contents(tmp_path / "whole")


def test_files_that_came_by_hand_are_listed_beside_the_fetched_ones(tmp_path):
    _fetch(tmp_path, "arc_easy")
    (tmp_path / "manifest.json").unlink()
    _fetch(tmp_path, "arc_challenge")
    assert "allenai/ai2_arc/ARC-Easy/test.jsonl" in read_manifest(tmp_path)["files"]
    check_manifest(tmp_path)


def test_a_shrunken_set_on_the_hub_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"baber/piqa, validation split on the hub: 1837 documents, .* over 1838"):
        _fetch(tmp_path, "piqa", load=lambda *given: _load(*given)[:-1])
    assert _contents(tmp_path) == {}


def test_a_broken_document_on_the_hub_is_refused_by_its_number(tmp_path):
    def broken(*given):
        documents = _load(*given)
        documents[1] = documents[1] | {"label": 7}
        return documents

    with pytest.raises(ValueError, match=r"document 2: 'label' is '7'"):
        _fetch(tmp_path, "piqa", load=broken)
    assert _contents(tmp_path) == {}


def test_a_hub_out_of_reach_is_one_line_that_tells_the_way_by_hand(tmp_path):
    def unreachable(_):
        raise ConnectionError("Name or service not known")

    with pytest.raises(ValueError, match=r"can't read baber/piqa from the hub .*service not known.*copy DIR") as caught:
        list(fetch(tmp_path, ["piqa"], load=_load, resolve=unreachable))
    assert "\n" not in str(caught.value)


def test_the_hubs_own_errors_come_as_one_connection_error(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def fail(*_, **__):
        raise RuntimeError("client closed\nTraceback: …")

    monkeypatch.setattr(hub.HfApi, "dataset_info", fail)
    with pytest.raises(ConnectionError, match=r"^client closed$"):
        data.hub_revision(DATASETS["piqa"])
    monkeypatch.setattr(pytest.importorskip("datasets"), "load_dataset", fail)
    with pytest.raises(ConnectionError, match=r"^client closed$"):
        data.hub_documents(DATASETS["piqa"], "train", None)


def test_an_unknown_task_gets_its_neighbours_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="unknown task 'arc_eazy'; nearest: arc_easy"):
        _fetch(tmp_path, "piqa", "arc_eazy")
    assert _contents(tmp_path) == {}


def test_a_place_that_can_not_be_written_is_refused_before_the_hub_is_asked(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"can't write in .*file"):
        _fetch(tmp_path / "file", "piqa", load=None)
