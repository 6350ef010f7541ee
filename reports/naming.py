"""What trainings are called beside each other: by what tells them apart, as a legend or a row has room for no more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .trained import manner

# Of a setting: what tells runs of one name apart, and what only says how often they are looked at.
NOT_LEARNT = ("seed", "log_every", "evaluate_every", "checkpoint_every", "sequences", "evaluation_seed", "solved_after")

Named = tuple[str, Mapping[str, Any]]  # a model, and the setting of its training


def key(setting: Mapping[str, Any]) -> str:
    """Equal for trainings that differ in their seed at most."""
    learnt = {name: value for name, value in _whole(setting).items() if name not in NOT_LEARNT}
    return json.dumps(learnt, sort_keys=True)


def names(named: Sequence[Named]) -> list[str]:
    """The model of each training, with how it was trained where others of that model were trained otherwise.

    >>> one = {"batch_size": 8, "optimiser": {"weight_decay": 0, "learning_rate": 0.01, "decay": "constant",
    ...     "warmup": 0, "clip": None}, "curriculum": [], "model": {"d_state": 4}}
    >>> names([("s6", one), ("s6", one | {"batch_size": 16}), ("s6", one | {"model": {"d_state": 8}}), ("s4", one)])
    ['s6, batches of 8, d_state 4', 's6, batches of 16', 's6, batches of 8, d_state 8', 's4']
    """
    return [_name(one, [other for other in named if other[0] == one[0]]) for one in named]


def shared(named: Sequence[Named]) -> list[str]:
    """How all of them were trained, as far as that is the same."""
    first, *others = (manner(setting) for _, setting in named)
    return [part for part in first if all(part in other for other in others)]


def _name(one: Named, group: Sequence[Named]) -> str:
    """`one` beside the trainings of its model, itself among them."""
    model, setting = one
    common = shared(group)
    own = [part for part in manner(setting) if part not in common]
    # Trained alike: then the model or the task differs in some setting.
    twins = [_leaves(other) for _, other in group if manner(other) == manner(setting)]
    leaves = _leaves(setting)
    own += [
        f"{name.rpartition('.')[2]} {value}"
        for name, value in leaves.items()
        if any(twin.get(name) != value for twin in twins)
    ]
    return ", ".join([model, *own])


def _leaves(setting: Mapping[str, Any]) -> dict[str, str]:
    """What tells a training from another, as text under dotted names."""
    return dict(_flat(json.loads(key(setting))))


def _whole(setting: Mapping[str, Any]) -> dict[str, Any]:
    """With what older settings do not say."""
    return {"matmul": "float32"} | dict(setting)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)
