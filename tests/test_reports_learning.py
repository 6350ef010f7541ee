"""Plots of trainings against the step: what is drawn, what it is called, and that equal runs give equal bytes."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import mambalab, process
from mambalab.reports import canvas, learning, naming, record
from mambalab.reports.ablation_rows import ABLATIONS
from mambalab.reports.training_runs import ANSWERS, TrainingRun, find
from mambalab.tasks import ablations
from mambalab.tasks.ablations import BASES, GRIDS
from mambalab.tasks.recipes import TASKS, Optimiser, to_json
from reports_cases import some_record
from training_cases import LOG, RECIPE, run, write_training


def drawn(*runs: TrainingRun) -> tuple[Any, Any, list[str]]:
    """Both axes of the plot, and the entries of its legend."""
    figure = learning.by_step(learning.curves(runs))
    (legend,) = figure.legends
    loss, right = figure.axes
    return loss, right, [text.get_text().replace("\n", " ") for text in legend.get_texts()]


def test_loss_and_right_answers_are_drawn_against_the_step():
    loss, right, names = drawn(run())
    assert loss.get_lines()[0].get_xydata().tolist() == [[100, 2.7], [200, 0.02]]
    batches, fixed = right.get_lines()[:2]
    assert batches.get_xydata().tolist() == [[100, 12.5], [200, 50]]
    assert fixed.get_xydata().tolist() == [[200, 75]]
    assert (loss.get_ylabel(), right.get_ylabel(), right.get_xlabel()) == (
        "Loss, nats",
        "Right answers, %",
        "Training step",
    )
    assert names == [
        "mamba",
        "seed 0",
        "of 256 fixed sequences, those without an error",
        "chance: ln 15 = 2.71 nats, 6.7 %",
    ]
    assert loss.get_title("left").replace("\n", " ") == (
        "induction-heads at length 256, batches of 8, Adam at 0.001, constant"
    )


def test_seeds_share_a_colour_and_other_ways_to_train_have_others():
    loss, _, names = drawn(run(), run(seed=1), run(seed=1, batch_size=32))
    first, second, other = loss.get_lines()[:3]
    assert first.get_color() == second.get_color() != other.get_color()
    assert first.get_linestyle() != second.get_linestyle() == other.get_linestyle()
    assert names[:4] == ["batches of 8", "batches of 32", "seed 0", "seed 1"]
    assert loss.get_title("left").replace("\n", " ") == "induction-heads at length 256, mamba, Adam at 0.001, constant"
    another = replace(run(model="other"), setting={**run().setting, "model": {"mixer": "s4"}})
    assert drawn(run(), another)[2][:2] == ["mamba", "other"]


def test_axes_are_logarithmic_where_a_linear_one_would_hide_something():
    loss, right, _ = drawn(run())
    assert (loss.get_yscale(), right.get_xscale()) == ("log", "linear")
    flat = [line | {"loss": 2.7, "step": line["step"] ** 2} for line in LOG]
    loss, right, _ = drawn(run(log=[{**LOG[0], "step": 1}, *flat]))
    assert (loss.get_yscale(), right.get_xscale()) == ("linear", "log")


def test_chance_is_drawn_where_the_task_tells_it():
    loss, right, _ = drawn(run())
    assert loss.get_lines()[-1].get_ydata()[0] == pytest.approx(math.log(15))
    assert right.get_lines()[-1].get_ydata()[0] == pytest.approx(100 / 15)
    strange = run()
    setting = {**strange.setting, "task": {**strange.setting["task"], "name": "another"}}
    assert not any("chance" in name for name in drawn(replace(strange, setting=setting))[2])


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
@pytest.mark.parametrize("symbols", [100, 101])
def test_the_answers_of_a_task_are_those_that_it_guesses_among(task, symbols):
    made = task(vocab_size=symbols)
    assert 1 / ANSWERS[task.name](vars(made)) == pytest.approx(made.chance)


def test_a_curriculum_that_all_share_is_marked():
    staged = {"curriculum": ((100, 16), (100, 64)), "steps": 800}
    loss, _, names = drawn(run(**staged), run(**staged, seed=1))
    ends = [list(line.get_xdata()) for line in loss.get_lines() if line.get_color() == canvas.GREY]
    assert [100, 100] in ends
    assert [200, 200] in ends
    assert names[-1] == "trained at length 16, then 64, then 256"
    assert not any("trained at" in name for name in drawn(run(**staged), run())[2])


def test_what_is_trained_alike_is_told_apart_by_its_settings():
    wide = replace(RECIPE.model, d_state=4)
    assert naming.names([("mamba", run(model=None).setting), ("mamba", to_json(replace(RECIPE, model=wide)))]) == [
        "mamba, d_state 16",
        "mamba, d_state 4",
    ]
    assert learning.curves([run(), run(checkpoint_every=400)])[0].runs == (run(), run(checkpoint_every=400))


def test_an_unfinished_run_is_called_as_a_finished_one_of_its_model():
    decayed = Optimiser(decay="cosine")
    assert [one.model for one in learning.curves([run(model=None), run(model="m", optimiser=decayed)])] == ["m", "m"]
    assert [one.model for one in learning.curves([run(model=None)])] == ["mamba"]


def test_many_curves_are_drawn_in_several_plots_with_a_colour_each(tmp_path):
    many = [run(batch_size=size) for size in range(1, learning.MOST + 2)]
    names = [path.name for path in learning.draw(many, tmp_path)]
    assert names == [
        f"loss-and-accuracy-by-step-induction-heads-256-{n}-of-2.{suffix}" for n in (1, 2) for suffix in ("png", "svg")
    ]
    loss, _, _ = drawn(*many[: learning.MOST])
    assert len({str(line.get_color()) for line in loss.get_lines()[: learning.MOST]}) == learning.MOST


def cells(grid: str) -> list[TrainingRun]:
    """A run of each cell, in another order than the table's."""
    made = ablations.cells(GRIDS[grid], [BASES["induction-heads"]], (0,))
    return [
        TrainingRun(
            name=one.name,
            folder=Path(one.name),
            setting=to_json(one.recipe),
            log=LOG,
            model="mamba-variant",
            experiment=one.experiment,
            is_finished=True,
        )
        for one in reversed(made)
    ]


