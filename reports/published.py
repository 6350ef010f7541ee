"""The papers' numbers with their sources, from published/*.csv; accuracies in percent, perplexities as they are."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DIRECTORY = Path(__file__).parent / "published"
SOURCES = {
    "Table 3": "Mamba paper, arXiv:2312.00752v2, Table 3",
    "Pythia v1": "EleutherAI/pythia, evals/pythia-v1, non-HellaSwag tasks at step 143000",
}
MAMBA_SSM = "mamba_ssm_h200.csv"
FINAL_REVISIONS = (None, "main", "step143000")

Key = tuple[str, str]  # (lm-eval task, lm-eval metric)


@dataclass(frozen=True)
class Column:
    """One column of Table 3 as lm-eval names it, and the size of the whole set."""

    task: str
    metric: str
    label: str
    documents: int

    @property
    def key(self) -> Key:
        return (self.task, self.metric)

    @property
    def pythia(self) -> str:
        """Its name in pythia_zero_shot.csv."""
        return f"{self.task}_{self.metric}".replace("perplexity", "ppl")

    @property
    def table3(self) -> str:
        """Its name in table3.csv."""
        return self.pythia.replace("lambada_openai", "lambada")


# Metrics: Mamba paper, E.2.3. Documents: the split that lm-eval scores (lm_eval_tasks.json; HellaSwag: validation).
COLUMNS = (
    Column("lambada_openai", "perplexity", "LAMBADA ppl", 5153),
    Column("lambada_openai", "acc", "LAMBADA acc", 5153),
    Column("hellaswag", "acc_norm", "HellaSwag acc_norm", 10042),
    Column("piqa", "acc", "PIQA acc", 1838),
    Column("arc_easy", "acc", "ARC-E acc", 2376),
    Column("arc_challenge", "acc_norm", "ARC-C acc_norm", 1172),
    Column("winogrande", "acc", "WinoGrande acc", 1267),
)
ACCURACIES = tuple(column.key for column in COLUMNS if column.metric != "perplexity")
TASKS = frozenset(column.task for column in COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was published for one model: accuracies in percent, perplexity as it is, no key where nothing is."""

    name: str
    source: str  # a key of SOURCES, or the reproduction's own description
    values: Mapping[Key, float]
    stderrs: Mapping[Key, float] = field(default_factory=dict)

    @property
    def average(self) -> float | None:
        """Mean of the row's six accuracies, computed: Table 3 prints other ones for Mamba-370M and 790M."""
        if not set(ACCURACIES) <= set(self.values):
            return None
        return sum(self.values[key] for key in ACCURACIES) / len(ACCURACIES)


@functools.cache
def rows(file: str) -> tuple[dict[str, str], ...]:
    """The rows of one CSV under published/, as printed; lines that start with # are its description."""
    lines = (DIRECTORY / file).read_text(encoding="utf-8").splitlines()
    return tuple(csv.DictReader(line for line in lines if not line.startswith("#")))


@functools.cache
def table3(model_row: str) -> dict[Key, float]:
    """A row of Table 3 by its printed name ("Mamba-130M"): (task, metric) -> percent, or perplexity."""
    row = _row("table3.csv", model_row)
    return {column.key: float(row[column.table3]) for column in COLUMNS if row[column.table3]}


@functools.cache
def table2(model_row: str) -> dict[int, float | None]:
    """A row of Table 2 by its printed name ("MHA-Abs"): test length -> percent, None where memory ran out."""
    named = [row for row in rows("table2_long.csv") if row["model"] == model_row]
    if not named:
        raise ValueError(f"table2_long.csv has no row {model_row!r}")
    return {int(row["test_length"]): float(row["accuracy_pct"]) if row["accuracy_pct"] else None for row in named}


def table2_parameters(model_row: str) -> str:
    """How many parameters Table 11 prints for a row of Table 2: "137K"."""
    return _row("table2.csv", model_row)["params"]


def mixer(arch: str, layer: str) -> str:
    """What our models call an architecture and a layer as tables 1 and 6 print them: "s4", "h3-hyena"."""
    return f"{arch}-{layer}".lower().removeprefix("no gate-")


