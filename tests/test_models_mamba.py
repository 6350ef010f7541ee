"""Forward, chunks, packs and steps of Mamba are one function, and its state is what it says."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mambalab.models import pack
from mambalab.models.layers import DeltaProjection
from mambalab.models.mamba import MambaMixer
from mambalab.models.registry import MambaConfig
from models_cases import TOLERANCE, assert_same_states, distance, tiny, tokens

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
        assert mixer.x_proj is not None
        assert isinstance(mixer.dt_proj, DeltaProjection)
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


def test_the_backend_asked_for_is_the_one_used():
    model = tiny()
    model.backend = "reference"
    want, _ = model(tokens(1, 4))
    assert distance(tiny()(tokens(1, 4))[0], want) < 1e-5
    model.backend = "referense"
    with pytest.raises(ValueError, match=r"referense.*reference"):
        model(tokens(1, 4))
