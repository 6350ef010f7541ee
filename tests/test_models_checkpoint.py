"""Checkpoints come back bit for bit in both layouts, are recognised by what is in them, and say what is wrong."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from typing import Literal

import pytest
import torch
from mambalab.models import checkpoint, registry
from mambalab.models.layouts import HF, MAMBA_SSM, config_json, read_config
from models_cases import TINY, tiny
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


# As published in state-spaces/mamba-130m, and in state-spaces/mamba-790m-hf with its wrong d_model.
PUBLISHED_SSM = {
    "d_model": 768,
    "n_layer": 24,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}
PUBLISHED_HF = {
    "architectures": ["MambaForCausalLM"],
    "bos_token_id": 0,
    "conv_kernel": 4,
    "d_model": 2048,
    "eos_token_id": 0,
    "expand": 2,
    "fused_add_norm": True,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "initializer_range": 0.1,
    "intermediate_size": 3072,
    "layer_norm_epsilon": 1e-05,
    "model_type": "mamba",
    "n_layer": 48,
    "num_hidden_layers": 48,
    "pad_token_id": 0,
    "pad_vocab_size_multiple": 8,
    "rescale_prenorm_residual": False,
    "residual_in_fp32": True,
    "rms_norm": True,
    "ssm_cfg": {},
    "state_size": 16,
    "time_step_floor": 0.0001,
    "time_step_init_scheme": "random",
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "time_step_rank": 96,
    "time_step_scale": 1.0,
    "torch_dtype": "float32",
    "transformers_version": "4.39.1",
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
    "vocab_size": 50280,
}


def test_the_published_configs_are_read(tmp_path):
    path = tmp_path / "config.json"
    assert read_config(PUBLISHED_SSM, MAMBA_SSM, path) == registry.mamba_config("mamba-130m")
    large = read_config(PUBLISHED_HF, HF, path)
    assert large.n_parameters == registry.spec("mamba-790m").n_parameters
    assert (large.rank, large.padded_vocab_size) == (96, 50280)


def test_a_written_config_is_the_published_one():
    config = registry.mamba_config("mamba-130m")
    assert config_json(config, MAMBA_SSM) == PUBLISHED_SSM | {"tie_embeddings": True}


@pytest.mark.parametrize("layout", [MAMBA_SSM, HF], ids=lambda layout: layout.name)
@pytest.mark.parametrize(
    "changes", [{"d_state": 7, "d_conv": 3, "expand": 1}, {"dt_rank": 9, "dt_max": 0.5}, {"bias": True}], ids=str
)
def test_configs_come_back_from_their_json(layout, changes, tmp_path):
    config = replace(TINY, vocab_size=64, **layout.implied, **changes)
    assert read_config(config_json(config, layout), layout, tmp_path) == config


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("mamba_ssm", {"norm_epsilon": 1e-6}, "norm_epsilon = 1e-06 cannot be saved: the mamba_ssm layout has no key"),
        ("mamba_ssm", {"discretisation": "zoh"}, "discretisation = 'zoh' cannot be saved"),
        ("hf", {"discretisation": "zoh"}, "discretisation = 'zoh' cannot be saved: the hf layout has no key for it"),
    ],
)
def test_what_a_layout_cannot_say_is_not_saved(layout, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        checkpoint.save(tiny(**changes), tmp_path, layout=layout)
    assert list(tmp_path.iterdir()) == []


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


class Code:
    """A value whose unpickling would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_carries_code_is_refused_unrun(new_format, ssm, tmp_path):
    torch.save({"a": Code(tmp_path / "pwned")}, ssm / "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
    with pytest.raises(
        ValueError, match=r"pytorch_model.bin: refused, because loading it would run code \(\w+.mkdir\)$"
    ):
        checkpoint.load(ssm)
    assert not (tmp_path / "pwned").exists()


def write(name, content):
    """A damage: overwrite a file."""
    return lambda folder: (folder / name).write_bytes(content)


def config(**changes):
    """A damage: change keys of config.json."""
    return lambda folder: edit(folder, **changes)


def weights(change):
    """A damage: change the table of tensors."""
    return lambda folder: edit_weights(folder, change)


def cut(name, fraction):
    """A damage: lose the end of a file."""

    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * fraction)])

    return damage


def saved(content, name="pytorch_model.bin"):
    """A damage: another object in the .bin."""
    return lambda folder: torch.save(content, folder / name)


def index(content, name="model.safetensors.index.json"):
    """A damage: an index in place of the weights."""

    def damage(folder):
        (folder / "model.safetensors").unlink()
        (folder / name).write_text(json.dumps(content))

    return damage


