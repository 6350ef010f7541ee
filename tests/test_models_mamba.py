"""Forward, chunks, packs and steps of Mamba are one function; what must be float32 is; it starts as released."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mambalab.models import Mamba, pack
from mambalab.models.layers import RMSNorm
from mambalab.models.mamba import MambaMixer
from mambalab.models.registry import MambaConfig
from models_cases import TINY, TOLERANCE, assert_same_states, distance, tiny, tokens

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
ZOH = {"discretisation": "zoh"}
CUTS = {
    "one token at a time": [1] * 11,
    "single tokens about a long chunk": [1, 1, 8, 1],
    "chunks shorter than the conv": [2, 3, 2, 1, 3],
    "two halves": [5, 6],
    "an empty chunk": [4, 0, 7],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("batch", [1, 3])
def test_chunks_equal_one_forward(cuts, batch, dtype):
    model, ids = tiny().to(dtype), tokens(batch, 11)
    want, want_state = model(ids)
    parts, state = [], None
    for chunk in ids.split(cuts, 1):
        logits, state = model(chunk, state=state)
        parts.append(logits)
    assert distance(torch.cat(parts, 1), want) < TOLERANCE[dtype]
    assert_same_states(state, want_state, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "changes", [{}, {"d_conv": 1}, {"bias": True, "conv_bias": False}, {"discretisation": "zoh"}], ids=str
)
def test_steps_equal_one_forward(changes, dtype):
    model, ids = tiny(**changes).to(dtype), tokens(3, 7)
    want, want_state = model(ids)
    state = model.empty_state(3)
    logits = torch.stack([model.step(column, state) for column in ids.unbind(1)], 1)
    assert distance(logits, want) < TOLERANCE[dtype]
    assert_same_states(state, want_state, TOLERANCE[dtype])


@pytest.mark.parametrize("lost", ["conv", "scan"])
def test_losing_either_state_changes_the_logits(lost):
    """The control of the tests around it: they would see it."""
    model, ids = tiny(), tokens(3, 11)
    want, _ = model(ids)
    _, state = model(ids[:, :5])
    state = replace(state, **{lost: tuple(torch.zeros_like(t) for t in getattr(state, lost))})
    assert distance(model(ids[:, 5:], state=state)[0], want[:, 5:]) > 0.1


def test_steps_go_on_from_a_chunk():
    model, ids = tiny(), tokens(2, 9)
    want, want_state = model(ids)
    _, state = model(ids[:, :5])
    logits = [model.step(column, state) for column in ids[:, 5:].unbind(1)]
    assert distance(torch.stack(logits, 1), want[:, 5:]) < TOLERANCE[torch.float32]
    assert_same_states(state, want_state, TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [[5, 1, 9, 2], [1], [3, 0, 4], [2, 2, 2]], ids=str)
def test_packed_equals_separate(lengths, dtype):
    model = tiny().to(dtype)
    sequences = [tokens(n, seed=i) for i, n in enumerate(lengths)]
    packed, bounds = pack(sequences)
    logits, state = model(packed, cu_seqlens=bounds)
    for i, sequence in enumerate(sequences):
        alone, state_alone = model(sequence[None])
        assert distance(logits[0, bounds[i] : bounds[i + 1]], alone[0]) < TOLERANCE[dtype]
        assert_same_states(state.rows([i]), state_alone, TOLERANCE[dtype])


def test_a_packed_chunk_goes_on_from_the_rows_of_the_one_before():
    model, ids = tiny(), [tokens(n, seed=n) for n in (7, 4, 6)]
    first, bounds = pack([row[:3] for row in ids])
    _, state = model(first, cu_seqlens=bounds)
    rest, bounds = pack([row[3:] for row in ids])
    logits, state = model(rest, cu_seqlens=bounds, state=state)
    for i, row in enumerate(ids):
        alone, state_alone = model(row[None])
        assert distance(logits[0, bounds[i] : bounds[i + 1]], alone[0, 3:]) < TOLERANCE[torch.float32]
        assert_same_states(state.rows([i]), state_alone, TOLERANCE[torch.float32])


def test_a_token_with_a_huge_step_forgets_the_past():
    """Section 3.5.2: Δ to infinity resets the state, which is how a boundary can be learnt."""
    config, generator = MambaConfig(d_model=8, n_layer=1, vocab_size=8, d_conv=1, dt_rank=1), torch.Generator()
    mixer = MambaMixer(config).double()
    mixer.initialise(config, generator.manual_seed(0))
    x = torch.ones(1, 6, 8, dtype=torch.float64)
    x[0, 3] = torch.linspace(-2, 2, 8)
    with torch.no_grad():
        u = mixer.in_proj(x).chunk(2, -1)[0] * mixer.conv1d.weight[:, 0, 0] + mixer.conv1d.bias
        plain, marker = F.silu(u[0, 0]), F.silu(u[0, 3])
        mixer.dt_proj.weight.fill_(1)
        # Δ's row of x_proj answers to the marker and is blind to the other tokens.
        direction = marker - plain * (marker @ plain) / (plain @ plain)
        mixer.x_proj.weight[0] = 1e4 * direction / (direction @ marker)
    past = torch.randn(1, 16, 16, dtype=torch.float64, generator=generator)
    first, _, state = mixer(x, None, past, None, None)
    second, _, other = mixer(x, None, -3 * past, None, None)
    assert distance(first[:, :3], second[:, :3]) > 1e-3
    assert torch.equal(first[:, 3:], second[:, 3:])
    assert torch.equal(state, other)


def test_forward_leaves_the_given_state_alone():
    model, ids = tiny(), tokens(2, 4)
    _, state = model(ids)
    copy = state.rows([0, 1])
    model(ids, state=state)
    assert_same_states(state, copy, 1e-30)


def test_rows_are_copies_in_the_order_asked():
    model, ids = tiny(), tokens(3, 4)
    _, state = model(ids)
    rows = state.rows([2, 0, 2])
    assert len(rows) == 3
    assert torch.equal(rows.scan[1], state.scan[1][[2, 0, 2]])
    before = state.rows([0, 1, 2])
    model.step(ids[:, 0], rows)
    assert_same_states(state, before, 1e-30)


@pytest.mark.parametrize("positions", [[0, 5, 13], [13], [], [4, 4]], ids=str)
def test_logits_are_computed_where_asked(positions):
    model, ids = tiny(), tokens(2, 7)
    want, _ = model(ids)
    logits, _ = model(ids, logits_at=torch.tensor(positions, dtype=torch.int64))
    assert logits.shape == (len(positions), 64)
    assert distance(logits, want.flatten(0, 1)[positions]) < 1e-6


def test_a_state_of_another_batch_is_refused():
    model = tiny()
    with pytest.raises(ValueError, match="the state has 2 rows of 3 layers, where the input has 3 and the model 3"):
        model(tokens(3, 4), state=model.empty_state(2))
    with pytest.raises(ValueError, match="the state has 1 rows of 2 layers, where the input has 1 and the model 3"):
        model.step(tokens(1), tiny(n_layer=2).empty_state(1))


def test_parameters_are_named_as_in_the_published_files():
    names = list(tiny(n_layer=1).state_dict())
    mixer = "in_proj.weight conv1d.weight conv1d.bias x_proj.weight dt_proj.weight dt_proj.bias A_log D out_proj.weight"
    assert sorted(names) == sorted(
        ["backbone.embedding.weight", "backbone.norm_f.weight", "lm_head.weight", "backbone.layers.0.norm.weight"]
        + [f"backbone.layers.0.mixer.{name}" for name in mixer.split()]
    )


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"bias": True}], ids=str)
def test_gradients_reach_every_parameter_and_the_state(changes):
    model, ids = tiny(**changes), tokens(2, 6)
    state = model.empty_state(2)
    for tensor in (*state.conv, *state.scan):
        tensor.requires_grad_()
    logits, after = model(ids, state=state)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) + after.scan[-1].square().sum()
    loss.backward()
    leaves = dict(model.named_parameters()) | {f"state {i}": t for i, t in enumerate((*state.conv, *state.scan))}
    without = [name for name, leaf in leaves.items() if leaf.grad is None or not leaf.grad.abs().sum() > 0]
    assert without == []


COMPILED = f"""
import sys
import torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from models_cases import distance, tiny, tokens

