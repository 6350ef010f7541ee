"""Checkpoints by hub id: from the cache alone when offline, and no more files than needed when not."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from mambalab.models import checkpoint, hub
from models_cases import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub in a folder of its own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache, repository, *, ref="main"):
    """A snapshot in the cache, laid out as the hub's own client leaves it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / ref).write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder / "snapshots" / COMMIT


@pytest.mark.parametrize(
    ("given", "repository", "layout"),
    [
        ("mamba-130m", "state-spaces/mamba-130m", "mamba_ssm"),
        ("state-spaces/mamba-130m", "state-spaces/mamba-130m", "mamba_ssm"),
        ("someone/fine-tune_2.0-hf", "someone/fine-tune_2.0-hf", "hf"),
    ],
)
def test_offline_a_name_is_the_cached_snapshot(given, repository, layout, cache):
    snapshot = put(cache, repository)
    checkpoint.save(tiny(), snapshot, layout=layout)
    assert checkpoint.find(given, offline=True) == snapshot
    assert checkpoint.load(given, offline=True).config.d_model == 24


def test_offline_a_revision_is_the_one_asked_for(cache):
    checkpoint.save(tiny(), put(cache, "someone/model", ref="step1000"))
    assert checkpoint.find("someone/model", revision="step1000", offline=True).name == COMMIT
    with pytest.raises(FileNotFoundError, match="someone/model at revision step2: no folder of this name is here, and"):
        checkpoint.find("someone/model", revision="step2", offline=True)


@pytest.mark.parametrize("switch", ["argument", "environment"])
def test_offline_nothing_is_fetched(switch, cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", switch == "environment")
    with pytest.raises(FileNotFoundError, match=r"state-spaces/mamba-370m: .* offline forbids fetching it$"):
        checkpoint.find("mamba-370m", offline=switch == "argument")


def test_a_snapshot_without_weights_is_said_to_have_none(cache):
    snapshot = put(cache, "someone/model")
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="someone/model: the hub's cache has no weights for it"):
        checkpoint.find("someone/model", offline=True)


class FakeHub:
    """A repository of empty files, and a record of what was asked of it."""

    def __init__(self, folder, files):
        self.folder, self.files, self.asked = folder, files, []

    def __call__(self, repository, *, revision, local_files_only, allow_patterns):
        self.asked.append((repository, revision, local_files_only))
        for name in self.files:
            if any(Path(name).match(pattern) for pattern in allow_patterns):
                (self.folder / name).touch()
        return str(self.folder)


@pytest.mark.parametrize(
    ("files", "fetched"),
    [
        (["config.json", "pytorch_model.bin", "README.md"], ["config.json", "pytorch_model.bin"]),
        (["config.json", "model.safetensors", "pytorch_model.bin"], ["config.json", "model.safetensors"]),
        (
            ["config.json", "model.safetensors.index.json", "model-00001-of-00001.safetensors", "x.py", "tf_model.h5"],
            ["config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json"],
        ),
        (
            ["config.json", "tokenizer.json", "model.safetensors", "flax_model.msgpack"],
            ["config.json", "model.safetensors", "tokenizer.json"],
        ),
    ],
)
def test_online_only_what_is_needed_is_fetched(files, fetched, tmp_path, monkeypatch):
    fake = FakeHub(tmp_path, files)
    monkeypatch.setattr(hub, "snapshot_download", fake)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert hub.fetch("owner/name", revision="r1") == tmp_path
    assert sorted(p.name for p in tmp_path.iterdir()) == fetched
    assert set(fake.asked) == {("owner/name", "r1", False)}


@pytest.mark.parametrize("error", [RuntimeError("no route\nto host"), ConnectionError("offline"), ValueError("bad id")])
def test_what_the_transport_raises_becomes_one_line(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(FileNotFoundError) as caught:
        hub.fetch("owner/name")
    first = str(error).splitlines()[0]
    assert str(caught.value).endswith(f"the hub did not give it ({type(error).__name__}: {first})")


def test_a_full_disk_is_not_blamed_on_the_hub(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "snapshot_download", full)
    with pytest.raises(OSError, match="No space left"):
        hub.fetch("owner/name")


def test_a_folder_wins_over_a_hub_id(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tiny(), put(cache, "mine/model"))
    shutil.copytree(cache, tmp_path / "mine" / "model")
    assert checkpoint.find("mine/model") == Path("mine/model")
