"""The zero-shot benchmark: what it adds up, that differing scores print no speed, and one small run end to end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mambalab.harness import bench_zero_shot as zero_shot_bench
from mambalab.harness import cli, parity
from mambalab.harness.bench import RedCheck
from mambalab.harness.bench_zero_shot import OURS, STOCK, Pass, agree, records, run, score
from mambalab.harness.lm_eval_host import done_once
from mambalab.harness.zero_shot import Settings
from mambalab.reports import record, regenerate
from mambalab.reports.tables import bench_table
from reports_cases import PROVENANCE

MINIATURE = Path(__file__).parent.parent / "harness" / "miniature"
ORIGIN = {
    **PROVENANCE,
    "versions": {"transformers": "5.0"},
    "task_version": {"piqa": 1.0},
    "asked": {},
    "documents": {},
}


def _document(doc_id=0, first=-1.0):
    return parity.Document(
        doc_id=doc_id, scores=((first, True), (-2.0, False)), lengths=(4, 4), metrics={"acc": float(first > -2)}
    )


def _pass(seconds, answering, documents=2):
    return Pass(documents=tuple(_document(i) for i in range(documents)), seconds=seconds, answering=answering)


def test_totals_are_summed_run_by_run_before_their_median_is_taken():
    measured = {
        OURS: {"piqa": [_pass(1.0, 0.5), _pass(3.0, 1.0)], "arc_easy": [_pass(1.0, 0.5), _pass(5.0, 1.0)]},
        STOCK: {"piqa": [_pass(10.0, 9.0), _pass(10.0, 9.0)], "arc_easy": [_pass(15.0, 14.0), _pass(15.0, 14.0)]},
    }
    made = list(records(Settings(model=""), measured, ORIGIN, batch_size=16))
    found = {(r.model, r.task.split(",")[0], r.metric): r.value for r in made}
    assert found[OURS, "piqa", "evaluation s"] == 2.0
    assert found[OURS, "all 2 tasks", "evaluation s"] == (2.0 + 8.0) / 2
    assert found[OURS, "all 2 tasks", "in the adapter s"] == 1.5
    assert found[OURS, "all 2 tasks", "in lm-eval s"] == (1.0 + 6.0) / 2
    assert found[OURS, "all 2 tasks", "requests/s"] == (8 / 2.0 + 8 / 8.0) / 2
    rows = {(row["Shape"], row["Measure"]): row for row in bench_table(made).to_dict("records")}
    assert rows["all 2 tasks, 4 documents", "evaluation s"][f"× {STOCK}"] == "5.00×"
    assert {r.n for r in made} == {2}
    assert made[-1].setting["batch_size"] == 16
    assert made[-1].provenance["backend"] == "transformers 5.0"
    assert "asked" not in made[0].provenance


def test_scores_that_differ_print_no_speed():
    same = _pass(1.0, 0.5, documents=1)
    other = Pass(documents=(_document(first=-1.1),), seconds=1.0, answering=0.5)
    agree("piqa", {OURS: [same], STOCK: [same]})
    with pytest.raises(RedCheck, match=r"piqa: DISAGREES; 2 requests.*no speed is printed"):
        agree("piqa", {OURS: [other], STOCK: [same]})


def test_the_adapter_is_timed_apart_and_left_as_it_was(monkeypatch):
    times = iter(range(100))

    class Adapter:
        def loglikelihood(self, requests):
            return requests

    def evaluate(settings, lm, task, *, host):
        lm.loglikelihood(lm.loglikelihood([1]))
        return [_document()]

    monkeypatch.setattr(parity, "score_documents", evaluate)
    adapter = Adapter()
    # The clock ticks at each look: once around the whole, once around each of the two calls.
    found = score(Settings(model=""), adapter, {}, done_once, clock=lambda: float(next(times)))
    assert (found.seconds, found.answering, found.requests) == (5.0, 2.0, 2)
    assert "loglikelihood" not in vars(adapter)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repeats": 0}, "repeats must be at least 1, not 0"),
        ({"settings": Settings(model="", tasks=("gsm8k",))}, "task 'gsm8k' can't be timed; known: lambada_openai"),
        ({"settings": Settings(model="", data="nowhere")}, "no data directory at nowhere"),
    ],
)
def test_bad_settings_are_one_line(options, said):
    with pytest.raises(ValueError, match=said):
        run(**options)


def _bench(*arguments):
    cli.main(["bench", *arguments])


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(zero_shot_bench, "FRESH", {"d_model": 32, "n_layer": 1, "vocab_size": 1024})


COMMON = (
    "zero-shot", "--tasks", "piqa,winogrande", "--limit", "3",
    "--data", str(MINIATURE), "--tokenizer", str(MINIATURE / "tokenizer.json"),
)  # fmt: skip


def test_a_small_run_is_checked_and_ends_in_records_and_their_table(tmp_path, small, capsys):
    _bench(*COMMON, "--peers", "--out", str(tmp_path))
    made = record.read(tmp_path / "records.jsonl")
    assert {r.model for r in made} == {OURS, STOCK}
    assert {r.metric for r in made} == {"evaluation s", "in the adapter s", "in lm-eval s", "requests/s"}
    assert made[0].provenance["checkpoint"]["source"] == "made for the run"
    assert "random weights, d_model 32" in made[0].provenance["checkpoint"]["note"]
    assert made[0].setting["documents"] == 3
    regenerate.check(tmp_path / "table.md")
    assert "all 2 tasks, 6 documents" in capsys.readouterr().out


def test_without_peers_the_first_documents_are_still_compared(tmp_path, small, monkeypatch, capsys):
    compared = []
    stock_compare = parity.compare
    monkeypatch.setattr(parity, "compare", lambda task, *sides: compared.append(task) or stock_compare(task, *sides))
    _bench(*COMMON, "--out", str(tmp_path))
    assert compared == ["piqa", "winogrande"]
    assert {r.model for r in record.read(tmp_path / "records.jsonl")} == {OURS}


WRONG = {
    "a bad shape": ("scan", "--shape", "1,2,3"),
    "a bad dtype": ("scan", "--dtype", "float31"),
    "too few rounds": ("scan", "--repeats", "1"),
    "another device": ("scan", "--device", "tpu"),
    "no such data": ("zero-shot", "--data", "nowhere"),
    "no such task": ("zero-shot", "--tasks", "pica"),
    "no such checkpoint": ("zero-shot", "--checkpoint", "./nowhere", "--data", str(MINIATURE)),
    "limit 0": ("zero-shot", "--limit", "0"),
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG)
def test_a_mistake_on_the_command_line_is_one_line_and_status_2(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        _bench(*arguments, "--out", str(tmp_path))
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith("mambalab: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["scan", "zero-shot"])
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\nfrom mambalab.harness.cli import main\n"
        f"try:\n    main(['bench', {command!r}, '--help'])\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', *sorted(set(sys.modules) & {'torch', 'numba', 'pandas', 'lm_eval', 'transformers'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--peers" in done.stdout
    assert done.stdout.splitlines()[-1].split() == ["HEAVY"]
