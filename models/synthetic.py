"""The rows of the Mamba paper's tables 1 and 2 as named models; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from .architectures import ModelConfig, SequenceConfig
from .registry import MambaConfig, nearest

WIDTH = {"table1": 64, "table2": 128}
"""d_model in each table; Mamba's is 64 in both (appendix E.1)."""


@dataclass(frozen=True, kw_only=True)
class SyntheticModel:
    """A row: its config, the cells that name it in published/table1.csv or table2.csv, and how it differs."""

    name: str
    table: Literal["table1", "table2"]
    row: Mapping[str, str]
    config: ModelConfig
    params: str | None = None  # parameters as the paper prints them
    note: str = ""


def synthetic(name: str) -> SyntheticModel:
    """The row called `name`; a ValueError that gives the nearest names when there is none."""
    return nearest(name, SYNTHETIC, "synthetic model")


def _selective_copying(name: str, arch: str, layer: str, **settings: Any) -> SyntheticModel:
    shape: dict[str, Any] = {"d_model": WIDTH["table1"], "n_layer": 2, "vocab_size": 16}
    config = _mamba(**shape) if name == "mamba-s6" else SequenceConfig(mixer=name, **shape, **settings)
    row = MappingProxyType({"arch": arch, "layer": layer})
    return SyntheticModel(name=name, table="table1", row=row, config=config)


def _induction_heads(name: str, model: str, params: str, note: str, mixer: str, **settings: Any) -> SyntheticModel:
    config = SequenceConfig(mixer=mixer, d_model=WIDTH["table2"], n_layer=2, vocab_size=16, **settings)
    row = MappingProxyType({"model": model})
    return SyntheticModel(name=name, table="table2", row=row, config=config, params=params, note=note)


def _mamba(**settings: Any) -> MambaConfig:
    """The released block with a head of its own, and as many logits as symbols."""
    return MambaConfig(tie_embeddings=False, pad_vocab_size_multiple=1, **settings)


_ROTATED = "The layers of the paper's count of 136,960, with RMSNorm in the place of LayerNorm (384 fewer)."
_NOTES = {
    "mha-abs": "As mha-rope, and a learnt table of 16,384 positions, the longest the paper tests; its count has none.",
    "h3": "d_state is not stated; 32 comes nearest to the paper's count.",
    "hyena": (
        "The paper's 69M are nearly all learnable encodings (2 layers of 2^20 positions of 33 numbers are 69.2M); "
        "ours are computed, not learnt, and the filters are laid out for as many positions."
    ),
    "mamba": "dt_rank 16 and an untied head, which give the paper's 74K; the released default of 4 gives 67,520.",
}

SYNTHETIC: Mapping[str, SyntheticModel] = MappingProxyType(
    {
        row.name: row
        for row in (
            _selective_copying("s4", "No gate", "S4", d_state=64),
            _selective_copying("s6", "No gate", "S6"),
            _selective_copying("h3-s4", "H3", "S4", d_state=64),
            _selective_copying("h3-hyena", "H3", "Hyena", filter_length=4096),
            _selective_copying("h3-s6", "H3", "S6"),
            _selective_copying("mamba-s4", "Mamba", "S4", d_state=64),
            _selective_copying("mamba-hyena", "Mamba", "Hyena", filter_length=4096),
            _selective_copying("mamba-s6", "Mamba", "S6"),
            _induction_heads("mha-abs", "MHA-Abs", "137K", _NOTES["mha-abs"], "attention", positions="absolute"),
            _induction_heads("mha-rope", "MHA-RoPE", "137K", _ROTATED, "attention", positions="rotary"),
            _induction_heads("mha-xpos", "MHA-xPos", "137K", _ROTATED, "attention", positions="xpos"),
            _induction_heads("h3", "H3", "153K", _NOTES["h3"], "h3-s4", d_state=32),
            _induction_heads("hyena", "Hyena", "69M", _NOTES["hyena"], "h3-hyena", filter_length=2**20),
            SyntheticModel(
                name="mamba",
                table="table2",
                row=MappingProxyType({"model": "Mamba"}),
                config=_mamba(d_model=64, n_layer=2, vocab_size=16, dt_rank=16),
                params="74K",
                note=_NOTES["mamba"],
            ),
        )
    }
)
