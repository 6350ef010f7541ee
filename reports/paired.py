"""Two models on the same documents: exact McNemar for right-or-wrong, paired bootstrap for log-likelihoods, Holm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .published import COLUMNS, TASKS
from .runs import Run, Sample

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 10_000
SEED = 0
BLOCK = 250  # resamples held at once: 250 x 10,042 indices are 10 MB
LEVEL = 0.05
NORMAL_95 = 1.959963984540054
LOWER_IS_BETTER = frozenset({"perplexity"})


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Model A against model B in the metric's own unit (accuracies are fractions).

    low, high        95 % confidence interval of a - b
    p                two-sided, of "no difference"
    only_a, only_b   documents that exactly one model got right; None for the bootstrap
    """

    n: int
    a: float
    b: float
    low: float
    high: float
    p: float
    only_a: int | None = None
    only_b: int | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measure of a comparison; p_holm is the outcome's p corrected over all measures compared together."""

    task: str
    metric: str
    outcome: Outcome
    p_holm: float

    @property
    def difference(self) -> float:
        return self.outcome.a - self.outcome.b

    @property
    def a_is_better(self) -> bool:
        return self.difference < 0 if self.metric in LOWER_IS_BETTER else self.difference > 0


def compare(a: Run, b: Run) -> list[Comparison]:
    """Every task and metric whose documents both runs kept, Table 3's columns first.

    ValueError when the runs share no task with kept documents, or hold different documents of one.
    """
    measures = _shared(a, b)
    if not measures:
        raise ValueError(f"{a.model} and {b.model} share no task whose documents were kept (samples)")
    outcomes = [_test(metric, matched(task, metric, a.samples[task], b.samples[task])) for task, metric in measures]
    corrected = holm([outcome.p for outcome in outcomes])
    return [
        Comparison(task=task, metric=metric, outcome=outcome, p_holm=p)
        for (task, metric), outcome, p in zip(measures, outcomes, corrected, strict=True)
    ]


def matched(task: str, metric: str, a: Sequence[Sample], b: Sequence[Sample]) -> np.ndarray:
    """(n, 2) values of A and B on the same documents, by doc_id and doc_hash. ValueError when the documents differ."""
    import numpy as np

    of_a, of_b = ({(s.doc_id, s.doc_hash): s.values.get(metric) for s in samples} for samples in (a, b))
    if of_a.keys() != of_b.keys():
        raise ValueError(
            f"{task}: the documents differ: {len(of_a.keys() - of_b.keys())} only in the first run, "
            f"{len(of_b.keys() - of_a.keys())} only in the second, {len(of_a.keys() & of_b.keys())} in both"
        )
    if None in of_a.values() or None in of_b.values():
        raise ValueError(f"{task}: some documents have no {metric}")
    return np.array([(of_a[doc], of_b[doc]) for doc in sorted(of_a, key=str)], dtype=np.float64)


def mcnemar(values: np.ndarray) -> Outcome:
    """Exact McNemar on (n, 2) zeros and ones: a binomial test (p = 1/2) of the documents that one model got right.

    The interval is Wald's with half a document added to each of the four cells (Agresti and Min, 2005), so it has a
    width even when the models never disagree.
    """
    only_a = int((values[:, 0] > values[:, 1]).sum())
    only_b = int((values[:, 0] < values[:, 1]).sum())
    n = len(values)
    centre = (only_a - only_b) / (n + 2)
    spread = math.sqrt(((only_a + only_b + 1) / (n + 2) - centre**2) / (n + 2))
    return Outcome(
        n=n,
        a=float(values[:, 0].mean()),
        b=float(values[:, 1].mean()),
        low=centre - NORMAL_95 * spread,
        high=centre + NORMAL_95 * spread,
        p=binomial_p(only_a, only_b),
        only_a=only_a,
        only_b=only_b,
    )


def binomial_p(wins: int, losses: int) -> float:
    """Two-sided exact p of `wins` against `losses` under a fair coin; 1 when there were no tosses."""
    n, term, tail = wins + losses, 1, 0
    for k in range(min(wins, losses) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def bootstrap(values: np.ndarray, statistic: Callable[[Any], Any] = lambda mean: mean) -> Outcome:
    """Paired bootstrap over (n, 2) documents' values: `statistic` of each mean, the same documents drawn for both.

    The interval is the percentile interval; p is twice the share of resampled differences on zero's smaller side,
    the observed sample counted once.
    """
    import numpy as np

    rng = np.random.default_rng(SEED)
    columns = np.ascontiguousarray(values.T)
    means = []
    for start in range(0, RESAMPLES, BLOCK):
        shape = (min(BLOCK, RESAMPLES - start), len(values))
        drawn = rng.integers(0, len(values), size=shape, dtype=np.int32)
        means.append([column[drawn].mean(axis=1) for column in columns])
    resampled = statistic(np.concatenate(means, axis=1))
    differences = resampled[0] - resampled[1]
    low, high = np.percentile(differences, [2.5, 97.5])
    a, b = statistic(columns.mean(axis=1))
    beyond = int(min((differences <= 0).sum(), (differences >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (RESAMPLES + 1))
    return Outcome(n=len(values), a=float(a), b=float(b), low=float(low), high=float(high), p=p)


def perplexity(mean: np.ndarray) -> np.ndarray:
    """lm-eval's `perplexity` from the mean log-likelihood of the documents."""
    import numpy as np

    return np.exp(-mean)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values in the given order (family-wise error over all of them)."""
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def verdict(results: Sequence[Comparison], a: str, b: str) -> str:
    """What the corrected p-values allow to say, in one sentence."""
    shown = [r for r in results if r.p_holm < LEVEL]
    better = sum(r.a_is_better for r in shown)
    return (
        f"At p (Holm) < {LEVEL}, {a} is better on {better} and {b} on {len(shown) - better} "
        f"of {len(results)} measures; no difference is shown on {len(results) - len(shown)}."
    )


def _test(metric: str, values: np.ndarray) -> Outcome:
    if metric == "perplexity":
        return bootstrap(values, perplexity)
    return mcnemar(values) if ((values == 0) | (values == 1)).all() else bootstrap(values)


def _shared(a: Run, b: Run) -> list[tuple[str, str]]:
    """(task, metric) pairs of both runs' samples: of Table 3's tasks only Table 3's metrics."""
    both = [(task, metric) for task in sorted(set(a.samples) & set(b.samples)) for metric in _names(a, b, task)]
    order = [column.key for column in COLUMNS]
    return [key for key in order if key in both] + [key for key in both if key[0] not in TASKS]


def _names(a: Run, b: Run, task: str) -> list[str]:
    names = [{name for sample in run.samples[task] for name in sample.values} for run in (a, b)]
    return sorted(names[0] & names[1])
