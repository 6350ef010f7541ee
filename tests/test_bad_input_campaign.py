"""A small slice of the campaign of bad input, the same at every run: no try is a defect, and a defect would be seen."""

from __future__ import annotations

import pytest
from bad_input.engine import CLEAR, DEFECT, RIGHT, Kind, Verdict, campaign, count, judged, said, watched
from bad_input.kinds import KINDS
from bad_input.misbehaviour import misbehave
from bad_input.ops import differences
from hypothesis import strategies as st
from mambalab.reports.bad_input import bad_input_table, notes
from reports_cases import some_record

# Of each sort: enough to reach every strategy and every oracle.
DRAWS = {"op": 8, "checkpoint": 3, "task file": 2, "command line": 2}
# Seconds each, and tried by the whole campaign.
SLOW = ("in a process of its own", "fetch")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_no_bad_input_of_a_slice_is_a_defect(kind, tmp_path, unchecked):
    kept = Kind(**{**vars(kind), "sorts": {name: cases for name, cases in kind.sorts.items() if name not in SLOW}})
    kind.prepare(tmp_path)
    tries = campaign(kept, lambda case: judged(kind.judge, case, tmp_path), seed=1, draws=DRAWS[kind.name])
    assert [(one.sort, one.verdict.detail, one.case) for one in tries if one.verdict.outcome == DEFECT] == []
    assert count(tries).keys() == kept.sorts.keys()
    assert {one.verdict.outcome for one in tries} == {RIGHT, CLEAR}


def test_a_crash_a_hang_and_a_stray_exception_are_defects_and_the_campaign_goes_on(monkeypatch):
    monkeypatch.setattr("bad_input.engine.SECONDS", 2.0)
    kind = Kind(
        name="made up", sorts={"all": st.sampled_from(("crash", "hang", "raise", "fine"))}, judge=misbehave, draws=1
    )
    with watched(kind) as judge:
        found = {case: judge(case) for case in ("crash", "fine", "hang", "raise")}
    assert {case: verdict.outcome for case, verdict in found.items()} == {
        "crash": DEFECT,
        "fine": RIGHT,
        "hang": DEFECT,
        "raise": DEFECT,
    }
    assert "exit code -11" in found["crash"].detail
    assert "no answer in 2 s" in found["hang"].detail


@pytest.mark.parametrize(
    "message", ["", "two\nlines", "'int' object is not iterable", "x" * 2000, "must be an object, not NoneType"]
)
def test_a_line_that_is_not_clear_is_a_defect(message):
    assert said(message).outcome == DEFECT


def test_a_line_that_names_its_file_is_clear():
    assert said("/a/b.json: not JSON", "/a").outcome == CLEAR
    assert said("/a/b.json: not JSON", "/c").outcome == DEFECT


def test_a_wrong_number_a_stray_nan_and_a_lost_infinity_are_seen():
    import torch

    inf = torch.inf
    wanted = {"y": torch.tensor([[[1.0, 2.0], [torch.nan, inf]]], dtype=torch.float64)}
    assert differences(wanted, wanted, wanted, torch.float32) is None
    for place, value in (
        ((0, 0, 1), 2.01),
        ((0, 0, 0), torch.nan),
        ((0, 1, 0), 3.0),
        ((0, 1, 1), -inf),
        ((0, 1, 1), 1e30),
    ):
        wrong = {"y": wanted["y"].clone()}
        wrong["y"][place] = value
        assert f"y: {value} at {place}" in str(differences(wrong, wanted, wanted, torch.float32))


def test_the_same_content_is_counted_once():
    cases = st.sampled_from(("a", "b", "c"))
    kind = Kind(name="x", sorts={"one": cases, "two": cases}, judge=lambda case, folder: Verdict(RIGHT, ""), draws=9)
    tries = campaign(
        kind, lambda case: Verdict(RIGHT, "", content=b"a" if case == "b" else case.encode()), seed=0, draws=9
    )
    assert count(tries) == {"one": {RIGHT: 2, CLEAR: 0, DEFECT: 0}}


def test_the_table_has_a_row_a_sort_under_its_kind():
    outcomes = {RIGHT: 1, CLEAR: 1200, DEFECT: 0}
    setting = {"outcomes": outcomes, "sorts": {"keys": outcomes}}
    record = some_record(experiment="bad-input", task="checkpoint", value=1201, n=1201, stderr=None, setting=setting)
    all_of_them, keys = bad_input_table([record]).to_dict("records")
    assert (all_of_them["Kind"], all_of_them["Damage"], all_of_them["Distinct inputs"]) == (
        "checkpoint",
        "all",
        "1,201",
    )
    assert (keys["Damage"], keys["One clear line"], keys["Defect"]) == ("keys", "1,200", "0")
    assert "1,201 inputs" in notes([record])[0]
