"""Bad checkpoints: damaged bytes, other tensors, other fields, hostile pickles, broken indices, bad tokenizers."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from command import TOKENIZER
from mambalab.harness.zero_shot import Settings, open_model
from mambalab.models import Mamba, checkpoint
from models_cases import tiny
from safetensors.torch import load_file, save_file
from torch import Tensor

from .checkpoint_damage import DAMAGES
from .engine import DEFECT, RIGHT, Verdict, said

EMBEDDINGS = ("backbone.embeddings.weight", "backbone.embedding.weight", "gpt_neox.embed_in.weight")
HEAD = "lm_head.weight"
# What config.json calls a field of the model's config, in either layout.
FIELDS = {
    "hidden_size": "d_model",
    "d_model": "d_model",
    "num_hidden_layers": "n_layer",
    "n_layer": "n_layer",
    "vocab_size": "vocab_size",
    "state_size": "d_state",
    "conv_kernel": "d_conv",
    "expand": "expand",
    "layer_norm_epsilon": "norm_epsilon",
    "tie_word_embeddings": "tie_embeddings",
    "tie_embeddings": "tie_embeddings",
    "use_bias": "bias",
    "use_conv_bias": "conv_bias",
}
SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8"}
SAFETENSORS_DTYPES |= {"U8": "uint8", "I64": "int64", "BOOL": "bool", "F8_E5M2": "float8_e5m2", "C64": "complex64"}


@dataclass(frozen=True, kw_only=True)
class CheckpointCase:
    """A good checkpoint by name, and what is done to it: (damage, file, how)."""

    base: str
    damages: tuple[tuple[str, str, Any], ...]


def prepare(folder: Path) -> None:
    """Small checkpoints in every form, no two of whose tensors are alike."""
    model = tiny(vocab_size=1024, d_model=8, n_layer=2, d_state=3)
    checkpoint.save(model, folder / "bin", layout="mamba_ssm")
    checkpoint.save(model, folder / "ssm-safetensors", layout="mamba_ssm", safe=True)
    checkpoint.save(model, folder / "hf", layout="hf")
    shutil.copytree(folder / "hf", folder / "sharded")
    _shard(folder / "sharded")
    _write_neox(folder / "neox")
    for name in BASES:
        shutil.copy(TOKENIZER, folder / name / "tokenizer.json")


BASES = ("bin", "ssm-safetensors", "hf", "sharded", "neox")


def _shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def _write_neox(folder: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape: dict[str, Any] = {"vocab_size": 1024, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**shape, intermediate_size=16, max_position_embeddings=64))
    model.save_pretrained(folder)


def judge(case: CheckpointCase, ground: Path) -> Verdict:
    """Damage a copy, open it as an evaluation does, and hold what is loaded against an independent reading."""
    folder = ground / "tried"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ground / case.base, folder)
    for name, file, how in case.damages:
        DAMAGES[name](folder, file, how)
    content = _content(folder)
    try:
        lm = open_model(Settings(model=str(folder), device="cpu", offline=True))
        checkpoint.digest(folder)
    except (ValueError, OSError) as error:
        verdict = said(str(error), str(folder), content=content)
    else:
        wrong = wrong_weights(lm.model, folder, ground / case.base) or wrong_tokenizer(lm.tokenizer, folder)
        verdict = Verdict(DEFECT, wrong, content) if wrong else Verdict(RIGHT, "", content)
    return Verdict(DEFECT, "the pickle's code was run", content) if (ground / "ran").exists() else verdict


def _content(folder: Path) -> bytes:
    named = ((path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")))
    return b"".join(name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b"") for name, path in named)


def wrong_weights(model: Any, folder: Path, base: Path) -> str | None:
    """How a loaded model differs from what its files hold, or None."""
    held, loaded = stored(folder, base), model.state_dict()
    if wrong := _wrong_config(model, folder):
        return wrong
    for name, tensor in loaded.items():
        names = (name, "embed_out.weight", *EMBEDDINGS) if name in (HEAD, *EMBEDDINGS) else (name,)
        found = [held[other].to(tensor.dtype) for other in names if other in held]
        if not any(tensor.shape == other.shape and torch.equal(tensor, other) for other in found):
            return f"{name} is not what the file holds"
        if not tensor.isfinite().all():
            return f"{name} holds NaN or inf"
    return None


def _wrong_config(model: Any, folder: Path) -> str | None:
    """How the model's config differs from what the JSON says."""
    if not isinstance(model, Mamba):
        return None
    content = json.loads((folder / "config.json").read_text())
    left_over = ("d_model", "n_layer") if "hidden_size" in content else ()
    for key, field in FIELDS.items():
        if key in content and key not in left_over:
            value = getattr(model.config, field)
            if value != content[key]:
                return f"{key} is {content[key]!r} in config.json, {value!r} in the model"
    return None


def stored(folder: Path, base: Path) -> Mapping[str, Tensor]:
    """Every tensor of the weight files, by a reader of our own; of a .bin in which only bytes changed, the original's:
    its checksums let no other through."""
    safe = [folder / "model.safetensors"] if (folder / "model.safetensors").is_file() else []
    index = folder / "model.safetensors.index.json"
    if not safe and index.is_file():
        safe = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    if safe:
        return {name: tensor for path in safe for name, tensor in _parsed(path.read_bytes()).items()}
    rewritten = folder / "expected.safetensors"
    if rewritten.is_file():
        return load_file(rewritten)
    return torch.load(base / "pytorch_model.bin", weights_only=True)


def _parsed(content: bytes) -> dict[str, Tensor]:
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = getattr(torch, SAFETENSORS_DTYPES[entry["dtype"]])
        flat = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype) if end > begin else torch.zeros(0, dtype=dtype)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def wrong_tokenizer(tokenizer: Any, folder: Path) -> str | None:
    """How a loaded tokenizer differs from what its file holds, or None."""
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocabulary = dict(content["model"]["vocab"]) | {
        token["content"]: token["id"] for token in content.get("added_tokens", ())
    }
    if tokenizer.get_vocab() != vocabulary:
        return "the tokenizer's vocabulary is not what the file holds"
    text = "The crew lifts a boat."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if max(ids, default=0) >= 1024:
        return "the tokenizer gives ids beyond the embedding"
    return None
