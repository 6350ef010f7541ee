"""A training run ends with the same bits however often it was interrupted, and has what its settings say."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytest
import torch
from mambalab.models import build, weight_files
from mambalab.reports import record
from mambalab.tasks import InductionHeads, SelectiveCopying, run_files
from mambalab.tasks.recipes import Optimiser
from mambalab.tasks.step import Trainee, captured
from mambalab.tasks.train import load, train
from train_kills import BACKEND, KILLS, MODEL, TINY, outcome, run

HERE = Path(__file__).parent
pytestmark = pytest.mark.usefixtures("quick")


def test_a_killed_run_ends_with_the_same_weights_and_log(whole, tmp_path):
    command = [sys.executable, str(HERE / "train_kills.py"), str(tmp_path / "run"), "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) >= KILLS // 2
    assert outcome(tmp_path / "run") == outcome(whole)
    assert not list((tmp_path / "run").glob(".*"))


def test_a_run_in_pieces_ends_with_the_same_weights_and_log(whole, halfway):
    assert run(halfway).done
    assert outcome(halfway) == outcome(whole)


def test_the_last_two_checkpoints_are_kept(whole):
    assert [path.name for path in run_files.checkpoints(whole)] == [
        "checkpoint-00000240.safetensors",
        "checkpoint-00000228.safetensors",
    ]


def test_the_last_step_is_that_of_the_latest_checkpoint(halfway, tmp_path):
    (halfway / "checkpoint-copy.safetensors").touch()
    assert run_files.last_step(halfway) == 80
    assert run_files.last_step(tmp_path / "nowhere") == 0


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
        weights = run_files.digest_of(load(tmp_path / "run")[1])
        assert one.provenance == {"commit": "abc", "backend": BACKEND, "pieces": pieces, "weights": weights}
        assert one.setting["task"]["length"] == 6


def test_a_finished_run_is_loaded_again(whole):
    recipe, model = load(whole, backend=BACKEND)
    assert recipe == TINY
    saved = weight_files.read(whole)
    assert all(torch.equal(p, saved[name]) for name, p in model.named_parameters())
    assert not model.training


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


def test_weights_have_the_mode_of_other_files(whole):
    modes = {path.stat().st_mode for path in whole.iterdir()}
    assert len(modes) == 1
