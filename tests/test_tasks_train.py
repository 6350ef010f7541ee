"""A training run ends with the same bits however often it was interrupted, and says clearly why it can't go on."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from mambalab.models import build, weight_files
from mambalab.reports import record
from mambalab.tasks import InductionHeads, SelectiveCopying, run_files
from mambalab.tasks.recipes import Optimiser
from mambalab.tasks.step import Trainee, captured
from mambalab.tasks.train import DivergedError, load, train
from train_kills import BACKEND, KILLS, MODEL, TINY

HERE = Path(__file__).parent
TIMES = ("seconds", "steps_per_second")


def run(out: Path, recipe=TINY, **changes):
    return train(recipe, out, backend=BACKEND, **changes)


def outcome(folder: Path) -> tuple[bytes, list[dict]]:
    """The weights, and the log without what depends on the clock."""
    lines = run_files.read_log(folder)
    kept = [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
    return (folder / run_files.MODEL).read_bytes(), kept


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Thousands of tiny steps, in which checking shapes and waiting for a second thread would take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(_quick, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = run(folder)
    assert (result.step, result.done) == (TINY.steps, True)
    return folder


@pytest.fixture(scope="module")
def stopped(_quick, tmp_path_factory) -> Path:
    """A run that stopped at each of its first 20 lines, the last of which is that of step 80."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    for _ in range(20):
        assert not run(folder, seconds=0.0).done
    assert run_files.checkpoints(folder)[0] == run_files.checkpoint_path(folder, 80)
    return folder


@pytest.fixture
def halfway(stopped, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def test_a_killed_run_ends_with_the_same_weights_and_log(whole, tmp_path):
    command = [sys.executable, str(HERE / "train_kills.py"), str(tmp_path / "run"), "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) >= KILLS // 2
    assert outcome(tmp_path / "run") == outcome(whole)
    assert not list((tmp_path / "run").glob(".*"))


def test_a_run_in_pieces_ends_with_the_same_weights_and_log(whole, halfway):
    assert run(halfway).done
    assert outcome(halfway) == outcome(whole)


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
    with pytest.raises(ValueError, match="no checkpoint here is whole; remove them to begin again"):
        run(halfway)


def test_a_log_line_cut_short_by_a_kill_is_written_again(whole, halfway):
    log = halfway / run_files.LOG
    log.write_text(log.read_text() + '{"step": 84, "lo')
    assert run(halfway).done
    assert outcome(halfway) == outcome(whole)


def test_a_log_that_is_not_there_is_said(halfway):
    (halfway / run_files.LOG).unlink()
    with pytest.raises(ValueError, match=r"log\.jsonl does not reach step 80, of the last whole checkpoint"):
        run(halfway)


def test_the_last_two_checkpoints_are_kept(whole):
    assert [path.name for path in run_files.checkpoints(whole)] == [
        "checkpoint-00000240.safetensors",
        "checkpoint-00000228.safetensors",
    ]


def test_a_finished_run_is_kept_as_it_is(whole):
    before = {path: path.read_bytes() for path in whole.iterdir()}
    assert run(whole, provenance={"commit": "another"}).done
    assert before == {path: path.read_bytes() for path in whole.iterdir()}


def test_at_a_constant_rate_a_run_can_be_made_longer(tmp_path):
    constant = replace(TINY, optimiser=Optimiser(), curriculum=())
    run(tmp_path / "once", constant)
    run(tmp_path / "twice", replace(constant, steps=120))
    run(tmp_path / "twice", constant)
    weights = [outcome(tmp_path / name)[0] for name in ("once", "twice")]
    assert weights[0] == weights[1]


def test_the_records_name_every_piece_of_which_something_is_kept(tmp_path, monkeypatch):
    """The second process is stopped before its first checkpoint."""
    folder = tmp_path / "run"
    run(folder, provenance={"commit": "first"}, seconds=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "advance", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(folder, provenance={"commit": "second"})
    run(folder, provenance={"commit": "third"})
    origin = record.read(folder / run_files.RECORDS)[0].provenance
    assert origin["pieces"] == [{"after_step": 0, "commit": "first"}, {"after_step": 4, "commit": "third"}]


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 1}, "recipe.seed is 0 there, not 1"),
        ({"steps": 480}, "recipe.steps is 240 there, not 480"),
        ({"task": InductionHeads(length=7, vocab_size=8)}, "recipe.task.length is 6 there, not 7"),
        ({"task": SelectiveCopying(places=6, copies=2, vocab_size=8)}, "recipe.task."),
        ({"model": replace(MODEL, d_state=3)}, "recipe.model.d_state is 2 there, not 3"),
        ({"optimiser": Optimiser(learning_rate=1e-4)}, "recipe.optimiser."),
    ],
    ids=str,
)
def test_a_folder_with_a_run_of_other_settings_is_refused(whole, changes, says):
    before = outcome(whole)
    with pytest.raises(ValueError, match="is a run of other settings") as caught:
        run(whole, replace(TINY, **changes))
    assert says in str(caught.value)
    assert outcome(whole) == before


