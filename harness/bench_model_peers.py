"""The language models that ours is timed beside: each as its own project writes it, with copies of our weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models import Mamba, layouts
from ..models.registry import MambaConfig as OurConfig
from .bench import OURS
from .bench_peers import Peer

LOUDER = 4.0  # factor on the weights that make Δ, B and C: as a model is drawn, its scan hardly shows in the logits


@torch.no_grad()
def drawn(config: OurConfig, seed: int) -> Mamba:
    """A model as the released code initialises it, but with a louder scan, so that a wrong one is seen."""
    model = Mamba(config, seed=seed)
    for layer in model.layers:
        assert layer.mixer.x_proj is not None
        layer.mixer.x_proj.weight.mul_(LOUDER)
    return model


@dataclass(frozen=True, kw_only=True)
class Network:
    """A language model that holds a copy of our weights.

    logits      (tokens (b l), last) -> logits (b l v); with `last` those of each row's last position, (b v)
    parameters  by the names they have in ours; a tied head is the embedding
    """

    logits: Callable[[Tensor, bool], Tensor]
    parameters: Mapping[str, nn.Parameter]


Build = Callable[[Mamba], Network]


def our_network(model: Mamba, *, backend: str | None = None, dtype: torch.dtype | None = None) -> Network:
    """A copy of `model` on a backend of the scan, in `dtype` or in its own."""
    copy = deepcopy(model).to(dtype)
    copy.backend = backend

    def logits(tokens: Tensor, last: bool) -> Tensor:
        rows, length = tokens.shape
        at = torch.arange(length - 1, rows * length, length) if last else None
        return copy(tokens, logits_at=at)[0]

    return Network(logits=logits, parameters=dict(copy.named_parameters()))


def _torch_loop() -> Build:
    return lambda model: our_network(model, backend="reference")


def _transformers() -> Build:
    from transformers import MambaConfig, MambaForCausalLM

    # After the import, which sets its own. It would tell of kernels that no CPU has.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    our_name, their_name = layouts.MAMBA_SSM.embedding, layouts.HF.embedding

    def build(model: Mamba) -> Network:
        with torch.random.fork_rng(devices=[]):
            theirs = MambaForCausalLM(MambaConfig.from_dict(layouts.config_json(model.config, layouts.HF))).eval()
        weights = model.state_dict()
        theirs.load_state_dict({name.replace(our_name, their_name): weight for name, weight in weights.items()})

        def logits(tokens: Tensor, last: bool) -> Tensor:
            found = theirs(tokens, use_cache=False, logits_to_keep=int(last)).logits
            return found[:, -1] if last else found

        named = {name.replace(their_name, our_name): parameter for name, parameter in theirs.named_parameters()}
        return Network(logits=logits, parameters=named)

    return build


def _mambapy() -> Build:
    from mambapy import mamba

    def build(model: Mamba) -> Network:
        c = model.config
        with torch.random.fork_rng(devices=[]):
            layers = mamba.Mamba(
                mamba.MambaConfig(
                    d_model=c.d_model,
                    n_layers=c.n_layer,
                    dt_rank=c.rank,
                    d_state=c.d_state,
                    expand_factor=c.expand,
                    d_conv=c.d_conv,
                    rms_norm_eps=c.norm_epsilon,
                    bias=c.bias,
                    conv_bias=c.conv_bias,
                )
            )
        # It is the layers alone. What it lacks goes inside it under our names, so that our weights load as they are.
        embedding = layers.embedding = nn.Embedding(c.padded_vocab_size, c.d_model)
        norm = layers.norm_f = mamba.RMSNorm(c.d_model, c.norm_epsilon)
        head = nn.Linear(c.d_model, c.padded_vocab_size, bias=False)
        if c.tie_embeddings:
            head.weight = embedding.weight
        theirs = nn.ModuleDict({"backbone": layers, "lm_head": head})
        theirs.load_state_dict(model.state_dict())

        def logits(tokens: Tensor, last: bool) -> Tensor:
            hidden = layers(embedding(tokens))
            return head(norm(hidden[:, -1] if last else hidden))

        return Network(logits=logits, parameters=dict(theirs.named_parameters()))

    return build


US = Peer(name=OURS, timed="mambalab.models.Mamba", distribution=None, load=lambda: our_network)
PEERS = (
    Peer(
        name="torch loop",
        timed="the same model on the backend `reference`, whose scan is a Python loop over l in torch",
        distribution=None,
        load=_torch_loop,
    ),
    Peer(
        name="transformers",
        timed="MambaForCausalLM in plain torch, as it runs on a CPU",
        distribution="transformers",
        load=_transformers,
        # The gradient of each step's slice is a tensor as large as the whole.
        growth=(1, 2),
    ),
    Peer(
        name="mambapy",
        timed="mambapy.mamba.Mamba (its parallel scan), an embedding before it and its RMSNorm and a head after it",
        distribution="mambapy",
        load=_mambapy,
    ),
)
