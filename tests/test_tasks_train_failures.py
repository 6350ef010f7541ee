"""A run says what keeps it from going on, whatever was damaged, and loses nothing by it."""

from __future__ import annotations

import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mambalab.reports import record
from mambalab.tasks import InductionHeads, run_files
from mambalab.tasks.recipes import Optimiser
from mambalab.tasks.step import Trainee
from mambalab.tasks.train import DivergedError, load
from train_kills import BACKEND, TINY, outcome, run

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("harm", ["cut short", "empty", "one bit flipped", "a text"])
def test_a_damaged_checkpoint_is_left_aside_for_the_one_before(whole, halfway, harm):
    path = run_files.checkpoints(halfway)[0]
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    damaged = {"cut short": content[:-50], "empty": b"", "one bit flipped": content, "a text": b"not one\n" * 9}[harm]
    path.write_bytes(damaged)
    said = []
    assert run(halfway, say=said.append).done
    assert said[0].startswith(f"left aside: {path}: ")
    assert said[1] == "going on after step 76"
    assert outcome(halfway) == outcome(whole)


def test_a_run_with_nothing_but_damaged_checkpoints_says_so(halfway):
    for path in run_files.checkpoints(halfway):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint here can be gone on from: remove them to begin again"):
        run(halfway)


def test_a_log_line_cut_short_by_a_kill_is_written_again(whole, halfway):
    log = halfway / run_files.LOG
    log.write_text(log.read_text() + '{"step": 84, "lo')
    assert run(halfway).done
    assert outcome(halfway) == outcome(whole)


def test_a_log_that_is_not_there_is_said(halfway):
    (halfway / run_files.LOG).unlink()
    with pytest.raises(ValueError, match=r"log\.jsonl does not reach step 80, of a whole checkpoint"):
        run(halfway)


def harmed(folder: Path) -> Path:
    """The last checkpoint of a folder, now with a weight that is no number."""
    checkpoint = run_files.checkpoints(folder)[0]
    tensors = run_files.read_checkpoint(checkpoint)
    tensors["model.lm_head.weight"][3, 3] = float("nan")
    return run_files.write_checkpoint(folder, int(tensors["step"]), tensors)


def test_a_loss_that_is_not_finite_names_its_step_and_the_last_checkpoint(halfway):
    checkpoint = harmed(halfway)
    with pytest.raises(DivergedError, match=f"the loss of step 81 is nan; the last checkpoint is {checkpoint}$"):
        run(halfway)
    assert run_files.checkpoints(halfway)[0] == checkpoint
    assert run_files.read_log(halfway)[-1]["step"] == 80


WILD = replace(TINY, optimiser=Optimiser(learning_rate=1e30), curriculum=())


def test_a_first_loss_that_is_not_finite_says_that_there_is_no_checkpoint(tmp_path):
    with pytest.raises(DivergedError, match=r"the loss of step \d is nan; there is no checkpoint before it"):
        run(tmp_path / "run", WILD)


def test_a_run_that_diverged_has_a_record_and_diverges_again_from_its_checkpoint(halfway):
    harmed(halfway)
    for commit in ("first", "second"):
        with pytest.raises(DivergedError, match="the loss of step 81 is nan"):
            run(halfway, provenance={"commit": commit}, experiment="a test")
        (found,) = record.read(halfway / run_files.DIVERGED)
        assert (found.experiment, found.metric, found.value, found.n) == ("a test", "diverged after step", 80, 1)
        assert (found.setting["steps_done"], found.seed) == (80, 0)
        assert (found.provenance["commit"], found.provenance["backend"]) == (commit, BACKEND)
        assert found.provenance["pieces"][-1] == {"after_step": 80, "commit": commit}
        assert not (halfway / run_files.RECORDS).exists()


def test_a_run_that_diverged_keeps_its_folder(tmp_path):
    with pytest.raises(DivergedError):
        run(tmp_path, WILD)
    before = (tmp_path / run_files.DIVERGED).read_bytes()
    with pytest.raises(ValueError, match=r"is a run of other settings: recipe.optimiser.learning_rate is 1e\+30 there"):
        run(tmp_path, replace(WILD, optimiser=Optimiser()))
    assert (tmp_path / run_files.DIVERGED).read_bytes() == before


def test_a_run_that_comes_through_forgets_that_it_diverged(whole, halfway, tmp_path):
    with pytest.raises(DivergedError):
        run(tmp_path / "wild", WILD)
    shutil.copytree(tmp_path / "wild" / "diverged", halfway / "diverged")
    assert not run(halfway, seconds=0.0).done
    assert (halfway / run_files.DIVERGED).is_file()
    assert run(halfway).done
    assert not (halfway / "diverged").exists()
    assert outcome(halfway) == outcome(whole)


def test_memory_that_is_not_there_is_said_before_anything_is_made(tmp_path):
    long = replace(TINY, task=InductionHeads(length=2**31 - 1, vocab_size=8), batch_size=2**10)
    with pytest.raises(ValueError, match="no memory to train on 1024 rows of 2,147,483,647 tokens"):
        run(tmp_path / "run", long)
    assert not (tmp_path / "run").exists()


