"""The published config.json files are read as what they are, and ours say the same in the same words."""

from dataclasses import replace

import pytest
from mambalab.models import checkpoint, registry
from mambalab.models.layouts import HF, MAMBA_SSM, config_json, read_config
from models_cases import TINY, tiny

# As published in state-spaces/mamba-130m, and in state-spaces/mamba-790m-hf with its wrong d_model.
PUBLISHED_SSM = {
    "d_model": 768,
    "n_layer": 24,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}
PUBLISHED_HF = {
    "architectures": ["MambaForCausalLM"],
    "bos_token_id": 0,
    "conv_kernel": 4,
    "d_model": 2048,
    "eos_token_id": 0,
    "expand": 2,
    "fused_add_norm": True,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "initializer_range": 0.1,
    "intermediate_size": 3072,
    "layer_norm_epsilon": 1e-05,
    "model_type": "mamba",
    "n_layer": 48,
    "num_hidden_layers": 48,
    "pad_token_id": 0,
    "pad_vocab_size_multiple": 8,
    "rescale_prenorm_residual": False,
    "residual_in_fp32": True,
    "rms_norm": True,
    "ssm_cfg": {},
    "state_size": 16,
    "time_step_floor": 0.0001,
    "time_step_init_scheme": "random",
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "time_step_rank": 96,
    "time_step_scale": 1.0,
    "torch_dtype": "float32",
    "transformers_version": "4.39.1",
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
    "vocab_size": 50280,
}


def test_the_published_configs_are_read(tmp_path):
    path = tmp_path / "config.json"
    assert read_config(PUBLISHED_SSM, MAMBA_SSM, path) == registry.mamba_config("mamba-130m")
    large = read_config(PUBLISHED_HF, HF, path)
    assert large.n_parameters == registry.spec("mamba-790m").n_parameters
    assert (large.rank, large.padded_vocab_size) == (96, 50280)


def test_a_written_config_is_the_published_one():
    config = registry.mamba_config("mamba-130m")
    assert config_json(config, MAMBA_SSM) == PUBLISHED_SSM | {"tie_embeddings": True}


@pytest.mark.parametrize("layout", [MAMBA_SSM, HF], ids=lambda layout: layout.name)
@pytest.mark.parametrize(
    "changes", [{"d_state": 7, "d_conv": 3, "expand": 1}, {"dt_rank": 9, "dt_max": 0.5}, {"bias": True}], ids=str
)
def test_configs_come_back_from_their_json(layout, changes, tmp_path):
    config = replace(TINY, vocab_size=64, **layout.implied, **changes)
    assert read_config(config_json(config, layout), layout, tmp_path) == config


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("mamba_ssm", {"norm_epsilon": 1e-6}, "norm_epsilon = 1e-06 cannot be saved: the mamba_ssm layout has no key"),
        ("mamba_ssm", {"discretisation": "zoh"}, "discretisation = 'zoh' cannot be saved"),
        ("hf", {"discretisation": "zoh"}, "discretisation = 'zoh' cannot be saved: the hf layout has no key for it"),
    ],
)
def test_what_a_layout_cannot_say_is_not_saved(layout, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        checkpoint.save(tiny(**changes), tmp_path, layout=layout)
    assert list(tmp_path.iterdir()) == []
