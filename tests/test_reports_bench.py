"""Tables of speeds: each peer's beside ours, the floor beside both, and no row of two machines."""

from __future__ import annotations

from typing import Any

import pytest
from mambalab.reports import bench, markdown, record
from mambalab.reports.tables import bench_table, plain_table, report
from reports_cases import PROVENANCE, csv_rows, some_record

SPEEDS = {"mambalab": 2.0, "transformers": 30.0, "mambapy": 12.0}


def _speeds(metric: str = "forward ms", floor: float | None = 0.5, **changes: Any):
    setting = {"dtype": "float32", "floor": floor}
    fields = {"experiment": "bench-scan", "task": "1 x 128 x 4096 x 16", "metric": metric, "stderr": None, "n": 5}
    return [some_record(model=m, value=v, setting=setting, **{**fields, **changes}) for m, v in SPEEDS.items()]


def test_a_speed_stands_beside_each_peers_and_the_floor():
    (row,) = bench_table(_speeds()).to_dict("records")
    assert row == {
        "Shape": "1 x 128 x 4096 x 16",
        "dtype": "float32",
        "Measure": "forward ms",
        "mambalab": "2.00",
        "mambapy": "12.0",
        "transformers": "30.0",
        "× mambapy": "6.00×",
        "× transformers": "15.0×",
        "Floor": "0.500",
        "× floor": "4.00×",
    }


def test_for_a_rate_more_is_better_and_the_floor_is_a_ceiling():
    (row,) = bench_table(_speeds(metric="decode requests/s", floor=10.0)).to_dict("records")
    assert (row["× transformers"], row["× floor"]) == ("0.0667×", "5.00×")


def test_a_peer_that_did_not_run_and_a_floor_that_is_not_known_stay_blank():
    whole, partial = _speeds(), _speeds(task="other", floor=None)[:1]
    last = bench_table(whole + partial).to_dict("records")[1]
    assert [last[name] for name in ("mambapy", "× mambapy", "Floor", "× floor")] == [markdown.BLANK] * 4
    assert "Floor" not in bench_table(partial).columns


def test_numbers_of_two_machines_share_no_row():
    here, there = _speeds()[:1], _speeds(provenance={**PROVENANCE, "cpu": "another CPU"})[1:]
    frame = bench_table(here + there)
    assert list(frame["Machine"]) == ["cpu, a CPU, 2 threads", "cpu, another CPU, 2 threads"]
    assert frame["× transformers"].tolist() == [markdown.BLANK] * 2


def test_a_speed_measured_twice_or_in_no_unit_is_refused():
    with pytest.raises(ValueError, match="two records of mambalab for 1 x 128 x 4096 x 16, float32, forward ms"):
        bench_table(_speeds() * 2)
    with pytest.raises(ValueError, match="metric 'forward' names no unit"):
        bench_table(_speeds(metric="forward"))


def test_speeds_and_other_experiments_are_reported_from_one_file(tmp_path):
    found = {"outside": 0, "ties": 3}
    counts = [some_record(experiment="memory", metric=m, value=v, stderr=None) for m, v in found.items()]
    record.write(tmp_path / "records.jsonl", [*_speeds(), *counts])
    made = report([tmp_path])
    assert [line for line in made.markdown.splitlines() if line.startswith("## ")] == [
        "## Speed: scan",
        "## Memory",
        "## What ran",
    ]
    (row,) = plain_table(counts).to_dict("records")
    assert (row["outside"], row["ties"], row["Setting"]) == ("0", "3", "num_fewshot=0")
    assert len(csv_rows(made.csv)) == 5
    assert bench.notes(_speeds())[1].startswith("× floor")
