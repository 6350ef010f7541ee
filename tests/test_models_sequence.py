"""Every row of the synthetic tables is causal, trains whole, is drawn from its seed and goes on from its state."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mambalab.models import State, build, parameter_count, run_in_chunks
from mambalab.models.architectures import MIXERS, SequenceConfig
from mambalab.models.registry import MambaConfig
from mambalab.models.synthetic import SYNTHETIC, synthetic
from models_cases import TOLERANCE, assert_same_states, distance, tokens

TABLE1 = ["s4", "s6", "h3-s4", "h3-hyena", "h3-s6", "mamba-s4", "mamba-hyena", "mamba-s6"]
TABLE2 = ["mha-abs", "mha-rope", "mha-xpos", "h3", "hyena", "mamba"]
STATEFUL = [name for name in SYNTHETIC if name in [*TABLE1, "h3", "mamba"] and "hyena" not in name]
STATELESS = [name for name in SYNTHETIC if name not in STATEFUL]


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
CARRYING = {n: c for n, c in VARIANTS.items() if isinstance(c, MambaConfig) or MIXERS[c.mixer].carries_state}


@torch.no_grad()
def louder(config):
    """A model in float64 whose every part matters, as a fresh one's hardly do."""
    model = build(config, seed=0).double()
    for name, parameter in model.named_parameters():
        if name.endswith("embedding.weight") or "in_proj.weight" in name:
            parameter.mul_(3)
        if "norm" in name:
            parameter.add_(torch.linspace(-0.3, 0.3, len(parameter)))
    return model


def ids(*shape, seed=0):
    return tokens(*shape, seed=seed, vocabulary=16)


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


@pytest.mark.parametrize("name", VARIANTS)
def test_a_token_changes_nothing_before_it(name):
    model, row = louder(VARIANTS[name]), ids(2, 12)
    with torch.no_grad():
        before, _ = model(row)
        for t in (0, 5, 11):
            changed = row.clone()
            changed[:, t] = (row[:, t] + 1) % 16
            after, _ = model(changed)
            assert distance(after[:, :t], before[:, :t]) < 1e-12
            # The control: it does change what follows.
            assert (after[:, t:] - before[:, t:]).abs().amax(-1).min() > 1e-9


