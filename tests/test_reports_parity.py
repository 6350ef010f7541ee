"""The table of agreement with another adapter: what is outside, near ties by number, and the control beside it."""

from __future__ import annotations

from mambalab.reports.parity import notes, parity_table
from reports_cases import some_record


def _records(task: str, control: str | None, **found: float):
    setting = {"control": control, "peer": "another adapter", "absolute": 1e-4, "relative": 1e-5}
    for metric, value in found.items():
        listed = {"documents": [3, 8]} if metric == "near_ties" else {}
        yield some_record(
            experiment="parity",
            task=task,
            metric=metric.replace("_", " "),
            value=value,
            stderr=None,
            n=1234,
            setting=setting | listed,
        )


def test_a_task_is_one_row_with_its_control():
    counts = {"requests": 4000.0, "largest_difference": 2.5e-5, "outside": 0.0, "near_ties": 2.0}
    records = [*_records("piqa", None, **counts), *_records("piqa", "state dropped", **counts | {"outside": 3900.0})]
    (row,) = parity_table(records).to_dict("records")
    assert row["Requests"] == "4,000"
    assert row["Documents"] == "1,234"
    assert row["Largest difference"] == "2.5e-05"
    assert row["Outside"] == "0"
    assert row["Outside, state dropped"] == "3,900"
    assert row["Near ties"] == "2 (3, 8)"


def test_the_notes_name_the_peer_and_the_rule():
    text = " ".join(notes(list(_records("piqa", None, requests=1.0))))
    assert "another adapter" in text
    assert "0.0001 + 1e-05" in text
