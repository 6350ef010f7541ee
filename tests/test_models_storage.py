"""Our own layout gives back any model with every setting, whole or with one clear line."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from mambalab.models import Mamba, build, restore, store, weight_files
from mambalab.models.architectures import SequenceConfig, from_json, to_json
from mambalab.models.registry import MambaConfig
from mambalab.models.synthetic import SYNTHETIC
from models_cases import TINY, distance, tokens
from models_checkpoints import same

CONFIGS = {
    "mamba tied": TINY,
    "mamba static": replace(TINY, selective_B=False, selective_delta=False, A_init="complex", discretisation="zoh"),
    **{name: SYNTHETIC[name].config for name in ("s4", "h3-s6", "mamba-hyena", "mha-rope")},
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Two models in our own layout: tests damage copies of them."""
    folder = tmp_path_factory.mktemp("stored")
    store(build(TINY, seed=1), folder / "mamba")
    store(build(SYNTHETIC["h3-s4"].config, seed=1), folder / "h3")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_stored_model_comes_back_bit_for_bit(name, dtype, tmp_path):
    model = build(CONFIGS[name], seed=2).to(dtype)
    back = restore(store(model, tmp_path / "run"))
    assert back.config == model.config
    assert type(back) is type(model)
    assert same(back, model)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.json", "model.safetensors"]
    if isinstance(back, Mamba) and back.config.tie_embeddings:
        assert back.lm_head.weight is back.backbone.embedding.weight
    if dtype != torch.bfloat16:
        ids = tokens(2, 7, vocabulary=16)
        assert distance(back(ids)[0], model(ids)[0]) == 0


def test_storing_again_replaces_the_model(stored, tmp_path):
    folder = shutil.copytree(stored / "h3", tmp_path / "h3")
    other = build(SYNTHETIC["h3-s4"].config, seed=9)
    assert same(restore(store(other, folder)), other)


def test_a_folder_of_other_weights_is_not_written_to(tmp_path):
    (tmp_path / weight_files.PICKLE).touch()
    with pytest.raises(ValueError, match=r"holds pytorch_model.bin already; save to another folder"):
        store(build(TINY), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [weight_files.PICKLE]


def change(folder, where=None, **changes):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    target = content if where is None else content[where]
    target.update(changes)
    for key in [key for key, value in target.items() if value is ...]:
        del target[key]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("where", "changes", "message"),
    [
        (None, {"mambalab_model": 2}, "config.json: not a model in our own layout, version 1"),
        (None, {"mambalab_model": ...}, "config.json: not a model in our own layout, version 1"),
        (None, {"config": 3}, "config.json: a model's config must be an object of kind MambaConfig or .*, not 3"),
        (None, {"config": []}, "config.json: a model's config must be an object of kind"),
        ("config", {"kind": "RWKV"}, "config.json: a model's config must be an object of kind .*'RWKV'"),
        ("config", {"kind": []}, "config.json: a model's config must be an object of kind"),
        ("config", {"d_state": -1}, "config.json: d_state must be a positive integer, not -1"),
        ("config", {"mixer": "h3-s5"}, "config.json: unknown mixer 'h3-s5'; nearest: h3-s6"),
        ("config", {"mixer": "s4"}, "tensors that do not fit config.json"),
        ("config", {"d_model": 32}, "tensors that do not fit config.json: .* misshaped"),
        ("config", {"n_layer": 10**6}, "tensors can't be 1000000 layers"),
        ("config", {"depth": 3}, "config.json: unknown 'depth' in a SequenceConfig"),
        ("config", {"s4_init": ...}, "config.json: s4_init missing in a SequenceConfig"),
    ],
    ids=str,
)
def test_a_config_that_is_not_the_weights_is_refused(where, changes, message, stored, tmp_path, unchecked):
    folder = shutil.copytree(stored / "h3", tmp_path / "h3")
    change(folder, where, **changes)
    with pytest.raises(ValueError, match=message) as error:
        restore(folder)
    assert "\n" not in str(error.value)


def test_weights_that_are_cut_or_not_finite_are_refused(stored, tmp_path):
    folder = shutil.copytree(stored / "mamba", tmp_path / "mamba")
    path = folder / weight_files.SAFETENSORS
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        restore(folder)
    path.write_bytes(whole[:-4] + b"\xff\xff\xff\x7f")
    with pytest.raises(ValueError, match="NaN or inf, stored, in 1 tensors"):
        restore(folder)


@pytest.mark.parametrize("lost", ["config.json", weight_files.SAFETENSORS])
def test_a_missing_file_is_named(lost, stored, tmp_path):
    folder = shutil.copytree(stored / "mamba", tmp_path / "mamba")
    (folder / lost).unlink()
    with pytest.raises(FileNotFoundError, match=r"no config.json here|no weights here"):
        restore(folder)


def test_a_pickle_is_never_read(stored, tmp_path):
    folder = shutil.copytree(stored / "mamba", tmp_path / "mamba")
    (folder / weight_files.SAFETENSORS).rename(folder / weight_files.PICKLE)
    with pytest.raises(ValueError, match=r"our own layout holds model.safetensors alone"):
        restore(folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_comes_back_from_its_json(name):
    assert from_json(json.loads(json.dumps(to_json(CONFIGS[name])))) == CONFIGS[name]


def test_both_kinds_of_config_are_kept_whole(stored):
    for name, kind in (("mamba", MambaConfig), ("h3", SequenceConfig)):
        assert isinstance(restore(stored / name).config, kind)
