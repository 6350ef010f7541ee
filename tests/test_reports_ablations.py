"""Ablation tables follow from records: a row a cell, the paper's number beside it, and how far the orders agree."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mambalab.reports import published, record
from mambalab.reports.ablation_rows import ABLATIONS, Line
from mambalab.reports.ablations import correlations, found, notes
from mambalab.reports.naming import at
from mambalab.reports.rank_correlation import ranks, spearman
from mambalab.reports.record import Record, identity
from mambalab.reports.tables import report
from mambalab.tasks import ablations
from mambalab.tasks.ablations import BASES, GRIDS, Cell
from mambalab.tasks.recipes import to_json
from reports_cases import narrow, some_record

TASK = "selective-copying"


def cell(grid: str, name: str, seed: int = 0, task: str = TASK) -> Cell:
    (made,) = ablations.cells(GRIDS[grid], [BASES[task]], (seed,), [name])
    return made


def records_of(cell: Cell, **values: float) -> list[Record]:
    """What a training of the cell might have measured."""
    setting = to_json(cell.recipe) | {"steps_done": cell.recipe.steps}
    return [
        some_record(
            experiment=cell.experiment,
            model="mamba",
            task=cell.recipe.task.name,
            metric=metric.replace("_", " "),
            value=value,
            stderr=None,
            n=256,
            setting=setting,
            seed=cell.recipe.seed,
        )
        for metric, value in ({"sequence_accuracy": 0.5, "parameters": 67520} | values).items()
    ]


def row_of(cell: Cell) -> Line:
    """The row in which the cell's training would stand."""
    setting = to_json(cell.recipe)
    (row,) = [
        line
        for line in ABLATIONS[cell.grid].lines
        if all(at(setting, path) == value for path, value in line.asked.items())
    ]
    return row


@pytest.mark.parametrize("grid", GRIDS)
def test_every_cell_of_a_grid_has_one_row_of_its_own(grid):
    for task in GRIDS[grid].tasks:
        rows = [row_of(cell(grid, name, task=task)) for name in GRIDS[grid].changes]
        assert sorted(map(id, rows)) == sorted(map(id, ABLATIONS[grid].lines))


@pytest.mark.parametrize(
    ("grid", "name", "perplexity"),
    [
        ("selectivity", "none", 10.93),
        ("selectivity", "B", 10.15),
        ("selectivity", "C", 9.98),
        ("selectivity", "delta", 9.81),
        ("selectivity", "delta-B", None),
        ("selectivity", "delta-B-C", 8.71),
        ("state-size", "n-2-static", 9.86),
        ("state-size", "n-2-selective", 9.40),
        ("delta-rank", "static", 9.12),
        ("delta-rank", "rank-8", 8.83),
        ("a-init", "complex", 9.16),
        ("a-init", "half", 8.85),
        ("a-init", "random", 8.71),
        ("architecture", "h3-hyena", 10.24),
        ("architecture", "mamba-s4", 10.54),
        ("architecture", "mamba-s4-real", 10.56),
        ("architecture", "mamba-s6", 8.69),
        ("architecture", "s6", None),
    ],
)
def test_a_cell_stands_beside_what_the_paper_prints_for_it(grid, name, perplexity):
    assert row_of(cell(grid, name)).perplexity == perplexity


@pytest.mark.parametrize(
    ("grid", "file"),
    [
        ("selectivity", "table7.csv"),
        ("a-init", "table8.csv"),
        ("delta-rank", "table9.csv"),
        ("state-size", "table10.csv"),
        ("architecture", "table6.csv"),
    ],
)
def test_every_row_of_the_papers_table_is_in_ours(grid, file):
    ours = sorted(line.perplexity for line in ABLATIONS[grid].lines if line.perplexity is not None)
    assert ours == sorted(float(row["perplexity"]) for row in published.rows(file))


def test_the_table_has_means_spreads_and_what_was_not_run(tmp_path):
    made = [
        *records_of(cell("a-init", "complex", 0), token_accuracy=0.25),
        *records_of(cell("a-init", "complex", 1), token_accuracy=0.75, sequence_accuracy=0.25),
        *records_of(cell("a-init", "half", 2), token_accuracy=0.5),
        *records_of(cell("a-init", "n-plus-1", 0), token_accuracy=1.0, steps_to_solved=1000.0),
        *records_of(cell("a-init", "n-plus-1", 1), token_accuracy=1.0, steps_to_solved=2000.0),
        *records_of(cell("a-init", "n-plus-1", 2), token_accuracy=1.0),
    ]
    record.write(tmp_path / "records.jsonl", made)
    assert narrow(report([tmp_path]).table) == WANTED


