"""Recipes are values that can be written down and read again, and their learning rates are what they say."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from mambalab.models import build, parameter_count
from mambalab.models.registry import MambaConfig
from mambalab.models.synthetic import SYNTHETIC
from mambalab.tasks import InductionHeads, SelectiveCopying
from mambalab.tasks.accuracy import measure
from mambalab.tasks.outcome import model_name
from mambalab.tasks.recipes import RECIPES, Optimiser, Recipe, from_json, recipe, to_json, with_model
from mambalab.tasks.step import Trainee
from torch import nn

BASE = RECIPES["induction-heads"]


class Answering(nn.Module):
    """Reads the right answers from the tokens, as the oracle does, and gets every `wrong`-th of them wrong."""

    def __init__(self, task, wrong: int = 0) -> None:
        super().__init__()
        self.task, self.wrong, self.rows = task, wrong, []

    def forward(self, tokens, *, logits_at):
        self.rows.append(len(tokens))
        targets = self.task.oracle(tokens).reshape(-1)
        if self.wrong:
            targets[:: self.wrong] = 0
        return 30 * nn.functional.one_hot(targets, self.task.vocab_size).float(), None


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_written_and_read_again(name):
    text = json.dumps(to_json(RECIPES[name]))
    assert from_json(json.loads(text)) == RECIPES[name]


def test_the_paper_s_recipes_are_the_paper_s():
    assert parameter_count(build(BASE.model)) == 73_664
    assert (BASE.task.length, BASE.batch_size, BASE.steps) == (256, 8, 204_800)
    copying = RECIPES["selective-copying"]
    assert (copying.steps, copying.batch_size, copying.optimiser.learning_rate) == (400_000, 64, 1e-4)
    for one in (BASE, copying):
        assert one.optimiser.weight_decay == 0
        assert one.optimiser.decay == "constant"
        assert (one.model.n_layer, one.model.d_model, one.task.vocab_size) == (2, 64, 16)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_every_row_of_the_tables_takes_a_step_on_every_parameter(name, unchecked):
    task = SelectiveCopying(places=12, copies=2, vocab_size=6)
    row = with_model(replace(BASE, task=task, batch_size=2), name)
    assert (row.model.vocab_size, model_name(row.model)) == (6, name)
    trainee = Trainee(row, build(row.model), torch.device("cpu"))
    before = {key: tensor.clone() for key, tensor in trainee.tensors().items()}
    trainee.advance(task)
    same = [key for key, tensor in trainee.tensors().items() if torch.equal(tensor, before[key])]
    assert same == []
    assert trainee.step.item() == 1


@pytest.mark.parametrize("row", SYNTHETIC.values(), ids=SYNTHETIC)
def test_every_row_of_the_tables_has_a_recipe_of_its_own(row):
    one = RECIPES[f"{row.table}-{row.name}"]
    assert one.model == row.config
    copies = row.table == "table1"
    assert one.task == (SelectiveCopying() if copies else InductionHeads())
    assert (one.steps, one.batch_size) == ((400_000, 64) if copies else (one.steps, 8))


def test_table_2_has_the_paper_s_epochs_and_rates():
    found = {name: RECIPES[f"table2-{name}"] for name in ("mamba", "mha-abs", "mha-rope", "mha-xpos", "h3", "hyena")}
    assert {name: one.steps for name, one in found.items()} == {
        "mamba": 204_800, "mha-abs": 204_800, "mha-rope": 409_600, "mha-xpos": 409_600, "h3": 81_920, "hyena": 81_920,
    }  # fmt: skip
    rates = {name: one.optimiser.learning_rate for name, one in found.items()}
    assert rates == dict.fromkeys(found, 2e-4) | {"mamba": 1e-3}


def test_an_unknown_name_gets_its_neighbours():
    with pytest.raises(ValueError, match="unknown task 'induction-head'; nearest: induction-heads, "):
        recipe("induction-head")


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({}, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ({"warmup": 4}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        ({"decay": "linear", "decay_steps": 4}, [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        ({"decay": "linear", "decay_steps": 4, "final": 0.2}, [1, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4]),
        ({"decay": "linear", "warmup": 5}, [0.2, 0.4, 0.6, 0.8, 1, 1, 0.8, 0.6, 0.4, 0.2]),
        ({"decay": "cosine"}, [(1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)]),
    ],
    ids=str,
)
def test_the_rate_is_the_schedule(settings, rates):
    optimiser = Optimiser(learning_rate=1.0, **settings)
    found = [float(optimiser.rate(torch.tensor(step), 10)) for step in range(10)]
    assert found == pytest.approx(rates, abs=1e-6)


def test_what_is_left_is_counted_stage_by_stage():
    quick = recipe("induction-heads-quick")
    assert list(quick.stages_after(0)) == [(1000, 16), (500, 64), (1000, 256)]
    assert list(quick.stages_after(1200)) == [(300, 64), (1000, 256)]
    assert list(quick.stages_after(quick.steps)) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 1000}, "steps must be a multiple of log_every, 128, not 1000"),
        ({"evaluate_every": 0}, "evaluate_every must be from 1"),
        ({"curriculum": ((100, 64),)}, r"curriculum\[0\] must be a multiple of log_every, 128, not 100"),
        ({"curriculum": ((2**20, 64),)}, "the curriculum has more steps than the recipe"),
        ({"curriculum": ((128, 2),)}, "length must be from 3"),
        ({"evaluation_seed": 0}, "evaluation_seed must not be the seed of the training data"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"matmul": "float16"}, "matmul must be one of float32, tf32, bfloat16, not 'float16'"),
        ({"sequences": 2**24 + 1}, r"sequences must be at most 2\^24, not 16777217"),
        ({"optimiser": Optimiser(warmup=204_801)}, "optimiser.warmup must be at most steps, 204800, not 204801"),
        (
            {"optimiser": Optimiser(decay="linear", warmup=1, decay_steps=204_800)},
            r"optimiser.warmup and decay_steps must be at most steps, 204800, together, not 1 \+ 204800",
        ),
        ({"task": InductionHeads(vocab_size=17)}, "model.vocab_size must be at least task.vocab_size, not 16 < 17"),
    ],
    ids=str,
)
def test_an_impossible_recipe_is_one_line(changes, says, unchecked):
    with pytest.raises(ValueError, match=says):
        replace(BASE, **changes)


def test_all_that_is_wrong_with_the_numbers_of_steps_is_said_at_once(unchecked):
    with pytest.raises(ValueError, match="steps") as caught:
        replace(recipe("selective-copying-quick"), steps=750, evaluate_every=25)
    assert str(caught.value) == (
        "steps must be a multiple of log_every, 100, not 750; "
        "evaluate_every must be a multiple of log_every, 100, not 25; "
        "the curriculum has more steps than the recipe, 4500 > 750; "
        "optimiser.warmup and decay_steps must be at most steps, 750, together, not 0 + 3000"
    )


@pytest.mark.parametrize(
    "schedule",
    [
        Optimiser(warmup=204_800),
        Optimiser(decay="linear", warmup=1, decay_steps=204_799),
        Optimiser(decay="cosine", warmup=204_800),
        Optimiser(decay_steps=204_801),
    ],
    ids=str,
)
def test_a_schedule_may_fill_the_run(schedule):
    assert replace(BASE, optimiser=schedule).optimiser == schedule


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learning_rate": -1.0}, "learning_rate must be a number from 0"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"beta1": 1.0}, "beta1 must be a number from 0 to below 1, not 1.0"),
        ({"decay": "sudden"}, "decay must be one of constant, linear, cosine, not 'sudden'"),
        ({"learning_rate": "fast"}, "learning_rate must be a number"),
    ],
    ids=str,
)
def test_an_impossible_optimiser_is_one_line(changes, says, unchecked):
    with pytest.raises(ValueError, match=says):
        Optimiser(**changes)


@pytest.mark.parametrize("pass_tokens", [1, 30, 10**6])
def test_accuracy_counts_answers_and_whole_rows_however_they_are_passed(pass_tokens):
    task = SelectiveCopying(places=8, copies=4, vocab_size=6)
    right = Answering(task)
    found = measure(right, task, seed=1, sequences=10, device="cpu", pass_tokens=pass_tokens)
    assert (found.token, found.sequence, found.sequences, found.answers) == (1, 1, 10, 40)
    assert found.loss == pytest.approx(0, abs=1e-6)
    assert sum(right.rows) == 10
    assert max(right.rows) == max(1, min(10, pass_tokens // 12))


def test_one_wrong_answer_in_each_row_spoils_every_row():
    task = SelectiveCopying(places=8, copies=4, vocab_size=6)
    found = measure(Answering(task, wrong=4), task, seed=1, sequences=10, device="cpu")
    assert (found.token, found.sequence) == (0.75, 0)


def test_the_fixed_set_is_not_the_training_data():
    first = BASE.task.batch(BASE.seed, 0, 256).tokens
    fixed = BASE.task.batch(BASE.evaluation_seed, 0, 256).tokens
    assert not (first[:, None] == fixed[None]).all(2).any()


def test_a_curriculum_goes_through_its_lengths():
    staged = replace(BASE, curriculum=((128, 16), (256, 64)))
    found = [(staged.stage(step)[0].length, staged.stage(step)[1]) for step in (0, 127, 128, 383, 384, 204_799)]
    assert found == [(16, 128), (16, 128), (64, 384), (64, 384), (256, 204_800), (256, 204_800)]
    copying = Recipe(
        task=SelectiveCopying(places=64),
        model=MambaConfig(d_model=8, n_layer=1, vocab_size=16),
        steps=200,
        batch_size=2,
        curriculum=((100, 20),),
        checkpoint_every=100,
        evaluate_every=100,
    )
    assert copying.stage(0)[0].length == 36


def test_a_recipe_written_before_a_setting_was_there_has_its_default():
    content = to_json(recipe("induction-heads"))
    del content["matmul"]
    assert from_json(content) == recipe("induction-heads")
    del content["steps"]
    with pytest.raises(ValueError, match=r"not a recipe: .*steps"):
        from_json(content)
