"""How trainings were done is told in one way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mambalab.reports.naming import how
from mambalab.tasks.recipes import Optimiser, recipe, to_json

COPYING = recipe("selective-copying")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "batches of 64, Adam at 0.0001, constant"),
        ({"batch_size": 8, "optimiser": Optimiser(weight_decay=0.1)}, "batches of 8, AdamW at 0.001, constant"),
        (
            {"optimiser": Optimiser(decay="linear", decay_steps=1000, warmup=20, clip=1.0)},
            "batches of 64, Adam at 0.001, linear decay over the last 1,000 steps after 20 steps of warm-up, "
            "gradients clipped to 1",
        ),
        (
            {"curriculum": ((1000, 20), (500, 64))},
            "batches of 64, Adam at 0.0001, constant, first 1,000 steps at length 20 and 500 steps at length 64",
        ),
    ],
)
def test_a_note_says_how_it_was_trained(changes, says):
    assert how(to_json(replace(COPYING, **changes))) == says
