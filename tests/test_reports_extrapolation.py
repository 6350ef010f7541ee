"""Accuracy by length: tables of records with their bounds, and plots that say what they show, the same to the byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from mambalab.reports import extrapolation, figures, naming
from mambalab.reports.binomial import at_least
from mambalab.reports.record import Record
from scipy.stats import beta

OPTIMISER = {"learning_rate": 1e-3, "decay": "constant", "weight_decay": 0.0, "warmup": 0, "clip": None}
TASK = {"name": "induction-heads", "length": 256}
TRAINING: dict[str, Any] = {"batch_size": 8, "steps": 4000, "optimiser": OPTIMISER, "curriculum": [], "task": TASK}


def one(
    length: int, right: int = 256, *, model: str = "mamba", task: str = "induction-heads", seed: int = 0, **setting: Any
) -> Record:
    """The record of a length with so many of 256 right, near distances first."""
    nearest = length // 2
    return Record(
        experiment="extrapolation",
        model=model,
        task=task,
        metric="sequence accuracy",
        value=right / 256,
        n=256,
        setting={
            "length": length,
            "sequences": 256,
            "chunk": 8192,
            "trained_length": 256,
            "chance": 1 / 15,
            "published": "Mamba",
            "training": TRAINING,
            "steps_done": 4000,
            "seconds": 0.5,
            "tokens_per_second": 512 * length,
            "by_distance": [[nearest // 2, min(right, 100), 100], [nearest, max(0, right - 100), 156]],
            **setting,
        },
        seed=seed,
        provenance={"backend": "cpu"},
    )


def left_out(length: int, why: str = "out of memory", **names: Any) -> Record:
    asked = one(length, **names)
    setting = {k: v for k, v in asked.setting.items() if k not in ("seconds", "tokens_per_second", "by_distance")}
    return Record(
        **{name: getattr(asked, name) for name in ("experiment", "model", "task", "n", "seed", "provenance")},
        metric="length left out",
        value=length,
        setting=setting | {"why": why},
    )


def shown(make: Callable[..., Any], records: Sequence[Record]) -> Any:
    """A table or the notes of records that stand in a report alone."""
    return make(records, naming.marks(map(extrapolation.named, records)))


PERFECT = [one(2**e) for e in range(6, 21)]
MISSED = [one(256), one(1024, 250), one(2048, 128)]
ATTENTION = [one(256, model="mha-abs", published="MHA-Abs"), left_out(2**15, model="mha-abs", published="MHA-Abs")]


@pytest.mark.parametrize(("right", "of"), [(0, 4), (1, 4), (3, 4), (4, 4), (255, 256), (256, 256), (700, 1000)])
def test_the_bound_is_the_exact_one(right, of):
    wanted = beta.ppf(0.05, right, of - right + 1) if right else 0.0
    assert at_least(right, of) == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize(("right", "of"), [(-1, 4), (5, 4)])
def test_a_count_that_is_none_is_refused(right, of):
    with pytest.raises(ValueError, match=f"from 0 to {of}, not {right}$"):
        at_least(right, of)


def test_a_length_has_its_count_its_bound_its_speed_and_the_published_number():
    lines = shown(extrapolation.by_length, MISSED).to_dict("records")
    assert lines[1] == {
        "Length": "2^10",
        "Right": "250 of 256",
        "Accuracy %": "97.66",
        "At least %": "95.43",
        "Tokens/s": "524,288",
        "Seconds": "0.500",
        "Published %": "100.0",
    }


def test_a_length_left_out_has_its_reason_and_no_number():
    lines = shown(extrapolation.by_length, [*MISSED, *ATTENTION]).to_dict("records")
    assert [line["Model"] for line in lines] == ["mamba"] * 3 + ["mha-abs"] * 2
    last = {name: value for name, value in lines[-1].items() if value != "—"}
    assert last == {
        "Model": "mha-abs",
        "Length": "2^15",
        "Accuracy %": "out of memory",
        "Published %": "out of memory",
    }


def test_distances_are_shown_of_the_shortest_length_with_an_error_and_of_the_longest():
    frame = shown(extrapolation.by_distance, [one(256), one(512, 200), one(1024, 50), one(2048)])
    assert frame.to_dict("records") == [
        {"Length": "2^9", "2^7": "100/100", "2^8": "100/156", "2^9": "—", "2^10": "—"},
        {"Length": "2^11", "2^7": "—", "2^8": "—", "2^9": "100/100", "2^10": "156/156"},
    ]


def test_a_longest_length_that_is_the_only_one_with_an_error_has_one_row():
    assert list(shown(extrapolation.by_distance, [one(256), one(512, 200)])["Length"]) == ["2^9"]


def test_trainings_without_an_error_are_named_in_place_of_rows():
    mixed = [*PERFECT, one(256, seed=1), one(512, 200, seed=1)]
    assert list(shown(extrapolation.by_distance, mixed)["Seed"]) == [1]
    told = "- Right at every length that was read, whatever the distance: mamba, seed 0.\n"
    assert told in extrapolation.report(mixed)
    text = extrapolation.report(PERFECT)
    assert told in text
    assert "Columns" not in text
    assert text.count("|:---") == 1


def test_the_report_says_how_the_model_was_trained():
    text = extrapolation.report(PERFECT)
    assert "| 2^20     | 256 of 256 |       100.00 |        98.84 |" in text
    assert text.splitlines()[-3:] == [
        "- Trained for 4,000 steps at length 2^8: mamba, seed 0.",
        "- Published: Mamba in the Mamba paper's Table 2 (its numbers: Table 11), % to 2^20.",
        "- Trained in batches of 8, Adam at 0.001, constant.",
    ]


def test_how_a_model_was_trained_is_told_as_of_any_training():
    short_first = TRAINING | {"curriculum": [[1024, 16], [1024, 64]], "matmul": "tf32"}
    told = extrapolation.report([one(256), one(512, training=short_first), one(512, seed=1, training=short_first)])
    assert told.splitlines()[-4:] == [
        "- Trained for 4,000 steps at length 2^8: mamba (1), seed 0; mamba (2), seeds 0, 1.",
        "- Published: Mamba in the Mamba paper's Table 2 (its numbers: Table 11), % to 2^20.",
        f"- (1): {naming.how(TRAINING)}.",
        f"- (2): {naming.how(short_first)}.",
    ]
    assert "first 1,024 steps at length 16 and 1,024 steps at length 64" in told


def test_other_records_make_no_table():
    other = Record(
        experiment="x", model="m", task="t", metric="acc", value=1, n=1, setting={}, provenance={"backend": "cpu"}
    )
    with pytest.raises(ValueError, match="no records of accuracy by length"):
        extrapolation.report([other])


def curves(figure: Any) -> dict[str, Any]:
    """The labelled lines of a figure."""
    (axes,) = figure.axes
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_the_plot_over_length_shows_what_was_measured_and_what_was_published():
    figure = figures.accuracy_by_length([*MISSED, *ATTENTION])
    (axes,) = figure.axes
    lines = curves(figure)
    assert list(lines) == [
        "mamba, seed 0",
        "mha-abs, seed 0",
        "published",
        "out of memory",
        "chance, 6.7%",
        "trained at $2^{8}$",
    ]
    assert lines["mamba, seed 0"].get_xydata().tolist() == [[256, 100], [1024, 250 / 2.56], [2048, 50]]
    assert lines["mha-abs, seed 0"].get_xydata().tolist() == [[256, 100]]
    published: Any = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    dashed = [line.get_xydata().tolist() for line in published if len(line.get_xydata())]
    assert [len(points) for points in dashed] == [15, 9]
    assert dashed[1][3] == [512, 58.6]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == [f"$2^{{{e}}}$" for e in range(8, 16)]
    assert axes.get_title() == "induction-heads: 256 sequences of each length"


def test_the_plot_over_distance_adds_up_all_lengths():
    line = curves(figures.accuracy_by_distance([one(256), one(512, 200)]))["mamba, seed 0"]
    assert line.get_xydata().tolist() == [[64, 100], [128, 100 * (156 + 100) / (156 + 100)], [256, 100 * 100 / 156]]


def test_chance_is_that_of_one_guess_or_is_not_drawn():
    whole = one(256, published=None, task="selective-copying", chance=1 / 14)
    answers = replace(whole, metric="token accuracy", value=0.9, n=16 * 256)
    assert "chance, 7.1%" in curves(figures.accuracy_by_length([whole]))
    assert not any("chance" in label for label in curves(figures.accuracy_by_length([answers, whole])))
    both = curves(figures.accuracy_by_length([answers, whole, one(256, model="mamba-s6")]))
    assert [label for label in both if "chance" in label] == ["chance, 6.7%"]


def test_trainings_of_one_model_and_seed_are_rows_of_their_own_with_a_mark_of_each():
    wider = TRAINING | {"batch_size": 32}
    first = [one(256, 64, weights="a"), one(512, 128, weights="a")]
    both = [*first, *(replace(r, setting={**r.setting, "weights": "b", "training": wider}) for r in first)]
    answers = [replace(r, metric="token accuracy", value=1 - i / 4, n=512) for i, r in enumerate(both)]
    lines = shown(extrapolation.by_length, [*answers, *both]).to_dict("records")
    assert [(line["Trained"], line["Length"], line["Answers right %"]) for line in lines] == [
        ("(1)", "2^8", "100.00"),
        ("(1)", "2^9", "75.00"),
        ("(2)", "2^8", "50.00"),
        ("(2)", "2^9", "25.00"),
    ]
    assert shown(extrapolation.by_distance, both)[["Trained", "Length"]].to_numpy().tolist() == [
        ["(1)", "2^8"],
        ["(1)", "2^9"],
        ["(2)", "2^8"],
        ["(2)", "2^9"],
    ]
    assert "- (2): batches of 32, Adam at 0.001, constant.\n" in extrapolation.report(both)


def test_trainings_of_one_model_and_seed_are_lines_of_their_own_and_say_what_they_differ_in():
    faster = TRAINING | {"optimiser": TRAINING["optimiser"] | {"learning_rate": 0.01}}
    records = [one(256, weights="a"), one(512, 128, weights="b", training=faster), one(512, weights="a")]
    lines = curves(figures.accuracy_by_length(records))
    slow, fast = lines["mamba, Adam at 0.001, seed 0"], lines["mamba, Adam at 0.01, seed 0"]
    assert slow.get_xydata().tolist() == [[256, 100], [512, 100]]
    assert fast.get_xydata().tolist() == [[512, 50]]
    assert slow.get_color() != fast.get_color()


def test_plots_are_whole_files_of_their_kind(tmp_path):
    png, svg = figures.write(figures.accuracy_by_length(PERFECT), tmp_path / "new" / "plot.v1")
    assert [path.name for path in (png, svg)] == ["plot.v1.png", "plot.v1.svg"]
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert png.read_bytes()[-8:-4] == b"IEND"
    assert ElementTree.fromstring(svg.read_bytes()).tag == "{http://www.w3.org/2000/svg}svg"
    assert b"date" not in svg.read_bytes().lower().replace(b"dcupdate", b"")


def test_lines_that_lie_on_each_other_differ_in_colour_mark_and_width():
    lines = curves(figures.accuracy_by_length([one(2**e, seed=seed) for seed in range(3) for e in (8, 9)]))
    seeds = [lines[f"mamba, seed {seed}"] for seed in range(3)]
    for look in ("get_color", "get_marker", "get_linewidth", "get_markersize"):
        assert len({getattr(line, look)() for line in seeds}) == 3
    assert seeds[0].get_markersize() > seeds[1].get_markersize() > seeds[2].get_markersize()


def test_trainings_of_one_name_and_seed_have_rows_each():
    table = shown(
        extrapolation.by_distance, [one(1024, 200, weights="a"), one(1024, 100, weights="b"), one(1024, 9, seed=1)]
    )
    rows = table[["Seed", "Length", "2^9"]].to_numpy().tolist()
    assert rows == [[0, "2^10", "100/156"], [0, "2^10", "0/156"], [1, "2^10", "0/156"]]