WANTED = """\
| A | Field | Answers right % | Sequences right % | Steps to solved | Seeds | Parameters | Paper: perplexity, 350M LM |
|:-|:-|-:|-:|-:|-:|-:|-:|
| -1/2 + ni | complex | 50.00 (25.00 .. 75.00) | 37.50 (25.00 .. 50.00) | unsolved | 0, 1 | 67,520 | 9.16 |
| -1/2 | real | 50.00 | 50.00 | unsolved | 2 | 67,520 | 8.85 |
| -(n+1) | real | 100.00 | 50.00 | 1,500 (1,000 .. 2,000), 2 of 3 seeds | 0, 1, 2 | 67,520 | 8.71 |
| -exp(N(0,1)) | real | not run | — | — | — | — | 8.71 |

- Initialisation of A, selective-copying at length 256: mean over the seeds (least .. greatest), after 12,000 steps, \
on 256 sequences. Solved: every sequence right for the first time, measured every 500 steps.
- Trained in batches of 64, Adam at 0.001, cosine decay after 200 steps of warm-up.
- Each of a complex A's n numbers stands for a conjugate pair.
- Paper: perplexity, 350M LM: arXiv:2312.00752v2, Table 8, another setting (language models of about 350M parameters \
on the Pile): only the orders compare.
- Rank correlation (Spearman) with the paper's order, 1 where the two are the same, and p if all orders were alike \
likely: answers right +0.87 (p = 0.67), steps to solved (unsolved last) none, over 3 rows.
"""


def test_tasks_and_settings_get_a_table_each(tmp_path):
    other = cell("a-init", "half", task="induction-heads")
    records = [
        *records_of(cell("a-init", "half"), token_accuracy=0.5),
        *records_of(other, token_accuracy=0.5),
        *records_of(cell("recall", "mamba-4", task="associative-recall"), token_accuracy=0.5),
        *records_of(cell("recall", "mamba-8", task="associative-recall"), token_accuracy=0.5),
    ]
    record.write(tmp_path / "records.jsonl", records)
    made = report([tmp_path])
    titles = [line for line in made.markdown.splitlines() if line.startswith("## ")]
    assert titles == [
        "## Ablation: Initialisation of A, selective-copying at length 256",
        "## Ablation: Initialisation of A, induction-heads at length 256",
        "## Ablation: Pairs recalled, associative-recall at length 256",
        "## What ran",
    ]
    tables = made.table.split("| Model ")
    assert "perplexity" in tables[0]
    assert "aper" not in tables[1]
    assert [table.count(" not run |") for table in tables] == [3 + 3, 8]


def test_the_orders_are_compared_where_both_have_a_number():
    """Accuracy falls as the paper's perplexity rises, but for one pair; the solved ones are the other way round."""
    right = {"none": 0.1, "C": 0.2, "B": 0.3, "delta": 0.9, "delta-B": 0.0, "delta-B-C": 1.0}
    solved = {"delta": 1000.0, "delta-B-C": 2000.0}
    records = []
    for name, value in right.items():
        told = {"steps_to_solved": solved[name]} if name in solved else {}
        records += records_of(cell("selectivity", name), token_accuracy=value, **told)
    (one,) = found("selectivity", records)
    accuracy, speed = correlations(one).values()
    # Of the 120 orders of five, 5 are as near to the paper's and 5 as near to its reverse.
    assert accuracy == (pytest.approx((0.9, 10 / 120)), 5)
    # Ranks 2, 2, 2, 5, 4 against 1, 3, 2, 4, 5.
    assert speed == (spearman([2, 2, 2, 5, 4], [1, 3, 2, 4, 5]), 5)


def test_a_seed_that_diverged_is_said_and_its_row_not_compared(tmp_path):
    """The rows that are left go with the paper's; with the first they would not."""
    lost = cell("selectivity", "none", 1)
    (diverged,) = (r for r in records_of(lost, diverged_after_step=400.0) if r.metric == "diverged after step")
    records = [*records_of(cell("selectivity", "none", 0), token_accuracy=1.0), diverged]
    for name, value in {"C": 0.3, "B": 0.2, "delta": 0.4}.items():
        records += records_of(cell("selectivity", name), token_accuracy=value)
    record.write(tmp_path / "records.jsonl", records)
    text = narrow(report([tmp_path]).table)
    assert "| no | no | no | 100.00, 1 of 2 diverged | 50.00, 1 of 2 diverged | unsolved | 0, 1 | 67,520 |" in text
    assert "answers right +1.00 (p = 0.33), steps to solved (unsolved last) none, over 3 rows." in text


