"""A sequence in chunks is the sequence in one pass, at any chunk, and no more than a chunk of it is ever at hand."""

import pytest
import torch
from mambalab.models import Mamba, run_in_chunks
from models_cases import TOLERANCE, assert_same_states, distance, tiny, tokens

LENGTH = 23


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("chunk", [1, 5, LENGTH - 1, LENGTH, 1000])
@torch.no_grad()
def test_chunks_of_any_length_are_one_pass(chunk, dtype):
    model, ids = tiny().to(dtype), tokens(2, LENGTH)
    logits, state = model(ids)
    found, found_state = run_in_chunks(model, ids, chunk=chunk)
    assert distance(found, logits[:, -1]) < TOLERANCE[dtype]
    assert_same_states(found_state, state, TOLERANCE[dtype])


@torch.no_grad()
def test_a_second_call_goes_on_from_the_state_of_the_first_and_leaves_it_as_it_is():
    model, ids = tiny(), tokens(3, LENGTH)
    whole, _ = run_in_chunks(model, ids, chunk=4)
    _, state = run_in_chunks(model, ids[:, :9], chunk=4)
    before = state.rows(range(3))
    found, _ = run_in_chunks(model, ids[:, 9:], chunk=4, state=state)
    assert distance(found, whole) < 1e-5
    assert_same_states(state, before, 1e-30)
    assert distance(run_in_chunks(model, ids[:, 9:], chunk=4)[0], whole) > 1e-2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_tokens_may_be_narrow(dtype):
    model, ids = tiny(), tokens(2, LENGTH)
    assert torch.equal(run_in_chunks(model, ids.to(dtype), chunk=4)[0], run_in_chunks(model, ids, chunk=4)[0])


def test_the_model_sees_a_chunk_at_a_time_and_gives_logits_once(monkeypatch):
    seen = []
    forward = Mamba.forward

    def watched(self, tokens, *, logits_at, **options):
        seen.append((tuple(tokens.shape), logits_at.tolist()))
        return forward(self, tokens, logits_at=logits_at, **options)

    monkeypatch.setattr(Mamba, "forward", watched)
    run_in_chunks(tiny(), tokens(2, LENGTH), chunk=10)
    assert seen == [((2, 10), []), ((2, 10), []), ((2, 3), [2, 5])]


def test_no_graph_grows_with_the_sequence():
    logits, state = run_in_chunks(tiny(), tokens(2, LENGTH), chunk=4)
    assert not any(tensor.requires_grad for tensor in (logits, *state.conv, *state.scan))


@pytest.mark.parametrize(("rows", "length", "chunk"), [(1, 0, 4), (0, 3, 4), (1, 3, 0), (1, 3, -1)])
def test_nothing_to_read_is_one_clear_line(rows, length, chunk):
    with pytest.raises(ValueError, match=f"at least 1 are needed, not {rows} x {length} in chunks of {chunk}$"):
        run_in_chunks(tiny(), tokens(rows, length), chunk=chunk)