CUTS = {"one by one": [1] * 11, "short chunks": [2, 3, 1, 4, 1], "halves": [5, 6]}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("name", CARRYING)
@torch.no_grad()
def test_chunks_equal_one_forward(name, cuts):
    model, row = louder(VARIANTS[name]), ids(3, 11)
    want, want_state = model(row)
    parts, state = [], None
    for chunk in row.split(cuts, 1):
        logits, state = model(chunk, state=state)
        parts.append(logits)
    assert distance(torch.cat(parts, 1), want) < TOLERANCE[torch.float64]
    assert_same_states(state, want_state, TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", CARRYING)
def test_steps_equal_one_forward(name):
    model, row = louder(VARIANTS[name]), ids(3, 11)
    want, want_state = model(row)
    state = model.empty_state(3)
    logits = torch.stack([model.step(column, state) for column in row.unbind(1)], 1)
    assert distance(logits, want) < TOLERANCE[torch.float64]
    assert_same_states(state, want_state, TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", CARRYING)
@torch.no_grad()
def test_losing_the_state_changes_the_logits(name):
    """The control of the two tests above."""
    model, row = louder(VARIANTS[name]), ids(3, 11)
    want, _ = model(row)
    _, state = model(row[:, :5])
    lost = State(state.conv, tuple(torch.zeros_like(scan) for scan in state.scan))
    assert distance(model(row[:, 5:], state=lost)[0], want[:, 5:]) > 1e-4


@pytest.mark.parametrize("name", STATEFUL)
@torch.no_grad()
def test_a_long_sequence_in_chunks_gives_the_logits_of_one_pass_in_float32(name):
    model, row = build(small(SYNTHETIC[name].config), seed=0), ids(1, 3000)
    want, _ = model(row, logits_at=torch.tensor([2999]))
    got, state = run_in_chunks(model, row, chunk=700)
    assert distance(got, want) < 3e-5
    assert len(state) == 1


@pytest.mark.parametrize("name", STATELESS)
def test_a_state_is_refused_where_there_is_none(name):
    model = build(SYNTHETIC[name].config, seed=0)
    logits, state = model(ids(2, 5))
    assert logits.shape == (2, 5, 16)
    assert state is None
    given = State((torch.zeros(2, 0, 1),) * 2, (torch.zeros(2, 1, 1),) * 2)
    with pytest.raises(ValueError, match="carries no state: it reads a sequence whole"):
        model(ids(2, 5), state=given)
    with pytest.raises(ValueError, match="carries no state"):
        model.empty_state(2)
    with pytest.raises(ValueError, match="9 tokens are more than one chunk of 4, and this model carries no state"):
        run_in_chunks(model, ids(1, 9), chunk=4)


def test_a_state_of_another_batch_is_refused():
    model = build(SYNTHETIC["h3-s4"].config, seed=0)
    with pytest.raises(ValueError, match="the state has 2 rows of 2 layers, where the input has 3 and the model 2"):
        model(ids(3, 4), state=model.empty_state(2))


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_reach_every_parameter(name):
    model, row = build(replace(VARIANTS[name], **SHORT.get(name, {})), seed=0), ids(2, 9)
    logits, _ = model(row)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), row[:, 1:].flatten()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# Every position of a table that is no longer than the input.
SHORT = {"mha-abs": {"max_length": 9}}


@pytest.mark.parametrize("name", STATEFUL)
def test_training_keeps_nothing_as_large_as_a_state_a_token(name):
    """No (b l d n): what a layer saves for its gradient is of the activations, or of the kernel."""
    b, length, n = 32, 64, 32
    config = replace(VARIANTS[name], d_state=n)
    model, largest = build(config, seed=0), 0

    def seen(tensor):
        nonlocal largest
        largest = max(largest, tensor.untyped_storage().nbytes() // 4)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        model(ids(b, length))
    assert 0 < largest < b * length * config.d_model * n / 4


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_seed_draws_the_same_model_and_another_another(name):
    config = SYNTHETIC[name].config
    torch.manual_seed(1)
    first = build(config, seed=3).state_dict()
    after = torch.initial_seed(), torch.rand(())
    torch.manual_seed(1)
    assert (torch.initial_seed(), torch.rand(())) == after
    second, third = build(config, seed=3).state_dict(), build(config, seed=4).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], third[key]) for key in first)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_logits_are_computed_where_asked(name):
    model, row = louder(VARIANTS[name]), ids(2, 7)
    where = torch.tensor([0, 5, 13, 13])
    want, _ = model(row)
    assert distance(model(row, logits_at=where)[0], want.flatten(0, 1)[where]) < 1e-12


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


@pytest.mark.parametrize(
    ("positions", "limit", "message"),
    [
        ("absolute", 8, "absolute positions end at max_length = 8, before 9 tokens"),
        ("xpos", 2**16, "xpos has 65536 positions, not 65537: its decay leaves the range of float32"),
    ],
)
def test_positions_beyond_the_last_are_refused(positions, limit, message):
    changes = {"max_length": limit} if positions == "absolute" else {}
    model = build(SequenceConfig(
        mixer="attention", d_model=2, n_head=1, n_layer=1, vocab_size=16, positions=positions, **changes
    ))  # fmt: skip
    with pytest.raises(ValueError, match=message):
        model(ids(1, limit + 1))


@pytest.mark.gpu
@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_captured_forward_and_backward_are_those_of_the_host(name):
    model, row = build(SYNTHETIC[name].config, seed=0), ids(2, 300)
    want, _ = model(row)
    want.square().mean().backward()
    gradients = [p.grad for p in model.parameters()]
    other = build(SYNTHETIC[name].config, seed=0).cuda()
    there = row.cuda()

    def run():
        other.zero_grad(set_to_none=False)
        logits, _ = other(there)
        logits.square().mean().backward()
        return logits

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = run()
    graph.replay()
    assert distance(logits.cpu(), want) < 1e-4
    for parameter, gradient in zip(other.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert distance(parameter.grad.cpu(), gradient) < 2e-3


@pytest.mark.parametrize("name", VARIANTS)
def test_training_under_autocast_keeps_float32_gradients(name):
    config = VARIANTS[name]
    model = build(config, seed=0)
    ids = tokens(2, 40, vocabulary=config.vocab_size)
    want, _ = model(ids)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = model(ids)
    assert found.dtype == torch.bfloat16
    assert distance(found, want) < 0.05
    found.float().square().sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
