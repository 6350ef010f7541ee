"""The registry's shapes give the published parameter counts, three ways, and wrong names get their neighbours."""

from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import cast

import pytest
import torch
from mambalab.models import Mamba, registry
from mambalab.models.registry import SPECS, MambaConfig, NeoXConfig

# Parameters, tensors and padded vocabulary of the published files.
MAMBA = {
    "mamba-130m": (129135360, 242),
    "mamba-370m": (371516416, 482),
    "mamba-790m": (793204224, 482),
    "mamba-1.4b": (1372178432, 482),
    "mamba-2.8b": (2768345600, 642),
    "mamba-2.8b-slimpj": (2768345600, 642),
}
# Total and non-embedding parameters, from the models' own cards.
PYTHIA = {
    "pythia-70m": (70426624, 18915328),
    "pythia-160m": (162322944, 85056000),
    "pythia-410m": (405334016, 302311424),
    "pythia-1b": (1011781632, 805736448),
    "pythia-1.4b": (1414647808, 1208602624),
    "pythia-2.8b": (2775208960, 2517652480),
    "pythia-6.9b": (6857302016, 6444163072),
    "pythia-12b": (11846072320, 11327027200),
}


def test_the_registry_lists_both_families_and_nothing_else():
    assert list(SPECS) == [*MAMBA, *PYTHIA]


@pytest.mark.parametrize("name", MAMBA)
def test_mamba_counts_are_the_published_ones(name):
    config = registry.mamba_config(name)
    parameters = list(Mamba(config, seed=None).parameters())
    assert {p.device.type for p in parameters} == {"meta"}
    instantiated = sum(p.numel() for p in parameters)
    assert (SPECS[name].n_parameters, config.n_parameters, instantiated) == (MAMBA[name][0],) * 3
    assert len(parameters) == MAMBA[name][1]
    assert config.padded_vocab_size == 50280


@pytest.mark.parametrize("name", PYTHIA)
def test_pythia_counts_are_the_published_ones(name):
    spec = SPECS[name]
    assert (spec.n_parameters, spec.config.n_parameters) == (PYTHIA[name][0],) * 2
    assert spec.n_parameters - 2 * spec.config.vocab_size * spec.config.d_model == PYTHIA[name][1]


@pytest.mark.parametrize("name", PYTHIA)
def test_pythia_counts_are_those_of_the_transformers_class(name):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape = cast(NeoXConfig, SPECS[name].config)
    config = GPTNeoXConfig(
        hidden_size=shape.d_model,
        num_hidden_layers=shape.n_layer,
        num_attention_heads=shape.n_head,
        intermediate_size=4 * shape.d_model,
        vocab_size=shape.vocab_size,
    )
    with torch.device("meta"):
        model = GPTNeoXForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) == SPECS[name].n_parameters


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_embeddings": False},
        {"conv_bias": False},
        {"bias": True},
        {"dt_rank": 7, "d_state": 3, "d_conv": 1, "expand": 3},
        {"vocab_size": 17, "pad_vocab_size_multiple": 5},
    ],
    ids=str,
)
def test_the_closed_form_counts_every_option(changes):
    config = replace(MambaConfig(d_model=40, n_layer=2, vocab_size=64), **changes)
    assert config.n_parameters == sum(p.numel() for p in Mamba(config, seed=None).parameters())


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("mamba-130m", "Mamba-130M"),
        ("mamba-2.8b", "Mamba-2.8B"),
        ("mamba-2.8b-slimpj", None),
        ("pythia-6.9b", "Pythia-6.9B"),
        ("pythia-70m", None),
        ("pythia-12b", None),
    ],
)
def test_a_spec_names_its_row_of_table_3(name, row):
    assert registry.spec(name).table3 == row


def test_rows_of_table_3_are_in_the_published_table():
    from mambalab.reports import published

    table = Path(published.__file__).parent / "published" / "table3.csv"
    rows = {line.split(",")[0] for line in table.read_text("utf-8").splitlines()}
    assert {s.table3 for s in SPECS.values() if s.table3} <= rows


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("mamba-130m", "mamba-130m"),
        ("state-spaces/mamba-130m", "mamba-130m"),
        ("state-spaces/mamba-130m-hf", "mamba-130m"),
        ("EleutherAI/pythia-1b", "pythia-1b"),
    ],
)
def test_a_model_is_found_by_name_and_by_hub_id(given, name):
    assert registry.find(given) is SPECS[name]


def test_a_model_that_is_not_listed_is_not_found():
    assert registry.find("someone/mamba-130m") is None


def test_a_wrong_name_gets_its_neighbours():
    with pytest.raises(ValueError, match=r"^unknown model 'mamba-130'; nearest: mamba-130m, mamba-370m"):
        registry.spec("mamba-130")


def test_a_name_without_neighbours_gets_the_list():
    with pytest.raises(ValueError, match=r"^unknown model 'gpt'; known: mamba-130m, .*pythia-12b$"):
        registry.spec("gpt")


def test_the_auto_rank_is_a_sixteenth_rounded_up():
    assert [MambaConfig(d_model=d, n_layer=1, vocab_size=8).rank for d in (16, 17, 768)] == [1, 2, 48]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 0}, "d_model must be a positive integer, not 0"),
        ({"n_layer": True}, "n_layer must be a positive integer, not True"),
        ({"d_state": 1.5}, "d_state must be a positive integer, not 1.5"),
        ({"dt_rank": "full"}, "dt_rank must be a positive integer, not 'full'"),
        ({"bias": 1}, "bias must be true or false, not 1"),
        ({"norm_epsilon": 0.0}, "norm_epsilon must be a positive finite number, not 0.0"),
        ({"norm_epsilon": float("inf")}, "norm_epsilon must be a positive finite number, not inf"),
        ({"dt_min": 0.2}, "dt_min must be at most dt_max, not 0.2 > 0.1"),
        ({"discretisation": "bilinear"}, "discretisation must be one of euler, zoh, not 'bilinear'"),
    ],
    ids=str,
)
def test_a_config_that_makes_no_model_is_refused(changes, message, unchecked):
    with pytest.raises(ValueError, match=message):
        MambaConfig(**{"d_model": 16, "n_layer": 1, "vocab_size": 8, **changes})


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="n_head must divide d_model, not 3 into 16"):
        NeoXConfig(d_model=16, n_layer=1, n_head=3, vocab_size=8)


def test_specs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        SPECS["mamba-130m"].hub = "elsewhere"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        SPECS["mamba-130m"] = SPECS["pythia-70m"]  # pyright: ignore[reportIndexIssue]


def test_a_pythia_has_no_mamba_config():
    with pytest.raises(ValueError, match="pythia-1b is not a Mamba but of the family pythia"):
        registry.mamba_config("pythia-1b")
