"""Paired statistics agree with scipy, with the normal theory, and refuse documents that are not the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mambalab.reports import paired
from mambalab.reports.runs import Sample, load_run
from reports_cases import documents, write_lines, write_run
from scipy import stats


def _right_or_wrong(both: int, only_a: int, only_b: int, neither: int) -> np.ndarray:
    rows = [(1, 1)] * both + [(1, 0)] * only_a + [(0, 1)] * only_b + [(0, 0)] * neither
    return np.array(rows, dtype=np.float64)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemars_p_is_scipys_two_sided_binomial_test(wins, losses):
    wanted = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert paired.binomial_p(wins, losses) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("wins", "losses"), [(3000, 2800), (5021, 5021), (6000, 4000)])
def test_mcnemars_p_stays_exact_at_hellaswags_size(wins, losses):
    assert paired.binomial_p(wins, losses) == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, rel=1e-9)


def test_mcnemar_counts_the_documents_that_one_model_alone_got_right():
    outcome = paired.mcnemar(_right_or_wrong(10, 7, 2, 31))
    assert (outcome.only_a, outcome.only_b, outcome.n) == (7, 2, 50)
    assert outcome.a - outcome.b == pytest.approx((7 - 2) / 50)
    assert outcome.p == pytest.approx(stats.binomtest(7, 9).pvalue)
    assert outcome.low < outcome.a - outcome.b < outcome.high


@pytest.mark.parametrize("table", [(10, 5, 5, 30), (40, 12, 3, 45), (200, 60, 90, 150), (20, 0, 0, 20)])
def test_the_interval_is_wald_on_the_table_with_half_a_document_added_to_each_cell(table):
    both, a, b, neither = (cell + 0.5 for cell in table)
    n = both + a + b + neither
    spread = math.sqrt(a + b - (a - b) ** 2 / n) / n
    outcome = paired.mcnemar(_right_or_wrong(*table))
    assert (outcome.low, outcome.high) == pytest.approx(
        ((a - b) / n - stats.norm.ppf(0.975) * spread, (a - b) / n + stats.norm.ppf(0.975) * spread)
    )
    assert outcome.low < outcome.high


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.1])
def test_the_bootstrap_agrees_with_normal_theory_for_a_mean(shift):
    n = 400
    differences = np.random.default_rng(5).normal(shift, 1.0, n)
    other = np.random.default_rng(6).normal(0.0, 3.0, n)
    values = np.stack([other + differences, other], axis=1)
    outcome = paired.bootstrap(values)
    stderr = differences.std() / math.sqrt(n)
    mean = differences.mean()
    assert (outcome.low, outcome.high) == pytest.approx((mean - 1.96 * stderr, mean + 1.96 * stderr), abs=0.08 * stderr)
    assert outcome.p == pytest.approx(2 * stats.norm.sf(abs(mean) / stderr), abs=0.03)
    assert outcome.a - outcome.b == pytest.approx(mean)


def test_the_bootstrap_pairs_the_documents():
    easy = np.random.default_rng(0).normal(-3, 5, 300)
    outcome = paired.bootstrap(np.stack([easy + 0.01, easy], axis=1), paired.perplexity)
    assert outcome.p < 1e-3
    assert outcome.high < 0


def test_the_bootstrap_gives_lm_evals_perplexity_and_the_same_answer_twice():
    values = np.random.default_rng(1).normal(-2, 1, (50, 2))
    first, second = (paired.bootstrap(values, paired.perplexity) for _ in range(2))
    assert first == second
    assert (first.a, first.b) == pytest.approx(tuple(np.exp(-values.mean(axis=0))))
    assert first.only_a is first.only_b is None


def test_a_model_is_not_better_than_itself():
    values = np.random.default_rng(1).normal(-2, 1, (50, 1)).repeat(2, axis=1)
    outcome = paired.bootstrap(values, paired.perplexity)
    assert (outcome.low, outcome.high, outcome.p) == (0, 0, 1)
    assert paired.mcnemar(_right_or_wrong(20, 0, 0, 30)).p == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_a_monotone_correction_between_none_and_bonferroni(ps):
    adjusted = paired.holm(ps)
    assert all(p <= q <= min(1, len(ps) * p) for p, q in zip(ps, adjusted, strict=True))
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_holm_on_a_worked_example():
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@pytest.fixture
def two(tmp_path):
    """Two models on the same documents."""
    return tuple(load_run(write_run(tmp_path / name, name, seed=i)) for i, name in enumerate(("a", "b")))


def test_a_comparison_takes_table3s_metrics_in_its_order(two):
    results = paired.compare(*two)
    assert [(r.task, r.metric) for r in results] == [
        ("lambada_openai", "perplexity"),
        ("lambada_openai", "acc"),
        ("hellaswag", "acc_norm"),
        ("piqa", "acc"),
        ("arc_easy", "acc"),
        ("arc_challenge", "acc_norm"),
        ("winogrande", "acc"),
    ]
    assert [r.outcome.only_a is None for r in results] == [True] + [False] * 6
    assert [r.p_holm for r in results] == paired.holm([r.outcome.p for r in results])


def test_swapping_the_models_swaps_the_answer(two):
    for one, other in zip(paired.compare(*two), paired.compare(*reversed(two)), strict=True):
        assert one.difference == -other.difference
        assert one.outcome.only_a == other.outcome.only_b
        assert one.a_is_better != other.a_is_better


def test_lower_perplexity_and_higher_accuracy_are_better(tmp_path):
    lines = documents("lambada_openai", 30, 0)
    worse = [{**line, "perplexity": line["perplexity"] - 1, "acc": 0.0} for line in lines]
    samples = {}
    for name, found in (("good", lines), ("bad", worse)):
        path = write_lines(tmp_path / f"{name}.jsonl", found)
        samples[name] = path
    from mambalab.reports.runs import Run, read_samples
    from reports_cases import PROVENANCE, records_of

    runs = [
        Run(
            path=path,
            model=name,
            records=tuple(records_of(name, "lambada_openai", found, PROVENANCE)),
            samples={"lambada_openai": read_samples(path)},
        )
        for (name, path), found in zip(samples.items(), (lines, worse), strict=True)
    ]
    assert all(r.a_is_better for r in paired.compare(*runs))
    text = paired.verdict(paired.compare(*runs), "good", "bad")
    assert "good is better on 2 and bad on 0 of 2 measures" in text


def test_a_metric_that_is_not_right_or_wrong_is_bootstrapped():
    values = np.random.default_rng(0).random((20, 2))
    assert paired._test("f1", values).only_a is None
    assert paired._test("f1", values.round()).only_a is not None


def _samples(*docs):
    return [Sample(doc_id=i, doc_hash=h, values={"acc": v}) for i, h, v in docs]


def test_documents_are_matched_by_id_and_hash_and_not_by_their_order():
    a = _samples((0, "x", 1.0), (1, "y", 0.0))
    values = paired.matched("piqa", "acc", a, list(reversed(a)))
    assert (values[:, 0] == values[:, 1]).all()


@pytest.mark.parametrize(
    ("b", "message"),
    [
        (((0, "x", 1.0),), "piqa: the documents differ: 1 only in the first run, 0 only in the second, 1 in both"),
        (((0, "x", 1.0), (1, "z", 0.0)), "1 only in the first run, 1 only in the second, 1 in both"),
    ],
)
def test_different_documents_are_counted_and_refused(b, message):
    with pytest.raises(ValueError, match=message):
        paired.matched("piqa", "acc", _samples((0, "x", 1.0), (1, "y", 0.0)), _samples(*b))


def test_a_document_without_the_metric_is_refused():
    a = [Sample(doc_id=0, doc_hash="x", values={})]
    with pytest.raises(ValueError, match="piqa: some documents have no acc"):
        paired.matched("piqa", "acc", a, _samples((0, "x", 1.0)))


def test_runs_without_documents_in_common_are_refused(tmp_path, two):
    bare = load_run(write_run(tmp_path / "bare", "bare", samples=False))
    with pytest.raises(ValueError, match="a and bare share no task whose documents were kept"):
        paired.compare(two[0], bare)
