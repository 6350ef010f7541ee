"""The rows of each ablation: what the setting of its trainings holds, and what the paper prints for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any

from . import published
from .naming import at


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row: its labels in a table and its name in a legend, what its trainings were asked for, the paper's perplexity.

    `asked` has dotted names in a setting.
    """

    name: str
    labels: Mapping[str, str]
    asked: Mapping[str, Any]
    perplexity: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What is varied, row by row, and which table of the paper varies it, if any does."""

    title: str
    lines: tuple[Line, ...]
    source: str | None = None
    remarks: tuple[str, ...] = ()

    def place(self, setting: Mapping[str, Any]) -> int | None:
        """The number of the row of a training with this setting; None where it is in none."""
        rows = (all(at(setting, path) == value for path, value in line.asked.items()) for line in self.lines)
        return next((i for i, is_its in enumerate(rows) if is_its), None)


def _printed(file: str, **cells: str) -> float | None:
    """The perplexity in the row with these cells; None where the paper has no such row."""
    rows = (row for row in published.rows(file) if all(row[name] == cell for name, cell in cells.items()))
    return next((float(row["perplexity"]) for row in rows), None)


def _selectivity(delta: bool, b: bool, c: bool) -> Line:
    flags = dict(zip(("delta", "B", "C"), (delta, b, c), strict=True))
    cells = {f"selective_{name}": "yes" if flag else "no" for name, flag in flags.items()}
    shown = dict(zip(("Δ", "B", "C"), cells.values(), strict=True))
    chosen = [name for name, cell in shown.items() if cell == "yes"]
    return Line(
        name=f"selective {', '.join(chosen)}" if chosen else "nothing selective",
        labels={f"Selective {name}": cell for name, cell in shown.items()},
        asked={f"model.selective_{name}": flag for name, flag in flags.items()},
        perplexity=_printed("table7.csv", **cells),
    )


def _state_size(selective: bool, n: int) -> Line:
    kind = "selective" if selective else "constant"
    return Line(
        name=f"{kind}, n = {n}",
        labels={"B and C": kind, "n": str(n)},
        asked={"model.selective_B": selective, "model.selective_C": selective, "model.d_state": n},
        perplexity=_printed("table10.csv", B_and_C=kind, N=str(n)),
    )


def _delta_rank(rank: int | None) -> Line:
    """None: Δ is static."""
    asked = {"model.selective_delta": rank is not None} | ({} if rank is None else {"model.dt_rank": rank})
    cell = "" if rank is None else str(rank)
    return Line(
        name=f"rank {cell}" if cell else "static Δ",
        labels={"Rank of Δ": cell or "static"},
        asked=asked,
        perplexity=_printed("table9.csv", delta_proj=cell),
    )


def _a_init(init: str, a_n: str) -> Line:
    """`a_n` as table 8 prints it, up to a remark in brackets."""
    cell = next(row["A_n"] for row in published.rows("table8.csv") if row["A_n"].partition("  [")[0] == a_n)
    a = a_n.replace("~ ", "-").replace("*", "")
    return Line(
        name=f"A = {a}",
        labels={"A": a, "Field": "complex" if init == "complex" else "real"},
        asked={"model.A_init": init},
        perplexity=_printed("table8.csv", A_n=cell),
    )


def _architecture(arch: str, layer: str) -> Line:
    """`arch` and `layer` as table 6 prints them."""
    operator, _, kind = layer.partition(" ")
    mixer = published.mixer(arch, operator)
    asked = {"model.kind": "MambaConfig"} if mixer == "mamba-s6" else {"model.mixer": mixer}
    if kind:
        asked |= {"model.s4_init": {"(complex)": "s4d-lin", "(real)": "s4d-real"}[kind]}
    return Line(
        name=f"{arch}, {layer}",
        labels={"Architecture": arch, "Layer": layer},
        asked=asked,
        perplexity=_printed("table6.csv", arch=arch, ssm_layer=layer),
    )


def _recall(model: str, asked: Mapping[str, str], pairs: int) -> Line:
    return Line(
        name=f"{model}, {pairs} pairs",
        labels={"Model": model, "Pairs": str(pairs)},
        asked={**asked, "task.pairs": pairs},
    )


_LAYERS = ("Hyena", "S4 (complex)", "S4 (real)", "S6")
_A_INITS = {"complex": "-1/2 + n*i", "-1/2": "-1/2", "-(n+1)": "-(n+1)", "random": "~ exp(N(0,1))"}
_MIXERS = {"Mamba": {"model.kind": "MambaConfig"}, "attention": {"model.mixer": "attention"}}

ABLATIONS: Mapping[str, Ablation] = MappingProxyType(
    {
        "selectivity": Ablation(
            title="Selectivity",
            # As table 7 goes on: none, one of them, two, all.
            lines=tuple(_selectivity(*flags) for flags in sorted(product((False, True), repeat=3), key=sum)),
            source="Table 7",
        ),
        "state-size": Ablation(
            title="State size",
            lines=tuple(_state_size(selective, n) for selective in (False, True) for n in (1, 2, 4, 8, 16)),
            source="Table 10",
        ),
        "delta-rank": Ablation(
            title="Rank of Δ",
            lines=tuple(_delta_rank(rank) for rank in (None, 1, 2, 4, 8, 16, 32, 64)),
            source="Table 9",
            remarks=("Ranks are held beside the same ranks of the paper's, whose models are wider.",),
        ),
        "a-init": Ablation(
            title="Initialisation of A",
            lines=tuple(_a_init(*pair) for pair in _A_INITS.items()),
            source="Table 8",
            remarks=("Each of a complex A's n numbers stands for a conjugate pair.",),
        ),
        "architecture": Ablation(
            title="Architecture",
            lines=tuple(
                _architecture(arch, layer)
                for arch, layers in {"No gate": _LAYERS[1::2], "H3": _LAYERS, "Mamba": _LAYERS}.items()
                for layer in layers
            ),
            source="Table 6",
            remarks=("Rows of Table 1 as they are: S4 has 64 states a channel, S6 16.",),
        ),
        "recall": Ablation(
            title="Pairs recalled",
            lines=tuple(_recall(name, asked, n) for name, asked in _MIXERS.items() for n in (4, 8, 16, 32, 64)),
        ),
    }
)
