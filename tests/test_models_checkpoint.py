"""Checkpoints come back bit for bit in both layouts, whatever file holds them, and are recognised by content."""

# Fixtures are imported by name, and arguments name them again.
# ruff: noqa: F401, F811

import json
import os
import shutil

import pytest
import torch
from mambalab.models import checkpoint
from models_cases import tiny
from models_checkpoints import FILES, LAYOUTS, edit, edit_weights, hf, same, shard, ssm, written
from safetensors.torch import load_file


@pytest.mark.parametrize(("layout", "safe"), LAYOUTS)
@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False}, {"bias": True, "conv_bias": False, "dt_rank": 3}], ids=str
)
def test_a_checkpoint_comes_back_bit_for_bit(changes, layout, safe, tmp_path):
    model = tiny(**changes)
    checkpoint.save(model, tmp_path / "new" / "folder", layout=layout, safe=safe)
    loaded = checkpoint.load(tmp_path / "new" / "folder")
    assert same(loaded, model)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert (loaded.lm_head.weight is loaded.backbone.embedding.weight) == model.config.tie_embeddings
    assert checkpoint.layout(tmp_path / "new" / "folder") == layout


@pytest.mark.parametrize(("layout", "safe"), LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes_come_back_bit_for_bit(dtype, layout, safe, tmp_path):
    model = tiny().to(dtype)
    checkpoint.save(model, tmp_path, layout=layout, safe=safe)
    assert same(checkpoint.load(tmp_path, dtype=dtype), model)


@pytest.mark.parametrize("layout", FILES)
def test_a_load_in_sixteen_bits_keeps_the_float32_parts(layout, written):
    assert same(checkpoint.load(written / layout, dtype=torch.float16), tiny().half())


def test_parts_stored_in_sixteen_bits_are_widened(hf):
    edit_weights(hf, lambda t: t.update({name: tensor.half() for name, tensor in t.items()}))
    model = checkpoint.load(hf, dtype=torch.float16)
    assert model.layers[0].mixer.A_log.dtype == torch.float32
    assert torch.equal(model.layers[0].mixer.A_log, tiny().layers[0].mixer.A_log.half().float())


def test_both_layouts_of_one_checkpoint_are_the_same_model(written):
    assert same(checkpoint.load(written / "mamba_ssm"), checkpoint.load(written / "hf"))


def test_the_files_are_those_the_published_checkpoints_have(written):
    assert {p.name for p in (written / "mamba_ssm").iterdir()} == {"config.json", "pytorch_model.bin"}
    assert {p.name for p in (written / "hf").iterdir()} == {"config.json", "model.safetensors"}
    tensors = torch.load(written / "mamba_ssm" / "pytorch_model.bin", weights_only=True)
    assert tensors["lm_head.weight"].data_ptr() == tensors["backbone.embedding.weight"].data_ptr()
    assert "lm_head.weight" not in load_file(written / "hf" / "model.safetensors")


def test_an_unknown_layout_is_refused(tmp_path, unchecked):
    with pytest.raises(ValueError, match="layout must be one of mamba_ssm, hf, not 'gguf'"):
        checkpoint.save(tiny(), tmp_path, layout="gguf")  # pyright: ignore[reportArgumentType]


def test_weights_under_another_name_are_not_joined(ssm):
    with pytest.raises(ValueError, match=r"holds pytorch_model.bin already; save to another folder"):
        checkpoint.save(tiny(), ssm, layout="hf")


def test_saving_over_a_checkpoint_replaces_it(ssm):
    checkpoint.save(tiny(seed=1), ssm)
    assert same(checkpoint.load(ssm), tiny(seed=1))
    assert {p.name for p in ssm.iterdir()} == {"config.json", "pytorch_model.bin"}


@pytest.mark.parametrize(("layout", "safe"), LAYOUTS)
def test_a_save_that_fails_leaves_nothing_behind(layout, safe, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tiny(), tmp_path, layout=layout, safe=safe)
    assert list(tmp_path.iterdir()) == []


def test_shards_are_read_through_their_index(hf):
    shard(hf)
    assert same(checkpoint.load(hf), tiny())


def test_a_bin_of_the_old_format_is_read(ssm):
    tensors = torch.load(ssm / "pytorch_model.bin", weights_only=True)
    torch.save(tensors, ssm / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert same(checkpoint.load(ssm), tiny())


def test_a_tied_head_may_be_absent(ssm):
    edit_weights(ssm, lambda t: t.pop("lm_head.weight"))
    assert same(checkpoint.load(ssm), tiny())


def test_a_head_that_config_unties_is_its_own_tensor(ssm):
    edit(ssm, tie_embeddings=False)
    model = checkpoint.load(ssm)
    model.lm_head.weight.data.zero_()
    assert model.backbone.embedding.weight.any()


def test_hf_files_may_use_the_name_mamba_ssm_gives_the_embedding(hf):
    edit_weights(hf, lambda t: t.update({"backbone.embedding.weight": t.pop("backbone.embeddings.weight")}))
    assert same(checkpoint.load(hf), tiny())


def test_layout_is_told_by_content(ssm, hf, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neox", "hidden_size": 8}))
    assert [checkpoint.layout(folder) for folder in (ssm, hf, tmp_path)] == ["mamba_ssm", "hf", "transformers"]


def test_the_digest_follows_every_byte_it_should_and_no_other(ssm, tmp_path):
    before = checkpoint.digest(ssm)
    assert len(before) == 64
    copy = shutil.copytree(ssm, tmp_path / "elsewhere")
    (copy / "README.md").write_text("not read by the loader")
    assert checkpoint.digest(copy) == before
    edit(copy, vocab_size=62)
    assert checkpoint.digest(copy) != before
    edit_weights(ssm, lambda t: t["backbone.norm_f.weight"].add_(1))
    assert checkpoint.digest(ssm) != before


def test_the_digest_covers_shards(hf):
    shard(hf)
    before = checkpoint.digest(hf)
    with (hf / "model-00002-of-00002.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert checkpoint.digest(hf) != before
