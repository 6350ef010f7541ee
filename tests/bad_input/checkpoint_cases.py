"""How bad checkpoints are drawn, by the sort of damage."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from .checkpoint_damage import OBJECTS
from .checkpoints import CheckpointCase, judge, prepare
from .engine import Kind

WEIGHTS = {
    "bin": ("pytorch_model.bin",),
    "ssm-safetensors": ("model.safetensors",),
    "hf": ("model.safetensors",),
    "sharded": ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    "neox": ("model.safetensors",),
}
INDEX = "model.safetensors.index.json"
# A transformers model takes ten times as long to open.
OURS = st.sampled_from(("bin", "bin", "ssm-safetensors", "hf", "hf", "sharded"))
ANY = st.sampled_from(("bin", "bin", "hf", "hf", "ssm-safetensors", "sharded", "neox"))
SPOTS = st.tuples(st.sampled_from(("head", "tail", "any", "any")), st.floats(0, 1, exclude_max=True))
RUNS = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.sampled_from((b"\0" * 64, b"\xff" * 64, b"{}", b"9" * 20, b'"', b"\\u0000", b"PK\x05\x06" + b"\0" * 18)),
)
WHOLES = st.sampled_from(
    (
        b"", b"\0" * 100, b"{", b"{}", b"[]", b"null", b"3", b'"text"', b"\xff\xfe", b"\xef\xbb\xbf{}", b"<html>",
        b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04" + b"\0" * 60, b"\x80\x02.", b"\x80\x04N.",
        b"NaN",
        b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"\x10" + b"\0" * 7 + b"{}", b"\xff" * 8 + b"{}",
    )
)  # fmt: skip
KEYS = (
    "d_model", "n_layer", "vocab_size", "ssm_cfg", "ssm_cfg.d_state", "ssm_cfg.d_conv", "ssm_cfg.layer", "rms_norm",
    "tie_embeddings", "pad_vocab_size_multiple", "hidden_size", "num_hidden_layers", "state_size", "conv_kernel",
    "expand", "time_step_rank", "layer_norm_epsilon", "use_bias", "use_conv_bias", "tie_word_embeddings", "model_type",
    "hidden_act", "intermediate_size", "time_step_min", "time_step_max", "architectures", "auto_map", "torch_dtype",
    "quantization_config", "residual_in_fp32", "num_attention_heads", "", "attn_layer_idx", "d_intermediate", "dtype",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    ..., None, True, False, 0, 1, 2, 3, 8, 16, 1023, 1024, 1025, -1, 10**6, 2**31 - 1, 2**31, 2**63, 10**30, 1e-5,
    0.5, 1e400, math.nan,
    8.0, "", "8", "auto", "mamba", "mamba2", "gpt_neox", "llama", "silu", "\0", "é\n", "x" * 5000, [], [8], {},
    {"a": 1},
)  # fmt: skip
TOKENIZER_KEYS = (
    "model", "model.vocab", "model.merges", "model.type", "added_tokens", "pre_tokenizer", "decoder", "normalizer",
    "post_processor", "version", "truncation", "padding", "model.unk_token", "model.byte_fallback", "model.dropout",
)  # fmt: skip
TOKENIZER_VALUES: tuple[Any, ...] = (
    ..., None, 0, -1, 1e9, "BPE", "Unigram", "x", [], {}, [1], {"a": -1}, {"a": 2**40}, {"type": "ByteLevel"},
    [{"id": 5000, "content": "<|x|>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
     | {"normalized": False}], {"type": "Sequence", "pretokenizers": []},
)  # fmt: skip


@st.composite
def damaged(
    draw: st.DrawFn, damage: str, how: st.SearchStrategy[Any], bases: Any = OURS, file: str = "", most: int = 1
) -> CheckpointCase:
    """Up to `most` of a damage in one checkpoint: in the file named, else in some weights."""
    base = draw(bases)
    files = (file,) if file else WEIGHTS[base]
    spots = draw(st.lists(how, min_size=1, max_size=most))
    return CheckpointCase(base=base, damages=tuple((damage, draw(st.sampled_from(files)), one) for one in spots))


_masks = st.sampled_from((1, 2, 4, 8, 16, 32, 64, 128, 255))
_flips, _shares = st.tuples(SPOTS, _masks), st.floats(0, 1, exclude_max=True)
_names = st.sampled_from(("x", "", "backbone", "lm_head.weight", "backbone.embeddings.weight", "é\n", "\0", "n" * 3000))
_renamed = st.one_of(
    st.tuples(st.sampled_from(("rename", "add", "drop", "copy")), _shares, _names),
    st.tuples(st.just("rename in part"), _shares, st.sampled_from(("/", "..", "_", ".module."))),
)
_shaped = st.tuples(
    st.sampled_from(("turn", "flat", "an axis more", "shorter", "longer", "empty", "scalar")), _shares, st.none()
)
_typed = st.tuples(
    st.just("dtype"),
    _shares,
    st.sampled_from(("int8", "int64", "bool", "float64", "float16", "bfloat16", "complex64", "float8_e5m2", "uint8")),
)
_numbers = st.tuples(
    st.just("number"), _shares, st.sampled_from((math.nan, math.inf, -math.inf, 3e38, 0.0, -0.0, 1e-45))
)
_fields = st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)), min_size=1, max_size=2).map(tuple)
_maps = st.sampled_from(
    (None, 3, [], {}, "x", {"a": 1}, *({"a": name} for name in (
        "../config.json", "config.json", "none.safetensors", "/etc/passwd", "", ".", "\0.safetensors",
        "model-00001-of-00002.safetensors", "x" * 5000 + ".safetensors", "é\n.safetensors",
    )))
)  # fmt: skip
_whole_files = st.one_of(st.tuples(st.just("replace"), WHOLES), st.tuples(st.just("append"), RUNS))


@st.composite
def whole(draw: st.DrawFn) -> CheckpointCase:
    """A file that is not there, that is something else, or that goes on after its end."""
    base = draw(ANY)
    file = draw(st.sampled_from(("config.json", "tokenizer.json", *WEIGHTS[base])))
    gone = st.sampled_from(("nothing", "a folder", "a link to nothing", "a link to itself", "a link to the file"))
    damage, how = draw(st.one_of(_whole_files, st.tuples(st.just("remove"), gone)))
    return CheckpointCase(base=base, damages=((damage, file, how),))


_bin, _sharded = st.just("bin"), st.just("sharded")
SORTS: dict[str, st.SearchStrategy[CheckpointCase]] = {
    "weights: bytes flipped": damaged("flip", _flips, ANY, most=2),
    "weights: bytes overwritten": damaged("overwrite", st.tuples(SPOTS, RUNS), most=2),
    "weights: bytes inserted": damaged("insert", st.tuples(SPOTS, RUNS), most=2),
    "weights: cut short": damaged("cut", SPOTS, ANY, most=2),
    "weights: keys": damaged("tensors", _renamed, ANY),
    "weights: shapes": damaged("tensors", _shaped, ANY),
    "weights: dtypes": damaged("tensors", _typed, ANY),
    "weights: NaN, infinities": damaged("tensors", _numbers, ANY),
    "weights: pickles with code": damaged(
        "hostile",
        st.tuples(
            st.sampled_from(("open", "mkdir", "system", "exec", "eval", "copy", "a class")),
            st.sampled_from(("zip", "legacy", "among tensors", "0", "2", "4")),
        ),
    ),
    "weights: other pickles": damaged(
        "saved",
        st.sampled_from(tuple(OBJECTS)),
        _bin,
    ),
    "weights: broken index": st.one_of(
        damaged("fields", _maps.map(lambda m: (("weight_map", m),)), _sharded, INDEX),
        damaged("flip", _flips, _sharded, INDEX, most=2),
        damaged("cut", SPOTS, _sharded, INDEX, most=2),
        damaged("replace", WHOLES, _sharded, INDEX),
    ),
    "files: missing or other": whole(),
    "config: fields": damaged("fields", _fields, ANY, "config.json"),
    "config: bytes": st.one_of(
        damaged("flip", _flips, OURS, "config.json", most=2),
        damaged("insert", st.tuples(SPOTS, RUNS), OURS, "config.json", most=2),
        damaged("cut", SPOTS, OURS, "config.json", most=2),
        damaged("twice", st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES[1:])), OURS, "config.json"),
    ),
    "tokenizer: fields": damaged(
        "fields",
        st.tuples(st.sampled_from(TOKENIZER_KEYS), st.sampled_from(TOKENIZER_VALUES)).map(lambda kv: (kv,)),
        st.just("hf"),
        "tokenizer.json",
    ),
    "tokenizer: bytes": st.one_of(
        damaged("flip", _flips, _bin, "tokenizer.json"), damaged("cut", SPOTS, _bin, "tokenizer.json", most=2)
    ),
}
KIND = Kind(name="checkpoint", sorts=SORTS, judge=judge, draws=25, prepare=prepare)