def test_a_run_of_which_nothing_is_kept_makes_room_for_another(tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "advance", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", replace(TINY, seed=1))
    assert run(tmp_path / "run").done
    assert outcome(tmp_path / "run") == outcome(whole)


def test_a_finished_run_without_its_checkpoints_and_log_is_kept(whole, tmp_path):
    kept = (run_files.SETTINGS, run_files.MODEL, "config.json", run_files.RECORDS)
    for name in kept:
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    assert run(tmp_path).done
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
    longer = replace(TINY, steps=480)
    with pytest.raises(ValueError, match=r"recipe\.steps is 240 there, not 480"):
        run(tmp_path, longer)


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="holds something, but no run; name another folder"):
        run(tmp_path)


def test_a_folder_at_which_a_run_is_at_work_is_refused(halfway):
    with (
        run_files.held(halfway),
        pytest.raises(ValueError, match="another process is at work on this run; wait for it or stop it"),
    ):
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


def test_the_log_tells_each_stage_of_the_curriculum_and_every_measurement(whole):
    _, lines = outcome(whole)
    assert [line["step"] for line in lines] == list(range(4, 241, 4))
    assert [line["length"] for line in lines] == [4] * 15 + [6] * 45
    measured = [line["step"] for line in lines if "measured" in line]
    assert measured == list(range(40, 241, 40))
    assert {line["measured"]["sequences"] for line in lines if "measured" in line} == {16}


