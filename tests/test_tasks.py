"""The synthetic tasks ask what they say: right labels, stated distributions, and nothing that gives the answer away."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mambalab.tasks import AssociativeRecall, InductionHeads, SelectiveCopying, Task
from scipy.stats import chisquare

SMALL = {
    "induction heads": InductionHeads(length=12, vocab_size=6),
    "induction heads, early": InductionHeads(length=24, vocab_size=6, trigger="early"),
    "selective copying": SelectiveCopying(places=12, copies=4, vocab_size=6),
    "copying": SelectiveCopying(places=12, copies=4, vocab_size=6, variable=False),
    "associative recall": AssociativeRecall(length=24, pairs=3, vocab_size=13),
    "associative recall, uniform": AssociativeRecall(length=24, pairs=3, vocab_size=13, queries="uniform"),
}
every = pytest.mark.parametrize("task", SMALL.values(), ids=SMALL)

seeds = st.integers(0, 2**63 - 1)
steps = st.integers(0, 10**7)
TASKS = st.one_of(
    st.builds(
        InductionHeads,
        length=st.integers(3, 70),
        vocab_size=st.integers(3, 20),
        trigger=st.sampled_from(["uniform", "early"]),
    ),
    st.builds(
        lambda places, more, vocab, variable: SelectiveCopying(
            places=places + more, copies=places, vocab_size=vocab, variable=variable
        ),
        st.integers(1, 20), st.integers(0, 40), st.integers(3, 20), st.booleans(),
    ),
    st.builds(
        lambda pairs, more, vocab, queries: AssociativeRecall(
            length=4 * pairs + more, pairs=pairs, vocab_size=2 * pairs + 2 + vocab, queries=queries
        ),
        st.integers(1, 12), st.integers(0, 30), st.integers(0, 30), st.sampled_from(["power", "uniform"]),
    ),
)  # fmt: skip


def counts(values: torch.Tensor, kinds: int) -> torch.Tensor:
    return torch.bincount(values.reshape(-1), minlength=kinds)


def is_uniform(values: torch.Tensor, kinds: int) -> bool:
    """A chi-squared test at 0.1 %, on draws that are the same in each run."""
    found = counts(values, kinds)
    return len(found) == kinds and chisquare(found.numpy()).pvalue > 1e-3


@settings(max_examples=150, deadline=None)
@given(TASKS, seeds, steps)
def test_a_batch_is_what_the_task_says(task, seed, step):
    batch = task.batch(seed, step, 3)
    assert batch.tokens.shape == (3, task.length)
    assert batch.positions.shape == batch.targets.shape == (3, task.n_targets)
    assert {t.dtype for t in (batch.tokens, batch.positions, batch.targets)} == {torch.int64}
    assert 0 <= batch.tokens.min() <= batch.tokens.max() < task.vocab_size
    assert (batch.positions.diff() > 0).all()
    assert torch.equal(task.oracle(batch.tokens), batch.targets)
    assert torch.equal(batch.tokens.reshape(-1)[batch.logits_at], batch.tokens.gather(1, batch.positions).reshape(-1))


@settings(max_examples=60, deadline=None)
@given(TASKS, seeds, steps, st.integers(1, 5))
def test_a_row_depends_on_neither_the_batch_size_nor_how_the_step_is_given(task, seed, step, size):
    whole, part = task.batch(seed, step, 6), task.batch(seed, torch.tensor(step), size)
    for field in fields(whole):
        assert torch.equal(getattr(whole, field.name)[:size], getattr(part, field.name))


@settings(max_examples=30, deadline=None)
@given(TASKS, seeds, st.lists(steps, min_size=1, max_size=4))
def test_the_batches_of_several_steps_are_those_of_each(task, seed, several):
    made = task.batch(seed, torch.tensor(several), 3).split(3)
    assert len(made) == len(several)
    for batch, step in zip(made, several, strict=True):
        alone = task.batch(seed, step, 3)
        for field in fields(alone):
            assert torch.equal(getattr(batch, field.name), getattr(alone, field.name))


@every
def test_tasks_are_tasks(task):
    assert isinstance(task, Task)


@every
def test_another_seed_another_step_and_another_row_differ(task):
    first = task.batch(0, 0, 64).tokens
    for other in (task.batch(1, 0, 64), task.batch(0, 1, 64)):
        assert not torch.equal(first, other.tokens)
    assert len(first.unique(dim=0)) > 32


@every
def test_seed_and_step_are_independent(task):
    """Rows of neighbouring seeds and steps, and of exchanged ones, agree in no more targets than chance gives."""
    size = 4000
    base = task.batch(5, 8, size).targets[:, 0]
    for seed, step in ((6, 8), (5, 9), (8, 5), (6, 7), (4, 9)):
        agree = (task.batch(seed, step, size).targets[:, 0] == base).double().mean().item()
        assert abs(agree - task.chance) < 4 * (task.chance / size) ** 0.5


@every
def test_a_guess_meets_the_chance_level(task):
    targets = task.batch(2, 0, 5000).targets
    guesses = task.batch(3, 0, 5000).targets
    right = (guesses == targets).double().mean().item()
    assert abs(right - task.chance) < 4 * (task.chance / targets.numel()) ** 0.5


@every
def test_every_symbol_that_can_be_a_target_is_one_equally_often(task):
    low = {"induction-heads": 0, "selective-copying": 1}.get(task.name, getattr(task, "n_keys", 0) + 1)
    for column in task.batch(0, 0, 5000).targets.T:
        assert is_uniform(column - low, round(1 / task.chance))


@every
def test_the_chi_squared_test_can_fail(task):
    symbols = task.batch(0, 0, 5000).targets[:, 0] - task.batch(0, 0, 5000).targets.min()
    assert not is_uniform(torch.where(symbols == 1, 0, symbols), round(1 / task.chance))


@pytest.mark.parametrize(("length", "trigger", "room"), [(12, "uniform", 10), (24, "early", 10), (8, "early", 6)])
def test_the_trigger_is_uniform_over_its_places(length, trigger, room):
    task = InductionHeads(length=length, trigger=trigger)
    places = task.places(0, 0, 20_000)
    assert is_uniform(places, room)
    assert torch.equal(length - 1 - places[:, 0], task.distance(task.batch(0, 0, 20_000).tokens))


@pytest.mark.parametrize("task", [SMALL["induction heads"], SMALL["induction heads, early"]], ids=["uniform", "early"])
def test_induction_heads_have_one_trigger_before_the_last(task):
    tokens = task.batch(0, 0, 5000).tokens
    assert ((tokens == task.trigger_token).sum(1) == 2).all()
    assert (tokens[:, -1] == task.trigger_token).all()
    assert is_uniform(tokens[:, 3][tokens[:, 3] != task.trigger_token], task.vocab_size - 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 300), seeds, steps, st.data())
def test_a_chunk_of_induction_heads_is_the_slice_of_the_whole(length, seed, step, data):
    task = InductionHeads(length=length)
    begin = data.draw(st.integers(0, length))
    end = data.draw(st.integers(begin, length))
    batch = task.batch(seed, step, 3)
    assert torch.equal(task.chunk(seed, step, 3, begin, end), batch.tokens[:, begin:end])
    assert torch.equal(task.targets(seed, step, 3), batch.targets)


def test_long_rows_are_made_in_chunks():
    task = InductionHeads(length=2**24)
    places, targets = task.places(0, 0, 4), task.targets(0, 0, 4)
    for row, place in enumerate(places[:, 0].tolist()):
        near = task.chunk(0, 0, 4, place, place + 2)[row]
        assert near.tolist() == [task.trigger_token, targets[row, 0]]
    assert (task.chunk(0, 0, 4, 2**24 - 1, 2**24) == task.trigger_token).all()
    assert places.max() > 2**22


def test_each_set_of_places_of_selective_copying_is_equally_likely():
    task = SelectiveCopying(places=6, copies=3)
    data = task.batch(0, 0, 20_000).tokens[:, :6] != 0
    assert (data.sum(1) == 3).all()
    numbers = (data * 2 ** torch.arange(6)).sum(1)
    kinds = numbers.unique()
    assert len(kinds) == 20
    assert is_uniform(torch.searchsorted(kinds, numbers), 20)


def test_the_last_data_token_of_selective_copying_is_not_always_beside_the_marker():
    task = SelectiveCopying(places=64, copies=16)
    beside = (task.batch(0, 0, 20_000).tokens[:, 63] != 0).double().mean().item()
    assert abs(beside - 16 / 64) < 0.013


def test_plain_copying_has_its_data_first():
    tokens = SMALL["copying"].batch(0, 0, 100).tokens
    assert (tokens[:, :4] != 0).all()
    assert (tokens[:, 4:12] == 0).all()


@pytest.mark.parametrize("variable", [True, False])
def test_selective_copying_shows_no_data_after_the_first_marker(variable):
    task = SelectiveCopying(places=12, copies=4, variable=variable)
    batch = task.batch(0, 0, 1000)
    assert (batch.tokens[:, 12:] == task.marker).all()
    assert (batch.tokens[:, :12] != task.marker).all()
    assert (batch.positions == torch.arange(12, 16)).all()


@pytest.mark.parametrize("queries", ["power", "uniform"])
def test_associative_recall_asks_each_key_once_and_shows_no_value_again(queries):
    task = AssociativeRecall(length=40, pairs=5, vocab_size=21, queries=queries)
    batch = task.batch(0, 0, 2000)
    keys, values = batch.tokens[:, 0:10:2], batch.tokens[:, 1:10:2]
    assert (keys >= 1).all()
    assert (keys <= task.n_keys).all()
    assert (values > task.n_keys).all()
    asked = batch.tokens.gather(1, batch.positions)
    assert torch.equal(asked.sort(1).values, keys.sort(1).values)
    assert torch.equal(batch.targets.sort(1).values, values.sort(1).values)
    assert all(len(row.unique()) == 5 for row in (*keys[:100], *values[:100]))
    assert ((batch.tokens[:, 10:] != 0).sum(1) == 5).all()
    assert (batch.tokens[:, 10:] <= task.n_keys).all()
    assert is_uniform(keys[:, 2] - 1, task.n_keys)


@pytest.mark.parametrize("queries", ["power", "uniform"])
def test_the_first_query_drawn_stands_in_a_slot_as_likely_as_its_weight(queries):
    task = AssociativeRecall(length=22, pairs=1, vocab_size=8, queries=queries)
    slots = (task.batch(0, 0, 20_000).positions[:, 0] - 2) // 2
    weights = torch.ones(10).double() if queries == "uniform" else 1 / torch.arange(1, 11).double()
    expected = 20_000 * weights / weights.sum()
    assert chisquare(counts(slots, 10).numpy(), expected.numpy()).pvalue > 1e-3


def test_the_second_query_is_drawn_from_the_slots_that_are_left():
    """Two of three slots with weights 1, 1/2, 1/3: the chances of each pair, by hand."""
    task = AssociativeRecall(length=10, pairs=2, vocab_size=12)
    positions = (task.batch(0, 0, 20_000).positions - 4) // 2
    weights = {0: 6 / 11, 1: 3 / 11, 2: 2 / 11}

    def chance(a: int, b: int) -> float:
        p, q = weights[a], weights[b]
        return p * q / (1 - p) + q * p / (1 - q)

    expected = [20_000 * chance(*pair) for pair in ((0, 1), (0, 2), (1, 2))]
    found = counts(positions.sum(1) - 1, 3)
    assert chisquare(found.numpy(), expected).pvalue > 1e-3


@pytest.mark.parametrize(
    ("task", "settings", "says"),
    [
        (SelectiveCopying, {"places": 4, "copies": 5}, "copies must be at most places, not 5 data tokens in 4 places"),
        (SelectiveCopying, {"copies": 0}, "copies must be from 1 to 2^31 - 1, not 0"),
        (SelectiveCopying, {"vocab_size": 2}, "vocab_size must be from 3"),
        (SelectiveCopying, {"variable": "no"}, "variable must be true or false, not 'no'"),
        (InductionHeads, {"vocab_size": 2}, "vocab_size must be from 3"),
        (InductionHeads, {"length": 2}, "length must be from 3"),
        (InductionHeads, {"length": 2**31}, "length must be from 3 to 2^31 - 1, not 2147483648"),
        (InductionHeads, {"length": 2.0}, "length must be an integer, not 2.0"),
        (InductionHeads, {"trigger": "late"}, "trigger must be uniform or early, not 'late'"),
        (AssociativeRecall, {"length": 63}, "length must be at least 4 tokens a pair, not 63 for 16 pairs"),
        (AssociativeRecall, {"vocab_size": 32}, "vocab_size 32 has 15 keys, too few for 16 pairs"),
        (AssociativeRecall, {"queries": "often"}, "queries must be power or uniform, not 'often'"),
    ],
)
def test_impossible_settings_are_one_line(task, settings, says, unchecked):
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        task(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda task: task.batch(-1, 0, 1), "a seed must be an integer from 0 to 2^63 - 1, not -1"),
        (lambda task: task.batch(2**63, 0, 1), "a seed must be an integer from 0 to 2^63 - 1"),
        (lambda task: task.batch(0, 0, 0), "a batch must have from 1 to 2^24 rows, not 0"),
        (lambda task: task.chunk(0, 0, 1, 5, 257), "a chunk must lie within 0 .. 256, not 5 .. 257"),
    ],
)
def test_impossible_batches_are_one_line(call, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        call(InductionHeads())


def test_the_paper_s_sizes_are_the_defaults():
    task = SelectiveCopying()
    assert (task.length, task.n_targets, 1 / task.chance) == (4128, 16, 14)
    assert InductionHeads().length == 256
    assert 1 / InductionHeads().chance == 15
    assert replace(InductionHeads(), length=2**20).length == 2**20
