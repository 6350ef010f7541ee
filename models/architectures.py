"""The shape of a model that mixes by S4, S6, H3, Hyena or attention, and the table of mixers; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Literal

from .registry import MambaConfig, SelectiveSettings, nearest, require_counts, require_one_of, require_positive, shown

S4_INITS = ("s4d-lin", "s4d-inv", "s4d-real")
S4_DISCRETISATIONS = ("zoh", "bilinear")
POSITIONS = ("absolute", "sinusoidal", "rotary", "xpos")


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """One way for a layer to mix a sequence: a block, and the sequence operator inside it, if any."""

    name: str
    block: str  # "module.Class" of this folder, imported when a model is built
    operator: str | None
    carries_state: bool  # whether a sequence may be read chunk by chunk
    settings: frozenset[str]  # the fields of SequenceConfig that it reads, beside those that all do


@dataclass(frozen=True, kw_only=True)
class SequenceConfig(SelectiveSettings):
    """The shape of an embedding, `n_layer` times (norm, mixer) on a residual stream, a norm and a head.

    `mixer` is a row of MIXERS, which names the settings it reads; another one that is not at its default is refused.
    For S4, `d_state` counts real numbers, two a conjugate pair. `d_conv` is the width of the Mamba block's convolution,
    and of H3's shift. `filter_length` is where Hyena's time reaches 1, `max_length` the table of absolute positions.
    A value that makes no model is a ValueError with the value and the rule.
    """

    mixer: str
    n_layer: int
    vocab_size: int
    norm_epsilon: float = 1e-5
    expand: int = 2
    d_conv: int = 4
    s4_init: Literal["s4d-lin", "s4d-inv", "s4d-real"] = "s4d-lin"
    s4_discretisation: Literal["zoh", "bilinear"] = "zoh"
    filter_width: int = 64
    filter_features: int = 33
    filter_length: int = 256
    n_head: int = 8
    positions: Literal["absolute", "sinusoidal", "rotary", "xpos"] = "rotary"
    max_length: int = 2**14

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("n_layer", "vocab_size", "expand", "d_conv", "filter_width", "filter_features", "filter_length")
        require_counts(self, *counts, "n_head", "max_length")
        require_positive(self, "norm_epsilon")
        require_one_of(self, "s4_init", S4_INITS)
        require_one_of(self, "s4_discretisation", S4_DISCRETISATIONS)
        require_one_of(self, "positions", POSITIONS)
        row = mixer(self.mixer)
        for name in _OPTIONAL - row.settings:
            if getattr(self, name) != _DEFAULTS[name]:
                raise ValueError(
                    f"{name} = {shown(getattr(self, name))} is no setting of the mixer {row.name}, "
                    f"which has {', '.join(sorted(row.settings))}"
                )
        self._check_divisions(row)

    def _check_divisions(self, row: Mixer) -> None:
        if "s4_init" in row.settings and self.s4_init != "s4d-real" and self.d_state % 2:
            raise ValueError(
                f"d_state must be even for {self.s4_init}, two numbers a conjugate pair, not {self.d_state}"
            )
        if "filter_features" in row.settings and self.filter_features % 2 == 0:
            raise ValueError(f"filter_features must be odd, the time and two a frequency, not {self.filter_features}")
        if "n_head" in row.settings and self.d_model % (2 * self.n_head):
            # An even width a head, for the pairs that positions rotate.
            raise ValueError(f"2 n_head must divide d_model, not 2 x {self.n_head} into {self.d_model}")


ModelConfig = MambaConfig | SequenceConfig


def mixer(name: str) -> Mixer:
    """The mixer called `name`; a ValueError that gives the nearest names when there is none."""
    return nearest(name, MIXERS, "mixer")


def to_json(config: ModelConfig) -> dict[str, Any]:
    """The config as plain JSON, its kind and every setting, from which `from_json` makes it again."""
    return {"kind": type(config).__name__} | asdict(config)


def from_json(content: object) -> ModelConfig:
    """The config that `to_json` wrote; ValueError for what is none.

    Every setting must be there: a default that changes later may not change a model that is stored.
    """
    values = dict(content) if isinstance(content, Mapping) else {}
    name = values.pop("kind", None)
    kind = next((kind for kind in (MambaConfig, SequenceConfig) if kind.__name__ == name), None)
    if kind is None:
        raise ValueError(
            f"a model's config must be an object of kind MambaConfig or SequenceConfig, not {shown(content)}"
        )
    known = {field.name for field in fields(kind)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"unknown {', '.join(map(shown, unknown))} in a {kind.__name__}")
    if missing := sorted(known - values.keys()):
        raise ValueError(f"{', '.join(missing)} missing in a {kind.__name__}")
    return kind(**values)


_S4 = {"d_state", "dt_min", "dt_max", "s4_init", "s4_discretisation"}
_S6 = {f.name for f in fields(SelectiveSettings)} - {"d_model"}
_HYENA = {"filter_width", "filter_features", "filter_length"}
_H3 = {"d_conv"}
_MAMBA = {"d_conv", "expand"}
_ATTENTION = {"n_head", "positions", "max_length"}
_OPTIONAL = _S4 | _S6 | _HYENA | _MAMBA | _ATTENTION
_DEFAULTS = {f.name: f.default for f in fields(SequenceConfig)}


def _row(name: str, block: str, operator: str | None, settings: set[str], *, carries_state: bool = True) -> Mixer:
    return Mixer(
        name=name, block=block, operator=operator, carries_state=carries_state, settings=frozenset(settings)
    )  # fmt: skip


MIXERS: Mapping[str, Mixer] = MappingProxyType(
    {
        row.name: row
        for row in (
            _row("s4", "blocks.Ungated", "s4.S4", _S4),
            _row("s6", "blocks.Ungated", "s6.S6", _S6),
            _row("h3-s4", "h3.H3", "s4.S4", _H3 | _S4),
            _row("h3-hyena", "h3.H3", "hyena.Hyena", _H3 | _HYENA, carries_state=False),
            _row("h3-s6", "h3.H3", "s6.S6", _H3 | _S6),
            _row("mamba-s4", "blocks.Gated", "s4.S4", _MAMBA | _S4),
            _row("mamba-hyena", "blocks.Gated", "hyena.Hyena", _MAMBA | _HYENA, carries_state=False),
            _row("attention", "attention.Attention", None, _ATTENTION, carries_state=False),
        )
    }
)
