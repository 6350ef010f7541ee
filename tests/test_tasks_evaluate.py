"""Accuracy by length: however rows are read, the same answers are counted, and distances are those of the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from mambalab.models import build
from mambalab.models.architectures import SequenceConfig
from mambalab.models.registry import MambaConfig
from mambalab.tasks import AssociativeRecall, InductionHeads, SelectiveCopying
from mambalab.tasks.evaluate import BLOCK, Bin, LeftOut, Measured, evaluate, seed_of
from torch import Tensor

SEED = 2**62
TASK = InductionHeads(length=100)


@dataclass
class Reader:
    """Answers by a function of the whole row, (b l) -> (b q), which it keeps as its state; notes what it is shown."""

    answers: Callable[[Tensor], Tensor]
    carries_state: bool = True
    vocab_size: int = 16
    most_rows: int | None = None
    seen: list[tuple[int, ...]] = field(default_factory=list)

    def __call__(self, tokens: Tensor, *, logits_at: Tensor, state: Tensor | None = None) -> Any:
        assert state is None or self.carries_state
        if self.most_rows is not None and len(tokens) > self.most_rows:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ...")
        self.seen.append(tuple(tokens.shape))
        read = tokens if state is None else torch.cat([state, tokens], 1)
        if not len(logits_at):
            return torch.empty(0, self.vocab_size, device=tokens.device), read
        found = self.answers(read).reshape(-1)
        assert len(found) == len(logits_at)
        return torch.nn.functional.one_hot(found, self.vocab_size).float(), read


def found(model: Any, task: Any = TASK, **options: Any) -> Measured:
    asked: dict[str, Any] = {"seed": SEED, "sequences": 64} | options
    measured = evaluate(model, task, **asked)
    assert isinstance(measured, Measured)
    return measured


def counts(measured: Measured) -> Measured:
    return replace(measured, seconds=0.0, chunk=0, rows=0)


def hashed(tokens: Tensor) -> Tensor:
    """An answer that every token and its place decide."""
    places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    return (tokens * places * places).sum(1, keepdim=True) % 15


@pytest.mark.parametrize("chunk", [1, 7, 99, 100, 1000])
@pytest.mark.parametrize("pass_tokens", [1, 50, 10_000])
def test_rows_in_pieces_are_rows_read_whole(chunk, pass_tokens):
    whole = found(Reader(hashed, carries_state=False))
    assert 0 < whole.right < whole.answers
    pieces = found(Reader(hashed), chunk=chunk, pass_tokens=pass_tokens)
    assert counts(pieces) == counts(whole)
    assert len(whole.by_distance) > 3


def test_a_mamba_in_pieces_answers_as_in_one():
    model: Any = build(MambaConfig(d_model=16, n_layer=2, vocab_size=16, tie_embeddings=False), seed=3)
    one, pieces = found(model, chunk=100), found(model, chunk=9, pass_tokens=40)
    assert counts(one) == counts(pieces)
    assert 0 < one.right < 64


@pytest.mark.parametrize("sequences", [1, 64, BLOCK + 5])
def test_who_reads_the_answer_has_every_one_right(sequences):
    measured = found(Reader(TASK.oracle), sequences=sequences, chunk=30)
    assert (measured.right, measured.whole, measured.answers, measured.sequences) == (sequences,) * 4
    assert sum(part.of for part in measured.by_distance) == sequences


def test_who_is_blind_is_right_by_chance():
    measured = found(Reader(lambda tokens: torch.zeros(len(tokens), dtype=torch.int64)), sequences=2000)
    assert measured.right / 2000 == pytest.approx(TASK.chance, abs=4 * (TASK.chance / 2000) ** 0.5)


@pytest.mark.parametrize("carries_state", [True, False])
def test_answers_are_counted_by_the_distance_of_trigger_and_query(carries_state):
    def near_only(tokens: Tensor) -> Tensor:
        is_near = TASK.distance(tokens) < 16
        right = TASK.oracle(tokens)[:, 0]
        return torch.where(is_near, right, (right + 1) % 15)

    measured = found(Reader(near_only, carries_state=carries_state), sequences=200, chunk=33)
    of = Counter(d.bit_length() - 1 for d in TASK.distance(TASK.batch(SEED, 0, 200).tokens).tolist())
    assert measured.by_distance == tuple(
        Bin(nearest=2**e, right=of[e] if e < 4 else 0, of=of[e]) for e in sorted(of)
    )  # fmt: skip
    assert 0 < measured.right < 200


def test_rows_beyond_a_block_are_others():
    sets = [found(Reader(hashed), sequences=n) for n in (BLOCK, 2 * BLOCK)]
    assert sets[1].right != 2 * sets[0].right
    assert [b.of for b in sets[1].by_distance] != [2 * b.of for b in sets[0].by_distance]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("chunk", [9, 64, 100])
def test_a_gpu_reads_the_same_rows_and_answers_as_the_cpu(chunk):
    assert counts(found(Reader(hashed), device="cuda", chunk=chunk)) == counts(found(Reader(hashed)))
    model: Any = build(MambaConfig(d_model=16, n_layer=2, vocab_size=16, tie_embeddings=False), seed=3)
    on_cpu = counts(found(model, chunk=chunk))
    assert counts(found(model.to("cuda"), device="cuda", chunk=chunk, pass_tokens=200)) == on_cpu


def test_rows_in_pieces_are_never_made_whole(monkeypatch):
    monkeypatch.setattr(InductionHeads, "batch", lambda self, seed, step, size, device="cpu": pytest.fail("made whole"))
    assert found(Reader(TASK.oracle), chunk=10).right == 64


def test_no_pass_has_more_tokens_than_a_chunk_of_the_rows_that_fit():
    reader = Reader(TASK.oracle)
    assert found(reader, chunk=16, pass_tokens=40).rows == 2
    assert {rows for rows, _ in reader.seen} == {2}
    assert max(length for _, length in reader.seen) == 16


@pytest.mark.parametrize("carries_state", [True, False])
def test_where_memory_runs_out_fewer_rows_are_read(carries_state):
    measured = found(Reader(TASK.oracle, carries_state=carries_state, most_rows=5), sequences=40)
    assert (measured.right, measured.rows) == (40, 5)


def test_what_does_not_fit_is_left_out_and_has_no_number():
    asked: dict[str, Any] = {"seed": SEED, "sequences": 4}
    wanted = LeftOut(length=100, sequences=4, why="out of memory")
    assert evaluate(Reader(TASK.oracle, most_rows=0), TASK, **asked) == wanted


def test_positions_that_end_are_left_out_with_their_rule():
    config = SequenceConfig(
        mixer="attention", d_model=16, n_layer=1, vocab_size=16, n_head=2, positions="absolute", max_length=32
    )
    left_out = evaluate(build(config), TASK, seed=SEED, sequences=4)
    why = "not possible: absolute positions end at max_length = 32, before 100 tokens"
    assert left_out == LeftOut(length=100, sequences=4, why=why)
    assert isinstance(evaluate(build(config), InductionHeads(length=32), seed=SEED, sequences=4), Measured)


def test_rows_that_can_t_even_be_made_are_left_out(monkeypatch):
    """A system that promises memory it does not have would end the process."""
    monkeypatch.setattr("mambalab.tasks.evaluate.total", lambda device: 24 * 100 - 1)
    left_out = evaluate(Reader(TASK.oracle, carries_state=False), TASK, seed=SEED, sequences=4)
    assert left_out == LeftOut(length=100, sequences=4, why="out of memory")
    assert found(Reader(TASK.oracle)).right == 64
    monkeypatch.setattr("mambalab.tasks.evaluate.total", lambda device: 24 * 100)
    assert found(Reader(TASK.oracle, carries_state=False)).right == 64


def test_another_error_is_not_mistaken_for_a_lack_of_memory():
    def broken(tokens: Tensor) -> Tensor:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        found(Reader(broken))


@pytest.mark.parametrize("task", [SelectiveCopying(places=20, copies=4), AssociativeRecall(length=24, pairs=4)])
def test_of_several_answers_single_ones_and_rows_are_counted(task):
    def last_wrong(tokens: Tensor) -> Tensor:
        answers = task.oracle(tokens).clone()
        answers[:, -1] = (answers[:, -1] + 1) % task.vocab_size
        return answers

    right = found(Reader(task.oracle, vocab_size=task.vocab_size), task)
    assert (right.right, right.whole, right.by_distance) == (64 * task.n_targets, 64, ())
    wrong = found(Reader(last_wrong, vocab_size=task.vocab_size), task)
    assert (wrong.right, wrong.whole, wrong.answers) == (64 * (task.n_targets - 1), 0, 64 * task.n_targets)


def test_every_length_has_rows_of_its_own():
    assert [seed_of(SEED, 2**e, training=0) for e in range(6, 25)] == [SEED + 2**e for e in range(6, 25)]
    assert all(0 <= seed_of(2**63 - 1, 2**e, training=0) < 2**63 for e in range(6, 25))


@pytest.mark.parametrize("base", [0, SEED, 2**63 - 100])
@pytest.mark.parametrize("ahead", [1, 2, 64, 199, 200, 1000])
def test_no_length_has_the_rows_of_the_training(base, ahead):
    training = (base + ahead) % 2**63
    taken = {base, training}
    assert not taken & {seed_of(base, length, training) for length in range(1, 200)}
    assert len({seed_of(base, length, training) for length in range(1, 200)}) == 199


@pytest.mark.parametrize(("options", "why"), [({"sequences": 0}, "sequences"), ({"chunk": 0}, "chunk")])
def test_impossible_numbers_are_refused(options, why):
    with pytest.raises(ValueError, match=f"^{why} must be at least 1, not 0$"):
        found(Reader(TASK.oracle), **options)
