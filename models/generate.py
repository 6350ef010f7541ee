"""Decoding: prompts of unequal lengths read as one packed row, then one token a row and step from their states."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from jaxtyping import Float, Int32, Int64
from torch import Generator, Tensor

from .mamba import Mamba, State
from .packing import pack

Stop = Collection[int] | Callable[[int, list[int]], bool]


@torch.no_grad()
def prefill(
    model: Mamba, tokens: Int64[Tensor, "1 l"], cu_seqlens: Int32[Tensor, " s_plus_1"], *, chunk: int = 4096
) -> tuple[Float[Tensor, "s v"], State]:
    """Read packed sequences, `chunk` tokens at a time: the logits after each one's last token, and their states.

    An empty sequence is a ValueError, because nothing predicts its next token.
    """
    if bool((cu_seqlens.diff() == 0).any()):
        raise ValueError("a prompt must hold at least one token")
    last = cu_seqlens[1:].long() - 1
    logits = model.lm_head.weight.new_empty(len(last), model.config.padded_vocab_size)
    state = None
    for begin in range(0, tokens.shape[1], chunk):
        part = tokens[:, begin : begin + chunk]
        ending = (last // chunk == begin // chunk).nonzero()[:, 0]
        bounds = (cu_seqlens - begin).clamp(0, part.shape[1])
        logits[ending], state = model(part, state=state, cu_seqlens=bounds, logits_at=last[ending] - begin)
    assert state is not None
    return logits, state


@torch.no_grad()
def generate(
    model: Mamba,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    stop: Stop = (),
    temperature: float = 0.0,
    top_k: int | None = None,
    generator: Generator | None = None,
    chunk: int = 4096,
) -> list[list[int]]:
    """The new tokens of each prompt, at most `max_new_tokens`, the one that stops a row included.

    `stop` is a set of token ids, or a function of a prompt's number and its new tokens so far. Temperature 0 takes the
    likeliest token; above it, tokens are drawn with `generator`, among the `top_k` likeliest where given. Padded ids of
    the vocabulary are never chosen. A setting out of range is a ValueError.
    """
    _check(max_new_tokens, temperature, top_k, generator)
    device = model.lm_head.weight.device
    packed, bounds = pack(prompts)
    logits, state = prefill(model, packed.to(device), bounds.to(device), chunk=chunk)
    stopped = stop if callable(stop) else lambda _, new: new[-1] in stop
    written: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        tokens = choose(logits[:, : model.config.vocab_size], temperature, top_k, generator)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            written[row].append(token)
        going = [
            i for i, row in enumerate(rows) if len(written[row]) < max_new_tokens and not stopped(row, written[row])
        ]
        if not going:
            break
        if len(going) < len(rows):
            rows, tokens, state = [rows[i] for i in going], tokens[going], state.rows(going)
        logits = model.step(tokens, state)
    return written


def choose(
    logits: Float[Tensor, "b v"], temperature: float, top_k: int | None, generator: Generator | None
) -> Int64[Tensor, " b"]:
    """One token a row: the likeliest at temperature 0, else drawn from softmax(logits / temperature) over the top k."""
    if temperature == 0:
        return logits.argmax(-1)
    scores = logits.float() / temperature
    if top_k is not None and top_k < scores.shape[1]:
        scores = scores.masked_fill(scores < scores.topk(top_k).values[:, -1:], -torch.inf)
    return torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]


def _check(max_new_tokens: int, temperature: float, top_k: int | None, generator: Generator | None) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, not {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    if temperature > 0 and generator is None:
        raise ValueError(f"temperature {temperature} draws tokens, so it needs a generator")
