"""How trainings were done, and what they are called beside each other: by what tells them apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Of a setting: what tells runs of one name apart, and what only says how often they are looked at.
NOT_LEARNT = (
    "seed",
    "log_every",
    "evaluate_every",
    "checkpoint_every",
    "sequences",
    "evaluation_seed",
    "solved_after",
    "steps_done",
)

SHAPE = ("model", "task")
PRODUCTS = {"tf32": "TF32", "bfloat16": "bfloat16"}
USUAL = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}

Named = tuple[str, Mapping[str, Any]]  # a model, and the setting of its training


def in_effect(setting: Mapping[str, Any], device: str | None) -> Mapping[str, Any]:
    """The setting of a training as it was done on this device: TF32 is a GPU's, and a CPU multiplies in float32.

    >>> in_effect({"matmul": "tf32"}, "cpu"), in_effect({"matmul": "tf32"}, "cuda:0")
    ({'matmul': 'float32'}, {'matmul': 'tf32'})
    """
    return {**setting, "matmul": "float32"} if device == "cpu" and setting.get("matmul") == "tf32" else setting


def how(setting: Mapping[str, Any]) -> str:
    """How a training was done, in a line."""
    return ", ".join(manner(setting))


def manner(setting: Mapping[str, Any]) -> list[str]:
    """How a training was done, one thing after another."""
    optimiser = setting["optimiser"]
    kind = "AdamW" if optimiser["weight_decay"] else "Adam"
    return [
        f"batches of {setting['batch_size']}",
        f"{kind} at {optimiser['learning_rate']:g}",
        _schedule(optimiser),
        *_unusual(setting),
        *([f"gradients clipped to {optimiser['clip']:g}"] if optimiser["clip"] else []),
        *([f"first {stages}"] if (stages := _curriculum(setting["curriculum"])) else []),
    ]


def _unusual(setting: Mapping[str, Any]) -> list[str]:
    """What few trainings set, where this one did."""
    optimiser = setting["optimiser"]
    parts = [f"{name} {optimiser[name]:g}" for name, value in USUAL.items() if optimiser.get(name, value) != value]
    product = filled(setting)["matmul"]
    return [*parts, *([f"matrix products in {PRODUCTS[product]}"] if product != "float32" else [])]


def _schedule(optimiser: Mapping[str, Any]) -> str:
    decay = "constant" if optimiser["decay"] == "constant" else f"{optimiser['decay']} decay"
    if optimiser["decay"] != "constant" and optimiser["decay_steps"]:
        decay += f" over the last {optimiser['decay_steps']:,} steps"
    return decay + (f" after {optimiser['warmup']:,} steps of warm-up" if optimiser["warmup"] else "")


def _curriculum(stages: Sequence[Sequence[int]]) -> str:
    return " and ".join(f"{steps:,} steps at length {size:,}" for steps, size in stages)


def length(setting: Mapping[str, Any]) -> int:
    """Tokens that the task counts as its length: for selective copying its places, without the markers."""
    task = setting["task"]
    return task["places"] if "places" in task else task["length"]


def at(setting: Mapping[str, Any], path: str) -> Any:
    """What a setting holds under a dotted name, such as "model.d_state"; None where there is nothing."""
    found: Any = setting
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def filled(setting: Mapping[str, Any]) -> dict[str, Any]:
    """A setting with what older ones do not say: how matrices are multiplied."""
    return {"matmul": "float32", **setting}


def key(setting: Mapping[str, Any]) -> str:
    """Equal for trainings that differ in their seed at most."""
    learnt = {name: value for name, value in filled(setting).items() if name not in NOT_LEARNT}
    return json.dumps(learnt, sort_keys=True)


def model_key(setting: Mapping[str, Any]) -> str:
    """Equal for trainings of one model."""
    return json.dumps(setting["model"], sort_keys=True)


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
    alike = [other for _, other in group if manner(other) == manner(setting)]
    return ", ".join([model, *own, *_differing(setting, alike)])


@dataclass(frozen=True)
class Marks:
    """A mark for each way in which the trainings of a report were done, and the line of its legend for each.

    Where all were trained in one way the marks are empty. How many steps were done is not told.
    """

    by_way: Mapping[tuple[str, str], str]
    legend: Sequence[str]

    def of(self, named: Named) -> str:
        """The mark of a training among those that were numbered."""
        return self.by_way[way_of(named)]


def way_of(named: Named) -> tuple[str, str]:
    """Equal for models of one name that were trained in one way, whatever their seed."""
    model, setting = named
    return (model, key(setting))


def marks(named: Iterable[Named]) -> Marks:
    """The marks of these trainings, numbered in their order."""
    distinct: dict[tuple[str, str], Named] = {}
    for one in named:
        distinct.setdefault(way_of(one), one)
    group = list(distinct.values())
    ways = {way: _way(one, group) for way, one in distinct.items()}
    numbers = {way: f"({i})" for i, way in enumerate(dict.fromkeys(ways.values()), start=1)}
    if len(numbers) == 1:
        return Marks(dict.fromkeys(ways, ""), [f"Trained in {way}." for way in numbers])
    return Marks({one: numbers[way] for one, way in ways.items()}, [f"{mark}: {way}." for way, mark in numbers.items()])


def _way(one: Named, named: Sequence[Named]) -> str:
    """How it was trained, with what tells its model and task from others of their names, and the rest from its like."""
    model, setting = one
    group = [other for its, other in named if (its, other["task"]["name"]) == (model, setting["task"]["name"])]
    alike = [other for other in group if how(other) == how(setting)]
    shape = _differing(_shape(setting), [_shape(other) for other in group])
    return ", ".join(dict.fromkeys([how(setting), *shape, *_differing(setting, alike, but=("steps",))]))


def _shape(setting: Mapping[str, Any]) -> dict[str, Any]:
    return {name: setting[name] for name in SHAPE if name in setting}


def _differing(setting: Mapping[str, Any], others: Sequence[Mapping[str, Any]], but: Sequence[str] = ()) -> list[str]:
    """Each of its settings, `but` some, that is not the same in one of the others, by its last name."""
    leaves = [_leaves(other) for other in others]
    return [
        f"{name.rpartition('.')[2]} {value}"
        for name, value in _leaves(setting).items()
        if name not in but and any(other.get(name) != value for other in leaves)
    ]


def _leaves(setting: Mapping[str, Any]) -> dict[str, str]:
    """What tells a training from another, as text under dotted names."""
    return dict(_flat(json.loads(key(setting))))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)
