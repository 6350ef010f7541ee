"""`mambalab ablate` trains the cells of a grid, goes on after a kill, loses no cell by another, refuses in a line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
from command import files, mambalab, refused
from mambalab.harness import ablate
from mambalab.harness.ablate import Job, Outcome, run, work
from mambalab.harness.assignments import assigned
from mambalab.reports import record
from mambalab.reports.tables import report
from mambalab.tasks import run_files
from mambalab.tasks.ablations import BASES, GRIDS, Cell, cells
from mambalab.tasks.recipes import Optimiser

TINY = {
    "steps": "8",
    "batch_size": "2",
    "log_every": "4",
    "evaluate_every": "4",
    "checkpoint_every": "4",
    "sequences": "8",
    "task.length": "8",
    "model.d_model": "16",
    "model.n_layer": "1",
    "optimiser.warmup": "0",
}
TASK = "induction-heads"
# The definition, which a new process need not test first.
DEVICE = ("--device=cpu", "--backend=reference")


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Tiny steps, in which waiting for a second thread would take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def command(out: Path, *options: object, grid: str = "selectivity", **changes: str) -> list[object]:
    pairs = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    settings = [f"--set={key}={value}" for key, value in pairs.items()]
    return ["ablate", grid, f"--task={TASK}", *settings, *DEVICE, "--out", out, *options]


def jobs(out: Path, *only: str, steps: int = 8) -> list[Job]:
    base = assigned(BASES[TASK], TINY | {"steps": str(steps)})
    made = cells(GRIDS["selectivity"], [base], (0,), only)
    return [Job(cell=cell, folder=out / cell.folder, backend="reference") for cell in made]


def weights(folder: Path) -> bytes:
    return (folder / run_files.MODEL).read_bytes()


def test_finished_cells_are_kept_and_one_that_fails_loses_no_other(tmp_path):
    first = mambalab(*command(tmp_path / "out", "--only=B", "--seeds=0"))
    assert (first.status, first.out) == (0, f"{tmp_path / 'out'}: 1 of 1 cells done\n")
    assert first.err.startswith("0 of 1 cells done already\n")
    assert first.err.endswith(f"\nthe table: mambalab report {tmp_path / 'out'}\n")
    run_of_b = tmp_path / "out" / TASK / "B" / "seed-0"
    kept = {path: path.read_bytes() for path in run_of_b.iterdir()}
    (tmp_path / "out" / TASK / "C" / "seed-0").mkdir(parents=True)
    (tmp_path / "out" / TASK / "C" / "seed-0" / "thesis.tex").write_text("x")
    wanted = ("--only=C", "--only=B", "--only=none", "--seeds=0", "--jobs=2")
    answer = mambalab(*command(tmp_path / "out", *wanted))
    assert (answer.status, answer.out) == (1, f"{tmp_path / 'out'}: 2 of 3 cells done, 1 failed\n")
    assert answer.err.startswith("1 of 3 cells done already\n")
    told = [line for line in answer.err.splitlines() if line.startswith("[")]
    assert len(told) == 2
    assert any(f"{TASK} C seed 0: failed: " in line and "holds something, but no run" in line for line in told)
    assert any(f"{TASK} none seed 0: done after 8 steps; " in line for line in told)
    assert kept == {path: path.read_bytes() for path in run_of_b.iterdir()}
    (r, *_) = record.read(run_of_b / run_files.RECORDS)
    assert (r.experiment, r.seed, r.setting["model"]["selective_B"]) == ("ablation-selectivity", 0, True)
    assert not r.setting["model"]["selective_delta"]


def test_a_killed_ablation_leaves_no_process_behind_and_goes_on(tmp_path, unchecked):
    out, options = tmp_path / "out", ("--only=none", "--only=B", "--seeds=0")
    many = {"steps": "80"}
    arguments = [sys.executable, "-m", "mambalab.harness", *map(str, command(out, *options, **many))]
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as process:
        folders = [out / TASK / name / "seed-0" for name in ("none", "B")]
        _wait_for(lambda: any(run_files.checkpoints(folder) for folder in folders))
        process.send_signal(signal.SIGKILL)
    _wait_for(lambda: all(_is_free(folder) for folder in folders))
    assert not all((folder / run_files.RECORDS).is_file() for folder in folders)
    assert mambalab(*command(out, *options, **many)).status == 0
    for job in jobs(tmp_path / "once", "none", "B", steps=80):
        assert work(job, "cpu").state == "done"
        assert weights(job.folder) == weights(out / job.cell.folder)


def test_an_interrupted_ablation_is_one_line_and_goes_on(tmp_path, unchecked):
    """Ctrl-C reaches its processes too, be they no further than their imports."""
    arguments = command(tmp_path / "out", "--only=none", "--seeds=0", steps="80000")
    interrupted = [sys.executable, "-m", "mambalab.harness", *map(str, arguments)]
    for is_at_work in (False, True):
        with subprocess.Popen(interrupted, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            assert process.stderr is not None
            assert process.stderr.readline() == "0 of 1 cells done already\n"
            if is_at_work:
                _wait_for(lambda: run_files.last_step(tmp_path / "out" / TASK / "none" / "seed-0"))
            else:
                time.sleep(0.5)
            os.killpg(process.pid, signal.SIGINT)
            told = process.stderr.read().strip().splitlines()
        assert process.returncode == 130
        assert len(told) == 1
        (line,) = told
        goes_on = f"goes on with {TASK} none seed 0 after step " if is_at_work else "begins with the next"
        assert line.startswith(f"mambalab: interrupted; 0 of 1 cells are done; the same command {goes_on}")


def test_what_is_left_is_told_by_the_cells_that_are_done(tmp_path, monkeypatch):
    def run(jobs, *_):
        for job, state in zip(jobs, ("done", "failed", "done"), strict=False):
            yield Outcome(cell=job.cell, state=state, text="so", seconds=90.0)

    monkeypatch.setattr(ablate, "run", run)
    told = mambalab(*command(tmp_path / "out", "--seeds=0", "--jobs=2")).err.splitlines()
    assert [line.partition("(")[2] for line in told if line.startswith("[")] == [
        "90 s; about 0:05:15 left)",
        "90 s; about 0:04:30 left)",
        "90 s; about 0:03:45 left)",
    ]


@pytest.mark.parametrize("text", [None, "{}", "", "[1]"])
def test_a_finished_cell_whose_settings_are_damaged_fails_alone(tmp_path, text):
    arguments = command(tmp_path / "out", "--seeds=0", "--only=none", "--only=B")
    assert mambalab(*arguments, "--only=none").status == 0
    settings = tmp_path / "out" / TASK / "none" / "seed-0" / run_files.SETTINGS
    settings.unlink()
    if text is not None:
        settings.write_text(text)
    (tmp_path / "out" / TASK / "B" / "seed-0" / run_files.RECORDS).unlink()
    answer = mambalab(*arguments)
    assert (answer.status, answer.out) == (1, f"{tmp_path / 'out'}: 1 of 2 cells done, 1 failed\n")
    (line,) = [line for line in answer.err.splitlines() if ": failed: " in line]
    assert str(settings.parent) in line


def _wait_for(condition) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def _is_free(folder: Path) -> bool:
    try:
        with run_files.held(folder):
            return True
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class Deadly(Job):
    """Ends the process that reads it."""

    def __reduce__(self):
        return os._exit, (3,)


def test_a_process_that_dies_is_told_and_replaced(tmp_path):
    (job, other) = jobs(tmp_path, "none", "B")
    deadly = Deadly(cell=job.cell, folder=job.folder)
    first, second = run([deadly, other], 1, ["cpu"])
    assert (first.cell, first.state, first.text) == (job.cell, "failed", "its process ended (status 3)")
    assert (second.cell, second.state) == (other.cell, "done")


def test_processes_share_the_devices_evenly(tmp_path):
    """Each says its own, since neither is one."""
    found = run(jobs(tmp_path, "none", "B"), 2, ["first", "second"])
    texts = sorted(outcome.text for outcome in found)
    assert ["first" in texts[0], "second" in texts[1]] == [True, True]


def test_a_cell_that_takes_long_says_how_it_stands(tmp_path, monkeypatch, capsys):
    (job,) = jobs(tmp_path, "none")
    monkeypatch.setattr(ablate, "PATIENCE", 0.0)
    assert work(job, "cpu").state == "done"
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"{job.cell}: step ")]
    assert said


def test_nothing_is_begun_when_the_time_is_up(tmp_path):
    assert mambalab(*command(tmp_path / "out", "--seconds=0")).out.endswith(": 0 of 24 cells done\n")
    assert files(tmp_path).keys() == {f"out/{TASK}/ablation.json"}


def test_a_cell_at_work_when_the_time_is_up_stops_with_a_checkpoint(tmp_path):
    (job,) = jobs(tmp_path, "none")
    outcome = work(replace(job, until=time.time()), "cpu")
    assert (outcome.state, job.is_done) == ("stopped", False)
    assert outcome.text.startswith("stopped after 4 steps")
    assert work(job, "cpu").state == "done"
    assert job.is_done


def test_none_is_begun_in_the_time_that_was_too_short_for_a_line_of_one_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ablate, "_Worker", Stopping)
    later = [replace(job, until=time.time() + 1000) for job in jobs(tmp_path, "none", "B")]
    assert [outcome.cell.name for outcome in run(later, 1, ["cpu"])] == ["none"]


class Stopping:
    """Stops whatever it is sent."""

    def __init__(self, *_: object) -> None:
        self.device = "cpu"
        self.pipe, self.far = Pipe()
        self.far.send("something to wait for")

    def outcome(self, job: Job) -> Outcome:
        return Outcome(cell=job.cell, state="stopped", text="", seconds=0.0)

    def end(self) -> None:
        self.pipe.close()


def test_what_is_no_mistake_of_the_user_fails_its_cell_only(tmp_path, monkeypatch):
    (job,) = jobs(tmp_path, "none")
    monkeypatch.setattr("mambalab.harness.ablate.train", _broken)
    assert work(job, "cpu").text == "RuntimeError: the device fell off"


def test_a_cell_that_diverges_is_not_done_nor_is_one_with_torn_weights(tmp_path):
    (job,) = jobs(tmp_path, "none")
    wild = replace(job.cell.recipe, optimiser=Optimiser(learning_rate=1e30))
    outcome = work(replace(job, cell=replace(job.cell, recipe=wild)), "cpu")
    assert (outcome.state, job.is_done) == ("failed", False)
    assert "the loss of step 2 is nan" in outcome.text
    (r,) = record.read(job.folder / "diverged" / run_files.RECORDS)
    assert (r.experiment, r.metric, r.value) == ("ablation-selectivity", "diverged after step", 0)
    assert "1 of 1 diverged |" in report([tmp_path]).table
    (other,) = jobs(tmp_path / "other", "none")
    assert work(other, "cpu").state == "done"
    assert other.is_done
    (other.folder / run_files.MODEL).write_bytes(b"")
    assert not other.is_done
    assert work(other, "cpu").state == "done"
    assert other.is_done


def _broken(*_: object, **__: object) -> None:
    raise RuntimeError("the device fell off\nand rolled away")


def test_another_recipe_in_a_finished_folder_is_not_done(tmp_path):
    (job,) = jobs(tmp_path, "none")
    assert work(job, "cpu").state == "done"
    other = replace(job, cell=Cell(grid="selectivity", name="none", recipe=replace(job.cell.recipe, batch_size=3)))
    assert not other.is_done
    assert "is a run of other settings: recipe.batch_size is 2 there, not 3" in work(other, "cpu").text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["selectivty"], "unknown ablation 'selectivty'; nearest: selectivity"),
        (["a-init", "--task=induction"], "unknown task of a-init 'induction'; nearest: induction-heads"),
        (["a-init", "--only=n-plus-2"], "unknown cell of a-init 'n-plus-2'; nearest: n-plus-1"),
        (["a-init", "--seeds=0,x"], "--seeds takes integers such as 0,1,2, not '0,x'"),
        (["a-init", "--seeds=-1"], "seed must be an integer from 0 to 2^63 - 1, not -1"),
        (
            ["a-init", "--set=model.A_init=random"],
            "--set model.A_init would be overwritten: the grid a-init decides it (cell 'n-plus-1')",
        ),
        (["selectivity", "--set=seed=4"], "--set seed would be overwritten: give --seeds"),
        (
            ["recall", "--set=task.pairs=8"],
            "--set task.pairs would be overwritten: the grid recall decides it (cell 'mamba-4')",
        ),
        (
            ["architecture", "--set=model.dt_rank=2"],
            "--set model.dt_rank would be overwritten: the grid architecture decides it (cell 's4')",
        ),
        (["a-init", "--set=task.length=8"], "unknown setting 'task.length'"),
        (["a-init", "--set=steps=1050"], "steps must be a multiple of log_every, 100, not 1050"),
        (["a-init", "--set=task.places=2000000000"], "unknown setting 'task.places'"),
        (["recall", "--set=task.length=2000000000"], "no memory to train on 64 rows of 2,000,000,000 tokens"),
        (["a-init", "--device=tpu"], "unknown device 'tpu'; known: cpu, cuda, cuda:N"),
        (
            ["a-init", "--device=cpu,cpu"],
            "several devices are GPUs such as cuda:0,cuda:1, each named once, not 'cpu,cpu'",
        ),
        (["a-init", "--backend=gpu"], "unknown backend 'gpu'"),
    ],
)
def test_ablate_refuses_in_one_line(arguments, says, tmp_path, unchecked):
    line = refused(mambalab("ablate", *arguments, "--out", tmp_path / "out"))
    assert says in line
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": "3"}, "is an ablation of other settings: base.batch_size is 2 there, not 3"),
        ({"grid": "a-init"}, "is an ablation of other settings: grid is 'selectivity' there, not 'a-init'"),
    ],
)
def test_a_folder_of_other_settings_is_refused(options, says, tmp_path):
    assert mambalab(*command(tmp_path / "out", "--seconds=0")).status == 0
    before = files(tmp_path)
    assert says in refused(mambalab(*command(tmp_path / "out", **options)))
    assert files(tmp_path) == before


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / TASK).mkdir()
    (tmp_path / TASK / "thesis.tex").write_text("x")
    assert "holds something, but no ablation; name another folder" in refused(mambalab(*command(tmp_path)))
