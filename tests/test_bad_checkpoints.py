"""Checkpoints and tokenizers that are damaged, mislabelled or do not fit: one clear line that names them, status 2."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Change, bytes_changed, copied
from safetensors.torch import load_file, save_file

WEIGHT = "backbone.layers.0.mixer.out_proj.weight"
NEOX_WEIGHT = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
NEOX_BIAS = "gpt_neox.layers.0.attention.dense.bias"


def _with_fields(name: str, **fields: Any) -> Change:
    """Change fields of a JSON object in a file; `...` takes one out."""

    def change(content: bytes) -> bytes:
        kept = {key: value for key, value in (json.loads(content) | fields).items() if value is not ...}
        return json.dumps(kept).encode()

    return bytes_changed(name, change)


def _config(**fields: Any) -> Change:
    return _with_fields("config.json", **fields)


def _token(number: int, text: str) -> dict[str, Any]:
    sides = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, "special": True, **sides}


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Change the tensors of a .bin."""

    def apply(folder: Path) -> None:
        path = folder / "pytorch_model.bin"
        tensors = {name: tensor.clone() for name, tensor in torch.load(path).items()}
        change(tensors)
        torch.save(tensors, path)

    return apply


def _safe_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})

    return apply


class _Code:
    """Pickled, a command to make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


# The checkpoint, what happens to it, the file at fault, what is said of it.
CHECKPOINTS = {
    "config: not JSON": ("mamba", bytes_changed("config.json", _half), "config.json", "not JSON"),
    "config: empty": ("mamba", bytes_changed("config.json", lambda b: b""), "config.json", "not JSON"),
    "config: a list": (
        "mamba",
        bytes_changed("config.json", lambda b: b"[1]"),
        "config.json",
        "must hold a JSON object",
    ),
    "config: a field missing": ("mamba", _config(n_layer=...), "config.json", "n_layer missing"),
    "config: a field of hf missing": ("hf", _config(hidden_size=...), "config.json", "hidden_size missing"),
    "config: a wrong type": ("mamba", _config(d_model="32"), "config.json", "d_model must be a positive integer"),
    "config: an integer beyond any": ("mamba", _config(vocab_size=10**20), "config.json", "must be less than 2^31"),
    "config: an unknown key": ("mamba", _config(attention=True), "config.json", "unknown attention"),
    "config: Mamba-2": ("mamba", _config(ssm_cfg={"layer": "Mamba2"}), "config.json", "a Mamba-2 model"),
    "config: Mamba-2 of hf": ("hf", _config(model_type="mamba2"), "config.json", "a Mamba-2 model"),
    "config: another vocabulary": (
        "mamba",
        _config(vocab_size=512),
        "pytorch_model.bin",
        "is (1024, 32), not (512, 32)",
    ),
    "no weights": ("mamba", lambda folder: (folder / "pytorch_model.bin").unlink(), "", "no weights here"),
    ".bin: cut short": ("mamba", bytes_changed("pytorch_model.bin", _half), "pytorch_model.bin", "not a whole PyTorch"),
    ".bin: empty": ("mamba", bytes_changed("pytorch_model.bin", lambda b: b""), "pytorch_model.bin", "it is empty"),
    "safetensors: cut short": (
        "hf",
        bytes_changed("model.safetensors", _half),
        "model.safetensors",
        "not a whole safetensors",
    ),
    "safetensors: empty": ("hf", bytes_changed("model.safetensors", lambda b: b""), "model.safetensors", "it is empty"),
    "a key renamed": (
        "mamba",
        _tensors(lambda t: t.update(other=t.pop(WEIGHT))),
        "pytorch_model.bin",
        f"1 unknown (other); 1 missing ({WEIGHT})",
    ),
    "a key missing": ("mamba", _tensors(lambda t: t.pop(WEIGHT)), "pytorch_model.bin", f"1 missing ({WEIGHT})"),
    "a key missing in hf": ("hf", _safe_tensors(lambda t: t.pop(WEIGHT)), "model.safetensors", f"1 missing ({WEIGHT})"),
    "a wrong shape": (
        "mamba",
        _tensors(lambda t: t.update({WEIGHT: t[WEIGHT].T.contiguous()})),
        "pytorch_model.bin",
        f"{WEIGHT} is (64, 32), not (32, 64)",
    ),
    "integers": ("mamba", _tensors(lambda t: t.update({WEIGHT: t[WEIGHT].long()})), "pytorch_model.bin", "torch.int64"),
    "a NaN": ("mamba", _tensors(lambda t: t[WEIGHT][0].fill_(torch.nan)), "pytorch_model.bin", f"NaN or inf.*{WEIGHT}"),
    "an inf": (
        "mamba",
        _tensors(lambda t: t[WEIGHT][0].fill_(torch.inf)),
        "pytorch_model.bin",
        f"NaN or inf.*{WEIGHT}",
    ),
    "a tied head that differs": (
        "mamba",
        _tensors(lambda t: t["lm_head.weight"].add_(1)),
        "pytorch_model.bin",
        "lm_head.weight differs from the embedding",
    ),
    "a list of tensors": (
        "mamba",
        lambda folder: torch.save([torch.zeros(2)], folder / "pytorch_model.bin"),
        "pytorch_model.bin",
        "not a table of named tensors",
    ),
    "config: more layers than tensors": (
        "mamba",
        _config(n_layer=2**31 - 1),
        "pytorch_model.bin",
        "tensors can't be 2147483647 layers, as config.json has it",
    ),
    "neox: a word for its architectures": (
        "neox",
        _config(architectures=16),
        "config.json",
        "architectures must be a list of names, not 16",
    ),
    "neox: more layers than tensors": (
        "neox",
        _config(num_hidden_layers=10**30),
        "config.json",
        "num_hidden_layers is 1000000000000000000000000000000, but the weights are only",
    ),
    "neox: complex weights": (
        "neox",
        _safe_tensors(lambda t: t.update({NEOX_WEIGHT: t[NEOX_WEIGHT].to(torch.complex64)})),
        "model.safetensors",
        f"{NEOX_WEIGHT} is torch.complex64, no float dtype",
    ),
    "neox: an endless name": (
        "neox",
        _safe_tensors(lambda t: t.update({"x" * 5000: torch.ones(2)})),
        "",
        "1 unknown weights: 'xxx.*xxx…",
    ),
    "neox: a weight missing": (
        "neox",
        _safe_tensors(lambda t: t.pop(NEOX_WEIGHT)),
        "",
        f"1 missing weights: {NEOX_WEIGHT}",
    ),
    "neox: a weight too many": (
        "neox",
        _safe_tensors(lambda t: t.update(other=torch.ones(2))),
        "",
        "unknown weights: other",
    ),
    "neox: a wrong shape": (
        "neox",
        _safe_tensors(lambda t: t.update({NEOX_WEIGHT: t[NEOX_WEIGHT].T})),
        "",
        f"1 misshaped weights: {NEOX_WEIGHT}",
    ),
    "neox: a NaN": (
        "neox",
        _safe_tensors(lambda t: t[NEOX_WEIGHT][0].fill_(torch.nan)),
        "",
        f"{NEOX_WEIGHT} holds NaN or infinite values",
    ),
    "neox: cut short": (
        "neox",
        bytes_changed("model.safetensors", _half),
        "model.safetensors",
        "not a whole safetensors",
    ),
    "neox: no such architecture": ("neox", _config(model_type="gpt_neoxx"), "", "model type `gpt_neoxx`"),
    "neox: code of its own": (
        "neox",
        _config(model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}),
        "",
        "contains custom code",
    ),
    "neox: labelled a masked model": (
        "neox",
        _config(architectures=["BertForMaskedLM"]),
        "",
        "BertForMaskedLM, which is no causal language model",
    ),
    "neox: heads that do not divide": ("neox", _config(num_attention_heads=7), "", "transformers can't load"),
}


@pytest.mark.parametrize(("source", "change", "name", "says"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_bad_checkpoint_is_named_with_its_fault(places, tmp_path, evaluated, source, change, name, says):
    checkpoint = copied(places[source], tmp_path / "checkpoint", change)
    line = evaluated(checkpoint)
    assert str(checkpoint / name) in line
    assert all(part in line for part in says.split(".*"))


@pytest.mark.parametrize(
    ("source", "name", "other"),
    [("mamba", "pytorch_model.bin", "hf/model.safetensors"), ("hf", "model.safetensors", "mamba/pytorch_model.bin")],
)
def test_a_file_under_the_other_formats_name_is_told_what_it_is(places, tmp_path, evaluated, source, name, other):
    wrong = places[other.split("/")[0]] / other.split("/")[1]
    checkpoint = copied(places[source], tmp_path / "checkpoint", lambda folder: shutil.copy(wrong, folder / name))
    line = evaluated(checkpoint)
    assert str(checkpoint / name) in line
    assert ("it is a safetensors file" if wrong.suffix == ".safetensors" else "it is a PyTorch zip") in line


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_that_carries_code_is_refused_and_not_run(places, tmp_path, evaluated, write, name):
    made = tmp_path / "made-by-the-checkpoint"
    checkpoint = copied(places["mamba"], tmp_path / "checkpoint", lambda f: write({WEIGHT: _Code(made)}, f / name))
    assert str(checkpoint / name) in evaluated(checkpoint)
    assert not made.exists()


def test_a_weight_too_large_for_the_dtype_asked_for_is_named(places, tmp_path, evaluated):
    change = _tensors(lambda t: t[WEIGHT][0].fill_(1e6))
    checkpoint = copied(places["mamba"], tmp_path / "checkpoint", change)
    line = evaluated(checkpoint, places["data"], "piqa", "--dtype", "float16")
    assert f"NaN or inf, read as torch.float16, in 1 tensors ({WEIGHT})" in line


TOKENIZERS = {
    "cut short": (bytes_changed("tokenizer.json", _half), "tokenizer.json is not a tokenizer.json"),
    "not a tokenizer": (
        bytes_changed("tokenizer.json", lambda b: b'{"a": 1}'),
        "tokenizer.json is not a tokenizer.json",
    ),
    "bytes that are no text": (bytes_changed("tokenizer.json", lambda b: b"\xff\x00"), "is not a tokenizer.json"),
    "an id beyond the embedding": (
        _with_fields("tokenizer.json", added_tokens=[_token(0, "<|endoftext|>"), _token(1024, "<|extra|>")]),
        "has ids up to 1024, the embedding only 1024 rows",
    ),
    "no end of text": (
        bytes_changed("tokenizer.json", lambda b: b.replace(b"<|endoftext|>", b"<|text|>")),
        "none of the end-of-text",
    ),
    "a folder in its place": (
        lambda folder: ((folder / "tokenizer.json").unlink(), (folder / "tokenizer.json").mkdir()),
        "tokenizer.json is not a tokenizer.json",
    ),
    "a config that names no end of text": (
        lambda folder: (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}'),
        "names no end-of-text token",
    ),
    "a config cut short": (lambda folder: (folder / "tokenizer_config.json").write_text("{"), "no usable tokenizer at"),
}


@pytest.mark.parametrize(("change", "says"), TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize("source", ["mamba", "neox"])
def test_a_bad_tokenizer_is_named_with_its_fault(places, tmp_path, evaluated, source, change, says):
    checkpoint = copied(places[source], tmp_path / "checkpoint", change)
    line = evaluated(checkpoint)
    assert says in line
    assert str(checkpoint) in line