def test_memory_that_runs_out_is_one_line(tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nAnd more.")

    monkeypatch.setattr(Trainee, "advance", fail)
    with pytest.raises(ValueError, match=r"^no memory to train on 2 rows of 6 tokens \(CUDA out of memory. .*GiB.\)$"):
        run(tmp_path / "run")


@pytest.mark.parametrize(
    ("harm", "error", "says"),
    [
        (lambda f: (f / run_files.MODEL).unlink(), FileNotFoundError, "no weights here"),
        (lambda f: (f / run_files.SETTINGS).unlink(), FileNotFoundError, "no run here"),
        (lambda f: (f / run_files.SETTINGS).write_text("[]"), ValueError, "not the settings of a run"),
        (lambda f: (f / run_files.SETTINGS).write_text('{"recipe": {}}'), ValueError, "not a recipe"),
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "no config.json here"),
    ],
)
def test_a_run_that_can_t_be_loaded_says_why(whole, tmp_path, harm, error, says):
    for name in (run_files.MODEL, run_files.SETTINGS, "config.json"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    harm(tmp_path)
    with pytest.raises(error, match=says):
        load(tmp_path, backend=BACKEND)


def test_weights_that_are_not_those_that_were_measured_are_told_and_made_again(whole, tmp_path):
    done = tmp_path / "done"
    shutil.copytree(whole, done)
    path = done / run_files.MODEL
    weights = path.read_bytes()
    path.write_bytes(weights[:-2] + bytes(255 - byte for byte in weights[-2:]))
    with pytest.raises(ValueError, match="damaged: its weights are not those that"):
        load(done, backend=BACKEND)
    said = []
    run(done, say=said.append)
    assert any("going back to the last checkpoint" in line for line in said)
    assert path.read_bytes() == weights


def test_a_checkpoint_of_another_model_is_refused(halfway):
    path = run_files.checkpoints(halfway)[0]
    tensors = run_files.read_checkpoint(path)
    run_files.write_checkpoint(halfway, 80, {name.replace("lm_head", "head"): t for name, t in tensors.items()})
    with pytest.raises(ValueError, match="its tensors are not those of this run's model; was it made by other code"):
        run(halfway)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("log.jsonl", b"5\n", "log.jsonl does not reach step 80, of a whole checkpoint"),
        ("log.jsonl", b'{"step": 80}\n', "log.jsonl does not reach step 80"),
        ("log.jsonl", b"\xff\xfe", "log.jsonl does not reach step 80"),
        ("pieces.json", b'[{"x": 1}]', "pieces.json: not what a run writes there"),
        ("pieces.json", b'[{"after_st', "pieces.json: not what a run writes there"),
    ],
)
def test_a_damaged_file_is_named_and_left_as_it_is(halfway, name, text, says):
    (halfway / name).write_bytes(text)
    with pytest.raises(ValueError, match=says):
        run(halfway)
    assert (halfway / name).read_bytes() == text


def test_a_log_that_lost_its_end_goes_on_from_the_checkpoint_that_it_reaches(whole, halfway):
    path = halfway / run_files.LOG
    before = run_files.checkpoints(halfway)[1]
    path.write_bytes(path.read_bytes()[:-5])
    said = []
    run(halfway, say=said.append)
    assert any(f"going on after step {int(before.stem[-8:])}" in line for line in said)
    assert outcome(halfway) == outcome(whole)


def test_a_run_that_is_done_is_told_so_though_its_log_has_lost_its_end(whole, tmp_path):
    done = tmp_path / "done"
    shutil.copytree(whole, done)
    lines = (done / "log.jsonl").read_text().splitlines(keepends=True)
    unmeasured = [line for line in lines if "measured" not in line]
    (done / "log.jsonl").write_text("".join(unmeasured))
    assert run(done) == run(whole)


HARMS = {
    "gone": lambda path: path.unlink(),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", [run_files.MODEL, "config.json", run_files.RECORDS])
def test_what_is_damaged_of_a_finished_run_is_made_again_or_named(whole, tmp_path, name, harm):
    done, said = tmp_path / "done", []
    shutil.copytree(whole, done)
    HARMS[harm](done / name)
    alone = shutil.copytree(done, tmp_path / "alone")
    assert run(done, say=said.append).done
    assert said[0].startswith("going back to the last checkpoint: ")
    assert name in said[0]
    assert "done already, and kept as it is" not in said
    assert outcome(done) == outcome(whole)
    assert (done / "config.json").read_bytes() == (whole / "config.json").read_bytes()
    numbers, wanted = (record.read(folder / run_files.RECORDS) for folder in (done, whole))
    assert [(r.metric, r.value, r.setting) for r in numbers] == [(r.metric, r.value, r.setting) for r in wanted]
    for checkpoint in run_files.checkpoints(alone):
        checkpoint.unlink()
    left = {path.name: path.read_bytes() for path in alone.iterdir()}
    with pytest.raises(ValueError, match="no checkpoint is left to make it again from") as caught:
        run(alone)
    assert name in str(caught.value)
    assert {path.name: path.read_bytes() for path in alone.iterdir()} == left


def test_a_log_that_does_not_fit_on_the_disk_is_named_and_the_run_goes_on(tmp_path):
    """The log outgrows a limit of the system below which each checkpoint lies."""
    many = replace(TINY, log_every=1, curriculum=())
    run(tmp_path / "whole", many)
    folder = tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            run(folder, many)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(folder / run_files.LOG)
    assert run_files.checkpoints(folder)
    assert run(folder, many).done
    assert outcome(folder) == outcome(tmp_path / "whole")