def pythia_official(model: str) -> Published | None:
    """Pythia's own final zero-shot numbers ("pythia-12b-deduped"): without HellaSwag; None if unknown."""
    for row in rows("pythia_zero_shot.csv"):
        if row["suite"] == "pythia-v1" and row["model"].removesuffix("-bf16") == model:
            return Published(
                name=model,
                source="Pythia v1",
                values=_scaled(row, ""),
                stderrs=_scaled(row, "_stderr"),
            )
    return None


def reproduction(model: str) -> Published | None:
    """A third party's lm-eval run of the official weights ("mamba-130m"), with stderr; None if unknown."""
    named = [row for row in rows("mamba_reproduction_zero_shot.csv") if row["model"].rsplit("/", 1)[-1] == model]
    if not named:
        return None
    source = named[0]["source"]
    found = {(row["task"], row["metric"]): row for row in named if row["source"] == source}
    return Published(
        name=model,
        source=source,
        values={key: float(row["value"]) * scale(key[1]) for key, row in found.items()},
        stderrs={key: float(row["stderr"]) * scale(key[1]) for key, row in found.items() if row["stderr"]},
    )


def find(checkpoint: str, revision: str | None = None) -> Published | None:
    """The numbers published for a checkpoint: Table 3's where it has the model, else Pythia's own, else None.

    `checkpoint` is a bare name ("mamba-130m"), a hub id, a directory laid out like the hub
    (".../state-spaces/mamba-130m") or in the hub's cache. Any other directory could hold any weights, so nothing is
    published for it; nor for an earlier training step.
    """
    name = _published_name(checkpoint)
    if name is None or revision not in FINAL_REVISIONS:
        return None
    for row in rows("table3.csv"):
        if row["model"].lower() == name and name.startswith(("mamba-", "pythia-")):
            return Published(name=row["model"], source="Table 3", values=table3(row["model"]))
    return pythia_official(name)


def mamba_ssm_ms(hardware: str, shape: str, dtype: str, metric: str) -> float | None:
    """What mamba_ssm's scan took in somebody else's run ("NVIDIA H200", "8,1536,2048,16", "bfloat16", "forward ms").

    None where nobody measured it.
    """
    column = {"forward ms": "forward_ms", "forward+backward ms": "forward_backward_ms"}.get(metric)
    if column is None:
        return None
    for row in rows(MAMBA_SSM):
        size = ",".join(row[axis] for axis in "bdln")
        if (row["hardware"], size, row["dtype"]) == (hardware, shape, dtype):
            return float(row[column])
    return None


def size_order(model: str) -> tuple[float, int, str]:
    """Sorts by size as Table 3 groups it, Mamba after the Pythia of its size; names without a size come last."""
    match = re.search(r"(pythia|mamba|)[a-z0-9]*-(\d+(?:\.\d+)?[mb])\b", model.lower())
    if match is None:
        return (float("inf"), 0, model)
    family, size = match.groups()
    groups = {row["model"].lower(): row["size_group"] for row in rows("table3.csv")}
    group = groups.get(f"{family}-{size}", size)
    return (_parameters(group), ("pythia", "mamba", "").index(family), model)


def scale(metric: str) -> float:
    """100 for a metric that lm-eval gives as a fraction and tables print in percent, else 1."""
    return 100.0 if metric.startswith(("acc", "exact_match")) else 1.0


def _row(file: str, model: str) -> dict[str, str]:
    for row in rows(file):
        if row["model"] == model:
            return row
    raise ValueError(f"{file} has no row {model!r}; it has {', '.join(row['model'] for row in rows(file))}")


def _scaled(row: Mapping[str, str], suffix: str) -> dict[Key, float]:
    cells = {column.key: row[column.pythia + suffix] for column in COLUMNS}
    return {key: float(cell) * scale(key[1]) for key, cell in cells.items() if cell}


def _published_name(checkpoint: str) -> str | None:
    cached = re.search(r"models--([^/\\]+)--([^/\\]+)", checkpoint)
    parts = list(cached.groups()) if cached else [part for part in re.split(r"[/\\]", checkpoint) if part]
    if not parts or (len(parts) > 1 and parts[-2] not in ("state-spaces", "EleutherAI")):
        return None
    return parts[-1].lower().removesuffix("-hf")


def _parameters(size: str) -> float:
    return float(size[:-1]) * {"M": 1e6, "B": 1e9}[size[-1].upper()]