def test_a_training_that_is_in_no_row_is_said():
    made = cell("state-size", "n-4-static")
    odd = replace(made, recipe=replace(made.recipe, model=replace(made.recipe.model, d_state=3)))
    with pytest.raises(ValueError, match=f"^a training of mamba on {TASK} is in no row of the State size ablation$"):
        found("state-size", records_of(odd, token_accuracy=0.5))


def test_two_trainings_of_a_cell_with_one_seed_are_said():
    made = cell("state-size", "n-4-static")
    other = replace(made, recipe=replace(made.recipe, model=replace(made.recipe.model, dt_min=0.002)))
    records = [*records_of(made, token_accuracy=0.5), *records_of(other, token_accuracy=0.5)]
    with pytest.raises(
        ValueError, match=f"^two trainings on {TASK} with seed 0 in a row of State size: constant, n = 4$"
    ):
        found("state-size", records)
    folders = {identity(r): Path("a" if r in records[: len(records) // 2] else "b") for r in records}
    with pytest.raises(ValueError, match=r"constant, n = 4: a and b$"):
        found("state-size", records, folders)
    with pytest.raises(ValueError, match=r"^two trainings of mamba on .* with the same settings and seed 0$"):
        found("state-size", records_of(made, token_accuracy=0.5) * 2)


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        # Worked by hand: 1 - 6 (1 + 1) / (5 · 24).
        ([1, 2, 3, 4, 5], [1, 2, 3, 5, 4], 0.9),
        # Ties share a rank: 1.5, 1.5, 3, 4 against 1, 2, 3.5, 3.5, so 4 / 4.5.
        ([1, 1, 2, 3], [1, 2, 3, 3], 4 / 4.5),
        ([1, float("inf"), float("inf")], [1, 2, 2], 1.0),
        ([1, 1, 1], [1, 2, 3], None),
        ([5], [5], None),
        ([], [], None),
    ],
)
def test_spearmans_coefficient_is_known(a, b, want):
    found = spearman(a, b)
    assert found is want if want is None else found is not None and found[0] == pytest.approx(want)


def test_a_rank_correlation_needs_pairs():
    with pytest.raises(ValueError, match=r"^a rank correlation needs pairs, not 1 values and 2$"):
        spearman([1], [1, 2])


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=5))
def test_ranks_add_up_and_only_order_counts(pairs):
    a, b = zip(*pairs, strict=True)
    assert sum(ranks(a)) == len(a) * (len(a) + 1) / 2
    assert spearman(a, b) == spearman([v**3 for v in a], b)
    swapped = spearman([-v for v in a], b)
    found = spearman(a, b)
    if swapped is None or found is None:
        assert swapped is found
    else:
        assert swapped == pytest.approx((-found[0], found[1]))


@pytest.mark.parametrize("count", [3, 8, 9])
def test_the_probability_of_an_order_is_exact_for_few_pairs_and_near_for_many(count):
    """In order, or in the reverse: two of all orders."""
    found = spearman(list(range(count)), list(range(count)))
    assert found is not None
    assert found[1] == pytest.approx(2 / math.factorial(count), abs=0 if count < 9 else 1e-3)


def test_ablations_of_other_models_are_tables_of_their_own():
    made = cell("selectivity", "C")
    other = replace(made, recipe=replace(made.recipe, model=replace(made.recipe.model, d_state=4)))
    assert len(found("selectivity", records_of(made, token_accuracy=0.5) + records_of(other, token_accuracy=0.5))) == 2


def test_ablations_whose_matrices_were_multiplied_otherwise_are_tables_of_their_own():
    on_cpu = records_of(cell("state-size", "n-4-selective", seed=2), token_accuracy=0.5)
    tf32 = [
        replace(r, provenance={**r.provenance, "device": "cuda"})
        for r in records_of(cell("state-size", "n-4-selective"), token_accuracy=0.5)
    ]
    made = [replace(r, setting={**r.setting, "matmul": "float32"}) for r in tf32]
    older = [replace(r, setting={k: v for k, v in r.setting.items() if k != "matmul"}, seed=1) for r in made]
    tables = found("state-size", [*made, *older, *on_cpu, *tf32])
    assert [len(one.all) for one in tables] == [3, 1]
    assert not any("TF32" in note for note in notes(tables[0]))
    assert any("matrix products in TF32" in note for note in notes(tables[1]))
