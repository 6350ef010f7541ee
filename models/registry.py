"""Names of published models and their frozen shapes; imports no torch, so that listing them costs nothing."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar

GPT_NEOX_TOKENIZER = "EleutherAI/gpt-neox-20b"
DISCRETISATIONS = ("euler", "zoh")
A_INITS = ("-(n+1)", "-1/2", "random", "complex")

_Named = TypeVar("_Named")
_PILE = "300B tokens of the Pile"


@dataclass(frozen=True, kw_only=True)
class SelectiveSettings:
    """How the selective SSM of a model of width `d_model` is made (S6; Mamba, algorithm 2 and section 3.6).

    `dt_rank="auto"` is ceil(d_model / 16), as `rank` gives it. `dt_min` and `dt_max` bound Δ at initialisation only.
    What is not selective is a parameter: one Δ a channel (table 9's row without a projection), B and C of (d n).
    `A_init` is a row of table 8: "-(n+1)" (S4D-Real), "-1/2", "random" (-exp(N(0,1))), or "complex" (-1/2 + n i), which
    makes A, B, C and the state complex, each of its n numbers standing for a conjugate pair.
    A value that makes no model is a ValueError with the value and the rule.
    """

    d_model: int
    d_state: int = 16
    dt_rank: int | Literal["auto"] = "auto"
    dt_min: float = 0.001
    dt_max: float = 0.1
    discretisation: Literal["euler", "zoh"] = "euler"
    selective_delta: bool = True
    selective_B: bool = True
    selective_C: bool = True
    A_init: Literal["-(n+1)", "-1/2", "random", "complex"] = "-(n+1)"

    def __post_init__(self) -> None:
        require_counts(self, "d_model", "d_state")
        if self.dt_rank != "auto":
            require_counts(self, "dt_rank")
        require_flags(self, "selective_delta", "selective_B", "selective_C")
        require_positive(self, "dt_min", "dt_max")
        if self.dt_min > self.dt_max:
            raise ValueError(f"dt_min must be at most dt_max, not {shown(self.dt_min)} > {shown(self.dt_max)}")
        require_one_of(self, "discretisation", DISCRETISATIONS)
        require_one_of(self, "A_init", A_INITS)

    @property
    def rank(self) -> int:
        """The rank of the Δ projection, as a number."""
        return math.ceil(self.d_model / 16) if self.dt_rank == "auto" else self.dt_rank

    @property
    def is_complex(self) -> bool:
        """Whether A, B, C and the state are complex."""
        return self.A_init == "complex"

    @property
    def reals(self) -> int:
        """Real numbers in a row of A, B or C: n, or 2 n when they are complex."""
        return self.d_state * (2 if self.is_complex else 1)

    @property
    def projected(self) -> tuple[int, int, int]:
        """Rows of x_proj for Δ, B and C; 0 for one that is static."""
        return self.rank * self.selective_delta, self.reals * self.selective_B, self.reals * self.selective_C

    def selective_parameters(self, d: int) -> int:
        """Parameters of the selective SSM on `d` channels: x_proj, dt_proj and its bias, A, D, and what is static."""
        r, b, c = self.projected
        static = d * (2 * self.reals - b - c)
        return (r + b + c) * d + d * r + d + d * self.reals + d + static


@dataclass(frozen=True, kw_only=True)
class MambaConfig(SelectiveSettings):
    """The shape of a Mamba language model (Mamba, section 3.4), in the words of the released checkpoints.

    A value that makes no model is a ValueError with the value and the rule.
    """

    n_layer: int
    vocab_size: int
    d_conv: int = 4
    expand: int = 2
    conv_bias: bool = True
    bias: bool = False
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, "n_layer", "vocab_size", "d_conv", "expand", "pad_vocab_size_multiple")
        require_flags(self, "conv_bias", "bias", "tie_embeddings")
        require_positive(self, "norm_epsilon")

    @property
    def d_inner(self) -> int:
        """Channels inside the block."""
        return self.expand * self.d_model

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: `vocab_size` rounded up to `pad_vocab_size_multiple`."""
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple

    @property
    def n_parameters(self) -> int:
        """The number of parameters, a tied embedding counted once."""
        embeddings = self.padded_vocab_size * self.d_model * (1 if self.tie_embeddings else 2)
        return embeddings + self.n_layer * self._layer_parameters + self.d_model

    @property
    def _layer_parameters(self) -> int:
        m, d = self.d_model, self.d_inner
        in_out = 2 * d * m + d * m + (2 * d + m) * self.bias
        conv = d * self.d_conv + d * self.conv_bias
        return m + in_out + conv + self.selective_parameters(d)


@dataclass(frozen=True, kw_only=True)
class NeoXConfig:
    """The shape of a Pythia (GPT-NeoX) model: feed-forward width 4 d_model, biases throughout, untied embeddings."""

    d_model: int
    n_layer: int
    n_head: int
    vocab_size: int

    def __post_init__(self) -> None:
        require_counts(self, "d_model", "n_layer", "n_head", "vocab_size")
        if self.d_model % self.n_head:
            raise ValueError(f"n_head must divide d_model, not {self.n_head} into {self.d_model}")

    @property
    def n_parameters(self) -> int:
        """Both embeddings, and per layer 12 d² of weights with 13 d of biases and norms; a last norm of 2 d."""
        d = self.d_model
        return 2 * self.vocab_size * d + self.n_layer * (12 * d * d + 13 * d) + 2 * d


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One published model: where it lies, its shape, and the row of the paper's Table 3 that reports it."""

    name: str
    family: Literal["mamba", "pythia"]
    hub: str
    config: MambaConfig | NeoXConfig
    n_parameters: int
    source: str
    table3: str | None = None
    tokenizer: str = GPT_NEOX_TOKENIZER


def spec(name: str) -> ModelSpec:
    """The spec called `name`; a ValueError that gives the nearest names when there is none."""
    return nearest(name, SPECS, "model")


def nearest(name: str, known: Mapping[str, _Named], what: str) -> _Named:
    """What is called `name`; a ValueError that gives the nearest names when there is none."""
    if isinstance(name, str) and name in known:
        return known[name]
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    raise ValueError(f"unknown {what} {shown(name)}; {'nearest' if near else 'known'}: {', '.join(near or known)}")


def mamba_config(name: str) -> MambaConfig:
    """The shape of the Mamba called `name`; a ValueError for a name that is none."""
    config = spec(name).config
    if not isinstance(config, MambaConfig):
        raise ValueError(f"{name} is not a Mamba but of the family {spec(name).family}")
    return config


def find(name_or_hub_id: str) -> ModelSpec | None:
    """The spec with this name or hub id (`-hf` conversions are the same model), None for a model that is not listed."""
    stem = name_or_hub_id.removesuffix("-hf")
    return next((s for s in SPECS.values() if stem in (s.name, s.hub)), None)


def shown(value: object, write: Callable[[Any], str] = repr, limit: int = 80) -> str:
    """A value as an error repeats it, cut where it is long."""
    text = write(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def named(name: str) -> str:
    """A name that stands in somebody's file, as an error repeats it: bare where it is a plain one."""
    return name if name.isprintable() and len(name) <= 120 else shown(name)


def require_counts(config: object, *names: str) -> None:
    """Refuse fields that are not integers from 1 to 2^31 - 1."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, not {shown(value)}")
        if value >= 2**31:
            raise ValueError(f"{name} must be less than 2^31, not {shown(value)}")


def require_flags(config: object, *names: str) -> None:
    """Refuse fields that are not true or false."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name} must be true or false, not {shown(getattr(config, name))}")


def require_positive(config: object, *names: str) -> None:
    """Refuse fields that are not positive finite numbers."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive finite number, not {shown(value)}")


def require_one_of(config: object, name: str, known: Collection[str]) -> None:
    """Refuse a field that is none of these names."""
    value = getattr(config, name)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {shown(value)}")


def _mamba(
    size: str, d_model: int, n_layer: int, n_parameters: int, *, suffix: str = "", data: str = _PILE
) -> ModelSpec:
    return ModelSpec(
        name=f"mamba-{size}{suffix}",
        family="mamba",
        hub=f"state-spaces/mamba-{size}{suffix}",
        config=MambaConfig(d_model=d_model, n_layer=n_layer, vocab_size=50277),
        n_parameters=n_parameters,
        source=f"arXiv:2312.00752, appendix E.2; github.com/state-spaces/mamba, README ({data})",
        table3=None if suffix else f"Mamba-{size.upper()}",
    )


def _pythia(size: str, d_model: int, n_layer: int, n_head: int, vocab_size: int, n_parameters: int) -> ModelSpec:
    return ModelSpec(
        name=f"pythia-{size}",
        family="pythia",
        hub=f"EleutherAI/pythia-{size}",
        config=NeoXConfig(d_model=d_model, n_layer=n_layer, n_head=n_head, vocab_size=vocab_size),
        n_parameters=n_parameters,
        source=f"arXiv:2304.01373, table 1; huggingface.co/EleutherAI/pythia-{size} ({_PILE}, not deduplicated)",
        table3=None if size in ("70m", "12b") else f"Pythia-{size.upper()}",
    )


SPECS: Mapping[str, ModelSpec] = MappingProxyType(
    {
        s.name: s
        for s in (
            _mamba("130m", 768, 24, 129_135_360),
            _mamba("370m", 1024, 48, 371_516_416),
            _mamba("790m", 1536, 48, 793_204_224),
            _mamba("1.4b", 2048, 48, 1_372_178_432),
            _mamba("2.8b", 2560, 64, 2_768_345_600),
            _mamba("2.8b", 2560, 64, 2_768_345_600, suffix="-slimpj", data="600B tokens of SlimPajama"),
            _pythia("70m", 512, 6, 8, 50304, 70_426_624),
            _pythia("160m", 768, 12, 12, 50304, 162_322_944),
            _pythia("410m", 1024, 24, 16, 50304, 405_334_016),
            _pythia("1b", 2048, 16, 8, 50304, 1_011_781_632),
            _pythia("1.4b", 2048, 24, 16, 50304, 1_414_647_808),
            _pythia("2.8b", 2560, 32, 32, 50304, 2_775_208_960),
            _pythia("6.9b", 4096, 32, 32, 50432, 6_857_302_016),
            _pythia("12b", 5120, 36, 40, 50688, 11_846_072_320),
        )
    }
)
