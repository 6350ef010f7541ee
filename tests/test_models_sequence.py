"""Every row of the synthetic tables is causal, trains whole, is drawn from its seed and goes on from its state."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from mambalab.models import State, build, run_in_chunks
from mambalab.models.architectures import MIXERS, SequenceConfig
from mambalab.models.registry import MambaConfig
from mambalab.models.synthetic import SYNTHETIC
from models_cases import TOLERANCE, assert_same_states, distance, tokens
from sequence_cases import TABLE1, VARIANTS, ids, small

STATEFUL = [name for name in SYNTHETIC if name in [*TABLE1, "h3", "mamba"] and "hyena" not in name]
STATELESS = [name for name in SYNTHETIC if name not in STATEFUL]
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


def learnt(model, logits):
    loss = (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).sum()
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


@pytest.mark.parametrize("name", [*VARIANTS, "with biases"])
def test_gradients_are_those_of_all_logits(name):
    config = replace(VARIANTS["mamba"], bias=True) if name == "with biases" else VARIANTS[name]
    model, row = louder(config), ids(2, 7)
    where = torch.tensor([0, 5, 13, 13])
    want = learnt(model, model(row)[0].flatten(0, 1)[where])
    found = learnt(model, model(row, logits_at=where)[0])
    for (parameter, _), one, other in zip(model.named_parameters(), want, found, strict=True):
        assert (one is None) == (other is None), parameter
        assert one is None or distance(one, other) < 1e-12, parameter


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
