"""Every committed table is what its records give: a number changed by hand fails here."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from mambalab.reports import record
from mambalab.reports.regenerate import check, main, regenerate, unexplained
from reports_cases import some_record, write_run

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "reports" / "results"
COMMITTED = sorted([*ROOT.glob("*.md"), *RESULTS.rglob("*.md")])


def test_every_committed_table_is_what_its_records_give():
    for file in COMMITTED:
        check(file)


def test_results_hold_no_table_without_records():
    assert {file.name: rows for file in RESULTS.rglob("*.md") if (rows := unexplained(file))} == {}


def test_every_folder_of_results_has_its_tables():
    without = {folder.name for folder in RESULTS.iterdir() if folder.is_dir() and not (folder / "table.md").is_file()}
    assert without == set()


def test_all_committed_records_can_be_read():
    for file in RESULTS.rglob("records.jsonl"):
        assert record.read(file)


def test_a_folder_of_trainings_has_a_table_that_follows_from_its_records(tmp_path):
    shutil.copytree(RESULTS / "induction-heads-cpu", tmp_path / "runs")
    page = tmp_path / "runs" / "table.md"
    check(page)
    records = page.parent / "seed-1" / "records.jsonl"
    first, *others = record.read(records)
    record.write(records, [replace(first, value=0.5), *others])
    with pytest.raises(ValueError, match=r"table.md:\d+: .*100.00.* is not what the records give: .*50.00"):
        check(page)


def _page(tmp_path: Path, kind: str = "table", source: str = "zero") -> Path:
    write_run(tmp_path / "zero", "mamba-130m", count=20)
    speeds = [
        some_record(
            experiment="bench-scan", model=m, task="1 x 2", metric="forward ms", value=v, setting={"floor": 0.5}
        )
        for m, v in (("mambalab", 2.0), ("torch loop", 30.0))
    ]
    record.write(tmp_path / "scan" / "records.jsonl", speeds)
    page = tmp_path / "page.md"
    page.write_text(f"# Results\n\n<!-- {kind} from {source} -->\n<!-- end -->\n\nWords after it.\n")
    main([str(page)])
    return page


@pytest.mark.parametrize("kind", ["table", "report"])
@pytest.mark.parametrize("source", ["zero", "zero/records.jsonl", "scan", "scan/records.jsonl"])
def test_a_table_is_filled_in_from_its_records_and_then_stays(tmp_path, kind, source):
    page = _page(tmp_path, kind, source)
    text = page.read_text()
    assert "2.00" in text if source.startswith("scan") else "PIQA" in text
    assert text.startswith("# Results\n")
    assert text.endswith("<!-- end -->\n\nWords after it.\n")
    check(page)
    assert regenerate(page) == text


@pytest.mark.parametrize(("source", "old", "new"), [("scan", "15.0×", "16.0×"), ("zero", " ± ", " ± 0")])
def test_a_number_changed_by_hand_is_found_with_its_line(tmp_path, source, old, new):
    page = _page(tmp_path, source=source)
    text = page.read_text()
    assert old in text
    page.write_text(text.replace(old, new, 1))
    line = text[: text.index(old)].count("\n") + 1
    with pytest.raises(ValueError, match=f"page.md:{line}: .* is not what the records give"):
        check(page)


def test_a_line_taken_out_of_a_table_is_found(tmp_path):
    page = _page(tmp_path)
    lines = page.read_text().splitlines(keepends=True)
    page.write_text("".join(line for line in lines if "mamba-130m" not in line))
    with pytest.raises(ValueError, match="is not what the records give"):
        check(page)


def test_a_changed_record_makes_its_table_stale(tmp_path):
    page = _page(tmp_path, source="scan")
    first, *others = record.read(tmp_path / "scan" / "records.jsonl")
    record.write(tmp_path / "scan" / "records.jsonl", [some_record(**{**vars(first), "value": 1.0}), *others])
    with pytest.raises(ValueError, match="is not what the records give"):
        check(page)


def test_a_block_without_an_end_is_an_error(tmp_path):
    page = _page(tmp_path)
    page.write_text(page.read_text().replace("<!-- end -->", ""))
    with pytest.raises(ValueError, match="has no <!-- end -->"):
        check(page)


def test_a_table_without_records_is_seen(tmp_path):
    page = _page(tmp_path)
    assert unexplained(page) == []
    page.write_text(page.read_text() + "\n| model | acc |\n|---|---|\n| mine | 99.9 |\n")
    assert len(unexplained(page)) == 1


@pytest.mark.parametrize("text", ["# Words\n\n| a | 1 |\n", "An example:\n\n    <!-- table from x -->\n"])
def test_text_without_tables_is_left_alone(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    main([str(page)])
    assert page.read_text() == text


def test_the_six_tasks_came_out_the_same_on_every_backend():
    tables = re.findall(
        r"<!-- table from (\S+) -->(.*?)<!-- end -->",
        (RESULTS / "zero-shot-h200" / "table.md").read_text("utf-8"),
        re.S,
    )
    assert [name for name, _ in tables] == ["cuda", "numba-cuda", "cpu"]
    assert len({table for _, table in tables}) == 1