NORM, A_LOG = "backbone.norm_f.weight", "backbone.layers.1.mixer.A_log"
BIN, SAFE, INDEX = r"pytorch_model\.bin: ", r"model\.safetensors: ", r"model\.safetensors\.index\.json: "
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
BAD = [
    # config.json
    ("ssm", lambda folder: (folder / "config.json").unlink(), "no config.json here"),
    ("ssm", write("config.json", b"{"), r"config\.json: not JSON \(Expecting"),
    ("ssm", write("config.json", b"\xff\xfe\x00"), r"config\.json: not JSON"),
    ("ssm", write("config.json", b"[1]"), r"config\.json: must hold a JSON object, not a list"),
    ("ssm", write("config.json", b"{}"), r"config\.json: has neither model_type"),
    ("ssm", config(n_layer=...), r"config\.json: n_layer missing"),
    ("ssm", config(d_model="24"), r"config\.json: d_model must be a positive integer, not '24'"),
    ("ssm", config(n_layer=3.0), r"config\.json: n_layer must be a positive integer, not 3\.0"),
    ("ssm", config(rms_norm=False), r"config\.json: rms_norm = false is not supported, only true is"),
    ("ssm", config(attn_layer_idx=[3]), r"config\.json: attn_layer_idx = \[3\] is not supported"),
    ("ssm", config(d_intermediate=64), r"config\.json: d_intermediate = 64 is not supported, only 0 is"),
    ("ssm", config(ssm_cfg={"d_state": -1}), r"config\.json: ssm_cfg\.d_state must be a positive integer, not -1"),
    ("ssm", config(ssm_cfg={"ngroups": 2}), r"config\.json: unknown ssm_cfg\.ngroups, on which"),
    ("ssm", config(ssm_cfg=None), r"config\.json: ssm_cfg must be an object, not null"),
    ("ssm", config(ssm_cfg={"layer": "Mamba2"}), r"config\.json: a Mamba-2 model, which is not supported"),
    ("ssm", config(ssm_cfg={"layer": "Mamba3"}), r"ssm_cfg\.layer = \"Mamba3\" is not supported, only \"Mamba1\" is"),
    ("ssm", config(norm_type="layer"), r"config\.json: unknown norm_type"),
    ("hf", config(model_type="mamba2"), r"config\.json: a Mamba-2 model, which is not supported"),
    ("hf", config(model_type="gpt_neox"), r"config\.json: a gpt_neox model, not a Mamba"),
    ("hf", config(hidden_size=...), r"config\.json: hidden_size missing"),
    ("hf", config(hidden_size=True), r"config\.json: hidden_size must be a positive integer, not True"),
    ("hf", config(hidden_act="gelu"), r"config\.json: hidden_act = \"gelu\" is not supported, only \"silu\" is"),
    ("hf", config(intermediate_size=40), r"config\.json: intermediate_size is 40, where the rest makes it 48"),
    ("hf", config(quantization_config={"bits": 4}), r"config\.json: unknown quantization_config"),
    ("hf", config(layer_norm_epsilon=0), r"config\.json: layer_norm_epsilon must be a positive finite number, not 0"),
    ("hf", config(tie_word_embeddings=None), r"config\.json: tie_word_embeddings must be true or false, not None"),
    # The files
    ("ssm", lambda folder: (folder / "pytorch_model.bin").unlink(), r"no weights here \(model\.safetensors, "),
    ("ssm", cut("pytorch_model.bin", 0.6), BIN + "not a whole PyTorch weight file"),
    ("ssm", write("pytorch_model.bin", b""), BIN + "not a whole PyTorch weight file.*it is empty"),
    ("ssm", write("pytorch_model.bin", LFS), BIN + "not a PyTorch weight file.*a Git LFS pointer"),
    ("ssm", write("pytorch_model.bin", b"<html>404</html>"), BIN + "not a PyTorch weight file.*a web page"),
    ("ssm", write("pytorch_model.bin", pickle.dumps([1.0])), BIN + "not a PyTorch weight file"),
    ("ssm", write("pytorch_model.bin", os.urandom(64)), BIN + "not a (whole )?PyTorch weight file"),
    ("ssm", saved([torch.ones(2)]), BIN + "holds a list, not a table of named tensors"),
    ("ssm", saved({"state_dict": {}, "epoch": 3}), BIN + "holds a dict with 'state_dict', 'epoch', not a table"),
    (
        "ssm",
        lambda folder: save_file({NORM: torch.ones(3)}, folder / "pytorch_model.bin"),
        BIN + ".*a safetensors file",
    ),
    ("hf", cut("model.safetensors", 0.6), SAFE + "not a whole safetensors file"),
    ("hf", cut("model.safetensors", 0.001), SAFE + "not a whole safetensors file"),
    ("hf", write("model.safetensors", LFS), SAFE + "not a whole safetensors file.*a Git LFS pointer"),
    ("hf", saved({NORM: torch.ones(3)}, "model.safetensors"), SAFE + "not a whole safetensors file.*a PyTorch zip"),
    ("hf", index({}), INDEX + "weight_map must name the file of each tensor"),
    ("hf", index({"weight_map": {NORM: "model-1.safetensors"}}), INDEX + r"its shard model-1\.safetensors is missing"),
    ("hf", index({"weight_map": {NORM: "../../x.safetensors"}}), INDEX + r"names the shard '\.\./\.\./x\.safetensors'"),
    (
        "hf",
        index({"weight_map": {NORM: "code.bin"}}),
        INDEX + r"names the shard 'code\.bin', which is no \.safetensors",
    ),
    # The tensors
    ("ssm", weights(lambda t: t.update(extra=torch.ones(1))), BIN + r"tensors that do not fit.*1 unknown \(extra\)"),
    ("ssm", weights(lambda t: t.pop(A_LOG)), BIN + rf"tensors that do not fit.*1 missing \({A_LOG}\)"),
    (
        "hf",
        weights(lambda t: t.update({NORM: torch.ones(23)})),
        SAFE + rf".*1 misshaped \({NORM} is \(23,\), not \(24,\)",
    ),
    ("hf", config(num_hidden_layers=2), SAFE + r".*10 unknown \(backbone\.layers\.2\.mixer\.A_log, .*, …\)"),
    ("hf", config(num_hidden_layers=4), SAFE + r".*10 missing \(backbone\.layers\.3\.mixer\.A_log, .*, …\)"),
    ("ssm", config(d_model=32), BIN + r".*\d+ misshaped \(backbone\.embedding\.weight is \(64, 24\), not \(64, 32\)"),
    ("hf", config(vocab_size=61), SAFE + r".*1 misshaped \(backbone\.embedding\.weight is \(64, 24\), not \(61, 24\)"),
    ("ssm", weights(lambda t: t.update({NORM: torch.ones(24, dtype=torch.int8)})), BIN + rf".*{NORM} is torch\.int8"),
    ("ssm", weights(lambda t: t[A_LOG].view(-1)[3:4].fill_(torch.nan)), BIN + rf"NaN or inf.*in 1 tensors \({A_LOG}\)"),
    ("hf", weights(lambda t: t[NORM][0:1].fill_(-torch.inf)), SAFE + rf"NaN or inf, read as .*\({NORM}\)"),
    (
        "ssm",
        weights(lambda t: t.update({"lm_head.weight": torch.ones(64, 24)})),
        BIN + "lm_head.weight differs from the",
    ),
    ("hf", config(tie_word_embeddings=False), SAFE + r".*1 missing \(lm_head\.weight\)"),
    (
        "ssm",
        weights(lambda t: t.update({"backbone.embeddings.weight": t.pop("backbone.embedding.weight")})),
        BIN + r"backbone\.embeddings\.weight is a name of the hf layout, but config\.json is of mamba_ssm",
    ),
]