model, ids = tiny(n_layer=2), tokens(2, 6)
compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
found = []
for run in (model, compiled):
    logits, state = run(ids)
    model.zero_grad()
    logits.square().sum().backward()
    found.append([logits, *state.conv, *state.scan, *(p.grad for p in model.parameters())])
print(max(distance(a, b) for a, b in zip(*found, strict=True)))
"""


def test_it_compiles_whole_with_gradients():
    # In a process of its own, without the shape checks that the hook weaves into every class.
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-4


def test_a_step_takes_no_gradient():
    assert not tiny().step(tokens(2), tiny().empty_state(2)).requires_grad


@pytest.mark.parametrize(
    "narrow",
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.float16),
        lambda m: m.to("cpu", torch.bfloat16),
        lambda m: m.to(torch.bfloat16).to(torch.float16),
    ],
    ids=["half", "bfloat16", "to", "to with device", "twice"],
)
def test_sixteen_bit_weights_keep_the_float32_parts_bit_for_bit(narrow):
    model, want = tiny(), tiny().state_dict()
    model.layers[0].mixer.A_log.grad = torch.full_like(model.layers[0].mixer.A_log, 1 + 2**-20)
    model = narrow(model)
    kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert kept == {name for name in want if name.endswith(("A_log", ".D", "dt_proj.bias"))}
    assert all(torch.equal(model.state_dict()[name], want[name]) for name in kept)
    assert float(model.layers[0].mixer.A_log.grad[0, 0]) == 1 + 2**-20
    assert len({p.dtype for p in model.parameters()}) == 2


def test_a_float64_model_is_float64_throughout():
    assert {p.dtype for p in tiny().double().parameters()} == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_residual_stream_and_scan_states_are_float32_in_sixteen_bits(dtype):
    model = tiny().to(dtype)
    streams = []
    for block in model.layers:
        block.register_forward_hook(lambda _, args, out: streams.append((args[0].dtype, out[0].dtype)))
    logits, state = model(tokens(2, 5))
    assert set(streams) == {(torch.float32, torch.float32)}
    assert logits.dtype == dtype
    assert {t.dtype for t in state.scan} == {torch.float32}
    assert {t.dtype for t in state.conv} == {dtype}
    empty = model.empty_state(2)
    assert [t.dtype for t in (*empty.conv, *empty.scan)] == [t.dtype for t in (*state.conv, *state.scan)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_logits_are_near_float32(dtype):
    ids = tokens(2, 9)
    want, _ = tiny()(ids)
    assert distance(tiny().to(dtype)(ids)[0], want) < 3 * TOLERANCE[dtype]


def test_training_under_autocast_keeps_float32_gradients():
    model, ids = tiny(), tokens(2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(ids)
    assert logits.dtype == torch.bfloat16
    F.cross_entropy(logits.float().flatten(0, 1), ids.flatten()).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_the_head_stays_tied_when_the_model_moves():
    for model in (tiny().half(), tiny().to("meta").to_empty(device="cpu"), tiny().double()):
        assert model.lm_head.weight is model.backbone.embedding.weight


def test_the_norm_is_taken_in_float32():
    norm = RMSNorm(64).to(torch.float16)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * 300
    # In float16 the squares would overflow.
    want = (x / x.square().mean(-1, keepdim=True).sqrt()).half()
    assert norm(x).dtype == torch.float16
    assert torch.equal(norm(x), want)


@torch.no_grad()
def test_it_starts_as_the_released_code_does():
    config = MambaConfig(d_model=64, n_layer=4, vocab_size=300, tie_embeddings=False)
    model = Mamba(config, seed=3)
    for block in model.layers:
        mixer = block.mixer
        delta = F.softplus(mixer.dt_proj.bias)
        assert config.dt_min * 0.999 <= float(delta.min()) < 0.0015
        assert 0.07 < float(delta.max()) <= config.dt_max * 1.001
        # Log-uniform: as many below the geometric middle as above it.
        assert 0.3 < float((delta < math.sqrt(config.dt_min * config.dt_max)).float().mean()) < 0.7
        assert distance(mixer.A, -torch.arange(1.0, 17).expand(128, 16)) < 1e-6
        assert torch.equal(mixer.D, torch.ones(128))
        assert_uniform(mixer.dt_proj.weight, 4**-0.5)
        assert_uniform(mixer.in_proj.weight, 64**-0.5)
        assert_uniform(mixer.x_proj.weight, 128**-0.5)
        assert_uniform(mixer.out_proj.weight, 128**-0.5 / math.sqrt(4))
        assert_uniform(mixer.conv1d.weight, 4**-0.5)
        assert_uniform(mixer.conv1d.bias, 4**-0.5)
        assert torch.equal(block.norm.weight, torch.ones(64))
    assert abs(float(model.backbone.embedding.weight.std()) - 0.02) < 0.001
    assert_uniform(model.lm_head.weight, 64**-0.5)


def assert_uniform(weight, bound):
    """Within the bound, near it at the most, and as spread as a uniform draw is."""
    assert 0.9 * bound < float(weight.abs().max()) <= bound
    assert abs(float(weight.std()) / (bound / math.sqrt(3)) - 1) < 0.15


def test_projection_biases_start_at_zero():
    mixer = Mamba(MambaConfig(d_model=8, n_layer=1, vocab_size=8, bias=True)).layers[0].mixer
    assert not mixer.in_proj.bias.any()
    assert not mixer.out_proj.bias.any()


def test_the_seed_is_the_only_randomness():
    before = torch.get_rng_state()
    first, again, other = (Mamba(TINY, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [n for n in first if not n.endswith(("A_log", ".D", "norm.weight", "norm_f.weight"))]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_the_backend_asked_for_is_the_one_used():
    model = tiny()
    model.backend = "reference"
    want, _ = model(tokens(1, 4))
    assert distance(tiny()(tokens(1, 4))[0], want) < 1e-5
    model.backend = "referense"
    with pytest.raises(ValueError, match=r"referense.*reference"):
        model(tokens(1, 4))


def test_pack_takes_lists_and_padded_batches():
    want = torch.tensor([[7, 8, 9, 4, 5]])
    for packed, bounds in (
        pack([[7, 8, 9], [4, 5]]),
        pack([torch.tensor([7, 8, 9]), torch.tensor([4, 5])]),
        pack(torch.tensor([[7, 8, 9, 0], [4, 5, 0, 0]]), [3, 2]),
        pack(torch.tensor([[7, 8, 9, 0], [4, 5, 0, 0]]), torch.tensor([3, 2])),
    ):
        assert torch.equal(packed, want)
        assert bounds.dtype == torch.int32
        assert bounds.tolist() == [0, 3, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "pack needs at least one sequence"),
        (([[1, 2], [3]], [2]), "one length a row, not 1 lengths for 2 rows"),
        (([[1, 2], [3]], [2, 2]), "length 2 of row 1 must be from 0 to 1"),
        (([[1, 2]], [-1]), "length -1 of row 0 must be from 0 to 2"),
    ],
    ids=str,
)
def test_pack_refuses_lengths_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        pack(*arguments)
