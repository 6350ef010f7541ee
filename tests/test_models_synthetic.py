"""Every row of the synthetic tables is one of the paper's, of its size, and what makes no model is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from mambalab.models import build, parameter_count
from mambalab.models.architectures import SequenceConfig
from mambalab.models.synthetic import SYNTHETIC, synthetic
from sequence_cases import TABLE1, TABLE2, VARIANTS


def test_the_registry_has_the_rows_of_both_tables():
    assert list(SYNTHETIC) == TABLE1 + TABLE2
    assert {row.config.d_model for row in SYNTHETIC.values() if row.table == "table1"} == {64}
    assert [SYNTHETIC[name].config.d_model for name in TABLE2] == [128, 128, 128, 128, 128, 64]
    assert {row.config.n_layer for row in SYNTHETIC.values()} == {2}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_each_row_names_one_row_of_the_published_table(name):
    from mambalab.reports import published

    row = SYNTHETIC[name]
    text = (Path(published.__file__).parent / "published" / f"{row.table}.csv").read_text("utf-8")
    header, *lines = [line.split(",") for line in text.splitlines() if not line.startswith("#")]
    cells = [dict(zip(header, line, strict=False)) for line in lines]
    found = [c for c in cells if row.row.items() <= c.items()]
    assert len(found) == 1
    assert found[0].get("params") == row.params


# Ours beside what the paper prints in table 2; it prints none in table 1.
COUNTS = {
    "s4": (27_200, None), "s6": (17_984, None), "h3-s4": (52_672, None), "h3-hyena": (65_472, None),
    "h3-s6": (43_456, None), "mamba-s4": (85_952, None), "mamba-hyena": (90_432, None), "mamba-s6": (67_520, None),
    "mha-abs": (136_576 + 2**14 * 128, 137_000), "mha-rope": (136_576, 137_000), "mha-xpos": (136_576, 137_000),
    "h3": (154_496, 153_000), "hyena": (175_360, 69_000_000), "mamba": (73_664, 74_000),
}  # fmt: skip
ELSEWHERE = {"mha-abs", "hyena"}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_parameter_counts_beside_the_papers(name):
    ours, papers = COUNTS[name]
    assert parameter_count(build(SYNTHETIC[name].config, seed=None)) == ours
    assert (papers is None) == (SYNTHETIC[name].params is None)
    if papers and name not in ELSEWHERE:
        assert abs(ours - papers) < 0.01 * papers
    if papers and ours != papers:
        assert SYNTHETIC[name].note


def closed_form(config):
    """Parameters of a SequenceConfig: per channel of the operator, per layer of the block, and of the host."""
    m, v, layers = config.d_model, config.vocab_size, config.n_layer
    d = config.expand * m if config.mixer.startswith("mamba") else m
    w, e = config.filter_width, config.filter_features
    operators = {
        "s4": 2 * d * (1 + config.d_state),
        "s6": config.selective_parameters(d),
        "hyena": (e + 1) * w + 2 * (w + 1) * w + w + w * d + d,
        "attention": 0,
    }
    blocks = {
        "h3": 4 * m * m + 4 * m + config.d_conv * m,
        "mamba": 3 * m * d + config.d_conv * d + d,
        "attention": 4 * m * m + 4 * m,
    }
    block, _, operator = config.mixer.rpartition("-")
    mixer = operators[operator] + blocks.get(block or operator, m * m + m)
    table = config.max_length * m if config.mixer == "attention" and config.positions == "absolute" else 0
    return 2 * v * m + m + table + layers * (m + mixer)


@pytest.mark.parametrize("config", [c for c in VARIANTS.values() if isinstance(c, SequenceConfig)], ids=repr)
def test_the_closed_form_counts_the_parameters(config):
    assert parameter_count(build(config, seed=None)) == closed_form(config)


def test_naming_the_rows_imports_no_torch():
    code = "import sys, mambalab.models.synthetic; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_a_wrong_name_gets_its_neighbours():
    with pytest.raises(ValueError, match=r"^unknown synthetic model 'mha-rop'; nearest: mha-rope"):
        synthetic("mha-rop")
    assert synthetic("mha-rope") is SYNTHETIC["mha-rope"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer": "h3-s5"}, "unknown mixer 'h3-s5'; nearest: h3-s6, h3-s4"),
        (
            {"mixer": "s4", "n_head": 4},
            "n_head = 4 is no setting of the mixer s4, which has d_state, dt_max, dt_min, s4",
        ),
        ({"mixer": "s4", "d_state": 5}, "d_state must be even for s4d-lin, two numbers a conjugate pair, not 5"),
        ({"mixer": "s4", "s4_init": "hippo"}, "s4_init must be one of s4d-lin, s4d-inv, s4d-real, not 'hippo'"),
        ({"mixer": "s4", "s4_discretisation": "euler"}, "s4_discretisation must be one of zoh, bilinear, not 'euler'"),
        (
            {"mixer": "h3-hyena", "filter_features": 8},
            "filter_features must be odd, the time and two a frequency, not 8",
        ),
        ({"mixer": "attention", "n_head": 3}, "2 n_head must divide d_model, not 2 x 3 into 16"),
        ({"mixer": "attention", "positions": "alibi"}, "positions must be one of absolute, .*, not 'alibi'"),
        ({"mixer": "s6", "vocab_size": 0}, "vocab_size must be a positive integer, not 0"),
        ({"mixer": 7}, "unknown mixer 7; known: s4"),
    ],
    ids=str,
)
def test_a_config_that_makes_no_model_is_refused(changes, message, unchecked):
    with pytest.raises(ValueError, match=message):
        SequenceConfig(**{"d_model": 16, "n_layer": 1, "vocab_size": 8, **changes})