@pytest.mark.parametrize(("layout", "damage", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_a_bad_checkpoint_says_what_is_wrong_in_one_line(layout, damage, message, request, unchecked):
    folder = request.getfixturevalue(layout)
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_shard_may_not_repeat_a_tensor(hf):
    shard(hf)
    twice = load_file(hf / "model-00001-of-00002.safetensors")
    rest = load_file(hf / "model-00002-of-00002.safetensors")
    save_file(rest | {min(twice): twice[min(twice)]}, hf / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=rf"00002\.safetensors: holds {min(twice)}, which another shard holds too"):
        checkpoint.load(hf)


def test_values_too_large_for_the_dtype_are_named(hf):
    edit_weights(hf, lambda t: t[NORM].fill_(1e6))
    assert checkpoint.load(hf).backbone.norm_f.weight[0] == 1e6
    with pytest.raises(ValueError, match=rf"NaN or inf, read as torch.float16, in 1 tensors \({NORM}\)"):
        checkpoint.load(hf, dtype=torch.float16)


def test_values_whose_sum_overflows_are_finite(hf):
    edit_weights(hf, lambda t: t[NORM].fill_(3e38))
    assert checkpoint.load(hf).backbone.norm_f.weight.isfinite().all()


def test_a_dtype_that_is_no_float_is_refused(ssm):
    with pytest.raises(ValueError, match=r"dtype must be one of .*, not torch.int8"):
        checkpoint.load(ssm, dtype=torch.int8)


def test_a_file_is_not_a_checkpoint(ssm):
    with pytest.raises(ValueError, match=r"config.json is a file; name the folder"):
        checkpoint.find(ssm / "config.json")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c"])
def test_a_folder_that_is_not_there_is_said_so(name):
    with pytest.raises(FileNotFoundError, match=f"no such checkpoint folder: {name}"):
        checkpoint.find(name)


def test_a_name_that_is_nothing_gets_the_registry_s_neighbours():
    with pytest.raises(ValueError, match="unknown model 'mamba-13b'; nearest: mamba-130m"):
        checkpoint.find("mamba-13b")