def test_curves_of_an_ablation_are_called_and_ordered_as_the_rows_of_its_table():
    loss, _, names = drawn(*cells("selectivity"))
    assert names[:8] == [
        "nothing selective",
        "selective C",
        "selective B",
        "selective Δ",
        "selective B, C",
        "selective Δ, C",
        "selective Δ, B",
        "selective Δ, B, C",
    ]
    assert loss.get_title("left").startswith("Selectivity, induction-heads at length 256, batches of 64,")
    assert drawn(*cells("state-size"))[2][8:10] == ["selective, n = 8", "selective, n = 16"]


def test_cells_of_one_row_are_told_apart_by_how_they_were_trained():
    (one, *_) = cells("a-init")
    other = replace(one, setting={**one.setting, "batch_size": 8})
    assert drawn(one, other)[2][:2] == ["batches of 64", "batches of 8"]


@pytest.mark.parametrize("one", ABLATIONS.values(), ids=ABLATIONS)
def test_every_row_of_an_ablation_has_a_name_of_its_own_that_is_a_line_of_a_legend(one):
    names = [line.name for line in one.lines]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= learning.WIDE


def test_an_ablation_has_a_plot_of_its_own(tmp_path):
    names = {path.stem for path in learning.draw([*cells("a-init"), *cells("selectivity"), run()], tmp_path)}
    starts = ("a-init-", "selectivity-", "")
    assert names == {f"loss-and-accuracy-by-step-{start}induction-heads-256" for start in starts}


def test_runs_without_a_line_in_their_log_are_not_drawn(tmp_path):
    assert learning.draw([run(log=[])], tmp_path) == []
    with pytest.raises(ValueError, match=r"^no log has a line yet$"):
        drawn(run(log=[]))


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_report_draws_the_same_bytes_in_another_process_with_other_settings(tmp_path):
    runs, here, there = tmp_path / "runs", tmp_path / "here", tmp_path / "there"
    write_training(runs / "seed-0")
    write_training(runs / "seed-1", seed=1, finished=False)
    setting = {"length": 64, "chance": 1 / 15, "sequences": 256, "trained_length": 256, "published": None, "chunk": 64}
    setting |= {"training": run().setting, "steps_done": 400, "weights": "w", "by_distance": [[16, 3, 4]]}
    setting |= {"seconds": 1.0, "tokens_per_second": 9}
    far = {"experiment": "extrapolation", "task": "induction-heads", "model": "mamba", "metric": "sequence accuracy"}
    record.write(runs / "seed-0" / "extrapolation" / "records.jsonl", [some_record(**far, setting=setting, seed=0)])
    answer = mambalab("report", runs, "--figures", here)
    assert answer.status == 0, answer.err
    kinds = ("accuracy-by-distance", "accuracy-by-length", "loss-and-accuracy-by-step")
    ends = ("induction-heads", "induction-heads", "induction-heads-256")
    names = [f"{kind}-{end}.{suffix}" for kind, end in zip(kinds, ends, strict=True) for suffix in ("png", "svg")]
    assert list(hashes(here)) == names
    assert sorted(answer.err.split()[1::2]) == [str(here / name) for name in names]
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nfont.size: 20\nsvg.fonttype: none\n")
    changed = {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path)}
    answer = process("report", os.path.relpath(runs, tmp_path), "--figures", there, folder=tmp_path, **changed)
    assert answer.status == 0, answer.err
    assert hashes(here) == hashes(there)


