"""A scan with more states than a block takes on: slabs of states one after the other, whose outputs add up."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .kept import TOGETHER
from .reference import accumulation_dtype


def forward(scan: Callable[..., Any], width: int, kept: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor]:
    """`scan(kept, …)` by slabs of `width` states; y is summed in the accumulation dtype."""
    y, states = None, []
    for slab, given in _slabs(width, arguments):
        share, state = scan(_kept(kept, slab), *given)
        y = share if y is None else y.add_(share)
        states.append(state)
    assert y is not None
    return y.to(arguments[0].dtype), torch.cat(states, -1)


def backward(
    scan: Callable[..., Any], width: int, dy: Tensor, dfinal_state: Tensor, kept: Tensor, *arguments: Any
) -> tuple[Tensor | None, ...]:
    """`scan_backward` by slabs: what belongs to states is joined, the rest added up in the accumulation dtype."""
    found = []
    for slab, given in _slabs(width, arguments):
        assert isinstance(given[0], Tensor)
        found.append(scan(dy.to(given[0].dtype), dfinal_state[..., slab], *given, _kept(kept, slab)))
    grads = []
    for index, (given, parts) in enumerate(zip(arguments[:9], zip(*found, strict=True), strict=True)):
        if given is None:
            grads.append(None)
        elif index in _OF_STATES:
            grads.append(torch.cat(parts, -1).to(given.dtype))
        else:
            # D is given to the first slab alone.
            shares = [part for part in parts if part is not None]
            grads.append(torch.stack(shares).sum(0).to(given.dtype))
    return tuple(grads)


# Places of u, delta, A, B, C, D, z, delta_bias, initial_state that have an axis n.
_OF_STATES = (2, 3, 4, 8)
_D = 5


def _slabs(width: int, arguments: tuple[Any, ...]) -> Iterator[tuple[slice, tuple[Any, ...]]]:
    """Each slab's columns and what its scan is given: everything in the accumulation dtype, D only once."""
    u, delta, A, B, C, D, z, bias, state, *options = arguments
    real = accumulation_dtype(u.dtype)
    wide = [None if t is None else t.to(real) for t in (u, delta, A, B, C, D, z, bias, state)]
    for first in range(0, A.shape[1], width):
        slab = slice(first, first + width)
        given = [t[..., slab] if t is not None and index in _OF_STATES else t for index, t in enumerate(wide)]
        if first:
            given[_D] = None
        yield slab, (*given, *options)


def _kept(kept: Tensor | None, slab: slice) -> Tensor | None:
    """A slab's part of the states that are kept; a slab begins at a multiple of TOGETHER."""
    return None if kept is None else kept[:, slab.start // TOGETHER : -(-slab.stop // TOGETHER)]
