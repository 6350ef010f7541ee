"""Continuation log-likelihoods from a recurrent model: a context runs once, its continuations from the saved state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

from ..models import State, pack
from ..models.mamba import Mamba
from .answers import Recall, computed

Tokens = tuple[int, ...]
Request = tuple[Sequence[int], Sequence[int]]
Costly = TypeVar("Costly", "Group", "Tail")


class Score(NamedTuple):
    """log p(continuation | context) in nats, and whether greedy decoding would have produced it."""

    log_likelihood: float
    greedy: bool


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one forward pass may hold. What is larger by itself runs alone.

    max_length   tokens the model may see at once; a longer request loses its left end (lm-eval's rule)
    tokens       input tokens
    positions    places whose logits are asked for (each costs a vocabulary of floats)
    states       sequences, that is recurrent states alive
    """

    max_length: int = 2048
    tokens: int = 2048
    positions: int = 2048
    states: int = 1024

    def __post_init__(self) -> None:
        for name in ("max_length", "tokens", "positions", "states"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer, at least 1, not {value!r}")


@dataclass(frozen=True, slots=True)
class Group:
    """One context and its distinct continuations. With one continuation the two run as one sequence."""

    context: Tokens
    continuations: tuple[Tokens, ...]

    @property
    def whole(self) -> bool:
        return len(self.continuations) == 1

    @property
    def cost(self) -> tuple[int, int]:
        """Input tokens and logit positions of the pass over the context."""
        if self.whole:
            return len(self.context) + len(self.continuations[0]) - 1, len(self.continuations[0])
        return len(self.context), 1


@dataclass(frozen=True, slots=True)
class Tail:
    """A continuation (`index` of group `group`) whose first token the context's own last logits have predicted."""

    group: int
    index: int
    continuation: Tokens

    @property
    def cost(self) -> tuple[int, int]:
        return len(self.continuation) - 1, len(self.continuation) - 1


@dataclass(frozen=True)
class Plan:
    """What will run, and for every request its (batch, group, continuation). A pure function of requests and limits."""

    batches: tuple[tuple[Group, ...], ...]
    places: tuple[tuple[int, int, int], ...]
    truncated: int


def plan(requests: Sequence[Request], limits: Limits) -> Plan:
    """Group requests (context tokens, continuation tokens) by context; fill batches in order of first appearance.

    A context of one token (the prefix of rolling perplexity) is not shared: running it again is cheaper than its state.
    """
    found: dict[tuple[Tokens, Tokens], dict[Tokens, int]] = {}
    keys, truncated = [], 0
    for request in requests:
        context, continuation, cut = _fit(request, limits.max_length)
        truncated += cut
        key = (context, continuation if len(context) == 1 else ())
        continuations = found.setdefault(key, {})
        keys.append((key, continuations.setdefault(continuation, len(continuations))))
    groups = {key: Group(key[0], tuple(continuations)) for key, continuations in found.items()}
    batches = tuple(_fill(groups.values(), limits))
    sizes = [(b, g) for b, batch in enumerate(batches) for g in range(len(batch))]
    where = dict(zip(groups, sizes, strict=True))
    return Plan(batches, tuple((*where[key], index) for key, index in keys), truncated)


def _fit(request: Request, max_length: int) -> tuple[Tokens, Tokens, bool]:
    """Cut the left end of a request whose input would be longer than max_length; say whether it was cut."""
    context, continuation = tuple(request[0]), tuple(request[1])
    if not context or not continuation:
        raise ValueError(
            f"a request has {len(context)} context and {len(continuation)} continuation tokens; both must be at least 1"
        )
    if len(continuation) > max_length:
        raise ValueError(f"a continuation of {len(continuation)} tokens does not fit max_length {max_length}")
    excess = len(context) + len(continuation) - 1 - max_length
    return context[max(excess, 0) :], continuation, excess > 0


def _fill(items: Iterable[Costly], limits: Limits) -> Iterator[tuple[Costly, ...]]:
    """Cut a list into runs that stay within the limits, keeping the order."""
    batch: list[Costly] = []
    tokens = positions = 0
    for item in items:
        tokens, positions = tokens + item.cost[0], positions + item.cost[1]
        if batch and (tokens > limits.tokens or positions > limits.positions or len(batch) >= limits.states):
            yield tuple(batch)
            batch, (tokens, positions) = [], item.cost
        batch.append(item)
    if batch:
        yield tuple(batch)


class Scorer:
    """Scores token requests with one model.

    half    log-softmax in float16 and the sum rounded to it, as the official evaluation script did (else float32)
    carry   applied to the saved states before the continuations start from them: the hook of a control experiment
    """

    def __init__(
        self,
        model: Mamba,
        *,
        limits: Limits | None = None,
        half: bool = False,
        carry: Callable[[State], State] | None = None,
    ) -> None:
        self.model, self.limits, self.half, self.carry = model, limits or Limits(), half, carry
        self.device = model.lm_head.weight.device
        self.truncated = 0

    def __call__(
        self,
        requests: Sequence[Request],
        progress: Callable[[int], object] = lambda answered: None,
        recall: Recall = computed,
    ) -> list[Score]:
        """Score (context, continuation) token pairs, in their order; progress gets each batch's number of answers.

        `recall` may answer a batch from an earlier run: its scores depend on the batch and the limits alone.
        """
        work = plan(requests, self.limits)
        self.truncated += work.truncated
        answered = [0] * len(work.batches)
        for batch, _, _ in work.places:
            answered[batch] += 1
        results = []
        for batch, count in zip(work.batches, answered, strict=True):
            asked = ["scores", [(group.context, group.continuations) for group in batch]]
            results.append(recall(asked, lambda batch=batch: self.batch(batch)))
            progress(count)
        return [Score(*results[b][g][c]) for b, g, c in work.places]

    @torch.inference_mode()
    def batch(self, groups: Sequence[Group]) -> list[list[Score]]:
        """One packed pass over the contexts, then the continuations from the saved states."""
        contexts = [g.context + (g.continuations[0][:-1] if g.whole else ()) for g in groups]
        values, state = self._predict(contexts, [_asked(g) for g in groups], None)
        scored = [[values[g]] if group.whole else [[v] for v in values[g]] for g, group in enumerate(groups)]
        tails = [
            Tail(g, index, continuation)
            for g, group in enumerate(groups)
            if not group.whole
            for index, continuation in enumerate(group.continuations)
            if len(continuation) > 1
        ]
        for part in _fill(tails, self.limits):
            # Feeding c[:-1] after the context predicts c[1:].
            rows = state.rows([t.group for t in part])
            inputs = [t.continuation[:-1] for t in part]
            asked = [list(enumerate(t.continuation[1:])) for t in part]
            found, _ = self._predict(inputs, asked, self.carry(rows) if self.carry else rows)
            for tail, more in zip(part, found, strict=True):
                scored[tail.group][tail.index] += more
        return [[self._total(tokens) for tokens in group] for group in scored]

    def _predict(
        self, sequences: Sequence[Tokens], asked: Sequence[list[tuple[int, int]]], state: State | None
    ) -> tuple[list[list[tuple[float, bool]]], State]:
        """(log-probability, is the argmax) of each sequence's (place, target) pairs; one state row a sequence."""
        device = self.device
        tokens, cu_seqlens = pack(sequences)
        starts = cu_seqlens[:-1].tolist()
        pairs = [(start + place, target) for start, ask in zip(starts, asked, strict=True) for place, target in ask]
        row_of = {place: row for row, place in enumerate(dict.fromkeys(place for place, _ in pairs))}
        at = torch.tensor(list(row_of), dtype=torch.int64, device=device)
        logits, after = self.model(tokens.to(device), state=state, cu_seqlens=cu_seqlens.to(device), logits_at=at)
        logits = logits.half() if self.half else logits.float()
        rows = torch.tensor([row_of[place] for place, _ in pairs], device=device)
        targets = torch.tensor([target for _, target in pairs], device=device)
        values = torch.log_softmax(logits, dim=-1)[rows, targets].tolist()
        greedy = (logits.argmax(-1)[rows] == targets).tolist()
        flat = iter(zip(values, greedy, strict=True))
        return [[next(flat) for _ in ask] for ask in asked], after

    def _total(self, tokens: Sequence[tuple[float, bool]]) -> Score:
        """Sum the tokens' log-probabilities; `half` rounds the sum as a float16 tensor's would be."""
        total = math.fsum(value for value, _ in tokens)
        if math.isnan(total):
            raise ValueError(
                "a log-likelihood is not a number: the model overflows in this dtype, or its weights hold NaN"
            )
        return Score(float(torch.tensor(total).half()) if self.half else total, all(greedy for _, greedy in tokens))


def _asked(group: Group) -> list[tuple[int, int]]:
    """(place, target) pairs of the pass over the context: every token of a lone continuation, else each one's first."""
    last = len(group.context) - 1
    if group.whole:
        return [(last + j, token) for j, token in enumerate(group.continuations[0])]
    return [(last, continuation[0]) for continuation in group.continuations]
