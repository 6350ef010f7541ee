"""The benchmark of training steps: graphs and plain steps make the same bits, and a wrong peer is not timed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from command import mambalab, refused
from mambalab.harness import bench_train, bench_train_shared
from mambalab.harness.bench import OURS, RedCheck
from mambalab.harness.bench_peers import Peer
from mambalab.harness.bench_train import Settings, check, measure, run
from mambalab.harness.bench_train_loop import METRIC, STEPS, Loop
from mambalab.models import build
from mambalab.reports.tables import report
from mambalab.tasks.recipes import recipe, with_model

CPU = torch.device("cpu")
INDUCTION = recipe("induction-heads")
SHORT = replace(
    INDUCTION,
    task=INDUCTION.task_of_size(8),
    batch_size=2,
    **dict.fromkeys(("steps", "log_every", "evaluate_every", "checkpoint_every"), STEPS),
)


def loop(given=SHORT, seed=0, device=CPU):
    return Loop(given, build(given.model, seed=seed), device)


def peer(seed):
    return Peer(name="peer", timed="a loop", distribution="torch", load=lambda: lambda r: build(r.model, seed=seed))


def test_a_loop_begins_anew_after_each_look_at_it():
    ours = loop()
    first, second = ours.plainly(), ours.in_graphs()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert int(ours.trainee.step) == 0


def test_one_bit_is_enough_to_refuse_our_own_graphs():
    wanted = loop().plainly()
    name = next(name for name in wanted if name.startswith("model."))
    wanted[name] = torch.nextafter(wanted[name], wanted[name] + 1)
    assert check("peer", loop(), wanted) == 0
    with pytest.raises(RedCheck, match=f"{OURS}: {name} is not what"):
        check(OURS, loop(), wanted)


def test_a_peer_with_other_losses_is_left_out_and_a_right_one_timed(monkeypatch):
    for seed, is_right in ((0, True), (1, False)):
        monkeypatch.setattr(bench_train, "MAMBA_SSM", peer(seed))
        found = measure("induction-heads", SHORT, Settings(recipes=(("a", SHORT),), peers=True, repeats=3))
        assert set(found.times) == ({OURS, "peer"} if is_right else {OURS})
        assert ("a loop" in found.rows[0].timed) if is_right else "a loss differs by" in found.absent["peer"]


def test_records_say_steps_a_second_and_make_a_table(tmp_path):
    found = run(Settings(recipes=(("induction-heads", SHORT),), repeats=3, peers=True))
    (mine,) = (r for r in found if r.model == OURS)
    assert (mine.metric, mine.task, mine.setting["dtype"]) == (METRIC, "induction-heads, 2 x 8", "float32")
    assert mine.value > 0
    assert mine.setting["left_out"].keys() == {"mamba_ssm"}


def test_mamba_ssm_has_no_part_in_a_row_that_it_has_no_model_for(monkeypatch):
    other = with_model(SHORT, "s6")
    found = measure("induction-heads", other, Settings(recipes=(("a", other),), peers=True, repeats=3))
    assert found.absent.keys() == {"mamba_ssm"}


def test_trainings_at_once_are_counted_together(monkeypatch):
    monkeypatch.setattr(bench_train_shared, "SECONDS", 0.2)
    found = run(Settings(recipes=(("induction-heads", SHORT),), at_once=(2,)))
    mine, shared = found
    assert shared.task == f"{mine.task}, 2 at once"
    assert (shared.metric, shared.n, shared.setting["at_once"]) == (METRIC, bench_train_shared.ROUNDS, 2)
    assert 0 < shared.value <= shared.setting["best"]


def test_a_training_that_can_not_begin_beside_others_ends_the_bench():
    with pytest.raises(RedCheck, match="1 at once: a process ended"):
        bench_train_shared.steps_per_second(SHORT, "cuda:77", 1)


def test_a_service_for_several_processes_is_looked_for_where_they_would(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert not bench_train_shared.under_mps()
    (tmp_path / "control").touch()
    assert bench_train_shared.under_mps()


@pytest.mark.gpu
@pytest.mark.parametrize("matmul", ["float32", "tf32", "bfloat16"])
def test_graphs_and_plain_steps_make_the_same_bits_on_a_gpu(matmul):
    ours = loop(replace(SHORT, matmul=matmul), device=torch.device("cuda"))
    assert check(OURS, ours, ours.plainly()) == 0


def test_a_schedule_stays_what_it_is():
    quick = replace(recipe("induction-heads-quick"), batch_size=2, task=INDUCTION.task_of_size(8), curriculum=())
    assert measure("quick", quick, Settings(recipes=(("quick", quick),), repeats=3)).errors == {OURS: 0}


def test_the_command_writes_records_and_a_table(tmp_path):
    small = ["--set", "task.length=8", "--set", "batch_size=2", "--repeats", 3, "--device", "cpu"]
    done = mambalab("bench", "train", "induction-heads", *small, "--out", tmp_path)
    assert done.status == 0
    assert "induction-heads, 2 x 8" in done.out
    assert report([tmp_path / "records.jsonl"]).markdown in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["induction-head"], "unknown task 'induction-head'; nearest: induction-heads"),
        (["induction-heads", "--repeats", 2], "repeats must be at least 3, not 2"),
        (["induction-heads", "--set", "step=1"], "nearest: steps"),
        (["induction-heads", "--at-once", "1,x"], "--at-once takes numbers from 1 to 64 such as 1,4,10, not '1,x'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, says):
    assert says in refused(mambalab("bench", "train", *arguments, "--device", "cpu", "--out", tmp_path))
    assert not list(tmp_path.iterdir())
