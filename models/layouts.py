"""The two published layouts of a Mamba checkpoint: how each spells config.json and names its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from .registry import MambaConfig, shown

_REQUIRED = ("d_model", "n_layer", "vocab_size")
_DEFAULTS = {f.name: f.default for f in fields(MambaConfig)}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to spell a Mamba. Each key of a config.json is in `keys`, `derived`, `fixed` or `free`, or is refused.

    `keys` maps fields of MambaConfig to keys (one after a dot lies inside the object before it), and `derived` its
    properties; `implied` are fields the layout leaves no choice about. `fixed` are keys with the only value we compute,
    `free` those that change no output; `written` is what a file says besides its `keys` and `derived`.
    """

    name: str
    embedding: str
    keys: Mapping[str, str]
    fixed: Mapping[str, Any]
    free: frozenset[str]
    written: Mapping[str, Any]
    derived: Mapping[str, str] = field(default_factory=dict)
    implied: Mapping[str, Any] = field(default_factory=dict)


MAMBA_SSM = Layout(
    name="mamba_ssm",
    embedding="backbone.embedding.weight",
    keys={
        "d_model": "d_model",
        "n_layer": "n_layer",
        "vocab_size": "vocab_size",
        "pad_vocab_size_multiple": "pad_vocab_size_multiple",
        "tie_embeddings": "tie_embeddings",
        "d_state": "ssm_cfg.d_state",
        "d_conv": "ssm_cfg.d_conv",
        "expand": "ssm_cfg.expand",
        "dt_rank": "ssm_cfg.dt_rank",
        "conv_bias": "ssm_cfg.conv_bias",
        "bias": "ssm_cfg.bias",
        "dt_min": "ssm_cfg.dt_min",
        "dt_max": "ssm_cfg.dt_max",
    },
    fixed={"rms_norm": True, "d_intermediate": 0, "attn_layer_idx": [], "attn_cfg": {}, "ssm_cfg.layer": "Mamba1"},
    # The residual stream is float32 here whatever residual_in_fp32 says: wider, never narrower.
    free=frozenset(
        {"residual_in_fp32", "fused_add_norm"}
        | {f"ssm_cfg.{key}" for key in ("dt_init", "dt_scale", "dt_init_floor", "use_fast_path")}
    ),
    written={"ssm_cfg": {}, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True},
)

_HF_BOOKKEEPING = frozenset({
    "_name_or_path", "_commit_hash", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype",
    "id2label", "label2id", "bos_token_id", "eos_token_id", "pad_token_id", "problem_type", "use_cache",
    "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward",
})  # fmt: skip
# What the conversion from mamba_ssm left behind: transformers does not read it, and some published values are wrong.
_HF_LEFTOVERS = frozenset({"d_model", "d_inner", "n_layer", "dt_rank", "pad_vocab_size_multiple", "fused_add_norm"})
# Initialisation, the choice of kernels, and a residual stream that here is float32 in any case.
_HF_TRAINING = frozenset({
    "initializer_range", "rescale_prenorm_residual", "time_step_floor", "time_step_init_scheme", "time_step_scale",
    "residual_in_fp32", "use_mambapy", "use_associative_scan", "fuse_norm", "fuse_cross_entropy",
})  # fmt: skip

HF = Layout(
    name="hf",
    embedding="backbone.embeddings.weight",
    keys={
        "d_model": "hidden_size",
        "n_layer": "num_hidden_layers",
        "vocab_size": "vocab_size",
        "tie_embeddings": "tie_word_embeddings",
        "d_state": "state_size",
        "d_conv": "conv_kernel",
        "expand": "expand",
        "dt_rank": "time_step_rank",
        "conv_bias": "use_conv_bias",
        "bias": "use_bias",
        "norm_epsilon": "layer_norm_epsilon",
        "dt_min": "time_step_min",
        "dt_max": "time_step_max",
    },
    derived={"d_inner": "intermediate_size"},
    # transformers' vocab_size is the embedding's own, padding included, even beside a pad_vocab_size_multiple.
    implied={"pad_vocab_size_multiple": 1},
    fixed={"model_type": "mamba", "hidden_act": "silu", "rms_norm": True, "is_encoder_decoder": False},
    free=_HF_BOOKKEEPING | _HF_LEFTOVERS | _HF_TRAINING,
    written={
        "model_type": "mamba",
        "architectures": ["MambaForCausalLM"],
        "hidden_act": "silu",
        "residual_in_fp32": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    },
)

