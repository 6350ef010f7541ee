"""Logits equal transformers' MambaForCausalLM on the same files, for both layouts, and not when the scan is ZOH."""

import pytest
import torch
from mambalab.models import Mamba, checkpoint
from mambalab.models.registry import mamba_config
from models_cases import distance, tiny, tokens


def peer(folder):
    """What transformers makes of a checkpoint of the hf layout."""
    from transformers import MambaForCausalLM

    return MambaForCausalLM.from_pretrained(folder, dtype="auto").eval()


@torch.no_grad()
def test_logits_of_the_130m_shape_equal_transformers_from_both_layouts_and_not_with_zoh(tmp_path):
    model = Mamba(mamba_config("mamba-130m"), seed=0)
    generator = torch.Generator().manual_seed(1)
    for block in model.layers:
        block.mixer.D.uniform_(0.5, 1.5, generator=generator)
        block.mixer.A_log.add_(torch.empty_like(block.mixer.A_log).uniform_(-0.2, 0.2, generator=generator))
        block.norm.weight.uniform_(0.5, 1.5, generator=generator)
        # As drawn, the scan hardly shows in the logits; so much louder, ZOH for Euler alone moves them by 0.1.
        assert block.mixer.x_proj is not None
        block.mixer.x_proj.weight.mul_(4)
    checkpoint.save(model, tmp_path / "ssm", layout="mamba_ssm")
    checkpoint.save(model, tmp_path / "hf", layout="hf")
    ids = tokens(2, 24, vocabulary=50277)
    want = peer(tmp_path / "hf")(ids).logits
    assert float(want.std()) > 0.3
    for layout in ("ssm", "hf"):
        logits, _ = checkpoint.load(tmp_path / layout)(ids)
        assert float((logits - want).abs().max()) < 1e-4
    for block in model.layers:
        block.mixer.discretisation = "zoh"
    assert float((model(ids[:, :6])[0] - want[:, :6]).abs().max()) > 1e-2


OPTIONS = [
    {},
    {"tie_embeddings": False},
    {"bias": True, "conv_bias": False},
    {"norm_epsilon": 0.1},
    {"dt_rank": 5, "expand": 3, "d_conv": 2, "d_state": 3},
]


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
@torch.no_grad()
def test_every_option_of_the_config_means_what_it_means_to_transformers(changes, tmp_path):
    checkpoint.save(tiny(**changes), tmp_path, layout="hf")
    ids = tokens(3, 9)
    logits, _ = checkpoint.load(tmp_path)(ids)
    assert distance(logits, peer(tmp_path)(ids).logits) < 1e-5


@torch.no_grad()
def test_a_checkpoint_that_transformers_wrote_is_read(tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    theirs = MambaForCausalLM(MambaConfig(vocab_size=61, hidden_size=24, num_hidden_layers=2, state_size=5)).eval()
    theirs.save_pretrained(tmp_path)
    ids = tokens(2, 6)
    logits, _ = checkpoint.load(tmp_path)(ids)
    assert logits.shape == (2, 6, 61)
    assert distance(logits, theirs(ids).logits) < 1e-5
