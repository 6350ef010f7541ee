"""The benchmark of lm-eval's own part: both sides make the same or no speed is printed, and a small run end to end."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lm_eval.tasks
import pytest
from command import mambalab, refused
from mambalab.harness import bench_host, bench_zero_shot, task_files
from mambalab.harness.bench import RedCheck
from mambalab.harness.bench_host import OURS, STOCK, Instant, Row, in_turn, parted, records, run, tokenised
from mambalab.harness.zero_shot import Settings
from mambalab.reports import record, regenerate
from mambalab.reports.tables import bench_table
from reports_cases import PROVENANCE

MINIATURE = Path(__file__).parent.parent / "harness" / "miniature"
ORIGIN = {**PROVENANCE, "task_version": {"piqa": 1.0}, "asked": {}, "documents": {}}


def _request(context, continuation):
    return SimpleNamespace(args=(context, continuation))


def test_the_instant_model_answers_each_request_in_its_order():
    model = Instant()
    assert model.loglikelihood([_request("a", "bcd"), _request("", "e")]) == [(-3.0, False), (-1.0, False)]
    assert model.loglikelihood_rolling([SimpleNamespace(args=("abc",))]) == [-3.0]
    assert model.generate_until([_request("a", {})]) == [""]


def test_the_sides_take_turns_and_the_first_changes(monkeypatch):
    order = []

    def side(name, seconds):
        return lambda: order.append(name) or (seconds, "the same")

    monkeypatch.setattr(gc, "collect", lambda: order.append("swept"))
    lines = []
    found = in_turn("piqa", "evaluation s", {OURS: side(OURS, 1.0), STOCK: side(STOCK, 4.0)}, 2, lines.append)
    assert order == ["swept", OURS, "swept", STOCK, "swept", STOCK, "swept", OURS]
    assert found == {OURS: [1.0, 1.0], STOCK: [4.0, 4.0]}
    assert lines == ["piqa, evaluation s: mambalab 1.000, lm-eval 4.000"] * 2


def test_sides_that_make_different_things_print_no_speed():
    calls = {OURS: lambda: (1.0, "a"), STOCK: lambda: (4.0, "b")}
    with pytest.raises(RedCheck, match=r"piqa, evaluation s: the two sides differ .* no speed is printed"):
        in_turn("piqa", "evaluation s", calls, 2, pytest.fail)


class Adapter:
    """Tokenises each text to its letters, and must not compute where only that is timed."""

    def loglikelihood(self, requests, disable_tqdm=False):
        work = [(r.args, list(r.args[0]), list(r.args[1])) for r in requests]
        return self._loglikelihood_tokens(work, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, work, disable_tqdm=False):
        return [(0.0, False)] * len(work)


def test_tokenising_is_timed_without_the_model_which_is_given_back(monkeypatch):
    adapter = Adapter()
    monkeypatch.setattr(Adapter, "_loglikelihood_tokens", lambda *_, **__: pytest.fail("the model ran"))
    times = iter([1.0, 3.5])
    assert tokenised(adapter, [_request("ab", "c")], clock=lambda: next(times)) == (2.5, [(["a", "b"], ["c"])])
    assert "_loglikelihood_tokens" not in vars(adapter)


def test_an_evaluation_is_parted_into_lm_eval_tokenising_and_the_model(monkeypatch):
    monkeypatch.setattr(bench_host, "run_tasks", lambda lm, tasks, **_: lm.loglikelihood([_request("ab", "c")]))
    times = iter(float(tick**2) for tick in range(6))
    # Looks at 0 (start), 1 (adapter), 4 (model), 9 (model done), 16 (adapter done), 25 (end).
    found = parted(Settings(model=""), Adapter(), {}, clock=lambda: next(times))
    assert found == {"in lm-eval s": 10.0, "tokenising s": 10.0, "in the model s": 5.0}


def test_a_record_is_the_median_of_a_sides_runs():
    rows = [
        Row(task="piqa", metric="evaluation s", seconds={OURS: [1.0, 3.0, 2.0], STOCK: [8.0, 8.0, 9.0]}, counts={}),
        Row(task="piqa, a real model", metric="in lm-eval s", seconds={OURS: [1.0]}, counts={"documents": 3}),
    ]
    made = list(records(Settings(model=""), rows, ORIGIN))
    assert [(r.model, r.value, r.n) for r in made] == [(OURS, 2.0, 3), (STOCK, 8.0, 3), (OURS, 1.0, 1)]
    assert made[0].provenance["backend"].startswith("none")
    assert made[2].provenance["backend"] == PROVENANCE["backend"]
    assert made[2].setting["documents"] == 3
    assert bench_table(made).to_dict("records")[0][f"× {STOCK}"] == "4.00×"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repeats": 1}, "repeats must be at least 2, not 1"),
        ({"split": -1}, "split must be at least 0, not -1"),
        ({"settings": Settings(model="", tasks=("gsm8k",))}, "task 'gsm8k' can't be timed; known: lambada_openai"),
        ({"settings": Settings(model="", data="nowhere")}, "no data directory at nowhere"),
    ],
)
def test_bad_settings_are_one_line(options, said):
    with pytest.raises(ValueError, match=said):
        run(**{"settings": Settings(model="")} | options)


COMMON = (
    "bench", "host", "--tasks", "piqa,winogrande", "--repeats", "2", "--split", "2",
    "--data", MINIATURE, "--tokenizer", MINIATURE / "tokenizer.json",
)  # fmt: skip


def test_a_small_run_is_checked_and_ends_in_records_and_their_table(tmp_path, monkeypatch, unchecked):
    monkeypatch.setattr(bench_zero_shot, "FRESH", {"d_model": 32, "n_layer": 1, "vocab_size": 1024})
    # lm-eval's index of all its tasks takes seconds, and is not what is tested.
    few: list[str | Path] = [Path(lm_eval.tasks.__file__).parent / name for name in task_files.STOCK_FOLDERS]
    index = partial(lm_eval.tasks.TaskManager, include_defaults=False, include_path=few)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", index)
    answer = mambalab(*COMMON, "--out", tmp_path)
    assert answer.status == 0
    made = record.read(tmp_path / "records.jsonl")
    compared = {(r.task, r.metric) for r in made if r.model == STOCK}
    assert {metric for _, metric in compared} == {"evaluation s", "loading tasks s", "tokenising s"}
    assert compared < {(r.task, r.metric) for r in made if r.model == OURS}
    assert {r.metric for r in made if "a real model" in r.task} == {"in lm-eval s", "tokenising s", "in the model s"}
    assert {r.n for r in made} == {2}
    regenerate.check(tmp_path / "table.md")
    assert "× lm-eval" in answer.out


def test_a_mistake_on_the_command_line_is_one_line_and_status_2(tmp_path):
    for wrong in (("--tasks", "gsm8k"), ("--repeats", 1), ("--limit", 0), ("--split", -1), ("--data", "nowhere")):
        assert refused(mambalab(*COMMON, *wrong, "--out", tmp_path))
        assert list(tmp_path.iterdir()) == []