def test_runs_that_hold_nothing_to_draw_are_one_clear_line(tmp_path):
    record.write(tmp_path / "records.jsonl", [some_record()])
    answer = mambalab("report", tmp_path, "--figures", tmp_path / "figures")
    assert answer.status == 2
    assert (
        answer.err == "mambalab: nothing to draw: these runs have neither logs of training nor accuracies by length\n"
    )
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("end", ['{"step": 300, "lo', "7\n", '{"step": 300}\n'])
def test_a_log_that_was_cut_short_is_read_up_to_there(tmp_path, end):
    folder = write_training(tmp_path / "a")
    with (folder / "log.jsonl").open("a") as log:
        log.write(end)
    (one,) = find([tmp_path, folder])
    assert [line["step"] for line in one.log] == [100, 200]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "settings.json: not JSON"),
        ('{"recipe": {}}', "settings.json was not written by mambalab: it has no 'steps'$"),
    ],
)
def test_damaged_settings_are_one_clear_line(tmp_path, text, says):
    folder = write_training(tmp_path / "a")
    (folder / "settings.json").write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        find([tmp_path])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["// an editor's\n{}", "{}", '{"recipe": "soup"}'])
def test_other_programs_settings_are_no_runs(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    assert find([tmp_path]) == []


def test_what_is_not_finished_is_said_with_how_far_it_is(tmp_path):
    write_training(tmp_path / "done")
    write_training(tmp_path / "more" / "late", seed=1, finished=False)
    write_training(tmp_path / "new", seed=2, finished=False, log=[])
    way = "batches of 8, Adam at 0.001, constant"
    lines = mambalab("report", tmp_path).out.splitlines()
    at = lines.index("## Not finished")
    assert lines[at + 2 : at + 4] == [
        "- more/late: not finished, step 200 of 400 after 1.50 minutes, 75.00 % of answers and 75.00 % of sequences "
        f"right when last measured (mamba on induction-heads at length 256, seed 1; {way}).",
        f"- new: not finished, step 0 of 400 (mamba on induction-heads at length 256, seed 2; {way}).",
    ]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tf32_is_named_only_of_runs_on_a_gpu(tmp_path, device):
    folder = write_training(tmp_path / "late", finished=False, matmul="tf32")
    settings = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps({**settings, "device": device}))
    loss, _, _ = drawn(*find([tmp_path]))
    assert ("TF32" in loss.get_title("left")) == (device != "cpu")
    assert ("TF32" in mambalab("report", tmp_path).out) == (device != "cpu")


def test_a_folder_that_holds_only_what_is_not_finished_is_reported_too(tmp_path):
    write_training(tmp_path / "late", finished=False)
    answer = mambalab("report", tmp_path / "late", "--out", tmp_path / "out")
    assert answer.status == 0, answer.err
    assert answer.out.startswith("## Not finished\n\n- late: not finished, step 200 of 400 after")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.md"]


def test_a_run_that_diverged_is_not_one_that_goes_on(tmp_path):
    folder = write_training(tmp_path / "lost", finished=False)
    far = {"experiment": "training", "metric": "diverged after step", "model": "mamba", "task": "induction-heads"}
    setting = {**run().setting, "steps_done": 200}
    record.write(folder / "diverged" / "records.jsonl", [some_record(**far, value=200, setting=setting, seed=0)])
    assert "Not finished" not in mambalab("report", tmp_path).out


def test_a_run_and_the_folder_above_it_are_read_once(tmp_path):
    folder = write_training(tmp_path / "runs" / "a")
    assert mambalab("report", tmp_path / "runs", folder).out == mambalab("report", tmp_path / "runs").out