def test_the_first_line_is_the_mean_of_the_first_losses(tmp_path):
    """The losses of four steps, from the parts that a step is made of."""
    constant = replace(TINY, optimiser=Optimiser(learning_rate=1e-2), curriculum=())
    run(tmp_path / "run", constant, seconds=0.0)
    model, losses = build(constant.model, backend=BACKEND), []
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(4):
        batch = constant.task.batch(0, step, 2)
        logits, _ = model(batch.tokens, logits_at=batch.logits_at)
        loss = torch.nn.functional.cross_entropy(logits, batch.targets[:, 0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert outcome_line(tmp_path / "run")["loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)


def outcome_line(folder: Path) -> dict:
    return run_files.read_log(folder)[0]


def test_a_run_that_is_solved_stops_when_it_was_asked_to(tmp_path):
    """With two data symbols and one place, the answer is learnt at once."""
    easy = replace(
        TINY,
        task=SelectiveCopying(places=1, copies=1, vocab_size=4),
        optimiser=Optimiser(learning_rate=3e-2),
        steps=2000,
        batch_size=8,
        curriculum=(),
        solved_after=2,
    )
    result = run(tmp_path / "run", easy)
    assert result.done
    assert result.step < 2000
    assert result.accuracy is not None
    assert result.accuracy.token == result.accuracy.sequence == 1
    measured = [line["measured"]["sequence"] for line in run_files.read_log(tmp_path / "run") if "measured" in line]
    assert measured[-2:] == [1, 1]
    assert [1, 1] not in [measured[i : i + 2] for i in range(len(measured) - 2)]
    found = {r.metric: r.value for r in record.read(tmp_path / "run" / run_files.RECORDS)}
    assert found["steps to solved"] == result.step - easy.evaluate_every


def test_the_records_say_what_was_measured_and_from_what(tmp_path):
    run(tmp_path / "run", provenance={"commit": "abc"}, experiment="a test")
    records = record.read(tmp_path / "run" / run_files.RECORDS)
    by_metric = {r.metric: r for r in records}
    log = run_files.read_log(tmp_path / "run")
    last = log[-1]["measured"]
    assert by_metric["training seconds"].value == log[-1]["seconds"] > log[0]["seconds"] > 0
    assert by_metric["steps per second"].value == median(line["steps_per_second"] for line in log)
    assert by_metric["loss"].value == last["loss"]
    assert by_metric["token accuracy"].value == last["token"]
    assert by_metric["sequence accuracy"].value == last["sequence"]
    assert by_metric["sequence accuracy"].n == 16
    assert by_metric["parameters"].value == MODEL.n_parameters
    for one in records:
        assert (one.experiment, one.model, one.task, one.seed) == ("a test", "mamba-variant", "induction-heads", 0)
        pieces = [{"after_step": 0, "commit": "abc"}]
        assert one.provenance == {"commit": "abc", "backend": BACKEND, "pieces": pieces}
        assert one.setting["task"]["length"] == 6


def test_a_finished_run_is_loaded_again(whole):
    recipe, model = load(whole, backend=BACKEND)
    assert recipe == TINY
    saved = weight_files.read(whole)
    assert all(torch.equal(p, saved[name]) for name, p in model.named_parameters())
    assert not model.training


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


def test_steps_taken_together_are_the_steps_one_by_one():
    recipe = replace(TINY, curriculum=())
    one, together = (Trainee(recipe, build(recipe.model, backend=BACKEND), torch.device("cpu")) for _ in range(2))
    for _ in range(6):
        one.advance(recipe.task)
    together.advance(recipe.task, 4)
    together.advance(recipe.task, 2)
    assert all(torch.equal(t, together.tensors()[name]) for name, t in one.tensors().items())
    assert torch.equal(one.seen, together.seen)


def test_warming_up_and_capturing_leave_no_trace(monkeypatch):
    """With a graph that computes while it is captured, which a real one does not: the harder case."""
    stream = SimpleNamespace(wait_stream=lambda _: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "the graph")
    monkeypatch.setattr(torch.cuda, "graph", lambda _: nullcontext())
    trainee = Trainee(TINY, build(MODEL, backend=BACKEND), torch.device("cpu"))
    trainee.advance(TINY.task, 3)
    before = {name: tensor.clone() for name, tensor in trainee.tensors().items()}
    assert captured(trainee, TINY.task, 2) == "the graph"
    after = trainee.tensors()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_checkpoint_of_another_model_is_refused(halfway):
    path = run_files.checkpoints(halfway)[0]
    tensors = run_files.read_checkpoint(path)
    run_files.write_checkpoint(halfway, 80, {name.replace("lm_head", "head"): t for name, t in tensors.items()})
    with pytest.raises(ValueError, match="its tensors are not those of this run's model; was it made by other code"):
        run(halfway)


@pytest.mark.gpu
@pytest.mark.parametrize("unroll", [1, 5])
def test_a_captured_step_learns_what_a_plain_one_does(unroll):
    """Graphs of one and of five steps against plain steps, on the GPU; warming up leaves no trace."""
    from mambalab.ext import prepare
    from mambalab.tasks.step import stepper

    prepare("cuda")
    recipe = replace(TINY, log_every=20, steps=240, evaluate_every=240, checkpoint_every=240, curriculum=())
    plain, replayed = (Trainee(recipe, build(recipe.model), torch.device("cuda")) for _ in range(2))
    for _ in range(20):
        plain.advance(recipe.task)
    stepper(replayed, recipe.task, unroll)(20)
    for (name, want), got in zip(plain.tensors().items(), replayed.tensors().values(), strict=True):
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-7), name
    assert torch.allclose(plain.seen, replayed.seen, rtol=1e-5)
    assert replayed.step.item() == 20


@pytest.mark.gpu
def test_a_run_in_pieces_on_the_gpu_ends_with_the_same_weights(tmp_path):
    train(TINY, tmp_path / "whole", device="cuda")
    while not train(TINY, tmp_path / "pieces", device="cuda", seconds=0.2).done:
        pass
    assert outcome(tmp_path / "pieces") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("log.jsonl", b"5\n", "log.jsonl does not reach step 80, of the last whole checkpoint"),
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


def test_a_run_that_is_done_is_told_so_though_its_log_has_lost_its_end(whole, tmp_path):
    done = tmp_path / "done"
    shutil.copytree(whole, done)
    lines = (done / "log.jsonl").read_text().splitlines(keepends=True)
    unmeasured = [line for line in lines if "measured" not in line]
    (done / "log.jsonl").write_text("".join(unmeasured))
    result = run(done)
    assert (result.done, result.accuracy) == (True, None)


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


def test_weights_have_the_mode_of_other_files(whole):
    modes = {path.stat().st_mode for path in whole.iterdir()}
    assert len(modes) == 1
