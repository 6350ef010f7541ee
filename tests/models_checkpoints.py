"""Small checkpoints in both layouts, and ways to change them, that the tests of loading share."""

import json
import shutil
from typing import Literal

import pytest
import torch
from mambalab.models import checkpoint
from models_cases import tiny
from safetensors.torch import load_file, save_file

LAYOUTS: list[tuple[Literal["mamba_ssm", "hf"], bool]] = [
    ("mamba_ssm", False),
    ("mamba_ssm", True),
    ("hf", False),
    ("hf", True),
]
FILES: dict[Literal["mamba_ssm", "hf"], str] = {"mamba_ssm": "pytorch_model.bin", "hf": "model.safetensors"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """One small checkpoint in each layout, as its own readers expect it; tests damage copies of them."""
    folder = tmp_path_factory.mktemp("written")
    for layout in FILES:
        checkpoint.save(tiny(), folder / layout, layout=layout)
    return folder


@pytest.fixture
def ssm(written, tmp_path):
    return shutil.copytree(written / "mamba_ssm", tmp_path / "ssm")


@pytest.fixture
def hf(written, tmp_path):
    return shutil.copytree(written / "hf", tmp_path / "hf")


def same(got, want):
    """Bit-equal states under the same names."""
    got, want = got.state_dict(), want.state_dict()
    return got.keys() == want.keys() and all(
        got[name].dtype == want[name].dtype and torch.equal(got[name], want[name]) for name in want
    )


def edit(folder, **changes):
    """Change keys of config.json; a key set to ... is taken out."""
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def edit_weights(folder, change):
    """Apply a function to the table of tensors of a checkpoint."""
    name = folder / "pytorch_model.bin"
    if name.exists():
        tensors = torch.load(name, weights_only=True)
        change(tensors)
        torch.save(tensors, name)
    else:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")


def shard(folder):
    """Cut model.safetensors into two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
