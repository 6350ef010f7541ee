"""The rows of the synthetic tables, narrower, and what else their mixers can be: what the tests of them share."""

from dataclasses import replace

from mambalab.models.architectures import MIXERS, SequenceConfig
from mambalab.models.registry import MambaConfig
from mambalab.models.synthetic import SYNTHETIC
from models_cases import tokens

TABLE1 = ["s4", "s6", "h3-s4", "h3-hyena", "h3-s6", "mamba-s4", "mamba-hyena", "mamba-s6"]
TABLE2 = ["mha-abs", "mha-rope", "mha-xpos", "h3", "hyena", "mamba"]


def small(config):
    """The same model, narrower."""
    is_ssm = isinstance(config, MambaConfig) or "d_state" in MIXERS[config.mixer].settings
    return replace(config, d_model=16, **({"d_state": 6} if is_ssm else {}))


VARIANTS = {
    **{name: small(row.config) for name, row in SYNTHETIC.items()},
    **{
        f"s4 {init} {how}": SequenceConfig(
            mixer="s4", d_model=12, n_layer=2, vocab_size=16, d_state=6, s4_init=init, s4_discretisation=how
        )
        for init in ("s4d-lin", "s4d-inv", "s4d-real")
        for how in ("zoh", "bilinear")
    },
    "h3-s6 complex": SequenceConfig(
        mixer="h3-s6", d_model=12, n_layer=2, vocab_size=16, d_state=3, A_init="complex", selective_C=False
    ),
    "mha-sinusoidal": replace(small(SYNTHETIC["mha-rope"].config), positions="sinusoidal"),
}


def ids(*shape, seed=0):
    return tokens(*shape, seed=seed, vocabulary=16)
