"""The scorer answers what a plain run of every request would, whatever the grouping and the limits."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mambalab.harness.scoring import Limits, Scorer, plan
from mambalab.models import Mamba, State
from mambalab.models.registry import MambaConfig


@pytest.fixture(scope="module")
def model():
    return Mamba(MambaConfig(d_model=32, n_layer=2, vocab_size=61), seed=3).eval()


def _naive(model, context, continuation):
    """One request at a time: the definition."""
    tokens = torch.tensor([[*context, *continuation[:-1]]])
    with torch.inference_mode():
        logits = model(tokens)[0][0, len(context) - 1 :].double().log_softmax(-1)
    value = sum(float(logits[i, t]) for i, t in enumerate(continuation))
    return value, bool((logits.argmax(-1) == torch.tensor(continuation)).all())


def _requests(seed, contexts=6, choices=4, longest=20):
    draw = random.Random(seed)

    def tokens(least, most):
        return [draw.randrange(61) for _ in range(draw.randint(least, most))]

    made = []
    for _ in range(contexts):
        context = tokens(1, longest)
        made += [(context, tokens(1, 6)) for _ in range(draw.randint(1, choices))]
    draw.shuffle(made)
    return [*made, made[0]]


@pytest.mark.parametrize("limits", [Limits(), Limits(tokens=9, positions=5, states=2), Limits(tokens=1)], ids=str)
def test_scores_equal_one_request_at_a_time_in_request_order(model, limits):
    requests = _requests(7)
    for score, request in zip(Scorer(model, limits=limits)(requests), requests, strict=True):
        value, greedy = _naive(model, *request)
        assert score.log_likelihood == pytest.approx(value, abs=2e-5)
        assert score.greedy == greedy


def test_a_dropped_state_changes_the_scores(model):
    requests = _requests(7)

    def drop(state):
        return State(tuple(map(torch.zeros_like, state.conv)), tuple(map(torch.zeros_like, state.scan)))

    kept, dropped = Scorer(model)(requests), Scorer(model, carry=drop)(requests)
    assert max(abs(a.log_likelihood - b.log_likelihood) for a, b in zip(kept, dropped, strict=True)) > 1e-3


def test_greedy_is_true_for_the_greedy_continuation(model):
    context = [5, 6, 7]
    with torch.inference_mode():
        best = int(model(torch.tensor([context]))[0][0, -1].argmax())
    wrong = (best + 1) % 61
    assert [s.greedy for s in Scorer(model)([(context, [best]), (context, [wrong])])] == [True, False]


def test_a_long_request_loses_its_left_end_and_is_counted(model):
    scorer = Scorer(model, limits=Limits(max_length=8))
    context, continuation = list(range(20)), [1, 2, 3]
    (score,) = scorer([(context, continuation)])
    assert score.log_likelihood == pytest.approx(_naive(model, context[-6:], continuation)[0], abs=2e-5)
    assert scorer.truncated == 1


def test_half_precision_scores_are_half_precision_numbers(model):
    scores = Scorer(model, half=True)(_requests(1))
    values = torch.tensor([s.log_likelihood for s in scores], dtype=torch.float64)
    assert torch.equal(values, values.half().double())


@pytest.mark.parametrize(
    ("context", "continuation"),
    [([], [1]), ([1], []), ([1], [2] * 9)],
    ids=["no context", "no continuation", "too long"],
)
def test_impossible_requests_are_refused(model, context, continuation):
    with pytest.raises(ValueError, match="token"):
        Scorer(model, limits=Limits(max_length=8))([(context, continuation)])


def test_nan_is_an_error_not_a_score(model):
    broken = Mamba(model.config, seed=3).eval()
    with torch.no_grad():
        broken.backbone.norm_f.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not a number"):
        Scorer(broken)([([1], [2])])


token_lists = st.lists(st.integers(0, 60), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(token_lists, token_lists), max_size=30), st.integers(1, 12), st.integers(1, 6))
def test_every_request_has_its_place_and_every_context_runs_once(requests, tokens, states):
    work = plan(requests, Limits(tokens=tokens, states=states))
    assert len(work.places) == len(requests)
    for (context, continuation), (b, g, c) in zip(requests, work.places, strict=True):
        assert work.batches[b][g].context == tuple(context)
        assert work.batches[b][g].continuations[c] == tuple(continuation)
    contexts = [group.context for batch in work.batches for group in batch if len(group.context) > 1]
    assert len(contexts) == len(set(contexts))
    for batch in work.batches:
        assert len(batch) == 1 or (sum(g.cost[0] for g in batch) <= tokens and len(batch) <= states)
