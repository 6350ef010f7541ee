"""What the trainer's step is timed beside: models that begin with our weights, stepped from Python as one writes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..models import build
from ..models.building import Model
from ..models.registry import MambaConfig
from ..tasks.recipes import Recipe
from .bench import LeftOut
from .bench_peers import Peer

Build = Callable[[Recipe], Model]


class _Hosted(nn.Module):
    """mamba_ssm's language model with the calls of ours."""

    carries_state = False

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, *, logits_at: Tensor) -> tuple[Tensor, None]:
        return self.model.lm_head(self.model.backbone(tokens).flatten(0, 1)[logits_at]), None


def _mamba_ssm() -> Build:
    from mamba_ssm.models.config_mamba import MambaConfig as Theirs  # type: ignore[reportMissingImports]
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel  # type: ignore[reportMissingImports]

    def make(recipe: Recipe) -> Any:
        c = recipe.model
        if not isinstance(c, MambaConfig):
            raise LeftOut("it has no such model")
        theirs = MambaLMHeadModel(
            Theirs(
                d_model=c.d_model,
                n_layer=c.n_layer,
                vocab_size=c.vocab_size,
                ssm_cfg={"d_state": c.d_state, "d_conv": c.d_conv, "expand": c.expand, "dt_rank": c.rank},
                pad_vocab_size_multiple=c.pad_vocab_size_multiple,
                tie_embeddings=c.tie_embeddings,
            )
        )
        theirs.load_state_dict(build(c, seed=recipe.seed).state_dict())
        return _Hosted(theirs)

    return make


PLAIN = Peer(
    name="plain loop",
    timed="the same model and kernels, each step launched from Python",
    distribution=None,
    load=lambda: lambda recipe: build(recipe.model, seed=recipe.seed),
)
MAMBA_SSM = Peer(
    name="mamba_ssm",
    timed="MambaLMHeadModel with our weights, each step launched from Python",
    distribution="mamba_ssm",
    load=_mamba_ssm,
)