# What JSON calls what may stand at the top of a file.
KINDS = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
LAYOUTS = {layout.name: layout for layout in (MAMBA_SSM, HF)}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a ValueError that names the file when it holds anything else."""
    try:
        content = json.loads(path.read_text("utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a JSON object, not {KINDS[type(content)]}")
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that stands in it twice has no one value."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{shown(max(keys, key=keys.count))} stands twice in one object")
    return content


def recognise(content: Mapping[str, Any], path: Path) -> Literal["mamba_ssm", "hf", "transformers"]:
    """The layout that the contents of a config.json show; "transformers" is any of its other architectures."""
    model_type, ssm_cfg = content.get("model_type"), content.get("ssm_cfg")
    if model_type == "mamba2" or (isinstance(ssm_cfg, dict) and ssm_cfg.get("layer") == "Mamba2"):
        raise ValueError(f"{path}: a Mamba-2 model, which is not supported: only the first Mamba is")
    if model_type == "mamba":
        return "hf"
    if isinstance(model_type, str):
        return "transformers"
    if "ssm_cfg" in content or {"d_model", "n_layer"} <= content.keys():
        return "mamba_ssm"
    raise ValueError(f"{path}: has neither model_type (transformers) nor d_model, n_layer and ssm_cfg (mamba_ssm)")


def read_config(content: Mapping[str, Any], layout: Layout, path: Path) -> MambaConfig:
    """The config that a config.json of this layout states.

    A missing key, a value of the wrong kind, a key we do not know and a value we do not compute are ValueErrors.
    """
    flat = _flattened(content, path)
    _check_keys(flat, layout, path)
    values = {name: flat[key] for name, key in layout.keys.items() if key in flat}
    try:
        config = MambaConfig(**values, **layout.implied)
    except ValueError as error:
        name, _, rule = str(error).partition(" ")
        raise ValueError(f"{path}: {layout.keys.get(name, name)} {rule}") from error
    for name, key in layout.derived.items():
        if flat.get(key, getattr(config, name)) != getattr(config, name):
            raise ValueError(f"{path}: {key} is {flat[key]!r}, where the rest makes it {getattr(config, name)}")
    return config


def config_json(config: MambaConfig, layout: Layout) -> dict[str, Any]:
    """What config.json says of this config in this layout; a ValueError for a setting that has no key in it."""
    if "pad_vocab_size_multiple" in layout.implied:
        config = replace(config, vocab_size=config.padded_vocab_size, **layout.implied)
    for name, default in _DEFAULTS.items():
        if name not in layout.keys and name not in layout.implied and getattr(config, name) != default:
            raise ValueError(
                f"{name} = {getattr(config, name)!r} cannot be saved: the {layout.name} layout has no key for it"
            )
    content = deepcopy(dict(layout.written))
    for name, key in layout.keys.items():
        value = getattr(config, name)
        outer, _, inner = key.rpartition(".")
        if not outer:
            content[key] = value
        elif value != _DEFAULTS[name]:
            content[outer][inner] = value
    return content | {key: getattr(config, name) for name, key in layout.derived.items()}


def _flattened(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The keys, with those inside ssm_cfg lifted out as "ssm_cfg.key"."""
    inner = content.get("ssm_cfg", {})
    if not isinstance(inner, dict):
        raise ValueError(f"{path}: ssm_cfg must be an object, not {shown(inner, json.dumps)}")
    outer = {key: value for key, value in content.items() if key != "ssm_cfg"}
    return outer | {f"ssm_cfg.{key}": value for key, value in inner.items()}


def _check_keys(flat: Mapping[str, Any], layout: Layout, path: Path) -> None:
    known = {*layout.keys.values(), *layout.derived.values(), *layout.fixed, *layout.free}
    if unknown := sorted(flat.keys() - known):
        raise ValueError(f"{path}: unknown {', '.join(unknown)}, on which the model's output may depend")
    if missing := [layout.keys[name] for name in _REQUIRED if layout.keys[name] not in flat]:
        raise ValueError(f"{path}: {', '.join(missing)} missing")
    for key, only in layout.fixed.items():
        if flat.get(key, only) != only:
            raise ValueError(
                f"{path}: {key} = {shown(flat[key], json.dumps)} is not supported, only {json.dumps(only)} is"
            )
