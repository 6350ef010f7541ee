"""A damaged, mislabelled or hostile checkpoint is refused with one line that names the file and what is wrong."""

# Fixtures are imported by name, and arguments name them again.
# ruff: noqa: F401, F811

import json
import os
import pickle

import pytest
import torch
from mambalab.models import checkpoint
from models_checkpoints import edit, edit_weights, hf, shard, ssm, written
from safetensors.torch import load_file, save_file


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


def flipped(name, place):
    """A damage: one bit, at this share of the file."""

    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        content[int(len(content) * place)] ^= 1
        (folder / name).write_bytes(content)

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
    ("ssm", write("config.json", b"null"), r"config\.json: must hold a JSON object, not null"),
    ("ssm", write("config.json", b"[" * 100_000), r"config\.json: not JSON \(maximum recursion"),
    ("ssm", write("config.json", b'{"n_layer": ' + b"9" * 5000 + b"}"), r"config\.json: not JSON \(Exceeds the limit"),
    ("ssm", write("config.json", b'{"a": 1, "a": 2}'), r"config\.json: not JSON \('a' stands twice in one object\)"),
    ("ssm", config(d_model="x" * 5000), r"config\.json: d_model must be a positive integer, not 'x{79}…$"),
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
    ("ssm", flipped("pytorch_model.bin", 0.5), BIN + r"not a whole PyTorch weight file \(.*Bad CRC-32"),
    ("ssm", write("pytorch_model.bin", b"NaN"), BIN + r"not a whole PyTorch weight file \(unreadable pickle\)"),
    ("ssm", saved(None), BIN + "holds nothing, not a table of named tensors"),
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
    (
        "hf",
        index({"weight_map": {NORM: "a\nb.safetensors"}}),
        INDEX + r"names the shard 'a\\nb\.safetensors', which is",
    ),
    ("hf", index({"weight_map": {NORM: "x" * 300 + ".safetensors"}}), INDEX + r"names the shard 'x{79}…, which is no"),
    # The tensors
    ("ssm", weights(lambda t: t.update({"a\nb": torch.ones(1)})), BIN + r"tensors that.*1 unknown \('a\\nb'\)"),
    ("ssm", weights(lambda t: t.update({"x" * 999: torch.ones(1)})), BIN + r"tensors that.*1 unknown \('x{79}…\)"),
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


def test_a_bin_written_without_checksums_is_read(ssm):
    want = {name: tensor.clone() for name, tensor in checkpoint.load(ssm).state_dict().items()}
    tensors = torch.load(ssm / "pytorch_model.bin", weights_only=True)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, ssm / "pytorch_model.bin")
    finally:
        torch.serialization.set_crc32_options(True)
    assert all(torch.equal(tensor, want[name]) for name, tensor in checkpoint.load(ssm).state_dict().items())


def test_a_tied_embedding_of_eight_bits_is_its_own_head(ssm):
    name = "backbone.embedding.weight"
    edit_weights(ssm, lambda t: t.update({n: t[name].to(torch.float8_e5m2).float() for n in (name, "lm_head.weight")}))
    edit_weights(ssm, lambda t: t.update({name: t[name].to(torch.float8_e5m2)}))
    assert checkpoint.load(ssm).lm_head.weight.dtype == torch.float32


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
